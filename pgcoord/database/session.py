"""Statements about the session itself: its actor, its channels, its snapshot, its clock.

The one rule: none of them reads or writes a table of pgcoord's.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime

import psycopg

from pgcoord.database._sql import Connection, fetch_value, refusals

WAKE = "pgcoord_wake"


EVENT = "pgcoord_event"


STAND_BY = "pgcoord_stand_by"


PROBE = "pgcoord_probe"


async def act_as(conn: Connection, actor: str, *, for_transaction: bool = False) -> None:
    """Log the changes made on *conn* as made by *actor*, until the session or transaction ends."""
    await fetch_value(conn, "select set_config('pgcoord.actor', %s, %s)", actor, for_transaction)


async def set_lock_timeout(
    conn: Connection, seconds: float, *, for_transaction: bool = False
) -> None:
    """Have statements on *conn* fail (55P03) when they have waited so long for a lock."""
    statement = "select set_config('lock_timeout', %s, %s)"
    await fetch_value(conn, statement, f"{seconds * 1000:.0f}", for_transaction)


async def listen(conn: Connection, channel: str) -> None:
    """Receive notifications of *channel* on *conn*. Raises `DatabaseUnusable` on a stand-by."""
    with refusals():
        await conn.execute(f"listen {channel}".encode())


async def notify(conn: Connection, channel: str) -> None:
    """Notify the sessions that listen to *channel*, with an empty payload."""
    await conn.execute(f"notify {channel}".encode())


async def backend_pid(conn: Connection) -> int:
    """Return the pid of the server's process, also where a pooler is between."""
    return int(await fetch_value(conn, "select pg_backend_pid()"))


async def is_pooled(conn: Connection) -> bool:
    """Return whether a pooler between us and the server shares its connections among clients."""
    return bool(await fetch_value(conn, "select pg_backend_pid() <> %s", conn.info.backend_pid))


async def is_same(one: Connection, other: Connection) -> bool:
    """Return whether two connections that are open at once are one session, with no pooler."""
    pids = [await fetch_value(conn, "select pg_backend_pid()") for conn in (one, other)]
    return bool(pids[0] == pids[1] == one.info.backend_pid)


async def balancer(conn: Connection) -> str | None:
    """Return how pgpool-II at the other end of *conn* treats what we read, else None.

    "sends": it may send that to a stand-by, which may be behind; "keeps": it never does. Ask only
    where the server reports another address than ours: Postgres has no `pool_version`, and would
    log an error.
    """
    address, port = conn.info.hostaddr or None, conn.info.port
    pids = await fetch_value(
        conn, "select inet_server_port() = %s and host(inet_server_addr()) = %s", port, address
    )
    if pids or (pids is None and address is None):
        return None
    try:
        # Its version is left out: pgpool answers with an empty result before the one that has it.
        await conn.execute(b"show pool_version")
    except psycopg.errors.UndefinedObject:
        return None
    nodes = await _show(conn, "show pool_nodes")
    has_stand_by = len(nodes.get("role", [])) > 1
    mode = await _show(conn, "pgpool show load_balance_mode")
    if not has_stand_by or mode.get("load_balance_mode") != ["on"]:
        return "keeps"
    for setting, name in (
        ("app_name_redirect_preference_list", "pgcoord listener"),
        ("database_redirect_preference_list", conn.info.dbname),
    ):
        value = await _show(conn, f"pgpool show {setting}")
        for entry in (value.get(setting) or [""])[0].split(","):
            pattern, _, node = entry.strip().rpartition(":")
            with suppress(re.error):
                if node in ("primary", "primary(1.0)") and re.search(pattern, name):
                    return "keeps"
    return "sends"


async def _show(conn: Connection, statement: str) -> dict[str, list[str]]:
    """Ask pgpool-II; return the values of each column of its answer, none of an empty one."""
    cursor = await conn.execute(statement.encode())
    while cursor.description is None and cursor.nextset():
        pass
    if cursor.description is None:
        return {}
    names = [column.name for column in cursor.description]
    rows = await cursor.fetchall()
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


async def now(conn: Connection) -> datetime:
    """Return the time of the database's clock."""
    at: datetime = await fetch_value(conn, "select clock_timestamp()")
    return at


async def ping(conn: Connection) -> None:
    """Execute an empty query, to detect a dead server.

    Blocks as long as the keepalive parameters of the connection allow.
    """
    await conn.execute(b"select")


@asynccontextmanager
async def one_snapshot(conn: Connection) -> AsyncIterator[None]:
    """Execute all statements of the block in one read-only snapshot, taken at the first."""
    async with conn.transaction():
        await conn.execute(b"set transaction isolation level repeatable read, read only")
        yield
