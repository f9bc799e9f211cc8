-- Phases that wait for the phase before them, in each feature.
insert into public.phase_queue (feature_id, phase_number, depends_on_phases)
select f.id, n, jsonb_build_array(n - 1)
from public.planned_features as f, generate_series(2, %s + 1) as n
order by f.id, n
