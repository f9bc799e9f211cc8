-- Claims of the leading coordinator, and the time until its next look.

-- Clear retry times that have passed. Phases that another session has locked are left to the next claim.
create or replace function pgcoord_private.take_due_retries(p_only text default null) returns text[]
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_aside text[] := pgcoord_private.set_aside();
    v_due text[];
begin
    with due as (
        update public.phase_queue set retry_at = null
        where queue_id in (
            select queue_id from public.phase_queue
            where retry_at <= (select clock_timestamp()) and (p_only is null or queue_id = p_only)
                and queue_id <> all (v_aside)
            for no key update skip locked
        )
        returning queue_id
    )
    select array_agg(queue_id) into v_due from due;
    return v_due;
end $$;

-- Claim eligible phases, one for each free slot, in each pool in total order over all features. Phases that another session
-- has locked are skipped, never waited for. Each workflow has its own range in the index, and a pool takes the first phases
-- of its workflows' ranges, so a thousand phases that wait for another pool are not read. If no slot is free (and no retry
-- time has passed) it locks nothing: a freed slot wakes the coordinator again, and a transaction without writes commits
-- without a flush. The control row is locked in a separate statement, so that the following statements see all commits of
-- earlier claims. The lock of a phase is NO KEY, so that an edge being stored to it (a foreign key's share lock) does not
-- hide it.
-- Long, since it is one pass: each step uses the rows and locks of the step before.
-- p_only: claim this phase alone.
-- Errors: PC007 when the lead is over; PC009 under a snapshot that would not see other claims; 55P03 when another session
-- holds the control row for more than a second.
create or replace function pgcoord_private.claim_phases(p_epoch bigint, p_only text default null) returns setof pgcoord_private.assignment
language plpgsql
set search_path = pg_catalog, pg_temp set lock_timeout = '1s'
set enable_bitmapscan = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    v_leader record;
    v_control record;
    v_pool record;    -- with the number of its free slots
    v_slot smallint;
    v_phase record;
    v_due text[];    -- phases that this claim has changed: their retry time has passed, or their lock is free
    v_id bigint;
    v_attempts bigint[];
    v_aside text[] := pgcoord_private.set_aside();
    v_no_issues boolean := false;    -- GitHub creates no issues at the moment: only phases that have one are claimed
    v_locks text[];    -- locks that are held, of phases in the queue
begin
    if not pgcoord_private.sees_others() then
        perform pgcoord_private.check_isolation();
    end if;
    select c.host, c.runs_folder, exists (select from public.phase_queue where retry_at <= (select clock_timestamp())) as finds_retry,
        exists (select from pgcoord.free_slot) as finds_slot
    into v_leader
    from pgcoord.control as k join pgcoord.coordinator as c using (epoch)
    where k.epoch = p_epoch;
    if not found then
        perform pgcoord_private.check_epoch(p_epoch);
    elsif not (v_leader.finds_slot or v_leader.finds_retry) then
        return;
    end if;
    select epoch, paused_at, installation, place, adw_offset, issues_held_until into v_control from pgcoord.control for no key update;
    if v_control.epoch <> p_epoch then
        perform pgcoord_private.check_epoch(p_epoch);
    end if;
    if v_leader.finds_retry then
        v_due := pgcoord_private.take_due_retries(p_only);
    end if;
    if v_control.paused_at is not null then
        return;
    end if;
    if v_control.issues_held_until is not null then
        v_no_issues := (select pgcoord_private.issues_held_until(c) is not null from pgcoord.control as c);
    end if;
    if exists (select from pgcoord.slot where draining) then    -- perhaps released while set_slots was lowering the limit
        delete from pgcoord.slot as s
        where s.number in (
            select f.number from pgcoord_private.free_slot as f where f.draining for update of f skip locked
        );
    end if;
    if exists (select from public.phase_queue where lock is not null and status = 'queued') then
        v_due := v_due || array(select pgcoord_private.unpark(v_aside, v_no_issues));
    end if;
    loop    -- once more if phases wait for locks, for the phases behind them
        v_locks := null;
        for v_pool in
            select o.name as pool, o.settings ->> 'folder' as runs_folder, free.slots,
                -- Jobs of engines are submitted next, which takes no statement more; every leader counts as on their host.
                case when o.launcher = 'local' then v_leader.host end as host,
                case when o.launcher <> 'local' then o.launcher end as engine,
                case when o.launcher <> 'local' then clock_timestamp() end as submitted_at
            from pgcoord.pool as o
                cross join lateral (
                    select count(*) as slots from (select from pgcoord.free_slot as f where f.pool = o.name limit 1000) as few
                ) as free
            where free.slots > 0
            order by o.name
        loop
            v_slot := 0;
            for v_phase in
                select p.queue_id, p.feature_id, p.attempt, p.lock, w.name, w.reports, w.retry_delay, w.retry_lost, w.queue_timeout,
                    coalesce((p.phase_data ->> 'max_attempts')::numeric::integer, w.max_attempts) as max_attempts,
                    coalesce(make_interval(secs => (p.phase_data ->> 'timeout_seconds')::float8), w.timeout) as timeout
                from pgcoord_private.workflow_line as w
                    cross join lateral (    -- the first of each range; of these, the first overall are claimed
                        select first.queue_id, first.feature_id, first.phase_number, first.attempt, first.phase_data,
                            first.lock, first.priority, first.queue_position
                        from pgcoord_private.claimable as first
                        where coalesce(first.workflow_type, '') = w.line and (first.issue_number is not null or not v_no_issues)
                            and (p_only is null or first.queue_id = p_only) and first.queue_id <> all (v_aside)
                        order by first.priority, first.queue_position, first.feature_id, first.phase_number
                        limit v_pool.slots
                        for no key update of first skip locked
                    ) as p
                where w.pool = v_pool.pool
                order by p.priority, p.queue_position, p.feature_id, p.phase_number
                limit v_pool.slots
            loop
                if v_phase.lock is not null and pgcoord_private.lock_holder(v_phase.lock) is not null then
                    if v_phase.queue_id = any (v_due) then    -- the next claim parks it: see below
                        v_aside := v_aside || v_phase.queue_id;
                    end if;
                    v_locks := v_locks || v_phase.lock;
                    continue;
                end if;
                if v_phase.queue_id = any (v_due) then
                    -- Postgres checks the foreign key of a row again if the same transaction has changed it. A locked
                    -- feature must not delay the others, so the next claim takes this phase. (Not `for key share`: see below.)
                    perform 1 from public.planned_features where id = v_phase.feature_id for share skip locked;
                    continue when not found;
                end if;
                -- The next free slot that nobody has locked. `for key share` would wait despite `skip locked` where a transaction
                -- has updated a row, and then deleted or locked it: of such a row it locks every version.
                select v.number into v_slot
                from pgcoord_private.vacant_slot as v
                where v.pool = v_pool.pool and v.number > v_slot
                order by v.number
                limit 1
                for share of v skip locked;
                exit when not found;
                delete from pgcoord.free_slot where pool = v_pool.pool and number = v_slot;
                loop
                    v_id := nextval('pgcoord.attempt_id');
                    insert into pgcoord.attempt (
                        id, queue_id, number, adw_id, secret, slot, epoch, host, folder,
                        workflow, reports, max_attempts, retry_delay, retry_lost, timeout, pool, lock,
                        submitted_at, submitted_to, deadline
                    )
                    values (
                        v_id, v_phase.queue_id, v_phase.attempt + 1, pgcoord_private.adw_id(v_id, v_control.adw_offset), pgcoord_private.new_secret(),
                        v_slot, p_epoch, v_pool.host,
                        -- The random part keeps a restored database, which reuses numbers, out of earlier folders. The end
                        -- (the database's place) is part of the names of jobs, so that a copy of the database ends no job of
                        -- this one.
                        format('%s/%s/%s-%s%s', coalesce(v_pool.runs_folder, v_leader.runs_folder), v_control.installation, v_id, left(gen_random_uuid()::text, 8), v_control.place),
                        v_phase.name, v_phase.reports, v_phase.max_attempts, v_phase.retry_delay, v_phase.retry_lost, v_phase.timeout,
                        v_pool.pool, v_phase.lock,
                        v_pool.submitted_at, v_pool.engine, v_pool.submitted_at + v_phase.queue_timeout
                    )
                    on conflict (adw_id) do nothing;
                    exit when found;    -- else a client has used this very adw_id
                end loop;
                v_attempts := v_attempts || v_id;
                v_aside := v_aside || v_phase.queue_id;
            end loop;
        end loop;
        exit when v_locks is null;
        perform pgcoord_private.park(v_locks, v_aside);
    end loop;
    if v_attempts is not null then
        return query    -- what pgcoord_private.assignment shows of them
        update public.phase_queue as p
        set status = 'ready', slot = a.slot, attempt = a.number, adw_id = a.adw_id, ready_timestamp = clock_timestamp(),
            started_timestamp = null, finished_timestamp = null
        from (    -- by their ids, never all of them in another order
            select id, queue_id, slot, number, adw_id, secret, host, folder, workflow, pool from pgcoord.attempt
            where id = any (v_attempts)
            offset 0
        ) as a
        where p.queue_id = a.queue_id
        returning a.id, p.queue_id, p.feature_id, p.phase_number, a.number, a.adw_id, a.secret, a.host, a.folder,
            a.workflow, p.issue_number, p.phase_data ->> 'title', p.phase_data ->> 'prompt_content',
            null::integer, null::text, false, false, null::text, null::float8, a.slot, a.pool,
            exists (select from pgcoord.result as r where r.feature_id = p.feature_id offset 0), p.phase_data -> 'environment';
    end if;
end $$;

-- Claim one phase after the other, after claim_phases has failed. A phase whose claim fails is set aside, for five seconds
-- at first and a minute at most, so that it does not delay the others. Errors: as claim_phases.
create or replace function pgcoord_private.claim_singly(p_epoch bigint) returns setof pgcoord_private.assignment
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_aside text[] := pgcoord_private.set_aside();
    v_name text;
begin
    delete from pgcoord.unclaimable as u
    where not exists (select from public.phase_queue as p where p.queue_id = u.queue_id and p.status = 'queued');
    for v_name in
        select c.queue_id from pgcoord_private.claimable as c where c.queue_id <> all (v_aside)
        union all
        select r.queue_id from pgcoord_private.due_retry as r where r.queue_id <> all (v_aside)
        limit 1000
    loop
        exit when not exists (select from pgcoord_private.free_slot where not draining);
        begin
            return query select * from pgcoord_private.claim_phases(p_epoch, v_name);
        exception
            when sqlstate 'PC007' or sqlstate 'PC009' or lock_not_available or query_canceled or operator_intervention
                or insufficient_resources
            then
                raise;
            when others then
                insert into pgcoord.unclaimable as u (queue_id, error, until)
                values (v_name, pgcoord_private.without_middle(sqlerrm), clock_timestamp() + interval '5 seconds')
                on conflict (queue_id) do update set error = excluded.error,
                    until = clock_timestamp() + least(greatest(clock_timestamp() - u.since, interval '5 seconds'), interval '1 minute');
        end;
    end loop;
end $$;

-- The next work without a notification. due_in: seconds until the nearest retry time, deadline, end of a lease, or GitHub
-- request. abandoned: attempts whose host's lease has expired. locked: locks, except those in p_awaited, that prevent
-- claims, or ends that are due; the coordinator waits for them, since a rollback notifies nobody. Of rows with the same
-- xmax, which the same transaction has locked, one is enough. A named lock may be free: then waiting for it ends at once.
-- (Long: one list of all that the coordinator waits for. `(select clock_timestamp())`: a bare call is asked again for each
-- row, and no index is.)
create or replace function pgcoord_private.next_work(
    p_awaited text[] default '{}', out due_in float8, out abandoned bigint[], out locked text[]
)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_bitmapscan = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    v_pools text[];    -- with a free slot
    v_found text[];
    v_aside text[] := pgcoord_private.set_aside();
    v_no_issues_until timestamptz := (select pgcoord_private.issues_held_until(c) from pgcoord.control as c);
begin
    -- (An infinite retry time, which an older release may have stored, never comes.)
    due_in := extract(epoch from nullif(least(
        (select min(retry_at) from public.phase_queue where retry_at > (select clock_timestamp())),
        (select min(deadline) from pgcoord.attempt
            where deadline > (select clock_timestamp()) and ended_at is null and ending is null),
        (select min(left_alone_until) from pgcoord.elsewhere where left_alone_until > clock_timestamp()),
        (select min(until) from pgcoord.unclaimable where until > clock_timestamp()),
        v_no_issues_until
    ), 'infinity') - clock_timestamp());
    abandoned := array(select attempt_id from pgcoord.elsewhere where left_alone_until <= clock_timestamp());
    locked := array(
        select 'attempt ' || a.id
        from pgcoord.attempt as a
        where a.deadline <= (select clock_timestamp()) and a.ended_at is null and a.ending is null
            and 'attempt ' || a.id <> all (p_awaited)
    );
    if exists (select from pgcoord.control where paused_at is not null) then
        return;
    end if;
    v_pools := array(
        select o.name from pgcoord.pool as o
        where exists (select from pgcoord_private.vacant_slot as v where v.pool = o.name)
    );
    if v_pools = '{}' then
        return;
    end if;
    -- Two look-ups, each by its own index: one over both conditions would read the whole table. Of five hundred that are
    -- first in each line: what lies behind so many locked phases is tried again half a minute later at most.
    v_found := array(
        select distinct on (first.locker) 'phase ' || first.queue_id
        from (
            select p.* from pgcoord_private.workflow_line as w
                cross join lateral (
                    select c.* from pgcoord_private.claimable as c
                    where coalesce(c.workflow_type, '') = w.line and (c.issue_number is not null or v_no_issues_until is null)
                        and c.queue_id <> all (v_aside)
                    order by c.priority, c.queue_position, c.feature_id, c.phase_number
                    limit 500
                ) as p
            where w.pool = any (v_pools)
        ) as first
        order by first.locker, first.priority, first.queue_position, first.feature_id, first.phase_number
        limit 100
    ) || array(
        select distinct on (first.locker) 'phase ' || first.queue_id
        from (
            select p.* from pgcoord_private.due_retry as p
                join pgcoord_private.workflow_line as w on w.line = coalesce(p.workflow_type, '')
            where w.pool = any (v_pools)
                and (p.issue_number is not null or v_no_issues_until is null)
                and p.queue_id <> all (v_aside)
            order by p.retry_at
            limit 500
        ) as first
        order by first.locker, first.retry_at
        limit 100
    );
    if v_found = '{}' then
        return;
    end if;
    perform 1 from pgcoord_private.vacant_slot as v where v.pool = any (v_pools) limit 1 for share of v skip locked;    -- as a claim does
    if not found then
        v_found := array(select distinct 'slot ' || v.number from pgcoord_private.vacant_slot as v where v.pool = any (v_pools));
    end if;
    locked := locked || array(select name from unnest(v_found) as name where name <> all (p_awaited));
end $$;
