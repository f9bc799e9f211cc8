"""The queries of the panel's pages; SQL: 24_board.sql, 60_forecast.sql, 61_overview.sql.

The one rule: rows contain times, never ages. So two queries return equal rows until an event
changes them, and the panel renders a page again only then.
"""

from datetime import date, datetime, timedelta
from typing import Any

from pgcoord.database import reads
from pgcoord.database._record import Record
from pgcoord.database._sql import Connection, columns_of, fetch_row, fetch_rows, fetch_value
from pgcoord.database.actions import WORDED
from pgcoord.database.history import HistoryEvent
from pgcoord.database.rows import Cost
from pgcoord.errors import NotFound

NO_SUCH_PHASE = "'pgcoord status' and the overview show those that exist."


class Installation(Record):
    """The state of the whole installation: pause, leader, slots."""

    paused_at: datetime | None
    paused_reason: str | None
    paused_by: str | None
    leader: str | None  # process and host
    lead_blocker: str | None  # why no coordinator can lead, and the remedy
    limit: int  # phases that may run at once


class HeldSlot(Record):
    """A slot, the attempt that holds it, if any, and how long its phase takes, where that is known.

    `free_at`: its expected end.
    """

    slot: int
    draining: bool
    queue_id: str | None
    feature_id: int | None
    feature: str | None
    phase_number: int | None
    title: str | None
    status: str | None
    since: datetime | None
    attempt: int | None
    host: str | None
    folder: str | None
    external: bool | None
    ending: str | None
    pool: str
    launcher: str
    job: str | None
    node: str | None
    waits_for: str | None
    low: timedelta | None
    median: timedelta | None
    high: timedelta | None
    free_at: datetime | None


class InLine(Record):
    """A phase that waits only for a free slot."""

    queue_id: str
    feature_id: int
    feature: str
    phase_number: int
    title: str
    priority: int
    eligible_at: datetime
    pool: str


class Backlog(Record):
    """Numbers of queued phases: waiting for a slot, other phases, a pause, a retry, an approval."""

    in_line: int
    for_phases: int
    paused: int
    for_retry: int
    for_approval: int


class Attention(Record):
    """A phase that needs attention.

    `kind`: failed, missing, workflow, gate, quiet, later, slow or locked.

    `words`: the reason; `blocks`: numbers of the phases that it blocks.
    """

    kind: str
    queue_id: str
    feature_id: int
    feature: str
    phase_number: int
    title: str
    status: str
    since: datetime | None
    words: str | None
    attempt: int | None
    exit_code: int | None
    blocks: list[int] | None


class Costs(Record):
    """What a feature has cost, and may cost, in US dollars; `limit` is None without a budget."""

    limit: float | None
    by_workflow: list[Cost]

    @property
    def usd(self) -> float:
        """The sum over all workflows, in US dollars; unknown costs count as 0."""
        return sum(each.cost_usd or 0 for each in self.by_workflow)

    @property
    def tokens(self) -> int:
        """All tokens, read and written."""
        return sum((each.tokens_in or 0) + (each.tokens_out or 0) for each in self.by_workflow)


class FeatureRow(Record):
    """A row of the list of features.

    `missing`, `unknown`: a phase that can never start, as one that it needs does not exist, or no
    coordinator knows its workflow.

    `counts`: {state: number of phases}. `strip`: the state of each phase, None if there are many.
    """

    id: int
    title: str
    status: str
    total: int
    counts: dict[str, int] | None
    strip: list[str] | None
    running: list[int] | None
    failed: list[int] | None
    blocked: int
    missing: int | None
    unknown: int | None
    in_line: int
    planned: int
    since: datetime
    finished_at: datetime | None
    paused_at: datetime | None
    paused_reason: str | None
    paused_by: str | None
    cancelled_at: datetime | None
    cancelled_reason: str | None

    def count(self, status: str) -> int:
        """Return the number of its phases in the state *status*."""
        return (self.counts or {}).get(status, 0)


class Described(Record):
    """A feature's description, and the phases of its plan, as submit_feature accepts them."""

    description: str | None
    plan: list[dict[str, Any]]
    origin_id: int | None


class Finish(Record):
    """The forecast of the end of a feature or of all, and the critical path (phase numbers).

    `runs`: the number of past attempts that the forecast is based on.
    """

    feature_id: int | None
    path: list[int] | None
    runs: int
    path_takes: timedelta | None
    ends_at: datetime | None
    earliest: datetime | None
    latest: datetime | None


