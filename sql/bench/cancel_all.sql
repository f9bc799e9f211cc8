select pgcoord.cancel_feature(id, 'the measurement is over')
from public.planned_features
where id in (select feature_id from public.phase_queue where status in ('queued', 'ready', 'running', 'blocked'))
