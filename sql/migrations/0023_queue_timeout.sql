-- How long a job may wait in its engine.
alter table pgcoord.workflow add column queue_timeout interval;
comment on column pgcoord.workflow.queue_timeout is
    'How long the job of an attempt may wait in its engine, from its submission on; null: as long as it takes.';
