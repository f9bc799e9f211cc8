"""The `Key: value` lines below the heading of a phase: which lines they are, and their values."""

import re
import shlex
from collections.abc import Callable
from itertools import takewhile
from typing import Any

from pgcoord.configuration.duration import parse_duration
from pgcoord.configuration.model import MOST_ATTEMPTS
from pgcoord.errors import did_you_mean
from pgcoord.plan.model import RUN_WHEN, Problem

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)

# A comma that stands where a variable ends, outside of quotes, and what is before it.
_COMMA = re.compile(
    r"""((?:[^"'\\]|\\.|"(?:[^"\\]|\\.)*"|'[^']*')*?),(?=\s|$|[A-Za-z_][A-Za-z0-9_]*=)""",
    re.ASCII | re.DOTALL,
)

_WORDS = (  # noqa: SIM905
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
).split()

NUMBER = rf"[0-9]{{1,6}}|{'|'.join(_WORDS)}"

# The line above a list of files, an element of that list, and the name of a file in an element.
_FILES = re.compile(r" {0,3}(?:[-+*][ \t]+)?[*_]*files[*_]*[ \t]*:[*_]*", re.IGNORECASE)

_ELEMENT = re.compile(r"\s*[-+*][ \t]+(?:\[[ xX]\][ \t]+)?(?P<text>.*\S)")

_LISTED_FILE = re.compile(
    r"`(?P<code>[^`\s,:]+)(?::[^`]*)?`|(?<!\S)(?P<bare>[\w./-]*[\w-][./][\w./-]*\w)(?!\w)"
)

# The words for "depends on no other phase".
NO_PHASES = ("none", "nothing", "n/a", "-", "–", "—")  # noqa: RUF001

_DEPENDENCY = re.compile(rf"(?:phases?\s+)?({NUMBER})", re.IGNORECASE)

_KEY_LINE = re.compile(
    r" {0,3}(?P<markup>(?:[-+*][ \t]+)?\**)"
    r"(?P<key>[^\W\d_][\w'-]*(?:[ \t]+[\w'-]+){0,2})[ \t]*\**:(?P<value>.*)"
)


def listed_files(body: list[str], start: int) -> tuple[int, tuple[str, ...]] | None:
    """Find `**Files:**` with a list below it; return its index in *body*, and the files named.

    The name in an element is the text in backticks, or the first word that looks like a path.
    """
    for i in range(start, len(body)):
        if not _FILES.fullmatch(body[i].rstrip()):
            continue
        below = next((j for j in range(i + 1, len(body)) if not is_blank(body[j])), len(body))
        items = list(takewhile(bool, (_ELEMENT.match(line.rstrip()) for line in body[below:])))
        matches = [_LISTED_FILE.search(item["text"]) for item in items if item]
        names = tuple(dict.fromkeys(name["code"] or name["bare"] for name in matches if name))
        if names:
            return i, names
    return None


def number_of(text: str) -> int:
    """Return the number that *text* is, in digits or a word of `NUMBER`."""
    word = text.casefold()
    return _WORDS.index(word) + 1 if word in _WORDS else int(word)


def is_blank(line: str) -> bool:
    """Whether a line is blank in Markdown (str.strip removes more kinds of spaces)."""
    return not line.strip(" \t\r\n")


def plain_line(line: str) -> str:
    """Return *line* without its end, with a usual blank for each that does not break."""
    return line.rstrip("\r\n").translate({0xA0: " ", 0x202F: " "})


def key_lines(body: list[str]) -> tuple[int, list[re.Match[str]]]:
    """Return the index at which the lines of keys at the head of *body* begin, and their matches.

    They end at the first other line. After a blank line, they are keys only if one of them is
    known; otherwise they are prose, which may begin with `Note: `.
    """
    start = next((i for i, line in enumerate(body) if not is_blank(line)), 0)
    matches = (
        None if _begins_list(body, i) else _KEY_LINE.match(plain_line(body[i]))
        for i in range(start, len(body))
    )
    block = [match for match in takewhile(_is_key_line, matches) if match]
    if start and not any(_key(match) in KEYS for match in block):
        return start, []
    return start, block


def _begins_list(body: list[str], i: int) -> bool:
    below = next((line for line in body[i + 1 :] if not is_blank(line)), "")
    return bool(_FILES.fullmatch(body[i].rstrip()) and _ELEMENT.match(below.rstrip()))


def _is_key_line(match: re.Match[str] | None) -> bool:
    if not match:
        return False
    # "http://…" and "Steps:" are text.
    return _key(match) in KEYS or bool(
        not match["markup"] and re.match(r"[ \t]+\S", match["value"])
    )


