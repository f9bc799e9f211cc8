-- Which schedules of pgcoord.toml the database refused, so that others than the coordinator's log can say so.
create table pgcoord.refused_schedule (
    name text primary key,
    error text not null,
    at timestamptz not null default clock_timestamp()
);
comment on table pgcoord.refused_schedule is
    'Schedules that pgcoord.toml declares and that could not be stored; what was stored under such a name before stays in force.';
comment on column pgcoord.refused_schedule.name is 'What it would be called.';
comment on column pgcoord.refused_schedule.error is 'Why it was refused.';
comment on column pgcoord.refused_schedule.at is 'When that was.';
