"""The statements of people and workflows: submit, control, report.

The one rule: a function in SQL decides and logs. All raise `NotFound` for an unknown phase or
feature and `Refused` when its state does not allow the action.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import psycopg
from psycopg.types.json import Jsonb

from pgcoord.actions import Action
from pgcoord.database._record import Record
from pgcoord.database._sql import (
    Connection,
    columns_of,
    fetch_row,
    fetch_rows,
    fetch_value,
    refusals,
)
from pgcoord.database.rows import TakenReport
from pgcoord.errors import ChangedMeanwhile, DatabaseUnusable, Refused

# A digest of the columns of a phase that people edit; it changes with each edit.
WORDED = "md5(phase_data::text || depends_on_phases::text)"


async def submit_feature(conn: Connection, feature: Mapping[str, object]) -> int:
    """Store a feature and queue its phases; return its id. Raises `InvalidInput`."""
    return int(await fetch_value(conn, "select pgcoord.submit_feature(%s)", Jsonb(feature)))


async def perform(
    conn: Connection,
    action: Action,
    target: str | int | None,
    *,
    reason: str | None = None,
    number: float | None = None,
    pool: str | None = None,
) -> str | int | None:
    """Call the SQL function of *action*.

    *target*: a queue_id, the id of a feature, the name of a schedule, or None for all, as the scope
    of *action* says.
    *number*: the priority, the number of slots, of *pool* (None: local), or US dollars.
    Return the status of the phase, the number of phases, or None, as `action.returns` says.
    """
    values = {
        "queue_id": target,
        "feature_id": target,
        "schedule": target,
        "reason": reason,
        "priority": number,
        "slots": number,
        "max_cost_usd": number,
        "pool": pool or "local",
    }
    what = "status from " if action.returns == "status" else ""
    call = action.statement(*("%s" for _ in action.arguments))
    result: str | int | None = await fetch_value(
        conn, f"select {what}{call}", *(values[each] for each in action.arguments)
    )
    return None if action.returns == "nothing" else result


class Acted(Record):
    """A phase after an action on several; `refused`: why it was not done to this one.

    `status` is None if there is no such phase.
    """

    queue_id: str
    status: str | None
    refused: str | None


async def perform_on_several(
    conn: Connection,
    action: Action,
    queue_ids: Sequence[str],
    *,
    reason: str | None = None,
    number: int | None = None,
) -> list[Acted]:
    """Perform *action* on several phases in one transaction; return an `Acted` for each.

    A refusal of one phase is in its `refused`, and does not undo the others. SQL:
    pgcoord.act_on_phases.
    """
    return await fetch_rows(
        conn,
        Acted,
        f"select {columns_of(Acted)} from pgcoord.act_on_phases(%s, %s, %s, %s)",
        action.verb,
        list(queue_ids),
        reason,
        number,
    )


async def edit_phase(
    conn: Connection,
    queue_id: str,
    changes: Mapping[str, object],
    depends_on: Sequence[int] | None,
    version: str | None = None,
) -> None:
    """Change members of the data of a phase, and what it depends on (None: as it was).

    Raises `Refused` for one that runs or is completed, on which a change would have no effect, and
    `ChangedMeanwhile` for one whose `WORDED` is not *version* (None: any).
    """
    edited = await fetch_value(
        conn,
        "update public.phase_queue set phase_data = phase_data || %s,"
        " depends_on_phases = coalesce(%s, depends_on_phases)"
        " where queue_id = %s and slot is null and status <> 'completed'"
        f" and (%s::text is null or {WORDED} = %s) returning queue_id",
        Jsonb(dict(changes)),
        None if depends_on is None else Jsonb(list(depends_on)),
        queue_id,
        version,
        version,
    )
    if edited is None:
        if version and await fetch_value(
            conn,
            f"select {WORDED} <> %s::text from public.phase_queue where queue_id = %s",
            version,
            queue_id,
        ):
            raise ChangedMeanwhile(
                f"{queue_id} was changed after it was read",
                hint="Read its present columns first; a change that you send after that is stored.",
            )
        raise Refused(
            f"{queue_id} runs or is completed: its prompt and settings cannot change",
            hint="A failed or cancelled one can be changed, and retried.",
        )


async def delete(conn: Connection, target: str | int) -> None:
    """Remove a phase, by queue_id, or a feature, by id. Raises `Refused` for one that runs."""
    table, column = (
        ("public.phase_queue", "queue_id")
        if isinstance(target, str)
        else ("public.planned_features", "id")
    )
    try:
        await fetch_value(conn, f"delete from {table} where {column} = %s returning true", target)
    except DatabaseUnusable as error:
        if isinstance(error.__cause__, psycopg.errors.InsufficientPrivilege):
            # No role of ours would give it.
            error.hint = (
                "Only the owner of the database deletes; 'pgcoord cancel' keeps the history."
            )
        raise


async def prune(conn: Connection, older_than: timedelta, looked_at: datetime) -> int:
    """Delete features that ended *older_than* before *looked_at*, with their history.

    Return how many. Features that ended after *looked_at* stay: the user has not seen them.
    """
    statement = "select pgcoord.prune(%s + greatest(now() - %s, '0'))"
    return int(await fetch_value(conn, statement, older_than, looked_at))


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
    row = await fetch_row(
        conn,
        TakenReport,
        f"select {columns_of(TakenReport)} from pgcoord_private.take_report(%s, %s, %s, %s)",
        Jsonb(report),
        message_id,
        actor,
        adw_id,
    )
    assert row is not None
    return row


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
