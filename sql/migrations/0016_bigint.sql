-- Numbers that people give are bigint, as drivers send them; sql/functions makes these functions anew.
drop function if exists pgcoord_private.check_feature(integer);
drop function if exists pgcoord_private.check_isolation();
drop function if exists pgcoord.change_feature(integer, jsonb, text);
drop function if exists pgcoord.execute_feature(integer);
drop function if exists pgcoord.feature_object(integer);
drop function if exists pgcoord.forecast(integer[]);
drop function if exists pgcoord.expected_finish(integer[]);
drop function if exists pgcoord.set_priority(text, integer);
drop function if exists pgcoord.cancel_feature(integer, text);
drop function if exists pgcoord.pause(integer, text);
drop function if exists pgcoord.resume(integer);
drop function if exists pgcoord.set_slots(integer);
drop function if exists pgcoord.set_slots(integer, text);
drop function if exists pgcoord.preview(text, integer, text);
-- These return something that every client can read.
drop function if exists pgcoord.give_up_attempt(bigint, text, text);
drop function if exists pgcoord.release_issues();
