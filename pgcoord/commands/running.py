"""`run` and `serve` once database and configuration are ready: lead, watch, stop, print the rest.

Separate from `work`, so that other commands do not import it.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import TYPE_CHECKING

import psycopg

from pgcoord.commands.context import changing, check_schema, session
from pgcoord.commands.options import Surroundings
from pgcoord.commands.terminal import say, say_json
from pgcoord.commands.web import WebServer
from pgcoord.configuration.model import Configuration
from pgcoord.configuration.reading import differences
from pgcoord.coordination.coordinator import RECONFIGURED, Coordinator
from pgcoord.database import actions, claims, reads
from pgcoord.database._sql import Connection
from pgcoord.database.backoff import Backoff
from pgcoord.database.connect import connect, may_pass
from pgcoord.database.listener import check_wake_ups, only_one_connection
from pgcoord.database.work import Assignment
from pgcoord.errors import CoordError, DatabaseUnusable, Locked, Refused, message_of
from pgcoord.http.access import Access
from pgcoord.http.sockets import url_of

if TYPE_CHECKING:
    from pgcoord.commands.progress import Progress, Snapshot
    from pgcoord.plan.model import Plan
    from pgcoord.planner.planning import FeaturePlanner

logger = logging.getLogger(__name__)

# Seconds that the check of the schema waits for a lock before it looks whether it shall stop.
_LOCK_SECONDS = 5.0

# Seconds to wait for the lead; after that we take it that another coordinator leads.
_SETTLED = 1.0

# The most seconds between two connection attempts while the database does not answer.
_MOST_BACKOFF = 1.0

# Seconds that a stop may take; ending processes that must not run takes up to twenty.
_MOST_STOPPING = 25

# Features that are named in one line.
_MOST_NAMED = 5

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Runner:
    """Runs one feature to its end, or watches it while another coordinator leads."""

    def __init__(
        self,
        surroundings: Surroundings,
        dsn: str,
        coordinator: Coordinator,
        listening_socket: socket.socket,
        access: Access,
        make_planner: "Callable[[], FeaturePlanner]",
        *,
        as_json: bool = False,
    ) -> None:
        """*listening_socket*: of the panel. *as_json*: print only the feature, at its end."""
        self._as_json = as_json
        self._surroundings = surroundings
        self._dsn = dsn
        self._coordinator = coordinator
        self._listening_socket = listening_socket
        self._web = WebServer(dsn, coordinator, listening_socket, access, make_planner)
        self._error: Exception | None = None
        self._end: Snapshot | None = None

    async def run(self, work: "Plan | int") -> int:
        """Submit a plan, or queue the feature with that number; block until its end.

        Return the exit status: 0 if every phase completed, 128 + the signal that stopped us, else
        1. While this coordinator leads, it also runs other queued phases, and returns only when
        all that it started have ended. Raises `NotFound` or `Refused` for a number that cannot be
        run.
        """
        from pgcoord.commands.progress import progress

        await check_wake_ups(self._dsn)
        feature_id = await self._queue(work)
        self._web.note_obstacle(None)
        say(f"panel: {url_of(self._listening_socket)}/features/{feature_id}", err=self._as_json)
        with progress(quiet=self._as_json) as shown, _interruptible(self._stop) as came:
            async with self._web.serving(), asyncio.TaskGroup() as tasks:
                leading = tasks.create_task(self._lead())
                self._watching = tasks.create_task(self._watch(feature_id, shown, leading))
        if self._coordinator.led:
            await _log_left_running(self._dsn, self._coordinator, interrupted=bool(came))
        elif came:
            logger.warning("feature %d continues without this process", feature_id)
        if self._error:
            raise self._error
        if self._end:
            await sum_up(self._dsn, self._end, as_json=self._as_json)
            await self._log_queued_features(feature_id)
        if came:
            say(f"  {ways_on(feature_id)}", err=True)
            return 128 + came[0]
        return 0 if self._end and self._end.completed else 1

    async def _queue(self, work: "Plan | int") -> int:
        """Queue the phases of *work*; return the feature's number. Warn if another one leads."""
        from pgcoord.plan.model import Plan

        async with changing(self._surroundings, self._dsn) as conn:
            leader = await reads.leader(conn)
            if isinstance(work, Plan):
                feature_id = await actions.submit_feature(conn, work.feature())
            else:
                feature_id = work
                await actions.execute_feature(conn, feature_id)
        if leader:
            logger.warning(
                "process %d on %s leads and runs the phases, by the pgcoord.toml that it has read;"
                " this process only watches, and takes over when the other one ends",
                leader.pid,
                leader.host,
            )
        return feature_id

    def _stop(self) -> None:
        self._coordinator.stop()
        self._watching.cancel()

    async def _lead(self) -> None:
        try:
            await self._coordinator.run()
        except CoordError as error:
            self._error = error
            self._watching.cancel()

    async def _watch(self, feature_id: int, shown: "Progress", leading: asyncio.Task[None]) -> None:
        """Show the feature until its end, then release the lead.

        Waits first until this coordinator leads, at most `_SETTLED` seconds: before that, each
        snapshot would say that no coordinator runs.
        """
        settled = asyncio.ensure_future(self._coordinator.leads.wait())
        try:
            await asyncio.wait(
                {settled, leading}, timeout=_SETTLED, return_when=asyncio.FIRST_COMPLETED
            )
            await self._log_other_features(feature_id)
            self._end = await show_to_end(self._dsn, feature_id, shown)
            if self._coordinator.issues:
                await self._coordinator.issues.settle()
            if self._coordinator.led:
                self._leave()
        except (CoordError, OSError) as error:  # OSError: stdout was closed by its reader
            self._error = error
        finally:
            settled.cancel()
            if self._end is None or self._error or not self._coordinator.led:
                self._coordinator.stop()

    def _leave(self) -> None:
        """Claim nothing more, and let the coordinator stop once its processes have ended."""
        self._coordinator.drain()
        if running := [each.queue_id for each in self._coordinator.running]:
            logger.warning(
                "waits for the other phases that it started: %s; Ctrl-C leaves them running",
                ", ".join(running),
            )

    async def _log_other_features(self, feature_id: int) -> None:
        from pgcoord.commands.progress import read_through

        if self._coordinator.led and (
            others := await read_through(self._dsn, lambda conn: self._others(conn, feature_id))
        ):
            logger.warning(
                "this process leads, so it also runs the other queued features: %s", others
            )

    async def _log_queued_features(self, feature_id: int) -> None:
        """Warn of features that are still queued, if we led and no coordinator leads now."""
        if not self._coordinator.led:
            return
        async with session(self._dsn) as conn:
            leader = await reads.leader(conn)
            others = await self._others(conn, feature_id)
        if leader is None and others:
            logger.warning("still queued: %s; 'pgcoord serve' runs it", others)

    async def _others(self, conn: Connection, feature_id: int) -> str:
        from pgcoord.commands.progress import clean

        features = await reads.features(conn, unfinished=True)
        waiting = [
            f"feature {each.id} ({clean(each.title)})"
            for each in features
            if each.id != feature_id
            and each.paused_at is None
            and each.total_phases > each.phases_completed + each.phases_failed + each.phases_blocked
        ]
        more = len(waiting) - _MOST_NAMED
        return ", ".join([*waiting[:_MOST_NAMED], *([f"{more} more"] if more > 0 else [])])


