-- The forecast. Read only.

-- Convert ids to the type of feature ids, dropping numbers that are out of range. Null, for all, stays null.
create or replace function pgcoord_private.feature_ids(p_ids bigint[]) returns integer[]
language sql immutable
return case when p_ids is not null then array(select id::integer from unnest(p_ids) as id where id between 1 and 2147483647) end;

-- The open phases, in the order in which they are claimed, at most p_most of them; and all phases of some features. For each
-- its remaining duration (0 if it is completed, null if unknown, or if too many are before it), and whether it will proceed
-- by itself: not if it is failed, blocked, cancelled, paused with its feature, or waits for an approval or for a phase or
-- workflow that does not exist. Long, since it is one statement, planned as a whole.
create or replace function pgcoord_private.open_work(p_feature_ids integer[], p_most integer)
returns table (
    feature_id integer, phase_number integer, status text, goes boolean, draining boolean, pool text, runs bigint, usual interval,
    low double precision, mid double precision, high double precision, not_before double precision
)
language sql stable
set search_path = pg_catalog, pg_temp
set jit = off as $$
    with
    first as materialized (
        select p.queue_id from public.phase_queue as p
        where p.status in ('queued', 'ready', 'running')
        order by p.slot is null, p.priority, p.queue_position, p.feature_id, p.phase_number limit p_most
    ),
    chosen as materialized (
        select first.queue_id, false as beyond from first
        union all
        select p.queue_id, p.status = 'queued' from public.phase_queue as p
        where p.feature_id = any (p_feature_ids) and p.queue_id not in (select first.queue_id from first)
    ),
    usual as materialized (select * from pgcoord.usual),
    stranded as materialized (select s.queue_id from pgcoord_private.stranded as s),
    estimated as materialized (
        select p.queue_id, p.feature_id, p.phase_number, p.status::text, p.slot, p.held, p.gated, p.priority, p.queue_position, p.retry_at,
            c.beyond, coalesce(pgcoord_private.workflow_of(p), '') as workflow,
            coalesce(case when p.status <> 'completed' then pgcoord_private.estimate_of(p.phase_data) end, '-1 s') as estimate,
            case when p.status = 'running' then extract(epoch from now() - p.started_timestamp)::double precision else 0 end as elapsed
        from chosen as c
            join public.phase_queue as p using (queue_id)
    ),
    length as materialized (    -- once for phases that cannot be distinguished
        select d.workflow, d.estimate, u.runs, l.low, l.median, l.high, pgcoord_private.average_exceeds(u.low, u.high) as average_exceeds
        from (select distinct e.workflow, e.estimate from estimated as e where not e.beyond) as d
            left join usual as u on u.workflow = d.workflow
            cross join lateral pgcoord_private.expected_length(
                nullif(d.estimate, '-1 s'), u.runs, u.low, u.median, u.high) as l
    ),
    phase as (
        select e.*, l.runs, l.low as s_low, l.median as s_median, l.high as s_high, l.average_exceeds
        from estimated as e
            left join length as l on l.workflow = e.workflow and l.estimate = e.estimate and not e.beyond
    ),
    seconds as (
        select p.*, extract(epoch from s_low)::double precision as low, extract(epoch from s_median)::double precision as mid,
            extract(epoch from s_high)::double precision as high
        from phase as p
    )
    select p.feature_id, p.phase_number, p.status,
        p.slot is not null or p.status = 'queued' and not p.held and not p.gated and not exists (select from stranded as s where s.queue_id = p.queue_id),
        coalesce((select s.draining from pgcoord.slot as s where s.number = p.slot), false),
        coalesce((select w.pool from pgcoord.workflow as w where w.name = p.workflow), 'local'), coalesce(p.runs, 0), p.s_median,
        case when p.status = 'completed' then 0 else greatest(p.low - p.elapsed, 0) end,
        case when p.status = 'completed' then 0
            when p.slot is null then least(p.mid * p.average_exceeds, p.high)    -- what runs is expected as its slot says it
            else pgcoord_private.remaining_length(p.elapsed, p.mid, p.high) end,
        case when p.status = 'completed' then 0
            else pgcoord_private.remaining_length(p.elapsed, p.high, 2 * p.high) end,
        case when p.status = 'queued' and p.retry_at is not null    -- which may be infinite, as an older release stored it
            then greatest(extract(epoch from least(p.retry_at, '9999-12-31 00:00+00') - now())::double precision, 0) else 0 end
    from seconds as p
    order by p.slot is null, p.priority, p.queue_position, p.feature_id, p.phase_number;
