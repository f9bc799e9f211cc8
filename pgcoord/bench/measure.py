"""How fast pgcoord is on a server: measured in databases made for it there, and dropped again.

The one rule: what people run is what is measured. A coordinator here is `pgcoord serve`, a process
of its own, and a figure is what somebody outside of it sees. A figure of a few milliseconds says
nothing without the machine: so a bare floor, the same on a plain table, is measured in turn with
it, one sample of each, and what counts most is the ratio of the two.
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
from pgcoord.report import sign

Connection = psycopg.Connection[Any]
Tell = Callable[[str], None]

# Seconds after which something is not slow but stuck.
PATIENCE = 60.0

# Samples that are not counted: plans are made, and statements prepared, with the sixth execution.
WARM_UP = 10

# After its last record a coordinator looks round once more; then it waits, as it does for hours
# between the phases of long jobs.
CALM = 0.005

# A server may keep what a session has done to itself until it was idle for 10 s (Postgres 15).
FLUSHED = 11.0

NAME = "pgcoord bench"  # of all our sessions: those of others are told from them by it

CHAIN = 100  # phases of a feature, where there are many


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

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
    """What a value has to keep to (`limit`) and what it should reach (`aim`)."""

    limit: float | None
    aim: float
    more_is_better: bool = False

    def verdict(self, value: float, slowness: float = 1.0) -> str:
        """The verdict in words."""
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
SLOW_MACHINE = "slow machine"  # it alone: on the machine of the floors below, the limit is kept
VERDICTS = ("LIMIT MISSED", SLOW_MACHINE, "aim missed", "within the limit", "aim reached")


# The bare floors of the machine for which the limits are meant (docs/performance.md, fast hour).
_FLOOR_MS = 1.04
_FLOOR_DRAIN = 2_594.0


@dataclass(frozen=True)
class Figure:
    """One thing measured: a value, or the median of many (`p99` beside it).

    A ratio is judged by its medians alone: the rarest samples of two series are of chance.
    """

    key: str
    what: str
    unit: str
    value: float
    p99: float | None = None
    goal: Goal | None = None
    goal_p99: Goal | None = None
    samples: int = 1
    floor: float | None = None  # of the same run, in the same unit
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
        """Whether a limit is missed."""
        return self.verdict == "LIMIT MISSED"


@dataclass(frozen=True)
class Machine:
    """What the figures are of."""

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
        """Whether it had other work to do: such figures say little, the ratios less than usual."""
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
        """As `bench --json` prints it."""
        return {
            "machine": asdict(self.machine),
            "load_after": _load(),
            "figures": [
                {**asdict(each), "verdict": each.verdict, "ratio": each.ratio}
                for each in self.figures
            ],
        }


def measure(dsn: str, extent: Extent, environment: Mapping[str, str], tell: Tell) -> Report:
    """Measure in databases of our own on the server of *dsn*; *tell* hears what is being done.

    Raises `DatabaseUnusable` when the user may not create databases, and `CannotStart` when a
    coordinator does not do its work. Whatever happens, what was made is dropped.
    """
    with ExitStack() as stack:
        admin = stack.enter_context(_connected(dsn))
        report = Report(_machine(admin))
        scratch = stack.enter_context(scratch_databases(admin, dsn))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgcoord-bench-")))
        report.figures += _work_of_coordinator(admin, scratch, folder, environment, extent, tell)
        tell(f"draining {extent.drained:,} phases through 3 slots")
        report.figures += drain(scratch(), scratch(with_schema=False), extent.drained)
        report.figures.append(drain_own(scratch(), extent.drained))
        tell(f"inserting {extent.inserted:,} phases")
        report.figures.append(insert(scratch(), extent.inserted))
    report.figures = list(beside_floors(report.figures))
    return report


def beside_floors(figures: Sequence[Figure]) -> Iterator[Figure]:
    """The figures, each with the floor of this run, if it has one, and the machine's slowness."""
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
    tell: Tell,
) -> list[Figure]:
    """What is measured of a coordinator that serves an empty database, and a full one with it."""
    with ExitStack() as stack:
        place = scratch()
        tell("starting a coordinator")
        start = start_up(place, folder / "start", environment, extent.starts)
        coordinator = stack.enter_context(serving(place, folder / "empty", environment))
        with ExitStack() as chains:
            chain = chains.enter_context(chained(coordinator, 2 * extent.hops))
            floor = chains.enter_context(_floor(scratch(with_schema=False)))
            full = None
            if extent.finished:
                tell(f"storing {extent.finished:,} finished phases")
                crowded = scratch()
                fill(crowded, extent.finished)
                beside = chains.enter_context(serving(crowded, folder / "full", environment))
                full = chains.enter_context(chained(beside, extent.hops))
            tell(f"{extent.hops:,} phases, each started by the end of the one before it")
            figures = hops(chain, floor, full, extent.hops)
        figures += [memory(coordinator), start]
        if extent.idle_seconds:
            tell(f"watching the coordinator idle for {FLUSHED + extent.idle_seconds:.0f} s")
            figures += idle(admin, place, extent.idle_seconds)
    return figures


