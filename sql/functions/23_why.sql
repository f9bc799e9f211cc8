-- The reason, in words, why a phase does not run.

-- For each blocked phase of a feature, the nearest failed or cancelled phase upstream: fewest steps, then lowest number. A
-- breadth-first search from all failed and cancelled phases at once; linear in phases and edges.
create or replace function pgcoord_private.obstacles(p_feature_id integer)
returns table (phase_number integer, obstacle integer, status text)
language plpgsql stable cost 10000 rows 100
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_nestloop = off set jit = off as $$
declare
    v_phases integer[];       -- phase numbers, by rank
    v_states text[];
    v_dependents integer[];   -- ranks of blocked dependents, grouped by the rank of their prerequisite
    v_first integer[];        -- where the group of a rank starts in v_dependents; one more at the end
    v_reached integer[];      -- ranks in the order in which they are reached, nearest first
    v_nearest integer[];      -- by rank: the rank of the obstacle
    v_taken integer := 0;
    v_rank integer;
begin
    with node as (
        select p.phase_number, p.status, (row_number() over (order by p.phase_number))::integer as rank
        from public.phase_queue as p
        where p.feature_id = p_feature_id and p.status in ('failed', 'cancelled', 'blocked')
    ), edge as (
        select up.rank as up, down.rank as down
        from node as up
            join pgcoord.dependency as d on d.feature_id = p_feature_id and d.prerequisite = up.phase_number
            join node as down on down.phase_number = d.dependent and down.status = 'blocked'
    )
    select array_agg(placed.phase_number order by rank), array_agg(placed.status order by rank), array_agg(first order by rank),
        array_agg(rank order by rank) filter (where placed.status <> 'blocked'),
        array_agg(case when placed.status <> 'blocked' then rank end order by rank),
        (select array_agg(down order by up, down) from edge)
    into v_phases, v_states, v_first, v_reached, v_nearest, v_dependents
    from (
        select node.*, (1 + sum(coalesce(fan.n, 0)) over (order by rank) - coalesce(fan.n, 0))::integer as first
        from node left join (select up, count(*) as n from edge group by up) as fan on fan.up = node.rank
    ) as placed;
    v_first := v_first || (coalesce(cardinality(v_dependents), 0) + 1);

    while v_taken < coalesce(cardinality(v_reached), 0) loop
        v_taken := v_taken + 1;
        v_rank := v_reached[v_taken];
        for i in v_first[v_rank] .. v_first[v_rank + 1] - 1 loop
            if v_nearest[v_dependents[i]] is null then
                v_nearest[v_dependents[i]] := v_nearest[v_rank];
                v_reached := v_reached || v_dependents[i];
            end if;
        end loop;
    end loop;
    return query
    select v_phases[r], v_phases[v_nearest[r]], v_states[v_nearest[r]] from generate_subscripts(v_phases, 1) as r
    where v_states[r] = 'blocked';
end $$;

-- Why the job of an attempt waits in its engine, in words; null if it does not wait.
create or replace function pgcoord_private.waits_in_engine(p_queue_id text, p_attempt integer) returns text
language sql stable
begin atomic
    select format('%s pool %s since %s%s%s', case when a.job is null then 'is being submitted to' else 'waits in' end, a.pool,
        pgcoord_private.clock(a.submitted_at), ', job ' || a.job, ': ' || a.waits_for)
    from pgcoord.attempt as a
    where a.queue_id = p_queue_id and a.number = p_attempt and a.submitted_at is not null and a.started_at is null;
end;

-- Each kind of reason is one branch over all phases, so the same view serves one phase, a feature of thousands, or
-- everything, and the cost depends on the rows that are read. A lower rank is more decisive.
create or replace view pgcoord.reasons as
select p.queue_id, p.feature_id, p.phase_number, 0 as rank, 'ending' as kind,
    format('is being ended (%s) since %s%s%s', a.ending, pgcoord_private.clock(a.ending_at), ': ' || a.ending_reason,
        '; job ' || a.job || ': ' || a.waits_for) as words,
    a.adw_id as refers_to
from public.phase_queue as p
    join pgcoord.attempt as a on a.queue_id = p.queue_id and a.number = p.attempt
where p.slot is not null and a.ended_at is null and a.ending is not null
union all
select p.queue_id, p.feature_id, p.phase_number, -1, 'unrecorded', 'its process ' || u.words, u.lock
from pgcoord_private.unrecorded_now as u
    join public.phase_queue as p using (queue_id)
