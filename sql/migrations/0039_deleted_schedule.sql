-- This returns something that every client can read; sql/functions makes it anew.
drop function if exists pgcoord.delete_schedule(text);
