"""Writes the prompt of each phase: its own work in detail, the other phases in short.

The text is a Jinja template, `prompt.md`, which the configuration can replace.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from pgcoord.errors import InvalidConfiguration
from pgcoord.planner.layers import layer, layer_of, stage
from pgcoord.planner.phases import Draft
from pgcoord.planner.structure import Feature, Structure

TEMPLATE = Path(__file__).with_name("prompt.md")

# Errors that a template can raise.
_FAILURES = (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError)

# Characters of the context in every prompt, and of the summary of another phase.
_MOST_CONTEXT = 1200
_MOST_ABOUT = 200

# First characters that tell whether a summary repeats the title.
_ALIKE = 24


@dataclass(frozen=True)
class File:
    """A file of a phase; `is_new` when the repository does not have it."""

    name: str
    is_new: bool = False


@dataclass(frozen=True)
class Surveyed:
    """Files of the repository for one phase: those that it names, and others worth reading."""

    files: tuple[File, ...] = ()
    found: tuple[str, ...] = ()


@dataclass(frozen=True)
class Neighbour:
    """Another phase, as a prompt shows it."""

    number: int
    title: str
    about: str
    files: tuple[str, ...]


def load_template(path: Path | None) -> jinja2.Template:
    """Load the template at *path*, or the default. Raises `InvalidConfiguration` with the line."""
    return _parse(TEMPLATE.read_text(encoding="utf-8") if path is None else _text(path), path)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidConfiguration(f"{path}: not UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise InvalidConfiguration(f"{path}: {(error.strerror or str(error)).lower()}") from error


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    environment.filters.update(code=_code, hours=hours_in_words)
    return environment


def _code(name: object) -> str:
    return f"`{name}`"


def hours_in_words(hours: float) -> str:
    """Return a length of time in words: 30 minutes, 1 hour, 2.5 hours."""
    if hours < 1:
        return f"{max(1, round(hours * 60))} minutes"
    return "1 hour" if hours == 1 else f"{hours:g} hours"


def _parse(text: str, path: Path | None) -> jinja2.Template:
    try:
        return _environment().from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise InvalidConfiguration(f"{path}:{error.lineno}: not a template: {error}") from error


def write_prompts(
    template: jinja2.Template,
    feature: Feature,
    structure: Structure,
    drafts: Sequence[Draft],
    titles: Sequence[str],
    surveyed: Sequence[Surveyed],
) -> list[str]:
    """Return the prompt of each phase. Raises `InvalidConfiguration` when the template fails."""
    neighbours = [
        Neighbour(number, title, _about(draft, title), draft.files)
        for number, (draft, title) in enumerate(zip(drafts, titles, strict=True), 1)
    ]
    criteria = _criteria(structure.criteria, drafts)
    prompts = []
    for index, draft in enumerate(drafts):
        number = index + 1
        values: dict[str, Any] = {
            "feature": feature,
            "number": number,
            "total": len(drafts),
            "title": titles[index],
            "hours": draft.hours,
            "work": [each.text for each in draft.items],
            "context": _shortened(structure.context),
            "before": [each for each in neighbours if each.number in draft.needs],
            "after": [each for each in neighbours if number in drafts[each.number - 1].needs],
            "beside": [neighbours[each] for each in _beside(drafts, index)],
            "files": surveyed[index].files,
            "found": surveyed[index].found,
            "criteria": criteria[index],
            "proofs": _proofs(draft),
            "excluded": structure.excluded,
        }
        prompts.append(_render(template, values))
    return prompts


def _render(template: jinja2.Template, values: dict[str, Any]) -> str:
    try:
        text = template.render(values)
    except _FAILURES as error:
        raise InvalidConfiguration(f"[planner] template: {error}") from error
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.split("\n"))).strip()
    if not text:
        raise InvalidConfiguration("[planner] template: it produces an empty prompt")
    return text


def _about(draft: Draft, title: str) -> str:
    """Return the work of a phase in one line; empty when its title says the same."""
    first = (item.text.partition("\n")[0].rstrip(" .;:") for item in draft.items)
    words = "; ".join(first)
    if words.startswith(f"{title}:"):
        words = words[len(title) + 1 :].strip()
    elif len(draft.items) == 1 and (words in title or words[:_ALIKE] == title[:_ALIKE]):
        return ""
    return words if len(words) <= _MOST_ABOUT else words[:_MOST_ABOUT].rsplit(" ", 1)[0] + " …"


def _proofs(draft: Draft) -> list[str]:
    """Return the acceptance criteria of the layers of a phase, if those are certain."""
    sure = {item.layer for item in draft.items if item.is_sure}
    proofs = [layer(name).proof for name in sorted(sure, key=stage)]
    if set(draft.layers) <= {"tests", "documentation", "infrastructure", "rollout"} and proofs:
        return proofs
    return [*proofs, "What is new has tests of its own, and the tests that were there still pass."]


def _shortened(text: str) -> str:
    if len(text) <= _MOST_CONTEXT:
        return text
    return text[:_MOST_CONTEXT].rsplit(" ", 1)[0] + " …"


def _beside(drafts: Sequence[Draft], index: int) -> list[int]:
    """Return the indexes of the phases that may run at the same time as *index*."""
    above = _all_above(drafts)
    return [
        other
        for other in range(len(drafts))
        if other != index and other not in above[index] and index not in above[other]
    ]


def _all_above(drafts: Sequence[Draft]) -> list[set[int]]:
    above: list[set[int]] = []
    for draft in drafts:  # what a phase needs stands before it
        direct = {number - 1 for number in draft.needs}
        above.append(direct.union(*(above[each] for each in direct)))
    return above


def _criteria(criteria: Sequence[str], drafts: Sequence[Draft]) -> list[list[str]]:
    """Assign each acceptance criterion to phases: by layer, else to the last phases."""
    needed = {number - 1 for draft in drafts for number in draft.needs}
    code = [index for index, draft in enumerate(drafts) if draft.layers != ("documentation",)]
    ends = [index for index in code if index not in needed] or [len(drafts) - 1]
    criteria_of: list[list[str]] = [[] for _ in drafts]
    for each in criteria:
        name = layer_of(each)
        indexes = [index for index, draft in enumerate(drafts) if name in draft.layers]
        for index in indexes or ends:
            criteria_of[index].append(each)
    return criteria_of
