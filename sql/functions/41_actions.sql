-- Actions of people on phases, features and the installation. Each takes its locks in the lock order (30_locks.sql).

create or replace function pgcoord.retry_phase(p_queue_id text, p_reason text default null) returns public.phase_queue
language plpgsql
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_phase public.phase_queue := pgcoord_private.lock_phase(p_queue_id);
begin
    if v_phase.status not in ('failed', 'cancelled') and v_phase.retry_at is null then
        raise exception using
            errcode = 'PC002',
            message = format('phase %s is %s: only a failed or cancelled one can be retried', p_queue_id, v_phase.status),
            hint = case
                when v_phase.slot is not null then format('Cancel it first: pgcoord.cancel_phase(%L, reason).', p_queue_id)
                when v_phase.status = 'blocked' then (
                    select format('Retry phase %s, which it waits for.', obstacle)
                    from pgcoord_private.obstacles(v_phase.feature_id) where phase_number = v_phase.phase_number
                )
                when v_phase.status = 'completed' then 'A completed one stays so: insert another for what is still to be done.'
                else format('pgcoord.why(%L) says what it waits for.', p_queue_id)
            end;
    end if;
    perform pgcoord_private.set_reason(p_reason);
    update public.phase_queue set status = 'queued', retry_at = null where queue_id = p_queue_id returning * into v_phase;
    perform pgcoord_private.set_reason(null);
    return v_phase;
end $$;
comment on function pgcoord.retry_phase(text, text) is
    'Queue a failed or cancelled phase again with its full number of attempts; one that waits for its retry time is queued at once.';

create or replace function pgcoord.skip_phase(p_queue_id text, p_reason text default null) returns public.phase_queue
language plpgsql
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_phase public.phase_queue := pgcoord_private.lock_phase(p_queue_id);
begin
    if v_phase.slot is not null then
        raise exception using
            errcode = 'PC002',
            message = format('phase %s is %s: it cannot be skipped', p_queue_id, v_phase.status),
            hint = format('Cancel it first: pgcoord.cancel_phase(%L, reason).', p_queue_id);
    end if;
    if v_phase.status = 'completed' then
        return v_phase;
    end if;
    perform pgcoord_private.set_reason(coalesce(p_reason, 'skipped'));
    update public.phase_queue set status = 'completed' where queue_id = p_queue_id returning * into v_phase;
    perform pgcoord_private.set_reason(null);
    return v_phase;
end $$;
comment on function pgcoord.skip_phase(text, text) is
    'Mark a phase that does not run as completed: its dependents can run. A completed one is left unchanged.';

create or replace function pgcoord.cancel_phase(p_queue_id text, p_reason text default null) returns public.phase_queue
language plpgsql
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_phase public.phase_queue := pgcoord_private.lock_phase(p_queue_id);
begin
    if v_phase.status = 'cancelled' then
        return v_phase;
    end if;
    perform pgcoord_private.set_reason(coalesce(p_reason, 'cancelled'));
    update public.phase_queue set status = 'cancelled' where queue_id = p_queue_id returning * into v_phase;
    perform pgcoord_private.set_reason(null);
    return v_phase;
end $$;
comment on function pgcoord.cancel_phase(text, text) is
    'Cancel a phase; its dependents are blocked. A running phase keeps its slot until its process has ended.';

-- Cancel a phase and all phases that depend on it, directly or indirectly.
-- Locks: the feature, then its phases.
create or replace function pgcoord.cancel_branch(p_queue_id text, p_reason text default null) returns integer
language plpgsql
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_phase public.phase_queue := pgcoord_private.lock_phase(p_queue_id);
    v_cancelled integer;
begin
    perform pgcoord_private.set_reason(coalesce(p_reason, 'cancelled'));
    with recursive branch as (
        select v_phase.phase_number as phase_number
        union
        select d.dependent from branch as b
            join pgcoord.dependency as d on d.feature_id = v_phase.feature_id and d.prerequisite = b.phase_number
    )
    update public.phase_queue as p set status = 'cancelled'
    where p.feature_id = v_phase.feature_id and p.status not in ('completed', 'cancelled')
        and p.phase_number in (select phase_number from branch);
    get diagnostics v_cancelled = row_count;
    perform pgcoord_private.set_reason(null);
    return v_cancelled;
