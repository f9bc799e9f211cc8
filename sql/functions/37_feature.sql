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