$$;

-- The time in so many seconds, rounded to the minute: a forecast is not more precise, and stays equal while nothing changes.
create or replace function pgcoord_private.in_minutes(p_seconds double precision) returns timestamptz
language sql stable
return date_trunc('minute', case when p_seconds is not null    -- (of a null, `least` would make the other)
    then least(now() + make_interval(secs => least(p_seconds + 30, 3e11)), '9999-12-31 00:00+00') end);

-- The edges between these phases, each named by its place in the arrays: prerequisites in ascending order, and
-- their dependents.
-- The planner expects few rows from an array, and would compare all pairs of phases for each edge. So nested loops and merge
-- joins (which PostgreSQL 14 does by the feature alone) are disabled, and joins keep their order.
create or replace function pgcoord_private.edges_between(
    p_features integer[], p_numbers integer[], out froms integer[], out tos integer[]
)
language sql stable
set search_path = pg_catalog, pg_temp
set enable_nestloop = off set enable_mergejoin = off set jit = off as $$
    with place as materialized (
        select p.feature_id, p.number, p.place::integer
        from unnest(p_features, p_numbers) with ordinality as p (feature_id, number, place)
    ),
    begun as materialized (
        select d.feature_id, d.dependent, up.place
        from pgcoord.dependency as d
            join place as up on up.feature_id = d.feature_id and up.number = d.prerequisite
        where d.feature_id = any (p_features)
    )
    select array_agg(b.place order by b.place), array_agg(down.place order by b.place)
    from begun as b
        join place as down on down.feature_id = b.feature_id and down.number = b.dependent;
$$;

