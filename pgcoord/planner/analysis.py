"""Analysis of a plan: waves, critical path, duration, sizes of prompts, and warnings.

It accepts any stored plan. Invalid plans are refused when they are read (`pgcoord.plan`) or stored
(by the database); warnings are for people to check.
"""

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

from pgcoord.planner.layers import layer_of

# Characters of a token: an estimate for English, independent of any model.
CHARACTERS_A_TOKEN = 4

# A longer prompt, in tokens, gets a warning.
MOST_TOKENS = 4000

# Larger plans, in phases, are not searched for common files.
_MOST_COMPARED = 500

# Layers that no later phase has to wait for.
_ENDS = ("tests", "documentation", "rollout", "infrastructure")


@dataclass(frozen=True)
class PlannedPhase:
    """The properties of a phase that the analysis uses."""

    number: int
    title: str
    needs: frozenset[int]
    hours: float | None
    files: tuple[str, ...]
    workflow: str | None
    prompt: str

    @property
    def tokens(self) -> int:
        """The estimated number of tokens of the prompt."""
        return math.ceil(len(self.prompt) / CHARACTERS_A_TOKEN)


@dataclass(frozen=True)
class Analysis:
    """The analysis of a plan with a given number of slots."""

    phases: tuple[PlannedPhase, ...]
    slots: int
    most_tokens: int = MOST_TOKENS

    @cached_property
    def by_number(self) -> dict[int, PlannedPhase]:
        """The phases by number."""
        return {each.number: each for each in self.phases}

    @cached_property
    def waves(self) -> list[list[int]]:
        """The phases that could start together, as lists of numbers, in order.

        The prerequisites of a wave are in earlier waves; a phase that can never start is in none.
        """
        waves: list[list[int]] = []
        open_needs = {each.number: len(each.needs) for each in self.phases}
        wave = [number for number, count in open_needs.items() if not count]
        while wave:
            waves.append(sorted(wave))
            wave = [each for number in waves[-1] for each in self._met(number, open_needs)]
        return waves

    @cached_property
    def _needed_by(self) -> dict[int, list[int]]:
        needed_by: dict[int, list[int]] = {each.number: [] for each in self.phases}
        for phase in self.phases:
            for number in phase.needs & needed_by.keys():
                needed_by[number].append(phase.number)
        return needed_by

    def _met(self, number: int, open_needs: dict[int, int]) -> Iterator[int]:
        """Subtract the completed *number* from *open_needs*; yield the phases then without any."""
        for each in self._needed_by[number]:
            open_needs[each] -= 1
            if not open_needs[each]:
                yield each

    @cached_property
    def _in_order(self) -> list[int]:
        """The phases that can start, each after its prerequisites."""
        return [number for wave in self.waves for number in wave]

    @cached_property
    def hours(self) -> float | None:
        """The sum of all estimates; None if a phase has none."""
        stated = [each.hours for each in self.phases if each.hours is not None]
        return round(sum(stated), 2) if len(stated) == len(self.phases) and stated else None

    @cached_property
    def critical_path(self) -> list[int]:
        """The chain of phases with the longest duration; without estimates, the most phases."""
        # The earliest end of each phase, and the prerequisite that determines it.
        ends: dict[int, tuple[float, int]] = {}
        for number in self._in_order:
            phase = self.by_number[number]
            begin, last = max(((ends[each][0], -each) for each in phase.needs), default=(0.0, 0))
            ends[number] = begin + self._length(phase), -last
        path: list[int] = []
        number = max(ends, key=lambda each: (ends[each][0], -each), default=0)
        while number:
            path.append(number)
            number = ends[number][1]
        return path[::-1]

    @cached_property
    def critical_hours(self) -> float | None:
        """The duration with unlimited slots."""
        if self.hours is None:
            return None
        return round(sum(self.by_number[each].hours or 0 for each in self.critical_path), 2)

    @cached_property
    def hours_with_slots(self) -> float | None:
        """The duration with the given slots, if no other feature runs."""
        if self.hours is None or not self.slots or len(self._in_order) < len(self.phases):
            return None
        open_needs = {each.number: len(each.needs) for each in self.phases}
        ready = [number for number, count in open_needs.items() if not count]
        running: list[tuple[float, int]] = []
        now = 0.0
        while ready or running:
            while ready and len(running) < self.slots:
                number = heapq.heappop(ready)
                heapq.heappush(running, (now + self._length(self.by_number[number]), number))
            now, number = heapq.heappop(running)
            for each in self._met(number, open_needs):
                heapq.heappush(ready, each)
        return round(now, 2)

    def _length(self, phase: PlannedPhase) -> float:
        return 1 if self.hours is None else phase.hours or 0

    @cached_property
    def warnings(self) -> list[str]:
        """The warnings, one line each."""
        return [*self._impossible(), *self._common_files(), *self._unneeded(), *self._long()]

    def _impossible(self) -> Iterator[str]:
        started = set(self._in_order)
        for phase in self.phases:
            if unknown := sorted(phase.needs - self.by_number.keys()):
                numbers = ", ".join(map(str, unknown))
                yield f"{_name(phase)} needs phase {numbers}, which is not in the plan"
            elif phase.number not in started:
                yield f"{_name(phase)} can never start: a prerequisite waits for it or never starts"

    def _common_files(self) -> Iterator[str]:
        """Warn of phases that may run together and change the same file."""
        if len(self.phases) > _MOST_COMPARED:
            return
        above: dict[int, set[int]] = {}  # direct and indirect prerequisites of each phase
        for number in self._in_order:
            direct = self.by_number[number].needs
            above[number] = set(direct).union(*(above[each] for each in direct))
        named = [each for each in self.phases if each.files and each.number in above]
        for one, other in combinations(named, 2):
            if other.number in above[one.number] or one.number in above[other.number]:
                continue
            for file in sorted(set(one.files) & set(other.files)):
                yield f"{_name(one)} and {_name(other)} may run together, and both name {file}"

    def _unneeded(self) -> Iterator[str]:
        """Warn of phases on which no later phase depends."""
        needed = {number for phase in self.phases for number in phase.needs}
        early = {number for wave in self.waves[:-1] for number in wave}
        for phase in self.phases:
            if phase.number in early - needed and layer_of(phase.title) not in _ENDS:
                yield f"no phase depends on {_name(phase)}, although others come after it"

    def _long(self) -> Iterator[str]:
        for phase in self.phases:
            if phase.tokens > self.most_tokens:
                yield (
                    f"the prompt of {_name(phase)} has about {phase.tokens:,} tokens,"
                    f" more than {self.most_tokens:,}"
                )

    def as_json(self) -> dict[str, Any]:
        """Return the analysis as the API and the command line show it."""
        return {
            "waves": self.waves,
            "critical_path": self.critical_path,
            "critical_path_hours": self.critical_hours,
            "hours": self.hours,
            "slots": self.slots,
            "hours_with_slots": self.hours_with_slots,
            "estimated_tokens": {str(each.number): each.tokens for each in self.phases},
            "warnings": self.warnings,
        }


def _name(phase: PlannedPhase) -> str:
    return f"phase {phase.number} ({phase.title})"


def analyse(plan: object, slots: int, most_tokens: int = MOST_TOKENS) -> Analysis:
    """Analyse a stored plan; skip entries that are not phases, which prevent its execution."""
    rows = plan if isinstance(plan, list) else []
    phases = {each.number: each for each in map(_planned_phase, rows) if each}
    return Analysis(tuple(phases[each] for each in sorted(phases)), slots, most_tokens)


def _planned_phase(row: object) -> PlannedPhase | None:
    if not isinstance(row, Mapping) or type(row.get("phase_number")) is not int:
        return None
    needs, files = (_list(row.get(each)) for each in ("depends_on_phases", "files"))
    hours = row.get("estimated_hours")
    return PlannedPhase(
        row["phase_number"],
        str(row.get("title") or "untitled"),
        frozenset(each for each in needs if type(each) is int),
        float(hours) if isinstance(hours, int | float) else None,
        tuple(str(each) for each in files),
        None if row.get("workflow_type") is None else str(row["workflow_type"]),
        str(row.get("prompt_content") or ""),
    )


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else ()
