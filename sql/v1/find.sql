-- The tables of version 1 in this database: each by its name and the columns without which it would not be one. (Some
-- tables of ours have the same names: they are left out where the database has the schema pgcoord.)
select c.relname as name, n.nspname as schema, pg_get_userbyid(c.relowner) as owner, t.recognised and c.relkind in ('r', 'p') as recognised
from pg_class as c
    join pg_namespace as n on n.oid = c.relnamespace
    cross join lateral (
        select array_agg(attname::text) as columns from pg_attribute where attrelid = c.oid and attnum > 0 and not attisdropped
    ) as a
    cross join lateral (
        select case c.relname
            when 'phase_queue' then a.columns @> '{queue_id,phase_number}' and a.columns && '{parent_issue,feature_id}'
            when 'planned_features' then a.columns @> '{id,title}'
            when 'queue_config' then a.columns @> '{config_key,config_value}'
            when 'webhook_events' then a.columns @> '{webhook_id,webhook_type}'
            when 'adw_locks' then a.columns @> '{issue_number,adw_id}'
        end as recognised
    ) as t
where c.relname in ('phase_queue', 'planned_features', 'queue_config', 'webhook_events', 'adw_locks')
    and c.relkind in ('r', 'p', 'v', 'm', 'f')
    and n.nspname not in ('pgcoord', 'pgcoord_private', 'pgcoord_v1', 'information_schema') and n.nspname !~ '^pg_'
    and not (
        n.nspname = 'public' and c.relname in ('phase_queue', 'planned_features')
        and to_regclass('pgcoord.migration') is not null
    )
order by n.nspname <> 'public', n.nspname, c.relname;
