select feature_id || '.' || phase_number as phase, attempt as try, to_char(eligible_at, 'HH24:MI:SS') as eligible,
    to_char(claimed_at, 'HH24:MI:SS') as claimed, to_char(started_at, 'HH24:MI:SS') as started,
    to_char(ended_at, 'HH24:MI:SS') as ended, outcome, exit_code as exit
from pgcoord.timeline
where feature_id = :feature;
