-- Events: who did what. Only the triggers of the other tables write rows of pgcoord.event, through these functions.

-- The actor of the current changes: the setting pgcoord.actor (for people behind a shared login; its first 200 characters),
-- else the database user.
create or replace function pgcoord_private.actor() returns text
language sql stable
return coalesce(nullif(left(current_setting('pgcoord.actor', true), 200), ''), session_user);

-- The reason of the current changes: the setting pgcoord.reason. The action functions set it for their statements; people
-- may set it for theirs.
create or replace function pgcoord_private.reason() returns text
language sql stable
return pgcoord_private.without_middle(nullif(current_setting('pgcoord.reason', true), ''));

-- Set the reason with which the next changes of this transaction are logged; null unsets it.
create or replace function pgcoord_private.set_reason(p_reason text) returns void
language sql
return set_config('pgcoord.reason', coalesce(p_reason, ''), true);

-- Write an event other than a transition of a phase, and notify the listeners.
create or replace function pgcoord_private.log_event(
    p_kind text, p_reason text, p_feature_id integer default null,
    p_phase_number integer default null, p_queue_id text default null, p_attempt integer default null
) returns void
language sql
begin atomic
    insert into pgcoord.event (kind, feature_id, phase_number, queue_id, attempt, actor, reason)
    values (p_kind, p_feature_id, p_phase_number, p_queue_id, p_attempt, pgcoord_private.actor(), p_reason);
    select pg_notify('pgcoord_event', coalesce(p_feature_id::text, ''));
end;

-- Refuse (PC008) to change events, or to delete those of a feature that exists.
-- History is append-only; the events of a feature are deleted with it (prune).
create or replace function pgcoord_private.guard_event() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    if tg_op = 'DELETE' and old.feature_id is not null and not exists (select from public.planned_features where id = old.feature_id) then
        return old;
    end if;
    raise exception using
        errcode = 'PC008',
        message = format('event %s is history and stays as it is', old.id),
        hint = 'pgcoord.prune(older_than) removes finished features with their history.';
end $$;

-- Refuse (PC008) a transition, or the birth or death of a feature, that no trigger writes: it did not happen. (Runs with each
-- event, so it does nothing else.)
create or replace function pgcoord_private.guard_new_event() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    if pg_trigger_depth() = 1 and new.kind in ('phase_inserted', 'phase_moved', 'phase_deleted', 'feature_inserted', 'feature_deleted') then
        raise exception using
            errcode = 'PC008',
            message = format('an event %s is written by what it tells of, and not by hand', new.kind),
            hint = 'Change the phase or the feature; history follows.';
    end if;
    return new;
end $$;

-- Events with an id above the first argument, or within the given ranges, in the order of their ids. Ids are not in the
-- order of commits: a slow transaction commits a lower id after a reader has seen a higher one. So a reader keeps the
-- highest id that it has read, and the ranges below it that it has not, and passes both.
create or replace function pgcoord_private.events_after(p_after bigint, p_lows bigint[], p_highs bigint[], p_limit integer)
returns setof pgcoord.history
language sql stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
    select h.*
    from pgcoord.history as h
    where h.id = any (array(
        select id from (
            (select e.id from pgcoord.event as e where e.id > p_after order by e.id limit p_limit)
            union all
            select e.id from unnest(p_lows, p_highs) as gap (low, high)
                join pgcoord.event as e on e.id between gap.low and gap.high
        ) as found
        order by id
        limit p_limit
    ))
    order by h.id;
$$;

-- The position of a reader that has read all visible events: the highest id, and the ids missing among the last p_back
-- events (some of them may belong to open transactions).
create or replace function pgcoord_private.last_event(p_back integer, out last bigint, out lows bigint[], out highs bigint[])
language sql stable
begin atomic
    select coalesce(max(id), 0), coalesce(array_agg(before + 1 order by id) filter (where before + 1 < id), '{}'),
        coalesce(array_agg(id - 1 order by id) filter (where before + 1 < id), '{}')
    from (
        select id, coalesce(lag(id) over (order by id), case when rows = p_back then id - 1 else 0 end) as before
        from (
            select id, count(*) over () as rows
            from (select id from pgcoord.event order by id desc limit p_back) as latest
        ) as counted
    ) as pairs;
end;

-- Open transactions that may have written events: each holds a lock on the table until its end.
create or replace function pgcoord_private.event_writers() returns setof text
language sql stable
begin atomic
    select virtualtransaction from pg_locks
    where locktype = 'relation' and relation = 'pgcoord.event'::regclass and mode = 'RowExclusiveLock' and granted
        and database = (select oid from pg_database where datname = current_database());
end;
