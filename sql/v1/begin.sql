-- The schema that keeps what was there before, and what was decided about it.

create schema pgcoord_v1;
comment on schema pgcoord_v1 is
    'The tables of version 1 as they were, and what migrate-v1 decided about their rows. Needed for migrate-v1 --undo; else drop it at will.';

create table pgcoord_v1.migration (
    at timestamptz not null default now(),
    source text,
    time_zone text not null,
    adopts boolean not null,
    was_ours boolean not null,
    last_event bigint
);
comment on table pgcoord_v1.migration is 'One row: when and how this database was migrated.';
comment on column pgcoord_v1.migration.at is 'The time of the migration.';
comment on column pgcoord_v1.migration.source is 'The SQLite file that was read; null when the tables were in this database.';
comment on column pgcoord_v1.migration.time_zone is 'The time zone for times without one.';
comment on column pgcoord_v1.migration.adopts is 'Whether running phases were adopted where possible, rather than failed.';
comment on column pgcoord_v1.migration.was_ours is 'Whether the database had the schema of pgcoord already, with nothing in it.';
comment on column pgcoord_v1.migration.last_event is 'The last event of the migration itself.';

create table pgcoord_v1.old_relation (
    name text primary key,
    kind text not null,
    came_from text
);
comment on table pgcoord_v1.old_relation is 'The tables and sequences that were moved here, and from which schema; null for what was read from SQLite.';
comment on column pgcoord_v1.old_relation.name is 'Name of the table or sequence.';
comment on column pgcoord_v1.old_relation.kind is 'Either table or sequence.';
comment on column pgcoord_v1.old_relation.came_from is 'The schema it was in, and goes back to.';

create table pgcoord_v1.decision (
    id bigint generated always as identity primary key,
    kind text not null,
    name text,
    words text not null
);
comment on table pgcoord_v1.decision is 'The rows that were changed or left out by the migration, and why.';
comment on column pgcoord_v1.decision.id is 'Order of reading.';
comment on column pgcoord_v1.decision.kind is 'Subject of the decision: feature, phase, dependency …';
comment on column pgcoord_v1.decision.name is 'The row: a queue_id, or the number of a feature.';
comment on column pgcoord_v1.decision.words is 'The content that was found, and its treatment.';
