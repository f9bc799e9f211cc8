"""Processes on Linux, read from /proc; the same interface as macos.py."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pgcoord.runs.process import Process

_BOOT = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()

# Shell commands that write the shell's pid and start time to its standard input. Field 22 of stat
# is in clock ticks since boot; field 2, the name, is "(sh)", without spaces.
RECORD = f"""
read -r {"_ " * 21}pgcoord _ </proc/$$/stat
echo $$ {_BOOT} $pgcoord >&0 || exit 125"""


def start_time(pid: int) -> str | None:
    """Return the start time of a process, as `RECORD` writes it; None if it does not exist."""
    try:
        return f"{_BOOT} {_stat(pid)[19].decode()}"
    except OSError:
        return None


@contextmanager
def watched(pid: int) -> Iterator[int]:
    """Yield a descriptor that becomes readable when a process ends.

    Raises `ProcessLookupError` when there is no such process.
    """
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def started_since(started: str, marker: str) -> list[Process]:
    """Return the processes that started at *started* or later; blocks for milliseconds."""
    first = int(started.split()[-1])
    processes = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it has ended
            stat = _stat(name)
            if int(stat[19]) >= first:
                processes.append(_process(int(name), stat, marker))
    return processes


def command_line(pid: int) -> str:
    """Return the command line of a process; empty if it has none, or does not exist."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return words.decode(errors="replace").replace("\0", " ").strip()


def _process(pid: int, stat: list[bytes], marker: str) -> Process:
    return Process(
        pid,
        started=f"{_BOOT} {stat[19].decode()}",
        group=int(stat[2]),
        session=int(stat[3]),
        living=stat[0] not in (b"Z", b"X"),
        marked=_is_marked(pid, marker),
    )


def _stat(pid: int | str) -> list[bytes]:
    """Return the fields of stat from the third on: the second, a name, may contain anything."""
    with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:
        return stat.read().rpartition(b")")[2].split()


def _is_marked(pid: int, marker: str) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as environment:
            return os.fsencode(marker) in environment.read().split(b"\0")
    except OSError:  # another user's, or a zombie
        return False
