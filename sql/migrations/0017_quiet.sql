-- Processes that write nothing for long, as far as their workflow says that this means something.
alter table pgcoord.attempt add column quiet_since timestamptz;
comment on column pgcoord.attempt.quiet_since is
    'When its process last wrote something, once that was longer ago than its workflow says is usual; null else.';
