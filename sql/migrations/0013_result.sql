-- Results: what an attempt says that it has done, for the phases that depend on it and for people.
-- Apart from pgcoord.attempt, so that the attempts without a result, which are updated often, stay as small as they are.
create table pgcoord.result (
    attempt_id bigint primary key references pgcoord.attempt (id) on delete cascade,
    feature_id integer not null,
    value jsonb not null,
    cost_usd numeric generated always as ((value ->> 'cost_usd')::numeric) stored,
    tokens_in bigint generated always as ((value ->> 'tokens_in')::numeric::bigint) stored,
    tokens_out bigint generated always as ((value ->> 'tokens_out')::numeric::bigint) stored,
    stored_at timestamptz not null default clock_timestamp(),
    constraint result_is_object check (jsonb_typeof(value) = 'object')
);
create index result_feature_idx on pgcoord.result (feature_id);

comment on table pgcoord.result is 'Results of attempts: a JSON object each, at most one an attempt.';
comment on column pgcoord.result.attempt_id is 'The attempt.';
comment on column pgcoord.result.feature_id is 'The feature of its phase.';
comment on column pgcoord.result.value is
    'The object. Known keys: summary, branch, commit, url (texts), pr_number, cost_usd, tokens_in, tokens_out (numbers).';
comment on column pgcoord.result.cost_usd is 'Its cost in US dollars.';
comment on column pgcoord.result.tokens_in is 'Tokens that it read.';
comment on column pgcoord.result.tokens_out is 'Tokens that it wrote.';
comment on column pgcoord.result.stored_at is 'When it was stored, or last added to.';
comment on index pgcoord.result_pkey is 'The result of an attempt.';
comment on index pgcoord.result_feature_idx is 'The results of a feature.';

-- It takes the result file, too.
drop function if exists pgcoord_private.end_attempt(bigint, integer, text, text);
