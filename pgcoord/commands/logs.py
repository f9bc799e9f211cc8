"""The command that prints what a phase writes: logs."""

import shutil
import sys
from socket import gethostname
from typing import TYPE_CHECKING, Annotated

import typer

from pgcoord.commands.context import complete, existing_dsn, find_phase, session
from pgcoord.commands.options import Dsn, Phase, surroundings_of
from pgcoord.errors import Refused

if TYPE_CHECKING:
    from pgcoord.runs.logs import Log


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(logs)


def logs(
    ctx: typer.Context,
    phase: Phase,
    number: Annotated[
        int | None,
        typer.Option("--attempt", metavar="N", min=1, help="Which attempt; else the latest."),
    ] = None,
    lines: Annotated[
        int | None,
        typer.Option("-n", "--lines", metavar="LINES", min=0, help="Only the last so many lines."),
    ] = None,
    goes_on: Annotated[
        bool,
        typer.Option(
            "-f",
            "--follow",
            help="Go on with what is added, through further attempts, until the phase has ended.",
        ),
    ] = False,
    dsn: Dsn = None,
) -> None:
    """Print what a phase has written to stdout and stderr.

    Only on the machine where it runs; elsewhere it says where that is.
    """
    found = existing_dsn(ctx, dsn)
    if goes_on:
        from pgcoord.commands.following import follow_log

        complete(found, follow_log(surroundings_of(ctx), found, phase, number, lines))
        return
    from pgcoord.runs.logs import seek_last_lines

    found_log = complete(found, _find(ctx, found, phase, number))
    with found_log.open_for_people() as log:
        if lines is not None:
            seek_last_lines(log, lines)
        sys.stdout.flush()
        shutil.copyfileobj(log, sys.stdout.buffer)


async def _find(ctx: typer.Context, dsn: str, phase: str, number: int | None) -> "Log":
    from pgcoord.database import reads
    from pgcoord.runs.logs import log_of

    async with session(dsn) as conn:
        queue_id = await find_phase(conn, phase)
        attempts = await reads.attempts(conn, queue_id)
        if not attempts:
            reasons = await reads.why(conn, queue_id)
            because = f": {reasons[0].words}" if reasons else ""
            raise Refused(f"{queue_id} has not started, so it has no log{because}")
        return log_of(queue_id, attempts, number, host=gethostname())[1]
