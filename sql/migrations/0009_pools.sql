-- Slots belong to pools: a pool is a named set of slots with one launcher. What was there is the pool local.

-- In the order in which everybody else locks.
lock table pgcoord.control, public.planned_features, public.phase_queue, pgcoord.attempt, pgcoord.slot in access exclusive mode;

create table pgcoord.pool (
    name text primary key,
    launcher text not null,
    settings jsonb not null default '{}',
    declared boolean not null default true,
    declared_slots integer,
    constraint pool_has_name check (name ~ '^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$'),
    constraint pool_settings_are_object check (jsonb_typeof(settings) = 'object')
);
comment on index pgcoord.pool_pkey is 'Pools by name.';
comment on table pgcoord.pool is
    'The pools that the leading coordinator declares (pgcoord.toml), and those taken out of it while something runs in them. local is always there.';
comment on column pgcoord.pool.name is 'What a workflow names.';
comment on column pgcoord.pool.launcher is 'What starts its jobs: local, slurm …';
comment on column pgcoord.pool.settings is
    'The keys of its launcher as last declared, so that what still runs can be ended after the pool was taken out of the configuration. No secrets.';
comment on column pgcoord.pool.declared is 'Whether the leading coordinator declares it; else nothing new starts in it.';
comment on column pgcoord.pool.declared_slots is
    'The number of slots in the configuration when they were last set from it: set_slots holds until that changes.';
insert into pgcoord.pool (name, launcher) values ('local', 'local');

alter table pgcoord.slot
    add column pool text not null default 'local' constraint slot_pool_exists references pgcoord.pool (name);
comment on column pgcoord.slot.pool is 'The pool it belongs to. Numbers are unique over all pools.';
comment on table pgcoord.slot is
    'The right to run: at most as many phases of a pool are ready or running as it has rows here. Changed by set_slots.';

alter table pgcoord.workflow
    add column pool text not null default 'local' constraint workflow_pool_exists references pgcoord.pool (name);
comment on column pgcoord.workflow.pool is 'The pool in which it runs.';

alter table pgcoord.attempt add column pool text not null default 'local';
comment on column pgcoord.attempt.pool is 'The pool of its slot.';

-- A line for each workflow, so that the claim finds the first of a pool however many of another one wait before it.
drop index public.phase_queue_claim_idx;
create index phase_queue_claim_idx on public.phase_queue
    ((coalesce(workflow_type, '')), priority, queue_position, feature_id, phase_number)
    where status = 'queued' and eligible_at is not null and retry_at is null and not held and not gated;
comment on index public.phase_queue_claim_idx is
    'The lines: what can be claimed of each workflow (empty: the default one), in the order in which it is.';

drop function if exists pgcoord.set_slots(integer);
drop function if exists pgcoord_private.lead(text, integer, text, text, jsonb, bigint);
drop function if exists pgcoord_private.slot_for_inserted(text);
drop function if exists pgcoord_private.measures();
