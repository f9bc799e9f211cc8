-- Features: bring work in, pause it, give it up, clear it away. What a feature's state is follows from its phases.

-- Errors: PC001.
create or replace function pgcoord.check_feature(p_feature_id integer) returns void
language plpgsql as $$
begin
    perform 1 from public.planned_features where id = p_feature_id;
    if not found then
        raise exception using
            errcode = 'PC001',
            message = format('there is no feature %s', coalesce(p_feature_id::text, 'null')),
            hint = 'select * from pgcoord.feature shows those that exist.';
    end if;
end $$;
comment on function pgcoord.check_feature(integer) is 'Refuse (PC001) a feature that does not exist.';

create or replace function pgcoord.follow_inserted_ids() returns trigger
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_sequence regclass := pg_get_serial_sequence('public.planned_features', 'id');
    v_highest integer;
begin
    -- The last ids of all would leave none to generate.
    select max(id) into v_highest from new_rows where id < 2000000000;
    if v_highest > coalesce(pg_sequence_last_value(v_sequence), 0) then
        perform setval(v_sequence, v_highest);
    end if;
    insert into pgcoord.event (kind, feature_id, actor, reason)
    select 'feature_inserted', id, pgcoord.actor(), pgcoord.reason() from new_rows order by id;
    perform pg_notify('pgcoord_event', id::text) from new_rows;
    return null;
end $$;
comment on function pgcoord.follow_inserted_ids() is
    'Trigger: an id given by hand moves the sequence on, so that the next generated one is free; log the feature.';

create or replace trigger planned_features_insert_follows after insert on public.planned_features
    referencing new table as new_rows
    for each statement execute function pgcoord.follow_inserted_ids();
comment on trigger planned_features_insert_follows on public.planned_features is 'Move the sequence past ids given by hand; log.';

-- Copy a pause onto the phases that wait, cancel the phases of a cancelled feature, and log what happened to it.
create or replace function pgcoord.follow_feature() returns trigger
language plpgsql as $$
begin
    perform pgcoord.check_isolation();
    if (new.paused_at is null) <> (old.paused_at is null) then
        update public.phase_queue set held = new.paused_at is not null
        where feature_id = new.id and status in ('queued', 'blocked') and held <> (new.paused_at is not null);
        perform pgcoord.log_event(
            case when new.paused_at is null then 'feature_resumed' else 'feature_paused' end, new.paused_reason, new.id);
    end if;
    if (new.cancelled_at is null) <> (old.cancelled_at is null) then
        perform pgcoord.log_event(
            case when new.cancelled_at is null then 'feature_taken_up' else 'feature_cancelled' end, new.cancelled_reason, new.id);
    end if;
    if new.cancelled_at is not null and old.cancelled_at is null then
        perform pgcoord.set_reason(coalesce(new.cancelled_reason, 'feature cancelled'));
        update public.phase_queue set status = 'cancelled'
        where feature_id = new.id and status in ('queued', 'blocked', 'ready', 'running');
        perform pgcoord.set_reason(null);
    end if;
    return null;
end $$;
comment on function pgcoord.follow_feature() is
    'Trigger: hold or release the phases of a feature that was paused or resumed, cancel those of a cancelled one; log it.';

create or replace trigger planned_features_update_follows after update on public.planned_features
    for each row when (old.paused_at is distinct from new.paused_at or old.cancelled_at is distinct from new.cancelled_at)
    execute function pgcoord.follow_feature();
comment on trigger planned_features_update_follows on public.planned_features is 'Hold or release the phases of a paused or resumed feature; log.';

create or replace function pgcoord.stamp_feature() returns trigger
language plpgsql as $$
begin
    if new.id <> old.id then
        raise exception using
            errcode = 'PC008',
            message = format('feature %s keeps its id', old.id),
            hint = 'Insert another feature.';
    end if;
    new.updated_at := now();
    return new;
end $$;
comment on function pgcoord.stamp_feature() is 'Trigger: stamp updated_at; refuse (PC008) another id.';

