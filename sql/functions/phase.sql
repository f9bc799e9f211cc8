-- Phases: the triggers that keep phase_queue true, and the functions by which people and workflows move a phase.
--
-- How a change goes: a BEFORE trigger on the row fills or guards it (and refuses what the design's table of states
-- does not allow); one AFTER trigger on the statement writes the events, ends attempts, frees slots, resolves
-- dependents and notifies. A plain UPDATE by hand and the functions below go through the same two.
--
-- Lock order, for everybody: control, then features by id, then phases, then attempts, then slots. A hand-written
-- UPDATE holds its phase before any trigger runs; that is why the trigger does not wait for the feature (hold_feature).
-- A claim takes the control row and phases that nobody else has locked, and never waits for a feature or a phase.

-- Which states may follow which: design section 4.
create or replace function pgcoord.may_move(p_from text, p_to text) returns boolean
language sql immutable
return p_from || ' → ' || p_to in (
    'queued → ready', 'queued → completed', 'queued → blocked', 'queued → cancelled',
    'ready → running', 'ready → completed', 'ready → failed', 'ready → cancelled', 'ready → queued',
    'running → completed', 'running → failed', 'running → cancelled', 'running → queued',
    'blocked → queued', 'blocked → completed', 'blocked → cancelled',
    'failed → queued', 'failed → completed', 'failed → cancelled',
    'cancelled → queued', 'cancelled → completed'
);
comment on function pgcoord.may_move(text, text) is 'Whether a phase in the first state may become the second.';

-- Errors: PC009 under a snapshot that would not see what others commit meanwhile.
create or replace function pgcoord.sees_others() returns boolean
language sql stable
return current_setting('transaction_isolation') in ('read committed', 'read uncommitted');
comment on function pgcoord.sees_others() is 'Whether each statement of this transaction sees what others have committed until then.';

create or replace function pgcoord.check_isolation() returns void
language plpgsql as $$
begin
    if not pgcoord.sees_others() then
        raise exception using
            errcode = 'PC009',
            message = format('phases change under READ COMMITTED only, this transaction is %s',
                upper(current_setting('transaction_isolation'))),
            hint = 'An older snapshot would miss a prerequisite that ends meanwhile. Use the default isolation level.';
    end if;
end $$;
comment on function pgcoord.check_isolation() is 'Refuse (PC009) a transaction that would not see what others commit meanwhile.';

-- Lock a feature from within a row trigger, that is, holding a phase already. Never waits for another's lock for
-- long, since its holder may be waiting for our phase: tries for a tenth of a second, then gives up. Returns the id, so
-- that it can stand in an assignment, which costs half of a PERFORM.
-- Errors: 55P03 when somebody else holds the feature; PC009 under a snapshot that would not see what they did.
create or replace function pgcoord.hold_feature(p_feature_id integer) returns integer
language plpgsql as $$
begin
    if not pgcoord.sees_others() then
        perform pgcoord.check_isolation();
    end if;
    for i in 1 .. 20 loop
        perform 1 from public.planned_features where id = p_feature_id for no key update skip locked;
        if found then
            return p_feature_id;
        elsif not exists (select from public.planned_features where id = p_feature_id) then
            return p_feature_id;    -- being deleted by this very transaction
        end if;
        perform pg_sleep(0.005);
    end loop;
    raise exception using
        errcode = '55P03',
        message = format('feature %s is being changed by somebody else', p_feature_id),
        hint = 'Try again, or use the functions of the schema pgcoord (complete_phase, skip_phase …): they wait in the right order.';
end $$;
comment on function pgcoord.hold_feature(integer) is
    'Lock a feature from a trigger that holds one of its phases; gives up (55P03) after a tenth of a second.';

-- Lock a phase in the right order, its feature first, and return it. Waits.
-- Errors: PC001 when there is none.
create or replace function pgcoord.lock_phase(p_queue_id text) returns public.phase_queue
language plpgsql as $$
declare
    v_phase public.phase_queue;
begin
    perform 1 from public.planned_features
    where id = (select feature_id from public.phase_queue where queue_id = p_queue_id)
    for no key update;
    select * into v_phase from public.phase_queue where queue_id = p_queue_id for no key update;
    if not found then
        raise exception using
            errcode = 'PC001',
            message = format('there is no phase %s', p_queue_id),
            hint = 'select queue_id from phase_queue shows those that exist.';
    end if;
    return v_phase;
end $$;
comment on function pgcoord.lock_phase(text) is 'Lock a phase, its feature first, and return it; PC001 when there is none.';

-- Refuse the insertion of a running phase when no slot is free, else return the slot it gets: the lowest.
-- Takes the control row's lock, as a claim does, so that both see the same free slots.
create or replace function pgcoord.slot_for_inserted(p_queue_id text) returns smallint
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_slot smallint;
begin
    perform 1 from pgcoord.control for no key update;
    select s.number into v_slot from pgcoord.slot as s
    where not s.draining and not exists (select from public.phase_queue as p where p.slot = s.number)
    order by s.number
    limit 1;
    if v_slot is null then
        raise exception using
            errcode = 'PC006',
            message = format('no slot is free: phase %s cannot be inserted as running (%s of %s are held)', p_queue_id,
                (select count(*) from public.phase_queue where slot is not null),
                (select count(*) from pgcoord.slot where not draining)),
            hint = 'Insert it as queued, or raise the limit with pgcoord.set_slots(n).';
    end if;
    return v_slot;
end $$;
comment on function pgcoord.slot_for_inserted(text) is
    'The lowest free slot, for a phase inserted as running by hand; PC006 when there is none.';

-- Refuse a time that nobody can count with, such as infinity.
-- Errors: PC005.
create or replace function pgcoord.check_times(p_queue_id text, variadic p_times timestamptz[]) returns void
language plpgsql as $$
declare
    v_time timestamptz;
