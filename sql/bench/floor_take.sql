with taken as (
    update public.job set status = 'ready'
    where id = any (array(
        select id from public.job where status = 'queued' order by id
        limit 3 - (select count(*) from public.job where status = 'ready')
        for update skip locked
    ))
    returning id
)
select id, pg_notify('job_claimed', id::text) from taken
