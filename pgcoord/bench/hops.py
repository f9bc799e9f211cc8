"""A hop: a phase is completed, the next one is claimed, and its process is started."""

import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

from pgcoord.bench.figures import Figure, Goal, ratio, timing
from pgcoord.bench.floor import Floor
from pgcoord.bench.process import Coordinator, led_after, secret
from pgcoord.bench.scratch import (
    PATIENCE,
    Connection,
    await_another,
    await_count,
    connected,
    row,
    statement,
)
from pgcoord.errors import CannotStart
from pgcoord.messages.signing import sign

# Samples that are not counted: psycopg prepares a statement, and Postgres may choose a generic
# plan, with the sixth execution.
WARM_UP = 10

# Seconds: after its last record the coordinator runs its loop once more, then waits for a
# notification, the state in which it spends the hours of a long phase.
CALM = 0.005


class Chain:
    """A chain of phases that a coordinator runs, advanced by one phase at a time.

    The process of a phase first writes its number to the FIFO `started`, then blocks until it can
    read from its FIFO `gate-<number>`, or that is closed.
    """

    def __init__(
        self, conn: Connection, listener: Connection, coordinator: Coordinator, feature: int
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
        self._conn.execute(statement("phases"), [self._feature, phases])
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
        self._conn.execute(statement("complete"), [f"queue-{self._feature}-{self._number}"])
        await_another(self._listener, self._conn.info.backend_pid)
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
        signed = sign(secret(), body)
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
            statement("cancel_all")
        )  # first: let out, the last phase would complete the feature
        for number in self._gates:
            self._let_out(number)
        await_count(conn, "open_attempts")

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
        output = os.read(self._started, 100).decode().strip() if readable else "nothing"
        if output != str(number):
            raise CannotStart(
                f"phase {number} was not started (the processes said {output});"
                f" the coordinator: {self._coordinator.last_words()}"
            )

    def _settle(self) -> None:
        """Block until the coordinator has recorded every end and waits for a notification."""
        await_count(self._conn, "unsettled")
        if self._number - 1 in self._gates:
            os.close(self._gates.pop(self._number - 1))
        time.sleep(CALM)
        list(self._listener.notifies(timeout=0))


def hops(chain: Chain, floor: Floor, full: Chain | None, samples: int) -> list[Figure]:
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
        timing("hop", "completed (SQL) → next phase claimed", claims, (3, 25), (1, 5)),
        timing("hop_start", "completed (SQL) → next process started", starts),
        timing("webhook", "signed webhook sent → next process started", reports, (15, 50), (6, 25)),
        timing("floor", "bare floor: update, notify, claim", bare),
        ratio("hop_ratio", "claimed, as a multiple of the floor", claims, bare, Goal(3, 1.8)),
    ]
    if full:
        what = "claimed with a full table, as a multiple of an empty one"
        figures.append(ratio("full_ratio", what, crowded, claims, Goal(1.5, 1.1)))
    return figures


@contextmanager
def chained(coordinator: Coordinator, samples: int) -> Iterator[Chain]:
    """Yield a chain whose first phase runs; on exit its processes have ended.

    Blocks until *coordinator* leads. It queues enough phases for *samples* hops and the warm-up.
    """
    with connected(coordinator.dsn) as conn, connected(coordinator.dsn) as listener:
        led_after(conn, coordinator, "epoch")
        listener.execute(statement("listen"))
        (feature,) = row(conn, "feature")
        chain = Chain(conn, listener, coordinator, feature)
        try:
            chain.begin(2 * WARM_UP + samples + 1)
            yield chain
        finally:
            try:
                if coordinator.runs():
                    with connected(coordinator.dsn) as fresh:
                        chain.end(fresh)
            finally:
                chain.close()


def _fifo(path: Path) -> Path:
    os.mkfifo(path, 0o600)
    return path
