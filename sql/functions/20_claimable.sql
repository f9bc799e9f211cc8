-- The phases that may run, and those that cannot start without help.

-- The rule for the claim and for all views of the queue. phase_queue_claim_idx has the same condition: it holds exactly the
-- claimable phases of each workflow, in the order of their claim.
create or replace view pgcoord_private.claimable as
-- (locker: the transaction that has, or had, locked the phase. Columns that are added to phase_queue come last.)
select p.xmax::text as locker, p.*
from public.phase_queue as p
where p.status = 'queued' and p.eligible_at is not null and p.retry_at is null and not p.held and not p.gated
    and not p.parked;
comment on view pgcoord_private.claimable is
    'Phases that can be claimed: their prerequisites are completed, they wait for no retry time, no approval and no lock, and their feature is not paused.';

-- The phase that holds a lock, in words; null if the lock is free.
create or replace function pgcoord_private.lock_holder(p_lock text) returns text
language sql stable
begin atomic
    select p.feature_id || '.' || p.phase_number
    from pgcoord.attempt as a join public.phase_queue as p using (queue_id)
    where a.lock = p_lock and a.ended_at is null;
end;

-- Claimable as soon as the next claim has cleared its retry time.
create or replace view pgcoord_private.due_retry as
select p.xmax::text as locker, p.*
from public.phase_queue as p
where p.retry_at <= (select clock_timestamp()) and p.eligible_at is not null and not p.held and not p.gated;
comment on view pgcoord_private.due_retry is 'Phases whose retry time has come, and that wait for nothing else.';

-- Phases whose claim failed a moment ago: they stay in the queue, and claims skip them. (Not part of the view claimable:
-- that is read from the index alone, which has no names.)
create or replace function pgcoord_private.set_aside() returns text[]
language sql volatile
return array(select queue_id from pgcoord.unclaimable where until > clock_timestamp());

-- The gates that wait for an answer: those whose prerequisites are completed.
create or replace view pgcoord.gate as
select p.queue_id, p.feature_id, p.phase_number, p.phase_data ->> 'gate' as question, p.eligible_at as asked_at
from public.phase_queue as p
where p.gated and p.status = 'queued' and p.eligible_at is not null and not p.held;
comment on view pgcoord.gate is
    'Phases that wait for pgcoord.approve or pgcoord.reject: the question, and since when.';

-- Whether a phase is a gate that runs nothing: it names no workflow and has no prompt. Its approval completes it.
-- (`only_asks` of pgcoord/plan/model.py says the same of a plan that is not stored yet.)
create or replace function pgcoord_private.only_asks(p_data jsonb) returns boolean
language sql immutable
return coalesce(p_data ->> 'gate' is not null and coalesce(p_data ->> 'workflow_type', '') = ''
    and btrim(coalesce(p_data ->> 'prompt_content', ''), E' \t\n\r\f\v') = '', false);

-- Whether a phase has no task: the default workflow would start without a title and without a prompt.
create or replace function pgcoord_private.is_empty(p_data jsonb) returns boolean
language sql immutable
return btrim(concat(p_data ->> 'title', p_data ->> 'prompt_content', p_data ->> 'workflow_type', p_data ->> 'gate')) = '';

-- The workflow that runs a phase: the one it names, else the default.
create or replace function pgcoord_private.workflow_of(p_phase public.phase_queue) returns text
language sql stable
return coalesce(nullif((p_phase).workflow_type, ''), (select name from pgcoord.workflow where is_default));

-- The pool in which a phase runs: that of its workflow; null if no coordinator knows the workflow.
create or replace function pgcoord_private.pool_of(p_workflow text) returns text
language sql stable
return (select w.pool from pgcoord.workflow as w where w.name = p_workflow or coalesce(p_workflow, '') = '' and w.is_default);

-- The pool of a slot; null for a slot that does not exist.
create or replace function pgcoord_private.pool_of_slot(p_slot smallint) returns text
language sql stable
return (select s.pool from pgcoord.slot as s where s.number = p_slot);

-- A pool in words, to follow the word "slot"; empty for local, the only pool until others are declared.
create or replace function pgcoord_private.in_pool(p_pool text) returns text
language sql immutable
return case when p_pool <> 'local' then ' in pool ' || p_pool else '' end;

-- The keys of a workflow in phase_queue_claim_idx: its name; the default workflow also has the empty text.
create or replace view pgcoord_private.workflow_line as
select w.name as line, w.* from pgcoord.workflow as w
union all
select '', w.* from pgcoord.workflow as w where w.is_default;
comment on view pgcoord_private.workflow_line is
    'The workflows by the name under which phases wait for them: the default one has two, its own and the empty one.';

-- Slots that a claim can give to a phase, found by index, however many slots are held.
create or replace view pgcoord_private.vacant_slot as
select f.pool, f.number
from pgcoord.free_slot as f
    join pgcoord.slot as s on s.number = f.number and s.pool = f.pool
where not s.draining and not exists (select from public.phase_queue as p where p.slot = f.number);
comment on view pgcoord_private.vacant_slot is 'Free slots, from pgcoord.free_slot, in which a claim looks.';

-- Take the phases that name these locks, which are held, out of the queue, so that each claim meets such a phase only once.
-- Skips phases that this claim has locked itself.
create or replace function pgcoord_private.park(p_locks text[], p_taken text[]) returns void
language sql
set enable_seqscan = off
begin atomic
    update public.phase_queue set parked = true
    where queue_id in (
        select p.queue_id from public.phase_queue as p
        where p.lock = any (p_locks) and not p.parked and p.status = 'queued' and p.eligible_at is not null
            and p.queue_id <> all (p_taken)
        for no key update skip locked
    );
