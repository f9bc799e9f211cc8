-- What others have made that would go with the tables and views of pgcoord: it is theirs to remove, or to keep.
with ours as (
    select oid, oid::regclass as name from pg_class
    where relnamespace in ('pgcoord'::regnamespace, 'pgcoord_private'::regnamespace)
        or oid in ('public.phase_queue'::regclass, 'public.planned_features'::regclass)
)
select format('view %s, on %s', r.ev_class::regclass, string_agg(distinct o.name::text, ', ')) as words
from ours as o
    join pg_depend as d on d.refclassid = 'pg_class'::regclass and d.refobjid = o.oid and d.classid = 'pg_rewrite'::regclass
    join pg_rewrite as r on r.oid = d.objid
where r.ev_class not in (select oid from ours)
group by r.ev_class
union all
select format('foreign key %s of %s, to %s', c.conname, c.conrelid::regclass, o.name)
from ours as o
    join pg_constraint as c on c.confrelid = o.oid and c.contype = 'f'
where c.conrelid not in (select oid from ours)
union all
select format('%s %s, in the schema pgcoord_v1', case relkind when 'v' then 'view' when 'S' then 'sequence' else 'table' end, oid::regclass)
from pg_class
where relnamespace = 'pgcoord_v1'::regnamespace and relkind in ('r', 'p', 'v', 'm', 'f', 'S')
    and relname not in ('migration', 'old_relation', 'decision', 'decision_id_seq')
    and relname not in (select name from pgcoord_v1.old_relation)
    and not exists (
        select from pg_depend as d join pg_class as t on t.oid = d.refobjid
        where d.classid = 'pg_class'::regclass and d.objid = pg_class.oid and d.deptype in ('a', 'i')
            and d.refclassid = 'pg_class'::regclass
    )
order by 1;
