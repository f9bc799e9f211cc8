-- The work as people look at it: what is usual, what is expected and why, what needs somebody, who is next, and what an
-- action would change. (The name of this file puts it after those whose views it uses.) Nothing here changes
-- anything, but for cancel_branch, an action that only people take.

create or replace function pgcoord.workflow_of(p_phase public.phase_queue) returns text
language sql stable
return coalesce((p_phase).workflow_type, (select name from pgcoord.workflow where is_default));
comment on function pgcoord.workflow_of(public.phase_queue) is 'The workflow that runs a phase: the one it names, else the default.';

-- Of the last thousand attempts, not of all: what was usual a year ago is no measure, and no index is needed for it.
create or replace view pgcoord.usual as
select workflow, count(*) as runs,
    percentile_cont(0.1) within group (order by ended_at - started_at) as low,
    percentile_cont(0.5) within group (order by ended_at - started_at) as median,
    percentile_cont(0.9) within group (order by ended_at - started_at) as high
from (select * from pgcoord.attempt order by id desc limit 1000) as latest
where outcome = 'completed' and started_at is not null
group by workflow;
comment on view pgcoord.usual is
    'How long each workflow takes: half of the runs took the median or less, eight of ten between low and high.';

-- How long each phase of some features will yet take: nothing for a completed one, what is left of the usual for a
-- running one, all of it for the rest, also the failed and blocked, as if they were retried now. Where there is no
-- history of its workflow, its own estimate counts, from half to twice; where there is none either, it is null.
create or replace function pgcoord.remaining(p_feature_ids integer[])
returns table (
    feature_id integer, phase_number integer, runs bigint, usual interval,
    low double precision, mid double precision, high double precision, not_before double precision
)
language sql stable
set jit = off as $$
    with
    usual as materialized (select * from pgcoord.usual),
    phase as (
        select p.feature_id, p.phase_number, p.status, p.retry_at, coalesce(u.runs, 0) as runs,
            extract(epoch from coalesce(u.low, e.estimate / 2))::double precision as low,
            extract(epoch from coalesce(u.median, e.estimate))::double precision as mid,
            extract(epoch from coalesce(u.high, e.estimate * 2))::double precision as high,
            case when p.status = 'running' then extract(epoch from now() - p.started_timestamp)::double precision else 0 end as elapsed
        from public.phase_queue as p
            left join usual as u on u.workflow = pgcoord.workflow_of(p)
            cross join lateral (
                select case jsonb_typeof(p.phase_data -> 'estimated_hours') when 'number'
                    -- As a numeric, for a JSON number may be too large, or too near to 0, for any other type.
                    then make_interval(secs => round(3600 * least(greatest((p.phase_data ->> 'estimated_hours')::numeric, 0), 1e5), 6)::float8) end
                    as estimate
            ) as e
        where p.feature_id = any (p_feature_ids)
    )
    select feature_id, phase_number, runs, make_interval(secs => mid),
        case when status = 'completed' then 0 when mid is not null then greatest(low - elapsed, 0) end,
        case when status = 'completed' then 0 when elapsed < mid then mid - elapsed when mid is not null then greatest(high - elapsed, 0) / 2 end,
        case when status = 'completed' then 0 when mid is not null then greatest(high - elapsed, 0) end,
        case when status = 'queued' then greatest(extract(epoch from retry_at - now())::double precision, 0) end
    from phase;
$$;
comment on function pgcoord.remaining(integer[]) is
    'How many seconds each phase of these features will yet take: low, most likely, high; null where nothing tells.';

create or replace function pgcoord.in_minutes(p_seconds double precision) returns timestamptz
language sql stable
return date_trunc('minute', case when p_seconds is not null    -- (of a null, `least` would make the other)
    then least(now() + make_interval(secs => p_seconds + 30), '9999-12-31 00:00+00') end);
comment on function pgcoord.in_minutes(double precision) is
    'The time in so many seconds, to the minute: an expectation says no more, and stays the same while nothing changes.';

-- Phases are gone through after all their prerequisites (arrays and one pass: a recursive query would walk each path,
-- and there may be more of them than can be counted). Slots are not looked at here; see expected_finish.
create or replace function pgcoord.forecast(p_feature_ids integer[])
returns table (
    feature_id integer, phase_number integer, layer integer, critical boolean, runs bigint, usual interval,
    starts_at timestamptz, ends_at timestamptz, earliest timestamptz, latest timestamptz
)
language plpgsql stable
set jit = off as $$
declare
    v_features integer[];
    v_numbers integer[];
    v_runs bigint[];
    v_usual interval[];
    v_low double precision[];
    v_mid double precision[];
    v_high double precision[];
    v_from integer[];    -- edges, by place of the prerequisite
    v_to integer[];
    v_first integer[];    -- where the edges of a phase begin
    v_open integer[];    -- prerequisites not gone through yet
    v_order integer[] := '{}';
    v_layer integer[];
    v_start double precision[];
    v_end double precision[];
    v_down double precision[];    -- squared spread along the path that decides
    v_up double precision[];
    v_before integer[];    -- the prerequisite that decides when a phase starts
    v_critical boolean[];
    v_count integer;
    v_at integer := 1;
    v_edge integer;
    i integer;
    j integer;
