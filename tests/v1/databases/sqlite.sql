-- Version 1 in SQLite: times are text, and a column takes whatever it is given.
create table phase_queue (
    queue_id text primary key,
    parent_issue integer not null,
    phase_number integer not null,
    issue_number integer,
    status text check (status in ('queued', 'ready', 'running', 'completed', 'blocked', 'failed')) default 'queued',
    depends_on_phase integer,
    phase_data text,
    created_at text default current_timestamp,
    updated_at text default current_timestamp,
    error_message text,
    adw_id text,
    pr_number integer,
    priority integer default 50,
    queue_position integer,
    ready_timestamp text,
    started_timestamp text
);
create index idx_phase_queue_status on phase_queue (status);
create table queue_config (config_key text primary key, config_value text not null, updated_at text default current_timestamp);
insert into queue_config (config_key, config_value) values ('queue_paused', 'false');
