-- Who leads, what a coordinator has to run, and whose processes are on another host.

-- What a coordinator needs of an attempt to run it, or to take it over.
create or replace view pgcoord_private.assignment as
select a.id as attempt_id, a.queue_id, p.feature_id, p.phase_number, a.number as attempt, a.adw_id, a.secret, a.host, a.folder,
    a.workflow, p.issue_number, p.phase_data ->> 'title' as title, p.phase_data ->> 'prompt_content' as prompt,
    a.pid, a.process_started, a.started_at is not null as started, a.ended_at is not null as ended, a.ending,
    greatest(extract(epoch from clock_timestamp() - a.ended_at), 0)::float8 as ended_seconds_ago, a.slot
from pgcoord.attempt as a
    join public.phase_queue as p using (queue_id)
where a.exited_at is null and not a.external;
comment on view pgcoord_private.assignment is
    'Attempts whose process is not known to be gone, with all a coordinator needs to run them or take them over (secrets too).';

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

-- How long a coordinator may be out of touch with the database before the attempts of its host are lost. Who stands by
-- asks for the lead every six seconds at most, which renews the lease; a silent network is noticed within fifteen, and a
-- leader that is frozen loses its lead after thirty. This is twice that.
create or replace function pgcoord_private.lease_length() returns interval
language sql immutable
return interval '60 seconds';
comment on function pgcoord_private.lease_length() is 'How long a lease on the attempts of a host holds.';

-- The leader needs no lease: while it leads nobody declares anything of its host lost, and from when another one leads
-- every host has a whole lease to be heard of again, however long the database or the network was away before.
create or replace view pgcoord.elsewhere as
select a.id as attempt_id, a.queue_id, a.host, greatest(h.lease_until, c.lead_at + pgcoord_private.lease_length()) as left_alone_until
from pgcoord.attempt as a
    cross join pgcoord.control as k
    join pgcoord.coordinator as c on c.epoch = k.epoch
    left join pgcoord.host as h on h.name = a.host
where a.exited_at is null    -- follows from the next, and has an index
    and a.ended_at is null and not a.external and a.host <> c.host;
comment on view pgcoord.elsewhere is
    'Attempts on other hosts than the one that leads (or led last), and until when they are left alone; then they are lost.';
