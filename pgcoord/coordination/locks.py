"""Waits until others let go of rows that they have locked.

The one rule: a wait without a bound has a connection of its own, so that it holds up nothing but
itself; and it locks one row at a time, so that it holds nothing meanwhile that others need.
"""

import asyncio
import logging

import psycopg

from pgcoord.database import claims
from pgcoord.database import connect as database
from pgcoord.errors import DatabaseUnusable

logger = logging.getLogger(__name__)

# Connections that wait at once. Where more locks are waited for, they take turns.
_MOST_CONNECTIONS = 8

# Seconds of a turn, after which the log says who holds the lock.
_TURN = 2.0

# Seconds after which the one that waits tries once more, whether the lock is free or not.
_ASK_AGAIN = 30.0

# Seconds after which a lock is taken for free that could not be waited for.
_AFTER_ERROR = 1.0


class LockWaits:
    """The locks of *server* (a DSN) that are waited for, each once, by name (SQL: await_lock)."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._turns = asyncio.Semaphore(_MOST_CONNECTIONS)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._holders: dict[str, str] = {}

    @property
    def names(self) -> list[str]:
        """The names of the locks that are waited for."""
        return list(self._tasks)

    async def holder_of(self, name: str) -> str:
        """The session that holds a lock that is waited for, in words."""
        if name not in self._holders:
            try:
                async with await database.connect(self._server) as conn:
                    holder = await claims.held_by(conn, name)
            except (psycopg.Error, DatabaseUnusable) as error:
                logger.debug("the holder of %s is not found: %s", name, error)
                holder = None
            if holder is None:
                return "somebody"
            self._holders[name] = holder
        return self._holders[name]

    async def until_free(self, name: str) -> None:
        """Wait until nobody else holds the lock called *name*, half a minute at most.

        Whoever waits asks again then, since it may need something else by now.
        """
        task = self._tasks.get(name)
        if task is None:
            task = self._tasks[name] = asyncio.create_task(self._until_free(name))
        await asyncio.wait({task}, timeout=_ASK_AGAIN)

    async def close(self) -> None:
        """End all waits."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_free(self, name: str) -> None:
        try:
            while not await self._take_turn(name):
                pass
        except (psycopg.Error, DatabaseUnusable) as error:
            logger.debug("waiting for %s: %s", name, error)
            await asyncio.sleep(_AFTER_ERROR)
        finally:
            del self._tasks[name]
            self._holders.pop(name, None)

    async def _take_turn(self, name: str) -> bool:
        """Wait on a connection, others' turn permitting; return whether the lock is free."""
        async with self._turns, await database.connect(self._server) as conn:
            waiting = asyncio.ensure_future(claims.await_lock(conn, name))
            try:
                await asyncio.wait({waiting}, timeout=_TURN)
                if not waiting.done() and name not in self._holders:
                    logger.warning(
                        "%s is held by %s: what needs it waits", name, await self.holder_of(name)
                    )
                while not waiting.done():
                    if len(self._tasks) > _MOST_CONNECTIONS:
                        return False
                    await asyncio.wait({waiting}, timeout=_TURN)
                waiting.result()
                return True
            finally:
                waiting.cancel()  # which psycopg passes on to the server
                await asyncio.gather(waiting, return_exceptions=True)
