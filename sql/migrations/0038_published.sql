-- A publication of all tables makes Postgres refuse to delete from one without a key: nothing could be claimed any more.
alter table pgcoord.free_slot replica identity full;
