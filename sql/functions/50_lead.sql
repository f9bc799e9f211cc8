-- The lead, and the leases of hosts. Both change only under the lock of the control row, which claims take, too.

-- Refuse a coordinator whose lead is over.
create or replace function pgcoord_private.check_epoch(p_epoch bigint) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
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

-- Take over the pools of a coordinator's configuration: [{"name", "launcher", "slots", "settings"}]. The number of slots is
-- set only if the pool is new or its declared number has changed, so that set_slots survives restarts. A pool that is no
-- longer declared starts nothing: its slots are deleted when they are released, and it is deleted with its last attempt.
create or replace function pgcoord_private.declare_pools(p_pools jsonb) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v record;
begin
    insert into pgcoord.pool as p (name, launcher, settings)
    select e ->> 'name', e ->> 'launcher', coalesce(e -> 'settings', '{}') from jsonb_array_elements(p_pools) as e
    on conflict (name) do update set launcher = excluded.launcher, settings = excluded.settings, declared = true;
    update pgcoord.pool set declared = false, declared_slots = null
    where name <> 'local' and name not in (select e ->> 'name' from jsonb_array_elements(p_pools) as e);
    for v in
        select p.name, p.declared, (e ->> 'slots')::integer as slots
        from pgcoord.pool as p left join jsonb_array_elements(p_pools) as e on e ->> 'name' = p.name
        where case when p.declared then (e ->> 'slots')::integer is distinct from p.declared_slots
            else exists (select from pgcoord.slot as s where s.pool = p.name and not s.draining) end
        order by p.name
    loop
        if not v.declared then
            perform pgcoord.set_slots(0, v.name);
        elsif v.slots is not null then
            perform pgcoord.set_slots(v.slots, v.name);
        end if;
        update pgcoord.pool set declared_slots = v.slots where name = v.name;
    end loop;
    delete from pgcoord.pool as p
    where not p.declared and not exists (select from pgcoord.slot as s where s.pool = p.name)
        and not exists (select from pgcoord.attempt as a where a.exited_at is null and a.pool = p.name);
end $$;

-- Begin a lead on this connection, which holds its lock and the control row; returns the new epoch.
create or replace function pgcoord_private.declare_lead(
    p_host text, p_pid integer, p_version text, p_runs_folder text, p_workflows jsonb, p_after bigint, p_pools jsonb
) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_epoch bigint := 1 + greatest((select c.epoch from pgcoord.control as c), (select max(c.epoch) from pgcoord.coordinator as c), p_after);
begin
    insert into pgcoord.coordinator (epoch, host, pid, version, runs_folder, backend_pid, backend_start)
    select v_epoch, p_host, p_pid, p_version, p_runs_folder, s.pid, s.backend_start
    from pg_stat_get_activity(pg_backend_pid()) as s;
    update pgcoord.control
    set epoch = v_epoch,
        place = left(md5(concat_ws('/', (select system from pgcoord_private.lineage()), d.oid)), 4)
    from pg_database as d where d.datname = current_database();
    delete from pgcoord.workflow;
    perform pgcoord_private.declare_pools(p_pools);
    perform pgcoord_private.find_free_slots();
    insert into pgcoord.workflow (name, is_default, reports, max_attempts, retry_delay, retry_lost, timeout, queue_timeout, pool, max_cost_usd, later_delay, max_later)
    select w ->> 'name', (w ->> 'default')::boolean, (w ->> 'reports')::boolean, (w ->> 'max_attempts')::integer,
        make_interval(secs => (w ->> 'retry_delay_seconds')::float8), (w ->> 'retry_lost')::boolean,
        make_interval(secs => (w ->> 'timeout_seconds')::float8),
        make_interval(secs => (w ->> 'queue_timeout_seconds')::float8), coalesce(w ->> 'pool', 'local'),
        (w ->> 'max_cost_usd')::numeric,
        coalesce(make_interval(secs => (w ->> 'later_delay_seconds')::float8), '30 s'), (w ->> 'max_later')::integer
    from jsonb_array_elements(p_workflows) as w;
    return v_epoch;
end $$;

-- Take the lead on this connection, with a new epoch, and declare pools and workflows. The epoch is also higher than
-- p_after, the last one that the coordinator knows: a failover may have lost that one, and no epoch may occur twice. Waits
-- up to two seconds for the lock, whose holder may just be ending, and as long for the control row and for each other row:
-- a longer wait would keep the lead and the control row from everybody. If another coordinator leads, returns a row that
-- names it, without an error: a coordinator that stands by calls this every few seconds.
create or replace function pgcoord_private.lead(
    p_host text, p_pid integer, p_version text, p_runs_folder text, p_workflows jsonb, p_after bigint default 0,
    p_pools jsonb default '[]',
    out led boolean, out epoch bigint, out host text, out pid integer
)
language plpgsql
set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    v_timeout text := current_setting('lock_timeout');
begin
    led := false;
    perform set_config('lock_timeout', '2s', true);
    begin
        -- The leader calls it again to declare a changed configuration; it does not take the lock a second time.
        if not exists (
            select from pg_locks
            where locktype = 'advisory' and (classid, objid, objsubid) = (7405, 1, 2) and pid = pg_backend_pid() and granted
        ) then
            perform pg_advisory_lock(7405, 1);
        end if;
        led := true;
        perform 1 from pgcoord.control for no key update;
        epoch := pgcoord_private.declare_lead(p_host, p_pid, p_version, p_runs_folder, p_workflows, p_after, p_pools);
        host := p_host;
        pid := p_pid;
    exception when lock_not_available then
        if led then    -- of the session: a rollback would keep it
            perform pg_advisory_unlock(7405, 1);
            led := false;
        end if;
        select l.epoch, l.host, l.pid into epoch, host, pid from pgcoord.leader as l;
    end;
    perform set_config('lock_timeout', v_timeout, true);
end $$;

-- For the leading coordinator, on its LISTEN connection: give the lead back, and notify the coordinators that stand by. The
-- epoch stays valid until another one leads, so that starts in progress are still recorded.
create or replace function pgcoord_private.resign() returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    update pgcoord.coordinator set resigned_at = clock_timestamp() where epoch = (select epoch from pgcoord.control);
    perform pg_advisory_unlock(7405, 1);
    notify pgcoord_stand_by;
end $$;

-- For a coordinator that stands by and has processes: renew the lease of its host, so that a leader elsewhere does not
-- declare them lost for another minute.
-- Errors: 55P03 when another session locks the lease for more than a second.
create or replace function pgcoord_private.renew_lease(p_host text) returns void
language sql
set search_path = pg_catalog, pg_temp
set lock_timeout = '1s' as $$
    insert into pgcoord.host (name, lease_until) values (p_host, clock_timestamp() + pgcoord_private.lease_length())
    on conflict (name) do update set lease_until = excluded.lease_until;
$$;

-- The WAL timeline of this server: of two servers with the same system identifier, the one with the higher timeline was
-- promoted later. Nulls if the server does not show it.
create or replace function pgcoord_private.lineage(out system bigint, out timeline integer)
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    select system_identifier into system from pg_control_system();
    timeline := ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer;
exception when insufficient_privilege or feature_not_supported or undefined_function then
    system := null;
end $$;
