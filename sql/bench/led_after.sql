-- Seconds from the time "since" until a coordinator took the lead, when it listens already; no row before that.
select extract(epoch from max(lead_at) - %(since)s::timestamptz)::float8
from pgcoord.coordinator
where lead_at > %(since)s::timestamptz
having count(*) > 0
