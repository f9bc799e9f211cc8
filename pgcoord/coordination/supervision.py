"""One attempt, from its claim to its end: started once, watched, and the database told of it.

What is decided about it (that it is to end, that its lead is over) comes from the coordinator. The
one rule: each step can be repeated by another coordinator, which finds in the database and in the
folder of the run how far this one came.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Protocol, TypeVar

from pgcoord.configuration import Configuration, Workflow
from pgcoord.database import _sql, actions, claims
from pgcoord.database.rows import Assignment, Move, OpenAttempt
from pgcoord.errors import CannotStart, CoordError, InvalidConfiguration, InvalidInput, NotNow
from pgcoord.report import NotSigned, spooled, unspool
from pgcoord.runs.local import LeftBehind, Run, RunState

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# What a process group is given between TERM and KILL.
GRACE = timedelta(seconds=5)

# The status of a process that was ended with its wrapper: by KILL.
_KILLED = 128 + 9

# Seconds since we knew that we lead after which we ask once more before a process is started.
_KNOWN_TO_LEAD = 1.0

_PASSED_ON = ("PATH", "HOME", "USER", "LANG", "TMPDIR")


class IssueMaker(Protocol):
    """What makes the issue of a phase before its process starts."""

    async def issue_for(self, assignment: Assignment, epoch: int) -> int | None:
        """The number of its issue; None where it does without. Raises `NotNow`, `CannotStart`."""
        ...


class Coordination(Protocol):
    """What an attempt needs of its coordinator."""

    host: str
    leads: asyncio.Event
    configuration: Configuration
    environment: Mapping[str, str]
    report_url: str | None

    @property
    def issues(self) -> IssueMaker | None:
        """What makes issues on GitHub, where that is configured."""
        ...

    @property
    def is_stopping(self) -> bool:
        """Whether nothing more is to be begun."""
        ...

    def page_of(self, queue_id: str) -> str | None:
        """Where people see a phase, if they can from anywhere."""
        ...

    async def execute_with_retry(
        self, statement: Callable[[_sql.Connection], Awaitable[Result]]
    ) -> Result:
        """Run *statement*, which must be idempotent, until the database has executed it.

        Raises `Stopped` when the coordinator is stopped first.
        """
        ...

    async def unless_stopped(self, awaitable: Awaitable[Result]) -> Result | None:
        """Await, but no longer than until the coordinator is stopped; return None then."""
        ...

    def note_recorded(self) -> None:
        """Wake the coordinator, which on shutdown waits until each start is recorded."""
        ...


class Supervision:
    """An attempt that is supervised here: its run, and whether its process is to be ended."""

    task: asyncio.Task[None]

    def __init__(
        self, assignment: Assignment, coordinator: Coordination, epoch: int, lead_checked_at: float
    ) -> None:
        """*lead_checked_at*: loop time of the last statement that proved that we lead."""
        self.assignment = assignment
        self.epoch = epoch
        self.lead_checked_at = lead_checked_at
        self.run = Run(Path(assignment.folder), assignment.pid, assignment.process_started)
        self.recorded = False
        self.told = False
        self.over = False
        self.end_is_logged = False
        self._coordinator = coordinator
        self._end_in: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def log_end(self, move: Move | None, reason: str) -> None:
        """Log, once, the move that the attempt ended with; `reason` where it has none itself."""
        if move and not self.end_is_logged:
            self.end_is_logged = True
            first_line = (move.reason or reason).partition("\n")[0]
            log_move(self.assignment, move.from_status, move.to_status, first_line)

    def heed(self, attempt: OpenAttempt) -> None:
        """End the process: at once when that was asked for, after the linger when it reported."""
        if not self._end_in.done() and (attempt.ending or attempt.ended):
            lingers = max(0.0, self._linger.total_seconds() - (attempt.ended_seconds_ago or 0.0))
            self._end_in.set_result(0.0 if attempt.ending else lingers)

    async def launch_and_supervise(self) -> None:
        """Start the process of an attempt that was just claimed, and see to its end."""
        try:
            await self._prepare()
            await self._launch()
        except NotNow as error:
            await self._return(error)
            return
        except (CannotStart, InvalidConfiguration, OSError) as error:
            if await asyncio.to_thread(self.run.give_up):
                logger.warning("%s could not be started: %s", self.assignment, error)
                await self._give_up("failed", str(error))
                return
            # Another coordinator of this host was faster.
            await self.go_on()
            return
        await self._record_start()
        await self._see_to_its_end()

    async def go_on(self) -> None:
        """Take over an attempt from wherever its last coordinator left it."""
        state = await asyncio.to_thread(self.run.state)
        assignment = self.assignment
        if state in (RunState.ALIVE, RunState.ENDED):
            logger.info("%s taken over, pid %s, %s", assignment, self.run.pid, state.value)
            if not assignment.started:
                await self._record_start()
            await self._take_spooled_report()
            await self._see_to_its_end()
        elif assignment.started or state is RunState.LOST:
            await self._take_spooled_report()
            logger.warning("%s is lost: its process left no exit status", assignment)
            await self.run.end(GRACE)  # it lives where its folder was deleted under it
            await self._end_what_it_left()
            await self._give_up("lost", "its process is gone and left no exit status")
        elif state is RunState.GIVEN_UP:
            await self._give_up("returned", "given up before it was started")
        elif self._coordinator.leads.is_set() and not (assignment.ended or assignment.ending):
            await self.launch_and_supervise()
        else:
            await self._give_back()

    async def _return(self, error: NotNow) -> None:
        """Give back an attempt that cannot be started now; its phase waits."""
        if not await asyncio.to_thread(self.run.give_up):
            await self.go_on()  # another coordinator of this host was faster
            return
        logger.info("%s is given back: %s", self.assignment, error)
        await self._conclude(
            str(error),
            lambda conn: claims.return_attempt(conn, self.assignment, error.wait, str(error)),
        )

    async def _give_back(self) -> None:
        """Return an attempt that was not started here, by whatever time this reaches its folder."""
        await self._coordinator.execute_with_retry(
            lambda conn: claims.check_epoch(conn, self.epoch)
        )
        if await asyncio.to_thread(self.run.give_up):
            await self._give_up("returned", f"{self._coordinator.host} gave it back, not started")
        else:
            await self.go_on()

    async def disown(self) -> None:
        """End what runs here and the database knows nothing of.

        Its phase was deleted, or a failover lost its claim, or another host's leader gave it up.
        """
        self.over = True
        if await asyncio.to_thread(self.run.state) is RunState.ALIVE:
            logger.warning(
                "%s is ended, pid %s: its attempt is not in the database any more",
                self.assignment,
                self.run.pid,
            )
            await self.run.end(GRACE)
        await self._end_what_it_left()

    async def _prepare(self) -> None:
        """Make what the process needs before it starts: the folder of its run, and its issue."""
        await asyncio.to_thread(self.run.prepare, self.assignment.prompt or "")
        issues = self._coordinator.issues
        if issues and self.assignment.issue_number is None:
            number = await issues.issue_for(self.assignment, self.epoch)
            self.assignment = replace(self.assignment, issue_number=number)

    async def _launch(self) -> None:
        workflow = self._workflow()
        if _now() - self.lead_checked_at > _KNOWN_TO_LEAD:
            await self._coordinator.execute_with_retry(
                lambda conn: claims.check_epoch(conn, self.epoch)
            )
        self.run.start(
            workflow.arguments(_values(self.assignment, self.run)),
            directory=workflow.directory,
            environment=self._environment_of(workflow),
        )

    async def _record_start(self) -> None:
        pid, started = self.run.pid, self.run.process_started
        assert pid is not None
        await self._coordinator.execute_with_retry(
            lambda conn: claims.start_phase(
                conn, self.epoch, self.assignment.attempt_id, pid, started or ""
            )
        )
        log_move(self.assignment, "ready", "running", f"started, pid {pid}")

    async def _see_to_its_end(self) -> None:
        """Wait until the process is gone, ending it when told to, and say how it went."""
        self.recorded = True
        self._coordinator.note_recorded()
        if await self._coordinator.unless_stopped(self._gone()) is None:
            logger.info("%s is left running, pid %s", self.assignment, self.run.pid)
            return
        self.over = True
        left = await self._end_what_it_left()
        await self._take_spooled_report()
        exit_status = self.run.exit_status
        if exit_status is None and not self.told:
            await self._give_up("lost", "its process is gone and left no exit status")
            return
        status = _KILLED if exit_status is None else exit_status
        tail = await asyncio.to_thread(self.run.log_tail) if status else ""
        names = ", ".join(f"{each.command} (pid {each.pid})" for each in left)
        await self._conclude(
            f"exited with status {status}",
            lambda conn: claims.end_attempt(conn, self.assignment, status, tail, names),
        )

    async def _take_spooled_report(self) -> None:
        """Take the report that the workflow could not send, if there is one."""
        assignment, folder = self.assignment, self.run.folder
        refused: CoordError | None = None
        try:
            kept = await asyncio.to_thread(spooled, folder, assignment.secret)
            if kept is None:
                return
            answer = await self._coordinator.execute_with_retry(
                lambda conn: actions.take_report(
                    conn,
                    kept.report,
                    message_id=kept.message_id,
                    actor=f"{assignment.adw_id} (spooled report)",
                    adw_id=assignment.adw_id,
                )
            )
            refused = answer.refusal()
        except (NotSigned, InvalidInput) as error:
            refused = error
        if refused:
            logger.warning("%s: its spooled report is not taken: %s", assignment, refused)
        else:
            logger.info("%s: its spooled report is taken", assignment)
        await asyncio.to_thread(unspool, folder)

    async def _end_what_it_left(self) -> list[LeftBehind]:
        left = await self.run.end_left_behind(GRACE)
        for each in left:
            logger.warning("%s left behind pid %d: %s", self.assignment, each.pid, each.command)
        return left

    async def _give_up(self, outcome: str, error: str) -> None:
        await self._conclude(
            error,
            lambda conn: claims.give_up_attempt(conn, self.assignment, outcome, error),
        )

    async def _conclude(
        self,
        reason: str,
        statement: Callable[[_sql.Connection], Awaitable[Move | None]],
    ) -> None:
        """Record by *statement* how an attempt ended, and log what that made of its phase."""

        async def execute_and_log(conn: _sql.Connection) -> None:
            self.log_end(await statement(conn), reason)

        await self._coordinator.execute_with_retry(execute_and_log)

    async def _gone(self) -> bool:
        """Wait until the process is gone, ending its group when it is time; then return True."""
        async with asyncio.TaskGroup() as tasks:
            ender = tasks.create_task(self._end_in_time())
            bounder = tasks.create_task(self._bound_log_while_it_grows())
            await self.run.wait()
            bounder.cancel()
            if not self.told:
                ender.cancel()
        await self._bound_log()
        return True

    async def _bound_log_while_it_grows(self) -> None:
        """Look at the log once a second: that is as far as it can outgrow its limit."""
        while True:
            await asyncio.sleep(1)
            await self._bound_log()

    async def _bound_log(self) -> None:
        try:
            await asyncio.to_thread(
                self.run.bound_log, self._coordinator.configuration.log_max_size
            )
        except OSError as error:
            logger.warning("the log %s cannot be cut: %s", self.run.log, error.strerror)

    async def _end_in_time(self) -> None:
        await asyncio.sleep(await self._end_in)
        self.told = True
        logger.info("%s is being ended", self.assignment)
        await self.run.end(GRACE)

    def _workflow(self) -> Workflow:
        name = self.assignment.workflow
        workflow = self._coordinator.configuration.workflows.get(name)
        if workflow is None:
            raise InvalidConfiguration(f"workflow {name} is not declared any more")
        return workflow

    @property
    def _linger(self) -> timedelta:
        workflow = self._coordinator.configuration.workflows.get(self.assignment.workflow)
        return workflow.linger if workflow else Workflow.linger

    def _environment_of(self, workflow: Workflow) -> dict[str, str]:
        assignment, environment = self.assignment, self._coordinator.environment
        passed_on = {
            name: environment[name]
            for name in (*_PASSED_ON, *workflow.environment)
            if name in environment
        }
        if self._coordinator.report_url:
            passed_on["PGCOORD_REPORT_URL"] = self._coordinator.report_url
        return passed_on | {
            "PGCOORD_QUEUE_ID": assignment.queue_id,
            "PGCOORD_FEATURE_ID": str(assignment.feature_id),
            "PGCOORD_PHASE_NUMBER": str(assignment.phase_number),
            "PGCOORD_ADW_ID": assignment.adw_id,
            "PGCOORD_ATTEMPT": str(assignment.attempt),
            "PGCOORD_ISSUE_NUMBER": str(assignment.issue_number or ""),
            "PGCOORD_WEBHOOK_SECRET": assignment.secret,
        }


def log_move(assignment: Assignment, was: str, now: str, reason: str) -> None:
    """Log a transition of a phase; `reason` is a line, with nothing that a process has written."""
    logger.info(
        "%s %s → %s: attempt %d, slot %d, %s",
        assignment.queue_id,
        was,
        now,
        assignment.attempt,
        assignment.slot,
        reason,
        extra={
            "fields": {
                "phase": assignment.queue_id,
                "from": was,
                "to": now,
                "attempt": assignment.attempt,
                "adw_id": assignment.adw_id,
                "slot": assignment.slot,
                "reason": reason,
            }
        },
    )


def _values(assignment: Assignment, run: Run) -> dict[str, str | None]:
    """What the placeholders of a command stand for."""
    issue = assignment.issue_number
    return {
        "queue_id": assignment.queue_id,
        "feature_id": str(assignment.feature_id),
        "phase_number": str(assignment.phase_number),
        "attempt": str(assignment.attempt),
        "adw_id": assignment.adw_id,
        "issue_number": None if issue is None else str(issue),
        "workflow_type": assignment.workflow,
        "title": assignment.title or f"Phase {assignment.phase_number}",
        "prompt_file": str(run.prompt_file),
        "prompt": assignment.prompt or "",
    }


def _now() -> float:
    return asyncio.get_running_loop().time()