union all
select p.queue_id, p.feature_id, p.phase_number, 1, 'unclaimable',
    format('the database refuses its claim, next try at %s: %s', pgcoord_private.clock(u.until), split_part(u.error, e'\n', 1)), null
from pgcoord.unclaimable as u
    join public.phase_queue as p using (queue_id)
where p.status = 'queued'
union all
select l.queue_id, l.feature_id, l.phase_number, 9, 'locked', l.words, l.lock
from pgcoord_private.locked_phase as l
union all
select p.queue_id, p.feature_id, p.phase_number, 1,
    case when p.status = 'ready' and pgcoord_private.waits_in_engine(p.queue_id, p.attempt) is not null then 'engine' else p.status end,
    case p.status
        when 'completed' then format('%s at %s', case when pgcoord_private.was_skipped(p) then 'skipped' else 'completed' end, to_char(p.finished_timestamp, 'YYYY-MM-DD HH24:MI:SS TZ'))
        when 'cancelled' then coalesce(case when p.gated then (
                select case when e.reason ~ '^rejected' then    -- its last move, if a person rejected it
                    format('%s (%s at %s)', e.reason, e.actor, to_char(e.at, 'YYYY-MM-DD HH24:MI:SS TZ')) end as words
                from pgcoord.event as e
                where e.feature_id = p.feature_id and e.phase_number = p.phase_number and e.kind = 'phase_moved'
                order by e.id desc limit 1) end,
            format('cancelled at %s', to_char(p.finished_timestamp, 'YYYY-MM-DD HH24:MI:SS TZ')))
        when 'failed' then format('failed at %s: %s', to_char(p.finished_timestamp, 'YYYY-MM-DD HH24:MI:SS TZ'),
            coalesce(pgcoord_private.headline(p.error_message), 'no reason was given'))
        when 'ready' then coalesce(pgcoord_private.waits_in_engine(p.queue_id, p.attempt), format('claimed at %s, slot %s%s; its process %s',
            pgcoord_private.clock(p.ready_timestamp), p.slot, pgcoord_private.in_pool(pgcoord_private.pool_of_slot(p.slot)),
            coalesce((select 'cannot be started now: ' || a.waits_for from pgcoord.attempt as a
                where a.queue_id = p.queue_id and a.number = p.attempt), 'is not started yet')))
        when 'running' then format('runs since %s in slot %s%s, attempt %s%s%s', pgcoord_private.clock(p.started_timestamp), p.slot,
            pgcoord_private.in_pool(pgcoord_private.pool_of_slot(p.slot)), p.attempt, (select ', unsupervised: it was inserted as running' as words from pgcoord.attempt as a
                where a.queue_id = p.queue_id and a.number = p.attempt and a.external),
            (select format(' on %s, job %s', a.node, a.job) as words from pgcoord.attempt as a
                where a.queue_id = p.queue_id and a.number = p.attempt and a.submitted_at is not null))
    end,
    p.adw_id
from public.phase_queue as p
where p.status not in ('queued', 'blocked')
union all    -- it may have ended by now: no coordinator watches it
select p.queue_id, p.feature_id, p.phase_number, -2, 'unwatched',
    u.words || ': no coordinator watches its process, and this is its last known state', null
from pgcoord_private.unwatched as u
    cross join public.phase_queue as p
where p.slot is not null and not exists (
    select from pgcoord.attempt as a where a.queue_id = p.queue_id and a.number = p.attempt and a.external
)
union all
select p.queue_id, p.feature_id, p.phase_number, 2, 'quiet',
    format('has written nothing since %s', pgcoord_private.clock(a.quiet_since)), a.adw_id
from public.phase_queue as p
    join pgcoord.attempt as a on a.queue_id = p.queue_id and a.number = p.attempt
where p.slot is not null and a.quiet_since is not null and a.ended_at is null and a.ending is null
union all    -- open prerequisites, and those that will never complete
select p.queue_id, p.feature_id, p.phase_number,
    case when up.status in ('failed', 'cancelled') then 2 else 4 end,
    case when up.status in ('failed', 'cancelled') then 'blocked' else 'prerequisite' end,
    format('waits for phase %s, %s%s', d.prerequisite, up.status,
        case when p.run_when = 'failed' then '; runs only if what it depends on is not completed' end), up.queue_id
from public.phase_queue as p
    join pgcoord.dependency as d on d.feature_id = p.feature_id and d.dependent = p.phase_number
    join public.phase_queue as up on up.feature_id = d.feature_id and up.phase_number = d.prerequisite
where p.status in ('queued', 'blocked') and up.status not in ('completed', 'blocked')
    and not pgcoord_private.is_met(up.status, p.run_when)
