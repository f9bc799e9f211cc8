"""The log of an attempt: find, read, search, follow and truncate it.

A log may have any size, and its process may append to, truncate or replace it at any time. The one
rule: each call reads a bounded part, and only of a plain file in the run's own folder (files.py).
All calls that open the file block, for milliseconds unless their docstring says more.
"""

import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pgcoord.database.rows import Attempt
from pgcoord.errors import CannotStart, NotFound, Refused
from pgcoord.messages import plain_files

# The name of a log in the folder of its run.
NAME = "log"

# Escape sequences of terminals: colours, cursor movements, titles.
ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

# In an excerpt, the line between the cause with what follows it, and what was before it.
BEFORE = "… before it:"

# Bytes of a `Part`.
PART = 64_000

# Characters that change how a line is displayed.
_REDRAWN = re.compile(rb"\x1b|\r(?!\n)")

# Bytes at the end that are searched for the last line.
_LINE = 2_000

# Limits of a search: lines found, bytes read at once and in all, and bytes of a match.
_MOST_FOUND = 200
_BLOCK = 1_000_000
_MOST_SEARCHED = 1_000_000_000
_OVERLAP = 1_000

# Bytes around a line in which to search for its neighbours.
_AROUND = 4_000

# The text that replaces the middle of a log, and the bytes at its end that stay at most.
_LEFT_OUT = b"\n-- pgcoord: %d bytes were left out here --\n"
_KEPT_END = 1_000_000


# Words of lines that report an error; and similar words in harmless lines.
_TROUBLE = re.compile(
    r"\b\w*(?:error|exception|fail(?:ed|ure)?|fatal|panic(?:ked)?|assert(?:ion)?|traceback)\b"
    r"|\b(?:cannot|denied|refused|not found|undefined|segmentation fault|killed|aborted)\b|^E\s",
    re.IGNORECASE,
)
_NO_TROUBLE = re.compile(
    r"\b(?:0|no|without)\s+\w*(?:error|fail|exception|assert)\w*|\b(?:error|fail)\w*\s*[:=]\s*0\b",
    re.IGNORECASE,
)

# Every line that `_TROUBLE` matches has one of these in it, in upper or lower case, or begins with
# `_E`: they are found in a tenth of its time.
_SIGNS = (
    *(b"error", b"exception", b"fail", b"fatal", b"panic", b"assert", b"traceback", b"cannot"),
    *(b"denied", b"refused", b"not found", b"undefined", b"segmentation fault", b"killed"),
    b"aborted",
)
_E = re.compile(rb"\n[Ee][\s\x80-\xff]")

# Bytes at the end that are searched for what went wrong, and lines that an excerpt has at most.
_CAUSE = 256_000
_EXCERPT = 20
_MOST_EXCERPT = 4_000

# Bytes that are searched for the next or previous line of trouble.
_MOST_LOOKED_AT = 64_000_000

# Characters of a line without an end that are shown anew when it goes on.
_OPEN = 16_000


@dataclass(frozen=True)
class Part:
    """A part of a log: bytes `start` to `end` of `size`, as text with its escape sequences.

    `at`: the time of the last write. `line`: the number of its first line.
    """

    start: int
    end: int
    size: int
    raw: str
    at: float = 0.0
    line: int = 1

    @property
    def text(self) -> str:
        """The text as it is shown, without colours."""
        return readable(self.raw)

    @property
    def lines(self) -> list[str]:
        """Its lines with their escape sequences; the last one may be incomplete."""
        return self.raw.removesuffix("\n").split("\n") if self.raw else []

    @property
    def open(self) -> tuple[int, int]:
        """The byte offset and the number of the last, incomplete line, or of the next one.

        A line of more than `_OPEN` characters counts as complete: then the end of the part.
        """
        last = self.raw.rfind("\n") + 1
        number = self.line + self.raw.count("\n")
        if len(self.raw) - last > _OPEN:
            return self.end, number
        return self.end - len(self.raw[last:].encode(errors="replace")), number


NOTHING = Part(0, 0, 0, "")


