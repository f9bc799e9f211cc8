"""The output of `run --dry-run`: the commands that would run, in which order, with which
settings."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

from pgcoord.commands.options import Surroundings
from pgcoord.configuration.model import LOCAL, PASSED_ON, Configuration, Workflow
from pgcoord.plan.model import Plan, PlannedPhase
from pgcoord.text import counted


@dataclass(frozen=True)
class DryRun:
    """What a coordinator with *configuration*, started in *surroundings*, would do with *plan*."""

    plan: Plan
    configuration: Configuration
    surroundings: Surroundings

    def waves(self) -> list[list[PlannedPhase]]:
        """Return the phases in waves: each wave depends only on those before it.

        Completed phases are left out. Limits by slots, locks and pools are not considered.
        """
        of_number = {each.number: each for each in self.plan.phases if not each.is_completed}
        sorter = TopologicalSorter(
            {
                number: [each for each in phase.depends_on if each in of_number]
                for number, phase in of_number.items()
            }
        )
        sorter.prepare()
        waves = []
        while sorter.is_active():
            ready = sorted(sorter.get_ready())
            waves.append([of_number[number] for number in ready])
            sorter.done(*ready)
        return waves

    def lines(self) -> Iterator[str]:
        """Yield the lines to print for people."""
        phases = counted(len(self.plan.phases), "phase")
        yield f"{self.plan.title}: {phases}; nothing is run"
        if completed := self._completed():
            yield f"completed: {', '.join(map(str, completed))}"
        for number, wave in enumerate(self.waves(), 1):
            yield f"wave {number}"
            for phase in wave:
                yield f"  phase {phase.number}  {phase.title}"
                for key, value in self._described(phase).items():
                    if value:
                        words = ", ".join(map(str, value)) if isinstance(value, list) else value
                        yield f"    {key}: {words}"

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints: `title`, `completed` (numbers), and `waves` of phases."""
        return {
            "title": self.plan.title,
            "completed": self._completed(),
            "waves": [
                [
                    {"phase": each.number, "title": each.title, **self._described(each)}
                    for each in wave
                ]
                for wave in self.waves()
            ],
        }

    def _completed(self) -> list[int]:
        return [each.number for each in self.plan.phases if each.is_completed]

    def _described(self, phase: PlannedPhase) -> dict[str, Any]:
        """Return what is shown of a phase, by label; without a process only what it waits for."""
        members: dict[str, Any] = {
            "after": list(phase.depends_on),
            "when": phase.when,
            "asks": phase.gate,
            "lock": phase.lock,
        }
        workflow = self._workflow_of(phase)
        if workflow is None:
            return members
        names = [*PASSED_ON, *workflow.environment]
        passed_on = self.surroundings.environment
        check = self.configuration.checks.get(phase.check or "") or workflow.check
        timeout = phase.timeout or workflow.timeout
        return members | {
            "workflow": workflow.name,
            "command": " ".join(map(_quoted, workflow.command)),
            "missing": self._missing(workflow),
            "folder": str(workflow.directory) if workflow.worktree is None else "a worktree",
            "environment": [
                *(name for name in names if name in passed_on),
                *dict.fromkeys((*workflow.variables, *dict(phase.environment))),
            ],
            "not set": [name for name in workflow.environment if name not in passed_on],
            "check": " ".join(map(_quoted, check.command)) if check else None,
            "timeout": str(timeout) if timeout else None,
            "attempts": phase.max_attempts or workflow.max_attempts,
            "pool": None if workflow.pool == LOCAL else workflow.pool,
        }

    def _workflow_of(self, phase: PlannedPhase) -> Workflow | None:
        if phase.only_asks:
            return None
        if phase.workflow is None:
            return self.configuration.default_workflow
        return self.configuration.workflows[phase.workflow]

    def _missing(self, workflow: Workflow) -> str | None:
        """Return why its process could not start here: no program, no folder; None if it could."""
        if workflow.pool != LOCAL:
            return None
        program, path = workflow.command[0], self.surroundings.environment.get("PATH")
        if "/" in program:
            is_installed = (workflow.directory / program).exists()
        else:
            is_installed = shutil.which(program, path=path) is not None
        if not is_installed:
            return f"there is no program {program}"
        return None if workflow.directory.is_dir() else f"there is no folder {workflow.directory}"


def _quoted(word: str) -> str:
    """Quote a word of a command for a shell; a placeholder is left unquoted."""
    import shlex

    return word if word.startswith("{") and word.endswith("}") else shlex.quote(word)
