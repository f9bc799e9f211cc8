-- The old tables go into the schema pgcoord_v1: renamed, not copied, so that they are what they were, and going back is
-- the same once more. Indexes, sequences of their own, rights, triggers and comments go with them; a sequence that a
-- default calls without belonging to the table would stay behind with a name that we need, and is moved as well.
do $$
declare
    v_relation record;
begin
    insert into pgcoord_v1.old_relation (name, kind, came_from)
    select distinct s.relname, 'sequence', n.nspname
    from pgcoord_v1.old_relation as o
        join pg_attrdef as a on a.adrelid = to_regclass(quote_ident(o.came_from) || '.' || quote_ident(o.name))
        join pg_depend as d on d.classid = 'pg_attrdef'::regclass and d.objid = a.oid and d.refclassid = 'pg_class'::regclass
        join pg_class as s on s.oid = d.refobjid and s.relkind = 'S'
        join pg_namespace as n on n.oid = s.relnamespace and n.nspname = o.came_from
    where not exists (
        select from pg_depend as owned
        where owned.classid = 'pg_class'::regclass and owned.objid = s.oid and owned.deptype in ('a', 'i')
            and owned.refclassid = 'pg_class'::regclass
    );
    for v_relation in select * from pgcoord_v1.old_relation where came_from is not null order by kind, name loop
        execute format('alter %s %I.%I set schema pgcoord_v1', v_relation.kind, v_relation.came_from, v_relation.name);
    end loop;
end $$;
