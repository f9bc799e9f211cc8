"""Statements for followers of events: the event stream, and the figures of /metrics.

The one rule: one Python function for each SQL function. (Apart from `reads`, which the command line
imports: each class of rows takes time at its start.)
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from psycopg.rows import scalar_row

from pgcoord.database._record import Record
from pgcoord.database._sql import Connection, columns_of, fetch_row, fetch_rows, refusals


class HistoryEvent(Record):
    """One event of the log."""

    id: int
    at: datetime
    kind: str
    feature_id: int | None
    phase_number: int | None
    queue_id: str | None
    from_status: str | None
    to_status: str | None
    attempt: int | None
    adw_id: str | None
    actor: str
    reason: str | None


class Measures(Record):
    """The gauges of /metrics.

    `phases` counts by state, `pools` are rows of the view; `notification_queue_usage` is 0 to 1.
    """

    phases: dict[str, int] | None
    pools: list[dict[str, Any]]
    paused: bool
    oldest_eligible_seconds: float | None
    notification_queue_usage: float


class EndedAttempt(Record):
    """The durations of an ended attempt; only a phase's first attempt has `waited_seconds`."""

    workflow: str | None
    outcome: str
    waited_seconds: float | None
    ran_seconds: float | None


async def events_after(
    conn: Connection, last: int, gaps: Sequence[tuple[int, int]], limit: int
) -> list[HistoryEvent]:
    """Return at most *limit* events with an id above *last* or within *gaps*, lowest id first.

    *gaps*: (low, high) pairs, both inclusive.
    """
    return await fetch_rows(
        conn,
        HistoryEvent,
        f"select {columns_of(HistoryEvent)} from pgcoord_private.events_after(%s, %s, %s, %s)",
        last,
        [low for low, _ in gaps],
        [high for _, high in gaps],
        limit,
    )


async def last_event(conn: Connection, back: int) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Return (last, gaps): the highest event id, and the ids missing among the *back* before it.

    *gaps* are (low, high) pairs, both inclusive.
    """
    with refusals():
        cursor = await conn.execute(
            b"select last, lows, highs from pgcoord_private.last_event(%s)", [back]
        )
        row = await cursor.fetchone()
    assert row is not None
    last, lows, highs = row
    return last, tuple(zip(lows, highs, strict=True))


async def event_writers(conn: Connection) -> frozenset[str]:
    """Return the ids of the open transactions that may have written events."""
    with refusals():
        cursor = conn.cursor(row_factory=scalar_row)
        await cursor.execute(b"select pgcoord_private.event_writers()")
        return frozenset(await cursor.fetchall())


async def measures(conn: Connection) -> Measures:
    """Return the gauges of /metrics. Counts all phases: the time grows with their number."""
    row = await fetch_row(
        conn, Measures, f"select {columns_of(Measures)} from pgcoord_private.measures()"
    )
    assert row is not None
    return row


async def ended_attempts(conn: Connection, events: Collection[int]) -> list[EndedAttempt]:
    """Return the attempts that ended with *events* (ids). SQL: pgcoord_private.ended_attempts."""
    columns = columns_of(EndedAttempt)
    statement = f"select {columns} from pgcoord_private.ended_attempts(%s)"
    return await fetch_rows(conn, EndedAttempt, statement, list(events))
