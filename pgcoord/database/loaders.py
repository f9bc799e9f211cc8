"""Read any JSON and time that PostgreSQL stores, though Python bounds digits, depths and years.

The one rule: reading never fails, and what was read can be written. The database refuses such
values (sql/functions/12_bounds.sql); an older release may have stored them.
"""

import json
import re
import sys
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg.abc import Buffer
from psycopg.types.datetime import TimestamptzLoader
from psycopg.types.json import set_json_loads

# Python parses and writes nearly a thousand levels, fewer in a deep stack. JSON that may have more
# than this is cut to `_MOST_LEVELS` levels.
_SURE = 500
_MOST_LEVELS = 100

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


# A day from the ends of what a datetime holds: it can be shown in any time zone.
_EARLIEST = datetime(1, 1, 2, tzinfo=UTC)
_LATEST = datetime(9999, 12, 30, tzinfo=UTC)


def register() -> None:
    """Register the loaders of this module for all later connections of this process."""
    set_json_loads(load_json)
    psycopg.adapters.register_loader("timestamptz", AnyTimeLoader)


class AnyTimeLoader(TimestamptzLoader):
    """Reads an infinite or far time as the last or the first that Python can count with."""

    def load(self, data: Buffer) -> datetime:
        """Read the text of a timestamptz."""
        try:
            return super().load(data)
        except psycopg.DataError:
            text = bytes(data)
            return _EARLIEST if text.startswith(b"-") or text.endswith(b"BC") else _LATEST


def load_json(data: str | bytes) -> Any:
    """Parse JSON; what lies too deep becomes null, a number too large the largest of a double."""
    text = data.encode() if isinstance(data, str) else data
    if text.count(b"[") + text.count(b"{") > _SURE:
        text = _cut_below(text, _MOST_LEVELS)
    try:
        return json.loads(text, parse_float=_float)
    except ValueError:  # an integer of more digits than Python converts
        return json.loads(text, parse_float=_float, parse_int=_integer)


def _float(digits: str) -> float:
    return max(-sys.float_info.max, min(float(digits), sys.float_info.max))


def _integer(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:
        return _float(digits)


def _cut_below(text: bytes, levels: int) -> bytes:
    """The JSON with null in place of each array and object within `levels` others."""
    pieces: list[bytes] = []
    depth = begin = 0
    for token in _TOKEN.finditer(text):
        if token[0] in (b"[", b"{"):
            if depth == levels:
                pieces += [text[begin : token.start()], b"null"]
            depth += 1
        elif token[0] in (b"]", b"}"):
            depth -= 1
            if depth == levels:
                begin = token.end()
    return b"".join([*pieces, text[begin:]])
