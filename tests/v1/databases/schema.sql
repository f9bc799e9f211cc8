-- What migration/postgres_schema.sql of version 1 made: the same columns with lengths, phase_data as jsonb, pr_number.
create table phase_queue (
    queue_id varchar(255) primary key,
    parent_issue integer not null,
    phase_number integer not null,
    issue_number integer,
    status varchar(50) check (status in ('queued', 'ready', 'running', 'completed', 'blocked', 'failed')) default 'queued',
    depends_on_phase integer,
    phase_data jsonb,
    created_at timestamp default current_timestamp,
    updated_at timestamp default current_timestamp,
    error_message text,
    adw_id varchar(255),
    pr_number integer,
    priority integer default 50,
    queue_position integer,
    ready_timestamp timestamp,
    started_timestamp timestamp
);
create index idx_phase_queue_status on phase_queue (status);
create index idx_phase_queue_parent on phase_queue (parent_issue);
create index idx_phase_queue_issue on phase_queue (issue_number);
create index idx_phase_queue_priority on phase_queue (priority, queue_position);
create table queue_config (config_key varchar(255) primary key, config_value text not null, updated_at timestamp default current_timestamp);
insert into queue_config values ('queue_paused', 'false', '2025-11-01 09:00:00');