@dataclass(frozen=True)
class Hit:
    """A line that a search has found, in three parts: before the match, the match, after it."""

    offset: int
    before: str
    match: str
    after: str


@dataclass(frozen=True)
class LastLine:
    """The last line of a log, and the time of the last write, in seconds since 1970."""

    text: str
    at: float


@dataclass(frozen=True)
class Log:
    """The log in the folder of a run on this machine. The file may not exist (yet)."""

    folder: Path

    @property
    def path(self) -> Path:
        """The path, for messages only: only this class opens the file."""
        return self.folder / NAME

    def open(self) -> IO[bytes]:
        """Open the log for reading. Raises `OSError`, or its subclass `plain_files.NotPlain`."""
        return os.fdopen(plain_files.open_plain(self.folder, NAME, os.O_RDONLY), "rb")

    def open_for_command(self) -> IO[bytes]:
        """Open the log for appending a command's output. Raises `OSError` as `open` does."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        return os.fdopen(plain_files.open_plain(self.folder, NAME, flags), "ab")

    def extend(self, output: bytes) -> None:
        """Append what is new in *output*, all of a command's output so far. Raises `OSError`.

        Two calls at once, with more and with less of it, write the same bytes to the same places.
        """
        plain_files.make_private(self.folder)  # of a job that a leader on another host submitted
        flags = os.O_RDWR | os.O_CREAT
        with plain_files.opened(self.folder, NAME, flags) as log:
            size = os.fstat(log).st_size
            os.pwrite(log, output[size:], size)

    def open_for_people(self) -> IO[bytes]:
        """Open the log as `open` does; raise `NotFound` or `CannotStart` with the reason."""
        try:
            return self.open()
        except FileNotFoundError as error:
            runs = self.folder.parent.parent
            if not runs.exists():
                raise NotFound(
                    f"the folder of the runs does not exist any more: {runs}",
                    hint="If the project was moved, run the command there, or set 'folder' of"
                    " [log] in pgcoord.toml.",
                ) from error
            raise NotFound(f"nothing was written to {self.path}, or it was removed") from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise CannotStart(f"the log {self.path} cannot be read: {reason.lower()}") from error

    def tail(self, lines: int = 20, characters: int = 4000) -> str:
        """Return the last lines, valid as a Postgres text; empty if there are none.

        Invalid UTF-8 and NUL become U+FFFD; escape sequences are removed. If the log is unreadable,
        return the reason instead. Never raises.
        """
        try:
            with self.open() as log:
                # A character has at most four bytes, and the first may be cut in two.
                log.seek(max(0, log.seek(0, os.SEEK_END) - 4 * (characters + 1)))
                end = log.read(4 * (characters + 1))
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"(the log {self.path} cannot be read: {error.strerror or error})"
        text = ESCAPE.sub("", end.decode(errors="replace")).replace("\0", "\ufffd").rstrip("\n")
        return "\n".join(text[-characters:].split("\n")[-lines:])

    def last_line(self) -> LastLine | None:
        """Return the last line that is not blank; None if there is none or it is unreadable."""
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
        """Return the last `PART` bytes, from the beginning of a line on. Raises `OSError`."""
        return self.read_from(None)

    def read_from(self, start: int | None) -> Part:
        """Return `PART` bytes from the line that begins at or after *start* (None: the last ones).

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
            line = 1 + _count_lines(log, 0, start)
            at = os.fstat(log.fileno()).st_mtime
        end = data.rfind(b"\n") + 1
        if start + len(data) < size and end:
            data = data[:end]
        return Part(start, start + len(data), size, data.decode(errors="replace"), at, line)

    def offset_of_line(self, number: int) -> int:
        """Return where the line *number* begins, from 1 on; the size if there are fewer.

        Reads 1 GB at most. Raises `OSError`.
        """
        with self.open() as log:
            offset = 0
            while number > 1 and offset < _MOST_SEARCHED and (block := log.read(_BLOCK)):
                count = block.count(b"\n")
                if count >= number - 1:
                    at = -1
                    for _ in range(number - 1):
                        at = block.index(b"\n", at + 1)
                    return offset + at + 1
                number -= count
                offset += len(block)
            return offset

    def find_trouble(self, offset: int | None, *, before: bool) -> int | None:
        """Return the offset of the next line that shows trouble, after or *before* an offset.

        None: before the end. Reads 64 MB at most. Raises `OSError`.
        """
        with self.open() as log:
            size = log.seek(0, os.SEEK_END)
            end = size if offset is None else min(offset, size)
            if before:
                while end > max(0, size - _MOST_LOOKED_AT):
                    start = max(0, end - _BLOCK)
                    log.seek(start)
                    data = log.read(end - start)
                    cut = data.find(b"\n") + 1 if start else 0
                    offsets = [at for at, _ in _lines_of_trouble(data[cut:])]
                    if offsets:
                        return start + cut + offsets[-1]
                    # A block that ends with its only line break has no whole line in it.
                    end = start + cut if 0 < cut < len(data) else start
                return None
            log.seek(end)
            log.readline(_BLOCK)
            start = log.tell()
            limit = start + _MOST_LOOKED_AT
            while start < limit and (data := log.read(_BLOCK)):
                data += log.readline(_BLOCK)
                for at, _ in _lines_of_trouble(data):
                    return start + at
                start += len(data)
            return None

    def excerpt(self) -> str:
        """Return lines that show why the attempt failed, at most 20, as `tail` returns its text.

        The last line of trouble comes first, then lines after and before it; without one, the end.
        """
        lines = self.tail(lines=_CAUSE, characters=_CAUSE).split("\n")
        cause = max((at for at, line in enumerate(lines) if mentions_error(line)), default=None)
        if cause is None:
            return "\n".join(lines[-_EXCERPT:])[-_MOST_EXCERPT:]
        excerpt, after = [lines[cause]], lines[cause + 1 :]
        if len(after) >= _EXCERPT:
            after = [f"… {len(after) - 8} lines …", *after[-8:]]
        excerpt += after
        room = _EXCERPT - len(excerpt)
        if room > 1 and cause:
            excerpt += [BEFORE, *lines[max(0, cause - room + 1) : cause]]
        return "\n".join(each[:500] for each in excerpt)[:_MOST_EXCERPT]

    def search(self, text: str) -> tuple[list[Hit], bool]:
        """Return (lines that contain *text*, in upper or lower case; whether there may be more).

        Reads 1 GB at most, which takes seconds; in blocks, since the log may shrink meanwhile, and
        other threads need the GIL. Raises `OSError`.
        """
        pattern = re.compile(re.escape(text.encode()), re.IGNORECASE)
        shown = re.compile(re.escape(text), re.IGNORECASE)
        lower = text.encode().lower()
        hits: list[Hit] = []
        data, offset = b"", 0
        with self.open() as log:
            while True:
                block = log.read(_BLOCK)
                data += block
                # Keep an incomplete line for the next block; of a very long one, half a match.
                upto = data.rfind(b"\n") + 1 or max(0, len(data) - _OVERLAP)
                if not block:
                    upto = len(data)
                at = upto if _is_redrawn(data) else 0
                if at:
                    # As it is shown: a match may have colours inside, or have been overwritten.
                    for begin, words in _lines(data[:upto]):
                        if (hit := shown.search(words)) is None:
                            continue
                        if len(hits) == _MOST_FOUND:
                            return hits, True
                        low, high = max(0, hit.start() - 200), hit.end() + 200
                        around = (words[low : hit.start()], hit[0], words[hit.end() : high])
                        hits.append(Hit(offset + begin, *around))
                is_there = lower in data.lower()  # which is found sooner than a pattern
                while is_there and (match := pattern.search(data, at)) and match.start() < upto:
                    if len(hits) == _MOST_FOUND:
                        return hits, True
                    line, at = _hit_in(data, match, offset)
                    hits.append(line)
                if not block:
                    return hits, False
                data, offset = data[upto:], offset + upto
                if offset > _MOST_SEARCHED:
                    return hits, True

    def around(self, offsets: Sequence[int], lines: int) -> list[tuple[list[str], list[str]]]:
        """Return as many *lines* before and after each line that begins at an offset, as shown.

        Lines are looked for within 4 kB. Raises `OSError`.
        """
        lines_around = []
        with self.open() as log:
            for offset in offsets:
                start = max(0, offset - _AROUND)
                log.seek(start)
                before = readable(log.read(offset - start).decode(errors="replace")).split("\n")
                after = readable(log.read(_AROUND).decode(errors="replace")).split("\n")
                whole = before[1 if start else 0 : -1]
                lines_around.append((whole[-lines:], after[1 : 1 + lines]))
        return lines_around

    def bound(self, most: int) -> None:
        """Reduce a log of more than *most* bytes to its first half and its end.

        A line in between states how many bytes were left out. The command does not notice, since it
        appends; the bytes that it writes during the cut may be left out, too. Raises `OSError`.
        """
        with suppress(FileNotFoundError):
            status = os.lstat(self.path)  # a twentieth of what opening costs
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_size <= most:
                return
            descriptor = plain_files.open_plain(self.folder, NAME, os.O_RDWR)
            with os.fdopen(descriptor, "r+b") as log:
                _bound(log, most)


