-- The bare floor: the least that a queue with claims on notification can be.
create table public.job (id integer primary key, status text not null);
insert into public.job select n, 'queued' from generate_series(1, 100000) as n;
create index job_queued_idx on public.job (id) where status = 'queued';
analyze public.job
