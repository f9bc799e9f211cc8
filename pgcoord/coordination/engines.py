"""The jobs of engines: submitted, watched, and ended by the leader, on whichever host it is.

A job itself reports its begin and its end (messages/jobs.py). The engine is queried only for why a
job waits and whether it still exists, by one query for all jobs of a pool. The one rule: a missing
answer means nothing, and a job that an engine does not list has ended only after a time in which
the job could still report.
"""

import asyncio
import errno
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from pgcoord.coordination.interface import Coordination
from pgcoord.coordination.launching import Engine, EngineState, ListedJob, Order
from pgcoord.coordination.retrying import Fact, Stopped
from pgcoord.coordination.supervision import GRACE, KILLED, Supervision, log_move
from pgcoord.database import claims, jobs
from pgcoord.database._sql import Connection
from pgcoord.database.work import Assignment, DeclaredPool, OpenAttempt
from pgcoord.errors import CannotStart, InvalidConfiguration, NotNow, StaleAttempt
from pgcoord.messages import jobs as spool
from pgcoord.messages import plain_files
from pgcoord.runs import logs

logger = logging.getLogger(__name__)

# Seconds between two queries to an engine: at first, and at most while nothing changes.
ASKS = (5.0, 60.0)

# Seconds after which a job that the engine may have taken is submitted again if it is not listed:
# twice Slurm's usual MessageTimeout.
UNSURE = 20.0

# Seconds to wait for the report of a job that began, once the engine does not list it as alive.
SILENT = 60.0

# The same for a job that never began, or is being ended: it may not report at all.
SETTLED = 10.0

# Seconds between two reads of the shared folder, for jobs that cannot reach us by HTTP.
FOLDER_INTERVAL = 2.0

# The most submissions of a job that vanishes before it begins.
_MOST_SUBMISSIONS = 3

# Concurrent calls to the engine of one pool, besides the query: most are processes on this
# machine, and a controller called by a thousand of them at once answers none.
_AT_ONCE = 8

# Seconds between two copies of logs in one pool, on average: each of a thousand jobs is copied
# every four minutes, each of twenty with each answer, and every one at its end.
_LOG_EVERY = 0.2

# Errors of a shared folder that may pass, and the delay before the phase is retried.
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS, errno.ENOTCONN)
_PASSES = timedelta(seconds=30)

# The file of a job's order in the folder of its run, and the wrapper that reads it.
ORDER = "order.json"
WRAPPER = Path(logs.__file__).with_name("job.py")

# The variables of the coordinator that the wrapper gets from its engine.
OF_WRAPPER = ("PATH", "HOME", "LANG")


class _Unusable:
    """Stands for an engine that cannot be used here, so that the other pools still work.

    `submit` raises `CannotStart`, `find`, `terminate` and `kill` raise `NotNow`, with *words*.
    """

    def __init__(self, words: str) -> None:
        self._words = words

    async def submit(self, order: Order) -> str:
        raise CannotStart(self._words)

    async def find(self) -> Mapping[str, list[ListedJob]]:
        raise NotNow(self._words, timedelta(seconds=30))

    async def terminate(self, job: str) -> None:
        raise NotNow(self._words, timedelta(seconds=30))

    async def kill(self, job: str) -> None:
        raise NotNow(self._words, timedelta(seconds=30))

    async def log(self, job: str) -> bytes | None:
        return None

    def changes(self) -> None:
        return None


def _slurm(settings: Mapping[str, Any], environment: Mapping[str, str]) -> Engine:
    from pgcoord.runs.slurm import Slurm

    return Slurm(options=settings.get("options", ()), environment=environment)


def _command(settings: Mapping[str, Any], environment: Mapping[str, str]) -> Engine:
    from pgcoord.runs.templates import Commands

    return Commands(settings, environment)


def _ray(settings: Mapping[str, Any], environment: Mapping[str, str]) -> Engine:
    from pgcoord.runs.ray import Ray

    return Ray(settings, environment)


def _kubernetes(settings: Mapping[str, Any], environment: Mapping[str, str]) -> Engine:
    """Make the engine of a Kubernetes pool; its client, an extra, is imported only here."""
    try:
        from pgcoord.runs.kubernetes import Kubernetes
    except ImportError as error:
        words = f"{error.name} is not installed here: pip install 'pgcoord[kubernetes]'"
        return _Unusable(words)
    return Kubernetes(settings, environment)