class Forecast(Record):
    """The layer of a phase in its feature's graph, and the forecast of its start and end."""

    phase_number: int
    layer: int
    critical: bool
    starts_at: datetime | None
    ends_at: datetime | None
    earliest: datetime | None
    latest: datetime | None


class TreePhase(Record):
    """A phase in the tree of its feature.

    `reasons`: some of the `all_reasons` why it waits, in words. `ending`: why its process has to be
    ended, None if not.
    """

    queue_id: str
    phase_number: int
    title: str
    status: str
    slot: int | None
    attempt: int
    priority: int
    depends_on_phases: list[int]
    issue_number: int | None
    error_message: str | None
    since: datetime | None
    started_timestamp: datetime | None
    finished_timestamp: datetime | None
    ending: str | None
    reasons: list[str] | None
    all_reasons: int
    skipped: bool

    @property
    def shown_status(self) -> str:
        """The state to show: "skipped" for a completed phase that was not run to its end."""
        return "skipped" if self.skipped else self.status


class Span(Record):
    """One attempt on the timeline; a phase without an attempt has one span without its times."""

    phase_number: int
    queue_id: str
    attempt: int | None
    queued_at: datetime
    eligible_at: datetime | None
    claimed_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    outcome: str | None


class Phase(Record):
    """A phase with all columns of its page."""

    queue_id: str
    feature_id: int
    feature: str
    phases: int
    phase_number: int
    title: str
    status: str
    slot: int | None
    attempt: int
    priority: int
    queue_position: int
    workflow: str | None
    issue_number: int | None
    pr_number: int | None
    error_message: str | None
    prompt: str | None
    files: list[object] | None
    estimated_hours: float | None
    max_attempts: int | None
    timeout: timedelta | None
    retry_at: datetime | None
    gate: str | None
    created_at: datetime
    since: datetime | None
    runs: int | None
    low: timedelta | None
    median: timedelta | None
    high: timedelta | None
    skipped: bool
    run_when: str
    lock: str | None
    environment: dict[str, str] | None


class Neighbour(Record):
    """A prerequisite, or a dependent, of a phase; `status` is None if it does not exist."""

    phase_number: int
    queue_id: str | None
    title: str | None
    status: str | None
    finished_timestamp: datetime | None
    skipped: bool


class Change(Record):
    """The change that an action would make to a phase.

    `to_status` is None where it would be refused; `words` say why. Number, title and `from_status`
    are None where there is no such phase.
    """

    queue_id: str
    phase_number: int | None
    title: str | None
    from_status: str | None
    to_status: str | None
    words: str | None


async def installation(conn: Connection) -> Installation:
    """Return the state of the whole installation."""
    row = await fetch_row(
        conn,
        Installation,
        "select c.paused_at, c.paused_reason, case when c.paused_at is not null then ("
        "select e.actor from pgcoord.event as e where e.feature_id is null"
        " and e.phase_number is null and e.kind = 'paused' order by e.id desc limit 1)"
        " end as paused_by,"
        " (select format('process %%s on %%s', l.pid, l.host) from pgcoord.leader as l) as leader,"
        " (select format('%%s. To end it: %%s', b.words, b.remedy) from pgcoord.lead_blocker as b)"
        " as lead_blocker,"
        " (select count(*)::integer from pgcoord.slot where not draining) as limit"
        " from pgcoord.control as c",
    )
    assert row is not None
    return row


async def held_slots(conn: Connection) -> list[HeldSlot]:
    """Return all slots by pool and number, the free ones too."""
    # Lateral with a limit, since the planner expects as many slots held as there are phases, and
    # would scan all phases, features and attempts for them.
    return await fetch_rows(
        conn,
        HeldSlot,
        "select s.slot, s.draining, s.queue_id, s.feature_id, f.title as feature, s.phase_number,"
        " s.title, s.status, s.since, a.number as attempt, s.host, a.folder, s.external, s.ending,"
        " s.pool, s.launcher, s.job, s.node, s.waits_for, l.low, l.median, l.high,"
        " s.since + make_interval(secs => e.elapsed"
        " + pgcoord_private.remaining_length(e.elapsed, extract(epoch from l.median)::float8,"
        " extract(epoch from l.high)::float8)) as free_at from pgcoord.slots as s"
        " left join lateral (select title from public.planned_features"
        " where id = s.feature_id limit 1) as f on true"
        " left join lateral (select number, folder, workflow from pgcoord.attempt"
        " where adw_id = s.adw_id limit 1) as a on true"
        " left join lateral (select phase_data from public.phase_queue"
        " where queue_id = s.queue_id limit 1) as p on true"
        " left join pgcoord.usual as u on u.workflow = a.workflow"
        " left join lateral pgcoord_private.expected_length("
        "pgcoord_private.estimate_of(p.phase_data), u.runs, u.low, u.median, u.high) as l on true"
        " cross join lateral (select case s.status when 'running'"
        " then extract(epoch from now() - s.since)::float8 else 0 end as elapsed) as e"
        " order by s.pool <> 'local', s.pool, s.slot",
    )


