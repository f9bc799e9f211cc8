"""Connections: which database, with which parameters, and what to say when it cannot be reached."""

import asyncio
import os
import re
import select
import sys
import time
from collections.abc import Awaitable
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgcoord.errors import CoordError, DatabaseUnusable

# A dead peer is noticed by the kernel, not by a timer of ours: after 5 + 3 x 2 s of silence, and 5
# s with data in flight.
_KEEPALIVE = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
}
# What psycopg's reading and our statements depend on, whatever role, database or environment say.
# A pool between us and the server keeps these for each client.
_OF_CLIENT = {"DateStyle": "ISO, MDY", "standard_conforming_strings": "on"}
# These stay with the server's session: they would be handed to the next client of a pool that
# changes the session with each transaction. So they are set where the session is ours.
_OF_SESSION = {
    "IntervalStyle": "postgres",
    "search_path": "pg_catalog, pg_temp",
    "extra_float_digits": "1",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "row_security": "on",
    "jit": "off",  # of no use to short statements, and slow where sequential scans are disabled
    "statement_timeout": "0",
    "lock_timeout": "0",
    "transaction_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "session_replication_role": "origin",
}
# The lead goes with its connection: also when our machine has vanished, and, three pings later,
# when our process is frozen.
_OF_LEAD = {
    "idle_session_timeout": "30s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
# From PostgreSQL 17 on; and one that only superusers may set, so it is only where it has to be.
_ONLY_WHERE = {
    "transaction_timeout": "current_setting('transaction_timeout', true) is not null",
    "session_replication_role": (
        "pg_catalog.current_setting('session_replication_role') operator(pg_catalog.<>) 'origin'"
    ),
}
# Classes of SQLSTATE that end or refuse a connection for a while: of the connection, out of
# resources, operator intervention (starting up, shutting down), the system, the server's faults.
_PASSING = ("08", "53", "57", "58", "XX")
# Seconds for which a refused connection is repeated to learn the SQLSTATE of its refusal.
_TRACED_FOR = 2.0
# An @ or a / that libpq takes for the end of a password: what follows would be a host to it, which
# it names when it cannot find it.
_UNQUOTED = re.compile(r"postgres(?:ql)?://[^/?#]*(?:@[^/?#]*|/[^?#]*)@")
# Words of a pooler that refuses the `options` of somebody's own DSN.
_POOLED = (
    "That is a pooler. Leave out the options of the DSN and PGOPTIONS, or give the address of the"
    " server itself."
)


def parameters_of(dsn: str) -> dict[str, Any]:
    """The parameters that a DSN sets, by libpq's names. Raises `DatabaseUnusable`."""
    if _UNQUOTED.match(dsn):
        raise _no_dsn("an @ or a / before the host is written as it is")
    try:
        return conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        # What libpq quotes of it may be the password, in whole or in part; an option never is.
        fault = re.sub(r'(after|:) ".*"', r"\1 …", str(error).strip(), flags=re.DOTALL)
        raise _no_dsn(fault) from None


def _no_dsn(fault: str) -> DatabaseUnusable:
    return DatabaseUnusable(
        f"this is no DSN: {fault}",
        hint="For example postgresql://user@host:5432/name, or host=… dbname=…; in the first"
        " form a % is written %25, a / %2F, an @ %40.",
    )


def with_defaults(dsn: str, *, name: str = "pgcoord") -> str:
    """The DSN in UTF-8, with our timeouts and the name where it does not set them itself.

    Raises `DatabaseUnusable` when it is no DSN.
    """
    given = parameters_of(dsn)
    extra: dict[str, Any] = {"application_name": name, **_KEEPALIVE}
    extra = {key: value for key, value in extra.items() if key not in given}
    return make_conninfo(dsn, client_encoding="UTF8", **extra)


async def connect(
    dsn: str, *, leads: bool = False, name: str = "pgcoord"
) -> psycopg.AsyncConnection[Any]:
    """Connect in autocommit mode, with our settings in force.

    A connection that `leads` is given up by the server when nothing is heard of us for long.
    Raises `DatabaseUnusable` with what to check; waits 5 s at most.
    """
    conninfo = with_defaults(dsn, name="pgcoord listener" if leads else name)
    try:
        conn = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
    except psycopg.OperationalError as error:
        raise await asyncio.to_thread(unusable, error, conninfo) from error
    try:
        await make_ready(conn, leads=leads)
    except BaseException:
        await conn.close()
        raise
    return conn


async def make_ready(
    conn: psycopg.AsyncConnection[Any], *, leads: bool = False, owns_session: bool = False
) -> None:
    """Set in one statement what our statements and their reading depend on.

    With `owns_session` the server's session is known to be this client's alone, as notifications
    arrive; else that is so where no pool is between. Raises `DatabaseUnusable` where a setting is
    not ours to set.
    """
    # For transactions that are begun by name, since those of the session may be a pool's.
    await conn.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
    try:
        pid = None if leads or owns_session else conn.info.backend_pid
        await conn.execute(_set_all(pid, leads=leads))
    except psycopg.Error as error:
        raise _not_ready(error) from error


def own_session(conn: psycopg.AsyncConnection[Any]) -> Awaitable[None]:
    """Make a connection ready whose session is its own: `configure` of a coordinator's pools."""
    return make_ready(conn, owns_session=True)


def _set_all(pid: int | None, *, leads: bool) -> bytes:
    """The statement that sets everything.

    `pid` is the server's process as the client knows it: where it is another, there is a pool, and
    what belongs to the server's session is left alone.
    """
    is_ours = "true" if pid is None else f"pg_catalog.pg_backend_pid() operator(pg_catalog.=) {pid}"
    settings = {**_OF_SESSION, **(_OF_LEAD if leads else {})}
    calls = [_set(name, value) for name, value in _OF_CLIENT.items()]
    for name, value in settings.items():
        where = f"{is_ours} and {_ONLY_WHERE[name]}" if name in _ONLY_WHERE else is_ours
        calls.append(f"case when {where} then {_set(name, value)} end")
    return f"select {', '.join(calls)}".encode()


def _set(name: str, value: str) -> str:
    return f"pg_catalog.set_config('{name}', '{value}', false)"


def _not_ready(error: psycopg.Error) -> DatabaseUnusable:
    if error.sqlstate == "42501":
        return DatabaseUnusable(
            f"a setting of this role or database is not ours to change: {error}",
            hint="Its owner can take it back: alter role … reset session_replication_role,"
            " or alter database … reset session_replication_role.",
        )
    return DatabaseUnusable(f"the connection cannot be prepared: {' '.join(str(error).split())}")


async def differing_settings(
    conn: psycopg.AsyncConnection[Any], *, leads: bool
) -> list[tuple[str, str, str]]:
    """The settings that are not in force on `conn` as we asked: name, asked, in force."""
    asked = {**_OF_CLIENT, **_OF_SESSION, **(_OF_LEAD if leads else {})}
    # What comes to the server by a Unix socket has no timeouts of TCP.
    cursor = await conn.execute(
        "select name, current_setting(name, true) from unnest(%s::text[]) as name"
        " where inet_server_addr() is not null or name not like 'tcp\\_%%'",
        [list(asked)],
    )
    return [
        (name, asked[name], value)
        for name, value in await cursor.fetchall()
        if value is not None and value != asked[name]
    ]


def same_server(dsn: str, conn: psycopg.AsyncConnection[Any]) -> str:
    """The DSN narrowed to the server that `conn` is connected to, out of those it may name."""
    place: dict[str, Any] = {"host": conn.info.host, "port": conn.info.port}
    if conn.info.hostaddr:
        place["hostaddr"] = conn.info.hostaddr
    return make_conninfo(dsn, **place)


def in_any_order(dsn: str) -> str:
    """The DSN with the servers that it names tried in another order each time."""
    if psycopg.pq.version() < 160000:
        return dsn
    return make_conninfo(dsn, load_balance_hosts="random")


def connect_blocking(dsn: str) -> psycopg.Connection[Any]:
    """Connect in autocommit mode, with our settings in force, for the schema's functions.

    Raises `DatabaseUnusable` with what to check; waits 5 s at most.
    """
    conninfo = with_defaults(dsn)
    try:
        conn = psycopg.connect(conninfo, autocommit=True)
    except psycopg.OperationalError as error:
        raise unusable(error, conninfo) from error
    try:
        conn.execute(_set_all(conn.info.backend_pid, leads=False))
    except psycopg.Error as error:
        conn.close()
        raise _not_ready(error) from error
    return conn


def unusable(error: psycopg.OperationalError, conninfo: str | None = None) -> DatabaseUnusable:
    """What a failed connection means, as one line; blocks for 2 s at most.

    With `conninfo` it learns the SQLSTATE of a refusal, which libpq keeps to itself.
    """
    message = " ".join(str(error).split())
    sqlstate = error.sqlstate or (sqlstate_of_refusal(conninfo) if conninfo else None)
    return DatabaseUnusable(
        f"the database cannot be used: {message}",
        hint=_POOLED
        if sqlstate == "08P01" and "startup parameter" in message
        else "Does it run? Check --dsn, DATABASE_URL, or PGHOST, PGPORT, PGUSER and PGDATABASE.",
        sqlstate=sqlstate,
    )


def sqlstate_of_refusal(conninfo: str) -> str | None:
    """The SQLSTATE with which a server refuses to connect; None when it does not refuse.

    libpq tells only the words, in the server's language: so the connection is tried once more, and
    its messages are traced. None, too, where libpq cannot trace (macOS).
    """
    if sys.platform != "linux":
        return None
    with os.fdopen(os.memfd_create("pgcoord"), "rb") as trace:
        conn = pq.PGconn.connect_start(conninfo.encode())
        try:
            conn.trace(trace.fileno())
            _poll(conn, time.monotonic() + _TRACED_FOR)
            conn.untrace()
        finally:
            conn.finish()
        trace.seek(0)
        refused = re.findall(rb'\tErrorResponse\t.*? C "(\w{5})"', trace.read())
    return refused[-1].decode() if refused else None


def _poll(conn: pq.abc.PGconn, deadline: float) -> None:
    """Go on with a connection that was started, until it is there, refused, or late."""
    while (left := deadline - time.monotonic()) > 0 and conn.status != pq.ConnStatus.BAD:
        status = conn.connect_poll()
        if status in (pq.PollingStatus.OK, pq.PollingStatus.FAILED):
            return
        reads = status == pq.PollingStatus.READING
        select.select([conn.socket] if reads else [], [] if reads else [conn.socket], [], left)


def may_pass(error: DatabaseUnusable) -> bool:
    """Whether the server could not be reached, rather than reached and found unusable."""
    unreached = isinstance(error.__cause__, psycopg.OperationalError)
    return unreached and not refused_for_good(error)


def refused_for_good(error: CoordError) -> bool:
    """Whether the server answered and refused, so that trying again is no use.

    08P01 is a pooler's, which refuses what it is asked for.
    """
    sqlstate = error.sqlstate if isinstance(error, DatabaseUnusable) else None
    return sqlstate is not None and (sqlstate == "08P01" or sqlstate[:2] not in _PASSING)