begin
    select array_agg(r.feature_id order by r.feature_id, r.phase_number), array_agg(r.phase_number order by r.feature_id, r.phase_number),
        array_agg(r.runs order by r.feature_id, r.phase_number), array_agg(r.usual order by r.feature_id, r.phase_number),
        array_agg(r.low order by r.feature_id, r.phase_number), array_agg(r.mid order by r.feature_id, r.phase_number),
        array_agg(r.high order by r.feature_id, r.phase_number), array_agg(coalesce(r.not_before, 0) order by r.feature_id, r.phase_number),
        count(*)
    into v_features, v_numbers, v_runs, v_usual, v_low, v_mid, v_high, v_start, v_count
    from pgcoord.remaining(p_feature_ids) as r;
    if v_count = 0 then
        return;
    end if;
    with place as materialized (
        select p.feature_id, p.number, p.place
        from unnest(v_features, v_numbers) with ordinality as p (feature_id, number, place)
    )
    select array_agg(up.place::integer order by up.place), array_agg(down.place::integer order by up.place)
    into v_from, v_to
    from pgcoord.dependency as d
        join place as up on up.feature_id = d.feature_id and up.number = d.prerequisite
        join place as down on down.feature_id = d.feature_id and down.number = d.dependent
    where d.feature_id = any (p_feature_ids);

    v_open := array_fill(0, array[v_count]);
    v_first := array_fill(null::integer, array[v_count]);
    v_before := array_fill(null::integer, array[v_count]);
    v_layer := array_fill(0, array[v_count]);
    v_end := array_fill(0::double precision, array[v_count]);
    v_down := v_end;
    v_up := v_end;
    v_critical := array_fill(false, array[v_count]);
    for v_edge in 1 .. coalesce(cardinality(v_from), 0) loop
        v_open[v_to[v_edge]] := v_open[v_to[v_edge]] + 1;
        if v_first[v_from[v_edge]] is null then
            v_first[v_from[v_edge]] := v_edge;
        end if;
    end loop;
    for i in 1 .. v_count loop
        if v_open[i] = 0 then
            v_order := v_order || i;
        end if;
    end loop;

    while v_at <= cardinality(v_order) loop
        i := v_order[v_at];
        v_at := v_at + 1;
        v_end[i] := v_start[i] + v_mid[i];
        v_down[i] := coalesce(v_down[v_before[i]], 0) + (v_mid[i] - v_low[i]) ^ 2;
        v_up[i] := coalesce(v_up[v_before[i]], 0) + (v_high[i] - v_mid[i]) ^ 2;
        v_edge := v_first[i];
        while v_from[v_edge] = i loop
            j := v_to[v_edge];
            v_layer[j] := greatest(v_layer[j], v_layer[i] + 1);
            -- Null, for a duration that nothing tells, is later than any.
            if v_mid[i] is distinct from 0 and v_start[j] is not null and (v_end[i] is null or v_end[i] > v_start[j] or v_before[j] is null) then
                v_start[j] := v_end[i];
                v_before[j] := i;
            end if;
            v_open[j] := v_open[j] - 1;
            if v_open[j] = 0 then
                v_order := v_order || j;
            end if;
            v_edge := v_edge + 1;
        end loop;
    end loop;

    for i in
        select distinct on (v_features[n]) n
        from generate_series(1, v_count) as n
        where v_mid[n] is distinct from 0
        order by v_features[n], v_end[n] desc nulls first, v_layer[n] desc
    loop
        j := i;
        while j is not null loop
            v_critical[j] := true;
            j := v_before[j];
        end loop;
    end loop;
    return query
    select v_features[n], v_numbers[n], v_layer[n], v_critical[n], v_runs[n], v_usual[n],
        pgcoord.in_minutes(v_start[n]), pgcoord.in_minutes(v_end[n]),
        pgcoord.in_minutes(greatest(v_end[n] - sqrt(v_down[n]), 0)), pgcoord.in_minutes(v_end[n] + sqrt(v_up[n]))
    from generate_series(1, v_count) as n;
end $$;
comment on function pgcoord.forecast(integer[]) is
    'When each phase of these features would run if nothing failed and there were slots for all: its layer in the graph, whether it is on the critical path, and from when to when.';

