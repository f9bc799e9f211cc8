insert into planned_features (title) select 'bench' from generate_series(1, %s)
