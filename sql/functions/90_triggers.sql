-- Every trigger of every table, in the order in which they fire: the page to read first.
--
-- Postgres fires BEFORE triggers of rows, then AFTER triggers of rows, then those of the statement; of one kind, by name.
-- An UPDATE of phase_queue inside a trigger fires the same triggers again. Triggers that fire with each transition of a
-- phase have no WHEN condition: Postgres parses it from text in every statement, at a cost that grows with its length.

-- --- public.phase_queue: INSERT

-- Complete an inserted phase.
create or replace trigger phase_queue_insert_fills before insert on public.phase_queue
    for each row execute function pgcoord_private.fill_phase();

-- Store edges, determine which phases wait, log, wake.
create or replace trigger phase_queue_insert_settles after insert on public.phase_queue
    referencing new table as new_rows
    for each statement execute function pgcoord_private.settle_inserted_phases();

-- --- public.phase_queue: UPDATE

-- Of these columns alone: the prompt in phase_data, which may be long, is then not read with every move of the phase.
create or replace trigger phase_queue_update_copies before update of phase_data, workflow_type on public.phase_queue
    for each row execute function pgcoord_private.copy_workflow();

-- Refuse forbidden changes; derive the rest of the row.
create or replace trigger phase_queue_update_guards before update on public.phase_queue
    for each row execute function pgcoord_private.guard_phase_update();

-- Log that a phase has another priority.
create or replace trigger phase_queue_priority_logs after update of priority on public.phase_queue
    for each row when (old.priority <> new.priority) execute function pgcoord_private.log_priority();

-- Log what people change of a phase that does not move. (Of these columns alone, as below.)
create or replace trigger phase_queue_edit_logs after update of phase_data, depends_on_phases, queue_position on public.phase_queue
    for each row when (
        old.phase_data is distinct from new.phase_data or old.depends_on_phases <> new.depends_on_phases
        or old.queue_position <> new.queue_position
    )
    execute function pgcoord_private.log_edited_phase();

-- Log that a phase was approved. (Of these columns alone, so that other moves do not call it.)
create or replace trigger phase_queue_gate_logs after update of gated, phase_data on public.phase_queue
    for each row when (old.gated and not new.gated) execute function pgcoord_private.log_gate();

-- Log transitions, end attempts, free slots, resolve dependents, wake.
create or replace trigger phase_queue_update_follows after update on public.phase_queue
    for each row execute function pgcoord_private.follow_updated_phase();

-- Store edges, block and unblock: what depends on all rows of the statement.
create or replace trigger phase_queue_update_settles after update on public.phase_queue
    referencing old table as old_rows new table as new_rows
    for each statement execute function pgcoord_private.settle_updated_phases();

-- --- public.phase_queue: DELETE

-- Refuse to delete a phase that holds a slot.
create or replace trigger phase_queue_delete_guards before delete on public.phase_queue
    for each row execute function pgcoord_private.guard_phase_delete();

-- Log deleted phases; make their dependents wait.
create or replace trigger phase_queue_delete_settles after delete on public.phase_queue
    referencing old table as old_rows
    for each statement execute function pgcoord_private.settle_deleted_phases();

-- --- public.phase_queue: TRUNCATE

-- Refuse to truncate while a phase holds a slot.
create or replace trigger phase_queue_truncate_guards before truncate on public.phase_queue
    for each statement execute function pgcoord_private.guard_phase_truncate();

-- --- public.planned_features: INSERT

-- Refuse values that readers cannot handle.
create or replace trigger planned_features_insert_checks before insert on public.planned_features
    for each row execute function pgcoord_private.check_feature_values();

-- Move the sequence past ids given by hand; log.
create or replace trigger planned_features_insert_follows after insert on public.planned_features
    referencing new table as new_rows
    for each statement execute function pgcoord_private.follow_inserted_ids();

-- --- public.planned_features: UPDATE

