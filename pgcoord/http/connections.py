"""Bounds of what a client may hold open without asking for anything: connections, and waits.

uvicorn waits for the rest of a request for ever. Only waits for the client are limited: streams and
WebSockets, where the client waits for the server, stay open.
"""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


@dataclass(frozen=True)
class Limits:
    """What a server bears; lengths of time in seconds."""

    connections: int = 500  # with the files of phases, well below the usual 1,024 of a process
    headers: float = 10  # from the connection, or the first byte of a further request, to their end
    body: float = 30  # between two pieces of a body
    refusal: float = 2  # until a connection that was refused is closed


class BoundedProtocol(H11Protocol):
    """uvicorn's connection, refused with 503 when there are too many and 408 when it is too slow.

    Every instance made with the same `uvicorn.Config` counts towards the same bound.
    """

    def __init__(self, limits: Limits, **given: Any) -> None:
        super().__init__(**given)
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request on the new connection, or refuse it."""
        super().connection_made(transport)
        # WebSockets are among them, too.
        if len(self.connections) > 2 * self._limits.connections:
            transport.abort()
        elif len(self.connections) > self._limits.connections:
            self._refuse(503, "unavailable", "too many connections are open; try again soon")
        else:
            self._start_timer(self._limits.headers)

    def data_received(self, data: bytes) -> None:
        """Take what the client sends, and wait for the rest of its request."""
        if not self._refused:
            super().data_received(data)
            self._wait_for_client()

    def on_response_complete(self) -> None:
        """Go on with the next request, of which a part may be here already."""
        super().on_response_complete()
        if self.conn.their_state is not h11.IDLE:  # then uvicorn's limit of an idle one holds
            self._wait_for_client()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_timer()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close the connection once its request is answered."""
        if self._refused:
            self.transport.abort()
        else:
            super().shutdown()

    def _wait_for_client(self) -> None:
        if self.transport.get_protocol() is not self:  # a WebSocket now, which has its own limits
            self._stop_timer()
        elif self.conn.their_state is h11.SEND_BODY:
            self._start_timer(self._limits.body)
        elif self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self._timer is None:  # however many pieces the headers come in
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
        """Answer without a request; leave a moment to read that, for a reset would take it away."""
        self._refused = True
        body = json.dumps({"error": error, "reason": reason}) + "\n"
        phrase = {408: "Request Timeout", 503: "Service Unavailable"}[status]
        retry = "retry-after: 1\r\n" if status == 503 else ""
        self.transport.write(
            f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\n{retry}"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode()
        )
        self.transport.write_eof()
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._start_timer(self._limits.refusal)
