"""The log of an attempt: where it is, and how it is read, searched, followed and bounded.

A log may be of any size and may grow, shrink or be replaced at any time by the process that writes
it. The one rule: each call reads a bounded part, and only of a plain file in the run's own folder
(files.py). All calls that touch the file block, for milliseconds unless something else is said.
"""

import codecs
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pgcoord.database.rows import Attempt
from pgcoord.errors import CannotStart, NotFound, Refused
from pgcoord.runs import files

# The name of a log in the folder of its run.
NAME = "log"

# What a terminal would take as a command (colours, movements, titles), not as text.
ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

# Bytes that are shown at once.
PART = 64_000

# Bytes in which the last line is looked for.
_LINE = 2_000

# What a search does at most: lines found, bytes read at once and in all, and the bytes that a match
# may have at most.
_MOST_FOUND = 200
_BLOCK = 1_000_000
_MOST_SEARCHED = 1_000_000_000
_OVERLAP = 1_000

# What stands in a log instead of its middle, and the bytes of its end that are kept at most.
_LEFT_OUT = b"\n-- pgcoord: %d bytes were left out here --\n"
_KEPT_END = 1_000_000


@dataclass(frozen=True)
class Part:
    """A part of a log: bytes `start` to `end` of `size`, as text; `at` is when it last grew."""

    start: int
    end: int
    size: int
    text: str
    at: float = 0.0


NOTHING = Part(0, 0, 0, "")


@dataclass(frozen=True)
class Found:
    """A line that a search has found, in three parts around what was looked for."""

    offset: int
    before: str
    match: str
    after: str


@dataclass(frozen=True)
class LastLine:
    """The last line of a log, and when it was written, in seconds since 1970."""

    text: str
    at: float


