-- Triggers of planned_features. What a feature's state is follows from its phases (view pgcoord.feature).

-- Refuse (PC001) a feature that does not exist.
create or replace function pgcoord_private.check_feature(p_feature_id bigint) returns void
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
begin
    perform 1 from public.planned_features where id = p_feature_id;
    if not found then
        raise exception using
            errcode = 'PC001',
            message = format('there is no feature %s', coalesce(p_feature_id::text, 'null')),
            hint = 'select * from pgcoord.feature shows those that exist.';
    end if;
end $$;

-- Advance the sequence beyond an explicit id, so that the next generated one is free; log the feature.
create or replace function pgcoord_private.follow_inserted_ids() returns trigger
language plpgsql
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_sequence regclass := pg_get_serial_sequence('public.planned_features', 'id');
    v_highest integer;
begin
    -- The owner of the table may restore any id; for others an id far ahead is refused, as it would soon exhaust the
    -- sequence.
    select max(id) into v_highest from new_rows;
    if v_highest > coalesce(pg_sequence_last_value(v_sequence), 0) + 10000
        and not pg_has_role(coalesce(nullif(current_setting('role'), 'none'), session_user)::name, current_user, 'usage')
    then
        raise exception using
            errcode = 'PC005',
            message = format('feature %s cannot be inserted: the next one is %s', v_highest, coalesce(pg_sequence_last_value(v_sequence), 0) + 1),
            hint = 'Leave the id out; one of your own lies at most 10000 ahead.';
    end if;
    -- The highest ids would exhaust the sequence.
    select max(id) into v_highest from new_rows where id < 2000000000;
    if v_highest > coalesce(pg_sequence_last_value(v_sequence), 0) then
        perform setval(v_sequence, v_highest);
    end if;
    insert into pgcoord.unqueued (feature_id) select id from new_rows;
    insert into pgcoord.event (kind, feature_id, actor, reason)
    select 'feature_inserted', id, pgcoord_private.actor(), pgcoord_private.reason() from new_rows order by id;
    perform pg_notify('pgcoord_event', id::text) from new_rows;
    return null;
end $$;

-- Copy a pause onto the phases that wait, cancel the phases of a cancelled feature, and log what happened to it.
create or replace function pgcoord_private.follow_feature() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
begin
    perform pgcoord_private.check_isolation(array[new.id]);
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

-- Fill null columns, and refuse values that readers cannot handle.
-- Long, since it is a list of refusals.
-- Errors: PC005; 42501 for a client that sets created_by to another user.
create or replace function pgcoord_private.check_feature_values() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_name text;
begin
    new.id := coalesce(new.id, nextval('public.planned_features_id_seq'));
    v_name := 'feature ' || new.id;
    new.item_type := coalesce(new.item_type, 'feature');
    new.priority := coalesce(new.priority, 50);
    new.tags := pgcoord_private.meant_as('[]', new.tags);
    new.plan := case when new.plan is not null and new.plan <> 'null' then pgcoord_private.meant_as('[]', new.plan) end;
    new.created_at := coalesce(new.created_at, now());
    new.updated_at := coalesce(new.updated_at, now());
    new.created_by := coalesce(nullif(new.created_by, ''), session_user);
    -- A user who may delete features is the owner, who may restore them.
    if tg_op = 'INSERT' and new.created_by <> session_user
        and not has_table_privilege('public.planned_features'::regclass, 'delete')
    then
        raise exception using
            errcode = '42501',
            message = format('%s may not make a feature as %s', session_user, left(new.created_by, 100)),
            hint = 'Leave created_by out. The setting pgcoord.actor says who acts behind a shared login.';
    end if;
    perform pgcoord_private.check_times(v_name, new.created_at, new.updated_at, new.paused_at, new.cancelled_at);
    if new.id < 1 then
        raise exception using
            errcode = 'PC005', message = format('a feature cannot have the id %s', new.id), hint = 'Leave the id out.';
    elsif coalesce(btrim(new.title), '') = '' then
        raise exception using
            errcode = 'PC005',
            message = format('%s has no title', v_name),
            hint = 'Give a title that is not empty.';
    elsif new.max_cost_usd = 'NaN' or new.max_cost_usd <= 0 or new.max_cost_usd > 1e9 then
        raise exception using
            errcode = 'PC005',
            message = format('the budget of %s cannot be %s', v_name, new.max_cost_usd),
            hint = 'Give US dollars, from 0.01 to 1000000000, or null for no limit.';
    elsif new.estimated_hours = 'NaN' or new.estimated_hours < 0 or new.estimated_hours > 1000000 then
        raise exception using
            errcode = 'PC005',
            message = format('%s cannot take %s hours', v_name, new.estimated_hours),
            hint = 'estimated_hours lies between 0 and 1000000, or is null.';
    elsif jsonb_typeof(new.tags) <> 'array' or jsonb_typeof(new.plan) <> 'array' then
        raise exception using
            errcode = 'PC005',
            message = format('%s of %s is not an array', case when jsonb_typeof(new.tags) <> 'array' then 'tags' else 'the plan' end, v_name),
            hint = 'Give a JSON array: of strings for tags, of phases for the plan.';
    elsif jsonb_typeof(new.plan) = 'array' and jsonb_path_exists(new.plan, '$[*] ? (@.type() != "object")') then
        raise exception using
            errcode = 'PC005',
            message = format('the plan of %s holds something that is not a phase', v_name),
            hint = 'Each element is an object with phase_number, title, prompt_content, depends_on ...';
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

