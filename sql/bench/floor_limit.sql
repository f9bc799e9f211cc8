create index job_ready_idx on job (id) where status = 'ready'
