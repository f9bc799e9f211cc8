"""What a coordinator takes: its time to start, its memory, and its statements while it is idle."""

import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psycopg

from pgcoord.bench.figures import Figure, Goal, rank
from pgcoord.bench.process import Coordinator, led_after, serving
from pgcoord.bench.scratch import Connection, connected, row, statement

# Seconds: a session may report its statistics only once it was idle for 10 s (Postgres 15).
FLUSHED = 11.0


def start_up(dsn: str, folder: Path, environment: Mapping[str, str], times: int) -> Figure:
    """Start a coordinator *times* times; return the median from its start until it leads, in ms."""
    seconds = []
    with connected(dsn) as conn:
        for _ in range(times):
            (since,) = row(conn, "now")
            with serving(dsn, folder, environment) as coordinator:
                seconds.append(led_after(conn, coordinator, since))
    return Figure(
        "start",
        "coordinator: start until listening",
        "ms",
        rank(seconds, 0.5) * 1000,
        goal=Goal(1_000, 300),
        samples=times,
    )


def memory(coordinator: Coordinator) -> Figure:
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
    (transactions,) = row(admin, "transactions", name)
    seen: set[tuple[int, object]] = set()
    visited = False
    begun = time.monotonic()
    sessions = {(pid, at) for pid, _, at in admin.execute(statement("sessions"), [name])}
    while (spent := time.monotonic() - begun) < seconds:
        for pid, ours, at in admin.execute(statement("sessions"), [name]):
            visited = visited or not ours
            if ours:
                seen.add((pid, at))
        time.sleep(0.02)
    (later,) = row(admin, "transactions", name)
    statements = len(seen - sessions)
    return (statements if visited else max(statements, later - transactions)), spent


def _table_reads(admin: Connection, dsn: str) -> int:
    """Return the table reads in the database so far.

    Block until our session for that has ended, so that its own reads count now, not later.
    """
    with connected(dsn) as conn:
        (reads,) = row(conn, "table_reads")
        name, pid = conn.info.dbname, conn.info.backend_pid
    while any(pid == each for each, _, _ in admin.execute(statement("sessions"), [name])):
        time.sleep(0.005)
    return int(reads)
