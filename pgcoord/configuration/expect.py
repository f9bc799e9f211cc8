"""Readers of single values: each returns what the value stands for, or raises `ValueError`
with what was expected in its place.
"""

import ipaddress
import os.path
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pgcoord.configuration import results
from pgcoord.configuration.model import (
    BRACES,
    NOTIFY_EVENTS,
    PLACEHOLDERS,
    RETRY_PLACEHOLDERS,
    Check,
)
from pgcoord.configuration.tables import Reader, bare
from pgcoord.errors import did_you_mean

_UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9}


def file(folder: Reader, example: str, value: object) -> Path:
    """A file, absolute; *folder* reads its path, and *example* is the name of one."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f'expected a file such as "{example}", not {value!r:.60}')
    path: Path = folder(value)
    return path


def cron(value: object) -> str:
    """A cron expression with five fields that has a due time."""
    from pgcoord.configuration.cron import NeverDue, due_times

    if not isinstance(value, str):
        raise ValueError(f'expected times such as "0 3 * * *", not {value!r:.60}')
    try:
        next(due_times(value, "UTC", datetime.now(UTC)))
    except NeverDue as error:
        raise ValueError(f'expected times such as "0 3 * * *": {error}') from error
    return value


def timezone(value: object) -> str:
    """The name of a time zone that this machine knows."""
    expected = 'expected a time zone such as "Europe/Berlin"'
    if not isinstance(value, str) or not value:
        raise ValueError(f"{expected}, not {value!r:.60}")
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"{expected}, not {value!r:.60}: this machine does not know it") from error
    return value


def parameters(value: object) -> dict[str, str]:
    """A table of texts."""
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise ValueError(f'expected a table such as {{ mode = "full" }}, not {value!r:.60}')
    return value


def notify_events(value: object) -> tuple[str, ...]:
    """A list of `NOTIFY_EVENTS`, each once."""
    names = ", ".join(NOTIFY_EVENTS)
    events = _texts(value, f"expected a list of {names}")
    for each in events:
        if each not in NOTIFY_EVENTS:
            raise ValueError(f"expected some of {names}, not {each!r:.60}")
    if not events:
        raise ValueError(f"expected some of {names}, not an empty list")
    return events


def resources(value: object) -> dict[str, float]:
    """A table of amounts greater than 0."""
    if not isinstance(value, dict) or not all(
        isinstance(each, int | float) and each > 0 for each in value.values()
    ):
        raise ValueError(f"expected a table such as {{ pgcoord = 1 }}, not {value!r:.60}")
    return value


def command_words(value: object) -> list[str]:
    """A list of at least one word."""
    words = list(_texts(value, 'expected a command such as ["qdel", "{id}"]'))
    if not words:
        raise ValueError('expected a command such as ["qdel", "{id}"], not an empty list')
    return words


def word(value: object) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"expected a text, not {value!r:.60}")
    return value


def states(value: object) -> list[str]:
    """A list of texts."""
    return list(_texts(value, 'expected a list of states such as ["PENDING"]'))


def environment_list(value: object) -> list[str]:
    """A list of names of variables."""
    return list(environment(value))


def fields(value: object) -> dict[str, str]:
    """A table of texts, for the fields of an answer."""
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise ValueError(f'expected a table such as {{ id = "JobId" }}, not {value!r:.60}')
    return value


def options(value: object) -> list[str]:
    """A list of texts, for the options of a command."""
    return list(_texts(value, 'expected a list of options such as ["--partition=gpu"]'))


def workflow_name(value: object) -> str:
    """The name of a workflow."""
    if not isinstance(value, str):
        raise ValueError(f"expected the name of a [workflow.NAME], not {value!r:.60}")
    return value


def git_name(value: object) -> str:
    """A name that git takes for no option and no refspec."""
    # git would take a name with a leading "-" for an option, and ":" for a refspec.
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_./@+-]*", value):
        raise ValueError(f'expected a name in git such as "main" or "origin", not {value!r:.60}')
    return value


def pool_name(value: object) -> str:
    """The name of a pool."""
    if not isinstance(value, str):
        raise ValueError(f"expected the name of a [pool.NAME], not {value!r:.60}")
    return value


def table(value: object) -> dict[str, object]:
    """A table."""
    if not isinstance(value, dict):
        raise ValueError(f"expected a table, not {value!r:.60}")
    return value


def boolean(value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, not {value!r:.60}")
    return value


def whole(least: int, most: int) -> Reader:
    """Return a reader of whole numbers from *least* to *most*."""

    def read(value: object) -> int:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"expected a whole number from {least} to {most}, not {value!r:.60}")
        return value

    return read


def host(value: object) -> str:
    """An address to listen at."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9.:_-]+", value):
        raise ValueError(f'expected an address such as "127.0.0.1", not {value!r:.60}')
    return value