# By launcher: makes the engine of a pool from its settings and the coordinator's environment. Each
# imports its engine, as most coordinators have none.
LAUNCHERS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, str]], Engine]] = {
    "slurm": _slurm,
    "command": _command,
    "kubernetes": _kubernetes,
    "ray": _ray,
}


@lru_cache(4096)  # each answer of an engine is compared with the names of all its jobs
def name_of(folder: str) -> str:
    """Return the name of the job whose run has *folder*.

    It is pgcoord-INSTALLATION-ATTEMPT-RANDOM, of which the last four characters are the database's
    place, which a copy of it does not have.
    """
    path = Path(folder)
    return f"pgcoord-{path.parent.name[:8]}-{path.name}"


class Watcher:
    """Waits for news of one job, from the engine and from the *folder* that the job shares with us.

    `news` is set when there may be some. `unread`: the folder may have changed since the last read.
    *folder*: None if none is shared.
    """

    def __init__(self, folder: Path | None) -> None:
        self.news = asyncio.Event()
        self.folder = folder
        self.unread = folder is not None
        self.copied_at = -1e9  # loop time of the last copy of its log
        self._stamp: tuple[int, ...] = ()
        self._may_have_changed = False

    def has_changed(self) -> bool:
        """Whether the folder, or exit.json in it, has changed since the last call. Blocks on I/O.

        On a full disk exit.json is overwritten in place, which does not change the folder. Each
        change counts twice: some file systems keep times in whole seconds, so another one may
        have come after it.
        """
        before, self._stamp = self._stamp, _stamp_of(self.folder) if self.folder else ()
        may_have, self._may_have_changed = self._may_have_changed, before != self._stamp
        return self._may_have_changed or may_have

    def read_again(self) -> None:
        """Have the folder read once more: it could not be read this time."""
        self.unread = True
        self._stamp = (-1,)


