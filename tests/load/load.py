"""Load on the HTTP server of `pgcoord serve`: webhooks, and clients of the event stream.

    .venv/bin/python tests/load/load.py

It makes a Postgres and a server of its own in a temporary folder, and prints a table. Everything
runs on this machine, the clients too: they take more of it than the server does. A message that was
lost, came twice or came out of order is a failure: then the exit status is 1.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import math
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import httpx2
import psycopg
from websockets.asyncio.client import ClientConnection, connect

from pgcoord.database import schema
from pgcoord.database.embedded import EmbeddedPostgres
from pgcoord.messages import signing

SECRET = "whsec_" + base64.b64encode(os.urandom(32)).decode()

CONFIGURATION = """
[server]
port = 0
webhook_secrets = ["LOAD_SECRET"]

[workflow.none]
command = ["true"]
default = true
"""

# Share of the webhooks that are sent a second time at once.
REPEATED = 0.05

# Slots, of which each phase that is under way holds one.
SLOTS = 1_000

Connection = psycopg.Connection[Any]


def main() -> int:
    """Measure and print; return exit status 0 only if nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=30, help="of each measurement")
    parser.add_argument("--webhooks", type=int, default=200, help="a second")
    parser.add_argument("--clients", type=int, default=500, help="of the event stream")
    parser.add_argument("--transitions", type=int, default=50, help="a second, told to each")
    wanted = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="pgcoord-load-") as name,
        _serving(Path(name)) as server,
    ):
        begin = server.resident()
        right = asyncio.run(send_webhooks(server, wanted.webhooks, wanted.seconds))
        after_webhooks = server.resident()
        right &= stream(server, wanted.clients, wanted.transitions, wanted.seconds)
        _row("server: resident memory at the start", f"{begin:.0f} MB")
        _row("after the webhooks", f"{after_webhooks:.0f} MB")
        _row("after the streams", f"{server.resident():.0f} MB")
        _row("load average", ", ".join(f"{each:.1f}" for each in os.getloadavg()))
    return 0 if right else 1


class Server:
    """A running `pgcoord serve`, and a connection to its database."""

    def __init__(self, process: subprocess.Popen[bytes], address: str, conn: Connection) -> None:
        self.process = process
        self.address = address
        self.conn = conn
        self.one_at_a_time = threading.Lock()

    def resident(self) -> float:
        """Megabytes of memory that the server holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+)", status)
        assert match
        return int(match[1]) / 1024

    def busy(self) -> float:
        """Seconds of processor time that the server has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def value(self, statement: str, *values: object) -> Any:
        row = self.conn.execute(statement.encode(), values).fetchone()
        assert row
        return row[0]


@contextlib.contextmanager
def _serving(folder: Path) -> Iterator[Server]:
    postgres = EmbeddedPostgres(folder / "postgres")
    postgres.start()
    try:
        with psycopg.connect(postgres.dsn, autocommit=True) as conn:
            schema.upgrade(conn)
            conn.execute("select pgcoord.pause()")  # nothing is launched: this is about HTTP
            (folder / "pgcoord.toml").write_text(CONFIGURATION)
            with (folder / "log").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "pgcoord", "serve"],
                    cwd=folder,
                    env={**os.environ, "DATABASE_URL": postgres.dsn, "LOAD_SECRET": SECRET},
                    stderr=log,
                )
            try:
                yield Server(process, _address(folder / "log"), conn)
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(30)
    finally:
        postgres.stop()


