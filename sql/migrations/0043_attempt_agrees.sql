-- An attempt that has ended is compared with its phase at the commit, where a statement on the attempt alone has ended it. (A
-- trigger that is deferred cannot be replaced, so it is made here; the body of its function is in
-- sql/functions/52_attempt.sql. The condition leaves out what triggers of phase_queue write, as they move the phase.)
create function pgcoord_private.check_attempt_agrees() returns trigger
language plpgsql as $$
begin
    return null;
end $$;
create constraint trigger attempt_end_agrees after update of outcome on pgcoord.attempt
    deferrable initially deferred
    for each row when (pg_trigger_depth() = 0) execute function pgcoord_private.check_attempt_agrees();

drop trigger if exists attempt_end_guards on pgcoord.attempt;    -- attempt_ending_guards and the one above
drop function if exists pgcoord_private.check_outcome();
drop function if exists pgcoord_private.postpone_attempt(bigint, text);    -- it takes the attempt now
