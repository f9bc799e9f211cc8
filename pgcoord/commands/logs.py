"""The command that prints what a phase writes: logs."""

import os
import shutil
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from pgcoord.commands.options import Dsn, Phase, surroundings_of
from pgcoord.commands.place import complete, existing_dsn, find_phase, session
from pgcoord.errors import CannotStart, NotFound, Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgcoord.queries import Attempt

_BLOCK = 64 * 1024  # bytes read at once while the last lines of a log are looked for


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
    path = complete(found, _find(ctx, found, phase, number))
    with open_log(path) as log:
        if lines is not None:
            seek_last_lines(log, lines)
        sys.stdout.flush()
        shutil.copyfileobj(log, sys.stdout.buffer)


async def _find(ctx: typer.Context, dsn: str, phase: str, number: int | None) -> Path:
    from pgcoord import queries

    async with session(surroundings_of(ctx), dsn) as conn:
        queue_id = await find_phase(conn, phase)
        attempts = await queries.attempts(conn, queue_id)
        if not attempts:
            reasons = await queries.why(conn, queue_id)
            because = f": {reasons[0].words}" if reasons else ""
            raise Refused(f"{queue_id} has not started, so it has no log{because}")
        return log_of(queue_id, attempts, number)


def log_of(queue_id: str, attempts: "Sequence[Attempt]", number: int | None) -> Path:
    """Where the log of an attempt is, on this machine.

    Raises `NotFound` and, when it is elsewhere, `Refused`.
    """
    import socket

    attempt = attempts[-1] if number is None else None
    attempt = attempt or next((each for each in attempts if each.number == number), None)
    if attempt is None:
        last = attempts[-1].number
        raise NotFound(
            f"{queue_id} has no attempt {number}", hint=f"Its latest one is attempt {last}."
        )
    if attempt.folder is None:
        raise Refused(f"{queue_id} was inserted as running: its log is not kept here")
    log = Path(attempt.folder, "log")
    if attempt.host != socket.gethostname():
        raise Refused(
            f"the log of {queue_id}, attempt {attempt.number}, is on {attempt.host}: {log}"
        )
    return log


def open_log(path: Path) -> IO[bytes]:
    """Open a log; raises `NotFound` or `CannotStart` when it cannot be read."""
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise NotFound(f"nothing was written to {path}, or it was removed") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CannotStart(f"the log {path} cannot be read: {reason}") from error


def seek_last_lines(log: IO[bytes], lines: int) -> None:
    """Go to where the last `lines` lines begin; a last one without an end is one too."""
    end = start = log.seek(0, os.SEEK_END)
    while start and lines:
        size = min(_BLOCK, start)
        start = log.seek(start - size)
        block = log.read(size)
        while lines and (size := block.rfind(b"\n", 0, size)) >= 0:
            # Behind the last line's end no line begins.
            lines -= start + size + 1 < end
        if not lines:
            start += size + 1
    log.seek(start)