union all    -- a missing prerequisite; or a missing workflow, which matters once the prerequisites are completed
select s.queue_id, s.feature_id, s.phase_number, case s.kind when 'missing' then 3 else 9 end, s.kind, s.words, s.refers_to
from pgcoord_private.stranded as s
where s.kind = 'missing' or s.status = 'queued' and s.eligible_at is not null and exists (select from pgcoord.leader)
union all    -- (A case expression: without statistics, the planner would expect one phase, and call obstacles for each phase. The join is on f.id, so that a filter on features applies before that call.)
select p.queue_id, f.id, p.phase_number, 2, 'blocked',
    format('waits for phase %s, which waits for phase %s, %s', d.prerequisite, o.obstacle, o.status), up.queue_id
from public.planned_features as f
    cross join lateral pgcoord_private.obstacles(f.id) as o
    join public.phase_queue as up on up.feature_id = f.id and up.phase_number = o.phase_number
    join pgcoord.dependency as d on d.feature_id = f.id and d.prerequisite = up.phase_number and not d.conditional
    join public.phase_queue as p on p.feature_id = f.id and p.phase_number = d.dependent
where case p.status when 'queued' then true when 'blocked' then true else false end
union all    -- a person, who is asked
select g.queue_id, g.feature_id, g.phase_number, 3, 'gate',
    format('asks for approval since %s: %s', pgcoord_private.clock(g.asked_at), g.question), null
from pgcoord.gate as g
union all    -- reasons of phases whose prerequisites are completed: a retry time, a pause, no coordinator, the queue
select p.queue_id, p.feature_id, p.phase_number, 5, 'retry',
    format('is tried again at %s%s%s',
        pgcoord_private.clock(p.retry_at),
        case when l.times > 1 then format(' (try %s in a row since %s)', l.times + 1, pgcoord_private.clock(l.since)) end,
        ', after: ' || pgcoord_private.headline(p.error_message)), null
from public.phase_queue as p
    left join lateral (select * from pgcoord_private.postponed as each where each.queue_id = p.queue_id) as l on true
where p.status = 'queued' and p.eligible_at is not null and p.retry_at > clock_timestamp()
union all
select p.queue_id, p.feature_id, p.phase_number, 6, 'paused',
    format('its feature is paused since %s%s', to_char(f.paused_at, 'YYYY-MM-DD HH24:MI:SS TZ'), ': ' || f.paused_reason), f.id::text
from public.phase_queue as p
    join public.planned_features as f on f.id = p.feature_id
where p.status = 'queued' and p.eligible_at is not null and p.held
union all
select p.queue_id, p.feature_id, p.phase_number, 7, 'paused',
    format('everything is paused since %s%s', to_char(c.paused_at, 'YYYY-MM-DD HH24:MI:SS TZ'), ': ' || c.paused_reason), null
from public.phase_queue as p, pgcoord.control as c
where p.status = 'queued' and p.eligible_at is not null and c.paused_at is not null
union all
select p.queue_id, p.feature_id, p.phase_number, 8, 'coordinator',
    coalesce((select 'no coordinator leads: ' || b.words collate "default" from pgcoord.lead_blocker as b), 'no coordinator runs'), null
from public.phase_queue as p
where p.status = 'queued' and p.eligible_at is not null and not p.gated and not exists (select from pgcoord.leader)
union all
select p.queue_id, p.feature_id, p.phase_number, 9, 'github',
    format('GitHub makes no issues since %s, and is asked again at %s: %s', pgcoord_private.clock(c.issues_held_since),
        pgcoord_private.clock(pgcoord_private.issues_held_until(c)), c.issues_held_reason), null
from public.phase_queue as p, pgcoord.control as c
where p.status = 'queued' and p.eligible_at is not null and p.issue_number is null and pgcoord_private.issues_held_until(c) is not null
union all
select p.queue_id, p.feature_id, p.phase_number, 9, 'lock', format('waits for lock %s, held by %s', p.lock, l.holder), p.lock
from public.phase_queue as p
    cross join lateral (select pgcoord_private.lock_holder(p.lock) as holder) as l
