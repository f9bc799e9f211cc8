"""The connections of requests, with a bound on every wait.

The one rule: a lock that somebody holds costs the requests that need it a refusal, and all others
nothing. So a statement waits for a lock for `_LOCK_SECONDS` at most, a client that has gone gives
its connection back, and requests that write share a part of the pool by kind, so that the rest is
always there for reading.
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

# Connections in all, and how many of them requests of one kind may have that write.
_SIZE = 10
_MOST_WRITING = 4

# Seconds for a connection to become free.
_PATIENCE = 5

# Seconds that a statement waits for a lock; and while others of its kind are at work, which may
# wait for the same lock.
_LOCK_SECONDS = 2.0
_LOCK_SECONDS_BUSY = 0.5


class Database:
    """The connection pool of the requests; a dead connection is never given out."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.pool = AsyncConnectionPool(
            with_defaults(dsn),
            min_size=1,
            max_size=_SIZE,
            timeout=_PATIENCE,
            reconnect_timeout=1,  # then it is tried anew when next asked for, not ever more seldom
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
            if kind == "read":
                yield conn
                return
            seconds = _LOCK_SECONDS_BUSY if self._writing[kind].locked() else _LOCK_SECONDS
            async with _lock_timeout(conn, seconds), self._naming_holder(conn, seconds):
                yield conn

    @asynccontextmanager
    async def _turn(self, kind: Kind) -> AsyncIterator[None]:
        """Wait until few enough requests of *kind* are at work."""
        if kind == "read":
            yield
            return
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._writing[kind].acquire()
        except TimeoutError:
            raise TooManyRequests(
                f"{_MOST_WRITING} requests of the same kind ({kind}) wait for the database"
            ) from None
        try:
            yield
        finally:
            self._writing[kind].release()

    @asynccontextmanager
    async def _naming_holder(self, conn: Connection, seconds: float) -> AsyncIterator[None]:
        """Raise a `Locked` of the block with the session that held the lock.

        The server knows only while a session waits: so it is asked before the time-out.
        """
        looking = asyncio.create_task(self._find_holder(conn.info.backend_pid, seconds / 2))
        try:
            yield
        except Locked as error:
            found = looking.result() if looking.done() else None
            raise (error if error.hint else _locked(found, seconds)) from error
        finally:
            looking.cancel()

    async def _find_holder(self, pid: int, after: float) -> str | None:
        """After so many seconds: the session that holds what *pid* waits for, in words."""
        await asyncio.sleep(after)
        try:
            async with self._looking, await connect(self.dsn) as conn:
                return await reads.blocked_by(conn, pid)
        except (psycopg.Error, CoordError):
            return None  # the server may have no connection left: the lock is refused all the same


async def _configure(conn: psycopg.AsyncConnection[Any]) -> None:
    await own_session(conn)
    await session.set_lock_timeout(conn, _LOCK_SECONDS)


@asynccontextmanager
async def _lock_timeout(conn: Connection, seconds: float) -> AsyncIterator[None]:
    """Have the statements of the block wait so long for a lock."""
    if seconds == _LOCK_SECONDS:
        yield
        return
    await session.set_lock_timeout(conn, seconds)
    try:
        yield
    finally:
        if not conn.closed:
            await session.set_lock_timeout(conn, _LOCK_SECONDS)


def _locked(holder: str | None, seconds: float) -> Locked:
    """The refusal after so many seconds of waiting; a statement of pgcoord itself has a hint."""
    return Locked(
        f"somebody has locked what this would change, for over {seconds:g} s:"
        f" {holder or 'who is not known'}; nothing was changed",
        hint="Repeat it later, or end that transaction: select pg_terminate_backend(PROCESS);",
    )


@asynccontextmanager
async def until_disconnected(request: Request) -> AsyncIterator[None]:
    """Cancel the block when the client of *request*, whose body was read, has disconnected.

    Raises `ClientDisconnect` then.
    """
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if gone and not task.uncancel():
            raise ClientDisconnect from None
        raise
    finally:
        watching.cancel()
