"""The coordinator: waits for wake-ups, claims eligible phases, runs them, records the outcomes.

Data flows one way: a notification wakes the loop, the database returns the phases to run (claim)
and the attempts to end (attend), a task for each attempt (supervision.py) runs its process and
records its end (retrying.py), and that record may wake the loop again. One coordinator of a
database leads (leadership.py); the others stand by: they claim nothing, and attend to the
processes of their own host unless the leader is on it. The one rule: the coordinator keeps nothing
in memory that is not in the database or in the folder of a run, so when one is killed at any point,
the next reads both and continues.
"""

import asyncio
import concurrent.futures.thread  # noqa: F401 - asyncio imports it late, perhaps without descriptors
import logging
import socket
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import psycopg

from pgcoord.configuration.model import Configuration
from pgcoord.coordination.ends import Ends
from pgcoord.coordination.engines import Engines, EngineSupervision
from pgcoord.coordination.housekeeping import keep_house
from pgcoord.coordination.keeper import Keeper
from pgcoord.coordination.launching import Launcher
from pgcoord.coordination.leadership import Leadership
from pgcoord.coordination.retrying import Fact, Retrying, Stopped
from pgcoord.coordination.schedules import Schedules
from pgcoord.coordination.supervision import Shortage, Supervision, judgement_of, log_move
from pgcoord.database import claims, issues, notices
from pgcoord.database._sql import Connection
from pgcoord.database.backoff import Backoff
from pgcoord.database.connect import refused_for_good
from pgcoord.database.work import Assignment, NextWork, OpenAttempt, Recorded
from pgcoord.errors import AnotherLeads, CoordError, DatabaseUnusable, Locked, StaleAttempt
from pgcoord.runs.local import LocalLauncher

if TYPE_CHECKING:
    from pgcoord.coordination.issues import Issues
    from pgcoord.coordination.notices import Notices
    from pgcoord.database.embedded import EmbeddedPostgres

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Seconds until the supervision of an attempt restarts after an unexpected error.
_RETRY_AFTER = 5

# Seconds between two calls of pgcoord.lead, each of which waits two more: ten statements a minute.
_LEAD_EVERY = 4.0

# The fields of a configuration that take effect when it is read anew.
RECONFIGURED = ("workflows", "checks", "pools", "schedules")

# The name of the lock that every claim takes.
_CONTROL = "pgcoord.control"


