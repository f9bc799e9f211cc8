"""The HTTP status and body of each error: the only table of them."""

import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import psycopg
from psycopg_pool import PoolTimeout, TooManyRequests
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pgcoord.errors import (
    CannotStart,
    ChangedMeanwhile,
    CoordError,
    DatabaseUnusable,
    InvalidInput,
    InvalidPlan,
    Locked,
    NotFound,
    PlannerFailed,
    Refused,
    StaleAttempt,
    message_of,
)
from pgcoord.http.responses import refusal
from pgcoord.messages.signing import NotJson, NotSigned, WrongShape

# An error gets the first row of which it is an instance.
_STATUSES: tuple[tuple[type[Exception], int, str], ...] = (
    (NotSigned, 401, "not_signed"),
    (NotJson, 400, "not_json"),
    (NotFound, 404, "not_found"),
    (ChangedMeanwhile, 412, "changed_meanwhile"),
    (StaleAttempt, 409, "stale_attempt"),
    (Locked, 503, "locked"),
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


def status_of(error: Exception) -> tuple[int, str]:
    """Return the HTTP status and the error code of *error*; raise an unexpected one again."""
    if isinstance(error, HTTPException):
        return error.status_code, _WORDS.get(error.status_code, "refused")
    for kind, status, name in _STATUSES:
        if isinstance(error, kind):
            return status, name
    raise error


async def answer_error(request: Request, error: Exception) -> Response:
    """Answer with the status, reason and hint of *error*."""
    return refusal(*status_of(error), _reason(error), **_details(error))


async def answer_http(request: Request, error: Exception) -> Response:
    """Answer an error of Starlette: unknown path, wrong method, body too large."""
    assert isinstance(error, HTTPException)
    answer = refusal(*status_of(error), http_reason(request, error))
    answer.headers.update(error.headers or {})
    return answer


def http_reason(request: Request, error: HTTPException) -> str:
    """Return the reason of an error of Starlette."""
    if error.detail != HTTPStatus(error.status_code).phrase:
        return error.detail
    return {  # the phrase repeats the status
        404: f"there is nothing at {request.url.path}",
        405: f"there is no {request.method} for {request.url.path}",
    }.get(error.status_code, error.detail)


async def answer_nobody(request: Request, error: Exception) -> Response:
    """End a request whose client has disconnected; nobody reads this answer."""
    return Response(status_code=400)


async def answer_fault(request: Request, error: Exception) -> Response:
    """Answer an unexpected error with 500; its traceback is in the log."""
    return refusal(500, "fault", "a fault of pgcoord; the log of the server has the details")


handlers: Mapping[Any, Any] = {
    HTTPException: answer_http,
    Exception: answer_fault,
    CoordError: answer_error,
    psycopg.Error: answer_error,
    PoolTimeout: answer_error,
    TooManyRequests: answer_error,
    ClientDisconnect: answer_nobody,
}


def _reason(error: Exception) -> str:
    if isinstance(error, PoolTimeout):
        return "the database cannot be reached, or is overloaded"
    if isinstance(error, TooManyRequests):  # an OperationalError, though no connection was lost
        return str(error)
    if isinstance(error, psycopg.errors.ProgramLimitExceeded):
        return f"something in it is too long: {error.diag.message_primary}"
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return "the connection to the database was lost; the request may be repeated"
    return message_of(error)


def _details(error: Exception) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if isinstance(error, CoordError) and error.hint:
        details["hint"] = error.hint
    if isinstance(error, NotSigned):
        # A node whose clock is off learns the time, and signs once more.
        details["now"] = time.time()
    if isinstance(error, InvalidPlan):
        details["problems"] = list(error.problems)
    if isinstance(error, WrongShape):
        details["faults"] = [
            {"field": each.field, "given": _shown(each.given), "expected": each.expected}
            for each in error.faults[:100]
        ]
    return details


def _shown(value: Any) -> Any:
    """Return a short form of a given value, of characters that JSON can hold."""
    if value is None or isinstance(value, bool | int | float):
        return value
    return f"{value!r:.200}" if not isinstance(value, str) else ascii(value)[1:-1][:200]