class Watch:
    """Queries the engine of one pool, in a task, as long as a `Watcher` waits for an answer."""

    def __init__(
        self,
        pool: str,
        engine: Engine,
        names: tuple[str, str],
        coordination: Coordination,
        *,
        shares_folder: bool,
    ) -> None:
        """*names*: how the names of our jobs begin and end; strays with others are left alone.

        *shares_folder*: whether the nodes see the folders of runs.
        """
        self.engine = engine
        self.calls = asyncio.Semaphore(_AT_ONCE)
        self.seen: Mapping[str, Sequence[ListedJob]] = {}
        self.queried_at = -1.0  # loop time of the last answered query; -1: there was none
        self.trouble: NotNow | None = None  # the first error since its last answer
        self.is_retired = False  # declared differently by now: only supervised jobs are watched
        self._pool = pool
        self.shares_folder = shares_folder
        self._names = names
        self._coordination = coordination
        self._waiting: set[Watcher] = set()
        self._folder_task: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._hurried = asyncio.Event()
        self._strays: dict[str, int] = {}
        self._asking = asyncio.Lock()
        self._is_streaming = False
        self._unanswered: tuple[float, NotNow] | None = None

    async def query(self) -> Mapping[str, Sequence[ListedJob]]:
        """Query the engine; return {name of a job: its jobs}, no older than this call.

        Concurrent calls share one query. Sets `seen` and `queried_at`. Raises `NotNow` when the
        engine does not answer.
        """
        began_at = now()
        async with self._asking:
            if self._unanswered and self._unanswered[0] >= began_at:
                raise self._unanswered[1]
            if self.queried_at < began_at:
                queried_at = now()
                try:
                    self.seen = await self.engine.find()
                except NotNow as error:
                    self._unanswered = queried_at, error
                    raise
                self.queried_at, self._unanswered = queried_at, None
            return self.seen

    @contextmanager
    def watched(self, watcher: Watcher) -> Iterator[None]:
        """Within the block, set *watcher*'s news after each query, and when its folder changes.

        Starts the tasks that query and read folders, unless they run.
        """
        self._waiting.add(watcher)
        self.hurry()
        if watcher.folder and (self._folder_task is None or self._folder_task.done()):
            self._folder_task = self._coordination.create_task(self._poll_folders())
        try:
            yield
        finally:
            self._waiting.discard(watcher)

    async def _poll_folders(self) -> None:
        """Read the shared folders of all jobs every `FOLDER_INTERVAL` s, in one thread for all."""
        while not self._coordination.is_stopping:
            watchers = [each for each in self._waiting if each.folder]
            if not watchers:
                return
            for watcher in await asyncio.to_thread(_changed, watchers):
                watcher.unread = True
                watcher.news.set()
            await self._coordination.unless_stopped(asyncio.sleep(FOLDER_INTERVAL))

    def may_copy(self, watcher: Watcher) -> bool:
        """Whether *watcher* may copy its log now; if so, note that it did."""
        if now() - watcher.copied_at < _LOG_EVERY * len(self._waiting):
            return False
        watcher.copied_at = now()
        return True

    def hurry(self) -> None:
        """Query at the shortest interval for now: a job was submitted, or should change soon."""
        self._hurried.set()
        if self._task is None:
            self._task = self._coordination.create_task(self._poll_engine())

    async def _poll_engine(self) -> None:
        listener = asyncio.create_task(self._follow_changes())
        try:
            await self._query_in_turn()
        finally:
            self._task = None  # before the next await: a job that comes now needs another task
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)

    async def _follow_changes(self) -> None:
        """Hurry whenever the engine's own stream of changes yields, if it has one."""
        while (changes := self.engine.changes()) is not None:
            self._is_streaming = True
            try:
                async with aclosing(changes):
                    async for _ in changes:
                        self._hurried.set()
            except NotNow as error:
                logger.info(
                    "pool %s: cannot follow the changes of its engine: %s", self._pool, error
                )
            except Exception:
                logger.exception("pool %s: cannot follow the changes of its engine", self._pool)
            self._is_streaming = False
            await asyncio.sleep(ASKS[1])

    async def _query_in_turn(self) -> None:
        every = ASKS[0]
        while not self._coordination.is_stopping:
            self._hurried.clear()
            before = self.seen
            try:
                await self.query()
                if self.trouble:
                    logger.info("pool %s: its engine answers again", self._pool)
                self.trouble = None
                await self._end_strays()
            except NotNow as error:
                if self.trouble is None:
                    logger.warning("pool %s: its engine does not answer: %s", self._pool, error)
                    self.trouble = error
            except Stopped:
                return
            except Exception:  # of one pool: the others, and the coordinator, go on
                logger.exception("pool %s: its engine is asked again", self._pool)
            for watcher in self._waiting:
                watcher.news.set()
            if not self._waiting and (self.is_retired or not (self._strays or self.trouble)):
                return
            every = ASKS[0] if self.seen != before else min(2 * every, ASKS[1])
            if await self._coordination.unless_stopped(self._hurried_within(every)):
                every = ASKS[0]

    async def _hurried_within(self, seconds: float) -> bool:
        # A lower bound, since many may hurry one after the other. It is shorter if the engine
        # streams changes and its answers are short.
        least = min(ASKS[0], max(1.0, len(self.seen) / 100)) if self._is_streaming else ASKS[0]
        await asyncio.sleep(least)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds - least):
                await self._hurried.wait()
        return self._hurried.is_set()

    async def _open_jobs(self, names: set[str]) -> set[str]:
        """Return those of *names* whose attempt is open.

        The database is read only if we do not supervise all of them.
        """
        open_names = {name_of(folder) for folder in self._coordination.supervised_folders} & names
        if open_names != names:
            folders = await self._coordination.execute_with_retry(claims.open_folders)
            open_names |= {name_of(folder) for folder in folders}
        return open_names

    async def _end_strays(self) -> None:
        """End the jobs whose attempt has ended, or is unknown to the database.

        A running job may just have reported its end, so it is terminated only at the third answer
        that lists it, and killed from the fifth on; a waiting one at once.
        """
        begin, end = self._names
        live = {
            name
            for name, listed in self.seen.items()
            if name.startswith(begin)
            and name.endswith(end)
            and any(each.state is not EngineState.ENDED for each in listed)
        }
        strays = live - await self._open_jobs(live)
        self._strays = {name: self._strays.get(name, 0) + 1 for name in strays}
        for name, times in self._strays.items():
            for listed in self.seen[name]:
                if listed.state is EngineState.WAITING or times in (3, 4):
                    logger.warning(
                        "pool %s: job %s (%s) belongs to no open attempt: it is ended",
                        self._pool,
                        listed.job,
                        name,
                    )
                    async with self.calls:
                        await self.engine.terminate(listed.job)
                elif listed.state is EngineState.RUNNING and times > 4:
                    async with self.calls:
                        await self.engine.kill(listed.job)