@dataclass(frozen=True)
class Grown:
    """What was added to a log: whole lines, and the one that goes on, as they were written.

    `line`: the number of the first of them. `at`: where the one that goes on begins, `size`: the
    end. `skipped`: whether something before was left out. `written`: the time of the last write.
    """

    lines: list[str]
    going_on: str
    line: int
    at: int
    size: int
    skipped: bool
    written: float


class LogTail:
    """Reads what is appended to a log after an offset, at which the line *number* begins."""

    def __init__(self, log: Log, offset: int, number: int) -> None:
        self._log = log
        self._offset = offset
        self._number = number
        self._seen = (-1, offset)

    def news(self) -> Grown | None:
        """Return what was appended since the last call; if that is long, only its end.

        None if there is nothing, or the log cannot be read.
        """
        try:
            with self._log.open() as log:
                size = log.seek(0, os.SEEK_END)
                if (size, self._offset) == self._seen or size == self._offset:
                    return None
                if size < self._offset:  # `bound` has reduced the log
                    self._offset, self._number = 0, 1
                skipped = max(0, size - self._offset - PART)
                self._number += _count_lines(log, self._offset, self._offset + skipped)
                log.seek(self._offset + skipped)
                data = log.read(PART)
                written = os.fstat(log.fileno()).st_mtime
        except OSError:
            return None
        whole = data.rfind(b"\n") + 1
        if len(data) - whole > _OPEN:
            whole = len(data)
        text = data[:whole].decode(errors="replace")
        grown = Grown(
            text.removesuffix("\n").split("\n") if text else [],
            data[whole:].decode(errors="replace"),
            self._number,
            self._offset + skipped + whole,
            self._offset + skipped + len(data),
            skipped > 0,
            written,
        )
        self._number += data[:whole].count(b"\n")
        self._offset = grown.at
        self._seen = (size, self._offset)
        return grown


