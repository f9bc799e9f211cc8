-- Updated phases: one AFTER trigger on the statement writes the events, ends attempts, frees slots, resolves dependents and
-- notifies.

-- End the attempt of a phase that has left its slot, and delete a draining slot. Wakes the coordinator, with the attempt as
-- the payload if its process may be alive. Returns true, so that it can be called in an assignment, which costs half of a
-- PERFORM; likewise `pg_notify(…) is null`, which is always false.
-- Errors: PC004 for completed if another end of the attempt was requested before.
create or replace function pgcoord_private.end_left_attempt(
    p_queue_id text, p_attempt integer, p_status text, p_error text, p_slot smallint
) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_id bigint;
    v_silent boolean;
begin
    update pgcoord.attempt
    set ended_at = clock_timestamp(),
        outcome = case when p_status in ('completed', 'cancelled') then p_status else 'failed' end,
        error = p_error,
        exited_at = case when external then clock_timestamp() else exited_at end
    where queue_id = p_queue_id and number = p_attempt and ended_at is null and (ending is null or p_status <> 'completed')
    returning id into v_id;
    if not found and p_status = 'completed' then    -- it was ended before, or another end was requested
        perform pgcoord_private.refuse_end(queue_id, ending, p_status) from pgcoord.attempt
        where queue_id = p_queue_id and number = p_attempt and ended_at is null;
    end if;
    delete from pgcoord.slot where number = p_slot and draining;
    insert into pgcoord.free_slot (pool, number) select pool, number from pgcoord.slot where number = p_slot;
    v_silent := pg_notify('pgcoord_wake', coalesce(v_id::text, '')) is null;
    return true;
end $$;

-- Release the direct dependents, at a cost that does not depend on the length of the queue. Open prerequisites are looked
-- up, not counted down: within one statement that does several things (MERGE, WITH), the count may already include this
-- completion. (`offset 0`: a look-up for each, never a join.) Returns true, as end_left_attempt does.
create or replace function pgcoord_private.release_dependents(p_feature_id integer, p_phase_number integer) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_dependents integer[];
    v_conditional boolean;
begin
    select array_agg(dependent), bool_or(conditional) into v_dependents, v_conditional from pgcoord.dependency
    where feature_id = p_feature_id and prerequisite = p_phase_number;
    if v_dependents is null then
        return true;
    end if;
    if v_conditional then    -- for them it may have been met before
        perform pgcoord_private.follow_ends(array[p_feature_id], array[p_phase_number]);
    end if;
    update public.phase_queue as p
    set unmet = unmet - 1, eligible_at = case when unmet = 1 then clock_timestamp() end
    where feature_id = p_feature_id and phase_number = any (v_dependents) and status in ('queued', 'blocked')
        and run_when = 'completed' and unmet > 0    -- 0: queued again by this statement, and recounted afterwards
        and (unmet > 1 or not exists (
            select from jsonb_array_elements(p.depends_on_phases) as e
            where not exists (
                select from public.phase_queue as up
                where up.feature_id = p.feature_id and up.phase_number = e::integer and up.status = 'completed'
                offset 0
            )
        ));
    return true;
end $$;

