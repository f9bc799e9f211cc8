"""State shared by the request handlers: connection pool, event feed, permissions, coordinator.

A handler gets it with `state_of(request)`. The planner, the metrics and the templates are imported
when a request needs them: most coordinators plan nothing.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import psycopg
from starlette.requests import HTTPConnection, Request

from pgcoord import assets
from pgcoord.coordination.coordinator import Coordinator
from pgcoord.database import logins
from pgcoord.database._sql import Connection
from pgcoord.errors import CoordError
from pgcoord.http.access import Access
from pgcoord.http.feed import Feed
from pgcoord.http.pool import Database, Kind, until_disconnected
from pgcoord.http.refusals import Refusals
from pgcoord.http.security import COOKIE, Sessions, actor_of

if TYPE_CHECKING:
    import jinja2

    from pgcoord.http.metrics import Metrics
    from pgcoord.planner.planning import FeaturePlanner, Planned

logger = logging.getLogger(__name__)


@dataclass
class AppState:
    """State shared by the request handlers."""

    database: Database
    feed: Feed
    access: Access
    coordinator: Coordinator
    make_planner: "Callable[[], FeaturePlanner]"
    repository: str | None = None  # URL of the repository, for links to issues and pull requests
    refusals: Refusals = field(default_factory=Refusals)
    obstacle: str | None = "starting"  # why the coordinator cannot work yet
    readiness_check: asyncio.Task[str | None] | None = None  # shared by concurrent /readyz requests

    @cached_property
    def planner(self) -> "FeaturePlanner":
        """The planner of features."""
        return self.make_planner()

    @cached_property
    def metrics(self) -> "Metrics":
        """The metrics for monitoring."""
        from pgcoord.http.metrics import Metrics

        metrics = Metrics()
        metrics.watch(self.coordinator, self.feed)
        return metrics

    @cached_property
    def sessions(self) -> Sessions:
        """The sessions of people who logged in."""
        return Sessions(self.access)

    @cached_property
    def templates(self) -> "jinja2.Environment":
        """The templates of the panel; they escape all values."""
        import jinja2

        return jinja2.Environment(
            loader=jinja2.FileSystemLoader(assets.WEB / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    @asynccontextmanager
    async def acting(
        self, request: Request, *, kind: Kind | None = None
    ) -> AsyncIterator[Connection]:
        """A connection for a request whose body was read; the history names its sender.

        The *kind* is that of the method where none is given. The block is cancelled when the client
        disconnects. Raises as `Database.connection` does.
        """
        kind = kind or ("read" if request.method in ("GET", "HEAD") else "change")
        async with (
            until_disconnected(request),
            self.database.connection(actor_of(request), kind=kind) as conn,
        ):
            yield conn

    async def has_ended(self, login: str) -> bool:
        """Whether the log-in with this digest was ended.

        False where the database does not answer: then no other query is answered either.
        """
        try:
            async with self.database.connection() as conn:
                return await logins.login_has_ended(conn, login)
        except (psycopg.Error, CoordError) as error:
            logger.debug("cannot check whether a log-in was ended: %s", error)
            return False

    async def end_login(self, request: Request) -> None:
        """End the log-in of the cookie of *request*: all its cookies are refused from now on."""
        login = self.sessions.login_of(request.cookies.get(COOKIE))
        if login:
            async with self.acting(request) as conn:
                await logins.end_login(conn, *login)

    async def plan(self, request: Request, feature_id: int) -> "Planned":
        """Plan a feature and store its plan as the sender of *request*; see `plan_stored`."""
        from pgcoord.planner.planning import plan_stored

        return await plan_stored(self.planner, lambda: self.acting(request), feature_id)

    async def plan_unless_planned(self, request: Request, feature_id: int) -> "Planned | None":
        """Call `plan` if the feature has neither a plan nor phases; else return None."""
        from pgcoord.planner.planning import plan_unless_planned

        return await plan_unless_planned(self.planner, lambda: self.acting(request), feature_id)


def state_of(request: HTTPConnection) -> AppState:
    """The state shared by the handlers of the application that *request* came to."""
    state: AppState = request.app.state.shared
    return state