async def attach(dsn: str, feature_id: int, *, as_json: bool = False) -> int:
    """Show a feature that another coordinator runs, and block until its end.

    Return the exit status: 0 if every phase completed, else 1. Raises `NotFound`, and `Refused` for
    a feature without phases.
    """
    from pgcoord.commands.progress import progress, read_snapshot

    async with session(dsn) as conn:
        snapshot = await read_snapshot(conn, feature_id)
        if not snapshot.phases:
            raise Refused(
                f"feature {feature_id} has no phases queued: there is nothing to watch",
                hint=f"'pgcoord execute {feature_id}' queues those of its plan.",
            )
        if not snapshot.ended and await reads.leader(conn) is None:
            logger.warning(
                "no coordinator runs: 'pgcoord run --feature %d' continues it", feature_id
            )
    try:
        with progress(quiet=as_json) as shown:
            end = await show_to_end(dsn, feature_id, shown)
    except asyncio.CancelledError:  # Ctrl-C
        say(f"  {ways_on(feature_id)}", err=True)
        raise
    await sum_up(dsn, end, as_json=as_json)
    return 0 if end.completed else 1


async def sum_up(dsn: str, end: "Snapshot", *, as_json: bool = False) -> None:
    """Print how a feature ended; if it did not complete, print on stderr how to go on."""
    from pgcoord.commands.progress import summary

    if as_json:
        say_json(end.as_json())
    else:
        async with session(dsn) as conn:
            reasons = await reads.last_reasons(conn, end.feature.id)
            lacking = await reads.lacking_work(conn, end.feature.id)
        say(summary(end, reasons))
        for phase in lacking:
            say(f"  the branch of the feature lacks the work of phase {phase}", err=True)
    if not end.completed:
        stopped_by = [
            phase.phase_number for phase in end.phases if phase.status in ("failed", "cancelled")
        ]
        say(f"  {ways_on(end.feature.id, next(iter(stopped_by), None))}", err=True)


