-- Bring work in: store a feature with its plan, change it, queue its phases, read it.

-- Refuse a JSON value that is not a feature with phases. Rules of single phases are checked when they are inserted.
-- Errors: PC005, naming the member.
create or replace function pgcoord_private.check_feature_object(p_feature jsonb) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_fault text;
begin
    v_fault := case
        when jsonb_typeof(p_feature) is distinct from 'object' then 'a feature is a JSON object'
        when jsonb_typeof(p_feature -> 'title') is distinct from 'string' or btrim(p_feature ->> 'title') = ''
            then 'a feature has a "title", a string that is not empty'
        when p_feature @? 'strict $.priority ? (@.type() != "null"
                && (@.type() != "number" || @ < -2147483648 || @ > 2147483647 || @.floor() != @))'
            then '"priority" is a whole number'
        when p_feature @? 'strict $.estimated_hours ? (@.type() != "null" && (@.type() != "number" || @ < 0))'
            then '"estimated_hours" is a number, 0 or more'
        when p_feature @? 'strict $.max_cost_usd ? (@.type() != "null" && (@.type() != "number" || @ <= 0))'
            then '"max_cost_usd" is a number above 0'
        when coalesce(jsonb_typeof(p_feature -> 'tags'), 'array') not in ('array', 'null') then '"tags" is an array'
        when coalesce(jsonb_typeof(p_feature -> 'phases'), 'array') not in ('array', 'null') then '"phases" is an array'
        else (
            select format('element %s of "phases" is an object with a "phase_number", a positive whole number,'
                ' and a "priority", if any, that is a whole number', place)
            from jsonb_array_elements(
                case jsonb_typeof(p_feature -> 'phases') when 'array' then p_feature -> 'phases' else '[]' end
            ) with ordinality as element (phase, place)
            where jsonb_typeof(phase) <> 'object' or not coalesce(phase @? 'strict $.phase_number
                    ? (@.type() == "number" && @ >= 1 && @ <= 2147483647 && @.floor() == @)', false)
                or phase @? 'strict $.priority ? (@.type() != "null"
                    && (@.type() != "number" || @ < -2147483648 || @ > 2147483647 || @.floor() != @))'
            order by place
            limit 1
        )
    end;
    if v_fault is not null then
        raise exception using
            errcode = 'PC005',
            message = format('this is not a feature: %s', v_fault),
            hint = '{"title": ..., "description": ..., "phases": [{"phase_number": 1, "title": ..., "prompt_content": ..., "depends_on_phases": []}]}';
    end if;
end $$;

-- Refuse an id or a priority that the columns cannot hold, where the cast would name neither.
-- Errors: PC005.
create or replace function pgcoord_private.check_feature_numbers(p_id bigint, p_priority bigint) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp as $$
begin
    if p_id not between 1 and 2147483647 then
        raise exception using
            errcode = 'PC005',
            message = format('a feature cannot have the id %s', p_id),
            hint = 'Leave p_id out: the database gives the next.';
    end if;
    perform pgcoord_private.check_priority('a feature', p_priority);
end $$;

create or replace function pgcoord.add_feature(
    p_title text, p_description text default null, p_priority bigint default null, p_tags text[] default null,
    p_estimated_hours numeric default null, p_item_type text default null, p_id bigint default null
) returns public.planned_features
language sql
security definer set search_path = pg_catalog, pg_temp
begin atomic
    select pgcoord_private.check_feature_numbers(p_id, coalesce(p_priority, 0));
    insert into public.planned_features (id, title, description, priority, tags, estimated_hours, item_type)
    values (p_id, p_title, p_description, p_priority, to_jsonb(p_tags), p_estimated_hours, p_item_type)
    returning *;
end;
comment on function pgcoord.add_feature(text, text, bigint, text[], numeric, text, bigint) is
    'Insert a feature; returns its row, with the id that add_phase takes.';

-- Refuse a phase that exists already (23505, as an INSERT does), or (PC005) a number that the column cannot hold.
create or replace function pgcoord_private.check_number_is_free(p_feature_id bigint, p_phase_number bigint) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_status text := (select status from public.phase_queue where feature_id = p_feature_id and phase_number = p_phase_number);
begin
    if p_phase_number not between 1 and 2147483647 then
        raise exception using
            errcode = 'PC005',
            message = format('feature %s cannot have a phase %s', p_feature_id, p_phase_number),
            hint = 'Number the phases of a feature from 1.';
    end if;
    if v_status is not null then
        raise exception using
            errcode = '23505',
            message = format('feature %s has a phase %s already, which is %s', p_feature_id, p_phase_number, v_status),
            hint = 'Give another number, or change that phase: ''pgcoord edit'', or an UPDATE of phase_queue.';
    end if;
end $$;

