"""`logs -f`: print new output of a log, attempt after attempt, until the phase ends.

The database is read only when it has notified; the file is read four times a second. Separate from
`logs`, so that plain `logs` does not import it.
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname
from typing import IO

from pgcoord.commands.context import find_phase, runs_folder_here, session
from pgcoord.commands.options import Surroundings
from pgcoord.commands.progress import clean, follow_through
from pgcoord.commands.terminal import say
from pgcoord.database import reads
from pgcoord.database._sql import Connection
from pgcoord.database.rows import Attempt
from pgcoord.database.states import ENDED, IN_SLOT
from pgcoord.errors import Refused
from pgcoord.runs.logs import Log, log_of, seek_last_lines

# Seconds between two reads of a file that had nothing new.
_READ_INTERVAL = 0.25

# Bytes printed at once: between chunks the event loop handles notifications and Ctrl-C.
_CHUNK = 1024 * 1024

# Lines printed again when the log was rewritten without its middle while we read it.
_CONTEXT = 10


@dataclass(frozen=True)
class _Course:
    """The state of a phase, its reason in *words*, and its attempts.

    *unwatched*: since when no coordinator runs, in words, while a process may; else None.
    """

    status: str
    words: str
    attempts: Sequence[Attempt]
    unwatched: str | None

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def waits_in_engine(self) -> bool:
        return self.status == "ready" and any(each.job for each in self.attempts[-1:])


async def follow_log(
    surroundings: Surroundings, dsn: str, phase: str, number: int | None, lines: int | None
) -> None:
    """Print the log of attempt *number* to its end; without it the latest's and all later ones'.

    *phase*: a queue_id, or 104.2 for short. *lines*: of the first log, print only so many from its
    end. Blocks until the phase, or that attempt, has ended. Raises `NotFound` for an unknown phase
    or attempt, and `Refused` when the first log is not on this host; for a later one that is
    printed on stderr instead.
    """
    async with session(dsn) as conn:
        queue_id = await find_phase(conn, phase)
        course = await _read(conn, queue_id)
    if course.attempts or number:
        log_of(queue_id, course.attempts, number, host=gethostname(), runs=None)
    runs = runs_folder_here(surroundings)
    printer = _Printer(queue_id, number or len(course.attempts) or 1, number, lines, runs)
    async with aclosing(follow_through(dsn, lambda conn: _read(conn, queue_id))) as courses:
        upcoming = asyncio.ensure_future(anext(courses))
        try:
            while True:
                await asyncio.wait({upcoming}, timeout=printer.print_some())
                if upcoming.done():
                    if printer.switch_to_new(upcoming.result()):
                        return
                    upcoming = asyncio.ensure_future(anext(courses))
        finally:
            upcoming.cancel()
            await asyncio.gather(upcoming, return_exceptions=True)


async def _read(conn: Connection, queue_id: str) -> _Course:
    attempts = await reads.attempts(conn, queue_id)
    status = await reads.status_of(conn, queue_id)
    reasons = await reads.why(conn, queue_id)
    unwatched = await reads.unwatched(conn) if status in IN_SLOT else None
    return _Course(status, reasons[0].words if reasons else status, attempts, unwatched)


class _Printer:
    """Prints the logs of the attempts *first* to *last* of a phase; None: without a last one."""

    def __init__(
        self, queue_id: str, first: int, last: int | None, lines: int | None, runs: Path
    ) -> None:
        self._queue_id = queue_id
        self._printed = first - 1
        self._last = last
        self._lines = lines
        self._runs = runs
        self._log: _GrowingLog | None = None
        self._last_note = ""
        self._line_is_open = False

    def print_some(self) -> float | None:
        """Print a chunk of the current log; return the seconds to wait before the next call.

        None if there is no current log: then wait for the next `_Course`.
        """
        if self._log is None:
            return None
        return 0 if self._print_chunk(self._log) else _READ_INTERVAL

    def switch_to_new(self, course: _Course) -> bool:
        """Switch to attempts that are new in *course*; return whether all has been printed."""
        over = True
        for attempt in course.attempts:
            if self._printed < attempt.number <= (self._last or attempt.number):
                self._turn_to(attempt)
            if attempt.number == self._printed:
                over = attempt.exited_at is not None or attempt.folder is None
        if over:
            self._print_rest()
        ended = over and (course.ended or self._printed == self._last)
        waits = course.status in ("queued", "blocked") or course.waits_in_engine
        if ended or course.unwatched or waits:
            self._print_note(course.words)
        return ended

    def _turn_to(self, attempt: Attempt) -> None:
        self._print_rest()
        self._printed = attempt.number
        try:
            host = gethostname()
            _, log = log_of(self._queue_id, [attempt], attempt.number, host=host, runs=self._runs)
        except Refused as error:
            self._print_note(str(error))
        else:
            self._print_note(f"attempt {attempt.number}, {attempt.adw_id}")
            self._log = _GrowingLog(log, self._lines)
        self._lines = None

    def _print_rest(self) -> None:
        while self._log and self._print_chunk(self._log):
            pass
        self._log = None

    def _print_chunk(self, log: "_GrowingLog") -> bool:
        """Print a chunk of *log*; return whether more is available now."""
        if chunk := log.print_some():
            self._line_is_open = not chunk.endswith(b"\n")
        return len(chunk) == _CHUNK

    def _print_note(self, words: str) -> None:
        """Print *words* on stderr, unless they were the last ones printed there.

        They begin a line, also where the log has left one without its end.
        """
        if words != self._last_note:
            sys.stdout.flush()
            if self._line_is_open and os.path.sameopenfile(1, 2):
                say("", err=True)
                self._line_is_open = False
            say(f"pgcoord: {self._queue_id}: {clean(words)}", err=True)
        self._last_note = words


# Bytes by which a log is recognized: more than a line, as a rule.
_REMEMBERED = 256


class _GrowingLog:
    """A log file that may not exist yet, and may be rewritten without its middle when too large."""

    def __init__(self, log: Log, lines: int | None) -> None:
        self._log = log
        self._lines = lines
        self._file: IO[bytes] | None = None
        self._last = b""  # the bytes before the place where it reads on

    def print_some(self) -> bytes:
        """Print the next chunk, and return it; more is available now if it is `_CHUNK` long."""
        if self._file is None:
            if not self._log.path.exists():
                return b""
            self._file = self._log.open_for_people()
            if self._lines is not None:
                seek_last_lines(self._file, self._lines)
        if self._was_rewritten(self._file):
            seek_last_lines(self._file, _CONTEXT)
            self._last = b""
        chunk = self._file.read(_CHUNK)
        self._last = (self._last + chunk)[-_REMEMBERED:]
        sys.stdout.buffer.write(chunk)
        sys.stdout.flush()
        return chunk

    def _was_rewritten(self, file: IO[bytes]) -> bool:
        """Whether the bytes read last are not there any more; the size may be the same again."""
        before = max(0, file.tell() - len(self._last))
        return os.pread(file.fileno(), len(self._last), before) != self._last