begin
    foreach v_time in array p_times loop
        if v_time not between '0001-01-02 00:00+00' and '9999-12-31 23:59:59+00' then
            raise exception using
                errcode = 'PC005',
                message = format('phase %s cannot have a time of %s', p_queue_id, v_time),
                hint = 'Times lie within the years 1 to 9999. pgcoord.pause(feature_id) has phases wait for as long as you like.';
        end if;
    end loop;
end $$;
comment on function pgcoord.check_times(text, timestamptz[]) is
    'Refuse (PC005) a phase with a time that nobody can count with, such as infinity.';

create or replace function pgcoord.fill_phase() returns trigger
language plpgsql as $$
declare
    v_times timestamptz[] := array[
        new.created_at, new.updated_at, new.ready_timestamp, new.started_timestamp, new.finished_timestamp, new.retry_at
    ];
begin
    new.queue_id := coalesce(new.queue_id, format('queue-%s-%s', new.feature_id, new.phase_number));
    if num_nonnulls(variadic v_times) > 0 then
        perform pgcoord.check_times(new.queue_id, variadic v_times);
    end if;
    new.depends_on_phases := coalesce(new.depends_on_phases, '[]');
    if jsonb_typeof(new.depends_on_phases) <> 'array' then
        perform pgcoord.check_prerequisites(new.queue_id, new.phase_number, new.depends_on_phases);
    end if;
    new.phase_data := coalesce(new.phase_data, '{}');
    new.workflow_type := new.phase_data ->> 'workflow_type';
    new.priority := coalesce(new.priority, 50);
    new.queue_position := coalesce(new.queue_position, nextval('pgcoord.queue_position'));
    new.created_at := coalesce(new.created_at, now());
    new.updated_at := coalesce(new.updated_at, now());
    -- Nobody has claimed it and no prerequisite has been looked at: ready and blocked are found out, not declared.
    new.status := case when new.status in ('ready', 'blocked') then 'queued' else coalesce(new.status, 'queued') end;
    new.slot := null;
    new.attempt := 0;
    new.attempts_used := 0;
    new.held := false;
    new.unmet := case when new.status = 'queued' then jsonb_array_length(new.depends_on_phases) else 0 end;
    new.eligible_at := case when new.unmet = 0 then clock_timestamp() end;
    if new.status = 'running' then
        new.slot := pgcoord.slot_for_inserted(new.queue_id);
        new.attempt := 1;
        new.adw_id := coalesce(new.adw_id, pgcoord.new_adw_id());
        new.ready_timestamp := coalesce(new.ready_timestamp, clock_timestamp());    -- the slot may have been waited for
        new.started_timestamp := coalesce(new.started_timestamp, clock_timestamp());
    elsif new.status <> 'queued' then
        new.finished_timestamp := coalesce(new.finished_timestamp, now());
    end if;
    return new;
end $$;
comment on function pgcoord.fill_phase() is 'Trigger: complete an inserted phase; a running one gets a slot or is refused.';

create or replace trigger phase_queue_insert_fills before insert on public.phase_queue
    for each row execute function pgcoord.fill_phase();
comment on trigger phase_queue_insert_fills on public.phase_queue is 'Complete an inserted phase.';

-- Refuse phases of a cancelled feature, and running ones whose prerequisites are not completed.
create or replace function pgcoord.check_inserted(p_queue_ids text[]) returns void
language plpgsql as $$
declare
    v_fault record;
begin
    select p.queue_id, f.id, d.prerequisite into v_fault
    from public.phase_queue as p
        join public.planned_features as f on f.id = p.feature_id
        left join pgcoord.dependency as d on p.status = 'running'
            and d.feature_id = p.feature_id and d.dependent = p.phase_number
            and not exists (
                select from public.phase_queue as up
                where up.feature_id = d.feature_id and up.phase_number = d.prerequisite and up.status = 'completed'
            )
    where p.queue_id = any (p_queue_ids) and (f.cancelled_at is not null or d.prerequisite is not null)
    order by p.feature_id, p.phase_number, d.prerequisite
    limit 1;
    if not found then
        return;
    end if;
    raise exception using
        errcode = 'PC002',
        message = case when v_fault.prerequisite is null
            then format('feature %s is cancelled: phase %s cannot be added', v_fault.id, v_fault.queue_id)
            else format('phase %s cannot be running: its prerequisite %s is not completed', v_fault.queue_id, v_fault.prerequisite)
        end,
        hint = case when v_fault.prerequisite is null
            then 'Retry one of its phases to take the feature up again, or add the phase to another feature.'
            else 'Insert it as queued: it is claimed when its prerequisites are completed.'
        end;
end $$;
comment on function pgcoord.check_inserted(text[]) is
    'Refuse (PC002) inserted phases of a cancelled feature, or running before their prerequisites.';

create or replace function pgcoord.settle_inserted_phases() returns trigger
language plpgsql
security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    v_features integer[];
    v_phases integer[];
