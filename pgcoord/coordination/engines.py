"""The jobs of engines: submitted, watched, and ended by the leader, on whichever host it is.

A job begins and ends by what it says itself (pgcoord/jobs.py); the engine is asked only why a job
waits and whether it is still there, by one question for all jobs of a pool. The one rule: an answer
that does not come says nothing, and no answer of an engine is an end before its time to be
contradicted has passed.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from pgcoord import jobs as spool
from pgcoord.coordination.launching import Engine, Order, Place, Seen
from pgcoord.coordination.retrying import Fact, Stopped
from pgcoord.coordination.supervision import GRACE, KILLED, Coordination, Supervision, log_move
from pgcoord.database import claims, jobs
from pgcoord.database._sql import Connection
from pgcoord.database.work import Assignment, DeclaredPool, OpenAttempt
from pgcoord.errors import CannotStart, NotFound, NotNow
from pgcoord.runs import files, logs
from pgcoord.runs.ray import Ray
from pgcoord.runs.slurm import Slurm
from pgcoord.runs.templates import Commands

logger = logging.getLogger(__name__)

# Seconds between two questions to an engine: at first, and at most while nothing changes.
ASKS = (5.0, 60.0)

# Seconds after which a job that the engine may have taken is submitted again if it is not listed:
# twice Slurm's usual MessageTimeout.
UNSURE = 20.0

# Seconds without a word of a job that began, which the engine does not list any more, or as ended.
SILENT = 60.0

# The same for one that never began, or is being ended: nothing is to be heard of it.
SETTLED = 10.0

# Seconds between two looks into the shared folder, for a job that cannot reach us.
LOOK = 2.0

# How often a job that vanished before it began is submitted.
_MOST_SUBMISSIONS = 3

# The file of a job's order in the folder of its run, and the wrapper that reads it.
ORDER = "order.json"
WRAPPER = Path(files.__file__).with_name("job.py")


class _Unusable:
    """Stands for an engine that cannot be used here: one pool does not hold up the others."""

    def __init__(self, words: str) -> None:
        self._words = words

    async def submit(self, order: Order) -> str:
        raise CannotStart(self._words)

    async def find(self) -> Mapping[str, list[Seen]]:
        raise NotNow(self._words, timedelta(seconds=30))

    async def terminate(self, job: str) -> None:
        raise NotNow(self._words, timedelta(seconds=30))

    async def kill(self, job: str) -> None:
        raise NotNow(self._words, timedelta(seconds=30))

    async def log(self, job: str) -> bytes | None:
        return None


def _kubernetes(settings: Mapping[str, Any], environment: Mapping[str, str]) -> Engine:
    """Import it only where a pool is of Kubernetes: its client is an extra, and takes memory."""
    try:
        from pgcoord.runs.kubernetes import Kubernetes
    except ImportError as error:
        words = f"{error.name} is not installed here: pip install 'pgcoord[kubernetes]'"
        return _Unusable(words)
    return Kubernetes(settings, environment)


# What makes the engine of a pool, of the pool's settings and the coordinator's environment.
LAUNCHERS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, str]], Engine]] = {
    "slurm": lambda settings, environment: Slurm(
        options=settings.get("options", ()), environment=environment
    ),
    "command": Commands,
    "kubernetes": _kubernetes,
    "ray": Ray,
}


def name_of(folder: str) -> str:
    """Return the name of the job whose run has *folder*: pgcoord-INSTALLATION-ATTEMPT-RANDOM."""
    path = Path(folder)
    return f"pgcoord-{path.parent.name[:8]}-{path.name}"


class Watch:
    """Asks the engine of one pool about its jobs, as long as somebody waits for the answer."""

    def __init__(self, pool: str, engine: Engine, prefix: str, coordination: Coordination) -> None:
        """*prefix*: how the names of this installation's jobs begin; others are left alone."""
        self.engine = engine
        self.seen: Mapping[str, Sequence[Seen]] = {}
        self.asked_at = -1.0  # loop time of the last question that was answered; -1: none was
        self._pool = pool
        self._prefix = prefix
        self._coordination = coordination
        self._waiting: set[asyncio.Event] = set()
        self._task: asyncio.Task[None] | None = None
        self._hurried = asyncio.Event()
        self._strays: dict[str, int] = {}

    @contextmanager
    def watched(self, news: asyncio.Event) -> Iterator[None]:
        """Set *news* after each answer, as long as the block lasts."""
        self._waiting.add(news)
        self.hurry()
        try:
            yield
        finally:
            self._waiting.discard(news)

    def hurry(self) -> None:
        """Ask soon, and often again: something is happening."""
        self._hurried.set()
        if self._task is None or self._task.done():
            self._task = self._coordination.create_task(self._ask_again_and_again())

    async def _ask_again_and_again(self) -> None:
        every = ASKS[0]
        trouble = None
        while not self._coordination.is_stopping:
            self._hurried.clear()
            before = self.seen
            asked_at = now()
            try:
                self.seen = await self.engine.find()
                self.asked_at = asked_at
                if trouble:
                    logger.info("pool %s: its engine answers again", self._pool)
                trouble = None
                await self._end_strays()
            except NotNow as error:
                if trouble is None:
                    logger.warning("pool %s: its engine does not answer: %s", self._pool, error)
                trouble = error
            except Stopped:
                return
            except Exception:  # of one pool: the others, and the coordinator, go on
                logger.exception("pool %s: its engine is asked again", self._pool)
            for news in self._waiting:
                news.set()
            if not self._waiting and not self._strays and trouble is None:
                return
            every = ASKS[0] if self.seen != before else min(2 * every, ASKS[1])
            if await self._coordination.unless_stopped(self._hurried_within(every)):
                every = ASKS[0]

    async def _hurried_within(self, seconds: float) -> bool:
        await asyncio.sleep(min(1.0, ASKS[0]))  # many may hurry at once
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurried.wait()
        return self._hurried.is_set()

    async def _open_jobs(self, names: set[str]) -> set[str]:
        """Return those of *names* whose attempt is open; the database is asked of others only."""
        known = {name_of(folder) for folder in self._coordination.supervised_folders} & names
        if known != names:
            folders = await self._coordination.execute_with_retry(claims.open_folders)
            known |= {name_of(folder) for folder in folders}
        return known

    async def _end_strays(self) -> None:
        """End the jobs of attempts that are over, or that the database does not know.

        One that has just said how it ended is left two answers' time to go by itself.
        """
        live = {
            name
            for name, seen in self.seen.items()
            if name.startswith(self._prefix) and any(each.place is not Place.ENDED for each in seen)
        }
        strays = live - await self._open_jobs(live)
        self._strays = {name: self._strays.get(name, 0) + 1 for name in strays}
        for name, times in self._strays.items():
            for seen in self.seen[name]:
                if seen.place is Place.WAITING or times in (3, 4):
                    logger.warning(
                        "pool %s: job %s (%s) belongs to no open attempt: it is ended",
                        self._pool,
                        seen.job,
                        name,
                    )
                    await self.engine.terminate(seen.job)
                elif seen.place is Place.RUNNING and times > 4:
                    await self.engine.kill(seen.job)


