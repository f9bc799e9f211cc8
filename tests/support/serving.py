"""Shared by tests of the HTTP server: the application on a real port, and clients of it."""

import asyncio
import base64
import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from pgcoord.configuration.model import GitHub, Planner, Pool, Server, Workflow
from pgcoord.http.access import read_access
from pgcoord.http.connections import Limits
from pgcoord.http.feed import Feed
from pgcoord.http.pool import Database
from pgcoord.http.server import serving
from pgcoord.http.sockets import bind, url_of
from pgcoord.http.state import AppState
from pgcoord.messages import signing
from pgcoord.planner.planning import FeaturePlanner
from support import PATIENCE
from support.coordination import make_coordinator, scripts

SECRET = "whsec_" + base64.b64encode(b"x" * 32).decode()


@dataclass
class Site:
    """A served application, and a client that talks to it."""

    url: str
    state: AppState
    client: httpx2.AsyncClient

    @property
    def socket_url(self) -> str:
        return self.url.replace("http", "ws", 1)

    async def report(
        self, body: object, secret: str | None = SECRET, **headers: str
    ) -> httpx2.Response:
        """Send a report, signed unless there is no secret."""
        return await self.client.post(
            "/workflow-complete", **signed(body, secret, message_id=None, headers=headers)
        )


def signed(
    body: object,
    secret: str | None,
    *,
    message_id: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The arguments of a POST that reports `body`; bytes are sent as they are."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"content-type": "application/json"}
    if secret is not None:
        given |= signing.sign_body(secret, content, message_id).headers
    return {"content": content, "headers": given | dict(headers or {})}


@contextlib.asynccontextmanager
async def served(
    dsn: str,
    folder: Path,
    *,
    leads: bool = True,
    work: Workflow | None = None,
    pool: Pool | None = None,
    environment: Mapping[str, str] | None = None,
    planner: Planner | None = None,
    unsigned_webhooks: bool = False,
    github: GitHub | None = None,
    trusted_proxies: tuple[str, ...] = (),
    public_url: str | None = None,
    tokens: tuple[str, ...] = (),
    limits: Limits | None = None,
    patience: float = 2 * PATIENCE,
) -> AsyncIterator[Site]:
    """Serve on a free port, beside a coordinator (which may not run), until the block ends."""
    with bind("127.0.0.1", 0) as taken:
        url = url_of(taken)
        access = read_access(
            Server(
                webhook_secrets=("TEST_SECRET",),
                trusted_proxies=trusted_proxies,
                public_url=public_url,
                tokens=tokens,
            ),
            {"TEST_SECRET": SECRET, **(environment or {})},
            address="127.0.0.1",
            name="127.0.0.1",
            unsigned_webhooks=unsigned_webhooks,
            github=github,
        )
        coordinator = make_coordinator(
            dsn,
            folder,
            work or scripts(environment=("PYTHONPATH",)),
            url=url,
            github=github,
            environment={**os.environ, **(environment or {})},
            pool=pool,
        )
        state = AppState(
            Database(dsn),
            Feed(dsn),
            access,
            coordinator,
            lambda: FeaturePlanner(planner or Planner(), dict(os.environ), folder),
            repository=github.page if github else None,
            obstacle=None,
        )
        async with asyncio.timeout(patience), serving(state, taken, limits=limits):
            running = asyncio.create_task(coordinator.run()) if leads else None
            async with httpx2.AsyncClient(base_url=url, timeout=PATIENCE) as client:
                try:
                    yield Site(url, state, client)
                finally:
                    coordinator.stop()
                    if running:
                        await running
