"""Commands for the database itself: its schema, and the embedded Postgres."""

from typing import TYPE_CHECKING, Annotated

import typer

from pgcoord.commands.context import (
    Answer,
    connected_to,
    existing_dsn,
    existing_server,
    make_server,
    running_server,
    tell,
)
from pgcoord.commands.options import AsJson, Dsn, surroundings_of
from pgcoord.commands.terminal import say

if TYPE_CHECKING:
    from pgcoord.database.embedded import EmbeddedPostgres


def register(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    app.command()(upgrade)
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
            help="Make the roles pgcoord_reader, pgcoord_client and pgcoord_coordinator too, and"
            " set what each may; later upgrades keep that right. A login becomes a member of one:"
            " grant pgcoord_client to …",
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
    tell(Answer(words, {"ran": list(ran)}), as_json=as_json)
    if enabled:
        triggers = (
            "a trigger that was" if len(enabled) == 1 else f"{len(enabled)} triggers that were"
        )
        say(f"pgcoord: enabled {triggers} disabled: {', '.join(enabled)}", err=True)


def start(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Start it.

    Where there is none here or above, it is made in the current folder.
    """
    server = make_server(surroundings_of(ctx))
    tell(_running(server), as_json=as_json)


def stop(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Stop it.

    Phases that run go on, and are taken over when a coordinator runs again.
    """
    server = existing_server(surroundings_of(ctx))
    how = "is stopped" if server.stop() else "was stopped already"
    words = f"the embedded Postgres in {server.state} {how}"
    tell(Answer(words, {"state": str(server.state), "running": False}), as_json=as_json)


def status(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Say whether it runs, and how to connect to it."""
    server = running_server(surroundings_of(ctx))
    tell(_running(server), as_json=as_json)


def _running(server: "EmbeddedPostgres") -> Answer:
    words = f"the embedded Postgres in {server.state} runs: {server.dsn}"
    return Answer(words, {"state": str(server.state), "running": True, "dsn": server.dsn})
