-- Attempts: how a coordinator takes phases, says what became of their processes, and finds what it has to do next.
-- Only a coordinator calls the functions here; reports of workflows and people come through phase.sql.

-- A bijection on 32 bits (the multiplier is odd), so that ids look random and never repeat within 4 billion attempts.
create or replace function pgcoord.adw_id(p_number bigint, p_offset bigint) returns text
language sql immutable
return 'adw-' || lpad(to_hex((p_number * 2654435761 + p_offset) & 4294967295), 8, '0');
comment on function pgcoord.adw_id(bigint, bigint) is 'The adw_id of the attempt with this number: adw- and 8 hex digits.';

create or replace function pgcoord.new_adw_id() returns text
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_adw_id text;
begin
    loop
        select pgcoord.adw_id(nextval('pgcoord.attempt_id'), adw_offset) into v_adw_id from pgcoord.control;
        exit when not exists (select from pgcoord.attempt where adw_id = v_adw_id);
    end loop;
    return v_adw_id;
end $$;
comment on function pgcoord.new_adw_id() is 'An adw_id that no attempt has, for a phase inserted as running without one.';

create or replace function pgcoord.new_secret() returns text
language sql volatile
return 'whsec_' || encode(sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())), 'base64');
comment on function pgcoord.new_secret() is 'A signing secret as Standard Webhooks writes them: 32 random bytes.';

-- What a coordinator needs of an attempt to run it, or to take it over.
create or replace view pgcoord.assignment as
select a.id as attempt_id, a.queue_id, p.feature_id, p.phase_number, a.number as attempt, a.adw_id, a.secret, a.host, a.folder,
    a.workflow, p.issue_number, p.phase_data ->> 'title' as title, p.phase_data ->> 'prompt_content' as prompt,
    a.pid, a.process_started, a.started_at is not null as started, a.ended_at is not null as ended, a.ending,
    greatest(extract(epoch from clock_timestamp() - a.ended_at), 0)::float8 as ended_seconds_ago, a.slot
from pgcoord.attempt as a
    join public.phase_queue as p using (queue_id)
where a.exited_at is null and not a.external;
comment on view pgcoord.assignment is
    'Attempts whose process is not known to be gone, with all a coordinator needs to run them or take them over (secrets too).';

-- Refuse a coordinator that does not lead any more.
create or replace function pgcoord.check_epoch(p_epoch bigint) returns void
language plpgsql as $$
begin
    if p_epoch is distinct from (select epoch from pgcoord.control) then
        raise exception using
            errcode = 'PC007',
            message = format('lead %s is over: %s', p_epoch, coalesce(
                (select format('process %s on %s leads since %s (lead %s)', pid, host, date_trunc('second', lead_at), epoch)
                    from pgcoord.coordinator order by epoch desc limit 1), 'nobody leads')),
            hint = 'Another coordinator has taken over; this one must claim and start nothing.';
    end if;
end $$;
comment on function pgcoord.check_epoch(bigint) is 'Refuse (PC007) a coordinator whose lead is over.';

