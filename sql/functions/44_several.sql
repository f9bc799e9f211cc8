-- An action on several phases at once, and previews: what an action would change.

-- Perform an action, given by name, on one phase.
-- Errors: those of the action; PC005 for an unknown name.
create or replace function pgcoord_private.act_on_phase(p_action text, p_queue_id text, p_reason text, p_priority bigint)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    case p_action
        when 'retry' then perform pgcoord.retry_phase(p_queue_id, p_reason);
        when 'skip' then perform pgcoord.skip_phase(p_queue_id, p_reason);
        when 'cancel' then perform pgcoord.cancel_phase(p_queue_id, p_reason);
        when 'approve' then perform pgcoord.approve(p_queue_id, p_reason);
        when 'reject' then perform pgcoord.reject(p_queue_id, p_reason);
        when 'priority' then perform pgcoord.set_priority(p_queue_id, p_priority);
        when 'cancel_branch' then perform pgcoord.cancel_branch(p_queue_id, p_reason);
        else raise exception using
            errcode = 'PC005',
            message = format('%L is not an action on a phase', left(p_action, 100)),
            hint = 'There is: retry, skip, cancel, approve, reject, priority, cancel_branch.';
    end case;
end $$;

-- Processes the phases in the order of feature and number, and returns a row for each. A phase whose state refuses the
-- action is left unchanged; the others are processed. A phase that the action on another one has changed already (unblocked,
-- for example) counts as done, not as refused.
-- Locks: the features by id, then their phases.
-- Errors: PC005 for an unknown action, a wrong priority or more than 10,000 phases; then nothing is done.
create or replace function pgcoord.act_on_phases(
    p_action text, p_queue_ids text[], p_reason text default null, p_priority bigint default null
)
returns table (queue_id text, status text, refused text)
language plpgsql
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_queue_id text;
    v_before jsonb;
    v_refused jsonb := '{}';
begin
    if cardinality(p_queue_ids) > 10000 then
        raise exception using
            errcode = 'PC005',
            message = format('%s phases are too many at once', cardinality(p_queue_ids)),
            hint = 'Name 10000 at most.';
    end if;
    perform pgcoord_private.check_isolation();
    perform pgcoord_private.lock_features(array(
        select distinct p.feature_id from public.phase_queue as p where p.queue_id = any (p_queue_ids)));
    select jsonb_object_agg(p.queue_id, p.status) into v_before from public.phase_queue as p where p.queue_id = any (p_queue_ids);
    for v_queue_id in
        select named.id
        from (select distinct unnest(p_queue_ids) as id) as named
            left join public.phase_queue as p on p.queue_id = named.id
        order by p.feature_id, p.phase_number, named.id
    loop
        begin
            perform pgcoord_private.act_on_phase(p_action, v_queue_id, p_reason, p_priority);
        exception when sqlstate 'PC001' or sqlstate 'PC002' then
            v_refused := v_refused || jsonb_build_object(coalesce(v_queue_id, ''), sqlerrm);
        end;
    end loop;
    return query
    select named.id, p.status::text,
        case when p.status = v_before ->> named.id or p.status is null then v_refused ->> coalesce(named.id, '') end
    from (select distinct unnest(p_queue_ids) as id) as named
        left join public.phase_queue as p on p.queue_id = named.id
    order by p.feature_id, p.phase_number, named.id;
end $$;
comment on function pgcoord.act_on_phases(text, text[], text, bigint) is
    'Perform retry, skip, cancel, approve, reject, priority or cancel_branch on several phases in one transaction. Returns each with its new state, or why it was refused: a refused phase is unchanged.';

-- The living attempts of features for which an end was requested.
create or replace function pgcoord_private.endings_of(p_feature_ids integer[]) returns table (id bigint, ending text)
language sql stable
begin atomic
    select a.id, a.ending
    from public.phase_queue as p
        join pgcoord.attempt as a on a.queue_id = p.queue_id and a.number = p.attempt
    where p.feature_id = any (p_feature_ids) and p.slot is not null and a.ended_at is null and a.ending is not null;
end;

-- Perform the action and the ends that it requests, read the changes, and roll everything back: so a preview shows the real
-- effect, whatever the rules are. Of several phases, a refused one has no new state, and its words say why. Long, since the
-- changes are read within the block that is rolled back.
-- Errors: those of the action.
create or replace function pgcoord_private.look_ahead(
    p_action text, p_feature_id bigint, p_queue_ids text[], p_priority bigint, p_several boolean
)
returns table (queue_id text, feature_id integer, phase_number integer, title text, from_status text, to_status text, words text)
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_feature_ids integer[];
    v_before jsonb;
    v_endings jsonb;
    v_ended bigint[];
    v_refused jsonb;
    v_after jsonb;
