-- Gates: phases that wait for a person's yes.
alter domain pgcoord.phase_data add constraint phase_data_gate_is_text check (
    coalesce(value -> 'gate', 'null') = 'null' or jsonb_typeof(value -> 'gate') = 'string' and btrim(value ->> 'gate') <> ''
) not valid;
alter table public.phase_queue
    add column gated boolean not null default false,
    add constraint phase_queue_starts_after_approval check (slot is null or not gated);
comment on column public.phase_queue.gated is
    'Nobody has approved it yet, though phase_data ->> gate asks for that: pgcoord.approve(queue_id, reason) or pgcoord.reject.';

-- The same condition as pgcoord_private.claimable.
drop index public.phase_queue_claim_idx;
create index phase_queue_claim_idx on public.phase_queue (priority, queue_position, feature_id, phase_number)
    where status = 'queued' and eligible_at is not null and retry_at is null and not held and not gated;
comment on index public.phase_queue_claim_idx is 'The line: what can be claimed, in the order in which it is.';
-- The gates that people are asked about, however many phases there are.
create index phase_queue_gate_idx on public.phase_queue (feature_id, phase_number) where gated and status = 'queued';
comment on index public.phase_queue_gate_idx is 'Gates that wait for an answer, or will.';
