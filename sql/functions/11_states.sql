-- The table of states: the permitted transitions, and the outcomes of attempts.

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

-- Whether a phase in this state has ended: only a person changes it from now on.
create or replace function pgcoord_private.ended(p_status text) returns boolean
language sql immutable
return p_status in ('completed', 'failed', 'cancelled');

-- Whether a prerequisite in this state is met for a dependent with this run_when. For "completed" it must be completed; for
-- "failed" and "always" it must have ended. A blocked one will not start, so it counts as ended.
create or replace function pgcoord_private.is_met(p_status text, p_run_when text) returns boolean
language sql immutable
return p_status = 'completed' or p_run_when <> 'completed' and p_status in ('failed', 'cancelled', 'blocked');

-- Refuse (PC005) an unknown run_when, and "failed" for a phase without prerequisites.
create or replace function pgcoord_private.check_run_when(p_queue_id text, p_run_when text, p_depends_on jsonb) returns void
language plpgsql immutable
set search_path = pg_catalog, pg_temp as $$
begin
    if p_run_when not in ('completed', 'failed', 'always') then
        raise exception using
            errcode = 'PC005',
            message = format('run_when of phase %s cannot be %s', p_queue_id, quote_literal(left(p_run_when, 100))),
            hint = 'It is completed, failed or always; left out, it is completed.';
    elsif p_run_when = 'failed' and p_depends_on = '[]' then
        raise exception using
            errcode = 'PC005',
            message = format('phase %s runs when what it depends on fails, and depends on nothing', p_queue_id),
            hint = 'Name its prerequisites in depends_on_phases, such as [1, 3].';
    end if;
end $$;

-- The outcome of an attempt, or the end that was requested for it; for a phase without attempts its status. Null while the
-- attempt is alive.
create or replace function pgcoord_private.stored_outcome(p_phase public.phase_queue, p_attempt pgcoord.attempt) returns text
language sql immutable
return coalesce((p_attempt).outcome, (p_attempt).ending, case when (p_attempt).id is null then (p_phase).status end);

-- Refuse an unknown status.
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

-- Whether the current user may write the state of phases and features: the owner, coordinators, and functions of the schema
-- pgcoord may. Clients call these functions.
create or replace function pgcoord_private.writes_state() returns boolean
language sql stable
return has_table_privilege('pgcoord.attempt'::regclass, 'update');
