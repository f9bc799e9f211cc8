-- Notices to people: the transaction of an event writes them, and the leader sends them afterwards. Without a receiver for
-- an event, nothing is written.

-- Write a notice for each receiver that subscribes to this event of a phase: completed (finished), failed, or waiting for
-- approval (gate). A feature finishes once, even if one statement completes several of its phases.
create or replace function pgcoord_private.note_event(
    p_event text, p_reason text, p_feature_id integer, p_phase_number integer, p_queue_id text, p_attempt integer default null
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    if not exists (select from pgcoord.notify_target where p_event = any (events)) then
        return;
    end if;
    if p_event = 'finished' and (
        exists (select from public.phase_queue where feature_id = p_feature_id and status <> 'completed')
        or exists (select from pgcoord.notice where event = 'finished' and feature_id = p_feature_id and at = now())
    ) then
        return;
    end if;
    insert into pgcoord.notice (target, event, feature_id, phase_number, queue_id, attempt, words)
    select t.name, p_event, p_feature_id, case when p_event <> 'finished' then p_phase_number end,
        case when p_event <> 'finished' then p_queue_id end, p_attempt, pgcoord_private.headline(p_reason)
    from pgcoord.notify_target as t where p_event = any (t.events);
    notify pgcoord_wake;
end $$;

-- Write a notice for each phase that needs a person without an event: once for each attempt, or once for a phase whose
-- attempts are returned again and again. Returns whether any receiver subscribes to such notices.
create or replace function pgcoord_private.note_stuck() returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    if not exists (select from pgcoord.notify_target where 'stuck' = any (events)) then
        return false;
    end if;
    insert into pgcoord.notice (target, event, feature_id, phase_number, queue_id, attempt, words)
    select t.name, 'stuck', a.feature_id, a.phase_number, a.queue_id, p.attempt, a.words
    from pgcoord.attention as a
        join public.phase_queue as p using (queue_id)
        cross join pgcoord.notify_target as t
    where a.kind not in ('failed', 'gate') and 'stuck' = any (t.events) and not exists (
        select from pgcoord.event as e
        where e.feature_id = a.feature_id and e.phase_number = a.phase_number and e.kind = 'phase_stuck'
            and (e.attempt is not distinct from nullif(p.attempt, 0) or a.kind = 'later' and e.at >= a.since)
    );
    if found then
        perform pgcoord_private.log_event('phase_stuck', max(n.words), n.feature_id, n.phase_number, n.queue_id, nullif(n.attempt, 0))
        from pgcoord.notice as n
        where n.event = 'stuck' and n.at = now()
        group by n.feature_id, n.phase_number, n.queue_id, n.attempt;
    end if;
    return true;
end $$;

-- For the leading coordinator: replace the receivers. Unsent notices for removed receivers are dropped.
create or replace function pgcoord_private.declare_targets(p_targets jsonb) returns void
language sql
begin atomic
    delete from pgcoord.notify_target where not p_targets ? name;
    insert into pgcoord.notify_target (name, events)
    select t.key, array(select jsonb_array_elements_text(t.value)) from jsonb_each(p_targets) as t
    on conflict (name) do update set events = excluded.events where notify_target.events <> excluded.events;
    delete from pgcoord.notice where not p_targets ? target;
end;

-- Begin to deliver the oldest due notice to a target. The try is committed before the delivery; the next one is due later
-- each time, after an hour at most. If none is due, id is null, and due_in has the seconds until one is.
create or replace function pgcoord_private.begin_notice(
    p_target text, out id bigint, out key uuid, out tries integer, out message jsonb, out due_in float8
)
language plpgsql
set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
    update pgcoord.notice as n
    set tries = n.tries + 1, due_at = clock_timestamp() + least(interval '10 s' * 2 ^ least(n.tries, 20), interval '1 h')
    where n.id = (
        select due.id from pgcoord.notice as due
        where due.target = p_target and due.due_at <= clock_timestamp() order by due.id limit 1
    )
    returning n.id, n.key, n.tries, jsonb_build_object(
        'type', 'pgcoord.' || n.event, 'timestamp', n.at, 'data', jsonb_build_object(
            'event', n.event, 'words', n.words, 'feature_id', n.feature_id,
            'feature', (select title from public.planned_features where id = n.feature_id),
            'phase_number', n.phase_number, 'queue_id', n.queue_id, 'attempt', n.attempt,
            'title', (select pgcoord_private.title_of(p) from public.phase_queue as p where p.queue_id = n.queue_id)))
    into id, key, tries, message;
    if id is null then
        select greatest(extract(epoch from n.due_at - clock_timestamp()), 0) into due_in
        from pgcoord.notice as n where n.target = p_target order by n.due_at limit 1;
    end if;
end $$;

-- Record that a notice was delivered, or given up.
create or replace function pgcoord_private.end_notice(p_id bigint) returns void
language sql
begin atomic
    delete from pgcoord.notice where id = p_id;
end;
