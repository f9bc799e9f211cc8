"""A plan as read: a feature and its phases."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

# The values of `When:`: in which state its prerequisites must have ended for a phase to run.
RUN_WHEN = ("completed", "failed", "always")

Problem = tuple[int, str]
"""The number of a line, from 1, and a message about it."""


@dataclass(frozen=True)
class PlannedPhase:
    """A phase as its plan describes it; None and () stand for keys that the plan does not have.

    *line*: the number of its heading's line. *depends_on*: numbers of phases; without the key, the
    number of the phase before it. *prompt*: unchanged. *environment*: pairs of name and value.
    """

    number: int
    title: str
    prompt: str
    depends_on: tuple[int, ...]
    line: int
    workflow: str | None = None
    hours: float | None = None
    priority: int | None = None
    files: tuple[str, ...] = ()
    max_attempts: int | None = None
    timeout: timedelta | None = None
    gate: str | None = None
    check: str | None = None
    when: str | None = None
    lock: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    is_completed: bool = False
    taken: tuple[tuple[str, int], ...] = field(default=(), compare=False)
    """Pairs of each key in the plan and the number of its line."""
    body: tuple[int, int] = field(default=(0, 0), compare=False)
    """The numbers of the first line below its heading, and of the one after its last."""

    @property
    def only_asks(self) -> bool:
        """Whether it is a gate that runs nothing (pgcoord_private.only_asks, of stored ones)."""
        return bool(self.gate) and not self.workflow and not self.prompt.strip(" \t\n\r\f\v")

    def row(self) -> dict[str, object]:
        """Return the phase as an object of `Plan.feature`'s "phases", without absent keys."""
        seconds = None if self.timeout is None else self.timeout.total_seconds()
        optional = {
            "workflow_type": self.workflow,
            "estimated_hours": self.hours,
            "priority": self.priority,
            "run_when": self.when,
            "lock": self.lock,
            "environment": dict(self.environment) or None,
            "files": list(self.files) or None,
            "gate": self.gate,
            "check": self.check,
            "status": "completed" if self.is_completed else None,
            "max_attempts": self.max_attempts,
            "timeout_seconds": int(seconds) if seconds and seconds.is_integer() else seconds,
        }
        return {
            "phase_number": self.number,
            "title": self.title,
            "prompt_content": self.prompt,
            "depends_on_phases": list(self.depends_on),
            **{key: value for key, value in optional.items() if value is not None},
        }


@dataclass(frozen=True)
class Plan:
    """A feature and its phases, in the order of their numbers."""

    title: str
    description: str
    phases: tuple[PlannedPhase, ...]
    notes: tuple[str, ...] = ()
    """Remarks as `file:line: text`: sections that belong to no phase, phases renumbered from 0."""
    max_cost_usd: float | None = None

    def feature(self) -> dict[str, object]:
        """Return the plan as the argument of pgcoord.submit_feature(jsonb); costs in US dollars."""
        hours = [phase.hours for phase in self.phases if phase.hours is not None]
        return {
            "title": self.title,
            "description": self.description,
            # Rounded, for 0.1 + 0.2 hours are 0.3 hours.
            "estimated_hours": round(sum(hours), 6) if hours else None,
            **({"max_cost_usd": self.max_cost_usd} if self.max_cost_usd is not None else {}),
            "phases": [phase.row() for phase in self.phases],
        }


@dataclass(frozen=True)
class Section:
    """A phase's heading, keys and prompt as read; *keys*: {key: (line, value or None if faulty)}.

    The number of a faulty heading is 0, but -1 until `_renumbered`, when 0 may be a phase.
    """

    line: int
    number: int
    title: str
    keys: dict[str, tuple[int, Any]]
    prompt: str
    is_completed: bool = False
    body: tuple[int, int] = (0, 0)

    def value(self, key: str) -> Any:
        """Return what the plan gives for *key*; None without it, or if that is faulty."""
        return self.keys.get(key, (0, None))[1]

    def line_of(self, key: str) -> int:
        """Return the number of the line of *key*; without it, that of the heading."""
        return self.keys.get(key, (self.line, None))[0]

    @property
    def depends_on(self) -> tuple[int, ...]:
        """The numbers of its prerequisites: those it names, else the phase before it."""
        if "depends on" in self.keys:
            return self.value("depends on") or ()
        return (self.number - 1,) if self.number > 1 else ()
