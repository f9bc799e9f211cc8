-- With the workflow itself in it the index tells the place in line without the table.
drop index public.phase_queue_claim_idx;
create index phase_queue_claim_idx on public.phase_queue
    ((coalesce(workflow_type, '')), priority, queue_position, feature_id, phase_number) include (workflow_type)
    where status = 'queued' and eligible_at is not null and retry_at is null and not held and not gated;
comment on index public.phase_queue_claim_idx is
    'The lines: what can be claimed of each workflow (empty: the default one), in the order in which it is.';
