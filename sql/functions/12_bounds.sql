-- Limits of stored values: names, sizes, depths and numbers that every reader can handle; docs/sql.md lists them. The
-- triggers of the two public tables call these functions at any trigger depth, so a client's own trigger cannot bypass them.

-- Refuse JSON of more than p_bytes, of 100 levels or more, or with a number beyond what a double holds.
-- Errors: PC005.
create or replace function pgcoord_private.check_json(p_what text, p_value jsonb, p_bytes integer) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp as $$
declare
    v_fault text := case
        -- pg_column_size is the stored size, perhaps compressed; it makes the second, slower test unnecessary for most
        -- values.
        when pg_column_size(p_value) > 8192 and octet_length(p_value::text) > p_bytes
            then format('has %s of JSON: %s at most', pg_size_pretty(octet_length(p_value::text)::bigint), pg_size_pretty(p_bytes::bigint))
        when jsonb_path_exists(p_value, 'strict $.**{100}') then 'is nested 100 levels deep or more'
        when jsonb_path_exists(p_value, 'strict $.** ? (@.type() == "number" && (@ > 1e308 || @ < -1e308))')
            then 'holds a number beyond 1e308'
    end;
begin
    if v_fault is not null then
        raise exception using
            errcode = 'PC005',
            message = format('%s %s', p_what, v_fault),
            hint = 'Keep long content in a file, and name the file.';
    end if;
end $$;

-- Refuse a text of more than p_length characters.
-- Errors: PC005.
create or replace function pgcoord_private.check_text(p_what text, p_value text, p_length integer) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp as $$
begin
    if length(p_value) > p_length then
        raise exception using
            errcode = 'PC005',
            message = format('%s has %s characters: %s at most', p_what, length(p_value), p_length),
            hint = 'Keep it short; a long text belongs into a prompt or a description.';
    end if;
end $$;

-- Refuse a number that is no priority: none, or one that the column cannot hold.
-- Errors: PC005.
create or replace function pgcoord_private.check_priority(p_what text, p_priority bigint) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp as $$
begin
    if (p_priority between -2147483648 and 2147483647) is not true then
        raise exception using
            errcode = 'PC005',
            message = format('the priority of %s cannot be %s', p_what, coalesce(p_priority::text, 'null')),
            hint = 'Give a number: lower runs earlier (10 urgent, 50 usual, 90 background).';
    end if;
end $$;

-- Refuse a name that cannot be part of a URL or of a log line (characters without width, and those that reverse what
-- follows, among them), or that means another phase, a feature or an option on the command line. The migration from version 1
-- keeps old names (setting pgcoord.takes_over, which has an effect only for the owner).
-- Errors: PC005.
create or replace function pgcoord_private.check_queue_id(p_queue_id text, p_feature_id integer, p_phase_number integer) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp as $$
begin
    if p_queue_id !~ '^[^[:space:][:cntrl:]/?#%\\<>"\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]{1,200}$'
        or p_queue_id in ('.', '..')
    then
        raise exception using
            errcode = 'PC005',
            message = format('phase %s of feature %s cannot be called %L', p_phase_number, p_feature_id, left(p_queue_id, 210)),
            hint = format('A name has 1 to 200 characters, without blanks, line breaks, invisible characters and / ? # %% \ < > ". Leave it out for queue-%s-%s.',
                p_feature_id, p_phase_number);
    elsif p_queue_id ~ '^(queue-[0-9]+-[0-9]+|[0-9]+([.][0-9]+)?|-.*)$' and not (
        coalesce(current_setting('pgcoord.takes_over', true), '') = 'v1'
        and pg_has_role(session_user, (select relowner from pg_class where oid = 'public.phase_queue'::regclass), 'usage')
    ) then
        raise exception using
            errcode = 'PC005',
            message = format('phase %s of feature %s cannot be called %s: that is %s', p_phase_number, p_feature_id, p_queue_id,
                case when p_queue_id ~ '^-' then 'an option of a command'
                    when p_queue_id ~ '^[0-9]+$' then 'the number of a feature'
                    else 'the name of another phase' end),
            hint = format('Leave the name out for queue-%s-%s.', p_feature_id, p_phase_number);
    end if;
