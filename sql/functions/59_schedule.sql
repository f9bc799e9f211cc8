-- Schedules: features that are queued regularly. The leading coordinator computes the due times
-- (pgcoord/configuration/cron.py). These functions decide what happens at a due time, in the transaction that writes its row;
-- the key of that row prevents a second run.
--
-- Lock order: a schedule, then its rows of schedule_run, then the feature that is made for it.

-- The fault of a cron expression, in words; null if there is none. The coordinator finds dates that never come (31
-- February).
create or replace function pgcoord_private.cron_fault(p_cron text) returns text
language plpgsql immutable strict
set search_path = pg_catalog, pg_temp as $$
declare
    v_fields text[] := regexp_split_to_array(btrim(p_cron, e' \t\n\r'), '\s+');
    v_kinds constant text[] := '{minute,hour,"day of the month",month,"day of the week"}';
    v_lows constant integer[] := '{0,0,1,1,0}';
    v_highs constant integer[] := '{59,23,31,12,7}';
    v_names constant text[] := '{JAN,FEB,MAR,APR,MAY,JUN,JUL,AUG,SEP,OCT,NOV,DEC}';
    v_days constant text[] := '{SUN,MON,TUE,WED,THU,FRI,SAT}';
    v_term text;
    v_parts text[];
begin
    if cardinality(v_fields) <> 5 or v_fields[1] = '' then
        return format('it has %s, not five', pgcoord_private.counted(cardinality(array_remove(v_fields, '')), 'field', 'fields'));
    end if;
    for i in 1 .. 5 loop
        foreach v_term in array regexp_split_to_array(upper(v_fields[i]), ',') loop
            for n in 1 .. case i when 4 then 12 when 5 then 7 else 0 end loop
                v_term := regexp_replace(v_term, case i when 4 then '\m' || v_names[n] || '\M' else '\m' || v_days[n] || '\M' end,
                    (case i when 4 then n else n - 1 end)::text, 'g');
            end loop;
            v_parts := regexp_match(v_term, '^(?:\*|([0-9]{1,2})(?:-([0-9]{1,2}))?)(?:/0*[1-9][0-9]{0,3})?$');
            if v_parts is null and i = 5 then    -- the last, or the second, Friday of a month
                v_parts := regexp_match(v_term, '^([0-7])(?:L|#[1-5])$') || null::text;
            elsif v_parts is null and i = 3 and v_term in ('L', 'LW') then
                continue;
            end if;
            if v_parts is null or not coalesce(v_parts[1]::integer between v_lows[i] and v_highs[i], true)
                or not coalesce(v_parts[2]::integer between v_parts[1]::integer and v_highs[i], true)
            then
                return format('%L is not a valid %s', pgcoord_private.shortened(v_fields[i], 100), v_kinds[i]);
            end if;
        end loop;
    end loop;
    return null;
end $$;

-- Refuse a feature that could not be queued: queue it and roll that back, which uses up an id.
-- Errors: PC005, those of submit_feature.
create or replace function pgcoord_private.check_scheduled_feature(p_name text, p_feature jsonb) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_state text;
    v_message text;
    v_hint text;
begin
    if jsonb_typeof(p_feature -> 'phases') is distinct from 'array' or p_feature -> 'phases' = '[]' then
        raise exception using
            errcode = 'PC005',
            message = format('the feature of schedule %s has no phases', p_name),
            hint = 'It is an object as submit_feature takes it, with "title" and "phases"; pgcoord.feature_plan(id) makes one of a feature.';
    end if;
    perform pgcoord_private.check_json('the feature of schedule ' || p_name, p_feature, 64 * 1024 * 1024);
    perform pgcoord.submit_feature(p_feature);
    raise exception using errcode = 'PC099', message = 'taken back';
exception
    when sqlstate 'PC099' then    -- (as a condition, PC000 would match all of class PC)
        null;
    when others then
        get stacked diagnostics v_state = returned_sqlstate, v_message = message_text, v_hint = pg_exception_hint;
        if v_state not like 'PC%' then
            raise;
        end if;
        raise exception using
            errcode = v_state, message = format('schedule %s could not queue its feature: %s', p_name, v_message), hint = v_hint;
end $$;

