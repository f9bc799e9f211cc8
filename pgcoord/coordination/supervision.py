"""One attempt, from its claim to its end: started once, watched, and the database told of it.

What is decided about it (that it is to end, that its lead is over) comes from the coordinator. The
one rule: each step can be repeated by another coordinator, which finds in the database and from
the launcher how far this one came.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol, TypeVar

from pgcoord.configuration import Configuration, Workflow
from pgcoord.coordination.launching import Command, Job, JobState, Launcher
from pgcoord.coordination.retrying import Fact
from pgcoord.database import _sql, actions, claims
from pgcoord.database.rows import Assignment, Move, OpenAttempt
from pgcoord.errors import CannotStart, CoordError, InvalidConfiguration, InvalidInput, NotNow
from pgcoord.report import NotSigned

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
    launcher: Launcher
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
        self,
        statement: Callable[[_sql.Connection], Awaitable[Result]],
        fact: Fact | None = None,
    ) -> Result:
        """Run *statement*, which must be idempotent, until the database has executed it.

        While a lock keeps a *fact* from being recorded, that is shown to people. Raises `Stopped`
        when the coordinator is stopped first.
        """
        ...

    async def unless_stopped(self, awaitable: Awaitable[Result]) -> Result | None:
        """Await, but no longer than until the coordinator is stopped; return None then."""
        ...

    def note_recorded(self) -> None:
        """Wake the coordinator, which on shutdown waits until each start is recorded."""
        ...


@dataclass(frozen=True)
class _Gone:
    """The end of a process; without an `exit_status` it is lost."""

    exit_status: int | None


class Supervision:
    """An attempt that is supervised here: its job, and whether its process is to be ended."""

    task: asyncio.Task[None]

    def __init__(
        self, assignment: Assignment, coordinator: Coordination, epoch: int, lead_checked_at: float
    ) -> None:
        """*lead_checked_at*: loop time of the last statement that proved that we lead."""
        self.assignment = assignment
        self.epoch = epoch
        self.lead_checked_at = lead_checked_at
        self.job: Job = coordinator.launcher.adopt(assignment)
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
            if await self.job.give_up():
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
        state = await self.job.state()
        assignment = self.assignment
        if state in (JobState.ALIVE, JobState.ENDED):
            logger.info("%s taken over, %s, %s", assignment, self.job.identity, state.value)
            if not assignment.started:
                await self._record_start()
            await self._take_spooled_report()
            await self._see_to_its_end()
        elif assignment.started or state is JobState.LOST:
            await self._take_spooled_report()
            logger.warning("%s is lost: its process left no exit status", assignment)
            await self.job.end(GRACE)  # it may live where what is kept of it was deleted
            await self._end_what_it_left()
            await self._give_up("lost", "its process is gone and left no exit status")
        elif state is JobState.GIVEN_UP:
            await self._give_up("returned", "given up before it was started")
        elif self._coordinator.leads.is_set() and not (assignment.ended or assignment.ending):
            await self.launch_and_supervise()
        else:
            await self._give_back()

    async def _return(self, error: NotNow) -> None:
        """Give back an attempt that cannot be started now; its phase waits."""
        if not await self.job.give_up():
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
        if await self.job.give_up():
            await self._give_up("returned", f"{self._coordinator.host} gave it back, not started")
        else:
            await self.go_on()

    async def disown(self) -> None:
        """End what runs here and the database knows nothing of.

        Its phase was deleted, or a failover lost its claim, or another host's leader gave it up.
        """
        self.over = True
        if await self.job.state() is JobState.ALIVE:
            logger.warning(
                "%s is ended, %s: its attempt is not in the database any more",
                self.assignment,
                self.job.identity,
            )
            await self.job.end(GRACE)
        await self._end_what_it_left()

    async def _prepare(self) -> None:
        """Make what the process needs before it starts: its prompt file, and its issue."""
        await self.job.prepare(self.assignment.prompt or "", self._workflow().user)
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
        await self.job.start(
            Command(
                workflow.arguments(_values(self.assignment, self.job.prompt_file)),
                directory=workflow.directory,
                environment=self._environment_of(workflow),
                user=workflow.user,
            )
        )

    async def _record_start(self) -> None:
        identity = self.job.identity
        assert identity is not None
        await self._coordinator.execute_with_retry(
            lambda conn: claims.start_phase(conn, self.epoch, self.assignment.attempt_id, *identity)
        )
        log_move(self.assignment, "ready", "running", f"started, {identity}")

    async def _see_to_its_end(self) -> None:
        """Wait until the process is gone, ending it when told to, and say how it went."""
        self.recorded = True
        self._coordinator.note_recorded()
        gone = await self._coordinator.unless_stopped(self._gone())
        if gone is None:
            logger.info("%s is left running, %s", self.assignment, self.job.identity)
            return
        self.over = True
        left = await self._end_what_it_left()
        await self._take_spooled_report()
        if gone.exit_status is None and not self.told:
            await self._give_up("lost", "its process is gone and left no exit status")
            return
        status = _KILLED if gone.exit_status is None else gone.exit_status
        tail = await self.job.log_tail() if status else ""
        await self._conclude(
            f"exited with status {status}",
            lambda conn: claims.end_attempt(conn, self.assignment, status, tail, ", ".join(left)),
        )

    async def _take_spooled_report(self) -> None:
        """Take the report that the workflow could not send, if there is one."""
        assignment = self.assignment
        refused: CoordError | None = None
        try:
            kept = await self.job.spooled_report(assignment.secret)
            if kept is None:
                return
            answer = await self._coordinator.execute_with_retry(
                lambda conn: actions.take_report(
                    conn,
                    kept.report,
                    message_id=kept.message_id,
                    actor=f"{assignment.adw_id} (spooled report)",
                    adw_id=assignment.adw_id,
                ),
                Fact(assignment, "left a report"),
            )
            refused = answer.refusal()
        except (NotSigned, InvalidInput) as error:
            refused = error
        if refused:
            logger.warning("%s: its spooled report is not taken: %s", assignment, refused)
        else:
            logger.info("%s: its spooled report is taken", assignment)
        await self.job.remove_spooled_report()

    async def _end_what_it_left(self) -> Sequence[str]:
        left = await self.job.end_left_behind(GRACE)
        for each in left:
            logger.warning("%s left behind %s", self.assignment, each)
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

        await self._coordinator.execute_with_retry(execute_and_log, Fact(self.assignment, reason))

    async def _gone(self) -> _Gone:
        """Wait until the process is gone, ending its group when it is time."""
        async with asyncio.TaskGroup() as tasks:
            ender = tasks.create_task(self._end_in_time())
            exit_status = await self.job.wait()
            if not self.told:
                ender.cancel()
        return _Gone(exit_status)

    async def _end_in_time(self) -> None:
        await asyncio.sleep(await self._end_in)
        self.told = True
        logger.info("%s is being ended", self.assignment)
        await self.job.end(GRACE)

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


def _values(assignment: Assignment, prompt_file: str) -> dict[str, str | None]:
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
        "prompt_file": prompt_file,
        "prompt": assignment.prompt or "",
    }


def _now() -> float:
    return asyncio.get_running_loop().time()
