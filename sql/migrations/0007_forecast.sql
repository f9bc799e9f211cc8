-- What the forecast was made of, and is made of anew in sql/functions/60_forecast.sql.
drop function if exists pgcoord_private.remaining(integer[]);