def port(value: object) -> int:
    """A port, 0 for any."""
    if type(value) is not int or not 0 <= value <= 65535:
        raise ValueError(f"expected a port from 0 (any) to 65535, not {value!r:.60}")
    return value


def url(value: object) -> str:
    """An http or https URL without a trailing slash."""
    if not isinstance(value, str) or not re.fullmatch(r"https?://[^/\s?#@]+(/[^\s?#]*)?", value):
        raise ValueError(f'expected a URL such as "https://build.example", not {value!r:.60}')
    return value.rstrip("/")


def repository(value: object) -> str:
    """The owner and name of a repository on GitHub."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9-]+/[A-Za-z0-9._-]+", value):
        raise ValueError(f'expected "owner/name", not {value!r:.60}')
    return value


def identifier(value: object) -> str:
    """An id, given as a number or a text."""
    if type(value) not in (int, str) or not re.fullmatch(r"[A-Za-z0-9._-]+", str(value)):
        raise ValueError(f"expected an id such as 123456, not {value!r:.60}")
    return str(value)


def user(value: object) -> str:
    """The name of a user of this machine."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*[$]?", value):
        raise ValueError(f'expected the name of a user such as "builder", not {value!r:.60}')
    return value


def variable_name(value: object) -> str:
    """The name of one variable."""
    if not isinstance(value, str):
        raise ValueError(f'expected the name of a variable such as "API_KEY", not {value!r:.60}')
    return environment([value])[0]


def networks(value: object) -> tuple[str, ...]:
    """A list of addresses and networks."""
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f'expected a list such as ["127.0.0.1"], not {value!r:.60}')
    for each in value:
        try:
            ipaddress.ip_network(each)
        except ValueError as error:
            expected = 'expected addresses or networks such as "127.0.0.1" or "10.0.0.0/8"'
            raise ValueError(f"{expected}, not {each!r:.60}") from error
    return tuple(value)


def choice(words: tuple[str, ...], value: object) -> str:
    """One of *words*."""
    if value not in words:
        raise ValueError(f"expected {' or '.join(words)}, not {value!r:.60}")
    return str(value)


def folder(base: Path, value: object) -> Path:
    """A folder, absolute; a relative one is taken from *base*."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f'expected a folder such as "jobs", not {value!r:.60}')
    return base / os.path.expanduser(value)


def size(value: object) -> int:
    """A size in bytes, from a text such as 10 MB."""
    match = re.fullmatch(r"([0-9]{1,6}) ?(kB|MB|GB)", value) if isinstance(value, str) else None
    if match is None or int(match[1]) == 0:
        raise ValueError(f'expected a size such as "500kB", "100MB" or "1GB", not {value!r:.60}')
    return int(match[1]) * _UNITS[match[2]]


def variables(value: object) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the names of variables to pass on, and {name: value} of those to set.

    A list has names to pass on; so has a table, with the value true.
    """
    if not isinstance(value, dict):
        return environment(value), {}
    for name, each in value.items():
        if each is not True and not isinstance(each, str):
            raise ValueError(f"{name}: expected a text, or true to pass it on, not {each!r:.60}")
        if isinstance(each, str) and "\0" in each:
            raise ValueError(f"{name}: expected a text without NUL")
    environment(list(value))
    if ours := next((name for name in value if name.startswith("PGCOORD_")), None):
        raise ValueError(f"{ours}: that is set by pgcoord itself")
    passed = tuple(name for name, each in value.items() if each is True)
    return passed, {name: each for name, each in value.items() if isinstance(each, str)}


