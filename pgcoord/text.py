"""Text of others, read from files and made fit to be shown."""

import re
import sys
from pathlib import Path

from pgcoord.errors import InvalidInput

# Controls (C0, DEL, C1), but for tab and line feed; and what turns the direction of writing.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def read_text(path: Path) -> str:
    """Return the text of the UTF-8 file *path*; of standard input where it is `-`.

    Raises `InvalidInput` when it cannot be read, or is not UTF-8, with the line.
    """
    try:
        if str(path) != "-":
            data = path.read_bytes()
        elif sys.stdin is None:
            raise InvalidInput("-: standard input is closed", hint="Give a file, or a pipe.")
        else:
            data = sys.stdin.buffer.read()
    except OSError as error:
        raise InvalidInput(f"{path}: {(error.strerror or str(error)).lower()}") from error
    try:
        # Windows editors begin a file with a byte order mark.
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        raise InvalidInput(f"{path}:{line}: not UTF-8: {byte}") from error


def printable(text: str) -> str:
    r"""Return *text* with each control character as Python writes it, such as \x1b."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def one_line(text: str) -> str:
    """Return *text* as `printable` does, with its tabs and line feeds escaped as well."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def counted(number: int, noun: str, nouns: str | None = None) -> str:
    """Return a number with its noun, such as "1 phase" or "2 phases"; *nouns*: the plural."""
    return f"{number} {noun if number == 1 else nouns or f'{noun}s'}"


def shortened(text: str, most: int) -> str:
    """Return *text* itself, or its head and its tail, *most* characters at most without the note.

    The note between them says how many characters were left out. The tail gets two thirds, since
    the cause of an error is mostly at the end.
    """
    left_out = len(text) - most
    if left_out <= 0:
        return text
    head = most // 3
    return (
        f"{text[:head]}\n-- pgcoord: {left_out} characters were left out here --\n"
        + (text[len(text) - (most - head) :])
    )
