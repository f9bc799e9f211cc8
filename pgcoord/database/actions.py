"""The statements of people and workflows: submit, control, report.

The one rule: one Python function for each SQL function, which decides and logs. All raise
`NotFound` for an unknown phase or feature and `Refused` when its state does not allow the action.
"""

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
    """Mark a phase that does not run as completed; return its status."""
    return str(
        await fetch_value(conn, "select status from pgcoord.skip_phase(%s, %s)", queue_id, reason)
    )


async def cancel_phase(conn: Connection, queue_id: str, reason: str | None) -> str:
    """Cancel a phase; return its status, ready or running until its process has ended."""
    return str(
        await fetch_value(conn, "select status from pgcoord.cancel_phase(%s, %s)", queue_id, reason)
    )


async def cancel_feature(conn: Connection, feature_id: int, reason: str | None) -> int:
    """Cancel all open phases of a feature; return their number."""
    return int(await fetch_value(conn, "select pgcoord.cancel_feature(%s, %s)", feature_id, reason))


async def pause(conn: Connection, feature_id: int | None, reason: str | None) -> None:
    """Stop claiming phases, of one feature or (*feature_id* None) of all."""
    await fetch_value(conn, "select pgcoord.pause(%s, %s)", feature_id, reason)


async def resume(conn: Connection, feature_id: int | None) -> None:
    """End the pause of one feature or (*feature_id* None) of the whole installation."""
    await fetch_value(conn, "select pgcoord.resume(%s)", feature_id)


async def set_slots(conn: Connection, slots: int) -> None:
    """Set the number of phases that may run at once."""
    await fetch_value(conn, "select pgcoord.set_slots(%s)", slots)


async def set_priority(conn: Connection, queue_id: str, priority: int) -> None:
    """Change the priority of a phase; a lower number runs earlier."""
    await fetch_value(conn, "select pgcoord.set_priority(%s, %s)", queue_id, priority)


async def prune(conn: Connection, older_than: timedelta) -> int:
    """Delete features that ended before *older_than* ago, with their history; return how many."""
    return int(await fetch_value(conn, "select pgcoord.prune(%s)", older_than))


async def report_secrets(conn: Connection, report: object) -> list[tuple[str, str]]:
    """Return (adw_id, secret) of each attempt that may have sent *report*, latest first."""
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
    """Apply a report to its phase, and log the delivery; return the result, even a refusal.

    *adw_id*: the attempt whose secret signed the report; None for an unsigned one. A *message_id*
    that was delivered before changes nothing. SQL: pgcoord_private.take_report.
    """
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
    """Store a feature with its plan, without queueing it; return its id. Raises `InvalidInput`."""
    return int(await fetch_value(conn, "select pgcoord.store_feature(%s)", Jsonb(feature)))


async def change_feature(
    conn: Connection, feature_id: int, changes: Mapping[str, object], version: str | None
) -> None:
    """Change the members of a feature that are in *changes*.

    With a *version*, raise `ChangedMeanwhile` unless that is the current one.
    """
    await fetch_value(
        conn, "select pgcoord.change_feature(%s, %s, %s)", feature_id, Jsonb(changes), version
    )


async def execute_feature(conn: Connection, feature_id: int) -> int:
    """Queue the planned phases of a feature; return how many, 0 if they were queued before."""
    return int(await fetch_value(conn, "select pgcoord.execute_feature(%s)", feature_id))
