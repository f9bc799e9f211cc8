"""Measure how fast pgcoord is on a server, in scratch databases that are dropped afterwards.

The one rule: the measured program is the one that people run. The coordinator is `pgcoord serve`,
a process of its own, and every figure is taken from outside that process. A few milliseconds mean
nothing without the machine. So each sample alternates with one of the "floor", the same steps on a
plain table, and the ratio of the two counts most.
"""

import asyncio
import base64
import json
import math
import multiprocessing
import os
import platform
import re
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from http.client import HTTPConnection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

from pgcoord import __version__, assets
from pgcoord.database import schema
from pgcoord.database.connect import connect, connect_blocking
from pgcoord.errors import CannotStart, DatabaseUnusable
from pgcoord.messages.signing import sign

Connection = psycopg.Connection[Any]
Announce = Callable[[str], None]

# Seconds to wait for any single step; after that the coordinator is stuck, not slow.
PATIENCE = 60.0

# Samples that are not counted: psycopg prepares a statement, and Postgres may choose a generic
# plan, with the sixth execution.
WARM_UP = 10

# Seconds: after its last record the coordinator runs its loop once more, then waits for a
# notification, the state in which it spends the hours of a long phase.
CALM = 0.005

# Seconds: a session may report its statistics only once it was idle for 10 s (Postgres 15).
FLUSHED = 11.0

NAME = "pgcoord bench"  # application_name of all our sessions, to tell them from autovacuum's

CHAIN = 100  # phases of a feature, where there are many


@dataclass(frozen=True)
class Extent:
    """How much to measure: numbers of samples and of phases; *idle_seconds* to watch it idle."""

    hops: int
    drained: int
    inserted: int
    finished: int
    idle_seconds: int
    starts: int


QUICK = Extent(hops=20, drained=150, inserted=2_000, finished=0, idle_seconds=0, starts=1)
USUAL = Extent(hops=1_000, drained=6_000, inserted=100_000, finished=0, idle_seconds=20, starts=3)
FULL = Extent(
    hops=1_000, drained=6_000, inserted=100_000, finished=1_000_000, idle_seconds=60, starts=5
)


@dataclass(frozen=True)
class Goal:
    """Bounds for a value: it must keep `limit` (None: there is none), and should reach `aim`."""

    limit: float | None
    aim: float
    more_is_better: bool = False

    def verdict(self, value: float, slowness: float = 1.0) -> str:
        """Return the verdict on *value*, one of `VERDICTS`.

        *slowness*: how many times slower this machine is than the one that the limits are for. A
        value that would keep the limit there is "slow machine" rather than "LIMIT MISSED".
        """
        if self._meets(value, self.aim):
            return "aim reached"
        if self.limit is None:
            return "aim missed"
        if self._meets(value, self.limit):
            return "within the limit"
        scaled = value * slowness if self.more_is_better else value / slowness
        return SLOW_MACHINE if self._meets(scaled, self.limit) else "LIMIT MISSED"

    def _meets(self, value: float, bound: float) -> bool:
        return value >= bound if self.more_is_better else value <= bound


# From the worst to the best.
SLOW_MACHINE = "slow machine"  # scaled to the machine of the floors below, the limit is kept
VERDICTS = ("LIMIT MISSED", SLOW_MACHINE, "aim missed", "within the limit", "aim reached")


# The floors (in ms, and in jobs per second) of the machine that the limits are meant for
# (docs/performance.md, fast hour).
_FLOOR_MS = 1.04
_FLOOR_DRAIN = 2_594.0


@dataclass(frozen=True)
class Figure:
    """One measurement in *unit*: a single value, or the median of *samples* with their `p99`.

    A ratio is judged by its medians alone: the p99 of a ratio is too noisy.
    """

    key: str
    what: str
    unit: str
    value: float
    p99: float | None = None
    goal: Goal | None = None
    goal_p99: Goal | None = None
    samples: int = 1
    floor: float | None = None  # the floor's value in the same run, in the same unit
    slowness: float = 1.0  # how many times slower this machine is than the one the limits are for

    @property
    def ratio(self) -> float | None:
        """The value as a multiple of the floor; None if there is none."""
        return None if self.floor is None else self.value / self.floor

    @property
    def verdict(self) -> str | None:
        """The worse of the verdicts on the value and on its 99th percentile."""
        given = [self.goal.verdict(self.value, self.slowness)] if self.goal else []
        if self.goal_p99 and self.p99 is not None:
            given.append(self.goal_p99.verdict(self.p99, self.slowness))
        return min(given, key=VERDICTS.index, default=None)

    @property
    def misses_limit(self) -> bool:
        """Whether the value or its p99 misses its limit, and would on the machine of the limits."""
        return self.verdict == "LIMIT MISSED"


