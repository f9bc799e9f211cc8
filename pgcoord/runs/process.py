"""A process as the system shows it; linux.py and macos.py find them."""

from typing import NamedTuple


class Process(NamedTuple):
    """One process; `marked` when its environment holds the marker that was looked for.

    `started` is a text to compare: no other process has it together with this pid.
    """

    pid: int
    started: str
    group: int
    session: int
    living: bool
    marked: bool