-- Set updated_at. Refuse (PC005) nulls and times that clients cannot represent, (PC008) another id and, from a client,
-- another origin, (PC002) the cancellation of a completed feature, (42501) a client's pause, resumption or cancellation by
-- UPDATE. Unchanged texts of an older release are not checked, so such a feature can be paused and cancelled.
create or replace function pgcoord_private.stamp_feature() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    if new.id is distinct from old.id then
        raise exception using
            errcode = 'PC008',
            message = format('feature %s keeps its id', old.id),
            hint = 'Insert another feature.';
    elsif num_nulls(new.priority, new.created_by, new.created_at) > 0 then
        perform pgcoord_private.refuse_nulls('feature ' || old.id, to_jsonb(new) - 'plan', 'priority', 'created_by', 'created_at');
    elsif (new.created_by, new.created_at) is distinct from (old.created_by, old.created_at)
        and not pgcoord_private.writes_state()
    then
        raise exception using
            errcode = 'PC008',
            message = format('created_by and created_at of feature %s are history and stay as they are', old.id),
            hint = 'Leave them as they are.';
    elsif (new.paused_at, new.paused_reason, new.cancelled_at, new.cancelled_reason)
        is distinct from (old.paused_at, old.paused_reason, old.cancelled_at, old.cancelled_reason)
        and not pgcoord_private.writes_state()
    then
        raise exception using
            errcode = '42501',
            message = format('%s may not pause, resume or cancel feature %s by hand', current_user, old.id),
            hint = format('select * from pgcoord.pause(%s, reason), pgcoord.resume(%s), pgcoord.cancel_feature(%s, reason), or '
                'pgcoord.retry_phase(queue_id), which takes a cancelled one up again.', old.id, old.id, old.id);
    elsif new.cancelled_at is not null and old.cancelled_at is null
        and (select status from pgcoord.feature where id = old.id) = 'completed'
    then
        raise exception using
            errcode = 'PC002',
            message = format('feature %s is completed: there is nothing left to cancel', old.id),
            hint = 'It stays as it is; pgcoord.prune(older_than) removes finished features.';
    end if;
    if (new.created_at, new.paused_at, new.cancelled_at) is distinct from (old.created_at, old.paused_at, old.cancelled_at) then
        perform pgcoord_private.check_times('feature ' || old.id, new.created_at, new.paused_at, new.cancelled_at);
    end if;
    new.paused_reason := pgcoord_private.without_middle(new.paused_reason);
    new.cancelled_reason := pgcoord_private.without_middle(new.cancelled_reason);
    new.updated_at := now();
    return new;
end $$;

-- Log that a feature was described or planned anew.
create or replace function pgcoord_private.log_changed_feature() returns trigger
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform pgcoord_private.log_event('feature_changed', concat_ws(', ',
        case when new.title is distinct from old.title then 'title' end,
        case when new.description is distinct from old.description then 'description' end,
        case when new.plan is distinct from old.plan then 'plan' end,
        case when new.priority is distinct from old.priority then format('priority %s → %s', old.priority, new.priority) end)
        || coalesce(': ' || pgcoord_private.reason(), ''), new.id);
    return null;
end $$;

-- Log deleted features.
create or replace function pgcoord_private.log_deleted_features() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    insert into pgcoord.event (kind, feature_id, actor, reason)
    select 'feature_deleted', id, pgcoord_private.actor(), pgcoord_private.reason() from old_rows order by id;
    perform pg_notify('pgcoord_event', id::text) from old_rows;
    return null;
end $$;
