-- The views for people: features, phases, slots, pools.

-- The result of an attempt of a phase; null if it has none.
create or replace function pgcoord_private.result_of(p_queue_id text, p_attempt integer) returns jsonb
language sql stable
return (
    select r.value from pgcoord.attempt as a join pgcoord.result as r on r.attempt_id = a.id
    where a.queue_id = p_queue_id and a.number = p_attempt
);

create or replace view pgcoord.feature as
select f.id, f.title, f.description, f.item_type, f.priority, f.estimated_hours, f.tags, f.plan,
    case
        when f.cancelled_at is not null then 'cancelled'
        when n.total > 0 and n.completed = n.total then 'completed'
        when n.started > 0 then 'in_progress'
        else 'planned'
    end as status,
    n.total as total_phases, n.completed as phases_completed, n.running as phases_running,
    n.failed as phases_failed, n.blocked as phases_blocked,
    f.paused_at, f.paused_reason, f.cancelled_at, f.cancelled_reason,
    f.created_by, f.created_at, n.started_at, n.finished_at, f.updated_at, f.xmin::text as version,
    spent.cost_usd, spent.tokens_in, spent.tokens_out, f.max_cost_usd::float8 as max_cost_usd,
    f.origin_id
from public.planned_features as f
    cross join lateral (
        select count(*) as total,
            count(*) filter (where p.status = 'completed') as completed,
            count(*) filter (where p.status in ('ready', 'running')) as running,
            count(*) filter (where p.status = 'failed') as failed,
            count(*) filter (where p.status = 'blocked') as blocked,
            count(*) filter (where p.attempt > 0 or p.status in ('completed', 'failed')) as started,
            min(p.ready_timestamp) as started_at,
            case when bool_and(p.status in ('completed', 'cancelled')) then max(p.finished_timestamp) end as finished_at
        from public.phase_queue as p
        where p.feature_id = f.id
    ) as n
    cross join lateral (    -- by all attempts, also those that failed
        select sum(r.cost_usd)::float8 as cost_usd, sum(r.tokens_in)::bigint as tokens_in, sum(r.tokens_out)::bigint as tokens_out
        from pgcoord.result as r where r.feature_id = f.id
    ) as spent;
comment on view pgcoord.feature is
    'Features with columns derived from their phases: status (planned, in_progress, completed, cancelled) and counts.';

-- The phases that need a person, in features of which no phase runs or can start.
create or replace view pgcoord_private.standstill as
select n.feature_id, string_agg(format('phase %s %s', n.phase_number, n.words), '; ' order by n.phase_number) as words
from (
        select p.feature_id, p.phase_number, p.status::text as words from public.phase_queue as p
        where p.status in ('failed', 'cancelled')
        union all
        select s.feature_id, s.phase_number, string_agg(s.words, ', ' order by s.refers_to) from pgcoord_private.stranded as s
        where s.status = 'queued' and (s.eligible_at is not null or s.kind = 'missing')
        group by s.feature_id, s.phase_number
        union all
        select g.feature_id, g.phase_number, 'asks for approval' as text from pgcoord.gate as g
    ) as n
    join public.planned_features as f on f.id = n.feature_id
where f.cancelled_at is null and not exists (
    select from public.phase_queue as p
    where p.feature_id = n.feature_id and (p.slot is not null
        or p.status = 'queued' and p.eligible_at is not null and not p.gated and not exists (
            select from pgcoord_private.stranded as s where s.queue_id = p.queue_id
        ))
)
group by n.feature_id;
comment on view pgcoord_private.standstill is 'Features that cannot proceed without a person, and the reason.';

create or replace view pgcoord.board as
select p.queue_id, p.feature_id, f.title as feature, p.phase_number, pgcoord_private.title_of(p) as title, p.status, p.slot,
    p.attempt, p.priority, p.depends_on_phases, p.issue_number, p.error_message,
    case p.status
        when 'ready' then p.ready_timestamp
        when 'running' then p.started_timestamp
        when 'queued' then coalesce(p.eligible_at, p.created_at)
        when 'blocked' then p.updated_at
        else p.finished_timestamp
    end as since,
    p.started_timestamp, p.finished_timestamp, first.words as waiting_for, pgcoord_private.result_of(p.queue_id, p.attempt) as result,
    pgcoord_private.was_skipped(p) as skipped, p.run_when, p.lock
from public.phase_queue as p
    join public.planned_features as f on f.id = p.feature_id
    left join pgcoord_private.first_reason as first
        on first.queue_id = p.queue_id and first.feature_id = p.feature_id and first.phase_number = p.phase_number
