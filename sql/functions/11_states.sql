-- The table of states: which may follow which, and how an attempt ended.

-- Whether a phase in the first state may become the second: docs/design.md, section 4.
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

-- Whether a phase in this state has ended: nothing happens to it by itself.
create or replace function pgcoord_private.ended(p_status text) returns boolean
language sql immutable
return p_status in ('completed', 'failed', 'cancelled');

-- How an attempt ended or shall end, or the status of a phase that never had one; null while it lives.
create or replace function pgcoord_private.stored_outcome(p_phase public.phase_queue, p_attempt pgcoord.attempt) returns text
language sql immutable
return coalesce((p_attempt).outcome, (p_attempt).ending, case when (p_attempt).id is null then (p_phase).status end);

-- Refuse what is no status at all.
-- Errors: PC005.
create or replace function pgcoord_private.check_status(p_queue_id text, p_status text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp as $$
begin
    if p_status in ('queued', 'ready', 'running', 'completed', 'failed', 'blocked', 'cancelled') then
        return;
    end if;
    raise exception using
        errcode = 'PC005',
        message = format('phase %s cannot have the status %s', p_queue_id, coalesce(quote_literal(left(p_status, 100)), 'null')),
        hint = 'A status is queued, ready, running, completed, failed, blocked or cancelled; left out, it is queued.';
end $$;

-- Whether whoever acts writes the state of phases and features by hand: the owner, coordinators, and functions of
-- the schema pgcoord. Clients have these functions.
create or replace function pgcoord_private.writes_state() returns boolean
language sql stable
return has_table_privilege('pgcoord.attempt'::regclass, 'update');
