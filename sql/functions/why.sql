-- Why: the reason in words for every phase that does not run, and the views in which people see the work.

create or replace function pgcoord.ordinal(p_number bigint) returns text
language sql immutable
return p_number || case
    when p_number % 100 between 11 and 13 then 'th'
    when p_number % 10 = 1 then 'st' when p_number % 10 = 2 then 'nd' when p_number % 10 = 3 then 'rd'
    else 'th'
end;
comment on function pgcoord.ordinal(bigint) is '1st, 2nd, 3rd …';

create or replace function pgcoord.title_of(p_phase public.phase_queue) returns text
language sql immutable
return coalesce(p_phase.phase_data ->> 'title', 'Phase ' || p_phase.phase_number);
comment on function pgcoord.title_of(public.phase_queue) is 'What a phase is called.';

-- Reasons that lie in the phase itself: how it ended, or that it runs.
create or replace function pgcoord.why_not_waiting(p public.phase_queue)
returns table (rank integer, kind text, words text, refers_to text)
language sql stable as $$
    select 0, 'ending',
        format('is being ended (%s) since %s%s', a.ending, to_char(a.ending_at, 'HH24:MI:SS'), ': ' || a.ending_reason), a.adw_id
    from pgcoord.attempt as a
    where a.queue_id = p.queue_id and a.number = p.attempt and a.ended_at is null and a.ending is not null
    union all
    select 1, p.status, case p.status
            when 'completed' then format('completed at %s', to_char(p.finished_timestamp, 'YYYY-MM-DD HH24:MI:SS'))
            when 'cancelled' then format('cancelled at %s', to_char(p.finished_timestamp, 'YYYY-MM-DD HH24:MI:SS'))
            when 'failed' then format('failed at %s: %s', to_char(p.finished_timestamp, 'YYYY-MM-DD HH24:MI:SS'),
                coalesce(split_part(p.error_message, e'\n', 1), 'no reason was given'))
            when 'ready' then format('claimed at %s, slot %s; its process is not started yet',
                to_char(p.ready_timestamp, 'HH24:MI:SS'), p.slot)
            when 'running' then format('runs since %s in slot %s, attempt %s%s', to_char(p.started_timestamp, 'HH24:MI:SS'), p.slot,
                p.attempt, (select ', unsupervised: it was inserted as running' from pgcoord.attempt as a
                    where a.queue_id = p.queue_id and a.number = p.attempt and a.external))
        end,
        p.adw_id
    where p.status not in ('queued', 'blocked');
$$;
comment on function pgcoord.why_not_waiting(public.phase_queue) is 'Why, for a phase that does not wait: how it ended, or that it runs.';

-- Reasons that lie in other phases: prerequisites that are missing, open, or will never complete.
create or replace function pgcoord.why_prerequisites(p public.phase_queue)
returns table (rank integer, kind text, words text, refers_to text)
language sql stable as $$
    select case when up.queue_id is null then 3 when up.status in ('failed', 'cancelled', 'blocked') then 2 else 4 end,
        case when up.queue_id is null then 'missing'
            when up.status in ('failed', 'cancelled', 'blocked') then 'blocked' else 'prerequisite' end,
        case
            when up.queue_id is null then format('waits for phase %s, which does not exist', d.prerequisite)
            when up.status = 'blocked' then format('waits for phase %s, which waits for phase %s, %s', d.prerequisite, o.phase_number, o.status)
            else format('waits for phase %s, %s', d.prerequisite, up.status)
        end,
        coalesce(up.queue_id, d.prerequisite::text)
    from pgcoord.dependency as d
        left join public.phase_queue as up on up.feature_id = d.feature_id and up.phase_number = d.prerequisite
        left join lateral pgcoord.nearest_obstacle(up.feature_id, up.phase_number) as o on up.status = 'blocked'
    where d.feature_id = p.feature_id and d.dependent = p.phase_number and p.status in ('queued', 'blocked')
        and up.status is distinct from 'completed';
$$;
comment on function pgcoord.why_prerequisites(public.phase_queue) is 'Why, as far as prerequisites hold a phase back.';

-- Reasons that hold back a phase whose prerequisites are completed: its retry time, a pause, its workflow, the line.
create or replace function pgcoord.why_in_line(p public.phase_queue)
returns table (rank integer, kind text, words text, refers_to text)
language sql stable as $$
    select 5, 'retry', format('is tried again at %s%s', to_char(p.retry_at, 'HH24:MI:SS'),
        ', after: ' || split_part(p.error_message, e'\n', 1)), null
    where p.retry_at > clock_timestamp()
    union all
    select 6, 'paused', format('its feature is paused since %s%s', to_char(f.paused_at, 'YYYY-MM-DD HH24:MI:SS'), ': ' || f.paused_reason),
        f.id::text
    from public.planned_features as f where f.id = p.feature_id and p.held
    union all
    select 7, 'paused', format('everything is paused since %s%s', to_char(c.paused_at, 'YYYY-MM-DD HH24:MI:SS'), ': ' || c.paused_reason), null
    from pgcoord.control as c where c.paused_at is not null
    union all
    select 8, 'coordinator', 'no coordinator runs', null
    where not exists (select from pgcoord.leader)
    union all
    select 9, 'workflow', case when p.workflow_type is null then 'it names no workflow and no coordinator has a default one'
            else format('no coordinator knows workflow %s', p.workflow_type) end,
        p.workflow_type
    where exists (select from pgcoord.leader) and not exists (
        select from pgcoord.workflow as w where w.name = p.workflow_type or p.workflow_type is null and w.is_default
    )
    union all
    select 10, 'slot', case when held.n < slots.n
            then format('is %s in line; a slot is free', pgcoord.ordinal(1 + before.n))
            else format('waits for a slot, %s in line; %s of %s are held', pgcoord.ordinal(1 + before.n), held.n, slots.n) end, null
    from (
            select count(*) as n from public.phase_queue as q
            where q.status = 'queued' and q.eligible_at is not null and q.retry_at is null and not q.held
                and (q.priority, q.queue_position, q.feature_id, q.phase_number) < (p.priority, p.queue_position, p.feature_id, p.phase_number)
        ) as before,
        (select count(*) as n from public.phase_queue where slot is not null) as held,
        (select count(*) as n from pgcoord.slot where not draining) as slots
    where not p.held and p.retry_at is null;