-- Refuse changes by people to a schedule that pgcoord.toml declares.
create or replace function pgcoord_private.refuse_declared(p_name text, p_done text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using
        errcode = 'PC002',
        message = format('schedule %s is declared in pgcoord.toml, and is %s there', p_name, p_done),
        hint = format('Edit [schedule.%s] or its plan, and send SIGHUP to ''pgcoord serve''. It is paused, resumed and run by hand.', p_name);
end $$;

-- Fill omitted columns; refuse invalid ones. A change of its times, or its resumption, clears next_at, so that the
-- coordinator computes it again. Only declare_schedules changes a schedule that pgcoord.toml declares. Long, since it is a
-- list of refusals. Errors: PC002 for a declared schedule; PC005; PC008 for derived columns.
create or replace function pgcoord_private.guard_schedule() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_message text;
    v_hint text;
begin
    new.timezone := coalesce(new.timezone, current_setting('TimeZone'));
    new.overlap := coalesce(new.overlap, 'skip');
    new.missed := coalesce(new.missed, 'run');
    new.created_at := coalesce(new.created_at, now());
    new.declared := coalesce(new.declared, false);
    if tg_op = 'INSERT' then
        new.created_by := case when pgcoord_private.writes_state() then coalesce(new.created_by, session_user) else session_user end;
        new.declared := new.declared and pgcoord_private.writes_state();
        new.next_at := null;
        new.error := null;
    elsif (new.created_at, new.created_by) is distinct from (old.created_at, old.created_by)
        or (new.next_at, new.error, new.declared) is distinct from (old.next_at, old.error, old.declared)
            and not pgcoord_private.writes_state()
    then
        raise exception using
            errcode = 'PC008',
            message = format('next_at, error, declared and created_by of schedule %s are not given by hand', old.name),
            hint = 'Change cron and timezone: when it is due follows from them.';
    elsif old.declared and new.declared and (new.name, new.cron, new.timezone, new.feature, new.overlap, new.missed)
        is distinct from (old.name, old.cron, old.timezone, old.feature, old.overlap, old.missed)
    then
        perform pgcoord_private.refuse_declared(old.name, 'changed');
    end if;
    if coalesce(new.name, '') !~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$' then
        v_message := format('a schedule cannot be called %s', coalesce(quote_literal(left(new.name, 120)), 'null'));
        v_hint := 'A name has letters, digits, and . _ - between them, a hundred at most.';
    elsif new.cron is null or pgcoord_private.cron_fault(new.cron) is not null then
        v_message := format('schedule %s cannot run at %s: %s', new.name, coalesce(quote_literal(left(new.cron, 200)), 'null'),
            coalesce(pgcoord_private.cron_fault(new.cron), 'it has no times'));
        v_hint := 'Five fields: minute, hour, day of the month, month, day of the week. 0 3 * * * is each night at three, */15 9-17 * * MON-FRI '
            'each quarter of an hour at work.';
    elsif (tg_op = 'INSERT' or new.timezone <> old.timezone) and not exists (select from pg_timezone_names where name = new.timezone) then
        v_message := format('schedule %s cannot run in the time zone %L: there is none of that name', new.name, left(new.timezone, 100));
        v_hint := 'Give a name such as Europe/Berlin or UTC: select name from pg_timezone_names.';
    elsif new.overlap not in ('skip', 'queue', 'start') then
        v_message := format('overlap of schedule %s cannot be %L', new.name, left(new.overlap, 100));
        v_hint := 'While its last run goes on: skip (left out, this), queue or start.';
    elsif new.missed not in ('run', 'skip') then
        v_message := format('missed of schedule %s cannot be %L', new.name, left(new.missed, 100));
        v_hint := 'What nothing could start in time: run (once for all; left out, this) or skip.';
    end if;
    if v_message is not null then
        raise exception using errcode = 'PC005', message = v_message, hint = v_hint;
    end if;
    perform pgcoord_private.check_times('schedule ' || new.name, new.created_at, new.paused_at, new.next_at);
    if tg_op = 'INSERT' or new.feature is distinct from old.feature then
        perform pgcoord_private.check_scheduled_feature(new.name, new.feature);
    end if;
    new.paused_reason := case when new.paused_at is not null then pgcoord_private.without_middle(new.paused_reason) end;
    if tg_op = 'UPDATE' and (
        (new.cron, new.timezone) <> (old.cron, old.timezone) or (new.paused_at is null) <> (old.paused_at is null)
        or new.feature is distinct from old.feature and new.error is not null
    ) then
        new.error := null;
        new.next_at := null;
    end if;
    return new;
end $$;

-- Log changes by people to a schedule, and wake the coordinator.
create or replace function pgcoord_private.follow_schedule() returns trigger
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform pgcoord_private.log_event('schedule_changed', case tg_op
        when 'INSERT' then format('%s: %s (%s)', new.name, new.cron, new.timezone)
        when 'DELETE' then format('%s is deleted', old.name)
        else format('%s%s', old.name, case
            when (new.paused_at is null) = (old.paused_at is null) then format(' is changed: %s (%s)', new.cron, new.timezone)
            when new.paused_at is null then ' is resumed'
            else ' is paused' || coalesce(': ' || new.paused_reason, '') end)
    end);
    perform pg_notify('pgcoord_wake', 'schedules');
    return null;
end $$;

create or replace function pgcoord.feature_plan(p_feature_id bigint) returns jsonb
language plpgsql stable
security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform pgcoord_private.check_feature(p_feature_id);
    return (
        select jsonb_strip_nulls(jsonb_build_object(
            'title', f.title, 'description', f.description, 'item_type', f.item_type, 'priority', f.priority,
            'estimated_hours', f.estimated_hours, 'max_cost_usd', f.max_cost_usd, 'tags', f.tags
        )) || jsonb_build_object('phases', (
            select coalesce(jsonb_agg(
                case when p.queue_id is null then phase else phase - 'status' end
                || case when pgcoord_private.came_completed(p) then '{"status": "completed"}' else '{}' end::jsonb
                order by place), '[]')
            from jsonb_array_elements(pgcoord_private.plan_of(f.id)) with ordinality as element (phase, place)
                left join public.phase_queue as p on p.feature_id = f.id and p.phase_number = (phase -> 'phase_number')::integer
        ))
        from public.planned_features as f where f.id = p_feature_id
    );
end $$;
comment on function pgcoord.feature_plan(bigint) is
    'A feature with its phases as submit_feature and add_schedule take it, without their states.';

create or replace function pgcoord.add_schedule(
    p_name text, p_cron text, p_feature jsonb, p_timezone text default null, p_overlap text default null, p_missed text default null
) returns pgcoord.schedule
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_schedule pgcoord.schedule;
begin
    insert into pgcoord.schedule (name, cron, timezone, feature, overlap, missed)
    values (p_name, p_cron, p_timezone, p_feature, p_overlap, p_missed)
    on conflict do nothing
    returning * into v_schedule;
    if not found then
        raise exception using
            errcode = 'PC002',
            message = format('there is a schedule %s already', p_name),
            hint = format('Choose another name, or change that one: pgcoord.change_schedule(%L, changes).', p_name);
    end if;
    return v_schedule;
end $$;
comment on function pgcoord.add_schedule(text, text, jsonb, text, text, text) is
    'Create a schedule that queues a feature regularly: select pgcoord.add_schedule(''nightly'', ''0 3 * * *'', pgcoord.feature_plan(7), ''Europe/Berlin'').';

-- Lock a schedule for an action.
-- Errors: PC001 when there is none.
create or replace function pgcoord_private.lock_schedule(p_name text) returns pgcoord.schedule
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_schedule pgcoord.schedule;
begin
    select * into v_schedule from pgcoord.schedule where name = p_name for update;
    if not found then
        raise exception using
            errcode = 'PC001',
            message = format('there is no schedule %s', coalesce(left(p_name, 120), 'null')),
            hint = coalesce('There is ' || (select pgcoord_private.some_of(array_agg(name order by name)) from pgcoord.schedule) || '.',
                'There is none: ''pgcoord schedule create'' makes one.');
    end if;
    return v_schedule;
end $$;

create or replace function pgcoord.change_schedule(p_name text, p_changes jsonb) returns pgcoord.schedule
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_schedule pgcoord.schedule := pgcoord_private.lock_schedule(p_name);
    v_unknown text;
begin
    if jsonb_typeof(p_changes) is distinct from 'object' then
        raise exception using
            errcode = 'PC005',
            message = format('the changes of schedule %s are not a JSON object', p_name),
            hint = 'Such as {"cron": "0 4 * * *"}.';
    end if;
    select string_agg(key, ', ' order by key) into v_unknown from jsonb_object_keys(p_changes) as key
    where key not in ('cron', 'timezone', 'feature', 'overlap', 'missed');
    if v_unknown is not null then
        raise exception using
            errcode = 'PC005',
            message = format('schedule %s has no %s that could be changed', p_name, v_unknown),
            hint = 'Give cron, timezone, feature, overlap or missed.';
    end if;
    update pgcoord.schedule
    set cron = coalesce(p_changes ->> 'cron', cron), timezone = coalesce(p_changes ->> 'timezone', timezone),
        feature = coalesce(nullif(p_changes -> 'feature', 'null'), feature),
        overlap = coalesce(p_changes ->> 'overlap', overlap), missed = coalesce(p_changes ->> 'missed', missed)
    where name = p_name
    returning * into v_schedule;
    return v_schedule;
end $$;
comment on function pgcoord.change_schedule(text, jsonb) is
    'Change the given members of a schedule: {"cron", "timezone", "feature", "overlap", "missed"}; features that it has queued do not change.';

create or replace function pgcoord.pause_schedule(p_name text, p_reason text default null) returns timestamptz
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_schedule pgcoord.schedule := pgcoord_private.lock_schedule(p_name);
begin
    if v_schedule.paused_at is null then
        update pgcoord.schedule set paused_at = now(), paused_reason = p_reason where name = p_name returning * into v_schedule;
    end if;
    return v_schedule.paused_at;
end $$;
comment on function pgcoord.pause_schedule(text, text) is
    'Pause a schedule: it starts nothing until it is resumed; features that it has queued continue. Returns since when.';

create or replace function pgcoord.resume_schedule(p_name text) returns boolean
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_schedule pgcoord.schedule := pgcoord_private.lock_schedule(p_name);
begin
    if v_schedule.paused_at is null then
        return false;
    end if;
    update pgcoord.schedule set paused_at = null, paused_reason = null where name = p_name;
    return true;
end $$;
comment on function pgcoord.resume_schedule(text) is
    'Resume a schedule, from its next due time on; returns whether it was paused.';

create or replace function pgcoord.delete_schedule(p_name text) returns pgcoord.schedule
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_schedule pgcoord.schedule := pgcoord_private.lock_schedule(p_name);
begin
    if v_schedule.declared then
        perform pgcoord_private.refuse_declared(p_name, 'removed');
    end if;
    delete from pgcoord.schedule where name = p_name;
    return v_schedule;
end $$;
comment on function pgcoord.delete_schedule(text) is
    'Delete a schedule and its record of due times, and return its row; the features that it has queued stay.';

-- Take over the schedules of a coordinator's configuration: [{"name", "cron", "timezone", "overlap", "missed", "feature"}].
-- Schedules that are no longer declared are deleted; an existing one that was created by hand becomes a declared one, and
-- keeps its pause and its record. Returns the schedules that could not be stored, which are unchanged, and why.
-- Errors: PC007 when the lead is over.
create or replace function pgcoord_private.declare_schedules(p_epoch bigint, p_schedules jsonb)
returns table (name text, error text)
language plpgsql
set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    v pgcoord.schedule;
    v_name text;
begin
    perform pgcoord_private.check_epoch(p_epoch);
    for v_name in
        delete from pgcoord.refused_schedule as r
        where not exists (select from jsonb_array_elements(p_schedules) as e where e ->> 'name' = r.name)
        returning r.name
    loop
        perform pgcoord_private.log_event('schedule_changed', v_name || ', refused before, is not in pgcoord.toml any more');
    end loop;
    delete from pgcoord.schedule as s
    where s.declared and not exists (select from jsonb_array_elements(p_schedules) as e where e ->> 'name' = s.name);
    for v in
        select * from jsonb_populate_recordset(null::pgcoord.schedule, p_schedules) as e order by e.name
    loop
        v.timezone := coalesce(v.timezone, current_setting('TimeZone'));
        begin
            update pgcoord.schedule as s set declared = false
            where s.name = v.name and s.declared and (s.cron, s.timezone, s.feature, s.overlap, s.missed)
                is distinct from (v.cron, v.timezone, v.feature, v.overlap, v.missed);
            update pgcoord.schedule as s
            set cron = v.cron, timezone = v.timezone, feature = v.feature, overlap = v.overlap, missed = v.missed, declared = true
            where s.name = v.name and not s.declared;
            if not found and not exists (select from pgcoord.schedule as s where s.name = v.name) then
                insert into pgcoord.schedule (name, cron, timezone, feature, overlap, missed, declared)
                values (v.name, v.cron, v.timezone, v.feature, v.overlap, v.missed, true);
            end if;
            delete from pgcoord.refused_schedule as r where r.name = v.name;
            if found then
                perform pgcoord_private.log_event('schedule_changed', v.name || ', stored as pgcoord.toml declares it now');
            end if;
        exception when others then
            if sqlstate not like 'PC%' then
                raise;
            end if;
            insert into pgcoord.refused_schedule as r (name, error) values (v.name, sqlerrm)
            on conflict (name) do update set error = excluded.error, at = excluded.at where r.error <> excluded.error;
            if found then
                perform pgcoord_private.log_event('schedule_changed', format('%s of pgcoord.toml is not stored: %s', v.name, sqlerrm));
            end if;
            return query values (v.name, sqlerrm);
        end;
    end loop;
end $$;

-- The latest feature of a schedule that has not ended: a phase of it runs or can run. Null if there is none.
create or replace function pgcoord_private.run_going_on(p_name text) returns integer
language sql stable
begin atomic
    select r.feature_id from pgcoord.schedule_run as r
    where r.schedule = p_name and exists (
        select from public.phase_queue as p
        where p.feature_id = r.feature_id and p.status <> 'completed' and p.status in ('queued', 'ready', 'running')
    )
    order by r.due_at desc
    limit 1;
end;

-- A time in the time zone of a schedule, to the minute.
create or replace function pgcoord_private.schedule_clock(p_schedule pgcoord.schedule, p_at timestamptz) returns text
language sql stable
return to_char(p_at at time zone p_schedule.timezone, 'YYYY-MM-DD HH24:MI ') || p_schedule.timezone;

-- Queue the feature of a schedule for a due time, and record the result. The error of a feature that cannot be queued is
-- stored; a temporary error (a lock, a lost connection) is raised.
create or replace function pgcoord_private.start_run(p_schedule pgcoord.schedule, p_due_at timestamptz, p_reason text)
returns pgcoord.schedule_run
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_run pgcoord.schedule_run;
    v_state text;
    v_error text;
begin
    begin
        perform pgcoord_private.set_reason(format('schedule %s, due at %s', p_schedule.name,
            pgcoord_private.schedule_clock(p_schedule, p_due_at)));
        v_run.feature_id := pgcoord.submit_feature(p_schedule.feature);
    exception when others then
        get stacked diagnostics v_state = returned_sqlstate, v_error = message_text;
        if v_state ~ '^(08|25|40|53|55|57|58|XX)' then
            raise;
        end if;
    end;
    perform pgcoord_private.set_reason(null);
    insert into pgcoord.schedule_run as r (schedule, due_at, outcome, feature_id, reason)
    values (p_schedule.name, p_due_at, case when v_error is null then 'started' else 'failed' end, v_run.feature_id,
        coalesce(v_error, p_reason))
    on conflict (schedule, due_at) do update    -- one that waited
    set outcome = excluded.outcome, feature_id = excluded.feature_id, reason = coalesce(excluded.reason, r.reason), at = excluded.at
    returning * into v_run;
    update pgcoord.schedule set error = v_error where name = p_schedule.name and error is distinct from v_error;
    perform pgcoord_private.log_event('schedule_due', format('%s, %s', p_schedule.name, coalesce('failed: ' || v_error, 'started')),
        v_run.feature_id);
    return v_run;
end $$;

create or replace function pgcoord.run_schedule(p_name text) returns integer
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_schedule pgcoord.schedule := pgcoord_private.lock_schedule(p_name);
    v_run pgcoord.schedule_run;
begin
    v_run := pgcoord_private.start_run(v_schedule, clock_timestamp(), format('asked for by %s', pgcoord_private.actor()));
    if v_run.outcome = 'failed' then
        raise exception using
            errcode = 'PC002', message = format('schedule %s could not queue its feature: %s', p_name, v_run.reason),
            hint = format('pgcoord.change_schedule(%L, changes) gives it another.', p_name);
    end if;
    return v_run.feature_id;
end $$;
comment on function pgcoord.run_schedule(text) is
    'Queue the feature of a schedule now, even if its last run has not ended; its due times do not change. Returns the id of the feature.';

-- For the leading coordinator: the schedules whose next time it must compute: new or changed ones, and those that are due.
create or replace function pgcoord_private.schedules_to_do() returns table (
    name text, cron text, timezone text, next_at timestamptz, now timestamptz
)
language sql stable
begin atomic
    select s.name, s.cron, s.timezone, s.next_at, clock_timestamp()
    from pgcoord.schedule as s
    where s.paused_at is null and (s.next_at <= clock_timestamp() or s.next_at is null and s.error is null)
    order by s.next_at nulls first, s.name;
end;

-- The seconds until the next schedule is due, and whether any run waits for the end of the last one.
create or replace function pgcoord_private.schedules_rest(out due_in float8, out waits boolean)
language sql stable
begin atomic
    select
        (select greatest(extract(epoch from s.next_at - clock_timestamp()), 0)
            from pgcoord.schedule as s where s.paused_at is null and s.next_at is not null order by s.next_at limit 1),
        exists (select from pgcoord.schedule_run where outcome = 'waiting');
end;

-- Store when a schedule is due first, or why that cannot be computed; skips a schedule that was changed meanwhile.
-- Errors: PC007 when the lead is over.
create or replace function pgcoord_private.plan_schedule(
    p_epoch bigint, p_name text, p_cron text, p_timezone text, p_next_at timestamptz, p_error text
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    perform pgcoord_private.check_epoch(p_epoch);
    update pgcoord.schedule set next_at = p_next_at, error = p_error
    where name = p_name and cron = p_cron and timezone = p_timezone and paused_at is null and (next_at is null or p_error is not null);
end $$;

-- Process the latest due time of a schedule that is due since p_since: start it, or record why not; its next time is
-- p_next_at. Returns the row of the due time; none if the schedule was changed, paused or processed meanwhile.
-- Errors: PC007 when the lead is over.
create or replace function pgcoord_private.take_due_time(
    p_epoch bigint, p_name text, p_since timestamptz, p_due_at timestamptz, p_next_at timestamptz
) returns setof pgcoord.schedule_run
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_schedule pgcoord.schedule;
    v_outcome text;
    v_reason text;
    v_before integer;
begin
    perform pgcoord_private.check_epoch(p_epoch);
    select * into v_schedule from pgcoord.schedule where name = p_name and next_at = p_since and paused_at is null for update;
    if not found then
        return;
    end if;
    update pgcoord.schedule set next_at = p_next_at where name = p_name;
    if exists (select from pgcoord.schedule_run where schedule = p_name and due_at = p_due_at) then
        return;
    end if;
    v_before := pgcoord_private.run_going_on(p_name);
    if v_schedule.missed = 'skip' and p_due_at < clock_timestamp() - interval '1 min' then
        v_outcome := 'missed';
        v_reason := 'nothing could start it in time';
    elsif v_schedule.overlap <> 'start' and v_before is not null then
        v_outcome := case when v_schedule.overlap = 'queue' and not exists (
            select from pgcoord.schedule_run where schedule = p_name and outcome = 'waiting') then 'waiting' else 'skipped' end;
        v_reason := 'its last run has not ended: feature ' || v_before;
    end if;
    if v_outcome is null then
        return next pgcoord_private.start_run(v_schedule, p_due_at, case when p_due_at > p_since
            then format('the one for all that were missed since %s', to_char(p_since, 'YYYY-MM-DD HH24:MI:SS TZ')) end);
    else
        return query
        insert into pgcoord.schedule_run (schedule, due_at, outcome, reason) values (p_name, p_due_at, v_outcome, v_reason)
        returning *;
        perform pgcoord_private.log_event('schedule_due', format('%s, %s: %s', p_name, v_outcome, v_reason));
    end if;
    delete from pgcoord.schedule_run as r
    where r.schedule = p_name and r.outcome <> 'waiting' and r.feature_id is distinct from v_before and r.due_at < (
        select k.due_at from pgcoord.schedule_run as k where k.schedule = p_name order by k.due_at desc offset 99 limit 1
    );
end $$;

-- Start the runs that waited for the end of a run which has ended. Returns a row for each.
-- Errors: PC007 when the lead is over.
create or replace function pgcoord_private.start_waiting_runs(p_epoch bigint) returns setof pgcoord.schedule_run
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v record;
    v_schedule pgcoord.schedule;
begin
    perform pgcoord_private.check_epoch(p_epoch);
    for v in select schedule, due_at from pgcoord.schedule_run where outcome = 'waiting' order by due_at, schedule loop
        select * into v_schedule from pgcoord.schedule where name = v.schedule and paused_at is null for update;
        continue when not found or pgcoord_private.run_going_on(v.schedule) is not null or not exists (
            select from pgcoord.schedule_run where schedule = v.schedule and due_at = v.due_at and outcome = 'waiting');
        return next pgcoord_private.start_run(v_schedule, v.due_at, 'it waited for the end of the run before');
    end loop;
end $$;

create or replace view pgcoord.schedules as
select s.name, s.cron, s.timezone, s.feature ->> 'title' as title, jsonb_array_length(s.feature -> 'phases') as phases,
    s.overlap, s.missed, s.paused_at, s.paused_reason, s.next_at, s.error,
    l.due_at as last_due_at, l.outcome as last_outcome, l.reason as last_reason, r.feature_id as last_feature_id,
    f.status as last_status, s.created_at, s.created_by, s.declared
from pgcoord.schedule as s
    left join lateral (
        select * from pgcoord.schedule_run as run where run.schedule = s.name order by run.due_at desc limit 1
    ) as l on true
    left join lateral (
        select run.feature_id from pgcoord.schedule_run as run
        where run.schedule = s.name and run.feature_id is not null order by run.due_at desc limit 1
    ) as r on true
    left join pgcoord.feature as f on f.id = r.feature_id
order by s.name;
comment on view pgcoord.schedules is 'Schedules with the next due time, the result of the last one, and the state of the last feature.';

create or replace function pgcoord.why_schedule(p_name text) returns table (kind text, words text)
language plpgsql stable
set search_path = pg_catalog, pg_temp as $$
begin
    return query
    select r.kind, r.words from (
            select 1 as rank, 'refused' as kind, format('pgcoord.toml declares it, and the database refused that: %s', f.error) as words
            from pgcoord.refused_schedule as f where f.name = p_name
            union all
            select 2, 'error', 'it cannot run: ' || s.error
            from pgcoord.schedule as s where s.name = p_name and s.error is not null
            union all
            select 3, 'paused', format('it is paused since %s', pgcoord_private.schedule_clock(s, s.paused_at)) || coalesce(': ' || s.paused_reason, '')
            from pgcoord.schedule as s where s.name = p_name and s.paused_at is not null
            union all
            select 4, 'unwatched', u.words || ': no schedule starts until one does'
            from pgcoord_private.unwatched as u where exists (select from pgcoord.schedule as s where s.name = p_name)
            union all
            select 5, 'next', case when s.next_at is null then 'its next time is found once a coordinator runs'
                else format('it is due %s %s', case when s.next_at < clock_timestamp() then 'since' else 'next at' end,
                    pgcoord_private.schedule_clock(s, s.next_at)) end
            from pgcoord.schedule as s where s.name = p_name and s.paused_at is null and s.error is null
            union all
            (select 6, l.outcome, format('its last time, %s: %s', pgcoord_private.schedule_clock(s, l.due_at), l.outcome)
                || coalesce(' as feature ' || l.feature_id, '') || coalesce(', ' || l.reason, '')
            from pgcoord.schedule as s join pgcoord.schedule_run as l on l.schedule = s.name
            where s.name = p_name
            order by l.due_at desc limit 1)
            union all    -- the start of a later run does not explain why this one did not start
            (select 7, l.outcome, format('before that, %s: %s', pgcoord_private.schedule_clock(s, l.due_at), l.outcome) || coalesce(', ' || l.reason, '')
            from pgcoord.schedule as s join pgcoord.schedule_run as l on l.schedule = s.name
            where s.name = p_name and l.outcome <> 'started'
                and exists (select from pgcoord.schedule_run as k where k.schedule = p_name and k.due_at > l.due_at)
            order by l.due_at desc limit 1)
        ) as r
    order by r.rank;
    if not found then
        raise exception using
            errcode = 'PC001', message = format('there is no schedule %s', coalesce(p_name, 'null')),
            hint = 'select name from pgcoord.schedules shows those that exist.';
    end if;
end $$;
comment on function pgcoord.why_schedule(text) is
    'When a schedule is due next, and why it does not run, or did not: a row for each reason, most decisive first.';
