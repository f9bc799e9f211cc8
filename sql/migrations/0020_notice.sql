-- Whom to tell what has happened, and what is still to be told.

create table pgcoord.notify_target (
    name text primary key,
    events text[] not null,
    constraint notify_target_has_events check (cardinality(events) > 0)
);
comment on table pgcoord.notify_target is 'Who is told of which events: the sections [notify.NAME] of the coordinator that leads.';
comment on column pgcoord.notify_target.name is 'The NAME.';
comment on column pgcoord.notify_target.events is 'Of what it is told: failed, finished, gate, stuck.';
comment on index pgcoord.notify_target_pkey is 'By name.';
comment on constraint notify_target_has_events on pgcoord.notify_target is 'It is told of something.';

create table pgcoord.notice (
    id bigint generated always as identity primary key,
    key uuid not null default gen_random_uuid(),
    target text not null,
    event text not null,
    at timestamptz not null default now(),
    feature_id integer,
    phase_number integer,
    queue_id text,
    attempt integer,
    words text,
    tries integer not null default 0,
    due_at timestamptz not null default now()
);
create index notice_due_idx on pgcoord.notice (target, due_at, id);
comment on table pgcoord.notice is 'What is still to be told, to whom; a row goes when it was taken.';
comment on column pgcoord.notice.id is 'In the order of what happened.';
comment on column pgcoord.notice.key is 'Sent with it each time, so that the receiver knows a repetition.';
comment on column pgcoord.notice.target is 'Who is to be told.';
comment on column pgcoord.notice.event is 'What has happened: failed, finished, gate, stuck.';
comment on column pgcoord.notice.at is 'When.';
comment on column pgcoord.notice.feature_id is 'The feature.';
comment on column pgcoord.notice.phase_number is 'The phase, unless it is about the whole feature.';
comment on column pgcoord.notice.queue_id is 'Its name.';
comment on column pgcoord.notice.attempt is 'Its attempt.';
comment on column pgcoord.notice.words is 'What went wrong, or what is asked.';
comment on column pgcoord.notice.tries is 'How often it was tried to tell it.';
comment on column pgcoord.notice.due_at is 'When it is tried next.';
comment on index pgcoord.notice_pkey is 'By id.';
comment on index pgcoord.notice_due_idx is 'What is due to a target.';
comment on sequence pgcoord.notice_id_seq is 'Numbers of notices.';
