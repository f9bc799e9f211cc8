-- Features without phases, so that a list of what is open need not look at every feature there ever was.

lock table public.planned_features, public.phase_queue in share row exclusive mode;

create table pgcoord.unqueued (
    feature_id integer primary key references public.planned_features (id) on delete cascade
);
comment on table pgcoord.unqueued is 'Features that have no phases (yet): their plan was not executed.';
comment on column pgcoord.unqueued.feature_id is 'The feature.';
comment on index pgcoord.unqueued_pkey is 'By feature.';

insert into pgcoord.unqueued
select id from public.planned_features as f
where not exists (select from public.phase_queue as p where p.feature_id = f.id);

-- Made anew in sql/functions/61_overview.sql, with more columns.
drop function if exists pgcoord_private.feature_rows(integer[]);
