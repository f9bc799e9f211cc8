"""PgQueuer on asyncpg, as a peer (peers.py): `setup`, `work` or `client` on a database."""

import sys
import time

import asyncpg
import uvloop
from pgqueuer import AsyncpgDriver, Job, PgQueuer, Queries
from protocol import Marks, commands


async def connect(dsn: str) -> AsyncpgDriver:
    return AsyncpgDriver(await asyncpg.connect(dsn))


async def setup(dsn: str) -> None:
    await Queries(await connect(dsn)).install()


async def work(dsn: str, fifo: str) -> None:
    marks = Marks(fifo)
    queue = PgQueuer(await connect(dsn))

    @queue.entrypoint("job")
    async def job(job: Job) -> None:
        assert job.payload
        marks.put(job.payload.decode())

    # At most 3 at once. With the default batch of 10, a limit of the entrypoint is slower yet.
    await queue.run(batch_size=1, max_concurrent_tasks=3)


async def client(dsn: str) -> None:
    queries = Queries(await connect(dsn))

    async def one(number: str) -> None:
        await queries.enqueue("job", number.encode())

    async def many(count: int) -> None:
        payloads: list[bytes | None] = [str(number).encode() for number in range(count)]
        await queries.enqueue(["job"] * count, payloads, [0] * count)

    async for verb, argument in commands():
        begun = time.monotonic_ns()
        await (one(argument) if verb == "one" else many(int(argument)))
        print(begun, time.monotonic_ns(), flush=True)


VERBS = {"setup": setup, "work": work, "client": client}

if __name__ == "__main__":
    uvloop.run(VERBS[sys.argv[1]](*sys.argv[2:]))
