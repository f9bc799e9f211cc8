-- Control: what holds for the whole installation. How many slots there are, whether everything is paused, who leads.
-- All of it is changed under the lock of the control row, which claims take too.

-- Make the number of slots p_slots. Raising takes draining ones back first; lowering never ends anything: free
-- surplus slots go at once, held ones drain and go when they are released, or with the next claim.
create or replace function pgcoord.set_slots(p_slots integer) returns integer
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_before integer;
begin
    if p_slots is null or p_slots not between 0 and 1000 then
        raise exception using
            errcode = 'PC005',
            message = format('%s is no number of slots', coalesce(p_slots::text, 'null')),
            hint = 'Between 0 (start nothing new) and 1000.';
    end if;
    perform pgcoord.check_isolation();
    perform 1 from pgcoord.control for no key update;
    select count(*) into v_before from pgcoord.slot where not draining;

    update pgcoord.slot set draining = false
    where number in (select number from pgcoord.slot where draining order by number limit greatest(p_slots - v_before, 0));
    insert into pgcoord.slot (number)
    select number from generate_series(1, 1000) as number
    where number not in (select number from pgcoord.slot)
    order by number
    limit greatest(p_slots - (select count(*) from pgcoord.slot where not draining), 0);

    update pgcoord.slot set draining = true
    where number in (
        select s.number from pgcoord.slot as s
        where not s.draining
        order by exists (select from public.phase_queue as p where p.slot = s.number), s.number desc
        limit greatest(v_before - p_slots, 0)
    );
    delete from pgcoord.slot as s
    where s.draining and not exists (select from public.phase_queue as p where p.slot = s.number);

    if v_before <> p_slots then
        perform pgcoord.log_event('slots_changed', format('%s → %s', v_before, p_slots));
    end if;
    notify pgcoord_wake;
    return p_slots;
end $$;
comment on function pgcoord.set_slots(integer) is
    'Let n phases run at once. Lowering ends nothing: surplus phases run to their end and are not replaced.';

-- Pause everything, or one feature: nothing new is claimed, what runs goes on.
create or replace function pgcoord.pause(p_feature_id integer default null, p_reason text default null) returns void
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
begin
    if p_feature_id is not null then
        perform pgcoord.check_feature(p_feature_id);
        update public.planned_features set paused_at = now(), paused_reason = p_reason
        where id = p_feature_id and paused_at is null;
        return;
    end if;
    update pgcoord.control set paused_at = now(), paused_reason = p_reason where paused_at is null;
    if found then
        perform pgcoord.log_event('paused', p_reason);
    end if;
end $$;
comment on function pgcoord.pause(integer, text) is
    'Pause one feature, or without an id everything: nothing new is claimed, what runs goes on.';

create or replace function pgcoord.resume(p_feature_id integer default null) returns void
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
begin
    if p_feature_id is not null then
        perform pgcoord.check_feature(p_feature_id);
        update public.planned_features set paused_at = null, paused_reason = null
        where id = p_feature_id and paused_at is not null;
        return;
    end if;
    update pgcoord.control set paused_at = null, paused_reason = null where paused_at is not null;
    if found then
        perform pgcoord.log_event('resumed', null);
        notify pgcoord_wake;
    end if;
end $$;
comment on function pgcoord.resume(integer) is
    'Resume one feature, or without an id what was paused as a whole; features that were paused by themselves stay so.';

-- Who leads holds the advisory lock (7405, 1) of this database on its LISTEN connection (7405: any number that
-- nobody else uses). The lock goes with the connection, so a dead coordinator never seems to lead.
create or replace view pgcoord.leader as
select c.epoch, c.host, c.pid, c.version, c.lead_at
from pgcoord.coordinator as c
    join pgcoord.control as k on k.epoch = c.epoch
where exists (
    select from pg_locks as l
    where l.locktype = 'advisory' and l.classid = 7405 and l.objid = 1 and l.granted
        and l.database = (select oid from pg_database where datname = current_database())
);
comment on view pgcoord.leader is 'The coordinator that leads; no row when none does.';

-- Take the lead on this connection: a new epoch, and the workflows that can be run from now on. The epoch is higher
-- than p_after, too, the last one that the coordinator heard of: a failover may have lost it, and none may come twice.
-- Waits up to two seconds for the lock, as its holder may be just going away, and as long for the control row. Where
-- another one leads that is no error but a row that names it: who stands by asks again every few seconds.
create or replace function pgcoord.lead(
    p_host text, p_pid integer, p_version text, p_runs_folder text, p_workflows jsonb, p_after bigint default 0,
    out led boolean, out epoch bigint, out host text, out pid integer
)
language plpgsql as $$
#variable_conflict use_column
declare
    v_timeout text := current_setting('lock_timeout');
