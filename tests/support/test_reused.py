"""A test finds nothing of the one before it, in the database and in the session that both use."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from support.database import (
    Connection,
    add_feature,
    add_phase,
    claim,
    contents,
    drop_database,
    has_tools,
    start,
    take_lead,
)
from support.reused import Reused

# The state of a session that its statements can see. Not its plans: see support/reused.py.
SESSION = """
    select current_user, session_user, current_setting('application_name') as application,
        (select array_agg(name) from pg_settings where setting <> reset_val) as settings,
        (select array_agg(c) from pg_listening_channels() as c) as channels,
        (select count(*) from pg_prepared_statements) as prepared,
        (select count(*) from pg_class where relpersistence = 't') as temporary,
        (select count(*) from pg_cursors where name <> '') as cursors,
        (select count(*) from pg_locks where locktype = 'advisory') as advisory,
        (select count(*) from pg_stat_activity where datname = current_database()
            and backend_type = 'client backend') as sessions"""


OF_THE_DATABASE = "do $$begin execute format('alter database %I {}', current_database()); end$$"


@pytest.fixture
def reused(server: str, template: str) -> Iterator[Reused]:
    with closing(Reused(server, template)) as reused:
        reused.take(0)
        yield reused


def work(conn: Connection) -> None:
    """Write to as many tables as a few calls can."""
    epoch = take_lead(conn)
    feature = add_feature(conn, {1: [], 2: [1]})
    for queue_id in claim(conn, epoch):
        start(conn, epoch, queue_id)
    conn.execute("select pgcoord.complete_phase('queue-1-1')")
    conn.execute("select pgcoord.set_slots(5), pgcoord.pause()")
    conn.execute("select pgcoord.cancel_feature(%s, 'enough')", [feature])


def leave_session(conn: Connection) -> None:
    conn.execute("select set_config('application_name', 'mine', false)")
    conn.execute("set work_mem = '1MB'; set session_replication_role = replica")
    conn.execute("create temporary table mine ()")
    conn.execute("set role pg_monitor")
    conn.execute("listen pgcoord_event; notify pgcoord_event, 'old'")
    conn.execute("select pg_advisory_lock(7)")
    conn.execute("prepare mine as select 1")
    conn.row_factory = psycopg.rows.tuple_row  # type: ignore[assignment]
    conn.prepare_threshold = 0
    conn.execute("select 2")
    conn.add_notify_handler(print)


@pytest.mark.skipif(not has_tools(), reason="this server came without its pg_dump")
def test_a_test_finds_nothing_of_the_one_before(reused: Reused) -> None:
    dsn, new = reused.dsn, contents(reused.dsn)
    session = reused.connect().execute(SESSION).fetchone()
    for _ in range(2):
        conn = reused.connect()
        work(conn)
        assert contents(dsn) != new
        leave_session(conn)
        with psycopg.connect(dsn) as other:
            other.execute("select from planned_features for update")
            reused.take(0)
            assert reused.dsn == dsn
            with pytest.raises(psycopg.OperationalError):
                other.execute("select 1")
        assert contents(dsn) == new
        conn = reused.connect()
        assert conn.execute(SESSION).fetchone() == session
        assert conn.pgconn.notifies() is None
        assert add_feature(conn, {}) == 1
        assert add_phase(conn, 1, 1) == "queue-1-1"
        reused.take(0)


@pytest.mark.skipif("PGCOORD_TEST_DSN" in os.environ, reason="its processes may be elsewhere")
def test_a_session_that_is_slow_to_end_leaves_no_prepared_statement(
    reused: Reused, server: str
) -> None:
    pid = reused.connect().info.backend_pid
    asked = "select query_start from pg_stat_activity where pid = %s"

    def let_go() -> None:
        """Let the other session end once it was waited for with more statements than are few."""
        with psycopg.connect(server, autocommit=True) as admin:
            starts: set[object] = set()
            while len(starts) < 20:
                starts.add(admin.execute(asked, [pid]).fetchone())
        os.kill(other.info.backend_pid, signal.SIGCONT)

    with psycopg.connect(reused.dsn) as other:
        os.kill(other.info.backend_pid, signal.SIGSTOP)
        waiting = threading.Thread(target=let_go)
        waiting.start()
        reused.take(0)
        waiting.join()
        other.close()
    row = reused.connect().execute(SESSION).fetchone()
    assert row
    assert row["prepared"] == 0


@pytest.mark.parametrize(
    "left", ["begin", "begin; select 1 / 0", "copy planned_features to stdout"]
)
def test_a_session_in_the_middle_of_something_is_not_used_again(reused: Reused, left: str) -> None:
    dsn = reused.dsn
    conn = reused.connect()
    conn.execute("insert into planned_features (title) values ('a')")
    before = conn.info.backend_pid
    conn.pgconn.exec_(left.encode())
    reused.take(0)
    conn = reused.connect()
    assert reused.dsn == dsn
    assert conn.info.backend_pid != before
    assert conn.execute("select from planned_features").fetchall() == []
    conn.close()
    assert reused.connect().execute("select 1 as one").fetchall() == [{"one": 1}]


@pytest.mark.parametrize(
    "change",
    [
        "create table mine ()",
        "create schema mine",
        "create type mine as enum ('a')",
        "create policy mine on phase_queue",
        "alter sequence planned_features_id_seq increment 2",
        "alter index pgcoord.attempt_pkey rename to mine",
        "revoke execute on function pg_catalog.pg_notify from public",
        "create or replace view pgcoord.feature as table pgcoord.feature",
        "drop trigger phase_queue_priority_logs on phase_queue",
        "alter table phase_queue disable trigger user",
        "alter table phase_queue alter queue_id set statistics 7",
        "comment on table phase_queue is 'mine'",
        "grant select on phase_queue to public",
        "alter default privileges grant select on tables to public",
        "create publication mine for all tables",
        "select lo_create(7)",
        "analyze planned_features",
        "insert into planned_features (title) select 'a' from generate_series(1, 3000)",
        "update pgcoord.migration set name = name",
        "delete from pgcoord.shipped",
        OF_THE_DATABASE.format("set work_mem = 64"),
        OF_THE_DATABASE.format("set default_transaction_read_only = on"),
        OF_THE_DATABASE.format("connection limit 9"),
    ],
)
def test_a_database_that_cannot_be_cleaned_is_made_anew(reused: Reused, change: str) -> None:
    dsn = reused.dsn
    reused.connect().execute(change.encode())
    reused.take(0)
    assert reused.dsn != dsn
    assert reused.connect().execute("select from planned_features").fetchall() == []


def test_what_a_failed_test_leaves_is_not_used_again(reused: Reused) -> None:
    dsn = reused.dsn
    reused.take(1)
    after = reused.dsn
    assert after != dsn
    reused.take(1)
    assert reused.dsn == after


def test_a_database_that_is_gone_is_made_anew(reused: Reused, server: str) -> None:
    dsn = reused.dsn
    reused.connect().close()
    with psycopg.connect(server, autocommit=True) as admin:
        drop_database(admin, str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]))
    reused.take(0)
    assert reused.dsn != dsn
