-- The sessions of a database, each with its last statement; ours by their name.
select pid, application_name = 'pgcoord bench' as ours, query_start
from pg_stat_activity
where datname = %s
