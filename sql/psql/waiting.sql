select feature_id || '.' || phase_number as phase,
    case when length(title) > 16 then left(title, 15) || '…' else title end as title,
    kind,
    case when length(words) > 35 then left(words, 34) || '…' else words end as words
from pgcoord.waiting;
