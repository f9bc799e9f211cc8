-- Seconds from then until a coordinator took the lead: it listens already.
select extract(epoch from lead_at - %(since)s)::float8
from pgcoord.coordinator
where lead_at > %(since)s