-- Log the transitions, end attempts, free slots, release or block dependents, wake the coordinator. Loops over the phases:
-- almost always there is one, and fifty thousand take less than a second. Old and new rows are joined by a full join, which
-- Postgres executes only by hashing or sorting: otherwise the cached plan of an update of one row would compare each row
-- with each when the same session updates fifty thousand. (`is distinct from`: a strict condition would let the planner
-- reduce it to a plain join.) (Long, since only the trigger's own function sees new_rows and old_rows.)
create or replace function pgcoord_private.settle_updated_phases() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    v record;
    v_wakes boolean := false;
    v_edge_features integer[];    -- of phases whose dependencies changed: all edges of a statement count at once
    v_edge_phases integer[];
    v_again_features integer[];    -- of phases queued again: counted while the statement was still completing others
    v_again_phases integer[];
    v_completes boolean := false;
    v_ended boolean;
    v_silent boolean;
    v_reason text;
    v_features integer[];    -- of phases whose dependents are to be blocked or unblocked
    v_phases integer[];
    v_cause text;
    v_end_features integer[];    -- of phases that have ended in another state than completed, or were queued again
    v_end_phases integer[];
    v_redo_features integer[];    -- of phases queued again with run_when "failed"
    v_redo_phases integer[];
begin
    for v in
        select n.queue_id, n.feature_id, n.phase_number, n.status, o.status as was, n.attempt, n.error_message,
            o.error_message as old_error, n.depends_on_phases <> o.depends_on_phases as edges_changed,
            case when n.slot is null then o.slot end as left_slot, n.gated, n.run_when,
            n.gated and n.status = 'queued' and n.eligible_at is not null and not n.held
                and (o.eligible_at is null or o.status <> 'queued' or o.held or not o.gated) as asks,
            n.issue_number
        from new_rows as n full join old_rows as o on o.queue_id = n.queue_id
        where n.status is distinct from o.status or n.depends_on_phases is distinct from o.depends_on_phases
            or n.status = 'queued' and n.eligible_at is not null and not n.held
    loop
        v_wakes := v_wakes or v.status = 'queued' and not v.gated;
        if v.asks then
            perform pgcoord_private.ask_gate(v.queue_id);
        end if;
        if v.edges_changed then
            v_edge_features := v_edge_features || v.feature_id;
            v_edge_phases := v_edge_phases || v.phase_number;
        end if;
        continue when v.status = v.was;

        v_reason := coalesce(pgcoord_private.reason(), case
            when v.left_slot is not null and v.status <> 'completed' or v.error_message is distinct from v.old_error
                then v.error_message end);
        insert into pgcoord.event (kind, feature_id, phase_number, queue_id, from_status, to_status, attempt, actor, reason)
        values ('phase_moved', v.feature_id, v.phase_number, v.queue_id, v.was, v.status, nullif(v.attempt, 0), pgcoord_private.actor(),
            v_reason);
        v_silent := pg_notify('pgcoord_event', v.feature_id::text) is null;
        if v.status in ('completed', 'failed') and exists (select from pgcoord.notify_target) then
            perform pgcoord_private.note_event(case when v.status = 'failed' then 'failed' else 'finished' end,
                v_reason, v.feature_id, v.phase_number, v.queue_id, nullif(v.attempt, 0));
        end if;
        if v.left_slot is not null then
            v_ended := pgcoord_private.end_left_attempt(v.queue_id, v.attempt, v.status, v.error_message, v.left_slot);
        elsif pgcoord_private.ended(v.status) then    -- by a person: a schedule may wait for the end of the feature
            v_wakes := v_wakes or exists (select from pgcoord.schedule_run where outcome = 'waiting');
        end if;
        if v.issue_number is not null and (pgcoord_private.ended(v.status) or v.was in ('failed', 'cancelled')) then
            perform pgcoord_private.leave_errand(v.queue_id, v.status, case when v.left_slot is not null then v.attempt end);
        end if;
        if v.status = 'completed' then
            v_completes := pgcoord_private.release_dependents(v.feature_id, v.phase_number);
        elsif v.status = 'queued' and v.was <> 'blocked' then
            v_again_features := v_again_features || v.feature_id;
            v_again_phases := v_again_phases || v.phase_number;
            if v.run_when = 'failed' then
                v_redo_features := v_redo_features || v.feature_id;
                v_redo_phases := v_redo_phases || v.phase_number;
            end if;
        end if;
        if v.status in ('failed', 'cancelled', 'blocked') or v.was in ('failed', 'cancelled', 'blocked') and v.status = 'queued' then
            if v.status = 'queued' then
                perform pgcoord_private.check_end_is_unused(v.feature_id, v.phase_number);
            end if;
            v_end_features := v_end_features || v.feature_id;
            v_end_phases := v_end_phases || v.phase_number;
        end if;
        if v.status in ('failed', 'cancelled') or v.was in ('failed', 'cancelled')
            or v.was = 'blocked' and v.status = 'completed'
            or v.was in ('ready', 'running') and v.status = 'queued'
        then
            v_features := v_features || v.feature_id;
            v_phases := v_phases || v.phase_number;
            v_cause := format('phase %s is %s', v.phase_number, v.status);
        end if;
    end loop;
    if v_completes and v_again_features is not null then
        perform pgcoord_private.recount_unmet(v_again_features, v_again_phases);
    end if;
    if v_edge_features is not null then
        perform pgcoord_private.settle_edges(v_edge_features, v_edge_phases);
    end if;
    if v_features is not null then
        perform pgcoord_private.settle_because(v_features, v_phases, v_cause);
    end if;
    if v_end_features is not null then
        perform pgcoord_private.follow_ends(v_end_features, v_end_phases);
    end if;
    if v_redo_features is not null then
        perform pgcoord_private.skip_unneeded(v_redo_features, v_redo_phases);
    end if;
    if v_wakes then
        notify pgcoord_wake;
    end if;
    return null;
end $$;

-- Log that a phase waits for an answer to its question.
create or replace function pgcoord_private.ask_gate(p_queue_id text) returns void
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform pgcoord_private.log_event('gate_asked', phase_data ->> 'gate', feature_id, phase_number, queue_id),
        pgcoord_private.note_event('gate', phase_data ->> 'gate', feature_id, phase_number, queue_id)
    from public.phase_queue where queue_id = p_queue_id and pg_trigger_depth() > 0;
end $$;

-- Log the approval of a phase, or the removal of its gate.
create or replace function pgcoord_private.log_gate() returns trigger
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform pgcoord_private.log_event(
        case when new.phase_data ->> 'gate' is null then 'gate_removed' else 'gate_approved' end,
        pgcoord_private.reason(), new.feature_id, new.phase_number, new.queue_id);
    return null;
end $$;

-- Log which members of its phase_data, and what else that people write, a phase has got anew.
create or replace function pgcoord_private.log_edited_phase() returns trigger
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform pgcoord_private.log_event('phase_edited', pgcoord_private.without_middle(concat_ws(', ',
        (select string_agg(key, ', ' order by key)
        from jsonb_object_keys(old.phase_data || new.phase_data) as key
        where old.phase_data -> key is distinct from new.phase_data -> key),
        case when new.depends_on_phases <> old.depends_on_phases then format('depends on %s → %s',
            coalesce(nullif(btrim(old.depends_on_phases::text, '[]'), ''), 'none'),
            coalesce(nullif(btrim(new.depends_on_phases::text, '[]'), ''), 'none')) end,
        case when new.queue_position <> old.queue_position
            then format('queue_position %s → %s', old.queue_position, new.queue_position) end)
        || coalesce(': ' || pgcoord_private.reason(), '')), new.feature_id, new.phase_number, new.queue_id);
    return null;
end $$;

-- Log that a phase has another priority.
create or replace function pgcoord_private.log_priority() returns trigger
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform pgcoord_private.log_event('phase_reprioritised', format('priority %s → %s', old.priority, new.priority)
        || coalesce(': ' || pgcoord_private.reason(), ''), new.feature_id, new.phase_number, new.queue_id);
    return null;
end $$;