def log_of(
    queue_id: str, attempts: Sequence[Attempt], number: int | None, *, host: str, runs: Path | None
) -> tuple[Attempt, Log]:
    """Return the log of attempt *number* (None: of the latest) of *attempts*, which are in order.

    *host*: the name of this machine. *runs*: the folder of the runs as it is now, where the log is
    looked for if the one that was stored is gone: a project may have been moved. Raises `NotFound`
    when there is no such attempt, `Refused` when its log is on another machine. Does not check
    that the file exists.
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
    if attempt.number == 0:  # of a copy: what was completed before
        raise Refused(
            f"{queue_id} was completed in the feature that this one copies: its log is there"
        )
    if attempt.folder is None:
        raise Refused(f"{queue_id} was inserted as running: its log is not kept here")
    log = Log(_as_it_is_now(Path(attempt.folder), runs))
    if attempt.host not in (None, host):  # None: an engine's, in a folder that is shared
        raise Refused(
            f"the log of {queue_id}, attempt {attempt.number}, is on {attempt.host}: {log.path}"
        )
    return attempt, log


def _as_it_is_now(folder: Path, runs: Path | None) -> Path:
    """Return *folder*, or the one of its name in *runs* if only that exists; names are unique."""
    moved = None if runs is None else runs.joinpath(*folder.parts[-2:])
    return moved if moved and not folder.exists() and moved.exists() else folder


def seek_last_lines(log: IO[bytes], lines: int) -> None:
    """Seek to the beginning of the last *lines* lines; a last one without a newline counts.

    Reads 1 GB at most.
    """
    end = start = log.seek(0, os.SEEK_END)
    while start and lines and end - start < _MOST_SEARCHED:
        size = min(_BLOCK, start)
        start = log.seek(start - size)
        block = log.read(size)
        while lines and (size := block.rfind(b"\n", 0, size)) >= 0:
            # No line begins after the last newline.
            lines -= start + size + 1 < end
        if not lines:
            start += size + 1
    log.seek(start)


def reopened(log: IO[bytes]) -> str:
    """Return a path that opens the file of *log* itself, even if its name has another file now.

    The path is valid while *log* is open.
    """
    folder = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
    return f"{folder}/{log.fileno()}"


def readable(data: str) -> str:
    """Return *data* as a terminal would show it, without escape sequences."""
    text = ESCAPE.sub("", data).replace("\r\n", "\n")
    if "\r" in text:
        text = "\n".join(overwritten(line) for line in text.split("\n"))
    return without_controls(text)


def overwritten(line: str) -> str:
    """Return the text of a line that carriage returns have overwritten, as a terminal shows it."""
    return next((each for each in reversed(line.split("\r")) if ESCAPE.sub("", each).strip()), "")


def without_controls(text: str) -> str:
    """Return *text* with a replacement for each control character but tab and line break."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r", ""))


