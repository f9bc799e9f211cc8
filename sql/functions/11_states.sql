-- The table of states: which may follow which, and how an attempt ended.

-- Which states may follow which: docs/design.md, section 4.
create or replace function pgcoord_private.may_move(p_from text, p_to text) returns boolean
language sql immutable
return p_from || ' → ' || p_to in (
    'queued → ready', 'queued → completed', 'queued → blocked', 'queued → cancelled',
    'ready → running', 'ready → completed', 'ready → failed', 'ready → cancelled', 'ready → queued',
    'running → completed', 'running → failed', 'running → cancelled', 'running → queued',
    'blocked → queued', 'blocked → completed', 'blocked → cancelled',
    'failed → queued', 'failed → completed', 'failed → cancelled',
    'cancelled → queued', 'cancelled → completed'
);
comment on function pgcoord_private.may_move(text, text) is 'Whether a phase in the first state may become the second.';

create or replace function pgcoord_private.stored_outcome(p_phase public.phase_queue, p_attempt pgcoord.attempt) returns text
language sql immutable
return coalesce((p_attempt).outcome, (p_attempt).ending, case when (p_attempt).id is null then (p_phase).status end);
comment on function pgcoord_private.stored_outcome(public.phase_queue, pgcoord.attempt) is
    'How an attempt ended or shall end, or the status of a phase that never had one; null while it lives.';
