-- How an attempt ended is a text to every client: many take a domain for an unknown type. The rule stands where a value is
-- given (pgcoord_private.check_outcome); a check of the table would be read back with every statement (0008).
-- Views and the functions that return their rows are dropped, as columns change types: sql/functions makes them anew.

do $$
declare
    v record;
    v_dropped boolean;
    v_left text;
begin
    lock table pgcoord.control, public.planned_features, public.phase_queue, pgcoord.attempt, pgcoord.slot, pgcoord.event
        in access exclusive mode;
    drop trigger if exists attempt_ending_tells on pgcoord.attempt;
    -- Again and again what nothing else depends on, never `cascade`: somebody's own view of a view of ours is theirs.
    loop
        v_dropped := false;
        v_left := null;
        for v in
            -- Functions of ours that take, return or (begin atomic) read a row of a view, or read a column whose type changes.
            select format('drop function %s', p.oid::regprocedure) as statement
            from pg_proc as p
                join pg_depend as d on d.classid = 'pg_proc'::regclass and d.objid = p.oid
                left join pg_type as t on d.refclassid = 'pg_type'::regclass and t.oid = d.refobjid
                left join pg_type as e on e.oid = t.typelem
                join pg_class as c on c.oid in (t.typrelid, e.typrelid)
                    or d.refclassid = 'pg_class'::regclass and c.oid = d.refobjid
                left join pg_attribute as a on a.attrelid = c.oid and a.attnum = d.refobjsubid
            where p.pronamespace in ('pgcoord'::regnamespace, 'pgcoord_private'::regnamespace)
                and (c.relkind = 'v' or c.oid = 'pgcoord.attempt'::regclass and a.attname in ('ending', 'outcome'))
            union
            select format('drop view %s', oid::regclass) from pg_class
            where relnamespace in ('pgcoord'::regnamespace, 'pgcoord_private'::regnamespace) and relkind = 'v'
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
                message = 'something that is not of pgcoord depends on views of pgcoord, which this release makes anew: ' || v_left,
                hint = 'Drop it, upgrade, then create it again.';
        end if;
    end loop;
    begin
        alter table pgcoord.attempt
            alter column ending type text,
            alter column outcome type text;
    exception when feature_not_supported then
        get stacked diagnostics v_left = pg_exception_detail;
        raise exception using
            errcode = 'dependent_objects_still_exist',
            message = 'something that is not of pgcoord depends on a column of pgcoord.attempt whose type changes: ' || v_left,
            hint = 'Drop it, upgrade, then create it again.';
    end;
    drop domain pgcoord.attempt_outcome;
end $$;
