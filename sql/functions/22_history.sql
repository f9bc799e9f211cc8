-- History: events, and the times of each attempt.

create or replace view pgcoord.history as
select e.id, e.at, e.kind, e.feature_id, e.phase_number, e.queue_id, e.from_status, e.to_status, e.attempt, a.adw_id, e.actor, e.reason
from pgcoord.event as e
    left join pgcoord.attempt as a on a.queue_id = e.queue_id and a.number = e.attempt;
comment on view pgcoord.history is 'Events, with the adw_id of the attempt that each concerns.';

create or replace view pgcoord.timeline as
select p.feature_id, p.phase_number, p.queue_id, a.number as attempt, a.adw_id, p.created_at as queued_at, p.eligible_at,
    a.claimed_at, a.started_at, a.ended_at, a.outcome, a.slot, a.exit_code
from public.phase_queue as p
    left join pgcoord.attempt as a using (queue_id)
order by p.feature_id, p.phase_number, a.number;
comment on view pgcoord.timeline is 'The times of each phase: waiting, claimed, running, ended; a row for each attempt.';

-- Whether a phase was marked as completed without being run to its end. (A gate that runs nothing is completed by its
-- approval.)
create or replace function pgcoord_private.was_skipped(p_phase public.phase_queue) returns boolean
language sql stable cost 1000
begin atomic
    select p_phase.status = 'completed'
        and not (pgcoord_private.only_asks(p_phase.phase_data) and not p_phase.gated)
        and not exists (
            select from pgcoord.attempt as a
            where a.queue_id = p_phase.queue_id and a.number = p_phase.attempt and a.outcome = 'completed'
        )
        and exists (
            select from pgcoord.event as e
            where e.feature_id = p_phase.feature_id and e.phase_number = p_phase.phase_number
                and e.kind = 'phase_moved' and e.to_status = 'completed'
        );
end;
