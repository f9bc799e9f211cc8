-- Jobs of engines: the attempts of a pool whose launcher is not this machine.
alter table pgcoord.attempt
    add column submitted_at timestamptz,
    add column job text,
    add column node text,
    add column copy text,
    add column waits_for text,
    add column refused_begins integer not null default 0;
comment on column pgcoord.attempt.submitted_at is
    'When its job was first given to an engine, or was about to be; null where the coordinator starts the process itself.';
comment on column pgcoord.attempt.job is 'The engine''s id of its job.';
comment on column pgcoord.attempt.node is 'The machine on which its job began.';
comment on column pgcoord.attempt.copy is
    'The one copy of its job that may run, a random name: an engine may start a job twice. Null before it began.';
comment on column pgcoord.attempt.waits_for is 'Why its job waits, in the engine''s words.';
comment on column pgcoord.attempt.refused_begins is
    'How many copies of its job were refused, or forged; the first ten are events, too.';
