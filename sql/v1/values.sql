-- How values of version 1 are read. They are taken as text: what type a column had differs from one installation to the
-- next, what it meant does not. Whatever cannot be read becomes null, and a decision (decide.sql): nothing stops a
-- migration halfway.

create function pgcoord_v1.whole(p_text text) returns integer
language sql immutable
return case when p_text ~ '^\s*[+-]?\d{1,10}(\.0*)?\s*$' then
    case when p_text::numeric between -2147483648 and 2147483647 then p_text::numeric::integer end
end;

create function pgcoord_v1.hours(p_text text) returns numeric
language sql immutable
return case when p_text ~ '^\s*\d{1,6}(\.\d*)?\s*$' then p_text::numeric end;

-- Where it names no zone, it is read in that of the session. The usual form cannot fail, and needs no subtransaction.
create function pgcoord_v1.odd_moment(p_text text) returns timestamptz
language plpgsql stable as $$
begin
    return nullif(btrim(p_text), '')::timestamptz;
exception when data_exception then
    return null;
end $$;

create function pgcoord_v1.moment(p_text text) returns timestamptz
language sql stable
return case when p_text is null then null
    when p_text ~ '^(19|20)\d\d-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])[ T]([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?$' then p_text::timestamptz
    else pgcoord_v1.odd_moment(p_text) end;

-- A string that holds JSON itself was encoded twice.
create function pgcoord_v1.json(p_text text) returns jsonb
language plpgsql immutable as $$
declare
    v_json jsonb;
begin
    v_json := nullif(btrim(p_text), '')::jsonb;    -- here, where what it raises is caught
    if jsonb_typeof(v_json) = 'string' then
        return coalesce(pgcoord_v1.json(v_json #>> '{}'), v_json);
    end if;
    return v_json;
exception when data_exception then
    return null;
end $$;

create function pgcoord_v1.numbers(p_json jsonb) returns integer[]
language sql immutable
return (
    select case when bool_and(coalesce(pgcoord_v1.whole(e.t) > 0, false)) then array_agg(distinct pgcoord_v1.whole(e.t)) end
    from jsonb_array_elements_text(case jsonb_typeof(p_json) when 'array' then p_json else jsonb_build_array(p_json) end) as e (t)
);

-- The numbers of the phases that come first; null when that cannot be made out.
create function pgcoord_v1.prerequisites(p_several text, p_single text) returns integer[]
language sql immutable
return case
    when p_several is not null and p_several not in ('', '[]', 'null') then pgcoord_v1.numbers(pgcoord_v1.json(p_several))
    when p_single is null or p_single = '' then '{}'
    when pgcoord_v1.whole(p_single) > 0 then array[pgcoord_v1.whole(p_single)]
end;

-- What a phase is about, in our words: version 1 called the prompt content, and files externalDocs. Null when it
-- is no object; where a member has a type that it may not have, it is kept as text or under another name.
create function pgcoord_v1.phase_data(p_text text) returns jsonb
language plpgsql immutable as $$
declare
    v_data jsonb;
begin
    v_data := coalesce(nullif(p_text, ''), '{}')::jsonb;
    if jsonb_typeof(v_data) = 'string' then
        v_data := pgcoord_v1.json(v_data #>> '{}');
    end if;
    if v_data = 'null' then
        return '{}';
    elsif jsonb_typeof(v_data) is distinct from 'object' then
        return null;
    end if;
    if v_data ? 'content' and not v_data ? 'prompt_content' then
        v_data := v_data - 'content' || jsonb_build_object('prompt_content', v_data -> 'content');
    end if;
    if v_data ? 'externalDocs' and not v_data ? 'files' then
        v_data := v_data - 'externalDocs' || jsonb_build_object('files', v_data -> 'externalDocs');
    end if;
    perform pgcoord_private.check_phase_data('', v_data);    -- here, where what it raises is caught
    return v_data;
exception
    when data_exception then
        return null;
    when sqlstate 'PC005' then
        return v_data - array['title', 'prompt_content', 'workflow_type', 'max_attempts', 'timeout_seconds']
            || jsonb_strip_nulls(jsonb_build_object(
                'title', v_data ->> 'title', 'prompt_content', v_data ->> 'prompt_content',
                'workflow_type', v_data ->> 'workflow_type',
                'v1_max_attempts', v_data -> 'max_attempts', 'v1_timeout_seconds', v_data -> 'timeout_seconds'
            ));
end $$;

-- A stored plan as submit_feature takes it; null when it is none.
create function pgcoord_v1.plan(p_plan jsonb, p_workflow text) returns jsonb
language plpgsql stable as $$
declare
    v_phases jsonb := case jsonb_typeof(p_plan) when 'array' then p_plan when 'object' then p_plan -> 'phases' end;
begin
    if jsonb_typeof(v_phases) is distinct from 'array' then
        return null;
    end if;
    select jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
            'phase_number', phase -> 'phase_number', 'title', phase -> 'title',
            'prompt_content', coalesce(phase -> 'prompt_content', phase -> 'content'),
            'depends_on_phases', to_jsonb(pgcoord_v1.prerequisites(coalesce(phase ->> 'depends_on_phases', phase ->> 'depends_on'), null)),
            'workflow_type', coalesce(phase ->> 'workflow_type', p_workflow),
            'estimated_hours', phase -> 'estimated_hours', 'files', coalesce(phase -> 'files', phase -> 'externalDocs')
        )) order by place)
    into v_phases
    from jsonb_array_elements(v_phases) with ordinality as element (phase, place);
    perform pgcoord_private.check_feature_object(jsonb_build_object('title', 'A plan', 'phases', v_phases));
    return v_phases;
exception when sqlstate 'PC005' then
    return null;
end $$;
