"""Executes statements on pooled connections, retrying until the database has executed them.

Two rules. After an unexpected error, close the connection instead of returning it to the pool:
psycopg's record of which statements the server has prepared may be wrong from then on. And never
wait long for a lock on a pooled connection: locks.py waits on connections of its own.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from pgcoord.coordination.locks import LockWaits
from pgcoord.database import claims, session
from pgcoord.database._sql import Connection
from pgcoord.database.backoff import Backoff
from pgcoord.database.connect import own_session, with_defaults
from pgcoord.database.work import Assignment
from pgcoord.errors import AnotherLeads, CoordError, DatabaseUnusable, Locked, message_of

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Errors of the connection: on another one the same statement may succeed. The last two mean that
# psycopg and the server disagree on which statements are prepared.
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
    """An event of an attempt that is not recorded yet; *words* complete "attempt …"."""

    attempt: Assignment
    words: str

    @property
    def attempt_id(self) -> int:
        """The attempt's id."""
        return self.attempt.attempt_id

    def __str__(self) -> str:
        return f"{self.attempt} {self.words}"


class Retrying:
    """Executes statements on the server of the current session, until the coordinator is stopped.

    `interruptions` counts the failures that led to a retry; `locks` are the waits for locks that
    other sessions hold on that server.
    """

    def __init__(self, stopping: asyncio.Event) -> None:
        self._refused: set[int] = set()  # attempts of which `_note_error` has noted something
        self.interruptions = 0
        self._stopping = stopping
        self._stop: asyncio.Task[bool] | None = None  # one for all that wait: there are thousands
        self.locks: LockWaits
        self._connected = asyncio.Event()
        self._finding = asyncio.Lock()
        self._pool: AsyncConnectionPool

    @property
    def is_stopping(self) -> bool:
        """Whether the coordinator is being stopped."""
        return self._stopping.is_set()

    @asynccontextmanager
    async def connected(self, server: str, actor: str) -> AsyncIterator[None]:
        """Execute statements on *server* (a DSN) until the block ends, as *actor*."""

        async def configure(conn: Connection) -> None:
            await _bound_session(conn)
            await session.act_as(conn, actor)

        # No check at check-out, which would cost a round trip each: a statement that fails on a
        # dead connection is executed again.
        self._pool = AsyncConnectionPool(
            with_defaults(server),
            name="pgcoord",
            min_size=1,
            max_size=8,
            timeout=5,
            open=False,
            kwargs={"autocommit": True},
            configure=configure,
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
        """Run *statement*, retrying with back-off while the connection is lost or a row locked.

        *statement* must be idempotent. While another session's lock prevents the record of *fact*,
        the panel shows that. Raises `Stopped` when the coordinator is stopped first: the next
        coordinator finds the same facts in the folder of the run.
        """
        backoff = Backoff()
        is_noted = lacks_lock = False
        while True:
            if not self._connected.is_set():
                await self.unless_stopped(self._connected.wait())
            try:
                async with self._pool.connection() as conn:
                    result = await _closing_on_error(conn, statement)
                    if fact and (is_noted or fact.attempt_id in self._refused):
                        self._refused.discard(fact.attempt_id)
                        await _closing_on_error(
                            conn, partial(claims.forget_unrecorded, attempt_id=fact.attempt_id)
                        )
                    return result
            except Locked as error:
                lock = await self._find_lock(fact, far=lacks_lock)
                lacks_lock = lock is None
                if lock:
                    is_noted = True
                    await self._await_lock(lock, fact)
                else:
                    await self._pause_unless_stopping(backoff, error, fact)
            except PoolClosed as error:  # the session has ended: the next one may come
                if self.is_stopping:
                    raise Stopped(message_of(error)) from error
            except (DatabaseUnusable, *LOST_CONNECTION) as error:
                await self._pause_unless_stopping(backoff, error, fact)
            except psycopg.Error as error:  # such as one of a trigger of somebody else's
                if fact:
                    await self._note_error(fact, error.diag.message_primary or message_of(error))
                raise

    async def _find_lock(self, fact: Fact | None, *, far: bool) -> str | None:
        """Return the name of the lock that prevents a statement; note it if it is for *fact*.

        None when no such lock is found. *far*: see `claims.find_lock`.
        """
        try:
            # One at a time: concurrent searches would find each other's locks.
            async with self._finding, self._pool.connection() as conn:
                lock = await claims.find_lock(conn, fact.attempt_id if fact else None, far=far)
                if lock and fact:
                    await claims.note_unrecorded(conn, fact.attempt_id, fact.words, lock)
                return lock
        except (CoordError, psycopg.Error) as error:
            logger.debug("the lock was not identified: %s", error)
            return None

    async def _note_error(self, fact: Fact, error: str) -> None:
        """Note that the database refuses the record of *fact*, which is tried again later."""
        try:
            async with self._pool.connection(timeout=1) as conn:
                words = f"error: {error}"
                await claims.note_unrecorded(conn, fact.attempt_id, fact.words, words)
        except (CoordError, psycopg.Error) as failed:
            logger.debug("the error was not noted: %s", failed)
        else:
            self._refused.add(fact.attempt_id)

    async def _await_lock(self, lock: str, fact: Fact | None) -> None:
        """Wait until *lock* is free. Raises `Stopped` when the coordinator is stopped first."""
        if not self.is_stopping:
            logger.info("%swaiting for %s", f"{fact}: " if fact else "", lock)
            await self.unless_stopped(self.locks.until_free(lock))
        if self.is_stopping:
            raise Stopped(f"it needs {lock}, held by {await self.locks.holder_of(lock)}")

    async def _pause_unless_stopping(
        self, backoff: Backoff, error: Exception, fact: Fact | None
    ) -> None:
        if self.is_stopping:
            raise Stopped(message_of(error)) from error
        await self.pause(backoff, error, f"{fact}, not recorded yet: " if fact else "")

    async def pause(self, backoff: Backoff, error: Exception, subject: str = "") -> None:
        """Log *error*, and wait for the next delay of *backoff*, or until stopped.

        Logs a repeated error at DEBUG; with *subject*, every error but the first. A hint is logged
        with it.
        """
        self.interruptions += not isinstance(error, AnotherLeads)
        seconds = backoff.next()
        level = logging.DEBUG if backoff.repeats(subject or message_of(error)) else logging.WARNING
        hint = f" ({error.hint})" if isinstance(error, CoordError) and error.hint else ""
        words = f"{message_of(error)}{hint}"
        logger.log(level, "%strying again in %.2f s: %s", subject, seconds, words)
        await self.unless_stopped(asyncio.sleep(seconds))

    async def unless_stopped(self, awaitable: Awaitable[Result]) -> Result | None:
        """Await *awaitable*; return None when the coordinator is stopped first."""
        awaited = asyncio.ensure_future(awaitable)
        if self._stop is None:
            self._stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({awaited, self._stop}, return_when=asyncio.FIRST_COMPLETED)
            return awaited.result() if awaited.done() else None
        finally:
            awaited.cancel()
            await asyncio.gather(awaited, return_exceptions=True)


async def wait_at_most(event: asyncio.Event, seconds: float | None) -> None:
    """Wait until *event* is set, at most *seconds* (None: without end)."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


async def _bound_session(conn: Connection) -> None:
    await own_session(conn)
    await conn.execute(f"set lock_timeout = {_LOCK_TIMEOUT}".encode())


async def _closing_on_error(
    conn: Connection, statement: Callable[[Connection], Awaitable[Result]]
) -> Result:
    try:
        return await statement(conn)
    except psycopg.Error:  # unexpected: the refusals of pgcoord's functions are CoordErrors
        await conn.close()
        raise
