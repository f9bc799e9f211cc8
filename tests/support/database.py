"""What tests do with a database: make one, add work to it, claim and start it, read it."""

import itertools
import os
import re
import signal
import subprocess
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

from pgcoord.database import schema
from pgcoord.database.embedded import Binaries, EmbeddedPostgres, find_binaries

Connection = psycopg.Connection[dict[str, Any]]

WORKFLOW = {
    "name": "work",
    "default": True,
    "reports": False,
    "max_attempts": 1,
    "retry_delay_seconds": 10,
    "retry_lost": False,
    "timeout_seconds": None,
}

# The table in docs/design.md, section 4: written here, not read from the program under test.
MOVES = {
    "queued": {"ready", "completed", "blocked", "cancelled"},
    "ready": {"running", "completed", "failed", "cancelled", "queued"},
    "running": {"completed", "failed", "cancelled", "queued"},
    "blocked": {"queued", "completed", "cancelled"},
    "failed": {"queued", "completed", "cancelled"},
    "cancelled": {"queued", "completed"},
    "completed": set(),
}

ROLES = ("nobody", "reader", "client", "coordinator")

_numbers = itertools.count(1)

# A dropped database waits for its clients, which a test that has just ended may still have: so the
# last few stay. All of them would take 9 MB a test.
_KEPT = 8
_made: deque[str] = deque()


def make_database(server: str, template: str) -> str:
    """Copy a database and return the copy's DSN; it goes when some more tests have run."""
    with psycopg.connect(server, autocommit=True) as admin:
        while len(_made) >= _KEPT:
            drop_database(admin, _made.popleft())
        _made.append(copy_database(admin, template))
    return make_conninfo(server, dbname=_made[-1])


def copy_database(admin: psycopg.Connection[tuple[Any, ...]], template: str) -> str:
    """Copy a database and return the copy's name."""
    name = f"pgcoord_test_{os.getpid()}_{next(_numbers)}"
    # file_copy: 25 ms; the strategy came with Postgres 15
    strategy = sql.SQL("strategy file_copy" if admin.info.server_version >= 150000 else "")
    admin.execute(
        sql.SQL("create database {} template {} {}").format(
            sql.Identifier(name), sql.Identifier(template), strategy
        )
    )
    return name


def drop_databases(admin: psycopg.Connection[tuple[Any, ...]]) -> None:
    """Drop the copies that are still there."""
    while _made:
        drop_database(admin, _made.popleft())


def drop_database(admin: psycopg.Connection[tuple[Any, ...]], name: str) -> None:
    admin.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


def upgrade(dsn: str, *, roles: bool = False) -> list[str]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        return schema.upgrade(conn, roles=roles)


def as_user(dsn: str, login: str) -> str:
    """The DSN for one of `logins`."""
    return make_conninfo(dsn, user=login, password="secret")


def take_lead(
    conn: Connection, *workflows: dict[str, Any], pools: Sequence[dict[str, Any]] = ()
) -> int:
    """Lead on `conn` as a coordinator would, and return the epoch."""
    row = conn.execute(
        "select epoch from pgcoord_private.lead('here', 1, '0', '/runs', %s, 0, %s)",
        [Jsonb(list(workflows) or [WORKFLOW]), Jsonb(list(pools))],
    ).fetchone()
    assert row
    return int(row["epoch"])


def add_feature(conn: Connection, phases: dict[int, list[int]], **columns: Any) -> int:
    """Insert a feature whose phases depend as `phases` says, and return its id."""
    row = conn.execute("insert into planned_features (title) values ('a') returning id").fetchone()
    assert row
    for number, prerequisites in phases.items():
        add_phase(conn, row["id"], number, prerequisites, **columns)
    return int(row["id"])


def add_phase(
    conn: Connection, feature: int, number: int, depends_on: list[int] | None = None, **columns: Any
) -> str:
    """Insert a phase as any client would, and return its queue_id."""
    values = {
        "feature_id": feature,
        "phase_number": number,
        "depends_on_phases": Jsonb(depends_on or []),
        **columns,
    }
    row = conn.execute(
        sql.SQL("insert into phase_queue ({}) values ({}) returning queue_id").format(
            sql.SQL(", ").join(map(sql.Identifier, values)),
            sql.SQL(", ").join(sql.Placeholder() * len(values)),
        ),
        list(values.values()),
    ).fetchone()
    assert row
    return str(row["queue_id"])


def claim(conn: Connection, epoch: int) -> list[str]:
    """Claim what can be claimed; return the queue_ids."""
    rows = conn.execute("select queue_id from pgcoord_private.claim_phases(%s)", [epoch]).fetchall()
    return [row["queue_id"] for row in rows]


