"""Dependencies that a plan states outside of its keys: in titles, and in prose."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pgcoord.plan.headings import NAMES_PHASE, Heading
from pgcoord.plan.keys import NUMBER, read_dependencies
from pgcoord.plan.model import Problem

# A line of prose, or the end of a title, that names the prerequisites of a phase.
_NEED = re.compile(
    r" {0,3}(?:>[ ]?)?(?:[-+*][ \t]+)?[*_]*"
    r"(?P<key>depends? on|dependenc(?:y|ies)|prerequisites?|blocked by)"
    r"[*_]*[ \t]*:[*_]*(?P<value>.*)",
    re.IGNORECASE,
)

NEED_OF_TITLE = re.compile(
    r"\s*[(\[]\s*depends? on:?\s*(?P<value>[^()\[\]]*)[)\]]\s*$", re.IGNORECASE
)

# Text that says of one phase that it comes after another.
_SAYS_NEED = re.compile(
    rf"\bphases?\s+(?:{NUMBER})\b.*\b(?:depends? on|after|blocked by|requires|needs)\b"
    rf".*\bphases?\s+(?:{NUMBER})\b",
    re.IGNORECASE,
)


def unread_dependencies(lines: list[str], starts: list[Heading]) -> Iterator[Problem]:
    """Find what names dependencies of phases, and is read by nobody: graphs, and text above them.

    A note for each graph, and one for all of the text.
    """
    below = "say it by 'Depends on: …' below the heading of each phase"
    graph, drawn = -1, set[str]()
    front = starts[0].start if starts else 0
    is_said = False
    for i, line in enumerate(lines):
        if re.match(r"\s*(?:```+|~~~+)\s*mermaid\b", line):
            graph, drawn = i, set()
        elif graph >= 0 and re.match(r"\s*(?:```|~~~)", line):
            if len(drawn) > 1:
                yield graph + 1, f"the dependencies that this graph draws are not read: {below}"
            graph = -1
        elif graph >= 0:
            drawn |= {each[0].lower() for each in re.finditer(NAMES_PHASE, line)}
        elif i < front and not is_said and _SAYS_NEED.search(line):
            is_said = True
            yield i + 1, f"dependencies that are named above the phases are not read: {below}"


def read_needs(
    title: str,
    line: int,
    body: list[str],
    first_line: int,
    keys: dict[str, tuple[int, Any]],
    problems: list[Problem],
) -> str:
    """Read the prerequisites of a phase without that key from its title or its prose into *keys*.

    Return the title without them. Prose that names no phase ("Dependencies: numpy") is ignored.
    """
    found = NEED_OF_TITLE.search(title)
    needs = [(line, found["value"])] if found and _names_phases(found["value"], True) else []
    needs += [(first_line + i, match["value"]) for i, match in needs_of_prose(body)]
    for number, text in needs:
        value = text.strip().strip("*_").rstrip(".").strip()
        try:
            read = read_dependencies(value)
        except ValueError as error:
            problems.append((number, f"Depends on: {error}"))
            continue
        if "depends on" not in keys:
            keys["depends on"] = (number, read)
        elif keys["depends on"][1] != read:
            problems.append(
                (number, f"Depends on: line {keys['depends on'][0]} says something else")
            )
    return title[: found.start()] if found else title


def _names_phases(text: str, is_certain: bool) -> bool:
    """Whether the value of "Depends on" in prose names phases, or none of them."""
    value = text.strip().strip("*_").rstrip(".").strip()
    names = re.search(r"\bphases?\b|^[0-9 ,]+$", value, re.IGNORECASE)
    return bool(names or value.lower() == "none" or (is_certain and re.search("[0-9]", value)))


def needs_of_prose(body: Sequence[str]) -> Iterator[tuple[int, re.Match[str]]]:
    """Yield each line of *body* that names prerequisites: its index, and a match with `value`."""
    fence = ""
    for i, text in enumerate(body):
        mark = re.match(r" {0,3}(```+|~~~+)", text)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        elif not fence and (match := _NEED.match(text.rstrip("\r\n"))):
            is_certain = match["key"].lower().startswith("depend") and "on" in match["key"].lower()
            if _names_phases(match["value"], is_certain):
                yield i, match
