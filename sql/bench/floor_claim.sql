with claimed as (
    update public.job set status = 'ready'
    where id = (select id from public.job where status = 'queued' order by id limit 1 for update skip locked)
    returning id
)
select pg_notify('job_claimed', id::text) from claimed
