-- The rows that were read and the rows made of them, as lines of the report.
select words
from (
    select 1 as part, 0 as place, format('times without a zone are read in %s', time_zone) as words from pgcoord_v1.migration
    union all
    select 2, 0, format('planned_features: %s, %s carried over; %s made for phases',
        pgcoord_private.counted((select count(*) from pgcoord_v1.feature), 'row', 'rows'),
        (select count(*) from pgcoord_v1.feature where id is not null and not repeated),
        pgcoord_private.counted((select count(*) from pgcoord_v1.request where is_new), 'more feature', 'more features'))
    union all
    select 3, 0, format('phase_queue: %s, %s carried over', pgcoord_private.counted((select count(*) from pgcoord_v1.phase), 'row', 'rows'),
        (select count(*) from pgcoord_v1.carried))
    union all
    select 4, row_number() over (order by count(*) desc, c.old_status, q.status),
        format('  %s → %s: %s', coalesce(c.old_status, 'no status'), q.status, count(*))
    from pgcoord_v1.carried as c join public.phase_queue as q using (feature_id, phase_number)
    group by c.old_status, q.status
) as line
order by part, place;
