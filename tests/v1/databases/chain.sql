-- What the migrations of version 1 made in Postgres, one after another (007, 011, 012, 017 and later): text and times
-- without a zone, an updated_at that a trigger sets, one row of configuration.
create table phase_queue (
    queue_id text primary key,
    parent_issue integer not null,
    phase_number integer not null,
    issue_number integer,
    status text check (status in ('queued', 'ready', 'running', 'completed', 'blocked', 'failed')) default 'queued',
    depends_on_phase integer,
    phase_data text,
    created_at timestamp default current_timestamp,
    updated_at timestamp default current_timestamp,
    error_message text
);
create index idx_phase_queue_status on phase_queue (status);
create index idx_phase_queue_parent on phase_queue (parent_issue);
create index idx_phase_queue_issue on phase_queue (issue_number);
alter table phase_queue add column priority integer default 50;
alter table phase_queue add column queue_position integer;
alter table phase_queue add column ready_timestamp timestamp;
alter table phase_queue add column started_timestamp timestamp;
create index idx_phase_queue_priority on phase_queue (priority, queue_position);
alter table phase_queue add column adw_id text;

create table queue_config (
    config_key text primary key,
    config_value text not null,
    updated_at timestamp default current_timestamp
);
insert into queue_config (config_key, config_value, updated_at) values ('queue_paused', 'false', '2025-11-01 09:00:00');

create table webhook_events (
    id serial primary key,
    webhook_id text not null unique,
    webhook_type text not null,
    adw_id text,
    issue_number integer,
    received_at timestamptz default now(),
    processed boolean default true
);
create table adw_locks (
    issue_number integer primary key,
    adw_id text not null,
    status text not null check (status in ('planning', 'building', 'testing', 'reviewing', 'documenting')),
    github_url text,
    created_at timestamp default current_timestamp,
    updated_at timestamp default current_timestamp
);

create table planned_features (
    id serial primary key,
    item_type text not null check (item_type in ('session', 'feature', 'bug', 'enhancement')),
    title text not null,
    description text,
    status text not null check (status in ('planned', 'in_progress', 'completed', 'cancelled')),
    priority text check (priority in ('high', 'medium', 'low')),
    estimated_hours real,
    actual_hours real,
    session_number integer,
    github_issue_number integer,
    parent_id integer references planned_features (id) on delete cascade,
    tags jsonb,
    completion_notes text,
    created_at timestamp default current_timestamp,
    updated_at timestamp default current_timestamp,
    started_at timestamp,
    completed_at timestamp
);
create index idx_planned_features_status on planned_features (status);
create index idx_planned_features_priority on planned_features (priority);
create index idx_planned_features_type on planned_features (item_type);
create index idx_planned_features_session on planned_features (session_number);
create index idx_planned_features_github on planned_features (github_issue_number);
create index idx_planned_features_completed on planned_features (completed_at);
create index idx_planned_features_parent on planned_features (parent_id);
create index idx_planned_features_tags on planned_features using gin (tags);
create function update_planned_features_updated_at() returns trigger language plpgsql as $$
begin
    new.updated_at = current_timestamp;
    return new;
end $$;
create trigger trigger_planned_features_updated_at before update on planned_features
    for each row execute function update_planned_features_updated_at();
alter table planned_features add column generated_plan jsonb;
alter table planned_features add column workflow_type text default 'adw_sdlc_complete_iso';
comment on table planned_features is 'What is planned';

-- Something of the same application that is none of our business, and refers to it.
create table work_log (
    id serial primary key,
    feature_id integer references planned_features (id),
    summary text not null
);
create view open_features as select id, title from planned_features where status <> 'completed';
