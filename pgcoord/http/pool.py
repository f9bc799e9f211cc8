"""The connection pool of the HTTP server, with a limit on every wait.

The one rule: a locked row refuses the requests that need it and affects no others. So a statement
waits at most `_LOCK_SECONDS` for a lock, the connection of a client that disconnected is returned,
and requests that write may use only a part of the pool, so that the rest remains for reading.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import psycopg
from psycopg_pool import AsyncConnectionPool, TooManyRequests
from starlette.requests import ClientDisconnect, Request

from pgcoord.database import reads, session
from pgcoord.database._sql import Connection
from pgcoord.database.connect import connect, own_session, with_defaults
from pgcoord.errors import CoordError, Locked

Kind = Literal["read", "change", "report"]

# Connections of the pool, and how many of them one kind of writing requests may use.
_SIZE = 10
_MOST_WRITING = 4

# Seconds to wait for a free connection.
_CONNECTION_TIMEOUT = 5

# Seconds that a statement waits for a lock; the second while all places of its kind are taken,
# perhaps by requests that wait for the same lock.
_LOCK_SECONDS = 2.0
_LOCK_SECONDS_BUSY = 0.5


class Database:
    """The connection pool of the requests; checks each connection before use."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.pool = AsyncConnectionPool(
            with_defaults(dsn),
            min_size=1,
            max_size=_SIZE,
            timeout=_CONNECTION_TIMEOUT,
            reconnect_timeout=1,  # then the next request tries again, instead of a growing back-off
            open=False,
            configure=_configure,
            check=AsyncConnectionPool.check_connection,
            kwargs={"autocommit": True},
        )
        self._writing = {kind: asyncio.Semaphore(_MOST_WRITING) for kind in ("change", "report")}
        self._looking = asyncio.Lock()

    @asynccontextmanager
    async def connection(
        self, actor: str | None = None, *, kind: Kind = "read"
    ) -> AsyncIterator[Connection]:
        """A connection for a request of *kind*; the history names *actor* for its changes.

        Waits 5 s at most. Raises `PoolTimeout` or `TooManyRequests` when none is free, and `Locked`
        when a statement of the block has waited too long for a lock, naming the session that holds
        it.
        """
        async with self._turn(kind), self.pool.connection() as conn:
            if actor is not None:
                await session.act_as(conn, actor)
            busy = kind != "read" and self._writing[kind].locked()
            seconds = _LOCK_SECONDS_BUSY if busy else _LOCK_SECONDS
            async with _lock_timeout(conn, seconds), self._naming_holder(conn, kind, seconds):
                yield conn

    @asynccontextmanager
    async def _turn(self, kind: Kind) -> AsyncIterator[None]:
        """Wait for one of the places of *kind*."""
        if kind == "read":
            yield
            return
        try:
            async with asyncio.timeout(_CONNECTION_TIMEOUT):
                await self._writing[kind].acquire()
        except TimeoutError:
            raise TooManyRequests(
                f"{_MOST_WRITING} requests of the same kind ({kind}) are waiting for the database"
            ) from None
        try:
            yield
        finally:
            self._writing[kind].release()

    @asynccontextmanager
    async def _naming_holder(
        self, conn: Connection, kind: Kind, seconds: float
    ) -> AsyncIterator[None]:
        """Add the session that holds the lock to a `Locked` raised by the block.

        The server knows the holder only while a session waits, so query it before the time-out.
        """
        looking = asyncio.create_task(self._find_holder(conn.info.backend_pid, seconds / 2))
        try:
            yield
        except Locked as error:
            holder = looking.result() if looking.done() else None
            raise (error if error.hint else _locked(holder, kind, seconds)) from error
        finally:
            looking.cancel()

    async def _find_holder(self, pid: int, after: float) -> str | None:
        """After *after* seconds, return the session that blocks the backend *pid*, in words."""
        await asyncio.sleep(after)
        try:
            async with self._looking, await connect(self.dsn) as conn:
                return await reads.blocked_by(conn, pid)
        except (psycopg.Error, CoordError):
            return None  # no connection left, for example: refuse without the holder


async def _configure(conn: psycopg.AsyncConnection[Any]) -> None:
    await own_session(conn)
    await session.set_lock_timeout(conn, _LOCK_SECONDS)


@asynccontextmanager
async def _lock_timeout(conn: Connection, seconds: float) -> AsyncIterator[None]:
    """Set the lock time-out of the statements in the block."""
    if seconds == _LOCK_SECONDS:
        yield
        return
    await session.set_lock_timeout(conn, seconds)
    try:
        yield
    finally:
        if not conn.closed:
            await session.set_lock_timeout(conn, _LOCK_SECONDS)


def _locked(holder: str | None, kind: Kind, seconds: float) -> Locked:
    """Return the error for a lock that was not free within *seconds*."""
    what = "a table that this reads" if kind == "read" else "a row that this changes"
    return Locked(
        f"another session has locked {what}, for over {seconds:g} s:"
        f" {holder or 'its holder is not known'}; nothing was changed",
        hint="Repeat it later, or end that transaction: select pg_terminate_backend(PROCESS), or"
        " rollback prepared.",
    )


@asynccontextmanager
async def until_disconnected(request: Request) -> AsyncIterator[None]:
    """Cancel the block when the client of *request*, whose body was read, has disconnected.

    Raises `ClientDisconnect` then.
    """
    task = asyncio.current_task()
    assert task is not None
    is_gone = False

    async def watch() -> None:
        nonlocal is_gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        is_gone = True
        task.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if is_gone and not task.uncancel():
            raise ClientDisconnect from None
        raise
    finally:
        watching.cancel()
