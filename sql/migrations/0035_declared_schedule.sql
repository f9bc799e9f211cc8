-- Which schedules pgcoord.toml declares: the leading coordinator changes and removes those, and people do not.
alter table pgcoord.schedule add column declared boolean not null default false;
comment on column pgcoord.schedule.declared is
    'Whether pgcoord.toml declares it, as [schedule.NAME]: then it is changed and removed there.';
