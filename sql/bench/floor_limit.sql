create index job_ready_idx on public.job (id) where status = 'ready'
