"""pgcoord beside its peers: the same questions to each, in turn, on one embedded server.

    .venv/bin/python tests/load/peers.py [--rounds N] [--hops N] [--jobs N] [--only NAME…]

It installs the peers, in the versions pinned below, into an environment of their own (with pip and
npm) below `--folder`, starts a Postgres there, and asks each system in alternating rounds:

- hop: a job becomes runnable (pgcoord: its prerequisite is completed by SQL; a peer: it is
  enqueued) by a statement of one process → a worker process has it (pgcoord: the claim is committed
  and its notification has come; a peer: the first instruction of the job runs).
- floor: the hop that Postgres alone would have, of a table with nothing around it: an update that
  notifies, and the claim of the next row, both flushed to disk (as in `pgcoord bench`).
- drain: jobs that do nothing, a second, at most 3 at a time, each end recorded.
- insert: jobs stored a second by the bulk call of each.
- idle: transactions a minute that a worker with nothing to do sends.

Each peer is run as its documentation says to run it fast (`peer/`): PgQueuer on asyncpg and uvloop,
procrastinate on psycopg and uvloop, graphile-worker and pg-boss with LISTEN on, DBOS with its
shortest sensible poll. What is printed is Markdown, as in docs/performance.md.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pgcoord.bench.floor import bare
from pgcoord.bench.hops import CALM, chained
from pgcoord.bench.process import serving
from pgcoord.bench.resources import FLUSHED
from pgcoord.bench.scratch import scratch_databases
from pgcoord.bench.throughput import drain_own, insert
from pgcoord.database.embedded import EmbeddedPostgres, find_binaries

PYTHON_PEERS = [
    "pgqueuer==1.6.0",
    "asyncpg==0.32.0",
    "procrastinate==3.10.0",
    "dbos==3.4.0",
    "psycopg[binary]==3.3.9",
    "uvloop==0.23.0",
]
NODE_PEERS = ["graphile-worker@0.18.0", "pg-boss@12.38.0"]
PROGRAMS = {
    "PgQueuer": "with_pgqueuer.py",
    "procrastinate": "with_procrastinate.py",
    "graphile-worker": "with_graphile.mjs",
    "pg-boss": "with_pgboss.mjs",
    "DBOS": "with_dbos.py",
}
HERE = Path(__file__).parent / "peer"
FLOOR = "bare floor"
WARM_UP = 20
# Seconds: until a worker has done what follows its start (pgcoord imports its web server), and all
# of it is counted.
SETTLING = 20 + FLUSHED
IDLE_SECONDS = 30
SETUP_TIMEOUT = 120.0
DRAIN_SECONDS = 20  # at most: the slowest would take minutes for what others do in seconds


@dataclass
class Results:
    """What one system did: hops in seconds, jobs a second for each round, transactions a minute."""

    hops: list[float] = field(default_factory=list)
    drains: list[float] = field(default_factory=list)
    inserts: list[float] = field(default_factory=list)
    idle: float | None = None


class Peer:
    """A peer on a database of its own: a worker process, and a client process that enqueues."""

    def __init__(self, command: list[str], folder: Path, dsn: str) -> None:
        self._command = command
        self._folder = folder
        self.dsn = dsn

    def set_up(self) -> None:
        """Install the peer's schema."""
        subprocess.run(
            [*self._command, "setup", self.dsn], cwd=self._folder, check=True, timeout=SETUP_TIMEOUT
        )

    @contextmanager
    def client(self) -> Iterator[subprocess.Popen[str]]:
        """A process that enqueues what it reads: `one NUMBER` or `many COUNT`."""
        with self._process("client", self.dsn) as process:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield process

    @contextmanager
    def worker(self) -> Iterator[Iterator[tuple[int, int]]]:
        """A worker; gives what it starts: the number of the job, and when, in nanoseconds."""
        with tempfile.TemporaryDirectory() as folder:
            fifo = Path(folder, "marks")
            os.mkfifo(fifo)
            with self._process("work", self.dsn, str(fifo)), fifo.open(encoding="ascii") as marks:
                yield ((int(number), int(at)) for number, at in map(str.split, marks))

    @contextmanager
    def _process(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [*self._command, *words],
            cwd=self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if words[0] == "client" else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def _send(client: subprocess.Popen[str], line: str) -> tuple[int, int]:
    """Have `client` do something; return when it began and ended, in nanoseconds."""
    assert client.stdin
    assert client.stdout
    client.stdin.write(line + "\n")
    client.stdin.flush()
    begun, ended = client.stdout.readline().split()
    return int(begun), int(ended)


def take_hops(hop: Callable[[], float], samples: int) -> list[float]:
    """Take `samples` hops one by one, after a warm-up."""
    return [hop() for _ in range(WARM_UP + samples)][WARM_UP:]


def hops_of(peer: Peer, samples: int, results: Results) -> None:
    """From the call that enqueues a job until its first instruction, one job at a time."""
    numbers = itertools.count()
    with peer.client() as client, peer.worker() as started:

        def hop() -> float:
            number = next(numbers)
            begun, _ = _send(client, f"one {number}")
            found, at = next(started)
            assert found == number
            time.sleep(CALM)  # as in bench: the worker has recorded the end, and waits
            return (at - begun) / 1e9

        results.hops += take_hops(hop, samples)


def drain_of(peer: Peer, jobs: int) -> tuple[float, float]:
    """Jobs stored a second by one bulk call, and then worked off a second, at most 3 at a time."""
    with peer.client() as client:
        begun, ended = _send(client, f"many {jobs}")
    with peer.worker() as started:
        times = [next(started)[1]]
        while len(times) < jobs and times[-1] - times[0] < DRAIN_SECONDS * 1e9:
            times.append(next(started)[1])
    return jobs / (ended - begun) * 1e9, (len(times) - 1) / (times[-1] - times[0]) * 1e9


@contextmanager
def working(peer: Peer) -> Iterator[None]:
    """A worker of `peer` that has done one job, and has nothing to do."""
    with peer.client() as client, peer.worker() as started:
        _send(client, "one 0")
        next(started)
        yield


def transactions_a_minute(admin: psycopg.Connection, dsn: str) -> float:
    """The transactions of the database of `dsn` while nothing is to be done, a minute."""
    name = conninfo_to_dict(dsn)["dbname"]
    query = "select xact_commit + xact_rollback from pg_stat_database where datname = %s"

    def count() -> int:
        row = admin.execute(query, [name]).fetchone()
        assert row
        return int(row[0])

    time.sleep(SETTLING)
    before = count()
    time.sleep(IDLE_SECONDS)
    return (count() - before) * 60 / IDLE_SECONDS


def pgcoord_round(
    make: Callable[..., str], folder: Path, hops: int, jobs: int, results: Results
) -> None:
    """Ask pgcoord: hops of a coordinator's process, its own path drained, a bulk insert."""
    dsn = make()
    with (
        serving(dsn, folder / "serve", os.environ) as coordinator,
        chained(coordinator, hops) as chain,
    ):
        results.hops += take_hops(lambda: chain.go_on()[0], hops)
    results.drains.append(drain_own(make(), jobs).value)
    results.inserts.append(insert(make(), jobs).value)


def floor_round(dsn: str, hops: int, results: Results) -> None:
    """Take the hops of a plain table; as after the others, all rests before the next."""
    with bare(dsn) as floor:

        def hop() -> float:
            taken = floor.go_on()
            time.sleep(CALM)
            return taken

        results.hops += take_hops(hop, hops)


def environment(folder: Path) -> None:
    """Install the peers below `folder`, unless they are there."""
    python, modules = folder / "venv/bin/python", folder / "node_modules"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PYTHON_PEERS], check=True)
    if not modules.exists():
        subprocess.run(
            ["npm", "install", "--silent", "--no-save", "--prefix", folder, *NODE_PEERS], check=True
        )
    for program in HERE.iterdir():
        if program.is_file():
            (folder / program.name).write_text(program.read_text(encoding="utf-8"), "utf-8")