class Engines:
    """The pools whose jobs are an engine's, as the database has them."""

    def __init__(self, coordination: Coordination) -> None:
        self._coordination = coordination
        self._pools: dict[str, Pool] = {}
        self._declared: dict[str, DeclaredPool] = {}
        self._prefix = ""

    async def declare(self, conn: Connection) -> None:
        """Read the pools, and look for jobs that nobody knows any more in each."""
        pools = await claims.pools(conn)
        self._prefix = f"pgcoord-{(await claims.installation(conn))[:8]}-"
        before, self._declared = self._declared, {each.name: each for each in pools}
        for name, declared in self._declared.items():
            if before.get(name) != declared:
                self._pools.pop(name, None)
            if declared.launcher in LAUNCHERS:
                self.pool(name).watch.hurry()

    def pool(self, name: str) -> "Pool":
        """Return the pool *name*, which is an engine's. Raises `NotFound` for any other."""
        if name not in self._pools:
            declared = self._declared.get(name)
            if declared is None or declared.launcher not in LAUNCHERS:
                raise NotFound(f"no engine is known of pool {name}")
            engine = LAUNCHERS[declared.launcher](declared.settings, self._coordination.environment)
            report_url = declared.settings.get("report_url") or self._coordination.report_url
            self._pools[name] = Pool(
                Watch(name, engine, self._prefix, self._coordination), report_url
            )
        return self._pools[name]


class Pool:
    """A pool of an engine: its watch, and where its jobs report."""

    def __init__(self, watch: Watch, report_url: str | None) -> None:
        """*report_url*: the address of this server, with or without the path of reports."""
        self.watch = watch
        self.origin = report_url and report_url.removesuffix("/workflow-complete").rstrip("/")
        self.report_url = self.origin and f"{self.origin}/workflow-complete"

    @property
    def engine(self) -> Engine:
        """The engine."""
        return self.watch.engine