-- Refuse values that readers cannot handle.
create or replace trigger planned_features_update_checks before update on public.planned_features
    for each row when (
        old.title is distinct from new.title
        or old.description is distinct from new.description
        or old.item_type is distinct from new.item_type
        or old.estimated_hours is distinct from new.estimated_hours
        or old.max_cost_usd is distinct from new.max_cost_usd
        or old.tags is distinct from new.tags
        or old.plan is distinct from new.plan
    )
    execute function pgcoord_private.check_feature_values();

-- Stamp updated_at; keep the id.
create or replace trigger planned_features_update_stamps before update on public.planned_features
    for each row execute function pgcoord_private.stamp_feature();

-- Hold or release the phases of a paused or resumed feature; log.
create or replace trigger planned_features_update_follows after update on public.planned_features
    for each row when (old.paused_at is distinct from new.paused_at or old.cancelled_at is distinct from new.cancelled_at)
    execute function pgcoord_private.follow_feature();

-- Pause or resume a feature that gets another budget.
create or replace trigger planned_features_update_budgets after update of max_cost_usd on public.planned_features
    for each row when (old.max_cost_usd is distinct from new.max_cost_usd) execute function pgcoord_private.follow_budget();

-- Log what a feature is about, when that changes.
create or replace trigger planned_features_update_logs after update on public.planned_features
    for each row when (
        old.title is distinct from new.title or old.description is distinct from new.description
        or old.plan is distinct from new.plan or old.priority is distinct from new.priority
    )
    execute function pgcoord_private.log_changed_feature();

-- --- public.planned_features: DELETE

-- Log deleted features.
create or replace trigger planned_features_delete_logs after delete on public.planned_features
    referencing old table as old_rows
    for each statement execute function pgcoord_private.log_deleted_features();

-- --- pgcoord.attempt: INSERT, UPDATE, DELETE, TRUNCATE

-- (attempt_end_agrees fires at the commit: sql/migrations/0043_attempt_agrees.sql.)

-- Refuse requests that contradict what is recorded. (Of these columns alone: a completed phase writes none of them.)
create or replace trigger attempt_ending_guards before update of ending, exited_at on pgcoord.attempt
    for each row execute function pgcoord_private.guard_ending();
create or replace trigger attempt_start_guards before update of started_at on pgcoord.attempt
    for each row when (new.started_at is null) execute function pgcoord_private.guard_ending();

-- Refuse an ended attempt that its phase never had. (Claims insert none that has ended.)
create or replace trigger attempt_insert_guards before insert on pgcoord.attempt
    for each row when (new.outcome is not null) execute function pgcoord_private.guard_ended_attempt();

-- Refuse to change what an attempt was claimed with. (Of these columns alone, which no function of ours writes.)
create or replace trigger attempt_identity_guards before update
    of id, queue_id, number, adw_id, secret, slot, pool, lock, epoch, external, host, folder on pgcoord.attempt
    for each row execute function pgcoord_private.guard_attempt_identity();

-- Notify the coordinators that a process must be ended.
create or replace trigger attempt_ending_tells after update of ending on pgcoord.attempt
    for each row execute function pgcoord_private.tell_ending();

-- Refuse to delete the attempts of a phase that exists, and to truncate while a phase holds a slot, or has attempts.
create or replace trigger attempt_delete_guards before delete on pgcoord.attempt
    for each row execute function pgcoord_private.guard_attempt_delete();
create or replace trigger attempt_truncate_guards before truncate on pgcoord.attempt
    for each statement execute function pgcoord_private.guard_phase_truncate();
create or replace trigger attempt_truncate_keeps after truncate on pgcoord.attempt
    for each statement execute function pgcoord_private.guard_truncate();

-- Notify the coordinators that a process must be ended whose attempt was deleted.
create or replace trigger attempt_delete_tells after delete on pgcoord.attempt
    for each row when (old.exited_at is null and not old.external)
    execute function pgcoord_private.tell_deleted();

-- --- pgcoord.event: INSERT, UPDATE, DELETE, TRUNCATE

