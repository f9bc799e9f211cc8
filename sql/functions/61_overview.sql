-- What the panel, the API and a monitor read at once. Read only.

-- Phases as JSON objects, each as pgcoord.queue has it, in the order they are named.
-- The reasons are read feature by feature: asked for one by one, those of 500 phases would take a second.
create or replace function pgcoord_private.phase_objects(p_queue_ids text[]) returns setof jsonb
language sql stable
begin atomic
    select to_jsonb(p) - '{attempts_used,unmet,held}'::text[]
        || jsonb_build_object('waiting_for', first.words, 'skipped', pgcoord_private.was_skipped(p))
    from unnest(p_queue_ids) with ordinality as named (queue_id, place)
        join public.phase_queue as p using (queue_id)
        left join (
            select queue_id, words from pgcoord_private.first_reason
            where feature_id = any (array(select distinct feature_id from public.phase_queue where queue_id = any (p_queue_ids)))
            offset 0    -- or the planner would look for the obstacle of each phase by itself
        ) as first using (queue_id)
    order by named.place;
end;

-- Features to show: all, attention, in_progress, planned, finished, or with a phase in a state; found by title, id,
-- queue_id, adw_id or issue, and by titles of phases while they are not finished.
-- Features that are not finished, then the latest of those that are: what a page of features shows. It reads the phases
-- that are open and an index entry of every feature, not the phases that are done, however many these are.
create or replace function pgcoord_private.list_features(p_show text, p_search text, p_limit integer)
returns setof integer
language sql stable
set search_path = pg_catalog, pg_temp
set jit = off as $$
    with
    working as materialized (select distinct feature_id as id from public.phase_queue where status <> 'completed'),
    feature as (
        -- (A scalar subquery: of an exists the planner would make a table of all phases.)
        select f.id, f.title, f.cancelled_at is null and (w.id is not null
                or (select true from public.phase_queue as p where p.feature_id = f.id limit 1) is null) as open
        from public.planned_features as f
            left join working as w on w.id = f.id
    ),
    named as (
        select id from public.planned_features where strpos(lower(title), lower(p_search)) > 0 or id::text = p_search
        union all
        select feature_id from public.phase_queue where queue_id = p_search
        union all
        select feature_id from public.phase_queue
        where issue_number = case when p_search ~ '^#?[0-9]{1,9}$' then ltrim(p_search, '#')::integer end
        union all
        select p.feature_id from pgcoord.attempt as a join public.phase_queue as p using (queue_id) where a.adw_id = p_search
        union all
        select p.feature_id from public.phase_queue as p join working as w on w.id = p.feature_id
        where strpos(lower(pgcoord_private.title_of(p)), lower(p_search)) > 0
    ),
    found as materialized (
        select id, open from feature as f
        where case p_show
                when 'all' then true
                when 'finished' then not f.open
                when 'attention' then f.open and f.id in (select a.feature_id from pgcoord.attention as a)
                when 'in_progress' then f.open and exists (select from pgcoord.feature as v where v.id = f.id and v.status = p_show)
                when 'planned' then f.open and exists (select from pgcoord.feature as v where v.id = f.id and v.status = p_show)
                when 'completed' then exists (select from public.phase_queue as p where p.feature_id = f.id and p.status = p_show)
                else f.id in (select p.feature_id from public.phase_queue as p where p.status <> 'completed' and p.status = p_show)
            end
            and (p_search is null or f.id in (select id from named))
    )
    (select id from found where open order by id limit p_limit)
    union all
    (select id from found where not open order by id desc limit case when p_show = 'all' and p_search is null then 10 else p_limit end);
$$;

-- What the list of features shows of each: its counts, the state of each phase where there are few, who paused it.
create or replace function pgcoord_private.feature_rows(p_ids integer[])
returns table (
    id integer, title text, status text, total bigint, counts jsonb, strip text[], running integer[], failed integer[],
    blocked bigint, missing integer, in_line bigint, planned integer, since timestamptz, finished_at timestamptz,
    paused_at timestamptz, paused_reason text, paused_by text, cancelled_at timestamptz, cancelled_reason text
)
language sql stable
set search_path = pg_catalog, pg_temp
set jit = off as $$
    select f.id, f.title, f.status, f.total_phases, n.counts, n.strip, n.running, n.failed, f.phases_blocked,
        (select a.phase_number from pgcoord.attention as a where a.feature_id = f.id and a.kind = 'missing' order by 1 limit 1),
        n.in_line, coalesce(jsonb_array_length(f.plan), 0), coalesce(f.started_at, f.created_at), f.finished_at,
        f.paused_at, f.paused_reason,
        case when f.paused_at is not null then (
            select e.actor from pgcoord.event as e
            where e.feature_id = f.id and e.phase_number is null and e.kind = 'feature_paused' order by e.id desc limit 1) end,
        f.cancelled_at, f.cancelled_reason
    from unnest(p_ids) with ordinality as wanted (id, place)
        join pgcoord.feature as f on f.id = wanted.id
        cross join lateral (
            select jsonb_object_agg(s.status, s.n) as counts,
                case when sum(s.n) <= 12 then (
                    select array_agg(p.status::text order by p.phase_number) from public.phase_queue as p where p.feature_id = f.id) end as strip,
                (select array_agg(p.phase_number order by p.phase_number) from public.phase_queue as p
                    where p.feature_id = f.id and p.slot is not null) as running,
                (select array_agg(p.phase_number order by p.phase_number) from public.phase_queue as p
                    where p.feature_id = f.id and p.status = 'failed') as failed,
                (select count(*) from pgcoord_private.claimable as p where p.feature_id = f.id) as in_line
            from (select p.status, count(*) as n from public.phase_queue as p where p.feature_id = f.id group by p.status) as s
        ) as n
    order by wanted.place;
$$;

-- How many phases there are in each state, the pools with their slots in all and in use, since when the oldest eligible phase waits, how
-- full the queue of notifications is.
create or replace function pgcoord_private.measures(
    out phases jsonb, out pools jsonb, out paused boolean, out oldest_eligible_seconds float8, out notification_queue_usage float8
)
language sql stable
begin atomic
    select
        (select jsonb_object_agg(status, n) from (select status, count(*) as n from public.phase_queue group by status) as counted),
        (select jsonb_agg(to_jsonb(o)) from pgcoord.pools as o),
        (select paused_at is not null from pgcoord.control),
        (select extract(epoch from clock_timestamp() - min(eligible_at)) from pgcoord_private.claimable),
        pg_notification_queue_usage();
end;

-- The attempts that ended with the given events: how, after what time, and how long the first one of a phase was
-- waited for.
create or replace function pgcoord_private.ended_attempts(
    p_events bigint[], out workflow text, out outcome text, out waited_seconds float8, out ran_seconds float8
) returns setof record
language sql stable
begin atomic
    select a.workflow, a.outcome, case when a.number = 1 then extract(epoch from a.claimed_at - p.eligible_at) end, extract(epoch from a.ended_at - a.started_at)
    from pgcoord.event as e
        join pgcoord.attempt as a on a.queue_id = e.queue_id and a.number = e.attempt
        join public.phase_queue as p on p.queue_id = a.queue_id
    where e.id = any (p_events) and a.ended_at is not null;
end;