def mentions_error(line: str) -> bool:
    """Whether *line*, without escape sequences, looks like an error message."""
    return bool(_TROUBLE.search(line)) and not _NO_TROUBLE.search(line)


def _lines_of_trouble(data: bytes) -> Iterator[tuple[int, str]]:
    """Yield those `_lines` that mention an error."""
    lower = data.lower()
    if (
        _is_redrawn(data)  # words may have colours inside
        or any(sign in lower for sign in _SIGNS)
        or _E.search(b"\n" + data)
    ):
        yield from ((at, line) for at, line in _lines(data) if mentions_error(line))


def _is_redrawn(data: bytes) -> bool:
    """Whether a terminal would not show *data* as it is, but for control characters."""
    return b"\x1b" in data or (b"\r" in data and _REDRAWN.search(data) is not None)


def _lines(data: bytes) -> Iterator[tuple[int, str]]:
    """Yield (where it begins, how it is shown) for each line."""
    at = 0
    for line in data.split(b"\n"):
        yield at, readable(line.decode(errors="replace"))
        at += len(line) + 1


def _count_lines(log: IO[bytes], start: int, end: int) -> int:
    """Return how many lines end between two offsets, 1 GB apart at most."""
    log.seek(start)
    remaining, count = min(end - start, _MOST_SEARCHED), 0
    while remaining > 0 and (block := log.read(min(_BLOCK, remaining))):
        count += block.count(b"\n")
        remaining -= len(block)
    return count


def _hit_in(data: bytes, match: re.Match[bytes], offset: int) -> tuple[Hit, int]:
    """Return (the line around *match*, the index in *data* of the next line).

    *offset*: the position of *data* in the log.
    """
    start = data.rfind(b"\n", 0, match.start()) + 1
    end = data.find(b"\n", match.end())
    end = len(data) if end < 0 else end
    low, high = max(start, match.start() - 200), min(end, match.end() + 200)
    parts = (data[low : match.start()], match[0], data[match.end() : high])
    words = (readable(each.decode(errors="replace")) for each in parts)
    return Hit(offset + start, *words), end + 1


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
    # Write in place, then truncate, so that an append during the cut cannot land in between.
    log.seek(half)
    log.write(_LEFT_OUT % left_out + end)
    log.truncate()
