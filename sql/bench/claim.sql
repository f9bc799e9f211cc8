select queue_id from pgcoord.claim_phases(%s)
