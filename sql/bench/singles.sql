-- Phases that wait for nothing, in turn from each feature: neighbours in the line are of different features.
insert into public.phase_queue (feature_id, phase_number)
select f.id, n
from public.planned_features as f, generate_series(1, %s) as n
order by n, f.id
