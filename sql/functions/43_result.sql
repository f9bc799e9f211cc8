-- Results: JSON objects that attempts write or report. These functions check and store them, whether they come by file,
-- report or SQL; the dependents of a phase read them (inputs_of).

-- Refuse a result that is not an object, is too large, or has a known key of a wrong type. The size is that of the text
-- which Postgres writes, with a space after each comma and colon, so it is the same by file, report and SQL. Of 68 kB, 64
-- are for the command; pgcoord adds costs and branches.
-- Errors: PC005.
create or replace function pgcoord_private.check_result(p_result jsonb) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp as $$
declare
    v_fault text;
begin
    if jsonb_typeof(p_result) is distinct from 'object' then
        v_fault := format('is of type %s, not an object', coalesce(jsonb_typeof(p_result), 'null'));
    elsif octet_length(p_result::text) > 69632 then
        v_fault := format('has %s of JSON as Postgres writes it, a space after each comma and colon: 64 kB at most',
            pg_size_pretty(octet_length(p_result::text)::bigint));
    else
        perform pgcoord_private.check_json('a result', p_result, 69632);
        select string_agg(format('has %s that is not %s: %s', key, case expected when 'text' then 'a text' when 'amount' then 'an amount' else 'a number' end, left(value::text, 60)), '; ' order by key) into v_fault
        from jsonb_each(p_result) join (values
            ('summary', 'text'), ('branch', 'text'), ('commit', 'text'), ('url', 'text'), ('status', 'text'), ('error', 'text'),
            ('cost_usd', 'amount'), ('pr_number', 'number'), ('tokens_in', 'number'), ('tokens_out', 'number')
        ) as known (key, expected) using (key)
        where value <> 'null' and case expected
            when 'text' then jsonb_typeof(value) <> 'string'
            else case when jsonb_typeof(value) <> 'number' then true
                when expected = 'amount' then value::numeric not between 0 and 1000000000
                when key = 'pr_number' then value::numeric not between 1 and 2147483647 or value::numeric % 1 <> 0
                else value::numeric not between 0 and 1000000000000000 or value::numeric % 1 <> 0
            end
        end;
    end if;
    if v_fault is not null then
        raise exception using
            errcode = 'PC005',
            message = 'the result ' || v_fault,
            hint = 'A result is a JSON object of 64 kB at most, such as {"summary": "...", "branch": "...", "cost_usd": 0.42}.';
    end if;
end $$;

-- The budget of a feature that is spent, in words; null if none is.
create or replace function pgcoord_private.spent_budget(p_feature_id bigint) returns text
language sql stable
set search_path = pg_catalog, pg_temp as $$
    select words
    from (
        select format('its budget of $%s is spent: $%s', trim_scale(f.max_cost_usd), trim_scale(round(sum(r.cost_usd), 4))) as words
        from public.planned_features as f join pgcoord.result as r on r.feature_id = f.id
        where f.id = p_feature_id and f.max_cost_usd is not null
        group by f.id having sum(r.cost_usd) >= f.max_cost_usd
        union all
        select format('the budget of workflow %s in a feature, $%s, is spent: $%s', w.name, trim_scale(w.max_cost_usd),
            trim_scale(round(sum(r.cost_usd), 4)))
        from pgcoord.result as r
            join pgcoord.attempt as a on a.id = r.attempt_id
            join pgcoord.workflow as w on w.name = a.workflow
        where r.feature_id = p_feature_id and w.max_cost_usd is not null
        group by w.name, w.max_cost_usd having sum(r.cost_usd) >= w.max_cost_usd
    ) as spent
    order by words
    limit 1;
$$;

-- Pause a feature whose budget is spent: no further phase of it starts; running phases continue.
create or replace function pgcoord_private.keep_budget(p_feature_id bigint) returns void
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_words text := pgcoord_private.spent_budget(p_feature_id);
begin
    if v_words is not null then
        update public.planned_features set paused_at = now(), paused_reason = v_words
        where id = p_feature_id and paused_at is null and cancelled_at is null;
    end if;
