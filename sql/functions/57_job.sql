-- Jobs of engines. Engines may start a job twice, and their report of its end is not reliable. So each copy of a job asks
-- for permission before it runs anything, and reports its own end. Both requests can be repeated by the same copy, which
-- identifies itself by a random text.

-- Record that the job of an attempt is about to be submitted. Stored before the submission, so that a job which the engine
-- starts in spite of an error is known. claim_phases stores it, too, for a submission that follows at once; this is for one
-- that comes later, or again.
-- Errors: PC007 when the lead is over; PC003 when the attempt has ended, or its end was requested.
create or replace function pgcoord_private.submit_attempt(p_epoch bigint, p_attempt_id bigint) returns void
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_now timestamptz := clock_timestamp();
    v_until timestamptz;
begin
    perform pgcoord_private.check_epoch(p_epoch);
    update pgcoord.attempt as a
    set submitted_at = coalesce(submitted_at, v_now),
        submitted_to = coalesce(submitted_to, (select o.launcher from pgcoord.pool as o where o.name = a.pool)),
        deadline = case when started_at is null
            then coalesce(deadline, v_now + (select w.queue_timeout from pgcoord.workflow as w where w.name = a.workflow))
            else deadline end    -- it has begun, as another coordinator knows
    where id = p_attempt_id and exited_at is null and ended_at is null and ending is null
    returning deadline into v_until;
    if not found then
        raise exception using
            errcode = 'PC003',
            message = format('attempt %s was given up', p_attempt_id),
            hint = 'No job is to be submitted for it.';
    end if;
    if v_until is not null then
        notify pgcoord_wake;    -- a new deadline
    end if;
end $$;

