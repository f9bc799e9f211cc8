"""Where a storm rages: a Postgres of its own, some coordinators, and phases that leave marks.

Everything lies in one folder. `marks` holds a line for each start and each end of a phase's
process, which the process itself appends; each life of a coordinator has its own log.
"""

import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psycopg
from psycopg.rows import dict_row
from support.database import Connection, processes_of

from pgcoord.database import schema
from pgcoord.database.embedded import EmbeddedPostgres

# What people's sessions are called; the coordinators' have names of their own.
PEOPLE = "storm"

SECRET = "whsec_" + "c3Rvcm0t" * 5

CONFIGURATION = """
[server]
port = 0
webhook_secrets = ["STORM_SECRET"]

[workflow.job]
command = ["sh", "{job}", "{{prompt}}"]
default = true
max_attempts = 2
retry_delay = "1 s"
timeout = "6 s"
linger = "2 s"
"""

# A phase: its prompt is "how long, exit status, what else". Its marks are single appends.
JOB = """
set -- $1
echo "start $PGCOORD_ADW_ID $$" >> '{marks}'
case $3 in
left) sleep 40 & ;;
escaped) setsid sleep 40 & ;;
deaf) trap '' TERM ;;
loud) head -c 300000 /dev/zero | tr '\\0' 'x' ;;
broken) printf '\\303\\050 \\342\\234\\227 \\000 caf\\351\\n' ;;
report) cd /; '{python}' -m pgcoord report completed --patience 2 ;;
esac
sleep $1
echo "end $PGCOORD_ADW_ID $2" >> '{marks}'
exit $2
"""

# What the environment of a coordinator may set for its sessions, beside nothing.
ODD_ENVIRONMENTS: tuple[dict[str, str], ...] = (
    {"PGDATESTYLE": "German", "PGTZ": "Asia/Kolkata"},
    {"PGCLIENTENCODING": "LATIN1"},
    {"PGOPTIONS": "-c IntervalStyle=iso_8601 -c bytea_output=escape -c extra_float_digits=-15"},
    {"PGOPTIONS": "-c default_transaction_isolation=serializable -c statement_timeout=2s"},
    {"PGOPTIONS": "-c lock_timeout=1s -c idle_in_transaction_session_timeout=1s"},
    {"PGOPTIONS": "-c search_path=nowhere -c standard_conforming_strings=off"},
)

# Exit statuses of a coordinator that was stopped: by SIGTERM, by SIGINT, at once, killed.
_STOPPED = (0, 130, 143, -signal.SIGTERM, -signal.SIGINT, -signal.SIGKILL)

_SIZE_OF_LOG_DISK = "24m"

# Seconds that what has to succeed may take, on a slow machine as well.
LONG = 300

# A traceback of SIGINT; and a frame in it of pgcoord's own, other than an import: without one,
# Python was interrupted before pgcoord's first line, or after its last.
_INTERRUPTED = re.compile(r"^Traceback .*\n(?:  .*\n)*KeyboardInterrupt:? ?$", re.M)
_OUR_FRAME = re.compile(
    rf'^  File "{re.escape(str(Path(schema.__file__).parents[1]))}/.*, in (?!<module>$)', re.M
)