class Coordinator:
    """One coordinator of one database. Call `run` once."""

    supervision = Supervision  # the class that supervises one attempt

    def __init__(
        self,
        dsn: str,
        configuration: Configuration,
        *,
        runs_folder: Path,
        environment: Mapping[str, str],
        host: str | None = None,
        report_url: str | None = None,
        embedded: "EmbeddedPostgres | None" = None,
    ) -> None:
        """Launch into folders below *runs_folder*, on the machine *host* (None: its host name).

        A process gets the variables of *environment* that its workflow lists, and reports to
        *report_url*. *embedded*: the server at *dsn*, to be started again when it is gone. Raises
        `InvalidConfiguration` when the credentials for GitHub are missing.
        """
        self.host = host or socket.gethostname()
        self.configuration = configuration
        self.launcher: Launcher = LocalLauncher(configuration.log_max_size)
        self.environment = environment
        self.report_url = report_url
        self.issues = self._make_issues()
        self._dsn = dsn
        self._keeper = Keeper(embedded) if embedded else None
        self.runs_folder = runs_folder.resolve()
        self._stopping = asyncio.Event()
        self._draining = False
        self._declares_anew = False
        self._backoff = Backoff()
        self._retrying = Retrying(self._stopping)
        self._leadership = Leadership(
            dsn,
            host=self.host,
            runs_folder=self.runs_folder,
            workflows=configuration.workflows.values(),
            pools=configuration.pools.values(),
            retrying=self._retrying,
        )
        self.leads = self._leadership.leads
        self._ends = Ends(self._leadership.wake)
        self._supervised: dict[str, Supervision] = {}
        self._left_unsupervised = False
        self._abandoned: set[int] = set()
        self.engines = Engines(self)
        self.notices = self._make_notices()
        self._schedules = Schedules(self)

    async def run(self) -> None:
        """Lead or stand by until `stop`, which leaves running processes alone.

        Reconnects after the loss of any connection, for as long as it takes. Raises
        `DatabaseUnusable` when the server refuses the first connection permanently.
        """
        refusal: CoordError | None = None
        retention = self.configuration.log_retention
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                try:
                    tasks.create_task(
                        keep_house(self._dsn, self.runs_folder, retention, self._retrying)
                    )
                    if self.issues:
                        tasks.create_task(self.issues.run())
                    if self.notices:
                        tasks.create_task(self.notices.run())
                    tasks.create_task(self._schedules.run())
                    await self._coordinate()
                except CoordError as error:
                    refusal = error  # raised below: the task group would wrap it in a group
                finally:
                    self._stopping.set()
        finally:
            if self.issues:
                await self.issues.close()
        if refusal:
            raise refusal

    def stop(self) -> None:
        """Claim nothing more; `run` returns once the starts in progress are recorded."""
        self._stopping.set()

    def drain(self) -> None:
        """Claim nothing more and let others lead; `run` returns once no process runs here."""
        self._draining = True
        self._leadership.wake()

    def reconfigure(self, configuration: Configuration) -> None:
        """Replace the fields of `RECONFIGURED` by those of *configuration*; ignore all others.

        Running attempts keep the settings they were started with, and the lead is kept. The loop
        declares workflows, pools and schedules to the database afterwards.
        """
        counts = {name: getattr(configuration, name) for name in RECONFIGURED}
        self.configuration = replace(self.configuration, **counts)
        self._leadership.declare(configuration.workflows.values(), configuration.pools.values())
        self._declares_anew = True
        self._leadership.wake()

    async def start_server(self, error: DatabaseUnusable) -> CoordError | None:
        """Start the embedded server again if *error* is that it is gone; None: connect at once.

        Else return why the database cannot be used.
        """
        return await self._keeper.start(error) if self._keeper else error

    @property
    def server_fault(self) -> str | None:
        """Why the embedded server is not up, as far as known; None for another server."""
        return self._keeper.fault if self._keeper else None

    @property
    def led(self) -> bool:
        """Whether this coordinator ever led."""
        return self._leadership.led

    @property
    def epoch(self) -> int:
        """The number of the lead, as this coordinator knows it."""
        return self._leadership.epoch

    @property
    def interruptions(self) -> int:
        """How many operations, such as connecting, failed and were retried."""
        return self._retrying.interruptions

    @property
    def running(self) -> list[Assignment]:
        """The attempts that this coordinator supervises."""
        return [supervised.assignment for supervised in self._supervised.values()]

    @property
    def supervised_folders(self) -> frozenset[str]:
        """The folders of the attempts that this coordinator supervises."""
        return frozenset(self._supervised)

    def create_task(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run *coroutine* beside the loop; it has to end when this coordinator is stopped."""
        return self._tasks.create_task(coroutine)

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called, so that nothing new may begin."""
        return self._stopping.is_set()

    def page_of(self, queue_id: str) -> str | None:
        """The public address of a phase's page; None without a configured public_url."""
        url = self.configuration.server.public_url
        return f"{url}/phases/{quote(queue_id)}" if url else None

    def _make_notices(self) -> "Notices | None":
        """Return the sender of notices, imported only if a [notify.NAME] is configured."""
        if not self.configuration.notify:
            return None
        from pgcoord.coordination.notices import Notices

        return Notices(self, self.configuration.notify, self.environment)

    def _make_issues(self) -> "Issues | None":
        """Return the maker of issues; imported only if needed, as its HTTP client takes memory."""
        if self.configuration.github is None:
            return None
        from pgcoord.coordination.issues import Issues

        return Issues(self.configuration.github, self.environment, self)

    @property
    def _is_ending(self) -> bool:
        return self._stopping.is_set() or self._draining

    @property
    def _has_finished(self) -> bool:
        return self._stopping.is_set() or (self._draining and not self._supervised)

    async def _coordinate(self) -> None:
        while not self._has_finished:
            try:
                async with self._leadership.session():
                    if self._keeper:
                        self._keeper.note_up()
                    while not self._has_finished:
                        if await self._stand_by():
                            await self._lead()
                    await asyncio.gather(
                        *(supervised.task for supervised in self._supervised.values())
                    )
            except DatabaseUnusable as error:
                if not self._leadership.leader and refused_for_good(error):
                    raise
                if reason := await self.unless_stopped(self.start_server(error)):
                    await self._retrying.pause(self._backoff, reason)
            except (CoordError, psycopg.Error, OSError) as error:  # or one row's triggers refuse
                await self._retrying.pause(self._backoff, error)
            except Exception:
                logger.exception("this coordinator connects anew in %d s", _RETRY_AFTER)
                await self.unless_stopped(asyncio.sleep(_RETRY_AFTER))

    async def _stand_by(self) -> bool:
        """Ask for the lead; return True once we lead, False when this coordinator is done.

        Meanwhile attend to the processes of this host, unless the leader is on it.
        """
        lead, news = self._leadership, True
        while not self._has_finished:
            if lead.is_on_another_host and (news or self._supervised):
                await self.unless_stopped(self._attend_to_all())
                if self._supervised:
                    await self._renew_lease()
            self._declares_anew = False  # set first: it may be set again during the statement
            lead_answer = await self.unless_stopped(
                lead.look() if self._draining else lead.try_to_lead()
            )
            if lead_answer is None or lead.leader is None:
                return False
            if lead.leader.led:
                return True
            self._backoff.reset()
            if lead.leader.pid is None:  # the session that waits shows the holder of the lock
                self._tasks.create_task(
                    self.unless_stopped(self._retrying.locks.until_free(_CONTROL))
                )
            await self._leave_jobs_of_engines()
            if self._has_finished:
                return False
            news = lead_answer or bool(await self.unless_stopped(lead.wait(_LEAD_EVERY)))
        return False

    async def _leave_jobs_of_engines(self) -> None:
        """End the supervision of the jobs of engines: the leader supervises them, on any host. Only
        the leader is notified that a job began or has to end. A submission in progress ends first.
        """
        left_running = [
            each.task
            for each in self._supervised.values()
            if each.recorded and each.assignment.host is None
        ]
        for task in left_running:
            task.cancel()
        if left_running:
            await asyncio.wait(left_running)

    async def _renew_lease(self) -> None:
        """Renew the lease of this host, so that a leader elsewhere leaves our attempts alone."""
        try:
            await claims.renew_lease(self._leadership.conn, self.host)
        except Locked:
            logger.info("another session has locked pgcoord.host: the lease is renewed later")

    async def _lead(self) -> None:
        """Claim and attend until stopped or drained, then give the lead back.

        Each round records the ends that are ready, claims, reads the changes, and waits. A
        notification, or another end, at any point ends the next wait at once. To declare a changed
        configuration, the loop restarts and keeps the lead.
        """
        await self._leadership.begin()
        await self.engines.declare(self._leadership.conn)
        notified_events = {each.name: list(each.events) for each in self.configuration.notify}
        await notices.declare_targets(self._leadership.conn, notified_events)
        again = None
        if await claims.follow_budgets(self._leadership.conn):
            again = self._tasks.create_task(self._follow_budgets_again())
        if self.issues is None:
            self._tasks.create_task(self._release_issues())
        disowned = await self.unless_stopped(self._attend_to_all())
        if disowned:  # their phases may be claimable: end the old processes before the next claim
            await self.unless_stopped(asyncio.wait(disowned))
        self._ends.open()
        self._schedules.declare()
        try:
            await self.unless_stopped(self._go_rounds())
        finally:
            self._ends.close()
            if again:
                again.cancel()
        self.leads.clear()
        # A start may wait for a lock, or for an issue: a coordinator that keeps the lead does not
        # wait for it.
        until = _now() + _RETRY_AFTER
        while not all(supervised.recorded for supervised in self._supervised.values()):
            if not self._is_ending and _now() >= until:
                break
            await self._leadership.wait(None if self._is_ending else until - _now())
        if self._is_ending:
            await self._leadership.resign()

    async def _follow_budgets_again(self) -> None:
        """Follow the budgets of features that another session had locked, until none is left."""
        passed_over: bool | None = True
        while passed_over:
            await asyncio.sleep(_RETRY_AFTER)
            passed_over = await self._insist(claims.follow_budgets, "budgets are followed")

    async def _release_issues(self) -> None:
        """Release the phases that wait for GitHub, since it is not configured here (any more)."""
        await self._insist(issues.release_issues, "phases that wait for GitHub are released")

    async def _insist(
        self, statement: Callable[[Connection], Awaitable[Result]], words: str
    ) -> Result | None:
        """Run *statement*, also again when the database refuses it; None when stopped first.

        *words*: what it does, for the log.
        """
        while not self.is_stopping:
            try:
                return await self.execute_with_retry(statement)
            except Stopped:
                break
            except Exception:
                logger.exception("%s in %d s", words, _RETRY_AFTER)
                await self.unless_stopped(asyncio.sleep(_RETRY_AFTER))
        return None

    async def _go_rounds(self) -> None:
        """Run rounds until drained, or until a changed configuration has to be declared.

        One awaitable for all rounds: tasks for each took seven turns of the event loop between a
        notification and its claim.
        """
        while not (self._is_ending or self._declares_anew):
            await self._go_round()

    async def _go_round(self) -> None:
        """Record ends and claim, handle the changes, and wait for the next reason for a round."""
        claimed = await self._claim()
        changed = self._leadership.take_changed()
        lead_checked_at = _now()
        work = await claims.look_round(
            self._leadership.conn, self.host, changed, self._retrying.locks.names
        )
        if self._left_unsupervised:
            self._left_unsupervised = False
            await self._attend_to_all()
        elif changed:
            changed_ids = {attempt.attempt_id for attempt in work.changed}
            await self._attend(work.changed, changed - changed_ids, lead_checked_at)
        if self.issues:
            self.issues.wake()
        if self.notices:
            self.notices.wake()
        if self._leadership.take_changed_schedules():
            self._schedules.wake()
        self._schedules.note_round()
        self._backoff.reset()  # only now: a server may accept connections but refuse to write
        # A phase that is claimable right after a claim is not locked: that claim left it to another
        # pass.
        if not (claimed and work.locked):
            await self._rest(work)

    async def _claim(self) -> bool:
        """Record the ends that are ready, claim eligible phases and supervise their attempts.
        Return whether any phase was claimed.
        """
        lead_checked_at = _now()
        try:
            assignments = await self._record_and_claim()
        except Locked:
            logger.info("claiming waits: another session has locked pgcoord.control")
            self._wake_when_free(_CONTROL)
            return False
        for assignment in assignments:
            log_move(assignment, "queued", "ready", f"claimed as {assignment.adw_id}")
            self._start_supervising(
                assignment, lambda each: each.launch_and_supervise(), lead_checked_at
            )
        return bool(assignments)

    async def _record_and_claim(self) -> list[Assignment]:
        """Record the ends that are ready, and return the phases claimed in the same transaction. If
        the claim failed there, claim again afterwards. Raises `Locked` when another session has
        locked the control row, `AnotherLeads` when this lead is over.
        """
        conn, epoch = self._leadership.conn, self._leadership.epoch
        with self._ends.take() as batch:
            if batch:
                answer = await claims.record_and_claim(conn, epoch, [each.end for each in batch])
                for handed, recorded in zip(batch, answer.answers, strict=True):
                    handed.settle(recorded)
                if answer.claimed is not None:
                    return answer.claimed
        if _CONTROL in self._retrying.locks.names:
            return []
        try:
            return await claims.claim_phases(conn, epoch)
        except (AnotherLeads, DatabaseUnusable, Locked, psycopg.OperationalError):
            raise
        except (CoordError, psycopg.DatabaseError) as error:
            return await self._claim_singly(error)

    async def _claim_singly(self, error: Exception) -> list[Assignment]:
        """Claim after a claim that failed with *error*, perhaps because of one phase alone.

        Such a phase (a client's trigger may refuse it) is set aside, so that it does not delay the
        others. Raises *error* again when there is none.
        """
        conn = self._leadership.conn
        assignments = await claims.claim_singly(conn, self._leadership.epoch)
        refused = await claims.unclaimable(conn)
        if not refused and not assignments:
            raise error
        for each in refused:
            first_line = each.error.partition("\n")[0]
            logger.error(
                "%s is set aside and tried again later: the database refuses its claim: %s",
                each.queue_id,
                first_line,
            )
        return assignments

    async def _attend_to_all(self) -> list[asyncio.Task[None]]:
        """Supervise all open attempts of this host; end those that have to end.

        Return the tasks that end the processes whose attempts are gone from the database.
        """
        lead_checked_at = _now()
        await claims.expire_attempts(self._leadership.conn)
        attempts = await claims.open_attempts(
            self._leadership.conn, self.host, engines=self.leads.is_set()
        )
        open_ids = {attempt.attempt_id for attempt in attempts}
        unknown = {each.assignment.attempt_id for each in self._supervised.values()} - open_ids
        return await self._attend(attempts, unknown, lead_checked_at)

    async def _attend(
        self, attempts: Iterable[OpenAttempt], missing: Collection[int], lead_checked_at: float
    ) -> list[asyncio.Task[None]]:
        """Supervise the open *attempts*; end those that have to end, and those that are *missing*.

        *missing*: ids that the database did not have among the open ones. Return the tasks that end
        their processes.
        """
        disowned = await self._disown(missing, lead_checked_at)
        for attempt in attempts:
            supervised = self._supervised.get(attempt.folder)
            if isinstance(supervised, EngineSupervision) and supervised.recorded:
                supervised.epoch = self._leadership.epoch  # the new leader may record its job, too
            # The database refuses a start that began under another lead, and a failover may have
            # lost the record of a start.
            if supervised is None or (
                supervised.epoch != self._leadership.epoch and not attempt.started
            ):
                assignment = await claims.assignment(self._leadership.conn, attempt.attempt_id)
                if assignment is None:
                    continue
                supervised = self._start_supervising(
                    assignment, lambda each: each.go_on(), lead_checked_at
                )
            supervised.update(attempt)
            if attempt.ended and not supervised.end_is_logged:
                supervised.log_end(
                    await claims.last_move(self._leadership.conn, supervised.assignment), "reported"
                )
        return disowned

    async def _disown(
        self, missing: Collection[int], lead_checked_at: float
    ) -> list[asyncio.Task[None]]:
        """End the jobs of the attempts *missing* from the database; return the tasks that do it."""
        unknown = [
            supervised.assignment
            for supervised in self._supervised.values()
            # A process that is gone under this lead has just been recorded. Under an older lead,
            # the record may still be missing, or be of another attempt: a failover reuses numbers.
            if supervised.assignment.attempt_id in missing
            and not (supervised.process_gone and supervised.epoch == self._leadership.epoch)
        ]
        return [
            self._start_supervising(assignment, lambda each: each.disown(), lead_checked_at).task
            for assignment in await self._confirm_gone(unknown)
        ]

    async def _confirm_gone(self, assignments: list[Assignment]) -> list[Assignment]:
        """Return the *assignments* whose attempts are gone from the primary as well.

        A pooler may have sent the first query to a stand-by that lags behind.
        """
        if not assignments:
            return []
        confirmed = await claims.gone_attempts(
            self._leadership.conn, [assignment.attempt_id for assignment in assignments]
        )
        return [assignment for assignment in assignments if assignment.attempt_id in confirmed]

    async def _rest(self, work: NextWork) -> None:
        """Wait for a notification, the next deadline or a lock, whichever comes first."""
        for lock in work.locked:
            self._wake_when_free(lock)
        for attempt_id in set(work.abandoned) - self._abandoned:
            self._abandoned.add(attempt_id)
            self._tasks.create_task(self._abandon(attempt_id))
        if not self._leadership.has_changed:  # such as attempts whose time was up
            await self._leadership.wait(work.due_in)

    def _wake_when_free(self, lock: str) -> None:
        """Wake the loop when *lock*, which prevents a claim, is free: a rollback never notifies."""

        async def wait() -> None:
            await self.unless_stopped(self._retrying.locks.until_free(lock))
            self._leadership.wake()

        self._tasks.create_task(wait())

    async def _abandon(self, attempt_id: int) -> None:
        """Give up an attempt whose host has let its lease expire."""
        epoch = self._leadership.epoch
        logger.warning(
            "the lease of the host of attempt %d has expired: the attempt is lost", attempt_id
        )
        try:
            await self.execute_with_retry(
                lambda conn: claims.abandon_attempt(conn, epoch, attempt_id)
            )
        except (AnotherLeads, Stopped) as error:
            logger.info("attempt %d of another host: %s", attempt_id, error)
        except Exception:
            logger.exception("attempt %d is given up in %d s", attempt_id, _RETRY_AFTER)
            await self.unless_stopped(asyncio.sleep(_RETRY_AFTER))
        finally:
            self._abandoned.discard(attempt_id)
            self._leadership.wake()

    async def unless_stopped(self, awaitable: Awaitable[Result]) -> Result | None:
        """Await *awaitable*; return None when the coordinator is stopped first."""
        return await self._retrying.unless_stopped(awaitable)

    async def execute_with_retry(
        self, statement: Callable[[Connection], Awaitable[Result]], fact: Fact | None = None
    ) -> Result:
        """Run *statement*, retrying with back-off while the connection is lost.

        *statement* must be idempotent. While a lock prevents the record of *fact*, the panel shows
        that. Raises `Stopped` when the coordinator is stopped first.
        """
        return await self._retrying.execute(statement, fact)

    async def record(self, end: claims.End, fact: Fact) -> dict[str, Any] | None:
        """Record *end*, and claim what follows in the same transaction if this coordinator leads.

        Return what pgcoord_private.record_end returns. Retries as `execute_with_retry` does.
        """
        recorded = await self.record_and_claim(end)
        if recorded is None:
            recorded = await self.execute_with_retry(
                lambda conn: claims.record_end(conn, end), fact
            )
        return recorded.answer

    async def record_and_claim(self, end: claims.End) -> Recorded | None:
        """Record *end*, and claim what follows in the same transaction; waits for no lock.

        None when the caller has to record it by itself: this coordinator does not lead, or the end
        cannot be recorded at once.
        """
        return await self._ends.record(end)

    async def prompt_of(self, conn: Connection, attempt: Assignment, prompt: str) -> str:
        """Return what *attempt* is asked, whose phase has *prompt*: after a failure, as configured.

        For jobs that find no file of it; of others it is in the folder that they share.
        """
        workflow = self.configuration.workflows.get(attempt.workflow)
        if workflow is None or not workflow.asks_again(attempt.attempt):
            return prompt
        return (await judgement_of(conn, attempt, workflow, prompt))[1]

    def _start_supervising(
        self,
        assignment: Assignment,
        supervise: Callable[[Supervision], Awaitable[None]],
        lead_checked_at: float,
    ) -> Supervision:
        """Start the task *supervise* for an attempt, replacing its supervision so far, if any.

        *lead_checked_at*: loop time of the last statement that proved that this coordinator leads.
        """
        before = self._supervised.get(assignment.folder)
        if before:
            before.task.cancel()
        supervised = self._supervision_of(assignment, lead_checked_at)
        self._supervised[assignment.folder] = supervised
        supervised.task = self._tasks.create_task(self._supervise(supervised, supervise))
        return supervised

    def _supervision_of(self, assignment: Assignment, lead_checked_at: float) -> Supervision:
        """Return what supervises an attempt: as its pool's launcher is this machine, or not."""
        epoch = self._leadership.epoch
        if assignment.host is not None:
            return self.supervision(assignment, self, epoch, lead_checked_at)
        pool = self.engines.pool_of(assignment)
        return EngineSupervision(assignment, self, epoch, lead_checked_at, pool)

    async def _supervise(
        self, supervised: Supervision, supervise: Callable[[Supervision], Awaitable[None]]
    ) -> None:
        """Supervise one attempt; its unexpected errors must not cancel the other attempts."""
        try:
            await supervise(supervised)
        except StaleAttempt:
            self._start_supervising(
                supervised.assignment, lambda each: each.disown(), supervised.lead_checked_at
            )
        except AnotherLeads as error:
            logger.warning("%s is left to the present leader: %s", supervised.assignment, error)
            self._leadership.wake()  # this coordinator may lead again, with a new epoch
        except Stopped as error:
            logger.warning(
                "%s is left to the next coordinator, stopped before what happened was recorded: %s",
                supervised.assignment,
                error,
            )
        except Exception as error:
            logger.log(
                logging.WARNING if isinstance(error, Shortage) else logging.ERROR,
                "the supervision of %s continues in %d s: %s",
                supervised.assignment,
                _RETRY_AFTER,
                error,
                exc_info=None if isinstance(error, Shortage) else error,
            )
            await self.unless_stopped(asyncio.sleep(_RETRY_AFTER))
            self._left_unsupervised = True
            self._leadership.wake()
        finally:
            if self._supervised.get(supervised.assignment.folder) is supervised:
                del self._supervised[supervised.assignment.folder]
            supervised.recorded = True
            self.note_recorded()

    def note_recorded(self) -> None:
        """Wake `_lead`, which waits for recorded starts before it ends, or declares anew."""
        if self._is_ending or self._declares_anew:
            self._leadership.wake()


def _now() -> float:
    return asyncio.get_running_loop().time()