class Engines:
    """The pools of engines, as declared in the database."""

    def __init__(self, coordination: Coordination) -> None:
        self._coordination = coordination
        self._pools: dict[str, Pool] = {}
        self._declared: dict[str, DeclaredPool] = {}
        self._moved: dict[int, str] = {}  # attempts whose job another launcher has, and which
        self._former: dict[tuple[str, str], Pool] = {}  # by pool and launcher
        self._names = ("", "")

    async def declare(self, conn: Connection) -> None:
        """Read the declared pools, and start to query each engine, which finds stray jobs."""
        pools = await claims.pools(conn)
        self._names = await claims.job_names(conn)
        self._moved = await claims.moved_attempts(conn)
        before, self._declared = self._declared, {each.name: each for each in pools}
        for name, declared in self._declared.items():
            if before.get(name) != declared and (pool := self._pools.pop(name, None)):
                pool.watch.is_retired = True
            if declared.launcher in LAUNCHERS:
                self.pool(name).watch.hurry()
        for (name, launcher), former in self._former.items():
            if (again := self._declared.get(name)) and again.launcher == launcher:
                former.watch.engine = self.pool(name).engine  # its jobs can be ended again

    def pool_of(self, assignment: Assignment) -> "Pool":
        """Return the pool of an attempt; for a job of its former launcher, that engine's pool.

        The pool's present launcher does not know that job, which proves nothing about it.
        """
        name = assignment.pool
        launcher = self._moved.get(assignment.attempt_id)
        if launcher is None:
            return self.pool(name)
        if (name, launcher) not in self._former:
            engine = _Unusable(
                f"its job is at {launcher}, the former launcher of pool {name}:"
                " declare that one again, or end the job there"
            )
            self._former[name, launcher] = self._make_pool(name, engine, shares_folder=True)
        return self._former[name, launcher]

    def pool(self, name: str) -> "Pool":
        """Return the pool *name*, made on first use.

        If its engine is not declared any more, it cannot be queried, and its jobs end only by their
        own reports.
        """
        if name not in self._pools:
            declared = self._declared.get(name)
            settings = declared.settings if declared else {}
            launcher = declared.launcher if declared else None
            # An engine that is not declared any more may have shared them.
            shares_folder = "folder" in settings or launcher not in LAUNCHERS
            engine = self._engine_of(name, declared)
            self._pools[name] = self._make_pool(name, engine, shares_folder=shares_folder)
        return self._pools[name]

    def _make_pool(self, name: str, engine: Engine, *, shares_folder: bool) -> "Pool":
        declared = self._declared.get(name)
        report_url = declared and declared.settings.get("report_url")
        watch = Watch(name, engine, self._names, self._coordination, shares_folder=shares_folder)
        return Pool(watch, report_url or self._coordination.report_url)

    def _engine_of(self, name: str, declared: DeclaredPool | None) -> Engine:
        launcher = declared.launcher if declared else "none"
        if declared is None or launcher not in LAUNCHERS:
            return _Unusable(
                f"jobs of pool {name} run on an engine, and its launcher is now {launcher}"
            )
        try:
            return LAUNCHERS[launcher](declared.settings, self._coordination.environment)
        except (KeyError, TypeError, ValueError) as error:  # settings of another release
            return _Unusable(f"the settings of pool {name} are not of this release: {error!r}")


class Pool:
    """A pool of an engine: its watch, and the URL to which its jobs report."""

    def __init__(self, watch: Watch, report_url: str | None) -> None:
        """*report_url*: the API's URL, with or without /workflow-complete; None: only by folder."""
        self.watch = watch
        self.origin = report_url and report_url.removesuffix("/workflow-complete").rstrip("/")
        self.report_url = self.origin and f"{self.origin}/workflow-complete"

    @property
    def engine(self) -> Engine:
        """The engine of its watch."""
        return self.watch.engine