end $$;

-- After a change of a feature's budget: log it, pause the feature if it is spent, or resume it if only the budget had paused
-- it.
create or replace function pgcoord_private.follow_budget() returns trigger
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform pgcoord_private.log_event('feature_budget', coalesce('$' || trim_scale(new.max_cost_usd), 'none'), new.id);
    perform pgcoord_private.keep_budget(new.id);
    if new.paused_reason like 'its budget of $%' and pgcoord_private.spent_budget(new.id) is null then
        update public.planned_features set paused_at = null, paused_reason = null where id = new.id and paused_at is not null;
    end if;
    return null;
end $$;

-- After a new leader has declared the budgets of its workflows: pause features in which one is spent, and resume those that
-- only such a budget had paused. Skips features that another session has locked, and returns whether there was one; the
-- leader then calls it again.
create or replace function pgcoord_private.follow_budgets() returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '1s' as $$
declare
    v record;
    v_passed_over boolean := false;
begin
    for v in
        select f.id, f.paused_reason like 'the budget of workflow %' as is_paused
        from public.planned_features as f
        where f.cancelled_at is null and case
            when f.paused_at is not null then f.paused_reason like 'the budget of workflow %'
            else exists (select from pgcoord.workflow where max_cost_usd is not null)
                and exists (select from pgcoord.result as r where r.feature_id = f.id)
                and exists (
                    select from public.phase_queue as p
                    where p.feature_id = f.id and p.status in ('queued', 'blocked', 'ready', 'running'))
            end
        order by f.id
    loop
        begin
            perform 1 from public.planned_features where id = v.id for no key update skip locked;
            if not found then
                v_passed_over := true;
            elsif not coalesce(v.is_paused, false) then
                perform pgcoord_private.keep_budget(v.id);
            elsif pgcoord_private.spent_budget(v.id) is null then
                update public.planned_features set paused_at = null, paused_reason = null
                where id = v.id and paused_reason like 'the budget of workflow %';
            end if;
        exception when lock_not_available then
            v_passed_over := true;
        end;
    end loop;
    return v_passed_over;
end $$;

-- Store the result of a locked attempt, or merge it into the stored one; the later value of a key wins.
-- Errors: PC005.
create or replace function pgcoord_private.store_result(p_attempt_id bigint, p_result jsonb) returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    v_stored jsonb;
begin
    perform pgcoord_private.check_result(p_result);
    insert into pgcoord.result (attempt_id, feature_id, value)
    select a.id, p.feature_id, p_result from pgcoord.attempt as a join public.phase_queue as p using (queue_id)
    where a.id = p_attempt_id
    on conflict (attempt_id) do update set value = pgcoord.result.value || excluded.value, stored_at = clock_timestamp()
    returning value into v_stored;
    perform pgcoord_private.check_result(v_stored);
    if p_result ? 'cost_usd' then
        perform pgcoord_private.keep_budget(feature_id) from pgcoord.result where attempt_id = p_attempt_id;
    end if;
    update public.phase_queue as p set pr_number = (p_result ->> 'pr_number')::numeric::integer
    from pgcoord.attempt as a
    where a.id = p_attempt_id and p.queue_id = a.queue_id and p.attempt = a.number
        and p.pr_number is distinct from (p_result ->> 'pr_number')::numeric::integer and p_result ->> 'pr_number' is not null;
    return v_stored;
end $$;

-- Store the result file of an attempt whose process is gone. fault: why it cannot be used, in words; null if it can. The
-- costs in it count in any case.
create or replace function pgcoord_private.take_result_file(p_attempt_id bigint, p_text text, out result jsonb, out fault text)
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    result := p_text::jsonb;
    result := pgcoord_private.store_result(p_attempt_id, result);
