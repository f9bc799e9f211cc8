"""The coordinator: waits for wake-ups, claims what is eligible, runs it, says how it went.

Data flows one way: a notification wakes the loop, the database says what may run (claim) and what
shall end (attend), a task for each attempt runs its process and tells the database how it went, and
that may wake the loop again. The one rule: nothing is remembered here that is not in the database
or in the folder of a run; a coordinator that is killed at any point is replaced by one that reads
both and goes on.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from pgcoord import __version__, database, queries
from pgcoord.backoff import Backoff
from pgcoord.configuration import Configuration, Workflow
from pgcoord.errors import (
    AnotherLeads,
    CannotStart,
    CoordError,
    DatabaseUnusable,
    InvalidConfiguration,
    InvalidInput,
)
from pgcoord.launcher import LeftBehind, Run, RunState
from pgcoord.listener import Listener, listening
from pgcoord.queries import Assignment, OpenAttempt
from pgcoord.report import NotSigned, spooled, unspool

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# What a process group is given between TERM and KILL.
GRACE = timedelta(seconds=5)

# The status of a process that was ended with its wrapper: by KILL.
_KILLED = 128 + 9

# Locks on claimable phases that are waited for at once, each on a connection of its own.
_MOST_AWAITED = 8

# Seconds until an attempt is looked at again whose supervision failed by an error of ours.
_SECOND_LOOK = 5

_LOST_CONNECTION = (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout)
_PASSED_ON = ("PATH", "HOME", "USER", "LANG", "TMPDIR")


class Coordinator:
    """One coordinator of one database. `run` it once."""

    def __init__(
        self,
        dsn: str,
        configuration: Configuration,
        *,
        runs_folder: Path,
        environment: Mapping[str, str],
        report_url: str | None = None,
    ) -> None:
        """Launch into folders below `runs_folder`.

        Processes get what the workflows let through of `environment`, and report to `report_url`.
        """
        self.host = socket.gethostname()
        self.leads = asyncio.Event()
        self._dsn = dsn
        self._configuration = configuration
        self._runs_folder = runs_folder.resolve()
        self._environment = environment
        self._report_url = report_url
        self._stopping = asyncio.Event()
        self._listener: Listener | None = None
        self._epoch = 0
        self._stands_by = False
        self.interruptions = 0
        self._taken: dict[int, _Taken] = {}
        self._awaited: set[str] = set()
        # Without a check at check-out, which would cost a round trip each: a statement that finds
        # its connection dead is sent again (`_tell`), and the loop starts again where it was.
        self._pool = AsyncConnectionPool(
            database.with_defaults(dsn),
            min_size=1,
            max_size=8,
            timeout=5,
            open=False,
            kwargs={"autocommit": True},
        )

    async def run(self, *, stand_by: bool = False) -> None:
        """Lead, claim and supervise until `stop`; processes that run then are left running.

        Goes on through the loss of any connection, however long. Raises `AnotherLeads` when
        somebody else leads at the start, or else, with `stand_by`, waits for the lead and takes it
        within some seconds. Raises `DatabaseUnusable` when the server refuses us for good before it
        was ever reached.
        """
        self._stands_by = stand_by
        refusal: CoordError | None = None
        async with self._pool, asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                await self._lead_until_stopped()
            except CoordError as error:
                refusal = error  # raised outside, where no group of exceptions is made of it
            finally:
                self._stopping.set()
        if refusal:
            raise refusal

    def stop(self) -> None:
        """Claim nothing more; `run` returns once what is being started now has been recorded."""
        self._stopping.set()

    @property
    def led(self) -> bool:
        """Whether it ever led."""
        return self._epoch > 0

    @property
    def running(self) -> list[Assignment]:
        """The attempts that are supervised."""
        return [taken.assignment for taken in self._taken.values()]

    async def _lead_until_stopped(self) -> None:
        backoff = Backoff()
        while not self._stopping.is_set():
            try:
                async with listening(self._dsn) as self._listener:
                    await self._take_the_lead(self._listener)
                    backoff.reset()
                    await self._work()
            except (DatabaseUnusable, AnotherLeads) as error:
                if not self._epoch and self._is_final(error):
                    raise
                await self._pause(backoff, error)
            except _LOST_CONNECTION as error:
                await self._pause(backoff, error)
            finally:
                self._listener = None
                self.leads.clear()

    async def _take_the_lead(self, listener: Listener) -> None:
        lead = await queries.lead(
            listener.conn,
            host=self.host,
            pid=os.getpid(),
            version=__version__,
            runs_folder=str(self._runs_folder),
            workflows=[_declared(workflow) for workflow in self._configuration.workflows.values()],
        )
        self._epoch = lead.epoch
        self.leads.set()
        logger.info("leading (lead %d), listening on %s", lead.epoch, queries.WAKE)

    async def _work(self) -> None:
        """Go round until stopped.

        A notification at any point of the round ends the next wait at once.
        """
        await self._unless_stopped(self._attend())
        while not self._stopping.is_set():
            claimed = await self._unless_stopped(self._claim())
            await self._unless_stopped(self._attend())
            if not claimed:
                await self._unless_stopped(self._rest())

    async def _claim(self) -> bool:
        """Claim what is eligible and take it on; whether there was anything."""
        assignments = await queries.claim_phases(self._conn, self._epoch)
        for assignment in assignments:
            logger.info("%s claimed", assignment)
            self._take(assignment, self._launch_and_supervise)
        return bool(assignments)

    async def _attend(self) -> None:
        """Take on attempts of this host that nobody supervises; end those that shall end."""

        await queries.expire_attempts(self._conn)
        for attempt in await queries.open_attempts(self._conn, self.host):
            if attempt.attempt_id not in self._taken:
                assignment = await queries.assignment(self._conn, attempt.attempt_id)
                if assignment:
                    self._take(assignment, self._go_on)
            if taken := self._taken.get(attempt.attempt_id):
                taken.heed(attempt)

    async def _rest(self) -> None:
        """Wait until there may be something to do."""
        assert self._listener is not None
        seen = set(self._awaited)
        agenda = await queries.agenda(self._conn, seen)
        while agenda.locked_phase and len(seen) < _MOST_AWAITED:
            # Perhaps it has just become claimable: then its lock is had at once, and wakes us.
            seen.add(agenda.locked_phase)
            self._awaited.add(agenda.locked_phase)
            self._tasks.create_task(self._await_lock(agenda.locked_phase))
            agenda = await queries.agenda(self._conn, seen)
        await self._listener.wait(agenda.due_in)

    async def _await_lock(self, queue_id: str) -> None:
        """Wake the loop when the lock on a claimable phase is gone: a rollback notifies nobody."""
        try:
            async with await database.connect(self._dsn) as conn:
                await self._unless_stopped(queries.await_phase(conn, queue_id))
        except (*_LOST_CONNECTION, DatabaseUnusable) as error:
            logger.debug("waiting for the lock on %s: %s", queue_id, error)
        finally:
            self._awaited.discard(queue_id)
            self._wake()

    def _is_final(self, error: CoordError) -> bool:
        if isinstance(error, AnotherLeads):
            return not self._stands_by
        return database.refused_for_good(error)

    @property
    def _conn(self) -> queries.Connection:
        """The connection that holds the lead, which the loop uses while it does not listen.

        So a claim cannot outlive the lead, nor wait for connections that reports are using.
        """
        assert self._listener is not None
        return self._listener.conn

    def _wake(self) -> None:
        if self._listener:
            self._listener.tell()

    async def _unless_stopped(self, awaitable: Coroutine[Any, Any, Result]) -> Result | None:
        """Await, but no longer than until `stop`; return None then."""
        waited_for = asyncio.ensure_future(awaitable)
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({waited_for, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return waited_for.result() if waited_for.done() else None
        finally:
            waited_for.cancel()
            stopping.cancel()
            await asyncio.gather(waited_for, stopping, return_exceptions=True)

    def _take(
        self, assignment: Assignment, supervise: Callable[["_Taken"], Awaitable[None]]
    ) -> None:
        taken = _Taken(assignment, self._linger(assignment))
        self._taken[assignment.attempt_id] = taken
        self._tasks.create_task(self._supervise(taken, supervise))

    async def _supervise(
        self, taken: "_Taken", supervise: Callable[["_Taken"], Awaitable[None]]
    ) -> None:
        """See one attempt through; an error of its own must not take the others down with it."""
        try:
            await supervise(taken)
        except AnotherLeads as error:
            logger.warning("%s is left to whoever leads now: %s", taken.assignment, error)
            self._wake()  # it may be ourselves, with a new lead
        except Exception:
            logger.exception("%s is looked at again in %d s", taken.assignment, _SECOND_LOOK)
            await self._unless_stopped(asyncio.sleep(_SECOND_LOOK))
            self._wake()
        finally:
            del self._taken[taken.assignment.attempt_id]

    async def _launch_and_supervise(self, taken: "_Taken") -> None:
        try:
            await self._prepare(taken)
            await self._launch(taken)
        except (CannotStart, InvalidConfiguration, OSError) as error:
            if await asyncio.to_thread(taken.run.state) is RunState.NEVER_STARTED:
                logger.warning("%s could not be started: %s", taken.assignment, error)
                await self._give_up(taken, "failed", str(error))
                return
            # Another coordinator of this host was faster: the process is there, and it counts.
        await self._record_start(taken)
        await self._see_to_its_end(taken)

    async def _go_on(self, taken: "_Taken") -> None:
        """Take over an attempt from wherever its last coordinator left it."""
        state = await asyncio.to_thread(taken.run.state)
        assignment = taken.assignment
        if state is RunState.NEVER_STARTED and not assignment.started:
            if assignment.ended or assignment.ending:
                await self._give_up(
                    taken, "returned", "its end was asked for before it was started"
                )
            else:
                await self._launch_and_supervise(taken)
        elif state in (RunState.ALIVE, RunState.ENDED):
            logger.info("%s taken over, pid %s, %s", assignment, taken.run.pid, state.value)
            if not assignment.started:
                await self._record_start(taken)
            await self._take_spooled_report(taken)
            await self._see_to_its_end(taken)
        else:
            await self._take_spooled_report(taken)
            logger.warning("%s is lost: its process is gone without an exit status", assignment)
            await self._end_what_it_left(taken)
            await self._give_up(taken, "lost", "its process is gone and left no exit status")

    async def _prepare(self, taken: "_Taken") -> None:
        """Make what the process needs before it starts: the folder of its run and its prompt."""
        await asyncio.to_thread(taken.run.prepare, taken.assignment.prompt or "")

    async def _launch(self, taken: "_Taken") -> None:
        workflow = self._workflow(taken.assignment)
        taken.run.start(
            workflow.arguments(_values(taken.assignment, taken.run)),
            directory=workflow.directory,
            environment=self._environment_of(taken.assignment, workflow),
        )

    async def _record_start(self, taken: "_Taken") -> None:
        pid, started = taken.run.pid, taken.run.process_started
        assert pid is not None
        await self._tell(
            lambda conn: queries.start_phase(
                conn, self._epoch, taken.assignment.attempt_id, pid, started or ""
            )
        )
        logger.info("%s started, pid %d", taken.assignment, pid)

    async def _see_to_its_end(self, taken: "_Taken") -> None:
        """Wait until the process is gone, ending it when told to, and say how it went."""
        if await self._unless_stopped(taken.gone()) is None:
            logger.info("%s is left running, pid %s", taken.assignment, taken.run.pid)
            return
        left = await self._end_what_it_left(taken)
        await self._take_spooled_report(taken)
        exit_status = taken.run.exit_status
        if exit_status is None and not taken.told:
            await self._give_up(taken, "lost", "its process is gone and left no exit status")
            return
        status = _KILLED if exit_status is None else exit_status
        tail = await asyncio.to_thread(taken.run.log_tail) if status else ""
        names = ", ".join(f"{each.command} (pid {each.pid})" for each in left)
        await self._tell(
            lambda conn: queries.end_attempt(conn, taken.assignment.attempt_id, status, tail, names)
        )
        logger.info("%s exited with status %d", taken.assignment, status)

    async def _take_spooled_report(self, taken: "_Taken") -> None:
        """Take the report that the workflow could not send, if there is one."""
        assignment, folder = taken.assignment, taken.run.folder
        refused: CoordError | None = None
        try:
            kept = await asyncio.to_thread(spooled, folder, assignment.secret)
            if kept is None:
                return
            answer = await self._tell(
                lambda conn: queries.take_report(
                    conn,
                    kept.report,
                    message_id=kept.message_id,
                    actor=f"{assignment.adw_id} (spooled report)",
                    adw_id=assignment.adw_id,
                )
            )
            if answer is None:
                return
            refused = answer.refusal()
        except (NotSigned, InvalidInput) as error:
            refused = error
        if refused:
            logger.warning("%s: its spooled report is not taken: %s", assignment, refused)
        else:
            logger.info("%s: its spooled report is taken", assignment)
        await asyncio.to_thread(unspool, folder)

    async def _end_what_it_left(self, taken: "_Taken") -> list[LeftBehind]:
        left = await taken.run.end_left_behind(GRACE)
        for each in left:
            logger.warning("%s left behind pid %d: %s", taken.assignment, each.pid, each.command)
        return left

    async def _give_up(self, taken: "_Taken", outcome: str, error: str) -> None:
        await self._tell(
            lambda conn: queries.give_up_attempt(conn, taken.assignment.attempt_id, outcome, error)
        )

    async def _tell(self, say: Callable[[queries.Connection], Awaitable[Result]]) -> Result | None:
        """Say something to the database until it has heard it: all that is said can be said twice.

        Gives up, and returns None, when stopped; whoever starts next finds the same in the folder
        of the run.
        """
        backoff = Backoff()
        while True:
            try:
                async with self._pool.connection() as conn:
                    return await say(conn)
            except _LOST_CONNECTION as error:
                if self._stopping.is_set():
                    logger.warning("stopped before the database could be told: %s", _line(error))
                    return None
                await self._pause(backoff, error)

    async def _pause(self, backoff: Backoff, error: Exception) -> None:
        self.interruptions += not isinstance(error, AnotherLeads)
        seconds = backoff.next()
        level = logging.INFO if isinstance(error, AnotherLeads) else logging.WARNING
        logger.log(level, "trying again in %.2f s: %s", seconds, _line(error))
        await self._unless_stopped(asyncio.sleep(seconds))

    def _workflow(self, assignment: Assignment) -> Workflow:
        workflow = self._configuration.workflows.get(assignment.workflow)
        if workflow is None:
            raise InvalidConfiguration(f"workflow {assignment.workflow} is not declared any more")
        return workflow

    def _linger(self, assignment: Assignment) -> timedelta:
        workflow = self._configuration.workflows.get(assignment.workflow)
        return workflow.linger if workflow else Workflow.linger

    def _environment_of(self, assignment: Assignment, workflow: Workflow) -> dict[str, str]:
        passed_on = {
            name: self._environment[name]
            for name in (*_PASSED_ON, *workflow.environment)
            if name in self._environment
        }
        if self._report_url:
            passed_on["PGCOORD_REPORT_URL"] = self._report_url
        return passed_on | {
            "PGCOORD_QUEUE_ID": assignment.queue_id,
            "PGCOORD_FEATURE_ID": str(assignment.feature_id),
            "PGCOORD_PHASE_NUMBER": str(assignment.phase_number),
            "PGCOORD_ADW_ID": assignment.adw_id,
            "PGCOORD_ATTEMPT": str(assignment.attempt),
            "PGCOORD_ISSUE_NUMBER": str(assignment.issue_number or ""),
            "PGCOORD_WEBHOOK_SECRET": assignment.secret,
        }


class _Taken:
    """An attempt that is supervised here: its run, and whether its process is to be ended."""

    def __init__(self, assignment: Assignment, linger: timedelta) -> None:
        self.assignment = assignment
        self.run = Run(Path(assignment.folder))
        self.told = False
        self._linger = linger
        self._end_in: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def heed(self, attempt: OpenAttempt) -> None:
        """End the process: at once when that was asked for, after the linger when it reported."""
        if not self._end_in.done() and (attempt.ending or attempt.ended):
            lingers = max(0.0, self._linger.total_seconds() - (attempt.ended_seconds_ago or 0.0))
            self._end_in.set_result(lingers if attempt.ended else 0.0)

    async def gone(self) -> bool:
        """Wait until the process is gone, ending its group when it is time; then return True."""
        async with asyncio.TaskGroup() as tasks:
            ender = tasks.create_task(self._end_in_time())
            await self.run.wait()
            if not self.told:
                ender.cancel()
        return True

    async def _end_in_time(self) -> None:
        await asyncio.sleep(await self._end_in)
        self.told = True
        logger.info("%s is being ended", self.assignment)
        await self.run.end(GRACE)


def _declared(workflow: Workflow) -> dict[str, object]:
    """What the database has to know of a workflow."""
    return {
        "name": workflow.name,
        "default": workflow.default,
        "reports": workflow.reports,
        "max_attempts": workflow.max_attempts,
        "retry_delay_seconds": workflow.retry_delay.total_seconds(),
        "retry_lost": workflow.retry_lost,
        "timeout_seconds": workflow.timeout.total_seconds() if workflow.timeout else None,
    }


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


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
