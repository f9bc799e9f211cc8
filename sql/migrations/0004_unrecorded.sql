-- What happened to attempts and cannot be recorded yet, because somebody has locked what that would change.
-- No foreign key: it would have to wait for the very lock.
create table pgcoord.unrecorded (
    attempt_id bigint primary key,
    words text not null,
    lock text not null,
    since timestamptz not null default clock_timestamp()
);
comment on table pgcoord.unrecorded is
    'What happened to attempts and cannot be recorded yet, because of a lock; the coordinator deletes the row afterwards.';
comment on index pgcoord.unrecorded_pkey is 'One line an attempt.';
comment on column pgcoord.unrecorded.attempt_id is 'The attempt; there may be none any more.';
comment on column pgcoord.unrecorded.words is 'What its process did: was started, or exited with which status.';
comment on column pgcoord.unrecorded.lock is 'What somebody has locked: feature 5, phase queue-5-1, attempt 12, slot 2, pgcoord.control.';
comment on column pgcoord.unrecorded.since is 'Since when it waits.';

-- Replaced by next_work, which names every lock.
drop function if exists pgcoord_private.agenda(text[]);
