"""Starts schedules when they are due.

The leader computes due times (`configuration.cron`); SQL decides what happens (59_schedule.sql).
The one rule: it sleeps until the next due time by the database's clock, or until it is woken: by a
change of a schedule, and by each round of the leader's loop while a run waits for the end of
another.
"""

import asyncio
import contextlib
import logging
import time

from pgcoord.configuration.cron import NeverDue, due_times, latest_due
from pgcoord.configuration.model import Schedule
from pgcoord.coordination.interface import Coordination
from pgcoord.coordination.retrying import Stopped
from pgcoord.database import due
from pgcoord.database.schedules import Run
from pgcoord.errors import AnotherLeads

logger = logging.getLogger(__name__)

_RETRY_AFTER = 10.0

# Seconds between two checks of this machine's clock: timers stop while it is suspended.
_LOOK_AT_CLOCK = 10.0


class Schedules:
    """The schedules of one database, while this coordinator leads."""

    def __init__(self, coordinator: Coordination) -> None:
        self._coordinator = coordinator
        self._woken = asyncio.Event()
        self._waits = False
        self._is_declared = False

    def declare(self) -> None:
        """Declare the schedules of the configuration, after it was read again, or after taking the
        lead."""
        self._is_declared = False
        self._woken.set()

    def wake(self) -> None:
        """Check the schedules at once, after one was changed."""
        self._woken.set()

    def note_round(self) -> None:
        """Check the waiting runs, if there are any: a feature may have ended."""
        if self._waits:
            self._woken.set()

    async def run(self) -> None:
        """Start due schedules, until the coordinator is stopped."""
        while not self._coordinator.is_stopping:
            self._woken.clear()
            seconds: float | None = None
            if self._coordinator.leads.is_set():
                try:
                    seconds = await self._look()
                except Stopped:
                    return
                except AnotherLeads as error:
                    logger.info("schedules are left to the present leader: %s", error)
                except Exception:
                    logger.exception("schedules are read again in %.0f s", _RETRY_AFTER)
                    seconds = _RETRY_AFTER
            await self._coordinator.unless_stopped(self._wait(seconds))

    async def _wait(self, seconds: float | None) -> None:
        until = None if seconds is None else time.time() + seconds
        while not self._woken.is_set() and (seconds_left := _left(until)) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds_left if until else None):
                    await self._woken.wait()

    async def _look(self) -> float | None:
        """Start due schedules; return the seconds until the next one, None without schedules."""
        execute, epoch = self._coordinator.execute_with_retry, self._coordinator.epoch
        if not self._is_declared:
            await self._declare(epoch)
        for todo in await execute(due.schedules_to_do):
            await self._do(todo, epoch)
        rest = await execute(due.rest)
        if rest.waits:
            for run in await execute(lambda conn: due.start_waiting_runs(conn, epoch)):
                _log(run)
            rest = await execute(due.rest)
        self._waits = rest.waits
        due_in: float | None = rest.due_in
        return due_in

    async def _declare(self, epoch: int) -> None:
        self._is_declared = True  # set first: it may be unset during the statements below
        configured = self._coordinator.configuration.schedules
        if configured is None:
            return
        declared = [_declared(each) for each in configured.values()]
        try:
            refused = await self._coordinator.execute_with_retry(
                lambda conn: due.declare_schedules(conn, epoch, declared)
            )
        except BaseException:
            self._is_declared = False
            raise
        for each in refused:
            logger.error("schedule %s of pgcoord.toml is not stored: %s", each.name, each.error)

    async def _do(self, todo: due.ToDo, epoch: int) -> None:
        execute = self._coordinator.execute_with_retry
        try:
            following = next(due_times(todo.cron, todo.timezone, todo.now))
            if todo.next_at is not None:
                due_at = latest_due(todo.cron, todo.timezone, todo.next_at, todo.now)
        except NeverDue as error:
            words = str(error)
            logger.error("schedule %s: %s", todo.name, words)
            await execute(lambda conn: due.plan_schedule(conn, epoch, todo, None, words))
            return
        if todo.next_at is None:
            await execute(lambda conn: due.plan_schedule(conn, epoch, todo, following, None))
            return
        run = await execute(lambda conn: due.take_due_time(conn, epoch, todo, due_at, following))
        if run:
            _log(run)


def _declared(schedule: Schedule) -> dict[str, object]:
    """Return *schedule* as an element of the argument of pgcoord_private.declare_schedules."""
    return {
        "name": schedule.name,
        "cron": schedule.cron,
        "timezone": schedule.timezone,
        "overlap": schedule.overlap,
        "missed": schedule.missed,
        "feature": schedule.feature,
    }


def _left(until: float | None) -> float:
    return _LOOK_AT_CLOCK if until is None else min(until - time.time(), _LOOK_AT_CLOCK)


def _log(run: Run) -> None:
    level = logging.ERROR if run.outcome == "failed" else logging.INFO
    because = f": {run.reason}" if run.reason else ""
    started = f" as feature {run.feature_id}" if run.feature_id else ""
    logger.log(
        level,
        "schedule %s, due at %s: %s%s",
        run.schedule,
        run.due_at,
        run.outcome + started,
        because,
    )