create or replace function pgcoord.add_phase(
    p_feature_id bigint, p_phase_number bigint, p_after bigint[] default '{}', p_data jsonb default '{}',
    p_priority bigint default null, p_queue_id text default null, p_retry_at timestamptz default null
) returns public.phase_queue
language sql
security definer set search_path = pg_catalog, pg_temp
begin atomic
    select
        pgcoord_private.check_feature(p_feature_id),
        pgcoord_private.check_number_is_free(p_feature_id, p_phase_number),
        pgcoord_private.check_priority(format('phase %s of feature %s', p_phase_number, p_feature_id), coalesce(p_priority, 0));
    insert into public.phase_queue (feature_id, phase_number, depends_on_phases, phase_data, priority, queue_id, retry_at)
    values (p_feature_id, p_phase_number, to_jsonb(p_after), p_data, p_priority, p_queue_id, p_retry_at)
    returning *;
end;
comment on function pgcoord.add_phase(bigint, bigint, bigint[], jsonb, bigint, text, timestamptz) is
    'Insert a phase that comes after the phases of these numbers: select * from pgcoord.add_phase(104, 3, array[1, 2], ''{"title": "…"}''). Returns its row.';

create or replace function pgcoord.store_feature(p_feature jsonb) returns integer
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_id integer;
begin
    perform pgcoord_private.check_feature_object(p_feature);
    insert into public.planned_features (title, description, item_type, priority, estimated_hours, max_cost_usd, tags, plan)
    values (
        p_feature ->> 'title', p_feature ->> 'description', coalesce(p_feature ->> 'item_type', 'feature'),
        coalesce(nullif(p_feature -> 'priority', 'null')::integer, 50), (p_feature ->> 'estimated_hours')::numeric,
        (p_feature ->> 'max_cost_usd')::numeric,
        coalesce(nullif(p_feature -> 'tags', 'null'), '[]'), coalesce(nullif(p_feature -> 'phases', 'null'), '[]')
    )
    returning id into v_id;
    return v_id;
end $$;
comment on function pgcoord.store_feature(jsonb) is
    'Store a feature with its plan, given as one JSON object, without running it; returns its id.';

create or replace function pgcoord.submit_feature(p_feature jsonb) returns integer
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_id integer := pgcoord.store_feature(p_feature);
begin
    if (select plan from public.planned_features where id = v_id) <> '[]' then
        perform pgcoord.execute_feature(v_id);
    end if;
    return v_id;
end $$;
comment on function pgcoord.submit_feature(jsonb) is
    'Store a feature, given as one JSON object, and queue its phases at once; returns its id. A phase without depends_on_phases waits for nothing; one with "status": "completed" counts as done.';

-- Refuse (PC002) to change the plan of a feature whose phases are queued.
create or replace function pgcoord_private.refuse_queued(p_feature_id integer) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    if exists (select from public.phase_queue where feature_id = p_feature_id) then
        raise exception using
            errcode = 'PC002',
            message = format('the phases of feature %s are queued: its plan stays as it is', p_feature_id),
            hint = 'Change the phases themselves (phase_queue), or add some.';
    end if;
end $$;

-- Change the given members of a feature. With p_version, only if that is its current version.
-- Errors: PC001, PC002 for the plan of a feature whose phases are queued, PC005, PC010 when it was changed meanwhile.
create or replace function pgcoord.change_feature(p_feature_id bigint, p_changes jsonb, p_version text default null)
returns text
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_feature public.planned_features;
    v_version text;
begin
    perform pgcoord_private.lock_feature(p_feature_id);
    select * into v_feature from public.planned_features where id = p_feature_id;
    select version into v_version from pgcoord.feature where id = p_feature_id;
    if p_version <> v_version then
        raise exception using
            errcode = 'PC010',
            message = format('feature %s was changed meanwhile', p_feature_id),
            hint = 'Read it again, and decide anew.';
    end if;
    perform pgcoord_private.check_feature_object(jsonb_build_object('title', v_feature.title) || p_changes);
    if p_changes ? 'phases' then
        perform pgcoord_private.refuse_queued(p_feature_id::integer);
    end if;
    update public.planned_features
    set title = coalesce(p_changes ->> 'title', title),
        description = case when p_changes ? 'description' then p_changes ->> 'description' else description end,
        item_type = coalesce(p_changes ->> 'item_type', item_type),
        priority = coalesce(nullif(p_changes -> 'priority', 'null')::integer, priority),
        estimated_hours = case when p_changes ? 'estimated_hours' then (p_changes ->> 'estimated_hours')::numeric else estimated_hours end,
        max_cost_usd = case when p_changes ? 'max_cost_usd' then (p_changes ->> 'max_cost_usd')::numeric else max_cost_usd end,
        tags = coalesce(nullif(p_changes -> 'tags', 'null'), tags),
        plan = coalesce(nullif(p_changes -> 'phases', 'null'), plan)
    where id = p_feature_id;
    return (select version from pgcoord.feature where id = p_feature_id);
end $$;
comment on function pgcoord.change_feature(bigint, jsonb, text) is
    'Change the given members of a feature: title, description, item_type, priority, estimated_hours, max_cost_usd, tags, phases (the plan, while none is queued); returns its new version.';

