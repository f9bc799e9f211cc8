"""What goes to other servers by logical replication, and what comes from them."""

from support.database import Connection, add_feature, claim, one, start, take_lead


def test_work_goes_on_while_all_tables_are_published(conn: Connection) -> None:
    conn.execute("create publication everything for all tables")
    epoch = take_lead(conn)
    one(conn, "select pgcoord.set_slots(2)")
    add_feature(conn, {1: [], 2: [1]})
    assert claim(conn, epoch) == ["queue-1-1"]
    start(conn, epoch, "queue-1-1")
    one(conn, "select pgcoord.complete_phase('queue-1-1')")
    one(conn, "select pgcoord.set_slots(0)")


def test_every_table_can_be_published(conn: Connection) -> None:
    """Postgres refuses UPDATE and DELETE of one that has neither a key nor another identity."""
    found = conn.execute(
        "select c.oid::regclass::text as name from pg_class as c"
        " where c.relnamespace in ('pgcoord'::regnamespace, 'pgcoord_private'::regnamespace,"
        " 'public'::regnamespace) and c.relkind = 'r' and c.relreplident = 'd'"
        " and not exists (select from pg_index as i where i.indrelid = c.oid and i.indisprimary)"
    ).fetchall()
    assert found == []
