-- Reports: the first recorded end of an attempt decides (report_phase). A workflow reports the end of its phase as signed
-- JSON, perhaps twice, perhaps late. take_report matches it with its phase and attempt, and logs in the same transaction
-- whether it was accepted or refused.

-- The attempt of a report: the named one, else the latest. No row for a phase without attempts. An earlier attempt is
-- accepted if it ended as reported: its sender has not received the answer.
-- Errors: PC003 when the named attempt was given up, or belongs to another phase.
create or replace function pgcoord_private.reported_attempt(p_phase public.phase_queue, p_adw_id text, p_outcome text)
returns pgcoord.attempt
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_attempt pgcoord.attempt;
begin
    select * into v_attempt from pgcoord.attempt
    where queue_id = p_phase.queue_id
        and case when p_adw_id is null then number = p_phase.attempt else adw_id = p_adw_id end;
    if v_attempt.number < p_phase.attempt and v_attempt.outcome is distinct from p_outcome then
        raise exception using
            errcode = 'PC003',
            message = format('attempt %s (%s) of phase %s was given up: attempt %s (%s) has taken its place',
                v_attempt.number, p_adw_id, p_phase.queue_id, p_phase.attempt, p_phase.adw_id),
            hint = 'Its result is not taken. If the work is done, cancel the phase and skip it.';
    elsif v_attempt.id is null and p_adw_id is distinct from coalesce(p_phase.adw_id, p_adw_id) then
        raise exception using
            errcode = 'PC003',
            message = format('%s is not an attempt of phase %s, whose current one is %s', p_adw_id, p_phase.queue_id, p_phase.adw_id),
            hint = 'Report with the adw_id that the workflow was started with.';
    end if;
    return v_attempt;
end $$;

-- Answer a report that changes nothing: the phase does not hold a slot, or the report names another attempt. A repeated
-- report is answered with the stored end.
-- Errors: PC001 no such phase; PC002 never started; PC003 stale attempt; PC004 it ended in another way.
create or replace function pgcoord_private.answer_report(p_queue_id text, p_outcome text, p_adw_id text) returns public.phase_queue
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_phase public.phase_queue := pgcoord_private.lock_phase(p_queue_id);
    v_attempt pgcoord.attempt := pgcoord_private.reported_attempt(v_phase, p_adw_id, p_outcome);
    v_stored text := pgcoord_private.stored_outcome(v_phase, v_attempt);
begin
    if v_stored = p_outcome then
        return v_phase;
    elsif v_attempt.id is null and not pgcoord_private.ended(v_phase.status) then
        raise exception using
            errcode = 'PC002',
            message = format('phase %s is %s and never started: it cannot be reported %s', p_queue_id, v_phase.status, p_outcome),
            hint = format('pgcoord.skip_phase(%L, reason) takes it as done without running it.', p_queue_id);
    end if;
    raise exception using
        errcode = 'PC004',
        message = format('phase %s has ended %s: it cannot be reported %s any more', p_queue_id, v_stored, p_outcome),
        hint = 'The first end of an attempt counts. Retry the phase, or skip it if the work is done.';
end $$;

-- Apply a report: the first one decides. Fast path: one UPDATE, for a phase that holds its slot and whose attempt is the
-- current one. The slow path explains why it matched no row.
-- Errors: those of answer_report, and PC004 if another end was requested before.
create or replace function pgcoord_private.report_phase(p_queue_id text, p_outcome text, p_error text, p_adw_id text)
returns public.phase_queue
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    v_phase public.phase_queue;
begin
    perform 1 from public.planned_features
    where id = (select feature_id from public.phase_queue where queue_id = p_queue_id)
    for no key update;
    update public.phase_queue set status = p_outcome, error_message = p_error
    where queue_id = p_queue_id and slot is not null and (p_adw_id is null or adw_id = p_adw_id)
    returning * into v_phase;
    if found then
        return v_phase;
    end if;
    return pgcoord_private.answer_report(p_queue_id, p_outcome, p_adw_id);
