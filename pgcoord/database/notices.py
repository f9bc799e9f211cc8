"""The statements about notices: whom to tell, what is due. One Python function an SQL function."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from pgcoord.database._sql import Connection, columns_of, fetch_row, fetch_value


@dataclass(frozen=True)
class Notice:
    """What is due to a target; `due_in`: without any (`id` None), seconds until there is."""

    id: int | None
    key: UUID | None
    tries: int | None
    message: dict[str, Any] | None
    due_in: float | None


async def declare_targets(conn: Connection, targets: dict[str, list[str]]) -> None:
    """Have those be told, by name, who want to be told of these events."""
    await fetch_value(conn, "select pgcoord_private.declare_targets(%s)", Jsonb(targets))


async def note_stuck(conn: Connection) -> bool:
    """Write notices of phases that are stuck; return whether anybody wants to be told."""
    return bool(await fetch_value(conn, "select pgcoord_private.note_stuck()"))


async def begin_notice(conn: Connection, target: str) -> Notice:
    """Begin to tell a target what is due, oldest first."""
    found = await fetch_row(
        conn,
        Notice,
        f"select {columns_of(Notice)} from pgcoord_private.begin_notice(%s)",
        target,
    )
    assert found is not None
    return found


async def end_notice(conn: Connection, notice_id: int) -> None:
    """A notice was taken, or is given up."""
    await fetch_value(conn, "select pgcoord_private.end_notice(%s)", notice_id)
