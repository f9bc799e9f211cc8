-- Issues on GitHub: one for each phase, made between its claim and its start.
--
-- SQL does not call GitHub, and no transaction is open while a coordinator does. The intent is committed before an issue is
-- posted (intend_issue), and its number afterwards (store_issue). A coordinator that finds an intent without a number
-- searches for the issue by the marker in its body before it posts again: GitHub has no idempotency key.

-- The time after which a created issue is listed.
-- The time from a POST until its issue is certainly listed.
create or replace function pgcoord_private.issue_settles() returns interval
language sql immutable
return interval '20 seconds';

-- Phases of a feature as JSON: number, title, status, issue, and whether all its prerequisites are completed.
create or replace function pgcoord_private.named_phases(p_feature_id integer, p_numbers integer[]) returns jsonb
language sql stable
begin atomic
    select coalesce(jsonb_agg(jsonb_build_object('phase_number', p.phase_number, 'title', pgcoord_private.title_of(p),
        'status', p.status, 'issue_number', p.issue_number, 'eligible', p.eligible_at is not null) order by p.phase_number), '[]')
    from public.phase_queue as p
    where p.feature_id = p_feature_id and p.phase_number = any (p_numbers);
end;

-- The facts for the issue of a phase, besides its prompt, and whether its labels were created before.
create or replace function pgcoord_private.issue_facts(p_queue_id text, p_repository text) returns jsonb
language sql stable
begin atomic
    select jsonb_build_object(
        'feature', f.title,
        'total_phases', (select count(*) from public.phase_queue where feature_id = f.id),
        'prerequisites', pgcoord_private.named_phases(f.id, array(
            select prerequisite from pgcoord.dependency where feature_id = f.id and dependent = p.phase_number)),
        'feature_is_labelled', exists (
            select from public.phase_queue as q join pgcoord.issue as i using (queue_id)
            where q.feature_id = f.id and i.number is not null and i.repository = p_repository),
        'phase_is_labelled', exists (
            select from pgcoord.issue as i join public.phase_queue as q using (queue_id)
            where q.phase_number = p.phase_number and i.number is not null and i.repository = p_repository)
    )
    from public.phase_queue as p
        join public.planned_features as f on f.id = p.feature_id
    where p.queue_id = p_queue_id;
end;

-- Record the intent to create the issue of a claimed phase. If the answer has `posts`, the caller posts it now. If it has
-- neither `posts` nor a number, the issue may exist: the caller searches for the marker, and calls again with p_looked if
-- there is none. The answer is then to post, or for how long the list of issues may still lag behind.
-- Errors: PC007 when the lead is over; PC003 when the attempt was given up.
create or replace function pgcoord_private.intend_issue(
    p_epoch bigint, p_attempt_id bigint, p_repository text, p_looked boolean default false,
    out number integer, out key uuid, out intended_at timestamptz, out posts boolean, out wait_seconds float8
)
language plpgsql
set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    v_queue_id text;
    v_issue pgcoord.issue;
    v_settles_at timestamptz;
begin
    perform pgcoord_private.check_epoch(p_epoch);
    select queue_id into v_queue_id from pgcoord.attempt where id = p_attempt_id and exited_at is null;
    if v_queue_id is null then
        raise exception using
            errcode = 'PC003',
            message = format('attempt %s was given up', p_attempt_id),
            hint = 'No issue is to be made for it.';
    end if;
    insert into pgcoord.issue (queue_id, repository) values (v_queue_id, p_repository) on conflict (queue_id) do nothing;
    select * into v_issue from pgcoord.issue where queue_id = v_queue_id for no key update;
    v_settles_at := v_issue.posted_at + pgcoord_private.issue_settles();
    posts := v_issue.number is null and (v_issue.posted_at is null or p_looked and v_settles_at <= clock_timestamp());
    if posts then
        update pgcoord.issue as i set posted_at = clock_timestamp(), posts = i.posts + 1, repository = p_repository
        where queue_id = v_queue_id;
        insert into pgcoord.errand (queue_id, kind, due_at) values (v_queue_id, 'check', clock_timestamp() + interval '2 minutes')
        on conflict (queue_id) where kind = 'check' do update set due_at = excluded.due_at, tries = 0;
    end if;
    number := v_issue.number;
    key := v_issue.key;
    intended_at := v_issue.intended_at;
    wait_seconds := extract(epoch from v_settles_at - clock_timestamp());
end $$;

