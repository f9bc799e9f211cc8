-- Phases whose claim fails, as a client's own trigger refuses it: set aside for a while, so that they hold up no others.
-- No foreign key: it would be checked with each phase that is deleted.
create table pgcoord.unclaimable (
    queue_id text primary key,
    error text not null,
    since timestamptz not null default clock_timestamp(),
    until timestamptz not null
);
comment on table pgcoord.unclaimable is 'Phases whose claim failed, and until when they are left alone; then they are tried again.';
comment on column pgcoord.unclaimable.queue_id is 'The phase; it may be gone.';
comment on column pgcoord.unclaimable.error is 'What the database said to its claim.';
comment on column pgcoord.unclaimable.since is 'When its claim failed for the first time.';
comment on column pgcoord.unclaimable.until is 'When it is tried again.';
comment on index pgcoord.unclaimable_pkey is 'One line a phase.';

-- They take the name of a phase now.
drop function if exists pgcoord_private.claim_phases(bigint);
drop function if exists pgcoord_private.take_due_retries();
