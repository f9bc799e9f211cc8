-- Run a feature again: queue a copy with the same phases, linked to its origin, which stays as it is.

-- Whether a phase was inserted as completed, as a plan may mark it.
create or replace function pgcoord_private.came_completed(p_phase public.phase_queue) returns boolean
language sql stable
begin atomic
    select p_phase.status = 'completed'
        and not exists (select from pgcoord.attempt as a where a.queue_id = p_phase.queue_id)
        and not exists (
            select from pgcoord.event as e
            where e.feature_id = p_phase.feature_id and e.phase_number = p_phase.phase_number and e.kind = 'phase_moved'
        );
end;

-- Copy a feature and queue its phases. With p_from, completed phases are copied as completed, with their results, except
-- phase p_from and its direct and indirect dependents. Phases that were inserted as completed stay completed. (Costs and
-- tokens are not copied: they were spent once.) Long, since a copy has three parts: the completed phases, the feature, and
-- their results.
-- Errors: PC001; PC002 if there is nothing to copy.
create or replace function pgcoord_private.copy_feature(p_feature_id bigint, p_from integer) returns integer
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_id integer;
    v_plan jsonb;
    v_taken integer[];    -- phases that are completed in the copy
begin
    perform pgcoord_private.lock_feature(p_feature_id);
    v_plan := pgcoord_private.plan_of(p_feature_id::integer);
    if v_plan = '[]' then
        raise exception using
            errcode = 'PC002',
            message = format('feature %s has no phases and no plan: there is nothing to run again', p_feature_id),
            hint = '''pgcoord plan'' or the panel makes a plan; or insert its phases into phase_queue.';
    end if;
    with recursive branch (phase_number) as (
        select p_from
        union
        select d.dependent from branch as b
            join pgcoord.dependency as d on d.feature_id = p_feature_id and d.prerequisite = b.phase_number
    )
    select array_agg(p.phase_number) into v_taken
    from public.phase_queue as p
    where p.feature_id = p_feature_id and p.status = 'completed' and (
        p_from is not null and p.phase_number not in (select b.phase_number from branch as b)
        or pgcoord_private.came_completed(p)
    );
    select jsonb_agg(case when exists (select from public.phase_queue where feature_id = p_feature_id) then phase - 'status' else phase end
        || case when (phase -> 'phase_number')::integer = any (v_taken) then '{"status": "completed"}' else '{}' end::jsonb)
    into v_plan from jsonb_array_elements(v_plan) as phase;

    perform pgcoord_private.set_reason(format('feature %s again', p_feature_id) || coalesce(', from phase ' || p_from, ''));
    insert into public.planned_features (
        title, description, item_type, priority, estimated_hours, max_cost_usd, tags, plan, origin_id)
    select title, description, item_type, priority, estimated_hours, max_cost_usd, tags, v_plan, id
    from public.planned_features where id = p_feature_id
    returning id into v_id;
    perform pgcoord.execute_feature(v_id);
    perform pgcoord_private.set_reason(null);

    -- A copied completed phase has an attempt 0, which holds its result, and by which a further copy knows that the phase
    -- was not inserted as completed.
    with known as (
        select q.queue_id, r.value, a.slot, a.pool, a.workflow, a.ended_at
        from public.phase_queue as p
            join pgcoord.attempt as a on a.queue_id = p.queue_id and a.number = p.attempt and a.outcome = 'completed'
            left join pgcoord.result as r on r.attempt_id = a.id
            join public.phase_queue as q on q.feature_id = v_id and q.phase_number = p.phase_number
        where p.feature_id = p_feature_id and p.phase_number = any (v_taken)
    ), made as (
        insert into pgcoord.attempt
            (queue_id, number, adw_id, secret, slot, pool, external, workflow, claimed_at, ended_at, outcome, exited_at)
        select queue_id, 0, pgcoord_private.new_adw_id(), pgcoord_private.new_secret(), slot, pool, true, workflow,
            ended_at, ended_at, 'completed', ended_at
        from known
        returning id, queue_id
    )
    insert into pgcoord.result (attempt_id, feature_id, value)
    select m.id, v_id, k.value - '{cost_usd,tokens_in,tokens_out}'::text[]
    from made as m join known as k using (queue_id)
    where k.value is not null;
    return v_id;
end $$;

create or replace function pgcoord.again(p_feature_id bigint) returns integer
language sql
security definer set search_path = pg_catalog, pg_temp
begin atomic
    select pgcoord_private.copy_feature(p_feature_id, null);
end;
comment on function pgcoord.again(bigint) is
    'Queue a copy of a feature, with the same phases and linked to it (origin_id); returns the id of the copy.';

create or replace function pgcoord.again_from(p_queue_id text) returns integer
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_phase public.phase_queue := pgcoord_private.lock_phase(p_queue_id);
begin
    return pgcoord_private.copy_feature(v_phase.feature_id, v_phase.phase_number);
end $$;
comment on function pgcoord.again_from(text) is
    'Queue a copy of the feature of a phase; completed phases are copied with their results, except this phase and its dependents. Returns the id of the copy.';
