-- A feature that was run again: which one it is a copy of.
alter table public.planned_features add column origin_id integer;
comment on column public.planned_features.origin_id is 'The feature that it is a copy of, which may be gone by now.';
