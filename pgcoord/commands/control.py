"""Commands that change what is in the database: a line says what is the case afterwards."""

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from pgcoord.commands.context import act, find_phase
from pgcoord.commands.options import HIGHEST_ID, Dsn, FeatureOrAll, Phase, Reason
from pgcoord.duration import parse_duration

if TYPE_CHECKING:
    from pgcoord.database._sql import Connection


def register(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    for command in (retry, skip, cancel, pause, resume, slots, priority, prune):
        app.command()(command)


def _parse_age(text: str) -> timedelta:
    try:
        return parse_duration(text, zero=True)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def retry(ctx: typer.Context, phase: Phase, reason: Reason = None, dsn: Dsn = None) -> None:
    """Queue a failed or cancelled phase again, with all its attempts."""
    from pgcoord.database import actions, reads

    async def change(conn: "Connection") -> str:
        queue_id = await find_phase(conn, phase)
        status = await actions.retry_phase(conn, queue_id, reason)
        waits = await reads.why(conn, queue_id) if status in ("queued", "blocked") else []
        return f"{queue_id} is {status}" + "".join(f": {each.words}" for each in waits[:1])

    act(ctx, dsn, change)


def skip(ctx: typer.Context, phase: Phase, reason: Reason = None, dsn: Dsn = None) -> None:
    """Take a phase as completed without running it."""
    from pgcoord.database import actions

    async def change(conn: "Connection") -> str:
        queue_id = await find_phase(conn, phase)
        status = await actions.skip_phase(conn, queue_id, reason)
        return f"{queue_id} is {status}: what depends on it goes on"

    act(ctx, dsn, change)


def cancel(
    ctx: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="PHASE|FEATURE",
            help="A phase (queue-104-2 or 104.2), or a feature by its number alone (104).",
        ),
    ],
    reason: Reason = None,
    dsn: Dsn = None,
) -> None:
    """Give up a phase, or a whole feature; what runs is ended."""
    number = int(target) if target.isascii() and target.isdecimal() else None
    if number is not None and not 1 <= number <= HIGHEST_ID:
        raise typer.BadParameter(f"{target} is no number of a feature.", param_hint="PHASE|FEATURE")

    async def change(conn: "Connection") -> str:
        if number is not None:
            return await _cancel_feature(conn, number, reason)
        return await _cancel_phase(conn, await find_phase(conn, target), reason)

    act(ctx, dsn, change)


async def _cancel_phase(conn: "Connection", queue_id: str, reason: str | None) -> str:
    from pgcoord.database import actions

    status = await actions.cancel_phase(conn, queue_id, reason)
    if status not in ("ready", "running"):
        return f"{queue_id} is {status}"
    line = f"{queue_id} is being cancelled: its process is ended first"
    return line + await _unless_led(conn, ", once a coordinator runs ('pgcoord serve')")


async def _cancel_feature(conn: "Connection", number: int, reason: str | None) -> str:
    from pgcoord.database import actions, reads

    given_up = await actions.cancel_feature(conn, number, reason)
    running = (await reads.feature(conn, number)).phases_running
    line = f"feature {number} is cancelled: {_count(given_up, 'phase')} given up"
    if not running:
        return line
    line += f", of which {_count(running, 'process', 'processes')} must be ended first"
    return line + await _unless_led(conn, ", once a coordinator runs ('pgcoord serve')")


def pause(
    ctx: typer.Context, feature: FeatureOrAll = None, reason: Reason = None, dsn: Dsn = None
) -> None:
    """Start nothing new, of one feature or of all; what runs goes on."""
    from pgcoord.database import actions

    async def change(conn: "Connection") -> str:
        await actions.pause(conn, feature, reason)
        return f"{_name(feature)} is paused: nothing new starts, what runs goes on"

    act(ctx, dsn, change)


def resume(ctx: typer.Context, feature: FeatureOrAll = None, dsn: Dsn = None) -> None:
    """Start again what was paused.

    Features that were paused by themselves stay so until they are named.
    """
    from pgcoord.database import actions, reads

    async def change(conn: "Connection") -> str:
        await actions.resume(conn, feature)
        if feature is not None and await reads.paused(conn):
            return f"feature {feature} is resumed, but everything is paused: 'pgcoord resume'"
        return f"{_name(feature)} is resumed" + await _unless_led(
            conn, "; no coordinator runs: 'pgcoord serve' starts one"
        )

    act(ctx, dsn, change)


def slots(
    ctx: typer.Context,
    number: Annotated[
        int | None,
        typer.Argument(
            metavar="N", min=0, max=1000, help="How many phases may run at once from now on."
        ),
    ] = None,
    dsn: Dsn = None,
) -> None:
    """Show, or set, how many phases run at once.

    Setting fewer ends none: those beyond the limit run to their end.
    """
    from pgcoord.database import actions, reads

    async def change(conn: "Connection") -> str:
        if number is not None:
            await actions.set_slots(conn, number)
        found = await reads.slots(conn)
        draining = [each.queue_id or "" for each in found if each.draining]
        held = sum(each.queue_id is not None for each in found)
        line = f"{_count(len(found) - len(draining), 'slot')}, {held - len(draining)} held"
        return f"{line}; {', '.join(draining)} runs to its end beyond them" if draining else line

    act(ctx, dsn, change)


def priority(
    ctx: typer.Context,
    phase: Phase,
    number: Annotated[
        int,
        typer.Argument(
            metavar="N", min=0, max=100, help="10 is urgent, 50 usual, 90 background work."
        ),
    ],
    dsn: Dsn = None,
) -> None:
    """Change the place in line of a phase: lower runs earlier."""
    from pgcoord.database import actions

    async def change(conn: "Connection") -> str:
        queue_id = await find_phase(conn, phase)
        await actions.set_priority(conn, queue_id, number)
        return f"{queue_id} has priority {number}"

    act(ctx, dsn, change)


def prune(
    ctx: typer.Context,
    older_than: Annotated[
        timedelta,
        typer.Argument(
            metavar="AGE",
            parser=_parse_age,
            help='How long ago they were finished at least: "30d", "12h", 0 for all.',
        ),
    ],
    dsn: Dsn = None,
) -> None:
    """Remove finished features, completed or cancelled, with all their history.

    A feature with a failed phase is not finished until it is cancelled.
    """
    from pgcoord.database import actions

    async def change(conn: "Connection") -> str:
        return f"{_count(await actions.prune(conn, older_than), 'feature')} removed"

    act(ctx, dsn, change)


async def _unless_led(conn: "Connection", words: str) -> str:
    from pgcoord.database import reads

    return "" if await reads.leader(conn) else words


def _name(feature: int | None) -> str:
    return "everything" if feature is None else f"feature {feature}"


def _count(number: int, noun: str, nouns: str | None = None) -> str:
    return f"{number} {noun if number == 1 else nouns or f'{noun}s'}"
