"""Keeps the embedded Postgres up: starts it again when it is gone, however it came to that.

The one rule: nobody asks whether it is up. A connection that cannot be opened is what says that it
may not be; then `EmbeddedPostgres.start_again` finds out, and starts what is not there.
"""

import asyncio
import math
import re
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime, timedelta
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

from pgcoord.database.backoff import Backoff
from pgcoord.errors import CannotStart, CoordError, DatabaseUnusable, message_of

if TYPE_CHECKING:
    from pgcoord.database.embedded import EmbeddedPostgres

Result = TypeVar("Result")

# The most seconds between two starts of a server that does not stay up.
_MOST_DISTANCE = 60.0

# Seconds without a call of `start`, after which the server counts as having been up.
_STEADY = 10.0


class Keeper:
    """Starts one embedded server again, at growing distance while it does not stay up."""

    def __init__(self, server: "EmbeddedPostgres") -> None:
        self._server = server
        self._fault: CoordError | None = None
        self._backoff = Backoff(most=_MOST_DISTANCE)
        self._called_at = self._due_at = -math.inf
        self._next_start: datetime | None = None

    @property
    def fault(self) -> str | None:
        """Why the server is not up, and when it is started next; None if it is, or may be."""
        if self._fault is None:
            return None
        again = f"; next start at {self._next_start:%H:%M:%S %Z}" if self._next_start else ""
        return f"{message_of(self._fault)}{again}"

    def note_up(self) -> None:
        """Forget the fault, since the server has answered; the distance of starts stays."""
        self._fault = self._next_start = None

    async def start(self, error: DatabaseUnusable) -> CoordError | None:
        """Start the server if it is gone, and if it is time for that; None: connect at once.

        *error* is that of the connection that could not be opened; returned if the server is there.
        Cancelled, it leaves the start to itself. Never raises.
        """
        if error.sqlstate is not None:  # it has answered
            return error
        now = asyncio.get_running_loop().time()
        if now - self._called_at > _STEADY:
            self._backoff.reset()
            self._due_at = now
        self._called_at = now
        if now < self._due_at:
            return self._fault or error
        return await self._start_now(error)

    async def _start_now(self, error: DatabaseUnusable) -> CoordError | None:
        loop = asyncio.get_running_loop()
        try:
            started = await _in_daemon(self._server.start_again)
            fault = None
        except DatabaseUnusable as stopped:  # on purpose: the next start is somebody else's
            self._fault, self._next_start = stopped, None
            return stopped
        except CoordError as reason:
            started, fault = False, reason
        except RuntimeError as reason:  # no thread can be started
            started, fault = False, CannotStart(message_of(reason))
        self._called_at = loop.time()
        if started or fault:
            seconds = self._backoff.next()
            self._due_at = self._called_at + seconds
            self._next_start = datetime.now().astimezone() + timedelta(seconds=seconds)
        if fault is None:
            self.note_up()
            return None if started else error
        # The same fault again is the same object, so that it is logged once.
        if self._fault is None or _without_numbers(fault) != _without_numbers(self._fault):
            self._fault = fault
        return self._fault


def _without_numbers(error: CoordError) -> str:
    """Return the words of *error* without times and process ids."""
    return re.sub(r"[0-9]+", "", str(error))


async def _in_daemon(work: Callable[[], Result]) -> Result:
    """Run *work* in a thread that does not hold up the end of this process."""
    future: Future[Result] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="embedded Postgres", daemon=True).start()
    return await asyncio.wrap_future(future)
