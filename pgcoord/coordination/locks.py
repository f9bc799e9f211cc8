"""Waits for row locks that other sessions hold.

The one rule: an unbounded wait has a connection of its own, so that it delays nothing else; and it
locks one row at a time, so that it holds no other lock meanwhile.
"""

import asyncio
import logging

import psycopg

from pgcoord.database import claims
from pgcoord.database.connect import connect
from pgcoord.errors import CoordError

logger = logging.getLogger(__name__)

# Connections that wait at once. Waits for more locks than that take turns.
_MOST_CONNECTIONS = 8

# Seconds of a turn, after which the log names the holder of the lock.
_TURN = 2.0

# Seconds after which `until_free` returns, whether the lock is free or not.
_ASK_AGAIN = 30.0

# Seconds after which a lock counts as free when waiting for it failed.
_AFTER_ERROR = 1.0


class LockWaits:
    """Waits for locks on *server* (a DSN), by name; SQL: pgcoord_private.await_lock."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._turns = asyncio.Semaphore(_MOST_CONNECTIONS)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._holders: dict[str, str] = {}

    @property
    def names(self) -> list[str]:
        """The names of the locks with a wait in progress."""
        return list(self._tasks)

    async def holder_of(self, name: str) -> str:
        """Return the session that holds the lock *name*, in words, or "somebody" if unknown."""
        if name not in self._holders:
            try:
                async with await connect(self._server) as conn:
                    holder = await claims.held_by(conn, name)
            except (psycopg.Error, CoordError) as error:
                logger.debug("the holder of %s is not found: %s", name, error)
                holder = None
            if holder is None:
                return "somebody"
            self._holders[name] = holder
        return self._holders[name]

    async def until_free(self, name: str) -> None:
        """Wait until the lock *name* is free, half a minute at most.

        The caller then repeats its statement, which may need another lock.
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
        except (psycopg.Error, CoordError) as error:
            logger.debug("waiting for %s: %s", name, error)
            await asyncio.sleep(_AFTER_ERROR)
        finally:
            del self._tasks[name]
            self._holders.pop(name, None)

    async def _take_turn(self, name: str) -> bool:
        """Wait for a turn, then on a connection; return whether the lock is free."""
        async with self._turns, await connect(self._server) as conn:
            waiting = asyncio.ensure_future(claims.await_lock(conn, name))
            try:
                await asyncio.wait({waiting}, timeout=_TURN)
                if not waiting.done() and name not in self._holders:
                    logger.warning(
                        "%s is held by %s: statements that need it wait",
                        name,
                        await self.holder_of(name),
                    )
                while not waiting.done():
                    if len(self._tasks) > _MOST_CONNECTIONS:
                        return False
                    await asyncio.wait({waiting}, timeout=_TURN)
                waiting.result()
                return True
            finally:
                waiting.cancel()  # psycopg cancels the statement on the server, too
                await asyncio.gather(waiting, return_exceptions=True)
