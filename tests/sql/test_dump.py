"""Dump and restore of a database with work in it, by PostgreSQL's own tools."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg.types.json import Jsonb
from support.coordination import Gate, make_coordinator, running, watching
from support.database import (
    Connection,
    add_feature,
    add_phase,
    claim,
    contents,
    has_tools,
    start,
    take_lead,
    tool,
    upgrade,
)

from pgcoord.database import schema

Restore = Callable[[str, str, Path], None]

pytestmark = pytest.mark.skipif(not has_tools(), reason="this server came without its pg_dump")


def plain(source: str, target: str, folder: Path) -> None:
    tool("pg_dump", "-d", source, "-f", folder / "dump.sql")
    tool("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", target, "-f", folder / "dump.sql")


def custom(source: str, target: str, folder: Path) -> None:
    tool("pg_dump", "-Fc", "-d", source, "-f", folder / "dump")
    tool("pg_restore", "-e", "-d", target, folder / "dump")


def parallel(source: str, target: str, folder: Path) -> None:
    tool("pg_dump", "-Fd", "-j", "2", "-d", source, "-f", folder / "dump")
    tool("pg_restore", "-e", "-j", "2", "-d", target, folder / "dump")


def only_data(source: str, target: str, folder: Path) -> None:
    """Into a database that was upgraded by itself, and emptied of what that puts there."""
    upgrade(target, roles=True)
    with psycopg.connect(target, autocommit=True) as conn:
        conn.execute(
            "truncate pgcoord.migration, pgcoord.shipped, pgcoord.control, pgcoord.pool,"
            " pgcoord.slot, pgcoord.free_slot cascade"
        )
    tool("pg_dump", "-Fc", "-d", source, "-f", folder / "dump")
    tool("pg_restore", "-e", "--data-only", "--disable-triggers", "-d", target, folder / "dump")


WAYS = [
    pytest.param(plain, id="plain"),
    *(
        pytest.param(way, id=way.__name__, marks=pytest.mark.scale)
        for way in (custom, parallel, only_data)
    ),
]


@pytest.fixture
def work(conn: Connection) -> None:
    """Phases in every state, and whatever else is stored."""
    epoch = take_lead(conn)
    conn.execute("select pgcoord.set_slots(5)")
    again = Jsonb({"title": "Tried again", "max_attempts": 2})
    feature = add_feature(conn, {1: [], 2: [], 3: [], 4: []}, phase_data=again)
    for queue_id in claim(conn, epoch):
        start(conn, epoch, queue_id)
    conn.execute("select pgcoord.complete_phase('queue-1-1')")
    conn.execute("select pgcoord_private.end_attempt(2, 1)")  # waits for its retry
    conn.execute("select pgcoord.cancel_phase('queue-1-3', 'no')")  # is being ended
    add_phase(conn, feature, 5, [2, 4])
    add_phase(conn, feature, 6, status="running", adw_id="by hand")
    doomed = add_feature(conn, {1: [], 2: [1], 3: [9]})
    conn.execute("select pgcoord.cancel_phase('queue-2-1', 'no')")
    conn.execute("select pgcoord.pause(%s, 'later')", [doomed])
    conn.execute("select pgcoord.set_slots(1)")  # four drain
    conn.execute("select pgcoord.pause()")


@pytest.mark.usefixtures("work", "logins")
@pytest.mark.parametrize("restore", WAYS)
def test_a_restored_database_equals_the_dumped_one(
    dsn: str, empty: str, tmp_path: Path, restore: Restore
) -> None:
    restore(dsn, empty, tmp_path)
    was = contents(dsn)
    assert len(was) > 1000
    assert contents(empty) == was
    with psycopg.connect(empty, autocommit=True) as conn:
        schema.check_schema(conn)
        assert schema.upgrade(conn) == []


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("restore", WAYS)
def test_a_restored_database_goes_on_where_the_other_was(
    empty: str, dsn: str, tmp_path: Path, restore: Restore
) -> None:
    restore(dsn, empty, tmp_path)
    with psycopg.connect(empty, autocommit=True) as conn:
        new = "insert into planned_features (title) values ('c') returning id"
        assert conn.execute(new).fetchone() == (3,)
        conn.execute("select pgcoord.skip_phase('queue-2-1', 'done')")
        conn.execute("select pgcoord_private.end_attempt(3, 143)")
        rows = conn.execute("select queue_id, status from phase_queue order by 1").fetchall()
        with pytest.raises(psycopg.Error, match="no slot is free"):
            conn.execute(
                "insert into phase_queue (feature_id, phase_number, status)"
                " values (3, 1, 'running')"
            )
    assert dict(rows) == {
        "queue-1-1": "completed",
        "queue-1-2": "queued",
        "queue-1-3": "cancelled",
        "queue-1-4": "running",
        "queue-1-5": "queued",
        "queue-1-6": "running",
        "queue-2-1": "completed",
        "queue-2-2": "queued",
        "queue-2-3": "queued",
    }


@pytest.mark.parametrize(
    ("killed", "outcome"), [(False, "completed"), (True, "lost")], ids=["living", "killed"]
)
async def test_a_process_of_the_dumped_database_is_adopted_by_the_restored_one_or_lost(
    dsn: str, empty: str, tmp_path: Path, killed: bool, outcome: str
) -> None:
    gate = Gate(tmp_path / "gate")
    async with watching(dsn) as watch, running(make_coordinator(dsn, tmp_path)):
        await watch.submit(f"echo >> {tmp_path}/starts; read _ < {gate.path}", ("exit 0", [1]))
        await watch.until_statuses("running", "queued")
        custom(dsn, empty, tmp_path)
        pid = (await watch.one("select pid from pgcoord.attempt"))["pid"]
    if killed:
        os.killpg(pid, signal.SIGKILL)
    async with watching(empty) as watch, running(make_coordinator(empty, tmp_path)):
        if not killed:
            gate.open()
        ended = await watch.until(
            lambda rows: rows[0]["outcome"] is not None,
            "select outcome from pgcoord.attempt order by id",
        )
        await watch.until_statuses(
            *(("completed", "completed") if outcome == "completed" else ("failed", "blocked"))
        )
    assert ended[0]["outcome"] == outcome
    assert (tmp_path / "starts").read_text() == "\n", "it was run again"
