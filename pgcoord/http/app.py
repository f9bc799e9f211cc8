"""The Starlette application: routes, middleware and background tasks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pgcoord import assets
from pgcoord.http import api, errors, health, jobs, login, openapi, streams, webhook
from pgcoord.http import github_webhook as github
from pgcoord.http.panel import routes as panel
from pgcoord.http.panel.responses import answer_http_error
from pgcoord.http.responses import refusal
from pgcoord.http.security import Guard
from pgcoord.http.state import AppState


def make_app(state: AppState) -> ASGIApp:
    """Return the application of one database; it starts even if the database is down."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await state.database.pool.open()
        try:
            async with asyncio.TaskGroup() as tasks:
                following = tasks.create_task(state.feed.run())
                drawing = tasks.create_task(app.state.live.run())
                yield
                drawing.cancel()
                following.cancel()
        finally:
            await state.database.pool.close()

    routes: list[BaseRoute] = [
        *health.routes,
        *login.routes,
        *webhook.routes,
        *github.routes,
        *jobs.routes,
        *streams.routes,
        *openapi.routes,
        *api.routes,
        *panel.routes,
        Mount("/static", StaticFiles(directory=assets.WEB / "static", check_dir=False)),
    ]
    handlers = {**errors.handlers, HTTPException: answer_http_error}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    app.state.shared = state
    app.state.live = panel.make_live(state)
    app.router.redirect_slashes = False
    return _without_trailing_slash(
        _answering_at_the_end(Guard(app, state.access, state.sessions, state.has_ended))
    )


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
