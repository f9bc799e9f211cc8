"""What people and workflows do: submit, steer, report. One function for each SQL function."""

from collections.abc import Mapping
from datetime import timedelta

from psycopg.types.json import Jsonb

from pgcoord.database._sql import Connection, columns_of, fetch_row, fetch_value, refusals
from pgcoord.database.rows import TakenReport


async def submit_feature(conn: Connection, feature: Mapping[str, object]) -> int:
    """Store a feature and queue its phases; return its id. Raises `InvalidInput`."""
    return int(await fetch_value(conn, "select pgcoord.submit_feature(%s)", Jsonb(feature)))


async def retry_phase(conn: Connection, queue_id: str, reason: str | None) -> str:
    """Queue a failed or cancelled phase again; return its status."""
    return str(
        await fetch_value(conn, "select status from pgcoord.retry_phase(%s, %s)", queue_id, reason)
    )


async def skip_phase(conn: Connection, queue_id: str, reason: str | None) -> str:
    """Take a phase that does not run as completed; return its status."""
    return str(
        await fetch_value(conn, "select status from pgcoord.skip_phase(%s, %s)", queue_id, reason)
    )


async def cancel_phase(conn: Connection, queue_id: str, reason: str | None) -> str:
    """Give a phase up; return its status, ready or running while its process is being ended."""
    return str(
        await fetch_value(conn, "select status from pgcoord.cancel_phase(%s, %s)", queue_id, reason)
    )


async def cancel_feature(conn: Connection, feature_id: int, reason: str | None) -> int:
    """Give a feature up; return how many phases that concerns."""
    return int(await fetch_value(conn, "select pgcoord.cancel_feature(%s, %s)", feature_id, reason))


async def pause(conn: Connection, feature_id: int | None, reason: str | None) -> None:
    """Claim nothing new, of one feature or of all."""
    await fetch_value(conn, "select pgcoord.pause(%s, %s)", feature_id, reason)


async def resume(conn: Connection, feature_id: int | None) -> None:
    """Claim again, of one feature or of all that were paused as a whole."""
    await fetch_value(conn, "select pgcoord.resume(%s)", feature_id)


async def set_slots(conn: Connection, slots: int) -> None:
    """Let so many phases run at once."""
    await fetch_value(conn, "select pgcoord.set_slots(%s)", slots)


async def set_priority(conn: Connection, queue_id: str, priority: int) -> None:
    """Change the place in line of a phase; lower runs earlier."""
    await fetch_value(conn, "select pgcoord.set_priority(%s, %s)", queue_id, priority)


async def prune(conn: Connection, older_than: timedelta) -> int:
    """Remove features that were finished that long ago, with their history; return how many."""
    return int(await fetch_value(conn, "select pgcoord.prune(%s)", older_than))


async def report_secrets(conn: Connection, report: object) -> list[tuple[str, str]]:
    """The attempts that a report may be of, by adw_id, latest first, each with its secret."""
    with refusals():
        cursor = await conn.execute(
            b"select adw_id, secret from pgcoord_private.report_secrets(%s)", [Jsonb(report)]
        )
        return await cursor.fetchall()


async def take_report(
    conn: Connection,
    report: Mapping[str, object],
    *,
    message_id: str | None,
    actor: str,
    adw_id: str | None,
) -> TakenReport:
    """Take a report, as of the attempt `adw_id` where its secret signed it; log the delivery."""
    taken = await fetch_row(
        conn,
        TakenReport,
        f"select {columns_of(TakenReport)} from pgcoord_private.take_report(%s, %s, %s, %s)",
        Jsonb(report),
        message_id,
        actor,
        adw_id,
    )
    assert taken is not None
    return taken


async def store_feature(conn: Connection, feature: Mapping[str, object]) -> int:
    """Store a feature with its plan, and run nothing; return its id. Raises `InvalidInput`."""
    return int(await fetch_value(conn, "select pgcoord.store_feature(%s)", Jsonb(feature)))


async def change_feature(
    conn: Connection, feature_id: int, changes: Mapping[str, object], version: str | None
) -> None:
    """Change what is given; with `version` only if that is the one in force."""
    await fetch_value(
        conn, "select pgcoord.change_feature(%s, %s, %s)", feature_id, Jsonb(changes), version
    )


async def execute_feature(conn: Connection, feature_id: int) -> int:
    """Queue the planned phases; return how many, 0 when they were queued before."""
    return int(await fetch_value(conn, "select pgcoord.execute_feature(%s)", feature_id))