order by p.feature_id, p.phase_number;
comment on view pgcoord.board is 'Every phase with its state, since when, and what it waits for.';

create or replace view pgcoord.queue as
select p.queue_id, p.feature_id, p.phase_number, p.issue_number, p.status, p.depends_on_phases, p.phase_data, p.adw_id,
    p.pr_number, p.error_message, p.priority, p.queue_position, p.created_at, p.updated_at, p.ready_timestamp,
    p.started_timestamp, p.finished_timestamp, p.eligible_at, p.retry_at, p.slot, p.attempt, p.workflow_type,
    pgcoord_private.waiting_for(p) as waiting_for, p.gated, pgcoord_private.result_of(p.queue_id, p.attempt) as result,
    pgcoord_private.was_skipped(p) as skipped, p.run_when, p.lock
from public.phase_queue as p;
comment on view pgcoord.queue is 'Every phase with the columns of phase_queue that concern people, and what it waits for.';

create or replace view pgcoord.slots as
select s.number as slot, s.draining, p.queue_id, p.feature_id, p.phase_number, pgcoord_private.title_of(p) as title, p.status,
    coalesce(p.started_timestamp, p.ready_timestamp) as since, a.adw_id, a.host, a.pid, a.external, a.ending, a.deadline, s.pool,
    o.launcher, a.node, a.job, a.waits_for
from pgcoord.slot as s
    join pgcoord.pool as o on o.name = s.pool
    left join public.phase_queue as p on p.slot = s.number
    left join pgcoord.attempt as a on a.queue_id = p.queue_id and a.number = p.attempt
order by s.number;
comment on view pgcoord.slots is 'The slots, each with the phase that holds it.';

-- A pool without a slot is shown, too.
create or replace view pgcoord.pools as
select o.name as pool, o.launcher, o.declared, count(s.slot) filter (where not s.draining) as slots,
    count(s.queue_id) as held, count(s.slot) filter (where s.draining) as draining
from pgcoord.pool as o
    left join pgcoord.slots as s on s.pool = o.name
group by o.name, o.launcher, o.declared
order by o.name <> 'local', o.name;
comment on view pgcoord.pools is
    'The pools: launcher, number of slots, slots held. One that is not declared was removed from the configuration.';

-- Of the last thousand attempts only: older runs are no measure, and this needs no index.
create or replace view pgcoord.usual as
select workflow, count(*) as runs,
    percentile_cont(0.1) within group (order by ended_at - started_at) as low,
    percentile_cont(0.5) within group (order by ended_at - started_at) as median,
    percentile_cont(0.9) within group (order by ended_at - started_at) as high
from (select * from pgcoord.attempt order by id desc limit 1000) as latest
where outcome = 'completed' and started_at is not null
group by workflow;
comment on view pgcoord.usual is
    'The durations of each workflow: half of the runs took the median or less, eight of ten between low and high.';

create or replace view pgcoord.attention as
select n.kind, p.queue_id, p.feature_id, f.title as feature, p.phase_number, pgcoord_private.title_of(p) as title, p.status, n.since,
    n.words, n.attempt, n.exit_code, n.blocks