async def line(conn: Connection, limit: int, feature_id: int | None = None) -> list[InLine]:
    """Return the phases that are claimed next, of one feature or of all."""
    return await fetch_rows(
        conn,
        InLine,
        f"select {columns_of(InLine)} from pgcoord.line"
        " where %s::integer is null or feature_id = %s limit %s",
        feature_id,
        feature_id,
        limit,
    )


async def backlog(conn: Connection) -> Backlog:
    """Return the numbers of waiting phases. SQL: view pgcoord.backlog."""
    row = await fetch_row(conn, Backlog, f"select {columns_of(Backlog)} from pgcoord.backlog")
    assert row is not None
    return row


async def attention(conn: Connection, feature_id: int | None = None) -> list[Attention]:
    """Return the phases that need attention, of one feature or of all, by kind, latest first."""
    return await fetch_rows(
        conn,
        Attention,
        f"select {columns_of(Attention)} from pgcoord.attention"
        " where feature_id = coalesce(%s, feature_id)"
        " order by kind, since desc nulls last, feature_id, phase_number",
        feature_id,
    )


async def feature_rows(
    conn: Connection, show: str, search: str | None, limit: int
) -> list[FeatureRow]:
    """Return features, open ones first; *show*: all, attention, in_progress, … or a state."""
    return await fetch_rows(
        conn,
        FeatureRow,
        f"select {columns_of(FeatureRow)} from pgcoord_private.feature_rows("
        "array(select pgcoord_private.list_features(%s, %s, %s)))",
        show,
        search,
        limit,
    )


async def feature_row(conn: Connection, feature_id: int) -> FeatureRow:
    """Return one feature. Raises `NotFound`."""
    row = await fetch_row(
        conn,
        FeatureRow,
        f"select {columns_of(FeatureRow)} from pgcoord_private.feature_rows(array[%s])",
        feature_id,
    )
    if row is None:
        raise NotFound(
            f"there is no feature {feature_id}", hint="The overview shows those that exist."
        )
    return row


async def costs(conn: Connection, feature_id: int) -> Costs:
    """Return what a feature has cost, by workflow, and what it may cost. SQL: pgcoord.costs."""
    by_workflow = await reads.costs(conn, [feature_id])
    limit = await fetch_value(
        conn,
        "select max_cost_usd::float8 from public.planned_features where id = %s",
        feature_id,
    )
    return Costs(limit, by_workflow)


async def described(conn: Connection, feature_id: int) -> Described:
    """Return the description and the plan of a feature."""
    row = await fetch_row(
        conn,
        Described,
        "select description, coalesce(plan, '[]') as plan, origin_id"
        " from public.planned_features where id = %s",
        feature_id,
    )
    return row or Described(None, [], None)


async def finishes(conn: Connection, feature_ids: list[int]) -> dict[int | None, Finish]:
    """Return the forecasts of the ends of features, by feature id; None: of all that is open.

    SQL: pgcoord_private.finishes.
    """
    rows = await fetch_rows(
        conn, Finish, f"select {columns_of(Finish)} from pgcoord_private.finishes(%s)", feature_ids
    )
    return {each.feature_id: each for each in rows}


async def forecast(conn: Connection, feature_id: int) -> dict[int, Forecast]:
    """Return layer and forecast of each phase of a feature, by phase number."""
    rows = await fetch_rows(
        conn,
        Forecast,
        f"select {columns_of(Forecast)} from pgcoord.forecast(array[%s])",
        feature_id,
    )
    return {each.phase_number: each for each in rows}


