"""Where the log of an attempt is, and how it is read here."""

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from pgcoord.database.rows import Attempt
from pgcoord.errors import CannotStart, NotFound, Refused

_BLOCK = 64 * 1024  # bytes read at once while the last lines of a log are looked for


def log_of(queue_id: str, attempts: Sequence[Attempt], number: int | None) -> Path:
    """Where the log of an attempt is, on this machine.

    Raises `NotFound` and, when it is elsewhere, `Refused`.
    """
    attempt = attempts[-1] if number is None else None
    attempt = attempt or next((each for each in attempts if each.number == number), None)
    if attempt is None:
        last = attempts[-1].number
        raise NotFound(
            f"{queue_id} has no attempt {number}", hint=f"Its latest one is attempt {last}."
        )
    if attempt.folder is None:
        raise Refused(f"{queue_id} was inserted as running: its log is not kept here")
    log = Path(attempt.folder, "log")
    if attempt.host != socket.gethostname():
        raise Refused(
            f"the log of {queue_id}, attempt {attempt.number}, is on {attempt.host}: {log}"
        )
    return log


def open_log(path: Path) -> IO[bytes]:
    """Open a log; raises `NotFound` or `CannotStart` when it cannot be read."""
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise NotFound(f"nothing was written to {path}, or it was removed") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CannotStart(f"the log {path} cannot be read: {reason}") from error


def seek_last_lines(log: IO[bytes], lines: int) -> None:
    """Go to where the last `lines` lines begin; a last one without an end is one too."""
    end = start = log.seek(0, os.SEEK_END)
    while start and lines:
        size = min(_BLOCK, start)
        start = log.seek(start - size)
        block = log.read(size)
        while lines and (size := block.rfind(b"\n", 0, size)) >= 0:
            # Behind the last line's end no line begins.
            lines -= start + size + 1 < end
        if not lines:
            start += size + 1
    log.seek(start)
