"""A real Postgres for every test: one server a session, a copy of a template database a test.

`PGCOORD_TEST_DSN` names a server to use instead of the embedded one (its user must be allowed to
create databases), `PGCOORD_TEST_POSTGRES` a folder of Postgres binaries to embed.
"""

import itertools
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from support.desk import Desk

from pgcoord.database import schema
from pgcoord.database.embedded import Binaries, EmbeddedPostgres, find_binaries

WORKFLOW = {
    "name": "work",
    "default": True,
    "reports": False,
    "max_attempts": 1,
    "retry_delay_seconds": 10,
    "retry_lost": False,
    "timeout_seconds": None,
}

ROLES = ("nobody", "reader", "client", "coordinator")

Connection = psycopg.Connection[dict[str, Any]]

# A job in the background of a script ignores these, and what it starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

_numbers = itertools.count(1)

# A dropped database waits for its clients, which a test that has just ended may still have: so the
# last few stay. All of them would take 9 MB a test.
_KEPT = 8
_made: deque[str] = deque()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The DSN of a server whose databases are made and dropped at will."""
    given = os.environ.get("PGCOORD_TEST_DSN")
    if given:
        yield given
        return
    with (
        tempfile.TemporaryDirectory(prefix="pgcoord-tests-", dir=_memory()) as folder,
        ExitStack() as end,
    ):
        embedded = EmbeddedPostgres(Path(folder), _binaries())
        end.callback(embedded.stop)
        embedded.start()
        with psycopg.connect(embedded.dsn, autocommit=True) as conn:
            # The databases live as long as the session: nothing has to survive a power cut.
            conn.execute("alter system set fsync = off")
            conn.execute("alter system set max_wal_size = '128MB'")  # on disk, that is
            conn.execute("select pg_reload_conf()")
        yield embedded.dsn


def _memory() -> str | None:
    """A folder that is kept in memory, if there is room: a database is copied there in a third."""
    folder = "/dev/shm"
    roomy = os.path.isdir(folder) and shutil.disk_usage(folder).free > 2**31
    return folder if roomy else None


def find_test_binaries() -> Binaries:
    """The Postgres whose tools the tests use."""
    return _binaries() or find_binaries()


def _binaries() -> Binaries | None:
    folder = os.environ.get("PGCOORD_TEST_POSTGRES")
    if not folder:
        return None
    # Such as /usr/lib/postgresql/15/bin.
    return Binaries(Path(folder), int(Path(folder).parent.name))


def tool(name: str, *arguments: str | Path) -> str:
    done = subprocess.run(
        [str(find_test_binaries().directory / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def contents(dsn: str) -> list[str]:
    """Everything that is in a database, as pg_dump writes it: rows, sequences, rights, comments."""
    lines = tool("pg_dump", "-d", dsn).splitlines()
    # A random word is in two lines, so that the text cannot be mixed up with another.
    return [line for line in lines if not re.match(r"\\(un)?restrict ", line)]


@pytest.fixture(scope="session")
def template(server: str) -> Iterator[str]:
    """The name of a database with the schema and nothing in it."""
    name = f"pgcoord_template_{os.getpid()}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        with psycopg.connect(make_conninfo(server, dbname=name), autocommit=True) as conn:
            schema.upgrade(conn)
        yield name
        while _made:
            _drop_oldest(admin)
        admin.execute(sql.SQL("drop database {}").format(sql.Identifier(name)))


def _drop_oldest(admin: psycopg.Connection[tuple[Any, ...]]) -> None:
    name = sql.Identifier(_made.popleft())
    admin.execute(sql.SQL("drop database if exists {} with (force)").format(name))


def make_database(server: str, template: str) -> str:
    """Copy a database and return the copy's DSN; it goes when some more tests have run."""
    name = f"pgcoord_test_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(server, autocommit=True) as admin:
        while len(_made) >= _KEPT:
            _drop_oldest(admin)
        # file_copy: 25 ms; the strategy came with Postgres 15
        strategy = sql.SQL("strategy file_copy" if admin.info.server_version >= 150000 else "")
        admin.execute(
            sql.SQL("create database {} template {} {}").format(
                sql.Identifier(name), sql.Identifier(template), strategy
            )
        )
    _made.append(name)
    return make_conninfo(server, dbname=name)


@pytest.fixture
def dsn(server: str, template: str) -> str:
    """The DSN of a database of this test's own, with the schema in it."""
    return make_database(server, template)


@pytest.fixture
def empty(server: str, template: str) -> str:
    """The DSN of a database with nothing in it."""
    return make_database(server, "template1")


@pytest.fixture
def conn(dsn: str) -> Iterator[Connection]:
    """An autocommit connection to the test's database; rows are dicts."""
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as conn:
        yield conn


def upgrade(dsn: str, *, roles: bool = False) -> list[str]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        return schema.upgrade(conn, roles=roles)


@pytest.fixture
def logins(dsn: str, conn: Connection) -> Iterator[dict[str, str]]:
    """A login of each role by the role's name, and one without any, `nobody`."""
    upgrade(dsn, roles=True)
    names = {role: f"pgcoord_test_{role}_{conn.info.backend_pid}" for role in ROLES}
    for role, name in names.items():
        conn.execute(sql.SQL("create role {} login password 'secret'").format(sql.Identifier(name)))
        if role != "nobody":
            conn.execute(
                sql.SQL("grant {} to {}").format(
                    sql.Identifier(f"pgcoord_{role}"), sql.Identifier(name)
                )
            )
    yield names
    for name in names.values():
        conn.execute(sql.SQL("drop owned by {} cascade").format(sql.Identifier(name)))
        conn.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


def as_user(dsn: str, login: str) -> str:
    """The DSN for one of `logins`."""
    return make_conninfo(dsn, user=login, password="secret")


@pytest.fixture
def epoch(conn: Connection) -> int:
    """A lead held by `conn`, with the workflow `work` (the default) declared."""
    return take_lead(conn)


def take_lead(conn: Connection, *workflows: dict[str, Any]) -> int:
    """Lead on `conn` as a coordinator would, and return the epoch."""
    row = conn.execute(
        "select epoch from pgcoord.lead('here', 1, '0', '/runs', %s)",
        [Jsonb(list(workflows) or [WORKFLOW])],
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
    rows = conn.execute("select queue_id from pgcoord.claim_phases(%s)", [epoch]).fetchall()
    return [row["queue_id"] for row in rows]


def start(conn: Connection, epoch: int, queue_id: str) -> None:
    """Record that the process of a claimed phase was started."""
    conn.execute(
        "select pgcoord.start_phase(%s, id, 1, 'then') from pgcoord.attempt"
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


@pytest.fixture
def desk(tmp_path: Path, dsn: str) -> Iterator[Desk]:
    """A desk at which the test's database is the one to work with."""
    with closing(Desk(tmp_path, {"DATABASE_URL": dsn})) as desk:
        yield desk


@pytest.fixture
def bare_desk(tmp_path: Path) -> Iterator[Desk]:
    """A desk at which no database is named; an embedded one is stopped in the end."""
    with closing(Desk(tmp_path, {})) as desk:
        yield desk
    if (tmp_path / ".pgcoord").is_dir():
        EmbeddedPostgres(tmp_path / ".pgcoord").stop()
