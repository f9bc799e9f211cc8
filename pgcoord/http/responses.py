"""JSON responses, and reading the body of a request up to a limit."""

import json
import os
from typing import IO, Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

from pgcoord.runs import logs

# Bytes of a body: a plan holds whole prompts, an event of GitHub the whole issue or pull request.
BODY_LIMIT = 4_194_304

# Bytes beyond the limit that are still read: most clients read the answer only after sending all.
_DISCARDED = 1_000_000

_HEADERS = {
    401: {"www_authenticate": "Bearer"},
    413: {"connection": "close"},  # the rest of the body is not read
    429: {"retry_after": "60"},
    503: {"retry_after": "1"},
}


class Json(JSONResponse):
    """A JSON response with readable characters that is never cached."""

    def __init__(self, content: Any, status_code: int = 200, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        super().__init__(content, status_code, {"cache-control": "no-store"} | named)

    def render(self, content: Any) -> bytes:
        """Encode *content* as one line of JSON, in UTF-8."""
        return (json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


def refusal(status: int, error: str, reason: str, **more: Any) -> Response:
    """Return an error response: *error* is a code for programs, *reason* a text for people."""
    return Json({"error": error, "reason": reason, **more}, status, **_HEADERS.get(status, {}))


async def read_body(request: Request, limit: int) -> bytes:
    """Return a body of type application/json, at most *limit* bytes; else raise 415 or 413."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, f"expected application/json, not {kind or 'nothing'!r:.60}")
    return await read_bytes(request, limit)


async def read_bytes(request: Request, limit: int) -> bytes:
    """Return the body of a request; raise 413 when it has more than *limit* bytes."""
    body, length = bytearray(), 0
    try:
        async for chunk in request.stream():
            length += len(chunk)
            if length <= limit:
                body += chunk
            elif length > limit + _DISCARDED:
                break
    except ClientDisconnect as error:  # nobody reads the answer; it is not a fault of pgcoord
        raise HTTPException(400, "the body ends before its length") from error
    if length > limit:
        raise HTTPException(413, f"the body may have {limit} bytes at most")
    return bytes(body)


class LogFile(FileResponse):
    """A response with a log file, or the part that a Range header requests; closes *log*.

    It has no length, which would be wrong when the process writes more.
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
