-- Issues on GitHub: one for each phase, made between its claim and its start, and told when the phase ends.
--
-- Nothing here speaks to GitHub, and nobody holds a transaction open while a coordinator does. Before an issue is posted
-- the intent is committed (intend_issue), and its number afterwards (store_issue). Whoever finds an intent without a
-- number looks for the issue by the marker in its body before posting again: GitHub has no other way to ask.
--
-- Lock order: control, then features, phases, attempts (phase.sql), then issues, then errands.

-- Between a post and the moment from which its issue can be relied upon to be listed.
create or replace function pgcoord.issue_settles() returns interval
language sql immutable
return interval '20 seconds';
comment on function pgcoord.issue_settles() is 'After what time an issue that was made is listed.';

-- The prerequisites and dependents of a phase as people name them, nearest number first.
create or replace function pgcoord.named_phases(p_feature_id integer, p_numbers integer[]) returns jsonb
language sql stable as $$
    select coalesce(jsonb_agg(jsonb_build_object('phase_number', p.phase_number, 'title', pgcoord.title_of(p),
        'status', p.status, 'issue_number', p.issue_number, 'eligible', p.eligible_at is not null) order by p.phase_number), '[]')
    from public.phase_queue as p
    where p.feature_id = p_feature_id and p.phase_number = any (p_numbers);
$$;
comment on function pgcoord.named_phases(integer, integer[]) is
    'Phases of a feature as JSON: number, title, status, issue, and whether nothing of the feature holds it back.';

