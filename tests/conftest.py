"""A real Postgres for every test: one server a session, a database as the template a test.

`PGCOORD_TEST_DSN` names a server to use instead of the embedded one (its user must be allowed to
create databases), `PGCOORD_TEST_POSTGRES` a folder of Postgres binaries to embed.
"""

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from support.database import (
    ROLES,
    Connection,
    as_user,
    chosen_binaries,
    drop_databases,
    make_database,
    take_lead,
    upgrade,
)
from support.desk import Desk
from support.guard import guarded
from support.pooler import Pooler, Proxy
from support.reused import Reused

from pgcoord.database import schema
from pgcoord.database.embedded import EmbeddedPostgres

if TYPE_CHECKING:
    from support.serving import Site

# How long an example takes is the machine's affair. The examples are the same every time: what
# turns a test red is a change, not the dice. With PGCOORD_TEST_SEED others are tried each time.
hypothesis.settings.register_profile(
    "any machine",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize="PGCOORD_TEST_SEED" not in os.environ,
)
hypothesis.settings.load_profile("any machine")

pytest_plugins = ["support.timeouts", "support.slurm", "support.cable"]

# A job in the background of a script ignores these, and what it starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


# Fixtures that start more than Python and the server that all tests share: a browser, an engine, a
# Postgres of the test's own. `make test` leaves out the tests that use one.
_EXPENSIVE = frozenset(
    {"browser", "slurm", "own_slurm", "kubernetes", "bare_desk", "make", "own_server", "pair"}
    | {"prepares", "servers"}
)


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use an expensive fixture."""
    for item in items:
        if not _EXPENSIVE.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.scale)


def pytest_collection_finish() -> None:
    """Spare the collector two thousand tests and their modules, which stay until the end."""
    gc.freeze()


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
        guarded(Path(folder)),
        ExitStack() as end,
    ):
        embedded = EmbeddedPostgres(Path(folder), chosen_binaries())
        end.callback(embedded.stop)
        embedded.start()
        with psycopg.connect(embedded.dsn, autocommit=True) as conn:
            # The databases live as long as the session: nothing has to survive a power cut.
            conn.execute("alter system set fsync = off")
            # None of them lives until it would have to be vacuumed.
            conn.execute("alter system set autovacuum_naptime = '1d'")
            conn.execute("alter system set max_wal_size = '128MB'")  # on disk, that is
            conn.execute("select pg_reload_conf()")
        yield embedded.dsn


def _memory() -> str | None:
    """A folder that is kept in memory, if there is room: a database is copied there in a third."""
    folder = "/dev/shm"
    roomy = os.path.isdir(folder) and shutil.disk_usage(folder).free > 2**31
    return folder if roomy else None


@pytest.fixture(scope="session")
def template(server: str) -> Iterator[str]:
    """The name of a database with the schema and nothing in it."""
    name = f"pgcoord_template_{os.getpid()}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        with psycopg.connect(make_conninfo(server, dbname=name), autocommit=True) as conn:
            # As it is from Postgres 15 on; doctor warns where anybody may.
            conn.execute("revoke create on schema public from public")
            schema.upgrade(conn)
        yield name
        drop_databases(admin)
        admin.execute(sql.SQL("drop database {}").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def reused(server: str, template: str) -> Iterator[Reused]:
    with closing(Reused(server, template)) as reused:
        yield reused


@pytest.fixture
def dsn(request: pytest.FixtureRequest, server: str, template: str, reused: Reused) -> str:
    """The DSN of a database with the schema in it, and nothing of another test."""
    # Without `conn`, a test may count sessions and transactions, and all of them are its own.
    if "conn" not in request.fixturenames or request.node.get_closest_marker("own_database"):
        return make_database(server, template)
    reused.take(request.session.testsfailed)
    return reused.dsn


@pytest.fixture
def empty(server: str, template: str) -> str:
    """The DSN of a database with nothing in it."""
    return make_database(server, "template1")


@pytest.fixture
def conn(dsn: str, reused: Reused) -> Iterator[Connection]:
    """An autocommit connection to the test's database; rows are dicts."""
    if dsn == reused.dsn:
        yield reused.connect()
    else:
        with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as conn:
            yield conn


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


@pytest.fixture
def epoch(conn: Connection) -> int:
    """A lead held by `conn`, with the workflow `work` (the default) declared."""
    return take_lead(conn)


@pytest.fixture
async def site(dsn: str, tmp_path: Path) -> AsyncIterator["Site"]:
    """A coordinator that does not lead, and a client of its HTTP server."""
    from support.serving import served  # most tests need nothing of it

    async with served(dsn, tmp_path, leads=False) as site:
        yield site


@pytest.fixture
def client(dsn: str, logins: dict[str, str]) -> Iterator[Connection]:
    """A connection of a login that is a member of pgcoord_client, and of nothing else."""
    with psycopg.connect(
        as_user(dsn, logins["client"]), autocommit=True, row_factory=dict_row
    ) as conn:
        yield conn


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


@pytest.fixture
def pooler(tmp_path: Path, dsn: str) -> Iterator[Pooler]:
    if shutil.which("pgbouncer") is None:
        pytest.skip("pgbouncer is not installed (Debian: apt-get install pgbouncer)")
    pooler = Pooler(tmp_path, dsn)
    try:
        yield pooler
    finally:
        pooler.stop()


@pytest.fixture(params=["pgpool", "haproxy"])
def proxy(request: pytest.FixtureRequest, tmp_path: Path, dsn: str) -> Iterator[Proxy]:
    """A proxy that is not started yet: each, or the one that a test asks for."""
    package = {"pgpool": "pgpool2"}.get(request.param, request.param)
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed (Debian: apt-get install {package})")
    proxy = Proxy(tmp_path, dsn, request.param)
    try:
        yield proxy
    finally:
        proxy.stop()