-- Store the engine's id of a job, and why it waits, or cannot be ended; of a local process, what the machine lacks to start it.
-- Writes only changes.
create or replace function pgcoord_private.note_job(p_attempt_id bigint, p_job text, p_waits_for text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
begin
    update pgcoord.attempt as a
    set job = coalesce(p_job, a.job), waits_for = case when a.started_at is null or a.ending is not null then p_waits_for end
    where a.id = p_attempt_id and a.exited_at is null
        and (coalesce(p_job, a.job), case when a.started_at is null or a.ending is not null then p_waits_for end)
            is distinct from (a.job, a.waits_for);
    if found then
        perform pg_notify('pgcoord_event', p.feature_id::text)
        from pgcoord.attempt as a join public.phase_queue as p using (queue_id) where a.id = p_attempt_id;
    end if;
end $$;

-- The reason why a copy of an attempt's job may not begin; null if it may, or has begun. A copy with the secret of the
-- attempt proves that its job was submitted: if that is not stored, a failover has lost it.
create or replace function pgcoord_private.begin_obstacle(p_attempt pgcoord.attempt, p_copy text) returns text
language sql stable
return case
    when p_attempt.exited_at is not null then 'it has ended'
    when p_attempt.ended_at is not null then format('it was reported %s', p_attempt.outcome)
    when p_attempt.ending is not null then format('it is to end (%s)', concat_ws(': ', p_attempt.ending, p_attempt.ending_reason))
    when p_attempt.copy is null and p_attempt.submitted_at is null and p_attempt.host is not null then 'no job was submitted for it'
    when p_attempt.copy <> p_copy then 'another copy of its job began' || coalesce(' on ' || p_attempt.node, '')
end;

-- Record that a copy of a job was refused. Only the first ten refusals write an event, since anybody may try.
create or replace function pgcoord_private.note_refused_begin(p_attempt_id bigint, p_reason text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_attempt pgcoord.attempt;
begin
    update pgcoord.attempt set refused_begins = refused_begins + 1
    where id = p_attempt_id and submitted_at is not null and refused_begins < 2147483647
    returning * into v_attempt;
    if v_attempt.refused_begins <= 10 then
        perform pgcoord_private.log_attempt(v_attempt, 'begin_refused', p_reason);
    end if;
end $$;

-- Record that a copy of the job of a locked attempt has begun; its phase is running from then on.
create or replace function pgcoord_private.take_begin(
    p_attempt pgcoord.attempt, p_copy text, p_job text, p_node text, p_reason text
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    update pgcoord.attempt as a
    set copy = p_copy, job = coalesce(p_job, a.job), node = p_node, waits_for = null,
        submitted_at = coalesce(a.submitted_at, clock_timestamp()),
        submitted_to = coalesce(a.submitted_to, (select o.launcher from pgcoord.pool as o where o.name = a.pool)),
        started_at = clock_timestamp(), deadline = clock_timestamp() + a.timeout
    where a.id = p_attempt.id;
    perform pgcoord_private.set_reason(p_reason);
    update public.phase_queue set status = 'running', started_timestamp = clock_timestamp()
    where queue_id = p_attempt.queue_id and attempt = p_attempt.number and status = 'ready';
    perform pgcoord_private.set_reason(null);
end $$;

-- Answer a copy of an attempt's job that asks whether it may begin; if so, its phase is running from then on. The caller has
-- checked that the attempt's secret signed the request. Never raises PC001 or PC003: code, reason and hint say why it is
-- refused, which is recorded. Locks as start_phase does.
create or replace function pgcoord_private.begin_job(
    p_attempt_id bigint, p_copy text, p_job text, p_node text, out code text, out reason text, out hint text
)
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_attempt pgcoord.attempt;
    v_words text := concat_ws(' ', 'job', p_job, 'on ' || p_node);
begin
    perform 1 from public.phase_queue
    where queue_id = (select queue_id from pgcoord.attempt where id = p_attempt_id)
    for no key update;
    select * into v_attempt from pgcoord.attempt where id = p_attempt_id for no key update;
    if v_attempt.id is null then
        code := 'PC001';
        reason := format('there is no attempt %s', p_attempt_id);
    else
        reason := pgcoord_private.begin_obstacle(v_attempt, p_copy);
        code := case when reason is not null then 'PC003' end;
        reason := format('attempt %s is not begun by %s: %s', p_attempt_id, v_words, reason);
    end if;
    perform set_config('pgcoord.actor', concat_ws(' ', v_attempt.adw_id, '(job)'), true);
    if code is not null then
        hint := 'This copy of the job must run nothing.';
        perform pgcoord_private.note_refused_begin(p_attempt_id, reason);
    elsif v_attempt.copy is null then
        reason := null;
        perform pgcoord_private.take_begin(v_attempt, p_copy, p_job, p_node, 'begun by ' || v_words);
        perform pg_notify('pgcoord_wake', p_attempt_id::text);
    else
        reason := null;
    end if;
    perform set_config('pgcoord.actor', '', true);
end $$;

-- Record the end of the command of a job, reported by the copy that began. The caller has checked that the attempt's secret
-- signed the report. A repetition changes nothing. An end after the attempt was given up as lost is recorded, and changes
-- nothing else. A copy that reports its end has begun, even if a failover has lost that record. Never raises PC001 or PC003:
-- code, reason and hint say why it was refused.
create or replace function pgcoord_private.exit_job(
    p_attempt_id bigint, p_copy text, p_exit_code integer, p_log_tail text default null, p_left_behind text default null,
    p_result text default null, p_result_fault text default null,
    out code text, out reason text, out hint text
)
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_attempt pgcoord.attempt := pgcoord_private.lock_attempt(p_attempt_id);
begin
    perform set_config('pgcoord.actor', concat_ws(' ', v_attempt.adw_id, '(job)'), true);
    if v_attempt.id is not null and v_attempt.copy is null and v_attempt.host is null and v_attempt.exited_at is null then
        perform pgcoord_private.take_begin(v_attempt, p_copy, null, null, 'begun by the copy of its job that has ended');
        v_attempt.copy := p_copy;
    end if;
    if v_attempt.id is null or v_attempt.copy is distinct from p_copy then
        code := case when v_attempt.id is null then 'PC001' else 'PC003' end;
        reason := case when v_attempt.id is null then format('there is no attempt %s', p_attempt_id)
            else format('attempt %s did not begin as this copy of its job', p_attempt_id) end;
        hint := 'Only the copy of a job that began says how it ended.';
    elsif v_attempt.exited_at is null then
        perform pgcoord_private.end_attempt(p_attempt_id, p_exit_code, p_log_tail, p_left_behind, p_result, p_result_fault);
        perform pg_notify('pgcoord_wake', p_attempt_id::text);
    elsif v_attempt.exit_code is null then
        update pgcoord.attempt set exit_code = p_exit_code where id = p_attempt_id;
        perform pgcoord_private.log_attempt(v_attempt, 'attempt_exited',
            format('exited with status %s, after it was taken for %s', p_exit_code, coalesce(v_attempt.outcome, 'gone')));
    end if;
    perform set_config('pgcoord.actor', '', true);
end $$;

-- For the coordinator: the secret that signs the requests of an attempt's job; null if there is no such attempt.
create or replace function pgcoord_private.secret_of(p_attempt_id bigint) returns text
language sql stable
begin atomic
    select secret from pgcoord.attempt where id = p_attempt_id;
end;

-- begin_job and exit_job for a job that connects to the database itself, and does not reach the coordinator.
create or replace function pgcoord.begin_attempt(
    p_attempt_id bigint, p_secret text, p_copy text, p_job text default null, p_node text default null,
    out code text, out reason text, out hint text
)
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
    if p_secret = pgcoord_private.secret_of(p_attempt_id) and p_copy <> '' then
        select b.code, b.reason, b.hint into code, reason, hint
        from pgcoord_private.begin_job(p_attempt_id, p_copy, p_job, p_node) as b;
        return;
    end if;
    code := 'PC001';
    reason := format('there is no attempt %s with this secret', p_attempt_id);
    hint := 'This job must run nothing.';
    perform pgcoord_private.note_refused_begin(p_attempt_id, 'a job asked to begin with another secret');
end $$;
comment on function pgcoord.begin_attempt(bigint, text, text, text, text) is
    'The first call of a job: ask whether this copy of it may begin. If code is not null it must run nothing; reason says why.';

create or replace function pgcoord.exit_attempt(
    p_attempt_id bigint, p_secret text, p_copy text, p_exit_code integer, p_log_tail text default null,
    out code text, out reason text, out hint text
)
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
    if p_secret = pgcoord_private.secret_of(p_attempt_id) and p_copy <> '' then
        select e.code, e.reason, e.hint into code, reason, hint
        from pgcoord_private.exit_job(p_attempt_id, p_copy, p_exit_code, p_log_tail) as e;
        return;
    end if;
    code := 'PC001';
    reason := format('there is no attempt %s with this secret', p_attempt_id);
    hint := 'Only the job of an attempt says how it ended.';
end $$;
comment on function pgcoord.exit_attempt(bigint, text, text, integer, text) is
    'The last call of a job: report the exit status of its command (128 + n after signal n). A repeated call changes nothing.';
