"""Print to the terminal, with control characters escaped: text of clients cannot act on it."""

import json
import sys
from datetime import datetime

import typer

from pgcoord.text import printable


def say(text: str, *, err: bool = False) -> None:
    """Print *text* to stdout, or to stderr with *err*, with its control characters escaped."""
    typer.echo(printable(text), err=err)


def confirm(question: str, *, yes: bool) -> bool:
    """Ask *question* on the terminal, unless *yes* was given; return whether to go on.

    Raises `typer.BadParameter` where there is no terminal to ask on.
    """
    if yes:
        return True
    if sys.stdin is None or not sys.stdin.isatty():
        raise typer.BadParameter(
            "there is no terminal to ask on; this option skips the question.",
            param_hint="--yes",
        )
    return typer.confirm(printable(question), err=True)


def confirm_or_exit(question: str, *, yes: bool, otherwise: str, err: bool) -> None:
    """Ask as `confirm` does; if the answer is no, print *otherwise* and exit with status 1.

    *err*: print it to stderr.
    """
    if not confirm(question, yes=yes):
        say(otherwise, err=err)
        raise typer.Exit(1)


def say_json(value: object) -> None:
    """Print *value* as JSON; times as ISO 8601, and ASCII only, so that no locale changes it."""
    typer.echo(json.dumps(value, indent=2, default=datetime.isoformat))
