"""Dependencies that a plan states outside of its keys: in titles, and in prose."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from pgcoord.plan.headings import NAMES_PHASE, Heading, outside_of_code
from pgcoord.plan.keys import NO_PHASES, NUMBER, is_blank, number_of, plain_line, read_dependencies
from pgcoord.plan.model import Problem, Section

# A line of prose, or the end of a title, that names the prerequisites of a phase.
_WORDS = (
    r"depends? on|dependenc(?:y|ies)|deps|prerequisites?|prereqs?|blocked by|requires|needs|after"
    r"|builds on|waits for|abhängig von|hängt ab von|dépend de|depende de"
)
_NEED = re.compile(
    r" {0,3}(?:>[ ]?)?(?:[-+*][ \t]+)?[*_]*"
    rf"(?P<key>{_WORDS})[*_]*[ \t]*(?P<colon>[:：]?)[*_]*(?P<value>.*)",  # noqa: RUF001
    re.IGNORECASE,
)

NEED_OF_TITLE = re.compile(
    rf"\s*[(\[]\s*(?P<key>{_WORDS}):?\s+(?P<value>[^()\[\]]*)[)\]]\s*$", re.IGNORECASE
)

# A line that only says that prerequisites follow: a heading, or what introduces a list.
_LABEL = re.compile(
    r"\s*(?:#{1,6}\s+)?[*_]*(?:depends? on|dependenc(?:y|ies)|prerequisites?|blocked by)[*_]*"
    r"[ \t]*:?[*_]*",
    re.IGNORECASE,
)
_NAMES_FIRST = re.compile(
    rf"\s*(?:(?:[-+*]|[0-9]+[.)])\s+)?\W*phases?\s+(?:{NUMBER})\b", re.IGNORECASE
)

_PHASES = (
    rf"phases?\s+(?:{NUMBER})\b(?:\s*(?:,|&|and\b)\s*(?:and\s+)?(?:phases?\s+)?(?:{NUMBER})\b)*"
)

# Text that may state a dependency and is not read as one: a sentence, a label, a table.
_MENTIONS = (
    re.compile(
        r"\b(?:depend\w*|block(?:ed|er)\w*|requir\w+|needs?|after|once|prerequisites?"
        rf"|builds? on|waits?)\b[^.|]{{0,60}}?\b(?P<phases>{_PHASES})",
        re.IGNORECASE,
    ),
    re.compile(rf"\W*[^\W\d][^:：|]{{0,30}}[:：][*_]*\s*(?P<phases>{_PHASES})\W*$", re.IGNORECASE),  # noqa: RUF001
    re.compile(rf"\s*\|.*\b(?P<phases>{_PHASES})", re.IGNORECASE),
)
_NUMBER = re.compile(rf"\b(?:{NUMBER})\b", re.IGNORECASE)

# Text that says of one phase that it comes after another.
_SAYS_NEED = re.compile(
    rf"\bphases?\s+(?:{NUMBER})\b.*\b(?:depends? on|after|blocked by|requires|needs)\b"
    rf".*\bphases?\s+(?:{NUMBER})\b",
    re.IGNORECASE,
)


def unread_dependencies(
    lines: list[str], starts: list[Heading], sections: Sequence[Section]
) -> Iterator[Problem]:
    """Find what names dependencies of phases, and is read by nobody: graphs, and text around them.

    A note for each graph, one for all text above the phases, and one for all that is of no phase
    below the first one, unless each phase says what it depends on.
    """
    below = "say it by 'Depends on: …' below the heading of each phase"
    graph, drawn = -1, set[str]()
    front = starts[0].start if starts else 0
    is_said = False
    of_phases = {i for each in sections for i in range(each.line - 1, each.body[1] - 1)}
    all_say = all("depends on" in each.keys for each in sections[1:])
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
        elif i >= front and i not in of_phases and not all_say and _SAYS_NEED.search(line):
            all_say = True
            yield i + 1, f"dependencies that are named outside of a phase are not read: {below}"


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
    need = NEED_OF_TITLE.search(plain_line(title))
    need = need if need and _names_phases(need["value"], _is_certain(need["key"])) else None
    needs = [(line, need["value"])] if need else []
    needs += [(first_line + i, match["value"]) for i, match in needs_of_prose(body)]
    for number, text in needs:
        try:
            read = read_dependencies(_plain(text))
        except ValueError as error:
            problems.append((number, f"Depends on: {error}"))
            continue
        if "depends on" not in keys:
            keys["depends on"] = (number, read)
        elif keys["depends on"][1] != read:
            problems.append(
                (number, f"Depends on: line {keys['depends on'][0]} says something else")
            )
    expected = "Depends on: expected its phases on one line, such as 'Depends on: 1, 2'"
    problems += [(first_line + i, expected) for i in _labels_of_lists(body)]
    return title[: need.start()] if need else title


def unread_needs(section: Section, lines: list[str]) -> Iterator[Problem]:
    """Find what may say that a phase comes after others than the one before it, and is not read.

    *lines*: those of its heading and its text. A phase that says what it depends on has said all.
    """
    if "depends on" in section.keys:
        return
    for i, text in outside_of_code(lines):
        for pattern in _MENTIONS if "phase" in text.lower() else ():
            if match := pattern.search(text) if pattern is _MENTIONS[0] else pattern.match(text):
                numbers = {number_of(each[0]) for each in _NUMBER.finditer(match["phases"])}
                if not numbers or max(numbers) >= section.number or numbers == {section.number - 1}:
                    continue
                phases = " ".join(match["phases"].split())
                yield (
                    section.line + i,
                    f"{phases!r:.60} is not read as a dependency of phase {section.number}:"
                    " if it is one, say it by 'Depends on: …' below the heading",
                )
                break


def _plain(text: str) -> str:
    return text.strip().strip("*_").rstrip(".").strip()


def _is_certain(key: str) -> bool:
    return key.lower().startswith("depend") and key.lower().endswith("on")


def _names_phases(text: str, is_certain: bool) -> bool:
    """Whether the value of "Depends on" in prose names phases, or none of them."""
    value = _plain(text)
    names = re.search(r"\bphases?\b|^[0-9 ,]+$", value, re.IGNORECASE)
    return bool(names or value.lower() in NO_PHASES or (is_certain and re.search("[0-9]", value)))


def _is_need(match: re.Match[str]) -> bool:
    """Whether a line that begins like one names prerequisites; a mere sentence only if no more."""
    key = match["key"].lower()
    if match["colon"] and not re.match(r"requires|needs|after|builds|waits", key):
        return _names_phases(match["value"], _is_certain(key))
    try:
        return bool(read_dependencies(_plain(match["value"]))) and bool(
            match["colon"] or re.match(r"phases?\b", match["value"], re.IGNORECASE)
        )
    except ValueError:
        return False


def needs_of_prose(body: Sequence[str]) -> Iterator[tuple[int, re.Match[str]]]:
    """Yield each line of *body* that names prerequisites: its index, and a match with `value`."""
    for i, text in outside_of_code(body):
        if (match := _NEED.fullmatch(text)) and _is_need(match):
            yield i, match


def _labels_of_lists(body: Sequence[str]) -> Iterator[int]:
    """Yield the index of each line that introduces a list of phases as prerequisites."""
    lines = [(i, text) for i, text in outside_of_code(body) if not is_blank(text)]
    for (i, text), (_, following) in pairwise(lines):
        if _LABEL.fullmatch(text.rstrip()) and _NAMES_FIRST.match(following):
            yield i