begin
    if not exists (select from new_rows) then
        return null;
    end if;
    perform pgcoord.check_isolation();
    perform 1 from public.planned_features
    where id in (select feature_id from new_rows) order by id for no key update;

    insert into pgcoord.event (kind, feature_id, phase_number, queue_id, to_status, attempt, actor, reason)
    select 'phase_inserted', feature_id, phase_number, queue_id, status, nullif(attempt, 0), pgcoord.actor(), pgcoord.reason()
    from new_rows order by feature_id, phase_number;

    insert into pgcoord.attempt (queue_id, number, adw_id, secret, slot, external, workflow, claimed_at, started_at)
    select queue_id, 1, adw_id, pgcoord.new_secret(), slot, true, workflow_type, ready_timestamp, started_timestamp
    from new_rows where status = 'running';

    select array_agg(feature_id), array_agg(phase_number) into v_features, v_phases
    from new_rows where depends_on_phases <> '[]';
    if v_features is not null then
        perform pgcoord.store_edges(v_features, v_phases);
    end if;

    perform pgcoord.check_inserted(array_agg(n.queue_id))
    from new_rows as n join public.planned_features as f on f.id = n.feature_id
    where n.status = 'running' or f.cancelled_at is not null;

    update public.phase_queue set held = true
    where queue_id = any (array(
        select n.queue_id
        from new_rows as n join public.planned_features as f on f.id = n.feature_id
        where f.paused_at is not null
    ));

    -- Inserted phases that wait for one that is there already, and older ones that waited for an inserted one. (Statistics
    -- of tables that were empty once make all indexes and joins look alike: so prerequisites are read from the phase, not
    -- looked up, and `offset 0` makes one look-up for each of what is looked for.)
    select array_agg(feature_id), array_agg(phase_number) into v_features, v_phases
    from (
        select n.feature_id, n.phase_number
        from new_rows as n
        where n.status = 'queued' and exists (
            select from jsonb_array_elements(n.depends_on_phases) as e
            where exists (
                select from public.phase_queue as up
                where up.feature_id = n.feature_id and up.phase_number = e::integer
                    and up.status in ('completed', 'failed', 'cancelled', 'blocked')
                offset 0
            )
        )
        union
        select n.feature_id, d.dependent
        from new_rows as n
            cross join lateral (
                select dependent from pgcoord.dependency
                where feature_id = n.feature_id and prerequisite = n.phase_number
                offset 0
            ) as d
        where n.status in ('completed', 'failed', 'cancelled') and exists (
            select from public.phase_queue as down
            where down.feature_id = n.feature_id and down.phase_number = d.dependent and down.status in ('queued', 'blocked')
            offset 0
        )
    ) as touched;
    if v_features is not null then
        perform pgcoord.recount_unmet(v_features, v_phases);
        perform pgcoord.settle_because(v_features, v_phases, 'a prerequisite is failed or cancelled');
    end if;

    if exists (select from new_rows where status = 'queued' and eligible_at is not null) then
        notify pgcoord_wake;
    end if;
    perform pg_notify('pgcoord_event', feature_id::text) from (select distinct feature_id from new_rows) as touched;
    return null;
end $$;
comment on function pgcoord.settle_inserted_phases() is
    'Trigger: store the edges of inserted phases, find out what waits, log, and wake the coordinator when one can start.';

create or replace trigger phase_queue_insert_settles after insert on public.phase_queue
    referencing new table as new_rows
    for each statement execute function pgcoord.settle_inserted_phases();
comment on trigger phase_queue_insert_settles on public.phase_queue is 'Store edges, find out what waits, log, wake.';

-- Refuse a change that no update by hand may make: of identity, or of a column that is derived.
create or replace function pgcoord.refuse_change(p_queue_id text, p_identity boolean) returns void
language plpgsql as $$
begin
    raise exception using
        errcode = 'PC008',
        message = case when p_identity
            then format('phase %s keeps its queue_id, feature_id and phase_number', p_queue_id)
            else format('slot, attempt, attempts_used, unmet, eligible_at, held and adw_id of phase %s are derived', p_queue_id)
        end,
        hint = case when p_identity
            then 'Delete it and insert another.'
            else 'They follow from the status of phases, depends_on_phases and pauses: change those.'
        end;
end $$;
comment on function pgcoord.refuse_change(text, boolean) is
    'Refuse (PC008) a change of identity, or of a derived column, by hand.';

-- Errors: PC002 for a phase that does not wait, PC005 for what cannot be meant.
create or replace function pgcoord.check_new_prerequisites(p_old public.phase_queue, p_depends_on jsonb) returns void
language plpgsql as $$
begin
    if p_old.status not in ('queued', 'blocked') then
        raise exception using
            errcode = 'PC002',
            message = format('phase %s is %s: its dependencies cannot change any more', p_old.queue_id, p_old.status),
            hint = 'Only a phase that waits (queued or blocked) can be given other prerequisites.';
    end if;
    perform pgcoord.check_prerequisites(p_old.queue_id, p_old.phase_number, p_depends_on);
    perform pgcoord.hold_feature(p_old.feature_id);
end $$;
comment on function pgcoord.check_new_prerequisites(public.phase_queue, jsonb) is
    'Refuse other prerequisites for a phase that does not wait (PC002), or malformed ones (PC005); lock the feature.';

-- Errors: PC002.
create or replace function pgcoord.refuse_start(p_queue_id text, p_from text, p_to text) returns void
language plpgsql as $$
begin
    raise exception using
        errcode = 'PC002',
        message = format('phase %s is %s and cannot be set to %s by hand', p_queue_id, p_from, p_to),
        hint = 'A coordinator claims and starts it; pgcoord.set_priority(queue_id, n) brings it forward.';
end $$;
comment on function pgcoord.refuse_start(text, text, text) is
    'Refuse (PC002) ready without the attempt of a claim, and running without a started one.';

-- Errors: PC002.
create or replace function pgcoord.refuse_blocking(p_queue_id text, p_from text, p_to text) returns void
language plpgsql as $$
begin
    raise exception using
        errcode = 'PC002',
        message = format('phase %s is %s and cannot be set to %s by hand', p_queue_id, p_from, p_to),
        hint = 'A phase is blocked exactly as long as a prerequisite is failed or cancelled: retry or skip that one.';
end $$;
comment on function pgcoord.refuse_blocking(text, text, text) is
    'Refuse (PC002) to block or unblock a phase by hand: that follows from its prerequisites.';

