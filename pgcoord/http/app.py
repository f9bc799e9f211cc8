"""The Starlette application: routes, middleware and background tasks.

The panel is imported when first a page is asked for: with Jinja it takes 3 MB, and many
coordinators only answer programs.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pgcoord import assets
from pgcoord.http import api, errors, health, jobs, openapi, streams, webhook
from pgcoord.http import github_webhook as github
from pgcoord.http.responses import refusal
from pgcoord.http.security import Guard
from pgcoord.http.state import AppState

if TYPE_CHECKING:
    from pgcoord.http.panel.live import Live


def make_app(state: AppState) -> ASGIApp:
    """Return the application of one database; it starts even if the database is down."""
    panel = _Panel(state)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await state.database.pool.open()
        try:
            async with asyncio.TaskGroup() as app.state.tasks:
                following = app.state.tasks.create_task(state.feed.run())
                yield
                panel.close()
                following.cancel()
        finally:
            await state.database.pool.close()

    routes: list[BaseRoute] = [
        *health.routes,
        *webhook.routes,
        *github.routes,
        *jobs.routes,
        *streams.routes,
        *openapi.routes,
        *api.routes,
        Mount("/static", StaticFiles(directory=assets.WEB / "static", check_dir=False)),
        panel,
    ]
    handlers = {**errors.handlers, HTTPException: panel.answer_http_error}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    app.state.shared = state
    app.router.redirect_slashes = False
    return _without_trailing_slash(
        _answering_at_the_end(Guard(app, state.access, state.sessions, state.has_ended))
    )


class _Panel(BaseRoute):
    """Stands last in the routes for those of the panel, which replace it at the first request."""

    def __init__(self, state: AppState) -> None:
        self._state = state
        self._loading = asyncio.Lock()
        self._live: Live | None = None

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match each HTTP request that no other route matches."""
        return (Match.FULL if scope["type"] == "http" else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Import the panel, and route the request again."""
        await self._load(scope["app"])
        await scope["app"].router(scope, receive, send)

    async def _load(self, app: Starlette) -> None:
        async with self._loading:
            if self._live is None:
                # In a thread, so that the coordinator, on the same loop, works on meanwhile.
                panel = await asyncio.to_thread(_import_panel)
                self._live = app.state.live = panel.make_live(self._state, app.state.tasks)
                app.router.routes[-1:] = panel.routes

    async def answer_http_error(self, request: Request, error: Exception) -> Response:
        """Answer one of Starlette's errors: as a page if the client takes HTML, else as the API."""
        assert isinstance(error, HTTPException)
        if "text/html" not in request.headers.get("accept", "") or request.method == "HEAD":
            return await errors.answer_http(request, error)
        await self._load(request.app)
        from pgcoord.http.panel.responses import http_error_page

        return http_error_page(request, error)

    def close(self) -> None:
        """Cancel the tasks of all screens, if there are any."""
        if self._live:
            self._live.close()


def _import_panel() -> ModuleType:
    from pgcoord.http.panel import routes

    return routes


def _answering_at_the_end(app: ASGIApp) -> ASGIApp:
    """Answer 503 to a request that is cancelled because the server stops."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        began = False

        async def noted(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await app(scope, receive, noted)
        except asyncio.CancelledError:
            if scope["type"] == "http" and not began:
                reason = "the server is stopping; the request may be repeated"
                await refusal(503, "unavailable", reason)(scope, receive, send)

    return answer


def _without_trailing_slash(app: ASGIApp) -> ASGIApp:
    """Accept every path with a trailing slash as well."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and scope["path"] != "/":
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        await app(scope, receive, send)

    return answer
