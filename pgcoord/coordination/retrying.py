"""Statements that are repeated until the database has executed them, on pooled connections.

The one rule: a connection on which a statement failed unexpectedly is closed, never given back.
What psycopg believes of it (which statements the server has prepared) may be wrong from then on.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from pgcoord.backoff import Backoff
from pgcoord.database import connect as database
from pgcoord.database._sql import Connection
from pgcoord.errors import AnotherLeads

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


class Stopped(Exception):
    """The coordinator was stopped before the database had executed a statement."""


class Retrying:
    """Executes statements on the server of the current session, until the coordinator is stopped.

    `interruptions` counts the failures after which something was tried again, `server` is the DSN
    of the current session's server.
    """

    def __init__(self, stopping: asyncio.Event) -> None:
        self.interruptions = 0
        self._stopping = stopping
        self.server: str
        self._pool: AsyncConnectionPool

    @property
    def is_stopping(self) -> bool:
        """Whether the coordinator is being stopped."""
        return self._stopping.is_set()

    @asynccontextmanager
    async def connected(self, server: str) -> AsyncIterator[None]:
        """Execute statements on *server* (a DSN) until the block ends."""
        self.server = server
        # Without a check at check-out, which would cost a round trip each: a statement that finds
        # its connection dead is executed again.
        self._pool = AsyncConnectionPool(
            database.with_defaults(server),
            min_size=1,
            max_size=8,
            timeout=5,
            open=False,
            kwargs={"autocommit": True},
        )
        try:
            await self._pool.open()
            yield
        finally:
            await self._pool.close(timeout=0.1)

    async def execute(self, statement: Callable[[Connection], Awaitable[Result]]) -> Result:
        """Run *statement*, retrying with back-off while the connection is lost.

        *statement* must be idempotent. Raises `Stopped` when the coordinator is stopped first:
        whoever starts next finds the same in the folder of the run.
        """
        backoff = Backoff()
        while True:
            try:
                async with self._pool.connection() as conn:
                    return await _closing_on_error(conn, statement)
            except LOST_CONNECTION as error:
                if self.is_stopping:
                    raise Stopped(one_line(error)) from error
                await self.pause(backoff, error)

    async def pause(self, backoff: Backoff, error: Exception) -> None:
        """Log *error*, a repeated one at DEBUG only, and wait as long as *backoff* says."""
        self.interruptions += not isinstance(error, AnotherLeads)
        seconds = backoff.next()
        level = logging.DEBUG if backoff.repeats(one_line(error)) else logging.WARNING
        logger.log(level, "trying again in %.2f s: %s", seconds, one_line(error))
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