end $$;
comment on function pgcoord.cancel_branch(text, text) is
    'Cancel a phase and all its direct and indirect dependents that are not completed; returns the number of phases. Running ones are ended first.';

-- Refuse (PC002) to approve or reject a phase that does not wait for approval.
create or replace function pgcoord_private.check_asked(p_phase public.phase_queue) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    if p_phase.gated and p_phase.status = 'queued' and p_phase.eligible_at is not null then
        return;
    end if;
    raise exception using
        errcode = 'PC002',
        message = case
            when p_phase.phase_data ->> 'gate' is null then format('phase %s has no gate: nobody is asked about it', p_phase.queue_id)
            when not p_phase.gated then format('phase %s was approved before', p_phase.queue_id)
            when p_phase.status in ('queued', 'blocked')
                then format('nobody is asked about phase %s yet: its prerequisites are not completed', p_phase.queue_id)
            else format('phase %s is %s: nobody is asked about it any more', p_phase.queue_id, p_phase.status)
        end,
        hint = case
            when p_phase.phase_data ->> 'gate' is null then 'A "gate" in its phase_data, "Gate:" in a plan, asks before it starts.'
            when p_phase.status in ('failed', 'cancelled') then 'Retry it: then it asks again.'
            when p_phase.gated then format('pgcoord.why(%L) says what it waits for.', p_phase.queue_id)
            else 'pgcoord.cancel_phase(queue_id, reason) gives it up.'
        end;
end $$;

create or replace function pgcoord.approve(p_queue_id text, p_reason text default null) returns public.phase_queue
language plpgsql
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_phase public.phase_queue := pgcoord_private.lock_phase(p_queue_id);
begin
    if v_phase.phase_data ->> 'gate' is not null and not v_phase.gated then
        return v_phase;
    end if;
    perform pgcoord_private.check_asked(v_phase);
    perform pgcoord_private.set_reason(p_reason);
    if pgcoord_private.only_asks(v_phase.phase_data) then
        update public.phase_queue set gated = false, status = 'completed' where queue_id = p_queue_id returning * into v_phase;
    else
        update public.phase_queue set gated = false where queue_id = p_queue_id returning * into v_phase;
    end if;
    perform pgcoord_private.set_reason(null);
    return v_phase;
end $$;
comment on function pgcoord.approve(text, text) is
    'Approve a phase that waits for approval (phase_data ->> gate). One without workflow and prompt is completed. An approved one is left unchanged.';

create or replace function pgcoord.reject(p_queue_id text, p_reason text default null) returns public.phase_queue
language plpgsql
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_phase public.phase_queue := pgcoord_private.lock_phase(p_queue_id);
begin
    if v_phase.status = 'cancelled' and v_phase.gated then
        return v_phase;
    end if;
    perform pgcoord_private.check_asked(v_phase);
    perform pgcoord_private.set_reason(coalesce('rejected: ' || p_reason, 'rejected'));
    update public.phase_queue set status = 'cancelled' where queue_id = p_queue_id returning * into v_phase;
    perform pgcoord_private.set_reason(null);
    return v_phase;
end $$;
comment on function pgcoord.reject(text, text) is
    'Reject a phase that waits for approval: it is cancelled, and its dependents are blocked. A retry asks again.';

create or replace function pgcoord.set_priority(p_queue_id text, p_priority bigint) returns public.phase_queue
language plpgsql
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_phase public.phase_queue := pgcoord_private.lock_phase(p_queue_id);
begin
    perform pgcoord_private.check_priority('phase ' || p_queue_id, p_priority);
    update public.phase_queue set priority = p_priority where queue_id = p_queue_id returning * into v_phase;
    return v_phase;
end $$;
comment on function pgcoord.set_priority(text, bigint) is
    'Change the priority of a phase: lower numbers run earlier (10 urgent, 50 usual, 90 background).';

create or replace function pgcoord.cancel_feature(p_feature_id bigint, p_reason text default null) returns integer
language plpgsql
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_phases integer;
begin
    perform pgcoord_private.lock_feature(p_feature_id);
    select count(*) into v_phases from public.phase_queue
    where feature_id = p_feature_id and status in ('queued', 'blocked', 'ready', 'running');
    update public.planned_features set cancelled_at = now(), cancelled_reason = p_reason
    where id = p_feature_id and cancelled_at is null;
    return v_phases;
