"""The contract of a launcher: the interface between supervision and the system that runs jobs.

A launcher starts the job of an attempt, on this machine (runs/local.py) or on an engine, watches
it and ends it. Supervision decides when, and writes to the database; it knows no file, process or
folder. A new launcher is one class that keeps `Launcher`, with one for its jobs that keeps `Job`.

What an engine has to keep in mind (docs/design.md, section 13):

- A submission may fail without saying whether the job was submitted. Do not raise `CannotStart`
  then: submit again under the same name. Of two jobs of one attempt the database lets one begin,
  so a copy that was requeued or submitted twice does nothing.
- A job that waits in the engine is `ALIVE`: it was submitted, and it holds its slot. `Identity` is
  where the id of a job and its node go, beside pid and start time.
- `wait` reads the end from the exit status that the job itself wrote, if there is one, and queries
  the engine only for the jobs that exist: one query for all jobs, by the `Launcher`.

The one rule: any coordinator that adopts the job can repeat every call, after a crash of another at
any point; no state is kept only in memory.
"""

import enum
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pgcoord.database.work import Assignment
from pgcoord.messages.report import SpooledReport


class JobState(enum.Enum):
    """The state of a job.

    GIVEN_UP: it was never started and never will be. LOST: it is gone and left no exit status.
    """

    NEVER_STARTED = "never started"
    GIVEN_UP = "given up"
    ALIVE = "alive"
    ENDED = "ended"
    LOST = "lost"


class Identity(NamedTuple):
    """The identity of a job, stored with the attempt: the pid and the start time of its process.

    `process_started` is an opaque text; no other process has both the same pid and the same text.
    """

    pid: int
    process_started: str

    def __str__(self) -> str:
        return f"pid {self.pid}"


@dataclass(frozen=True)
class Command:
    """The command of a job: arguments, passed unchanged, without a shell.

    `environment` is the whole environment, apart from the variables that name the job's files:
    PGCOORD_PROMPT_FILE, PGCOORD_INPUT_FILE and PGCOORD_RESULT_FILE.
    `user` is the account of the process; None: that of the launcher.
    """

    arguments: Sequence[str]
    directory: Path
    environment: Mapping[str, str]
    user: str | None = None


class Job(Protocol):
    """The job of one attempt, whether it was started yet or not."""

    @property
    def prompt_file(self) -> str:
        """The path of the prompt file, on the machine where the job runs."""
        ...

    @property
    def identity(self) -> Identity | None:
        """The identity of the job; None before it was started."""
        ...

    async def prepare(self, prompt: str, inputs: str, user: str | None) -> None:
        """Create the prompt file, the input file and whatever else a start needs; start nothing.

        *inputs*: the results of the prerequisites, a JSON object by phase number. Raises
        `CannotStart` or `OSError` when that fails, or when *user* could not read the files.
        """
        ...

    async def start(self, command: Command) -> None:
        """Start the job; it starts at most once, however many coordinators call this.

        Returns when the job is known to be started (engine: submitted). Raises `CannotStart` only
        when this call has certainly started nothing: the job was started before, was given up, or
        the command cannot be started.
        """
        ...

    async def give_up(self) -> bool:
        """Prevent every later start of the job, by any coordinator.

        Return False when it was started, or given up, before.
        """
        ...

    async def state(self) -> JobState:
        """Return the state of the job; waits until a start in progress is over."""
        ...

    async def wait(self) -> int | None:
        """Wait until the job is gone; return its exit status, 128 + n after signal n.

        None when it left none: it is lost. Returns at once when the job is gone. Any number of
        callers may wait; cancelling one does not affect the job. Meanwhile the launcher limits the
        size of the job's log.
        """
        ...

    async def end(self, grace: timedelta) -> None:
        """Send SIGTERM to all processes of the job, SIGKILL after *grace*; return once it is gone.

        Removes a job that waits in an engine. Never raises for a job that has ended or was never
        started. Keeps the exit status, as if the job had ended by itself.
        """
        ...

    async def end_left_behind(self, grace: timedelta) -> Sequence[str]:
        """End, as `end` does, the processes that outlived the job; return them in words."""
        ...

    async def last_written(self) -> float | None:
        """Return when the job last wrote to its log, in seconds since 1970; None if unknown."""
        ...

    async def log_tail(self) -> str:
        """Return the lines of the output that tell why the job failed, valid as a Postgres text.

        The most telling one is the first; without one, the last lines. May be empty.
        """
        ...

    async def result(self) -> str | None:
        """Return the text of the result file, once the job is gone; None if it wrote none.

        Raises `InvalidInput` when it is not a plain file of UTF-8 text of at most 204 kB.
        """
        ...

    async def exited_at(self) -> float | None:
        """Return when the job exited, in seconds of `time.time`; None if it left no exit status."""
        ...

    async def spooled_report(self, secret: str) -> SpooledReport | None:
        """Return the report that the job could not send, if it left one signed by *secret*.

        Raises `NotSigned`, or `InvalidInput` when the file is not a report.
        """
        ...

    async def remove_spooled_report(self) -> None:
        """Remove the spooled report, once it was answered. Never raises."""
        ...


