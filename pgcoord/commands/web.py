"""The web server of `run` and `serve`, whose modules are imported when it starts.

They take a third of the processor time of a start, so `serve` leads first; until it answers,
clients wait at the bound socket.
"""

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import psycopg

from pgcoord.coordination.coordinator import Coordinator
from pgcoord.database.session import ping
from pgcoord.errors import CoordError

if TYPE_CHECKING:
    from pgcoord.http.access import Access
    from pgcoord.http.state import AppState
    from pgcoord.planner.planning import FeaturePlanner

# The most seconds that clients wait for a coordinator that does not lead yet.
_MOST_WAIT = 0.5


class WebServer:
    """The panel and the API of one coordinator, on the socket *listening_socket*.

    `obstacle` is why the coordinator cannot work yet, as /readyz says; None when nothing is.
    """

    def __init__(
        self,
        dsn: str,
        coordinator: Coordinator,
        listening_socket: socket.socket,
        access: "Access",
        make_planner: "Callable[[], FeaturePlanner]",
    ) -> None:
        self._dsn = dsn
        self._coordinator = coordinator
        self._listening_socket = listening_socket
        self._access = access
        self._make_planner = make_planner
        self._obstacle: str | None = "starting"
        self._hindered = asyncio.Event()
        self._state: AppState | None = None

    def note_obstacle(self, obstacle: str | None) -> None:
        """Make /readyz answer with *obstacle*; None: the coordinator can work."""
        self._obstacle = obstacle
        if obstacle:
            self._hindered.set()
        if self._state:
            self._state.obstacle = obstacle

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve until the block ends."""
        from pgcoord.http.feed import Feed
        from pgcoord.http.pool import Database
        from pgcoord.http.server import serving
        from pgcoord.http.state import AppState

        _settle_memory()
        github = self._coordinator.configuration.github
        self._state = AppState(
            database=Database(self._dsn),
            feed=Feed(self._dsn, lambda: self._coordinator.server_fault),
            access=self._access,
            coordinator=self._coordinator,
            make_planner=self._make_planner,
            repository=github.page if github else None,
            obstacle=self._obstacle,
        )
        async with serving(self._state, self._listening_socket):
            yield

    async def serve_beside(self, working: asyncio.Task[None]) -> None:
        """Start serving once *working* leads or meets an obstacle; serve until *working* is done.
        Raises the errors of *working*.
        """
        starts = [
            asyncio.create_task(self._coordinator.leads.wait()),
            asyncio.create_task(self._hindered.wait()),
        ]
        try:
            await asyncio.wait(
                {working, *starts}, timeout=_MOST_WAIT, return_when=asyncio.FIRST_COMPLETED
            )
            if not working.done():
                async with self.serving():
                    await working
            await working
        finally:
            for each in (working, *starts):
                each.cancel()

    async def database_answers(self) -> bool:
        """Whether the server answers within a second on a connection that our pool has open."""
        if not (self._state and self._state.database.pool.get_stats().get("pool_available")):
            return False
        try:
            async with asyncio.timeout(1), self._state.database.connection() as conn:
                await ping(conn)
        except (psycopg.Error, CoordError, TimeoutError):
            return False
        return True


def _settle_memory() -> None:
    """Collect garbage, exempt all objects so far from later collections, and set the threshold.

    The imported modules stay for the life of the process, so scanning them again is wasted.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(700)
