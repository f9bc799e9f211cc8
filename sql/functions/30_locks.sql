-- The lock order, and the functions that lock.
--
-- Lock order, for everybody: control, then features by id, then phases, then attempts, then slots, then issues, then errands.
-- A hand-written UPDATE holds its phase before any trigger runs; that is why the trigger does not wait for the feature
-- (hold_feature). A claim takes the control row and phases that nobody else has locked, and never waits for a feature or a
-- phase.

-- Errors: PC009 under a snapshot that would not see what others commit meanwhile.
create or replace function pgcoord_private.sees_others() returns boolean
language sql stable
return current_setting('transaction_isolation') in ('read committed', 'read uncommitted');
comment on function pgcoord_private.sees_others() is 'Whether each statement of this transaction sees what others have committed until then.';

create or replace function pgcoord_private.check_isolation() returns void
language plpgsql as $$
begin
    if not pgcoord_private.sees_others() then
        raise exception using
            errcode = 'PC009',
            message = format('phases change under READ COMMITTED only, this transaction is %s',
                upper(current_setting('transaction_isolation'))),
            hint = 'An older snapshot would miss a prerequisite that ends meanwhile. Use the default isolation level.';
    end if;
end $$;
comment on function pgcoord_private.check_isolation() is 'Refuse (PC009) a transaction that would not see what others commit meanwhile.';

-- Lock a feature from within a row trigger, that is, holding a phase already. Never waits for another's lock for
-- long, since its holder may be waiting for our phase: tries for a tenth of a second, then gives up. Returns the id, so
-- that it can stand in an assignment, which costs half of a PERFORM.
-- Errors: 55P03 when somebody else holds the feature; PC009 under a snapshot that would not see what they did.
create or replace function pgcoord_private.hold_feature(p_feature_id integer) returns integer
language plpgsql as $$
begin
    if not pgcoord_private.sees_others() then
        perform pgcoord_private.check_isolation();
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
comment on function pgcoord_private.hold_feature(integer) is
    'Lock a feature from a trigger that holds one of its phases; gives up (55P03) after a tenth of a second.';

-- Lock a phase in the right order, its feature first, and return it. Waits.
-- Errors: PC001 when there is none.
create or replace function pgcoord_private.lock_phase(p_queue_id text) returns public.phase_queue
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
comment on function pgcoord_private.lock_phase(text) is 'Lock a phase, its feature first, and return it; PC001 when there is none.';

-- Lock an attempt, its feature and its phase first, and return it; no row when it is gone.
create or replace function pgcoord_private.lock_attempt(p_attempt_id bigint) returns pgcoord.attempt
language plpgsql as $$
declare
    v_attempt pgcoord.attempt;
begin
    perform 1 from public.planned_features
    where id = (
        select p.feature_id from pgcoord.attempt as a join public.phase_queue as p using (queue_id) where a.id = p_attempt_id
    )
    for no key update;
    perform 1 from public.phase_queue
    where queue_id = (select queue_id from pgcoord.attempt where id = p_attempt_id)
    for no key update;
    select * into v_attempt from pgcoord.attempt where id = p_attempt_id for no key update;
    return v_attempt;
end $$;
comment on function pgcoord_private.lock_attempt(bigint) is 'Lock an attempt, its feature and its phase first, and return it.';
