"""Commands on schedules: features that are queued regularly."""

from dataclasses import asdict
from datetime import datetime
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgcoord.commands.context import (
    Answer,
    act,
    check_schema,
    complete,
    existing_dsn,
    make_context,
    print_answer,
    session,
    unless_led,
)
from pgcoord.commands.options import (
    HIGHEST_ID,
    AsJson,
    Config,
    DryRun,
    Dsn,
    Reason,
    Yes,
    surroundings_of,
)
from pgcoord.commands.terminal import confirm_or_exit, say
from pgcoord.commands.work import Parameters, configuration_here, read_plan_file
from pgcoord.errors import InvalidInput
from pgcoord.text import counted, printable

if TYPE_CHECKING:
    from pgcoord.database._sql import Connection
    from pgcoord.database.schedules import Run, Schedule


def register(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    group = typer.Typer(
        help="Schedules, which queue a feature regularly: create, list, show, run, pause …",
        no_args_is_help=True,
    )
    group.command("list")(list_)
    for command in (create, show, change, run, pause, resume, delete):
        group.command()(command)
    app.add_typer(group, name="schedule")


class Overlap(StrEnum):
    """What a schedule does when it is due and its last run has not ended."""

    SKIP = "skip"
    QUEUE = "queue"
    START = "start"


class Missed(StrEnum):
    """What a schedule does about due times at which no coordinator ran."""

    RUN = "run"
    SKIP = "skip"


_Name = Annotated[str, typer.Argument(metavar="NAME", help="The name of the schedule.")]
_CRON = (
    "The times, as in a crontab: minute, hour, day of the month, month, day of the week;"
    ' "0 3 * * *" is every night at three.'
)
_Plan = Annotated[
    Path | None,
    typer.Argument(metavar="PLAN", help="The plan to queue, a Markdown file; - is standard input."),
]
_Feature = Annotated[
    int | None,
    typer.Option(
        "--feature",
        metavar="N",
        min=1,
        max=HIGHEST_ID,
        help="Queue copies of feature N instead of a plan.",
    ),
]
_Timezone = Annotated[
    str | None,
    typer.Option(metavar="ZONE", help="The time zone, such as Europe/Berlin; by default yours."),
]
_Overlap = Annotated[
    Overlap | None,
    typer.Option(
        help="While its last run has not ended: skip that time (the default), queue one for its"
        " end,"
        " or start another beside it."
    ),
]
_Missed = Annotated[
    Missed | None,
    typer.Option(
        help="For times at which no coordinator ran: run once for all of them (the default), or"
        " skip them."
    ),
]


def create(
    ctx: typer.Context,
    name: _Name,
    cron: Annotated[str, typer.Argument(metavar="CRON", help=_CRON)],
    plan: _Plan = None,
    feature: _Feature = None,
    timezone: _Timezone = None,
    overlap: _Overlap = None,
    missed: _Missed = None,
    parameters: Parameters = None,
    as_json: AsJson = False,
    config: Config = None,
    dsn: Dsn = None,
) -> None:
    """Queue a plan, or a copy of a feature, regularly.

    The plan is stored as it is now: a later change of the file changes nothing, until 'pgcoord
    schedule change NAME --plan FILE'.
    """
    if (plan is None) == (feature is None):
        raise typer.BadParameter("give a plan, or --feature with a number.", param_hint="PLAN")
    work = None if plan is None else _read(ctx, plan, config, parameters)
    if dsn is None:
        context = make_context(surroundings_of(ctx), dsn)
        check_schema(context.dsn)
        dsn = context.dsn

    async def add(conn: "Connection") -> Answer:
        from pgcoord.database import schedules

        stored = await schedules.feature_plan(conn, feature) if feature is not None else work
        await schedules.add_schedule(
            conn, name, cron, stored, timezone=timezone, overlap=overlap, missed=missed
        )
        return await _changed(conn, name, "is created")

    act(ctx, dsn or None, add, as_json=as_json)


def change(
    ctx: typer.Context,
    name: _Name,
    cron: Annotated[str | None, typer.Option(metavar="CRON", help=_CRON)] = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE", help="The plan to queue from now on.")
    ] = None,
    feature: _Feature = None,
    timezone: _Timezone = None,
    overlap: _Overlap = None,
    missed: _Missed = None,
    parameters: Parameters = None,
    as_json: AsJson = False,
    config: Config = None,
    dsn: Dsn = None,
) -> None:
    """Change a schedule; features that it has queued do not change."""
    if plan is not None and feature is not None:
        raise typer.BadParameter("give a plan or a feature, not both.", param_hint="--feature")
    changes: dict[str, object] = {
        "cron": cron,
        "timezone": timezone,
        "overlap": overlap,
        "missed": missed,
        "feature": None if plan is None else _read(ctx, plan, config, parameters),
    }

    async def store(conn: "Connection") -> Answer:
        from pgcoord.database import schedules

        if feature is not None:
            changes["feature"] = await schedules.feature_plan(conn, feature)
        changed = {key: value for key, value in changes.items() if value is not None}
        if not changed:
            raise InvalidInput(
                f"nothing to change of schedule {name} was given",
                hint="Give --cron, --timezone, --plan, --feature, --overlap or --missed.",
            )
        await schedules.change_schedule(conn, name, changed)
        return await _changed(conn, name, "is changed")

    act(ctx, dsn, store, as_json=as_json)


def list_(ctx: typer.Context, as_json: AsJson = False, dsn: Dsn = None) -> None:
    """List the schedules, each with its next due time and the result of its last run."""

    async def read(conn: "Connection") -> Answer:
        from pgcoord.database import schedules

        rows = await schedules.schedules(conn)
        lines = [line for each in rows for line in _lines(each)]
        none = "no schedules: 'pgcoord schedule create' makes one"
        return Answer("\n".join(lines) or none, [asdict(each) for each in rows])

    act(ctx, dsn, read, as_json=as_json)