-- Queue a phase again: recount what it waits for (a prerequisite may have been deleted meanwhile).
create or replace function pgcoord.requeue(p_old public.phase_queue, p_new public.phase_queue) returns public.phase_queue
language plpgsql as $$
begin
    p_new.status := 'queued';
    p_new.finished_timestamp := null;
    p_new.unmet := (
        select count(*) from pgcoord.dependency as d
        where d.feature_id = p_old.feature_id and d.dependent = p_old.phase_number
            and not exists (
                select from public.phase_queue as up
                where up.feature_id = d.feature_id and up.phase_number = d.prerequisite and up.status = 'completed'
            )
    );
    p_new.eligible_at := case when p_new.unmet = 0 then coalesce(p_old.eligible_at, clock_timestamp()) end;
    p_new.held := exists (
        select from public.planned_features where id = p_old.feature_id and paused_at is not null
    );
    return p_new;
end $$;
comment on function pgcoord.requeue(public.phase_queue, public.phase_queue) is
    'The row of a phase that is queued again: what it waits for counted anew.';

-- An attempt of the phase failed: queue it again while attempts are left, later each time; else it stays failed.
-- Three losses since a person queued it are enough, even where losses do not count: something about the phase brings
-- the machine down.
create or replace function pgcoord.retry_or_fail(
    p_old public.phase_queue, p_new public.phase_queue, p_attempt pgcoord.attempt
) returns public.phase_queue
language plpgsql as $$
begin
    if p_attempt.outcome = 'lost' and p_attempt.retry_lost and (
        select count(*) < 3 from pgcoord.attempt
        where queue_id = p_old.queue_id and outcome = 'lost' and number > coalesce((
            select max(attempt) from pgcoord.event    -- the last one before a retry
            where feature_id = p_old.feature_id and phase_number = p_old.phase_number
                and from_status in ('failed', 'cancelled') and to_status = 'queued'
        ), 0)
    ) then
        p_new.retry_at := clock_timestamp() + p_attempt.retry_delay;
        return pgcoord.requeue(p_old, p_new);
    end if;
    p_new.attempts_used := p_old.attempts_used + 1;
    if p_new.attempts_used >= p_attempt.max_attempts then
        return p_new;
    end if;
    p_new.retry_at := clock_timestamp()
        + least(p_attempt.retry_delay * 2 ^ least(p_new.attempts_used - 1, 30), greatest(p_attempt.retry_delay, '1 hour'));
    return pgcoord.requeue(p_old, p_new);
end $$;
comment on function pgcoord.retry_or_fail(public.phase_queue, public.phase_queue, pgcoord.attempt) is
    'The row of a phase whose attempt failed: queued again while attempts are left (the wait doubles, up to an hour), else failed.';

-- Errors: PC004.
create or replace function pgcoord.refuse_end(p_queue_id text, p_ending text, p_to text) returns void
language plpgsql as $$
begin
    raise exception using
        errcode = 'PC004',
        message = format('phase %s is being ended (%s): it cannot become %s any more', p_queue_id, p_ending, p_to),
        hint = 'Wait until it has ended; then retry it, or pgcoord.skip_phase(queue_id, reason) takes it as done.';
end $$;
comment on function pgcoord.refuse_end(text, text, text) is
    'Refuse (PC004) an end of a phase when another one was asked for already.';

-- The row of a phase that leaves its slot. While its process lives it keeps the slot: failed and cancelled then
-- become a request to the coordinator, which ends the process first (attempt.ending) and comes back. Whether completed
-- comes too late is seen when its attempt is ended (settle_updated_phases).
-- Errors: PC002 for queued while the attempt lives; PC004 for failed when another end was asked for already.
create or replace function pgcoord.leave_slot(p_old public.phase_queue, p_new public.phase_queue) returns public.phase_queue
language plpgsql as $$
declare
    v_attempt pgcoord.attempt;
begin
    if p_new.status = 'completed' then
        p_new.slot := null;
        p_new.finished_timestamp := clock_timestamp();
        return p_new;
    end if;
    select * into v_attempt from pgcoord.attempt
    where queue_id = p_old.queue_id and number = p_old.attempt;

    if v_attempt.ended_at is null and p_new.status = 'queued' then
        raise exception using
            errcode = 'PC002',
            message = format('phase %s is %s: it cannot be queued again while its attempt lives', p_old.queue_id, p_old.status),
            hint = 'Cancel it first: pgcoord.cancel_phase(queue_id, reason), then pgcoord.retry_phase(queue_id).';
    elsif v_attempt.ended_at is null and v_attempt.ending <> p_new.status and p_new.status <> 'cancelled' then
        perform pgcoord.refuse_end(p_old.queue_id, v_attempt.ending, p_new.status);
    elsif v_attempt.ended_at is null and v_attempt.exited_at is null and not v_attempt.external then
        update pgcoord.attempt
        set ending = p_new.status, ending_at = clock_timestamp(),
            ending_reason = coalesce(case when p_new.status = 'failed' then p_new.error_message end, pgcoord.reason())
        where id = v_attempt.id and (ending is null or p_new.status = 'cancelled' and ending <> 'cancelled');
        return p_old;
    end if;

    p_new.slot := null;
    if p_new.status = 'queued' then
        return pgcoord.requeue(p_old, p_new);
    end if;
    p_new.finished_timestamp := clock_timestamp();
    if p_new.status = 'failed' then
        return pgcoord.retry_or_fail(p_old, p_new, v_attempt);
    end if;
    return p_new;
end $$;
comment on function pgcoord.leave_slot(public.phase_queue, public.phase_queue) is
    'The row of a phase that is to leave its slot; unchanged, with the end asked for, while its process lives.';

