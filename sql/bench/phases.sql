-- A chain: each phase waits for the one before it.
insert into public.phase_queue (feature_id, phase_number, depends_on_phases)
select %s, n, case when n = 1 then '[]' else jsonb_build_array(n - 1) end
from generate_series(1, %s) as n