end $$;
comment on function pgcoord.cancel_feature(bigint, text) is
    'Cancel a feature: its waiting phases are cancelled, its running ones ended; returns the number of these phases.';

-- Pause everything, or one feature: no further phase is claimed; running phases continue.
create or replace function pgcoord.pause(p_feature_id bigint default null, p_reason text default null) returns timestamptz
language plpgsql
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
begin
    if p_feature_id is not null then
        perform pgcoord_private.lock_feature(p_feature_id);
        update public.planned_features set paused_at = now(), paused_reason = p_reason
        where id = p_feature_id and paused_at is null;
        return (select paused_at from public.planned_features where id = p_feature_id);
    end if;
    update pgcoord.control set paused_at = now(), paused_reason = p_reason where paused_at is null;
    if found then
        perform pgcoord_private.log_event('paused', p_reason);
    end if;
    return (select paused_at from pgcoord.control);
end $$;
comment on function pgcoord.pause(bigint, text) is
    'Pause one feature, or without an id everything: no further phase is claimed, running phases continue; returns since when it is paused.';

create or replace function pgcoord.resume(p_feature_id bigint default null) returns boolean
language plpgsql
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_spent text;
begin
    if p_feature_id is not null then
        perform pgcoord_private.lock_feature(p_feature_id);
        v_spent := pgcoord_private.spent_budget(p_feature_id);
        if v_spent is not null then
            raise exception using
                errcode = 'PC002',
                message = format('feature %s cannot be resumed: %s', p_feature_id, v_spent),
                hint = case when v_spent like 'its budget%'
                    then format('pgcoord.set_budget(%s, ...) gives it more, and resumes it; null takes its limit away.', p_feature_id)
                    else 'max_cost_usd of that workflow in pgcoord.toml gives it more.' end;
        end if;
        update public.planned_features set paused_at = null, paused_reason = null
        where id = p_feature_id and paused_at is not null;
        return found;
    end if;
    update pgcoord.control set paused_at = null, paused_reason = null where paused_at is not null;
    if found then
        perform pgcoord_private.log_event('resumed', null);
        notify pgcoord_wake;
        return true;
    end if;
    return false;
end $$;
comment on function pgcoord.resume(bigint) is
    'Resume one feature, or without an id everything that was paused as a whole; returns whether it was paused. Features that were paused by their id stay paused.';

-- Set the budget of a feature: the feature is paused if it is spent, and resumed if only the old budget had paused it.
create or replace function pgcoord.set_budget(p_feature_id bigint, p_max_cost_usd double precision default null) returns boolean
language plpgsql
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
begin
    perform pgcoord_private.lock_feature(p_feature_id);
    if not coalesce(p_max_cost_usd between 0.01 and 1000000000, true) then
        raise exception using
            errcode = 'PC005',
            message = format('the budget of feature %s cannot be %s', p_feature_id, p_max_cost_usd),
            hint = 'Give US dollars, from 0.01 to 1000000000, or null for no limit.';
    end if;
    update public.planned_features set max_cost_usd = round(p_max_cost_usd::numeric, 4)
    where id = p_feature_id and max_cost_usd is distinct from round(p_max_cost_usd::numeric, 4);
    return (select paused_at is not null from public.planned_features where id = p_feature_id);
end $$;
comment on function pgcoord.set_budget(bigint, double precision) is
    'Set the budget of a feature, in US dollars; null removes it. Once it is spent the feature is paused; a higher budget resumes it. Returns whether it is paused now.';

-- Set the number of slots of a pool. Raising it first takes draining slots back. Lowering it ends no phase: free surplus
-- slots are deleted at once; held ones drain, and are deleted when they are released or with the next claim.
create or replace function pgcoord.set_slots(p_slots bigint, p_pool text default 'local') returns integer
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_before integer;
    v_declared boolean;