def start(conn: Connection, epoch: int, queue_id: str) -> None:
    """Record that the process of a claimed phase was started."""
    conn.execute(
        "select pgcoord_private.start_phase(%s, id, 1, 'then') from pgcoord.attempt"
        " where queue_id = %s and ended_at is null",
        [epoch, queue_id],
    )


def statuses(conn: Connection, feature: int | None = None) -> dict[int, str]:
    """The status of each phase by number (of one feature, or of all when there is one)."""
    rows = conn.execute(
        "select phase_number, status from phase_queue"
        " where %(id)s::integer is null or feature_id = %(id)s order by phase_number",
        {"id": feature},
    ).fetchall()
    return {row["phase_number"]: row["status"] for row in rows}


@contextmanager
def refused(sqlstate: str, *words: str) -> Iterator[None]:
    """Expect the statement to fail with *sqlstate*, a hint, and each of *words* in its message."""
    with pytest.raises(psycopg.Error) as caught:
        yield
    assert caught.value.sqlstate == sqlstate, caught.value
    assert caught.value.diag.message_hint or not sqlstate.startswith("PC")
    for each in words:
        assert each in str(caught.value)


def one(conn: Connection, statement: str, *values: object) -> dict[str, Any]:
    """The first row of *statement*, which has to return one."""
    row = conn.execute(statement.encode(), values).fetchone()
    assert row
    return row


def force(conn: Connection, statement: str, *values: object) -> None:
    """Execute *statement* with no trigger firing: what nobody could write, as a test needs it."""
    with conn.transaction():
        conn.execute("set local session_replication_role = replica")
        conn.execute(statement.encode(), values)


def phase(conn: Connection, queue_id: str) -> dict[str, Any]:
    return one(conn, "select * from phase_queue where queue_id = %s", queue_id)


def slots(conn: Connection) -> dict[int, bool]:
    """The slots, and whether each is draining."""
    rows = conn.execute("select number, draining from pgcoord.slot order by number").fetchall()
    return {row["number"]: row["draining"] for row in rows}


def why(conn: Connection, queue_id: str) -> list[str]:
    """The reasons why a phase does not run, without the note that it has no prompt."""
    found = conn.execute("select words from pgcoord.why(%s) where kind <> 'empty'", [queue_id])
    return [row["words"] for row in found]


READ = """
    select sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0))::integer as rows
    from pg_stat_xact_user_tables"""


def rows_read(conn: Connection, statement: str, *values: object) -> int:
    """The rows of tables that *statement* reads, which counts what it does, not how long."""
    with conn.transaction():
        before = conn.execute(READ).fetchone()
        conn.execute(statement.encode(), values)
        after = conn.execute(READ).fetchone()
    assert before
    assert after
    return int(after["rows"] or 0) - int(before["rows"] or 0)


def attempt_of(conn: Connection, queue_id: str) -> dict[str, Any]:
    """The latest attempt of a phase."""
    return one(
        conn,
        "select * from pgcoord.attempt where queue_id = %s order by number desc limit 1",
        queue_id,
    )


def find_test_binaries() -> Binaries:
    """The Postgres whose tools the tests use."""
    return chosen_binaries() or find_binaries()


def chosen_binaries() -> Binaries | None:
    """The Postgres in the folder `PGCOORD_TEST_POSTGRES`, such as /usr/lib/postgresql/15/bin."""
    folder = os.environ.get("PGCOORD_TEST_POSTGRES")
    if not folder:
        return None
    return Binaries(Path(folder), int(Path(folder).parent.name))


def has_tools() -> bool:
    """Whether the server under test has its own pg_dump; it refuses what a newer one writes."""
    return (find_test_binaries().directory / "pg_dump").exists()


def tool(name: str, *arguments: str | Path) -> str:
    path = find_test_binaries().directory / name
    if not path.exists():  # a package of a server alone
        path = find_binaries().directory / name
    result = subprocess.run(
        [str(path), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def contents(dsn: str) -> list[str]:
    """Everything that is in a database, as pg_dump writes it: rows, sequences, rights, comments."""
    lines = tool("pg_dump", "-d", dsn).splitlines()
    # A random word is in two lines, so that the text cannot be mixed up with another.
    return [line for line in lines if not re.match(r"\\(un)?restrict ", line)]


def processes_of(embedded: EmbeddedPostgres) -> list[int]:
    """List the server's processes: those that work in its data folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").samefile(embedded.server.data):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def kill_server(embedded: EmbeddedPostgres) -> None:
    for pid in processes_of(embedded):
        with suppress(ProcessLookupError):  # it went with another of them
            os.kill(pid, signal.SIGKILL)
