-- Issues on GitHub: what has been made there for a phase, what is still to be done there, and until when nobody asks.

create table pgcoord.issue (
    queue_id text primary key references public.phase_queue (queue_id) on delete cascade,
    repository text not null,
    key uuid not null default gen_random_uuid() unique,
    intended_at timestamptz not null default clock_timestamp(),
    posted_at timestamptz,
    posts integer not null default 0,
    number integer,
    author text,
    constraint issue_number_is_positive check (number > 0)
);
comment on index pgcoord.issue_pkey is 'The issue of a phase.';
comment on index pgcoord.issue_key_key is 'The issue with a marker.';
comment on table pgcoord.issue is
    'The GitHub issue of a phase: intended before it is posted, so that whoever comes after a crash looks for it before posting again.';
comment on column pgcoord.issue.queue_id is 'The phase.';
comment on column pgcoord.issue.repository is 'Where it is: owner/name.';
comment on column pgcoord.issue.key is 'Names it in the hidden marker of its body.';
comment on column pgcoord.issue.intended_at is 'When it was first meant to be made; it cannot be older.';
comment on column pgcoord.issue.posted_at is
    'When it was last about to be posted; null when it certainly was not made. While there is no number, it may exist.';
comment on column pgcoord.issue.posts is 'How often it was about to be posted; more than once, and there may be two.';
comment on column pgcoord.issue.number is 'Its number, once that is known.';
comment on column pgcoord.issue.author is 'Who made it, by GitHub''s name for the owner of our credentials.';

create table pgcoord.errand (
    id bigint generated always as identity primary key,
    queue_id text not null references pgcoord.issue (queue_id) on delete cascade,
    kind text not null,
    key uuid not null default gen_random_uuid(),
    status pgcoord.phase_status,
    attempt integer,
    at timestamptz not null default clock_timestamp(),
    due_at timestamptz not null default clock_timestamp(),
    tries integer not null default 0,
    error text,
    constraint errand_kind_is_known check (kind in ('tell', 'check')),
    constraint errand_tells_a_status check ((kind = 'tell') = (status is not null))
);
create index errand_due_idx on pgcoord.errand (due_at);
create index errand_phase_idx on pgcoord.errand (queue_id, id);
create unique index errand_check_key on pgcoord.errand (queue_id) where kind = 'check';
comment on index pgcoord.errand_pkey is 'Errands in order.';
comment on sequence pgcoord.errand_id_seq is 'Order of what is to be said.';
comment on index pgcoord.errand_due_idx is 'Errands by when they are due.';
comment on index pgcoord.errand_phase_idx is 'The errands of a phase, in order.';
comment on index pgcoord.errand_check_key is 'One look for duplicates an issue.';
comment on table pgcoord.errand is
    'What is still to be done on GitHub; the coordinator does it, in order for each issue, and deletes the row.';
comment on column pgcoord.errand.id is 'Order in which it came up.';
comment on column pgcoord.errand.queue_id is 'The phase whose issue it concerns.';
comment on column pgcoord.errand.kind is
    'tell (comment on how the phase ended, and close or reopen its issue) or check (find an issue that may have been made, close a second one).';
comment on column pgcoord.errand.key is 'Names the comment in its hidden marker, so that it is made once.';
comment on column pgcoord.errand.status is 'What the phase became: completed, failed, cancelled; queued when it was taken up again.';
comment on column pgcoord.errand.attempt is 'The attempt that ended so; null when none did.';
comment on column pgcoord.errand.at is 'When that was.';
comment on column pgcoord.errand.due_at is 'Not tried before this time.';
comment on column pgcoord.errand.tries is 'How often it was begun.';
comment on column pgcoord.errand.error is 'Why it did not succeed the last time.';

alter table pgcoord.control
    add column issues_held_since timestamptz,
    add column issues_held_until timestamptz,
    add column issues_held_reason text,
    add column issues_optional_after interval,
    add column issues_failures integer not null default 0;
comment on column pgcoord.control.issues_held_since is 'Since when GitHub makes no issues; null while it does.';
comment on column pgcoord.control.issues_held_until is
    'When GitHub is asked again; phases that have no issue yet are not claimed before.';
comment on column pgcoord.control.issues_held_reason is 'What GitHub said, or how it could not be reached.';
comment on column pgcoord.control.issues_optional_after is
    'How long phases wait for GitHub; then they start without an issue. Null: for ever.';
comment on column pgcoord.control.issues_failures is 'How often it was asked in vain since; each time the wait doubles.';
