-- Seconds from then until a coordinator took the lead: it listens already.
select extract(epoch from max(lead_at) - %(since)s::timestamptz)::float8
from pgcoord.coordinator
where lead_at > %(since)s::timestamptz
having count(*) > 0
