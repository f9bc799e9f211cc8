"""The log of the program, on stderr: lines of text, or JSON for machines.

The one rule: a record's fields are for machines (`extra={"fields": {…}}`), its message has the same
facts as text, and neither contains secrets, prompts or output of processes.
"""

import json
import logging
import sys
from contextlib import suppress
from datetime import datetime

from pgcoord.text import one_line


class _Line(logging.Formatter):
    """A line for people, control characters escaped: no client can forge a line, or colours."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))


_PLAIN = _Line("pgcoord: %(message)s")
_DATED = _Line("%(asctime)s  %(levelname)-7s  %(message)s", datefmt="%H:%M:%S")


class _Stderr(logging.Handler):
    """Writes to the current sys.stderr: a live display prints lines above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        # A closed terminal or a full disk must not stop a coordinator.
        with suppress(OSError):
            sys.stderr.write(f"{self.format(record)}\n")


class _Json(logging.Formatter):
    """One object a line: time (ISO 8601), level, message, the record's fields, a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created).astimezone().isoformat(),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


_handler = _Stderr()


def configure(*, serves: bool, verbose: bool) -> None:
    """Log to stderr, at WARNING and above.

    *serves*: at INFO, with dates, as the log is the output of `serve`. *verbose*: at DEBUG.
    """
    _handler.setFormatter(_DATED if serves or verbose else _PLAIN)
    logging.getLogger().addHandler(_handler)
    level = logging.DEBUG if verbose else logging.INFO if serves else logging.WARNING
    logging.getLogger("pgcoord").setLevel(level)
    # Warnings of the driver and its pool are left out: their callers log the same faults.
    logging.getLogger("psycopg").setLevel(logging.DEBUG if verbose else logging.ERROR)


def write_json() -> None:
    """From now on, write the log as a JSON object a line, at INFO and above."""
    _handler.setFormatter(_Json())
    logger = logging.getLogger("pgcoord")
    logger.setLevel(min(logger.level, logging.INFO))
