-- What the old tables say, whatever types their columns had and whether they had them: each as a view of texts, then
-- phases and features as tables of values.
do $$
declare
    v_table text;
    v_columns text[];
    v_list text;
begin
    for v_table, v_columns in values
        ('phase_queue', array['queue_id', 'parent_issue', 'feature_id', 'phase_number', 'issue_number', 'status', 'depends_on_phase',
            'depends_on_phases', 'phase_data', 'created_at', 'updated_at', 'error_message', 'priority', 'queue_position',
            'ready_timestamp', 'started_timestamp', 'adw_id', 'pr_number', 'current_phase']),
        ('planned_features', array['id', 'item_type', 'title', 'description', 'status', 'priority', 'estimated_hours',
            'github_issue_number', 'tags', 'created_at', 'updated_at', 'completed_at', 'generated_plan', 'workflow_type']),
        ('queue_config', array['config_key', 'config_value']),
        ('webhook_events', array['webhook_id', 'webhook_type', 'adw_id', 'issue_number', 'received_at', 'processed']),
        ('adw_locks', array['issue_number', 'adw_id', 'status', 'created_at'])
    loop
        select string_agg(
            format('%s::text as %I', case when a.attname is null then 'null' else quote_ident(c) end, c)
                || case when c in ('created_at', 'updated_at', 'completed_at', 'ready_timestamp', 'started_timestamp') then
                    format(case when a.attname is null then ', null::timestamptz as %2$I'
                        when a.atttypid in ('timestamp'::regtype, 'timestamptz'::regtype) then ', %1$I::timestamptz as %2$I'
                        else ', pgcoord_v1.moment(%1$I::text) as %2$I' end, c, c || '_read')
                else '' end,
            ', ')
        into v_list
        from unnest(v_columns) as c
            left join pg_attribute as a
                on a.attrelid = to_regclass('pgcoord_v1.' || v_table) and a.attname = c and a.attnum > 0 and not a.attisdropped;
        execute format('create view pgcoord_v1.%I as select %s, %s', v_table || '_text', v_list,
            case when to_regclass('pgcoord_v1.' || v_table) is null then 'null::tid as place where false'
                else format('ctid as place from pgcoord_v1.%I', v_table) end);
        if to_regclass('pgcoord_v1.' || v_table) is not null then
            select string_agg(a.attname, ', ' order by a.attnum) into v_list
            from pg_attribute as a
            where a.attrelid = to_regclass('pgcoord_v1.' || v_table) and a.attnum > 0 and not a.attisdropped
                and a.attname <> all (v_columns);
            insert into pgcoord_v1.decision (kind, name, words)
            select 'no place', v_table, case when v_table in ('webhook_events', 'adw_locks') then 'stays in pgcoord_v1 as it is'
                else 'columns that stay in pgcoord_v1 alone: ' || v_list end
            where v_list is not null;
        end if;
    end loop;
end $$;

create unlogged table pgcoord_v1.feature as
select t.place, pgcoord_v1.whole(t.id) as id, nullif(btrim(t.title), '') as title, t.description,
    coalesce(nullif(btrim(t.item_type), ''), 'feature') as item_type, lower(btrim(t.status)) as status,
    case lower(btrim(t.priority)) when 'critical' then 10 when 'urgent' then 10 when 'high' then 10 when 'low' then 90
        else coalesce(pgcoord_v1.whole(t.priority), 50) end as priority,
    pgcoord_v1.hours(t.estimated_hours) as estimated_hours, pgcoord_v1.whole(t.github_issue_number) as github_issue_number,
    case when nullif(btrim(t.tags), '') is null then '[]' else coalesce(pgcoord_v1.json(t.tags), to_jsonb(t.tags)) end as tags,
    t.created_at_read as created_at, t.updated_at_read as updated_at,
    t.completed_at_read as completed_at, pgcoord_v1.json(t.generated_plan) as plan,
    nullif(btrim(t.workflow_type), '') as workflow_type,
    row_number() over (partition by pgcoord_v1.whole(t.id) order by t.place) > 1 as repeated
from pgcoord_v1.planned_features_text as t;

-- A row that an ADW wrote of itself is no phase: its name is that of the ADW, and it says nothing.
create unlogged table pgcoord_v1.phase as
with again as (select queue_id from pgcoord_v1.phase_queue_text where queue_id is not null group by queue_id having count(*) > 1)
select t.place, t.queue_id as old_queue_id,
    -- A name that no page or log can carry is none (see pgcoord_private.check_queue_id).
    case when t.queue_id is null or t.queue_id !~ '^[^[:space:][:cntrl:]/?#%\\<>"]{1,200}$' then 'v1-row' || translate(t.place::text, '(,)', '--')
        when t.queue_id in (select queue_id from again) then t.queue_id || translate(t.place::text, '(,)', '--')
        else t.queue_id end as queue_id,
    case when t.feature_id is not null then 'feature_id ' || t.feature_id else 'parent_issue ' || coalesce(t.parent_issue, 'null') end as parent_words,
    coalesce(pgcoord_v1.whole(coalesce(t.feature_id, t.parent_issue)), 0) as parent, t.feature_id is not null as names_feature,
    pgcoord_v1.whole(t.phase_number) as phase_number, pgcoord_v1.whole(t.issue_number) as issue_number,
    nullif(lower(btrim(t.status)), '') as status, pgcoord_v1.prerequisites(t.depends_on_phases, t.depends_on_phase) as prerequisites,
    pgcoord_v1.phase_data(t.phase_data) as phase_data, nullif(btrim(t.adw_id), '') as adw_id,
    pgcoord_v1.whole(t.pr_number) as pr_number, t.error_message, coalesce(pgcoord_v1.whole(t.priority), 50) as priority,
    pgcoord_v1.whole(t.queue_position) as queue_position, t.created_at_read as created_at,
    t.updated_at_read as updated_at, t.ready_timestamp_read as ready_timestamp,
    t.started_timestamp_read as started_timestamp, t.current_phase,
    t.queue_id = t.adw_id and coalesce(t.phase_data, '') in ('', '{}', 'null') as is_shadow
from pgcoord_v1.phase_queue_text as t;

create unique index on pgcoord_v1.phase (place);
analyze pgcoord_v1.feature, pgcoord_v1.phase;