class EngineSupervision(Supervision):
    """Supervises one attempt that runs as a job of an engine. `recorded`: the job was submitted, or
    never will be.
    """

    def __init__(
        self,
        assignment: Assignment,
        coordinator: Coordination,
        epoch: int,
        lead_checked_at: float,
        pool: Pool,
    ) -> None:
        super().__init__(assignment, coordinator, epoch, lead_checked_at)
        self.name = name_of(assignment.folder)
        self._pool = pool
        self._begun = assignment.started
        is_shared = pool.watch.shares_folder
        self._watcher = Watcher(Path(assignment.folder) if is_shared else None)
        self._news = self._watcher.news
        self._job: str | None = None
        self._noted: tuple[str | None, str | None] = (None, None)
        self._stuck: str | None = None  # why it cannot be ended now
        self._submissions = 0
        self._since = now()
        self._quiet_since: float | None = None

    def update(self, attempt: OpenAttempt) -> None:
        """Note that the job has begun; end it if *attempt* requires it."""
        super().update(attempt)
        if attempt.started:
            self._note_begin()
        self._news.set()

    def _note_begin(self) -> None:
        if not self._begun:
            self._begun = True
            log_move(self.assignment, "ready", "running", f"its job {self.name} began")

    async def go_on(self) -> None:
        """Continue an attempt that another coordinator left, and supervise it to its end.

        If the engine does not list its job, it is submitted, perhaps again: only one copy begins.
        """
        if not self._begun and self._coordinator.leads.is_set():
            logger.info("%s taken over, job %s", self.assignment, self.name)
        await self._supervise_to_end()

    async def disown(self) -> None:
        """Log the end that the job itself has reported; the watch ends a job that stays on."""
        self.process_gone = True
        await self._copy_log(at_once=True)
        move = await self._coordinator.execute_with_retry(
            lambda conn: claims.last_move(conn, self.assignment)
        )
        self.log_end(move, "its job said how it ended")
        self._pool.watch.hurry()

    async def launch_and_supervise(self) -> None:
        """Submit the job of an attempt that was just claimed, and supervise it to its end."""
        try:
            await super().launch_and_supervise()
        except StaleAttempt as error:
            if self._submissions:
                raise
            await self._give_up("returned", str(error))  # ended before it was submitted

    async def _record_start(self) -> None:
        """Do nothing: the job itself reports its begin."""

    async def _prepare(self) -> None:
        with _in_time(self.assignment.folder):
            await super()._prepare()

    async def _write_files(self, prompt: str, inputs: str, user: str | None) -> None:
        """Write the files of the run if the nodes share the folder."""
        if self._pool.watch.shares_folder:
            await super()._write_files(prompt, inputs, user)

    async def _launch(self) -> None:
        """Submit the job for the first time. Raises `CannotStart`, `NotNow`, `StaleAttempt`.

        The claim has recorded that, and permits it for as long as it proves our lead.
        """
        if self._end_in.done():
            raise StaleAttempt("its end was requested before it was submitted")
        if not self._is_lead_fresh:
            await self._record_submission()
        await self._submit()

    async def _record_submission(self) -> None:
        await self._coordinator.execute_with_retry(
            lambda conn: jobs.submit_attempt(conn, self.epoch, self.assignment.attempt_id)
        )

    async def _submit(self) -> None:
        with _in_time(self.assignment.folder):
            order = await self._write_order()
        self._submissions += 1
        try:
            with _in_time(self.assignment.folder):
                async with self._pool.watch.calls:
                    self._job = await self._pool.engine.submit(order)
        except CannotStart as error:
            raise CannotStart(f"pool {self.assignment.pool}: {error}") from error
        except NotNow as error:
            if error.certain:
                raise NotNow(f"pool {self.assignment.pool}: {error}", error.wait) from error
            logger.warning("%s: perhaps job %s was taken: %s", self.assignment, self.name, error)
        self._since = now()
        self._quiet_since = None
        if self._job is not None:
            logger.info("%s submitted, job %s (%s)", self.assignment, self._job, self.name)
            await self._note(self._job, None)
        self._pool.watch.hurry()

    async def _write_order(self) -> Order:
        """Write the files of the run and the job's order, for runs/job.py; return the order.

        Nodes that share no folder get all of it with the order, and with the answer to begin.
        """
        order = self._order()
        if self._pool.watch.shares_folder:
            content = json.dumps(order.content).encode()
            await asyncio.to_thread(plain_files.write_plain, order.folder, ORDER, content)
        return order

    def _order(self) -> Order:
        assignment, command = self.assignment, self._command()
        folder = Path(assignment.folder)
        environment = dict(command.environment)
        environment.pop("PGCOORD_REPORT_URL", None)
        if self._pool.report_url:
            environment["PGCOORD_REPORT_URL"] = self._pool.report_url
        order = {
            "attempt": assignment.attempt_id,
            "secret": assignment.secret,
            "url": self._pool.origin,
            "folder": str(folder),
            "command": list(command.arguments),
            "directory": str(command.directory),
            "environment": environment,
            "log_max": self._coordinator.configuration.log_max_size,
            "grace": GRACE.total_seconds(),
        }
        return Order(
            self.name,
            WRAPPER,
            [str(folder / ORDER)],
            {name: environment[name] for name in OF_WRAPPER if name in environment},
            folder,
            folder / "engine.log",
            order,
        )

    async def _supervise_to_end(self) -> None:
        """Follow the job until its end is recorded, ending it if necessary."""
        self.recorded = True
        self._coordinator.note_recorded()
        tasks: list[asyncio.Task[None]] = []

        def end_in_time(_: object) -> None:
            ender = asyncio.create_task(self._end_in_time())
            ender.add_done_callback(lambda _: self._news.set())
            tasks.append(ender)

        self._end_in.add_done_callback(end_in_time)  # a thousand jobs need no task to wait for that
        with self._pool.watch.watched(self._watcher):
            try:
                await self._coordinator.unless_stopped(self._follow(tasks))
            finally:
                self._end_in.remove_done_callback(end_in_time)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, tasks: list[asyncio.Task[None]]) -> None:
        """Follow the job until its attempt has ended, and raise the first error of *tasks*.

        Once the job has begun, a task that watches its output is added to *tasks*, if its workflow
        says how long it may be quiet.
        """
        unwatched = self._settings is not None and self._settings.quiet is not None
        while True:
            self._news.clear()
            if self._begun and unwatched:
                unwatched = False
                tasks.append(asyncio.create_task(self._watch_output()))
            for task in tasks:
                if task.done():
                    task.result()  # raises its error
            await self._copy_log()
            if await self._read_folder() or await self._believe_the_engine():
                self.process_gone = True
                return
            await self._wait_for_news()

    async def _copy_log(self, *, at_once: bool = False) -> bool:
        """Copy the job's output from an engine whose nodes share no folder; return whether it was.

        Without *at_once*, only if it is its turn.
        """
        if not at_once and not (self._begun and self._pool.watch.may_copy(self._watcher)):
            return False
        try:
            async with self._pool.watch.calls:
                output = await self._pool.engine.log(self._job or self.name)
            if output is not None:
                log = logs.Log(Path(self.assignment.folder))
                await asyncio.to_thread(log.extend, output)
        except (NotNow, OSError) as error:
            logger.info("%s: its log is not copied now: %s", self.assignment, error)
            return False
        return True

    async def _last_written(self) -> float | None:
        """Return when the job last wrote; a log that is copied is copied first, as that is late."""
        if not self._watcher.folder and not await self._copy_log(at_once=True):
            return time.time()  # an engine that does not answer proves no silence
        return await super()._last_written()

    async def _wait_for_news(self) -> None:
        with suppress(TimeoutError):
            # Not wait_for: in Python 3.11 it forgets a cancellation that comes with the news.
            async with asyncio.timeout(None if self._quiet_since is None else FOLDER_INTERVAL):
                await self._news.wait()

    async def _read_folder(self) -> bool:
        """Answer and record the job's messages in the shared folder; return whether it has ended.

        The folder is read only if it changed, or the engine does not list the job as alive.
        """
        if not self._watcher.unread and (self._quiet_since is None or not self._watcher.folder):
            return False
        self._watcher.unread = False
        folder, attempt_id = Path(self.assignment.folder), self.assignment.attempt_id
        secret = self.assignment.secret
        await self._take_spooled_report()
        try:
            requests = await asyncio.to_thread(spool.spooled_begins, folder, attempt_id, secret)
            for request in requests:
                refused = await self._answer(request)
                await asyncio.to_thread(spool.answer_spooled, folder, request["copy"], refused)
            end = await asyncio.to_thread(spool.spooled_exit, folder, attempt_id, secret)
        except OSError as error:
            logger.info("%s: its folder is read again: %s", self.assignment, error)
            self._watcher.read_again()
            return False
        if end is None:
            return False
        status = end["exit_code"]
        fact = Fact(self.assignment, f"exited with status {status}")
        answer = await self._coordinator.record(jobs.job_exited(attempt_id, end), fact)
        if answer is None or answer["code"] is not None:
            logger.warning("%s: its exit status in %s is not taken", self.assignment, folder)
            return False
        await self.disown()
        return True

    async def _answer(self, request: Mapping[str, Any]) -> str | None:
        """Let a copy of the job begin (`jobs.begin_job`); return why not, or None."""
        answer = await self._coordinator.execute_with_retry(
            lambda conn: jobs.begin_job(
                conn,
                self.assignment.attempt_id,
                request["copy"],
                request.get("job"),
                request.get("node"),
            )
        )
        if answer.code:
            return answer.reason
        self._note_begin()
        return None

    async def _believe_the_engine(self) -> bool:
        """Apply the engine's last answer to this job; return whether the attempt has ended."""
        watch = self._pool.watch
        listed = watch.seen.get(self.name, ())
        live = [each for each in listed if each.state is not EngineState.ENDED]
        last = live[0] if live else listed[-1] if listed else None
        if live or not self._begun:
            await self._note(last.job if last else self._job, self._waits_for(last))
        sure_at = self._since + (0.0 if self._job is not None else UNSURE)
        if watch.queried_at < sure_at and not listed:
            return False
        if live:
            self._quiet_since = None
            return False
        if self._quiet_since is None:
            self._quiet_since = now()
            watch.hurry()
        patience = SILENT if self._begun and not self.is_ending else SETTLED
        if now() - self._quiet_since < patience or watch.queried_at < self._quiet_since:
            return False
        return await self._conclude_without_report(listed)

    def _waits_for(self, listed: ListedJob | None) -> str | None:
        """Return why the job has not begun, or cannot be ended, in words; None if unknown yet."""
        watch = self._pool.watch
        if self._begun or self._stuck:
            return self._stuck
        if watch.trouble:
            return f"its engine does not answer: {watch.trouble}"
        if listed is None:
            return "its engine does not list it" if watch.queried_at > self._since else None
        if listed.state is EngineState.WAITING:
            return listed.words
        act = f"ended ({listed.words})" if listed.state is EngineState.ENDED else "started"
        node = f" on {listed.node}" if listed.node else ""
        return f"it {act}{node}, and nothing is heard of it yet"

    async def _conclude_without_report(self, listed: Sequence[ListedJob]) -> bool:
        """Conclude on a job that the engine does not list as alive, and that reported no end.

        Return whether the attempt has ended; it has not if the job was submitted again.
        """
        words = f"job {self._job or self.name}: " + (
            listed[-1].words if listed else "not listed any more"
        )
        if not self._begun:
            if self.is_ending:
                await self._give_up("returned", words)
            elif listed or self._submissions >= _MOST_SUBMISSIONS:
                tail = await asyncio.to_thread(engine_messages, Path(self.assignment.folder))
                # The last line is the reason, which `why` shows, and no log of the phase has it.
                before, _, last = tail.rpartition("\n")
                words = f"it ended before it began ({words})" + (f": {last}" if last else "")
                await self._give_up("failed", words + before)
            elif self._coordinator.leads.is_set():
                await self._launch_again()
                return False
            return True
        await self._copy_log(at_once=True)
        from pgcoord.runs.job import REFUSED

        # `REFUSED` is the status of a copy that ran nothing, so not that of the one that began.
        statuses = (each.exit_status for each in listed if each.exit_status != REFUSED)
        status = next((each for each in statuses if each is not None), None)
        if status is None and self.is_ending:
            status = KILLED
        if status is None:
            said = await asyncio.to_thread(_lines_of_engine, Path(self.assignment.folder))
            words += f": {said[-1]}" if said else ""
            await self._give_up(
                "lost",
                f"no report of it came ({words}); its process may still run",
            )
            return True
        tail = await self.job.log_tail() if status else ""
        end = claims.exited(self.assignment, status, tail, "", await self._read_result())
        await self._conclude(f"exited with status {status}", end)
        return True

    async def _launch_again(self) -> None:
        try:
            if self._submissions == 0:  # an earlier coordinator may have been killed before that
                await self._prepare()
            await self._record_submission()
            await self._submit()
        except NotNow as error:
            logger.info("%s is submitted later: %s", self.assignment, error)
            await asyncio.sleep(min(error.wait.total_seconds(), UNSURE))
        except (CannotStart, InvalidConfiguration, OSError) as error:
            self._submissions = _MOST_SUBMISSIONS
            logger.warning("%s cannot be submitted: %s", self.assignment, error)
        except StaleAttempt as error:  # the attempt must end; `update` is called for that
            self._quiet_since = None
            logger.info("%s is not submitted again: %s", self.assignment, error)

    async def _end_in_time(self) -> None:
        """Wait until `update` requires the end; then terminate the job, and kill it repeatedly."""
        await asyncio.sleep(await self._end_in)
        self.is_ending = True
        logger.info("%s is being ended", self.assignment)
        wait = GRACE.total_seconds()
        for is_kill in (False, True):
            await self._end_all(is_kill)
            self._pool.watch.hurry()
            await asyncio.sleep(2 * wait)  # the wrapper sends SIGKILL itself after one
        while True:
            await self._end_all(is_kill=True)
            self._pool.watch.hurry()
            await asyncio.sleep(ASKS[0])

    async def _end_all(self, is_kill: bool) -> None:
        """End each living job of this name; retry while the engine does not answer."""
        while True:
            try:
                for each in (await self._pool.watch.query()).get(self.name, ()):
                    if each.state is not EngineState.ENDED:
                        async with self._pool.watch.calls:
                            engine = self._pool.engine  # another, once it is declared again
                            await (engine.kill if is_kill else engine.terminate)(each.job)
                self._stuck = None
                return
            except NotNow as error:
                before, self._stuck = self._stuck, f"it cannot be ended now: {error}"
                if self._stuck != before:
                    logger.warning("%s: %s", self.assignment, self._stuck)
                await self._note(self._job, self._stuck)
                await asyncio.sleep(ASKS[0])

    async def _note(self, job: str | None, waits_for: str | None) -> None:
        """Record the job's id and why it waits, or stays, if either changed (`jobs.note_job`)."""
        if (job, waits_for) != self._noted:
            self._noted = job, waits_for
            self._job = job
            await self._coordinator.execute_with_retry(
                lambda conn: jobs.note_job(conn, self.assignment.attempt_id, job, waits_for)
            )


