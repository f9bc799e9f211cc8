"""State shared by the request handlers: connection pool, event feed, permissions, coordinator.

A handler gets it with `state_of(request)`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property

import jinja2
from psycopg_pool import AsyncConnectionPool
from starlette.requests import HTTPConnection

from pgcoord import assets
from pgcoord.coordination.coordinator import Coordinator
from pgcoord.database import connect as database
from pgcoord.database import session
from pgcoord.database._sql import Connection
from pgcoord.http.feed import Feed
from pgcoord.http.metrics import Metrics
from pgcoord.http.security import Access, Sessions, actor_of
from pgcoord.planner.planning import FeaturePlanner, Planned, plan_stored, plan_unless_planned


class Database:
    """The connections on which requests are done; a dead one is never given out."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.pool = AsyncConnectionPool(
            database.with_defaults(dsn),
            configure=database.own_session,
            min_size=1,
            max_size=10,
            timeout=5,
            reconnect_timeout=1,  # then it is tried anew when next asked for, not ever more seldom
            open=False,
            check=AsyncConnectionPool.check_connection,
            kwargs={"autocommit": True},
        )

    @asynccontextmanager
    async def connection(self, actor: str | None = None) -> AsyncIterator[Connection]:
        """A connection; what is done on it is logged as done by `actor`.

        Waits 5 s for one at most. Raises `psycopg_pool.PoolTimeout`.
        """
        async with self.pool.connection() as conn:
            if actor is not None:
                await session.act_as(conn, actor)
            yield conn


@dataclass
class AppState:
    """What the request handlers share."""

    database: Database
    feed: Feed
    access: Access
    coordinator: Coordinator
    planner: FeaturePlanner
    repository: str | None = None  # its page, for links to issues and pull requests
    obstacle: str | None = "starting"  # why nothing can be coordinated yet
    readiness_check: asyncio.Task[str | None] | None = None  # shared by concurrent /readyz requests

    @cached_property
    def metrics(self) -> Metrics:
        """What is counted for monitors."""
        metrics = Metrics()
        metrics.watch(self.coordinator, self.feed)
        return metrics

    @cached_property
    def sessions(self) -> Sessions:
        """The log-ins of people."""
        return Sessions(self.access)

    @cached_property
    def templates(self) -> jinja2.Environment:
        """The templates of the panel; what is filled in is escaped."""
        return jinja2.Environment(
            loader=jinja2.FileSystemLoader(assets.WEB / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    @asynccontextmanager
    async def acting(self, request: HTTPConnection) -> AsyncIterator[Connection]:
        """A connection on which what is done is logged as done by who sent the request."""
        async with self.database.connection(actor_of(request)) as conn:
            yield conn

    async def plan(self, request: HTTPConnection, feature_id: int) -> Planned:
        """Plan a feature, and store its plan, as who sent the request; see `plan_stored`."""
        return await plan_stored(self.planner, lambda: self.acting(request), feature_id)

    async def plan_unless_planned(self, request: HTTPConnection, feature_id: int) -> Planned | None:
        """As `plan`, for a feature that has neither a plan nor phases."""
        return await plan_unless_planned(self.planner, lambda: self.acting(request), feature_id)


def state_of(request: HTTPConnection) -> AppState:
    """The state shared by the handlers of the application that *request* came to."""
    state: AppState = request.app.state.shared
    return state
