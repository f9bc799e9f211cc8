-- What was not carried over just as it was: a row each, for people to read before and after.
-- What hangs on the old tables, and goes where they go.
insert into pgcoord_v1.decision (kind, name, words)
select 'hangs on it', d.name, d.words
from (
    select v.oid::regclass::text as name,
        format('a view of yours on %s: it shows the rows of version 1, which do not change any more', string_agg(distinct o.name, ', ')) as words
    from pgcoord_v1.old_relation as o
        join pg_depend as d on d.refclassid = 'pg_class'::regclass and d.refobjid = to_regclass(format('pgcoord_v1.%I', o.name))
            and d.classid = 'pg_rewrite'::regclass
        join pg_rewrite as r on r.oid = d.objid
        join pg_class as v on v.oid = r.ev_class and v.oid <> d.refobjid
    where o.kind = 'table' and v.relnamespace <> 'pgcoord_v1'::regnamespace
    group by v.oid
    union all
    select c.conname, format('a foreign key of %s: it refers to the rows of pgcoord_v1.%s, not to those of now', c.conrelid::regclass, o.name)
    from pgcoord_v1.old_relation as o
        join pg_constraint as c on c.confrelid = to_regclass(format('pgcoord_v1.%I', o.name)) and c.contype = 'f'
        join pg_class as t on t.oid = c.conrelid and t.relnamespace <> 'pgcoord_v1'::regnamespace
    where o.kind = 'table'
    union all
    select t.tgname, format('a trigger on pgcoord_v1.%s: the tables of now do not have it', o.name)
    from pgcoord_v1.old_relation as o
        join pg_trigger as t on t.tgrelid = to_regclass(format('pgcoord_v1.%I', o.name)) and not t.tgisinternal
    where o.kind = 'table'
) as d
order by 1, 2;

-- Features.
insert into pgcoord_v1.decision (kind, name, words)
select d.kind, d.name, d.words
from pgcoord_v1.feature as f
    left join pgcoord_v1.planned_features_text as t using (place)
    cross join lateral (
        select count(*) as phases, count(*) filter (where c.old_status is null or c.old_status not in ('completed', 'failed', 'cancelled')) as open
        from pgcoord_v1.carried as c where c.feature_id = f.id
    ) as own
    cross join lateral (values
        ('feature', t.id, case when f.id is null then 'its number is none: the row stays behind' when f.repeated then 'there is another of this number: the row stays behind' end),
        ('value', f.id::text, case when f.title is null and f.id is not null then format('had no title, is called ''Feature %s of version 1''', f.id) end),
        ('value', f.id::text, case when btrim(t.priority) <> '' and pgcoord_v1.whole(t.priority) is null
            and lower(btrim(t.priority)) not in ('critical', 'urgent', 'high', 'medium', 'low') then format('priority %s means nothing here: 50', t.priority) end),
        ('value', f.id::text, case when btrim(t.estimated_hours) <> '' and f.estimated_hours is null then format('estimated_hours %s left out', t.estimated_hours) end),
        ('value', f.id::text, case when btrim(t.created_at) <> '' and f.created_at is null then format('created_at %s is not a time', t.created_at) end),
        ('value', f.id::text, case when btrim(t.github_issue_number) <> '' and f.github_issue_number is null
            then format('github_issue_number %s is not a number', t.github_issue_number) end),
        ('plan', f.id::text, case when t.generated_plan is not null and pgcoord_v1.plan(f.plan, null) is null
            then 'its generated_plan is not a list of phases, and stays behind' end),
        ('feature status', f.id::text, case
            when f.repeated or f.id is null then null
            when f.status = 'completed' and own.phases = 0 then 'was completed without phases: got one, completed, that stands for what was done'
            when f.status = 'completed' and own.open > 0 then format('was completed, but %s not: is in progress', pgcoord_private.counted(own.open, 'phase is', 'phases are'))
            when f.status = 'cancelled' and own.open > 0 then format('was cancelled: %s too', pgcoord_private.counted(own.open, 'waiting phase is', 'waiting phases are'))
            when f.status = 'in_progress' and own.phases = 0 then 'was in progress without phases: is planned'
        end)
    ) as d (kind, name, words)