def _key(match: re.Match[str]) -> str:
    return " ".join(match["key"].lower().split())


def read_keys(
    block: list[re.Match[str]], first_line: int, problems: list[Problem]
) -> dict[str, tuple[int, Any]]:
    """Return {key: (line, value)}; the value of a faulty key is None, its fault in *problems*."""
    keys: dict[str, tuple[int, Any]] = {}
    for line, match in enumerate(block, first_line):
        key = _key(match)
        if key in keys:
            problems.append((line, f"{match['key']}: repeated; first on line {keys[key][0]}"))
            continue
        keys[key] = (line, None)
        try:
            keys[key] = (line, _read_value(key, match))
        except ValueError as error:
            problems.append((line, f"{match['key']}: {error}"))
    return keys


def _read_value(key: str, match: re.Match[str]) -> Any:
    if key not in KEYS:
        # Nobody means "Gate" by "After".
        meant = "depends on" if re.match(r"after|needs?|requires?|blocked by|prereq", key) else key
        hint = did_you_mean(meant, [name.capitalize() for name in KEYS])
        raise ValueError(f"unknown key{hint}; if it is text, put a blank line before it")
    value = match["value"].strip()
    if key == "depends on":
        return read_dependencies(value.strip("*_ ").rstrip("."))
    if match["markup"]:
        raise ValueError(f'expected it without markup: "{key.capitalize()}: value"')
    return KEYS[key](value)


def read_dependencies(value: str) -> tuple[int, ...]:
    """Return the numbers of phases in *value*. Raises `ValueError`."""
    if value.lower() in NO_PHASES:
        return ()
    numbers = []
    for item in re.split(r",\s*and\b|,|\band\b", value):
        match = _DEPENDENCY.fullmatch(item.strip())
        number = number_of(match[1]) if match else -1
        if number < 0:
            raise ValueError(f'expected phases such as "1, 2" or "none", not {value!r:.60}')
        numbers.append(number)
    return tuple(numbers)


def _workflow(value: str) -> str:
    if not value:
        raise ValueError("expected the name of a workflow, not nothing")
    return value


def _gate(value: str) -> str:
    if not value:
        raise ValueError('expected what is asked, such as "Gate: may this be merged?"')
    return value


def _check(value: str) -> str:
    if not value:
        raise ValueError("expected the name of a check, which pgcoord.toml declares, not nothing")
    return value


def _when(value: str) -> str:
    if value not in RUN_WHEN:
        raise ValueError(
            f"expected {', '.join(RUN_WHEN[:-1])} or {RUN_WHEN[-1]}, not {value!r:.60}"
        )
    return value


def _lock(value: str) -> str:
    if not value or len(value) > 200:
        raise ValueError(f'expected a name such as "staging", not {value!r:.60}')
    return value


def _variables(value: str) -> tuple[tuple[str, str], ...]:
    expected = 'expected NAME=value, with quotes where there are spaces: MODE=prod TITLE="a b"'
    # Taken as a part of the value, it would be found only by the process that gets it.
    if comma := _COMMA.match(value):
        raise ValueError(
            f"a comma after {comma[1]!r:.60}: variables are separated by spaces;"
            " a value that ends with a comma, or has one before NAME=, has quotes"
        )
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise ValueError(f"{expected}; {error}") from error
    pairs = [word.partition("=") for word in words]
    if not pairs or not all(equals and _VARIABLE.fullmatch(name) for name, equals, _ in pairs):
        raise ValueError(f"{expected}, not {value!r:.60}")
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise ValueError(f"a variable is given twice in {value!r:.60}")
    return tuple((name, each) for name, _, each in pairs)


def _hours(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value) or not float(value):
        raise ValueError(f"expected a number above 0, not {value!r:.60}")
    return float(value)


def _integer(least: int, most: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", value) or not least <= int(value) <= most:
            raise ValueError(f"expected a whole number from {least} to {most}, not {value!r:.60}")
        return int(value)

    return read


def _files(value: str) -> tuple[str, ...]:
    names = tuple(name.strip().strip("`") for name in value.split(","))
    if not all(names):
        raise ValueError(f"expected names separated by commas, not {value!r:.60}")
    return names


KEYS: dict[str, Callable[[str], Any]] = {
    "depends on": read_dependencies,
    "when": _when,
    "lock": _lock,
    "env": _variables,
    "workflow": _workflow,
    "hours": _hours,
    "priority": _integer(0, 100),
    "files": _files,
    "gate": _gate,
    "check": _check,
    "max attempts": _integer(1, MOST_ATTEMPTS),
    "timeout": parse_duration,
}
