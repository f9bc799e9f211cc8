"""The log of an attempt, which may be of any size: only the part that is looked at is read."""

import codecs
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgcoord.runs.local import ESCAPE

# Bytes that are shown at once.
PART = 64_000

# Bytes in which the last line is looked for.
_LINE = 2_000

# Lines that a search finds at most, bytes that it reads at once, and more than a match may have.
_MOST_FOUND = 200
_BLOCK = 1_000_000
_OVERLAP = 1_000

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


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


def readable(data: str) -> str:
    """Text of a log without what only a terminal understands."""
    text = ESCAPE.sub("", data).replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


@dataclass(frozen=True)
class Said:
    """The last line of a log, and when it was written, in seconds since 1970."""

    text: str
    at: float


def last_line(path: Path) -> Said | None:
    """The last line with something in it; None where there is none, or it cannot be read."""
    try:
        with path.open("rb") as log:
            size = log.seek(0, 2)
            log.seek(max(0, size - _LINE))
            text = readable(log.read(_LINE).decode(errors="replace"))
            at = os.fstat(log.fileno()).st_mtime
    except OSError:
        return None
    lines = text.split("\n")
    return next((Said(each.strip(), at) for each in reversed(lines) if each.strip()), None)


def read_end(path: Path) -> Part:
    """The end of a log. Raises OSError."""
    size = path.stat().st_size
    return read_from(path, max(0, size - PART))


def read_from(path: Path, start: int) -> Part:
    """A part of a log from the line that begins at or after `start`. Raises OSError."""
    with path.open("rb") as log:
        size = log.seek(0, 2)
        start = min(max(0, start), size)
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


def search(path: Path, text: str) -> tuple[list[Found], bool]:
    """Lines with a text in them, in any case, and whether there are more. Raises OSError.

    The file is read in blocks, since it may shrink meanwhile, and others want to work, too.
    """
    pattern = re.compile(re.escape(text.encode()), re.IGNORECASE)
    found: list[Found] = []
    data, place = b"", 0
    with path.open("rb") as log:
        while True:
            block = log.read(_BLOCK)
            data += block
            # Up to where lines are whole; of a very long one, but for what may be half a match.
            upto = data.rfind(b"\n") + 1 or max(0, len(data) - _OVERLAP)
            if not block:
                upto = len(data)
            at = 0
            while (match := pattern.search(data, at)) and match.start() < upto:
                start = data.rfind(b"\n", 0, match.start()) + 1
                end = data.find(b"\n", match.end())
                end = len(data) if end < 0 else end
                if len(found) == _MOST_FOUND:
                    return found, True
                low, high = max(start, match.start() - 200), min(end, match.end() + 200)
                parts = (data[low : match.start()], match[0], data[match.end() : high])
                words = (readable(each.decode(errors="replace")) for each in parts)
                found.append(Found(place + start, *words))
                at = end + 1
            if not block:
                return found, False
            data, place = data[upto:], place + upto


class LogTail:
    """What is written to a log from a place on."""

    def __init__(self, path: Path, attempt: int, offset: int) -> None:
        self._path = path
        self._attempt = attempt
        self._offset = offset
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._kept = ""

    def news(self) -> dict[str, Any] | None:
        """What has been written since; of much only the end."""
        try:
            with self._path.open("rb") as log:
                size = log.seek(0, 2)
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
