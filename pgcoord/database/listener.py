"""A connection that listens: it holds the lead, receives wake-ups, and notices a dead server.

The one rule: notifications are hints. The caller of `wait` reads the tables afterwards, so a
notification that is lost, or arrives twice, costs time and nothing else. A notification may name an
attempt by its id, or say `schedules`: then the caller needs to read only these.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg

from pgcoord.database import _sql, session
from pgcoord.database.connect import connect, unusable
from pgcoord.errors import DatabaseUnusable

# Seconds between pings of an idle server: 6 statements a minute.
PING_EVERY = 10.0

# Fewer digits than the highest bigint has: any client may send a notification.
_DIGITS = 19

# What a notification says when a schedule was changed (SQL: 59_schedule.sql).
_SCHEDULES = "schedules"

# Seconds to wait for a notification, which takes milliseconds without a pooler: where the server
# answers without one after that, it is lost.
_LOST_AFTER = 1.0

BALANCED = (
    "pgpool-II is between here and the server, and may send queries to a stand-by that is"
    " behind: phases that have just started would be ended"
)
UNBALANCED = (
    "app_name_redirect_preference_list = 'pgcoord.*:primary' in pgpool.conf, or give the address of"
    " the server itself"
)
_SINGLE = (
    "That may be PGlite, a tunnel for one client, or a pooler with a pool of one (PgBouncer's"
    " default_pool_size). pgcoord needs up to ten connections, each with"
    " a session of its own: give it a PostgreSQL server."
)


class Listener:
    """One LISTEN connection. `wait` may be called by one task at a time."""

    def __init__(self, conn: _sql.Connection) -> None:
        self.conn = conn
        self._woken = asyncio.Event()
        self._changed: set[int] = set()
        self._schedules_changed = False
        self._lost: psycopg.Error | None = None
        self._idle_since = asyncio.get_running_loop().time()
        conn.add_notify_handler(self._hear)

    @property
    def idle_since(self) -> float:
        """The loop's time at which `wait` last sent or began to wait on the connection."""
        return self._idle_since

    @property
    def idle_seconds(self) -> float:
        """The seconds since `wait` last sent or began to wait on the connection."""
        return asyncio.get_running_loop().time() - self._idle_since

    def wake(self) -> None:
        """End the current `wait`, or the next one, from another task of this process."""
        self._woken.set()

    @property
    def has_changed(self) -> bool:
        """Whether `take_changed` has something to return."""
        self._drain()
        return bool(self._changed)

    def take_changed(self) -> set[int]:
        """Return the ids of the attempts that changed since the last call, by notifications."""
        self._drain()
        changed, self._changed = self._changed, set()
        return changed

    def take_changed_schedules(self) -> bool:
        """Return whether a schedule was changed since the last call, by notifications."""
        self._drain()
        changed, self._schedules_changed = self._schedules_changed, False
        return changed

    async def wait(self, seconds: float | None) -> bool:
        """Wait for a notification, for `wake`, or *seconds* (None: without limit).

        Return False after *seconds*, else True. A notification since the last wait ends this one at
        once. Pings the server meanwhile. Raises `psycopg.OperationalError` when the connection is
        lost; on a silent network that takes as long as the keepalive parameters say.
        """
        self._idle_since = asyncio.get_running_loop().time()
        deadline = None if seconds is None else self._idle_since + seconds
        self._drain()
        while not self._woken.is_set():
            remaining = None if deadline is None else deadline - asyncio.get_running_loop().time()
            if remaining is not None and remaining <= 0:
                return False
            if await self._notified(
                PING_EVERY if remaining is None else min(remaining, PING_EVERY)
            ):
                break
            if remaining is None or remaining > PING_EVERY:
                await session.ping(self.conn)
                self._idle_since = asyncio.get_running_loop().time()
        self._woken.clear()
        return True

    async def _notified(self, seconds: float) -> bool:
        """Wait for a notification or `wake`; return whether one came within *seconds*.

        Not by psycopg's `notifies`, which takes a task and a lock for each wait.
        """
        loop, descriptor = asyncio.get_running_loop(), self.conn.fileno()
        loop.add_reader(descriptor, self._read, descriptor)
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return False
        finally:
            if not self._lost:
                loop.remove_reader(descriptor)
        if self._lost:
            raise self._lost
        return True

    def _read(self, descriptor: int) -> None:
        try:
            self.conn.pgconn.consume_input()
        except psycopg.OperationalError as error:
            # Now: libpq has closed the socket, so that the next file opened has its number.
            asyncio.get_running_loop().remove_reader(descriptor)
            self._lost = error
            self._woken.set()
        else:
            self._drain()

    def _drain(self) -> None:
        """Empty libpq's buffer of notifications, which psycopg does at the next statement only."""
        encoding = self.conn.info.encoding
        while notification := self.conn.pgconn.notifies():
            self._hear(
                psycopg.Notify(
                    notification.relname.decode(encoding),
                    notification.extra.decode(encoding),
                    notification.be_pid,
                )
            )

    def _hear(self, notify: psycopg.Notify) -> None:
        """Note what a notification says; one of this very session ends no wait.

        A caller that has changed attempts itself asks `has_changed`.
        """
        names_attempt = notify.payload.isdecimal() and notify.payload.isascii()
        if names_attempt and len(notify.payload) < _DIGITS:
            self._changed.add(int(notify.payload))
        elif notify.payload == _SCHEDULES:
            self._schedules_changed = True
        if notify.pid != self.conn.pgconn.backend_pid:
            self._woken.set()