end $$;

create or replace function pgcoord.complete_phase(p_queue_id text, p_adw_id text default null) returns public.phase_queue
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
begin
    return pgcoord_private.report_phase(p_queue_id, 'completed', null, p_adw_id);
end $$;
comment on function pgcoord.complete_phase(text, text) is
    'Report a ready or running phase as completed: its slot is free and its dependents can run at once. A repeated report changes nothing. With adw_id only if that attempt is the current one.';

create or replace function pgcoord.fail_phase(p_queue_id text, p_error text, p_adw_id text default null)
returns public.phase_queue
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
begin
    return pgcoord_private.report_phase(p_queue_id, 'failed', coalesce(p_error, 'reported as failed'), p_adw_id);
end $$;
comment on function pgcoord.fail_phase(text, text, text) is
    'Report a ready or running phase as failed: its process is ended first, then it is queued again while attempts are left, else failed.';

-- The queue_id of the phase of a report: by queue_id, else by adw_id, else by feature_id and phase_number.
create or replace function pgcoord_private.named_by_report(p_report jsonb) returns text
language sql stable
return coalesce(
    p_report ->> 'queue_id',
    (select queue_id from pgcoord.attempt where adw_id = p_report ->> 'adw_id'),
    (select queue_id from public.phase_queue
        where feature_id = (p_report ->> 'feature_id')::integer and phase_number = (p_report ->> 'phase_number')::integer)
);

-- The phase of a report; all members that identify the phase must agree.
-- Errors: PC001 when there is none, PC005 when the report names none, or contradicts itself.
create or replace function pgcoord_private.phase_of_report(p_report jsonb) returns public.phase_queue
language plpgsql stable
set search_path = pg_catalog, pg_temp as $$
declare
    v_phase public.phase_queue;
    v_adw_phase text;
    v_names boolean := p_report ?| array['queue_id', 'adw_id'] or p_report ?& array['feature_id', 'phase_number'];
begin
    select queue_id into v_adw_phase from pgcoord.attempt where adw_id = p_report ->> 'adw_id';
    select * into v_phase from public.phase_queue where queue_id = pgcoord_private.named_by_report(p_report);
    if not found then
        raise exception using
            errcode = case when v_names then 'PC001' else 'PC005' end,
            message = format(
                case when v_names then 'there is no phase with %s' else 'a report with %s names no phase' end,
                coalesce((
                    select string_agg(format('%s %s', key, value), ', ' order by key) from jsonb_each_text(p_report)
                    where key in ('queue_id', 'adw_id', 'feature_id', 'phase_number')
                ), 'no name')
            ),
            hint = 'A report names its phase: queue_id, or adw_id, or feature_id and phase_number.';
    elsif (p_report ->> 'feature_id')::integer <> v_phase.feature_id
        or (p_report ->> 'phase_number')::integer <> v_phase.phase_number
        or v_adw_phase <> v_phase.queue_id
    then
        raise exception using
            errcode = 'PC005',
            message = format('the report contradicts itself: phase %s is phase %s of feature %s%s', v_phase.queue_id,
                v_phase.phase_number, v_phase.feature_id,
                case when v_adw_phase <> v_phase.queue_id then format(', and %s is of phase %s', p_report ->> 'adw_id', v_adw_phase) end),
            hint = 'Leave out all but queue_id and adw_id.';
    end if;
    return v_phase;
end $$;

-- For the coordinator: the secrets that may sign a report, each of one attempt, for which alone it is valid.
create or replace function pgcoord_private.report_secrets(p_report jsonb, out adw_id text, out secret text) returns setof record
language sql stable
set enable_seqscan = off
begin atomic
    select a.adw_id, a.secret
    from pgcoord.attempt as a
    where a.queue_id = pgcoord_private.named_by_report(p_report) and a.adw_id = coalesce(p_report ->> 'adw_id', a.adw_id)
    order by a.number desc
    limit 100;
end;