def ways_on(feature_id: int, phase_number: int | None = None) -> str:
    """Return a line with the commands that go on with a feature.

    *phase_number*: the failed or cancelled phase to retry, if there is one.
    """
    of_phase = [f"{verb} {feature_id}.{phase_number}" for verb in ("logs", "retry")]
    ways = [*(of_phase if phase_number else []), f"run --feature {feature_id}"]
    named = ", ".join(f"'pgcoord {each}'" for each in ways)
    return f"to continue: {named}; to cancel it: 'pgcoord cancel {feature_id}'"


async def show_to_end(dsn: str, feature_id: int, shown: "Progress") -> "Snapshot":
    """Show a feature on *shown* until it has ended, reconnecting as needed; return the end."""
    from pgcoord.commands.progress import follow_through, read_snapshot

    snapshots = follow_through(dsn, lambda conn: read_snapshot(conn, feature_id))
    async with aclosing(snapshots):
        async for snapshot in snapshots:
            shown.show(snapshot)
            if snapshot.ended:
                break
    return snapshot


async def serve(
    dsn: str,
    coordinator: Coordinator,
    listening_socket: socket.socket,
    access: Access,
    make_planner: "Callable[[], FeaturePlanner]",
    *,
    read_anew: Callable[[], Configuration],
    drain: bool = False,
) -> int:
    """Run a coordinator, and serve HTTP on *listening_socket*, until a signal stops both.

    Return the exit status: 0 after SIGTERM, 128 + the number of another signal. HTTP is served from
    when the coordinator leads, also while the database is unusable; /readyz then says why. *drain*:
    the first signal stops claiming, and waits until the processes started here have ended; a second
    one stops at once. SIGHUP replaces the configuration by that of *read_anew*; it counts as a
    signal to stop when the terminal was closed. Raises `DatabaseUnusable` for a wrong schema, or
    when notifications do not arrive.
    """
    stopping = asyncio.Event()

    def stop() -> None:
        stopping.set()
        coordinator.stop()

    def drain_and_stop() -> None:
        stopping.set()
        coordinator.drain()
        if coordinator.running:
            logger.warning(
                "claims no further phase, and waits for %s; a second signal leaves them running",
                ", ".join(assignment.queue_id for assignment in coordinator.running),
            )

    has_terminal = sys.stdin is not None and sys.stdin.isatty()

    def reload() -> bool:
        if has_terminal and not sys.stdin.isatty():
            return False
        _reconfigure(coordinator, read_anew)
        return True

    web = WebServer(dsn, coordinator, listening_socket, access, make_planner)

    async def work() -> None:
        await _await_server(dsn, coordinator, stopping, web)
        if not stopping.is_set():
            await coordinator.run()

    steps = [drain_and_stop, stop] if drain else [stop]
    with _interruptible(*steps, on_hangup=reload) as came:
        logger.info("serving on %s", url_of(listening_socket))
        for risk in access.risks():
            logger.warning("%s", risk)
        await web.serve_beside(asyncio.create_task(work()))
    await _log_left_running(dsn, coordinator, interrupted=True)
    # A service manager stops services by SIGTERM: that is not a failure.
    return next((128 + each for each in came if each != signal.SIGTERM), 0)


def _reconfigure(coordinator: Coordinator, read_anew: Callable[[], Configuration]) -> None:
    """Replace the configuration of *coordinator* by *read_anew*'s, and log the differences.

    If it is faulty, log that and keep the old one. Some keys take effect only after a restart.
    """
    before = coordinator.configuration
    try:
        after = read_anew()
    except CoordError as error:
        logger.error("SIGHUP: the configuration is unchanged: %s", error)
        return
    changed = [*differences(before, after)]
    at_once = [words for name, words in changed if name in RECONFIGURED]
    later = [words for name, words in changed if name not in RECONFIGURED]
    if at_once:
        coordinator.reconfigure(after)
    logger.warning("SIGHUP: read %s: %s", after.path, ", ".join(at_once) or "nothing to do")
    if later:
        logger.warning("effective only after a restart: %s", ", ".join(later))


