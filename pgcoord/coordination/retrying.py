"""Statements that are repeated until the database has executed them, on pooled connections.

Two rules. A connection on which a statement failed unexpectedly is closed, never given back: what
psycopg believes of it (which statements the server has prepared) may be wrong from then on. And
nobody waits long for a lock on a pooled connection: who must wait does so elsewhere (locks.py).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from pgcoord.backoff import Backoff
from pgcoord.coordination.locks import LockWaits
from pgcoord.database import claims
from pgcoord.database import connect as database
from pgcoord.database._sql import Connection
from pgcoord.database.rows import Assignment
from pgcoord.errors import AnotherLeads, CoordError, DatabaseUnusable, Locked

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# What goes with its connection: on another one the same statement may succeed. The last two mean
# that psycopg and the server disagree on which statements are prepared.
LOST_CONNECTION = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    PoolTimeout,
    psycopg.errors.InvalidSqlStatementName,
    psycopg.errors.DuplicatePreparedStatement,
)


# Milliseconds that a statement on a pooled connection waits for a lock: others need the connection.
_LOCK_TIMEOUT = 250


class Stopped(Exception):
    """The coordinator was stopped before the database had executed a statement."""


@dataclass(frozen=True)
class Fact:
    """Something that happened to an attempt and is to be recorded."""

    attempt: Assignment
    words: str

    @property
    def attempt_id(self) -> int:
        """The attempt."""
        return self.attempt.attempt_id

    def __str__(self) -> str:
        return f"{self.attempt} {self.words}"


class Retrying:
    """Executes statements on the server of the current session, until the coordinator is stopped.

    `interruptions` counts the failures after which something was tried again, `locks` are the waits
    for locks of others on the current session's server.
    """

    def __init__(self, stopping: asyncio.Event) -> None:
        self.interruptions = 0
        self._stopping = stopping
        self.locks: LockWaits
        self._connected = asyncio.Event()
        self._finding = asyncio.Lock()
        self._pool: AsyncConnectionPool

    @property
    def is_stopping(self) -> bool:
        """Whether the coordinator is being stopped."""
        return self._stopping.is_set()

    @asynccontextmanager
    async def connected(self, server: str) -> AsyncIterator[None]:
        """Execute statements on *server* (a DSN) until the block ends."""
        # Without a check at check-out, which would cost a round trip each: a statement that finds
        # its connection dead is executed again.
        self._pool = AsyncConnectionPool(
            database.with_defaults(server),
            name="pgcoord",
            min_size=1,
            max_size=8,
            timeout=5,
            open=False,
            kwargs={"autocommit": True},
            configure=_bound_session,
        )
        self.locks = LockWaits(server)
        try:
            await self._pool.open()
            self._connected.set()
            yield
        finally:
            self._connected.clear()
            await self.locks.close()
            await self._pool.close(timeout=0.1)

    async def execute(
        self,
        statement: Callable[[Connection], Awaitable[Result]],
        fact: Fact | None = None,
    ) -> Result:
        """Run *statement*, retrying with back-off while it fails for reasons that may pass.

        *statement* must be idempotent. Where it records a *fact* that somebody's lock keeps from
        being recorded, that is shown to people. Raises `Stopped` when the coordinator is stopped
        first: whoever starts next finds the same in the folder of the run.
        """
        backoff = Backoff()
        noted = missed = False
        while True:
            await self.unless_stopped(self._connected.wait())
            try:
                async with self._pool.connection() as conn:
                    result = await _closing_on_error(conn, statement)
                    if fact and noted:
                        await _closing_on_error(
                            conn, partial(claims.forget_unrecorded, attempt_id=fact.attempt_id)
                        )
                    return result
            except Locked as error:
                lock = await self._find_lock(fact, far=missed)
                missed = lock is None
                if lock:
                    noted = True
                    await self._await_lock(lock, fact)
                else:
                    await self._pause_unless_stopping(backoff, error, fact)
            except (DatabaseUnusable, *LOST_CONNECTION) as error:
                await self._pause_unless_stopping(backoff, error, fact)

    async def _find_lock(self, fact: Fact | None, *, far: bool) -> str | None:
        """What keeps a statement from being executed; note it where that is a *fact*."""
        try:
            # One at a time, or they would find each other's locks.
            async with self._finding, self._pool.connection() as conn:
                lock = await claims.find_lock(conn, fact.attempt_id if fact else None, far=far)
                if lock and fact:
                    await claims.note_unrecorded(conn, fact.attempt_id, fact.words, lock)
                return lock
        except (CoordError, psycopg.Error) as error:
            logger.debug("what is locked is not found out: %s", error)
            return None

    async def _await_lock(self, lock: str, fact: Fact | None) -> None:
        """Wait until nobody holds *lock*. Raises `Stopped`."""
        if not self.is_stopping:
            logger.info("%swaiting for %s", f"{fact}: " if fact else "", lock)
            await self.unless_stopped(self.locks.until_free(lock))
        if self.is_stopping:
            raise Stopped(f"it needs {lock}, held by {await self.locks.holder_of(lock)}")

    async def _pause_unless_stopping(
        self, backoff: Backoff, error: Exception, fact: Fact | None
    ) -> None:
        if self.is_stopping:
            raise Stopped(one_line(error)) from error
        await self.pause(backoff, error, f"{fact}, not recorded yet: " if fact else "")

    async def pause(self, backoff: Backoff, error: Exception, subject: str = "") -> None:
        """Log *error*, and wait as long as *backoff* says.

        A repeated one is logged at DEBUG, with a *subject* every one but the first.
        """
        self.interruptions += not isinstance(error, AnotherLeads)
        seconds = backoff.next()
        level = logging.DEBUG if backoff.repeats(subject or one_line(error)) else logging.WARNING
        logger.log(level, "%strying again in %.2f s: %s", subject, seconds, one_line(error))
        await self.unless_stopped(asyncio.sleep(seconds))

    async def unless_stopped(self, awaitable: Awaitable[Result]) -> Result | None:
        """Await *awaitable* until the coordinator is stopped; return None then."""
        awaited = asyncio.ensure_future(awaitable)
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({awaited, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return awaited.result() if awaited.done() else None
        finally:
            awaited.cancel()
            stopping.cancel()
            await asyncio.gather(awaited, stopping, return_exceptions=True)


async def _bound_session(conn: Connection) -> None:
    await database.own_session(conn)
    await conn.execute(f"set lock_timeout = {_LOCK_TIMEOUT}".encode())


async def _closing_on_error(
    conn: Connection, statement: Callable[[Connection], Awaitable[Result]]
) -> Result:
    try:
        return await statement(conn)
    except psycopg.Error:  # what the database refuses by intention is a CoordError
        await conn.close()
        raise


def one_line(error: Exception) -> str:
    """The message of *error* without line breaks."""
    return " ".join(str(error).split())