begin
    if p_slots is null or p_slots not between 0 and 1000 then
        raise exception using
            errcode = 'PC005',
            message = format('%s is not a number of slots', coalesce(p_slots::text, 'null')),
            hint = 'Between 0 (start nothing new) and 1000.';
    end if;
    perform pgcoord_private.check_isolation();
    perform 1 from pgcoord.control for no key update;
    select o.declared into v_declared from pgcoord.pool as o where o.name = p_pool;
    if not found or not v_declared and p_slots > 0 then
        raise exception using
            errcode = case when found then 'PC002' else 'PC001' end,
            message = case when found then format('pool %s was taken out of the configuration', p_pool)
                else format('there is no pool %s', coalesce(p_pool, 'null')) end,
            hint = format('There is %s. Another one is declared in pgcoord.toml, as [pool.NAME].',
                (select string_agg(o.name, ', ' order by o.name) from pgcoord.pool as o where o.declared));
    end if;
    select count(*) into v_before from pgcoord.slot where pool = p_pool and not draining;

    update pgcoord.slot set draining = false
    where number in (
        select number from pgcoord.slot where pool = p_pool and draining order by number limit greatest(p_slots - v_before, 0)
    );
    insert into pgcoord.slot (number, pool)
    select number, p_pool from generate_series(1, 1000 + (select count(*) from pgcoord.slot)) as number
    where number not in (select number from pgcoord.slot)
    order by number
    limit greatest(p_slots - (select count(*) from pgcoord.slot where pool = p_pool and not draining), 0);

    update pgcoord.slot set draining = true
    where number in (
        select s.number from pgcoord.slot as s
        where s.pool = p_pool and not s.draining
        order by exists (select from public.phase_queue as p where p.slot = s.number), s.number desc
        limit greatest(v_before - p_slots, 0)
    );
    delete from pgcoord.slot as s
    where s.pool = p_pool and s.draining and not exists (select from public.phase_queue as p where p.slot = s.number);
    perform pgcoord_private.find_free_slots();

    if v_before <> p_slots then
        perform pgcoord_private.log_event('slots_changed', format('%s → %s%s', v_before, p_slots, pgcoord_private.in_pool(p_pool)));
    end if;
    notify pgcoord_wake;
    return p_slots;
end $$;
comment on function pgcoord.set_slots(bigint, text) is
    'Set the number of phases of a pool (by default local) that run at once. Lowering it ends no phase: surplus phases run to their end and are not replaced.';

-- Features that were finished (completed or cancelled) longer ago than p_older_than.
create or replace function pgcoord_private.finished_features(p_older_than interval) returns setof integer
language sql
begin atomic
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
end;

create or replace function pgcoord.prune(p_older_than interval) returns integer
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_ids integer[];
begin
    if p_older_than is null or p_older_than < '0' or p_older_than > '1000 years' then
        raise exception using
            errcode = 'PC005',
            message = format('%s is not a valid age of a feature', coalesce(p_older_than::text, 'null')),
            hint = 'Give an interval from 0 to 1000 years, such as 90 days.';
    end if;
    select array_agg(id) into v_ids
    from (
        select id from public.planned_features
        where id in (select pgcoord_private.finished_features(p_older_than)) order by id for update
    ) as locked;
    -- Checked again under the locks: a feature may have been retried or extended meanwhile.
    select array_agg(id) into v_ids from pgcoord_private.finished_features(p_older_than) as id where id = any (v_ids);
    delete from public.planned_features where id = any (v_ids);
    delete from pgcoord.event where feature_id = any (v_ids);
    delete from pgcoord.webhook_delivery where feature_id = any (v_ids) or feature_id is null and at < now() - p_older_than;
    return coalesce(cardinality(v_ids), 0);
end $$;
comment on function pgcoord.prune(interval) is
    'Remove features that were finished (completed or cancelled) longer ago than this, with their phases, attempts and events; returns their number.';

-- An untyped literal such as '30' resolves to this function; as an interval it would be 30 seconds.
-- Errors: PC005 for a text that is not an interval, and for a number without a unit, except 0.
create or replace function pgcoord.prune(p_older_than text) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_older_than interval;
    v_fault text := case when p_older_than ~ '^[\s+-]*[0-9.]+\s*$' and p_older_than ~ '[1-9]' then 'it has no unit' end;
begin
    if v_fault is null then
        begin
            v_older_than := p_older_than;
        exception when data_exception then
            v_fault := 'it is not an interval';
        end;
    end if;
    if v_fault is not null then
        raise exception using
            errcode = 'PC005',
            message = format('%L is not an age of a feature: %s', left(btrim(p_older_than), 60), v_fault),
            hint = 'Give an interval with its unit, such as 90 days; 0 for all.';
    end if;
    return pgcoord.prune(v_older_than);
end $$;
comment on function pgcoord.prune(text) is
    'As prune of an interval, but requires a unit: 90 days, or 0 for all.';
