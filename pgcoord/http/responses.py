"""JSON responses, and reading the body of a request up to a limit."""

import json
import os
from typing import IO, Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

from pgcoord.runs import logs

# Bytes beyond the limit that are read all the same: most senders hear an answer only after the end.
_DISCARDED = 1_000_000

_HEADERS = {
    401: {"www_authenticate": "Bearer"},
    413: {"connection": "close"},  # the rest of the body is not read
    503: {"retry_after": "1"},
}


class Json(JSONResponse):
    """JSON as people read it, that nobody keeps a copy of."""

    def __init__(self, content: Any, status_code: int = 200, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        super().__init__(content, status_code, {"cache-control": "no-store"} | named)

    def render(self, content: Any) -> bytes:
        """Encode *content* as one line of JSON, in UTF-8."""
        return (json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


def refusal(status: int, error: str, reason: str, **more: Any) -> Response:
    """An answer that refuses: `error` for programs, `reason` for people."""
    return Json({"error": error, "reason": reason, **more}, status, **_HEADERS.get(status, {}))


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request that says it is JSON, of `limit` bytes at most."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, f"expected application/json, not {kind or 'nothing'!r:.60}")
    return await read_bytes(request, limit)


async def read_bytes(request: Request, limit: int) -> bytes:
    """The body of a request; 413 when it has more than `limit` bytes, of which no more are kept."""
    body, length = bytearray(), 0
    async for chunk in request.stream():
        length += len(chunk)
        if length <= limit:
            body += chunk
        elif length > limit + _DISCARDED:
            break
    if length > limit:
        raise HTTPException(413, f"the body may have {limit} bytes at most")
    return bytes(body)


class LogFile(FileResponse):
    """A log to its end, or the part that a Range asks for; `log` is closed when it was sent.

    The whole is sent without a length, which would be wrong once the process writes on.
    """

    def __init__(self, log: IO[bytes], filename: str | None = None) -> None:
        super().__init__(
            logs.reopened(log),
            media_type="text/plain; charset=utf-8",
            filename=filename,
            stat_result=os.fstat(log.fileno()),
        )
        del self.headers["content-length"]
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file, then close it."""
        with self._log:
            await super().__call__(scope, receive, send)
