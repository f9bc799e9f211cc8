select queue_id from pgcoord_private.claim_phases(%s)
