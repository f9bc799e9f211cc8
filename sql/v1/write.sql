-- Features and phases, by the INSERTs of any client: the triggers see to everything that follows from them. A feature
-- that version 1 cancelled takes phases no more, so it is cancelled last.
select pgcoord_private.set_reason('migrated from version 1');
select set_config('pgcoord.takes_over', 'v1', true);    -- names of version 1 are kept

insert into public.planned_features (
    id, title, description, item_type, priority, estimated_hours, tags, plan, github_issue_number, created_at, updated_at
)
select f.id, coalesce(f.title, format('Feature %s of version 1', f.id)), f.description, f.item_type, f.priority, f.estimated_hours,
    case jsonb_typeof(f.tags) when 'array' then f.tags else jsonb_build_array(f.tags) end,
    pgcoord_v1.plan(f.plan, f.workflow_type), f.github_issue_number,
    coalesce(f.created_at, now()), coalesce(f.updated_at, f.created_at, now())
from pgcoord_v1.feature as f
where f.id is not null and not f.repeated
order by f.id;

insert into public.planned_features (id, title, github_issue_number, created_at, updated_at)
select r.feature_id,
    coalesce('Issue ' || nullif(r.parent, 0) || ': ' || v.title, v.title, 'Issue ' || nullif(r.parent, 0),
        'Request' || to_char(p.created_at, '" of "YYYY-MM-DD HH24:MI'), 'Request of version 1'),
    case when not r.names_feature then nullif(r.parent, 0) end, coalesce(p.created_at, now()), coalesce(p.created_at, now())
from pgcoord_v1.request as r
    join pgcoord_v1.phase as p on p.place = r.first_place
    cross join lateral (select nullif(btrim(p.phase_data ->> 'title'), '') as title) as v
where r.is_new
order by r.feature_id;

-- A phase keeps the issue that another row for it had. Without a place in line it goes behind those that have one, in
-- the order in which it was queued. Some ten thousand at a time, whole features: what a statement has inserted is gone
-- through several times by the triggers, which is fast as long as it fits into memory.
do $$
declare
    v_last bigint := (select greatest(max(queue_position), 0) from pgcoord_v1.phase);
begin
    for v_batch in 0 .. (select coalesce(max(batch), -1) from pgcoord_v1.carried) loop
        insert into public.phase_queue (
            queue_id, feature_id, phase_number, issue_number, status, depends_on_phases, phase_data, adw_id, pr_number,
            error_message, priority, queue_position, created_at, updated_at, ready_timestamp, started_timestamp, finished_timestamp
        )
        select p.queue_id, c.feature_id, c.phase_number, coalesce(p.issue_number, again.issue_number), c.status,
            to_jsonb(c.prerequisites),
            case when p.phase_data is null
                    then jsonb_build_object('title', format('Phase %s', c.phase_number), 'v1_phase_data', old.phase_data)
                when f.workflow_type is not null and p.phase_data ->> 'workflow_type' is null
                    then (p.phase_data || jsonb_build_object('workflow_type', f.workflow_type))
                else p.phase_data end,
            p.adw_id, coalesce(p.pr_number, again.pr_number), nullif(concat_ws(': ', c.fault, p.error_message), ''),
            p.priority, coalesce(p.queue_position, coalesce(v_last, 0) + c.place_in_line),
            coalesce(p.created_at, p.updated_at), coalesce(p.updated_at, p.created_at),
            case when c.status in ('completed', 'failed', 'running') then coalesce(p.ready_timestamp, p.started_timestamp) end,
            case when c.status in ('completed', 'failed', 'running') then p.started_timestamp end,
            case when c.status in ('completed', 'failed', 'cancelled') and c.fault is null
                then coalesce(p.updated_at, p.started_timestamp, p.created_at) end
        from pgcoord_v1.carried as c
            join pgcoord_v1.phase as p using (place)
            left join pgcoord_v1.feature as f on f.id = c.feature_id and not f.repeated
            left join (
                select c.feature_id, c.phase_number, max(p.issue_number) as issue_number, max(p.pr_number) as pr_number
                from pgcoord_v1.chosen as c join pgcoord_v1.phase as p using (place)
                where c.rank > 1
                group by c.feature_id, c.phase_number
            ) as again on again.feature_id = c.feature_id and again.phase_number = c.phase_number
            left join pgcoord_v1.phase_queue_text as old on old.place = c.place and p.phase_data is null
        where c.batch = v_batch
        order by c.feature_id, c.phase_number;
    end loop;
end $$;

select setval('pgcoord.queue_position', highest)
from (select max(queue_position) as highest from public.phase_queue) as line where highest > 0;

-- What version 1 called completed without having had phases would be planned, and could be executed again.
insert into public.phase_queue (queue_id, feature_id, phase_number, status, phase_data, created_at, updated_at, finished_timestamp)
select 'v1-feature-' || f.id, f.id, 1, 'completed', jsonb_build_object('title', f.title), f.created_at, f.updated_at,
    coalesce(f.completed_at, f.updated_at, f.created_at)
from pgcoord_v1.feature as f
where f.status = 'completed' and f.id is not null and not f.repeated
    and not exists (select from pgcoord_v1.carried as c where c.feature_id = f.id);

update public.planned_features as p
set cancelled_at = coalesce(f.completed_at, f.updated_at, now()), cancelled_reason = 'cancelled in version 1'
from pgcoord_v1.feature as f
where f.id = p.id and not f.repeated and f.status = 'cancelled';

select pgcoord.pause(null, 'paused in version 1')
where exists (
    select from pgcoord_v1.queue_config_text
    where lower(btrim(config_key)) = 'queue_paused' and lower(btrim(config_value)) in ('true', 't', '1', 'yes', 'on')
);
select pgcoord_private.set_reason(null);

-- Where each came from, in its history.
insert into pgcoord.event (kind, feature_id, actor, reason)
select 'feature_migrated', f.id, pgcoord_private.actor(),
    format('row %s of planned_features of version 1%s', f.id, ', ' || f.status)
from pgcoord_v1.feature as f where f.id is not null and not f.repeated
union all
select 'feature_migrated', r.feature_id, pgcoord_private.actor(),
    format('made for %s of phase_queue of version 1 with %s', pgcoord_private.counted(r.rows, 'row', 'rows'), p.parent_words)
from pgcoord_v1.request as r join pgcoord_v1.phase as p on p.place = r.first_place
where r.is_new;

insert into pgcoord.event (kind, feature_id, phase_number, queue_id, actor, reason)
select 'phase_migrated', c.feature_id, c.phase_number, p.queue_id, pgcoord_private.actor(),
    format('row %s of phase_queue of version 1: %s, phase %s, %s', coalesce(p.old_queue_id, p.queue_id), p.parent_words, p.phase_number,
        coalesce(c.old_status, 'without a status'))
from pgcoord_v1.carried as c join pgcoord_v1.phase as p using (place);
