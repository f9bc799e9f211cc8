-- Named locks: of the phases that name one, in all features, one runs at a time.
alter table public.phase_queue
    add column lock text,
    add column parked boolean not null default false;
comment on column public.phase_queue.lock is
    'What no other phase may hold at the same time, by name: of the phases with one lock one runs, whatever the slots.';
comment on column public.phase_queue.parked is 'Out of the line while another phase holds its lock.';
alter table pgcoord.attempt add column lock text;
comment on column pgcoord.attempt.lock is 'The lock that it holds until it has ended.';
create unique index attempt_lock_key on pgcoord.attempt (lock) where lock is not null and ended_at is null;
comment on index pgcoord.attempt_lock_key is 'One attempt a lock.';
create index phase_queue_lock_idx on public.phase_queue (lock, parked, priority, queue_position, feature_id, phase_number)
    where lock is not null and status = 'queued';
comment on index public.phase_queue_lock_idx is 'What waits and names a lock, by lock, in the order of the line.';

-- The same condition as pgcoord_private.claimable.
drop index public.phase_queue_claim_idx;
create index phase_queue_claim_idx on public.phase_queue
    ((coalesce(workflow_type, '')), priority, queue_position, feature_id, phase_number) include (workflow_type)
    where status = 'queued' and eligible_at is not null and retry_at is null and not held and not gated and not parked;
comment on index public.phase_queue_claim_idx is
    'The lines: what can be claimed of each workflow (empty: the default one), in the order in which it is.';
