-- Queries of the panel, the API and monitors that each read a whole page. Read only.

-- Phases as JSON objects, each as pgcoord.queue has it, in the order they are named.
-- The reasons are read feature by feature: phase by phase, those of 500 phases would take a second.
create or replace function pgcoord_private.phase_objects(p_queue_ids text[]) returns setof jsonb
language sql stable
begin atomic
    select to_jsonb(p) - '{attempts_used,unmet,held,parked}'::text[] || jsonb_build_object(
            'waiting_for', first.words, 'result', pgcoord_private.result_of(p.queue_id, p.attempt),
            'skipped', pgcoord_private.was_skipped(p))
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
-- queue_id, adw_id or issue, and by titles of phases while they are not finished. A planned feature has no phases yet; one
-- in progress has, and is not stopped: a phase of it runs or may start, or none of them needs a person.
-- Unfinished features, then the latest finished ones, for a list of features. It reads the open phases and as many features
-- as it returns, not all finished ones. (Long: one query, each part once.)
create or replace function pgcoord_private.list_features(p_show text, p_search text, p_limit integer)
returns setof integer
language sql stable
set search_path = pg_catalog, pg_temp
set jit = off as $$
    with
    working as materialized (select distinct feature_id as id from public.phase_queue where status <> 'completed'),
    idle as materialized (
        select u.feature_id as id from pgcoord.unqueued as u
        where not exists (select from public.phase_queue as p where p.feature_id = u.feature_id)
    ),
    open as materialized (
        select f.id from public.planned_features as f
        where f.id = any (array(select id from working union all select id from idle)) and f.cancelled_at is null
    ),
    needing as materialized (
        select a.feature_id as id, a.kind from pgcoord.attention as a where p_show in ('attention', 'in_progress')
    ),
    going as materialized (
        select distinct p.feature_id as id from public.phase_queue as p
        where p_show = 'in_progress' and p.status in ('queued', 'ready', 'running')
            and (p.slot is not null or p.eligible_at is not null
                and not exists (select from pgcoord_private.stranded as s where s.queue_id = p.queue_id offset 0))
    ),
    named as materialized (
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
    )
    (
        select o.id from open as o
        where case p_show
                when 'all' then true
                when 'finished' then false
                when 'attention' then o.id in (select n.id from needing as n)
                when 'planned' then o.id in (select i.id from idle as i)
                when 'in_progress' then o.id in (select w.id from working as w) and (
                    o.id in (select g.id from going as g)
                    or o.id not in (select n.id from needing as n where n.kind in ('failed', 'missing', 'workflow')))
                when 'completed' then exists (select from public.phase_queue as p where p.feature_id = o.id and p.status = p_show)
                else exists (select from public.phase_queue as p
                    where p.feature_id = o.id and p.status <> 'completed' and p.status = p_show)
            end
            and (p_search is null or o.id in (select id from named))
        order by o.id limit p_limit
    )
    union all
    (
        select f.id from public.planned_features as f
        where p_show not in ('attention', 'in_progress', 'planned')
            and f.id not in (select o.id from open as o)
            and (p_search is null or f.id in (select id from named))
            and case p_show
                when 'all' then true
                when 'finished' then true
                when 'completed' then exists (select from public.phase_queue as p where p.feature_id = f.id and p.status = p_show)
                else f.id in (select p.feature_id from public.phase_queue as p where p.status <> 'completed' and p.status = p_show)
            end
        order by f.id desc limit case when p_show = 'all' and p_search is null then 10 else p_limit end
    );
$$;

-- Phases of which the title, the name or the error has these words, or in this state (null: any), of a feature (null: of
-- all): those that are open and then the latest, at most p_limit. Within a feature its number is a name, too.
create or replace function pgcoord_private.find_phases(p_search text, p_status text, p_feature_id integer, p_limit integer)
returns table (queue_id text, feature_id integer, feature text, phase_number integer, title text, status text)
language sql stable
set search_path = pg_catalog, pg_temp
set jit = off as $$
    select p.queue_id, p.feature_id, f.title, p.phase_number, pgcoord_private.title_of(p), p.status::text
    from public.phase_queue as p
        join public.planned_features as f on f.id = p.feature_id
    where (p_feature_id is null or p.feature_id = p_feature_id)
        and (p_search is null or p.queue_id = p_search or strpos(lower(pgcoord_private.title_of(p)), lower(p_search)) > 0
            or strpos(lower(p.error_message), lower(p_search)) > 0
            or p_feature_id is not null and p.phase_number::text = p_search)
        and (p_status is null or p.status = p_status)
        -- Finished phases are searched by name only: there may be millions.
        and (p.status <> 'completed' or p.queue_id = p_search)
    order by p.feature_id, p.phase_number
    limit p_limit;
$$;

-- The row of a feature in the list: its counts, the state of each phase if there are few, and the person who paused it.
create or replace function pgcoord_private.feature_rows(p_ids integer[])
returns table (
    id integer, title text, status text, total bigint, counts jsonb, strip text[], running integer[], failed integer[],
    blocked bigint, missing integer, unknown integer, in_line bigint, planned integer, since timestamptz, finished_at timestamptz,
    paused_at timestamptz, paused_reason text, paused_by text, cancelled_at timestamptz, cancelled_reason text
)
language sql stable
set search_path = pg_catalog, pg_temp
set jit = off as $$
    with stranded as materialized (
        select s.queue_id, s.feature_id, s.phase_number, s.kind from pgcoord_private.stranded as s where s.status = 'queued'
    )
    select f.id, f.title, f.status, f.total_phases, n.counts, n.strip, n.running, n.failed, f.phases_blocked,
        (select min(s.phase_number) from stranded as s where s.feature_id = f.id and s.kind = 'missing' and f.cancelled_at is null),
        (select min(s.phase_number) from stranded as s where s.feature_id = f.id and s.kind = 'workflow' and f.cancelled_at is null),
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
                (select count(*) from pgcoord_private.claimable as p where p.feature_id = f.id
                    and p.queue_id not in (select s.queue_id from stranded as s)) as in_line
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
-- waited for. (`offset 0`: look-ups of each, never a whole table.)
create or replace function pgcoord_private.ended_attempts(
    p_events bigint[], out workflow text, out outcome text, out waited_seconds float8, out ran_seconds float8
) returns setof record
language sql stable
set enable_seqscan = off
begin atomic
    select a.workflow, a.outcome, case when a.number = 1 then extract(epoch from a.claimed_at - p.eligible_at) end, extract(epoch from a.ended_at - a.started_at)
    from unnest(p_events) as given (id)
        cross join lateral (select queue_id, attempt from pgcoord.event where id = given.id offset 0) as e
        cross join lateral (
            select queue_id, number, workflow, outcome, claimed_at, started_at, ended_at from pgcoord.attempt
            where queue_id = e.queue_id and number = e.attempt and ended_at is not null
            offset 0
        ) as a
        cross join lateral (select eligible_at from public.phase_queue where queue_id = a.queue_id offset 0) as p;
end;

-- End a log-in of the panel, until its cookies expire; forget those that have.
create or replace function pgcoord_private.end_login(p_digest text, p_until bigint) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    delete from pgcoord_private.ended_login where until < now();
    insert into pgcoord_private.ended_login (digest, until) values (p_digest, to_timestamp(p_until)) on conflict do nothing;
end $$;