-- The columns from which a feature is planned, and its version, which change_feature takes. Refuse (PC002) a feature whose
-- phases are queued.
create or replace function pgcoord_private.feature_to_plan(p_feature_id integer)
returns table (title text, description text, item_type text, estimated_hours double precision, version text)
language plpgsql stable
security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform pgcoord_private.check_feature(p_feature_id);
    perform pgcoord_private.refuse_queued(p_feature_id::integer);
    return query
    select f.title, f.description, f.item_type, f.estimated_hours::double precision, f.version
    from pgcoord.feature as f
    where f.id = p_feature_id;
end $$;

-- The phases of a feature as submit_feature takes them: the queued ones in their present form, else the stored plan.
create or replace function pgcoord_private.plan_of(p_feature_id integer) returns jsonb
language sql stable
begin atomic
    select coalesce(
        (select jsonb_agg(
            p.phase_data || jsonb_strip_nulls(jsonb_build_object(
                'phase_number', p.phase_number, 'depends_on_phases', p.depends_on_phases, 'priority', p.priority,
                'run_when', nullif(p.run_when, 'completed'), 'lock', p.lock))
            order by p.phase_number)
        from public.phase_queue as p
        where p.feature_id = p_feature_id),
        (select f.plan from public.planned_features as f where f.id = p_feature_id),
        '[]');
end;

create or replace function pgcoord.execute_feature(p_feature_id bigint) returns integer
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_feature public.planned_features;
    v_twice jsonb;
    v_inserted integer;
begin
    perform pgcoord_private.lock_feature(p_feature_id);
    select * into v_feature from public.planned_features where id = p_feature_id;
    if v_feature.plan is null
        or v_feature.plan = '[]' and not exists (select from public.phase_queue where feature_id = p_feature_id)
    then
        raise exception using
            errcode = 'PC002',
            message = format('feature %s has no plan: there is nothing to execute', p_feature_id),
            hint = '''pgcoord plan'' or the panel makes one; or store one (planned_features.plan), or insert its phases into phase_queue.';
    elsif exists (select from public.phase_queue where feature_id = p_feature_id) then
        return 0;
    end if;
    perform pgcoord_private.check_feature_object(jsonb_build_object('title', v_feature.title, 'phases', v_feature.plan));
    select phase -> 'phase_number' into v_twice
    from jsonb_array_elements(v_feature.plan) as phase
    group by phase -> 'phase_number' having count(*) > 1
    order by phase -> 'phase_number'
    limit 1;
    if found then
        raise exception using
            errcode = 'PC002',
            message = format('the plan of feature %s has phase %s more than once', p_feature_id, v_twice),
            hint = 'Give each phase a number of its own.';
    end if;
    insert into public.phase_queue (feature_id, phase_number, status, depends_on_phases, priority, run_when, lock, phase_data)
    select p_feature_id, (phase -> 'phase_number')::integer,
        case when phase ->> 'status' = 'completed' then 'completed' else 'queued' end,
        nullif(phase -> 'depends_on_phases', 'null'),
        coalesce(nullif(phase -> 'priority', 'null')::integer, v_feature.priority), phase ->> 'run_when',
        phase ->> 'lock',
        jsonb_strip_nulls(jsonb_build_object(
            'title', phase -> 'title', 'prompt_content', phase -> 'prompt_content',
            'workflow_type', phase -> 'workflow_type', 'estimated_hours', phase -> 'estimated_hours',
            'files', phase -> 'files', 'gate', phase -> 'gate', 'check', phase -> 'check', 'environment', phase -> 'environment',
            'max_attempts', phase -> 'max_attempts', 'timeout_seconds', phase -> 'timeout_seconds'
        ))
    from jsonb_array_elements(v_feature.plan) as phase
    order by (phase -> 'phase_number')::integer;
    get diagnostics v_inserted = row_count;
    return v_inserted;
end $$;
comment on function pgcoord.execute_feature(bigint) is
    'Queue the phases of the stored plan; returns their number. A second call changes nothing and returns 0.';

create or replace function pgcoord.feature_object(p_feature_id bigint) returns jsonb
language plpgsql stable
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_feature jsonb;
    v_phases jsonb;
begin
    perform pgcoord_private.check_feature(p_feature_id);
    select to_jsonb(f) - 'plan', coalesce(f.plan, '[]') into v_feature, v_phases from pgcoord.feature as f where f.id = p_feature_id;
    if (v_feature -> 'total_phases')::integer > 0 then
        -- If phase_data has a member with the name of a column, the column wins.
        select jsonb_agg((phase -> 'phase_data') || (phase - 'phase_data')) into v_phases
        from pgcoord_private.phase_objects(array(
            select queue_id from public.phase_queue where feature_id = p_feature_id order by phase_number
        )) as phase;
    end if;
    return v_feature || jsonb_build_object('phases', v_phases);
end $$;
comment on function pgcoord.feature_object(bigint) is
    'A feature with its phases as one JSON object, which submit_feature takes: the planned phases, or the queued ones with their states.';
