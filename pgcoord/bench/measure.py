"""Measure how fast pgcoord is on a server, in scratch databases that are dropped afterwards.

The one rule: the measured program is the one that people run. The coordinator is `pgcoord serve`,
a process of its own, and every figure is taken from outside that process. A few milliseconds mean
nothing without the machine. So each sample alternates with one of the "floor", the same steps on a
plain table, and the ratio of the two counts most.

The figures: `hops` (a phase completed until the next is claimed and started, by SQL and by webhook)
beside its `floor`; `throughput` (phases a second through three slots, and inserted); `resources`
(start until listening, resident memory, statements while idle). `figures` judges them.
"""

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pgcoord.bench.figures import Figure, beside_floors
from pgcoord.bench.floor import bare
from pgcoord.bench.hops import chained, hops
from pgcoord.bench.process import serving
from pgcoord.bench.report import Report, machine_of
from pgcoord.bench.resources import FLUSHED, idle, memory, start_up
from pgcoord.bench.scratch import Connection, connected, scratch_databases
from pgcoord.bench.throughput import drain, drain_own, fill, insert

Announce = Callable[[str], None]


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


def measure(dsn: str, extent: Extent, environment: Mapping[str, str], announce: Announce) -> Report:
    """Measure in scratch databases on the server of *dsn*; block for seconds to many minutes.

    Coordinators start with *environment*; *announce* is called with the name of each step. The
    databases are dropped even after an error. Raises `DatabaseUnusable` when the user may not
    create databases, and `CannotStart` when a coordinator does not start or claim.
    """
    with ExitStack() as stack:
        admin = stack.enter_context(connected(dsn))
        report = Report(machine_of(admin))
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
