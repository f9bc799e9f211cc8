select from pgcoord.complete_phase(%s)
