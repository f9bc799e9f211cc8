"""The command that prints what a phase writes: logs."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Annotated

import typer

from pgcoord.commands.context import (
    complete,
    existing_dsn,
    find_phase,
    runs_folder_here,
    session,
)
from pgcoord.commands.options import Dsn, PhaseOrFeature, feature_of, surroundings_of
from pgcoord.commands.terminal import say
from pgcoord.errors import NotFound, Refused
from pgcoord.text import printable

if TYPE_CHECKING:
    from pgcoord.database.rows import Attempt
    from pgcoord.runs.logs import Log


_NOT_STARTED = "it has not started, so it has no log"


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command()(logs)


def logs(
    ctx: typer.Context,
    phase: PhaseOrFeature,
    number: Annotated[
        int | None,
        typer.Option(
            "--attempt",
            metavar="N",
            min=1,
            help="The number of the attempt; the latest by default.",
        ),
    ] = None,
    lines: Annotated[
        int | None,
        typer.Option("-n", "--lines", metavar="LINES", min=0, help="Print only the last N lines."),
    ] = None,
    goes_on: Annotated[
        bool,
        typer.Option(
            "-f",
            "--follow",
            help="Print what the process appends, also of further attempts, until the phase has"
            " ended.",
        ),
    ] = False,
    dsn: Dsn = None,
) -> None:
    """Print the output (stdout and stderr) of a phase, or of each phase of a feature.

    The log is on the machine where the phase ran; on another one, the command prints which.
    """
    existing, runs = existing_dsn(ctx, dsn), runs_folder_here(surroundings_of(ctx))
    if feature := feature_of(phase):
        if goes_on or number:
            raise typer.BadParameter(
                f"name one phase of feature {feature}, such as {feature}.1.",
                param_hint="--follow" if goes_on else "--attempt",
            )
        _print_all(complete(existing, _find_all(existing, feature, runs)), lines)
        return
    if goes_on:
        from pgcoord.commands.following import follow_log

        complete(existing, follow_log(surroundings_of(ctx), existing, phase, number, lines))
        return
    _print(complete(existing, _find(existing, phase, number, runs)), lines)


def _print(its_log: "Log", lines: int | None) -> None:
    from pgcoord.runs.logs import seek_last_lines

    with its_log.open_for_people() as log:
        if lines is not None:
            seek_last_lines(log, lines)
        sys.stdout.flush()
        shutil.copyfileobj(log, sys.stdout.buffer)


def _print_all(logs_of_phases: "Sequence[tuple[str, Log | str]]", lines: int | None) -> None:
    """Print each log below a line that names its phase; a str instead says why there is none."""
    for name, log in logs_of_phases:
        say(f"==> {name}")
        try:
            if isinstance(log, str):
                raise Refused(log)
            _print(log, lines)
            say("")
        except (NotFound, Refused) as error:
            say(str(error))


async def _find_all(dsn: str, feature_id: int, runs: Path) -> "Sequence[tuple[str, Log | str]]":
    from pgcoord.database import reads
    from pgcoord.runs.logs import log_of

    logs_of_phases: list[tuple[str, Log | str]] = []
    async with session(dsn) as conn:
        await reads.feature(conn, feature_id)
        for phase in await reads.board(conn, feature_id):
            name = f"{phase.queue_id}: {printable(phase.title)}"
            attempts = await reads.attempts(conn, phase.queue_id)
            if not attempts:
                logs_of_phases.append((name, _NOT_STARTED))
                continue
            try:
                found = log_of(phase.queue_id, attempts, None, host=gethostname(), runs=runs)
            except Refused as error:
                logs_of_phases.append((name, str(error)))
            else:
                logs_of_phases.append((name, _NOT_STARTED if _has_none(*found) else found[1]))
    return logs_of_phases


async def _find(dsn: str, phase: str, number: int | None, runs: Path) -> "Log":
    from pgcoord.database import reads
    from pgcoord.runs.logs import log_of

    async with session(dsn) as conn:
        queue_id = await find_phase(conn, phase)
        attempts = await reads.attempts(conn, queue_id)
        if attempts:
            attempt, log = log_of(queue_id, attempts, number, host=gethostname(), runs=runs)
            if not _has_none(attempt, log):
                return log
            if attempt is not attempts[-1]:
                words = f"{queue_id}, attempt {number}, never started, so it has no log"
                raise Refused(f"{words}: {attempt.error}")
        reasons = await reads.why(conn, queue_id)
        because = f": {reasons[0].words}" if reasons else ""
        raise Refused(f"{queue_id} has not started, so it has no log{because}")


def _has_none(attempt: "Attempt", log: "Log") -> bool:
    """Whether there is no log since *attempt* has not started, such as one that waits in an engine.

    Blocks on I/O.
    """
    return attempt.started_at is None and not log.path.exists()