end $$;

-- A long text without its middle: the head or the end of an error message names the fault.
create or replace function pgcoord_private.without_middle(p_text text) returns text
language sql immutable
return case when length(p_text) <= 16000 then p_text
    else left(p_text, 4000) || format(E'\n… %s characters left out …\n', length(p_text) - 16000) || right(p_text, 12000) end;

-- Refuse phase_data that is not an object, or that has members of a wrong type.
-- Errors: PC005.
create or replace function pgcoord_private.check_phase_data(p_queue_id text, p_data jsonb) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp as $$
declare
    v_member text := case
        when jsonb_typeof(p_data) <> 'object' then ''
        when jsonb_typeof(p_data -> 'title') not in ('string', 'null') then 'title'
        when jsonb_typeof(p_data -> 'prompt_content') not in ('string', 'null') then 'prompt_content'
        when jsonb_typeof(p_data -> 'workflow_type') not in ('string', 'null') then 'workflow_type'
        when p_data ? 'check' and (jsonb_typeof(p_data -> 'check') not in ('string', 'null') or btrim(p_data ->> 'check') = '') then 'check'
        when p_data ? 'gate' and (jsonb_typeof(p_data -> 'gate') not in ('string', 'null') or btrim(p_data ->> 'gate') = '') then 'gate'
        when p_data ? 'environment' and jsonb_typeof(p_data -> 'environment') <> 'null' and (
            jsonb_typeof(p_data -> 'environment') <> 'object' or p_data -> 'environment' @? '$.* ? (@.type() != "string")'
        ) then 'environment'
        when p_data ? 'max_attempts' and p_data @? 'strict $.max_attempts ? (@ != null
            && !(@.type() == "number" && @ >= 1 && @ <= 1000000 && @.floor() == @))' then 'max_attempts'
        when p_data ? 'timeout_seconds' and p_data @? 'strict $.timeout_seconds ? (@ != null
            && !(@.type() == "number" && @ >= 0.000001 && @ <= 315360000))' then 'timeout_seconds'
    end;
    v_value jsonb;
begin
    if v_member is not null then
        v_value := case v_member when '' then p_data else p_data -> v_member end;
        raise exception using
            errcode = 'PC005',
            message = format('phase_data of phase %s%s is %s, a JSON %s', p_queue_id, coalesce(': ' || nullif(v_member, ''), ''),
                pgcoord_private.shortened(v_value::text, 200), jsonb_typeof(v_value)),
            hint = case
                when v_member = '' and jsonb_typeof(v_value) = 'string'
                    then 'It was encoded twice: give the text of the object itself, such as {"title": "..."}, cast to jsonb.'
                when v_member = '' then 'It is a JSON object such as {"title": "...", "prompt_content": "..."}.'
                when v_member = 'max_attempts' then 'It is a whole number from 1 to 1000000, or is left out.'
                when v_member = 'timeout_seconds' then 'It is a number of seconds from 0.000001 to 315360000, or is left out.'
                when v_member = 'check' then 'It is the name of a check that pgcoord.toml declares, or is left out.'
                when v_member = 'environment' then 'It is an object of texts such as {"MODE": "prod"}, or is left out.'
                when v_member = 'gate' then 'It is the question that a person is asked, or is left out.'
                else 'It is a string, or is left out.'
            end;
    end if;
    perform pgcoord_private.check_json('phase_data of phase ' || p_queue_id, p_data, 20 * 1024 * 1024);
    perform pgcoord_private.check_text('the title of phase ' || p_queue_id, p_data ->> 'title', 1000);
    perform pgcoord_private.check_text('the gate of phase ' || p_queue_id, p_data ->> 'gate', 1000);
    perform pgcoord_private.check_text('the check of phase ' || p_queue_id, p_data ->> 'check', 200);
    perform pgcoord_private.check_text('workflow_type of phase ' || p_queue_id, p_data ->> 'workflow_type', 200);
