-- The other connections to this database. (Of other users' sessions an ordinary user sees no more than this.)
select format('process %s of user %s%s%s%s', pid, usename, ', ' || nullif(application_name, ''), ', from ' || host(client_addr),
    to_char(backend_start, '", since "YYYY-MM-DD HH24:MI:SS')) as words
from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid()
    and usesysid is not null and leader_pid is null and coalesce(backend_type, 'client backend') = 'client backend'
order by pid;
