"""The command psql, which replaces this process by psql."""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from pgcoord import assets
from pgcoord.commands.context import existing_dsn, named_dsn
from pgcoord.commands.options import Dsn, Surroundings, surroundings_of
from pgcoord.commands.terminal import say
from pgcoord.errors import CannotStart


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    # Options go to psql unchanged, except our own --dsn and --help.
    app.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})(
        psql
    )


def psql(
    ctx: typer.Context,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ARGS]...", help="Options of psql: -c, -f, -A …"),
    ] = None,
    dsn: Dsn = None,
) -> None:
    """Run psql on the database, with the shortcuts :board, :slots, :waiting, :why, :events, :help.

    psql reads ~/.psqlrc after them; -X omits both.
    """
    surroundings = surroundings_of(ctx)
    embedded = named_dsn(surroundings, dsn) is None
    program = _find(embedded)
    environment, conninfo = _environment(surroundings, existing_dsn(ctx, dsn))
    options = [] if conninfo is None else ["-d", conninfo]
    own = surroundings.environment.get("PSQLRC") or Path("~/.psqlrc").expanduser()
    if Path(own).is_file():
        options += ["-v", f"own_psqlrc={own}"]
    if not arguments and sys.stdin is not None and sys.stdin.isatty():
        # A long value wraps within its column, not across the screen.
        options += ["-P", "format=wrapped"]
        say("pgcoord: :board shows the work, :help the other shortcuts", err=True)
    sys.stdout.flush()
    os.execve(program, ["psql", *options, *_with_shortcuts(arguments or [])], environment)


def _with_shortcuts(arguments: list[str]) -> list[str]:
    """Replace `-c :board` by `-f` with that shortcut's file: psql's -c expands no variables."""
    words = list(arguments)
    for index, (option, command) in enumerate(pairwise(arguments)):
        file = assets.SQL / "psql" / f"{command.strip().removeprefix(':')}.sql"
        if option in ("-c", "--command") and command.strip()[:1] == ":" and file.is_file():
            words[index : index + 2] = ["-f", str(file)]
    return words


def _find(embedded: bool) -> str:
    """Return the path of psql: the embedded server's own, or first the system's, built with TLS.

    *embedded*: prefer the former. Raises `CannotStart` if there is none.
    """
    candidates = [_bundled, _on_path] if embedded else [_on_path, _bundled]
    for candidate in candidates:
        for program in candidate():
            return program
    raise CannotStart(
        "no psql: neither on PATH nor with an embedded Postgres",
        hint="Install PostgreSQL's client, or pgcoord with its extra 'embedded'.",
    )


def _on_path() -> Iterator[str]:
    if path := shutil.which("psql"):
        yield path


def _bundled() -> Iterator[str]:
    from pgcoord.database.embedded import find_binaries

    try:
        program = find_binaries().directory / "psql"
    except CannotStart:
        return
    if os.access(program, os.X_OK):
        yield str(program)


def _environment(surroundings: Surroundings, dsn: str) -> tuple[Mapping[str, str], str | None]:
    """Return the environment for psql, with the connection in libpq's variables, and a conninfo.

    Arguments are visible to every user of the machine, so the conninfo has only the parameters for
    which libpq has no variable; None if there are none.
    """
    from psycopg import pq
    from psycopg.conninfo import make_conninfo

    from pgcoord.database.connect import parameters_of

    environment = dict(surroundings.environment)
    environment |= {"PGCOORD_PSQL": str(assets.SQL / "psql"), "PSQLRC": str(assets.SQL / "psqlrc")}
    environment.setdefault("PGAPPNAME", "pgcoord psql")
    parameters = {key: str(value) for key, value in parameters_of(dsn).items()}
    actor = f"{surroundings.user} (psql)".replace("\\", "\\\\").replace(" ", "\\ ")
    options = parameters.get("options", environment.get("PGOPTIONS", ""))
    parameters["options"] = f"{options} -c pgcoord.actor={actor}".strip()
    for option in pq.Conninfo.get_defaults():
        name, variable = option.keyword.decode(), option.envvar
        if variable and name in parameters:
            environment[variable.decode()] = parameters.pop(name)
    return environment, make_conninfo("", **parameters) if parameters else None
