-- Triggers of planned_features. What a feature's state is follows from its phases (view pgcoord.feature).

-- Errors: PC001.
create or replace function pgcoord_private.check_feature(p_feature_id integer) returns void
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
comment on function pgcoord_private.check_feature(integer) is 'Refuse (PC001) a feature that does not exist.';

create or replace function pgcoord_private.follow_inserted_ids() returns trigger
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_sequence regclass := pg_get_serial_sequence('public.planned_features', 'id');
    v_highest integer;
begin
    -- Who owns the table may restore any; from others an id far ahead would soon leave none to generate.
    select max(id) into v_highest from new_rows;
    if v_highest > coalesce(pg_sequence_last_value(v_sequence), 0) + 10000
        and not pg_has_role(coalesce(nullif(current_setting('role'), 'none'), session_user)::name, current_user, 'usage')
    then
        raise exception using
            errcode = 'PC005',
            message = format('feature %s cannot be inserted: the next one is %s', v_highest, coalesce(pg_sequence_last_value(v_sequence), 0) + 1),
            hint = 'Leave the id out; one of your own lies at most 10000 ahead.';
    end if;
    -- The last ids of all would leave none to generate.
    select max(id) into v_highest from new_rows where id < 2000000000;
    if v_highest > coalesce(pg_sequence_last_value(v_sequence), 0) then
        perform setval(v_sequence, v_highest);
    end if;
    insert into pgcoord.event (kind, feature_id, actor, reason)
    select 'feature_inserted', id, pgcoord_private.actor(), pgcoord_private.reason() from new_rows order by id;
    perform pg_notify('pgcoord_event', id::text) from new_rows;
    return null;
end $$;
comment on function pgcoord_private.follow_inserted_ids() is
    'Trigger: an id given by hand moves the sequence on, so that the next generated one is free; log the feature.';

-- Copy a pause onto the phases that wait, cancel the phases of a cancelled feature, and log what happened to it.
create or replace function pgcoord_private.follow_feature() returns trigger
language plpgsql as $$
begin
    perform pgcoord_private.check_isolation();
    if (new.paused_at is null) <> (old.paused_at is null) then
        update public.phase_queue set held = new.paused_at is not null
        where feature_id = new.id and status in ('queued', 'blocked') and held <> (new.paused_at is not null);
        perform pgcoord_private.log_event(
            case when new.paused_at is null then 'feature_resumed' else 'feature_paused' end, new.paused_reason, new.id);
    end if;
    if (new.cancelled_at is null) <> (old.cancelled_at is null) then
        perform pgcoord_private.log_event(
            case when new.cancelled_at is null then 'feature_taken_up' else 'feature_cancelled' end, new.cancelled_reason, new.id);
    end if;
    if new.cancelled_at is not null and old.cancelled_at is null then
        perform pgcoord_private.set_reason(coalesce(new.cancelled_reason, 'feature cancelled'));
        update public.phase_queue set status = 'cancelled'
        where feature_id = new.id and status in ('queued', 'blocked', 'ready', 'running');
        perform pgcoord_private.set_reason(null);
    end if;
    return null;
end $$;
comment on function pgcoord_private.follow_feature() is
    'Trigger: hold or release the phases of a feature that was paused or resumed, cancel those of a cancelled one; log it.';

-- Refuse what no page and no reader can take. Errors: PC005.
create or replace function pgcoord_private.check_feature_values() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_name text := 'feature ' || new.id;
begin
    if new.id < 1 then
        raise exception using
            errcode = 'PC005', message = format('there can be no feature %s', new.id), hint = 'Leave the id out.';
    elsif new.estimated_hours = 'NaN' or new.estimated_hours > 1000000 then
        raise exception using
            errcode = 'PC005',
            message = format('%s cannot take %s hours', v_name, new.estimated_hours),
            hint = 'estimated_hours lies between 0 and 1000000, or is null.';
    elsif jsonb_typeof(new.plan) = 'array' and jsonb_path_exists(new.plan, '$[*] ? (@.type() != "object")') then
        raise exception using
            errcode = 'PC005',
            message = format('the plan of %s holds something that is no phase', v_name),
            hint = 'Each element is an object with phase_number, title, prompt_content, depends_on …';
    end if;
    perform pgcoord_private.check_text('the title of ' || v_name, new.title, 1000);
    perform pgcoord_private.check_text('the description of ' || v_name, new.description, 1000000);
    perform pgcoord_private.check_text('item_type of ' || v_name, new.item_type, 100);
    perform pgcoord_private.check_json('tags of ' || v_name, new.tags, 64 * 1024);
    perform pgcoord_private.check_json('the plan of ' || v_name, new.plan, 64 * 1024 * 1024);
    new.paused_reason := pgcoord_private.without_middle(new.paused_reason);
    new.cancelled_reason := pgcoord_private.without_middle(new.cancelled_reason);
    return new;
end $$;

comment on function pgcoord_private.check_feature_values() is 'Trigger: refuse (PC005) what no page and no reader can take.';

create or replace function pgcoord_private.stamp_feature() returns trigger
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
comment on function pgcoord_private.stamp_feature() is 'Trigger: stamp updated_at; refuse (PC008) another id.';

create or replace function pgcoord_private.log_changed_feature() returns trigger
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform pgcoord_private.log_event('feature_changed', null, new.id);
    return null;
end $$;
comment on function pgcoord_private.log_changed_feature() is 'Trigger: log that a feature was described or planned anew.';

create or replace function pgcoord_private.log_deleted_features() returns trigger
language plpgsql as $$
begin
    insert into pgcoord.event (kind, feature_id, actor, reason)
    select 'feature_deleted', id, pgcoord_private.actor(), pgcoord_private.reason() from old_rows order by id;
    perform pg_notify('pgcoord_event', id::text) from old_rows;
    return null;
end $$;
comment on function pgcoord_private.log_deleted_features() is 'Trigger: log deleted features.';
