-- What takes other arguments now (functions/44_several.sql, 61_overview.sql).
drop function if exists pgcoord_private.endings_of(integer);
drop function if exists pgcoord_private.find_phases(text, text, integer);