begin
    led := false;
    perform set_config('lock_timeout', '2s', true);
    begin
        perform pg_advisory_lock(7405, 1);
        led := true;
        perform 1 from pgcoord.control for no key update;
    exception when lock_not_available then
        if led then    -- of the session: a rollback would keep it
            perform pg_advisory_unlock(7405, 1);
            led := false;
        end if;
        select l.epoch, l.host, l.pid into epoch, host, pid from pgcoord.leader as l;
    end;
    perform set_config('lock_timeout', v_timeout, true);
    if not led then
        return;
    end if;

    update pgcoord.control set epoch = greatest(control.epoch, p_after) + 1;
    insert into pgcoord.coordinator (epoch, host, pid, version, runs_folder)
    select c.epoch, p_host, p_pid, p_version, p_runs_folder from pgcoord.control as c;
    delete from pgcoord.workflow;
    insert into pgcoord.workflow (name, is_default, reports, max_attempts, retry_delay, retry_lost, timeout)
    select w ->> 'name', (w ->> 'default')::boolean, (w ->> 'reports')::boolean, (w ->> 'max_attempts')::integer,
        make_interval(secs => (w ->> 'retry_delay_seconds')::float8), (w ->> 'retry_lost')::boolean,
        make_interval(secs => (w ->> 'timeout_seconds')::float8)
    from jsonb_array_elements(p_workflows) as w;
    select c.epoch, p_host, p_pid into epoch, host, pid from pgcoord.control as c;
end $$;
comment on function pgcoord.lead(text, integer, text, text, jsonb, bigint) is
    'For a coordinator, on its LISTEN connection: take the lead with these workflows; where led is false, another one leads, which is named.';

-- Give the lead back. The epoch stays in force until somebody else leads: what was being started is still recorded.
create or replace function pgcoord.resign() returns void
language plpgsql as $$
begin
    perform pg_advisory_unlock(7405, 1);
    notify pgcoord_stand_by;
end $$;
comment on function pgcoord.resign() is
    'For the leading coordinator, on its LISTEN connection: give the lead back, and tell those who stand by.';

-- How long a coordinator may be out of touch with the database before the attempts of its host are lost. Who stands by
-- asks for the lead every six seconds at most, which renews the lease; a silent network is noticed within fifteen, and a
-- leader that is frozen loses its lead after thirty. This is twice that.
create or replace function pgcoord.lease_length() returns interval
language sql immutable
return interval '60 seconds';
comment on function pgcoord.lease_length() is 'How long a lease on the attempts of a host holds.';

create or replace function pgcoord.renew_lease(p_host text) returns void
language sql as $$
    insert into pgcoord.host (name, lease_until) values (p_host, clock_timestamp() + pgcoord.lease_length())
    on conflict (name) do update set lease_until = excluded.lease_until;
$$;
comment on function pgcoord.renew_lease(text) is
    'For a coordinator that stands by and has processes: a leader on another host leaves them alone for another minute.';

-- The leader needs no lease: while it leads nobody declares anything of its host lost, and from when another one leads
-- every host has a whole lease to be heard of again, however long the database or the network was away before.
create or replace view pgcoord.elsewhere as
select a.id as attempt_id, a.queue_id, a.host, greatest(h.lease_until, c.lead_at + pgcoord.lease_length()) as left_alone_until
from pgcoord.attempt as a
    cross join pgcoord.control as k
    join pgcoord.coordinator as c on c.epoch = k.epoch
    left join pgcoord.host as h on h.name = a.host
where a.exited_at is null    -- follows from the next, and has an index
    and a.ended_at is null and not a.external and a.host <> c.host;
comment on view pgcoord.elsewhere is
    'Attempts on other hosts than the one that leads (or led last), and until when they are left alone; then they are lost.';

-- Which line of history this server writes: of the same system, the one with the higher timeline is the one that was
-- promoted later. Nulls where a server does not tell.
create or replace function pgcoord.lineage(out system bigint, out timeline integer)
language plpgsql as $$
begin
    select system_identifier into system from pg_control_system();
    timeline := ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer;
exception when insufficient_privilege or feature_not_supported or undefined_function then
    system := null;
end $$;
comment on function pgcoord.lineage() is
    'The system and timeline of this server, by which a coordinator knows a primary that was replaced; null where it does not tell.';

-- What a monitor wants to know of the moment.
create or replace function pgcoord.measures(
    out phases jsonb, out slots bigint, out slots_held bigint, out slots_draining bigint, out paused boolean,
    out oldest_eligible_seconds float8, out notification_queue_usage float8
)
language sql stable as $$
    select
        (select jsonb_object_agg(status, n) from (select status, count(*) as n from public.phase_queue group by status) as counted),
        (select count(*) from pgcoord.slot where not draining),
        (select count(*) from public.phase_queue where slot is not null),
        (select count(*) from pgcoord.slot where draining),
        (select paused_at is not null from pgcoord.control),
        (select extract(epoch from clock_timestamp() - min(eligible_at)) from public.phase_queue
            where status = 'queued' and eligible_at is not null and retry_at is null and not held),
        pg_notification_queue_usage();
$$;
comment on function pgcoord.measures() is
    'How many phases there are in each state, slots in all and in use, since when the oldest eligible phase waits, how full the queue of notifications is.';

create or replace function pgcoord.ended_attempts(
    p_events bigint[], out workflow text, out outcome text, out waited_seconds float8, out ran_seconds float8
) returns setof record
language sql stable as $$
    select a.workflow, a.outcome, case when a.number = 1 then extract(epoch from a.claimed_at - p.eligible_at) end, extract(epoch from a.ended_at - a.started_at)
    from pgcoord.event as e
        join pgcoord.attempt as a on a.queue_id = e.queue_id and a.number = e.attempt
        join public.phase_queue as p on p.queue_id = a.queue_id
    where e.id = any (p_events) and a.ended_at is not null;
$$;
comment on function pgcoord.ended_attempts(bigint[]) is
    'The attempts that ended with the given events: how, after what time, and how long the first one of a phase was waited for.';
