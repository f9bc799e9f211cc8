-- Inserted phases: a BEFORE trigger completes each row; one AFTER trigger on the statement stores edges, determines which
-- phases wait, writes the events and notifies.

-- Return the lowest free slot of the workflow's pool for an inserted running phase; refuse the insertion if there is none.
-- Takes the control row's lock, as a claim does, so that both see the same free slots.
create or replace function pgcoord_private.slot_for_inserted(p_queue_id text, p_workflow text) returns smallint
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_slot smallint;
    v_pool text := coalesce(pgcoord_private.pool_of(p_workflow), 'local');
begin
    perform 1 from pgcoord.control for no key update;
    select s.number into v_slot from pgcoord_private.free_slot as s
    where s.pool = v_pool and not s.draining
    order by s.number
    limit 1;
    if v_slot is null then
        raise exception using
            errcode = 'PC006',
            message = format('no slot%s is free: phase %s cannot be inserted as running (%s of %s are held)',
                pgcoord_private.in_pool(v_pool), p_queue_id,
                (select o.held from pgcoord.pools as o where o.pool = v_pool),
                (select o.slots from pgcoord.pools as o where o.pool = v_pool)),
            hint = 'Insert it as queued, or raise the limit with pgcoord.set_slots(n).';
    end if;
    return v_slot;
end $$;