-- Claim eligible phases in total order over all features, one for each free slot; phases that somebody else has
-- locked are skipped, never waited for. Where no slot is free (and no retry time has come) it locks nothing: who frees one
-- wakes the coordinator anew, and a transaction that has written nothing has nothing to wait for at its commit. The
-- control row is locked in a statement of its own: the statements after it see all that earlier claims have committed.
-- The lock of a phase is NO KEY, so that an edge being stored to it (a foreign key's share lock) does not hide it.
-- Errors: PC007 when the lead is over; PC009 under a snapshot that would not see other claims; 55P03 when somebody holds
-- the control row for more than a second.
create or replace function pgcoord.claim_phases(p_epoch bigint) returns setof pgcoord.assignment
language plpgsql
set search_path = pg_catalog, pg_temp set lock_timeout = '1s'
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    v_leader record;
    v_control pgcoord.control;
    v_free record;
    v_phase record;
    v_id bigint;
    v_attempts bigint[];
    v_no_issues boolean;    -- GitHub makes none for the moment: only phases that have one are claimed
begin
    if not pgcoord.sees_others() then
        perform pgcoord.check_isolation();
    end if;
    select c.host, c.runs_folder, (select name from pgcoord.workflow where is_default) as workflow,
        exists (select from public.phase_queue where retry_at <= clock_timestamp()) as finds_retry,
        exists (
            select from pgcoord.slot as s where not exists (select from public.phase_queue as p where p.slot = s.number)
        ) as finds_slot
    into v_leader
    from pgcoord.control as k join pgcoord.coordinator as c using (epoch)
    where k.epoch = p_epoch;
    if not found then
        perform pgcoord.check_epoch(p_epoch);
    elsif not (v_leader.finds_slot or v_leader.finds_retry) then
        return;
    end if;
    select * into v_control from pgcoord.control for no key update;
    if v_control.epoch <> p_epoch then
        perform pgcoord.check_epoch(p_epoch);
    end if;
    if v_leader.finds_retry then
        update public.phase_queue set retry_at = null
        where queue_id in (
            select queue_id from public.phase_queue where retry_at <= clock_timestamp() for no key update skip locked
        );
    end if;
    if v_control.paused_at is not null then
        return;
    end if;
    v_no_issues := v_control.issues_held_until is not null and pgcoord.issues_held_until(v_control) is not null;
    select array_agg(s.number order by s.number) filter (where not s.draining) as slots, bool_or(s.draining) as surplus
    into v_free
    from pgcoord.slot as s
    where not exists (select from public.phase_queue as p where p.slot = s.number);
    if v_free.surplus then    -- released while set_slots was lowering the limit: neither saw what the other did
        delete from pgcoord.slot as s
        where s.draining and not exists (select from public.phase_queue as p where p.slot = s.number);
    end if;
    for v_phase in
        select p.queue_id, p.attempt, w.name, w.reports, w.retry_delay, w.retry_lost,
            coalesce((p.phase_data ->> 'max_attempts')::numeric::integer, w.max_attempts) as max_attempts,
            coalesce(make_interval(secs => (p.phase_data ->> 'timeout_seconds')::float8), w.timeout) as timeout
        from public.phase_queue as p
            join pgcoord.workflow as w on w.name = coalesce(p.workflow_type, v_leader.workflow)
        where p.status = 'queued' and p.eligible_at is not null and p.retry_at is null and not p.held
            and (p.issue_number is not null or not v_no_issues)
        order by p.priority, p.queue_position, p.feature_id, p.phase_number
        limit coalesce(cardinality(v_free.slots), 0)
        for no key update of p skip locked
    loop
        loop
            v_id := nextval('pgcoord.attempt_id');
            insert into pgcoord.attempt (
                id, queue_id, number, adw_id, secret, slot, epoch, host, folder,
                workflow, reports, max_attempts, retry_delay, retry_lost, timeout
            )
            values (
                v_id, v_phase.queue_id, v_phase.attempt + 1, pgcoord.adw_id(v_id, v_control.adw_offset), pgcoord.new_secret(),
                v_free.slots[1 + coalesce(cardinality(v_attempts), 0)], p_epoch, v_leader.host,
                -- The random end keeps a restored database, whose numbers come again, out of the folders of before.
                format('%s/%s/%s-%s', v_leader.runs_folder, v_control.installation, v_id, left(gen_random_uuid()::text, 8)),
                v_phase.name, v_phase.reports, v_phase.max_attempts, v_phase.retry_delay, v_phase.retry_lost, v_phase.timeout
            )
            on conflict (adw_id) do nothing;
            exit when found;    -- else a client has used this very adw_id
        end loop;
        v_attempts := v_attempts || v_id;
    end loop;
    if v_attempts is not null then
        return query    -- what pgcoord.assignment shows of them
        update public.phase_queue as p
        set status = 'ready', slot = a.slot, attempt = a.number, adw_id = a.adw_id, ready_timestamp = clock_timestamp(),
            started_timestamp = null, finished_timestamp = null
        from pgcoord.attempt as a
        where a.id = any (v_attempts) and p.queue_id = a.queue_id
        returning a.id, p.queue_id, p.feature_id, p.phase_number, a.number, a.adw_id, a.secret, a.host, a.folder,
            a.workflow, p.issue_number, p.phase_data ->> 'title', p.phase_data ->> 'prompt_content',
            null::integer, null::text, false, false, null::pgcoord.attempt_outcome, 0::float8, a.slot;
    end if;
end $$;
comment on function pgcoord.claim_phases(bigint) is
    'For the leading coordinator: claim eligible phases, one for each free slot, in order of priority and place in line, and return what it needs to run them.';

-- Record that the process of an attempt was started. An attempt that has been reported on already keeps its end; its
-- process is recorded all the same, so that it can be ended. Locks the phase before the attempt, as reports do.
-- Errors: PC007 when the lead is over; PC003 when the attempt was given up, or is gone with its phase.
create or replace function pgcoord.start_phase(p_epoch bigint, p_attempt_id bigint, p_pid integer, p_process_started text)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan as $$
declare
    v_attempt pgcoord.attempt;
begin
    if p_epoch is distinct from (select epoch from pgcoord.control) then
        perform pgcoord.check_epoch(p_epoch);
    end if;
    perform 1 from public.phase_queue
    where queue_id = (select queue_id from pgcoord.attempt where id = p_attempt_id)
    for no key update;
    update pgcoord.attempt
    set pid = p_pid, process_started = p_process_started, started_at = clock_timestamp(),
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
        notify pgcoord_wake;    -- the agenda has a new entry
    end if;
end $$;
comment on function pgcoord.start_phase(bigint, bigint, integer, text) is
    'For the coordinator: the process of a claimed attempt was started; the phase is running and its timeout runs.';

-- Lock an attempt, its feature and its phase first, and return it; no row when it is gone.
create or replace function pgcoord.lock_attempt(p_attempt_id bigint) returns pgcoord.attempt
language plpgsql as $$
declare
    v_attempt pgcoord.attempt;
begin
    perform 1 from public.planned_features
    where id = (
        select p.feature_id from pgcoord.attempt as a join public.phase_queue as p using (queue_id) where a.id = p_attempt_id
    )
    for no key update;
    perform 1 from public.phase_queue
    where queue_id = (select queue_id from pgcoord.attempt where id = p_attempt_id)
    for no key update;
    select * into v_attempt from pgcoord.attempt where id = p_attempt_id for no key update;
    return v_attempt;
end $$;
comment on function pgcoord.lock_attempt(bigint) is 'Lock an attempt, its feature and its phase first, and return it.';

create or replace function pgcoord.log_attempt(p_attempt pgcoord.attempt, p_kind text, p_reason text) returns void
language sql as $$
    select pgcoord.log_event(p_kind, p_reason, feature_id, phase_number, queue_id, p_attempt.number)
    from public.phase_queue where queue_id = p_attempt.queue_id;
$$;
comment on function pgcoord.log_attempt(pgcoord.attempt, text, text) is
    'Write an event about an attempt that is not the move of its phase.';

-- End a locked attempt, and move its phase accordingly.
create or replace function pgcoord.conclude_attempt(
    p_attempt pgcoord.attempt, p_outcome text, p_error text, p_reason text default null
) returns void
language plpgsql as $$
begin
    update pgcoord.attempt
    set ended_at = clock_timestamp(), outcome = p_outcome, error = p_error
    where id = p_attempt.id;
    perform pgcoord.set_reason(p_reason);
    update public.phase_queue
    set error_message = p_error,
        status = case
            when p_outcome in ('completed', 'cancelled') then p_outcome
            when p_outcome = 'returned' then 'queued'
            else 'failed'
        end
    where queue_id = p_attempt.queue_id;
    perform pgcoord.set_reason(null);
end $$;
comment on function pgcoord.conclude_attempt(pgcoord.attempt, text, text, text) is
    'End an attempt with the given outcome, and move its phase accordingly.';

-- The process of an attempt is gone. An end that was asked for counts before the exit status, and an end that was
-- reported before counts for good: the exit status is then only recorded.
create or replace function pgcoord.end_attempt(
    p_attempt_id bigint, p_exit_code integer, p_log_tail text default null, p_left_behind text default null
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_attempt pgcoord.attempt := pgcoord.lock_attempt(p_attempt_id);
begin
    if v_attempt.id is null or v_attempt.exited_at is not null then
        return;
    end if;
    update pgcoord.attempt set exited_at = clock_timestamp(), exit_code = p_exit_code where id = p_attempt_id;
    if p_left_behind <> '' then
        perform pgcoord.log_attempt(v_attempt, 'attempt_left_behind', 'ended what its process left behind: ' || p_left_behind);
    end if;
    if v_attempt.ended_at is not null then
        perform pgcoord.log_attempt(v_attempt, 'attempt_exited', format('exited with status %s', p_exit_code));
    elsif v_attempt.ending is not null then
        perform pgcoord.conclude_attempt(v_attempt, v_attempt.ending, v_attempt.ending_reason, v_attempt.ending_reason);
    elsif p_exit_code = 0 and not v_attempt.reports then
        perform pgcoord.conclude_attempt(v_attempt, 'completed', null, 'exited with status 0');
    else
        perform pgcoord.conclude_attempt(v_attempt, 'failed', concat_ws(e'\n',
            case when p_exit_code = 0 then 'exited 0 without reporting'
                when p_exit_code > 128 then format('exited with status %s (signal %s)', p_exit_code, p_exit_code - 128)
                else format('exited with status %s', p_exit_code) end,
            nullif(p_log_tail, '')));
    end if;
end $$;
comment on function pgcoord.end_attempt(bigint, integer, text, text) is
    'For the coordinator: the process of an attempt is gone with this exit status; decides what that makes of the phase.';

-- An attempt has no process and never will: it could not be started, or the process vanished without an exit status.
-- An end that was asked for meanwhile counts first.
create or replace function pgcoord.give_up_attempt(p_attempt_id bigint, p_outcome text, p_error text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_attempt pgcoord.attempt := pgcoord.lock_attempt(p_attempt_id);
begin
    if v_attempt.id is null or v_attempt.exited_at is not null then
        return;
    end if;
    update pgcoord.attempt set exited_at = clock_timestamp() where id = p_attempt_id;
    if v_attempt.ended_at is not null then
        return;
    elsif v_attempt.ending is not null then
        perform pgcoord.conclude_attempt(v_attempt, v_attempt.ending, v_attempt.ending_reason, v_attempt.ending_reason);
    else
        perform pgcoord.conclude_attempt(v_attempt, p_outcome, p_error);
    end if;
end $$;
comment on function pgcoord.give_up_attempt(bigint, text, text) is
    'For the coordinator: an attempt has no process; its outcome is failed (could not start), lost (vanished) or returned (given back unused).';

-- An attempt of another host, of which nothing was heard for the length of a lease, is lost; an end that was asked for
-- meanwhile counts first. Whether its process is gone nobody here can know: that stays open, and a coordinator that
-- comes to life there ends it.
-- Errors: PC007 when the lead is over.
create or replace function pgcoord.abandon_attempt(p_epoch bigint, p_attempt_id bigint) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_attempt pgcoord.attempt := pgcoord.lock_attempt(p_attempt_id);
begin
    perform pgcoord.check_epoch(p_epoch);
    if not exists (
        select from pgcoord.elsewhere where attempt_id = p_attempt_id and left_alone_until <= clock_timestamp()
    ) then
        return;    -- heard of again, or ended
    end if;
    if v_attempt.ending is null then
        update pgcoord.attempt
        set ending = 'lost', ending_at = clock_timestamp(),
            ending_reason = format('nothing was heard of its host %s for %s', host, pgcoord.lease_length())
        where id = p_attempt_id
        returning * into v_attempt;
    end if;
    perform pgcoord.conclude_attempt(v_attempt, v_attempt.ending, v_attempt.ending_reason, v_attempt.ending_reason);
end $$;
comment on function pgcoord.abandon_attempt(bigint, bigint) is
    'For the leading coordinator: an attempt of another host is lost, if that host''s lease has run out.';

-- Give a claimed attempt back unused: its phase is queued again, not before p_wait from now, and no attempt counts.
create or replace function pgcoord.return_attempt(p_attempt_id bigint, p_wait interval, p_reason text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    perform pgcoord.give_up_attempt(p_attempt_id, 'returned', p_reason);
    update public.phase_queue as p set retry_at = clock_timestamp() + p_wait
    from pgcoord.attempt as a
    where a.id = p_attempt_id and a.outcome = 'returned' and p.queue_id = a.queue_id and p.status = 'queued';
end $$;
comment on function pgcoord.return_attempt(bigint, interval, text) is
    'For the coordinator: give a claimed attempt back unused; its phase waits for that long and keeps its attempts.';

-- Ask for the end of attempts that have run longer than they may. One that somebody has locked is passed over, so that
-- no transaction of a person's holds the coordinator up; the agenda has it looked at again.
create or replace function pgcoord.expire_attempts() returns void
language sql as $$
    update pgcoord.attempt as a
    set ending = 'timed_out', ending_at = clock_timestamp(),
        ending_reason = format('ran longer than its timeout of %s', timeout)
    where a.id in (
        select late.id
        from public.phase_queue as p
            join pgcoord.attempt as late on late.queue_id = p.queue_id and late.number = p.attempt
        where p.slot is not null and late.deadline <= clock_timestamp() and late.ended_at is null and late.ending is null
        for no key update of late skip locked
    );
$$;
comment on function pgcoord.expire_attempts() is 'For the coordinator: ask for the end of attempts past their deadline.';

create or replace function pgcoord.tell_ending() returns trigger
language plpgsql as $$
begin
    if new.ending is null or new.ending is not distinct from old.ending then
        return null;
    end if;
    perform pgcoord.log_attempt(new, 'attempt_ending', concat_ws(': ', new.ending, new.ending_reason));
    notify pgcoord_wake;
    notify pgcoord_stand_by;
    return null;
end $$;
comment on function pgcoord.tell_ending() is
    'Trigger: log that the end of an attempt was asked for, and wake the coordinators: its process may be on any host.';

create or replace trigger attempt_ending_tells after update of ending on pgcoord.attempt
    for each row execute function pgcoord.tell_ending();
comment on trigger attempt_ending_tells on pgcoord.attempt is 'Tell the coordinators that a process is to be ended.';

create or replace function pgcoord.tell_deleted() returns trigger
language plpgsql as $$
begin
    notify pgcoord_wake;
    notify pgcoord_stand_by;
    return null;
end $$;
comment on function pgcoord.tell_deleted() is
    'Trigger: wake the coordinators, as a phase was deleted whose reported process lingers.';

create or replace trigger attempt_delete_tells after delete on pgcoord.attempt
    for each row when (old.exited_at is null and not old.external)
    execute function pgcoord.tell_deleted();
comment on trigger attempt_delete_tells on pgcoord.attempt is
    'Tell the coordinators that a process is to be ended whose attempt is gone.';

-- When to look next, in seconds, though nobody notifies: the nearest retry time, deadline or end of a lease, and when
-- GitHub is asked again. Attempts whose host's lease has run out. And a phase that could be claimed but was skipped
-- because somebody has it locked, other than those in p_awaited: the coordinator waits for that lock, since a
-- transaction that ends by rollback notifies nobody.
create or replace function pgcoord.agenda(
    p_awaited text[] default '{}', out due_in float8, out abandoned bigint[], out locked_phase text
)
language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    v_workflows text[];
    v_default text;
    v_no_issues_until timestamptz := (select pgcoord.issues_held_until(c) from pgcoord.control as c);
begin
    due_in := extract(epoch from least(
        (select min(retry_at) from public.phase_queue where retry_at > clock_timestamp()),
        -- One that has passed: it has only just, or somebody has the attempt locked.
        (select min(case when a.deadline > clock_timestamp() then a.deadline else clock_timestamp() + interval '1 second' end)
            from public.phase_queue as p
                join pgcoord.attempt as a on a.queue_id = p.queue_id and a.number = p.attempt
            where p.slot is not null and a.deadline is not null and a.ended_at is null and a.ending is null),
        (select min(left_alone_until) from pgcoord.elsewhere where left_alone_until > clock_timestamp()),
        v_no_issues_until
    ) - clock_timestamp());
    abandoned := array(select attempt_id from pgcoord.elsewhere where left_alone_until <= clock_timestamp());
    if exists (select from pgcoord.control where paused_at is not null) or not exists (
        select from pgcoord.slot as s
        where not s.draining and not exists (select from public.phase_queue as live where live.slot = s.number)
    ) then
        return;
    end if;
    select array_agg(name), min(name) filter (where is_default) into v_workflows, v_default from pgcoord.workflow;
    -- Two look-ups, each by its own index: one over both conditions would read the whole table.
    locked_phase := coalesce(
        (select p.queue_id from public.phase_queue as p
            where p.status = 'queued' and p.eligible_at is not null and p.retry_at is null and not p.held
                and coalesce(p.workflow_type, v_default) = any (v_workflows) and p.queue_id <> all (p_awaited)
                and (p.issue_number is not null or v_no_issues_until is null)
            order by p.priority, p.queue_position, p.feature_id, p.phase_number limit 1),
        (select p.queue_id from public.phase_queue as p
            where p.retry_at <= clock_timestamp() and p.eligible_at is not null and not p.held
                and coalesce(p.workflow_type, v_default) = any (v_workflows) and p.queue_id <> all (p_awaited)
                and (p.issue_number is not null or v_no_issues_until is null)
            order by p.retry_at limit 1)
    );
end $$;
comment on function pgcoord.agenda(text[]) is
    'For the coordinator, after a claim that returned nothing: seconds until the next deadline (null: none), attempts whose host''s lease has run out, and a claimable phase that somebody has locked, other than those given.';