def show(
    ctx: typer.Context,
    name: _Name,
    times: Annotated[
        int,
        typer.Option("--next", metavar="N", min=0, max=100, help="The number of times to show."),
    ] = 5,
    as_json: AsJson = False,
    dsn: Dsn = None,
) -> None:
    """Show a schedule: its next due times, and the results of the last ones."""

    async def read(conn: "Connection") -> Answer:
        from pgcoord.database import reads, schedules

        row = await schedules.schedule(conn, name)
        following = _following(row, await reads.now(conn), times)
        runs = await schedules.runs(conn, name)
        lines = [
            *_lines(row),
            *(f"  due {row.clock(each)}" for each in following),
            *(f"  was {_run_in_words(row, each)}" for each in runs[:10]),
        ]
        value = {**asdict(row), "next": following, "runs": [asdict(each) for each in runs]}
        return Answer("\n".join(lines), value)

    act(ctx, dsn, read, as_json=as_json)


def run(ctx: typer.Context, name: _Name, as_json: AsJson = False, dsn: Dsn = None) -> None:
    """Queue the feature of a schedule now, even if its last run has not ended."""

    async def queue(conn: "Connection") -> Answer:
        from pgcoord.database import schedules

        feature_id = await schedules.run_schedule(conn, name)
        waits = await unless_led(conn, "; no coordinator runs: 'pgcoord serve'")
        words = f"schedule {name} is run now, as feature {feature_id}{waits}"
        return Answer(words, {"schedule": name, "feature_id": feature_id})

    act(ctx, dsn, queue, as_json=as_json)


def pause(
    ctx: typer.Context,
    name: _Name,
    reason: Reason = None,
    as_json: AsJson = False,
    dsn: Dsn = None,
) -> None:
    """Pause a schedule: it starts nothing until it is resumed; features that it has queued
    continue."""

    async def store(conn: "Connection") -> Answer:
        from pgcoord.database import schedules

        await schedules.pause_schedule(conn, name, reason)
        return await _changed(conn, name, "is paused")

    act(ctx, dsn, store, as_json=as_json)


def resume(ctx: typer.Context, name: _Name, as_json: AsJson = False, dsn: Dsn = None) -> None:
    """Resume a schedule, from its next due time on; times during the pause do not count as
    missed."""

    async def store(conn: "Connection") -> Answer:
        from pgcoord.database import schedules

        was = await schedules.resume_schedule(conn, name)
        return await _changed(conn, name, "is resumed" if was else "was not paused")

    act(ctx, dsn, store, as_json=as_json)


def delete(
    ctx: typer.Context,
    name: _Name,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
    dsn: Dsn = None,
) -> None:
    """Delete a schedule, which is shown first; the features that it has queued stay."""
    existing = existing_dsn(ctx, dsn)

    async def look() -> list[str]:
        from pgcoord.database import schedules

        async with session(existing) as conn:
            return _lines(await schedules.schedule(conn, name))

    for line in complete(existing, look()):
        say(line, err=as_json)
    if dry_run:
        members = {"schedule": name, "deleted": False}
        print_answer(Answer(f"schedule {name} would be deleted", members), as_json=as_json)
        return
    confirm_or_exit(
        f"Delete schedule {name} permanently?", yes=yes, otherwise="nothing is deleted", err=as_json
    )

    async def remove(conn: "Connection") -> Answer:
        from pgcoord.database import schedules

        await schedules.delete_schedule(conn, name)
        return Answer(f"schedule {name} is deleted", {"schedule": name, "deleted": True})

    act(ctx, dsn, remove, as_json=as_json)


def _read(
    ctx: typer.Context, plan: Path, config: Path | None, parameters: list[str] | None
) -> dict[str, Any]:
    configuration = configuration_here(surroundings_of(ctx), config)
    return dict(read_plan_file(plan, configuration, None, parameters).feature())


async def _changed(conn: "Connection", name: str, words: str) -> Answer:
    """Return the answer of a command that has changed a schedule: what it did, and what is next."""
    from pgcoord.database import reads, schedules

    row = await schedules.schedule(conn, name)
    line = f"schedule {name} {words}"
    if row.paused_at is None and row.error is None:
        following = _following(row, await reads.now(conn), 1)
        line += "".join(f": next {row.clock(each)}" for each in following)
        line += await unless_led(conn, "; no coordinator runs: 'pgcoord serve' starts it then")
    return Answer(line, asdict(row))


def _following(schedule: "Schedule", now: datetime, count: int) -> list[datetime]:
    """Return the next *count* due times. Raises `InvalidInput` for one that is never due."""
    from pgcoord.configuration.cron import NeverDue, due_times

    try:
        return list(islice(due_times(schedule.cron, schedule.timezone, now), count))
    except NeverDue as error:
        raise InvalidInput(
            f"schedule {schedule.name}: {error}", hint="Five fields, as in a crontab: 0 3 * * *."
        ) from error


def _lines(schedule: "Schedule") -> list[str]:
    phases = counted(schedule.phases, "phase")
    lines = [
        f"{schedule.name}: {schedule.cron} ({schedule.timezone}), {schedule.words}",
        f"  queues {schedule.title}, {phases}; {schedule.origin}",
    ]
    if schedule.last_words:
        lines.append(f"  last: {schedule.last_words}")
    return [printable(each) for each in lines]


def _run_in_words(schedule: "Schedule", run: "Run") -> str:
    feature = f" as feature {run.feature_id}" if run.feature_id else ""
    because = f": {run.reason}" if run.reason else ""
    return printable(f"{schedule.clock(run.due_at)}, {run.outcome}{feature}{because}")
