select to_char(at, case when at > now() - interval '12 hours' then 'HH24:MI:SS' else 'DD Mon' end) as at,
    feature_id || coalesce('.' || phase_number, '') as phase,
    left(coalesce(to_status, replace(kind, '_', ' ')), 16) as what,
    case when length(actor) > 12 then left(actor, 11) || '…' else actor end as who,
    case when length(reason) > 24 then left(regexp_replace(reason, '\s+', ' ', 'g'), 23) || '…' else reason end as reason
from (select * from pgcoord.event order by id desc limit 20) as latest
order by id;
