"""Serves the application in a running event loop, until stopped."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import uvicorn
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware
from starlette.types import ASGIApp

from pgcoord.http.app import make_app
from pgcoord.http.connections import BoundedProtocol, Limits, SharedByHosts
from pgcoord.http.proxy import Proxied
from pgcoord.http.state import AppState

# Seconds for streams and requests to end.
_GRACE = 2


@asynccontextmanager
async def serving(
    state: AppState, listening: socket.socket, *, limits: Limits | None = None
) -> AsyncIterator[None]:
    """Serve on the socket *listening* until the block ends; then end all streams.

    Returns within seconds. Clients that go past *limits* are refused.
    """
    limits = limits or Limits()
    app, access = make_app(state), state.access
    shared = SharedByHosts(app, limits.per_host)
    proxied = Proxied(app, shared, access.trusted_proxies, access.public_url)
    config = uvicorn.Config(
        _compressing(proxied),
        http=partial(BoundedProtocol, limits, proxied.is_proxy),  # type: ignore[arg-type]
        proxy_headers=False,  # see Proxied: uvicorn would trust every local client
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        ws=_web_socket,  # type: ignore[arg-type]
        ws_per_message_deflate=False,  # many small messages: compression costs more than it saves
        ws_max_size=65_536,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=_GRACE,
    )
    server = _Server(config)
    served = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield
    finally:
        state.feed.close()
        server.stop()
        await served


def _web_socket(**given: Any) -> asyncio.Protocol:
    """Return uvicorn's protocol of a WebSocket; the first one imports it."""
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

    return WebSocketsSansIOProtocol(**given)


def _compressing(app: ASGIApp) -> ASGIApp:
    """Compress pages and JSON for clients that take it, but no logs, which may grow meanwhile."""
    excluded = (*DEFAULT_EXCLUDED_CONTENT_TYPES, "text/plain")
    return GZipMiddleware(app, minimum_size=1000, compresslevel=4, exclude_content_types=excluded)


class _WithoutRefusals(logging.Filter):
    """Drops what uvicorn logs as an error: a WebSocket handshake that was refused."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.msg != "ASGI callable returned without completing handshake."


logging.getLogger("uvicorn.error").addFilter(_WithoutRefusals())


class _Server(uvicorn.Server):
    """A uvicorn server without signal handlers, and without a check ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        self.should_exit = True
        self._stopping.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        await self._stopping.wait()
