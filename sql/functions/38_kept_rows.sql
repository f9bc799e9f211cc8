-- Rows that follow from others, or are history: triggers and functions of pgcoord write them, and a statement by hand, the
-- owner's too, is refused where it would leave a phase stuck, a slot unused or a history that is not true. (A trigger sees
-- by pg_trigger_depth() that it was fired by a statement of another trigger.)

-- Refuse (PC008) to truncate a table whose rows follow from features or slots that there still are. Fires afterwards, so
-- that all can be truncated together.
create or replace function pgcoord_private.guard_truncate() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_belongs boolean := case tg_relid
        when 'pgcoord.free_slot'::regclass then exists (select from pgcoord.slot where not draining)
        when 'pgcoord.schedule_run'::regclass then exists (select from pgcoord.schedule)
        else exists (select from public.planned_features) end;
begin
    if v_belongs then
        raise exception using
            errcode = 'PC008',
            message = format('%s cannot be truncated: its rows belong to what there still is', tg_relid::regclass),
            hint = case when tg_relid = 'pgcoord.schedule_run'::regclass then 'pgcoord.delete_schedule(name) deletes a schedule with its runs.'
                else 'pgcoord.prune(older_than) removes finished features with all that belongs to them.' end;
    end if;
    return null;
end $$;

-- Refuse (PC008) a statement on a table that only triggers write.
create or replace function pgcoord_private.refuse_by_hand() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    if pg_trigger_depth() = 1 then
        raise exception using
            errcode = 'PC008',
            message = format('%s is kept by triggers, and not changed by hand', tg_relid::regclass),
            hint = case tg_relid when 'pgcoord.dependency'::regclass then 'Change depends_on_phases of the phase.'
                when 'pgcoord.free_slot'::regclass then 'pgcoord.set_slots(n) changes the number of slots.'
                else 'Insert or delete phases; it follows.' end;
    end if;
    return null;
end $$;

-- Refuse (PC008) to delete the control row, and an epoch that is not a later lead: one that occurs twice can never be led, and
-- one that nobody has taken claims without host and folder.
create or replace function pgcoord_private.guard_control() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    if tg_op = 'UPDATE' then
        if new.epoch = old.epoch or new.epoch > old.epoch and exists (select from pgcoord.coordinator where epoch = new.epoch) then
            return new;
        end if;
    end if;
    raise exception using
        errcode = 'PC008',
        message = case tg_op when 'DELETE' then 'the row of pgcoord.control stays: each claim locks it'
            else format('lead %s cannot become lead %s by hand', old.epoch, new.epoch) end,
        hint = 'A coordinator takes the lead; pgcoord.pause() keeps it from starting phases.';
end $$;

-- Refuse (PC008) to delete or renumber the current lead, from which claims take host and folder.
create or replace function pgcoord_private.guard_lead() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    if old.epoch is distinct from (select epoch from pgcoord.control) or tg_op = 'UPDATE' and new.epoch = old.epoch then
        return case tg_op when 'DELETE' then old else new end;
    end if;
    raise exception using
        errcode = 'PC008',
        message = format('lead %s is the current one: its row stays as it is', old.epoch),
        hint = 'Stop the coordinator: the next one to lead has a row of its own.';
end $$;

-- Refuse (PC008) a result for another feature or another attempt, and to delete one whose attempt exists.
create or replace function pgcoord_private.guard_result() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
begin
    if tg_op = 'UPDATE' then
        if (new.attempt_id, new.feature_id) = (old.attempt_id, old.feature_id) then
            return new;
        end if;
    elsif tg_op = 'INSERT' then
        if exists (
            select from pgcoord.attempt as a join public.phase_queue as p using (queue_id)
            where a.id = new.attempt_id and p.feature_id = new.feature_id
        ) then
            return new;
        end if;
    elsif not exists (select from pgcoord.attempt where id = old.attempt_id) then
        return old;
    end if;
    raise exception using
        errcode = 'PC008',
        message = case tg_op when 'INSERT' then format('feature %s has no attempt with the id %s', new.feature_id, new.attempt_id)
            else format('the result of attempt %s stays with that attempt', old.attempt_id) end,
        hint = 'pgcoord.set_result(queue_id, result) adds to the result of a phase.';
end $$;

-- Refuse (PC002) another pool or number for a slot that a phase holds.
create or replace function pgcoord_private.guard_slot() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_queue_id text;
begin
    select queue_id into v_queue_id from public.phase_queue where slot = old.number;
    if found and (new.number, new.pool) is distinct from (old.number, old.pool) then
        raise exception using
            errcode = 'PC002',
            message = format('slot %s is held by phase %s: it stays in pool %s', old.number, v_queue_id, old.pool),
            hint = 'pgcoord.set_slots(n, pool) changes the number of slots of each pool.';
    end if;
    return new;
end $$;

-- List the free slots anew, where claims look, and wake the coordinator: the number of slots has changed.
create or replace function pgcoord_private.follow_slots() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    perform pgcoord_private.find_free_slots();
    notify pgcoord_wake;
    return null;
end $$;

-- Refuse (PC008) to change what became of a due time, unless it still waits, and to delete the latest one of a schedule: the
-- same time would queue its feature once more.
create or replace function pgcoord_private.guard_schedule_run() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    if tg_op = 'UPDATE' then
        if (new.schedule, new.due_at) = (old.schedule, old.due_at)
            and (old.outcome = 'waiting'
                or new.outcome = old.outcome and (new.feature_id is null or new.feature_id is not distinct from old.feature_id))
        then
            return new;
        end if;
    elsif not exists (select from pgcoord.schedule where name = old.schedule) or exists (
        select from pgcoord.schedule_run where schedule = old.schedule and due_at > old.due_at
    ) then
        return old;
    end if;
    raise exception using
        errcode = 'PC008',
        message = format('what became of schedule %s at %s stays as it is', old.schedule, old.due_at),
        hint = format('pgcoord.run_schedule(%1$L) queues its feature now; pgcoord.delete_schedule(%1$L) deletes it with its runs.', old.schedule);
end $$;
