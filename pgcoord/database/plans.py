"""Statements about the plan of a feature that is there.

The one rule: one Python function for each SQL function.
"""

from typing import Any

from pgcoord.database._record import Record
from pgcoord.database._sql import Connection, columns_of, fetch_row, refusals


class FeatureToPlan(Record):
    """The columns of a feature that its plan is made from."""

    title: str
    description: str | None
    item_type: str
    estimated_hours: float | None
    version: str


async def feature_to_plan(conn: Connection, feature_id: int) -> FeatureToPlan:
    """Return the columns that a plan is made from.

    Raises `NotFound`, and `Refused` once the phases of the feature are queued.
    """
    row = await fetch_row(
        conn,
        FeatureToPlan,
        f"select {columns_of(FeatureToPlan)} from pgcoord_private.feature_to_plan(%s)",
        feature_id,
    )
    assert row is not None
    return row


async def plan_of(conn: Connection, feature_id: int) -> tuple[list[dict[str, Any]], bool]:
    """Return (phases, whether they are queued): as they are now, else those of the stored plan."""
    with refusals():
        cursor = await conn.execute(
            b"select pgcoord_private.plan_of(%s),"
            b" exists (select from public.phase_queue where feature_id = %s)",
            [feature_id, feature_id],
        )
        row = await cursor.fetchone()
    assert row is not None
    return row[0], row[1]
