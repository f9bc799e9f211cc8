"""Prints for people: what clients wrote moves no cursor, sets no title, colours nothing."""

import json
from datetime import datetime

import typer

from pgcoord.text import printable


def say(text: str, *, err: bool = False) -> None:
    """Print `text` to stdout, or to stderr with `err`, with its control characters escaped."""
    typer.echo(printable(text), err=err)


def say_json(value: object) -> None:
    """Print `value` as JSON; times as ISO 8601, and ASCII only, so that no locale changes it."""
    typer.echo(json.dumps(value, indent=2, default=datetime.isoformat))
