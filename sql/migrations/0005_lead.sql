-- Which session of the server leads: any login can take an advisory lock, so that the lock is held proves nothing.
alter table pgcoord.coordinator
    add column backend_pid integer,
    add column backend_start timestamptz;
comment on column pgcoord.coordinator.backend_pid is 'The server''s process for the connection that leads.';
comment on column pgcoord.coordinator.backend_start is
    'When that process of the server started: another one may get the same number later.';

-- A coordinator of an older release that leads now goes on to lead.
update pgcoord.coordinator as c set backend_pid = (
    select l.pid from pg_locks as l
    where l.locktype = 'advisory' and l.classid = 7405 and l.objid = 1 and l.objsubid = 2 and l.granted
        and l.mode = 'ExclusiveLock' and l.database = (select oid from pg_database where datname = current_database())
)
where c.epoch = (select k.epoch from pgcoord.control as k);
