"""What `--help` of a command prints."""

import logging
from collections.abc import Sequence

from typer.testing import CliRunner, Result

from pgcoord.__main__ import make_app

# Whose levels a command sets before it reads its own arguments.
_LOGGERS = ("pgcoord", "psycopg")


def help_of(*names: str, words: Sequence[str] = ()) -> Result:
    """Ask in this process, and take back how the command has it log: tests after it read logs.

    *words*: what the program is told that it was called with.
    """
    root = logging.getLogger()
    handlers, levels = [*root.handlers], [logging.getLogger(name).level for name in _LOGGERS]
    try:
        return CliRunner().invoke(make_app(words), [*names, "--help"])
    finally:
        root.handlers[:] = handlers
        for name, level in zip(_LOGGERS, levels, strict=True):
            logging.getLogger(name).setLevel(level)
