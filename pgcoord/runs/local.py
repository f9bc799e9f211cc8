"""The launcher of this machine: each job is a run (run.py), a process with a folder on its disk.

The one rule: it keeps the contract of coordination/launching.py, whose docstrings apply here.
"""

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from pgcoord.coordination.launching import Command, Identity, JobState
from pgcoord.database.rows import Assignment
from pgcoord.report import Kept, remove_spooled, spooled
from pgcoord.runs.account import Account, find_account
from pgcoord.runs.run import Run

logger = logging.getLogger(__name__)

# Seconds between two checks of a log's size, which it may exceed meanwhile.
_LOOK = 1.0


class LocalLauncher:
    """Runs jobs as processes of this machine; a `coordination.launching.Launcher`."""

    def __init__(self, log_max_size: int) -> None:
        """Limit each log to *log_max_size* bytes."""
        self._log_max_size = log_max_size

    def adopt(self, assignment: Assignment) -> "LocalJob":
        """Return the job of *assignment*, which has its folder and its process."""
        run = Run(Path(assignment.folder), assignment.pid, assignment.process_started)
        return LocalJob(run, self._log_max_size)


class LocalJob:
    """One job of this machine; a `coordination.launching.Job`."""

    def __init__(self, run: Run, log_max_size: int) -> None:
        self._run = run
        self._log_max_size = log_max_size
        self._log_trouble: str | None = None

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
        bounding = asyncio.create_task(self._bound_log_while_it_grows())
        try:
            exit_status = await self._run.wait()
        finally:
            bounding.cancel()
            await asyncio.gather(bounding, return_exceptions=True)
        await self._bound_log()
        return exit_status

    async def end(self, grace: timedelta) -> None:
        """End the process group, and then the rest of its session."""
        await self._run.end(grace)

    async def end_left_behind(self, grace: timedelta) -> Sequence[str]:
        """End the processes found by their session or their environment."""
        return [str(each) for each in await self._run.end_left_behind(grace)]

    async def log_tail(self) -> str:
        """Return what of the log tells why it failed."""
        return await asyncio.to_thread(self._run.log.excerpt)

    async def result(self) -> str | None:
        """Return the text of the result file in the folder of the run."""
        return await asyncio.to_thread(self._run.result)

    async def spooled_report(self, secret: str) -> Kept | None:
        """Return the report in the folder of the run."""
        return await asyncio.to_thread(spooled, self._run.folder, secret)

    async def remove_spooled_report(self) -> None:
        """Remove the file of the report, of any type but a folder."""
        try:
            await asyncio.to_thread(remove_spooled, self._run.folder)
        except OSError as error:
            logger.warning("the report in %s stays: %s", self._run.folder, error.strerror)

    async def _bound_log_while_it_grows(self) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            await self._bound_log()

    async def _bound_log(self) -> None:
        log = self._run.log
        try:
            await asyncio.to_thread(log.bound, self._log_max_size)
        except OSError as error:
            trouble = error.strerror or str(error)
            if trouble != self._log_trouble:  # log it once, not each second
                logger.warning("the log %s cannot be cut: %s", log.path, trouble)
            self._log_trouble = trouble


def _account(user: str | None) -> Account | None:
    return None if user is None else find_account(user)
