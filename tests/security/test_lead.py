"""Only a coordinator leads: a session that takes the lock of the lead is named, not believed."""

import json
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from support.database import Connection, as_user, chosen_binaries, take_lead, upgrade
from support.desk import Desk, address_of

from pgcoord.database.embedded import EmbeddedPostgres

NO_COORDINATOR = "holds the lock of the lead, and is not the coordinator that leads"


@pytest.fixture
def intruder(dsn: str, logins: dict[str, str]) -> Iterator[Connection]:
    """A session of a login without any role."""
    with psycopg.connect(
        as_user(dsn, logins["nobody"]),
        autocommit=True,
        row_factory=dict_row,
        application_name="other work",
    ) as conn:
        yield conn


def pid_of(conn: Connection) -> int:
    return conn.info.backend_pid


def leader_of(conn: Connection) -> dict[str, Any] | None:
    return conn.execute("select * from pgcoord.leader").fetchone()


def blocker_of(conn: Connection) -> dict[str, Any] | None:
    return conn.execute("select pid, words, remedy from pgcoord.lead_blocker").fetchone()


def end_lead(dsn: str) -> None:
    """Lead as a coordinator that then dies."""
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as dead:
        take_lead(dead)
        assert leader_of(dead)
    with psycopg.connect(dsn) as after:  # its session ends a little later than its connection
        after.execute("select pg_advisory_xact_lock(7405, 1)")


@pytest.mark.parametrize("lock", ["pg_advisory_lock", "pg_advisory_lock_shared"])
def test_a_session_that_holds_the_lock_does_not_lead_and_is_named(
    lock: str, dsn: str, conn: Connection, intruder: Connection, logins: dict[str, str]
) -> None:
    end_lead(dsn)
    intruder.execute(f"select {lock}(7405, 1)".encode())
    assert leader_of(conn) is None
    words = f"process {pid_of(intruder)} (user {logins['nobody']}, other work) {NO_COORDINATOR}"
    remedy = f"select pg_terminate_backend({pid_of(intruder)})"
    assert blocker_of(conn) == {"pid": pid_of(intruder), "words": words, "remedy": remedy}
    [found] = conn.execute(
        "select level, words, remedy from pgcoord.checkup() where kind = 'coordinator'"
    ).fetchall()
    assert found == {
        "level": "fail",
        "words": f"no coordinator leads: {words}",
        "remedy": f"end it: {remedy}",
    }
    conn.execute(remedy.encode())
    take_lead(conn)
    assert leader_of(conn)
    assert blocker_of(conn) is None


def test_a_lock_of_another_kind_with_these_numbers_is_no_lead(
    dsn: str, conn: Connection, intruder: Connection
) -> None:
    """A lock by one number of 64 bits is another one than that by these two numbers."""
    end_lead(dsn)
    intruder.execute("select pg_advisory_lock(7405::bigint << 32 | 1)")
    assert leader_of(conn) is None
    assert blocker_of(conn) is None


def test_every_role_sees_the_leader(dsn: str, conn: Connection, logins: dict[str, str]) -> None:
    take_lead(conn)
    for role in ("reader", "client", "coordinator"):
        with psycopg.connect(as_user(dsn, logins[role]), row_factory=dict_row) as other:
            assert leader_of(other)
            assert blocker_of(other) is None


def test_a_process_of_the_server_that_got_the_number_later_does_not_lead(conn: Connection) -> None:
    take_lead(conn)
    conn.execute("update pgcoord.coordinator set backend_start = backend_start - interval '1 s'")
    assert leader_of(conn) is None


@pytest.mark.scale
def test_a_prepared_transaction_that_holds_the_lock_is_named(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path, chosen_binaries())
    try:
        server.start()
        upgrade(server.dsn)
        with psycopg.connect(server.dsn, autocommit=True) as setting:
            setting.execute("alter system set max_prepared_transactions = 1")
        server.stop()
        server.start()
        end_lead(server.dsn)
        with psycopg.connect(server.dsn, autocommit=True, row_factory=dict_row) as conn:
            conn.execute("begin; select pg_advisory_xact_lock(7405, 1)")
            conn.execute("prepare transaction 'left behind'")
            actual = blocker_of(conn)
            assert actual == {
                "pid": None,
                "words": f"the prepared transaction 'left behind' {NO_COORDINATOR}",
                "remedy": "rollback prepared 'left behind'",
            }
            conn.execute(actual["remedy"].encode())
            take_lead(conn)
    finally:
        server.stop()


def readiness(address: str) -> str:
    try:
        with urllib.request.urlopen(f"http://{address}/readyz") as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as refusal:
        return refusal.read().decode()


@pytest.mark.scale
def test_serve_status_and_the_panel_name_the_session_that_keeps_the_lead(
    desk: Desk, dsn: str, conn: Connection, intruder: Connection
) -> None:
    end_lead(dsn)
    intruder.execute("select pg_advisory_lock(7405, 1)")
    serve = desk.start("serve")
    address = address_of(serve)
    remedy = f"select pg_terminate_backend({pid_of(intruder)})"
    serve.until(f"cannot lead: process {pid_of(intruder)} .*")
    said = readiness(address)
    assert "no coordinator leads: process" in said
    assert remedy in said
    status = json.loads(desk.say("status", "--json"))
    assert status["coordinator"] is None
    assert status["lead_blocker"]["remedy"] == remedy
    assert f"end it: {remedy}" in desk.say("status")
    with urllib.request.urlopen(f"http://{address}/") as page:
        assert remedy in page.read().decode()
    doctor = desk.call("doctor")
    assert remedy in " ".join(doctor.stdout.split())
    conn.execute(remedy.encode())
    serve.until("leading")
    assert '"leading"' in readiness(address)
    serve.send(signal.SIGTERM)
    serve.wait()
