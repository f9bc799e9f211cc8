-- Words for people, used by views, the checkup and error messages.

-- The title of a phase with this phase_data and number.
create or replace function pgcoord_private.title_of(p_phase_data jsonb, p_phase_number integer) returns text
language sql immutable
return coalesce(p_phase_data ->> 'title', 'Phase ' || p_phase_number);

-- The title of a phase.
create or replace function pgcoord_private.title_of(p_phase public.phase_queue) returns text
language sql immutable
return pgcoord_private.title_of(p_phase.phase_data, p_phase.phase_number);

-- A time in words, with its date unless that is today.
create or replace function pgcoord_private.clock(p_at timestamptz) returns text
language sql stable
return to_char(p_at, case when p_at::date = current_date then 'HH24:MI:SS TZ' else 'YYYY-MM-DD HH24:MI:SS TZ' end);

-- 1st, 2nd, 3rd …
create or replace function pgcoord_private.ordinal(p_number bigint) returns text
language sql immutable
return p_number || case
    when p_number % 100 between 11 and 13 then 'th'
    when p_number % 10 = 1 then 'st' when p_number % 10 = 2 then 'nd' when p_number % 10 = 3 then 'rd'
    else 'th'
end;

-- A number with its noun and verb: 1 phase waits, 2 phases wait.
create or replace function pgcoord_private.counted(p_number bigint, p_one text, p_many text) returns text
language sql immutable
return p_number || ' ' || case when p_number = 1 then p_one else p_many end;

-- A length of time in one unit: 40 s, 5 min, 3 h, 4 days.
create or replace function pgcoord_private.in_words(p_length interval) returns text
language sql immutable
return case
    when p_length < interval '2 min' then floor(extract(epoch from p_length)) || ' s'
    when p_length < interval '2 h' then floor(extract(epoch from p_length) / 60) || ' min'
    when p_length < interval '2 d' then floor(extract(epoch from p_length) / 3600) || ' h'
    else floor(extract(epoch from p_length) / 86400) || ' days'
end;

-- The first three names, and how many more there are.
create or replace function pgcoord_private.some_of(p_names text[]) returns text
language sql immutable
return concat_ws(' and ', array_to_string(p_names[1:3], ', '),
    case when cardinality(p_names) > 3 then cardinality(p_names) - 3 || ' more' end);

-- An error in one line: its first line, or, if that is only an exit status, the line with the cause, which follows.
create or replace function pgcoord_private.headline(p_error text) returns text
language sql immutable
return left(case when p_error ~ '^exited with status [0-9]+( [(]signal [0-9]+[)])?\n.'
            -- pgcoord/runs/logs.py puts the cause first.
            and split_part(p_error, e'\n', 2) ~*
                'error|exception|fail|fatal|panic|assert|traceback|cannot|denied|refused|not found|undefined|killed|aborted|^E\s'
        then split_part(p_error, e'\n', 1) || ': ' || ltrim(split_part(p_error, e'\n', 2))
        else split_part(p_error, e'\n', 1) end, 500);

-- The beginning of a text, for a message: messages and hints are ASCII, as a client's encoding (LATIN1) may have nothing else.
create or replace function pgcoord_private.shortened(p_text text, p_length integer) returns text
language sql immutable
return case when length(p_text) > p_length then left(p_text, p_length - 3) || '...' else p_text end;