def _address(log: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        said = log.read_text()
        if "leading" in said and (found := re.search(r"serving on http://(\S+)\n", said)):
            return found[1]
        time.sleep(0.01)
    sys.exit(f"pgcoord serve does not start:\n{log.read_text()}")


async def send_webhooks(server: Server, rate: int, seconds: int) -> bool:
    """Send reports at a steady rate, without waiting for answers; each ends a phase of its own."""
    total = rate * seconds
    server.conn.execute("select pgcoord.set_slots(%s)", [SLOTS])
    sender = Sender(server.address)
    async with sender.client:
        async with asyncio.TaskGroup() as tasks:

            def run_phases() -> "asyncio.Task[int]":
                return tasks.create_task(asyncio.to_thread(_run_phases, server, rate))

            ahead = [run_phases(), run_phases()]  # they run before their reports are due
            await asyncio.wait(ahead)
            busy, begin = server.busy(), time.monotonic()
            for second in range(seconds):
                feature = await ahead.pop(0)
                ahead.append(run_phases())
                for place in range(rate):
                    due = begin + second + place / rate
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                    tasks.create_task(sender.report(f"queue-{feature}-{place + 1}"))
        elapsed = time.monotonic() - begin
        busy = server.busy() - busy
    completed = server.value("select count(*) from phase_queue where status = 'completed'")
    moves = server.value("select count(*) from pgcoord.event where to_status = 'completed'")
    right = completed == moves == total and set(sender.answers) == {200}
    what = f"{rate} webhooks a second for {seconds} s: answered p50 / p99"
    _row(what, _ranks(sender.took))
    _row("sent and answered in", f"{elapsed:.1f} s")
    _row("processor time of the server for each", f"{busy / len(sender.answers) * 1000:.2f} ms")
    _row(
        f"phases completed, and moves in the history, of {total:,}",
        f"{completed:,}, {moves:,}{'' if right else '  WRONG'}",
    )
    return right


class Sender:
    """Sends reports, each until it is answered, and some of them twice."""

    def __init__(self, address: str) -> None:
        limits = httpx2.Limits(max_connections=50)
        self.client = httpx2.AsyncClient(base_url=f"http://{address}", limits=limits)
        self.took: list[float] = []
        self.answers: list[int] = []

    async def report(self, queue_id: str) -> None:
        body = {"queue_id": queue_id, "status": "completed"}
        for _ in range(2 if random.random() < REPEATED else 1):
            begin = time.perf_counter()
            signed = signing.sign(SECRET, body)
            headers = {"content-type": "application/json", **signed.headers}
            while True:
                with contextlib.suppress(httpx2.TransportError):  # a connection closed as idle
                    answer = await self.client.post(
                        "/workflow-complete", content=signed.body, headers=headers
                    )
                    break
            self.answers.append(answer.status_code)
            self.took.append(time.perf_counter() - begin)


def _run_phases(server: Server, count: int) -> int:
    """Insert running phases, which no coordinator started; return their feature."""
    with server.one_at_a_time:
        held = "select count(*) from phase_queue where slot is not null"
        while server.value(held) + count > SLOTS:
            time.sleep(0.05)
        feature = server.value("insert into planned_features (title) values ('a') returning id")
        server.conn.execute(
            "insert into phase_queue (feature_id, phase_number, status)"
            " select %s, n, 'running' from generate_series(1, %s::int) as n",
            [feature, count],
        )
        return int(feature)


def stream(server: Server, clients: int, rate: int, seconds: int) -> bool:
    """Have many clients listen while a steady rate of transitions happens."""
    feature = server.value("insert into planned_features (title) values ('a') returning id")
    total = rate * seconds
    server.conn.execute(
        "insert into phase_queue (feature_id, phase_number)"
        " select %s, n from generate_series(1, %s::int) as n",
        [feature, total],
    )
    before = server.value("select max(id) from pgcoord.event")
    last = before + total
    context = multiprocessing.get_context("spawn")
    shares = [clients // 2, clients - clients // 2]
    pipes, processes = [], []
    for number, share in enumerate(shares, 2):
        ours, theirs = context.Pipe()
        host = f"127.0.0.{number}"  # one host may hold half of all connections
        process = context.Process(target=_listen, args=(theirs, server.address, host, share, last))
        process.start()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()  # all of its clients have their snapshot
    connections = server.value(
        "select count(*) from pg_stat_activity"
        " where application_name in ('pgcoord listener', 'pgcoord events')"
    )
    busy = server.busy()
    begin = time.monotonic()
    for number in range(1, total + 1):
        time.sleep(max(0.0, begin + number / rate - time.monotonic()))
        server.conn.execute(
            "select from pgcoord.skip_phase(%s, null)", [f"queue-{feature}-{number}"]
        )
    results = [pipe.recv() for pipe in pipes]
    busy = server.busy() - busy
    for process in processes:
        process.join()
    late = [each for result in results for each in result["late"]]
    wanted = list(range(before + 1, last + 1))
    wrong = sum(heard != wanted for result in results for heard in result["heard"])
    p99 = _rank(late, 0.99)
    right = wrong == 0 and p99 < 0.25
    _row(
        f"{clients} clients, {rate} transitions a second for {seconds} s: received p50 / p99",
        _ranks(late),
    )
    _row("messages received", f"{len(late):,}")
    _row("processor time of the server for each", f"{busy / len(late) * 1e6:.0f} µs")
    _row("clients that missed one, or received it twice or out of order", f"{wrong}")
    _row("connections to the database that listen, coordinator and feed", f"{connections}")
    return right


def _listen(pipe: Pipe, address: str, host: str, clients: int, last: int) -> None:
    """A process of clients: reports when all have their snapshot, then the messages of each."""
    asyncio.run(_listen_all(pipe, address, host, clients, last))


async def _listen_all(pipe: Pipe, address: str, host: str, clients: int, last: int) -> None:
    async with contextlib.AsyncExitStack() as stack:
        sockets = []
        for _ in range(clients):
            url, local = f"ws://{address}/ws/queue", (host, 0)
            client = connect(url, compression=None, max_queue=None, local_addr=local)
            sockets.append(await stack.enter_async_context(client))
        for socket in sockets:
            await socket.recv()
        pipe.send("listening")
        late: list[float] = []
        heard = await asyncio.gather(*(_hear(socket, last, late) for socket in sockets))
        pipe.send({"heard": heard, "late": late})


async def _hear(socket: ClientConnection, last: int, late: list[float]) -> list[int]:
    """Receive all events up to `last`; append the delay of each after its commit to `late`."""
    messages: list[int] = []
    async for text in socket:
        now = time.time()
        data = json.loads(text)["data"]
        if data["kind"] == "phase_moved":
            messages.append(data["event"])
            late.append(now - _seconds(data["timestamp"]))
        if data["event"] == last:
            break
    return messages


def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()


def _rank(samples: Sequence[float], share: float) -> float:
    return sorted(samples)[math.ceil(share * len(samples)) - 1]


def _ranks(seconds: Sequence[float]) -> str:
    return " / ".join(f"{_rank(seconds, share) * 1000:.1f} ms" for share in (0.5, 0.99))


def _row(what: str, value: str) -> None:
    sys.stdout.write(f"{what:<72} {value:>20}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
