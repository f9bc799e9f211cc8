-- 0001_tables.sql was edited after databases had run it: those get its constraint as it is now. Elsewhere nothing changes.

do $$
begin
    if pg_get_constraintdef((
        select oid from pg_catalog.pg_constraint
        where conrelid = 'public.phase_queue'::regclass and conname = 'phase_queue_retry_is_queued'
    )) not like '%9999-12-31%' then
        alter table public.phase_queue disable trigger user;
        update public.phase_queue
        set retry_at = case when retry_at > '2000-01-01' then '9999-12-31 23:59:59+00'::timestamptz end
        where retry_at not between '0001-01-02 00:00+00' and '9999-12-31 23:59:59+00';
        alter table public.phase_queue enable trigger user;
        alter table public.phase_queue
            drop constraint phase_queue_retry_is_queued,
            add constraint phase_queue_retry_is_queued check (
                retry_at is null or status = 'queued' and retry_at between '0001-01-02 00:00+00' and '9999-12-31 23:59:59+00'
            );
    end if;
end $$;

comment on column pgcoord.migration.name is
    'File name without its ending; "functions" stands for all of sql/functions, "roles" for the rights of the roles, "schema" for the whole.';
comment on column pgcoord.migration.digest is 'SHA-256 of what was run; for "schema", the number in sql/version.';
