"""Changes of a plan's phases, made in its text.

Only changed parts are written anew: headings and dependencies of phases, and each
`{result.N.key}` that names a phase whose number changed. Every other byte stays as its author wrote
it, whether or not it belongs to a phase.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from pgcoord.configuration import results
from pgcoord.errors import InvalidInput, InvalidPlan
from pgcoord.plan.headings import PHASE, looks_like_plan, split_lines
from pgcoord.plan.keys import NUMBER, number_of
from pgcoord.plan.model import PlannedPhase
from pgcoord.plan.needs import NEED_OF_TITLE, needs_of_prose
from pgcoord.plan.parsing import parse_plan

_ANY_NUMBER = re.compile(rf"\b(?:{NUMBER})\b", re.IGNORECASE)

# "Depends on: 1, 2" in a line: what is before the value, the value, markup and space after it.
_NEED = re.compile(
    rf"(?P<before>.*?)(?P<value>(?:\b(?:phases?\s+)?(?:{NUMBER})\b|\b(?:none|nothing|n/a)\b|[-–—](?=[\s*_.]*$)).*?)(?P<after>[\s*_.]*)",  # noqa: RUF001
    re.DOTALL | re.IGNORECASE,
)

# A placeholder of a result; in doubled braces it is plain text.
_REFERENCE = re.compile(rf"\{{?\{{({results.NAME.pattern})\}}\}}?", re.ASCII)

_UNCHANGED = "The text of the plan is as it was."


@dataclass(frozen=True)
class Changes:
    """Changes to the phases of a plan, which are named by the numbers that they had before.

    *titles*: new titles. *needs*: new prerequisites. *removed*: phases to take out; those after
    them are renumbered. *adds*: one more at the end.
    """

    titles: Mapping[int, str]
    needs: Mapping[int, Collection[int]]
    removed: Collection[int] = ()
    adds: bool = False


@dataclass(frozen=True)
class _Renumbering:
    """The new numbers of the phases that stay, by their old ones.

    *shift*: by how much the numbers of phases exceed those in the text: 1 in a plan with a phase 0.
    """

    old: Collection[int]
    new: Mapping[int, int]
    shift: int

    def written(self, text: str) -> str:
        """Return the new form of a number in the text; unchanged if it is the same."""
        number = number_of(text)
        renumbered = self.new[number + self.shift] - self.shift
        return text if renumbered == number else str(renumbered)


_Expected = tuple[int, str, list[int]]
"""Number, title and sorted prerequisites of a phase."""


def change_plan(text: str, changes: Changes) -> str:
    r"""Return the plan *text* with *changes*, its lines ended by `\n`.

    Raises `InvalidPlan` if *text* is faulty, `InvalidInput` if it would become so. CPU-bound.
    """
    text = text.replace("\r\n", "\n")
    if changes.adds and not looks_like_plan(text):
        return f"{text.rstrip() or '# New feature'}\n\n{_new_phase(1)}"
    phases = parse_plan(text, name="plan").phases
    stay = [each for each in phases if each.number not in changes.removed]
    lines = [*split_lines(text), ""]  # a place at the end to insert at
    numbers = _Renumbering(
        {each.number for each in phases},
        {each.number: at for at, each in enumerate(stay, 1)},
        phases[0].number - number_of(_heading(lines, phases[0])[1]),
    )
    for phase in phases:
        if phase.number not in numbers.new:
            for at in range(phase.line - 1, phase.body[1] - 1):
                lines[at] = ""
    expected = [_change_phase(each, lines, changes, numbers) for each in stay]
    if changes.adds:
        number = len(stay) + 1 - numbers.shift
        _append(lines, max(each.body[1] for each in phases) - 1, number)
        expected.append((len(stay) + 1, f"Phase {number}", []))
    changed = "".join(lines)
    _check(changed, expected)
    return changed


def _new_phase(number: int) -> str:
    return f"## Phase {number}: Phase {number}\nDepends on: none\n\nWhat is to be done.\n"


def _append(lines: list[str], end: int, number: int) -> None:
    """Add a phase after line *end*; something else may follow."""
    before = "".join(lines[:end])
    gap = "\n" * (2 - (len(before) - len(before.rstrip("\n"))))
    lines[end] = gap + _new_phase(number) + ("\n" if lines[end] else "") + lines[end]


def _heading(lines: list[str], phase: PlannedPhase) -> re.Match[str]:
    match = PHASE.search(lines[phase.line - 1])
    assert match is not None
    return match


def _change_phase(
    phase: PlannedPhase, lines: list[str], changes: Changes, numbers: _Renumbering
) -> _Expected:
    """Apply the changes of one phase to *lines*; return its expected form afterwards."""
    number = numbers.new[phase.number]
    title = " ".join(changes.titles.get(phase.number, "").split()) or phase.title
    numbers_needed = set(changes.needs.get(phase.number, phase.depends_on)) & numbers.new.keys()
    needs = sorted(numbers.new[each] for each in numbers_needed)

    def rewrite(value: str) -> str:
        if numbers_needed == set(phase.depends_on):
            return _ANY_NUMBER.sub(lambda match: numbers.written(match[0]), value)
        return ", ".join(str(each - numbers.shift) for each in needs) or "none"

    first, end = phase.body[0] - 1, phase.body[1] - 1
    for at in range(first, end):
        lines[at] = _with_references(lines[at], phase, numbers)
    source = dict(phase.taken).get("depends on")
    if source is None:
        if needs != ([number - 1] if number > 1 else []):
            at = _first_key(phase, lines)
            lines[at] = f"Depends on: {rewrite('')}\n{lines[at]}"
    elif source > phase.line:
        # Prose is read only without a key; then all its sentences must name the same phases.
        prose = [first + at for at, _ in needs_of_prose(lines[first:end])]
        for at in prose if _is_prose(phase, lines, source - 1) else [source - 1]:
            lines[at] = _rewrite_value(lines[at], rewrite)
    heading = _heading(lines, phase)
    line = heading.string
    rest = line[heading.start(2) :].replace(phase.title, title, 1)
    if source == phase.line:
        rest = _rewrite_needs_of_title(rest, rewrite)
    lines[phase.line - 1] = (
        line[: heading.start(1)]
        + numbers.written(heading[1])
        + line[heading.end(1) : heading.start(2)]
        + rest
    )
    return number, title, needs


def _first_key(phase: PlannedPhase, lines: list[str]) -> int:
    """Return the index at which a key can be inserted: that of the first, or below the heading."""
    first, end = phase.body[0] - 1, phase.body[1] - 1
    filled = next((at for at in range(first, end) if lines[at].strip()), first)
    return filled if filled + 1 in dict(phase.taken).values() else first


def _is_prose(phase: PlannedPhase, lines: list[str], at: int) -> bool:
    """Whether a line of a phase is in its prompt, which comes last, and not a key."""
    body = "".join(lines[phase.body[0] - 1 : phase.body[1] - 1]).rstrip()
    height = len(split_lines(body)) - len(split_lines(phase.prompt.rstrip()))
    return at >= phase.body[0] - 1 + height


def _rewrite_value(line: str, rewrite: Callable[[str], str]) -> str:
    match = _NEED.fullmatch(line)
    assert match is not None
    value = rewrite(match["value"])
    before = match["before"]
    if not before.rstrip(" \t*_").endswith((":", "：")) and value != match["value"]:  # noqa: RUF001
        before = f"{before.rstrip()}: "  # "Depends on phase 1" is read, "Depends on 1" is not
    return before + value + match["after"]


def _rewrite_needs_of_title(title: str, rewrite: Callable[[str], str]) -> str:
    match = NEED_OF_TITLE.search(title.rstrip().rstrip("#"))  # which may close a heading
    assert match is not None
    start, end = match.span("value")
    value = title[start:end]
    return title[:start] + rewrite(value) + title[start + len(value.rstrip()) :]


def _with_references(line: str, phase: PlannedPhase, numbers: _Renumbering) -> str:
    """Return *line* with `{result.N.key}` of the new numbers; unknown numbers stay.

    Raises `InvalidInput` for one of a phase that is taken out.
    """

    def renumber(match: re.Match[str]) -> str:
        name = results.NAME.fullmatch(match[1])
        if name is None or match[0].startswith("{{"):
            return match[0]
        if int(name[1]) not in numbers.old:
            return match[0]
        if int(name[1]) not in numbers.new:
            raise InvalidInput(
                f"phase {phase.number} uses {match[0]}, of phase {name[1]} that is taken out",
                hint=f"Take it out of the prompt of phase {phase.number} first. {_UNCHANGED}",
            )
        return f"{{result.{numbers.new[int(name[1])]}.{name[2]}}}"

    return _REFERENCE.sub(renumber, line)


def _check(text: str, expected: list[_Expected]) -> None:
    """Raise `InvalidInput` unless the plan *text* has these phases."""
    try:
        read = parse_plan(text, name="plan").phases
    except InvalidPlan as error:
        faults = "; ".join(each.split(":", 2)[2].strip() for each in error.problems[:3])
        raise InvalidInput(f"this would make the plan faulty: {faults}", hint=_UNCHANGED) from error
    actual = [(each.number, each.title, sorted(each.depends_on)) for each in read]
    for expected_row, got in zip(expected, actual, strict=False):
        if expected_row != got:
            raise InvalidInput(
                f"phase {expected_row[0]} cannot be written in a plan: {expected_row[1]!r:.60}"
                f" would be read as {got[1]!r:.60}",
                hint=_UNCHANGED,
            )
    if len(expected) != len(actual):
        raise InvalidInput("this cannot be written in the text of the plan", hint=_UNCHANGED)
