-- Ends and the claim after them, as a coordinator records them.
select (claimed).attempt_id from pgcoord_private.record_and_claim(%s, %s) where place is null
