-- Who may do what: three group roles without login, each with the rights of the one before it. A login becomes a member
-- of one (grant pgcoord_client to …). Applied by `pgcoord upgrade --roles`, and from then on with every upgrade that
-- changes anything: what is made new has no rights until it is named here. Without roles, all is the owner's alone.
--
-- pgcoord_reader       sees everything but the secrets that sign reports.
-- pgcoord_client       brings work in and steers it: INSERT, the functions of design section 8, and UPDATE of what a
--                      person words or orders. Not the status of a phase, nothing derived, no DELETE, no prune.
-- pgcoord_coordinator  runs `pgcoord serve`: claims, starts and ends, and whatever people ask of it.
--
-- Functions that a client calls, and triggers that write more than the client may, are `security definer` with a fixed
-- search_path. Triggers that run with each row are not, since that costs; what they call is granted below.

do $$
declare
    v_role text;
begin
    foreach v_role in array array['pgcoord_reader', 'pgcoord_client', 'pgcoord_coordinator'] loop
        continue when exists (select from pg_roles where rolname = v_role);
        begin
            execute format('create role %I nologin', v_role);
        exception when duplicate_object or unique_violation then
            null;    -- made by the upgrade of another database of the server just now
        end;
    end loop;
end $$;

-- What an earlier release, or somebody by hand, has given them is taken back: this file is all they have.
revoke all on all tables in schema pgcoord from pgcoord_reader, pgcoord_client, pgcoord_coordinator;
revoke all on all sequences in schema pgcoord from pgcoord_reader, pgcoord_client, pgcoord_coordinator;
revoke all on all functions in schema pgcoord from pgcoord_reader, pgcoord_client, pgcoord_coordinator;
revoke all on public.planned_features, public.phase_queue from pgcoord_reader, pgcoord_client, pgcoord_coordinator;

grant usage on schema public, pgcoord to pgcoord_reader, pgcoord_client, pgcoord_coordinator;

-- Seeing.
grant select on
    public.planned_features, public.phase_queue,
    pgcoord.feature, pgcoord.board, pgcoord.queue, pgcoord.waiting, pgcoord.reasons, pgcoord.first_reason, pgcoord.stranded,
    pgcoord.slots, pgcoord.timeline,
    pgcoord.history, pgcoord.webhook_delivery, pgcoord.leader, pgcoord.elsewhere, pgcoord.slot, pgcoord.dependency,
    pgcoord.event, pgcoord.control, pgcoord.coordinator, pgcoord.host, pgcoord.workflow, pgcoord.migration, pgcoord.shipped,
    pgcoord.changed_definition, pgcoord.usual, pgcoord.attention, pgcoord.line, pgcoord.backlog,
    pgcoord.issue, pgcoord.errand, pgcoord.next_errand, pgcoord.unrecorded, pgcoord.unrecorded_now, pgcoord.locked_phase
to pgcoord_reader, pgcoord_client, pgcoord_coordinator;
grant select (
    id, queue_id, number, adw_id, slot, epoch, host, folder, external, workflow, reports, max_attempts, retry_delay,
    retry_lost, timeout, claimed_at, started_at, deadline, pid, process_started, ending, ending_at, ending_reason,
    ended_at, outcome, error, exited_at, exit_code    -- all but the secret
) on pgcoord.attempt to pgcoord_reader, pgcoord_client;
grant execute on function
    pgcoord.why(text), pgcoord.obstacles(integer), pgcoord.phase_objects(text[]),
    pgcoord.title_of(public.phase_queue), pgcoord.ordinal(bigint), pgcoord.clock(timestamptz), pgcoord.actor(),
    pgcoord.reason(), pgcoord.lease_length(),
    pgcoord.checkup(), pgcoord.checkup_definitions(), pgcoord.checkup_rights(), pgcoord.checkup_coordinator(),
    pgcoord.checkup_slots(), pgcoord.checkup_line(), pgcoord.checkup_retries(), pgcoord.checkup_workflows(),
    pgcoord.checkup_prerequisites(), pgcoord.checkup_attempts(), pgcoord.checkup_external(), pgcoord.checkup_issues(),
    pgcoord.checkup_transactions(), pgcoord.checkup_locks(), pgcoord.lock_waits(), pgcoord.held_by(text),
    pgcoord.checkup_notifications(), pgcoord.definitions(), pgcoord.some_of(text[]),
    pgcoord.counted(bigint, text, text), pgcoord.in_words(interval),
    pgcoord.waiting_for(public.phase_queue), pgcoord.feature_object(integer), pgcoord.last_event(integer),
    pgcoord.events_after(bigint, bigint[], bigint[], integer), pgcoord.event_writers(),
    pgcoord.measures(), pgcoord.ended_attempts(bigint[]),
    pgcoord.workflow_of(public.phase_queue), pgcoord.remaining(integer[]), pgcoord.in_minutes(double precision),
    pgcoord.forecast(integer[]), pgcoord.expected_finish(integer[]), pgcoord.list_features(text, text, integer),
    pgcoord.feature_rows(integer[]), pgcoord.issues_held_until(pgcoord.control)