exception when data_exception or statement_too_complex or program_limit_exceeded then
    result := null;
    fault := 'it is not JSON: ' || sqlerrm;
when sqlstate 'PC005' then
    fault := sqlerrm;
    begin
        perform pgcoord_private.store_result(p_attempt_id, jsonb_object_agg(key, value))
        from jsonb_each(case when jsonb_typeof(result) = 'object' then result else '{}' end)
        where key in ('cost_usd', 'tokens_in', 'tokens_out')
        having count(*) > 0;
    exception when sqlstate 'PC005' then
        null;    -- the costs are what is wrong
    end;
    result := null;
end $$;

create or replace function pgcoord.set_result(p_queue_id text, p_result jsonb, p_adw_id text default null) returns jsonb
language plpgsql
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_phase public.phase_queue := pgcoord_private.lock_phase(p_queue_id);
    v_attempt pgcoord.attempt := pgcoord_private.reported_attempt(v_phase, p_adw_id, null);
begin
    if v_attempt.id is null then
        raise exception using
            errcode = 'PC002',
            message = format('phase %s is %s and never started: it has no result', p_queue_id, v_phase.status),
            hint = 'A result belongs to an attempt.';
    end if;
    return pgcoord_private.store_result(v_attempt.id, p_result);
end $$;
comment on function pgcoord.set_result(text, jsonb, text) is
    'Store a result of a phase''s latest attempt, or add keys to it: a JSON object of 64 kB at most, which its dependents get. With adw_id only if that attempt is the current one.';

-- The inputs of a phase: the results of its direct and indirect prerequisites, by number. Only results of attempts that
-- completed their phase: the result of a failed attempt is no input, even if the phase was skipped afterwards.
create or replace function pgcoord_private.inputs_of(p_feature_id integer, p_phase_number integer) returns jsonb
language sql stable
begin atomic
    with recursive needed (phase_number) as (
        select d.prerequisite from pgcoord.dependency as d
        where d.feature_id = p_feature_id and d.dependent = p_phase_number
        union
        select d.prerequisite from needed as n
            join pgcoord.dependency as d on d.feature_id = p_feature_id and d.dependent = n.phase_number
    )
    select coalesce(jsonb_object_agg(n.phase_number, r.value), '{}')
    from needed as n
        join public.phase_queue as p on p.feature_id = p_feature_id and p.phase_number = n.phase_number
        join pgcoord.attempt as a on a.queue_id = p.queue_id and a.number = p.attempt and a.outcome = 'completed'
        join pgcoord.result as r on r.attempt_id = a.id
    where p.status = 'completed';
end;

create or replace view pgcoord.results as
select p.queue_id, p.feature_id, p.phase_number, a.number as attempt, a.workflow, a.outcome, r.value ->> 'summary' as summary,
    r.value ->> 'branch' as branch, r.value ->> 'commit' as commit, (r.value ->> 'pr_number')::numeric::integer as pr_number,
    r.value ->> 'url' as url, r.cost_usd, r.tokens_in, r.tokens_out, r.value as result, r.stored_at
from pgcoord.result as r
    join pgcoord.attempt as a on a.id = r.attempt_id
    join public.phase_queue as p on p.queue_id = a.queue_id
order by p.feature_id, p.phase_number, a.number;
comment on view pgcoord.results is 'The results of attempts, with the known keys as columns.';

create or replace view pgcoord.costs as
select p.feature_id, a.workflow, count(*) as attempts, sum(r.cost_usd) as cost_usd, sum(r.tokens_in)::bigint as tokens_in,
    sum(r.tokens_out)::bigint as tokens_out
from pgcoord.result as r
    join pgcoord.attempt as a on a.id = r.attempt_id
    join public.phase_queue as p on p.queue_id = a.queue_id
group by p.feature_id, a.workflow;
comment on view pgcoord.costs is
    'The cost of each feature by workflow, from the results of all attempts, including failed ones.';
