"""Render lines of a log as HTML: numbered, coloured by escape codes, carriage returns applied.

Colours are CSS classes (web/static/panel.css), with enough contrast in both themes.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup, escape

from pgcoord.runs.logs import ESCAPE, mentions_error, overwritten, without_controls

_SGR = re.compile(r"\x1b\[([0-9;:]*)m")

_ATTRIBUTES = {1: "bold", 2: "faint", 3: "italic", 4: "under", 7: "inverse", 9: "struck"}

# The attributes that each code ends.
_ENDS = {22: ("bold", "faint"), 23: ("italic",), 24: ("under",), 27: ("inverse",), 29: ("struck",)}


@dataclass(frozen=True)
class Style:
    """The style of the text that follows: a colour from 1 to 6 (0: none), and attributes."""

    colour: int = 0
    attributes: frozenset[str] = frozenset()

    def then(self, codes: list[int]) -> "Style":
        """Return the style after the codes of an SGR escape sequence; unknown ones are ignored."""
        style, left = self, iter(codes)
        for code in left:
            if code == 0:
                style = Style()
            elif code in _ATTRIBUTES:
                style = replace(style, attributes=style.attributes | {_ATTRIBUTES[code]})
            elif code in _ENDS:
                style = replace(style, attributes=style.attributes - {*_ENDS[code]})
            elif 30 <= code <= 37 or 90 <= code <= 97:
                style = replace(style, colour=code % 10 % 7)  # black and white: the text's colour
            elif code in (38, 48):
                colour = _indexed(next(left, 0), left)
                style = replace(style, colour=colour) if code == 38 else style
            elif code == 39:
                style = replace(style, colour=0)
        return style

    @property
    def classes(self) -> str:
        """The CSS classes of this style, separated by spaces."""
        return " ".join([*([f"c{self.colour}"] if self.colour else []), *sorted(self.attributes)])


def _indexed(kind: int, codes: Iterator[int]) -> int:
    """Return the nearest of the six colours; takes the further codes of 38 or 48 from *codes*.

    *kind*: 5 is followed by one of 256 colours, 2 by red, green and blue. 0 for a grey.
    """
    if kind == 5:
        index = next(codes, 0)
        if index < 16:
            return index % 8 % 7
        if index > 231:
            return 0
        index -= 16
        parts = [index // 36, index // 6 % 6, index % 6]
    elif kind == 2:
        parts = [next(codes, 0) for _ in range(3)]
    else:
        return 0
    most, least = max(parts), min(parts)
    if most == least:
        return 0
    middle = (most + least) / 2
    return sum(bit for bit, part in zip((1, 2, 4), parts, strict=True) if part >= middle) % 7


def line(raw: str, number: int, style: Style, *, going_on: bool = False) -> tuple[Markup, Style]:
    """Render one line; return its HTML, and the style in which the next line begins.

    *number*: of the line, from 1. *going_on*: the line is incomplete, and will be replaced.
    """
    pieces: list[Markup] = []
    at = 0
    text = overwritten(raw) if "\r" in raw else raw
    for match in _SGR.finditer(text):
        pieces.append(_piece(text[at : match.start()], style))
        codes = [int(each) if each else 0 for each in re.split("[;:]", match[1])]
        style = style.then(codes)
        at = match.end()
    pieces.append(_piece(text[at:], style))
    words = Markup().join(pieces)
    kind = "l going" if going_on else "l"
    if mentions_error(words.striptags()):
        kind += " trouble"
    return Markup(
        '<span class="{}" id="L{}"><a href="#L{}" tabindex="-1" aria-label="{}"></a>{}{}</span>'
    ).format(kind, number, number, number, words, "" if going_on else "\n"), style


def _piece(text: str, style: Style) -> Markup:
    text = without_controls(ESCAPE.sub("", text))
    if not text or not style.classes:
        return escape(text)
    return Markup('<span class="{}">{}</span>').format(style.classes, text)


def lines(raw: Sequence[str], first: int, style: Style) -> tuple[Markup, Style]:
    """Render lines numbered from *first*; return their HTML, and the style after them."""
    drawn: list[Markup] = []
    for number, each in enumerate(raw, first):
        one, style = line(each, number, style)
        drawn.append(one)
    return Markup().join(drawn), style
