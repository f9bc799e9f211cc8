with completed as (
    update public.job set status = 'completed' where id = %s returning id
)
select pg_notify('job_completed', '') from completed
