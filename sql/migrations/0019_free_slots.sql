-- What the claim and the coordinator's timer read of slots and attempts is found by index, however many are held or open.

-- Free slots: those that a claim looks at, each in turn, and takes if no phase holds it. The truth stays phase_queue.slot,
-- with its constraints: a row too many here costs a look, and what is missing is put in by whoever takes the lead.
-- No key and no foreign key: who frees a slot never waits.
create table pgcoord.free_slot (
    pool text not null,
    number smallint not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
create index free_slot_pool_idx on pgcoord.free_slot (pool, number);
comment on table pgcoord.free_slot is 'Slots that were freed and not given to a phase since: where a claim looks for one.';
comment on column pgcoord.free_slot.pool is 'The pool of the slot.';
comment on column pgcoord.free_slot.number is 'Number of the slot.';
comment on index pgcoord.free_slot_pool_idx is 'Free slots of a pool, the lowest first.';
insert into pgcoord.free_slot (pool, number)
select s.pool, s.number from pgcoord.slot as s
where not exists (select from public.phase_queue as p where p.slot = s.number);

create index slot_draining_idx on pgcoord.slot (number) where draining;
comment on index pgcoord.slot_draining_idx is 'Slots that go when they are released.';

create index attempt_deadline_idx on pgcoord.attempt (deadline) where deadline is not null and ended_at is null and ending is null;
comment on index pgcoord.attempt_deadline_idx is 'Attempts that may run out of time.';
create index attempt_live_idx on pgcoord.attempt (host) where ended_at is null and not external;
comment on index pgcoord.attempt_live_idx is 'Attempts that have not ended, by machine.';
