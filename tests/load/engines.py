"""What one coordinator stands on engines: a thousand slots, a hundred thousand phases in a day.

    PYTHONPATH=tests .venv/bin/python tests/load/engines.py --phases 5000 --seconds 120

It makes a Postgres, a real `pgcoord serve` and an engine: the REST API of Ray Jobs, whose jobs do
what the wrapper does, ask to begin and say how they ended, by signed requests, and nothing between.
The day is accelerated: its features come in `--seconds`. All of it runs on this machine; the engine
and its jobs take more of it than the coordinator does. Any phase that is stuck, lost or run twice
makes the exit status 1.

A line of single phases, first in its pool, is the gauge: from the end of one (recorded) to the
claim of the next, with nothing else to do and with all else under way. What a phase costs is
printed for each tenth of the run: processor time and transactions tell what grows with what is
there, on a busy machine as well.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
from psycopg.types.json import Jsonb

from pgcoord.assets import SQL
from pgcoord.database import schema
from pgcoord.database.embedded import EmbeddedPostgres
from pgcoord.messages import signing
from pgcoord.runs import job

POOLS = {"one": 500, "two": 300, "three": 200}

# Phases of a feature, and how many of them run side by side.
PHASES, WIDTH = 50, 10

# Phases of the gauge in each of its lines, and how many pairs of lines, one on this machine and one
# on an engine, take turns: short ones, as what else the machine does changes from second to second.
GAUGE, TURNS = 10, 20

# The phases of this run, not those that `--finished` has inserted.
_OURS = "feature_id < 1000000"

Row = Any


class Engine:
    """The REST API of Ray Jobs for one pool, and its nodes: jobs last `length` seconds."""

    def __init__(self, length: float) -> None:
        self.length = length
        self.jobs: dict[str, dict[str, Any]] = {}
        self.asked = {"list": 0, "submit": 0, "log": 0, "stop": 0}
        self.submitted_at: dict[int, float] = {}  # by attempt
        self.refused = 0
        self.frozen = asyncio.Event()
        self.frozen.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> str:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0, limit=2**20)
        self._server = server
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = re.search(r"(?i)content-length: (\d+)", head)
            body = await reader.readexactly(int(length[1])) if length else b""
            arrived_at = time.time()
            method, path = head.split(" ", 2)[:2]
            content = json.dumps(self._act(method, path, body, arrived_at)).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(content) + content)
            await writer.drain()
        writer.close()

    def _act(self, method: str, path: str, body: bytes, arrived_at: float) -> Any:
        if path.endswith("/logs"):
            self.asked["log"] += 1
            return {"logs": ""}
        if path.endswith("/stop"):
            self.asked["stop"] += 1
            return {"stopped": True}
        if method == "GET":
            self.asked["list"] += 1
            late = time.monotonic() - 60  # an engine forgets what ended
            for name in [n for n, each in self.jobs.items() if each.get("ended", late) < late]:
                del self.jobs[name]
            return [
                {k: each[k] for k in ("submission_id", "status")} for each in self.jobs.values()
            ]
        self.asked["submit"] += 1
        given = json.loads(body)
        packed = given["runtime_env"]["env_vars"]["PGCOORD_ORDER"]
        order = job.read_order([], {"PGCOORD_ORDER": packed})
        new = {"submission_id": given["submission_id"], "status": "PENDING"}
        self.jobs[given["submission_id"]] = new
        self.submitted_at[order["attempt"]] = arrived_at
        task = asyncio.create_task(self._run(new, order))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return {"submission_id": given["submission_id"]}

    async def _run(self, state: dict[str, Any], order: dict[str, Any]) -> None:
        copy = uuid.uuid4().hex
        is_gauge = order["environment"]["PGCOORD_FEATURE_ID"] == "1"
        state["status"] = "RUNNING"
        if await self._say(order, "begin", copy, node="node", prompt=True) != 200:
            self.refused += 1
        elif is_gauge:
            await self._say(order, "exit", copy, exit_code=0)
        else:
            await asyncio.sleep(random.uniform(0.5, 1.5) * self.length)
            await self.frozen.wait()
            await self._say(order, "exit", copy, exit_code=0, log_tail="done")
        state |= {"status": "SUCCEEDED", "ended": time.monotonic()}

    async def _say(self, order: dict[str, Any], act: str, copy: str, **more: Any) -> int:
        """POST as the wrapper does, until there is an answer that stays; return its status."""
        parts = urlsplit(order["url"])
        body = {"act": act, "attempt": order["attempt"], "copy": copy, **more}
        content, wait = json.dumps(body).encode(), 0.5
        while True:
            signed = signing.sign_body(order["secret"], content).headers
            lines = [
                f"POST {parts.path}/attempts/{order['attempt']}/{act} HTTP/1.1",
                f"host: {parts.netloc}",
                "content-type: application/json",
                "connection: close",
                f"content-length: {len(content)}",
                *(f"{name}: {value}" for name, value in signed.items()),
            ]
            with contextlib.suppress(OSError, ValueError, IndexError, TimeoutError):
                async with asyncio.timeout(15):
                    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
                    try:
                        writer.write("\r\n".join([*lines, "", ""]).encode() + content)
                        status = int((await reader.readline()).split()[1])
                        await reader.read()
                    finally:
                        writer.close()
                    if status < 500 and status != 429:
                        return status
            await asyncio.sleep(wait)
            wait = min(2 * wait, 15.0)


def configuration(addresses: dict[str, str]) -> str:
    lines = ["[server]", "port = 0", "[pool.local]", "slots = 3"]
    for name, address in addresses.items():
        slots = POOLS[name]
        lines += [f"[pool.{name}]", 'launcher = "ray"', f"slots = {slots}"]
        lines += [f'address = "{address}"', f"[workflow.{name}]", 'command = ["true"]']
        lines += [f'pool = "{name}"']
    return "\n".join([*lines, "[workflow.here]", 'command = ["true"]', "default = true"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phases", type=int, default=100_000, help="0: compare the launchers only")
    parser.add_argument("--seconds", type=int, default=1500, help="of the accelerated day")
    parser.add_argument("--finished", type=int, default=0, help="phases of days before")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pgcoord-engines-") as name:
        postgres = EmbeddedPostgres(Path(name) / "server")
        postgres.start()
        try:
            with psycopg.connect(postgres.dsn, autocommit=True) as conn:
                schema.upgrade(conn)
                if wanted.finished:
                    text = (SQL / "bench/finished.sql").read_text()
                    conn.execute(text.replace("{features}", str(wanted.finished // 100)).encode())
                    conn.execute("vacuum analyze")
            return asyncio.run(Run(Path(name), postgres.dsn, wanted).run())
        finally:
            postgres.stop()


class Run:
    """One run; prints its table."""

    def __init__(self, folder: Path, dsn: str, wanted: argparse.Namespace) -> None:
        self.folder = folder
        self.dsn = dsn
        self.phases = wanted.phases // PHASES * PHASES
        self.seconds = wanted.seconds
        # Four fifths of all slots are held on average, or as many jobs as come.
        length = 0.8 * sum(POOLS.values()) * self.seconds / max(self.phases, 1)
        self.engines = {name: Engine(length) for name in POOLS}

    async def run(self) -> int:
        addresses = {name: await each.serve() for name, each in self.engines.items()}
        (self.folder / "pgcoord.toml").write_text(configuration(addresses))
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as self.conn:
            with self._serving():
                return await self._measure()

    @contextlib.contextmanager
    def _serving(self) -> Iterator[None]:
        environment = {**os.environ, "DATABASE_URL": self.dsn}
        command = [sys.executable, "-m", "pgcoord", "serve"]
        with open(self.folder / "said", "wb") as said:
            self.serve = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=said, stderr=said
            )
        try:
            yield
        finally:
            self.serve.terminate()
            self.serve.wait()

    async def _measure(self) -> int:
        await self._until("select 1 from pgcoord.leader")
        await self.conn.execute("insert into planned_features (id, title) values (1, 'gauge')")
        self._resident_at = [self._resident()]
        (file,) = await self._one("select pg_read_file('postmaster.pid')")
        self._postmaster = int(file.split()[0])
        await self._compare()
        if not self.phases:
            return await self._judge()
        self._idle = await self._claim_times("one")
        self._row("a claim, nothing else there, p10 / p50 / p99", _times(self._idle))
        began, commits, busy = time.monotonic(), await self._commits(), self._busy()
        asked = {name: dict(each.asked) for name, each in self.engines.items()}
        held = await self._day()
        took = time.monotonic() - began
        phases = f"{self.phases} phases in {took:.0f} s: a second, a day"
        rate = self.phases / took
        self._row(phases, f"{rate:.1f}, {rate * 86_400:,.0f}")
        self._row("slots held, median and most", f"{statistics.median(held):.0f}, {max(held)}")
        commits = await self._commits() - commits
        self._row("transactions a second", f"{commits / took:.0f}")
        self._row("transactions a phase", f"{commits / self.phases:.1f}")
        busy = (self._busy() - busy) / self.phases
        self._row("processor time of the server a phase", f"{1000 * busy:.1f} ms")
        for kind in ("list", "log", "stop"):
            number = sum(e.asked[kind] - asked[n][kind] for n, e in self.engines.items())
            each = number / took * 60 / len(POOLS)
            self._row(f"calls to {kind}, a minute and pool", f"{each:.1f}")
        resident = self._resident_at
        sizes = (resident[0], statistics.median(resident), max(resident), resident[-1])
        self._row(
            "resident memory: start, median, most, end",
            ", ".join(f"{each:.0f}" for each in sizes) + " MB",
        )
        tables = ("pgcoord.event", "pgcoord.attempt", "phase_queue", "pgcoord.dependency")
        spaces = [
            (await self._one(f"select pg_total_relation_size('{each}')"))[0] for each in tables
        ]
        there = (await self._one("select count(*) from phase_queue"))[0]
        self._row(
            "disk a phase: events, attempts, phases, dependencies",
            ", ".join(f"{each / there / 1000:.1f}" for each in spaces) + " kB",
        )
        self._row("load average", ", ".join(f"{each:.1f}" for each in os.getloadavg()))
        return await self._judge()

    async def _compare(self) -> None:
        """Gauge this machine's launcher and an engine in turn."""
        found: dict[str, list[tuple[list[float], list[float]]]] = {"here": [], "one": []}
        for turn in range(TURNS + 1):
            for name in sorted(found, reverse=turn % 2 == 1):
                times = await self._gauge(name)
                if turn:  # the first is to load what is loaded once, and to connect
                    found[name].append(times)
        for index, words in enumerate(("claimed → submitted, or started", "ended → next claimed")):
            here, there = (
                [each for times in found[name] for each in times[index]] for name in ("here", "one")
            )
            self._row(f"{words}, p50: engine, local", f"{_p50(there):.2f}, {_p50(here):.2f} ms")
            turns = [
                _p50(ours[index]) / _p50(local[index])
                for local, ours in zip(found["here"], found["one"], strict=True)
            ]
            low, middle, high = statistics.quantiles(turns, n=4)
            self._row(
                "as a multiple: of the two; of each turn, quartiles",
                f"{_p50(there) / _p50(here):.2f}; {low:.2f}, {middle:.2f}, {high:.2f}",
            )

    async def _day(self) -> list[int]:
        """Let the day pass; return how many slots were held, every five seconds."""
        feeding = asyncio.create_task(self._feed())
        began, held, done, since = time.monotonic(), [0], 0, time.monotonic()
        spent = await self._spent()
        while not (feeding.done() and await self._all_done()):
            await asyncio.sleep(5)
            if feeding.done():
                feeding.result()
            before = done
            done, slots, there = await self._one(
                "select count(*) filter (where status = 'completed'), count(slot), count(*)"
                f" from phase_queue where {_OURS}"
            )
            held.append(slots)
            self._resident_at.append(self._resident())
            since = time.monotonic() if done != before else since
            if done - spent[0] >= self.phases / 10:
                then, spent = spent, await self._spent()
                number = spent[0] - then[0]
                each = [(now - was) / number for now, was in zip(spent, then, strict=True)]
                print(
                    f"  {time.monotonic() - began:.0f} s: {done} of {there} done, {slots} held;"
                    f" a phase: server {1000 * each[1]:.1f} ms, Postgres {1000 * each[2]:.1f} ms,"
                    f" {each[3]:.1f} transactions; resident {self._resident_at[-1]:.0f} MB",
                    flush=True,
                )
            if time.monotonic() - since > 300:
                print("  STUCK", flush=True)
                return held
        return held

    async def _spent(self) -> tuple[float, ...]:
        """Return phases done, processor seconds of the server and of Postgres, transactions."""
        (done,) = await self._one(
            f"select count(*) from phase_queue where status = 'completed' and {_OURS}"
        )
        return done, self._busy(), _busy_of_tree(self._postmaster), await self._commits()

    async def _judge(self) -> int:
        wrong = await self._one(
            "select (select count(*) from phase_queue where status <> 'completed'),"
            " (select count(*) from pgcoord.attempt where number > 1 or refused_begins > 0"
            " or exited_at is not null and outcome is distinct from 'completed'),"
            " (select count(*) from pgcoord.attempt where exited_at is null)"
        )
        refused = sum(each.refused for each in self.engines.values())
        found = ", ".join(map(str, (*wrong, refused)))
        self._row("not completed; tried again; open attempts; refused copies", found)
        return 1 if any(wrong) or refused else 0

    async def _feed(self) -> None:
        """Let the features come, evenly over the day, and gauge in its middle."""
        number, names = self.phases // PHASES, list(POOLS)
        began = time.monotonic()
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as conn:
            for index in range(number):
                rows = [
                    (
                        index + 2,
                        phase,
                        Jsonb([phase - WIDTH] if phase > WIDTH else []),
                        Jsonb({"workflow_type": names[(index + phase) % 10 % 3]}),
                    )
                    for phase in range(1, PHASES + 1)
                ]
                async with conn.transaction(), conn.cursor() as cursor:
                    await cursor.execute(
                        "insert into planned_features (id, title) values (%s, 'load')", [index + 2]
                    )
                    await cursor.executemany(
                        "insert into phase_queue"
                        " (feature_id, phase_number, depends_on_phases, phase_data)"
                        " values (%s, %s, %s, %s)",
                        rows,
                    )
                if index == number // 2:
                    await self._look_in_the_middle()
                due = began + self.seconds * index / number
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _look_in_the_middle(self) -> None:
        """Gauge under load; then, with all jobs held still, time the claim."""
        hops = [each for _ in range(4) for each in (await self._gauge("one"))[1]]
        self._row("under load: ended → next claimed, p50", f"{_p50(hops):.2f} ms")
        for each in self.engines.values():
            each.frozen.clear()
        await asyncio.sleep(3)
        times = await self._claim_times("one")
        held, there = await self._one("select count(slot), count(*) from phase_queue")
        for each in self.engines.values():
            each.frozen.set()
        self._row(
            f"a claim, {held} slots held, {there} phases there, p10 / p50 / p99", _times(times)
        )
        tenths = [statistics.quantiles(each, n=10)[0] for each in (times, self._idle)]
        self._row(
            "as a multiple of one with nothing else: p10, p50",
            f"{tenths[0] / tenths[1]:.2f}, {_p50(times) / _p50(self._idle):.2f}",
        )

    async def _gauge(self, workflow: str) -> tuple[list[float], list[float]]:
        """Run a line of single phases; return two lists of ms, one of each phase but the first.

        From the claim to the submit at the engine (or the recorded start), and from a recorded end
        to the claim of the next.
        """
        (last,) = await self._one(
            "select coalesce(max(phase_number), 0) from phase_queue where feature_id = 1"
        )
        await self.conn.execute(
            "insert into phase_queue"
            " (feature_id, phase_number, depends_on_phases, phase_data, priority)"
            " select 1, n, case when n = %(first)s::integer then '[]'"
            " else jsonb_build_array(n - 1) end,"
            " jsonb_build_object('workflow_type', %(name)s::text), 1"
            " from generate_series(%(first)s::integer, %(first)s::integer + %(more)s) as n",
            {"first": last + 1, "name": workflow, "more": GAUGE},
        )
        await self._until(
            f"select 1 from phase_queue where feature_id = 1 and phase_number = {last + 1 + GAUGE}"
            " and status = 'completed'"
        )
        cursor = await self.conn.execute(
            "select a.id, extract(epoch from p.ready_timestamp)::float8,"
            " extract(epoch from a.started_at)::float8,"
            " extract(epoch from p.finished_timestamp)::float8"
            " from phase_queue as p join pgcoord.attempt as a on a.queue_id = p.queue_id"
            " where p.feature_id = 1 and p.phase_number > %s order by p.phase_number",
            [last],
        )
        rows = await cursor.fetchall()
        submits = {k: v for e in self.engines.values() for k, v in e.submitted_at.items()}
        starts = [1000 * (submits.get(row[0], row[2]) - row[1]) for row in rows[1:]]
        hops = [1000 * (later[1] - row[3]) for row, later in itertools.pairwise(rows)]
        return starts, hops

    async def _claim_times(self, workflow: str) -> list[float]:
        """Time claims of one phase, each rolled back, in ms: nothing else may be claiming."""
        times = []
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as conn:
            await conn.execute("set lock_timeout = '5s'")
            async with conn.transaction(force_rollback=True):
                await conn.execute(
                    "insert into phase_queue (feature_id, phase_number, phase_data, priority)"
                    " values (1, 1000000, jsonb_build_object('workflow_type', %s::text), 1)",
                    [workflow],
                )
                await conn.execute(
                    "select pgcoord.set_slots(count(*)::integer + 1, pool) from pgcoord.slot"
                    " where pool = %s group by pool",
                    [workflow],
                )
                for _ in range(100):
                    async with conn.transaction(force_rollback=True):
                        before = time.perf_counter()
                        cursor = await conn.execute(
                            "select queue_id from pgcoord_private.claim_phases("
                            "(select epoch from pgcoord.control))"
                        )
                        times.append(1000 * (time.perf_counter() - before))
                        assert [row[0] for row in await cursor.fetchall()] == ["queue-1-1000000"]
        return times

    async def _one(self, statement: str) -> Row:
        cursor = await self.conn.execute(statement.encode())
        return await cursor.fetchone()

    async def _all_done(self) -> bool:
        return not await self._one(
            f"select 1 from phase_queue where status <> 'completed' and {_OURS} limit 1"
        )

    async def _until(self, statement: str) -> None:
        async with asyncio.timeout(600):
            while not await self._one(statement):  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def _commits(self) -> int:
        (found,) = await self._one(
            "select xact_commit from pg_stat_database where datname = current_database()"
        )
        return int(found)

    def _resident(self) -> float:
        match = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.serve.pid}/status").read_text())
        assert match
        return int(match[1]) / 1024

    def _busy(self) -> float:
        fields = _stat(self.serve.pid)
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _row(self, what: str, value: str) -> None:
        print(f"| {what} | {value} |", flush=True)


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on, the state."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _busy_of_tree(pid: int) -> float:
    """Return the processor seconds of *pid*, its children, and those of them that have ended."""
    ticks = sum(map(int, _stat(pid)[11:15]))
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            ticks += sum(map(int, _stat(int(child))[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _p50(times: list[float]) -> float:
    return statistics.median(times)


def _times(times: list[float]) -> str:
    hundredths = statistics.quantiles(times, n=100)
    return f"{hundredths[9]:.2f} / {_p50(times):.2f} / {hundredths[98]:.2f} ms"


if __name__ == "__main__":
    sys.exit(main())
