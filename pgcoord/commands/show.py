"""Commands that only read the database: status, why, result."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgcoord.commands.context import Answer, act, complete, existing_dsn, find_phase, session
from pgcoord.commands.options import AsJson, Dsn, FeatureOrAll
from pgcoord.commands.terminal import say_json
from pgcoord.text import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pgcoord.commands.progress import Snapshot
    from pgcoord.database._sql import Connection
    from pgcoord.database.rows import Cost, LeadBlocker, Leader, Pool, Reason, Slot
    from pgcoord.database.schedules import Refused, Schedule, Why


def register(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    app.command(epilog=_JSON)(status)
    app.command()(why)
    app.command()(result)


# The most free slots of a pool that `status` names by their numbers.
_FREE_BY_NUMBER = 5

_JSON = """--json prints {"slots": […], "paused_at", "coordinator", "lead_blocker", "features": […],
"schedules": […], "refused_schedules": […]}

A slot: slot, draining, queue_id, title, status, since, pool, launcher, job, node, waits_for. The
coordinator: epoch, host, pid, version, lead_at; null when none leads. The lead_blocker: words,
remedy; null unless a session that is not a coordinator holds the lock of the lead. A feature: id,
title, status, total_phases, phases_completed, phases_running, phases_failed, phases_blocked,
paused_at, cost_usd, tokens_in, tokens_out, max_cost_usd, costs (by workflow: workflow, attempts,
cost_usd, tokens_in, tokens_out), phases. A phase: queue_id, feature_id, phase_number, title,
status, slot, attempt, priority, depends_on_phases, error_message, since, started_timestamp,
finished_timestamp, waiting_for, result, skipped. A schedule: as 'pgcoord schedule list --json'.
A refused one of pgcoord.toml: name, error, at.

Times are ISO 8601 with their offset, or null. Later releases may add keys."""


@dataclass(frozen=True)
class _Status:
    """What `status` prints: slots, coordinator, features and costs, read at one moment.

    *unwatched*: since when no coordinator runs, in words; None while one leads. *costs* is empty
    unless read for --json.
    """

    pools: "Sequence[Pool]"
    slots: "Sequence[Slot]"
    paused_at: datetime | None
    coordinator: "Leader | None"
    lead_blocker: "LeadBlocker | None"
    unwatched: str | None
    features: "Sequence[Snapshot]"
    costs: "Sequence[Cost]"
    schedules: "Sequence[Schedule]"
    refused_schedules: "Sequence[Refused]"

    def as_json(self) -> dict[str, Any]:
        """Return the object that `status --json` prints; its keys are listed in `_JSON`."""
        return {
            "slots": [asdict(slot) for slot in self.slots],
            "paused_at": self.paused_at,
            "coordinator": self.coordinator and asdict(self.coordinator),
            "lead_blocker": self.lead_blocker and asdict(self.lead_blocker),
            "features": [
                {
                    **each.as_json(),
                    "costs": [
                        {key: value for key, value in asdict(cost).items() if key != "feature_id"}
                        for cost in self.costs
                        if cost.feature_id == each.feature.id
                    ],
                }
                for each in self.features
            ],
            "schedules": [asdict(each) for each in self.schedules],
            "refused_schedules": [asdict(each) for each in self.refused_schedules],
        }


async def _read(conn: "Connection", feature: int | None, finished: bool, *, costs: bool) -> _Status:
    from pgcoord.commands.progress import Snapshot, read_snapshot
    from pgcoord.database import reads, schedules

    if feature is not None:
        features = [await read_snapshot(conn, feature)]
    else:
        features = [
            Snapshot(each, await reads.board(conn, each.id), await reads.standstill(conn, each.id))
            for each in await reads.features(conn, unfinished=not finished)
        ]
    leader = await reads.leader(conn)
    blocker = None if leader else await reads.lead_blocker(conn)
    return _Status(
        await reads.pools(conn),
        await reads.slots(conn),
        await reads.paused(conn),
        leader,
        blocker,
        None if leader else await reads.unwatched(conn),
        features,
        await reads.costs(conn, [each.feature.id for each in features]) if costs else (),
        await schedules.schedules(conn) if feature is None else (),
        await schedules.refused(conn) if feature is None else (),
    )


def status(
    ctx: typer.Context,
    feature: FeatureOrAll = None,
    finished: Annotated[
        bool, typer.Option("--all", help="Show finished features as well.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show changes live, until Ctrl-C.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object, described below.")
    ] = False,
    dsn: Dsn = None,
) -> None:
    """Show the slots, and each unfinished feature with its phases.

    With a number, show only that feature.
    """
    if watch:
        from pgcoord.commands.progress import is_terminal

        if as_json or not is_terminal():
            raise typer.BadParameter(
                "expected on a terminal that can redraw lines, without --json.",
                param_hint="--watch",
            )
    existing = existing_dsn(ctx, dsn)

    async def read(conn: "Connection") -> _Status:
        return await _read(conn, feature, finished, costs=as_json)

    async def once() -> _Status:
        async with session(existing) as conn:
            return await read(conn)

    if watch:
        complete(existing, _watch(existing, read))
        return
    current = complete(existing, once())
    if as_json:
        say_json(current.as_json())
        return
    from pgcoord.commands.progress import console

    console().print(_shown(current, in_full=feature is not None))


async def _watch(dsn: str, read: Any) -> None:
    from contextlib import aclosing

    from pgcoord.commands.progress import follow, live

    latest: list[_Status] = []
    with live(lambda: _shown(latest[0]) if latest else "") as drawn:
        async with aclosing(follow(dsn, read)) as readings:
            async for current in readings:
                latest[:] = [current]
                drawn.refresh()


def _shown(current: _Status, *, in_full: bool = False) -> "RenderableType":
    from rich.console import Group

    from pgcoord.commands.progress import feature_line, feature_tree

    trees = [
        feature_tree(each)
        if in_full or each.feature.status in ("planned", "in_progress")
        else feature_line(each.feature)
        for each in current.features
    ]
    return (
        Group(*_header(current), *trees)
        if trees
        else Group(*_header(current), "no unfinished features")
    )


def _at(slot: "Slot") -> str:
    """Return " (on NODE, job ID)" for an engine's job, as far as known; "" for a local process."""
    words = [f"on {slot.node}"] if slot.node else []
    words += [f"job {slot.job}"] if slot.job else []
    return f" ({printable(', '.join(words))})" if words else ""