async def tree(conn: Connection, feature_id: int) -> list[TreePhase]:
    """Return the phases of a feature by number."""
    return await fetch_rows(
        conn,
        TreePhase,
        "with w as materialized (select queue_id, (array_agg(case when kind <> 'slot' then words"
        " when words like 'is %%' then 'is in line; a slot is free'"
        " else split_part(words, ', ', 1) end order by rank, refers_to))[:3] as reasons,"
        " count(*) as all_reasons from pgcoord.reasons where feature_id = %s"
        " and kind not in ('ready', 'running', 'completed', 'failed', 'cancelled')"
        " group by queue_id)"
        " select b.queue_id, b.phase_number, b.title, b.status, b.slot, b.attempt, b.priority,"
        " b.depends_on_phases, b.issue_number,"
        " pgcoord_private.headline(b.error_message) as error_message, b.since, b.started_timestamp,"
        " b.finished_timestamp, s.ending, w.reasons, coalesce(w.all_reasons, 0) as all_reasons,"
        " b.skipped"
        " from pgcoord.board as b"
        " left join pgcoord.slots as s on s.queue_id = b.queue_id"
        # Each claim changes the queue position of all that follow: the page shows them in one part.
        # Materialized: knowing little of new tables, the planner would look for each phase's own.
        " left join w on w.queue_id = b.queue_id"
        " where b.feature_id = %s order by b.phase_number",
        feature_id,
        feature_id,
    )


async def spans(conn: Connection, feature_id: int) -> list[Span]:
    """Return the timeline of a feature, by phase and attempt. SQL: view pgcoord.timeline."""
    return await fetch_rows(
        conn,
        Span,
        f"select {columns_of(Span)} from pgcoord.timeline where feature_id = %s"
        " order by phase_number, attempt",
        feature_id,
    )


async def phase(conn: Connection, queue_id: str) -> Phase:
    """Return one phase. Raises `NotFound`."""
    row = await fetch_row(
        conn,
        Phase,
        "select p.queue_id, p.feature_id, f.title as feature, (select count(*) from"
        " public.phase_queue as o where o.feature_id = p.feature_id) as phases, p.phase_number,"
        " pgcoord_private.title_of(p) as title, p.status, p.slot, p.attempt, p.priority,"
        " p.queue_position,"
        " pgcoord_private.workflow_of(p) as workflow, p.issue_number, p.pr_number, p.error_message,"
        " p.phase_data ->> 'prompt_content' as prompt, case jsonb_typeof(p.phase_data -> 'files')"
        " when 'array' then p.phase_data -> 'files' end as files,"
        " case jsonb_typeof(p.phase_data -> 'estimated_hours') when 'number'"
        " then least((p.phase_data ->> 'estimated_hours')::numeric, 1e6)::float8 end"
        " as estimated_hours,"
        " coalesce((p.phase_data ->> 'max_attempts')::integer, w.max_attempts) as max_attempts,"
        " coalesce(make_interval(secs => (p.phase_data ->> 'timeout_seconds')::double precision),"
        " w.timeout) as timeout, p.retry_at, p.phase_data ->> 'gate' as gate, p.created_at,"
        " b.since, u.runs, l.low, l.median, l.high, b.skipped,"
        " p.run_when, p.lock, p.phase_data -> 'environment' as environment"
        " from public.phase_queue as p"
        " join public.planned_features as f on f.id = p.feature_id"
        " join pgcoord.board as b on b.queue_id = p.queue_id"
        " left join pgcoord.workflow as w on w.name = pgcoord_private.workflow_of(p)"
        " left join pgcoord.usual as u on u.workflow = pgcoord_private.workflow_of(p)"
        " left join lateral pgcoord_private.expected_length("
        "pgcoord_private.estimate_of(p.phase_data), u.runs, u.low, u.median, u.high) as l on true"
        " where p.queue_id = %s",
        queue_id,
    )
    if row is None:
        raise NotFound(f"there is no phase {queue_id}", hint=NO_SUCH_PHASE)
    return row


class EditablePhase(Record):
    """The columns of a phase that people edit. `workflow`: the one that it names, None for the
    default one. `version` changes with each change of these.
    """

    queue_id: str
    feature_id: int
    feature: str
    phase_number: int
    title: str
    prompt: str
    workflow: str | None
    needs: list[int]
    version: str


