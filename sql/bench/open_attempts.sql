select count(*) from pgcoord.attempt where exited_at is null
