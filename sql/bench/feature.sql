insert into planned_features (title) values ('bench') returning id