where p.lock is not null and p.status = 'queued' and p.eligible_at is not null and l.holder is not null
union all
select p.queue_id, p.feature_id, p.phase_number, 10, 'slot',
    case when count.held < count.slots
        then format('is %s in line; a slot%s is free', pgcoord_private.ordinal(line.place), pgcoord_private.in_pool(line.pool))
        when count.slots = 0 and count.held = 0
        then format('waits for a slot%s, %s in line; there is none (pgcoord slots N%s)', pgcoord_private.in_pool(line.pool),
            pgcoord_private.ordinal(line.place), ' --pool ' || nullif(line.pool, 'local'))
        when count.held > count.slots
        then format('waits for a slot%s, %s in line; %s are held, and the limit is %s now', pgcoord_private.in_pool(line.pool),
            pgcoord_private.ordinal(line.place), count.held, count.slots)
        else format('waits for a slot%s, %s in line; %s of %s are held', pgcoord_private.in_pool(line.pool),
            pgcoord_private.ordinal(line.place), count.held, count.slots)
    end, null
from (
        select q.feature_id, q.phase_number, coalesce(w.pool, 'local') as pool,
            row_number() over (
                partition by coalesce(w.pool, 'local') order by q.priority, q.queue_position, q.feature_id, q.phase_number
            ) as place
        from pgcoord_private.claimable as q
            left join pgcoord_private.workflow_line as w on w.line = coalesce(q.workflow_type, '')
    ) as line
    join public.phase_queue as p using (feature_id, phase_number)
    join (
        select s.pool, count(*) filter (where not s.draining) as slots, count(holder.slot) as held
        from pgcoord.slot as s left join public.phase_queue as holder on holder.slot = s.number
        group by s.pool
        union all
        select o.name, 0, 0 from pgcoord.pool as o where not exists (select from pgcoord.slot as s where s.pool = o.name)
    ) as count on count.pool = line.pool
where not exists (select from pgcoord_private.stranded as s where s.queue_id = p.queue_id and s.kind = 'workflow' offset 0)
union all    -- this does not delay the phase, but is probably a mistake (the size is known without reading a long prompt)
select p.queue_id, p.feature_id, p.phase_number, 11, 'empty',
    'says nothing of what is to be done: it has neither title nor prompt', null
from public.phase_queue as p
where p.status in ('queued', 'blocked', 'ready', 'running') and pg_column_size(p.phase_data) < 1000 and pgcoord_private.is_empty(p.phase_data);
comment on view pgcoord.reasons is 'The reasons for the state of each phase: a row for each reason.';

create or replace function pgcoord.why(p_queue_id text) returns table (kind text, words text, refers_to text)
language plpgsql stable
set search_path = pg_catalog, pg_temp as $$
declare
    v_phase public.phase_queue;
begin
    select * into v_phase from public.phase_queue where queue_id = p_queue_id;
    if not found then
        raise exception using
            errcode = 'PC001',
            message = format('there is no phase %s', coalesce(p_queue_id, 'null')),
            hint = 'select queue_id from phase_queue shows those that exist.';
    end if;
    return query
    select r.kind, r.words, r.refers_to from pgcoord.reasons as r
    where r.feature_id = v_phase.feature_id and r.queue_id = p_queue_id
        -- This reason counts the whole queue, so it is computed only for a phase that is in the queue.
        and (r.kind <> 'slot' or v_phase.status = 'queued' and v_phase.eligible_at is not null and not v_phase.held)
    order by r.rank, r.refers_to;
end $$;
comment on function pgcoord.why(text) is
    'The reasons for the state of a phase: a row for each reason, most decisive first, with its kind, the words, and the object that it refers to.';

create or replace view pgcoord.waiting as
select p.queue_id, p.feature_id, p.phase_number, pgcoord_private.title_of(p) as title, p.status, r.kind, r.words
from public.phase_queue as p
    join pgcoord.reasons as r using (queue_id, feature_id)
where p.status in ('queued', 'blocked')
order by p.feature_id, p.phase_number, r.rank, r.refers_to;
comment on view pgcoord.waiting is 'Phases that wait, with every reason of each.';

-- The reason why a phase waits, in words; null if it does not wait. Its high COST makes the planner call it only for the
-- rows that a query returns.
create or replace function pgcoord_private.waiting_for(p_phase public.phase_queue) returns text
language sql stable cost 10000
begin atomic
    select case when p_phase.status in ('queued', 'blocked', 'ready', 'running')
        then (select y.words from pgcoord.why(p_phase.queue_id) as y where y.kind not in ('ready', 'running', 'empty') limit 1) end;
end;

create or replace view pgcoord_private.first_reason as
select distinct on (feature_id, phase_number, queue_id) feature_id, phase_number, queue_id, words
from pgcoord.reasons
where kind not in ('ready', 'running', 'completed', 'failed', 'cancelled', 'empty')
order by feature_id, phase_number, queue_id, rank, refers_to;
comment on view pgcoord_private.first_reason is 'Waiting phases, each with its most decisive reason.';
