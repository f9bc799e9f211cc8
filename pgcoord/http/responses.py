"""Answers in JSON, and what each error means to a client: the one place that knows."""

import json
import logging
import os
from collections.abc import Mapping
from http import HTTPStatus
from typing import IO, Any

import psycopg
from psycopg_pool import PoolTimeout, TooManyRequests
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

from pgcoord.errors import (
    CannotStart,
    ChangedMeanwhile,
    CoordError,
    DatabaseUnusable,
    InvalidInput,
    InvalidPlan,
    NotFound,
    PlannerFailed,
    Refused,
    StaleAttempt,
)
from pgcoord.report import NotJson, NotSigned, WrongShape
from pgcoord.runs import logs

logger = logging.getLogger(__name__)

# The first that an error is an instance of.
_MEANINGS: tuple[tuple[type[Exception], int, str], ...] = (
    (NotSigned, 401, "not_signed"),
    (NotJson, 400, "not_json"),
    (NotFound, 404, "not_found"),
    (ChangedMeanwhile, 412, "changed_meanwhile"),
    (StaleAttempt, 409, "stale_attempt"),
    (Refused, 409, "refused"),
    (InvalidInput, 422, "invalid"),
    (PlannerFailed, 502, "planner_failed"),
    (DatabaseUnusable, 503, "unavailable"),
    (CannotStart, 503, "unavailable"),
    (psycopg.DataError, 422, "invalid"),
    (psycopg.errors.ProgramLimitExceeded, 422, "invalid"),
    (PoolTimeout, 503, "unavailable"),
    (TooManyRequests, 503, "unavailable"),
    (psycopg.OperationalError, 503, "unavailable"),
    (psycopg.InterfaceError, 503, "unavailable"),
)

_WORDS = {
    400: "malformed",
    401: "not_authenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
    429: "too_many_requests",
}


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
        return (json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


def refusal(status: int, error: str, reason: str, **more: Any) -> Response:
    """An answer that refuses: `error` for programs, `reason` for people."""
    return Json({"error": error, "reason": reason, **more}, status, **_HEADERS.get(status, {}))


def meaning(error: Exception) -> tuple[int, str]:
    """The status of an answer, and the word for programs; raises an error that nobody foresaw."""
    if isinstance(error, HTTPException):
        return error.status_code, _WORDS.get(error.status_code, "refused")
    for kind, status, name in _MEANINGS:
        if isinstance(error, kind):
            return status, name
    raise error


async def answer_error(request: Request, error: Exception) -> Response:
    """Say what went wrong."""
    return refusal(*meaning(error), _reason(error), **_details(error))


async def answer_http(request: Request, error: Exception) -> Response:
    """Say what Starlette found wrong: no such path, another method, too large a body."""
    assert isinstance(error, HTTPException)
    answer = refusal(*meaning(error), fault_of(request, error))
    answer.headers.update(error.headers or {})
    return answer


def fault_of(request: Request, error: HTTPException) -> str:
    """What Starlette found wrong, in words."""
    if error.detail != HTTPStatus(error.status_code).phrase:
        return error.detail
    return {  # the phrase says no more than the number
        404: f"there is nothing at {request.url.path}",
        405: f"there is no {request.method} for {request.url.path}",
    }.get(error.status_code, error.detail)


async def answer_fault(request: Request, error: Exception) -> Response:
    """Say that it is our fault; the traceback is in the log."""
    return refusal(500, "fault", "an error of the program; it is in the log of the server")


handlers: Mapping[Any, Any] = {
    HTTPException: answer_http,
    Exception: answer_fault,
    CoordError: answer_error,
    psycopg.Error: answer_error,
    PoolTimeout: answer_error,
    TooManyRequests: answer_error,
}


def _reason(error: Exception) -> str:
    if isinstance(error, PoolTimeout):
        return "the database cannot be reached, or is overloaded"
    if isinstance(error, psycopg.errors.ProgramLimitExceeded):
        return f"something in it is too long: {error.diag.message_primary}"
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return "the connection to the database was lost; the request may be repeated"
    return " ".join(str(error).split())


def _details(error: Exception) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if isinstance(error, CoordError) and error.hint:
        details["hint"] = error.hint
    if isinstance(error, InvalidPlan):
        details["problems"] = list(error.problems)
    if isinstance(error, WrongShape):
        details["faults"] = [
            {"field": each.field, "given": _shown(each.given), "expected": each.expected}
            for each in error.faults[:100]
        ]
    return details


def _shown(given: Any) -> Any:
    """What was given, short, and in characters that can be sent."""
    if given is None or isinstance(given, bool | int | float):
        return given
    return f"{given!r:.200}" if not isinstance(given, str) else ascii(given)[1:-1][:200]


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
        with self._log:
            await super().__call__(scope, receive, send)
