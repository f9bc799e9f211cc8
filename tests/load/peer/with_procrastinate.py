"""procrastinate on psycopg, as a peer (peers.py): `setup`, `work` or `client` on a database."""

import sys
import time

import uvloop
from procrastinate import App, PsycopgConnector
from protocol import Marks, commands


def app_of(dsn: str) -> App:
    return App(connector=PsycopgConnector(conninfo=dsn))


async def setup(dsn: str) -> None:
    async with app_of(dsn).open_async() as app:
        await app.schema_manager.apply_schema_async()


async def work(dsn: str, fifo: str) -> None:
    marks = Marks(fifo)
    app = app_of(dsn)

    @app.task(name="job")
    async def job(number: str) -> None:
        marks.put(number)

    async with app.open_async():
        await app.run_worker_async(concurrency=3, install_signal_handlers=False)


async def client(dsn: str) -> None:
    async with app_of(dsn).open_async() as app:
        deferrer = app.configure_task("job")
        async for verb, argument in commands():
            begun = time.monotonic_ns()
            if verb == "one":
                await deferrer.defer_async(number=argument)
            else:
                await deferrer.batch_defer_async(
                    *({"number": str(number)} for number in range(int(argument)))
                )
            print(begun, time.monotonic_ns(), flush=True)


VERBS = {"setup": setup, "work": work, "client": client}

if __name__ == "__main__":
    uvloop.run(VERBS[sys.argv[1]](*sys.argv[2:]))
