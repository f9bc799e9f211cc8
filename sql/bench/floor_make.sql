-- The bare floor: the least that a queue with claims on notification can be.
create table job (id integer primary key, status text not null);
insert into job select n, 'queued' from generate_series(1, 100000) as n;
create index job_queued_idx on job (id) where status = 'queued';
analyze job
