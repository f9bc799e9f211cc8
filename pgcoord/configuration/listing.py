"""Parsing the output of an engine's commands, as `[pool.NAME]` configures it.

The one rule: a pattern, or a path such as `$.Jobs.*`, finds the jobs; nothing is guessed.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

# The placeholders of each command, by the key of the pool.
PLACEHOLDERS: Mapping[str, frozenset[str]] = {
    "submit": frozenset({"name", "script", "log", "folder"}),
    "list": frozenset(),
    "cancel": frozenset({"id"}),
    "kill": frozenset({"id"}),
}

# The fields of a job: groups of a pattern, or members in JSON.
FIELDS = frozenset({"id", "name", "state", "reason", "node", "exit"})
_REQUIRED = ("id", "name", "state")

_STEP = re.compile(r"\.(\*|[^.\[\]*]+)|\[(\*|\d+)\]")


def problems_of(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the faults of the keys of such a pool, each as `key: what is expected`."""
    for key in ("folder", "submit", "id", "list", "jobs", "waiting", "running", "cancel"):
        if key not in settings:
            yield f"{key}: missing; see examples/engines"
    for key, placeholders in PLACEHOLDERS.items():
        used = {name for word in settings.get(key, ()) for name in re.findall(r"\{(\w*)\}", word)}
        for name in sorted(used - placeholders):
            yield f"{key}: there is no placeholder {{{name}}} here"
    if "submit" in settings and not any("{script}" in word for word in settings["submit"]):
        yield "submit: expected {script}, the file to run, in a word of it"
    for key in ("id", "jobs", "refused", "empty"):
        yield from (f"{key}: {words}" for words in _pattern_problems(settings.get(key)))
    jobs = settings.get("jobs")
    if jobs is not None and not is_path(jobs):
        groups = re.compile(jobs).groupindex if not [*_pattern_problems(jobs)] else {}
        missing = [f"(?P<{name}>…)" for name in _REQUIRED if groups and name not in groups]
        if missing or not groups:
            yield f"jobs: expected a pattern with {', '.join(missing or ['groups'])}, or $.path"
    if jobs is not None and is_path(jobs):
        fields = settings.get("fields", {})
        for name in (name for name in _REQUIRED if name not in fields):
            yield f"fields.{name}: missing; expected the path in each job of {jobs}"
    for name in sorted(set(settings.get("fields", {})) - FIELDS):
        yield f"fields.{name}: unknown; expected {', '.join(sorted(FIELDS))}"


def is_path(where: object) -> bool:
    """Whether it is a path in JSON, not a pattern."""
    return isinstance(where, str) and where.startswith("$")


def _pattern_problems(where: object) -> Iterator[str]:
    if not isinstance(where, str):
        return
    if is_path(where):
        if not re.fullmatch(f"(?:{_STEP.pattern})*", where[1:]):
            yield f"expected a path such as $.Jobs.* or $[0].ID, not {where!r:.60}"
        return
    try:
        re.compile(where)
    except re.error as error:
        yield f"expected a regular expression: {error}"


def values_at(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (last key or index, value) of each value at *path* in the JSON *value*."""
    values: list[tuple[str, Any]] = [("", value)]
    for step in _STEP.finditer(path):
        name = step[1] if step[1] is not None else step[2]
        values = [each for _, above in values for each in _members(name, above)]
    yield from values


def _members(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    items = (
        value.items()
        if isinstance(value, dict)
        else ((str(index), each) for index, each in enumerate(value))
        if isinstance(value, list)
        else ()
    )
    yield from ((key, each) for key, each in items if name in ("*", key))


def field_of(path: str, key: str, job: Any) -> Any:
    """Return the first value at *path* below *job*; None if there is none.

    The path "@key" stands for *key*, the job's own key in the list.
    """
    if path == "@key":
        return key
    steps = path if path.startswith("[") else f".{path}"
    return next((each for _, each in values_at(steps, job)), None)
