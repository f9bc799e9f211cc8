"""The coordinator's own connection: holds the lead, brings wake-ups, notices a dead server.

The one rule: notifications are hints. Whoever waits here looks at the tables afterwards, so that
one that is lost, or arrives twice, costs time and nothing else.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg

from pgcoord.database import _sql, session
from pgcoord.database import connect as database
from pgcoord.errors import DatabaseUnusable

# Seconds between signs of life asked of an idle server: 6 statements a minute.
PING_EVERY = 10.0

# Seconds after which a notification is taken for lost: a direct one takes milliseconds.
_LOST_AFTER = 1.0


class Listener:
    """One LISTEN connection. `wait` may be called by one task at a time."""

    def __init__(self, conn: _sql.Connection) -> None:
        self.conn = conn
        self._told = asyncio.Event()
        self._idle_since = 0.0

    @property
    def idle_seconds(self) -> float:
        """How long nothing has been sent on the connection, as far as `wait` knows."""
        return asyncio.get_running_loop().time() - self._idle_since

    def tell(self) -> None:
        """Wake the one who waits, from within this process."""
        self._told.set()

    async def wait(self, seconds: float | None) -> bool:
        """Wait for a notification, for `tell`, or `seconds` (None: for ever), pinging meanwhile.

        Returns whether it was one of the first two. What was notified since the last wait ends this
        one at once. Raises `psycopg.OperationalError` when the connection is lost, which a silent
        network takes as long as the connection's keepalive parameters say.
        """
        self._idle_since = asyncio.get_running_loop().time()
        deadline = None if seconds is None else self._idle_since + seconds
        while not self._told.is_set():
            left = None if deadline is None else deadline - asyncio.get_running_loop().time()
            if left is not None and left <= 0:
                return False
            if await self._notified(PING_EVERY if left is None else min(left, PING_EVERY)):
                return True
            if left is None or left > PING_EVERY:
                await session.ping(self.conn)
                self._idle_since = asyncio.get_running_loop().time()
        self._told.clear()
        return True

    async def _notified(self, seconds: float) -> bool:
        """Whether a notification came within `seconds`, or somebody told.

        `notifies` is left between packets only.
        """
        if self._arrived():
            return True
        heard = asyncio.ensure_future(self._next(seconds))
        told = asyncio.ensure_future(self._told.wait())
        try:
            await asyncio.wait({heard, told}, return_when=asyncio.FIRST_COMPLETED)
            return heard.done() and heard.result()
        finally:
            told.cancel()
            heard.cancel()
            # The connection is free again only when the generator has let go of it.
            await asyncio.gather(heard, told, return_exceptions=True)

    def _arrived(self) -> bool:
        """Whether notifications lie in libpq's buffer: they came with the end of a statement.

        `notifies` would not see them before the socket is readable again.
        """
        arrived = False
        while self.conn.pgconn.notifies():
            arrived = True
        return arrived

    async def _next(self, seconds: float) -> bool:
        return bool([n async for n in self.conn.notifies(timeout=seconds, stop_after=1)])


@asynccontextmanager
async def listening(dsn: str, channel: str) -> AsyncIterator[Listener]:
    """A connection of its own that listens, and may lead.

    LISTEN comes before anything is read from the tables.
    """
    async with await database.connect(dsn, leads=True) as conn:
        await session.listen(conn, channel)
        yield Listener(conn)


async def check_wake_ups(dsn: str) -> None:
    """Raise `DatabaseUnusable` where notifications do not arrive."""
    if await round_trip(dsn) is None:
        raise DatabaseUnusable(
            "notifications do not arrive through this DSN: no work would be started in time",
            hint="'pgcoord doctor' says why, and what to do.",
        )


async def round_trip(dsn: str) -> float | None:
    """Notify from one connection to another; return the seconds it takes, None when it is lost.

    Raises `DatabaseUnusable` where the server cannot be reached, or is lost meanwhile.
    """
    try:
        return await _round_trip(dsn)
    except psycopg.OperationalError as error:  # cut off in the middle of it
        raise database.unusable(error) from error


async def _round_trip(dsn: str) -> float | None:
    async with (
        await database.connect(dsn) as hears,
        await database.connect(dsn) as tells,
    ):
        await session.listen(hears, session.PROBE)
        began = time.monotonic()
        await session.notify(tells, session.PROBE)
        async for _ in hears.notifies(timeout=_LOST_AFTER, stop_after=1):
            return time.monotonic() - began
    return None
