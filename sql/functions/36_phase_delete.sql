-- Deleted phases: refused while they hold a slot; their dependents wait.

-- Refuse (PC002) to delete a phase that holds a slot.
create or replace function pgcoord_private.guard_phase_delete() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    if old.slot is not null then
        raise exception using
            errcode = 'PC002',
            message = format('phase %s is %s and holds slot %s: it cannot be deleted', old.queue_id, old.status, old.slot),
            hint = format('Cancel it first: pgcoord.cancel_phase(%L, reason).', old.queue_id);
    end if;
    perform pgcoord_private.hold_feature(old.feature_id);
    return old;
end $$;

-- Refuse to delete an attempt of a phase: PC002 where the phase holds a slot with it, and would run for ever, else PC008, as
-- attempts and their results are history. One that goes with its phase, which is gone by then, is deleted.
create or replace function pgcoord_private.guard_attempt_delete() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_phase record;
    v_holds boolean;
begin
    select status, slot, attempt into v_phase from public.phase_queue where queue_id = old.queue_id;
    if not found or old.number > v_phase.attempt then    -- inserted by hand: the phase never had it
        return old;
    end if;
    v_holds := v_phase.slot is not null and v_phase.attempt = old.number;
    raise exception using
        errcode = case when v_holds then 'PC002' else 'PC008' end,
        message = case
            when v_holds then format('phase %s is %s and holds slot %s: its attempt %s cannot be deleted',
                old.queue_id, v_phase.status, v_phase.slot, old.number)
            else format('attempt %s of phase %s is history and stays as it is', old.number, old.queue_id) end,
        hint = case when v_holds then format('Cancel the phase first: pgcoord.cancel_phase(%L, reason).', old.queue_id)
            else 'pgcoord.prune(older_than) removes finished features with their attempts.' end;
end $$;

-- Refuse (PC002) to truncate phases or attempts while a phase holds a slot: its process would run on unseen.
create or replace function pgcoord_private.guard_phase_truncate() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_queue_id text;
    v_status text;
begin
    select queue_id, status into v_queue_id, v_status from public.phase_queue where slot is not null
    order by slot limit 1;
    if found then
        raise exception using
            errcode = 'PC002',
            message = format('phase %s is %s and holds a slot: %s cannot be truncated', v_queue_id, v_status, tg_relid::regclass),
            hint = format('Cancel it first, and each other that runs: pgcoord.cancel_phase(%L, reason).', v_queue_id);
    end if;
    return null;
end $$;

-- Log deleted phases and make their dependents wait.
create or replace function pgcoord_private.settle_deleted_phases() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    v_features integer[];
    v_phases integer[];
begin
    insert into pgcoord.event (kind, feature_id, phase_number, queue_id, from_status, actor, reason)
    select 'phase_deleted', feature_id, phase_number, queue_id, status, pgcoord_private.actor(), pgcoord_private.reason()
    from old_rows order by feature_id, phase_number;
    insert into pgcoord.unqueued (feature_id)
    select distinct o.feature_id from old_rows as o
        join public.planned_features as f on f.id = o.feature_id    -- which may be deleted with them
    where not exists (select from public.phase_queue as p where p.feature_id = o.feature_id)
    on conflict do nothing;
    perform pg_notify('pgcoord_event', feature_id::text) from (select distinct feature_id from old_rows) as touched;

    select array_agg(d.feature_id), array_agg(d.dependent) into v_features, v_phases
    from old_rows as o
        cross join lateral (
            select feature_id, dependent from pgcoord.dependency
            where feature_id = o.feature_id and prerequisite = o.phase_number
            offset 0
        ) as d;
    if v_features is not null then
        perform pgcoord_private.recount_unmet(v_features, v_phases);
        perform pgcoord_private.settle_because(v_features, v_phases, 'a prerequisite was deleted');
    end if;
    return null;
end $$;
