-- Which feature each row belongs to. Version 1 named a GitHub issue, or nothing (0, for every uploaded request): a row of
-- planned_features that has the issue is the feature, else one is made. Rows without a parent are told apart by their
-- order: a request was queued from its first phase to its last.
create unlogged table pgcoord_v1.member as
with line as (
    select place, parent, names_feature, phase_number,
        row_number() over (order by created_at, queue_position, place) as place_in_line
    from pgcoord_v1.phase
    where not coalesce(is_shadow, false) and phase_number >= 1
), run as (
    select *, case when parent = 0 then count(*) filter (where phase_number = 1 and parent = 0)
        over (order by place_in_line rows unbounded preceding) else 0 end as run
    from line
)
-- A number that comes again without a 1 before it is of another request, queued at the same time.
select place, place_in_line, parent, names_feature and parent <> 0 as names_feature, phase_number, run,
    case when parent = 0 then row_number() over (partition by run, parent, phase_number order by place_in_line) else 1 end as again
from run;

create unlogged table pgcoord_v1.request as
select row_number() over (order by min(place_in_line)) as id, parent, names_feature, run, again, count(*) as rows,
    (array_agg(place order by phase_number, place_in_line))[1] as first_place, null::integer as feature_id, false as is_new
from pgcoord_v1.member
group by parent, names_feature, run, again;

update pgcoord_v1.request as r
set feature_id = coalesce(
    (select f.id from pgcoord_v1.feature as f where r.names_feature and f.id = r.parent limit 1),
    (select min(f.id) from pgcoord_v1.feature as f where f.github_issue_number = r.parent and f.id is not null)
)
where parent <> 0;

-- A number that was meant as a feature's stays one, as long as it leaves room for others.
update pgcoord_v1.request set feature_id = parent, is_new = true
where feature_id is null and names_feature and parent between 1 and 1000000000;

update pgcoord_v1.request as r
set feature_id = taken.highest + fresh.number, is_new = true
from (
        select greatest(0, (select max(id) from pgcoord_v1.feature), (select max(feature_id) from pgcoord_v1.request)) as highest
    ) as taken,
    (select id, row_number() over (order by id)::integer as number from pgcoord_v1.request where feature_id is null) as fresh
where r.id = fresh.id;

-- Of several rows for one phase the one that got furthest is taken, then the newest: what is done is not done again.
create unlogged table pgcoord_v1.chosen as
select m.place, m.place_in_line, r.id as request, r.feature_id, m.phase_number, p.prerequisites, p.status, p.adw_id,
    p.phase_data is not null as has_data, coalesce(f.status = 'cancelled', false) as is_cancelled,
    row_number() over furthest as rank, first_value(p.queue_id) over furthest as in_its_place
from pgcoord_v1.member as m
    join pgcoord_v1.phase as p using (place)
    join pgcoord_v1.request as r
        on (r.parent, r.names_feature, r.run, r.again) = (m.parent, m.names_feature, m.run, m.again)
    left join pgcoord_v1.feature as f on f.id = r.feature_id and not f.repeated
window furthest as (
    partition by r.feature_id, m.phase_number
    order by case p.status when 'completed' then 1 when 'running' then 2 when 'ready' then 3 when 'queued' then 4 else 5 end,
        m.place_in_line desc
);
analyze pgcoord_v1.request, pgcoord_v1.chosen;

-- Phases that wait for themselves: without one that names its own number or a higher there is no circle.
create unlogged table pgcoord_v1.circle as
with recursive backward as (
    select c.feature_id, c.phase_number as dependent, n as prerequisite
    from pgcoord_v1.chosen as c cross join lateral unnest(c.prerequisites) as n
    where c.rank = 1 and n >= c.phase_number
), edge as materialized (
    select c.feature_id, c.phase_number as dependent, n as prerequisite
    from pgcoord_v1.chosen as c cross join lateral unnest(c.prerequisites) as n
    where c.rank = 1 and c.feature_id in (select feature_id from backward)
), reach as (
    select feature_id, dependent, prerequisite, prerequisite as node from backward
    union
    select r.feature_id, r.dependent, r.prerequisite, e.prerequisite
    from reach as r join edge as e on e.feature_id = r.feature_id and e.dependent = r.node
)
select feature_id, dependent as phase_number, array_agg(prerequisite order by prerequisite) as prerequisites
from reach where node = dependent
group by feature_id, dependent;

-- Running phases that keep their slot, the last started first: their end will be reported, since nobody of ours can watch
-- processes that version 1 has started.
create unlogged table pgcoord_v1.adopted as
select c.place
from pgcoord_v1.chosen as c
    join pgcoord_v1.phase as p using (place)
where (select adopts from pgcoord_v1.migration)
    and c.rank = 1 and c.status = 'running' and not c.is_cancelled and c.has_data and c.prerequisites is not null
    and c.adw_id is not null and not exists (
        select from pgcoord_v1.chosen as twin
        where twin.rank = 1 and twin.status = 'running' and twin.adw_id = c.adw_id and twin.place_in_line > c.place_in_line
    )
    and not exists (
        select from unnest(c.prerequisites) as n
        where not exists (
            select from pgcoord_v1.chosen as up
            where up.rank = 1 and up.feature_id = c.feature_id and up.phase_number = n and up.status = 'completed'
        )
    )
order by p.started_timestamp desc nulls last, c.place_in_line desc
limit (select count(*) from pgcoord.slot where not draining);

-- What nobody can be sure of does not start by itself: it is failed, for somebody to look at, and to retry or to skip.
create unlogged table pgcoord_v1.carried as
select c.place, c.place_in_line, c.request, c.feature_id, c.phase_number, c.status as old_status,
    array(
        select n from unnest(c.prerequisites) as n where x.prerequisites is null or n <> all (x.prerequisites) order by n
    ) as prerequisites,
    case when c.status in ('completed', 'failed', 'cancelled') then c.status
        when c.is_cancelled then 'cancelled' when fault is not null then 'failed' when c.status = 'running' then 'running'
        else 'queued' end as status,
    fault,
    (min(c.sequence) over (partition by c.feature_id) / 50000)::integer as batch
from (select *, row_number() over (order by feature_id, phase_number) as sequence from pgcoord_v1.chosen where rank = 1) as c
    join pgcoord_v1.phase as p using (place)
    left join pgcoord_v1.circle as x on x.feature_id = c.feature_id and x.phase_number = c.phase_number
    left join pgcoord_v1.adopted as a on a.place = c.place
    cross join lateral (
        select case
            when c.status in ('completed', 'failed', 'cancelled') or c.is_cancelled then null
            when c.status not in ('queued', 'ready', 'running', 'blocked') then format('version 1 said %s, which is not a status', c.status)
            when not c.has_data then 'its phase_data is no JSON object'
            when c.prerequisites is null then 'its dependencies could not be read'
            when x.prerequisites is not null then format('it waited for itself, by way of phase %s', array_to_string(x.prerequisites, ', '))
            when c.status = 'running' and a.place is null then 'lost in migration' || coalesce(', in its step ' || p.current_phase, '')
        end as fault
    ) as faults;
create index on pgcoord_v1.carried (feature_id, phase_number);
create index on pgcoord_v1.carried (batch);
analyze pgcoord_v1.carried;
