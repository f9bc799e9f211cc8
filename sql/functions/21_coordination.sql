-- The leader, the attempts that a coordinator runs, and the attempts of other hosts.

-- The columns that a coordinator needs to run an attempt, or to take it over. Not of one that was inserted by hand, and that
-- its phase does not hold: it would run beside the slots.
create or replace view pgcoord_private.assignment as
select a.id as attempt_id, a.queue_id, p.feature_id, p.phase_number, a.number as attempt, a.adw_id, a.secret, a.host, a.folder,
    a.workflow, p.issue_number, p.phase_data ->> 'title' as title, p.phase_data ->> 'prompt_content' as prompt,
    a.pid, a.process_started, a.started_at is not null as started, a.ended_at is not null as ended, a.ending,
    case when a.ended_at is not null then greatest(extract(epoch from clock_timestamp() - a.ended_at), 0)::float8 end
        as ended_seconds_ago, a.slot, a.pool,
    exists (select from pgcoord.result as r where r.feature_id = p.feature_id offset 0) as has_inputs,    -- (never hashed whole)
    p.phase_data -> 'environment' as environment
from pgcoord.attempt as a
    join public.phase_queue as p using (queue_id)
where a.exited_at is null and not a.external and (a.ended_at is not null or p.attempt = a.number and p.slot is not null);
comment on view pgcoord_private.assignment is
    'Attempts whose process is not known to be gone, with all a coordinator needs to run them or take them over (secrets too).';

-- Sessions that hold the advisory lock (7405, 1) of this database (7405: any number that nobody else uses). Any login
-- can take it, and a share of it, too, which keeps everybody else from the whole.
create or replace view pgcoord_private.lead_lock as
select l.pid, l.mode, l.virtualtransaction
from pg_locks as l
where l.locktype = 'advisory' and l.classid = 7405 and l.objid = 1 and l.objsubid = 2 and l.granted
    and l.database = (select oid from pg_database where datname = current_database());
comment on view pgcoord_private.lead_lock is 'Sessions and prepared transactions that hold the lock of the lead, coordinators or not.';

-- The leader holds that lock on its LISTEN connection, and has recorded that session. The lock ends with the connection, so
-- a dead coordinator never seems to lead, even if another session takes the lock afterwards. (Only members of
-- pg_read_all_stats see when a session of another user started.)
create or replace view pgcoord.leader as
select c.epoch, c.host, c.pid, c.version, c.lead_at
from pgcoord.coordinator as c
    join pgcoord.control as k on k.epoch = c.epoch
where exists (
    select from pgcoord_private.lead_lock as l
        cross join lateral pg_stat_get_activity(l.pid) as s
    where l.pid = c.backend_pid and l.mode = 'ExclusiveLock' and coalesce(s.backend_start = c.backend_start, true)
);
comment on view pgcoord.leader is 'The coordinator that leads; no row when none does.';

-- For a coordinator that was killed, the time of its last sign of life.
create or replace view pgcoord_private.unwatched as
select c.epoch, c.host, c.pid, coalesce(c.resigned_at, c.heard_at) as since,
    format('no coordinator runs since %s%s', pgcoord_private.clock(coalesce(c.resigned_at, c.heard_at)),
        case when c.resigned_at is null then ', when it was last heard of' end) as words
from (
    select c.*, greatest(c.lead_at, (
            select max(greatest(a.claimed_at, a.started_at, a.ended_at, a.exited_at))
            from (select * from pgcoord.attempt order by id desc limit 1000) as a
            where a.epoch = c.epoch
        )) as heard_at
    from pgcoord.coordinator as c
        join pgcoord.control as k on k.epoch = c.epoch
    where not exists (select from pgcoord.leader)
) as c;
comment on view pgcoord_private.unwatched is
    'Since when no coordinator runs; no row while one leads, or where none ever did.';

-- How long a coordinator may be disconnected before the attempts of its host are lost. A coordinator that stands by asks for
-- the lead at least every six seconds, which renews the lease; a silent network is noticed within fifteen seconds, and a
-- frozen leader loses its lead after thirty. The lease is twice that.
create or replace function pgcoord_private.lease_length() returns interval
language sql immutable
return interval '60 seconds';

-- The leader needs no lease: while it leads, nobody declares its attempts lost. When another coordinator takes the lead,
-- every host has a whole lease time to renew its lease, however long the database or the network was unavailable before.
create or replace view pgcoord.elsewhere as
select a.id as attempt_id, a.queue_id, a.host, greatest(h.lease_until, c.lead_at + pgcoord_private.lease_length()) as left_alone_until
from pgcoord.control as k
    join pgcoord.coordinator as c on c.epoch = k.epoch
    cross join lateral (    -- two ranges of an index, as `<>` is none
        select * from pgcoord.attempt where host < c.host and ended_at is null and not external
        union all
        select * from pgcoord.attempt where host > c.host and ended_at is null and not external
    ) as a
    left join pgcoord.host as h on h.name = a.host;
