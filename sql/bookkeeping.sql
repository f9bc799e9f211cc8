-- What upgrades have run. Applied before anything else, on every upgrade.

create schema if not exists pgcoord;
comment on schema pgcoord is 'pgcoord: what coordinates the phases of public.phase_queue.';
create table if not exists pgcoord.migration (
    name text primary key,
    digest text not null,
    release text not null,
    at timestamptz not null default now()
);
comment on index pgcoord.migration_pkey is 'By name.';
comment on table pgcoord.migration is 'What upgrades have run: each migration, and the functions as a whole.';
comment on column pgcoord.migration.name is 'File name without its ending; "functions" stands for all of sql/functions, "roles" for the rights of the roles.';
comment on column pgcoord.migration.digest is 'SHA-256 of what was run.';
comment on column pgcoord.migration.release is 'Release of pgcoord that ran it.';
comment on column pgcoord.migration.at is 'When it was run.';

create table if not exists pgcoord.shipped (
    name text primary key,
    digest text not null
);
comment on index pgcoord.shipped_pkey is 'By name.';
comment on table pgcoord.shipped is 'Functions, views and triggers as the last upgrade left them: what differs was changed by hand.';
comment on column pgcoord.shipped.name is 'Kind and name, as in "function pgcoord.why(text)".';
comment on column pgcoord.shipped.digest is 'MD5 of its definition.';