where d.words is not null
order by f.id, d.kind;

insert into pgcoord_v1.decision (kind, name, words)
select 'request', r.feature_id::text, format('%s with %s%s: phases of %s', pgcoord_private.counted(r.rows, 'row', 'rows'), p.parent_words,
    to_char(p.created_at, '", first queued "YYYY-MM-DD HH24:MI'),
    case when r.is_new then 'a feature made for them' when r.names_feature and r.feature_id = r.parent then 'that feature'
        else 'the feature of that issue' end)
from pgcoord_v1.request as r join pgcoord_v1.phase as p on p.place = r.first_place
where not (r.names_feature and r.feature_id = r.parent and not r.is_new)
order by r.id;

insert into pgcoord_v1.decision (kind, name, words)
select 'issue', r.feature_id::text, format('%s planned features have issue %s: the first of them got the phases', n.features, r.parent)
from pgcoord_v1.request as r
    join (select github_issue_number, count(*) as features from pgcoord_v1.feature group by github_issue_number having count(*) > 1) as n
        on n.github_issue_number = r.parent
where not r.is_new and not r.names_feature
order by r.id;

-- Rows of phase_queue that stay behind.
insert into pgcoord_v1.decision (kind, name, words)
select case when p.is_shadow then 'shadow row' else 'phase number' end, p.queue_id,
    case when p.is_shadow then 'an ADW wrote this row of itself: no phase, it stays behind'
        else format('its phase_number is %s, and has to be 1 or more: the row stays behind', coalesce(p.phase_number::text, 'none')) end
from pgcoord_v1.phase as p
where p.is_shadow or coalesce(p.phase_number, 0) < 1
order by p.place;

insert into pgcoord_v1.decision (kind, name, words)
select 'duplicate', p.queue_id, format('phase %s of feature %s once more (%s): %s counts, the row stays behind', c.phase_number, c.feature_id,
    coalesce(c.status, 'without a status'), c.in_its_place)
from pgcoord_v1.chosen as c join pgcoord_v1.phase as p using (place)
where c.rank > 1
order by c.feature_id, c.phase_number, c.place_in_line;

-- Phases that are not what they were.
insert into pgcoord_v1.decision (kind, name, words)
select case
        when a.place is not null then 'adopted' when c.fault like 'lost in migration%' then 'lost'
        when c.old_status is null then 'status' else q.status end,
    p.queue_id,
    case
        when a.place is not null then format('runs on as %s, unsupervised: only a report ends it', p.adw_id)
        when c.fault is not null then c.fault || ': failed, until somebody retries or skips it'
        when c.status = 'cancelled' then format('was %s, its feature was cancelled: cancelled', coalesce(c.old_status, 'without a status'))
        when c.old_status is null then 'had no status: queued'
        when q.status = 'blocked' then format('was %s, waits for a phase that is failed or cancelled: blocked', c.old_status)
        when c.old_status = 'ready' then 'was ready, not started: queued'
        else 'was blocked, but nothing that it depends on is failed: queued'
    end
from pgcoord_v1.carried as c
    join pgcoord_v1.phase as p using (place)
    left join pgcoord_v1.adopted as a on a.place = c.place
    join public.phase_queue as q on q.feature_id = c.feature_id and q.phase_number = c.phase_number
where c.old_status is distinct from q.status or a.place is not null
order by c.feature_id, c.phase_number;

insert into pgcoord_v1.decision (kind, name, words)
select 'dependency', p.queue_id, format('depends on phase %s, which feature %s does not have: it waits', string_agg(d.prerequisite::text, ', ' order by d.prerequisite), p.feature_id)
from pgcoord.dependency as d
    join public.phase_queue as p on p.feature_id = d.feature_id and p.phase_number = d.dependent