# A hop: a phase is completed, the next one is claimed and its process started.


class _Chain:
    """A chain of phases run by a coordinator, which is asked to go on by one phase at a time.

    The process of a phase says its number into the FIFO `started`, as its first instruction, and
    lives until it is let out by its FIFO `gate-<number>`, or that is closed.
    """

    def __init__(
        self, conn: Connection, ears: Connection, coordinator: "_Coordinator", feature: int
    ) -> None:
        self._conn = conn
        self._ears = ears
        self._coordinator = coordinator
        self._folder = coordinator.folder
        self._feature = feature
        self._number = 1
        self._gates: dict[int, int] = {}
        self._started = os.open(_fifo(self._folder / "started"), os.O_RDWR)
        self._web = HTTPConnection(coordinator.address(), timeout=PATIENCE)

    def begin(self, phases: int) -> None:
        """Queue so many phases; the first is claimed and started."""
        self._open_gate(1)
        self._conn.execute(_sql("phases"), [self._feature, phases])
        self._await_start(1)
        self._settle()

    def go_on(self) -> tuple[float, float]:
        """Complete the phase that runs; return the seconds until the next is claimed, and started.

        They are counted from when the statement is sent. Claimed: the claim is committed, and the
        coordinator that made it as well as we, who listen, have been told. Started: the next
        process has executed its first instruction.
        """
        self._open_gate(self._number + 1)
        sent = time.perf_counter()
        self._conn.execute(_sql("complete"), [f"queue-{self._feature}-{self._number}"])
        _await_another(self._ears, self._conn.info.backend_pid)
        claimed = time.perf_counter()
        self._await_start(self._number + 1)
        started = time.perf_counter()
        self._let_out(self._number)
        self._number += 1
        self._settle()
        return claimed - sent, started - sent

    def report(self) -> float:
        """Report the phase that runs as completed; return the seconds until the next is started.

        They are counted from when the signed request is sent.
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
        """Give the rest up, and wait until the last process is gone.

        On a connection of its own: Ctrl-C may have come in the middle of a statement of ours.
        """
        for number in self._gates:
            self._let_out(number)
        conn.execute(_sql("cancel_all"))
        _await_count(conn, "open_attempts")

    def close(self) -> None:
        """Close the FIFOs: a process that still waits ends."""
        self._web.close()
        for descriptor in (self._started, *self._gates.values()):
            os.close(descriptor)

    def _open_gate(self, number: int) -> None:
        self._gates[number] = os.open(_fifo(self._folder / f"gate-{number}"), os.O_RDWR)

    def _let_out(self, number: int) -> None:
        """Write what the process waits for; perhaps it does not read yet, so nothing is closed."""
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
        """Wait until the coordinator has recorded what there is to record, and rests."""
        _await_count(self._conn, "unsettled")
        if self._number - 1 in self._gates:
            os.close(self._gates.pop(self._number - 1))
        time.sleep(CALM)
        list(self._ears.notifies(timeout=0))


class _Floor:
    """The same hop on a plain table, with a claimer that does nothing else."""

    def __init__(self, conn: Connection, ears: Connection) -> None:
        self._conn = conn
        self._ears = ears
        self._number = 1

    def begin(self) -> None:
        """Have the first job claimed, which the claimer does unasked."""
        _await_another(self._ears, self._conn.info.backend_pid)

    def go_on(self) -> float:
        """Complete the job that was claimed; return the seconds until the next is."""
        list(self._ears.notifies(timeout=0))
        sent = time.perf_counter()
        self._conn.execute(_sql("floor_complete"), [self._number])
        _await_another(self._ears, self._conn.info.backend_pid)
        claimed = time.perf_counter()
        self._number += 1
        return claimed - sent


def hops(chain: _Chain, floor: _Floor, full: _Chain | None, samples: int) -> list[Figure]:
    """Measure hops in turn: of a coordinator, of the bare floor, of one with a full database."""
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
    """A chain that has begun; in the end the processes are gone and the coordinator idles."""
    with _connected(coordinator.dsn) as conn, _connected(coordinator.dsn) as ears:
        _led_after(conn, coordinator, "epoch")
        ears.execute(_sql("listen"))
        (feature,) = _row(conn, "feature")
        chain = _Chain(conn, ears, coordinator, feature)
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
def _floor(dsn: str) -> Iterator[_Floor]:
    with _connected(dsn) as conn, _connected(dsn) as ears:
        conn.execute(_sql("floor_make"))
        ears.execute(_sql("floor_hear"))
        # A process of its own, as a coordinator is one.
        claimer = multiprocessing.get_context("spawn").Process(
            target=_claim_from_floor, args=(dsn,), daemon=True
        )
        claimer.start()
        try:
            floor = _Floor(conn, ears)
            floor.begin()
            yield floor
        finally:
            claimer.kill()
            claimer.join()


def _claim_from_floor(dsn: str) -> None:
    """Claim a job from the floor whenever one was completed, until killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started us

    async def claim() -> None:
        async with (
            await connect(dsn) as ears,
            await connect(dsn) as conn,
        ):
            await ears.execute(_sql("floor_wake"))
            await conn.execute(_sql("floor_claim"))
            async for _ in ears.notifies():
                await conn.execute(_sql("floor_claim"))

    asyncio.run(claim())


