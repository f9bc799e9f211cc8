-- Updated phases, before the row is stored: which columns may change, and the derived ones. A plain UPDATE and the functions
-- of the schema fire the same trigger; it refuses transitions that the table of states does not permit.

-- The hint for such columns: what to do instead.
create or replace function pgcoord_private.derived_hint(p_columns text) returns text
language sql immutable
return case p_columns
    when 'workflow_type' then 'It is what phase_data names: {"workflow_type": "..."}.'
    when 'gated' then 'It follows from phase_data: {"gate": "..."}; pgcoord.approve(queue_id, reason) says yes.'
    else 'Leave it as it is: it follows from status, depends_on_phases, phase_data, from pauses and from attempts.'
end;

-- Refuse (PC008) to change the key of a phase.
create or replace function pgcoord_private.refuse_identity(p_queue_id text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using
        errcode = 'PC008',
        message = format('phase %s keeps its queue_id, feature_id, phase_number, run_when and lock', p_queue_id),
        hint = 'Delete it and insert another.';
end $$;

-- Refuse (PC008) to change derived columns.
create or replace function pgcoord_private.refuse_derived(p_old public.phase_queue, p_new public.phase_queue) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp as $$
declare
    v_columns text := (
        select string_agg(key, ', ')
        from unnest(array['slot', 'attempt', 'attempts_used', 'unmet', 'eligible_at', 'held', 'gated', 'parked', 'adw_id', 'workflow_type',
            'error_message', 'created_at', 'ready_timestamp', 'started_timestamp', 'finished_timestamp']) as key
        where to_jsonb(p_old) -> key is distinct from to_jsonb(p_new) -> key
    );
begin
    raise exception using
        errcode = 'PC008',
        message = format('%s of phase %s cannot be changed by hand: that is derived', v_columns, p_old.queue_id),
        hint = pgcoord_private.derived_hint(v_columns);
end $$;

-- Refuse (42501) a client that sets a status by UPDATE, and name the function to call instead.
create or replace function pgcoord_private.refuse_status(p_queue_id text, p_to text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp as $$
begin
    perform pgcoord_private.check_status(p_queue_id, p_to);
    raise exception using
        errcode = '42501',
        message = format('%s may not set phase %s to %s by hand', current_user, p_queue_id, p_to),
        hint = format('select * from pgcoord.%s', case p_to
            when 'completed' then format('complete_phase(%L) ends one that runs, pgcoord.skip_phase(%L, reason) takes another as done.',
                p_queue_id, p_queue_id)
            when 'failed' then format('fail_phase(%L, error) says that one that runs has failed.', p_queue_id)
            when 'cancelled' then format('cancel_phase(%L, reason) gives it up.', p_queue_id)
            when 'queued' then format('retry_phase(%L, reason) queues it again.', p_queue_id)
            else format('why(%L) says what it waits for: a coordinator claims, starts and blocks phases.', p_queue_id)
        end);
end $$;

-- Refuse other prerequisites for a phase that does not wait (PC002), or malformed ones (PC005); lock the feature.
create or replace function pgcoord_private.check_new_prerequisites(p_old public.phase_queue, p_depends_on jsonb) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    if p_old.status not in ('queued', 'blocked') then
        raise exception using
            errcode = 'PC002',
            message = format('phase %s is %s: its dependencies cannot change any more', p_old.queue_id, p_old.status),
            hint = 'Only a phase that waits (queued or blocked) can be given other prerequisites.';
    end if;
    perform pgcoord_private.check_prerequisites(p_old.queue_id, p_old.phase_number, p_depends_on);
    perform pgcoord_private.check_run_when(p_old.queue_id, p_old.run_when, p_depends_on);
    perform pgcoord_private.hold_feature(p_old.feature_id);
end $$;

-- Refuse (PC002) ready without an attempt, and running without a started attempt.
create or replace function pgcoord_private.refuse_start(p_queue_id text, p_from text, p_to text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using
        errcode = 'PC002',
        message = format('phase %s is %s and cannot be set to %s by hand', p_queue_id, p_from, p_to),
        hint = format('A coordinator claims and starts it; pgcoord.set_priority(%L, n) brings it forward.', p_queue_id);
end $$;

-- Refuse (PC002) to block or unblock a phase by UPDATE: that follows from its prerequisites.
create or replace function pgcoord_private.refuse_blocking(p_queue_id text, p_from text, p_to text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using
        errcode = 'PC002',
        message = format('phase %s is %s and cannot be set to %s by hand', p_queue_id, p_from, p_to),
        hint = 'A phase is blocked exactly as long as a prerequisite is failed or cancelled: retry or skip that one.';
end $$;

-- Refuse (PC004) an end of a phase if another end was requested before.
create or replace function pgcoord_private.refuse_end(p_queue_id text, p_ending text, p_to text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using
        errcode = 'PC004',
        message = format('phase %s is being ended (%s): it cannot become %s any more', p_queue_id, p_ending, p_to),
        hint = format('Wait until it has ended; then retry it, or pgcoord.skip_phase(%L, reason) takes it as done.', p_queue_id);
end $$;

-- Refuse (PC008) to open the gate of a phase that has none, or that is past it.
create or replace function pgcoord_private.refuse_gate(p_queue_id text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using
        errcode = 'PC008',
        message = format('phase %s has no question that could be asked now', p_queue_id),
        hint = 'A gate is what phase_data ->> gate says, before the phase is claimed.';
end $$;

-- Queue a phase again: recount its open prerequisites (one may have been deleted meanwhile).
create or replace function pgcoord_private.requeue(p_old public.phase_queue, p_new public.phase_queue) returns public.phase_queue
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    p_new.status := 'queued';
    p_new.finished_timestamp := null;
    p_new.unmet := (
        select count(*) from pgcoord.dependency as d
        where d.feature_id = p_old.feature_id and d.dependent = p_old.phase_number
            and not exists (
                select from public.phase_queue as up
                where up.feature_id = d.feature_id and up.phase_number = d.prerequisite
                    and pgcoord_private.is_met(up.status, p_old.run_when)
            )
    );
    p_new.eligible_at := case when p_new.unmet = 0 then coalesce(p_old.eligible_at, clock_timestamp()) end;
    p_new.held := exists (
        select from public.planned_features where id = p_old.feature_id and paused_at is not null
    );
    return p_new;
end $$;

-- An attempt of the phase failed: queue it again while attempts are left, later each time; else it stays failed.
-- Three lost attempts since a person queued it fail the phase, even where losses do not count: it probably crashes the
-- machine.
create or replace function pgcoord_private.retry_or_fail(
    p_old public.phase_queue, p_new public.phase_queue, p_attempt pgcoord.attempt
) returns public.phase_queue
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    if p_attempt.outcome = 'lost' and p_attempt.retry_lost and (
        select count(*) < 3 from pgcoord.attempt
        where queue_id = p_old.queue_id and outcome = 'lost' and number > coalesce((
            select max(attempt) from pgcoord.event    -- the last one before a retry
            where feature_id = p_old.feature_id and phase_number = p_old.phase_number
                and from_status in ('failed', 'cancelled') and to_status = 'queued'
        ), 0)
    ) then
        p_new.retry_at := clock_timestamp() + p_attempt.retry_delay;
        return pgcoord_private.requeue(p_old, p_new);
    end if;
    p_new.attempts_used := p_old.attempts_used + 1;
    if p_new.attempts_used >= p_attempt.max_attempts then
        return p_new;
    end if;
    p_new.retry_at := clock_timestamp()
        + least(p_attempt.retry_delay * 2 ^ least(p_new.attempts_used - 1, 30), greatest(p_attempt.retry_delay, '1 hour'));
    return pgcoord_private.requeue(p_old, p_new);
end $$;

-- Derive the row of a phase that leaves its slot. While its process is alive it keeps the slot: failed and cancelled then
-- become a request to the coordinator (attempt.ending), which ends the process first and then sets the status.
-- follow_updated_phase refuses a completion that comes too late.
-- Errors: PC002 for queued while the attempt is alive; PC004 for failed if another end was requested before.
create or replace function pgcoord_private.leave_slot(p_old public.phase_queue, p_new public.phase_queue) returns public.phase_queue
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_attempt pgcoord.attempt;
begin
    if p_new.status = 'completed' then
        p_new.slot := null;
        p_new.finished_timestamp := clock_timestamp();
        return p_new;
    end if;
    select * into v_attempt from pgcoord.attempt
    where queue_id = p_old.queue_id and number = p_old.attempt;

    if v_attempt.ended_at is null and p_new.status = 'queued' then
        raise exception using
            errcode = 'PC002',
            message = format('phase %s is %s: it cannot be queued again while its attempt lives', p_old.queue_id, p_old.status),
            hint = format('Cancel it first: pgcoord.cancel_phase(%L, reason), then pgcoord.retry_phase(%L).',
                p_old.queue_id, p_old.queue_id);
    elsif v_attempt.ended_at is null and v_attempt.ending <> p_new.status and p_new.status <> 'cancelled' then
        perform pgcoord_private.refuse_end(p_old.queue_id, v_attempt.ending, p_new.status);
    elsif v_attempt.ended_at is null and v_attempt.exited_at is null and not v_attempt.external then
        update pgcoord.attempt
        set ending = p_new.status, ending_at = clock_timestamp(),
            ending_reason = coalesce(case when p_new.status = 'failed' then p_new.error_message end, pgcoord_private.reason())
        where id = v_attempt.id and (ending is null or p_new.status = 'cancelled' and ending <> 'cancelled');
        return p_old;
    end if;

    p_new.slot := null;
    if p_new.status = 'queued' then
        return pgcoord_private.requeue(p_old, p_new);
    end if;
    p_new.finished_timestamp := clock_timestamp();
    if p_new.status = 'failed' then
        return pgcoord_private.retry_or_fail(p_old, p_new, v_attempt);
    end if;
    return p_new;
end $$;

-- Derive the row of a waiting or ended phase that is skipped, cancelled or retried. Blocked and unblocked follow from the
-- prerequisites (settle_blocked) and are never set by UPDATE.
create or replace function pgcoord_private.leave_rest(p_old public.phase_queue, p_new public.phase_queue) returns public.phase_queue
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    if p_new.status = 'queued' then
        update public.planned_features set cancelled_at = null, cancelled_reason = null
        where id = p_old.feature_id and cancelled_at is not null;
        p_new.attempts_used := 0;
        p_new.error_message := null;
        return pgcoord_private.requeue(p_old, p_new);
    end if;
    p_new.finished_timestamp := clock_timestamp();
    return p_new;
end $$;

-- Refuse forbidden changes and (PC002) transitions, and derive the rest of the row.
-- Long, since it runs for every row: a call that took the row would read its prompt, which may be long.
create or replace function pgcoord_private.guard_phase_update() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    -- A statement of a person or of our functions, not of a trigger. (A client's own trigger is recognized by its rights.)
    v_by_hand boolean := pg_trigger_depth() = 1;
begin
    if (new.queue_id, new.feature_id, new.phase_number, new.run_when, new.lock)
        is distinct from (old.queue_id, old.feature_id, old.phase_number, old.run_when, old.lock)
    then
        perform pgcoord_private.refuse_identity(old.queue_id);
    end if;
    if num_nulls(new.priority, new.queue_position, new.gated, new.parked, new.created_at) > 0 then
        perform pgcoord_private.refuse_nulls('phase ' || old.queue_id, to_jsonb(new) - 'phase_data',
            'priority', 'queue_position', 'gated', 'parked', 'created_at');
    end if;
    if new.depends_on_phases is distinct from old.depends_on_phases then
        new.depends_on_phases := pgcoord_private.meant_as('[]', new.depends_on_phases);
        if new.depends_on_phases <> old.depends_on_phases then
            perform pgcoord_private.check_new_prerequisites(old, new.depends_on_phases);
        end if;
    end if;
    new.updated_at := now();
    if new.error_message is distinct from old.error_message then
        new.error_message := pgcoord_private.without_middle(new.error_message);
    end if;
    if new.status = old.status then
        if (new.slot, new.attempt, new.attempts_used, new.unmet, new.eligible_at, new.held, new.adw_id)
            is distinct from (old.slot, old.attempt, old.attempts_used, old.unmet, old.eligible_at, old.held, old.adw_id)
        then
            if v_by_hand or not pgcoord_private.writes_state() then
                perform pgcoord_private.refuse_derived(old, new);
            end if;
        elsif v_by_hand and new.gated and not old.gated and (new.phase_data ->> 'gate' is null or new.slot is not null) then
            perform pgcoord_private.refuse_gate(old.queue_id);
        elsif v_by_hand and new.parked = old.parked and (new.retry_at is not null or old.retry_at is null) then
            -- Lock the feature although no other row changes: without it, an UPDATE over many phases deadlocks with a concurrent
            -- completion. Not when a claim clears a retry time: a claim never waits.
            perform pgcoord_private.hold_feature(old.feature_id);
        end if;
        if ((new.error_message, new.created_at, new.ready_timestamp, new.started_timestamp, new.finished_timestamp)
                is distinct from (old.error_message, old.created_at, old.ready_timestamp, old.started_timestamp, old.finished_timestamp)
            or new.parked <> old.parked
            or new.gated <> old.gated and new.phase_data ->> 'gate' is not distinct from old.phase_data ->> 'gate')
        then
            if not pgcoord_private.writes_state() or new.parked and new.lock is null
                or (new.finished_timestamp is null) = pgcoord_private.ended(new.status)
            then
                perform pgcoord_private.refuse_derived(old, new);
            end if;
            perform pgcoord_private.check_times('phase ' || old.queue_id,
                new.created_at, new.ready_timestamp, new.started_timestamp, new.finished_timestamp);
        end if;
        if new.retry_at is distinct from old.retry_at and new.retry_at is not null then    -- by a trigger, too
            perform pgcoord_private.check_times('phase ' || old.queue_id, new.retry_at);
            if old.status <> 'queued' then
                perform pgcoord_private.refuse_retry_time(old.queue_id, old.status);
            end if;
        end if;
        return new;
    end if;
    if not pgcoord_private.writes_state() then
        perform pgcoord_private.refuse_status(old.queue_id, new.status);
    end if;
    if pgcoord_private.may_move(old.status, new.status) is not true then
        perform pgcoord_private.check_status(old.queue_id, new.status);
        raise exception using
            errcode = 'PC002',
            message = format('phase %s is %s and cannot become %s', old.queue_id, old.status, new.status),
            hint = format('pgcoord.why(%L) says what can be done.', old.queue_id);
    elsif new.status in ('ready', 'running') then
        -- Permitted if it is true: ready with an attempt, running with a started attempt.
        if (new.unmet, new.eligible_at, new.held, new.attempts_used)
            is distinct from (old.unmet, old.eligible_at, old.held, old.attempts_used)
        or not exists (
            select from pgcoord.attempt
            where queue_id = new.queue_id and number = new.attempt and adw_id = new.adw_id and slot = new.slot
                and ended_at is null and (new.status = 'ready' or started_at is not null)
        ) then
            perform pgcoord_private.refuse_start(old.queue_id, old.status, new.status);
        end if;
        return new;
    end if;
    -- The new row keeps only the columns that a statement may set; derived columns start from the old row.
    new.adw_id := old.adw_id;
    new.queue_position := old.queue_position;
    new.created_at := old.created_at;
    new.ready_timestamp := old.ready_timestamp;
    new.started_timestamp := old.started_timestamp;
    new.finished_timestamp := old.finished_timestamp;
    new.eligible_at := old.eligible_at;
    new.retry_at := null;
    new.slot := old.slot;
    new.attempt := old.attempt;
    new.attempts_used := old.attempts_used;
    new.unmet := old.unmet;
    new.held := old.held;
    new.parked := false;
    if old.status in ('queued', 'blocked') and new.status in ('queued', 'blocked') then
        if v_by_hand then
            perform pgcoord_private.refuse_blocking(old.queue_id, old.status, new.status);
        end if;
        return new;
    end if;
    new.feature_id := pgcoord_private.hold_feature(old.feature_id);
    if old.slot is not null then
        return pgcoord_private.leave_slot(old, new);
    end if;
    return pgcoord_private.leave_rest(old, new);
end $$;

-- Keep workflow_type in step with phase_data.
create or replace function pgcoord_private.copy_workflow() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    if new.phase_data is distinct from old.phase_data then
        new.phase_data := pgcoord_private.meant_as('{}', new.phase_data);
        perform pgcoord_private.check_phase_data(new.queue_id, new.phase_data);
    end if;
    if new.workflow_type is distinct from old.workflow_type and new.workflow_type is distinct from new.phase_data ->> 'workflow_type' then
        perform pgcoord_private.refuse_derived(old, new);
    end if;
    new.workflow_type := new.phase_data ->> 'workflow_type';
    if new.phase_data ->> 'gate' is distinct from old.phase_data ->> 'gate' then    -- another question is asked anew
        new.gated := new.phase_data ->> 'gate' is not null and old.slot is null and old.status <> 'completed';
    end if;
    return new;
end $$;
