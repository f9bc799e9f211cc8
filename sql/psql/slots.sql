select slot,
    case when queue_id is null then 'free' else feature_id || '.' || phase_number end as phase,
    case when length(title) > 16 then left(title, 15) || '…' else title end as title,
    case when ending is not null then 'ending' when external then 'by hand' else status end as state,
    to_char(since, case when since > now() - interval '12 hours' then 'HH24:MI' else 'DD Mon' end) as since,
    left(adw_id, 12) as adw_id, pid, case when draining then 'yes' end as goes
from pgcoord.slots
order by slot;