@dataclass(frozen=True)
class Machine:
    """The machine, server and program that the figures were measured on."""

    pgcoord: str
    python: str
    system: str
    processor: str
    cores: int
    load_before: float
    postgres: str
    fsync: str
    synchronous_commit: str
    shared_buffers: str

    @property
    def busy(self) -> bool:
        """Whether other work loaded it beforehand: then even the ratios say less than usual."""
        return self.load_before > self.cores / 2

    def __str__(self) -> str:
        return (
            f"{self.processor}, {self.cores} cores, load {self.load_before:.1f}; {self.system};"
            f" PostgreSQL {self.postgres}, fsync {self.fsync}, synchronous_commit"
            f" {self.synchronous_commit}, shared_buffers {self.shared_buffers};"
            f" pgcoord {self.pgcoord}, Python {self.python}"
        )


@dataclass
class Report:
    """A machine and its figures."""

    machine: Machine
    figures: list[Figure] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the object that `bench --json` prints: `machine`, `load_after`, `figures`."""
        return {
            "machine": asdict(self.machine),
            "load_after": _load(),
            "figures": [
                {**asdict(each), "verdict": each.verdict, "ratio": each.ratio}
                for each in self.figures
            ],
        }


def measure(dsn: str, extent: Extent, environment: Mapping[str, str], announce: Announce) -> Report:
    """Measure in scratch databases on the server of *dsn*; block for seconds to many minutes.

    Coordinators start with *environment*; *announce* is called with the name of each step. The
    databases are dropped even after an error. Raises `DatabaseUnusable` when the user may not
    create databases, and `CannotStart` when a coordinator does not start or claim.
    """
    with ExitStack() as stack:
        admin = stack.enter_context(_connected(dsn))
        report = Report(_machine(admin))
        scratch = stack.enter_context(scratch_databases(admin, dsn))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgcoord-bench-")))
        report.figures += _work_of_coordinator(
            admin, scratch, folder, environment, extent, announce
        )
        announce(f"draining {extent.drained:,} phases through 3 slots")
        report.figures += drain(scratch(), scratch(with_schema=False), extent.drained)
        report.figures.append(drain_own(scratch(), extent.drained))
        announce(f"inserting {extent.inserted:,} phases")
        report.figures.append(insert(scratch(), extent.inserted))
    report.figures = list(beside_floors(report.figures))
    return report


def beside_floors(figures: Sequence[Figure]) -> Iterator[Figure]:
    """Yield *figures* with `floor`, where one belongs to the figure, and `slowness` filled in.

    *figures* must hold those with the keys "floor" and "floor_drain".
    """
    values = {each.key: each.value for each in figures}
    slow = max(1.0, values["floor"] / _FLOOR_MS)
    slow_drain = max(1.0, _FLOOR_DRAIN / values["floor_drain"])
    for each in figures:
        if each.key in ("hop", "hop_start", "webhook"):
            yield replace(each, floor=values["floor"], slowness=slow)
        elif each.key in ("drain", "drain_own"):
            yield replace(each, floor=values["floor_drain"], slowness=slow_drain)
        else:
            timed = each.key in ("start", "insert")
            yield replace(each, slowness=slow if timed else 1.0)


def _work_of_coordinator(
    admin: Connection,
    scratch: Callable[..., str],
    folder: Path,
    environment: Mapping[str, str],
    extent: Extent,
    announce: Announce,
) -> list[Figure]:
    """Measure a coordinator on an empty database and, with `extent.finished`, one on a full one."""
    with ExitStack() as stack:
        place = scratch()
        announce("starting a coordinator")
        start = start_up(place, folder / "start", environment, extent.starts)
        coordinator = stack.enter_context(serving(place, folder / "empty", environment))
        with ExitStack() as chains:
            chain = chains.enter_context(chained(coordinator, 2 * extent.hops))
            floor = chains.enter_context(bare(scratch(with_schema=False)))
            full = None
            if extent.finished:
                announce(f"storing {extent.finished:,} finished phases")
                crowded = scratch()
                fill(crowded, extent.finished)
                beside = chains.enter_context(serving(crowded, folder / "full", environment))
                full = chains.enter_context(chained(beside, extent.hops))
            announce(f"{extent.hops:,} phases, each started by the end of the one before it")
            figures = hops(chain, floor, full, extent.hops)
        figures += [memory(coordinator), start]
        if extent.idle_seconds:
            announce(f"watching the coordinator idle for {FLUSHED + extent.idle_seconds:.0f} s")
            figures += idle(admin, place, extent.idle_seconds)
    return figures


# A hop: a phase is completed, the next one is claimed and its process started.


class _Chain:
    """A chain of phases that a coordinator runs, advanced by one phase at a time.

    The process of a phase first writes its number to the FIFO `started`, then blocks until it can
    read from its FIFO `gate-<number>`, or that is closed.
    """

    def __init__(
        self, conn: Connection, listener: Connection, coordinator: "_Coordinator", feature: int
    ) -> None:
        self._conn = conn
        self._listener = listener
        self._coordinator = coordinator
        self._folder = coordinator.folder
        self._feature = feature
        self._number = 1
        self._gates: dict[int, int] = {}
        self._started = os.open(_fifo(self._folder / "started"), os.O_RDWR)
        self._web = HTTPConnection(coordinator.address(), timeout=PATIENCE)

    def begin(self, phases: int) -> None:
        """Queue *phases* phases, and block until the process of the first has started."""
        self._open_gate(1)
        self._conn.execute(_sql("phases"), [self._feature, phases])
        self._await_start(1)
        self._settle()

    def go_on(self) -> tuple[float, float]:
        """Complete the running phase by SQL; return the seconds until the next is claimed, started.

        Both count from sending the statement. Claimed: the coordinator's claim has committed, and
        its notification has reached our listening session. Started: the next process has executed
        its first instruction. Raises `CannotStart` after `PATIENCE`.
        """
        self._open_gate(self._number + 1)
        sent = time.perf_counter()
        self._conn.execute(_sql("complete"), [f"queue-{self._feature}-{self._number}"])
        _await_another(self._listener, self._conn.info.backend_pid)
        claimed = time.perf_counter()
        self._await_start(self._number + 1)
        started = time.perf_counter()
        self._let_out(self._number)
        self._number += 1
        self._settle()
        return claimed - sent, started - sent

    def report(self) -> float:
        """Report the running phase as completed; return the seconds until the next is started.

        They count from sending the signed HTTP request. Raises `CannotStart` when the answer is
        not 200, or after `PATIENCE`.
        """
        self._open_gate(self._number + 1)
        body = {"queue_id": f"queue-{self._feature}-{self._number}", "status": "completed"}
        signed = sign(_secret(), body)
        headers = {"content-type": "application/json", **signed.headers}
        sent = time.perf_counter()
        self._web.request("POST", "/workflow-complete", signed.body, headers)
        self._await_start(self._number + 1)
        started = time.perf_counter()
        answer = self._web.getresponse()
        if answer.status != 200:
            raise CannotStart(f"the report was answered {answer.status}: {answer.read()!r}")
        answer.read()
        self._let_out(self._number)
        self._number += 1
        self._settle()
        return started - sent

    def end(self, conn: Connection) -> None:
        """Cancel the remaining phases, and block until the last process has ended.

        *conn* must be a new connection: Ctrl-C may have interrupted a statement on ours.
        """
        conn.execute(
            _sql("cancel_all")
        )  # first: let out, the last phase would complete the feature
        for number in self._gates:
            self._let_out(number)
        _await_count(conn, "open_attempts")

    def close(self) -> None:
        """Close the FIFOs and the HTTP connection; a process that still waits at its gate ends."""
        self._web.close()
        for descriptor in (self._started, *self._gates.values()):
            os.close(descriptor)

    def _open_gate(self, number: int) -> None:
        self._gates[number] = os.open(_fifo(self._folder / f"gate-{number}"), os.O_RDWR)

    def _let_out(self, number: int) -> None:
        """Write to the gate of a phase. It stays open: its process may not have opened it yet."""
        os.write(self._gates[number], b"\n")

    def _await_start(self, number: int) -> None:
        readable, _, _ = select.select([self._started], [], [], PATIENCE)
        said = os.read(self._started, 100).decode().strip() if readable else "nothing"
        if said != str(number):
            raise CannotStart(
                f"phase {number} was not started (the processes said {said});"
                f" the coordinator: {self._coordinator.last_words()}"
            )

    def _settle(self) -> None:
        """Block until the coordinator has recorded every end and waits for a notification."""
        _await_count(self._conn, "unsettled")
        if self._number - 1 in self._gates:
            os.close(self._gates.pop(self._number - 1))
        time.sleep(CALM)
        list(self._listener.notifies(timeout=0))


class _Floor:
    """The same hop on a plain table, with a claimer that does nothing else."""

    def __init__(self, conn: Connection, listener: Connection) -> None:
        self._conn = conn
        self._listener = listener
        self._number = 1

    def begin(self) -> None:
        """Block until the claimer has claimed the first job, which it does when it starts."""
        _await_another(self._listener, self._conn.info.backend_pid)

    def go_on(self) -> float:
        """Complete the claimed job; return the seconds until the claimer has claimed the next."""
        list(self._listener.notifies(timeout=0))
        sent = time.perf_counter()
        self._conn.execute(_sql("floor_complete"), [self._number])
        _await_another(self._listener, self._conn.info.backend_pid)
        claimed = time.perf_counter()
        self._number += 1
        return claimed - sent


def hops(chain: _Chain, floor: _Floor, full: _Chain | None, samples: int) -> list[Figure]:
    """Take *samples* of each kind of hop, alternately; return their figures.

    One by SQL and one by webhook on *chain*, one on the *floor*, and one on the chain of a *full*
    database if there is one.
    """
    claims: list[float] = []
    starts: list[float] = []
    reports: list[float] = []
    bare: list[float] = []
    crowded: list[float] = []
    for number in range(WARM_UP + samples):
        claimed, started = chain.go_on()
        reported = chain.report()
        plain = floor.go_on()
        late = full.go_on()[0] if full else 0.0
        if number >= WARM_UP:
            claims.append(claimed)
            starts.append(started)
            reports.append(reported)
            bare.append(plain)
            crowded.append(late)
    figures = [
        _timing("hop", "completed (SQL) → next phase claimed", claims, (3, 25), (1, 5)),
        _timing("hop_start", "completed (SQL) → next process started", starts),
        _timing(
            "webhook", "signed webhook sent → next process started", reports, (15, 50), (6, 25)
        ),
        _timing("floor", "bare floor: update, notify, claim", bare),
        _ratio("hop_ratio", "claimed, as a multiple of the floor", claims, bare, Goal(3, 1.8)),
    ]
    if full:
        what = "claimed with a full table, as a multiple of an empty one"
        figures.append(_ratio("full_ratio", what, crowded, claims, Goal(1.5, 1.1)))
    return figures


@contextmanager
def chained(coordinator: "_Coordinator", samples: int) -> Iterator[_Chain]:
    """Yield a chain whose first phase runs; on exit its processes have ended.

    Blocks until *coordinator* leads. It queues enough phases for *samples* hops and the warm-up.
    """
    with _connected(coordinator.dsn) as conn, _connected(coordinator.dsn) as listener:
        _led_after(conn, coordinator, "epoch")
        listener.execute(_sql("listen"))
        (feature,) = _row(conn, "feature")
        chain = _Chain(conn, listener, coordinator, feature)
        try:
            chain.begin(2 * WARM_UP + samples + 1)
            yield chain
        finally:
            try:
                if coordinator.runs():
                    with _connected(coordinator.dsn) as fresh:
                        chain.end(fresh)
            finally:
                chain.close()


@contextmanager
def bare(dsn: str) -> Iterator[_Floor]:
    """Yield the floor on a database without our schema; its claimer, a process, ends on exit."""
    with _connected(dsn) as conn, _connected(dsn) as listener:
        conn.execute(_sql("floor_make"))
        listener.execute(_sql("floor_hear"))
        # In its own process, as the coordinator is.
        claimer = multiprocessing.get_context("spawn").Process(
            target=_claim_from_floor, args=(dsn,), daemon=True
        )
        claimer.start()
        try:
            floor = _Floor(conn, listener)
            floor.begin()
            yield floor
        finally:
            claimer.kill()
            claimer.join()


def _claim_from_floor(dsn: str) -> None:
    """Claim a job of the floor's table each time one is completed, until killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started us

    async def claim() -> None:
        async with (
            await connect(dsn) as listener,
            await connect(dsn) as conn,
        ):
            await listener.execute(_sql("floor_wake"))
            await conn.execute(_sql("floor_claim"))
            async for _ in listener.notifies():
                await conn.execute(_sql("floor_claim"))

    asyncio.run(claim())


