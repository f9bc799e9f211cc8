"""Statements of the leading coordinator about schedules: declare, plan and start them.

The one rule: one Python function for each SQL function; each refuses a coordinator whose
lead is over.
"""

from datetime import datetime

from psycopg.types.json import Jsonb

from pgcoord.database._record import Record
from pgcoord.database._sql import Connection, columns_of, fetch_row, fetch_rows, fetch_value
from pgcoord.database.schedules import Run


class ToDo(Record):
    """A schedule that is due since `next_at`; None for one of which that is to be computed.

    `now` is the time of the database.
    """

    name: str
    cron: str
    timezone: str
    next_at: datetime | None
    now: datetime


class Undeclared(Record):
    """A schedule of the configuration that could not be stored, and why."""

    name: str
    error: str


class Rest(Record):
    """Seconds until the next schedule is due (None: none is), and whether a run waits."""

    due_in: float | None
    waits: bool


async def schedules_to_do(conn: Connection) -> list[ToDo]:
    """Return the schedules that are due, or new. SQL: pgcoord_private.schedules_to_do."""
    return await fetch_rows(
        conn, ToDo, f"select {columns_of(ToDo)} from pgcoord_private.schedules_to_do()"
    )


async def rest(conn: Connection) -> Rest:
    """Return for how long there is nothing to do. SQL: pgcoord_private.schedules_rest."""
    row = await fetch_row(
        conn, Rest, f"select {columns_of(Rest)} from pgcoord_private.schedules_rest()"
    )
    assert row is not None
    return row


async def declare_schedules(
    conn: Connection, epoch: int, declared: list[dict[str, object]]
) -> list[Undeclared]:
    """Store the schedules of the configuration, remove those that it has no more.

    *declared*: each with name, cron, timezone (None: the session's), overlap, missed, feature.
    Return those that were refused. Raises `AnotherLeads`. SQL: pgcoord_private.declare_schedules.
    """
    return await fetch_rows(
        conn,
        Undeclared,
        f"select {columns_of(Undeclared)} from pgcoord_private.declare_schedules(%s, %s)",
        *(epoch, Jsonb(declared)),
    )


async def plan_schedule(
    conn: Connection, epoch: int, todo: ToDo, next_at: datetime | None, error: str | None
) -> None:
    """Store when a schedule is due first, or the *error*. Raises `AnotherLeads`.

    SQL: pgcoord_private.plan_schedule.
    """
    await fetch_value(
        conn,
        "select pgcoord_private.plan_schedule(%s, %s, %s, %s, %s, %s)",
        *(epoch, todo.name, todo.cron, todo.timezone, next_at, error),
    )


async def take_due_time(
    conn: Connection, epoch: int, todo: ToDo, due_at: datetime, next_at: datetime
) -> Run | None:
    """Start a due schedule, or record why not; None if that was done. Raises `AnotherLeads`.

    SQL: pgcoord_private.take_due_time.
    """
    return await fetch_row(
        conn,
        Run,
        f"select {columns_of(Run)} from pgcoord_private.take_due_time(%s, %s, %s, %s, %s)",
        *(epoch, todo.name, todo.next_at, due_at, next_at),
    )


async def start_waiting_runs(conn: Connection, epoch: int) -> list[Run]:
    """Start the runs whose predecessor has ended. SQL: pgcoord_private.start_waiting_runs."""
    return await fetch_rows(
        conn, Run, f"select {columns_of(Run)} from pgcoord_private.start_waiting_runs(%s)", epoch
    )