-- The row of a waiting or ended phase that moves: skipped, cancelled, retried. Blocked and back is found out from
-- the prerequisites (settle_blocked), never set by hand.
create or replace function pgcoord.leave_rest(p_old public.phase_queue, p_new public.phase_queue) returns public.phase_queue
language plpgsql as $$
begin
    if p_new.status = 'queued' then
        update public.planned_features set cancelled_at = null, cancelled_reason = null
        where id = p_old.feature_id and cancelled_at is not null;
        p_new.attempts_used := 0;
        p_new.error_message := null;
        return pgcoord.requeue(p_old, p_new);
    end if;
    p_new.finished_timestamp := clock_timestamp();
    return p_new;
end $$;
comment on function pgcoord.leave_rest(public.phase_queue, public.phase_queue) is
    'The row of a waiting or ended phase that is skipped, cancelled or retried.';

create or replace function pgcoord.guard_phase_update() returns trigger
language plpgsql as $$
declare
    v_by_hand boolean := pg_trigger_depth() = 1;    -- a statement of a person or of our functions, not of a trigger
begin
    if (new.queue_id, new.feature_id, new.phase_number) is distinct from (old.queue_id, old.feature_id, old.phase_number) then
        perform pgcoord.refuse_change(old.queue_id, true);
    end if;
    new.depends_on_phases := coalesce(new.depends_on_phases, '[]');
    if new.depends_on_phases <> old.depends_on_phases then
        perform pgcoord.check_new_prerequisites(old, new.depends_on_phases);
    end if;
    new.updated_at := now();
    if new.status = old.status then
        if v_by_hand and (new.slot, new.attempt, new.attempts_used, new.unmet, new.eligible_at, new.held, new.adw_id)
            is distinct from (old.slot, old.attempt, old.attempts_used, old.unmet, old.eligible_at, old.held, old.adw_id)
        then
            perform pgcoord.refuse_change(old.queue_id, false);
        elsif v_by_hand and (new.retry_at is not null or old.retry_at is null) then
            -- Nothing follows from it, but a statement over many phases would deadlock with what completes one of them.
            -- Not when a claim clears a retry time: that never waits.
            perform pgcoord.hold_feature(old.feature_id);
            if new.retry_at is not null then
                perform pgcoord.check_times(old.queue_id, new.retry_at);
            end if;
        end if;
        return new;
    end if;
    if not pgcoord.may_move(old.status, new.status) then
        raise exception using
            errcode = 'PC002',
            message = format('phase %s is %s and cannot become %s', old.queue_id, old.status, new.status),
            hint = format('pgcoord.why(%L) says what can be done.', old.queue_id);
    elsif new.status in ('ready', 'running') then
        -- Allowed when it is true: ready with the attempt of a claim, running with a started one.
        if (new.unmet, new.eligible_at, new.held, new.attempts_used)
            is distinct from (old.unmet, old.eligible_at, old.held, old.attempts_used)
        or not exists (
            select from pgcoord.attempt
            where queue_id = new.queue_id and number = new.attempt and adw_id = new.adw_id and slot = new.slot
                and ended_at is null and (new.status = 'ready' or started_at is not null)
        ) then
            perform pgcoord.refuse_start(old.queue_id, old.status, new.status);
        end if;
        return new;
    end if;
    -- Beside the new status a statement may say what is not derived; everything derived starts from the old row.
    new.adw_id := old.adw_id;
    new.queue_position := old.queue_position;
    new.created_at := old.created_at;
    new.ready_timestamp := old.ready_timestamp;
    new.started_timestamp := old.started_timestamp;
    new.finished_timestamp := old.finished_timestamp;
    new.eligible_at := old.eligible_at;
    new.retry_at := null;
    new.slot := old.slot;
    new.attempt := old.attempt;
    new.attempts_used := old.attempts_used;
    new.unmet := old.unmet;
    new.held := old.held;
    if old.status in ('queued', 'blocked') and new.status in ('queued', 'blocked') then
        if v_by_hand then
            perform pgcoord.refuse_blocking(old.queue_id, old.status, new.status);
        end if;
        return new;
    end if;
    new.feature_id := pgcoord.hold_feature(old.feature_id);
    if old.slot is not null then
        return pgcoord.leave_slot(old, new);
    end if;
    return pgcoord.leave_rest(old, new);
end $$;
comment on function pgcoord.guard_phase_update() is
    'Trigger: refuse what may not change, refuse (PC002) a move that the states do not allow, and derive the rest of the row.';

create or replace function pgcoord.copy_workflow() returns trigger
language plpgsql as $$
begin
    new.workflow_type := new.phase_data ->> 'workflow_type';
    return new;
end $$;
comment on function pgcoord.copy_workflow() is 'Trigger: keep workflow_type in step with phase_data.';

-- Of these columns alone: the prompt in phase_data, which may be long, is then not read with every move of the phase.
create or replace trigger phase_queue_update_copies before update of phase_data, workflow_type on public.phase_queue
    for each row execute function pgcoord.copy_workflow();
comment on trigger phase_queue_update_copies on public.phase_queue is 'Keep workflow_type in step with phase_data.';

create or replace trigger phase_queue_update_guards before update on public.phase_queue
    for each row execute function pgcoord.guard_phase_update();
comment on trigger phase_queue_update_guards on public.phase_queue is 'Refuse what may not change; derive the rest of the row.';

-- The phases are gone through one by one: almost always it is one, and a loop over fifty thousand takes no second.
-- Old and new rows are joined by a full join, which can only be done by hashing or sorting: a plan kept from an update
-- of one row would otherwise compare each with each when the same session updates fifty thousand. (`is distinct from`:
-- a condition that no row of nulls fulfils would let the planner make it a plain join again.)
create or replace function pgcoord.settle_updated_phases() returns trigger
language plpgsql
set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    v record;
    v_wakes boolean := false;
    v_edge_features integer[];    -- of phases whose dependencies changed: all edges of a statement count at once
    v_edge_phases integer[];
    v_again_features integer[];    -- of phases queued again: counted while the statement was still completing others
    v_again_phases integer[];
    v_completes boolean := false;
    v_dependents integer[];
    v_features integer[];    -- of phases whose dependents are to be blocked or unblocked
    v_phases integer[];
    v_cause text;