class Launcher(Protocol):
    """Starts the jobs of attempts: as local processes, or in an engine."""

    def adopt(self, assignment: Assignment) -> Job:
        """Return the job of *assignment*, whether or not any coordinator has started it.

        Neither blocks nor starts anything.
        """
        ...


@dataclass(frozen=True)
class Order:
    """A job as an engine is given it.

    `name` is unique over all installations, at most 63 of [a-z0-9-]. `script` is a file that the
    engine copies and starts with `arguments`, on any of its nodes, with `environment` and nothing
    else of ours; its output is appended to `log`, a file in `folder`. Neither name nor arguments
    hold secrets. `content` does: what `script` is to do, for nodes that do not share `folder`
    (runs/apart.py).
    """

    name: str
    script: Path
    arguments: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    log: Path
    content: Mapping[str, Any] = field(default_factory=dict)


class EngineState(enum.Enum):
    """The state of a job in its engine."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True)
class ListedJob:
    """The state of one job, as its engine lists it.

    `job`: its id in the engine. `words`: why it waits or how it ended, in the engine's words.
    `exit_status`: that of the script, 128 + n after signal n; None if the engine has none.
    """

    job: str
    state: EngineState
    words: str = ""
    node: str | None = None
    exit_status: int | None = None


class Engine(Protocol):
    """The commands of one engine. It keeps nothing, and decides nothing.

    Any call raises `NotNow` when the engine does not answer: then nothing is known.
    """

    async def submit(self, order: Order) -> str:
        """Submit a job; return its id in the engine.

        Raises `CannotStart` when the engine refuses the job for good, and `NotNow` when it does not
        take it now; it may have taken it all the same, unless the error is `certain`.
        """
        ...

    async def find(self) -> Mapping[str, list[ListedJob]]:
        """Return all jobs of pgcoord that the engine lists, by name: one question.

        Of a name there may be several, when a submission was repeated.
        """
        ...

    async def terminate(self, job: str) -> None:
        """Send SIGTERM to all processes of a job that runs, and remove one that waits.

        Returns before they are gone. A job that does not exist is not an error.
        """
        ...

    async def kill(self, job: str) -> None:
        """Send SIGKILL to all processes of a job, and remove it."""
        ...

    async def log(self, job: str) -> bytes | None:
        """Return the output of a job so far; None if there is none, or it is in its folder."""
        ...

    def changes(self) -> AsyncGenerator[None, None] | None:
        """Return an iterator that yields when a job may have changed; None if there is no stream.

        The iterator may end at any time, or raise `NotNow`: then the caller asks for another.
        """
        ...