from (
        select 'failed' as kind, p.queue_id, p.finished_timestamp as since, pgcoord_private.headline(p.error_message) as words,
            p.attempt, a.exit_code, (
                select array_agg(d.dependent order by d.dependent) from pgcoord.dependency as d
                    join public.phase_queue as b on b.feature_id = d.feature_id and b.phase_number = d.dependent
                where d.feature_id = p.feature_id and d.prerequisite = p.phase_number and b.status = 'blocked'
            ) as blocks
        from public.phase_queue as p
            left join pgcoord.attempt as a on a.queue_id = p.queue_id and a.number = p.attempt
        where p.status = 'failed'
        union all
        select s.kind, s.queue_id, s.eligible_at, string_agg(s.words, '; ' order by s.refers_to),
            null::integer as attempt, null::integer as exit_code, null::integer[] as blocks    -- as a dump writes them
        from pgcoord_private.stranded as s
        where s.status = 'queued'
        group by s.kind, s.queue_id, s.eligible_at
        union all
        select 'gate' as kind, g.queue_id, g.asked_at, g.question,
            null::integer as attempt, null::integer as exit_code, null::integer[] as blocks
        from pgcoord.gate as g
        union all
        select 'unclaimable' as kind, u.queue_id, u.since, 'the database refuses its claim: ' || split_part(u.error, e'\n', 1),
            null::integer as attempt, null::integer as exit_code, null::integer[] as blocks
        from pgcoord.unclaimable as u
            join public.phase_queue as q on q.queue_id = u.queue_id and q.status = 'queued'
        union all
        select 'quiet' as kind, p.queue_id, a.quiet_since, 'has written nothing since then' as words,
            p.attempt, null::integer as exit_code, null::integer[] as blocks
        from public.phase_queue as p
            join pgcoord.attempt as a on a.queue_id = p.queue_id and a.number = p.attempt
        where p.slot is not null and a.quiet_since is not null and a.ended_at is null and a.ending is null
        union all
        select 'later' as kind, l.queue_id, l.since,
            format('was given back %s times: %s', l.times, pgcoord_private.headline(q.error_message)),
            null::integer as attempt, null::integer as exit_code, null::integer[] as blocks
        from pgcoord_private.postponed as l
            join public.phase_queue as q on q.queue_id = l.queue_id
        where l.since < now() - interval '1 hour' and l.times > 1
        union all
        select 'slow' as kind, p.queue_id, p.started_timestamp,
            format('runs more than twice as long as expected at most (%s, from %s%s)', pgcoord_private.in_words(l.high),
                pgcoord_private.counted(u.runs, 'past run', 'past runs'),
                case when pgcoord_private.estimate_of(p.phase_data) is not null then ' and its estimate' end),
            p.attempt, null::integer as exit_code, null::integer[] as blocks
        from public.phase_queue as p
            join pgcoord.usual as u on u.workflow = pgcoord_private.workflow_of(p)
            cross join lateral pgcoord_private.expected_length(
                pgcoord_private.estimate_of(p.phase_data), u.runs, u.low, u.median, u.high) as l
        where p.status = 'running' and u.runs >= 3 and p.started_timestamp < now() - 2 * l.high - interval '1 minute'
        union all
        select 'locked' as kind, u.queue_id, u.since, 'its process ' || u.words,
            null::integer as attempt, null::integer as exit_code, null::integer[] as blocks
        from pgcoord_private.unrecorded_now as u
        union all
        (select distinct on (l.queue_id) 'locked' as kind, l.queue_id, l.eligible_at, l.words,
            null::integer as attempt, null::integer as exit_code, null::integer[] as blocks
        from pgcoord_private.locked_phase as l
        order by l.queue_id, l.lock)
    ) as n
    join public.phase_queue as p using (queue_id)
    join public.planned_features as f on f.id = p.feature_id
where f.cancelled_at is null;
comment on view pgcoord.attention is
    'Phases that need a person: failed ones; and ones that cannot start, wait for an approval, write nothing for long, were returned again and again for an hour, run much longer than usual, or are delayed by another session''s lock.';

-- In the order in which claims of a pool take them. (Before the first coordinator, all phases are in the queue of local.)
-- The order is read from the index alone; the phases only as far as a LIMIT requires.
create or replace view pgcoord.line as
select p.queue_id, p.feature_id, f.title as feature, p.phase_number,
    pgcoord_private.title_of(p.phase_data, p.phase_number) as title, p.priority, p.eligible_at,
    k.pool
from (
        select c.feature_id, c.phase_number, c.priority, c.queue_position, coalesce(w.pool, 'local') as pool
        from pgcoord_private.claimable as c
            left join pgcoord_private.workflow_line as w on w.line = coalesce(c.workflow_type, '')
        order by c.priority, c.queue_position, c.feature_id, c.phase_number
    ) as k
    join public.phase_queue as p on p.feature_id = k.feature_id and p.phase_number = k.phase_number
    join public.planned_features as f on f.id = k.feature_id
where not exists (select from pgcoord_private.stranded as s where s.queue_id = p.queue_id and s.kind = 'workflow' offset 0)
order by k.priority, k.queue_position, k.feature_id, k.phase_number;
comment on view pgcoord.line is 'Phases that wait only for a slot, next first.';

-- The numbers of waiting phases: for a slot, for other phases, for the end of a pause, for a retry time.
create or replace view pgcoord.backlog as
select (select count(*) from pgcoord.line) as in_line,
    count(*) filter (where p.eligible_at is null and not p.held) as for_phases,
    count(*) filter (where p.held) as paused,
    count(*) filter (where p.retry_at is not null and not p.held) as for_retry,
    count(*) filter (where p.gated and p.eligible_at is not null and not p.held) as for_approval
from public.phase_queue as p
where p.status = 'queued';
comment on view pgcoord.backlog is 'How many queued phases wait for a slot, for other phases, for their feature to be resumed, for a retry time, for an approval.';
