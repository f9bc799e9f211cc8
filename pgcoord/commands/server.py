"""Commands for the database itself: its schema, and the embedded Postgres."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgcoord.commands.context import (
    STATE,
    Answer,
    connected_to,
    existing_dsn,
    existing_server,
    make_server,
    named_dsn,
    print_answer,
    running_server,
)
from pgcoord.commands.options import AsJson, Dsn, Surroundings, Yes, surroundings_of
from pgcoord.commands.terminal import confirm_or_exit, say
from pgcoord.errors import CannotStart, InvalidInput, Refused

if TYPE_CHECKING:
    from pgcoord.database.embedded import EmbeddedPostgres


def register(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    app.command()(upgrade)
    app.command()(dump)
    app.command()(restore)
    embedded = typer.Typer(
        help="The embedded Postgres in .pgcoord/: start, stop, status.", no_args_is_help=True
    )
    for command in (start, stop, status):
        embedded.command()(command)
    app.add_typer(embedded, name="db")


def upgrade(
    ctx: typer.Context,
    roles: Annotated[
        bool,
        typer.Option(
            "--roles",
            help="Also create the roles pgcoord_reader, pgcoord_client and pgcoord_coordinator,"
            " and grant their rights; later upgrades maintain them. Make a login a member of"
            " one: grant pgcoord_client to …",
        ),
    ] = False,
    as_json: AsJson = False,
    dsn: Dsn = None,
) -> None:
    """Bring the database to the schema of this release."""
    from pgcoord.database import schema

    with connected_to(existing_dsn(ctx, dsn)) as conn:
        disabled = schema.disabled_triggers(conn)
        ran = schema.upgrade(conn, roles=roles)
        enabled = sorted({*disabled} - {*schema.disabled_triggers(conn)})
        name = f"database {conn.info.dbname!r}"
    words = f"{name}: ran {', '.join(ran)}" if ran else f"{name} is up to date"
    print_answer(Answer(words, {"ran": list(ran)}), as_json=as_json)
    if enabled:
        triggers = (
            "a trigger that was" if len(enabled) == 1 else f"{len(enabled)} triggers that were"
        )
        say(f"pgcoord: enabled {triggers} disabled: {', '.join(enabled)}", err=True)


def dump(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")],
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Write the embedded database to a file, also while phases run.

    The file has the whole database as of one moment. Logs, prompts and results of runs are files in
    .pgcoord/runs: copy these separately.
    """
    surroundings = surroundings_of(ctx)
    _refuse_another(surroundings, "pg_dump --format=custom")
    server = running_server(surroundings)
    target = surroundings.folder / file
    if target.exists():
        question = f"{file} exists. Overwrite it?"
        confirm_or_exit(question, yes=yes, otherwise="nothing is written", err=as_json)
    if not target.parent.is_dir():
        raise CannotStart(f"there is no folder {target.parent}")
    server.dump(target)
    size = target.stat().st_size
    words = f"wrote {file}, {size / 1000:,.0f} kB"
    print_answer(Answer(words, {"file": str(target), "bytes": size}), as_json=as_json)


def restore(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file written by 'pgcoord dump'.")],
    as_json: AsJson = False,
) -> None:
    """Create an embedded database from a dump in this folder, which may have none with work in it.

    Never run coordinators on both the restored database and the one that was dumped.
    """
    from pgcoord.database import schema
    from pgcoord.database.embedded import EmbeddedPostgres

    surroundings = surroundings_of(ctx)
    _refuse_another(surroundings, "pg_restore")
    source = surroundings.folder / file
    if not source.is_file():
        raise InvalidInput(f"there is no file {source}")
    with source.open("rb") as opened:
        if opened.read(5) != b"PGDMP":
            raise InvalidInput(f"{file} is not what 'pgcoord dump' writes")
    server = EmbeddedPostgres(surroundings.folder / STATE)
    server.start()
    with connected_to(server.dsn) as conn:
        if conn.execute("select to_regclass('public.phase_queue')").fetchone() != (None,):
            raise Refused(
                f"there is a database of pgcoord in {server.state}: it is left as it is",
                hint="Restore in another folder.",
            )
    server.restore(source)
    with connected_to(server.dsn) as conn:
        ran = schema.upgrade(conn)
    upgraded = f", and upgraded it: ran {', '.join(ran)}" if ran else ""
    words = f"restored {file} to the embedded Postgres in {server.state}{upgraded}"
    print_answer(Answer(words, {"state": str(server.state), "ran": list(ran)}), as_json=as_json)


def _refuse_another(surroundings: Surroundings, program: str) -> None:
    """Raise `Refused`, with *program* in its hint, if the environment names another database."""
    if named_dsn(surroundings, None) is not None:
        raise Refused(
            "this is for the embedded database, and the environment names another",
            hint=f"For that database, use {program}.",
        )


def start(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Start it. If there is none here or above, create it in the current folder."""
    server = make_server(surroundings_of(ctx))
    print_answer(_running(server), as_json=as_json)


def stop(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Stop it until it is started by hand. Running processes continue.

    A coordinator that runs waits until 'pgcoord db start', and continues then.
    """
    server = existing_server(surroundings_of(ctx))
    how = "is stopped" if server.stop() else "was stopped already"
    words = f"the embedded Postgres in {server.state} {how}"
    print_answer(Answer(words, {"state": str(server.state), "running": False}), as_json=as_json)


def status(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Print whether it runs, and how to connect to it."""
    server = running_server(surroundings_of(ctx))
    print_answer(_running(server), as_json=as_json)


def _running(server: "EmbeddedPostgres") -> Answer:
    words = f"the embedded Postgres in {server.state} runs: {server.dsn}"
    return Answer(words, {"state": str(server.state), "running": True, "dsn": server.dsn})
