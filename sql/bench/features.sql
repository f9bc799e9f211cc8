insert into public.planned_features (title) select 'bench' from generate_series(1, %s)
