-- What is expected, and why. Read only.

-- How long each phase of some features will yet take: nothing for a completed one, what is left of the usual for a
-- running one, all of it for the rest, also the failed and blocked, as if they were retried now. Where there is no
-- history of its workflow, its own estimate counts, from half to twice; where there is none either, it is null.
create or replace function pgcoord_private.remaining(p_feature_ids integer[])
returns table (
    feature_id integer, phase_number integer, runs bigint, usual interval,
    low double precision, mid double precision, high double precision, not_before double precision
)
language sql stable
set search_path = pg_catalog, pg_temp
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
            left join usual as u on u.workflow = pgcoord_private.workflow_of(p)
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
        case when status = 'queued' and retry_at is not null    -- which may be infinite, as an older release stored it
            then greatest(extract(epoch from least(retry_at, '9999-12-31 00:00+00') - now())::double precision, 0) end
    from phase;
$$;

-- The time in so many seconds, to the minute: an expectation says no more, and stays the same while nothing
-- changes.
create or replace function pgcoord_private.in_minutes(p_seconds double precision) returns timestamptz
language sql stable
return date_trunc('minute', case when p_seconds is not null    -- (of a null, `least` would make the other)
    then least(now() + make_interval(secs => least(p_seconds + 30, 3e11)), '9999-12-31 00:00+00') end);

-- The edges between these phases, each named by its place in the arrays: prerequisites in ascending order, and
-- their dependents.
-- The planner takes an array for a few rows, and would go through all pairs of phases for each edge: so no nested loops,
-- and one join after the other.
create or replace function pgcoord_private.edges_between(
    p_features integer[], p_numbers integer[], out froms integer[], out tos integer[]
)
language sql stable
set search_path = pg_catalog, pg_temp
set enable_nestloop = off set jit = off as $$
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

-- Phases are gone through after all their prerequisites (arrays and one pass: a recursive query would walk each path,
-- and there may be more of them than can be counted). Slots are not looked at here; see expected_finish.
-- (Long: a call would copy the arrays.)
create or replace function pgcoord.forecast(p_feature_ids integer[])
returns table (
    feature_id integer, phase_number integer, layer integer, critical boolean, runs bigint, usual interval,
    starts_at timestamptz, ends_at timestamptz, earliest timestamptz, latest timestamptz
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
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
    from pgcoord_private.remaining(p_feature_ids) as r;
    if v_count = 0 then
        return;
    end if;
    select e.froms, e.tos into v_from, v_to from pgcoord_private.edges_between(v_features, v_numbers) as e;

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
        pgcoord_private.in_minutes(v_start[n]), pgcoord_private.in_minutes(v_end[n]),
        pgcoord_private.in_minutes(greatest(v_end[n] - sqrt(v_down[n]), 0)), pgcoord_private.in_minutes(v_end[n] + sqrt(v_up[n]))
    from generate_series(1, v_count) as n;
end $$;
comment on function pgcoord.forecast(integer[]) is
    'When each phase of these features would run if nothing failed and there were slots for all: its layer in the graph, whether it is on the critical path, and from when to when.';

-- A feature ends when its longest path does, and not before the slots of each pool could have done all the work there.
create or replace function pgcoord.expected_finish(p_feature_ids integer[])
returns table (
    feature_id integer, path integer[], runs bigint, path_takes interval,
    ends_at timestamptz, earliest timestamptz, latest timestamptz
)
language sql stable
set search_path = pg_catalog, pg_temp
set jit = off as $$
    with work as (
        select r.feature_id,
            max(r.takes) as takes
        from (
                select p.feature_id, sum(r.mid) / greatest((select o.slots from pgcoord.pools as o where o.pool = w.pool), 1) as takes
                from pgcoord_private.remaining(p_feature_ids) as r
                    join public.phase_queue as p using (feature_id, phase_number)
                    left join pgcoord_private.workflow_line as w on w.line = coalesce(p.workflow_type, '')
                group by p.feature_id, w.pool
            ) as r
        group by r.feature_id
    )
    select f.feature_id, array_agg(f.phase_number order by f.layer) filter (where f.critical), max(f.runs),
        max(f.ends_at) filter (where f.critical) - pgcoord_private.in_minutes(0),
        case when bool_and(f.ends_at is not null) then greatest(max(f.ends_at), pgcoord_private.in_minutes(w.takes)) end,
        case when bool_and(f.ends_at is not null) then greatest(max(f.earliest), pgcoord_private.in_minutes(w.takes)) end,
        case when bool_and(f.ends_at is not null) then greatest(max(f.latest), pgcoord_private.in_minutes(w.takes)) end
    from pgcoord.forecast(p_feature_ids) as f
        join work as w using (feature_id)
    group by f.feature_id, w.takes;
$$;
comment on function pgcoord.expected_finish(integer[]) is
    'The critical path of each feature, and when it would be finished with the slots there are if nothing else ran and nothing failed; null where no history tells.';
