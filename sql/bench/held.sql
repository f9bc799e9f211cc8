-- At the head of the line, 50,000 phases that could be claimed, were their feature not paused.
with feature as (
    insert into public.planned_features (title, paused_at) values ('held', now()) returning id
)
insert into public.phase_queue (feature_id, phase_number, priority)
select id, n, 1 from feature, generate_series(1, 50000) as n
