"""Arguments and options that several commands share, and the environment of the process."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pgcoord import logs
from pgcoord.errors import CannotStart
from pgcoord.messages.json_schema import HIGHEST_INTEGER

HIGHEST_ID = HIGHEST_INTEGER


@dataclass(frozen=True)
class Surroundings:
    """Environment, folder and user of the process; only `main` reads them from the system."""

    environment: Mapping[str, str]
    current_folder: Path | None
    user: str

    @property
    def folder(self) -> Path:
        """The current folder; raises `CannotStart` when it was removed."""
        if self.current_folder is None:
            raise CannotStart(
                "the current folder was removed", hint="This command needs one: change to another."
            )
        return self.current_folder


def surroundings_of(ctx: typer.Context) -> Surroundings:
    """Return the `Surroundings` that `main` stored in the context."""
    surroundings = ctx.find_object(Surroundings)
    assert surroundings is not None
    return surroundings


def feature_of(target: str) -> int | None:
    """Return *target* as the number of a feature; None if it is not all digits, so names a phase.

    Raises `typer.BadParameter` for a number out of range.
    """
    if not (target.isascii() and target.isdecimal()):
        return None
    if len(target) > 10 or not 1 <= int(target) <= HIGHEST_ID:
        raise typer.BadParameter(
            f"{target} is not the number of a feature.", param_hint="PHASE|FEATURE"
        )
    return int(target)


def _from_root_command(ctx: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
    """Fall back to the option's value before the command's name, if none was given after it."""
    if value is not None or ctx.parent is None:
        return value
    return ctx.find_root().params.get(param.name or "")


Dsn = Annotated[
    str | None,
    typer.Option(
        "--dsn",
        metavar="DSN",
        callback=_from_root_command,
        help="The database; else DATABASE_URL, else libpq's PGHOST, PGDATABASE, PGSERVICE …,"
        " else the embedded Postgres in .pgcoord/, here or above.",
    ),
]

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        callback=_from_root_command,
        help="The configuration; by default pgcoord.toml in this folder or one above.",
    ),
]


class Format(StrEnum):
    """The format of the coordinator's log: lines of text, or one JSON object per line."""

    TEXT = "text"
    JSON = "json"


def _log_as(value: Format) -> Format:
    if value is Format.JSON:
        logs.write_json()
    return value


LogFormat = Annotated[
    Format,
    typer.Option(
        "--log-format",
        callback=_log_as,
        help="The format of the coordinator's log on stderr: lines of text, or one JSON object"
        " per line.",
    ),
]

PlanFile = Annotated[
    Path,
    typer.Argument(metavar="PLAN", help="The plan, a Markdown file; - is standard input."),
]

PlanFileOrNone = Annotated[
    Path | None,
    typer.Argument(metavar="PLAN", help="The plan, a Markdown file; - is standard input."),
]

Phase = Annotated[
    str,
    typer.Argument(metavar="PHASE", help="The queue_id, such as queue-104-2, or 104.2 for short."),
]

FeatureNumber = Annotated[
    int,
    typer.Argument(metavar="FEATURE", min=1, max=HIGHEST_ID, help="The number of a feature."),
]

FeatureOrAll = Annotated[
    int | None,
    typer.Argument(
        metavar="FEATURE",
        min=1,
        max=HIGHEST_ID,
        help="The number of a feature; everything by default.",
        show_default=False,
    ),
]

Yes = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask for confirmation.")]

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be removed, and remove nothing.")
]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

PhaseOrFeature = Annotated[
    str,
    typer.Argument(
        metavar="PHASE|FEATURE",
        help="A phase (queue-104-2 or 104.2), or a feature by its number alone (104).",
    ),
]

Reason = Annotated[
    str | None, typer.Option("--reason", metavar="TEXT", help="The reason, kept in the history.")
]
