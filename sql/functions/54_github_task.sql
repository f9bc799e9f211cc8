-- GitHub tasks (errands): comments to write and duplicates to search for, executed one by one, and retried when GitHub
-- refuses.

-- Queue a GitHub task: a comment on the issue of a phase that has ended, or was queued again.
create or replace function pgcoord_private.leave_errand(p_queue_id text, p_status text, p_attempt integer) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    insert into pgcoord.errand (queue_id, kind, status, attempt)
    select p_queue_id, 'tell', p_status, p_attempt
    from pgcoord.issue where queue_id = p_queue_id and number is not null;
    if found then
        notify pgcoord_wake;
    end if;
end $$;

-- The errands of an issue are executed in order: those without an earlier one of the same kind.
create or replace view pgcoord_private.next_errand as
select e.id, e.queue_id, e.kind, e.due_at, i.repository
from pgcoord.errand as e
    join pgcoord.issue as i using (queue_id)
where not exists (
        select from pgcoord.errand as earlier
        where earlier.queue_id = e.queue_id and earlier.kind = e.kind and earlier.id < e.id
    );
comment on view pgcoord_private.next_errand is 'What is to be done next on GitHub for each issue.';

-- Begin the oldest due task of this repository; the number of tries is committed before the request to GitHub. If none is
-- due, id is null, and due_in has the seconds until one is.
create or replace function pgcoord_private.begin_errand(
    p_repository text, out id bigint, out queue_id text, out kind text, out key uuid, out issue_key uuid, out number integer,
    out intended_at timestamptz, out tries integer, out status text, out phase_status text, out facts jsonb, out due_in float8
)
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
#variable_conflict use_column
declare
    v_held_until timestamptz := (select issues_held_until from pgcoord.control);
begin
    update pgcoord.errand as e set tries = e.tries + 1
    where e.id = (
        select n.id from pgcoord_private.next_errand as n
        where n.due_at <= clock_timestamp() and n.repository = p_repository and coalesce(v_held_until <= clock_timestamp(), true)
        order by n.due_at, n.id
        limit 1
    )
    returning e.id, e.queue_id, e.kind, e.key, e.tries, e.status into id, queue_id, kind, key, tries, status;
    if id is null then
        select extract(epoch from greatest(v_held_until, min(due_at)) - clock_timestamp()) into due_in
        from pgcoord_private.next_errand where repository = p_repository
        having count(*) > 0;
        return;
    end if;
    select i.key, i.number, i.intended_at, p.status into issue_key, number, intended_at, phase_status
    from pgcoord.issue as i join public.phase_queue as p using (queue_id)
    where i.queue_id = begin_errand.queue_id;
    if kind = 'tell' then
        facts := pgcoord_private.errand_facts(id);
    end if;
end $$;

-- The facts for the comment on the end of a phase.
create or replace function pgcoord_private.errand_facts(p_errand_id bigint) returns jsonb
language sql stable
begin atomic
    select jsonb_build_object(
        'queue_id', p.queue_id, 'attempt', a.number, 'adw_id', a.adw_id, 'outcome', a.outcome, 'pr_number', p.pr_number,
        'ran_seconds', extract(epoch from coalesce(a.exited_at, a.ended_at) - a.started_at),
        'error', case when e.status = 'failed' then coalesce(a.error, p.error_message) end,
        'reason', (select v.reason from pgcoord.event as v
            where v.feature_id = p.feature_id and v.phase_number = p.phase_number and v.to_status = e.status
            order by v.id desc limit 1),
        'dependents', pgcoord_private.named_phases(p.feature_id, array(
            select dependent from pgcoord.dependency where feature_id = p.feature_id and prerequisite = p.phase_number)))
    from pgcoord.errand as e
        join public.phase_queue as p using (queue_id)
        left join pgcoord.attempt as a on a.queue_id = e.queue_id and a.number = e.attempt
    where e.id = p_errand_id;
end;

-- Record that a task is done (p_done: the steps) or given up (p_error: the reason).
create or replace function pgcoord_private.finish_errand(p_errand_id bigint, p_done text, p_error text default null) returns void
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    v_errand pgcoord.errand;
begin
    delete from pgcoord.errand where id = p_errand_id returning * into v_errand;
    if v_errand.kind = 'tell' and p_error is null then
        perform pgcoord.release_issues();    -- GitHub takes what we write
    end if;
    if found and (p_done is not null or p_error is not null) then
        perform pgcoord_private.log_event(case when p_error is null then 'issue_told' else 'issue_untold' end,
            coalesce(p_error, p_done), p.feature_id, p.phase_number, p.queue_id, v_errand.attempt)
        from public.phase_queue as p where p.queue_id = v_errand.queue_id;
    end if;
end $$;

-- For the coordinator: retry a task after p_wait, doubled with each try.
create or replace function pgcoord_private.postpone_errand(p_errand_id bigint, p_wait interval, p_error text) returns void
language sql
begin atomic
    update pgcoord.errand set due_at = clock_timestamp() + least(p_wait * 2 ^ least(tries - 1, 20), interval '6 hours'), error = p_error
    where id = p_errand_id;
end;