comment on view pgcoord.elsewhere is
    'Attempts on other hosts than the one that leads (or led last), and until when they are left alone; then they are lost.';

-- The session of process p_holder, for which the session of p_waiter waits. A prepared transaction has no session:
-- pg_blocking_pids returns process 0 for it, and it is found by the lock that it holds and p_waiter requests.
create or replace function pgcoord_private.holder_of(p_waiter integer, p_holder integer)
returns table (usename name, application_name text, since timestamptz, state text, query text)
language sql stable rows 1
set search_path = pg_catalog, pg_temp as $$
    select s.usename, s.application_name, s.xact_start, s.state, s.query
    from pg_stat_activity as s
    where s.pid = p_holder
    union all
    (
        select x.owner, null, x.prepared, 'prepared', format('prepare transaction %L', x.gid)
        from pg_locks as w
            join pg_locks as h on h.granted and h.pid is null
                and (h.locktype, h.database, h.relation, h.page, h.tuple, h.transactionid, h.classid, h.objid, h.objsubid)
                    is not distinct from
                    (w.locktype, w.database, w.relation, w.page, w.tuple, w.transactionid, w.classid, w.objid, w.objsubid)
            join pg_locks as t on t.pid is null and t.virtualtransaction = h.virtualtransaction and t.locktype = 'transactionid'
            join pg_prepared_xacts as x on x.transaction = t.transactionid
        where p_holder = 0 and w.pid = p_waiter and not w.granted
        order by x.prepared
        limit 1
    );
$$;

-- Locks that coordinators wait for, with the sessions that hold them. Each waiting session waits for one lock, which its
-- application_name contains (await_lock). The holder is visible only during the wait, and its activity only to members of
-- pg_read_all_stats. A holder that waits itself, such as the coordinator for a table, is not the one to end: it is followed
-- to those that do not wait.
create or replace function pgcoord_private.find_lock_waits() returns table (
    lock text, holder integer, usename name, application_name text, since timestamptz, state text, query text
)
language plpgsql stable rows 1
set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
    return query
    with recursive blocking (name, waiter, pid) as (
        select substr(w.application_name, length('pgcoord waits for ') + 1), w.pid, b.pid
        from pg_stat_activity as w
            cross join lateral unnest(pg_blocking_pids(w.pid)) as b (pid)
        where w.datname = current_database() and w.application_name like 'pgcoord waits for %'
        union
        select c.name, c.pid, b.pid from blocking as c cross join lateral unnest(pg_blocking_pids(c.pid)) as b (pid)
    )
    select c.name, c.pid, h.usename, h.application_name, h.since, h.state, h.query
    from blocking as c
        left join lateral pgcoord_private.holder_of(c.waiter, c.pid) as h on true
    where cardinality(pg_blocking_pids(c.pid)) = 0
    order by h.since;
end $$;

create or replace view pgcoord.lock_waits as
select w.lock, w.holder, w.usename, w.application_name, w.since, w.state, w.query
from pgcoord_private.find_lock_waits() as w;
comment on view pgcoord.lock_waits is
    'Locks that coordinators wait for, each with the session that holds it.';

-- A session that holds a lock, in words.
create or replace function pgcoord_private.holder_words(
    p_holder integer, p_user name, p_application text, p_since timestamptz, p_state text, p_query text
) returns text
language sql stable
return case
    when p_holder = 0 then coalesce(
        'the prepared transaction' || substr(p_query, 20) || format(' (user %s), since %s', p_user, pgcoord_private.clock(p_since)),
        'a prepared transaction (select * from pg_prepared_xacts)')
    else format('process %s (user %s%s)%s%s', p_holder, p_user, ', ' || nullif(p_application, ''),
        ', in its transaction since ' || pgcoord_private.clock(p_since),
        ', ' || p_state || ': ' || left(regexp_replace(p_query, '\s+', ' ', 'g'), 200))
end;

-- The statement that ends a session that holds a lock.
create or replace function pgcoord_private.holder_ending(p_holder integer, p_query text) returns text
language sql immutable
return case when p_holder = 0 then coalesce('rollback prepared' || substr(p_query, 20), 'rollback prepared ...')
    else format('select pg_terminate_backend(%s)', p_holder) end;