-- Simulate all open phases with the present slots: a free slot goes to the first phase in the queue whose prerequisites have
-- ended, as in a claim. Phases that do not proceed by themselves (see open_work) take no slot from the others; their
-- forecast assumes that they are retried now, with slots of their own. A pause of everything is ignored. A phase of unknown
-- duration, and those that wait for it, have no forecast end; it takes its slot for as long as most phases do. (One pass
-- over arrays: a recursive query would follow each path, of which there may be exponentially many. Long: a call would copy
-- the arrays.)
create or replace function pgcoord_private.simulate(p_feature_ids integer[])
returns table (
    feature_id integer, phase_number integer, goes boolean, layer integer, critical boolean, runs bigint, usual interval,
    remaining double precision, starts double precision, ends double precision, earliest double precision, latest double precision
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set jit = off as $$
declare
    v_features integer[];
    v_numbers integer[];
    v_states text[];
    v_goes boolean[];
    v_draining boolean[];
    v_pool integer[];
    v_runs bigint[];
    v_usual interval[];
    v_low double precision[];
    v_mid double precision[];
    v_high double precision[];
    v_not_before double precision[];
    v_names text[];    -- of pools
    v_from integer[];    -- edges, by place of the prerequisite
    v_to integer[];
    v_first integer[];    -- where the edges of a phase begin
    v_open integer[];    -- prerequisites that have not ended
    v_left integer[];    -- the same, while layers are counted
    v_order integer[] := '{}';
    v_layer integer[];
    v_start double precision[];
    v_end double precision[];
    v_known boolean[];    -- whether an estimate or past runs say the times
    v_down double precision[];    -- squared spread along what decides
    v_up double precision[];
    v_before integer[];    -- the prerequisite that decides when a phase starts
    v_critical boolean[];
    v_count integer;
    v_free integer[];    -- slots, by pool
    v_heap integer[];    -- the phases in line: a heap for each pool, from v_base on
    v_base integer[];
    v_size integer[];
    v_times double precision[] := '{}';    -- future events, a heap by time: the end of a phase, or, negative, a retry time
    v_what integer[] := '{}';
    v_events integer := 0;
    v_now double precision := 0;
    v_last integer;    -- the phase that ends now
    v_enters integer[];    -- phases that get into line
    v_length double precision;    -- of a phase about whose length nothing is known
    v_time double precision;
    v_edge integer;
    v_at integer := 1;
    h integer;
    i integer;
    j integer;
    k integer;
begin
    -- 1,000: a day of work for most, and less than a tenth of a second.
    select array_agg(r.feature_id), array_agg(r.phase_number), array_agg(r.status), array_agg(r.goes), array_agg(r.draining),
        array_agg(r.pool), array_agg(r.runs), array_agg(r.usual), array_agg(r.low), array_agg(r.mid), array_agg(r.high),
        array_agg(r.not_before), count(*)
    into v_features, v_numbers, v_states, v_goes, v_draining, v_names, v_runs, v_usual, v_low, v_mid, v_high, v_not_before, v_count
    from pgcoord_private.open_work(p_feature_ids, 1000) as r;
    if v_count = 0 then
        return;
    end if;
    select e.froms, e.tos into v_from, v_to from pgcoord_private.edges_between(v_features, v_numbers) as e;
    select coalesce(percentile_cont(0.5) within group (order by extract(epoch from u.median)), 1800) into v_length from pgcoord.usual as u;
    select array_agg(p.place order by n.ordinality) into v_pool
    from unnest(v_names) with ordinality as n (name)
        join (select name, row_number() over (order by name) as place from (select distinct unnest(v_names) as name) as d) as p using (name);
    select array_agg(d.slots order by d.name), array_agg(d.members order by d.name), array_agg(d.before order by d.name)
    into v_free, v_size, v_base
    from (
        select n.name, (select count(*) from pgcoord.slot as s where s.pool = n.name and not s.draining) as slots,
            0 as members, coalesce(sum(count(*)) over (order by n.name rows between unbounded preceding and 1 preceding), 0) as before
        from unnest(v_names) as n (name) group by n.name
    ) as d;

    -- PL/pgSQL keeps an array that was assigned to in expanded form, with access to an element in constant time; otherwise
    -- each access scans an array of texts or with nulls.
    v_states[1] := v_states[1];
    v_low[1] := v_low[1];
    v_mid[1] := v_mid[1];
    v_high[1] := v_high[1];
    v_not_before[1] := v_not_before[1];
    v_open := array_fill(0, array[v_count]);
    v_first := array_fill(null::integer, array[v_count]);
    v_before := v_first;
    v_heap := v_first;
    v_layer := v_open;
    v_start := array_fill(null::double precision, array[v_count]);
    v_end := v_start;
    v_down := array_fill(0::double precision, array[v_count]);
    v_up := v_down;
    v_critical := array_fill(false, array[v_count]);
    v_known := array_fill(true, array[v_count]);
    v_left := v_open;
    for v_edge in 1 .. coalesce(cardinality(v_from), 0) loop
        v_left[v_to[v_edge]] := v_left[v_to[v_edge]] + 1;
        if v_states[v_from[v_edge]] <> 'completed' then
            v_open[v_to[v_edge]] := v_open[v_to[v_edge]] + 1;
        end if;
        if v_first[v_from[v_edge]] is null then
            v_first[v_from[v_edge]] := v_edge;
        end if;
    end loop;

    -- Layers, and a topological order.
    for i in 1 .. v_count loop
        if v_left[i] = 0 then
            v_order := v_order || i;
        end if;
    end loop;
    while v_at <= cardinality(v_order) loop
        i := v_order[v_at];
        v_at := v_at + 1;
        v_edge := v_first[i];
        while v_from[v_edge] = i loop
            j := v_to[v_edge];
            v_layer[j] := greatest(v_layer[j], v_layer[i] + 1);
            -- A phase that waits for one that does not proceed does not proceed either.
            v_goes[j] := v_goes[j] and (v_goes[i] or v_states[i] = 'completed');
            v_left[j] := v_left[j] - 1;
            if v_left[j] = 0 then
                v_order := v_order || j;
            end if;
            v_edge := v_edge + 1;
        end loop;
    end loop;

    -- The phases that run, and those that are in line already.
    for i in 1 .. v_count loop
        if v_states[i] in ('ready', 'running') then
            if not v_draining[i] then
                v_free[v_pool[i]] := v_free[v_pool[i]] - 1;
            end if;
            v_start[i] := 0;
            v_enters := v_enters || -i;
        elsif v_goes[i] and v_open[i] = 0 then
            v_enters := v_enters || i;
        end if;
    end loop;

    loop
        -- Positive: gets into line, or waits for its retry time; negative: starts.
        foreach i in array coalesce(v_enters, '{}') loop
            if i > 0 and v_not_before[i] <= v_now then
                k := v_pool[i];
                v_size[k] := v_size[k] + 1;
                h := v_size[k];
                while h > 1 and v_heap[v_base[k] + h / 2] > i loop
                    v_heap[v_base[k] + h] := v_heap[v_base[k] + h / 2];
                    h := h / 2;
                end loop;
                v_heap[v_base[k] + h] := i;
                continue;
            end if;
            if i > 0 then
                v_time := v_not_before[i];
                j := -i;
            else
                j := -i;
                v_known[j] := v_known[j] and v_mid[j] is not null;
                v_end[j] := v_start[j] + coalesce(v_mid[j], v_length);
                v_down[j] := v_down[j] + coalesce(v_mid[j] - v_low[j], 0) ^ 2;
                v_up[j] := v_up[j] + coalesce(v_high[j] - v_mid[j], 0) ^ 2;
                v_time := v_end[j];
            end if;
            v_events := v_events + 1;
            h := v_events;
            while h > 1 and v_times[h / 2] > v_time loop
                v_times[h] := v_times[h / 2];
                v_what[h] := v_what[h / 2];
                h := h / 2;
            end loop;
            v_times[h] := v_time;
            v_what[h] := j;
        end loop;
        v_enters := null;

        -- The first in line take the slots that are free.
        for k in 1 .. cardinality(v_free) loop
            while v_free[k] > 0 and v_size[k] > 0 loop
                i := v_heap[v_base[k] + 1];
                v_free[k] := v_free[k] - 1;
                v_start[i] := v_now;
                if v_last is not null then
                    v_down[i] := v_down[v_last];
                    v_up[i] := v_up[v_last];
                end if;
                v_enters := v_enters || -i;
                j := v_heap[v_base[k] + v_size[k]];
                v_size[k] := v_size[k] - 1;
                h := 1;
                while 2 * h <= v_size[k] loop
                    i := 2 * h;
                    if i < v_size[k] and v_heap[v_base[k] + i + 1] < v_heap[v_base[k] + i] then
                        i := i + 1;
                    end if;
                    exit when v_heap[v_base[k] + i] >= j;
                    v_heap[v_base[k] + h] := v_heap[v_base[k] + i];
                    h := i;
                end loop;
                v_heap[v_base[k] + h] := j;
            end loop;
        end loop;
        continue when v_enters is not null;
        exit when v_events = 0;

        -- What happens next.
        v_now := greatest(v_now, v_times[1]);
        v_last := v_what[1];
        v_time := v_times[v_events];
        j := v_what[v_events];
        v_events := v_events - 1;
        h := 1;
        while 2 * h <= v_events loop
            i := 2 * h;
            if i < v_events and v_times[i + 1] < v_times[i] then
                i := i + 1;
            end if;
            exit when v_times[i] >= v_time;
            v_times[h] := v_times[i];
            v_what[h] := v_what[i];
            h := i;
        end loop;
        v_times[h] := v_time;
        v_what[h] := j;
        if v_last < 0 then
            v_enters := array[-v_last];
            v_last := null;
            continue;
        end if;
        if not v_draining[v_last] then
            v_free[v_pool[v_last]] := v_free[v_pool[v_last]] + 1;
        end if;
        v_edge := v_first[v_last];
        while v_from[v_edge] = v_last loop
            j := v_to[v_edge];
            v_open[j] := v_open[j] - 1;
            v_before[j] := v_last;    -- the last one to end stays
            v_known[j] := v_known[j] and v_known[v_last];
            if v_open[j] = 0 and v_goes[j] then
                v_enters := v_enters || j;
            end if;
            v_edge := v_edge + 1;
        end loop;
    end loop;

    -- The phases that do not proceed by themselves, and the prerequisites that determine their start.
    foreach i in array v_order loop
        if v_states[i] = 'completed' then
            v_start[i] := 0;
            v_end[i] := 0;
        elsif not v_goes[i] then
            v_start[i] := greatest(coalesce(v_start[i], 0), v_not_before[i]);
            v_end[i] := v_start[i] + v_mid[i];
            v_known[i] := v_known[i] and v_mid[i] is not null;
            v_down[i] := coalesce(v_down[v_before[i]], 0) + (v_mid[i] - v_low[i]) ^ 2;
            v_up[i] := coalesce(v_up[v_before[i]], 0) + (v_high[i] - v_mid[i]) ^ 2;
        end if;
        v_edge := v_first[i];
        while v_from[v_edge] = i loop
            j := v_to[v_edge];
            if not v_goes[j] and v_states[i] <> 'completed' then
                v_known[j] := v_known[j] and v_known[i];
                if v_states[i] = 'completed' then
                    null;
                elsif v_before[j] is null or v_end[i] is null or v_end[i] > v_end[v_before[j]] then
                    v_before[j] := i;
                    v_start[j] := v_end[i];
                end if;
            end if;
            v_edge := v_edge + 1;
        end loop;
    end loop;

    for i in
        select distinct on (v_features[n]) n
        from generate_series(1, v_count) as n
        where v_states[n] <> 'completed' and v_mid[n] is distinct from 0
        order by v_features[n], v_end[n] desc nulls first, v_layer[n] desc
    loop
        j := i;
        while j is not null loop
            v_critical[j] := true;
            j := v_before[j];
        end loop;
    end loop;
    return query
    select v_features[n], v_numbers[n], v_goes[n], v_layer[n], v_critical[n], v_runs[n], v_usual[n], v_mid[n],
        case when coalesce(v_known[v_before[n]], true) then v_start[n] end, case when v_known[n] then v_end[n] end,
        case when v_known[n] then greatest(v_end[n] - sqrt(v_down[n]), 0) end, case when v_known[n] then v_end[n] + sqrt(v_up[n]) end
    from generate_series(1, v_count) as n;
end $$;

create or replace function pgcoord.forecast(p_feature_ids bigint[])
returns table (
    feature_id integer, phase_number integer, layer integer, critical boolean, runs bigint, usual interval,
    starts_at timestamptz, ends_at timestamptz, earliest timestamptz, latest timestamptz
)
language sql stable
set search_path = pg_catalog, pg_temp
set jit = off as $$
    select s.feature_id, s.phase_number, s.layer, s.critical, s.runs, s.usual,
        pgcoord_private.in_minutes(s.starts), pgcoord_private.in_minutes(s.ends),
        pgcoord_private.in_minutes(s.earliest), pgcoord_private.in_minutes(s.latest)
    from pgcoord_private.simulate(pgcoord_private.feature_ids(p_feature_ids)) as s
    where s.feature_id = any (p_feature_ids)
    order by s.feature_id, s.phase_number;
$$;
comment on function pgcoord.forecast(bigint[]) is
    'Forecast of the phases of these features, with the present slots and all other open phases, if nothing fails: the layer in the graph, whether it is on the critical path, start and end.';

-- A row for each feature, and one without a feature for all open phases that proceed by themselves.
create or replace function pgcoord_private.finishes(p_feature_ids integer[])
returns table (
    feature_id integer, path integer[], runs bigint, path_takes interval,
    ends_at timestamptz, earliest timestamptz, latest timestamptz
)
language sql stable
set search_path = pg_catalog, pg_temp
set jit = off as $$
    with foreseen as materialized (select * from pgcoord_private.simulate(p_feature_ids))
    select s.feature_id, array_agg(s.phase_number order by s.layer) filter (where s.critical), max(s.runs),
        make_interval(secs => sum(s.remaining) filter (where s.critical)),
        case when bool_and(s.ends is not null) then pgcoord_private.in_minutes(max(s.ends)) end,
        case when bool_and(s.ends is not null) then pgcoord_private.in_minutes(max(s.earliest)) end,
        case when bool_and(s.ends is not null) then pgcoord_private.in_minutes(max(s.latest)) end
    from foreseen as s
    where s.feature_id = any (p_feature_ids)
    group by s.feature_id
    union all
    select null, null, max(s.runs), null,
        case when bool_and(s.ends is not null) then pgcoord_private.in_minutes(max(s.ends)) end,
        case when bool_and(s.ends is not null) then pgcoord_private.in_minutes(max(s.earliest)) end,
        case when bool_and(s.ends is not null) then pgcoord_private.in_minutes(max(s.latest)) end
    from foreseen as s
    where s.goes
    having count(*) > 0;
$$;

create or replace function pgcoord.expected_finish(p_feature_ids bigint[])
returns table (
    feature_id integer, path integer[], runs bigint, path_takes interval,
    ends_at timestamptz, earliest timestamptz, latest timestamptz
)
language sql stable
set search_path = pg_catalog, pg_temp as $$
    select f.* from pgcoord_private.finishes(pgcoord_private.feature_ids(p_feature_ids)) as f where f.feature_id is not null;
$$;
comment on function pgcoord.expected_finish(bigint[]) is
    'Forecast of the end of each feature and its critical path, with the present slots and all other open phases, if nothing fails; null if unknown.';
