select feature_id || '.' || phase_number as phase,
    case when length(title) > 19 then left(title, 18) || '…' else title end as title,
    case when skipped then 'skipped' else status end || coalesce(' ' || slot, '') as state,
    to_char(since, case when since > now() - interval '12 hours' then 'HH24:MI' else 'DD Mon' end) as since,
    case when length(waiting_for) > 24 then left(waiting_for, 23) || '…' else waiting_for end as waits
from pgcoord.board
where feature_id in (select id from pgcoord.feature where status in ('planned', 'in_progress'));
