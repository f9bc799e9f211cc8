-- Log-ins of the panel that were ended: their cookies are refused until they expire, also by other servers and after a
-- restart.
create table pgcoord_private.ended_login (
    digest text primary key,
    until timestamptz not null
);
comment on table pgcoord_private.ended_login is 'Log-ins of the panel that somebody has ended, as digests, until their cookies expire.';
