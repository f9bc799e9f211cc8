"""Limits on connections and on slow requests.

uvicorn waits for the rest of a request without limit. Only waits for the client are limited here:
streams and WebSockets, where the client waits for the server, stay open.
"""

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


@dataclass(frozen=True)
class Limits:
    """The limits of one server; times in seconds."""

    connections: int = 500  # with log files, well below the usual limit of 1,024 open files
    headers: float = 10  # from the connection, or the first byte of a later request, to their end
    body: float = 30  # between two parts of a body
    refusal: float = 2  # until a connection that was refused is closed


class BoundedProtocol(H11Protocol):
    """uvicorn's connection, refused with 503 when there are too many, with 408 when it is too slow.

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
        # WebSockets are counted as well.
        if len(self.connections) > 2 * self._limits.connections:
            transport.abort()
        elif len(self.connections) > self._limits.connections:
            self._refuse(503, "unavailable", "too many connections are open; try again soon")
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