async def editable_phase(conn: Connection, queue_id: str) -> EditablePhase:
    """Return the columns of a phase that people edit. Raises `NotFound`."""
    row = await fetch_row(
        conn,
        EditablePhase,
        "select p.queue_id, p.feature_id, f.title as feature, p.phase_number,"
        " pgcoord_private.title_of(p) as title,"
        " coalesce(p.phase_data ->> 'prompt_content', '') as prompt,"
        " p.phase_data ->> 'workflow_type' as workflow, p.depends_on_phases as needs,"
        f" {WORDED} as version from public.phase_queue as p"
        " join public.planned_features as f on f.id = p.feature_id where p.queue_id = %s",
        queue_id,
    )
    if row is None:
        raise NotFound(f"there is no phase {queue_id}", hint=NO_SUCH_PHASE)
    return row


async def may_delete(conn: Connection) -> bool:
    """Return whether the user of *conn* may delete phases and features."""
    return bool(
        await fetch_value(
            conn,
            "select has_table_privilege('public.phase_queue', 'delete')"
            " and has_table_privilege('public.planned_features', 'delete')",
        )
    )


class Duration(Record):
    """An attempt that has ended, and how long it took."""

    queue_id: str
    feature_id: int
    phase_number: int
    title: str
    number: int
    outcome: str
    started_at: datetime
    took: timedelta


# Attempts of a workflow that are shown, of so many of all.
_MOST_DURATIONS = 200
_LATEST = 20_000


async def durations(conn: Connection, workflow: str) -> list[Duration]:
    """Return the latest ended attempts of a *workflow*, latest first."""
    return await fetch_rows(
        conn,
        Duration,
        "select a.queue_id, p.feature_id, p.phase_number, pgcoord_private.title_of(p) as title,"
        " a.number, a.outcome, a.started_at, a.ended_at - a.started_at as took"
        " from (select queue_id, number, outcome, started_at, ended_at, workflow"
        " from pgcoord.attempt order by id desc limit %s) as a"
        " join public.phase_queue as p on p.queue_id = a.queue_id"
        " where a.workflow = %s and a.started_at is not null and a.ended_at is not null"
        " order by a.started_at desc limit %s",
        _LATEST,
        workflow,
        _MOST_DURATIONS,
    )


async def neighbours(
    conn: Connection, feature_id: int, phase_number: int
) -> tuple[list[Neighbour], list[Neighbour]]:
    """Return (prerequisites, dependents) of a phase."""
    rows = [
        await fetch_rows(
            conn,
            Neighbour,
            f"select d.{there} as phase_number, p.queue_id, pgcoord_private.title_of(p) as title,"
            " p.status, p.finished_timestamp,"
            " coalesce(pgcoord_private.was_skipped(p), false) as skipped"
            " from pgcoord.dependency as d"
            " left join public.phase_queue as p"
            f" on p.feature_id = d.feature_id and p.phase_number = d.{there}"
            f" where d.feature_id = %s and d.{here} = %s order by 1",
            feature_id,
            phase_number,
        )
        for there, here in (("prerequisite", "dependent"), ("dependent", "prerequisite"))
    ]
    return rows[0], rows[1]


async def history(
    conn: Connection,
    feature_id: int | None,
    phase_number: int | None,
    before: int | None,
    limit: int,
    *,
    what: str | None = None,
    actor: str | None = None,
    until: date | None = None,
    after: int | None = None,
    zone: str | None = None,
) -> list[HistoryEvent]:
    """Return events, latest first: of all, of a feature, or of a phase; only ids below *before*.

    *what*: a kind of event, or a state: moves to it. *actor*: part of its name. *until*: the
    last day, in *zone*, else in that of the database's session. *after*: only ids above.
    """
    conditions: tuple[tuple[str, list[object]], ...] = (
        ("feature_id = %s", [feature_id]),
        ("phase_number = %s", [phase_number]),
        ("id < %s", [before]),
        ("(kind = %s or kind = 'phase_moved' and to_status = %s)", [what, what]),
        ("strpos(lower(actor), lower(%s)) > 0", [actor]),
        (
            "at < (%s::date + 1)::timestamp at time zone coalesce(%s, current_setting('timezone'))",
            [until, zone],
        ),
        ("id > %s", [after]),
    )
    applied = [(condition, values) for condition, values in conditions if values[0] is not None]
    where = " and ".join(condition for condition, _ in applied) or "true"
    return await fetch_rows(
        conn,
        HistoryEvent,
        f"select {columns_of(HistoryEvent)} from pgcoord.history where {where}"
        " order by id desc limit %s",
        *(value for _, values in applied for value in values),
        limit,
    )


