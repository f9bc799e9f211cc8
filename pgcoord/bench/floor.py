"""The floor: the same hop on a plain table, with a claimer that does nothing else."""

import asyncio
import multiprocessing
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pgcoord.bench.scratch import Connection, await_another, connected, statement
from pgcoord.database.connect import connect


class Floor:
    """The same hop on a plain table, with a claimer that does nothing else."""

    def __init__(self, conn: Connection, listener: Connection) -> None:
        self._conn = conn
        self._listener = listener
        self._number = 1

    def begin(self) -> None:
        """Block until the claimer has claimed the first job, which it does when it starts."""
        await_another(self._listener, self._conn.info.backend_pid)

    def go_on(self) -> float:
        """Complete the claimed job; return the seconds until the claimer has claimed the next."""
        list(self._listener.notifies(timeout=0))
        sent = time.perf_counter()
        self._conn.execute(statement("floor_complete"), [self._number])
        await_another(self._listener, self._conn.info.backend_pid)
        claimed = time.perf_counter()
        self._number += 1
        return claimed - sent


@contextmanager
def bare(dsn: str) -> Iterator[Floor]:
    """Yield the floor on a database without our schema; its claimer, a process, ends on exit."""
    with connected(dsn) as conn, connected(dsn) as listener:
        conn.execute(statement("floor_make"))
        listener.execute(statement("floor_hear"))
        # In its own process, as the coordinator is.
        claimer = multiprocessing.get_context("spawn").Process(
            target=_claim_from_floor, args=(dsn,), daemon=True
        )
        claimer.start()
        try:
            floor = Floor(conn, listener)
            floor.begin()
            yield floor
        finally:
            claimer.kill()
            claimer.join()


def _claim_from_floor(dsn: str) -> None:
    """Claim a job of the floor's table each time one is completed, until killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for our parent process

    async def claim() -> None:
        async with (
            await connect(dsn) as listener,
            await connect(dsn) as conn,
        ):
            await listener.execute(statement("floor_wake"))
            await conn.execute(statement("floor_claim"))
            async for _ in listener.notifies():
                await conn.execute(statement("floor_claim"))

    asyncio.run(claim())
