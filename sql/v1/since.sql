-- What has happened since the migration, and is gone with it.
select format('%s%s, by %s%s', replace(e.kind, '_', ' '),
    coalesce(' ' || e.queue_id, ' ' || e.feature_id, '') || coalesce(' ' || e.from_status, '') || coalesce(' → ' || e.to_status, ''),
    e.actor, ': ' || e.reason) as words
from pgcoord.event as e, pgcoord_v1.migration as m
where e.id > m.last_event
order by e.id;
