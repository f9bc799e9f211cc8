"""Throughput: the coordinator's statements alone, without the program and without processes."""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from pgcoord.bench.figures import Figure, Goal
from pgcoord.bench.scratch import PATIENCE, Connection, composed, connected, row, statement
from pgcoord.errors import CannotStart

CHAIN = 100  # phases of a feature, where there are many


def fill(dsn: str, phases: int) -> None:
    """Store *phases* finished phases with their dependencies, attempts and events; vacuum.

    Also queue 50,000 phases of a paused feature ahead of all others, which every claim must skip.
    """
    with connected(dsn) as conn:
        conn.execute(composed("finished", features=sql.Literal(max(1, phases // CHAIN))))
        conn.execute(statement("held"))
        conn.execute(statement("tidy"))


def drain(dsn: str, bare: str, phases: int) -> list[Figure]:
    """Measure throughput with three slots: phases of 100 features, then jobs of a plain table.

    *dsn* has the schema, *bare* is empty. Return the figures "drain" and "floor_drain", per second.
    """
    with connected(dsn) as conn:
        conn.execute(statement("features"), [100])
        conn.execute(statement("singles"), [math.ceil(phases / 100)])
        conn.execute(statement("tidy"))
        (epoch,) = row(conn, "lead")
        ours = phases / _drained(dsn, ("claim", [epoch]), "complete", "listen_wake", phases)
    with connected(bare) as conn:
        conn.execute(statement("floor_make"))
        conn.execute(statement("floor_limit"))
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
    with connected(dsn) as conn:
        conn.execute(statement("features"), [100])
        conn.execute(statement("singles"), [math.ceil(phases / 100)])
        conn.execute(statement("tidy"))
        (epoch,) = row(conn, "lead")
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
        claimed = conn.execute(statement("record_and_claim"), [epoch, Jsonb(ends)]).fetchall()
        ended += len(ends)
        ends = [{"kind": "exited", "attempt_id": attempt, "exit_code": 0} for (attempt,) in claimed]
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
        with connected(dsn) as conn:
            while (attempt := waiting.get()) is not None:
                conn.execute(statement(complete), [attempt])

    name, arguments = claim
    with connected(dsn) as listener, connected(dsn) as conn, ThreadPoolExecutor(3) as threads:
        listener.execute(statement(wake))
        completers = [threads.submit(keep_completing) for _ in range(3)]
        begun, claimed = time.perf_counter(), 0
        try:
            while claimed < total:
                # Each claimed job notifies when it is completed, so no wake-up is missed.
                found = conn.execute(statement(name), arguments).fetchall()
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
    with connected(dsn) as conn:
        conn.execute(statement("features"), [max(1, phases // CHAIN)])
        conn.execute(statement("singles"), [1])
        begun = time.perf_counter()
        inserted = conn.execute(statement("chains"), [CHAIN]).rowcount
        seconds = time.perf_counter() - begun
    return Figure(
        "insert",
        "phases inserted, one dependency each",
        "/s",
        inserted / seconds,
        goal=Goal(20_000, 60_000, more_is_better=True),
        samples=inserted,
    )
