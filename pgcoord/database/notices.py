"""The statements about notices: targets, and the notices due to each.

The one rule: one Python function for each SQL function.
"""

from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from pgcoord.database._record import Record
from pgcoord.database._sql import Connection, columns_of, fetch_row, fetch_value


class Notice(Record):
    """The notice that is due to a target.

    If none is due, `id` is None and `due_in` holds the seconds until the next.
    """

    id: int | None
    key: UUID | None
    tries: int | None
    message: dict[str, Any] | None
    due_in: float | None


async def declare_targets(conn: Connection, targets: dict[str, list[str]]) -> None:
    """Replace the targets of notices by *targets*, {name: kinds of events that it subscribes to}.

    SQL: pgcoord_private.declare_targets.
    """
    await fetch_value(conn, "select pgcoord_private.declare_targets(%s)", Jsonb(targets))


async def note_stuck(conn: Connection) -> bool:
    """Write notices of phases that are stuck; return whether a target subscribes to them.

    Once for each attempt. SQL: pgcoord_private.note_stuck.
    """
    return bool(await fetch_value(conn, "select pgcoord_private.note_stuck()"))


async def begin_notice(conn: Connection, target: str) -> Notice:
    """Begin to send the oldest due notice of *target*, and return it.

    SQL: pgcoord_private.begin_notice.
    """
    row = await fetch_row(
        conn,
        Notice,
        f"select {columns_of(Notice)} from pgcoord_private.begin_notice(%s)",
        target,
    )
    assert row is not None
    return row


async def end_notice(conn: Connection, notice_id: int) -> None:
    """Record that a notice was delivered, or given up. SQL: pgcoord_private.end_notice."""
    await fetch_value(conn, "select pgcoord_private.end_notice(%s)", notice_id)
