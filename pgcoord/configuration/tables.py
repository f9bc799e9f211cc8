"""Read a table of pgcoord.toml, each key by its reader, with every fault."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from pgcoord.errors import did_you_mean

Reader = Callable[[object], Any]


class Keys(list[str]):
    """A list of problems, to be ignored, on which `read_table` also records each table's keys."""

    def __init__(self) -> None:
        self.known: dict[str, Mapping[str, Reader]] = {}


def read_table(
    table: Mapping[str, object], readers: Mapping[str, Reader], *, key: str, problems: list[str]
) -> dict[str, Any]:
    """Return {key: value} of *table*, read by *readers*; add faults to *problems*.

    *key*: the name of the table in errors.
    """
    if isinstance(problems, Keys):
        problems.known[key] = readers
    values = {}
    for name, value in table.items():
        where = f"{key}.{bare(name)}".removeprefix(".")
        if name not in readers:
            problems.append(f"{where}: unknown key{did_you_mean(name, readers)}")
            continue
        try:
            values[name] = readers[name](value)
        except ValueError as error:
            problems.append(f"{where}: {error}")
    return values


def bare(key: str) -> str:
    """Write a key as TOML does: in quotes unless it is a bare key."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else f'"{key}"'
