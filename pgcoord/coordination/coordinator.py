"""The coordinator: waits for wake-ups, claims what is eligible, runs it, says how it went.

Data flows one way: a notification wakes the loop, the database says what may run (claim) and what
shall end (attend), a task for each attempt (supervision.py) runs its process and tells the database
how it went, and that may wake the loop again. Of the coordinators of a database one leads; the
others stand by: they claim nothing, and attend to the processes of their own host unless the leader
is on it. The one rule: nothing is remembered here that is not in the database or in the folder of a
run; a coordinator that is killed at any point is replaced by one that reads both and goes on.
"""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from pgcoord import __version__
from pgcoord.backoff import Backoff
from pgcoord.configuration import Configuration, Workflow
from pgcoord.coordination.launching import Launcher
from pgcoord.coordination.supervision import Supervision, Unheard, log_move
from pgcoord.database import _sql, claims, issues, reads, session
from pgcoord.database import connect as database
from pgcoord.database.listener import Listener, listening
from pgcoord.database.rows import Assignment, Lead, ServerTimeline
from pgcoord.errors import AnotherLeads, CoordError, DatabaseUnusable, Locked, StaleAttempt
from pgcoord.runs.local import LocalLauncher
from pgcoord.runs.retention import remove_old_runs

if TYPE_CHECKING:
    from pgcoord.coordination.issues import Issues

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Locks on claimable phases that are waited for at once, each on a connection of its own.
_MOST_AWAITED = 8

# Seconds until an attempt is looked at again whose supervision failed by an error of ours.
_SECOND_LOOK = 5

# Seconds between questions for the lead, each of which waits two more: ten statements a minute.
_ASK_EVERY = 4.0

# Among the locks that are awaited: the one that all claims take.
_CONTROL = "pgcoord.control"

# The lead, as long as nobody has it.
_NOBODY = Lead(led=False, epoch=None, host=None, pid=None)

# Seconds between two looks for runs that are not to be kept any longer.
_DAY = 24 * 60 * 60

_LOST_CONNECTION = (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout)


