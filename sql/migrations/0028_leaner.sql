-- A phase is updated at each step of its life, and Postgres reads its checks back from text with each such statement, at
-- the price of their length. What the tables must hold with all triggers off stays a check, as short as it can be said; the rest
-- of a row's rules are looked at where the statement is settled (pgcoord_private.contradicts_itself).
alter table public.phase_queue
    drop constraint phase_queue_number_is_positive,
    drop constraint phase_queue_eligible_when_met,
    drop constraint phase_queue_retry_is_queued,
    drop constraint phase_queue_live_holds_slot,
    drop constraint phase_queue_starts_after_prerequisites,
    drop constraint phase_queue_starts_after_approval,
    add constraint phase_queue_live_holds_slot check ((status = any ('{ready,running}')) = (slot is not null)),
    add constraint phase_queue_starts_when_claimable check (slot is null or eligible_at is not null and not gated);

-- So are the conditions of triggers: these two are called where the statement is settled.
drop trigger if exists phase_queue_end_leaves_errand on public.phase_queue;
drop function if exists pgcoord_private.leave_errand();
drop trigger if exists event_insert_notes on pgcoord.event;
drop function if exists pgcoord_private.note_event();