@contextmanager
def _in_time(folder: str) -> Iterator[None]:
    """Turn an `OSError` of `_PASSING` on the shared *folder* into `NotNow`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _PASSING:
            raise
        raise NotNow(f"{folder} cannot be written: {error.strerror}", _PASSES) from error


def engine_messages(folder: Path) -> str:
    """Return the last lines of engine.log in *folder*, each after a newline; "" if none.

    The engine or the wrapper writes there; the wrapper's lines come last: they say more. Adds a
    likely cause if one is known. Blocks on I/O.
    """
    lines = _lines_of_engine(folder)
    text = "\n".join(lines)
    if not lines and (folder / ORDER).exists():
        lines = [f"the node wrote nothing to {folder}: is that folder shared with it?"]
    elif "SyntaxError" in text and "/job.sh" in text:
        lines.append("job.sh was given to python3: it is a program to run as it is, or by sh")
    elif (
        "SyntaxError" in text
    ):  # from the wrapper: Python before 3.8 does not know its first statement
        lines.append("the python3 of the node is older than 3.8, or none")
    return "".join(f"\n{line}" for line in lines)


def _lines_of_engine(folder: Path) -> list[str]:
    try:
        text = plain_files.read_plain(folder, "engine.log", 4_000).decode(errors="replace")
    except OSError:
        return []
    lines = text.replace("\0", "").splitlines()[-5:]
    return sorted(lines, key=lambda line: line.startswith("pgcoord: "))


def _changed(watchers: list[Watcher]) -> list[Watcher]:
    return [each for each in watchers if each.has_changed()]


def _stamp_of(folder: Path) -> tuple[int, ...]:
    stamp: list[int] = []
    for path in (folder, folder / "exit.json"):
        with suppress(OSError):
            status = path.stat()
            stamp += (status.st_mtime_ns, status.st_size, status.st_ino)
    return tuple(stamp)


def now() -> float:
    """Return the time of the running event loop, in seconds."""
    return asyncio.get_running_loop().time()