def _header(current: _Status) -> list[Any]:
    from rich.text import Text

    # Slots are cut at the width of the terminal; advice is wrapped.
    lines = [Text(line, no_wrap=True, overflow="ellipsis") for line in _slots(current)]
    if current.unwatched:
        goes_on = "this is the last known state; 'pgcoord serve' continues"
        lines.insert(0, Text(f"{printable(current.unwatched)}: {goes_on}"))
    sentences = [*_coordinator(current), *_schedules(current)]
    return [*lines, *map(Text, sentences)]


def _slots(current: _Status) -> Iterator[str]:
    for pool in current.pools:
        shown = [each for each in current.slots if each.pool == pool.pool]
        free = sum(each.queue_id is None for each in shown)
        if free > _FREE_BY_NUMBER:
            shown = [each for each in shown if each.queue_id is not None]
        slots = [f"{each.slot} {printable(each.queue_id or 'free')}{_at(each)}" for each in shown]
        if free > _FREE_BY_NUMBER:
            slots.append(f"{free} free")
        name = "slots"
        if pool.pool != "local":
            name = f"pool {pool.pool} ({printable(pool.launcher)})"
        yield f"{name}: {', '.join(slots) or 'none'}"


def _coordinator(current: _Status) -> Iterator[str]:
    leads = current.coordinator
    if leads:
        since = _time(leads.lead_at)
        yield f"coordinator: process {leads.pid} on {printable(leads.host)}, since {since}"
    elif current.lead_blocker:
        yield f"coordinator: none leads: {printable(current.lead_blocker.words)}"
        yield f"  end it: {printable(current.lead_blocker.remedy)}"
    elif current.unwatched is None:
        yield "coordinator: none runs ('pgcoord serve' starts one)"
    if current.paused_at:
        since = _time(current.paused_at)
        yield f"everything is paused since {since} ('pgcoord resume')"


def _schedules(current: _Status) -> Iterator[str]:
    for each in current.schedules:
        origin = f" ({each.origin})" if each.declared else ""
        yield f"schedule {each.name}: {printable(each.words)}{origin}"
    for refused in current.refused_schedules:
        name, error = printable(refused.name), printable(refused.error)
        yield f"schedule {name} of pgcoord.toml is not stored: {error}"


def _time(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S %Z}"


def result(
    ctx: typer.Context,
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="A phase, or a feature for all of its phases."),
    ],
    dsn: Dsn = None,
) -> None:
    """Print the result of a phase's latest attempt as JSON, or those of a feature by phase.

    A phase writes its result, a JSON object, to PGCOORD_RESULT_FILE.
    """
    from pgcoord.database import reads
    from pgcoord.errors import NotFound

    async def ask(conn: "Connection") -> Any:
        if target.isascii() and target.isdecimal() and len(target) <= 10:
            return await reads.results_of_feature(conn, int(target))
        queue_id = await find_phase(conn, target)
        stored = (await reads.phase_object(conn, queue_id))["result"]
        if stored is None:
            raise NotFound(f"phase {queue_id} has no result")
        return stored

    async def once() -> Any:
        async with session(existing) as conn:
            return await ask(conn)

    existing = existing_dsn(ctx, dsn)
    say_json(complete(existing, once()))


def why(
    ctx: typer.Context,
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="A phase, such as 104.2, or the name of a schedule."),
    ],
    as_json: AsJson = False,
    dsn: Dsn = None,
) -> None:
    """Print why a phase is in its state, or when a schedule runs and why it did not.

    A line for each reason, the most decisive one first.
    """
    from pgcoord.database import reads
    from pgcoord.errors import NotFound

    async def reasons_of(conn: "Connection") -> "Sequence[Reason | Why]":
        try:
            queue_id = await find_phase(conn, target)
        except NotFound:
            from pgcoord.database import schedules

            with suppress(NotFound):
                async with conn.transaction():  # of a connection that is used afterwards
                    return await schedules.why_schedule(conn, target)
            raise
        return await reads.why(conn, queue_id)

    async def ask(conn: "Connection") -> Answer:
        reasons = await reasons_of(conn)
        return Answer("\n".join(each.words for each in reasons), [asdict(each) for each in reasons])

    act(ctx, dsn, ask, as_json=as_json)
