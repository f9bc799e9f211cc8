-- Phases that have run under the new schema: those with an attempt, unless it was adopted and has not ended.
select a.queue_id
from pgcoord.attempt as a
where a.ended_at is not null or a.number > 1
    or not exists (select from pgcoord_v1.decision as d where d.kind = 'adopted' and d.name = a.queue_id)
group by a.queue_id
order by min(a.id);
