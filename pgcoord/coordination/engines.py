"""The jobs of engines: submitted, watched, and ended by the leader, on whichever host it is.

A job begins and ends by what it says itself (pgcoord/jobs.py); the engine is asked only why a job
waits and whether it is still there, by one question for all jobs of a pool. The one rule: an answer
that does not come says nothing, and no answer of an engine is an end before its time to be
contradicted has passed.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pgcoord import jobs as spool
from pgcoord.configuration import LOCAL, Workflow
from pgcoord.coordination.launching import Engine, Order, Place, Seen
from pgcoord.coordination.retrying import Fact
from pgcoord.coordination.supervision import GRACE, KILLED, Coordination, Supervision, log_move
from pgcoord.database import claims, jobs
from pgcoord.database._sql import Connection
from pgcoord.database.rows import Assignment, OpenAttempt
from pgcoord.errors import CannotStart, CoordError, NotFound, NotNow, StaleAttempt

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

CreateTask = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


def name_of(folder: str) -> str:
    """Return the name of the job whose run has *folder*: pgcoord-INSTALLATION-ATTEMPT-RANDOM."""
    path = Path(folder)
    return f"pgcoord-{path.parent.name[:8]}-{path.name}"


class Watch:
    """Asks the engine of one pool about its jobs, as long as somebody waits for the answer."""

    def __init__(self, pool: str, engine: Engine, coordination: "Swept", create: CreateTask) -> None:
        self.engine = engine
        self.seen: Mapping[str, Sequence[Seen]] = {}
        self.asked_at = -1.0  # loop time of the last question that was answered; -1: none was
        self._pool = pool
        self._coordination = coordination
        self._create = create
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
            self._task = self._create(self._ask_again_and_again())

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
            except CoordError as error:
                logger.warning("pool %s: %s", self._pool, error)
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
            await asyncio.wait_for(self._hurried.wait(), seconds)
        return self._hurried.is_set()

    async def _end_strays(self) -> None:
        """End the jobs of attempts that are over, or that the database does not know.

        One that has just said how it ended is left two answers' time to go by itself.
        """
        live = {
            name
            for name, seen in self.seen.items()
            if any(each.place is not Place.ENDED for each in seen)
        }
        strays = live - await self._coordination.open_jobs(live)
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


class Swept:
    """What a watch needs of the coordinator: whether it stops, and which jobs are to be there."""

    def __init__(
        self,
        execute: Callable[[Callable[[Connection], Awaitable[Any]]], Awaitable[Any]],
        unless_stopped: Callable[[Awaitable[Any]], Awaitable[Any]],
        is_stopping: Callable[[], bool],
        supervised: Callable[[], frozenset[str]],
    ) -> None:
        self._execute = execute
        self.unless_stopped = unless_stopped
        self._is_stopping = is_stopping
        self._supervised = supervised

    @property
    def is_stopping(self) -> bool:
        return self._is_stopping()

    async def open_jobs(self, names: set[str]) -> set[str]:
        """Return those of *names* whose attempt is open; the database is asked of others only."""
        known = {name_of(folder) for folder in self._supervised()} & names
        if known != names:
            known |= {name_of(folder) for folder in await self._execute(claims.open_folders)}
        return known