where p.status in ('queued', 'blocked')
    and not exists (select from public.phase_queue as up where up.feature_id = d.feature_id and up.phase_number = d.prerequisite)
group by p.queue_id, p.feature_id
order by p.queue_id;

insert into pgcoord_v1.decision (kind, name, words)
select d.kind, p.queue_id, d.words
from pgcoord_v1.phase as p
    join pgcoord_v1.carried as c using (place)
    join pgcoord_v1.phase_queue_text as t on t.place = p.place and (
        p.phase_data is null or p.prerequisites is null or p.queue_id is distinct from p.old_queue_id
        or t.priority is not null and pgcoord_v1.whole(t.priority) is null
        or num_nulls(p.issue_number, p.pr_number, p.queue_position, p.created_at, p.updated_at, p.started_timestamp)
            > num_nulls(t.issue_number, t.pr_number, t.queue_position, t.created_at, t.updated_at, t.started_timestamp)
    )
    cross join lateral (values
        ('phase_data', case when p.phase_data is null then 'no JSON object: kept as text, as phase_data ->> ''v1_phase_data''' end),
        ('dependency', case when p.prerequisites is null and c.fault is null then 'its dependencies could not be read: it has none' end),
        ('value', case when p.queue_id is distinct from p.old_queue_id then format('queue_id %s is another one''s, or none', coalesce(p.old_queue_id, 'null')) end),
        ('value', case when btrim(t.priority) <> '' and pgcoord_v1.whole(t.priority) is null then format('priority %s is not a number: 50', t.priority) end),
        ('value', case when btrim(t.issue_number) <> '' and p.issue_number is null then format('issue_number %s left out', t.issue_number) end),
        ('value', case when btrim(t.pr_number) <> '' and p.pr_number is null then format('pr_number %s left out', t.pr_number) end),
        ('value', case when btrim(t.queue_position) <> '' and p.queue_position is null then format('queue_position %s left out', t.queue_position) end),
        ('value', case when btrim(t.created_at) <> '' and p.created_at is null then format('created_at %s is not a time', t.created_at) end),
        ('value', case when btrim(t.updated_at) <> '' and p.updated_at is null then format('updated_at %s is not a time', t.updated_at) end),
        ('value', case when btrim(t.started_timestamp) <> '' and p.started_timestamp is null
            then format('started_timestamp %s is not a time', t.started_timestamp) end)
    ) as d (kind, words)
where d.words is not null
order by c.feature_id, c.phase_number;

-- The rest.
insert into pgcoord_v1.decision (kind, name, words)
select 'paused', config_key, 'the queue was paused: everything is paused, until somebody resumes it'
from pgcoord_v1.queue_config_text, pgcoord.control
where lower(btrim(config_key)) = 'queue_paused' and control.paused_at is not null;

insert into pgcoord_v1.decision (kind, name, words)
select 'setting', config_key, format('%s of queue_config has no place here', coalesce(config_value, 'null'))
from pgcoord_v1.queue_config_text
where lower(btrim(config_key)) is distinct from 'queue_paused'
order by config_key;

insert into pgcoord_v1.decision (kind, name, words)
select 'webhook', coalesce(webhook_id, webhook_type), format('%s of %s, received %s and never processed', webhook_type,
    coalesce(adw_id, 'issue ' || issue_number, 'nobody'), coalesce(received_at, 'at no time'))
from pgcoord_v1.webhook_events_text
where lower(btrim(processed)) in ('false', 'f', '0')
order by place;

insert into pgcoord_v1.decision (kind, name, words)
select 'lock', issue_number, format('was held by %s (%s); nothing locks issues here', coalesce(adw_id, 'nobody'), coalesce(status, 'no status'))
from pgcoord_v1.adw_locks_text
order by place;