-- Take a report, given as the body of a webhook: {"status": "completed" or "failed", and "queue_id", or "adw_id", or
-- "feature_id" with "phase_number"; "error_message", "pr_number", "result"}. p_adw_id is the attempt whose secret signed it, null
-- for another secret. A report without an attempt concerns the attempt of the first delivery of the same message, so a late
-- repetition does not end the next attempt. Never raises PC001 to PC005: code, reason and hint say why it was refused, and
-- the refusal is logged. (Long: each of its eleven results is a variable of it.)
create or replace function pgcoord_private.take_report(
    p_report jsonb, p_message_id text, p_actor text, p_adw_id text default null,
    out code text, out reason text, out hint text, out repeated boolean, out queue_id text, out feature_id integer,
    out phase_number integer, out adw_id text, out attempt integer, out outcome text, out status text
)
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
#variable_conflict use_column
declare
    v_phase public.phase_queue;
    v_attempt pgcoord.attempt;
    v_wanted text := p_report ->> 'status';
    v_adw_id text := coalesce(p_adw_id, p_report ->> 'adw_id');
begin
    perform set_config('pgcoord.actor', p_actor, true);
    repeated := false;
    begin
        v_phase := pgcoord_private.phase_of_report(p_report);
        v_phase := pgcoord_private.lock_phase(v_phase.queue_id);
        if v_adw_id is null then
            select d.adw_id into v_adw_id from pgcoord.webhook_delivery as d
            where d.message_id = p_message_id and d.queue_id = v_phase.queue_id order by d.id limit 1;
        end if;
        v_attempt := pgcoord_private.reported_attempt(v_phase, v_adw_id, v_wanted);
        repeated := v_wanted is not distinct from pgcoord_private.stored_outcome(v_phase, v_attempt);
        if not repeated and p_report ->> 'pr_number' is not null then
            update public.phase_queue as p set pr_number = (p_report ->> 'pr_number')::integer where p.queue_id = v_phase.queue_id;
        end if;
        if not repeated and coalesce(p_report -> 'result', 'null') <> 'null' and v_attempt.id is not null then
            perform pgcoord_private.store_result(v_attempt.id, p_report -> 'result');
        end if;
        v_phase := case v_wanted
            when 'completed' then pgcoord.complete_phase(v_phase.queue_id, v_adw_id)
            when 'failed' then pgcoord.fail_phase(v_phase.queue_id, p_report ->> 'error_message', v_adw_id)
        end;
    exception when sqlstate 'PC001' or sqlstate 'PC002' or sqlstate 'PC003' or sqlstate 'PC004' or sqlstate 'PC005' then
        get stacked diagnostics code = returned_sqlstate, reason = message_text, hint = pg_exception_hint;
        repeated := false;
    end;
    select a.* into v_attempt from pgcoord.attempt as a
    where a.queue_id = v_phase.queue_id
        and case when v_adw_id is null then a.number = v_phase.attempt else a.adw_id = v_adw_id end;

    insert into pgcoord.webhook_delivery (
        message_id, sender, feature_id, queue_id, adw_id, reported, result, code, reason
    )
    values (
        p_message_id, p_actor, v_phase.feature_id, v_phase.queue_id, v_attempt.adw_id, v_wanted,
        case when code is not null then 'refused' when repeated then 'repeated' else 'taken' end, code, reason
    );
    if code in ('PC002', 'PC003', 'PC004') then
        perform pgcoord_private.log_event('report_refused', format('reported %s: %s', v_wanted, reason),
            v_phase.feature_id, v_phase.phase_number, v_phase.queue_id, v_attempt.number);
    end if;
    perform set_config('pgcoord.actor', '', true);

    queue_id := v_phase.queue_id;
    feature_id := v_phase.feature_id;
    phase_number := v_phase.phase_number;
    adw_id := v_attempt.adw_id;
    attempt := v_attempt.number;
    outcome := coalesce(v_attempt.outcome, v_attempt.ending);
    status := v_phase.status;
end $$;