-- Store the number of an issue. If it was just created (p_made), a suspension of requests is over. If its phase has ended
-- meanwhile, queue a comment.
create or replace function pgcoord_private.store_issue(p_key uuid, p_number integer, p_author text, p_made boolean) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_issue pgcoord.issue;
    v_phase public.phase_queue;
begin
    if p_made then
        perform pgcoord.release_issues();
    end if;
    select * into v_issue from pgcoord.issue where key = p_key;
    if not found then
        return;    -- the phase was deleted meanwhile
    end if;
    v_phase := pgcoord_private.lock_phase(v_issue.queue_id);
    select * into v_issue from pgcoord.issue where key = p_key for no key update;
    if v_issue.number <= p_number then
        return;    -- known already, or a duplicate: the lower number is kept
    end if;
    update pgcoord.issue set number = p_number, author = p_author where key = p_key;
    update public.phase_queue set issue_number = p_number where queue_id = v_phase.queue_id;
    if v_issue.posts <= 1 then
        delete from pgcoord.errand where queue_id = v_phase.queue_id and kind = 'check';
    end if;
    if v_issue.number is null and pgcoord_private.ended(v_phase.status) then
        insert into pgcoord.errand (queue_id, kind, status, attempt)
        values (v_phase.queue_id, 'tell', v_phase.status, nullif(v_phase.attempt, 0));
        notify pgcoord_wake;
    end if;
    perform pgcoord_private.log_event('issue_made', format('issue #%s', p_number), v_phase.feature_id, v_phase.phase_number,
        v_phase.queue_id, nullif(v_phase.attempt, 0));
end $$;

-- Suspend requests to GitHub for p_wait; p_grows: double p_wait with each failure in a row. Meanwhile no phase without an
-- issue is claimed. Returns the seconds until the next request, and whether phases have waited long enough to start
-- without an issue. A failure during a suspension, which another coordinator or task has begun, does not count.
create or replace function pgcoord_private.hold_issues(
    p_wait interval, p_grows boolean, p_reason text, p_optional_after interval, out wait_seconds float8, out optional boolean
)
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    perform 1 from pgcoord.control for no key update;
    update pgcoord.control
    set issues_held_since = coalesce(issues_held_since, clock_timestamp()),
        issues_held_until = clock_timestamp()
            + case when p_grows then least(p_wait * 2 ^ least(issues_failures, 10), greatest(p_wait, interval '15 minutes')) else p_wait end,
        issues_held_reason = p_reason, issues_optional_after = p_optional_after, issues_failures = issues_failures + 1
    where issues_held_until is null or issues_held_until <= clock_timestamp();
    if found then
        perform pgcoord_private.log_event('issues_held', p_reason);
    elsif not p_grows then
        update pgcoord.control set issues_held_until = greatest(issues_held_until, clock_timestamp() + p_wait);
    end if;
    notify pgcoord_wake;    -- a new time to look at
    select extract(epoch from issues_held_until - clock_timestamp()), coalesce(issues_held_since + issues_optional_after <= clock_timestamp(), false)
    into wait_seconds, optional from pgcoord.control;
end $$;

-- Withdraw an intent whose issue was certainly not created: no search is needed.
create or replace function pgcoord_private.unpost_issue(p_key uuid) returns void
language sql
begin atomic
    with issue as (
        update pgcoord.issue set posted_at = null, posts = posts - 1 where key = p_key and number is null and posts > 0
        returning queue_id, posts
    )
    delete from pgcoord.errand where kind = 'check' and queue_id = (select queue_id from issue where posts = 0);
end;

create or replace function pgcoord.release_issues() returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    if exists (select from pgcoord.control where issues_held_since is not null) then
        update pgcoord.control
        set issues_held_since = null, issues_held_until = null, issues_held_reason = null, issues_failures = 0;
        perform pgcoord_private.log_event('issues_released', null);
        notify pgcoord_wake;
        return true;
    end if;
    return false;
end $$;
comment on function pgcoord.release_issues() is
    'Let the phases that wait for GitHub start, for the owner and coordinators; returns whether they were held back.';

-- Log that a phase starts without an issue, since GitHub creates none for it.
create or replace function pgcoord_private.do_without_issue(p_attempt_id bigint, p_reason text) returns void
language sql
begin atomic
    select pgcoord_private.log_attempt(a, 'issue_missing', 'starts without an issue: ' || p_reason) from pgcoord.attempt as a where a.id = p_attempt_id;
end;