@asynccontextmanager
async def listening(dsn: str, channel: str) -> AsyncIterator[Listener]:
    """Open a connection that listens to *channel* and may hold the lead; close it at the end.

    LISTEN comes before any query, so that no change falls between the two.
    """
    async with await connect(dsn, leads=True) as conn:
        await session.listen(conn, channel)
        yield Listener(conn)


async def check_wake_ups(dsn: str) -> None:
    """Raise `DatabaseUnusable` if no notification arrives through *dsn*.

    Also if a balancer may send our queries to a stand-by, where a phase that has just started is
    unknown: the coordinator would end it.
    """
    async with await connect(dsn) as conn:
        try:
            balancer = await session.balancer(conn)
        except psycopg.OperationalError as error:  # the connection was lost meanwhile
            raise unusable(error) from error
    if balancer == "sends":
        raise DatabaseUnusable(BALANCED, hint=f"Set {UNBALANCED}.")
    if await round_trip(dsn) is None:
        raise DatabaseUnusable(
            "notifications do not arrive through this DSN: no work would be started in time",
            hint="'pgcoord doctor' says why, and what to do.",
        )


async def round_trip(dsn: str, receiver: _sql.Connection | None = None) -> float | None:
    """Send a notification to *receiver*; return its seconds, None if it is lost.

    Raises `DatabaseUnusable` when the server cannot be reached, the connection is lost, or the
    server is for one connection or one session only.
    """
    try:
        if receiver is not None:
            return await _round_trip(dsn, receiver)
        async with await connect(dsn) as conn:
            return await _round_trip(dsn, conn)
    except psycopg.OperationalError as error:  # the connection was lost meanwhile
        raise unusable(error) from error


async def _round_trip(dsn: str, receiver: _sql.Connection) -> float | None:
    async with await _another(dsn, receiver) as sender:
        await session.listen(receiver, session.PROBE)
        began = time.monotonic()
        await session.notify(sender, session.PROBE)
        async for _ in receiver.notifies(timeout=_LOST_AFTER, stop_after=1):
            return time.monotonic() - began
        if await session.is_same(receiver, sender):
            raise DatabaseUnusable(
                "all connections to this server are one session: no notification arrives, and no"
                " lock excludes anybody",
                hint=_SINGLE,
            )
        # A server that was slow for a moment has sent it before its answer just now.
        if receiver.pgconn.notifies():
            return time.monotonic() - began
        async for _ in receiver.notifies(timeout=0, stop_after=1):
            return time.monotonic() - began
    return None


async def _another(dsn: str, first: _sql.Connection) -> _sql.Connection:
    """Connect once more; raise `DatabaseUnusable` with the reason where *first* is the only one."""
    refused = 0
    while True:
        try:
            return await connect(dsn)
        except DatabaseUnusable as error:
            if error.sqlstate is not None or not await _answers(first):
                raise  # with its cause, by which `may_pass` knows it
            refused += 1
            if refused == 3:  # no accident
                raise only_one_connection(error) from None


async def _answers(conn: _sql.Connection) -> bool:
    try:
        await session.ping(conn)
    except psycopg.OperationalError:
        return False
    return True


def only_one_connection(error: DatabaseUnusable) -> DatabaseUnusable:
    """Return the error for a server that has refused a second connection with *error*."""
    return DatabaseUnusable(
        f"this server takes one connection at a time; the second failed: {error}", hint=_SINGLE
    )
