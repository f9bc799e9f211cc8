-- Events: who did what. Rows of pgcoord.event are written by the triggers of the tables they tell about, through
-- these functions; nothing else writes there.

create or replace function pgcoord.actor() returns text
language sql stable
return coalesce(nullif(current_setting('pgcoord.actor', true), ''), session_user);
comment on function pgcoord.actor() is
    'Who acts: the setting pgcoord.actor (set it for people behind a shared login), else the database user.';

create or replace function pgcoord.reason() returns text
language sql stable
return nullif(current_setting('pgcoord.reason', true), '');
comment on function pgcoord.reason() is
    'Why: the setting pgcoord.reason, which the control functions set for their statement and people may set for theirs.';

create or replace function pgcoord.set_reason(p_reason text) returns void
language sql
return set_config('pgcoord.reason', coalesce(p_reason, ''), true);
comment on function pgcoord.set_reason(text) is
    'Give the reason that the next changes of this transaction are logged with; null ends it.';

-- An event that is not the move of a phase.
create or replace function pgcoord.log_event(
    p_kind text, p_reason text, p_feature_id integer default null,
    p_phase_number integer default null, p_queue_id text default null, p_attempt integer default null
) returns void
language sql as $$
    insert into pgcoord.event (kind, feature_id, phase_number, queue_id, attempt, actor, reason)
    values (p_kind, p_feature_id, p_phase_number, p_queue_id, p_attempt, pgcoord.actor(), p_reason);
    select pg_notify('pgcoord_event', coalesce(p_feature_id::text, ''));
$$;
comment on function pgcoord.log_event(text, text, integer, integer, text, integer) is
    'Write an event about something else than the move of a phase, and tell those who watch.';

-- History stays as it was written; that of a feature goes when the feature has gone (prune).
create or replace function pgcoord.guard_event() returns trigger
language plpgsql as $$
begin
    if tg_op = 'DELETE' and old.feature_id is not null and not exists (select from public.planned_features where id = old.feature_id) then
        return old;
    end if;
    raise exception using
        errcode = 'PC008',
        message = format('event %s is history and stays as it is', old.id),
        hint = 'pgcoord.prune(older_than) removes finished features with their history.';
end $$;
comment on function pgcoord.guard_event() is 'Trigger: refuse (PC008) to change events, or to delete those of a feature that exists.';

create or replace trigger event_change_refuses before update or delete on pgcoord.event
    for each row execute function pgcoord.guard_event();
comment on trigger event_change_refuses on pgcoord.event is 'Events are append-only.';
