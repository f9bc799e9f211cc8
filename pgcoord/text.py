"""Text of others, made fit to be shown: nothing that a terminal would obey, nothing too long."""

import re

# Controls (C0, DEL, C1), but for tab and line feed; and what turns the direction of writing.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""Return `text` with each control character as Python writes it, such as \x1b."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """Return `text` as `printable` does, with its tabs and line feeds written so, too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def shortened(text: str, most: int) -> str:
    """Return `text` itself, or its head and its tail, `most` characters at most without the note.

    The note between them says how many characters were left out. The tail gets two thirds: what
    went wrong is mostly said last.
    """
    left_out = len(text) - most
    if left_out <= 0:
        return text
    head = most // 3
    return (
        f"{text[:head]}\n-- pgcoord: {left_out} characters were left out here --\n"
        + (text[len(text) - (most - head) :])
    )