def report(results: dict[str, Results]) -> Iterator[str]:
    """The table, in Markdown; ratios are ours to each, medians of the same run."""
    yield "| | hop p50 | p99 | worst | drain /s | insert /s | idle, transactions/min | our hop ÷ | our drain ÷ |"  # noqa: E501
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    ours = results["pgcoord"]
    for name, each in results.items():
        hops = sorted(each.hops)
        cells = [
            *(f"{1000 * value:.2f} ms" for value in (median(hops), _p99(hops), hops[-1])),
            *(f"{median(rates):,.0f}" if rates else "" for rates in (each.drains, each.inserts)),
            "" if each.idle is None else f"{each.idle:.0f}",
            "" if each is ours else f"{median(ours.hops) / median(hops):.2f}",
            ""
            if each is ours or not each.drains
            else f"{median(ours.drains) / median(each.drains):.2f}",
        ]
        yield f"| {name} | {' | '.join(cells)} |"


def _p99(ordered: list[float]) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--hops", type=int, default=2_000, help="of each system, over all rounds")
    parser.add_argument("--jobs", type=int, default=3_000, help="drained in a round")
    parser.add_argument("--only", nargs="*", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--folder", type=Path, default=Path(".pgcoord/peers"))
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    environment(folder)
    results = {name: Results() for name in ("pgcoord", *given.only, FLOOR)}
    with ExitStack() as stack:
        state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peers-")))
        server = EmbeddedPostgres(state, find_binaries())
        server.start()
        stack.callback(server.stop)
        admin = stack.enter_context(psycopg.connect(server.dsn, autocommit=True))
        make = stack.enter_context(scratch_databases(admin, server.dsn))
        peers: dict[str, Peer] = {}
        for number in range(given.rounds):
            work = state / f"round-{number}"
            work.mkdir()
            print(f"round {number + 1} of {given.rounds}", file=sys.stderr, flush=True)
            hops = given.hops // given.rounds
            pgcoord_round(make, work, hops, given.jobs, results["pgcoord"])
            floor_round(make(with_schema=False), hops, results[FLOOR])
            # For each round again: jobs left by one round would be the first of the next.
            peers = {name: _peer(name, folder, make) for name in given.only}
            for name, peer in peers.items():
                hops_of(peer, hops, results[name])
                inserted, drained = drain_of(peer, given.jobs)
                results[name].inserts.append(inserted)
                results[name].drains.append(drained)
        # Its transactions count, too: some thirty, a minute after a database was made.
        admin.execute("alter system set autovacuum = off")
        admin.execute("select pg_reload_conf()")
        for name in peers:
            peer = _peer(name, folder, make)
            with working(peer):
                results[name].idle = transactions_a_minute(admin, peer.dsn)
        dsn = make()
        with serving(dsn, state / "idle", os.environ):
            results["pgcoord"].idle = transactions_a_minute(admin, dsn)
    print(*report(results), sep="\n")


def _peer(name: str, folder: Path, make: Callable[..., str]) -> Peer:
    program = PROGRAMS[name]
    runner = [str(folder / "venv/bin/python")] if program.endswith(".py") else ["node"]
    peer = Peer([*runner, str(folder / program)], folder, _as_url(make(with_schema=False)))
    peer.set_up()
    return peer


def _as_url(dsn: str) -> str:
    """The DSN as every driver reads it; a socket's folder is its host."""
    values = conninfo_to_dict(dsn)
    return (
        f"postgresql://{values.get('user', 'postgres')}@/{values['dbname']}"
        f"?host={values['host']}&port={values.get('port', 5432)}"
    )


if __name__ == "__main__":
    main()