def fill(dsn: str, phases: int) -> None:
    """Store finished phases, with the edges, attempts and events that such phases leave behind.

    And at the head of the line 50,000 phases of a paused feature.
    """
    with _connected(dsn) as conn:
        conn.execute(_composed("finished", features=sql.Literal(max(1, phases // CHAIN))))
        conn.execute(_sql("held"))
        conn.execute(_sql("tidy"))


# Throughput: no processes, no coordinator's program, only its statements.


def drain(dsn: str, bare: str, phases: int) -> list[Figure]:
    """Measure phases through three slots, of 100 features, and jobs of a plain table likewise."""
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
    """Measure phases through three slots as a coordinator ends and claims them, in one commit."""
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
    """Record ends with the claim of what follows, as a coordinator's own path; return the seconds.

    The jobs do nothing: those that were claimed together end together.
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
    """Claim on wake and complete, each in a commit of its own; return the seconds it took.

    A thread claims, three complete, each on its own connection. *claim* (a statement with its
    arguments) returns the ids that *complete* takes; *wake* listens for what is freed.
    """
    waiting: SimpleQueue[Any] = SimpleQueue()

    def keep_completing() -> None:
        with _connected(dsn) as conn:
            while (taken := waiting.get()) is not None:
                conn.execute(_sql(complete), [taken])

    statement, arguments = claim
    with _connected(dsn) as ears, _connected(dsn) as conn, ThreadPoolExecutor(3) as threads:
        ears.execute(_sql(wake))
        completers = [threads.submit(keep_completing) for _ in range(3)]
        begun, claimed = time.perf_counter(), 0
        try:
            while claimed < total:
                # A full claim is followed by a wake-up for each of it: none is missed.
                found = conn.execute(_sql(statement), arguments).fetchall()
                claimed += len(found)
                for taken, *_ in found:
                    waiting.put(taken)
                if not found and not list(ears.notifies(timeout=PATIENCE, stop_after=1)):
                    raise CannotStart(f"{claimed} of {total} phases were drained, then no more")
        finally:
            for _ in completers:
                waiting.put(None)
        for each in completers:
            each.result()
        return time.perf_counter() - begun


def insert(dsn: str, phases: int) -> Figure:
    """Insert phases, each with one dependency, by one plain statement: chains of 100 a feature."""
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


# The coordinator as a process: how soon it is there, what it holds, what it does when idle.


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
        """The last lines of its log, as one."""
        return " ".join(" ".join(self._said().splitlines()[-3:]).split()) or "it said nothing"

    def address(self) -> str:
        """Host and port that it serves; waits until it says so."""
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
    """Have a coordinator run, in a folder of its own; return it at once."""
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
            start_new_session=True,  # Ctrl-C is for us: we stop it when we are done
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
    """One workflow: `_Chain` says what its processes do."""
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
    """Time a coordinator from its program's start until it listens and leads, median of several."""
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
    """The resident memory of a coordinator, after all that it has run."""
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
    """What a coordinator that has nothing to do asks of the server, a minute.

    Transactions, which the server counts, are statements here; where a visit of autovacuum has
    added its own, the changes of `query_start` that were seen count instead. From another database.
    """
    time.sleep(FLUSHED)
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    reads = _table_reads(admin, dsn)
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
    if not visited:
        statements = max(statements, later - transactions)
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


def _table_reads(admin: Connection, dsn: str) -> int:
    """Reads of tables so far. Our own session has ended then: what it did is counted before it."""
    with _connected(dsn) as conn:
        (reads,) = _row(conn, "table_reads")
        name, pid = conn.info.dbname, conn.info.backend_pid
    while any(pid == each for each, _, _ in admin.execute(_sql("sessions"), [name])):
        time.sleep(0.005)
    return int(reads)


# The databases that all this happens in.


@contextmanager
def scratch_databases(admin: Connection, dsn: str) -> Iterator[Callable[..., str]]:
    """Gives a function that makes a database and returns its DSN; drops them all in the end."""
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
        # On a connection of its own: the other may be what was lost.
        with _connected(dsn) as dropper:
            for name in names:
                dropper.execute(_composed("drop_database", sql.Identifier(name)))


@contextmanager
def _connected(dsn: str) -> Iterator[Connection]:
    conn = connect_blocking(dsn)
    try:
        # The statements of sql/bench are a client's, and name its tables as clients do.
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


def _await_another(ears: Connection, pid: int) -> None:
    """Wait until another session than *pid* notifies."""
    deadline = time.monotonic() + PATIENCE
    while (left := deadline - time.monotonic()) > 0:
        if any(notice.pid != pid for notice in ears.notifies(timeout=left, stop_after=1)):
            return
    raise CannotStart(f"nothing was claimed for {PATIENCE:.0f} s")


def _await_count(conn: Connection, name: str) -> None:
    """Wait until a statement counts nothing any more."""
    deadline = time.monotonic() + PATIENCE
    while _row(conn, name) != (0,):
        if time.monotonic() > deadline:
            raise CannotStart(f"the coordinator has not settled its attempts for {PATIENCE:.0f} s")
        time.sleep(0.002)


@cache
def _secret() -> str:
    """What signs our reports."""
    return f"whsec_{base64.b64encode(os.urandom(32)).decode()}"


def _fifo(path: Path) -> Path:
    os.mkfifo(path, 0o600)
    return path


def _rank(samples: Sequence[float], share: float) -> float:
    """The sample that this share of all do not exceed."""
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