begin
    for v in
        select n.queue_id, n.feature_id, n.phase_number, n.status, o.status as was, n.attempt, n.error_message,
            o.error_message as old_error, n.depends_on_phases <> o.depends_on_phases as edges_changed,
            case when n.slot is null then o.slot end as left_slot
        from new_rows as n full join old_rows as o on o.queue_id = n.queue_id
        where n.status is distinct from o.status or n.depends_on_phases is distinct from o.depends_on_phases
            or n.status = 'queued' and n.eligible_at is not null and not n.held
    loop
        v_wakes := v_wakes or v.status = 'queued' or v.left_slot is not null;
        if v.edges_changed then
            v_edge_features := v_edge_features || v.feature_id;
            v_edge_phases := v_edge_phases || v.phase_number;
        end if;
        continue when v.status = v.was;

        insert into pgcoord.event (kind, feature_id, phase_number, queue_id, from_status, to_status, attempt, actor, reason)
        values ('phase_moved', v.feature_id, v.phase_number, v.queue_id, v.was, v.status, nullif(v.attempt, 0), pgcoord.actor(),
            coalesce(pgcoord.reason(), case
                when v.left_slot is not null and v.status <> 'completed' or v.error_message is distinct from v.old_error
                    then v.error_message end));
        perform pg_notify('pgcoord_event', v.feature_id::text);
        if v.left_slot is not null then
            update pgcoord.attempt
            set ended_at = clock_timestamp(),
                outcome = case when v.status in ('completed', 'cancelled') then v.status else 'failed' end,
                error = v.error_message,
                exited_at = case when external then clock_timestamp() else exited_at end
            where queue_id = v.queue_id and number = v.attempt and ended_at is null and (ending is null or v.status <> 'completed');
            if not found and v.status = 'completed' then    -- it was ended before, or is to end in another way
                perform pgcoord.refuse_end(queue_id, ending, v.status) from pgcoord.attempt
                where queue_id = v.queue_id and number = v.attempt and ended_at is null;
            end if;
            delete from pgcoord.slot where number = v.left_slot and draining;
        end if;
        if v.status = 'completed' then
            v_completes := true;
            select array_agg(dependent) into v_dependents from pgcoord.dependency
            where feature_id = v.feature_id and prerequisite = v.phase_number;
            if v_dependents is not null then
                -- Its direct dependents only, however long the queue is. The last prerequisite is looked for rather than
                -- counted off: where one statement does several things (MERGE, WITH), the count may have been made when
                -- the phase was completed already. (`offset 0`: a look-up for each, never a join.)
                update public.phase_queue as p
                set unmet = unmet - 1, eligible_at = case when unmet = 1 then clock_timestamp() end
                where feature_id = v.feature_id and phase_number = any (v_dependents) and status in ('queued', 'blocked')
                    and unmet > 0    -- 0: queued again by this very statement, and counted again below
                    and (unmet > 1 or not exists (
                        select from jsonb_array_elements(p.depends_on_phases) as e
                        where not exists (
                            select from public.phase_queue as up
                            where up.feature_id = p.feature_id and up.phase_number = e::integer and up.status = 'completed'
                            offset 0
                        )
                    ));
            end if;
        elsif v.status = 'queued' and v.was <> 'blocked' then
            v_again_features := v_again_features || v.feature_id;
            v_again_phases := v_again_phases || v.phase_number;
        end if;
        if v.status in ('failed', 'cancelled') or v.was in ('failed', 'cancelled')
            or v.was = 'blocked' and v.status = 'completed'
            or v.was in ('ready', 'running') and v.status = 'queued'
        then
            v_features := v_features || v.feature_id;
            v_phases := v_phases || v.phase_number;
            v_cause := format('phase %s is %s', v.phase_number, v.status);
        end if;
    end loop;
    if v_completes and v_again_features is not null then
        perform pgcoord.recount_unmet(v_again_features, v_again_phases);
    end if;
    if v_edge_features is not null then
        perform pgcoord.settle_edges(v_edge_features, v_edge_phases);
    end if;
    if v_features is not null then
        perform pgcoord.settle_because(v_features, v_phases, v_cause);
    end if;
    if v_wakes then
        notify pgcoord_wake;
    end if;
    return null;
end $$;
comment on function pgcoord.settle_updated_phases() is
    'Trigger: log what moved, end attempts, free slots, release or block dependents, wake the coordinator.';

create or replace trigger phase_queue_update_settles after update on public.phase_queue
    referencing old table as old_rows new table as new_rows
    for each statement execute function pgcoord.settle_updated_phases();
comment on trigger phase_queue_update_settles on public.phase_queue is 'Log moves, end attempts, free slots, resolve dependents, wake.';

create or replace function pgcoord.log_priority() returns trigger
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform pgcoord.log_event('phase_reprioritised', format('priority %s → %s', old.priority, new.priority)
        || coalesce(': ' || pgcoord.reason(), ''), new.feature_id, new.phase_number, new.queue_id);
    return null;
end $$;
comment on function pgcoord.log_priority() is 'Trigger: log that a phase has another priority.';

create or replace trigger phase_queue_priority_logs after update of priority on public.phase_queue
    for each row when (old.priority <> new.priority) execute function pgcoord.log_priority();
comment on trigger phase_queue_priority_logs on public.phase_queue is 'Log that a phase has another priority.';

-- Block or unblock with the cause as the logged reason, then go back to the reason of the statement itself.
create or replace function pgcoord.settle_because(p_features integer[], p_phases integer[], p_cause text) returns void
language plpgsql as $$
declare
    v_reason text := pgcoord.reason();