class Since(Record):
    """The numbers of events since one that was seen; `latest`: the id of the last event of all."""

    latest: int
    looked_at: datetime | None
    failed: int
    completed: int
    gates: int
    others: int


# Events that are counted at most.
_MOST_COUNTED = 100_000


async def since(conn: Connection, event_id: int | None) -> Since:
    """Count the events after the one with id *event_id*, at most 100,000; None: count nothing."""
    row = await fetch_row(
        conn,
        Since,
        "with latest as (select coalesce(max(id), 0) as id from pgcoord.event),"
        # Ordered, so that no plan reads all events.
        " e as (select kind, to_status from pgcoord.event where id > %s::bigint"
        " order by id desc limit %s)"
        " select (select id from latest) as latest,"
        " (select at from pgcoord.event where id <= %s order by id desc limit 1) as looked_at,"
        " count(*) filter (where to_status = 'failed') as failed,"
        " count(*) filter (where to_status = 'completed') as completed,"
        " count(*) filter (where kind = 'gate_asked') as gates,"
        " count(*) filter (where to_status not in ('failed', 'completed') is not false"
        " and kind <> 'gate_asked') as others from e",
        event_id if event_id is not None else 2**62,
        _MOST_COUNTED,
        event_id,
    )
    assert row is not None
    return row


async def preview(
    conn: Connection, action: str, *, feature_id: int | None = None, queue_id: str | None = None
) -> list[Change]:
    """Return the changes that an action would make. Raises the same errors as the action."""
    return await fetch_rows(
        conn,
        Change,
        f"select {columns_of(Change)} from pgcoord.preview(%s, %s, %s)",
        action,
        feature_id,
        queue_id,
    )


async def preview_several(
    conn: Connection, action: str, queue_ids: list[str], priority: int | None
) -> list[Change]:
    """Return what an action on several phases would change, and which of them refuse it."""
    return await fetch_rows(
        conn,
        Change,
        f"select {columns_of(Change)} from pgcoord.preview_several(%s, %s, %s)",
        action,
        queue_ids,
        priority,
    )


class FoundPhase(Record):
    """A phase that a search has found; *skipped*: completed, though not run to its end."""

    queue_id: str
    feature_id: int
    feature: str
    phase_number: int
    title: str
    status: str
    skipped: bool


async def found_phases(
    conn: Connection,
    search: str | None,
    status: str | None,
    limit: int,
    feature_id: int | None = None,
) -> list[FoundPhase]:
    """Return open phases by words of their title or error, by name, by state. SQL: find_phases."""
    return await fetch_rows(
        conn,
        FoundPhase,
        "select f.queue_id, f.feature_id, f.feature, f.phase_number, f.title, f.status,"
        " coalesce(pgcoord_private.was_skipped(p), false) as skipped"
        " from pgcoord_private.find_phases(%s, %s, %s, %s) with ordinality as f"
        " join public.phase_queue as p using (queue_id) order by f.ordinality",
        search,
        status,
        feature_id,
        limit,
    )


class MoreSlots(Record):
    """How many slots a pool has now, and how many phases would start at once with more."""

    now: int
    start: int


async def many_more_slots(conn: Connection, slots: int, pool: str) -> MoreSlots | None:
    """Return what *slots* would mean; None unless these are more than 8 and than twice as now."""
    return await fetch_row(
        conn,
        MoreSlots,
        "select o.slots::integer as now, least(%s - o.slots, (select count(*) from pgcoord.line"
        " where pool = o.pool))::integer as start from pgcoord.pools as o"
        " where o.pool = %s and %s > 8 and %s > 2 * o.slots",
        slots,
        pool,
        slots,
        slots,
    )


async def workflows(conn: Connection) -> tuple[list[str], bool]:
    """Return (names, has_default) of the workflows that the leading coordinator declares."""
    names: list[str] = await fetch_value(
        conn, "select coalesce(array_agg(name order by name), '{}') from pgcoord.workflow"
    )
    default: bool = await fetch_value(
        conn, "select exists (select from pgcoord.workflow where is_default)"
    )
    return names, default
