"""Limits on connections and on slow requests.

uvicorn waits for the rest of a request without limit. Only waits for the client are limited here:
streams and WebSockets, where the client waits for the server, stay open.
"""

import asyncio
import ipaddress
import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from pgcoord.http.responses import refusal

_TOO_MANY = "too many connections of this host are open; close some, or try again soon"


@dataclass(frozen=True)
class Limits:
    """The limits of one server; times in seconds."""

    connections: int = 500  # with log files, well below the usual limit of 1,024 open files
    per_host: int = 250  # connections of one host; of one behind a trusted proxy: requests
    headers: float = 10  # from the connection, or the first byte of a later request, to their end
    body: float = 30  # between two parts of a body
    refusal: float = 2  # until a connection that was refused is closed


@lru_cache(1024)
def host_of(address: str) -> str:
    """Return what is counted as one host: an IPv4 address, the first 64 bits of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # a trusted proxy may give a name
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(parsed.ipv4_mapped or parsed.exploded[:19])
    return address


class BoundedProtocol(H11Protocol):
    """uvicorn's connection, refused with 503 when there are too many, with 408 when it is too slow.

    Every instance made with the same `uvicorn.Config` counts towards the same bounds. Connections
    from an address that *is_proxy* says true of do not count towards those of their host.
    """

    def __init__(self, limits: Limits, is_proxy: Callable[[str], bool], **given: Any) -> None:
        super().__init__(**given)
        self._limits = limits
        self._is_proxy = is_proxy
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request on the new connection, or refuse it."""
        super().connection_made(transport)
        # WebSockets are counted as well. So are refused ones until they are closed, few of a host.
        limits, total, ours = self._limits, len(self.connections), self._of_this_host()
        if total > 2 * limits.connections or ours > 1.2 * limits.per_host:
            transport.abort()
        elif total > limits.connections:
            self._refuse(503, "unavailable", "too many connections are open; try again soon")
        elif ours > limits.per_host:
            self._refuse(503, "unavailable", _TOO_MANY)
        else:
            self._start_timer(self._limits.headers)

    def data_received(self, data: bytes) -> None:
        """Process data of the client, and limit the wait for the rest of its request."""
        if not self._refused:
            super().data_received(data)
            self._wait_for_client()

    def on_response_complete(self) -> None:
        """Continue with the next request, which may have arrived in part."""
        super().on_response_complete()
        if self.conn.their_state is not h11.IDLE:  # else uvicorn's own limit applies
            self._wait_for_client()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close the connection after the response."""
        if self._refused:
            self.transport.abort()
        else:
            super().shutdown()

    def _of_this_host(self) -> int:
        """Count the open connections of this one's host; 0 for those of a proxy, or for few."""
        few = len(self.connections) <= self._limits.per_host
        if few or self.client is None or self._is_proxy(self.client[0]):
            return 0
        host = host_of(self.client[0])
        clients = (getattr(each, "client", None) for each in self.connections)
        return sum(1 for client in clients if client and host_of(client[0]) == host)

    def _wait_for_client(self) -> None:
        if self.transport.get_protocol() is not self:  # a WebSocket now, which has its own limits
            self._stop_timer()
        elif self.conn.their_state is h11.SEND_BODY:
            self._start_timer(self._limits.body)
        elif self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self._timer is None:  # once, however many parts the headers arrive in
            self._start_timer(self._limits.headers)

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._give_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self._refused:
            self.transport.abort()
        elif self.conn.their_state is h11.SEND_BODY and self.flow.read_paused:
            self._start_timer(self._limits.body)  # the application reads slowly, not the client
        elif self.conn.their_state is h11.SEND_BODY and self.cycle.response_started:
            self.transport.close()
        else:
            self._refuse(408, "timeout", "the rest of the request did not come in time")

    def _refuse(self, status: int, error: str, reason: str) -> None:
        """Send an error without a request; close later, as a reset could discard the answer."""
        self._refused = True
        body = json.dumps({"error": error, "reason": reason}) + "\n"
        phrase = {408: "Request Timeout", 503: "Service Unavailable"}[status]
        retry = "retry-after: 1\r\n" if status == 503 else ""
        self.transport.write(
            f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\n{retry}"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode()
        )
        with suppress(OSError):  # the client is gone
            self.transport.write_eof()
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._start_timer(self._limits.refusal)


class SharedByHosts:
    """Bounds how many requests run at once for one host behind trusted proxies.

    Streams and WebSockets are requests that run as long as they are open.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most
        self._running: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it with 503 (a WebSocket is closed)."""
        host = host_of(scope["client"][0]) if scope.get("client") else ""
        if self._running[host] >= self._most:
            if scope["type"] == "websocket":
                await receive()
            await refusal(503, "unavailable", _TOO_MANY)(scope, receive, send)
            return
        self._running[host] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._running[host] -= 1
            if not self._running[host]:
                del self._running[host]