def fill(dsn: str, phases: int) -> None:
    """Store *phases* finished phases with their dependencies, attempts and events; vacuum.

    Also queue 50,000 phases of a paused feature ahead of all others, which every claim must skip.
    """
    with _connected(dsn) as conn:
        conn.execute(_composed("finished", features=sql.Literal(max(1, phases // CHAIN))))
        conn.execute(_sql("held"))
        conn.execute(_sql("tidy"))


# Throughput: the coordinator's statements alone, without the program and without processes.


def drain(dsn: str, bare: str, phases: int) -> list[Figure]:
    """Measure throughput with three slots: phases of 100 features, then jobs of a plain table.

    *dsn* has the schema, *bare* is empty. Return the figures "drain" and "floor_drain", per second.
    """
    with _connected(dsn) as conn:
        conn.execute(_sql("features"), [100])
        conn.execute(_sql("singles"), [math.ceil(phases / 100)])
        conn.execute(_sql("tidy"))
        (epoch,) = _row(conn, "lead")
        ours = phases / _drained(dsn, ("claim", [epoch]), "complete", "listen_wake", phases)
    with _connected(bare) as conn:
        conn.execute(_sql("floor_make"))
        conn.execute(_sql("floor_limit"))
    plain = phases / _drained(bare, ("floor_take", []), "floor_complete", "floor_wake", phases)
    return [
        Figure(
            "drain",
            "phases through 3 slots: claimed, completed",
            "/s",
            ours,
            goal=Goal(1_500, 3_200, more_is_better=True),
            samples=phases,
        ),
        Figure("floor_drain", "bare floor: the same, without our triggers", "/s", plain),
    ]


def drain_own(dsn: str, phases: int) -> Figure:
    """Measure throughput with three slots when one commit records ends and claims, per second."""
    with _connected(dsn) as conn:
        conn.execute(_sql("features"), [100])
        conn.execute(_sql("singles"), [math.ceil(phases / 100)])
        conn.execute(_sql("tidy"))
        (epoch,) = _row(conn, "lead")
        seconds = _drained_in_rounds(conn, epoch, phases)
    return Figure(
        "drain_own",
        "phases through 3 slots: ended and claimed in one commit",
        "/s",
        phases / seconds,
        samples=phases,
    )


def _drained_in_rounds(conn: Connection, epoch: int, total: int) -> float:
    """Record ends and claim what follows in one statement, as a coordinator does.

    Return the seconds until *total* phases have ended. No process runs: phases claimed together
    end together, in the next statement.
    """
    begun = time.perf_counter()
    ended, ends = 0, list[Any]()
    while ended < total:
        found = conn.execute(_sql("record_and_claim"), [epoch, Jsonb(ends)]).fetchall()
        ended += len(ends)
        ends = [{"kind": "exited", "attempt_id": attempt, "exit_code": 0} for (attempt,) in found]
        if not ends and ended < total:
            raise CannotStart(f"{ended} of {total} phases were drained, then no more")
    return time.perf_counter() - begun


def _drained(dsn: str, claim: tuple[str, list[Any]], complete: str, wake: str, total: int) -> float:
    """Claim and complete *total* jobs, each in a commit of its own; return the seconds it took.

    This thread claims, and three others complete, each on its own connection. *claim* is the name
    of a statement with its arguments; it returns the ids that *complete* takes. *wake* names the
    LISTEN for the notification that a slot is free.
    """
    waiting: SimpleQueue[Any] = SimpleQueue()

    def keep_completing() -> None:
        with _connected(dsn) as conn:
            while (taken := waiting.get()) is not None:
                conn.execute(_sql(complete), [taken])

    statement, arguments = claim
    with _connected(dsn) as listener, _connected(dsn) as conn, ThreadPoolExecutor(3) as threads:
        listener.execute(_sql(wake))
        completers = [threads.submit(keep_completing) for _ in range(3)]
        begun, claimed = time.perf_counter(), 0
        try:
            while claimed < total:
                # Each claimed job notifies when it is completed, so no wake-up is missed.
                found = conn.execute(_sql(statement), arguments).fetchall()
                claimed += len(found)
                for taken, *_ in found:
                    waiting.put(taken)
                if not found and not list(listener.notifies(timeout=PATIENCE, stop_after=1)):
                    raise CannotStart(f"{claimed} of {total} phases were drained, then no more")
        finally:
            for _ in completers:
                waiting.put(None)
        for each in completers:
            each.result()
        return time.perf_counter() - begun


def insert(dsn: str, phases: int) -> Figure:
    """Measure how fast one plain INSERT queues *phases* phases, each with one dependency.

    They are chains of `CHAIN` phases, one a feature.
    """
    with _connected(dsn) as conn:
        conn.execute(_sql("features"), [max(1, phases // CHAIN)])
        conn.execute(_sql("singles"), [1])
        begun = time.perf_counter()
        inserted = conn.execute(_sql("chains"), [CHAIN]).rowcount
        seconds = time.perf_counter() - begun
    return Figure(
        "insert",
        "phases inserted, one dependency each",
        "/s",
        inserted / seconds,
        goal=Goal(20_000, 60_000, more_is_better=True),
        samples=inserted,
    )


# The coordinator as a process: its time to start, its memory, its statements when idle.


class _Coordinator:
    """A running `pgcoord serve`."""

    def __init__(self, dsn: str, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.dsn = dsn
        self.folder = folder
        self.process = process

    def runs(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def last_words(self) -> str:
        """Return the last three lines of its log, joined to one, for an error message."""
        return " ".join(" ".join(self._said().splitlines()[-3:]).split()) or "it said nothing"

    def address(self) -> str:
        """Return "host:port" of its web server; block until its log names it.

        Raises `CannotStart` when it has ended, or after `PATIENCE`.
        """
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.runs():
            if found := re.search(r"serving on http://(\S+)\n", self._said()):
                return found[1]
            time.sleep(0.005)
        raise CannotStart(f"the coordinator serves nothing: {self.last_words()}")

    def _said(self) -> str:
        return (self.folder / "serve.log").read_text(encoding="utf-8", errors="replace")


@contextmanager
def serving(dsn: str, folder: Path, environment: Mapping[str, str]) -> Iterator[_Coordinator]:
    """Start `pgcoord serve` on *dsn* in *folder*, and yield it without waiting until it serves.

    On exit it gets SIGTERM, and SIGKILL after 10 s.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pgcoord.toml").write_text(_configuration(folder), encoding="utf-8")
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pgcoord", "serve", "--config", "pgcoord.toml"],
            cwd=folder,
            env={**environment, "DATABASE_URL": dsn, "PGCOORD_BENCH_SECRET": _secret()},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches us only: we stop it afterwards
        )
        try:
            yield _Coordinator(dsn, folder, process)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()


def _configuration(folder: Path) -> str:
    """Return a pgcoord.toml with one workflow, whose processes do what `_Chain` describes."""
    say_and_wait = 'echo "$PGCOORD_PHASE_NUMBER" >"$1"; read -r _ <"$2"'
    within = str(folder).replace("{", "{{").replace("}", "}}")
    command = [
        "sh",
        "-c",
        say_and_wait,
        "bench",
        f"{within}/started",
        f"{within}/gate-{{phase_number}}",
    ]
    return (
        '[server]\nport = 0\nwebhook_secrets = ["PGCOORD_BENCH_SECRET"]\n'
        f"[workflow.bench]\ndefault = true\ncommand = {json.dumps(command)}\n"
        f"[log]\nfolder = {json.dumps(str(folder / 'runs'))}\n"
    )


def start_up(dsn: str, folder: Path, environment: Mapping[str, str], times: int) -> Figure:
    """Start a coordinator *times* times; return the median from its start until it leads, in ms."""
    seconds = []
    with _connected(dsn) as conn:
        for _ in range(times):
            (since,) = _row(conn, "now")
            with serving(dsn, folder, environment) as coordinator:
                seconds.append(_led_after(conn, coordinator, since))
    return Figure(
        "start",
        "coordinator: start until listening",
        "ms",
        _rank(seconds, 0.5) * 1000,
        goal=Goal(1_000, 300),
        samples=times,
    )


def _led_after(conn: Connection, coordinator: _Coordinator, since: object) -> float:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if not coordinator.runs():
            raise CannotStart(f"the coordinator has ended: {coordinator.last_words()}")
        led = conn.execute(_sql("led_after"), {"since": since}).fetchone()
        if led:
            return float(led[0])
        time.sleep(0.005)
    raise CannotStart(f"the coordinator does not lead: {coordinator.last_words()}")


def memory(coordinator: _Coordinator) -> Figure:
    """Return the resident memory of *coordinator*, in MB, after the phases that it has run."""
    kilobytes = _resident(coordinator.process.pid)
    goal = Goal(80, 50)
    return Figure("memory", "coordinator: resident memory", "MB", kilobytes / 1024, goal=goal)


def _resident(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, check=True)
    return int(shown.stdout)


def idle(admin: Connection, dsn: str, seconds: float) -> list[Figure]:
    """Watch the database *dsn*, whose coordinator is idle, for `FLUSHED` + *seconds* seconds.

    Return its statements and its table reads, per minute. *admin* must be connected to another
    database, so that our own statements do not count.
    """
    time.sleep(FLUSHED)
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    reads = _table_reads(admin, dsn)
    statements, spent = _watch_statements(admin, str(name), seconds)
    reads = _table_reads(admin, dsn) - reads
    return [
        Figure(
            "idle",
            "idle coordinator: statements a minute",
            "/min",
            statements / spent * 60,
            goal=Goal(12, 6),
        ),
        Figure(
            "idle_reads",
            "idle coordinator: table reads a minute",
            "/min",
            reads / spent * 60,
            goal=Goal(None, 0),
        ),
    ]


def _watch_statements(admin: Connection, name: str, seconds: float) -> tuple[int, float]:
    """Count the statements in the database *name*; return their number, and the seconds watched.

    Each statement is a transaction of its own, which the server counts. If autovacuum ran
    meanwhile, which adds transactions, the observed changes of `query_start` count instead.
    """
    (transactions,) = _row(admin, "transactions", name)
    seen: set[tuple[int, object]] = set()
    visited = False
    begun = time.monotonic()
    known = {(pid, at) for pid, _, at in admin.execute(_sql("sessions"), [name])}
    while (spent := time.monotonic() - begun) < seconds:
        for pid, ours, at in admin.execute(_sql("sessions"), [name]):
            visited = visited or not ours
            if ours:
                seen.add((pid, at))
        time.sleep(0.02)
    (later,) = _row(admin, "transactions", name)
    statements = len(seen - known)
    return (statements if visited else max(statements, later - transactions)), spent


def _table_reads(admin: Connection, dsn: str) -> int:
    """Return the table reads in the database so far.

    Block until our session for that has ended, so that its own reads count now, not later.
    """
    with _connected(dsn) as conn:
        (reads,) = _row(conn, "table_reads")
        name, pid = conn.info.dbname, conn.info.backend_pid
    while any(pid == each for each, _, _ in admin.execute(_sql("sessions"), [name])):
        time.sleep(0.005)
    return int(reads)


# The databases that all this happens in.


@contextmanager
def scratch_databases(admin: Connection, dsn: str) -> Iterator[Callable[..., str]]:
    """Yield a function that creates a database and returns its DSN; on exit, drop them all.

    The function takes *with_schema* (true: upgrade the new database to our schema), and raises
    `DatabaseUnusable` when the user may not create databases.
    """
    prefix = f"pgcoord_bench_{os.getpid()}_{secrets.token_hex(4)}"
    names: list[str] = []

    def make(*, with_schema: bool = True) -> str:
        names.append(f"{prefix}_{len(names) + 1}")
        try:
            admin.execute(_composed("create_database", sql.Identifier(names[-1])))
        except psycopg.errors.InsufficientPrivilege as error:
            raise DatabaseUnusable(
                f"user {admin.info.user!r} may not create databases, and bench works in its own",
                hint=f'alter role "{admin.info.user}" createdb lets it; or --dsn another user.',
            ) from error
        made = make_conninfo(dsn, dbname=names[-1], application_name=NAME)
        if with_schema:
            with _connected(made) as conn:
                schema.upgrade(conn)
        return made

    try:
        yield make
    finally:
        # On a new connection: *admin* may be lost.
        with _connected(dsn) as dropper:
            for name in names:
                dropper.execute(_composed("drop_database", sql.Identifier(name)))


@contextmanager
def _connected(dsn: str) -> Iterator[Connection]:
    conn = connect_blocking(dsn)
    try:
        # The statements of sql/bench name tables without their schema, as those of clients do.
        conn.execute("set search_path = public")
        yield conn
    finally:
        conn.close()


@cache
def _sql(name: str) -> bytes:
    return (assets.SQL / "bench" / f"{name}.sql").read_bytes()


def _composed(name: str, *values: sql.Composable, **named: sql.Composable) -> sql.Composed:
    return sql.SQL(_sql(name).decode()).format(*values, **named)


def _row(conn: Connection, name: str, *values: object) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = conn.execute(_sql(name), values or None).fetchone()
    assert row is not None
    return row


def _await_another(listener: Connection, pid: int) -> None:
    """Block until a session other than *pid* notifies; raise `CannotStart` after `PATIENCE`."""
    deadline = time.monotonic() + PATIENCE
    while (left := deadline - time.monotonic()) > 0:
        if any(notice.pid != pid for notice in listener.notifies(timeout=left, stop_after=1)):
            return
    raise CannotStart(f"nothing was claimed for {PATIENCE:.0f} s")


def _await_count(conn: Connection, name: str) -> None:
    """Run the statement *name* until it returns 0; raise `CannotStart` after `PATIENCE`."""
    deadline = time.monotonic() + PATIENCE
    while _row(conn, name) != (0,):
        if time.monotonic() > deadline:
            raise CannotStart(f"the coordinator has not settled its attempts for {PATIENCE:.0f} s")
        time.sleep(0.002)


@cache
def _secret() -> str:
    """Return the secret that signs our reports, the same throughout the process."""
    return f"whsec_{base64.b64encode(os.urandom(32)).decode()}"


def _fifo(path: Path) -> Path:
    os.mkfifo(path, 0o600)
    return path


def _rank(samples: Sequence[float], share: float) -> float:
    """Return the quantile *share* (0 to 1) of *samples*: the smallest one that reaches it."""
    return sorted(samples)[math.ceil(share * len(samples)) - 1]


def _timing(
    key: str,
    what: str,
    seconds: Sequence[float],
    limits: tuple[float, float] | None = None,
    aims: tuple[float, float] | None = None,
) -> Figure:
    goals = [Goal(*pair) for pair in zip(limits, aims, strict=True)] if limits and aims else None
    return Figure(
        key,
        what,
        "ms",
        _rank(seconds, 0.5) * 1000,
        _rank(seconds, 0.99) * 1000,
        goal=goals[0] if goals else None,
        goal_p99=goals[1] if goals else None,
        samples=len(seconds),
    )


def _ratio(
    key: str, what: str, seconds: Sequence[float], to: Sequence[float], goal: Goal
) -> Figure:
    value, p99 = (_rank(seconds, share) / _rank(to, share) for share in (0.5, 0.99))
    return Figure(key, what, "x", value, p99, goal=goal, samples=len(seconds))


def _machine(admin: Connection) -> Machine:
    postgres, fsync, synchronous_commit, shared_buffers = _row(admin, "server")
    return Machine(
        pgcoord=__version__,
        python=platform.python_version(),
        system=platform.platform(terse=True),
        processor=_processor(),
        cores=os.cpu_count() or 1,
        load_before=_load(),
        postgres=postgres.split()[0],
        fsync=fsync,
        synchronous_commit=synchronous_commit,
        shared_buffers=shared_buffers,
    )


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _load() -> float:
    return round(os.getloadavg()[0], 2)