async def _await_server(
    dsn: str, coordinator: Coordinator, stopping: asyncio.Event, web: WebServer
) -> None:
    """Block until the database is usable, or *stopping* is set; retry with back-off.

    Has /readyz say the reason meanwhile. Raises `DatabaseUnusable` for an error that a
    retry does not mend: a wrong schema, notifications that do not arrive.
    """
    backoff = Backoff(most=_MOST_BACKOFF)
    refused = 0
    while not stopping.is_set():
        try:
            await asyncio.to_thread(check_schema, dsn, lock_seconds=_LOCK_SECONDS)
            await check_wake_ups(dsn)
            web.note_obstacle(None)
            return
        except Locked as error:  # stderr names its holder
            web.note_obstacle(str(error))
            continue
        except DatabaseUnusable as error:
            if not may_pass(error):
                raise
            # New connections fail while an open one answers: three times is not by chance.
            refused = refused + 1 if error.sqlstate is None and await web.database_answers() else 0
            if refused == 3:
                raise only_one_connection(error) from None
            reason = await coordinator.unless_stopped(coordinator.start_server(error))
            if reason is None:
                continue
            web.note_obstacle(message_of(reason))
            seconds = backoff.next()
            level = logging.DEBUG if backoff.repeats(str(reason)) else logging.WARNING
            logger.log(level, "trying again in %.2f s: %s", seconds, message_of(reason))
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await stopping.wait()


async def _log_left_running(dsn: str, coordinator: Coordinator, *, interrupted: bool) -> None:
    """Log which processes a stopped coordinator leaves running, and who watches them now."""
    try:
        async with await connect(dsn) as conn:
            leader = await reads.leader(conn)
            attempts = await claims.open_attempts(conn, coordinator.host, engines=coordinator.led)
            assignments = [await claims.assignment(conn, each.attempt_id) for each in attempts]
    except (psycopg.Error, CoordError):
        logger.warning("stopped; running processes continue, and 'pgcoord serve' takes them over")
        return
    left_running = [f"{each.queue_id} ({_whereabouts(each)})" for each in assignments if each]
    if left_running:
        who = f"process {leader.pid} on {leader.host}" if leader else "'pgcoord serve'"
        logger.warning("left running: %s; %s takes over", ", ".join(left_running), who)
    elif interrupted:
        logger.warning("stopped; nothing is left running")


def _whereabouts(attempt: Assignment) -> str:
    if attempt.host is None:
        return f"in pool {attempt.pool}" + ("" if attempt.started else ", not begun yet")
    return f"pid {attempt.pid}" if attempt.pid else "not started yet"


@contextmanager
def _interruptible(
    *steps: Callable[[], None], on_hangup: Callable[[], bool] | None = None
) -> Iterator[list[int]]:
    """Have each SIGINT, SIGTERM or SIGHUP call the next of *steps*; one more exits at once.

    The process also exits `_MOST_STOPPING` seconds after the last step.

    A SIGHUP for which *on_hangup* returns true does not count. A signal that was ignored (nohup)
    stays ignored. Yields a list, to which the number of each signal is appended.
    """
    loop = asyncio.get_running_loop()
    came: list[int] = []
    overdue: list[asyncio.TimerHandle] = []

    def interrupt(number: int) -> None:
        if number == signal.SIGHUP and on_hangup and on_hangup():
            return
        if len(came) == len(steps):
            os._exit(128 + number)
        came.append(number)
        steps[len(came) - 1]()
        if len(came) == len(steps):
            overdue.append(loop.call_later(_MOST_STOPPING, give_up, number))

    def give_up(number: int) -> None:
        # psycopg waits for ever for a frozen server; killing this process loses nothing.
        logger.error(
            "no clean stop within %d s, since the database does not answer: running processes"
            " continue, and 'pgcoord serve' takes them over",
            _MOST_STOPPING,
        )
        logging.shutdown()
        os._exit(128 + number)

    handled = [each for each in _SIGNALS if signal.getsignal(each) != signal.SIG_IGN]
    for each in handled:
        loop.add_signal_handler(each, interrupt, each)
    try:
        yield came
    finally:
        for timer in overdue:
            timer.cancel()
        for each in handled:
            loop.remove_signal_handler(each)
