-- Updated phases: an AFTER trigger on each row writes its event, ends its attempt, frees its slot, resolves its dependents
-- and notifies; one on the statement does what depends on several of its rows.

-- End the attempt of a phase that has left its slot, and delete a draining slot. Wakes the coordinator, with the attempt as
-- the payload if its process may be alive. Returns true, so that it can be called in an assignment, which costs half of a
-- PERFORM; likewise `pg_notify(…) is null`, which is always false.
-- Errors: PC004 for completed if another end of the attempt was requested before.
create or replace function pgcoord_private.end_left_attempt(
    p_queue_id text, p_attempt integer, p_status text, p_error text, p_slot smallint
) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_id bigint;
    v_external boolean;
    v_silent boolean;
begin
    update pgcoord.attempt
    set ended_at = clock_timestamp(),
        outcome = case when p_status in ('completed', 'cancelled') then p_status else 'failed' end,
        error = p_error
    where queue_id = p_queue_id and number = p_attempt and ended_at is null and (ending is null or p_status <> 'completed')
    returning id, external into v_id, v_external;
    if v_external then    -- it has no process that is waited for
        update pgcoord.attempt set exited_at = ended_at where id = v_id;
    elsif v_id is null and p_status = 'completed' then    -- it was ended before, or another end was requested
        perform pgcoord_private.refuse_end(queue_id, ending, p_status) from pgcoord.attempt
        where queue_id = p_queue_id and number = p_attempt and ended_at is null;
    end if;
    insert into pgcoord.free_slot (pool, number) select pool, number from pgcoord.slot where number = p_slot and not draining;
    if not found then
        delete from pgcoord.slot where number = p_slot and draining;
    end if;
    v_silent := pg_notify('pgcoord_wake', coalesce(v_id::text, '')) is null;
    return true;
end $$;

-- Release the direct dependents, at a cost that does not depend on the length of the queue. Open prerequisites are looked
-- up, not counted down: within one statement that does several things (MERGE, WITH), the count may already include this
-- completion. (`offset 0`: a look-up for each, never a join.) Returns true, as end_left_attempt does.
create or replace function pgcoord_private.release_dependents(p_feature_id integer, p_phase_number integer) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
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

-- The setting by which the row trigger tells the statement trigger that there is work. One for each depth of
-- triggers: an UPDATE inside a trigger has its own.
create or replace function pgcoord_private.settling() returns text
language sql stable
return 'pgcoord.settles_' || pg_trigger_depth();

-- Log the transition of a phase, end its attempt, free its slot, resolve its dependents, wake the coordinator. A row trigger,
-- since a step of a phase is three updates of one row each, and joining their transition tables took a twelfth of it.
-- settle_updated_phases does what depends on all rows of the statement. What each step needs comes first, in few expressions:
-- Postgres initialises each expression anew in every transaction. (Long: a call that took the row would read its prompt.)
create or replace function pgcoord_private.follow_updated_phase() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_reason text;
    v_left_slot smallint := case when new.slot is null then old.slot end;
    v_silent boolean;    -- takes what functions return: an assignment costs half of a PERFORM
