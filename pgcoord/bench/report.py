"""What `bench` prints: the machine, and the figures that were measured on it."""

import os
import platform
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pgcoord import __version__
from pgcoord.bench.figures import Figure
from pgcoord.bench.scratch import Connection, row


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
            "load_after": load_average(),
            "figures": [
                {**asdict(each), "verdict": each.verdict, "ratio": each.ratio}
                for each in self.figures
            ],
        }


def machine_of(admin: Connection) -> Machine:
    """Return this machine, with the server of *admin*."""
    postgres, fsync, synchronous_commit, shared_buffers = row(admin, "server")
    return Machine(
        pgcoord=__version__,
        python=platform.python_version(),
        system=platform.platform(terse=True),
        processor=_processor(),
        cores=os.cpu_count() or 1,
        load_before=load_average(),
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


def load_average() -> float:
    """Return the load of the last minute."""
    return round(os.getloadavg()[0], 2)
