-- Attempts: a coordinator records the starts and ends of their processes. Only coordinators call these functions; reports of
-- workflows and people go through 42_report.sql.

-- The adw_id of the attempt with this number: adw- and 8 hex digits.
-- A bijection on 32 bits (the multiplier is odd), so that ids look random and never repeat within 4 billion attempts.
create or replace function pgcoord_private.adw_id(p_number bigint, p_offset bigint) returns text
language sql immutable
return 'adw-' || lpad(to_hex((p_number * 2654435761 + p_offset) & 4294967295), 8, '0');

-- An adw_id that no attempt has, for a phase inserted as running without one.
create or replace function pgcoord_private.new_adw_id() returns text
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_adw_id text;
begin
    loop
        select pgcoord_private.adw_id(nextval('pgcoord.attempt_id'), adw_offset) into v_adw_id from pgcoord.control;
        exit when not exists (select from pgcoord.attempt where adw_id = v_adw_id);
    end loop;
    return v_adw_id;
end $$;

-- A signing secret as Standard Webhooks writes them: 32 random bytes.
create or replace function pgcoord_private.new_secret() returns text
language sql volatile
return 'whsec_' || encode(sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())), 'base64');

-- Record the started process of an attempt. If the attempt was reported as ended before, the end stays, and the process is
-- still recorded, so that it can be ended. Locks the phase before the attempt, as reports do.
-- Errors: PC007 when the lead is over; PC003 when the attempt was given up, or was deleted with its phase.
create or replace function pgcoord_private.start_phase(p_epoch bigint, p_attempt_id bigint, p_pid integer, p_process_started text)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off
set plan_cache_mode = force_generic_plan as $$
declare
    v_attempt pgcoord.attempt;
begin
    if p_epoch is distinct from (select epoch from pgcoord.control) then
        perform pgcoord_private.check_epoch(p_epoch);
    end if;
    perform 1 from public.phase_queue
    where queue_id = (select queue_id from pgcoord.attempt where id = p_attempt_id)
    for no key update;
    update pgcoord.attempt
    set pid = p_pid, process_started = p_process_started, started_at = clock_timestamp(), waits_for = null,
        deadline = clock_timestamp() + timeout
    where id = p_attempt_id and exited_at is null
    returning * into v_attempt;
    if not found then
        raise exception using
            errcode = 'PC003',
            message = format('attempt %s was given up', p_attempt_id),
            hint = 'A process that was started for it is to be ended.';
    end if;
    update public.phase_queue set status = 'running', started_timestamp = clock_timestamp()
    where queue_id = v_attempt.queue_id and attempt = v_attempt.number and status = 'ready';
    if v_attempt.deadline is not null then
        notify pgcoord_wake;    -- a new deadline
    end if;
end $$;

-- Write an event about an attempt other than a transition of its phase.
create or replace function pgcoord_private.log_attempt(p_attempt pgcoord.attempt, p_kind text, p_reason text) returns void
language sql
begin atomic
    select pgcoord_private.log_event(p_kind, p_reason, feature_id, phase_number, queue_id, p_attempt.number)
    from public.phase_queue where queue_id = p_attempt.queue_id;
end;