-- What the issue of a phase says, but for the prompt.
create or replace function pgcoord.issue_facts(p_queue_id text, p_repository text) returns jsonb
language sql stable as $$
    select jsonb_build_object(
        'feature', f.title,
        'total_phases', (select count(*) from public.phase_queue where feature_id = f.id),
        'prerequisites', pgcoord.named_phases(f.id, array(
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
$$;
comment on function pgcoord.issue_facts(text, text) is
    'What the issue of a phase says besides its prompt, and whether its labels have been made before.';

-- Say that the issue of a claimed phase is about to be made. With `posts` the caller posts it now. Without, and without a
-- number, it may have been made before: the caller looks for the marker, and comes again with p_looked when there is
-- none; then it is told to post, or how long the list of issues may still lag behind.
-- Errors: PC007 when the lead is over; PC003 when the attempt was given up.
create or replace function pgcoord.intend_issue(
    p_epoch bigint, p_attempt_id bigint, p_repository text, p_looked boolean default false,
    out number integer, out key uuid, out intended_at timestamptz, out posts boolean, out wait_seconds float8
)
language plpgsql as $$
#variable_conflict use_column
declare
    v_queue_id text;
    v_issue pgcoord.issue;
    v_settles_at timestamptz;
begin
    perform pgcoord.check_epoch(p_epoch);
    select queue_id into v_queue_id from pgcoord.attempt where id = p_attempt_id and exited_at is null;
    if v_queue_id is null then
        raise exception using
            errcode = 'PC003',
            message = format('attempt %s was given up', p_attempt_id),
            hint = 'No issue is to be made for it.';
    end if;
    insert into pgcoord.issue (queue_id, repository) values (v_queue_id, p_repository) on conflict (queue_id) do nothing;
    select * into v_issue from pgcoord.issue where queue_id = v_queue_id for no key update;
    v_settles_at := v_issue.posted_at + pgcoord.issue_settles();
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
comment on function pgcoord.intend_issue(bigint, bigint, text, boolean) is
    'For the leading coordinator: the issue of a claimed phase is about to be made; says whether to post it, or to look for it first.';

-- Keep the number of an issue. Where it was just made (p_made, not found), whatever held others back is over. A phase that
-- has ended meanwhile has something to tell it.
create or replace function pgcoord.store_issue(p_key uuid, p_number integer, p_author text, p_made boolean) returns void
language plpgsql as $$
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
    v_phase := pgcoord.lock_phase(v_issue.queue_id);
    select * into v_issue from pgcoord.issue where key = p_key for no key update;
    if v_issue.number <= p_number then
        return;    -- known already, or the second one: of two the lower number is kept
    end if;
    update pgcoord.issue set number = p_number, author = p_author where key = p_key;
    update public.phase_queue set issue_number = p_number where queue_id = v_phase.queue_id;
    if v_issue.posts <= 1 then
        delete from pgcoord.errand where queue_id = v_phase.queue_id and kind = 'check';
    end if;
    if v_issue.number is null and v_phase.status in ('completed', 'failed', 'cancelled') then
        insert into pgcoord.errand (queue_id, kind, status, attempt)
        values (v_phase.queue_id, 'tell', v_phase.status, nullif(v_phase.attempt, 0));
        notify pgcoord_wake;
    end if;
    perform pgcoord.log_event('issue_made', format('issue #%s', p_number), v_phase.feature_id, v_phase.phase_number,
        v_phase.queue_id, nullif(v_phase.attempt, 0));
end $$;
comment on function pgcoord.store_issue(uuid, integer, text, boolean) is
    'For the coordinator: the issue with this marker has this number; of two the lower one is kept.';

-- GitHub cannot be asked before p_wait from now, twice as long with each further failure where p_grows: until then no
-- phase is claimed that has no issue yet. Says when it is asked again, and whether phases have waited long enough to start
-- without an issue. What others have found out already is not counted again.
create or replace function pgcoord.hold_issues(
    p_wait interval, p_grows boolean, p_reason text, p_optional_after interval, out wait_seconds float8, out optional boolean
)
language plpgsql as $$
begin
    perform 1 from pgcoord.control for no key update;
    update pgcoord.control
    set issues_held_since = coalesce(issues_held_since, clock_timestamp()),
        issues_held_until = clock_timestamp()
            + case when p_grows then least(p_wait * 2 ^ least(issues_failures, 10), greatest(p_wait, interval '15 minutes')) else p_wait end,
        issues_held_reason = p_reason, issues_optional_after = p_optional_after, issues_failures = issues_failures + 1
    where issues_held_until is null or issues_held_until <= clock_timestamp();
    if found then
        perform pgcoord.log_event('issues_held', p_reason);
    elsif not p_grows then
        update pgcoord.control set issues_held_until = greatest(issues_held_until, clock_timestamp() + p_wait);
    end if;
    notify pgcoord_wake;    -- the agenda has a new entry
    select extract(epoch from issues_held_until - clock_timestamp()), coalesce(issues_held_since + issues_optional_after <= clock_timestamp(), false)
    into wait_seconds, optional from pgcoord.control;
end $$;
comment on function pgcoord.hold_issues(interval, boolean, text, interval) is
    'For the coordinator: GitHub cannot be asked for a while; phases that have no issue yet are not claimed until then.';

-- The issue that was about to be posted certainly was not: nobody has to look for it.
create or replace function pgcoord.unpost_issue(p_key uuid) returns void
language sql as $$
    with issue as (
        update pgcoord.issue set posted_at = null, posts = posts - 1 where key = p_key and number is null and posts > 0
        returning queue_id, posts
    )
    delete from pgcoord.errand where kind = 'check' and queue_id = (select queue_id from issue where posts = 0);
$$;
comment on function pgcoord.unpost_issue(uuid) is 'For the coordinator: an issue that was about to be posted certainly was not made.';

create or replace function pgcoord.release_issues() returns void
language plpgsql as $$
begin
    if exists (select from pgcoord.control where issues_held_since is not null) then
        update pgcoord.control
        set issues_held_since = null, issues_held_until = null, issues_held_reason = null, issues_failures = 0;
        perform pgcoord.log_event('issues_released', null);
        notify pgcoord_wake;
    end if;
end $$;
comment on function pgcoord.release_issues() is
    'For the coordinator: GitHub answers, or is not asked any more; phases need not wait for it.';

-- Until when phases that have no issue yet are not claimed; null when they are.
create or replace function pgcoord.issues_held_until(p_control pgcoord.control) returns timestamptz
language sql stable
return case when least(p_control.issues_held_until, p_control.issues_held_since + p_control.issues_optional_after) > clock_timestamp()
    then least(p_control.issues_held_until, p_control.issues_held_since + p_control.issues_optional_after) end;
comment on function pgcoord.issues_held_until(pgcoord.control) is
    'Until when no phase is claimed that has no issue yet, because GitHub makes none; null when there is nothing to wait for.';

-- A phase starts without an issue, since GitHub will make none for it.
create or replace function pgcoord.do_without_issue(p_attempt_id bigint, p_reason text) returns void
language sql as $$
    select pgcoord.log_attempt(a, 'issue_missing', 'starts without an issue: ' || p_reason) from pgcoord.attempt as a where a.id = p_attempt_id;
$$;
comment on function pgcoord.do_without_issue(bigint, text) is 'For the coordinator: log that an attempt starts without an issue, and why.';

create or replace function pgcoord.leave_errand() returns trigger
language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
begin
    if new.status = old.status or not (new.status in ('completed', 'failed', 'cancelled') or old.status in ('failed', 'cancelled')) then
        return null;
    end if;
    insert into pgcoord.errand (queue_id, kind, status, attempt)
    select new.queue_id, 'tell', new.status, case when old.slot is not null then new.attempt end
    from pgcoord.issue where queue_id = new.queue_id and number is not null;
    if found then
        notify pgcoord_wake;
    end if;
    return null;
end $$;
comment on function pgcoord.leave_errand() is
    'Trigger: the issue of a phase that ended, or was taken up again, is to be told so.';

-- The condition says no more than keeps phases without an issue out: Postgres reads it back from its stored form with
-- every statement that moves a phase, at the price of its length.
create or replace trigger phase_queue_end_leaves_errand after update of status on public.phase_queue
    for each row when (new.issue_number is not null) execute function pgcoord.leave_errand();
comment on trigger phase_queue_end_leaves_errand on public.phase_queue is
    'Leave word for the issue of a phase that ended, or was taken up again.';

-- Of an issue the errands are done in their order: those that none of the same kind comes before.
create or replace view pgcoord.next_errand as
select e.id, e.queue_id, e.kind, e.due_at, i.repository
from pgcoord.errand as e
    join pgcoord.issue as i using (queue_id)
where not exists (
        select from pgcoord.errand as earlier
        where earlier.queue_id = e.queue_id and earlier.kind = e.kind and earlier.id < e.id
    );
comment on view pgcoord.next_errand is 'What is to be done next on GitHub for each issue.';

-- Begin the oldest errand that is due in this repository; the number of tries is committed before GitHub is asked.
-- Without one, id is null, and due_in says when there is.
create or replace function pgcoord.begin_errand(
    p_repository text, out id bigint, out queue_id text, out kind text, out key uuid, out issue_key uuid, out number integer,
    out intended_at timestamptz, out tries integer, out status text, out phase_status text, out facts jsonb, out due_in float8
)
language plpgsql as $$
#variable_conflict use_column
declare
    v_held_until timestamptz := (select issues_held_until from pgcoord.control);
begin
    update pgcoord.errand as e set tries = e.tries + 1
    where e.id = (
        select n.id from pgcoord.next_errand as n
        where n.due_at <= clock_timestamp() and n.repository = p_repository and coalesce(v_held_until <= clock_timestamp(), true)
        order by n.due_at, n.id
        limit 1
    )
    returning e.id, e.queue_id, e.kind, e.key, e.tries, e.status into id, queue_id, kind, key, tries, status;
    if id is null then
        select extract(epoch from greatest(v_held_until, min(due_at)) - clock_timestamp()) into due_in
        from pgcoord.next_errand where repository = p_repository
        having count(*) > 0;
        return;
    end if;
    select i.key, i.number, i.intended_at, p.status into issue_key, number, intended_at, phase_status
    from pgcoord.issue as i join public.phase_queue as p using (queue_id)
    where i.queue_id = begin_errand.queue_id;
    if kind = 'tell' then
        facts := pgcoord.errand_facts(id);
    end if;
end $$;
comment on function pgcoord.begin_errand(text) is
    'For the coordinator: begin what is due on GitHub; without anything, says in how many seconds there is (null: nothing to do).';

-- What there is to say about the end of a phase.
create or replace function pgcoord.errand_facts(p_errand_id bigint) returns jsonb
language sql stable as $$
    select jsonb_build_object(
        'queue_id', p.queue_id, 'attempt', a.number, 'adw_id', a.adw_id, 'outcome', a.outcome, 'pr_number', p.pr_number,
        'ran_seconds', extract(epoch from coalesce(a.exited_at, a.ended_at) - a.started_at),
        'error', case when e.status = 'failed' then coalesce(a.error, p.error_message) end,
        'reason', (select v.reason from pgcoord.event as v
            where v.feature_id = p.feature_id and v.phase_number = p.phase_number and v.to_status = e.status
            order by v.id desc limit 1),
        'dependents', pgcoord.named_phases(p.feature_id, array(
            select dependent from pgcoord.dependency where feature_id = p.feature_id and prerequisite = p.phase_number)))
    from pgcoord.errand as e
        join public.phase_queue as p using (queue_id)
        left join pgcoord.attempt as a on a.queue_id = e.queue_id and a.number = e.attempt
    where e.id = p_errand_id;
$$;
comment on function pgcoord.errand_facts(bigint) is 'What a comment says about the end of a phase.';

-- An errand is done, or given up: p_done says what was done, p_error why it never will be.
create or replace function pgcoord.finish_errand(p_errand_id bigint, p_done text, p_error text default null) returns void
language plpgsql as $$
declare
    v_errand pgcoord.errand;
begin
    delete from pgcoord.errand where id = p_errand_id returning * into v_errand;
    if v_errand.kind = 'tell' and p_error is null then
        perform pgcoord.release_issues();    -- GitHub takes what we write
    end if;
    if found and (p_done is not null or p_error is not null) then
        perform pgcoord.log_event(case when p_error is null then 'issue_told' else 'issue_untold' end,
            coalesce(p_error, p_done), p.feature_id, p.phase_number, p.queue_id, v_errand.attempt)
        from public.phase_queue as p where p.queue_id = v_errand.queue_id;
    end if;
end $$;
comment on function pgcoord.finish_errand(bigint, text, text) is
    'For the coordinator: an errand is done (what was done there), or is given up (why).';

create or replace function pgcoord.postpone_errand(p_errand_id bigint, p_wait interval, p_error text) returns void
language sql as $$
    update pgcoord.errand set due_at = clock_timestamp() + least(p_wait * 2 ^ least(tries - 1, 20), interval '6 hours'), error = p_error
    where id = p_errand_id;
$$;
comment on function pgcoord.postpone_errand(bigint, interval, text) is
    'For the coordinator: an errand is tried again after that long, doubled with each try.';

-- What somebody did on GitHub concerns the phases whose issue it was, and for a pull request those that it names: by
-- queue_id, adw_id or issue. Issues that people gave their phases themselves count, too.
create or replace function pgcoord.phases_on_github(p_repository text, p_numbers integer[], p_words text[]) returns setof text
language sql stable as $$
    select p.queue_id
    from public.phase_queue as p
        left join pgcoord.issue as i using (queue_id)
    where p.issue_number = any (p_numbers) and coalesce(lower(i.repository) = lower(p_repository), true)
    union
    select queue_id from public.phase_queue where queue_id = any (p_words)
    union
    select queue_id from pgcoord.attempt where adw_id = any (p_words)
    order by 1;
$$;
comment on function pgcoord.phases_on_github(text, integer[], text[]) is
    'The phases with one of these issues, or named by one of these words.';

-- Whether it was the coordinator itself who closed or opened an issue, because of what became of the phase.
create or replace function pgcoord.is_our_doing(p_phase public.phase_queue, p_kind text, p_sender text) returns boolean
language sql stable
return exists (select from pgcoord.issue where queue_id = p_phase.queue_id and author = p_sender)
    and case p_kind
        when 'issue_closed' then p_phase.status in ('completed', 'failed', 'cancelled')
        when 'issue_reopened' then p_phase.status not in ('completed', 'failed', 'cancelled')
        else false
    end;
comment on function pgcoord.is_our_doing(public.phase_queue, text, text) is
    'Whether an issue was closed or opened by the coordinator itself.';

-- Do to a phase what the configuration says: nothing, cancel, complete or retry. What its state does not allow, or needs
-- no more, is left; returns why, in words.
create or replace function pgcoord.act_on_phase(p_phase public.phase_queue, p_action text, p_reason text) returns text
language plpgsql as $$
declare
    v_refused text;
begin
    case p_action
        when 'cancel' then
            if p_phase.status not in ('completed', 'failed', 'cancelled') then
                perform pgcoord.cancel_phase(p_phase.queue_id, p_reason);
            end if;
        when 'complete' then
            if p_phase.slot is not null then
                perform pgcoord.complete_phase(p_phase.queue_id);
            elsif p_phase.status <> 'completed' then
                perform pgcoord.skip_phase(p_phase.queue_id, p_reason);
            end if;
        when 'retry' then
            if p_phase.status in ('failed', 'cancelled') then
                perform pgcoord.retry_phase(p_phase.queue_id, p_reason);
            end if;
        else
            null;
    end case;
    return null;
exception when sqlstate 'PC002' or sqlstate 'PC003' or sqlstate 'PC004' then
    get stacked diagnostics v_refused = message_text;
    return v_refused;
end $$;
comment on function pgcoord.act_on_phase(public.phase_queue, text, text) is
    'Cancel, complete or retry a phase where its state allows it; says why not, else null.';

-- Take what happened on GitHub, told by a webhook whose signature was checked: {"delivery", "kind": issue_closed,
-- issue_reopened, pull_request_opened or pull_request_merged, "repository", "numbers", "words", "pr_number", "sender",
-- "said"}. It is recorded for every phase that it concerns; a delivery that comes again changes nothing.
create or replace function pgcoord.take_github_event(p_event jsonb, p_action text, out result text, out queue_ids text[])
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_kind text := p_event ->> 'kind';
    v_sender text := p_event ->> 'sender';
    v_queue_id text;
    v_phase public.phase_queue;
    v_not_done text;
begin
    queue_ids := array(select * from pgcoord.phases_on_github(p_event ->> 'repository',
        array(select jsonb_array_elements_text(p_event -> 'numbers')::integer),
        array(select jsonb_array_elements_text(p_event -> 'words'))));
    result := 'ignored';
    perform set_config('pgcoord.actor', v_sender || ' (GitHub)', true);
    foreach v_queue_id in array queue_ids loop
        v_phase := pgcoord.lock_phase(v_queue_id);
        if exists (select from pgcoord.webhook_delivery as d
            where d.message_id = p_event ->> 'delivery' and d.queue_id = v_queue_id)
        then
            result := 'repeated';
            continue;
        end if;
        continue when pgcoord.is_our_doing(v_phase, v_kind, v_sender);
        if v_kind like 'pull_request%' then
            update public.phase_queue set pr_number = (p_event ->> 'pr_number')::integer
            where queue_id = v_queue_id and pr_number is distinct from (p_event ->> 'pr_number')::integer;
        end if;
        v_not_done := pgcoord.act_on_phase(v_phase, p_action, p_event ->> 'said');
        perform pgcoord.log_event(v_kind, concat_ws('; ', p_event ->> 'said', v_not_done), v_phase.feature_id,
            v_phase.phase_number, v_queue_id, nullif(v_phase.attempt, 0));
        insert into pgcoord.webhook_delivery (message_id, sender, feature_id, queue_id, reported, result, reason)
        values (p_event ->> 'delivery', v_sender || ' (GitHub)', v_phase.feature_id, v_queue_id, v_kind,
            case when v_not_done is null then 'taken' else 'refused' end, v_not_done);
        result := 'recorded';
    end loop;
    perform set_config('pgcoord.actor', '', true);
end $$;
comment on function pgcoord.take_github_event(jsonb, text) is
    'For the coordinator: record what happened on GitHub for each phase that it concerns, and do what the configuration says.';