begin
    v_feature_ids := array(
        select p_feature_id where p_feature_id is not null
        union select p.feature_id from public.phase_queue as p where p.queue_id = any (p_queue_ids));
    select jsonb_object_agg(p.queue_id, concat_ws(' ', p.status, p.gated, p.priority)) into v_before
    from public.phase_queue as p
    where p.feature_id = any (v_feature_ids);
    select jsonb_object_agg(e.id, e.ending) into v_endings from pgcoord_private.endings_of(v_feature_ids) as e;
    begin
        if p_several then
            select jsonb_object_agg(a.queue_id, a.refused) into v_refused
            from pgcoord.act_on_phases(p_action, p_queue_ids, null, p_priority) as a where a.refused is not null;
        elsif p_action = 'cancel_feature' then
            perform pgcoord.cancel_feature(p_feature_id, null);
        else
            perform pgcoord_private.act_on_phase(p_action, p_queue_ids[1], null, p_priority);
        end if;
        select array_agg(e.id) into v_ended from pgcoord_private.endings_of(v_feature_ids) as e
        where e.ending is distinct from v_endings ->> e.id::text;
        perform pgcoord_private.end_attempt(id, 143) from unnest(v_ended) as id;
        with first as materialized (    -- or the planner would look for the reason of each phase by itself
            select f.queue_id, f.words from pgcoord_private.first_reason as f where f.feature_id = any (v_feature_ids)
        )
        select jsonb_agg(jsonb_build_object(
                'queue_id', p.queue_id, 'feature_id', p.feature_id, 'phase_number', p.phase_number,
                'title', pgcoord_private.title_of(p), 'from_status', was.state[1],
                'to_status', case when v_refused ? p.queue_id then null else p.status end,
                'words', case
                    when v_refused ? p.queue_id then v_refused ->> p.queue_id
                    when was.state[3] <> p.priority::text then format('priority %s, was %s', p.priority, was.state[3])
                    when a.id is not null then 'its process is ended first'
                    when p.status in ('queued', 'blocked') then first.words end)
            order by p.feature_id, p.phase_number)
        into v_after
        from public.phase_queue as p
            cross join lateral (select string_to_array(v_before ->> p.queue_id, ' ') as state) as was
            left join pgcoord.attempt as a on a.queue_id = p.queue_id and a.id = any (v_ended)
            left join first on first.queue_id = p.queue_id
        where p.feature_id = any (v_feature_ids)
            and (concat_ws(' ', p.status, p.gated, p.priority) <> v_before ->> p.queue_id or v_refused ? p.queue_id);
        v_after := coalesce(v_after, '[]') || array_to_json(array(
            select jsonb_build_object('queue_id', r.key, 'words', r.value)
            from jsonb_each_text(v_refused) as r
            where not exists (select from public.phase_queue as p where p.queue_id = r.key)
            order by r.key
        ))::jsonb;
        raise exception using errcode = 'PC099', message = 'taken back';
    exception when sqlstate 'PC099' then    -- (as a condition, PC000 would match all of class PC)
        null;
    end;
    return query
    select c.queue_id, c.feature_id, c.phase_number, c.title, c.from_status, c.to_status, c.words
    from jsonb_to_recordset(coalesce(v_after, '[]')) as c
        (queue_id text, feature_id integer, phase_number integer, title text, from_status text, to_status text, words text);
end $$;

create or replace function pgcoord.preview(p_action text, p_feature_id bigint default null, p_queue_id text default null)
returns table (queue_id text, phase_number integer, title text, from_status text, to_status text, words text)
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
begin
    if p_feature_id is not null then
        perform pgcoord_private.check_feature(p_feature_id);
    end if;
    if coalesce(p_action, '') <> all ('{retry,skip,cancel,approve,reject,cancel_branch,cancel_feature}') then
        raise exception using
            errcode = 'PC005',
            message = format('%L cannot be previewed', left(p_action, 100)),
            hint = 'What can: retry, skip, cancel, approve, reject, cancel_branch, cancel_feature.';
    end if;
    return query
    select a.queue_id, a.phase_number, a.title, a.from_status, a.to_status, a.words
    from pgcoord_private.look_ahead(p_action, p_feature_id, array[p_queue_id], null, false) as a;
end $$;
comment on function pgcoord.preview(text, bigint, text) is
    'Preview of retry, skip, cancel, approve, reject or cancel_branch of a phase, or of cancel_feature: the changes, phase by phase; nothing is changed.';

create or replace function pgcoord.preview_several(p_action text, p_queue_ids text[], p_priority bigint default null)
returns table (queue_id text, feature_id integer, phase_number integer, title text, from_status text, to_status text, words text)
language sql
security definer set search_path = pg_catalog, pg_temp as $$
    select * from pgcoord_private.look_ahead(p_action, null, p_queue_ids, p_priority, true);
$$;
comment on function pgcoord.preview_several(text, text[], bigint) is
    'Preview of act_on_phases: the changes, phase by phase; nothing is changed. A phase for which it would be refused has no to_status, and its words say why; one that does not exist has only these.';
