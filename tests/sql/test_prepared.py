"""Prepared transactions (two-phase commit): they cannot insert work; waits for their locks name
them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest
from psycopg.rows import dict_row
from support import wait_until
from support.database import (
    Connection,
    add_feature,
    chosen_binaries,
    one,
    refused,
    statuses,
    take_lead,
    upgrade,
)

from pgcoord.database.embedded import EmbeddedPostgres

NAME = "left behind"
WORDS = "the prepared transaction 'left behind' (user postgres), since "


@pytest.fixture(scope="module")
def prepares(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The DSN of a server that takes prepared transactions, with a feature in its database."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("prepares"), chosen_binaries())
    try:
        server.start()
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            conn.execute("alter system set max_prepared_transactions = 2")
        server.stop()
        server.start()
        upgrade(server.dsn)
        with psycopg.connect(server.dsn, autocommit=True, row_factory=dict_row) as conn:
            add_feature(conn, {1: []})
        yield server.dsn
    finally:
        server.stop()


@pytest.fixture
def conn(prepares: str) -> Iterator[Connection]:
    with psycopg.connect(prepares, autocommit=True, row_factory=dict_row) as conn:
        yield conn


@contextmanager
def prepared(conn: Connection, statement: str) -> Iterator[None]:
    """Leave a transaction that has executed *statement* prepared until the block ends."""
    conn.execute("begin")
    conn.execute(statement.encode())
    conn.execute(f"prepare transaction '{NAME}'".encode())
    try:
        yield
    finally:
        conn.execute(f"rollback prepared '{NAME}'".encode())


def test_a_phase_cannot_come_in_by_a_prepared_transaction(conn: Connection) -> None:
    """Postgres refuses it, as the coordinator is to be notified; nothing of it stays."""
    before = statuses(conn)
    conn.execute("begin")
    conn.execute("insert into phase_queue (feature_id, phase_number) values (1, 2)")
    with refused("0A000", "cannot PREPARE a transaction that has executed LISTEN"):
        conn.execute("prepare transaction 'two phases'")
    assert statuses(conn) == before


def test_a_wait_for_a_feature_names_the_prepared_transaction(conn: Connection) -> None:
    with prepared(conn, "select from planned_features for no key update"):
        conn.execute("set lock_timeout = '50ms'")
        words = "feature 1 is being changed by " + WORDS
        with refused("55P03", words, "or end it: rollback prepared 'left behind'."):
            conn.execute("select pgcoord.pause(1)")


def test_a_coordinator_that_waits_names_the_transaction(conn: Connection, prepares: str) -> None:
    take_lead(conn)
    with (
        psycopg.connect(prepares, autocommit=True) as waiter,
        ThreadPoolExecutor(1) as thread,
        prepared(conn, "select from phase_queue for update"),
    ):
        wait = "select pgcoord_private.await_lock('phase queue-1-1')"
        waiting = thread.submit(waiter.execute, wait)
        waits = b"select from pgcoord.lock_waits where query <> ''"
        wait_until(lambda: conn.execute(waits).rowcount)
        row = one(conn, "select * from pgcoord.lock_waits")
        assert (row["holder"], row["usename"], row["state"], row["query"]) == (
            *(0, "postgres", "prepared"),
            "prepare transaction 'left behind'",
        )
        pid = waiter.info.backend_pid
        blocker = one(conn, "select pgcoord_private.blocked_by(%s) as words", pid)
        assert blocker["words"].startswith(WORDS)
        reason = one(conn, "select * from pgcoord.why('queue-1-1')")
        assert reason["words"].startswith("cannot be claimed: phase queue-1-1 is held by " + WORDS)
        locks = one(conn, "select * from pgcoord.checkup() where kind = 'locks'")
        assert locks["words"].startswith("phase queue-1-1 is held by " + WORDS)
        assert locks["remedy"] == "end that transaction, or: rollback prepared 'left behind'"
    waiting.result()


def test_a_forgotten_prepared_transaction_is_found_though_nobody_waits(conn: Connection) -> None:
    text = one(
        conn,
        "select pg_get_functiondef('pgcoord_private.checkup_transactions()'::regprocedure) as text",
    )["text"]

    def found() -> tuple[str, str, str | None]:
        row = one(conn, "select * from pgcoord.checkup() where kind = 'transactions'")
        return row["level"], row["words"], row["remedy"]

    conn.execute(text.replace("interval '1 min'", "interval '0'").encode())
    try:
        with prepared(conn, "select count(*) from phase_queue"):
            assert found() == ("ok", "none is open for long", None)
        with prepared(conn, "select from phase_queue for update"):
            level, words, remedy = found()
        assert (level, remedy) == ("warn", "end it, or: rollback prepared 'left behind'")
        assert words.startswith("transaction 'left behind' of postgres is prepared for ")
        assert words.endswith(" s, with locks on the queue")
    finally:
        conn.execute(text.encode())
