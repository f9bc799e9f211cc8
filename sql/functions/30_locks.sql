-- The lock order, and the functions that lock rows, find locked rows, and wait for them.
--
-- Lock order, for everybody: control, then a schedule, then features by id, then phases, then attempts, then slots, then issues, then errands.
-- A hand-written UPDATE holds its phase before any trigger runs; that is why the trigger does not wait for the feature
-- (hold_feature). A claim locks the control row and the phases that no other session has locked; it never waits for a
-- feature or a phase.

-- Whether each statement of this transaction sees what others have committed until then.
-- Errors: PC009 under a snapshot that would not see what others commit meanwhile.
create or replace function pgcoord_private.sees_others() returns boolean
language sql stable
return current_setting('transaction_isolation') in ('read committed', 'read uncommitted');

-- Whether this transaction has created the feature, under a snapshot of its own: then no other transaction can have changed
-- it. The feature's first event shows that: it is visible although it is younger than the snapshot.
create or replace function pgcoord_private.made_here(p_feature_id integer) returns boolean
language sql stable
begin atomic
    select exists (
        select from pgcoord.event as e
        where e.feature_id = p_feature_id and e.phase_number is null and e.kind = 'feature_inserted' and e.at >= now()
            and (e.xmin::text::numeric - pg_snapshot_xmax(pg_current_snapshot())::text::numeric % 4294967296 + 4294967296)
                % 4294967296 < 2147483648
    );
end;

-- Refuse (PC009) a transaction whose snapshot misses concurrent commits on these features, or on any feature.
create or replace function pgcoord_private.check_isolation(p_feature_ids integer[] default null) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    if pgcoord_private.sees_others()
        or (select bool_and(pgcoord_private.made_here(id)) from unnest(p_feature_ids) as feature (id))
    then
        return;
    end if;
    raise exception using
        errcode = 'PC009',
        message = format('phases change under READ COMMITTED only, this transaction is %s',
            upper(current_setting('transaction_isolation'))),
        hint = 'An older snapshot would miss a prerequisite that ends meanwhile. Use the default isolation level. Where the client '
            'cannot (postgres_fdw), insert the feature in the same transaction, send the statement by dblink, or give the '
            'feature its plan (planned_features.plan) and have it executed elsewhere.';
end $$;

-- The transactions that may have locked a row: its xmax, or the members of the multixact that xmax is.
create or replace function pgcoord_private.lockers(p_xmax xid) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp as $$
begin
    return array(select m.xid::text from pg_get_multixact_members(p_xmax) as m where m.mode not in ('keysh', 'sh')) || p_xmax::text;
exception when others then    -- xmax is no multixact
    return array[p_xmax::text];
end $$;

