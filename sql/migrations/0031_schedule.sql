-- What is run at certain times again and again, and what became of each of these times.

create table pgcoord.schedule (
    name text primary key,
    cron text not null,
    timezone text not null,
    feature jsonb not null,
    overlap text not null,
    missed text not null,
    paused_at timestamptz,
    paused_reason text,
    next_at timestamptz,
    error text,
    created_at timestamptz not null default now(),
    created_by text not null default session_user
);
comment on table pgcoord.schedule is 'A feature that is queued at certain times, again and again: an INSERT or UPDATE counts at once.';
comment on column pgcoord.schedule.name is 'What it is called.';
comment on column pgcoord.schedule.cron is 'When: minute, hour, day of the month, month, day of the week, as in a crontab.';
comment on column pgcoord.schedule.timezone is 'The time zone of cron, such as Europe/Berlin; left out, that of the session.';
comment on column pgcoord.schedule.feature is 'What is queued each time, as submit_feature takes it; feature_plan(id) makes it of a feature.';
comment on column pgcoord.schedule.overlap is 'When the last run still goes on: skip (left out, this), queue (one waits for its end) or start.';
comment on column pgcoord.schedule.missed is 'When nothing could start it in time: run (one for all that were missed; left out, this) or skip.';
comment on column pgcoord.schedule.paused_at is 'Since when it starts nothing; null while it does.';
comment on column pgcoord.schedule.paused_reason is 'Why it is paused.';
comment on column pgcoord.schedule.next_at is 'When it is due next, as the coordinator computes it; null until one has, and while it is paused.';
comment on column pgcoord.schedule.error is 'Why it cannot run: its times, or the last try to queue the feature.';
comment on column pgcoord.schedule.created_at is 'When it was made.';
comment on column pgcoord.schedule.created_by is 'Who made it: the database user.';

create table pgcoord.schedule_run (
    schedule text not null references pgcoord.schedule on update cascade on delete cascade,
    due_at timestamptz not null,
    outcome text not null,
    feature_id integer references public.planned_features on delete set null,
    reason text,
    at timestamptz not null default clock_timestamp(),
    primary key (schedule, due_at)
);
create index schedule_run_feature_idx on pgcoord.schedule_run (feature_id);
create unique index schedule_run_waiting_idx on pgcoord.schedule_run (schedule) where outcome = 'waiting';
comment on table pgcoord.schedule_run is 'What became of the due times of each schedule, the last hundred: one row each, so that none is run twice.';
comment on column pgcoord.schedule_run.schedule is 'The schedule.';
comment on column pgcoord.schedule_run.due_at is 'When it was due.';
comment on column pgcoord.schedule_run.outcome is
    'started, waiting (for the end of the last run), skipped (that still went on), missed (nothing could start it in time) or failed.';
comment on column pgcoord.schedule_run.feature_id is 'The feature that was queued; null for none, and once that was removed.';
comment on column pgcoord.schedule_run.reason is 'Why, in words.';
comment on column pgcoord.schedule_run.at is 'When that was decided.';
comment on index pgcoord.schedule_run_waiting_idx is 'At most one run of a schedule waits.';