@dataclass
class Seat:
    """A coordinator's place: the process that sits there now, if any."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    log: Path | None = None
    is_stopped: bool = False
    is_told: bool = False  # to end

    @property
    def is_up(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def address(self) -> str | None:
        """Where it serves, once it does."""
        if not self.is_up or self.log is None:
            return None
        match = re.search(r"serving on http://(\S+)", self.log.read_text(errors="replace"))
        return match[1] if match else None

    def send(self, number: int) -> None:
        if self.is_up:
            assert self.process
            self.process.send_signal(number)
            self.is_stopped = (self.is_stopped or number == signal.SIGSTOP) and (
                number != signal.SIGCONT
            )
            # It ignores SIGINT where we do, as what a shell starts in the background does.
            is_heard = signal.getsignal(number) != signal.SIG_IGN
            self.is_told |= number in (signal.SIGTERM, signal.SIGINT) and is_heard


class Site:
    """The server, the coordinators and the folder of one storm."""

    def __init__(self, folder: Path, coordinators: int) -> None:
        self.folder = folder
        self.marks = folder / "marks"
        self.logs = folder / "logs"
        self.seats = [Seat(number) for number in range(coordinators)]
        self.postgres = EmbeddedPostgres(folder / ".pgcoord")
        self.disk: Path | None = None
        self.gave_up: list[str] = []
        self._lives = itertools.count(1)

    def open(self) -> None:
        """Make everything but the coordinators."""
        self.logs.mkdir(parents=True)
        self.marks.touch()
        job = self.folder / "job.sh"
        job.write_text(JOB.format(marks=self.marks, python=sys.executable))
        (self.folder / "pgcoord.toml").write_text(CONFIGURATION.format(job=job))
        runs = self.folder / ".pgcoord" / "runs"
        runs.mkdir(parents=True)
        # A disk of its own for the runs, which can be filled; where that is not allowed, none is.
        mount = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE_OF_LOG_DISK}", "none", str(runs)]
        if subprocess.run(mount, check=False, capture_output=True).returncode == 0:
            self.disk = runs
        self.postgres.start()
        with psycopg.connect(self.postgres.dsn, autocommit=True) as conn:
            for setting in (
                "fsync = off",  # only the power could lose anything
                "log_line_prefix = '%m [%p] %e %a: '",
                "log_min_messages = 'warning'",
                "max_connections = 80",
            ):
                conn.execute(f"alter system set {setting}".encode())
            schema.upgrade(conn)
        self.postgres.stop()
        self.postgres.start()

    def close(self) -> None:
        """End everything; the folder stays, but for the disk of the runs."""
        for seat in self.seats:
            if seat.is_up:
                assert seat.process
                seat.process.kill()
                seat.process.wait()
        for pids in self.processes().values():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        with suppress(Exception):
            self.postgres.stop()
        if self.disk:
            kept = self.folder / "runs"
            shutil.copytree(self.disk, kept, ignore=shutil.ignore_patterns("filler"))
            subprocess.run(["umount", "-l", str(self.disk)], check=False)
            self.disk = None

    def start(self, seat: Seat, dice: random.Random) -> None:
        """Start a coordinator, drained or not, in one environment or another.

        Half of them keep the server up, as it is the embedded one to them.
        """
        drains = dice.random() < 0.3
        odd = dice.choice(ODD_ENVIRONMENTS) if dice.random() < 0.3 else {}
        named = {"DATABASE_URL": self.postgres.dsn} if dice.random() < 0.5 else {}
        if seat.is_up:
            return
        self.note_end(seat)
        seat.log = self.logs / f"coordinator-{seat.number}-{next(self._lives)}"
        seat.is_stopped = seat.is_told = False
        with seat.log.open("wb") as log:
            seat.process = subprocess.Popen(
                [sys.executable, "-m", "pgcoord", "serve", *(["--drain"] if drains else [])],
                cwd=self.folder,
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(self.folder),
                    "STORM_SECRET": SECRET,
                    **named,
                    **odd,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def start_server(self) -> None:
        """Start the server, unless it is up; a coordinator that is just starting it is awaited.

        If that takes long, the frozen ones go on: one of them may have begun to start it.
        """
        with ThreadPoolExecutor() as thread:
            started = thread.submit(self.postgres.start)
            if wait([started], 5).not_done:
                for seat in self.seats:
                    seat.send(signal.SIGCONT)
            started.result()

    def note_end(self, seat: Seat) -> None:
        """Record the unexpected end of a coordinator, which should have continued."""
        if seat.process and seat.log and seat.process.poll() not in (None, *_STOPPED):
            said = seat.log.read_text(errors="replace")
            interrupted = seat.is_told and said != without_interrupts(said)
            if not (interrupted and seat.process.returncode == 1):
                self.gave_up.append(f"{seat.log.name} ended with status {seat.process.returncode}")

    @contextmanager
    def session(
        self, patience: int = 2, settings: Mapping[str, str] = MappingProxyType({})
    ) -> Iterator[Connection]:
        """A session of a person, in which no statement waits longer than *patience*, in seconds."""
        with psycopg.connect(
            self.postgres.dsn,
            autocommit=True,
            row_factory=dict_row,
            application_name=PEOPLE,
            connect_timeout=patience,
            options=f"-c statement_timeout={patience}s -c lock_timeout={patience * 500}ms",
        ) as conn:
            for name, value in settings.items():
                conn.execute("select set_config(%s, %s, false)", [name, value])
            yield conn

    def rows(self, statement: str, *values: object) -> list[dict[str, Any]]:
        with self.session() as conn:
            return conn.execute(statement.encode(), values).fetchall()

    def is_server_up(self) -> bool:
        try:
            with self.session():
                return True
        except psycopg.Error:
            return False

    def server_pids(self) -> list[int]:
        return processes_of(self.postgres)

    def processes(self) -> Mapping[str, list[int]]:
        """The living processes of phases by adw_id, as the system shows them."""
        found: dict[str, list[int]] = defaultdict(list)
        ours = f"PGCOORD_PROMPT_FILE={self.folder}/".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                environment = (process / "environ").read_bytes()
                if ours in environment and (process / "stat").read_text().split()[2] != "Z":
                    name = re.search(rb"PGCOORD_ADW_ID=([^\0]+)", environment)
                    if name:
                        found[name[1].decode()].append(int(process.name))
        return found


def without_interrupts(log: str) -> str:
    """Return the log of a coordinator without tracebacks of SIGINT that Python itself was given."""
    return _INTERRUPTED.sub(lambda found: found[0] if _OUR_FRAME.search(found[0]) else "", log)