-- Events are append-only; transitions are written by triggers.
create or replace trigger event_insert_guards before insert on pgcoord.event
    for each row execute function pgcoord_private.guard_new_event();
create or replace trigger event_change_refuses before update or delete on pgcoord.event
    for each row execute function pgcoord_private.guard_event();
create or replace trigger event_truncate_keeps after truncate on pgcoord.event
    for each statement execute function pgcoord_private.guard_truncate();

-- --- pgcoord.dependency, pgcoord.unqueued, pgcoord.free_slot

-- What follows from phases is kept by triggers, and not changed by hand.
create or replace trigger dependency_change_refuses before insert or update or delete on pgcoord.dependency
    for each statement execute function pgcoord_private.refuse_by_hand();
create or replace trigger dependency_truncate_keeps after truncate on pgcoord.dependency
    for each statement execute function pgcoord_private.guard_truncate();
create or replace trigger unqueued_change_refuses before insert or update or delete on pgcoord.unqueued
    for each statement execute function pgcoord_private.refuse_by_hand();
create or replace trigger unqueued_truncate_keeps after truncate on pgcoord.unqueued
    for each statement execute function pgcoord_private.guard_truncate();

-- Claims insert and delete rows, with each hop.
create or replace trigger free_slot_change_refuses before update on pgcoord.free_slot
    for each statement execute function pgcoord_private.refuse_by_hand();
create or replace trigger free_slot_truncate_keeps after truncate on pgcoord.free_slot
    for each statement execute function pgcoord_private.guard_truncate();

-- --- pgcoord.slot

-- Refuse to move a slot that is held; list the free ones anew.
create or replace trigger slot_change_guards before update on pgcoord.slot
    for each row execute function pgcoord_private.guard_slot();
create or replace trigger slot_change_follows after insert or update or delete or truncate on pgcoord.slot
    for each statement execute function pgcoord_private.follow_slots();

-- --- pgcoord.control, pgcoord.coordinator

-- The control row stays, and names a lead that was taken, whose row stays, too.
create or replace trigger control_change_guards before update of epoch or delete on pgcoord.control
    for each row execute function pgcoord_private.guard_control();
create or replace trigger control_truncate_keeps after truncate on pgcoord.control
    for each statement execute function pgcoord_private.guard_truncate();
create or replace trigger coordinator_change_guards before update of epoch or delete on pgcoord.coordinator
    for each row execute function pgcoord_private.guard_lead();
create or replace trigger coordinator_truncate_keeps after truncate on pgcoord.coordinator
    for each statement execute function pgcoord_private.guard_truncate();

-- --- pgcoord.result

-- A result stays with its attempt, and counts for the feature of that.
create or replace trigger result_change_guards before insert or update of attempt_id, feature_id or delete on pgcoord.result
    for each row execute function pgcoord_private.guard_result();
create or replace trigger result_truncate_keeps after truncate on pgcoord.result
    for each statement execute function pgcoord_private.guard_truncate();

-- --- pgcoord.schedule_run

-- What became of a due time stays.
create or replace trigger schedule_run_change_guards before update or delete on pgcoord.schedule_run
    for each row execute function pgcoord_private.guard_schedule_run();
create or replace trigger schedule_run_truncate_keeps after truncate on pgcoord.schedule_run
    for each statement execute function pgcoord_private.guard_truncate();

-- --- pgcoord.schedule: INSERT, UPDATE, DELETE

-- Fill omitted columns, refuse invalid ones, clear the next time.
create or replace trigger schedule_change_guards before insert or update on pgcoord.schedule
    for each row execute function pgcoord_private.guard_schedule();

-- Log changes by people, and wake the coordinator. (Of these columns: not when a due time is taken.)
create or replace trigger schedule_change_follows after insert or delete
    or update of name, cron, timezone, feature, overlap, missed, paused_at, paused_reason on pgcoord.schedule
    for each row execute function pgcoord_private.follow_schedule();