end;

-- For each free lock, put the first phase that a claim can take now into the queue, and return these phases. A claim can
-- take a phase if its pool has a free slot, it is not in p_aside, and, with p_issues_only, it has an issue. (One look-up for
-- each lock, however many phases name it.)
create or replace function pgcoord_private.unpark(p_aside text[], p_issues_only boolean) returns setof text
language sql
set enable_seqscan = off
begin atomic
    update public.phase_queue set parked = false
    where queue_id in (
        with recursive name (lock) as (
            (select lock from public.phase_queue where lock is not null and status = 'queued' order by lock limit 1)
            union all
            select (
                select p.lock from public.phase_queue as p
                where p.lock > n.lock and p.lock is not null and p.status = 'queued'
                order by p.lock limit 1
            )
            from name as n where n.lock is not null
        )
        select first.queue_id
        from name as n
            cross join lateral (
                select p.queue_id from public.phase_queue as p
                where p.lock = n.lock and p.parked and p.status = 'queued' and p.lock is not null
                    and p.eligible_at is not null and p.retry_at is null and not p.held and not p.gated
                    and p.queue_id <> all (p_aside) and (p.issue_number is not null or not p_issues_only)
                    and exists (
                        select from pgcoord_private.workflow_line as w join pgcoord_private.vacant_slot as v on v.pool = w.pool
                        where w.line = coalesce(p.workflow_type, '')
                    )
                order by p.priority, p.queue_position, p.feature_id, p.phase_number
                limit 1
                for no key update skip locked
            ) as first
        where not exists (select from pgcoord.attempt as a where a.lock = n.lock and a.ended_at is null)
    )
    returning queue_id;
end;

-- Slots that no phase holds, including those of pools that were removed from the configuration (they drain).
create or replace view pgcoord_private.free_slot as
select s.number, s.pool, s.draining
from pgcoord.slot as s
where not exists (select from public.phase_queue as p where p.slot = s.number);
comment on view pgcoord_private.free_slot is 'Slots that no phase holds.';

-- Make pgcoord.free_slot agree with pgcoord.slot. Called by set_slots, and by each new leader, since a restore or the owner
-- may have changed slots without the functions.
create or replace function pgcoord_private.find_free_slots() returns void
language sql
begin atomic
    delete from pgcoord.free_slot as known
    where not exists (select from pgcoord.slot as s where s.number = known.number and s.pool = known.pool);
    insert into pgcoord.free_slot (pool, number)
    select f.pool, f.number from pgcoord_private.free_slot as f
    where not exists (select from pgcoord.free_slot as known where known.pool = f.pool and known.number = f.number);
end;

-- The time until which phases without an issue are not claimed, because GitHub creates none; null if there is nothing to
-- wait for.
create or replace function pgcoord_private.issues_held_until(p_control pgcoord.control) returns timestamptz
language sql stable
return case when least(p_control.issues_held_until, p_control.issues_held_since + p_control.issues_optional_after) > clock_timestamp()
    then least(p_control.issues_held_until, p_control.issues_held_since + p_control.issues_optional_after) end;

-- Phases that cannot start until somebody changes something; only this view defines them. (The workflows are those of the
-- last lead, even if that is over.)
create or replace view pgcoord_private.stranded as
select p.queue_id, p.feature_id, p.phase_number, p.status, p.eligible_at, 'missing' as kind,
    format('waits for phase %s, which does not exist', d.prerequisite) as words, d.prerequisite::text as refers_to
from public.phase_queue as p
    join pgcoord.dependency as d on d.feature_id = p.feature_id and d.dependent = p.phase_number
where p.status in ('queued', 'blocked') and p.unmet > 0 and not exists (
    select from public.phase_queue as up where up.feature_id = d.feature_id and up.phase_number = d.prerequisite
)
union all
select p.queue_id, p.feature_id, p.phase_number, p.status, p.eligible_at, 'workflow',
    case when coalesce(p.workflow_type, '') = '' then 'it names no workflow and no coordinator has a default one'
        else format('no coordinator knows workflow %s', p.workflow_type) end,
    p.workflow_type
from public.phase_queue as p
where p.status in ('queued', 'blocked') and exists (select from pgcoord.coordinator) and not exists (
    select from pgcoord_private.workflow_line as w where w.line = coalesce(p.workflow_type, '')
) and not (p.gated and pgcoord_private.only_asks(p.phase_data));
comment on view pgcoord_private.stranded is
    'Phases that cannot start without a change: a prerequisite does not exist, or no coordinator knows the workflow.';

-- Phases whose last attempts were all returned, because a model did not answer or GitHub took no request: how often in a
-- row, and since when.
create or replace view pgcoord_private.postponed as
select p.queue_id, count(*) as times, min(a.ended_at) as since
from public.phase_queue as p
    join pgcoord.attempt as a on a.queue_id = p.queue_id
where p.retry_at is not null and p.status = 'queued' and p.eligible_at is not null and a.number > (
    select coalesce(max(b.number), 0) from pgcoord.attempt as b
    where b.queue_id = p.queue_id and b.outcome is distinct from 'returned'
)
group by p.queue_id;
comment on view pgcoord_private.postponed is
    'Phases whose last attempts were returned without using up an attempt: how often in a row, and since when.';
