"""Processes on macOS, by ps and kqueue; the same interface as linux.py."""

import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

from pgcoord.runs.process import Process

assert sys.platform != "linux"

# Shell commands that write the shell's pid and start time to its standard input, with a fixed
# locale and time zone, on which lstart depends.
RECORD = """
echo $$ $(LC_ALL=C TZ=UTC0 /bin/ps -o lstart= -p $$) >&0 || exit 125"""


def start_time(pid: int) -> str | None:
    """Return the start time of a process, as `RECORD` writes it; None if it does not exist."""
    return next((" ".join(line.split()) for line in _ps("-o", "lstart=", "-p", str(pid))), None)


@contextmanager
def watched(pid: int) -> Iterator[int]:
    """Yield a descriptor that becomes readable when a process ends.

    Raises `ProcessLookupError` when there is no such process.
    """
    ends = select.kevent(pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD, select.KQ_NOTE_EXIT)
    with closing(select.kqueue()) as queue:
        queue.control([ends], 0)
        yield queue.fileno()


def started_since(started: str, marker: str) -> list[Process]:
    """Return all processes, whenever they *started*; blocks for some 10 ms."""
    processes = []
    # -E adds the environment to the command; there is no session here, so the group is taken.
    for line in _ps("-AEww", "-o", "pid=,pgid=,stat=,lstart=,command="):
        pid, group, state, *words = line.split()
        begun, marked = " ".join(words[:5]), marker in line
        living = not state.startswith("Z")
        processes.append(Process(int(pid), begun, int(group), int(group), living, marked))
    return processes


def command_line(pid: int) -> str:
    """Return the command line of a process; empty if it does not exist."""
    return " ".join(_ps("-ww", "-o", "command=", "-p", str(pid)))


def _ps(*options: str) -> list[str]:
    shown = subprocess.run(
        ["/bin/ps", *options],
        env={"LC_ALL": "C", "TZ": "UTC0"},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    return shown.stdout.splitlines()