class EngineSupervision(Supervision):
    """One attempt whose job is an engine's. `recorded`: it was submitted, or never will be."""

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
        self._news = asyncio.Event()
        self._job: str | None = None
        self._noted: tuple[str | None, str | None] = (None, None)
        self._submissions = 0
        self._since = now()
        self._quiet_since: float | None = None
        self._speaks_by_file = False

    def update(self, attempt: OpenAttempt) -> None:
        """Note that the job has begun; end it if *attempt* requires it."""
        super().update(attempt)
        if attempt.started and not self._begun:
            self._begun = True
            log_move(self.assignment, "ready", "running", f"its job {self.name} began")
        self._news.set()

    async def go_on(self) -> None:
        """Continue an attempt at the point where its last coordinator left it.

        The engine knows whether it was submitted; if not, it is submitted now (again: one begins).
        """
        if not self._begun and self._coordinator.leads.is_set():
            logger.info("%s taken over, job %s", self.assignment, self.name)
        await self._see_to_its_end()

    async def disown(self) -> None:
        """Log the end that the job itself has told; the watch ends what is left of it."""
        self.process_gone = True
        self._begun = True  # or it has no log
        await self._copy_log()
        move = await self._coordinator.execute_with_retry(
            lambda conn: claims.last_move(conn, self.assignment)
        )
        self.log_end(move, "its job said how it ended")
        self._pool.watch.hurry()

    async def _record_start(self) -> None:
        """Nothing: the job itself says when it begins."""

    async def _launch(self) -> None:
        """Submit the job, for the first time or again. Raises `CannotStart`, `NotNow`."""
        await self._coordinator.execute_with_retry(
            lambda conn: jobs.submit_attempt(conn, self.epoch, self.assignment.attempt_id)
        )
        self._submissions += 1
        order = await asyncio.to_thread(self._write_order)
        try:
            self._job = await self._pool.engine.submit(order)
        except NotNow as error:
            if error.certain:
                raise
            logger.warning("%s: perhaps job %s was taken: %s", self.assignment, self.name, error)
        self._since = now()
        self._quiet_since = None
        if self._job is not None:
            logger.info("%s submitted, job %s (%s)", self.assignment, self._job, self.name)
            await self._note(self._job, None)
        self._pool.watch.hurry()

    def _write_order(self) -> Order:
        """Write what the job is to do into its folder, as runs/job.py reads it. Blocks."""
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
        files.write_plain(folder, ORDER, json.dumps(order).encode())
        return Order(
            self.name,
            WRAPPER,
            [str(folder / ORDER)],
            {
                name: value
                for name, value in environment.items()
                if name in ("PATH", "HOME", "LANG")
            },
            folder,
            folder / "engine.log",
            order,
        )

    async def _see_to_its_end(self) -> None:
        """Follow the job until its end is recorded, ending it if necessary."""
        self.recorded = True
        self._coordinator.note_recorded()
        with self._pool.watch.watched(self._news):
            ender = asyncio.create_task(self._end_in_time())
            try:
                await self._coordinator.unless_stopped(self._follow(ender))
            finally:
                ender.cancel()
                await asyncio.gather(ender, return_exceptions=True)

    async def _follow(self, ender: asyncio.Task[None]) -> None:
        ender.add_done_callback(lambda _: self._news.set())
        while True:
            self._news.clear()
            if ender.done():
                ender.result()  # it ends by an error only
            await self._copy_log()
            if await self._read_folder() or await self._believe_the_engine():
                self.process_gone = True
                return
            await self._wait_for_news()

    async def _copy_log(self) -> None:
        """Copy the job's output from an engine whose nodes share no folder with us."""
        if not self._begun:
            return
        try:
            output = await self._pool.engine.log(self._job or self.name)
            if output is not None:
                log = logs.Log(Path(self.assignment.folder))
                await asyncio.to_thread(log.extend, output)
        except (NotNow, OSError) as error:
            logger.info("%s: its log is not copied now: %s", self.assignment, error)

    async def _wait_for_news(self) -> None:
        looks = self._speaks_by_file or not self._begun or self._quiet_since is not None
        with suppress(TimeoutError):
            # Not wait_for: in Python 3.11 it forgets a cancellation that comes with the news.
            async with asyncio.timeout(LOOK if looks else None):
                await self._news.wait()

    async def _read_folder(self) -> bool:
        """Answer and record what the job says in the shared folder; return whether it has ended."""
        folder, attempt_id = Path(self.assignment.folder), self.assignment.attempt_id
        secret = self.assignment.secret
        await self._take_spooled_report()
        try:
            asked = await asyncio.to_thread(spool.spooled_begins, folder, attempt_id, secret)
        except OSError:
            asked = []
        for said in asked:
            self._speaks_by_file = True
            refused = await self._answer(said)
            await asyncio.to_thread(spool.answer_spooled, folder, said["copy"], refused)
        end = await asyncio.to_thread(spool.spooled_exit, folder, attempt_id, secret)
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

    async def _answer(self, said: Mapping[str, Any]) -> str | None:
        """Let a copy of the job begin, or return why not."""
        answer = await self._coordinator.execute_with_retry(
            lambda conn: jobs.begin_job(
                conn, self.assignment.attempt_id, said["copy"], said.get("job"), said.get("node")
            )
        )
        self._begun |= answer.code is None
        return answer.reason if answer.code else None

    async def _believe_the_engine(self) -> bool:
        """Draw the conclusion from the engine's last answer; return whether the attempt is over."""
        watch = self._pool.watch
        sure_at = self._since + (0.0 if self._job is not None else UNSURE)
        if watch.asked_at < sure_at and self.name not in watch.seen:
            return False
        seen = watch.seen.get(self.name, ())
        live = [each for each in seen if each.place is not Place.ENDED]
        if live:
            self._quiet_since = None
            await self._note(live[0].job, live[0].words if live[0].place is Place.WAITING else None)
            return False
        if self._quiet_since is None:
            self._quiet_since = now()
            watch.hurry()
        patience = SILENT if self._begun and not self.is_ending else SETTLED
        if now() - self._quiet_since < patience or watch.asked_at < self._quiet_since:
            return False
        return await self._conclude_without_it(seen)

    async def _conclude_without_it(self, seen: Sequence[Seen]) -> bool:
        """End the attempt of a job that the engine does not have, and that said nothing."""
        words = f"job {self._job or self.name}: " + (
            seen[-1].words if seen else "not listed any more"
        )
        if not self._begun:
            if self.is_ending:
                await self._give_up("returned", words)
            elif seen or self._submissions >= _MOST_SUBMISSIONS:
                tail = await asyncio.to_thread(_engine_said, Path(self.assignment.folder))
                await self._give_up("failed", f"it ended before it began ({words}){tail}")
            elif self._coordinator.leads.is_set():
                await self._launch_again()
                return False
            return True
        status = next((each.exit_status for each in seen if each.exit_status is not None), None)
        if status is None and self.is_ending:
            status = KILLED
        if status is None:
            await self._give_up(
                "lost",
                f"nothing is heard of it ({words}); its process may still run",
            )
            return True
        tail = await self.job.log_tail() if status else ""
        end = claims.exited(self.assignment, status, tail, "", await self._read_result())
        await self._conclude(f"exited with status {status}", end)
        return True

    async def _launch_again(self) -> None:
        try:
            if self._submissions == 0:  # another coordinator has prepared it, or has not
                await self._prepare()
            await self._launch()
        except NotNow as error:
            logger.info("%s is submitted later: %s", self.assignment, error)
            await asyncio.sleep(min(error.wait.total_seconds(), UNSURE))
        except CannotStart as error:
            self._submissions = _MOST_SUBMISSIONS
            logger.warning("%s cannot be submitted: %s", self.assignment, error)

    async def _end_in_time(self) -> None:
        """End the job when `update` says so: SIGTERM, the grace, then SIGKILL until it is gone."""
        await asyncio.sleep(await self._end_in)
        self.is_ending = True
        logger.info("%s is being ended", self.assignment)
        wait = GRACE.total_seconds()
        for end in (self._pool.engine.terminate, self._pool.engine.kill):
            await self._end_all(end)
            self._pool.watch.hurry()
            await asyncio.sleep(2 * wait)  # the wrapper sends SIGKILL itself after one
        while True:
            await self._end_all(self._pool.engine.kill)
            self._pool.watch.hurry()
            await asyncio.sleep(ASKS[0])

    async def _end_all(self, end: Callable[[str], Awaitable[None]]) -> None:
        """Call *end* for all jobs of this name that the engine has, until it answers."""
        while True:
            try:
                found = (await self._pool.engine.find()).get(self.name, ())
                for each in found:
                    if each.place is not Place.ENDED:
                        await end(each.job)
                return
            except NotNow as error:
                logger.warning("%s cannot be ended now: %s", self.assignment, error)
                await asyncio.sleep(ASKS[0])

    async def _note(self, job: str | None, waits_for: str | None) -> None:
        """Record the job's id and why it waits, where they are new."""
        if (job, waits_for) != self._noted:
            self._noted = job, waits_for
            self._job = job
            await self._coordinator.execute_with_retry(
                lambda conn: jobs.note_job(conn, self.assignment.attempt_id, job, waits_for)
            )


def _engine_said(folder: Path) -> str:
    """Return the last of what the engine, or the wrapper, has written beside the log; blocks."""
    try:
        text = files.read_plain(folder, "engine.log", 4_000).decode(errors="replace")
    except OSError:
        return ""
    return "".join(f"\n{line}" for line in text.replace("\0", "").splitlines()[-5:])


def now() -> float:
    """The time of the loop."""
    return asyncio.get_running_loop().time()