$$;
comment on function pgcoord.why_in_line(public.phase_queue) is 'Why, for a phase whose prerequisites are completed.';

create or replace function pgcoord.why(p_queue_id text) returns table (kind text, words text, refers_to text)
language plpgsql stable as $$
declare
    v_phase public.phase_queue;
begin
    select * into v_phase from public.phase_queue where queue_id = p_queue_id;
    if not found then
        raise exception using
            errcode = 'PC001',
            message = format('there is no phase %s', p_queue_id),
            hint = 'select queue_id from phase_queue shows those that exist.';
    end if;
    return query
    select r.kind, r.words, r.refers_to
    from (
        select * from pgcoord.why_not_waiting(v_phase)
        union all
        select * from pgcoord.why_prerequisites(v_phase)
        union all
        select * from pgcoord.why_in_line(v_phase) where v_phase.status = 'queued' and v_phase.eligible_at is not null
    ) as r
    order by r.rank, r.refers_to;
end $$;
comment on function pgcoord.why(text) is
    'Why a phase is where it is: a row for each reason, most decisive first, with its kind, the words, and what it refers to.';

create or replace view pgcoord.waiting as
select p.queue_id, p.feature_id, p.phase_number, pgcoord.title_of(p) as title, p.status, y.kind, y.words
from public.phase_queue as p
    cross join lateral pgcoord.why(p.queue_id) as y
where p.status in ('queued', 'blocked')
order by p.feature_id, p.phase_number;
comment on view pgcoord.waiting is 'Phases that wait, with every reason of each.';

-- Of high cost, so that a query which shows some phases of many asks it for those alone.
create or replace function pgcoord.waiting_for(p_phase public.phase_queue) returns text
language sql stable cost 10000 as $$
    select case when p_phase.status in ('queued', 'blocked', 'ready', 'running')
        then (select y.words from pgcoord.why(p_phase.queue_id) as y where y.kind not in ('ready', 'running') limit 1) end;
$$;
comment on function pgcoord.waiting_for(public.phase_queue) is 'What a phase waits for, in words; null when it does not wait.';

create or replace view pgcoord.board as
select p.queue_id, p.feature_id, f.title as feature, p.phase_number, pgcoord.title_of(p) as title, p.status, p.slot,
    p.attempt, p.priority, p.depends_on_phases, p.issue_number, p.error_message,
    case p.status
        when 'ready' then p.ready_timestamp
        when 'running' then p.started_timestamp
        when 'queued' then coalesce(p.eligible_at, p.created_at)
        when 'blocked' then p.updated_at
        else p.finished_timestamp
    end as since,
    p.started_timestamp, p.finished_timestamp,
    pgcoord.waiting_for(p) as waiting_for
from public.phase_queue as p
    join public.planned_features as f on f.id = p.feature_id
order by p.feature_id, p.phase_number;
comment on view pgcoord.board is 'Every phase with its state, since when, and what it waits for.';

create or replace view pgcoord.queue as
select p.queue_id, p.feature_id, p.phase_number, p.issue_number, p.status, p.depends_on_phases, p.phase_data, p.adw_id,
    p.pr_number, p.error_message, p.priority, p.queue_position, p.created_at, p.updated_at, p.ready_timestamp,
    p.started_timestamp, p.finished_timestamp, p.eligible_at, p.retry_at, p.slot, p.attempt, p.workflow_type,
    pgcoord.waiting_for(p) as waiting_for
from public.phase_queue as p;
comment on view pgcoord.queue is 'Every phase with the columns of phase_queue that concern people, and what it waits for.';

create or replace view pgcoord.slots as
select s.number as slot, s.draining, p.queue_id, p.feature_id, p.phase_number, pgcoord.title_of(p) as title, p.status,
    coalesce(p.started_timestamp, p.ready_timestamp) as since, a.adw_id, a.host, a.pid, a.external, a.ending, a.deadline
from pgcoord.slot as s
    left join public.phase_queue as p on p.slot = s.number
    left join pgcoord.attempt as a on a.queue_id = p.queue_id and a.number = p.attempt
order by s.number;
comment on view pgcoord.slots is 'The slots and what holds each.';

create or replace view pgcoord.timeline as
select p.feature_id, p.phase_number, p.queue_id, a.number as attempt, a.adw_id, p.created_at as queued_at, p.eligible_at,
    a.claimed_at, a.started_at, a.ended_at, a.outcome, a.slot, a.exit_code
from public.phase_queue as p
    left join pgcoord.attempt as a using (queue_id)
order by p.feature_id, p.phase_number, a.number;
comment on view pgcoord.timeline is 'When each phase waited, was claimed, ran and ended; a row for each attempt.';