class Coordinator:
    """One coordinator of one database. `run` it once."""

    supervision = Supervision  # how one attempt is seen through

    def __init__(
        self,
        dsn: str,
        configuration: Configuration,
        *,
        runs_folder: Path,
        environment: Mapping[str, str],
        host: str | None = None,
        report_url: str | None = None,
    ) -> None:
        """Launch into folders below `runs_folder`, on the machine called `host` (None: as it is).

        Processes get what the workflows let through of `environment`, and report to `report_url`.
        """
        self.host = host or socket.gethostname()
        self.leads = asyncio.Event()
        self._dsn = dsn
        self.configuration = configuration
        self.launcher: Launcher = LocalLauncher(configuration.log_max_size)
        self._runs_folder = runs_folder.resolve()
        self.environment = environment
        self.report_url = report_url
        self.issues = self._make_issues()
        self._stopping = asyncio.Event()
        self._draining = False
        self._backoff = Backoff()
        self._listener: Listener | None = None
        self._pool: AsyncConnectionPool
        self._lineage = ServerTimeline(None, None)
        self._leader: Lead | None = None
        self._epoch = 0
        self._led = False
        self.interruptions = 0
        self._taken: dict[str, Supervision] = {}
        self._awaited: set[str] = set()
        self._abandoned: set[int] = set()

    async def run(self) -> None:
        """Lead or stand by until `stop`; processes that run then are left running.

        Goes on through the loss of any connection, however long. Raises `DatabaseUnusable` when
        the server refuses us for good before it was ever reached.
        """
        refusal: CoordError | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                try:
                    tasks.create_task(self._keep_house())
                    if self.issues:
                        tasks.create_task(self.issues.run())
                    await self._coordinate()
                except CoordError as error:
                    refusal = error  # raised outside, where no group of exceptions is made of it
                finally:
                    self._stopping.set()
        finally:
            if self.issues:
                await self.issues.close()
        if refusal:
            raise refusal

    def stop(self) -> None:
        """Claim nothing more; `run` returns once what is being started now has been recorded."""
        self._stopping.set()

    def drain(self) -> None:
        """Claim nothing more and let others lead; `run` returns once no process runs here."""
        self._draining = True
        self._wake()

    @property
    def led(self) -> bool:
        """Whether it ever led."""
        return self._led

    @property
    def running(self) -> list[Assignment]:
        """The attempts that are supervised."""
        return [taken.assignment for taken in self._taken.values()]

    @property
    def is_stopping(self) -> bool:
        """Whether nothing more is to be begun."""
        return self._stopping.is_set()

    def page_of(self, queue_id: str) -> str | None:
        """Where people see a phase, if they can from anywhere."""
        url = self.configuration.server.public_url
        return f"{url}/phases/{quote(queue_id)}" if url else None

    def _make_issues(self) -> "Issues | None":
        """Imported where it is configured: it takes a client of HTTP, and that takes memory."""
        if self.configuration.github is None:
            return None
        from pgcoord.coordination.issues import Issues

        return Issues(self.configuration.github, self.environment, self)

    @property
    def _is_ending(self) -> bool:
        return self._stopping.is_set() or self._draining

    @property
    def _done(self) -> bool:
        return self._stopping.is_set() or (self._draining and not self._taken)

    async def _coordinate(self) -> None:
        while not self._done:
            try:
                async with self._session():
                    while not self._done:
                        if await self._stand_by():
                            await self._lead()
                    await asyncio.gather(*(taken.task for taken in self._taken.values()))
            except DatabaseUnusable as error:
                if not self._leader and database.refused_for_good(error):
                    raise
                await self._pause(self._backoff, error)
            except (AnotherLeads, *_LOST_CONNECTION) as error:
                await self._pause(self._backoff, error)

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[None]:
        """Connect to one server: by the connection that listens and leads, and others beside it.

        What they say goes where the lead is, whichever server the DSN would lead to by then.
        """
        async with listening(self._dsn, session.STAND_BY) as listener:
            self._refuse_the_past(await claims.lineage(listener.conn))
            self._server = database.same_server(self._dsn, listener.conn)
            # Without a check at check-out, which would cost a round trip each: a statement that
            # finds its connection dead is sent again (`tell`).
            self._pool = AsyncConnectionPool(
                database.with_defaults(self._server),
                min_size=1,
                max_size=8,
                timeout=5,
                open=False,
                kwargs={"autocommit": True},
            )
            try:
                await self._pool.open()
                self._listener = listener
                yield
            finally:
                self._listener = None
                self.leads.clear()
                await self._pool.close(timeout=0.1)

    def _refuse_the_past(self, found: ServerTimeline) -> None:
        """Refuse a primary that was replaced by one that we have seen: nobody would hear of it."""
        seen = self._lineage
        if found.system == seen.system and (found.timeline or 0) < (seen.timeline or 0):
            self._dsn = database.in_any_order(self._dsn)  # the next may be the right one
            raise DatabaseUnusable(
                f"the server writes timeline {found.timeline}, and {seen.timeline} was seen before:"
                " it is a primary that was replaced",
            )
        self._lineage = found

    async def _stand_by(self) -> bool:
        """Ask for the lead until we have it, which is True, or there is nothing left to do.

        Meanwhile attend to the processes of this host, unless the leader is on it.
        """
        news = True
        while not self._done:
            elsewhere = self._leader is not None and self._leader.host != self.host
            if elsewhere and (news or self._taken):
                await self.unless_stopped(self._attend())
                if self._taken:
                    await claims.renew_lease(self._conn, self.host)
            leader = await self.unless_stopped(self._ask_for_the_lead())
            if leader is None:
                return False
            news = self._note(leader)
            if leader.led:
                return True
            self._backoff.reset()
            news = news or bool(await self.unless_stopped(self._wait(_ASK_EVERY)))
        return False

    async def _ask_for_the_lead(self) -> Lead:
        if self._draining:
            leader = await reads.leader(self._conn)
            return Lead(False, leader.epoch, leader.host, leader.pid) if leader else _NOBODY
        return await claims.lead(
            self._conn,
            host=self.host,
            pid=os.getpid(),
            version=__version__,
            runs_folder=str(self._runs_folder),
            workflows=[_declared(workflow) for workflow in self.configuration.workflows.values()],
            after=self._epoch,
        )

    def _note(self, leader: Lead) -> bool:
        """Keep in mind who leads; whether that is news."""
        before, self._leader = self._leader, leader
        self._epoch = leader.epoch or self._epoch
        if leader == before:
            return False
        if leader.led:
            over = "" if before is None or before.led else f", taking over from {before}"
            logger.info("leading (lead %d)%s", leader.epoch, over)
        else:
            logger.info("standing by: %s leads", leader)
        return True

    async def _lead(self) -> None:
        """Go round until stopped or drained, then give the lead back.

        A notification at any point of the round ends the next wait at once.
        """
        await session.listen(self._conn, session.WAKE)
        self.leads.set()
        self._led = True
        if self.issues is None:
            await issues.release_issues(self._conn)
        disowned = await self.unless_stopped(self._attend())
        if disowned:  # their phases may be claimable: not before these are gone
            await self.unless_stopped(asyncio.wait(disowned))
        while not self._is_ending:
            claimed = await self.unless_stopped(self._claim())
            await self.unless_stopped(self._attend())
            if self.issues:
                self.issues.wake()
            self._backoff.reset()  # not before: a server may let us in, and take nothing we write
            if not claimed:
                await self.unless_stopped(self._rest())
        self.leads.clear()
        while not all(taken.recorded for taken in self._taken.values()):
            await self._wait(None)
        await claims.resign(self._conn)

    async def _claim(self) -> bool:
        """Claim what is eligible and take it on; whether there was anything."""
        if _CONTROL in self._awaited:
            return False
        asked = _now()
        try:
            assignments = await claims.claim_phases(self._conn, self._epoch)
        except Locked:
            logger.info("claiming waits: somebody holds a lock on pgcoord.control")
            self._await_lock(_CONTROL, claims.await_control)
            return False
        for assignment in assignments:
            log_move(assignment, "queued", "ready", f"claimed as {assignment.adw_id}")
            self._take(assignment, self.supervision.launch_and_supervise, asked)
        return bool(assignments)

    async def _attend(self) -> list[asyncio.Task[None]]:
        """Take on attempts of this host that nobody supervises; end those that shall end.

        Returns what ends the processes of which the database does not know any more.
        """
        asked = _now()
        await claims.expire_attempts(self._conn)
        attempts = await claims.open_attempts(self._conn, self.host)
        known = {attempt.folder for attempt in attempts}
        disowned = [
            self._take(taken.assignment, self.supervision.disown, asked).task
            for folder, taken in list(self._taken.items())
            # Under this lead an end has just been told; under an older one it may be about to be,
            # and of another attempt, if a failover made numbers come again.
            if folder not in known and not (taken.over and taken.epoch == self._epoch)
        ]
        for attempt in attempts:
            taken = self._taken.get(attempt.folder)
            # What was being started under another lead is refused, and a failover may have lost
            # a start that was recorded.
            if taken is None or (taken.epoch != self._epoch and not attempt.started):
                assignment = await claims.assignment(self._conn, attempt.attempt_id)
                if assignment is None:
                    continue
                taken = self._take(assignment, self.supervision.go_on, asked)
            taken.heed(attempt)
            if attempt.ended and not taken.end_is_logged:
                taken.log_end(await claims.last_move(self._conn, taken.assignment), "reported")
        return disowned

    async def _rest(self) -> None:
        """Wait until there may be something to do."""
        seen = set(self._awaited)
        agenda = await claims.agenda(self._conn, seen)
        while agenda.locked_phase and len(seen) < _MOST_AWAITED:
            # Perhaps it has just become claimable: then its lock is had at once, and wakes us.
            seen.add(agenda.locked_phase)
            self._await_lock(
                agenda.locked_phase, partial(claims.await_phase, queue_id=agenda.locked_phase)
            )
            agenda = await claims.agenda(self._conn, seen)
        for attempt_id in set(agenda.abandoned) - self._abandoned:
            self._abandoned.add(attempt_id)
            self._tasks.create_task(self._abandon(attempt_id))
        await self._wait(agenda.due_in)

    async def _wait(self, seconds: float | None) -> bool:
        assert self._listener is not None
        return await self._listener.wait(seconds)

    async def _abandon(self, attempt_id: int) -> None:
        """Give up an attempt of another host, of which nothing is heard any more."""
        epoch = self._epoch
        logger.warning("nothing is heard of the host of attempt %d: it is lost", attempt_id)
        try:
            await self.tell(lambda conn: claims.abandon_attempt(conn, epoch, attempt_id))
        except (AnotherLeads, Unheard) as error:
            logger.info("attempt %d of another host: %s", attempt_id, error)
        finally:
            self._abandoned.discard(attempt_id)
            self._wake()

    def _await_lock(self, name: str, wait: Callable[[_sql.Connection], Awaitable[None]]) -> None:
        self._awaited.add(name)
        self._tasks.create_task(self._wake_when_unlocked(name, wait))

    async def _wake_when_unlocked(
        self, name: str, wait: Callable[[_sql.Connection], Awaitable[None]]
    ) -> None:
        """Wake the loop when a lock that keeps it from claiming is gone: no rollback notifies."""
        try:
            async with await database.connect(self._server) as conn:
                await self.unless_stopped(wait(conn))
        except (*_LOST_CONNECTION, DatabaseUnusable) as error:
            logger.debug("waiting for the lock on %s: %s", name, error)
        finally:
            self._awaited.discard(name)
            self._wake()

    @property
    def _conn(self) -> _sql.Connection:
        """The connection that holds the lead, which the loop uses while it does not listen.

        So a claim cannot outlive the lead, nor wait for connections that reports are using.
        """
        assert self._listener is not None
        return self._listener.conn

    def _wake(self) -> None:
        if self._listener:
            self._listener.tell()

    async def unless_stopped(self, awaitable: Awaitable[Result]) -> Result | None:
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
        self,
        assignment: Assignment,
        supervise: Callable[[Any], Awaitable[None]],
        asked: float,
    ) -> Supervision:
        """Supervise an attempt from now on, instead of whatever did until now.

        `asked` is when the database was asked that says so, and that our lead is not over.
        """
        before = self._taken.get(assignment.folder)
        if before:
            before.task.cancel()
        taken = self.supervision(assignment, self, self._epoch, asked)
        self._taken[assignment.folder] = taken
        taken.task = self._tasks.create_task(self._supervise(taken, supervise))
        return taken

    async def _supervise(
        self, taken: Supervision, supervise: Callable[[Any], Awaitable[None]]
    ) -> None:
        """See one attempt through; an error of its own must not take the others down with it."""
        try:
            await supervise(taken)
        except StaleAttempt:
            self._take(taken.assignment, self.supervision.disown, taken.asked)
        except AnotherLeads as error:
            logger.warning("%s is left to whoever leads now: %s", taken.assignment, error)
            self._wake()  # it may be ourselves, with a new lead
        except Unheard as error:
            logger.warning("%s: stopped before the database was told: %s", taken.assignment, error)
        except Exception:
            logger.exception("%s is looked at again in %d s", taken.assignment, _SECOND_LOOK)
            await self.unless_stopped(asyncio.sleep(_SECOND_LOOK))
            self._wake()
        finally:
            if self._taken.get(taken.assignment.folder) is taken:
                del self._taken[taken.assignment.folder]
            taken.recorded = True
            self.note_recorded()

    def note_recorded(self) -> None:
        """Hear that the start of a process is recorded, or that there is none; who ends waits."""
        if self._is_ending:
            self._wake()

    async def tell(self, say: Callable[[_sql.Connection], Awaitable[Result]]) -> Result:
        """Say something to the database until it has heard it: all that is said can be said twice.

        Raises `Unheard` when stopped; whoever starts next finds the same in the folder of the run.
        """
        backoff = Backoff()
        while True:
            try:
                async with self._pool.connection() as conn:
                    return await say(conn)
            except _LOST_CONNECTION as error:
                if self._stopping.is_set():
                    raise Unheard(_line(error)) from error
                await self._pause(backoff, error)

    async def _pause(self, backoff: Backoff, error: Exception) -> None:
        self.interruptions += not isinstance(error, AnotherLeads)
        seconds = backoff.next()
        level = logging.DEBUG if backoff.repeats(_line(error)) else logging.WARNING
        logger.log(level, "trying again in %.2f s: %s", seconds, _line(error))
        await self.unless_stopped(asyncio.sleep(seconds))

    async def _keep_house(self) -> None:
        """Remove the runs that ended longer ago than they are to be kept: now, and once a day."""
        while self.configuration.log_retention and not self._stopping.is_set():
            try:
                await self.unless_stopped(self._remove_old_runs(self.configuration.log_retention))
            except (*_LOST_CONNECTION, CoordError) as error:
                logger.info("old runs stay for another day: %s", _line(error))
            await self.unless_stopped(asyncio.sleep(_DAY))

    async def _remove_old_runs(self, retention: timedelta) -> None:
        async with await database.connect(self._dsn) as conn:
            folder = self._runs_folder / await claims.installation(conn)
            spared = {Path(each) for each in await claims.open_folders(conn)}
        removed = await asyncio.to_thread(remove_old_runs, folder, retention, spared=spared)
        if removed:
            logger.info("runs removed that ended longer ago than %s: %d", retention, removed)


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


def _now() -> float:
    return asyncio.get_running_loop().time()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
