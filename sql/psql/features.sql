select id,
    case when length(title) > 22 then left(title, 21) || '…' else title end as title,
    case when paused_at is null then status else 'paused' end as state,
    phases_completed || '/' || total_phases as done,
    nullif(phases_running, 0) as runs, nullif(phases_failed, 0) as failed, nullif(phases_blocked, 0) as blocked
from pgcoord.feature
where status in ('planned', 'in_progress')
order by id;
