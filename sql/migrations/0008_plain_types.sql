-- status is a text and phase_data a jsonb to every client: many read a domain as an unknown type, and cannot write it.
-- The rules stand where a value is given (pgcoord_private.check_status, check_phase_data), with phase and hint: a check of
-- the table would be read back from its stored form with every statement, which made a hop dearer by 4 %.
-- Functions, views and triggers are dropped, as their columns change types: sql/functions makes all of them anew.

do $$
declare
    v record;
    v_dropped boolean;
    v_left text;
begin
    lock table pgcoord.control, public.planned_features, public.phase_queue, pgcoord.attempt, pgcoord.slot, pgcoord.event
        in access exclusive mode;
    for v in
        select format('drop trigger %I on %s', t.tgname, t.tgrelid::regclass) as statement
        from pg_trigger as t
            join pg_proc as p on p.oid = t.tgfoid
        where p.pronamespace in ('pgcoord'::regnamespace, 'pgcoord_private'::regnamespace) and not t.tgisinternal
    loop
        execute v.statement;
    end loop;
    -- Again and again what nothing else depends on, never `cascade`: somebody's own view of a view of ours is theirs.
    loop
        v_dropped := false;
        v_left := null;
        for v in
            select format('drop function %s', oid::regprocedure) as statement from pg_proc
            where pronamespace in ('pgcoord'::regnamespace, 'pgcoord_private'::regnamespace)
            union all
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
                message = 'something that is not of pgcoord depends on functions or views of pgcoord, which this release makes anew: '
                    || v_left,
                hint = 'Drop it, upgrade, then create it again.';
        end if;
    end loop;
    begin
        alter table public.phase_queue
            alter column status type text,
            alter column phase_data type jsonb;
    exception when feature_not_supported then
        get stacked diagnostics v_left = pg_exception_detail;
        raise exception using
            errcode = 'dependent_objects_still_exist',
            message = 'something that is not of pgcoord depends on a column of phase_queue whose type changes: ' || v_left,
            hint = 'Drop it, upgrade, then create it again.';
    end;
    alter table pgcoord.errand
        alter column status type text,
        add constraint errand_status_is_known
            check (status in ('queued', 'ready', 'running', 'completed', 'failed', 'blocked', 'cancelled'));
    drop domain pgcoord.phase_status;
    drop domain pgcoord.phase_data;
end $$;
