-- Dependencies: the graph of a feature. The edges are derived from phase_queue.depends_on_phases. Waiting phases store what
-- follows from them: `unmet` (number of prerequisites that are not completed), `eligible_at` (since when that is 0) and the
-- status `blocked` (a direct or indirect prerequisite is failed or cancelled). Everything here is called by the triggers of
-- phase_queue, which hold the locks of the features concerned. Phases are passed as two arrays, feature ids and phase
-- numbers, so that a statement over many features is one call. A session keeps a plan that it made once, perhaps when the
-- tables were empty. So functions that run with every change restrict the planner to index look-ups, whose cost for one
-- phase does not depend on the number of stored phases.

-- Refuse (PC005) prerequisites that are not an array of distinct positive numbers of other phases.
-- Errors: PC005, naming the phase and the element.
create or replace function pgcoord_private.check_prerequisites(
    p_queue_id text, p_phase_number integer, p_depends_on jsonb
) returns void
language plpgsql immutable
set search_path = pg_catalog, pg_temp as $$
declare
    v_fault text;
begin
    if jsonb_typeof(p_depends_on) <> 'array' then
        v_fault := format('is %s, a JSON %s', pgcoord_private.shortened(p_depends_on::text, 200), jsonb_typeof(p_depends_on));
    elsif p_depends_on @? 'strict $[*] ? (@.type() != "number" || @ < 1 || @ > 2147483647 || @.floor() != @)' then
        v_fault := format('holds %s', jsonb_path_query_first(p_depends_on,
             'strict $[*] ? (@.type() != "number" || @ < 1 || @ > 2147483647 || @.floor() != @)'));
    elsif p_depends_on @> to_jsonb(p_phase_number) then
        v_fault := 'names the phase itself';
    elsif jsonb_array_length(p_depends_on) > 1 then
        select format('names phase %s twice', e) into v_fault
        from jsonb_array_elements(p_depends_on) as element (e)
        group by e having count(*) > 1
        limit 1;
    end if;
    if v_fault is not null then
        raise exception using
            errcode = 'PC005',
            message = format('depends_on_phases of phase %s %s', p_queue_id, v_fault),
            hint = case jsonb_typeof(p_depends_on)
                when 'string' then 'It was encoded twice: give the text of the array itself, such as [1, 3], cast to jsonb.'
                else 'It is a JSON array of distinct phase numbers of the same feature, such as [1, 3]; to_jsonb(array[1, 3]) makes one of a Postgres array.'
            end;
    end if;
end $$;

