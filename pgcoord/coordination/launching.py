"""What a launcher promises: the seam between the supervision of attempts and what runs them.

A launcher starts the job of an attempt, on this machine (runs/local.py) or on an engine, watches
it and ends it. Supervision decides when, and writes to the database; it knows no file, process or
folder. A new launcher is one class that keeps `Launcher`, with one for its jobs that keeps `Job`.

What an engine has to keep in mind (docs/design.md, section 13):

- Its `start` may fail without saying whether the job was submitted. That is no `CannotStart`:
  submit again under the same name. Of two jobs of one attempt the database lets one begin, so a
  copy that was requeued or submitted twice does nothing.
- A job that waits in the engine is `ALIVE`: it was submitted, and it holds its slot. `Identity` is
  where the id of a job and its node go, beside pid and start time.
- `wait` learns the end from the job's own last word where there is one, and asks the engine only
  whether the job is still there: one question for all jobs, so the `Launcher` asks, not each `Job`.

The one rule: every call can be repeated, by any coordinator that may adopt the job, after a crash
of another at any point; nothing is kept only in memory.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, Protocol

from pgcoord.database.rows import Assignment
from pgcoord.report import Kept


class JobState(enum.Enum):
    """How a job stands.

    GIVEN_UP was never started and never will be; LOST is gone and left no exit status.
    """

    NEVER_STARTED = "never started"
    GIVEN_UP = "given up"
    ALIVE = "alive"
    ENDED = "ended"
    LOST = "lost"


class Identity(NamedTuple):
    """What finds a job again, as it is stored with the attempt: a process, by pid and start time.

    `process_started` is a text to compare; no other process has it together with this pid.
    """

    pid: int
    process_started: str

    def __str__(self) -> str:
        return f"pid {self.pid}"


@dataclass(frozen=True)
class Command:
    """What a job runs: arguments as they are, without a shell.

    `environment` is all that it gets, but for the variable that names the prompt file. `user` is
    the account that it runs as, None: the launcher's own.
    """

    arguments: Sequence[str]
    directory: Path
    environment: Mapping[str, str]
    user: str | None = None


class Job(Protocol):
    """The job of one attempt, whether it was started yet or not."""

    @property
    def prompt_file(self) -> str:
        """Where the command will find its prompt, as it is named where the job runs."""
        ...

    @property
    def identity(self) -> Identity | None:
        """What finds the job again; None as long as it was not started."""
        ...

    async def prepare(self, prompt: str, user: str | None) -> None:
        """Make what a start needs, such as the prompt file; starts nothing.

        Raises `CannotStart` or `OSError` when that cannot be made, or not for `user`.
        """
        ...

    async def start(self, command: Command) -> None:
        """Start the job: once for ever, whichever coordinator tries, and however often.

        Returns when the job is known to be started (engine: submitted). Raises `CannotStart` only
        when this call has certainly started nothing: the job was started before, was given up, or
        the command cannot be started.
        """
        ...

    async def give_up(self) -> bool:
        """Have the job never started, whoever tries from now on.

        Return False when it was started, or given up, before.
        """
        ...

    async def state(self) -> JobState:
        """Tell how the job stands; waits until a start that is under way is over."""
        ...

    async def wait(self) -> int | None:
        """Wait until the job is gone; return its exit status, 128 + n after signal n.

        None when it left none: it is lost. Returns at once when there is nothing to wait for. Any
        number of callers may wait; cancelling one leaves the job alone. The launcher keeps the
        job's log within its size meanwhile.
        """
        ...

    async def end(self, grace: timedelta) -> None:
        """TERM all processes of the job, KILL what is left after `grace`; return once it is gone.

        A job that has not begun is removed. Never raises for a job that has ended or was never
        started. Its exit status is kept, as when it ends by itself.
        """
        ...

    async def end_left_behind(self, grace: timedelta) -> Sequence[str]:
        """End, as `end` does, the processes that outlive the job; return them in words."""
        ...

    async def log_tail(self) -> str:
        """Return the last lines of the job's output, fit for a text column; may be empty."""
        ...

    async def spooled_report(self, secret: str) -> Kept | None:
        """Return the report that the job could not send, if it left one signed by `secret`.

        Raises `NotSigned`, or `InvalidInput` when what it left is no report.
        """
        ...

    async def remove_spooled_report(self) -> None:
        """Remove that report: it was answered. Never raises."""
        ...


class Launcher(Protocol):
    """Starts jobs of attempts in one way."""

    def adopt(self, assignment: Assignment) -> Job:
        """Return the job of an attempt, started or not, by this coordinator or another before it.

        Neither blocks nor starts anything.
        """
        ...
