-- What the second version shipped before it was given up: feature_id may be null, dependencies are an array,
-- and the step that an ADW is in came later, never null.
create table planned_features (
    id serial primary key,
    item_type text not null,
    title text not null,
    description text,
    status text not null,
    priority text,
    estimated_hours real,
    github_issue_number integer,
    tags jsonb,
    created_at timestamp default current_timestamp,
    updated_at timestamp default current_timestamp
);
create table phase_queue (
    queue_id text primary key,
    feature_id integer,
    phase_number integer not null,
    issue_number integer,
    status text default 'queued',
    depends_on_phases jsonb default '[]',
    phase_data jsonb,
    created_at timestamp default current_timestamp,
    updated_at timestamp default current_timestamp,
    error_message text,
    adw_id text,
    pr_number integer,
    priority integer default 50,
    queue_position integer,
    ready_timestamp timestamp,
    started_timestamp timestamp
);
alter table phase_queue add column current_phase text not null default 'init';