end $$;

-- Return p_empty for null, JSON null, an empty array and an empty object: some clients cannot tell these apart.
create or replace function pgcoord_private.meant_as(p_empty jsonb, p_value jsonb) returns jsonb
language sql immutable
return case when p_value is null or p_value in ('null', '[]', '{}') then p_empty else p_value end;

-- Refuse (PC005) the nulls of a row in p_columns, which must not be null.
create or replace function pgcoord_private.refuse_nulls(p_what text, p_row jsonb, variadic p_columns text[]) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using
        errcode = 'PC005',
        message = format('%s of %s cannot be null',
            (select string_agg(c, ', ') from unnest(p_columns) as c where p_row ->> c is null), p_what),
        hint = 'Give a value, or leave the column out: it then keeps the one it has.';
end $$;

-- Refuse (PC005) a time that clients cannot represent, such as infinity.
create or replace function pgcoord_private.check_times(p_what text, variadic p_times timestamptz[]) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp as $$
declare
    v_time timestamptz;
begin
    foreach v_time in array p_times loop
        if v_time not between '0001-01-02 00:00+00' and '9999-12-31 23:59:59+00' then
            raise exception using
                errcode = 'PC005',
                message = format('%s cannot have a time of %s', p_what, v_time),
                hint = 'Times lie within the years 1 to 9999. pgcoord.pause(feature_id) has phases wait for as long as you like.';
        end if;
    end loop;
end $$;

-- The rules of a row of phase_queue, which hold even with all triggers disabled. One function checks them all, since Postgres
-- parses the text of a check constraint with every statement that updates a phase, and one call is the shortest text. A change
-- of a rule needs a migration that checks the existing rows: Postgres assumes that the function of a check never changes.
-- Errors: 23514, by the name of the rule.
create or replace function pgcoord_private.phase_holds(
    p_number integer, p_status text, p_slot smallint, p_unmet integer, p_eligible_at timestamptz, p_gated boolean, p_retry_at timestamptz
) returns boolean
language plpgsql immutable
set search_path = pg_catalog, pg_temp as $$
declare
    v_rule text;
begin
    if p_number > 0
        and (p_status in ('ready', 'running')) = (p_slot is not null)
        and (p_slot is null or p_eligible_at is not null and not p_gated)
        and (p_eligible_at is null) = (p_unmet <> 0)
        and (p_retry_at is null
            or p_status = 'queued' and p_retry_at between '0001-01-02 00:00+00' and '9999-12-31 23:59:59+00')
    then
        return true;
    end if;
    v_rule := case
        when p_number <= 0 then 'number_is_positive'
        when (p_status in ('ready', 'running')) <> (p_slot is not null) then 'live_holds_slot'
        when p_slot is not null and (p_eligible_at is null or p_gated) then 'starts_when_claimable'
        when (p_eligible_at is null) <> (p_unmet <> 0) then 'eligible_when_met'
        else 'retry_is_queued'
    end;
    raise exception using
        errcode = 'check_violation', schema = 'public', table = 'phase_queue', constraint = 'phase_queue_' || v_rule,
        message = format('phase %s violates phase_queue_%s: %s', p_number, v_rule, case v_rule
            when 'number_is_positive' then 'phases are numbered from 1'
            when 'live_holds_slot' then format('it is %s and holds %s', p_status, coalesce('slot ' || p_slot, 'no slot'))
            when 'starts_when_claimable' then format('it holds slot %s before it may start', p_slot)
            when 'eligible_when_met' then format('%s of its prerequisites are open, and eligible_at is %s', p_unmet, coalesce(p_eligible_at::text, 'null'))
            else format('it is %s with retry_at %s', p_status, p_retry_at) end);
end $$;