begin
    if new.status = 'queued' then
        if not new.gated then
            if new.eligible_at is not null and not new.held or new.status <> old.status
                or new.depends_on_phases <> old.depends_on_phases
            then
                notify pgcoord_wake;
            end if;
        elsif new.eligible_at is not null and not new.held
            and (old.eligible_at is null or old.status <> 'queued' or old.held or not old.gated)
        then
            perform pgcoord_private.ask_gate(new.queue_id);
        end if;
    end if;
    if new.depends_on_phases <> old.depends_on_phases then
        perform set_config(pgcoord_private.settling(), 'yes', true);
    end if;
    if new.status = old.status then
        return null;
    end if;

    if current_setting('pgcoord.reason', true) <> '' then
        v_reason := pgcoord_private.reason();
    elsif new.error_message is not null
        and (v_left_slot is not null and new.status <> 'completed' or new.error_message is distinct from old.error_message)
    then
        v_reason := new.error_message;
    end if;
    insert into pgcoord.event (kind, feature_id, phase_number, queue_id, from_status, to_status, attempt, actor, reason)
    values ('phase_moved', new.feature_id, new.phase_number, new.queue_id, old.status, new.status, nullif(new.attempt, 0),
        pgcoord_private.actor(), v_reason);
    v_silent := pg_notify('pgcoord_event', new.feature_id::text) is null;
    if new.status in ('ready', 'running') then
        return null;
    end if;

    if v_left_slot is null or new.status <> 'completed' then    -- else only its dependents follow, one by one
        perform set_config(pgcoord_private.settling(), 'yes', true);
    end if;
    if exists (select from pgcoord.notify_target) and new.status in ('completed', 'failed') then
        perform pgcoord_private.note_event(case when new.status = 'failed' then 'failed' else 'finished' end,
            v_reason, new.feature_id, new.phase_number, new.queue_id, nullif(new.attempt, 0));
    end if;
    if v_left_slot is not null then
        v_silent := pgcoord_private.end_left_attempt(new.queue_id, new.attempt, new.status, new.error_message, v_left_slot);
    elsif pgcoord_private.ended(new.status) and exists (select from pgcoord.schedule_run where outcome = 'waiting') then
        notify pgcoord_wake;    -- ended by a person: a schedule may wait for the end of the feature
    end if;
    if new.issue_number is not null and (pgcoord_private.ended(new.status) or old.status in ('failed', 'cancelled')) then
        perform pgcoord_private.leave_errand(new.queue_id, new.status, case when v_left_slot is not null then new.attempt end);
    end if;
    if new.status = 'completed' then
        v_silent := pgcoord_private.release_dependents(new.feature_id, new.phase_number);
    end if;
    return null;
end $$;

-- Store changed edges, block or unblock dependents, count again what phases wait for that were queued again: what depends on
-- all rows of a statement. Does nothing after a plain step (settling). Old and new rows are joined by a full join, which
-- Postgres executes only by hashing or sorting: otherwise the cached plan of an update of one row would compare each row
-- with each when the same session updates fifty thousand. (`is distinct from`: a strict condition would let the planner
-- reduce it to a plain join.) (Long, since only the trigger's own function sees new_rows and old_rows.)
create or replace function pgcoord_private.settle_updated_phases() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off as $$
declare
    v record;
    v_edge_features integer[];    -- of phases whose dependencies changed: all edges of a statement count at once
    v_edge_phases integer[];
    v_again_features integer[];    -- of phases queued again: counted while the statement was still completing others
    v_again_phases integer[];
    v_completes boolean := false;
    v_features integer[];    -- of phases whose dependents are to be blocked or unblocked
    v_phases integer[];
    v_cause text;
    v_end_features integer[];    -- of phases that have ended in another state than completed, or were queued again
    v_end_phases integer[];
    v_redo_features integer[];    -- of phases queued again with run_when "failed"
    v_redo_phases integer[];
begin
    if coalesce(current_setting(pgcoord_private.settling(), true), '') = '' then
        return null;
    end if;
    perform set_config(pgcoord_private.settling(), '', true);
    for v in
        select n.feature_id, n.phase_number, n.status, o.status as was, n.run_when,
            n.depends_on_phases <> o.depends_on_phases as edges_changed
        from new_rows as n full join old_rows as o on o.queue_id = n.queue_id
        where n.status is distinct from o.status or n.depends_on_phases is distinct from o.depends_on_phases
    loop
        if v.edges_changed then
            v_edge_features := v_edge_features || v.feature_id;
            v_edge_phases := v_edge_phases || v.phase_number;
        end if;
        continue when v.status = v.was;
        if v.status = 'completed' then
            v_completes := true;
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
