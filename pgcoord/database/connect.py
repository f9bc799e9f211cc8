"""Connections: which database, with which settings, and the error when it cannot be reached.

The one rule: every connection of pgcoord's is made here, or made ready by `make_ready`.
"""

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

from pgcoord.database import loaders
from pgcoord.errors import CoordError, DatabaseUnusable, message_of

loaders.register()

# The kernel detects a dead peer, without a timer of ours: after 5 + 3 x 2 s of silence, or 5 s with
# data in flight.
_KEEPALIVE = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
}
# psycopg's parsing and our statements depend on these, whatever role, database or environment set.
# A pooler keeps these two for each client.
_OF_CLIENT = {"DateStyle": "ISO, MDY", "standard_conforming_strings": "on"}
# These belong to the server's session. A pooler in transaction mode would pass them on to its next
# client, so we set them only on a session that is ours alone.
_OF_SESSION = {
    "IntervalStyle": "postgres",
    "search_path": "pg_catalog, pg_temp",
    "extra_float_digits": "1",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "row_security": "on",
    "jit": "off",  # useless for short statements, and slow where sequential scans are disabled
    "statement_timeout": "0",
    "lock_timeout": "0",
    "transaction_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "session_replication_role": "origin",
}
# The server ends the lead's connection when our machine has vanished, and, three pings later, when
# our process is frozen.
_OF_LEAD = {
    "idle_session_timeout": "30s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
# The conditions of two settings: one exists from PostgreSQL 17 on; the other needs a superuser, so
# set it only where its value is wrong.
_ONLY_WHERE = {
    "transaction_timeout": "pg_catalog.current_setting('transaction_timeout', true) is not null",
    "session_replication_role": (
        "pg_catalog.current_setting('session_replication_role') operator(pg_catalog.<>) 'origin'"
    ),
}
# Classes of SQLSTATE after which a later connection may succeed: connection exception, insufficient
# resources, operator intervention (starting up, shutting down), system error, internal error.
_PASSING = ("08", "53", "57", "58", "XX")
# The class of those by which a server says that it lacks something.
_SHORT = "53"
# Seconds that the second connection may take that reads the SQLSTATE of a refusal.
_TRACED_FOR = 2.0
# Seconds that the first statement may take: more than any server needs that answers at all.
_MOST_SECONDS_TO_FIRST_ANSWER = 20.0
# An unquoted @ or / in a password: libpq would read the rest of the password as a host name, and
# print it in its error message.
_UNQUOTED = re.compile(r"postgres(?:ql)?://[^/?#]*(?:@[^/?#]*|/[^?#]*)@")
# The advice when a pooler refuses the `options` of the user's DSN.
_POOLED = (
    "That is a pooler. Leave out the options of the DSN and PGOPTIONS, or give the address of the"
    " server itself."
)


def parameters_of(dsn: str) -> dict[str, Any]:
    """Return the parameters that *dsn* sets, by libpq's names.

    Raises `DatabaseUnusable` when *dsn* is not a DSN; the message never contains its password.
    """
    if _UNQUOTED.match(dsn):
        raise _no_dsn("an @ or a / before the host is written as it is")
    try:
        return conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        # A value that libpq quotes may be (part of) the password; an option's name never is.
        fault = re.sub(r'(after|:) ".*"', r"\1 …", str(error).strip(), flags=re.DOTALL)
        raise _no_dsn(fault) from None


def _no_dsn(fault: str) -> DatabaseUnusable:
    return DatabaseUnusable(
        f"this is not a DSN: {fault}",
        hint="For example postgresql://user@host:5432/name, or host=… dbname=…; in the first"
        " form a % is written %25, a / %2F, an @ %40.",
    )


def with_defaults(dsn: str, *, name: str = "pgcoord") -> str:
    """Return *dsn* with UTF-8, and with our timeouts and *name* unless it sets them itself.

    Raises `DatabaseUnusable` when *dsn* is not a DSN.
    """
    parameters = parameters_of(dsn)
    extra: dict[str, Any] = {"application_name": name, **_KEEPALIVE}
    extra = {key: value for key, value in extra.items() if key not in parameters}
    return make_conninfo(dsn, client_encoding="UTF8", **extra)


async def connect(
    dsn: str, *, leads: bool = False, name: str = "pgcoord"
) -> psycopg.AsyncConnection[Any]:
    """Connect in autocommit mode, with our settings in force.

    *leads*: the server closes the connection when this process does not respond for 30 s. Waits 5 s
    at most for a server, and 20 s for its first answer. Raises `DatabaseUnusable`, with a hint what
    to check.
    """
    conninfo = with_defaults(dsn, name="pgcoord listener" if leads else name)
    try:
        conn = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
    except psycopg.OperationalError as error:
        raise await _unusable(error, conninfo) from error
    try:
        async with asyncio.timeout(_MOST_SECONDS_TO_FIRST_ANSWER):
            await make_ready(conn, leads=leads)
    except TimeoutError as error:
        await conn.close()
        raise DatabaseUnusable(
            "the database took a connection, and answered nothing on it for"
            f" {_MOST_SECONDS_TO_FIRST_ANSWER:g} s",
            hint="Is a pooler in front of it whose pool is full? pgcoord needs up to ten"
            " connections (PgBouncer's default_pool_size, pgpool's num_init_children).",
        ) from error
    except BaseException:
        await conn.close()
        raise
    return conn


async def make_ready(
    conn: psycopg.AsyncConnection[Any], *, leads: bool = False, owns_session: bool = False
) -> None:
    """Apply our settings to *conn*, in one statement.

    *owns_session*: the server's session is known to be ours alone, since notifications arrive;
    otherwise the statement finds out whether a pooler is between. Raises `DatabaseUnusable` when
    the role may not change a setting.
    """
    # In each BEGIN, since the default of the session may be that of another client of a pooler.
    await conn.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
    try:
        pid = None if leads or owns_session else conn.info.backend_pid
        await conn.execute(_set_all(pid, leads=leads))
    except psycopg.Error as error:
        raise _not_ready(error) from error


def own_session(conn: psycopg.AsyncConnection[Any]) -> Awaitable[None]:
    """Apply our settings to *conn*, whose session is ours alone; the `configure` of our pools."""
    return make_ready(conn, owns_session=True)


def _set_all(pid: int | None, *, leads: bool) -> bytes:
    """Return the statement that applies all settings.

    *pid*: the server process according to the client. If the statement runs in another process,
    a pooler is between, and the settings of the session stay as they are. None: skip that test.
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
            f"this role may not change a setting that pgcoord needs: {error}",
            hint="Its owner can remove it: alter role … reset session_replication_role,"
            " or alter database … reset session_replication_role.",
        )
    # What a server says when it ends a session, libpq drops if it comes with the end of the log-in.
    ended = {"57P05": "", None: "Perhaps "}.get(error.sqlstate)
    return DatabaseUnusable(
        f"the connection cannot be prepared: {message_of(error)}",
        hint=None
        if ended is None
        else f"{ended}idle_session_timeout ends sessions before this busy machine uses them: alter"
        " role … set idle_session_timeout = '1min', or more.",
    )


async def differing_settings(
    conn: psycopg.AsyncConnection[Any], *, leads: bool
) -> list[tuple[str, str, str]]:
    """Return (name, requested value, actual value) of each of our settings that *conn* lacks."""
    requested = {**_OF_CLIENT, **_OF_SESSION, **(_OF_LEAD if leads else {})}
    # A connection by Unix socket has no TCP timeouts.
    cursor = await conn.execute(
        "select name, current_setting(name, true) from unnest(%s::text[]) as name"
        " where inet_server_addr() is not null or name not like 'tcp\\_%%'",
        [list(requested)],
    )
    return [
        (name, requested[name], value)
        for name, value in await cursor.fetchall()
        if value is not None and value != requested[name]
    ]


def same_server(dsn: str, conn: psycopg.AsyncConnection[Any]) -> str:
    """Return *dsn* with only the server that *conn* is connected to, of those it may list."""
    address: dict[str, Any] = {"host": conn.info.host, "port": conn.info.port}
    if conn.info.hostaddr:
        address["hostaddr"] = conn.info.hostaddr
    return make_conninfo(dsn, **address)


def in_any_order(dsn: str) -> str:
    """Return *dsn* such that libpq tries its servers in random order (before libpq 16: *dsn*)."""
    if psycopg.pq.version() < 160000:
        return dsn
    return make_conninfo(dsn, load_balance_hosts="random")


def connect_blocking(dsn: str) -> psycopg.Connection[Any]:
    """Connect in autocommit mode, with our settings in force; the synchronous `connect`.

    Waits 5 s at most for a server. Raises `DatabaseUnusable`, with a hint what to check.
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


# The socket of an embedded Postgres, in its state folder or elsewhere, as libpq's errors name it.
_EMBEDDED = re.compile(r"/(\.pgcoord/postgres|pgcoord_[0-9a-f]{16})/\.s\.PGSQL")


def unusable(error: psycopg.OperationalError, conninfo: str | None = None) -> DatabaseUnusable:
    """Return a failed connection as `DatabaseUnusable`, with a message of one line.

    With *conninfo*, connect once more to read the SQLSTATE, which libpq does not return; blocks
    for 2 s at most.
    """
    message = message_of(error)
    sqlstate = error.sqlstate
    try:
        sqlstate = sqlstate or (sqlstate_of_refusal(conninfo) if conninfo else None)
    except OSError as lack:  # of descriptors: perhaps the reason, which libpq does not give
        message = f"{message}: {(lack.strerror or str(lack)).lower()}"
    hint = "Does it run? Check --dsn, DATABASE_URL, or PGHOST, PGPORT, PGUSER and PGDATABASE."
    if sqlstate == "08P01" and "startup parameter" in message:
        hint = _POOLED
    elif sqlstate and sqlstate.startswith(_SHORT):
        hint = "It runs, but lacks connections, memory or room on its disk: make some there."
    elif "statement pooling mode" in message:
        hint = (
            "That is PgBouncer in statement mode. Give the address of the server itself, or of a"
            " pool in session mode."
        )
    elif sqlstate is None and _EMBEDDED.search(message):
        hint = "It is embedded: 'pgcoord db start' starts it, if it is down."
    return DatabaseUnusable(f"the database cannot be used: {message}", hint=hint, sqlstate=sqlstate)


async def _unusable(error: psycopg.OperationalError, conninfo: str) -> DatabaseUnusable:
    try:
        return await asyncio.to_thread(unusable, error, conninfo)
    except (RuntimeError, OSError):  # no thread can be started, or no descriptor is left to do so
        return unusable(error)


def sqlstate_of_refusal(conninfo: str) -> str | None:
    """Return the SQLSTATE with which a server refuses a connection; None if it does not refuse.

    libpq returns only the message, in the server's language, so connect with a trace of the
    protocol and read that. None also where libpq cannot trace (macOS). Blocks for 2 s at most.
    Raises `OSError` when no descriptor is left.
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
    """Continue the connection *conn* until it is established, refused, or past *deadline*."""
    while (remaining := deadline - time.monotonic()) > 0 and conn.status != pq.ConnStatus.BAD:
        status = conn.connect_poll()
        if status in (pq.PollingStatus.OK, pq.PollingStatus.FAILED):
            return
        reads = status == pq.PollingStatus.READING
        select.select([conn.socket] if reads else [], [] if reads else [conn.socket], [], remaining)


def may_pass(error: DatabaseUnusable) -> bool:
    """Return whether *error* is that the server was not reached, so that a retry may succeed."""
    unreached = isinstance(error.__cause__, psycopg.OperationalError)
    return unreached and not refused_for_good(error)


def refused_for_good(error: CoordError) -> bool:
    """Return whether the server answered and refused permanently, so that a retry is useless.

    SQLSTATE 08P01 comes from a pooler that refuses a startup parameter.
    """
    sqlstate = error.sqlstate if isinstance(error, DatabaseUnusable) else None
    return sqlstate is not None and (sqlstate == "08P01" or sqlstate[:2] not in _PASSING)
