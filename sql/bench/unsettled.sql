-- Attempts whose end or whose start is still to be recorded by the coordinator.
select count(*)
from pgcoord.attempt
where exited_at is null and (ended_at is not null or started_at is null)