def environment(value: object) -> tuple[str, ...]:
    """A list of names of variables that may be passed on."""
    names = _texts(value, 'expected a list of variable names such as ["API_KEY"]')
    for name in names:
        if not name or "=" in name:
            raise ValueError(f'expected names of variables such as "API_KEY", not {name!r:.60}')
    return names


def program(value: object) -> tuple[str, ...]:
    """A command as a list of arguments, of which the first is not empty."""
    arguments = _texts(value, 'expected a list of arguments such as ["make", "build"]')
    if not arguments or not arguments[0].strip():
        raise ValueError('expected a program and its arguments such as ["make", "build"]')
    return arguments


def command(value: object) -> tuple[str, ...]:
    """A command whose placeholders are all known."""
    arguments = program(value)
    problems = [problem for argument in arguments for problem in _brace_problems(argument)]
    if problems:
        raise ValueError("; ".join(problems))
    return arguments


def arguments(value: object) -> tuple[str, ...]:
    """Further arguments whose placeholders are all known."""
    arguments = _texts(value, 'expected a list of arguments such as ["--model", "opus"]')
    problems = [problem for argument in arguments for problem in _brace_problems(argument)]
    if problems:
        raise ValueError("; ".join(problems))
    return arguments


def check_of(checks: Mapping[str, Check], value: object) -> Check:
    """The check of that name among *checks*, or a command of its own."""
    if isinstance(value, str):
        if value not in checks:
            raise ValueError(f"there is no [check.{bare(value)}]{did_you_mean(value, checks)}")
        return checks[value]
    return Check(program(value))


def failures(value: object) -> tuple[str, ...]:
    """A list of JSON paths and regular expressions."""
    failures = _texts(value, 'expected a list such as ["$.permission_denials", "^FATAL"]')
    for each in failures:
        try:
            re.compile(each)
        except re.error as error:
            raise ValueError(f"{each!r:.60} is not a regular expression: {error}") from error
        if not each or (each.startswith("$.") and not all(each[2:].split("."))):
            raise ValueError(f'expected a member such as "$.error.code", not {each!r:.60}')
    return failures


def amount(value: object) -> float:
    """An amount in US dollars."""
    if type(value) not in (int, float) or not 0 < value < 1e9:  # type: ignore[operator]
        raise ValueError(f"expected US dollars such as 2.50, not {value!r:.60}")
    return float(value)  # type: ignore[arg-type]


def retry_prompt(value: object) -> str:
    """A prompt whose placeholders are those of a retry."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f'expected a text such as "It failed: {{error}}", not {value!r:.60}')
    if problems := [*_brace_problems(value, RETRY_PLACEHOLDERS)]:
        raise ValueError("; ".join(problems))
    return value


def _texts(value: object, expected: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{expected}, not {value!r:.60}")
    for text in value:
        if not isinstance(text, str) or "\0" in text:
            raise ValueError(f"{expected}, with nothing but text in it, not {text!r:.60}")
    return tuple(value)


def _brace_problems(argument: str, placeholders: Sequence[str] = PLACEHOLDERS) -> Iterator[str]:
    for match in BRACES.finditer(argument):
        name = match[2]
        if name is None and match[1] is None:
            literal = f"write {match[0] * 2} for a literal brace"
            yield f"unbalanced {match[0]} in {argument!r:.60}; {literal}"
        elif name is not None and name not in placeholders and not results.NAME.fullmatch(name):
            yield f"unknown placeholder {{{name}}}{did_you_mean(name, placeholders)}"