create or replace trigger planned_features_update_stamps before update on public.planned_features
    for each row execute function pgcoord.stamp_feature();
comment on trigger planned_features_update_stamps on public.planned_features is 'Stamp updated_at; keep the id.';

create or replace function pgcoord.log_changed_feature() returns trigger
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform pgcoord.log_event('feature_changed', null, new.id);
    return null;
end $$;
comment on function pgcoord.log_changed_feature() is 'Trigger: log that a feature was described or planned anew.';

create or replace trigger planned_features_update_logs after update on public.planned_features
    for each row when (
        old.title is distinct from new.title or old.description is distinct from new.description
        or old.plan is distinct from new.plan or old.priority is distinct from new.priority
    )
    execute function pgcoord.log_changed_feature();
comment on trigger planned_features_update_logs on public.planned_features is 'Log what a feature is about, when that changes.';

create or replace function pgcoord.log_deleted_features() returns trigger
language plpgsql as $$
begin
    insert into pgcoord.event (kind, feature_id, actor, reason)
    select 'feature_deleted', id, pgcoord.actor(), pgcoord.reason() from old_rows order by id;
    perform pg_notify('pgcoord_event', id::text) from old_rows;
    return null;
end $$;
comment on function pgcoord.log_deleted_features() is 'Trigger: log deleted features.';

create or replace trigger planned_features_delete_logs after delete on public.planned_features
    referencing old table as old_rows
    for each statement execute function pgcoord.log_deleted_features();
comment on trigger planned_features_delete_logs on public.planned_features is 'Log deleted features.';

-- Refuse what cannot be a feature with its phases. The phases' own rules are checked when they are inserted.
-- Errors: PC005, naming the member.
create or replace function pgcoord.check_feature_object(p_feature jsonb) returns void
language plpgsql as $$
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
            message = format('this is no feature: %s', v_fault),
            hint = '{"title": …, "description": …, "phases": [{"phase_number": 1, "title": …, "prompt_content": …, "depends_on_phases": []}]}';
    end if;
end $$;
comment on function pgcoord.check_feature_object(jsonb) is 'Refuse (PC005) a JSON value that is no feature with phases.';