-- A feature ends when its longest path does, and not before its slots could have done all the work.
create or replace function pgcoord.expected_finish(p_feature_ids integer[])
returns table (
    feature_id integer, path integer[], runs bigint, path_takes interval,
    ends_at timestamptz, earliest timestamptz, latest timestamptz
)
language sql stable
set jit = off as $$
    with work as (
        select r.feature_id,
            sum(r.mid) / greatest((select count(*) from pgcoord.slot where not draining), 1) as takes
        from pgcoord.remaining(p_feature_ids) as r
        group by r.feature_id
    )
    select f.feature_id, array_agg(f.phase_number order by f.layer) filter (where f.critical), max(f.runs),
        max(f.ends_at) filter (where f.critical) - pgcoord.in_minutes(0),
        case when bool_and(f.ends_at is not null) then greatest(max(f.ends_at), pgcoord.in_minutes(w.takes)) end,
        case when bool_and(f.ends_at is not null) then greatest(max(f.earliest), pgcoord.in_minutes(w.takes)) end,
        case when bool_and(f.ends_at is not null) then greatest(max(f.latest), pgcoord.in_minutes(w.takes)) end
    from pgcoord.forecast(p_feature_ids) as f
        join work as w using (feature_id)
    group by f.feature_id, w.takes;
$$;
comment on function pgcoord.expected_finish(integer[]) is
    'The critical path of each feature, and when it would be finished with the slots there are if nothing else ran and nothing failed; null where no history tells.';

create or replace view pgcoord.attention as
select n.kind, p.queue_id, p.feature_id, f.title as feature, p.phase_number, pgcoord.title_of(p) as title, p.status, n.since,
    n.words, n.attempt, n.exit_code, n.blocks
from (
        select 'failed' as kind, p.queue_id, p.finished_timestamp as since, split_part(p.error_message, e'\n', 1) as words,
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
        from pgcoord.stranded as s
        where s.status = 'queued'
        group by s.kind, s.queue_id, s.eligible_at
        union all
        select 'slow' as kind, p.queue_id, p.started_timestamp,
            format('runs more than twice as long as its workflow usually does at most (%s)', date_trunc('second', u.high)),
            p.attempt, null::integer as exit_code, null::integer[] as blocks
        from public.phase_queue as p
            join pgcoord.usual as u on u.workflow = pgcoord.workflow_of(p)
        where p.status = 'running' and u.runs >= 3 and p.started_timestamp < now() - 2 * u.high - interval '1 minute'
    ) as n
    join public.phase_queue as p using (queue_id)
    join public.planned_features as f on f.id = p.feature_id
where f.cancelled_at is null;
comment on view pgcoord.attention is
    'Phases that need somebody: failed ones, such as cannot start, and such as run much longer than usual.';

-- In the order in which claims take them.
create or replace view pgcoord.line as
select p.queue_id, p.feature_id, f.title as feature, p.phase_number, pgcoord.title_of(p) as title, p.priority, p.eligible_at
from public.phase_queue as p
    join public.planned_features as f on f.id = p.feature_id
where p.status = 'queued' and p.eligible_at is not null and p.retry_at is null and not p.held
    and not exists (select from pgcoord.stranded as s where s.queue_id = p.queue_id and s.kind = 'workflow' offset 0)
order by p.priority, p.queue_position, p.feature_id, p.phase_number;
comment on view pgcoord.line is 'Phases that wait for nothing but a slot, next first.';

-- Features that are not finished, then the latest of those that are: what a page of features shows. It reads the phases
-- that are open and an index entry of every feature, not the phases that are done, however many these are.
create or replace function pgcoord.list_features(p_show text, p_search text, p_limit integer)
returns setof integer
language sql stable
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
        where strpos(lower(pgcoord.title_of(p)), lower(p_search)) > 0
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
comment on function pgcoord.list_features(text, text, integer) is
    'Features to show: all, attention, in_progress, planned, finished, or with a phase in a state; found by title, id, queue_id, adw_id or issue, and by titles of phases while they are not finished.';

create or replace function pgcoord.feature_rows(p_ids integer[])
returns table (
    id integer, title text, status text, total bigint, counts jsonb, strip text[], running integer[], failed integer[],
    blocked bigint, missing integer, in_line bigint, planned integer, since timestamptz, finished_at timestamptz,
    paused_at timestamptz, paused_reason text, paused_by text, cancelled_at timestamptz, cancelled_reason text
)
language sql stable
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
                (select count(*) from public.phase_queue as p
                    where p.feature_id = f.id and p.status = 'queued' and p.eligible_at is not null and p.retry_at is null and not p.held) as in_line
            from (select p.status, count(*) as n from public.phase_queue as p where p.feature_id = f.id group by p.status) as s
        ) as n
    order by wanted.place;
