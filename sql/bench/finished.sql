-- Finished phases with what each leaves behind: an edge, an attempt, four events. The triggers would take minutes.
alter table public.phase_queue disable trigger user;
alter table public.planned_features disable trigger user;
alter table pgcoord.dependency disable trigger user;
alter table pgcoord.attempt disable trigger user;
alter table pgcoord.event disable trigger user;

insert into public.planned_features (id, title)
select 1000000 + f, 'finished' from generate_series(1, {features}) as f;

insert into public.phase_queue (
    queue_id, feature_id, phase_number, status, depends_on_phases, phase_data, adw_id,
    ready_timestamp, started_timestamp, finished_timestamp, eligible_at, attempt
)
select format('queue-%s-%s', 1000000 + f, n), 1000000 + f, n, 'completed',
    case when n = 1 then '[]' else jsonb_build_array(n - 1) end, jsonb_build_object('title', format('Phase %s', n)),
    format('old-%s-%s', f, n), now(), now(), now(), now(), 1
from generate_series(1, {features}) as f, generate_series(1, 100) as n;

insert into pgcoord.dependency (feature_id, prerequisite, dependent)
select feature_id, phase_number - 1, phase_number from public.phase_queue where phase_number > 1;

insert into pgcoord.attempt (
    queue_id, number, adw_id, secret, slot, external, workflow, started_at, ended_at, outcome, exited_at, exit_code
)
select queue_id, 1, adw_id, 'none', 1, true, 'bench', now(), now(), 'completed', now(), 0 from public.phase_queue;

insert into pgcoord.event (kind, feature_id, phase_number, queue_id, from_status, to_status, attempt, actor)
select 'phase_moved', p.feature_id, p.phase_number, p.queue_id, move.f, move.t, 1, 'bench'
from public.phase_queue as p,
    (values (null, 'queued'), ('queued', 'ready'), ('ready', 'running'), ('running', 'completed')) as move (f, t);

alter table public.phase_queue enable trigger user;
alter table public.planned_features enable trigger user;
alter table pgcoord.dependency enable trigger user;
alter table pgcoord.attempt enable trigger user;
alter table pgcoord.event enable trigger user
