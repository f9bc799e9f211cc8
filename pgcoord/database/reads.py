"""The queries of the command line, the API and the streams.

The one rule: one function for each view or SQL function; nothing here changes a row.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pgcoord.database._sql import (
    Connection,
    columns_of,
    fetch_row,
    fetch_rows,
    fetch_value,
    fetch_values,
    refusals,
)
from pgcoord.database.rows import (
    Attempt,
    BoardPhase,
    Cost,
    Feature,
    Finding,
    LeadBlocker,
    Leader,
    Pool,
    Reason,
    Slot,
)
from pgcoord.database.states import UNFINISHED
from pgcoord.errors import NotFound


async def leader(conn: Connection) -> Leader | None:
    """Return the coordinator that leads, None when none does. SQL: view pgcoord.leader."""
    return await fetch_row(conn, Leader, f"select {columns_of(Leader)} from pgcoord.leader")


async def unwatched(conn: Connection) -> str | None:
    """Since when no coordinator runs, in words; None while one does, or where none ever did."""
    words: str | None = await fetch_value(conn, "select words from pgcoord_private.unwatched")
    return words


async def lead_blocker(conn: Connection) -> LeadBlocker | None:
    """What keeps every coordinator from the lead, None when nothing does or one leads."""
    return await fetch_row(
        conn, LeadBlocker, f"select {columns_of(LeadBlocker)} from pgcoord.lead_blocker"
    )


async def checkup(conn: Connection) -> list[Finding]:
    """Check the installation; return one finding of each kind. SQL: pgcoord.checkup."""
    return await fetch_rows(conn, Finding, f"select {columns_of(Finding)} from pgcoord.checkup()")


async def features(conn: Connection, *, unfinished: bool) -> list[Feature]:
    """Return all features by id; with *unfinished*, those planned or in progress only."""
    return await fetch_rows(
        conn,
        Feature,
        f"select {columns_of(Feature)} from pgcoord.feature"
        " where not %s or status in ('planned', 'in_progress') order by id",
        unfinished,
    )


async def costs(conn: Connection, feature_ids: Sequence[int]) -> list[Cost]:
    """Return what each of these features has cost, by workflow. SQL: pgcoord.costs."""
    return await fetch_rows(
        conn,
        Cost,
        "select feature_id, workflow, attempts, cost_usd::float8, tokens_in, tokens_out"
        " from pgcoord.costs where feature_id = any(%s) order by feature_id, workflow",
        list(feature_ids),
    )


async def prunable(conn: Connection, older_than: timedelta) -> list[Feature]:
    """Return the features that were finished *older_than* ago, by id."""
    return await fetch_rows(
        conn,
        Feature,
        f"select {columns_of(Feature)} from pgcoord.feature"
        " where id in (select pgcoord_private.finished_features(%s)) order by id",
        older_than,
    )


async def now(conn: Connection) -> datetime:
    """Return when the transaction began, by the clock of the database."""
    at: datetime = await fetch_value(conn, "select now()")
    return at


async def feature(conn: Connection, feature_id: int) -> Feature:
    """Return one feature. Raises `NotFound`."""
    row = await fetch_row(
        conn,
        Feature,
        f"select {columns_of(Feature)} from pgcoord.feature where id = %s",
        feature_id,
    )
    if row is None:
        raise NotFound(
            f"there is no feature {feature_id}",
            hint="'pgcoord status --all' shows those that exist.",
        )
    return row


async def standstill(conn: Connection, feature_id: int) -> str | None:
    """Return what stops a feature that cannot go on by itself; None for one that can."""
    words: str | None = await fetch_value(
        conn, "select words from pgcoord_private.standstill where feature_id = %s", feature_id
    )
    return words


async def board(conn: Connection, feature_id: int) -> list[BoardPhase]:
    """Return the phases of a feature by number. SQL: view pgcoord.board."""
    return await fetch_rows(
        conn,
        BoardPhase,
        f"select {columns_of(BoardPhase)} from pgcoord.board where feature_id = %s"
        " order by phase_number",
        feature_id,
    )


async def slots(conn: Connection) -> list[Slot]:
    """Return all slots by number, the free ones too. SQL: view pgcoord.slots."""
    return await fetch_rows(
        conn, Slot, f"select {columns_of(Slot)} from pgcoord.slots order by slot"
    )


async def pools(conn: Connection) -> list[Pool]:
    """Return the pools, local first, then by name. SQL: view pgcoord.pools."""
    return await fetch_rows(conn, Pool, f"select {columns_of(Pool)} from pgcoord.pools")


async def slot_count(conn: Connection) -> int:
    """Return the number of phases that may run at once."""
    return int(await fetch_value(conn, "select count(*) from pgcoord.slot where not draining"))


async def paused(conn: Connection) -> datetime | None:
    """Return the time at which the whole installation was paused; None if it is not."""
    since: datetime | None = await fetch_value(conn, "select paused_at from pgcoord.control")
    return since


async def why(conn: Connection, queue_id: str) -> list[Reason]:
    """Return the reasons for the state of a phase, most decisive first. Raises `NotFound`."""
    return await fetch_rows(
        conn, Reason, "select kind, words, refers_to from pgcoord.why(%s)", queue_id
    )


async def lacking_work(conn: Connection, feature_id: int) -> list[str]:
    """Return "NUMBER: why" for each phase whose work the branch of the feature lacks.

    What conflicted is brought by a dependent that was merged, what could not be pushed by any phase
    after it.
    """
    return await fetch_values(
        conn,
        "with latest as ("
        " select distinct on (phase_number) phase_number, result, stored_at from pgcoord.results"
        " where feature_id = %s and outcome = 'completed' order by phase_number, attempt desc)"
        " select phase_number || ': ' || (result ->> 'feature_branch_fault') from latest as l"
        " where result ? 'feature_branch_fault' and not exists ("
        " select from latest as o where o.result ? 'feature_branch' and o.stored_at > l.stored_at"
        " and (l.result ->> 'feature_branch_fault' like '%% is not pushed to %%' or exists ("
        " select from pgcoord.dependency as d where d.feature_id = %s"
        " and d.prerequisite = l.phase_number and d.dependent = o.phase_number)))",
        feature_id,
        feature_id,
    )


async def attempts(conn: Connection, queue_id: str) -> list[Attempt]:
    """Return the attempts of a phase, first to last. Raises `NotFound`."""
    await why(conn, queue_id)
    return await fetch_rows(
        conn,
        Attempt,
        f"select {columns_of(Attempt)} from pgcoord.attempt"
        " left join (select name as pool, launcher from pgcoord.pool) as o using (pool)"
        " left join lateral"
        " (select value as result from pgcoord.result where attempt_id = id) as r on true"
        " where queue_id = %s order by number",
        queue_id,
    )


async def results_of_feature(conn: Connection, feature_id: int) -> dict[str, Any]:
    """Return the results of a feature's phases, {phase number: result}, of each latest attempt.

    Raises `NotFound`. SQL: view pgcoord.queue.
    """
    await feature(conn, feature_id)
    value: dict[str, Any] = await fetch_value(
        conn,
        "select coalesce(jsonb_object_agg(phase_number, result), '{}') from pgcoord.queue"
        " where feature_id = %s and result is not null",
        feature_id,
    )
    return value


async def status_of(conn: Connection, queue_id: str) -> str:
    """Return the status of a phase. Raises `NotFound`."""
    status = await fetch_value(
        conn, "select status from public.phase_queue where queue_id = %s", queue_id
    )
    if status is None:
        raise NotFound(
            f"there is no phase {queue_id}", hint="'pgcoord status' shows those that exist."
        )
    return str(status)


async def queue_id_of(conn: Connection, feature_id: int, phase_number: int) -> str | None:
    """Return the queue id of a phase, by its number in its feature; None if there is none."""
    name: str | None = await fetch_value(
        conn,
        "select queue_id from public.phase_queue where feature_id = %s and phase_number = %s",
        feature_id,
        phase_number,
    )
    return name


async def last_reasons(conn: Connection, feature_id: int) -> dict[int, str]:
    """Return {phase_number: reason of the last move}, without phases whose move had no reason."""
    with refusals():
        cursor = await conn.execute(
            b"select distinct on (phase_number) phase_number, reason from pgcoord.event"
            b" where feature_id = %s and kind = 'phase_moved' order by phase_number, id desc",
            [feature_id],
        )
        return {number: reason for number, reason in await cursor.fetchall() if reason}


async def feature_object(conn: Connection, feature_id: int) -> dict[str, Any]:
    """Return a feature with its phases, as http/schemas.py describes it. Raises `NotFound`."""
    value: dict[str, Any] = await fetch_value(conn, "select pgcoord.feature_object(%s)", feature_id)
    return value


@dataclass(frozen=True)
class Listing:
    """A query for a list: filters ({column: permitted values}), order, limit and offset."""

    filters: Mapping[str, Collection[object]]
    order: str
    limit: int
    offset: int = 0

    def sql(self, orders: Mapping[str, str]) -> tuple[str, list[object]]:
        """Return (clauses, values). *orders*: {a value of `order`: the columns to order by}."""
        tests = " and ".join(f"{column} = any(%s)" for column in self.filters) or "true"
        clauses = f"where {tests} order by {orders[self.order]} limit %s offset %s"
        return clauses, [*map(list, self.filters.values()), self.limit, self.offset]


QUEUE_ORDERS = {
    "feature": "feature_id, phase_number",
    "line": "slot nulls last, priority, queue_position, feature_id, phase_number",
    "updated": "updated_at desc, feature_id, phase_number",
}


FEATURE_ORDERS = {
    "id": "id",
    "newest": "id desc",
    "priority": "priority, id",
    "updated": "updated_at desc, id",
}


async def queue_objects(conn: Connection, listing: Listing) -> list[dict[str, Any]]:
    """Return phases with what they wait for, as http/schemas.py describes them."""
    clauses, values = listing.sql(QUEUE_ORDERS)
    names = f"select queue_id from public.phase_queue {clauses}"
    return await fetch_values(
        conn, f"select pgcoord_private.phase_objects(array({names}))", *values
    )


async def feature_objects(conn: Connection, listing: Listing) -> list[dict[str, Any]]:
    """Return features without their phases, as http/schemas.py describes them."""
    clauses, values = listing.sql(FEATURE_ORDERS)
    return await fetch_values(
        conn,
        f"select to_jsonb(f) - 'plan' from (select * from pgcoord.feature {clauses}) as f",
        *values,
    )


async def phase_object(conn: Connection, queue_id: str) -> dict[str, Any]:
    """Return a phase with what it waits for, as http/schemas.py describes it.

    Raises `NotFound`. SQL: view pgcoord.queue.
    """
    value: dict[str, Any] | None = await fetch_value(
        conn, "select to_jsonb(q) from pgcoord.queue as q where queue_id = %s", queue_id
    )
    if value is None:
        raise NotFound(
            f"there is no phase {queue_id}", hint="'pgcoord status' shows those that exist."
        )
    return value


async def slot_objects(conn: Connection) -> list[dict[str, Any]]:
    """Return the slots, each with the phase that holds it, as http/schemas.py describes them."""
    return await fetch_values(conn, "select to_jsonb(s) from pgcoord.slots as s order by s.slot")


async def queue_snapshot(conn: Connection, limit: int) -> dict[str, Any]:
    """Return the first message of a stream of the queue, as http/schemas.py describes it.

    Its queue has at most *limit* of the phases that have not ended, those in slots first.
    """
    waiting = [*UNFINISHED, "blocked"]
    since = await paused(conn)
    return {
        "queue": await queue_objects(conn, Listing({"status": waiting}, "line", limit)),
        "total": await fetch_value(
            conn, "select count(*) from public.phase_queue where status = any(%s)", waiting
        ),
        "slots": await slot_objects(conn),
        "paused_at": since and since.isoformat(),
    }


async def blocked_by(conn: Connection, pid: int) -> str | None:
    """The session that holds the lock which the session *pid* waits for, in words; None: no wait.

    SQL: pgcoord_private.blocked_by.
    """
    words: str | None = await fetch_value(conn, "select pgcoord_private.blocked_by(%s)", pid)
    return words
