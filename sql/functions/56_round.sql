-- One round of the leading coordinator: it records ends, claims the next phases, and reads its next work and how long to
-- wait.

-- Record one end of an attempt: an object with its `kind` and the arguments of that kind's function. Returns the row of
-- take_report for a report, that of exit_job for the exit of a job, otherwise the transition that took the phase out of
-- ready or running, even if an earlier report made it (null: no transition yet).
create or replace function pgcoord_private.record_end(p_end jsonb) returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_attempt_id bigint := (p_end ->> 'attempt_id')::bigint;
    v_exited_at timestamptz := statement_timestamp() - make_interval(secs => (p_end ->> 'exited_seconds_ago')::float8);
begin
    case p_end ->> 'kind'
        when 'exited' then
            if v_exited_at < clock_timestamp() - interval '1 s' then    -- before this coordinator looked, or while a lock delayed the record
                perform pgcoord_private.take_back_timeout(v_attempt_id, clock_timestamp() - v_exited_at);
            end if;
            perform pgcoord_private.end_attempt(
                v_attempt_id, (p_end ->> 'exit_code')::integer, p_end ->> 'log_tail', p_end ->> 'left_behind',
                p_end ->> 'result', p_end ->> 'result_fault');
            if v_exited_at < clock_timestamp() - interval '1 s' then
                perform pgcoord_private.date_end_back(v_attempt_id, clock_timestamp() - v_exited_at);
            end if;
        when 'given_up' then
            perform pgcoord.give_up_attempt(v_attempt_id, p_end ->> 'outcome', p_end ->> 'error');
        when 'returned' then
            perform pgcoord_private.return_attempt(
                v_attempt_id, make_interval(secs => (p_end ->> 'wait_seconds')::float8), p_end ->> 'error');
        when 'job_exited' then
            return (
                select to_jsonb(e) from pgcoord_private.exit_job(
                    v_attempt_id, p_end ->> 'copy', (p_end ->> 'exit_code')::integer, p_end ->> 'log_tail',
                    p_end ->> 'left_behind', p_end ->> 'result', p_end ->> 'result_fault') as e
            );
        when 'reported' then
            if p_end ->> 'result' is not null then    -- the dependents get it with the report
                perform pgcoord_private.take_result_file((pgcoord_private.lock_attempt(v_attempt_id)).id, p_end ->> 'result');
            end if;
            return (
                select to_jsonb(t) from pgcoord_private.take_report(
                    p_end -> 'report', p_end ->> 'message_id', p_end ->> 'actor', p_end ->> 'adw_id') as t
            );
    end case;
    return pgcoord_private.move_out(v_attempt_id);
end $$;

-- The transition that took the phase of an attempt out of ready or running; null if there was none yet.
create or replace function pgcoord_private.move_out(p_attempt_id bigint) returns jsonb
language sql stable
begin atomic
    select jsonb_build_object('from_status', e.from_status, 'to_status', e.to_status, 'reason', e.reason)
    from pgcoord.attempt as a
        join public.phase_queue as p on p.queue_id = a.queue_id
        join pgcoord.event as e on e.feature_id = p.feature_id and e.phase_number = p.phase_number
    where a.id = p_attempt_id and e.attempt = a.number and e.kind = 'phase_moved'
        and e.from_status in ('ready', 'running') and e.to_status not in ('ready', 'running')
    order by e.id desc
    limit 1;
end;

-- Record ends and claim the next phases in one transaction, so that one commit leads from an end to the next start. Returns
-- a row for each end (its place in p_ends, whether it was recorded, what record_end returned), one for the claim (place 0;
-- recorded: whether it was made), and one for each phase that was claimed (place null).
-- An end that would wait for a lock is left out, and so is a claim that fails or would wait: each is undone separately, and
-- the coordinator executes it again by itself. The control row comes first in the lock order; the function never waits for
-- it.
create or replace function pgcoord_private.record_and_claim(
    p_epoch bigint, p_ends jsonb,
    out place integer, out recorded boolean, out answer jsonb, out claimed pgcoord_private.assignment
) returns setof record
language plpgsql
set search_path = pg_catalog, pg_temp set lock_timeout = '50ms' set enable_seqscan = off as $$
#variable_conflict use_column
declare
    v_end jsonb;
    v_number integer := 0;
    v_may_claim boolean;
    v_claimed pgcoord_private.assignment[] := '{}';
begin
    perform 1 from pgcoord.control for no key update skip locked;
    v_may_claim := found;
    for v_end in select value from jsonb_array_elements(p_ends) loop
        v_number := v_number + 1;
        place := v_number;
        begin
            answer := pgcoord_private.record_end(v_end);
            recorded := true;
        exception when others then    -- the coordinator tries it again alone, and gets the error
            answer := null;
            recorded := false;
        end;
        return next;
    end loop;
    answer := null;
    place := 0;
    recorded := false;
    if v_may_claim then
        begin
            v_claimed := array(select c from pgcoord_private.claim_phases(p_epoch) as c);
            recorded := true;
        exception when others then    -- likewise
            v_claimed := '{}';
        end;
    end if;
    return next;
    place := null;
    foreach claimed in array v_claimed loop
        return next;
    end loop;
end $$;

-- The last query of a round: the changes, and the time until the next look. First requests the end of attempts past their
-- deadline. p_attempts: attempts that notifications have named. `changed`: those of them on p_host or of an engine that may
-- be alive, as an array of {attempt_id, folder, started, ended, ending, ended_seconds_ago}. The other columns are those of
-- next_work.
create or replace function pgcoord_private.look_round(
    p_host text, p_attempts bigint[], p_awaited text[],
    out changed jsonb, out due_in float8, out abandoned bigint[], out locked text[]
)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_bitmapscan = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
begin
    if exists (
        select from pgcoord.attempt where deadline <= (select clock_timestamp()) and ended_at is null and ending is null
    ) then
        perform pgcoord_private.expire_attempts();
    end if;
    changed := '[]';
    if p_attempts <> '{}' then
        select coalesce(jsonb_agg(jsonb_build_object(
            'attempt_id', attempt_id, 'folder', folder, 'started', started, 'ended', ended, 'ending', ending,
            'ended_seconds_ago', ended_seconds_ago
        ) order by attempt_id), '[]') into changed
        from (select distinct unnest(p_attempts) as id) as named
            cross join lateral (    -- a look-up for each: never all attempts
                select * from pgcoord_private.assignment where attempt_id = named.id and (host = p_host or host is null)
                offset 0
            ) as a;
    end if;
    select n.due_in, n.abandoned, n.locked into due_in, abandoned, locked from pgcoord_private.next_work(p_awaited) as n;
end $$;