-- The leader itself is left out: it has recorded its session. The control row is the other lock that a lead needs; its
-- holder is visible while a coordinator waits for it.
create or replace view pgcoord.lead_blocker as
select b.pid, b.usename, b.application_name, b.words, b.remedy
from (
    select l.pid, s.usename, s.application_name,
        case when l.pid is null then format('the prepared transaction %L', x.gid)
            else format('process %s (user %s%s)', l.pid, s.usename, ', ' || nullif(s.application_name, '')) end
            || ' holds the lock of the lead, and is not the coordinator that leads' as words,
        case when l.pid is null then format('rollback prepared %L', x.gid)
            else format('select pg_terminate_backend(%s)', l.pid) end as remedy
    from pgcoord_private.lead_lock as l
        left join pg_stat_activity as s on s.pid = l.pid
        left join pg_locks as t on l.pid is null and t.pid is null and t.virtualtransaction = l.virtualtransaction
            and t.locktype = 'transactionid'    -- a prepared transaction's own number
        left join pg_prepared_xacts as x on x.transaction = t.transactionid
    union all
    select nullif(w.holder, 0), w.usename, w.application_name,
        format('pgcoord.control is held by %s',
            pgcoord_private.holder_words(w.holder, w.usename, w.application_name, w.since, w.state, w.query)),
        pgcoord_private.holder_ending(w.holder, w.query)
    from pgcoord_private.find_lock_waits() as w
    where w.lock = 'pgcoord.control'
) as b
where not exists (select from pgcoord.leader)
order by b.pid
limit 1;
comment on view pgcoord.lead_blocker is
    'Where no coordinator leads: the session that keeps them from it by a lock; no row when none does.';

-- The session that holds a lock for which a coordinator waits, in words; null if none is visible.
create or replace function pgcoord_private.held_by(p_lock text) returns text
language sql stable
begin atomic
    select pgcoord_private.holder_words(holder, usename, application_name, since, state, query)
    from pgcoord_private.find_lock_waits()
    where lock = left(p_lock, 63 - length('pgcoord waits for '))    -- as long as the name of a session may be
    limit 1;
end;

-- The session that holds a lock for which the session of process p_pid waits, in words; null if it waits for none. If the
-- holder waits for a lock as well, follow the chain to the first session that does not wait.
create or replace function pgcoord_private.blocked_by(p_pid integer) returns text
language sql stable
begin atomic
    with recursive blocking (waiter, pid) as (
        select p_pid, unnest(pg_blocking_pids(p_pid))
        union
        select b.pid, unnest(pg_blocking_pids(b.pid)) from blocking as b
    )
    select pgcoord_private.holder_words(b.pid, h.usename, h.application_name, h.since, h.state, h.query)
    from blocking as b
        left join lateral pgcoord_private.holder_of(b.waiter, b.pid) as h on true
    where cardinality(pg_blocking_pids(b.pid)) = 0
    order by h.since
    limit 1;
end;

-- Events of attempts that are not recorded yet, because another session has locked a row that the record would change, or
-- because the database refuses it ("error: …" in place of the lock), as a trigger of somebody else's may.
create or replace view pgcoord_private.unrecorded_now as
select u.attempt_id, a.queue_id, u.since, u.lock,
    format('%s, which is not recorded yet: ', u.words) || case when u.lock like 'error: %'
        then format('it is tried again and again, and the database refuses it: %s', split_part(substr(u.lock, 8), e'\n', 1))
        else format('it needs %s, which is held by %s', u.lock, coalesce(pgcoord_private.held_by(u.lock), 'somebody')) end as words
from pgcoord.unrecorded as u
    join pgcoord.attempt as a on a.id = u.attempt_id
where a.exited_at is null;
comment on view pgcoord_private.unrecorded_now is
    'Events of attempts that cannot be recorded yet, and the session that holds the lock, or the error.';

-- Claimable phases that a coordinator cannot claim: all if it waits for the control row or for slots, otherwise those that
-- are locked by the transaction for which it waits.
create or replace view pgcoord_private.locked_phase as
select p.queue_id, p.feature_id, p.phase_number, p.eligible_at, w.lock,
    format('cannot be claimed: %s is held by %s', w.lock, pgcoord_private.held_by(w.lock)) as words
from pgcoord_private.find_lock_waits() as w
    join (select * from pgcoord_private.claimable union all select * from pgcoord_private.due_retry) as p
        on (w.lock = 'pgcoord.control' or w.lock like 'slot %' or p.locker = (
            select awaited.xmax::text from public.phase_queue as awaited
            where w.lock like 'phase %' and awaited.queue_id = substr(w.lock, length('phase ') + 1) and awaited.xmax <> '0'
        ));
comment on view pgcoord_private.locked_phase is 'Claimable phases that cannot be claimed because of a lock, and the session that holds it.';