begin
    perform pgcoord.set_reason(p_cause);
    perform pgcoord.settle_blocked(p_features, p_phases);
    perform pgcoord.set_reason(v_reason);
end $$;
comment on function pgcoord.settle_because(integer[], integer[], text) is
    'settle_blocked with the given words as the reason of what it logs.';

create or replace function pgcoord.guard_phase_delete() returns trigger
language plpgsql as $$
begin
    if old.slot is not null then
        raise exception using
            errcode = 'PC002',
            message = format('phase %s is %s and holds slot %s: it cannot be deleted', old.queue_id, old.status, old.slot),
            hint = 'Cancel it first: pgcoord.cancel_phase(queue_id, reason).';
    end if;
    perform pgcoord.hold_feature(old.feature_id);
    return old;
end $$;
comment on function pgcoord.guard_phase_delete() is 'Trigger: refuse (PC002) to delete a phase that holds a slot.';

create or replace trigger phase_queue_delete_guards before delete on public.phase_queue
    for each row execute function pgcoord.guard_phase_delete();
comment on trigger phase_queue_delete_guards on public.phase_queue is 'Refuse to delete a phase that holds a slot.';

create or replace function pgcoord.settle_deleted_phases() returns trigger
language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    v_features integer[];
    v_phases integer[];
begin
    insert into pgcoord.event (kind, feature_id, phase_number, queue_id, from_status, actor, reason)
    select 'phase_deleted', feature_id, phase_number, queue_id, status, pgcoord.actor(), pgcoord.reason()
    from old_rows order by feature_id, phase_number;
    perform pg_notify('pgcoord_event', feature_id::text) from (select distinct feature_id from old_rows) as touched;

    select array_agg(d.feature_id), array_agg(d.dependent) into v_features, v_phases
    from old_rows as o
        join pgcoord.dependency as d on d.feature_id = o.feature_id and d.prerequisite = o.phase_number;
    if v_features is not null then
        perform pgcoord.recount_unmet(v_features, v_phases);
        perform pgcoord.settle_because(v_features, v_phases, 'a prerequisite was deleted');
    end if;
    return null;
end $$;
comment on function pgcoord.settle_deleted_phases() is 'Trigger: log deleted phases and make their dependents wait.';

create or replace trigger phase_queue_delete_settles after delete on public.phase_queue
    referencing old table as old_rows
    for each statement execute function pgcoord.settle_deleted_phases();
comment on trigger phase_queue_delete_settles on public.phase_queue is 'Log deleted phases; make their dependents wait.';

-- The attempt that a report is about: the named one, else the latest. No row for a phase that never had one. An
-- earlier one is taken when it ended just so: its sender did not hear the answer.
-- Errors: PC003 when the named one was given up, or is none of this phase.
create or replace function pgcoord.reported_attempt(p_phase public.phase_queue, p_adw_id text, p_outcome text)
returns pgcoord.attempt
language plpgsql as $$
declare
    v_attempt pgcoord.attempt;
begin
    select * into v_attempt from pgcoord.attempt
    where queue_id = p_phase.queue_id
        and case when p_adw_id is null then number = p_phase.attempt else adw_id = p_adw_id end;
    if v_attempt.number < p_phase.attempt and v_attempt.outcome is distinct from p_outcome then
        raise exception using
            errcode = 'PC003',
            message = format('attempt %s (%s) of phase %s was given up: attempt %s (%s) has taken its place',
                v_attempt.number, p_adw_id, p_phase.queue_id, p_phase.attempt, p_phase.adw_id),
            hint = 'Its result is not taken. If the work is done, cancel the phase and skip it.';
    elsif v_attempt.id is null and p_adw_id is distinct from coalesce(p_phase.adw_id, p_adw_id) then
        raise exception using
            errcode = 'PC003',
            message = format('%s is no attempt of phase %s, whose current one is %s', p_adw_id, p_phase.queue_id, p_phase.adw_id),
            hint = 'Report with the adw_id that the workflow was started with.';
    end if;
    return v_attempt;
end $$;
comment on function pgcoord.reported_attempt(public.phase_queue, text, text) is
    'The attempt that a report is about; PC003 when it was given up or is of another phase.';

create or replace function pgcoord.stored_outcome(p_phase public.phase_queue, p_attempt pgcoord.attempt) returns text
language sql immutable
return coalesce((p_attempt).outcome, (p_attempt).ending, case when (p_attempt).id is null then (p_phase).status end);
comment on function pgcoord.stored_outcome(public.phase_queue, pgcoord.attempt) is
    'How an attempt ended or shall end, or the status of a phase that never had one; null while it lives.';

-- Answer a report that moves nothing: the phase does not hold a slot, or the report names another attempt. A repeat is
-- answered with what is stored.
-- Errors: PC001 no such phase; PC002 never started; PC003 stale attempt; PC004 it ended another way.
create or replace function pgcoord.answer_report(p_queue_id text, p_outcome text, p_adw_id text) returns public.phase_queue
language plpgsql as $$
declare
    v_phase public.phase_queue := pgcoord.lock_phase(p_queue_id);
    v_attempt pgcoord.attempt := pgcoord.reported_attempt(v_phase, p_adw_id, p_outcome);
    v_stored text := pgcoord.stored_outcome(v_phase, v_attempt);
begin
    if v_stored = p_outcome then
        return v_phase;
    elsif v_attempt.id is null and v_phase.status not in ('completed', 'failed', 'cancelled') then
        raise exception using
            errcode = 'PC002',
            message = format('phase %s is %s and never started: it cannot be reported %s', p_queue_id, v_phase.status, p_outcome),
            hint = 'pgcoord.skip_phase(queue_id, reason) takes a phase as done without running it.';
    end if;
    raise exception using
        errcode = 'PC004',
        message = format('phase %s has ended %s: it cannot be reported %s any more', p_queue_id, v_stored, p_outcome),
        hint = 'The first end of an attempt counts. Retry the phase, or skip it if the work is done.';
