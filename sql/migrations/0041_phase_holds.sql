-- The rules of a phase in one check, whose stored text is a third as long as that of the five together: Postgres reads it
-- back with every statement that updates a phase. (The function is that of sql/functions/12_bounds.sql.)
create or replace function pgcoord_private.phase_holds(
    p_number integer, p_status text, p_slot smallint, p_unmet integer, p_eligible_at timestamptz, p_gated boolean, p_retry_at timestamptz
) returns boolean
language plpgsql immutable
set search_path = pg_catalog, pg_temp as $$
declare
    v_rule text;
begin
    if p_number > 0
        and (p_status in ('ready', 'running')) = (p_slot is not null)
        and (p_slot is null or p_eligible_at is not null and not p_gated)
        and (p_eligible_at is null) = (p_unmet <> 0)
        and (p_retry_at is null
            or p_status = 'queued' and p_retry_at between '0001-01-02 00:00+00' and '9999-12-31 23:59:59+00')
    then
        return true;
    end if;
    v_rule := case
        when p_number <= 0 then 'number_is_positive'
        when (p_status in ('ready', 'running')) <> (p_slot is not null) then 'live_holds_slot'
        when p_slot is not null and (p_eligible_at is null or p_gated) then 'starts_when_claimable'
        when (p_eligible_at is null) <> (p_unmet <> 0) then 'eligible_when_met'
        else 'retry_is_queued'
    end;
    raise exception using
        errcode = 'check_violation', schema = 'public', table = 'phase_queue', constraint = 'phase_queue_' || v_rule,
        message = format('phase %s violates phase_queue_%s: %s', p_number, v_rule, case v_rule
            when 'number_is_positive' then 'phases are numbered from 1'
            when 'live_holds_slot' then format('it is %s and holds %s', p_status, coalesce('slot ' || p_slot, 'no slot'))
            when 'starts_when_claimable' then format('it holds slot %s before it may start', p_slot)
            when 'eligible_when_met' then format('%s of its prerequisites are open, and eligible_at is %s', p_unmet, coalesce(p_eligible_at::text, 'null'))
            else format('it is %s with retry_at %s', p_status, p_retry_at) end);
end $$;
alter table public.phase_queue
    drop constraint phase_queue_number_is_positive,
    drop constraint phase_queue_eligible_when_met,
    drop constraint phase_queue_retry_is_queued,
    drop constraint phase_queue_live_holds_slot,
    drop constraint phase_queue_starts_when_claimable,
    add constraint phase_queue_holds check (
        pgcoord_private.phase_holds(phase_number, status, slot, unmet, eligible_at, gated, retry_at)
    );