-- Refuse the insertion of a running phase that cannot have an attempt: its adw_id is another attempt's (PC005), or another
-- phase holds its lock (PC006).
create or replace function pgcoord_private.refuse_running(p_queue_id text, p_adw_id text, p_lock text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_other pgcoord.attempt;
begin
    select * into v_other from pgcoord.attempt where adw_id = p_adw_id;
    if found then
        raise exception using
            errcode = 'PC005',
            message = format('phase %s cannot be inserted as running with adw_id %s: attempt %s of phase %s has it, which %s',
                p_queue_id, p_adw_id, v_other.number, v_other.queue_id,
                case when v_other.ended_at is null then 'runs' else 'has ended' end),
            hint = 'Leave adw_id out: the phase gets one of its own.';
    end if;
    raise exception using
        errcode = 'PC006',
        message = format('lock %s is held by %s: phase %s cannot be inserted as running',
            p_lock, pgcoord_private.lock_holder(p_lock), p_queue_id),
        hint = 'Insert it as queued.';
end $$;

-- Refuse (PC005) a retry time of a phase that is not queued.
create or replace function pgcoord_private.refuse_retry_time(p_queue_id text, p_status text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using
        errcode = 'PC005',
        message = format('phase %s is %s: it cannot have a retry_at', p_queue_id, p_status),
        hint = 'Leave it null: only a phase that is queued waits for a time.';
end $$;

-- Refuse (PC008) values for derived columns of an inserted phase. Values equal to the defaults are accepted, as some clients
-- name every column.
create or replace function pgcoord_private.check_inserted_columns(p_given public.phase_queue, p_derived public.phase_queue) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp as $$
declare
    v_columns text := concat_ws(', ',
        case when p_given.slot <> coalesce(p_derived.slot, 0) then 'slot' end,
        case when p_given.attempt not in (0, p_derived.attempt) then 'attempt' end,
        case when p_given.attempts_used <> 0 then 'attempts_used' end,
        case when p_given.unmet not in (0, p_derived.unmet) then 'unmet' end,
        case when p_given.eligible_at is not null and p_derived.eligible_at is null then 'eligible_at' end,
        case when p_given.held
            and not exists (select from public.planned_features where id = p_given.feature_id and paused_at is not null)
            then 'held' end,
        case when p_given.gated and not p_derived.gated then 'gated' end,
        case when p_given.workflow_type <> coalesce(p_derived.workflow_type, '') then 'workflow_type' end
    );
begin
    if v_columns <> '' then
        raise exception using
            errcode = 'PC008',
            message = format('phase %s cannot be inserted with a value of its own for %s: that is derived', p_derived.queue_id, v_columns),
            hint = pgcoord_private.derived_hint(v_columns);
    end if;
end $$;

-- Complete an inserted phase; a running one gets a slot or is refused.
-- Long, since it runs for every row, where each function call counts.
create or replace function pgcoord_private.fill_phase() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_name text := format('queue-%s-%s', new.feature_id, new.phase_number);
    v_times timestamptz[] := array[
        new.created_at, new.updated_at, new.ready_timestamp, new.started_timestamp, new.finished_timestamp, new.retry_at
    ];
    v_says boolean := num_nonnulls(new.slot, new.eligible_at, new.workflow_type) > 0
        or (new.attempt, new.attempts_used, new.unmet, new.held, new.gated) is distinct from (0, 0, 0, false, false);
    v_given public.phase_queue;
begin
    if (new.phase_number >= 1 and new.feature_id is not null) is not true then
        raise exception using
            errcode = 'PC005',
            message = format('feature %s cannot have a phase %s', coalesce(new.feature_id::text, 'null'), coalesce(new.phase_number::text, 'null')),
            hint = case when new.feature_id is null then 'Give feature_id, the id of its feature in planned_features.'
                else 'Number the phases of a feature from 1.' end;
    end if;
    new.queue_id := coalesce(nullif(new.queue_id, ''), v_name);
    if new.queue_id <> v_name then
        perform pgcoord_private.check_queue_id(new.queue_id, new.feature_id, new.phase_number);
    end if;
    if num_nonnulls(variadic v_times) > 0 then
        perform pgcoord_private.check_times('phase ' || new.queue_id, variadic v_times);
    end if;
    if jsonb_typeof(new.depends_on_phases) is distinct from 'array' then
        new.depends_on_phases := pgcoord_private.meant_as('[]', new.depends_on_phases);
        perform pgcoord_private.check_prerequisites(new.queue_id, new.phase_number, new.depends_on_phases);
    end if;
    if new.run_when is distinct from 'completed' then
        new.run_when := coalesce(new.run_when, 'completed');
        perform pgcoord_private.check_run_when(new.queue_id, new.run_when, new.depends_on_phases);
    end if;
    if new.phase_data <> '{}' or new.phase_data is null then
        new.phase_data := pgcoord_private.meant_as('{}', new.phase_data);
        perform pgcoord_private.check_phase_data(new.queue_id, new.phase_data);
    end if;
    if v_says then
        v_given := new;
    end if;
    new.workflow_type := new.phase_data ->> 'workflow_type';
    if new.error_message is not null then
        new.error_message := pgcoord_private.without_middle(new.error_message);
    end if;
    if new.adw_id is not null then
        perform pgcoord_private.check_text('adw_id of phase ' || new.queue_id, new.adw_id, 200);
    end if;
    if new.lock is not null then
        new.lock := nullif(btrim(new.lock), '');
        perform pgcoord_private.check_text('the lock of phase ' || new.queue_id, new.lock, 200);
    end if;
    new.parked := false;
    new.priority := coalesce(new.priority, 50);
    new.queue_position := coalesce(new.queue_position, nextval('pgcoord.queue_position'));
    new.created_at := coalesce(new.created_at, now());
    new.updated_at := coalesce(new.updated_at, now());
    -- A new phase is not claimed, and its prerequisites are not checked yet: ready and blocked are derived, not declared.
    if new.status in ('ready', 'blocked') or new.status is null then
        new.status := 'queued';
    elsif new.status <> 'queued' then
        perform pgcoord_private.check_status(new.queue_id, new.status);
    end if;
    new.slot := null;
    new.attempt := 0;
    new.attempts_used := 0;
    new.held := false;
    new.gated := new.phase_data ->> 'gate' is not null and new.status not in ('running', 'completed');
    new.unmet := case when new.status = 'queued' then jsonb_array_length(new.depends_on_phases) else 0 end;
    new.eligible_at := case when new.unmet = 0 then clock_timestamp() end;
    if new.status = 'running' then
        new.slot := pgcoord_private.slot_for_inserted(new.queue_id, new.workflow_type);
        new.attempt := 1;
        new.adw_id := coalesce(new.adw_id, pgcoord_private.new_adw_id());
        new.ready_timestamp := coalesce(new.ready_timestamp, clock_timestamp());    -- not now(): it may have waited for the slot
        new.started_timestamp := coalesce(new.started_timestamp, clock_timestamp());
    elsif new.status <> 'queued' then
        new.finished_timestamp := coalesce(new.finished_timestamp, now());
    end if;
    if new.retry_at is not null and new.status <> 'queued' then
        perform pgcoord_private.refuse_retry_time(new.queue_id, new.status);
    end if;
    if v_says then
        perform pgcoord_private.check_inserted_columns(v_given, new);
    end if;
    return new;
end $$;

-- Refuse phases of a cancelled feature, and running ones whose prerequisites are not completed.
create or replace function pgcoord_private.check_inserted(p_queue_ids text[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_fault record;
begin
    select p.queue_id, f.id, d.prerequisite into v_fault
    from public.phase_queue as p
        join public.planned_features as f on f.id = p.feature_id
        left join pgcoord.dependency as d on p.status = 'running'
            and d.feature_id = p.feature_id and d.dependent = p.phase_number
            and not exists (
                select from public.phase_queue as up
                where up.feature_id = d.feature_id and up.phase_number = d.prerequisite
                    and pgcoord_private.is_met(up.status, p.run_when)
            )
    where p.queue_id = any (p_queue_ids) and (f.cancelled_at is not null or d.prerequisite is not null)
    order by p.feature_id, p.phase_number, d.prerequisite
    limit 1;
    if not found then
        return;
    end if;
    raise exception using
        errcode = 'PC002',
        message = case when v_fault.prerequisite is null
            then format('feature %s is cancelled: phase %s cannot be added', v_fault.id, v_fault.queue_id)
            else format('phase %s cannot be running: its prerequisite %s is not completed', v_fault.queue_id, v_fault.prerequisite)
        end,
        hint = case when v_fault.prerequisite is null
            then 'Retry one of its phases to take the feature up again, or add the phase to another feature.'
            else 'Insert it as queued: it is claimed when its prerequisites are completed.'
        end;
end $$;

-- Store the edges of inserted phases, determine which ones wait, log, and wake the coordinator if one can start. Long, since
-- only the trigger's own function sees new_rows, and each of many phases shall cost one look-up.
create or replace function pgcoord_private.settle_inserted_phases() returns trigger
language plpgsql
security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    v_features integer[];
    v_phases integer[];
    v_paused integer[];    -- features: looked up once each, never joined with a thousand new rows
    v_cancelled integer[];
    v_suspect text[];
begin
    if not exists (select from new_rows) then
        return null;
    end if;
    v_features := array(select distinct feature_id from new_rows);
    perform pgcoord_private.check_isolation(v_features);
    perform pgcoord_private.lock_features(v_features);
    delete from pgcoord.unqueued where feature_id = any (v_features);
    v_paused := array(select id from public.planned_features where id = any (v_features) and paused_at is not null);
    v_cancelled := array(select id from public.planned_features where id = any (v_features) and cancelled_at is not null);

    insert into pgcoord.event (kind, feature_id, phase_number, queue_id, to_status, attempt, actor, reason)
    select 'phase_inserted', feature_id, phase_number, queue_id, status, nullif(attempt, 0), pgcoord_private.actor(), pgcoord_private.reason()
    from new_rows order by feature_id, phase_number;

    insert into pgcoord.attempt (queue_id, number, adw_id, secret, slot, pool, external, workflow, lock, claimed_at, started_at)
    select queue_id, 1, adw_id, pgcoord_private.new_secret(), slot, pgcoord_private.pool_of_slot(slot), true, workflow_type, lock, ready_timestamp, started_timestamp
    from new_rows where status = 'running'
    on conflict do nothing;
    perform pgcoord_private.refuse_running(n.queue_id, n.adw_id, n.lock) from new_rows as n
    where n.status = 'running' and not exists (select from pgcoord.attempt as a where a.queue_id = n.queue_id);

    select array_agg(feature_id), array_agg(phase_number) into v_features, v_phases
    from new_rows where depends_on_phases <> '[]';
    if v_features is not null then
        perform pgcoord_private.store_edges(v_features, v_phases);
    end if;

    v_suspect := array(select queue_id from new_rows where status = 'running' or feature_id = any (v_cancelled));
    if v_suspect <> '{}' then
        perform pgcoord_private.check_inserted(v_suspect);
    end if;

    if v_paused <> '{}' then
        update public.phase_queue set held = true
        where queue_id = any (array(select queue_id from new_rows where feature_id = any (v_paused)));
    end if;

    -- Inserted phases that wait for an existing one, and existing ones that waited for an inserted one. (Statistics
    -- of tables that were empty once make all indexes and joins look equally cheap. So prerequisites are read from the
    -- phase, not from the index, and `offset 0` forces one look-up for each row.)
    select array_agg(feature_id), array_agg(phase_number) into v_features, v_phases
    from (
        select n.feature_id, n.phase_number
        from new_rows as n
        where n.status = 'queued' and exists (
            select from jsonb_array_elements(n.depends_on_phases) as e
            where exists (
                select from public.phase_queue as up
                where up.feature_id = n.feature_id and up.phase_number = e::integer
                    and up.status in ('completed', 'failed', 'cancelled', 'blocked')
                offset 0
            )
        )
        union
        select n.feature_id, d.dependent
        from new_rows as n
            cross join lateral (
                select dependent from pgcoord.dependency
                where feature_id = n.feature_id and prerequisite = n.phase_number
                offset 0
            ) as d
        where pgcoord_private.ended(n.status) and exists (
            select from public.phase_queue as down
            where down.feature_id = n.feature_id and down.phase_number = d.dependent and down.status in ('queued', 'blocked')
            offset 0
        )
    ) as touched;
    if v_features is not null then
        perform pgcoord_private.recount_unmet(v_features, v_phases);
        perform pgcoord_private.settle_because(v_features, v_phases, 'a prerequisite is failed or cancelled');
        perform pgcoord_private.skip_unneeded(v_features, v_phases);
    end if;

    perform pgcoord_private.log_event('gate_asked', n.phase_data ->> 'gate', n.feature_id, n.phase_number, n.queue_id),
        pgcoord_private.note_event('gate', n.phase_data ->> 'gate', n.feature_id, n.phase_number, n.queue_id)
    from new_rows as n
    where n.gated and n.status = 'queued' and n.eligible_at is not null and n.feature_id <> all (v_paused);
    if exists (select from new_rows where status = 'queued' and eligible_at is not null and not gated) then
        notify pgcoord_wake;
    end if;
    perform pg_notify('pgcoord_event', feature_id::text) from (select distinct feature_id from new_rows) as touched;
    return null;
end $$;
