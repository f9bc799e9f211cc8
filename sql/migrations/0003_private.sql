-- Functions and views have two schemas from here on: pgcoord holds what people call and look at, pgcoord_private the rest.
-- What the first release made of them is dropped: sql/functions makes all of it anew, in the same transaction.

create schema pgcoord_private;
comment on schema pgcoord_private is
    'pgcoord: functions and views behind those of the schema pgcoord; each release may change them without notice.';

do $$
declare
    v record;
    v_dropped boolean;
    v_left text;
begin
    -- In the order in which everybody else locks: a drop of triggers locks readers out, too.
    lock table pgcoord.control, public.planned_features, public.phase_queue, pgcoord.attempt, pgcoord.slot, pgcoord.event
        in access exclusive mode;
    for v in
        select format('drop trigger %I on %s', t.tgname, t.tgrelid::regclass) as statement
        from pg_trigger as t
            join pg_proc as p on p.oid = t.tgfoid
        where p.pronamespace = 'pgcoord'::regnamespace and not t.tgisinternal
    loop
        execute v.statement;
    end loop;
    -- Again and again what nothing else depends on, never `cascade`: somebody's own view of a view of ours is theirs.
    loop
        v_dropped := false;
        v_left := null;
        for v in
            select format('drop function %s', oid::regprocedure) as statement from pg_proc
            where pronamespace = 'pgcoord'::regnamespace
            union all
            select format('drop view %s', oid::regclass) from pg_class
            where relnamespace = 'pgcoord'::regnamespace and relkind = 'v'
        loop
            begin
                execute v.statement;
                v_dropped := true;
            exception when dependent_objects_still_exist then
                get stacked diagnostics v_left = pg_exception_detail;
            end;
        end loop;
        exit when v_left is null;
        if not v_dropped then
            raise exception using
                errcode = 'dependent_objects_still_exist',
                message = 'something that is not of pgcoord depends on functions or views of pgcoord, which this release makes anew: '
                    || v_left,
                hint = 'Drop it, upgrade, then create it again.';
        end if;
    end loop;
end $$;