end $$;
comment on function pgcoord.answer_report(text, text, text) is
    'Answer a report that moves nothing: what is stored for a repeat, else refuse it.';

-- Take a report: the first one decides. Nearly always the phase holds its slot and the attempt is the current one, so
-- that is tried, and looked into only when it was not so.
-- Errors: those of answer_report, and PC004 when another end was asked for already.
create or replace function pgcoord.report_phase(p_queue_id text, p_outcome text, p_error text, p_adw_id text)
returns public.phase_queue
language plpgsql
set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    v_phase public.phase_queue;
begin
    perform 1 from public.planned_features
    where id = (select feature_id from public.phase_queue where queue_id = p_queue_id)
    for no key update;
    update public.phase_queue set status = p_outcome, error_message = p_error
    where queue_id = p_queue_id and slot is not null and (p_adw_id is null or adw_id = p_adw_id)
    returning * into v_phase;
    if found then
        return v_phase;
    end if;
    return pgcoord.answer_report(p_queue_id, p_outcome, p_adw_id);
end $$;
comment on function pgcoord.report_phase(text, text, text, text) is
    'Take the report of an attempt; what complete_phase and fail_phase share.';

create or replace function pgcoord.complete_phase(p_queue_id text, p_adw_id text default null) returns public.phase_queue
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
begin
    return pgcoord.report_phase(p_queue_id, 'completed', null, p_adw_id);
end $$;
comment on function pgcoord.complete_phase(text, text) is
    'Report a ready or running phase as completed: its slot is free and its dependents go on at once. A repeat changes nothing. With adw_id only if that attempt is the current one.';

create or replace function pgcoord.fail_phase(p_queue_id text, p_error text, p_adw_id text default null)
returns public.phase_queue
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
begin
    return pgcoord.report_phase(p_queue_id, 'failed', coalesce(p_error, 'reported as failed'), p_adw_id);
end $$;
comment on function pgcoord.fail_phase(text, text, text) is
    'Report a ready or running phase as failed: its process is ended first, then it is queued again while attempts are left, else failed.';

create or replace function pgcoord.retry_phase(p_queue_id text, p_reason text default null) returns public.phase_queue
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_phase public.phase_queue := pgcoord.lock_phase(p_queue_id);
begin
    if v_phase.status not in ('failed', 'cancelled') and v_phase.retry_at is null then
        raise exception using
            errcode = 'PC002',
            message = format('phase %s is %s: only a failed or cancelled one can be retried', p_queue_id, v_phase.status),
            hint = case
                when v_phase.slot is not null then 'Cancel it first: pgcoord.cancel_phase(queue_id, reason).'
                when v_phase.status = 'blocked' then (
                    select format('Retry phase %s, which it waits for.', obstacle)
                    from pgcoord.obstacles(v_phase.feature_id) where phase_number = v_phase.phase_number
                )
                when v_phase.status = 'completed' then 'A completed one stays so: insert another for what is still to be done.'
                else format('pgcoord.why(%L) says what it waits for.', p_queue_id)
            end;
    end if;
    perform pgcoord.set_reason(p_reason);
    update public.phase_queue set status = 'queued', retry_at = null where queue_id = p_queue_id returning * into v_phase;
    perform pgcoord.set_reason(null);
    return v_phase;
end $$;
comment on function pgcoord.retry_phase(text, text) is
    'Queue a failed or cancelled phase again with its full number of attempts; one that waits for its retry time goes at once.';

create or replace function pgcoord.skip_phase(p_queue_id text, p_reason text) returns public.phase_queue
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_phase public.phase_queue := pgcoord.lock_phase(p_queue_id);
begin
    if v_phase.slot is not null then
        raise exception using
            errcode = 'PC002',
            message = format('phase %s is %s: it cannot be skipped', p_queue_id, v_phase.status),
            hint = 'Cancel it first: pgcoord.cancel_phase(queue_id, reason).';
    end if;
    if v_phase.status = 'completed' then
        return v_phase;
    end if;
    perform pgcoord.set_reason(coalesce(p_reason, 'skipped'));
    update public.phase_queue set status = 'completed' where queue_id = p_queue_id returning * into v_phase;
    perform pgcoord.set_reason(null);
    return v_phase;
end $$;
comment on function pgcoord.skip_phase(text, text) is
    'Take a phase that does not run as completed: its dependents go on. One that is completed stays as it is.';

create or replace function pgcoord.cancel_phase(p_queue_id text, p_reason text) returns public.phase_queue
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_phase public.phase_queue := pgcoord.lock_phase(p_queue_id);
begin
    if v_phase.status = 'cancelled' then
        return v_phase;
    end if;
    perform pgcoord.set_reason(coalesce(p_reason, 'cancelled'));
    update public.phase_queue set status = 'cancelled' where queue_id = p_queue_id returning * into v_phase;
    perform pgcoord.set_reason(null);
    return v_phase;
end $$;
comment on function pgcoord.cancel_phase(text, text) is
    'Give a phase up; what depends on it is blocked. A running one keeps its slot until its process has been ended.';

create or replace function pgcoord.set_priority(p_queue_id text, p_priority integer) returns public.phase_queue
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_phase public.phase_queue := pgcoord.lock_phase(p_queue_id);
begin
    update public.phase_queue set priority = p_priority where queue_id = p_queue_id returning * into v_phase;
    return v_phase;
end $$;
comment on function pgcoord.set_priority(text, integer) is
    'Change the place in line of a phase: lower runs earlier (10 urgent, 50 usual, 90 background).';
