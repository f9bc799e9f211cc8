-- Ours goes, the old tables go back to where they were. What was read from SQLite is still in its file.
do $$
declare
    v_relation record;
begin
    -- The right that `upgrade --roles` has given on a schema that was there before.
    if exists (select from pgcoord.migration where name = 'roles') then
        revoke usage on schema public from pgcoord_reader, pgcoord_client, pgcoord_coordinator;
    end if;
    drop schema pgcoord, pgcoord_private cascade;
    drop table public.phase_queue, public.planned_features;
    for v_relation in select * from pgcoord_v1.old_relation order by kind, name loop
        if v_relation.came_from is null then
            execute format('drop table pgcoord_v1.%I', v_relation.name);
        else
            execute format('alter %s pgcoord_v1.%I set schema %I', v_relation.kind, v_relation.name, v_relation.came_from);
        end if;
    end loop;
end $$;
drop table pgcoord_v1.decision, pgcoord_v1.old_relation, pgcoord_v1.migration;
drop schema pgcoord_v1;