create or replace function pgcoord.store_feature(p_feature jsonb) returns integer
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_id integer;
begin
    perform pgcoord.check_feature_object(p_feature);
    insert into public.planned_features (title, description, item_type, priority, estimated_hours, tags, plan)
    values (
        p_feature ->> 'title', p_feature ->> 'description', coalesce(p_feature ->> 'item_type', 'feature'),
        coalesce(nullif(p_feature -> 'priority', 'null')::integer, 50), (p_feature ->> 'estimated_hours')::numeric,
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
    'Store a feature, given as one JSON object, and queue its phases at once; returns its id. A phase without depends_on_phases waits for nothing.';

create or replace function pgcoord.refuse_queued(p_feature_id integer) returns void
language plpgsql as $$
begin
    if exists (select from public.phase_queue where feature_id = p_feature_id) then
        raise exception using
            errcode = 'PC002',
            message = format('the phases of feature %s are queued: its plan stays as it is', p_feature_id),
            hint = 'Change the phases themselves (phase_queue), or add some.';
    end if;
end $$;
comment on function pgcoord.refuse_queued(integer) is 'Refuse (PC002) to change the plan of a feature whose phases are queued.';

-- Change what is given of a feature; the rest stays. With p_version, only if it is still as it was then.
-- Errors: PC001, PC002 for the plan of a feature whose phases are queued, PC005, PC010 when it was changed meanwhile.
create or replace function pgcoord.change_feature(p_feature_id integer, p_changes jsonb, p_version text default null)
returns void
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_feature public.planned_features;
    v_version text;
begin
    select * into v_feature from public.planned_features where id = p_feature_id for no key update;
    perform pgcoord.check_feature(p_feature_id);
    select version into v_version from pgcoord.feature where id = p_feature_id;
    if p_version <> v_version then
        raise exception using
            errcode = 'PC010',
            message = format('feature %s was changed meanwhile', p_feature_id),
            hint = 'Read it again, and decide anew.';
    end if;
    perform pgcoord.check_feature_object(jsonb_build_object('title', v_feature.title) || p_changes);
    if p_changes ? 'phases' then
        perform pgcoord.refuse_queued(p_feature_id);
    end if;
    update public.planned_features
    set title = coalesce(p_changes ->> 'title', title),
        description = case when p_changes ? 'description' then p_changes ->> 'description' else description end,
        item_type = coalesce(p_changes ->> 'item_type', item_type),
        priority = coalesce(nullif(p_changes -> 'priority', 'null')::integer, priority),
        estimated_hours = case when p_changes ? 'estimated_hours' then (p_changes ->> 'estimated_hours')::numeric else estimated_hours end,
        tags = coalesce(nullif(p_changes -> 'tags', 'null'), tags),
        plan = coalesce(nullif(p_changes -> 'phases', 'null'), plan)
    where id = p_feature_id;
end $$;
comment on function pgcoord.change_feature(integer, jsonb, text) is
    'Change what is given of a feature: title, description, item_type, priority, estimated_hours, tags, phases (the plan, while none is queued).';

create or replace function pgcoord.feature_to_plan(p_feature_id integer)
returns table (title text, description text, item_type text, estimated_hours double precision, version text)
language plpgsql stable
security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform pgcoord.check_feature(p_feature_id);
    perform pgcoord.refuse_queued(p_feature_id);
    return query
    select f.title, f.description, f.item_type, f.estimated_hours::double precision, f.version
    from pgcoord.feature as f
    where f.id = p_feature_id;
end $$;
comment on function pgcoord.feature_to_plan(integer) is
    'What a feature is planned from, with its version, for change_feature to store the plan; refuse (PC002) one whose phases are queued.';

create or replace function pgcoord.execute_feature(p_feature_id integer) returns integer
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_feature public.planned_features;
    v_twice jsonb;
    v_inserted integer;
begin
    select * into v_feature from public.planned_features where id = p_feature_id for no key update;
    perform pgcoord.check_feature(p_feature_id);
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
    perform pgcoord.check_feature_object(jsonb_build_object('title', v_feature.title, 'phases', v_feature.plan));
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
    insert into public.phase_queue (feature_id, phase_number, depends_on_phases, priority, phase_data)
    select p_feature_id, (phase -> 'phase_number')::integer, nullif(phase -> 'depends_on_phases', 'null'),
        coalesce(nullif(phase -> 'priority', 'null')::integer, v_feature.priority),
        jsonb_strip_nulls(jsonb_build_object(
            'title', phase -> 'title', 'prompt_content', phase -> 'prompt_content',
            'workflow_type', phase -> 'workflow_type', 'estimated_hours', phase -> 'estimated_hours',
            'files', phase -> 'files', 'max_attempts', phase -> 'max_attempts', 'timeout_seconds', phase -> 'timeout_seconds'
        ))
    from jsonb_array_elements(v_feature.plan) as phase
    order by (phase -> 'phase_number')::integer;
    get diagnostics v_inserted = row_count;
    return v_inserted;
end $$;
comment on function pgcoord.execute_feature(integer) is
    'Queue the phases of the stored plan; returns how many. A second time changes nothing and returns 0.';

create or replace function pgcoord.cancel_feature(p_feature_id integer, p_reason text) returns integer
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_phases integer;
begin
    perform 1 from public.planned_features where id = p_feature_id for no key update;
    perform pgcoord.check_feature(p_feature_id);
    select count(*) into v_phases from public.phase_queue
    where feature_id = p_feature_id and status in ('queued', 'blocked', 'ready', 'running');
    update public.planned_features set cancelled_at = now(), cancelled_reason = p_reason
    where id = p_feature_id and cancelled_at is null;
    return v_phases;
end $$;
comment on function pgcoord.cancel_feature(integer, text) is
    'Give a feature up: its waiting phases are cancelled, its running ones ended; returns how many that were.';

create or replace function pgcoord.finished_features(p_older_than interval) returns setof integer
language sql as $$
    select f.id
    from public.planned_features as f
    where (f.cancelled_at is not null or exists (select from public.phase_queue where feature_id = f.id))
        and not exists (
            select from public.phase_queue as p
            where p.feature_id = f.id
                and (not (p.status = 'completed' or p.status in ('cancelled', 'failed') and f.cancelled_at is not null)
                    or coalesce(p.finished_timestamp, p.updated_at) > now() - p_older_than)
        )
        and coalesce(f.cancelled_at, '-infinity') <= now() - p_older_than;
$$;
comment on function pgcoord.finished_features(interval) is 'Features that were finished (completed or cancelled) that long ago.';

create or replace function pgcoord.prune(p_older_than interval) returns integer
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_ids integer[];
begin
    select array_agg(id) into v_ids
    from (
        select id from public.planned_features
        where id in (select pgcoord.finished_features(p_older_than)) order by id for update
    ) as locked;
    -- Looked at again under the locks: one may have been taken up, or added to, meanwhile.
    select array_agg(id) into v_ids from pgcoord.finished_features(p_older_than) as id where id = any (v_ids);
    delete from public.planned_features where id = any (v_ids);
    delete from pgcoord.event where feature_id = any (v_ids);
    delete from pgcoord.webhook_delivery where feature_id = any (v_ids) or feature_id is null and at < now() - p_older_than;
    return coalesce(cardinality(v_ids), 0);
end $$;
comment on function pgcoord.prune(interval) is
    'Remove features that were finished (completed or cancelled) that long ago, with their phases, attempts and events; returns how many.';

create or replace view pgcoord.feature as
select f.id, f.title, f.description, f.item_type, f.priority, f.estimated_hours, f.tags, f.plan,
    case
        when f.cancelled_at is not null then 'cancelled'
        when n.total > 0 and n.completed = n.total then 'completed'
        when n.started > 0 then 'in_progress'
        else 'planned'
    end as status,
    n.total as total_phases, n.completed as phases_completed, n.running as phases_running,
    n.failed as phases_failed, n.blocked as phases_blocked,
    f.paused_at, f.paused_reason, f.cancelled_at, f.cancelled_reason,
    f.created_by, f.created_at, n.started_at, n.finished_at, f.updated_at, f.xmin::text as version
from public.planned_features as f
    cross join lateral (
        select count(*) as total,
            count(*) filter (where p.status = 'completed') as completed,
            count(*) filter (where p.status in ('ready', 'running')) as running,
            count(*) filter (where p.status = 'failed') as failed,
            count(*) filter (where p.status = 'blocked') as blocked,
            count(*) filter (where p.attempt > 0 or p.status in ('completed', 'failed')) as started,
            min(p.ready_timestamp) as started_at,
            case when bool_and(p.status in ('completed', 'cancelled')) then max(p.finished_timestamp) end as finished_at
        from public.phase_queue as p
        where p.feature_id = f.id
    ) as n;
comment on view pgcoord.feature is
    'Features with what follows from their phases: status (planned, in_progress, completed, cancelled) and counts.';

create or replace function pgcoord.feature_object(p_feature_id integer) returns jsonb
language plpgsql stable
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_feature jsonb;
    v_phases jsonb;
begin
    perform pgcoord.check_feature(p_feature_id);
    select to_jsonb(f) - 'plan', coalesce(f.plan, '[]') into v_feature, v_phases from pgcoord.feature as f where f.id = p_feature_id;
    if (v_feature -> 'total_phases')::integer > 0 then
        select jsonb_agg(phase - 'phase_data' || (phase -> 'phase_data')) into v_phases
        from pgcoord.phase_objects(array(
            select queue_id from public.phase_queue where feature_id = p_feature_id order by phase_number
        )) as phase;
    end if;
    return v_feature || jsonb_build_object('phases', v_phases);
end $$;
comment on function pgcoord.feature_object(integer) is
    'A feature with its phases as one JSON object, which submit_feature takes: the planned phases, once they are queued with how each stands.';