to pgcoord_reader, pgcoord_client;

-- Bringing work in. A phase may be inserted in any state that the design allows, as the spec's own example does: the
-- triggers see to it that it is true. Whatever is derived they fill themselves.
grant insert (id, title, description, item_type, priority, estimated_hours, tags, plan, github_issue_number)
    on public.planned_features to pgcoord_client, pgcoord_coordinator;
grant insert (
    queue_id, feature_id, phase_number, issue_number, status, depends_on_phases, phase_data, adw_id, pr_number,
    error_message, priority, queue_position, created_at, updated_at, ready_timestamp, started_timestamp,
    finished_timestamp, retry_at
) on public.phase_queue to pgcoord_client, pgcoord_coordinator;
grant usage on sequence pgcoord.queue_position to pgcoord_client;

-- Steering.
grant update (title, description, item_type, priority, estimated_hours, tags, plan, github_issue_number)
    on public.planned_features to pgcoord_client;
grant update (issue_number, depends_on_phases, phase_data, pr_number, priority, queue_position, retry_at)
    on public.phase_queue to pgcoord_client;
grant execute on function
    pgcoord.submit_feature(jsonb), pgcoord.store_feature(jsonb), pgcoord.change_feature(integer, jsonb, text),
    pgcoord.feature_to_plan(integer), pgcoord.execute_feature(integer), pgcoord.cancel_feature(integer, text),
    pgcoord.complete_phase(text, text), pgcoord.fail_phase(text, text, text), pgcoord.retry_phase(text, text),
    pgcoord.skip_phase(text, text), pgcoord.cancel_phase(text, text), pgcoord.set_priority(text, integer),
    pgcoord.pause(integer, text), pgcoord.resume(integer), pgcoord.set_slots(integer),
    pgcoord.cancel_branch(text, text), pgcoord.preview(text, integer, text)
to pgcoord_client;
-- What the triggers call for the client who inserts or updates; called by hand, they do no more than a lock would.
grant execute on function
    pgcoord.check_prerequisites(text, integer, jsonb), pgcoord.check_times(text, timestamptz[]),
    pgcoord.slot_for_inserted(text), pgcoord.new_adw_id(),
    pgcoord.refuse_change(text, boolean), pgcoord.check_new_prerequisites(public.phase_queue, jsonb),
    pgcoord.hold_feature(integer), pgcoord.sees_others(), pgcoord.check_isolation(),
    pgcoord.settle_edges(integer[], integer[]), pgcoord.set_reason(text)
to pgcoord_client;

-- Coordinating. History and the schema's own record stay as they are written.
grant execute on all functions in schema pgcoord to pgcoord_coordinator;
grant usage on all sequences in schema pgcoord to pgcoord_coordinator;
grant select, insert, update, delete on all tables in schema pgcoord to pgcoord_coordinator;
revoke update, delete on pgcoord.event, pgcoord.webhook_delivery from pgcoord_coordinator;
revoke insert, update, delete on pgcoord.migration, pgcoord.shipped from pgcoord_coordinator;
grant update on public.planned_features, public.phase_queue to pgcoord_coordinator;
