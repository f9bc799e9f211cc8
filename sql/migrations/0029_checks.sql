-- What a row may say of itself is held by the table again, whatever triggers do or do not run: a check costs each update
-- its length, and these rules are worth it.
alter table public.phase_queue
    add constraint phase_queue_number_is_positive check (phase_number > 0),
    add constraint phase_queue_eligible_when_met check ((eligible_at is null) = (unmet <> 0)),
    add constraint phase_queue_retry_is_queued check (
        retry_at is null or status = 'queued' and retry_at >= '0001-01-02 00:00+00' and retry_at <= '9999-12-31 23:59:59+00'
    );
drop function if exists pgcoord_private.contradicts_itself(integer, text, integer, timestamptz, timestamptz);
drop function if exists pgcoord_private.refuse_contradiction(text, integer, text, timestamptz);
