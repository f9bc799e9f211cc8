"""The event streams: the WebSocket /ws/queue, and server-sent events at GET /events.

Both send the same messages, each rendered once. A client resumes after the `id` of the last message
it received, on any server of the same database.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, suppress
from typing import Any, Generic

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from pgcoord.http.feed import Cursor, Item, Mailbox, Message
from pgcoord.http.responses import refusal
from pgcoord.http.state import state_of

# Seconds between two pings to a browser, and until a close has to be answered.
_PING_EVERY = 15
_CLOSING = 2

_RESTARTING = 1012
_TRY_AGAIN_LATER = 1013


async def queue_socket(websocket: WebSocket) -> None:
    """Send a snapshot, or the events after `?after=`, then new events."""
    try:
        after = _cursor(websocket.query_params.get("after"))
    except ValueError as error:
        await websocket.send_denial_response(refusal(422, "invalid", f"after: {error}"))
        return
    await websocket.accept()
    with state_of(websocket).feed.subscribe(after) as mailbox:

        async def send() -> None:
            async for message in mailbox:
                await websocket.send({"type": "websocket.send", "text": message.text})

        await _until_first(send(), _gone(websocket.receive), mailbox.overflowed.wait())
    slow = mailbox.overflowed.is_set()
    with suppress(TimeoutError, RuntimeError, WebSocketDisconnect):
        async with asyncio.timeout(_CLOSING):
            code = _TRY_AGAIN_LATER if slow else _RESTARTING
            await websocket.close(code, "too slow" if slow else "the server stops")


async def events(request: Request) -> Response:
    """Send the same messages as server-sent events, from the position Last-Event-ID on."""
    position = request.headers.get("last-event-id") or request.query_params.get("after")
    try:
        after = _cursor(position)
    except ValueError as error:
        return refusal(422, "invalid", f"Last-Event-ID: {error}")
    return EventStream(state_of(request).feed.subscribe(after), _sent_event)


class EventStream(Response, Generic[Item]):
    """A response that sends the items of a mailbox until the client disconnects."""

    media_type = "text/event-stream"

    def __init__(
        self, mailbox: AbstractContextManager[Mailbox[Item]], encode: Callable[[Item], str]
    ) -> None:
        """*encode* returns the text of an item; see `sent_event`."""
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._mailbox = mailbox
        self._encode = encode

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send each item of the mailbox until the client disconnects or the server stops."""

        async def send_text(text: str, *, more: bool = True) -> None:
            body = {"type": "http.response.body", "body": text.encode(), "more_body": more}
            await send(body)

        async def send_items(mailbox: Mailbox[Item]) -> None:
            async for item in mailbox:
                await send_text(self._encode(item))

        async def ping() -> None:
            while True:
                await asyncio.sleep(_PING_EVERY)
                await send_text(":\n\n")

        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        with self._mailbox as mailbox:
            await send_text("retry: 1000\n\n")
            await _until_first(
                send_items(mailbox), ping(), _gone(receive), mailbox.overflowed.wait()
            )
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(_CLOSING):
                await send_text("", more=False)


def sent_event(data: str, *, position: str | None = None, name: str | None = None) -> str:
    """Return a server-sent event; a browser that reconnects sends its last *position*."""
    lines = [f"event: {name}"] if name else []
    lines += [f"id: {position}"] if position else []
    lines += [f"data: {line}" for line in data.split("\n")]
    return "\n".join(lines) + "\n\n"


def _cursor(text: str | None) -> Cursor | None:
    return Cursor.parse(text) if text else None


def _sent_event(message: Message) -> str:
    return sent_event(message.text, position=str(message.cursor) if message.cursor else None)


async def _gone(receive: Receive) -> None:
    """Wait until the client disconnects; ignore what it sends."""
    while not (await receive())["type"].endswith(".disconnect"):
        pass


async def _until_first(*several: Coroutine[Any, Any, object]) -> None:
    """Run all coroutines until the first of them ends, then cancel the others."""
    tasks = [asyncio.ensure_future(each) for each in several]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception) and not isinstance(outcome, OSError):
            raise outcome


routes: list[BaseRoute] = [
    WebSocketRoute("/ws/queue", queue_socket),
    WebSocketRoute("/api/v1/ws/queue", queue_socket),
    Route("/events", events),
]