-- Lock features by id. Waits for ten seconds at most, or for lock_timeout where that is shorter.
-- Errors: 55P03, naming the session that holds one.
create or replace function pgcoord_private.lock_features(p_feature_ids integer[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_timeout text := current_setting('lock_timeout');
    v_holder record;
begin
    if cardinality(p_feature_ids) = 1 then    -- almost always free: no subtransaction needed
        perform 1 from public.planned_features where id = p_feature_ids[1] for no key update skip locked;
        if found then
            return;
        end if;
    end if;
    begin
        if v_timeout::interval not between '1 ms' and '10 s' then
            perform set_config('lock_timeout', '10s', true);
        end if;
        perform 1 from public.planned_features where id = any (p_feature_ids) order by id for no key update;
        perform set_config('lock_timeout', v_timeout, true);
    exception when lock_not_available then
        select f.id, case when l.granted then coalesce(l.pid, 0) end as pid,    -- 0: a prepared transaction, as for holder_of
            coalesce(s.usename, x.owner) as usename, s.application_name, coalesce(s.xact_start, x.prepared) as since, s.state,
            coalesce(s.query, format('prepare transaction %L', x.gid)) as query
        into v_holder
        from public.planned_features as f
            left join pg_locks as l on l.locktype = 'transactionid' and l.granted and l.pid is distinct from pg_backend_pid()
                and l.transactionid::text = any (pgcoord_private.lockers(f.xmax))
                and exists (
                    select from pg_locks as t
                    where t.virtualtransaction = l.virtualtransaction and t.relation = 'public.planned_features'::regclass and t.granted
                )
            left join pg_stat_activity as s on s.pid = l.pid
            left join pg_prepared_xacts as x on l.pid is null and x.transaction = l.transactionid
        where f.id = any (p_feature_ids)
        order by l.granted is null, f.id
        limit 1;
        raise exception using
            errcode = '55P03',
            message = format('feature %s is being changed by %s', v_holder.id, case when v_holder.pid is null then 'somebody else'
                else pgcoord_private.holder_words(v_holder.pid, v_holder.usename, v_holder.application_name, v_holder.since,
                    v_holder.state, v_holder.query) end),
            hint = 'A transaction that inserted or changed phases of it is still open. Try again once it has ended'
                || coalesce(', or end it: ' || pgcoord_private.holder_ending(v_holder.pid, v_holder.query), '') || '.';
    end;
end $$;

-- Lock a feature for an action; waits as lock_features does.
-- Errors: PC001 when there is none; 55P03.
create or replace function pgcoord_private.lock_feature(p_feature_id bigint) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    perform pgcoord_private.check_feature(p_feature_id);
    perform pgcoord_private.lock_features(array[p_feature_id::integer]);
    perform pgcoord_private.check_feature(p_feature_id);    -- it may have been deleted meanwhile
end $$;

-- Lock a feature from within a row trigger, which holds a phase already. The holder of the feature may wait for that phase,
-- so this tries for a tenth of a second, then fails. Returns the id, so that it can be called in an assignment, which costs
-- half of a PERFORM.
-- Errors: 55P03 when another session holds the feature; PC009 under a snapshot that would miss the changes of that session.
create or replace function pgcoord_private.hold_feature(p_feature_id integer) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off as $$
begin
    if not pgcoord_private.sees_others() then
        perform pgcoord_private.check_isolation(array[p_feature_id]);
    end if;
    for i in 1 .. 20 loop
        perform 1 from public.planned_features where id = p_feature_id for no key update skip locked;
        if found then
            return p_feature_id;
        elsif not exists (select from public.planned_features where id = p_feature_id) then
            return p_feature_id;    -- being deleted by this transaction
        end if;
        perform pg_sleep(0.005);
    end loop;
    raise exception using
        errcode = '55P03',
        message = format('feature %s is being changed by somebody else', p_feature_id),
        hint = 'Try again, or use the functions of the schema pgcoord (complete_phase, skip_phase ...): they wait in the right order.';
end $$;

-- Lock a phase in the right order, its feature first, and return it. Waits.
-- Errors: PC001 when there is none; 55P03 when its feature is locked for ten seconds.
create or replace function pgcoord_private.lock_phase(p_queue_id text) returns public.phase_queue
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_phase public.phase_queue;
begin
    perform 1 from public.planned_features
    where id = (select feature_id from public.phase_queue where queue_id = p_queue_id)
    for no key update skip locked;
    if not found then
        perform pgcoord_private.lock_features(array(select feature_id from public.phase_queue where queue_id = p_queue_id));
    end if;
    select * into v_phase from public.phase_queue where queue_id = p_queue_id for no key update;
    if not found then
        raise exception using
            errcode = 'PC001',
            message = format('there is no phase %s', coalesce(p_queue_id, 'null')),
            hint = 'select queue_id from phase_queue shows those that exist.';
    end if;
    return v_phase;
end $$;

-- Lock the feature, the phase and the attempt, in this order, and return the attempt; no row if it is gone.
create or replace function pgcoord_private.lock_attempt(p_attempt_id bigint) returns pgcoord.attempt
language plpgsql
set search_path = pg_catalog, pg_temp as $$
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

-- The row that prevented a statement about an attempt: the first one in lock order that another session has locked; null if
-- it is free again. Never waits. The end of a phase changes its dependents and, if it failed, blocks their dependents (far);
-- an end also deletes a draining slot. Without an attempt (null), only the control row is tested.
create or replace function pgcoord_private.find_lock(p_attempt_id bigint, p_far boolean) returns text
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_phase record;
    v_found text;
begin
    if p_attempt_id is null then
        perform 1 from pgcoord.control for no key update skip locked;
        return case when not found then 'pgcoord.control' end;
    end if;
    select p.feature_id, p.phase_number into v_phase
    from pgcoord.attempt as a join public.phase_queue as p using (queue_id) where a.id = p_attempt_id;
    if not found then
        return null;
    end if;
    perform 1 from public.planned_features where id = v_phase.feature_id for no key update skip locked;
    if not found then
        return 'feature ' || v_phase.feature_id;
    end if;
    v_found := pgcoord_private.find_locked_phase(v_phase.feature_id, v_phase.phase_number, p_far);
    if v_found is not null then
        return 'phase ' || v_found;
    end if;
    perform 1 from pgcoord.attempt where id = p_attempt_id for no key update skip locked;
    if not found then
        return 'attempt ' || p_attempt_id;
    end if;
    return 'slot ' || pgcoord_private.find_locked_slot();
end $$;

-- The phase, or a dependent of it, that another session has locked; null if there is none. Far: also dependents of
-- dependents.
create or replace function pgcoord_private.find_locked_phase(p_feature_id integer, p_phase_number integer, p_far boolean)
returns text
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_needed integer[];
    v_free integer[];
begin
    with recursive needed (phase_number, moves) as (
        select p_phase_number, true
        union
        select d.dependent, d.conditional    -- which may be skipped together with it, if it is not needed
        from needed as n
            join pgcoord.dependency as d on d.feature_id = p_feature_id and d.prerequisite = n.phase_number
        where p_far or n.moves
    )
    select array_agg(phase_number) into v_needed from needed;
    with free as (
        select phase_number from public.phase_queue
        where feature_id = p_feature_id and phase_number = any (v_needed)
        for no key update skip locked
    )
    select array_agg(phase_number) into v_free from free;
    return (
        select queue_id from public.phase_queue
        where feature_id = p_feature_id and phase_number = any (v_needed) and phase_number <> all (coalesce(v_free, '{}'))
        order by phase_number <> p_phase_number, phase_number
        limit 1
    );
end $$;

-- A draining slot that another session has locked; null if there is none.
create or replace function pgcoord_private.find_locked_slot() returns integer
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_free smallint[];
begin
    with free as (select number from pgcoord.slot where draining for update skip locked)
    select array_agg(number) into v_free from free;
    return (select min(number) from pgcoord.slot where draining and number <> all (coalesce(v_free, '{}')));
end $$;

-- Wait until no other session has locked a row, which is named as by find_lock and next_work. The row is not changed, and
-- not held afterwards, as the caller has no transaction. Sets application_name, by which lock_waits finds the session.
create or replace function pgcoord_private.await_lock(p_lock text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_kind text := split_part(p_lock, ' ', 1);
    v_key text := substr(p_lock, length(v_kind) + 2);
begin
    perform set_config('application_name', 'pgcoord waits for ' || p_lock, false);
    case v_kind
        when 'pgcoord.control' then perform 1 from pgcoord.control for no key update;
        when 'feature' then perform 1 from public.planned_features where id = v_key::integer for no key update;
        when 'phase' then perform 1 from public.phase_queue where queue_id = v_key for no key update;
        when 'attempt' then perform 1 from pgcoord.attempt where id = v_key::bigint for no key update;
        when 'slot' then
            perform 1 from pgcoord.slot where number = v_key::smallint for update;
            -- What a claim takes with it; key share, as it conflicts with what makes a claim skip it.
            perform 1 from pgcoord.free_slot where number = v_key::smallint for key share;
    end case;
end $$;

-- For the coordinator: note that an event of an attempt cannot be recorded until this lock is free.
create or replace function pgcoord_private.note_unrecorded(p_attempt_id bigint, p_words text, p_lock text) returns void
language sql
begin atomic
    delete from pgcoord.unrecorded as u
    where not exists (select from pgcoord.attempt as a where a.id = u.attempt_id and a.exited_at is null);
    insert into pgcoord.unrecorded (attempt_id, words, lock) values (p_attempt_id, p_words, p_lock)
    on conflict (attempt_id) do update set words = excluded.words, lock = excluded.lock;
end;

-- For the coordinator: remove that note, since the event is recorded.
create or replace function pgcoord_private.forget_unrecorded(p_attempt_id bigint) returns void
language sql
begin atomic
    delete from pgcoord.unrecorded where attempt_id = p_attempt_id;
end;
