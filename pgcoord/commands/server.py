"""Commands for the database itself: its schema, and the embedded Postgres."""

from typing import Annotated

import typer

from pgcoord.commands.context import (
    connected_to,
    existing_dsn,
    existing_server,
    make_server,
    running_server,
)
from pgcoord.commands.options import Dsn, surroundings_of
from pgcoord.commands.terminal import say


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
    dsn: Dsn = None,
) -> None:
    """Bring the database to the schema of this release."""
    from pgcoord.database import schema

    with connected_to(existing_dsn(ctx, dsn)) as conn:
        disabled = schema.disabled_triggers(conn)
        ran = schema.upgrade(conn, roles=roles)
        enabled = sorted({*disabled} - {*schema.disabled_triggers(conn)})
        name = f"database {conn.info.dbname!r}"
    say(f"{name}: ran {', '.join(ran)}" if ran else f"{name} is up to date")
    if enabled:
        triggers = (
            "a trigger that was" if len(enabled) == 1 else f"{len(enabled)} triggers that were"
        )
        say(f"pgcoord: enabled {triggers} disabled: {', '.join(enabled)}", err=True)


def start(ctx: typer.Context) -> None:
    """Start it.

    Where there is none here or above, it is made in the current folder.
    """
    server = make_server(surroundings_of(ctx))
    say(f"the embedded Postgres in {server.state} runs: {server.dsn}")


def stop(ctx: typer.Context) -> None:
    """Stop it.

    Phases that run go on, and are taken over when a coordinator runs again.
    """
    server = existing_server(surroundings_of(ctx))
    how = "is stopped" if server.stop() else "was stopped already"
    say(f"the embedded Postgres in {server.state} {how}")


def status(ctx: typer.Context) -> None:
    """Say whether it runs, and how to connect to it."""
    server = running_server(surroundings_of(ctx))
    say(f"the embedded Postgres in {server.state} runs: {server.dsn}")
