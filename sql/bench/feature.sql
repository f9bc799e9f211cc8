insert into public.planned_features (title) values ('bench') returning id
