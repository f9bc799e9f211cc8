"""Statements about the session itself: its actor, its channels, its snapshot, its clock."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

import psycopg

from pgcoord.database._sql import Connection, fetch_value, refusals

WAKE = "pgcoord_wake"


EVENT = "pgcoord_event"


STAND_BY = "pgcoord_stand_by"


PROBE = "pgcoord_probe"


async def act_as(conn: Connection, actor: str, *, for_transaction: bool = False) -> None:
    """Have what is done on *conn* logged as done by *actor*, from now on or in this transaction."""
    await fetch_value(conn, "select set_config('pgcoord.actor', %s, %s)", actor, for_transaction)


async def set_lock_timeout(conn: Connection, seconds: float) -> None:
    """Have statements on *conn* fail (55P03) when they have waited so long for a lock."""
    await fetch_value(conn, "select set_config('lock_timeout', %s, false)", f"{seconds * 1000:.0f}")


async def listen(conn: Connection, channel: str) -> None:
    """Have notifications of `channel` come in on `conn`. A server that only reads refuses."""
    with refusals():
        await conn.execute(f"listen {channel}".encode())


async def notify(conn: Connection, channel: str) -> None:
    """Notify whoever listens to `channel`."""
    await conn.execute(f"notify {channel}".encode())


async def is_pooled(conn: Connection) -> bool:
    """Whether something between us and the server gives out its connections in turn."""
    return bool(await fetch_value(conn, "select pg_backend_pid() <> %s", conn.info.backend_pid))


async def balancer(conn: Connection) -> str | None:
    """The name of pgpool-II where it answers on `conn`; None elsewhere.

    Asked only where the server knows itself by another address, for a server that is asked logs an
    error: Postgres has no `pool_version`.
    """
    address, port = conn.info.hostaddr or None, conn.info.port
    known = await fetch_value(
        conn, "select inet_server_port() = %s and host(inet_server_addr()) = %s", port, address
    )
    if known or (known is None and address is None):
        return None
    try:
        return f"pgpool-II {await fetch_value(conn, 'show pool_version')}"
    except psycopg.errors.UndefinedObject:
        return None


async def now(conn: Connection) -> datetime:
    """The database's clock."""
    at: datetime = await fetch_value(conn, "select clock_timestamp()")
    return at


async def ping(conn: Connection) -> None:
    """Ask the server for a sign of life.

    How long that may take is in the connection's own parameters.
    """
    await conn.execute(b"select")


@asynccontextmanager
async def one_snapshot(conn: Connection) -> AsyncIterator[None]:
    """Have all statements of the block see the database as it is at the first of them."""
    async with conn.transaction():
        await conn.execute(b"set transaction isolation level repeatable read, read only")
        yield