$$;
comment on function pgcoord.feature_rows(integer[]) is 'What the list of features shows of each: its counts, the state of each phase where there are few, who paused it.';

-- How much waits: in line for a slot, for other phases, because it is paused, for a time.
create or replace view pgcoord.backlog as
select count(*) filter (where p.eligible_at is not null and p.retry_at is null and not p.held and s.queue_id is null) as in_line,
    count(*) filter (where p.eligible_at is null and not p.held) as for_phases,
    count(*) filter (where p.held) as paused,
    count(*) filter (where p.retry_at is not null and not p.held) as for_retry
from public.phase_queue as p
    left join pgcoord.stranded as s on s.queue_id = p.queue_id and s.kind = 'workflow'
where p.status = 'queued';
comment on view pgcoord.backlog is 'How many queued phases wait for a slot, for other phases, for their feature to be resumed, for a retry time.';

-- Give up a phase and all that depends on it, directly or not.
-- Locks: the feature, then its phases.
create or replace function pgcoord.cancel_branch(p_queue_id text, p_reason text) returns integer
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_phase public.phase_queue := pgcoord.lock_phase(p_queue_id);
    v_cancelled integer;
begin
    perform pgcoord.set_reason(coalesce(p_reason, 'cancelled'));
    with recursive branch as (
        select v_phase.phase_number as phase_number
        union
        select d.dependent from branch as b
            join pgcoord.dependency as d on d.feature_id = v_phase.feature_id and d.prerequisite = b.phase_number
    )
    update public.phase_queue as p set status = 'cancelled'
    where p.feature_id = v_phase.feature_id and p.status not in ('completed', 'cancelled')
        and p.phase_number in (select phase_number from branch);
    get diagnostics v_cancelled = row_count;
    perform pgcoord.set_reason(null);
    return v_cancelled;
end $$;
comment on function pgcoord.cancel_branch(text, text) is
    'Give up a phase and everything that depends on it, directly or not, unless completed; returns how many phases. Running ones are ended first.';

-- Does it, looks, and takes it back: so what is shown is what will happen, whatever the rules are.
-- Errors: those of the action.
create or replace function pgcoord.preview(p_action text, p_feature_id integer, p_queue_id text)
returns table (queue_id text, phase_number integer, title text, from_status text, to_status text, words text)
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_feature_id integer := coalesce(p_feature_id, (select p.feature_id from public.phase_queue as p where p.queue_id = p_queue_id));
    v_before jsonb;
    v_after jsonb;
begin
    select jsonb_object_agg(p.queue_id, p.status || coalesce(' ' || a.ending, '')) into v_before
    from public.phase_queue as p
        left join pgcoord.attempt as a on a.queue_id = p.queue_id and a.number = p.attempt and a.ended_at is null
    where p.feature_id = v_feature_id;
    begin
        case p_action
            when 'retry' then perform pgcoord.retry_phase(p_queue_id, null);
            when 'skip' then perform pgcoord.skip_phase(p_queue_id, null);
            when 'cancel' then perform pgcoord.cancel_phase(p_queue_id, null);
            when 'cancel_branch' then perform pgcoord.cancel_branch(p_queue_id, null);
            when 'cancel_feature' then perform pgcoord.cancel_feature(p_feature_id, null);
        end case;
        select jsonb_agg(jsonb_build_object(
                'queue_id', p.queue_id, 'phase_number', p.phase_number, 'title', pgcoord.title_of(p),
                'from_status', split_part(v_before ->> p.queue_id, ' ', 1), 'to_status', coalesce(a.ending, p.status),
                'words', case when a.ending is not null then 'its process is ended first'
                    else (select y.words from pgcoord.why(p.queue_id) as y where p.status in ('queued', 'blocked') limit 1) end)
            order by p.phase_number)
        into v_after
        from public.phase_queue as p
            left join pgcoord.attempt as a on a.queue_id = p.queue_id and a.number = p.attempt and a.ended_at is null
        where p.feature_id = v_feature_id and p.status || coalesce(' ' || a.ending, '') <> v_before ->> p.queue_id;
        raise exception using errcode = 'PC099', message = 'taken back';
    exception when sqlstate 'PC099' then    -- (PC000 would be all of class PC)
        null;
    end;
    return query
    select c.queue_id, c.phase_number, c.title, c.from_status, c.to_status, c.words
    from jsonb_to_recordset(coalesce(v_after, '[]')) as c
        (queue_id text, phase_number integer, title text, from_status text, to_status text, words text);
end $$;
comment on function pgcoord.preview(text, integer, text) is
    'What retry, skip, cancel or cancel_branch of a phase, or cancel_feature, would change, phase by phase; nothing is changed.';
