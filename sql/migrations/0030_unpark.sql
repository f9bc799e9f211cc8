-- What takes other arguments now (functions/20_claimable.sql).
drop function if exists pgcoord_private.unpark();
