"""What goes to other servers by logical replication, and what comes from them."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from support import PATIENCE, wait_until
from support.database import (
    Connection,
    add_feature,
    chosen_binaries,
    claim,
    one,
    start,
    statuses,
    take_lead,
    tool,
    upgrade,
)

from pgcoord.database.embedded import EmbeddedPostgres, find_binaries

OPERATING = Path(__file__).parents[2] / "docs" / "operating.md"


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
    actual = conn.execute(
        "select c.oid::regclass::text as name from pg_class as c"
        " where c.relnamespace in ('pgcoord'::regnamespace, 'pgcoord_private'::regnamespace,"
        " 'public'::regnamespace) and c.relkind = 'r' and c.relreplident = 'd'"
        " and not exists (select from pg_index as i where i.indrelid = c.oid and i.indisprimary)"
    ).fetchall()
    assert actual == []


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The DSNs of a server that publishes, and of one that subscribes."""
    found = [
        EmbeddedPostgres(tmp_path_factory.mktemp(name), chosen_binaries())
        for name in ("publishes", "subscribes")
    ]
    try:
        for each in found:
            each.start()
            with psycopg.connect(each.dsn, autocommit=True) as conn:
                conn.execute("alter system set wal_level = logical")
                conn.execute("alter system set wal_retrieve_retry_interval = '100ms'")
            each.stop()
            each.start()
        yield found[0].dsn, found[1].dsn
    finally:
        for each in reversed(found):
            each.stop()


@contextmanager
def database(server: str, name: str) -> Iterator[Connection]:
    """A new database on *server*; its subscriptions end with the block."""
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    with psycopg.connect(
        make_conninfo(server, dbname=name), autocommit=True, row_factory=dict_row
    ) as conn:
        try:
            yield conn
        finally:
            for row in conn.execute(
                "select subname from pg_subscription join pg_database as d on d.oid = subdbid"
                " where d.datname = current_database()"
            ).fetchall():
                name = row["subname"]
                conn.execute(sql.SQL("drop subscription {}").format(sql.Identifier(name)))


def subscribe(conn: Connection, source: Connection, publication: str) -> None:
    # Only what the libpq of an older server knows.
    dsn = make_conninfo(
        host=source.info.host, port=source.info.port, user="postgres", dbname=source.info.dbname
    )
    conn.execute(
        sql.SQL("create subscription {name} connection {dsn} publication {name}").format(
            name=sql.Identifier(publication), dsn=sql.Literal(dsn)
        )
    )


def until(conn: Connection, question: str) -> None:
    wait_until(lambda: one(conn, f"select ({question}) as answer")["answer"], question)


def test_a_copy_can_be_read(servers: tuple[str, str]) -> None:
    with database(servers[0], "work") as work, database(servers[1], "copy") as copy:
        upgrade(work.info.dsn)
        epoch = take_lead(work)
        work.execute("create publication everything for all tables")
        add_feature(work, {1: [], 2: [1]})
        schema = tool("pg_dump", "--schema-only", "--no-publications", f"--dbname={work.info.dsn}")
        subprocess.run(
            [
                find_binaries().directory / "psql",
                *("--quiet", f"--dbname={copy.info.dsn}"),
            ],
            input=schema,
            text=True,
            check=True,
        )
        subscribe(copy, work, "everything")
        until(copy, "select bool_and(srsubstate = 'r') from pg_subscription_rel")
        assert claim(work, epoch) == ["queue-1-1"]
        start(work, epoch, "queue-1-1")
        until(copy, "select status = 'running' from phase_queue where phase_number = 1")
        until(copy, "select started_at is not null from pgcoord.attempt")
        waiting = "select waiting_for from pgcoord.board where phase_number = 2"
        assert one(copy, waiting)["waiting_for"] == "waits for phase 1, running"
        row = one(copy, "select * from pgcoord.checkup() where kind = 'replication'")
        assert row["level"] == "fail"
        assert "nothing of it is run here" in row["words"]
        assert row["remedy"].startswith("leave a copy as it is")


def test_work_arrives_by_replication_as_documented(servers: tuple[str, str]) -> None:
    page = re.search(r"^    create table wish .*?^$", OPERATING.read_text(), re.M | re.S)
    assert page
    table, following = re.split(r"\n    (?=create function)", page[0])
    following, subscription = re.split(r"\n    (?=create subscription)", following)
    assert "publication wishes" in subscription
    with database(servers[0], "shop") as shop, database(servers[1], "queue") as queue:
        upgrade(queue.info.dsn)
        epoch = take_lead(queue)
        for each in (shop, queue):
            each.execute(table.encode())
        shop.execute("insert into wish values (7, 'copied', 'Do it')")
        shop.execute("create publication wishes for table wish")
        queue.execute(following.encode())
        queue.execute("listen pgcoord_wake")
        subscribe(queue, shop, "wishes")
        until(queue, "select count(*) = 1 from phase_queue")
        assert [each.channel for each in queue.notifies(timeout=PATIENCE, stop_after=1)]
        shop.execute("insert into wish values (8, 'replicated', 'Do it')")
        until(queue, "select count(*) = 2 from phase_queue")
        assert [each.channel for each in queue.notifies(timeout=PATIENCE, stop_after=1)]
        assert claim(queue, epoch) == ["queue-7-1", "queue-8-1"]
        level = "select level from pgcoord.checkup() where kind = 'replication'"
        assert one(queue, level)["level"] == "ok"


def test_phases_replicated_past_the_triggers_are_reported(servers: tuple[str, str]) -> None:
    with database(servers[0], "plain") as plain, database(servers[1], "past") as past:
        upgrade(past.info.dsn)
        plain.execute("create table planned_features (id integer primary key, title text)")
        plain.execute(
            "create table phase_queue"
            " (queue_id text primary key, feature_id integer, phase_number integer)"
        )
        plain.execute("create publication phases for table planned_features, phase_queue")
        subscribe(past, plain, "phases")
        plain.execute("insert into planned_features values (1, 'a')")
        plain.execute("insert into phase_queue values ('queue-1-1', 1, 1)")
        until(past, "select count(*) = 1 from planned_features")
        row = one(past, "select * from pgcoord.checkup() where kind = 'replication'")
        assert (row["level"], row["words"].split(",")[0]) == (
            "fail",
            "a subscription replicates into phase_queue and planned_features",
        )
        assert statuses(past) == {}
