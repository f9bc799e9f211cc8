-- Open attempts are indexed by their id, not by machine: a plan that was made while there were few then finds the one that
-- it asks for by either index, and never reads all that are open.
drop index pgcoord.attempt_alive_idx;
create index attempt_alive_idx on pgcoord.attempt (id) where exited_at is null;
comment on index pgcoord.attempt_alive_idx is 'Attempts whose process is not known to be gone.';
