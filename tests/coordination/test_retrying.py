"""Statements that are executed again until they succeed."""

import asyncio

import pytest

from pgcoord.coordination.retrying import Retrying, Stopped
from pgcoord.database._sql import Connection


async def test_a_statement_that_meets_the_end_of_a_session_waits_for_the_next(dsn: str) -> None:
    stopping, freed = asyncio.Event(), asyncio.Event()
    retrying = Retrying(stopping)
    holding = asyncio.Semaphore(0)

    async def hold(conn: Connection) -> None:
        holding.release()
        await freed.wait()

    async def answer(conn: Connection) -> str:
        return "executed"

    async with retrying.connected(dsn, "test"):
        holders = [asyncio.create_task(retrying.execute(hold)) for _ in range(8)]
        for _ in holders:
            await holding.acquire()
        asked = asyncio.create_task(retrying.execute(answer))
        while not retrying._pool.get_stats()["requests_waiting"]:  # noqa: ASYNC110
            await asyncio.sleep(0)
    freed.set()
    await asyncio.gather(*holders)
    async with retrying.connected(dsn, "test"):
        assert await asked == "executed"
    assert retrying.interruptions == 0
    stopping.set()
    with pytest.raises(Stopped):
        await retrying.execute(answer)