-- End a locked attempt, and move its phase accordingly. (exited_at and exit_code of p_attempt are stored with it.)
create or replace function pgcoord_private.conclude_attempt(
    p_attempt pgcoord.attempt, p_outcome text, p_error text, p_reason text default null
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    update pgcoord.attempt
    set ended_at = clock_timestamp(), outcome = p_outcome, error = p_error, exited_at = p_attempt.exited_at, exit_code = p_attempt.exit_code
    where id = p_attempt.id;
    perform pgcoord_private.set_reason(p_reason);
    update public.phase_queue
    set error_message = p_error,
        status = case
            when p_outcome in ('completed', 'cancelled') then p_outcome
            when p_outcome = 'returned' then 'queued'
            else 'failed'
        end
    where queue_id = p_attempt.queue_id and attempt = p_attempt.number;
    perform pgcoord_private.set_reason(null);
end $$;

-- Record that the process of an attempt is gone. A requested end takes precedence over the exit status, and a reported end
-- over both: then the exit status is only recorded. p_result is the text of its result file, null if there is none;
-- p_result_fault says why that cannot be read. A result may contain {"status": "failed", "error": …}, or {"status":
-- "completed"} instead of a report. A file that cannot be used fails the phase, since dependents would miss it.
create or replace function pgcoord_private.end_attempt(
    p_attempt_id bigint, p_exit_code integer, p_log_tail text default null, p_left_behind text default null,
    p_result text default null, p_result_fault text default null
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_attempt pgcoord.attempt := pgcoord_private.lock_attempt(p_attempt_id);
    v_result jsonb;
    v_fault text := p_result_fault;
begin
    if v_attempt.id is null or v_attempt.exited_at is not null then
        return;
    end if;
    v_attempt.exited_at := clock_timestamp();    -- stored with the end, or below
    v_attempt.exit_code := p_exit_code;
    if p_left_behind <> '' then
        perform pgcoord_private.log_attempt(v_attempt, 'attempt_left_behind', 'ended what its process left behind: ' || p_left_behind);
    end if;
    if p_result is not null then
        select result, coalesce(fault, v_fault) into v_result, v_fault from pgcoord_private.take_result_file(p_attempt_id, p_result);
    end if;
    v_fault := 'its result file cannot be used: ' || v_fault;
    if v_attempt.ended_at is not null then
        update pgcoord.attempt set exited_at = v_attempt.exited_at, exit_code = p_exit_code where id = p_attempt_id;
        perform pgcoord_private.log_attempt(v_attempt, 'attempt_exited',
            concat_ws('; ', format('exited with status %s', p_exit_code), v_fault));
    elsif v_attempt.ending is not null then
        perform pgcoord_private.conclude_attempt(v_attempt, v_attempt.ending, v_attempt.ending_reason, v_attempt.ending_reason);
    elsif v_result ->> 'status' = 'later' then
        perform pgcoord_private.postpone_attempt(v_attempt, coalesce(nullif(v_result ->> 'error', ''), 'its result says: later'));
    elsif p_exit_code = 0 and v_fault is null and v_result ->> 'status' is distinct from 'failed'
        and (not v_attempt.reports or v_result ->> 'status' = 'completed')
    then
        perform pgcoord_private.conclude_attempt(v_attempt, 'completed', null, 'exited with status 0');
    else
        perform pgcoord_private.conclude_attempt(v_attempt, 'failed', concat_ws(e'\n',
            case when v_result ->> 'status' = 'failed' then coalesce(nullif(v_result ->> 'error', ''), 'its result says that it failed') end,
            case when p_exit_code = 0 and (v_fault is not null or v_result ->> 'status' = 'failed') then null
                when p_exit_code = 0 then 'exited 0 without reporting'
                when p_exit_code between 129 and 192 then format('exited with status %s (signal %s)', p_exit_code, p_exit_code - 128)
                else format('exited with status %s', p_exit_code) end,
            v_fault,
            nullif(p_log_tail, '')));
    end if;
end $$;

-- Withdraw the requested end of an attempt past its deadline if its process had ended in time, p_ago, while no coordinator
-- watched, or while that could not be recorded.
create or replace function pgcoord_private.take_back_timeout(p_attempt_id bigint, p_ago interval) returns void
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_attempt pgcoord.attempt := pgcoord_private.lock_attempt(p_attempt_id);
begin
    if v_attempt.ending = 'timed_out' and v_attempt.exited_at is null and v_attempt.deadline > clock_timestamp() - p_ago then
        update pgcoord.attempt set ending = null, ending_at = null, ending_reason = null where id = p_attempt_id;
    end if;
end $$;

-- Set the end time of an attempt that this transaction has ended, and of its phase, to the time at which the process ended,
-- p_ago.
create or replace function pgcoord_private.date_end_back(p_attempt_id bigint, p_ago interval) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_attempt pgcoord.attempt;
begin
    update pgcoord.attempt
    set exited_at = greatest(clock_timestamp() - p_ago, started_at),
        ended_at = case when ended_at >= now() then greatest(clock_timestamp() - p_ago, started_at) else ended_at end
    where id = p_attempt_id and exited_at >= now()
    returning * into v_attempt;
    update public.phase_queue set finished_timestamp = v_attempt.ended_at
    where queue_id = v_attempt.queue_id and attempt = v_attempt.number and status in ('completed', 'failed')
        and finished_timestamp >= now();
end $$;

-- End an attempt without a process: it could not be started, or the process disappeared without an exit status. A requested
-- end takes precedence.
create or replace function pgcoord.give_up_attempt(p_attempt_id bigint, p_outcome text, p_error text) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_attempt pgcoord.attempt := pgcoord_private.lock_attempt(p_attempt_id);
begin
    if (p_outcome in ('failed', 'lost', 'returned')) is not true then
        raise exception using
            errcode = 'PC005',
            message = format('attempt %s cannot be given up as %L', p_attempt_id, left(p_outcome, 100)),
            hint = 'Give failed (could not start), lost (vanished) or returned (unused).';
    end if;
    if v_attempt.id is null or v_attempt.exited_at is not null then
        return false;
    end if;
    v_attempt.exited_at := clock_timestamp();
    if v_attempt.ended_at is not null then
        update pgcoord.attempt set exited_at = v_attempt.exited_at where id = p_attempt_id;
        return true;
    elsif v_attempt.ending is not null then
        perform pgcoord_private.conclude_attempt(v_attempt, v_attempt.ending, v_attempt.ending_reason, v_attempt.ending_reason);
    else
        perform pgcoord_private.conclude_attempt(v_attempt, p_outcome, p_error);
    end if;
    return true;
end $$;
comment on function pgcoord.give_up_attempt(bigint, text, text) is
    'Give up an attempt that has no process, for the owner and coordinators: as failed (could not start), lost (vanished) or returned (unused). Returns whether it was still open.';

-- End an attempt of another host whose lease has expired, as lost; a requested end takes precedence. Whether its process is
-- gone is unknown: it stays recorded as alive, and the next coordinator on that host ends it.
-- Errors: PC007 when the lead is over.
create or replace function pgcoord_private.abandon_attempt(p_epoch bigint, p_attempt_id bigint) returns void
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_attempt pgcoord.attempt := pgcoord_private.lock_attempt(p_attempt_id);
begin
    perform pgcoord_private.check_epoch(p_epoch);
    if not exists (
        select from pgcoord.elsewhere where attempt_id = p_attempt_id and left_alone_until <= clock_timestamp()
    ) then
        return;    -- the host has renewed its lease, or the attempt has ended
    end if;
    if v_attempt.ending is null then
        update pgcoord.attempt
        set ending = 'lost', ending_at = clock_timestamp(),
            ending_reason = format('nothing was heard of its host %s for %s', host, pgcoord_private.in_words(pgcoord_private.lease_length()))
        where id = p_attempt_id
        returning * into v_attempt;
    end if;
    perform pgcoord_private.conclude_attempt(v_attempt, v_attempt.ending, v_attempt.ending_reason, v_attempt.ending_reason);
end $$;

-- Return a claimed attempt unused: its phase is queued again, not before p_wait from now, and no attempt is used up.
create or replace function pgcoord_private.return_attempt(p_attempt_id bigint, p_wait interval, p_reason text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
begin
    perform pgcoord.give_up_attempt(p_attempt_id, 'returned', p_reason);
    update public.phase_queue set retry_at = clock_timestamp() + p_wait
    where queue_id = (select queue_id from pgcoord.attempt where id = p_attempt_id and outcome = 'returned') and status = 'queued';
end $$;

-- Return a locked attempt whose process ended because something is temporarily unavailable, such as a model. The wait doubles each
-- time in a row, from later_delay of the workflow to a quarter of an hour. Its costs count; no attempt is used up, until it
-- happened max_later times in a row.
create or replace function pgcoord_private.postpone_attempt(p_attempt pgcoord.attempt, p_reason text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_in_a_row integer;
    v_delay interval;
    v_most integer;
begin
    select later_delay, max_later into v_delay, v_most from pgcoord.workflow where name = p_attempt.workflow;
    v_delay := coalesce(v_delay, '30 s');
    select a.number - 1 - coalesce(max(b.number), 0) into v_in_a_row
    from pgcoord.attempt as a
        left join pgcoord.attempt as b
            on b.queue_id = a.queue_id and b.number < a.number and b.outcome is distinct from 'returned'
    where a.id = p_attempt.id
    group by a.number;
    if v_in_a_row >= v_most then
        perform pgcoord_private.conclude_attempt(p_attempt, 'failed',
            format('%s (max_later = %s is reached)', p_reason, v_most));
        return;
    end if;
    perform pgcoord_private.conclude_attempt(p_attempt, 'returned', p_reason);
    update public.phase_queue
    set retry_at = clock_timestamp() + least(v_delay * 2 ^ least(v_in_a_row, 10), greatest(v_delay, '15 min'))
    where queue_id = p_attempt.queue_id and status = 'queued';
end $$;

-- Request the end of attempts that have run, or waited in their engine, longer than permitted. Skips attempts that another
-- session has locked, so that no transaction delays the coordinator; next_work returns these locks.
create or replace function pgcoord_private.expire_attempts() returns void
language sql
begin atomic
    update pgcoord.attempt as a
    set ending = 'timed_out', ending_at = clock_timestamp(),
        ending_reason = case when submitted_at is not null and started_at is null
            then format('waited in pool %s longer than its queue_timeout of %s', pool, pgcoord_private.in_words(deadline - submitted_at))
            else format('ran longer than its timeout of %s', pgcoord_private.in_words(timeout)) end
    where a.id in (
        select late.id from pgcoord.attempt as late
        where late.deadline <= (select clock_timestamp()) and late.ended_at is null and late.ending is null
        for no key update skip locked
    );
end;

-- Record that the process of an attempt has written nothing for p_for (null: it writes again). With p_ends, request its end.
create or replace function pgcoord_private.note_quiet(p_attempt_id bigint, p_for interval, p_ends boolean) returns void
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_attempt pgcoord.attempt;
begin
    update pgcoord.attempt set quiet_since = clock_timestamp() - p_for
    where id = p_attempt_id and exited_at is null and (quiet_since is null) <> (p_for is null)
    returning * into v_attempt;
    if not found then
        return;
    end if;
    perform pgcoord_private.log_attempt(v_attempt, case when p_for is null then 'attempt_writes' else 'attempt_quiet' end,
        'wrote nothing for ' || pgcoord_private.in_words(p_for));
    if p_for is not null and p_ends then
        update pgcoord.attempt
        set ending = 'timed_out', ending_at = clock_timestamp(),
            ending_reason = 'wrote nothing for ' || pgcoord_private.in_words(p_for)
        where id = p_attempt_id and ended_at is null and ending is null;
    end if;
end $$;

-- Refuse a request for an end that nobody knows (PC005), one after the end, or beside an earlier one, except that a person's
-- cancellation outranks others, and a time-out may be taken back (PC008); also (PC002) a process that is gone before its
-- attempt has ended, and (PC008) one that is alive again, or was not started after all.
create or replace function pgcoord_private.guard_ending() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_asks boolean := new.ending is distinct from old.ending;
begin
    if new.exited_at is not null and new.ended_at is null then
        raise exception using
            errcode = 'PC002',
            message = format('attempt %s of phase %s has not ended: its process cannot be gone', new.number, new.queue_id),
            hint = format('pgcoord.give_up_attempt(%s, outcome, error) ends an attempt that has no process.', new.id);
    elsif v_asks and new.ending not in ('failed', 'timed_out', 'lost', 'cancelled') then
        raise exception using
            errcode = 'PC005',
            message = format('attempt %s of phase %s cannot be asked to end as %L', new.number, new.queue_id, new.ending),
            hint = 'It is failed, timed_out, lost or cancelled.';
    elsif v_asks and (old.ended_at is not null or old.ending is not null
            and new.ending is distinct from 'cancelled' and not (old.ending = 'timed_out' and new.ending is null))
        or old.exited_at is not null and new.exited_at is null or old.started_at is not null and new.started_at is null
    then
        raise exception using
            errcode = 'PC008',
            message = format('attempt %s of phase %s %s: that stays as it is', old.number, old.queue_id, case
                when old.ended_at is not null then format('has ended (%s)', old.outcome)
                when old.ending is not null then format('is to end (%s)', old.ending)
                else 'was started' end),
            hint = 'The first end of an attempt counts. The functions of the schema pgcoord steer its phase.';
    end if;
    return new;
end $$;

-- At the commit, after a statement on an attempt alone: refuse an unknown end (PC005), another one than was recorded before
-- (PC008), and the end of an attempt with which a phase still holds a slot (PC002). The end of a process is written before
-- its phase moves.
create or replace function pgcoord_private.check_attempt_agrees() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_phase record;
begin
    perform pgcoord_private.check_outcome(new);
    if old.outcome is not null and new.outcome is distinct from old.outcome then
        raise exception using
            errcode = 'PC008',
            message = format('attempt %s of phase %s has ended (%s): that stays as it is', old.number, old.queue_id, old.outcome),
            hint = 'The first end of an attempt counts. The functions of the schema pgcoord steer its phase.';
    end if;
    select status, slot into v_phase from public.phase_queue
    where queue_id = new.queue_id and attempt = new.number and slot is not null;
    if found then
        raise exception using
            errcode = 'PC002',
            message = format('attempt %s of phase %s cannot end alone: the phase is %s and holds slot %s',
                new.number, new.queue_id, v_phase.status, v_phase.slot),
            hint = format('pgcoord.give_up_attempt(%s, outcome, error) ends both; complete_phase, fail_phase and cancel_phase do, too.', new.id);
    end if;
    return null;
end $$;

-- Refuse an end that nobody knows. Errors: PC005.
create or replace function pgcoord_private.check_outcome(p_attempt pgcoord.attempt) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    if p_attempt.outcome not in ('completed', 'failed', 'timed_out', 'lost', 'cancelled', 'returned') then
        raise exception using
            errcode = 'PC005',
            message = format('attempt %s of phase %s cannot end as %L', p_attempt.number, p_attempt.queue_id, p_attempt.outcome),
            hint = 'It is completed, failed, timed_out, lost, cancelled or returned.';
    end if;
end $$;

-- Refuse an inserted attempt that has ended as nobody knows (PC005), or with a number that its phase has not reached (PC002).
-- One that has not ended costs no look-up here, as each claim inserts one: if its phase does not hold it, nothing runs it
-- (view assignment), and checkup names it.
create or replace function pgcoord_private.guard_ended_attempt() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    perform pgcoord_private.check_outcome(new);
    if not exists (
        select from public.phase_queue as p
        where p.queue_id = new.queue_id and (new.number < p.attempt or new.number = p.attempt and p.slot is null)
    ) then
        raise exception using
            errcode = 'PC002',
            message = format('phase %s has had no attempt %s that could have ended', new.queue_id, new.number),
            hint = 'Attempts follow from claims. Insert a phase as completed, or skip it.';
    end if;
    return new;
end $$;

-- Refuse (PC008) to change what an attempt was given when it was claimed: its process knows it by that. The folder of an
-- attempt whose process is gone may have been moved, and a machine may have got another name.
create or replace function pgcoord_private.guard_attempt_identity() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    if (new.id, new.queue_id, new.number, new.adw_id, new.secret, new.slot, new.pool, new.lock, new.epoch, new.external, new.host is null)
            is not distinct from
            (old.id, old.queue_id, old.number, old.adw_id, old.secret, old.slot, old.pool, old.lock, old.epoch, old.external, old.host is null)
        and (new.folder is not distinct from old.folder or old.exited_at is not null)
    then
        return new;
    end if;
    raise exception using
        errcode = 'PC008',
        message = format('attempt %s of phase %s keeps what it was claimed with', old.number, old.queue_id),
        hint = 'Its number, adw_id, secret, slot, pool, lock, lead and folder stay as they are; the next attempt has its own.';
end $$;

-- Log that the end of an attempt was requested, and wake the coordinators: its process may be on any host.
create or replace function pgcoord_private.tell_ending() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    if new.ending is null or new.ending is not distinct from old.ending then
        return null;
    end if;
    perform pgcoord_private.log_attempt(new, 'attempt_ending', concat_ws(': ', new.ending, new.ending_reason));
    perform pg_notify('pgcoord_wake', new.id::text);
    notify pgcoord_stand_by;
    return null;
end $$;

-- Wake the coordinators after the deletion of a phase whose process has not ended yet.
create or replace function pgcoord_private.tell_deleted() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    perform pg_notify('pgcoord_wake', old.id::text);
    notify pgcoord_stand_by;
    return null;
end $$;

-- Those of these attempts that do not exist any more, or whose process is known to be gone. Only a primary answers, also
-- behind a pooler that distributes reads over stand-bys: the function is volatile, and raises an error on a stand-by.
-- Errors: 25006 on a stand-by.
create or replace function pgcoord_private.gone_attempts(p_attempt_ids bigint[]) returns setof bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
begin
    if pg_is_in_recovery() then
        raise exception using
            errcode = '25006',
            message = 'a stand-by was asked which attempts there are',
            hint = 'Something between here and the server spreads statements over stand-bys: have the sessions of pgcoord go to the primary.';
    end if;
    return query
    select given.id from unnest(p_attempt_ids) as given (id)
    where not exists (select from pgcoord.attempt as a where a.id = given.id and a.exited_at is null offset 0);
end $$;
