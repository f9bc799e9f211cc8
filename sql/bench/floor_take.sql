with taken as (
    update job set status = 'ready'
    where id = any (array(
        select id from job where status = 'queued' order by id
        limit 3 - (select count(*) from job where status = 'ready')
        for update skip locked
    ))
    returning id
)
select id, pg_notify('job_claimed', id::text) from taken
