-- It returns whether a feature was passed over.
drop function if exists pgcoord_private.follow_budgets();
-- Both are found when the attempt is stored.
drop function if exists pgcoord_private.check_lock_is_free(text, text);
