-- Events of people on GitHub, as its webhook reports them.

-- The phases with one of these issues, or named by one of these words.
-- An event concerns the phases that have its issue; a pull request concerns the phases that it names by queue_id, adw_id or
-- issue. Issues that people have assigned to their phases count, too.
create or replace function pgcoord_private.phases_on_github(p_repository text, p_numbers integer[], p_words text[]) returns setof text
language sql stable
begin atomic
    select p.queue_id
    from public.phase_queue as p
        left join pgcoord.issue as i using (queue_id)
    where p.issue_number = any (p_numbers) and coalesce(lower(i.repository) = lower(p_repository), true)
    union
    select queue_id from public.phase_queue where queue_id = any (p_words)
    union
    select queue_id from pgcoord.attempt where adw_id = any (p_words)
    order by 1;
end;

-- Whether the coordinator itself closed or reopened an issue, because of the state of its phase.
create or replace function pgcoord_private.is_our_doing(p_phase public.phase_queue, p_kind text, p_sender text) returns boolean
language sql stable
return exists (select from pgcoord.issue where queue_id = p_phase.queue_id and author = p_sender)
    and case p_kind
        when 'issue_closed' then pgcoord_private.ended(p_phase.status)
        when 'issue_reopened' then not pgcoord_private.ended(p_phase.status)
        else false
    end;

-- Perform the configured action on a phase: nothing, cancel, complete or retry. If its state does not permit the action, or
-- makes it unnecessary, do nothing and return the reason in words.
create or replace function pgcoord_private.act_on_phase(p_phase public.phase_queue, p_action text, p_reason text) returns text
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_refused text;
begin
    case p_action
        when 'cancel' then
            if not pgcoord_private.ended(p_phase.status) then
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

-- Record an event of GitHub, from a webhook whose signature was checked: {"delivery", "kind": issue_closed,
-- issue_reopened, pull_request_opened or pull_request_merged, "repository", "numbers", "words", "pr_number", "sender",
-- "said"}. It is recorded for each phase that it concerns; a repeated delivery changes nothing.
create or replace function pgcoord_private.take_github_event(p_event jsonb, p_action text, out result text, out queue_ids text[])
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    v_kind text := p_event ->> 'kind';
    v_sender text := p_event ->> 'sender';
    v_queue_id text;
    v_phase public.phase_queue;
    v_not_done text;
begin
    queue_ids := array(select * from pgcoord_private.phases_on_github(p_event ->> 'repository',
        array(select jsonb_array_elements_text(p_event -> 'numbers')::integer),
        array(select jsonb_array_elements_text(p_event -> 'words'))));
    result := 'ignored';
    perform set_config('pgcoord.actor', v_sender || ' (GitHub)', true);
    foreach v_queue_id in array queue_ids loop
        v_phase := pgcoord_private.lock_phase(v_queue_id);
        if exists (select from pgcoord.webhook_delivery as d
            where d.message_id = p_event ->> 'delivery' and d.queue_id = v_queue_id)
        then
            result := 'repeated';
            continue;
        end if;
        continue when pgcoord_private.is_our_doing(v_phase, v_kind, v_sender);
        if v_kind like 'pull_request%' then
            update public.phase_queue set pr_number = (p_event ->> 'pr_number')::integer
            where queue_id = v_queue_id and pr_number is distinct from (p_event ->> 'pr_number')::integer;
        end if;
        v_not_done := pgcoord_private.act_on_phase(v_phase, p_action, p_event ->> 'said');
        perform pgcoord_private.log_event(v_kind, concat_ws('; ', p_event ->> 'said', v_not_done), v_phase.feature_id,
            v_phase.phase_number, v_queue_id, nullif(v_phase.attempt, 0));
        insert into pgcoord.webhook_delivery (message_id, sender, feature_id, queue_id, reported, result, reason)
        values (p_event ->> 'delivery', v_sender || ' (GitHub)', v_phase.feature_id, v_queue_id, v_kind,
            case when v_not_done is null then 'taken' else 'refused' end, v_not_done);
        result := 'recorded';
    end loop;
    perform set_config('pgcoord.actor', '', true);
end $$;
