"""The launcher of this machine: each job is a run (run.py), a process with a folder on its disk.

The one rule: it keeps the contract of coordination/launching.py, whose docstrings apply here.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from pgcoord.coordination.launching import Command, Identity, JobState
from pgcoord.database.work import Assignment
from pgcoord.messages.report import SpooledReport, remove_spooled, spooled
from pgcoord.runs.account import Account, find_account
from pgcoord.runs.logs import Log
from pgcoord.runs.run import Run

logger = logging.getLogger(__name__)

# Seconds between two checks of a log's size, which it may exceed meanwhile.
_LOG_SIZE_INTERVAL = 1.0


class LocalLauncher:
    """Runs jobs as processes of this machine; a `coordination.launching.Launcher`."""

    def __init__(self, log_max_size: int) -> None:
        """Limit each log to *log_max_size* bytes."""
        self._limiter = _LogLimiter(log_max_size)

    def adopt(self, assignment: Assignment) -> "LocalJob":
        """Return the job of *assignment*, which has its folder and its process."""
        run = Run(Path(assignment.folder), assignment.pid, assignment.process_started)
        return LocalJob(run, self._limiter)


@dataclass(eq=False)
class _Growing:
    """A log that a process writes to, and its fault at the last check."""

    log: Log
    trouble: str | None = None

    def limit(self, size: int) -> None:
        """Reduce the log if it is longer than *size*; blocks. Logs what is wrong, once."""
        trouble = None
        try:
            self.log.bound(size)
        except OSError as error:
            trouble = error.strerror or str(error)
            if trouble != self.trouble:
                logger.warning("the log %s cannot be cut: %s", self.log.path, trouble)
        self.trouble = trouble


class _LogLimiter:
    """Limits the logs of all jobs that run, in one thread, which lives while there are any.

    The event loop is not involved: a silent job costs it nothing.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._growing: set[_Growing] = set()
        self._thread: threading.Thread | None = None

    @asynccontextmanager
    async def limiting(self, log: Log) -> AsyncIterator[None]:
        """Limit *log* once a second until the block ends, and once more then."""
        growing = _Growing(log)
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="logs", daemon=True)
                thread.start()
                self._thread = thread  # now, so that the next one tries where none can be started
            self._growing.add(growing)
        try:
            yield
        finally:
            with self._lock:
                self._growing.discard(growing)
        await asyncio.to_thread(growing.limit, self._size)

    def _run(self) -> None:
        while True:
            time.sleep(_LOG_SIZE_INTERVAL)
            with self._lock:
                logs = list(self._growing)
                if not logs:
                    self._thread = None
                    return
            for growing in logs:
                try:
                    growing.limit(self._size)
                except Exception:  # of one log: the others are limited by this thread as well
                    logger.exception("the log %s is not limited", growing.log.path)


class LocalJob:
    """One job of this machine; a `coordination.launching.Job`."""

    def __init__(self, run: Run, limiter: _LogLimiter) -> None:
        self._run = run
        self._limiter = limiter

    @property
    def prompt_file(self) -> str:
        """The prompt file in the folder of the run."""
        return str(self._run.prompt_file)

    @property
    def identity(self) -> Identity | None:
        """The wrapper's pid and start time."""
        pid = self._run.pid
        return None if pid is None else Identity(pid, self._run.process_started or "")

    async def prepare(self, prompt: str, inputs: str, user: str | None) -> None:
        """Create the folder of the run, with the prompt file and the input file in it."""
        await asyncio.to_thread(self._run.prepare, prompt, inputs, _account(user))

    async def start(self, command: Command) -> None:
        """Start the command; blocks for 1-2 ms, less than a thread would cost."""
        account = _account(command.user)
        environment = dict(command.environment)
        if account:
            environment |= account.variables
        self._run.start(
            command.arguments,
            directory=command.directory,
            environment=environment,
            account=account,
        )

    async def give_up(self) -> bool:
        """Prevent every later start of the run."""
        return await asyncio.to_thread(self._run.give_up)

    async def state(self) -> JobState:
        """Return the state, read from the folder of the run."""
        return await asyncio.to_thread(self._run.state)

    async def wait(self) -> int | None:
        """Wait for the process; limit the size of its log meanwhile."""
        async with self._limiter.limiting(self._run.log):
            return await self._run.wait()

    async def end(self, grace: timedelta) -> None:
        """End the process group, and then the rest of its session."""
        await self._run.end(grace)

    async def end_left_behind(self, grace: timedelta) -> Sequence[str]:
        """End the processes found by their session or their environment."""
        return [str(each) for each in await self._run.end_left_behind(grace)]

    async def last_written(self) -> float | None:
        """Return the time of the last change of the log."""
        try:
            return os.lstat(self._run.log.path).st_mtime
        except OSError:
            return None

    async def log_tail(self) -> str:
        """Return the lines of the log that show why the job failed."""
        return await asyncio.to_thread(self._run.log.excerpt)

    async def result(self) -> str | None:
        """Return the text of the result file in the folder of the run."""
        return await asyncio.to_thread(self._run.result)

    async def exited_at(self) -> float | None:
        """Return when the wrapper wrote the exit status into the folder of the run."""
        return await asyncio.to_thread(self._run.exited_at)

    async def spooled_report(self, secret: str) -> SpooledReport | None:
        """Return the report in the folder of the run."""
        return await asyncio.to_thread(spooled, self._run.folder, secret)

    async def remove_spooled_report(self) -> None:
        """Remove the file of the report, of any type but a folder."""
        try:
            await asyncio.to_thread(remove_spooled, self._run.folder)
        except OSError as error:
            logger.warning("the report in %s stays: %s", self._run.folder, error.strerror)


def _account(user: str | None) -> Account | None:
    return None if user is None else find_account(user)