-- Return the phase numbers of one cycle of the feature, the first one repeated at the end, or null when there is none.
-- Removes phases without open prerequisites until none is left (Kahn). Each remaining phase has a remaining prerequisite, so
-- a walk along them closes a cycle. Linear in phases and edges. It reads a whole feature, so it may hash and sort, unlike
-- its callers. (Long: a call would copy the arrays.)
create or replace function pgcoord_private.find_cycle(p_feature_id integer) returns integer[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
set enable_hashjoin = on set enable_mergejoin = on as $$
declare
    v_phases integer[];       -- phase numbers, by rank
    v_dependents integer[];   -- ranks of dependents, grouped by the rank of their prerequisite
    v_first integer[];        -- where the group of a rank starts in v_dependents; one more at the end
    v_open integer[];         -- by rank: prerequisites not taken away yet
    v_ready integer[];        -- ranks to take away
    v_taken integer := 0;
    v_rank integer;
    v_path integer[];
begin
    if not exists (
        select from pgcoord.dependency where feature_id = p_feature_id and prerequisite > dependent
    ) then
        return null;
    end if;
    with edge as (
        select prerequisite, dependent from pgcoord.dependency where feature_id = p_feature_id
    ), node as (
        select phase, (row_number() over (order by phase))::integer as rank
        from (select prerequisite from edge union select dependent from edge) as phases (phase)
    ), fan as (
        select node.phase, node.rank, coalesce(down.n, 0) as dependents, coalesce(up.n, 0) as prerequisites
        from node
            left join (select prerequisite, count(*)::integer from edge group by prerequisite) as down (phase, n) using (phase)
            left join (select dependent, count(*)::integer from edge group by dependent) as up (phase, n) using (phase)
    )
    select
        array_agg(phase order by rank),
        array_agg(prerequisites order by rank),
        array_agg(first order by rank),
        array_agg(rank order by rank) filter (where prerequisites = 0),
        (select array_agg(node.rank order by edge.prerequisite)
            from edge join node on node.phase = edge.dependent)
    into v_phases, v_open, v_first, v_ready, v_dependents
    from (select *, 1 + sum(dependents) over (order by rank) - dependents as first from fan) as placed;
    v_first := v_first || (cardinality(v_dependents) + 1);

    while v_taken < coalesce(cardinality(v_ready), 0) loop
        v_taken := v_taken + 1;
        for i in v_first[v_ready[v_taken]] .. v_first[v_ready[v_taken] + 1] - 1 loop
            v_rank := v_dependents[i];
            v_open[v_rank] := v_open[v_rank] - 1;
            if v_open[v_rank] = 0 then
                v_ready := v_ready || v_rank;
            end if;
        end loop;
    end loop;
    if v_taken = cardinality(v_phases) then
        return null;
    end if;

    select array_agg(v_phases[r]) into v_phases from generate_subscripts(v_phases, 1) as r where v_open[r] > 0;
    v_path := array[v_phases[1]];
    loop
        select prerequisite into v_rank from pgcoord.dependency
        where feature_id = p_feature_id and dependent = v_path[1] and prerequisite = any (v_phases)
        order by prerequisite
        limit 1;
        v_path := v_rank || v_path;
        exit when v_rank = any (v_path[2:]);
    end loop;
    return v_path[1:array_position(v_path[2:], v_rank) + 1];
end $$;

-- The phases with these numbers, each of the feature at the same array index.
-- `offset 0` forces one look-up for each: with statistics of once empty tables, the planner might join every phase with
-- every other.
create or replace function pgcoord_private.phases_at(p_features integer[], p_phases integer[]) returns setof public.phase_queue
language sql stable
begin atomic
    select p.*
    from unnest(p_features, p_phases) as given (feature_id, phase_number)
        cross join lateral (
            select * from public.phase_queue as p
            where p.feature_id = given.feature_id and p.phase_number = given.phase_number
            offset 0
        ) as p;
end;

-- Make pgcoord.dependency agree with depends_on_phases of the given phases; refuse (PC005) a malformed array or a cycle.
-- Errors: PC005 when an array is malformed or a cycle would close.
create or replace function pgcoord_private.store_edges(p_features integer[], p_phases integer[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    v_feature integer;
    v_cycle integer[];
begin
    perform pgcoord_private.check_prerequisites(p.queue_id, p.phase_number, p.depends_on_phases)
    from pgcoord_private.phases_at(p_features, p_phases) as p
    where p.depends_on_phases <> '[]';

    delete from pgcoord.dependency    -- one look-up for each phase; the features are locked, so no row changes meanwhile
    where ctid = any (array(
        select d.ctid
        from pgcoord_private.phases_at(p_features, p_phases) as p
            cross join lateral (
                select ctid, prerequisite from pgcoord.dependency
                where feature_id = p.feature_id and dependent = p.phase_number
                offset 0
            ) as d
        where not p.depends_on_phases @> to_jsonb(d.prerequisite)
    ));

    insert into pgcoord.dependency (feature_id, prerequisite, dependent, conditional)
    select p.feature_id, element.e::integer, p.phase_number, p.run_when <> 'completed'
    from pgcoord_private.phases_at(p_features, p_phases) as p
        cross join lateral jsonb_array_elements(p.depends_on_phases) as element (e)
    where p.depends_on_phases <> '[]'
    on conflict do nothing;

    for v_feature in
        select distinct feature_id from pgcoord.dependency
        where prerequisite > dependent and feature_id = any (p_features)
    loop
        v_cycle := pgcoord_private.find_cycle(v_feature);
        if v_cycle is not null then
            raise exception using
                errcode = 'PC005',
                message = format('phase %s of feature %s would wait for itself: %s', v_cycle[1], v_feature,
                    case when cardinality(v_cycle) <= 20 then array_to_string(v_cycle, ' -> ')
                        else array_to_string(v_cycle[:9] || null::integer || v_cycle[cardinality(v_cycle) - 9:], ' -> ', '...') end),
                hint = 'An arrow leads from a prerequisite to the phase that depends on it; leave one of them out.';
        end if;
    end loop;
end $$;

-- Recount the open prerequisites of those given phases that wait, and set or clear their eligible_at.
create or replace function pgcoord_private.recount_unmet(p_features integer[], p_phases integer[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off set plan_cache_mode = force_generic_plan as $$
begin
        update public.phase_queue as p
        set unmet = counted.unmet,
            eligible_at = case when counted.unmet = 0 then clock_timestamp() end
        from (
            select waiting.queue_id,
                (select count(*) from pgcoord.dependency as d
                    where d.feature_id = waiting.feature_id and d.dependent = waiting.phase_number
                        and not exists (
                            select from public.phase_queue as up
                            where up.feature_id = d.feature_id and up.phase_number = d.prerequisite
                                and pgcoord_private.is_met(up.status, waiting.run_when)
                        ))::integer as unmet
            from pgcoord_private.phases_at(p_features, p_phases) as waiting
            where waiting.status in ('queued', 'blocked')
        ) as counted
        where p.queue_id = counted.queue_id and p.unmet <> counted.unmet and p.status in ('queued', 'blocked');
end $$;

-- Block phases that wait, directly or indirectly, for a failed or cancelled phase, and unblock those that no longer do.
-- Reads the given phases and all waiting phases downstream of them; nothing has changed upstream.
-- Long, as it is one statement, however long the chain is; `offset 0` keeps the planner at index look-ups inside the recursion.
-- Two lists are compared by a full join or by grouping, never by `in` or `exists`: the planner may not hash the result of a
-- recursion, and would compare each phase with each. (`coalesce` prevents the reduction of the full join to a plain one.)
create or replace function pgcoord_private.settle_blocked(p_features integer[], p_phases integer[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off as $$
begin
        with recursive waiting (feature_id, phase_number) as (
            select feature_id, phase_number from unnest(p_features, p_phases) as given (feature_id, phase_number)
            union
            select w.feature_id, next.phase_number
            from waiting as w
                cross join lateral (
                    select p.phase_number
                    from pgcoord.dependency as d
                        join public.phase_queue as p
                            on p.feature_id = d.feature_id and p.phase_number = d.dependent
                    where d.feature_id = w.feature_id and d.prerequisite = w.phase_number and not d.conditional
                        and p.status in ('queued', 'blocked')
                    offset 0
                ) as next
        ),
        candidate as materialized (
            select p.queue_id, p.feature_id, p.phase_number
            from waiting as w
                cross join lateral (
                    select queue_id, feature_id, phase_number from public.phase_queue
                    where feature_id = w.feature_id and phase_number = w.phase_number
                        and status in ('queued', 'blocked') and run_when = 'completed'
                    offset 0
                ) as p
        ),
        unmet as materialized (
            select c.feature_id, c.phase_number, up.phase_number as prerequisite, up.status
            from candidate as c
                cross join lateral (
                    select q.phase_number, q.status
                    from pgcoord.dependency as d
                        join public.phase_queue as q on q.feature_id = d.feature_id and q.phase_number = d.prerequisite
                    where d.feature_id = c.feature_id and d.dependent = c.phase_number and q.status in ('failed', 'cancelled', 'blocked')
                    offset 0
                ) as up
        ),
        doomed (feature_id, phase_number) as (
            select u.feature_id, u.phase_number
            from unmet as u
                full join waiting as w on w.feature_id = u.feature_id and w.phase_number = u.prerequisite
            where coalesce(u.status, 'none') in ('failed', 'cancelled') or coalesce(u.status, 'none') = 'blocked' and w.feature_id is null
            union
            select d.feature_id, d.dependent
            from doomed
                cross join lateral (
                    select e.feature_id, e.dependent
                    from pgcoord.dependency as e
                        join public.phase_queue as p
                            on p.feature_id = e.feature_id and p.phase_number = e.dependent
                    where e.feature_id = doomed.feature_id and e.prerequisite = doomed.phase_number and not e.conditional
                        and p.status in ('queued', 'blocked')
                    offset 0
                ) as d
        ),
        settled as (
            select max(queue_id) as queue_id, case when bool_or(is_doomed) then 'blocked' else 'queued' end as status
            from (
                select feature_id, phase_number, queue_id, false as is_doomed from candidate
                union all
                select feature_id, phase_number, null, true from doomed
            ) as each
            group by feature_id, phase_number
            having max(queue_id) is not null
        ),
        changed as (
            select s.queue_id
            from settled as s
                cross join lateral (
                    select from public.phase_queue
                    where queue_id = s.queue_id and status = case s.status when 'blocked' then 'queued' else 'blocked' end
                    offset 0
                ) as p
        )
        update public.phase_queue as p    -- (coalesce: or an index of all that are open could be read)
        set status = case p.status when 'queued' then 'blocked' else 'queued' end
        where p.queue_id = any (array(select queue_id from changed)) and coalesce(p.status, '') in ('queued', 'blocked');
end $$;

-- Apply a change of the dependencies of the given phases. After a client's UPDATE it runs with the rights of the owner. A
-- client may also call it directly, so it takes the locks itself and trusts no argument.
create or replace function pgcoord_private.settle_edges(p_features integer[], p_phases integer[]) returns void
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform pgcoord_private.lock_features(array(select distinct id from unnest(p_features) as feature (id)));
    perform pgcoord_private.store_edges(p_features, p_phases);
    perform pgcoord_private.recount_unmet(p_features, p_phases);
    perform pgcoord_private.settle_blocked(p_features, p_phases);
    perform pgcoord_private.skip_unneeded(p_features, p_phases);
end $$;

-- Block or unblock with the cause as the logged reason, then restore the reason of the statement.
create or replace function pgcoord_private.settle_because(p_features integer[], p_phases integer[], p_cause text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_reason text := pgcoord_private.reason();
begin
    perform pgcoord_private.set_reason(p_cause);
    perform pgcoord_private.settle_blocked(p_features, p_phases);
    perform pgcoord_private.set_reason(v_reason);
end $$;

-- Of these phases, skip those with run_when "failed" whose prerequisites are all completed.
create or replace function pgcoord_private.skip_unneeded(p_features integer[], p_phases integer[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    v_reason text := pgcoord_private.reason();
    v_unneeded text[] := array(
        select p.queue_id from pgcoord_private.phases_at(p_features, p_phases) as p
        where p.run_when = 'failed' and p.status = 'queued' and p.unmet = 0 and not exists (
            select from pgcoord.dependency as d
                join public.phase_queue as up on up.feature_id = d.feature_id and up.phase_number = d.prerequisite
            where d.feature_id = p.feature_id and d.dependent = p.phase_number and up.status <> 'completed'
        )
    );
begin
    if v_unneeded = '{}' then
        return;
    end if;
    perform pgcoord_private.set_reason('not needed: what it depends on is completed');
    update public.phase_queue set status = 'completed' where queue_id = any (v_unneeded) and status = 'queued';
    perform pgcoord_private.set_reason(v_reason);
end $$;

-- These phases have ended, or were queued again: recount the open prerequisites of dependents with run_when "failed" or
-- "always", and skip those that are not needed.
create or replace function pgcoord_private.follow_ends(p_features integer[], p_phases integer[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    v_features integer[];
    v_phases integer[];
begin
    select array_agg(d.feature_id), array_agg(d.dependent) into v_features, v_phases
    from unnest(p_features, p_phases) as given (feature_id, phase_number)
        cross join lateral (
            select e.feature_id, e.dependent from pgcoord.dependency as e
            where e.feature_id = given.feature_id and e.prerequisite = given.phase_number and e.conditional
            offset 0
        ) as d;
    if v_features is not null then
        perform pgcoord_private.recount_unmet(v_features, v_phases);
        perform pgcoord_private.skip_unneeded(v_features, v_phases);
    end if;
end $$;

-- Refuse (PC002) to queue a phase again while a dependent runs because of its end (run_when): a running phase keeps its
-- prerequisites. The dependents are locked first, so that a claim of one of them is over, or has not begun.
create or replace function pgcoord_private.check_end_is_unused(p_feature_id integer, p_phase_number integer) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off as $$
declare
    v_dependents integer[] := array(
        select dependent from pgcoord.dependency
        where feature_id = p_feature_id and prerequisite = p_phase_number and conditional
    );
    v_live record;
begin
    if v_dependents = '{}' then
        return;
    end if;
    for v_live in
        select p.queue_id, p.phase_number, p.status, p.run_when, p.slot from public.phase_queue as p
        where p.feature_id = p_feature_id and p.phase_number = any (v_dependents)
        order by p.phase_number
        for no key update
    loop
        if v_live.slot is not null then
            raise exception using
                errcode = 'PC002',
                message = format('phase %s of feature %s cannot wait again: phase %s is %s, which runs %s it has ended',
                    p_phase_number, p_feature_id, v_live.phase_number, v_live.status,
                    case v_live.run_when when 'failed' then 'because' else 'now that' end),
                hint = format('Wait until phase %s has ended, or cancel it first: pgcoord.cancel_phase(%L, reason).',
                    v_live.phase_number, v_live.queue_id);
        end if;
    end loop;
end $$;
