"""The coordinator: waits for wake-ups, claims what is eligible, runs it, records how it went.

Data flows one way: a notification wakes the loop, the database says what may run (claim) and what
shall end (attend), a task for each attempt (supervision.py) runs its process and records how it
went (retrying.py), and that may wake the loop again. Of the coordinators of a database one leads
(leadership.py); the others stand by: they claim nothing, and attend to the processes of their own
host unless the leader is on it. The one rule: nothing is remembered here that is not in the
database or in the folder of a run; a coordinator that is killed at any point is replaced by one
that reads both and goes on.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import psycopg

from pgcoord.backoff import Backoff
from pgcoord.configuration import Configuration
from pgcoord.coordination.housekeeping import keep_house
from pgcoord.coordination.launching import Launcher
from pgcoord.coordination.leadership import Leadership
from pgcoord.coordination.retrying import Fact, Retrying, Stopped
from pgcoord.coordination.supervision import Supervision, log_move
from pgcoord.database import claims, issues
from pgcoord.database import connect as database
from pgcoord.database._sql import Connection
from pgcoord.database.rows import Assignment
from pgcoord.errors import AnotherLeads, CoordError, DatabaseUnusable, Locked, StaleAttempt
from pgcoord.runs.local import LocalLauncher

if TYPE_CHECKING:
    from pgcoord.coordination.issues import Issues

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Seconds until an attempt is looked at again whose supervision failed by an error of ours.
_SECOND_LOOK = 5

# Seconds between questions for the lead, each of which waits two more: ten statements a minute.
_ASK_EVERY = 4.0

# The lock that all claims take.
_CONTROL = "pgcoord.control"


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
        self.configuration = configuration
        self.launcher: Launcher = LocalLauncher(configuration.log_max_size)
        self.environment = environment
        self.report_url = report_url
        self.issues = self._make_issues()
        self._dsn = dsn
        self._runs_folder = runs_folder.resolve()
        self._stopping = asyncio.Event()
        self._draining = False
        self._backoff = Backoff()
        self._retrying = Retrying(self._stopping)
        self._leadership = Leadership(
            dsn,
            host=self.host,
            runs_folder=self._runs_folder,
            workflows=configuration.workflows.values(),
            retrying=self._retrying,
        )
        self.leads = self._leadership.leads
        self._supervised: dict[str, Supervision] = {}
        self._abandoned: set[int] = set()

    async def run(self) -> None:
        """Lead or stand by until `stop`; processes that run then are left running.

        Goes on through the loss of any connection, however long. Raises `DatabaseUnusable` when
        the server refuses us for good before it was ever reached.
        """
        refusal: CoordError | None = None
        retention = self.configuration.log_retention
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                try:
                    tasks.create_task(
                        keep_house(self._dsn, self._runs_folder, retention, self._retrying)
                    )
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
        self._leadership.wake()

    @property
    def led(self) -> bool:
        """Whether it ever led."""
        return self._leadership.led

    @property
    def interruptions(self) -> int:
        """How often something failed and was tried again, such as connecting."""
        return self._retrying.interruptions

    @property
    def running(self) -> list[Assignment]:
        """The attempts that are supervised."""
        return [each.assignment for each in self._supervised.values()]

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
        return self._stopping.is_set() or (self._draining and not self._supervised)

    async def _coordinate(self) -> None:
        while not self._done:
            try:
                async with self._leadership.session():
                    while not self._done:
                        if await self._stand_by():
                            await self._lead()
                    await asyncio.gather(*(taken.task for taken in self._supervised.values()))
            except DatabaseUnusable as error:
                if not self._leadership.leader and database.refused_for_good(error):
                    raise
                await self._retrying.pause(self._backoff, error)
            except (AnotherLeads, psycopg.Error) as error:
                await self._retrying.pause(self._backoff, error)

    async def _stand_by(self) -> bool:
        """Ask for the lead until we have it, which is True, or there is nothing left to do.

        Meanwhile attend to the processes of this host, unless the leader is on it.
        """
        lead, news = self._leadership, True
        while not self._done:
            if lead.is_on_another_host and (news or self._supervised):
                await self.unless_stopped(self._attend())
                if self._supervised:
                    await self._renew_lease()
            answered = await self.unless_stopped(lead.look() if self._draining else lead.ask())
            if answered is None or lead.leader is None:
                return False
            if lead.leader.led:
                return True
            self._backoff.reset()
            news = answered or bool(await self.unless_stopped(lead.wait(_ASK_EVERY)))
        return False

    async def _renew_lease(self) -> None:
        """Have a leader on another host leave our attempts alone for another minute."""
        try:
            await claims.renew_lease(self._leadership.conn, self.host)
        except Locked:
            logger.info("somebody holds a lock on pgcoord.host: the lease is renewed later")

    async def _lead(self) -> None:
        """Go round until stopped or drained, then give the lead back.

        A notification at any point of the round ends the next wait at once.
        """
        await self._leadership.begin()
        if self.issues is None:
            self._tasks.create_task(self._release_issues())
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
        while not all(taken.recorded for taken in self._supervised.values()):
            await self._leadership.wait(None)
        await self._leadership.resign()

    async def _release_issues(self) -> None:
        """Have no phase wait for GitHub, which is not configured here (any more)."""
        with contextlib.suppress(Stopped):
            await self.execute_with_retry(issues.release_issues)

    async def _claim(self) -> bool:
        """Claim what is eligible and take it on; whether there was anything."""
        if _CONTROL in self._retrying.locks.names:
            return False
        lead_checked_at = _now()
        try:
            assignments = await claims.claim_phases(self._leadership.conn, self._leadership.epoch)
        except Locked:
            logger.info("claiming waits: somebody holds a lock on pgcoord.control")
            self._wake_when_free(_CONTROL)
            return False
        for assignment in assignments:
            log_move(assignment, "queued", "ready", f"claimed as {assignment.adw_id}")
            self._take(assignment, self.supervision.launch_and_supervise, lead_checked_at)
        return bool(assignments)

    async def _attend(self) -> list[asyncio.Task[None]]:
        """Take on attempts of this host that nobody supervises; end those that shall end.

        Returns what ends the processes of which the database does not know any more.
        """
        lead_checked_at = _now()
        await claims.expire_attempts(self._leadership.conn)
        attempts = await claims.open_attempts(self._leadership.conn, self.host)
        known = {attempt.folder for attempt in attempts}
        unknown = [
            taken.assignment
            for folder, taken in self._supervised.items()
            # Under this lead an end has just been recorded; under an older one it may be about to
            # be, and of another attempt, if a failover made numbers come again.
            if folder not in known and not (taken.over and taken.epoch == self._leadership.epoch)
        ]
        disowned = [
            self._take(assignment, self.supervision.disown, lead_checked_at).task
            for assignment in await self._confirm_gone(unknown)
        ]
        for attempt in attempts:
            taken = self._supervised.get(attempt.folder)
            # What was being started under another lead is refused, and a failover may have lost
            # a start that was recorded.
            if taken is None or (taken.epoch != self._leadership.epoch and not attempt.started):
                assignment = await claims.assignment(self._leadership.conn, attempt.attempt_id)
                if assignment is None:
                    continue
                taken = self._take(assignment, self.supervision.go_on, lead_checked_at)
            taken.heed(attempt)
            if attempt.ended and not taken.end_is_logged:
                taken.log_end(
                    await claims.last_move(self._leadership.conn, taken.assignment), "reported"
                )
        return disowned

    async def _confirm_gone(self, assignments: list[Assignment]) -> list[Assignment]:
        """Those of *assignments* that the primary does not know either.

        A pooler may have had a stand-by answer that lags behind.
        """
        if not assignments:
            return []
        gone = await claims.gone_attempts(
            self._leadership.conn, [each.attempt_id for each in assignments]
        )
        return [each for each in assignments if each.attempt_id in gone]

    async def _rest(self) -> None:
        """Wait until there may be something to do."""
        awaited = self._retrying.locks.names
        work = await claims.next_work(self._leadership.conn, awaited)
        for lock in work.locked:
            self._wake_when_free(lock)
        for attempt_id in set(work.abandoned) - self._abandoned:
            self._abandoned.add(attempt_id)
            self._tasks.create_task(self._abandon(attempt_id))
        await self._leadership.wait(work.due_in)

    def _wake_when_free(self, lock: str) -> None:
        """Wake the loop when a lock is gone that keeps it from claiming: no rollback notifies."""

        async def wait() -> None:
            await self.unless_stopped(self._retrying.locks.until_free(lock))
            self._leadership.wake()

        self._tasks.create_task(wait())

    async def _abandon(self, attempt_id: int) -> None:
        """Give up an attempt of another host, of which nothing is heard any more."""
        epoch = self._leadership.epoch
        logger.warning("nothing is heard of the host of attempt %d: it is lost", attempt_id)
        try:
            await self.execute_with_retry(
                lambda conn: claims.abandon_attempt(conn, epoch, attempt_id)
            )
        except (AnotherLeads, Stopped) as error:
            logger.info("attempt %d of another host: %s", attempt_id, error)
        finally:
            self._abandoned.discard(attempt_id)
            self._leadership.wake()

    async def unless_stopped(self, awaitable: Awaitable[Result]) -> Result | None:
        """Await, but no longer than until `stop`; return None then."""
        return await self._retrying.unless_stopped(awaitable)

    async def execute_with_retry(
        self, statement: Callable[[Connection], Awaitable[Result]], fact: Fact | None = None
    ) -> Result:
        """Run *statement* until the database has executed it; it must be idempotent.

        While a lock keeps a *fact* from being recorded, that is shown to people. Raises `Stopped`
        when the coordinator is stopped first.
        """
        return await self._retrying.execute(statement, fact)

    def _take(
        self,
        assignment: Assignment,
        supervise: Callable[[Any], Awaitable[None]],
        lead_checked_at: float,
    ) -> Supervision:
        """Supervise an attempt from now on, instead of whatever did until now.

        *lead_checked_at*: loop time of the last statement that proved that this coordinator leads.
        """
        before = self._supervised.get(assignment.folder)
        if before:
            before.task.cancel()
        taken = self.supervision(assignment, self, self._leadership.epoch, lead_checked_at)
        self._supervised[assignment.folder] = taken
        taken.task = self._tasks.create_task(self._supervise(taken, supervise))
        return taken

    async def _supervise(
        self, taken: Supervision, supervise: Callable[[Any], Awaitable[None]]
    ) -> None:
        """See one attempt through; an error of its own must not take the others down with it."""
        try:
            await supervise(taken)
        except StaleAttempt:
            self._take(taken.assignment, self.supervision.disown, taken.lead_checked_at)
        except AnotherLeads as error:
            logger.warning("%s is left to whoever leads now: %s", taken.assignment, error)
            self._leadership.wake()  # it may be ourselves, with a new lead
        except Stopped as error:
            logger.warning(
                "%s is left to the next coordinator, stopped before what happened was recorded: %s",
                taken.assignment,
                error,
            )
        except Exception:
            logger.exception("%s is looked at again in %d s", taken.assignment, _SECOND_LOOK)
            await self.unless_stopped(asyncio.sleep(_SECOND_LOOK))
            self._leadership.wake()
        finally:
            if self._supervised.get(taken.assignment.folder) is taken:
                del self._supervised[taken.assignment.folder]
            taken.recorded = True
            self.note_recorded()

    def note_recorded(self) -> None:
        """Wake `_lead`, which on shutdown waits until the start of each process is recorded."""
        if self._is_ending:
            self._leadership.wake()


def _now() -> float:
    return asyncio.get_running_loop().time()
