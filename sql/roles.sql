-- Privileges: three group roles without login, each with the privileges of the one before it. A login becomes a member
-- of one (grant pgcoord_client to …). Applied by `pgcoord upgrade --roles`, and from then on with every upgrade that
-- changes anything: all three may read a new table or view; nothing else is granted until it is named here. Without roles,
-- only the owner has access.
--
-- pgcoord_reader       sees everything but the secrets that sign reports.
-- pgcoord_client       brings work in and steers it: INSERT, the functions of docs/design.md, section 8, and UPDATE of what a
--                      person words or orders. Not the status of a phase, nothing derived (triggers refuse both), no DELETE, no prune.
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

-- Privileges that an earlier release, or a person, has granted them are revoked: they have only those of this file.
revoke all on all tables in schema pgcoord, pgcoord_private from pgcoord_reader, pgcoord_client, pgcoord_coordinator;
revoke all on all sequences in schema pgcoord from pgcoord_reader, pgcoord_client, pgcoord_coordinator;
revoke all on all functions in schema pgcoord, pgcoord_private from pgcoord_reader, pgcoord_client, pgcoord_coordinator;
revoke all on public.planned_features, public.phase_queue from pgcoord_reader, pgcoord_client, pgcoord_coordinator;

grant usage on schema public, pgcoord, pgcoord_private to pgcoord_reader, pgcoord_client, pgcoord_coordinator;

-- Read: everything but the secrets of attempts, and the view that shows them (pgcoord_private.assignment).
grant select on public.planned_features, public.phase_queue to pgcoord_reader, pgcoord_client, pgcoord_coordinator;
grant select on all tables in schema pgcoord, pgcoord_private to pgcoord_reader, pgcoord_client;
revoke select on pgcoord.attempt, pgcoord_private.assignment from pgcoord_reader, pgcoord_client;
grant select (
    id, queue_id, number, adw_id, slot, pool, epoch, host, folder, external, workflow, reports, max_attempts, retry_delay,
    retry_lost, timeout, claimed_at, started_at, deadline, pid, process_started, ending, ending_at, ending_reason,
    ended_at, outcome, error, exited_at, exit_code, quiet_since, submitted_at, job, node, copy, waits_for,
    refused_begins, lock, submitted_to    -- all columns but the secret
) on pgcoord.attempt to pgcoord_reader, pgcoord_client;
grant execute on function
    pgcoord.why(text), pgcoord.feature_object(bigint), pgcoord.checkup(),
    pgcoord.forecast(bigint[]), pgcoord.expected_finish(bigint[])
to pgcoord_reader;
-- Functions that views and these functions call. A function that only reads, with the privileges of the caller, gives no
-- further access.
do $$
declare
    v_function regprocedure;
begin
    for v_function in
        select oid from pg_catalog.pg_proc
        where pronamespace = 'pgcoord_private'::regnamespace and provolatile in ('i', 's') and not prosecdef
    loop
        execute format('grant execute on function %s to pgcoord_reader, pgcoord_client', v_function);
    end loop;
end $$;
grant execute on function pgcoord_private.checkup_notifications() to pgcoord_reader, pgcoord_client;

-- Insert. A phase may be inserted in any state that docs/design.md, section 4, permits: the triggers check it. The
-- privileges are on all columns, since many clients name each column; the triggers protect derived columns against every
-- statement and trigger (writes_state).
grant insert on public.planned_features, public.phase_queue to pgcoord_client, pgcoord_coordinator;
grant usage on sequence public.planned_features_id_seq to pgcoord_client, pgcoord_coordinator;
grant usage on sequence pgcoord.queue_position to pgcoord_client;

-- Steering.
grant insert, update on pgcoord.schedule to pgcoord_client;
grant update on public.planned_features, public.phase_queue to pgcoord_client;
grant execute on all functions in schema pgcoord to pgcoord_client;
revoke execute on function pgcoord.prune(interval), pgcoord.prune(text), pgcoord.give_up_attempt(bigint, text, text), pgcoord.release_issues()
from pgcoord_client;
grant execute on function pgcoord_private.feature_to_plan(integer) to pgcoord_client;
-- Functions that the triggers call with the privileges of the client; called directly, they have no more effect than a lock.
grant execute on function
    pgcoord_private.slot_for_inserted(text, text), pgcoord_private.new_adw_id(), pgcoord_private.refuse_gate(text),
    pgcoord_private.check_new_prerequisites(public.phase_queue, jsonb),
    pgcoord_private.hold_feature(integer), pgcoord_private.check_isolation(integer[]),
    pgcoord_private.settle_edges(integer[], integer[]), pgcoord_private.set_reason(text), pgcoord_private.ask_gate(text),
    pgcoord_private.check_scheduled_feature(text, jsonb)
to pgcoord_client;

-- Coordinate. History and the schema's own record are append-only.
grant execute on all functions in schema pgcoord, pgcoord_private to pgcoord_coordinator;
grant usage on all sequences in schema pgcoord to pgcoord_coordinator;
grant select, insert, update, delete on all tables in schema pgcoord, pgcoord_private to pgcoord_coordinator;
revoke update, delete on pgcoord.event, pgcoord.webhook_delivery from pgcoord_coordinator;
revoke insert, update, delete on pgcoord.migration, pgcoord.shipped from pgcoord_coordinator;
grant update on public.planned_features, public.phase_queue to pgcoord_coordinator;
