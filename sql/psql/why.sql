select kind, words, refers_to
from pgcoord.why(coalesce(
    (select queue_id from public.phase_queue
        where feature_id = substring(:'phase' from '^(\d{1,10})[./]\d{1,10}$')::bigint
            and phase_number = substring(:'phase' from '^\d{1,10}[./](\d{1,10})$')::bigint),
    :'phase'
));