@dataclass(frozen=True)
class Log:
    """The log in the folder of a run on this machine; it may not be there (yet)."""

    folder: Path

    @property
    def path(self) -> Path:
        """Where it is, to name it; only this class opens it."""
        return self.folder / NAME

    def open(self) -> IO[bytes]:
        """Open it for reading. Raises `OSError`; `files.NotPlain` where something else lies."""
        return os.fdopen(files.open_plain(self.folder, NAME, os.O_RDONLY), "rb")

    def open_for_command(self) -> IO[bytes]:
        """Open it for a command's output, which is appended. Raises `OSError` as `open` does."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        return os.fdopen(files.open_plain(self.folder, NAME, flags), "ab")

    def open_for_people(self) -> IO[bytes]:
        """Open it as `open` does; raise `NotFound` or `CannotStart` with the reason for people."""
        try:
            return self.open()
        except FileNotFoundError as error:
            raise NotFound(f"nothing was written to {self.path}, or it was removed") from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise CannotStart(f"the log {self.path} cannot be read: {reason.lower()}") from error

    def tail(self, lines: int = 20, characters: int = 4000) -> str:
        """Return the last lines, fit for a text column; empty when there are none.

        What is not UTF-8, and NUL, which Postgres refuses, become U+FFFD; colours and the like are
        left out. Where it cannot be read, say so in the text.
        """
        try:
            with self.open() as log:
                # Four bytes make the longest character, and one more may have been cut in two.
                log.seek(max(0, log.seek(0, os.SEEK_END) - 4 * (characters + 1)))
                end = log.read(4 * (characters + 1))
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"(the log {self.path} cannot be read: {error.strerror or error})"
        text = ESCAPE.sub("", end.decode(errors="replace")).replace("\0", "\ufffd").rstrip("\n")
        return "\n".join(text[-characters:].split("\n")[-lines:])

    def last_line(self) -> LastLine | None:
        """Return the last line with something in it; None if there is none or it is unreadable."""
        try:
            with self.open() as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(0, size - _LINE))
                text = readable(log.read(_LINE).decode(errors="replace"))
                at = os.fstat(log.fileno()).st_mtime
        except OSError:
            return None
        lines = text.split("\n")
        return next((LastLine(each.strip(), at) for each in reversed(lines) if each.strip()), None)

    def read_end(self) -> Part:
        """Return the last `PART` bytes, from where a line begins. Raises `OSError`."""
        return self.read_from(None)

    def read_from(self, start: int | None) -> Part:
        """Return `PART` bytes from the line that begins at or after *start*, None: of the end.

        Raises `OSError`.
        """
        with self.open() as log:
            size = log.seek(0, os.SEEK_END)
            start = max(0, size - PART if start is None else min(start, size))
            if start:
                log.seek(start - 1)
                skipped = log.readline(PART)
                start = min(start - 1 + len(skipped), size)
            log.seek(start)
            data = log.read(PART)
            at = os.fstat(log.fileno()).st_mtime
        end = data.rfind(b"\n") + 1
        if start + len(data) < size and end:
            data = data[:end]
        return Part(start, start + len(data), size, readable(data.decode(errors="replace")), at)

    def search(self, text: str) -> tuple[list[Found], bool]:
        """Find the lines that contain *text*, in any case; return them, and whether more may be.

        Reads 1 GB at most, which takes seconds; in blocks, since the log may shrink meanwhile, and
        other threads want to work. Raises `OSError`.
        """
        pattern = re.compile(re.escape(text.encode()), re.IGNORECASE)
        found: list[Found] = []
        data, offset = b"", 0
        with self.open() as log:
            while True:
                block = log.read(_BLOCK)
                data += block
                # Up to where lines are whole; of a very long one, but for what may be half a match.
                upto = data.rfind(b"\n") + 1 or max(0, len(data) - _OVERLAP)
                if not block:
                    upto = len(data)
                at = 0
                while (match := pattern.search(data, at)) and match.start() < upto:
                    if len(found) == _MOST_FOUND:
                        return found, True
                    line, at = _found_line(data, match, offset)
                    found.append(line)
                if not block:
                    return found, False
                data, offset = data[upto:], offset + upto
                if offset > _MOST_SEARCHED:
                    return found, True

    def bound(self, most: int) -> None:
        """Cut a log of more than *most* bytes down to its first half and its end.

        A line in between says how much was left out. The command never notices: it appends. What
        it writes while the log is cut may be left out, too. Raises `OSError`.
        """
        with suppress(FileNotFoundError):
            descriptor = files.open_plain(self.folder, NAME, os.O_RDWR)
            with os.fdopen(descriptor, "r+b") as log:
                _bound(log, most)


class LogTail:
    """What is written to a log from an offset on."""

    def __init__(self, log: Log, attempt: int, offset: int) -> None:
        self._log = log
        self._attempt = attempt
        self._offset = offset
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._kept = ""

    def news(self) -> dict[str, Any] | None:
        """What has been written since: attempt, at, skipped, text, written; of much only the end.

        None where nothing was, or the log cannot be read.
        """
        try:
            with self._log.open() as log:
                size = log.seek(0, os.SEEK_END)
                if size == self._offset:
                    return None
                if size < self._offset:  # its middle was taken out: it had grown too large
                    self._offset = 0
                skipped = max(0, size - self._offset - PART)
                log.seek(self._offset + skipped)
                data = log.read(PART)
                written = os.fstat(log.fileno()).st_mtime
        except OSError:
            return None
        self._offset += skipped + len(data)
        text = self._kept + self._decoder.decode(data)
        # An escape sequence that has only begun is kept for the next time.
        cut = text.rfind("\x1b", -40)
        whole = cut < 0 or ESCAPE.match(text, cut)
        self._kept, text = ("", text) if whole else (text[cut:], text[:cut])
        return {
            "attempt": self._attempt,
            "at": self._offset,
            "skipped": skipped,
            "text": readable(text),
            "written": written,
        }


def log_of(
    queue_id: str, attempts: Sequence[Attempt], number: int | None, *, host: str
) -> tuple[Attempt, Log]:
    """Find the log of attempt *number*, None: the latest, of *attempts*, in their order.

    *host* is the name of this machine. Raises `NotFound` when there is no such attempt, `Refused`
    when its log is not on this machine. Does not look whether anything was written.
    """
    if not attempts:
        raise NotFound(f"{queue_id} has not started, so it has no log")
    attempt = attempts[-1] if number is None else None
    attempt = attempt or next((each for each in attempts if each.number == number), None)
    if attempt is None:
        last = attempts[-1].number
        raise NotFound(
            f"{queue_id} has no attempt {number}", hint=f"Its latest one is attempt {last}."
        )
    if attempt.folder is None:
        raise Refused(f"{queue_id} was inserted as running: its log is not kept here")
    log = Log(Path(attempt.folder))
    if attempt.host != host:
        raise Refused(
            f"the log of {queue_id}, attempt {attempt.number}, is on {attempt.host}: {log.path}"
        )
    return attempt, log


def seek_last_lines(log: IO[bytes], lines: int) -> None:
    """Go to where the last *lines* lines begin; a last one without an end is one too.

    Looks back 1 GB at most.
    """
    end = start = log.seek(0, os.SEEK_END)
    while start and lines and end - start < _MOST_SEARCHED:
        size = min(_BLOCK, start)
        start = log.seek(start - size)
        block = log.read(size)
        while lines and (size := block.rfind(b"\n", 0, size)) >= 0:
            # Behind the last line's end no line begins.
            lines -= start + size + 1 < end
        if not lines:
            start += size + 1
    log.seek(start)


def reopened(log: IO[bytes]) -> str:
    """A path that opens the file behind *log* itself, for as long as that is open.

    Whatever lies at its name by then is not opened.
    """
    folder = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
    return f"{folder}/{log.fileno()}"


def readable(data: str) -> str:
    """Text of a log without what only a terminal understands."""
    text = ESCAPE.sub("", data).replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def _found_line(data: bytes, match: re.Match[bytes], offset: int) -> tuple[Found, int]:
    """The line around *match* in *data*, which begins at *offset*; and where the next begins."""
    start = data.rfind(b"\n", 0, match.start()) + 1
    end = data.find(b"\n", match.end())
    end = len(data) if end < 0 else end
    low, high = max(start, match.start() - 200), min(end, match.end() + 200)
    parts = (data[low : match.start()], match[0], data[match.end() : high])
    words = (readable(each.decode(errors="replace")) for each in parts)
    return Found(offset + start, *words), end + 1


def _bound(log: IO[bytes], most: int) -> None:
    half = most // 2
    size = log.seek(0, os.SEEK_END)
    if size <= most:
        return
    log.seek(half)
    before = re.match(_LEFT_OUT.replace(b"%d", b"([0-9]{1,20})"), log.read(128))
    log.seek(size - min(most // 4, _KEPT_END))
    end = log.read(_KEPT_END)
    left_out = size - half - len(end)
    left_out += int(before[1]) - len(before[0]) if before else 0
    # In place, and then cut: nothing that is appended meanwhile gets in between.
    log.seek(half)
    log.write(_LEFT_OUT % left_out + end)
    log.truncate()
