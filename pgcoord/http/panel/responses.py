"""Helpers for the handlers of the panel: they parse requests, and render pages.

An error is a page as well, with the message of the database or of the check that refused.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any
from urllib.parse import parse_qs, quote
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import psycopg
from psycopg_pool import PoolTimeout, TooManyRequests
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse

from pgcoord.errors import CoordError, DatabaseUnusable, InvalidInput, InvalidPlan, Locked, NotFound
from pgcoord.http.errors import answer_error, http_reason
from pgcoord.http.panel import format
from pgcoord.http.panel.live import Live, Tail, View
from pgcoord.http.proxy import prefix_of
from pgcoord.http.responses import read_bytes
from pgcoord.http.security import has_logged_in, may_change, sender_of
from pgcoord.http.state import state_of

# Bytes of a form without a plan in it.
_FORM = 16_384

# The largest form of the panel has a handful.
_MOST_FIELDS = 50

Handler = Callable[[Request], Awaitable[Response]]
Form = dict[str, str]


@dataclass(frozen=True)
class ErrorView:
    """An error for a page: heading, message and hint; *lines*: (number, fault) of a plan."""

    heading: str
    message: str = ""
    hint: str | None = None
    lines: list[tuple[str, str]] | None = None


_NOT_DONE = "Nothing was changed. Do it again when the page is live."

_ERRORS = (CoordError, psycopg.Error, PoolTimeout, TooManyRequests)


def error_page(handler: Handler) -> Handler:
    """Wrap *handler*: answer a `CoordError`, or an error of the database, with an error page.

    The status is that of the API for the same error. While the database is known not to answer,
    *handler* is not called.
    """

    @wraps(handler)
    async def answer(request: Request) -> Response:
        acts = request.method == "POST"
        try:
            state_of(request).feed.refuse_if_lost(_NOT_DONE if acts else None)
            return await handler(request)
        except _ERRORS as error:
            plain = await answer_error(request, error)
            context = {"error": error_view(error), "back": back_of(request), "title": "Refused"}
            if plain.status_code == 404:
                context["title"] = "Not found"
            elif isinstance(error, Locked):
                context["title"] = "Another session has locked it"
            elif plain.status_code == 503:
                context |= {"title": "The database does not answer", "away": True}
                if fault := state_of(request).coordinator.server_fault:
                    context["error"] = ErrorView("The database does not answer", fault)
                if not acts:
                    context["again"] = request.url.path
            page = render_page(request, "error.html", plain.status_code, **context)
            if plain.status_code == 503 and not acts:
                page.headers.update({"retry-after": "2", "refresh": "3"})
            return page

    return answer


def http_error_page(request: Request, error: HTTPException) -> Response:
    """Return one of Starlette's own HTTP errors as a page."""
    reason = http_reason(request, error)
    context = {
        "error": ErrorView("Refused", f"{reason[0].upper()}{reason[1:]}"),
        "back": back_of(request),
        "title": "There is no such page" if error.status_code == 404 else "Refused",
    }
    page = render_page(request, "error.html", error.status_code, **context)
    page.headers.update(error.headers or {})
    return page


def error_view(error: Exception) -> ErrorView:
    """Return the view of an error, with its SQLSTATE if the database refused."""
    cause = error.__cause__
    code = cause.sqlstate if isinstance(cause, psycopg.Error) else None
    hint = error.hint if isinstance(error, CoordError) else None
    if isinstance(error, InvalidPlan):
        lines = [_located(each) for each in error.problems]
        count = format.plural(len(lines), "error")
        return ErrorView(f"{count}, nothing was stored", lines=lines)
    if isinstance(error, DatabaseUnusable) or not isinstance(error, CoordError):
        return ErrorView("The database does not answer", str(error), hint)
    return ErrorView(f"Refused: {code}" if code else "Refused", str(error), hint)


def _located(problem: str) -> tuple[str, str]:
    _, line, words = problem.split(":", 2)
    return line, words.strip()


def back_of(request: Request) -> str:
    """Return the path of the page to which the action of a POST belongs; "/" for other requests."""
    parts = request.url.path.split("/")
    return quote("/".join(parts[:-1])) or "/" if request.method == "POST" else "/"


def redirect_after(request: Request, location: str | None = None) -> Response:
    """Redirect (303) to the page of the action, or to *location*, the path of what it created.

    The panel's script gets 204 instead, with *location* as Location: its page is live.
    """
    if request.headers.get("x-panel"):
        return Response(status_code=204, headers={"Location": location} if location else None)
    return RedirectResponse(location or back_of(request), 303)


# The cookie with the time zone for the panel; with a tilde it is the browser's, else it was chosen.
ZONE = "pgcoord_zone"


def zone_of(request: Request) -> ZoneInfo | None:
    """Return the time zone of the visitor's cookie; None, for the server's, if it is not valid."""
    name = request.cookies.get(ZONE, "").removeprefix("~")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}", name):
        return None
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        return None


def keep(request: Request, answer: Response, name: str, value: str) -> None:
    """Set a cookie for a year on *answer*, for the panel's path alone."""
    answer.set_cookie(
        name,
        value,
        max_age=31_536_000,
        path=f"{prefix_of(request.scope)}/",
        samesite="strict",
        secure=request.url.scheme == "https",
    )


def _personal(request: Request) -> dict[str, object]:
    """Return the template's variables on the visitor: permissions, name, address, time zone."""
    query = f"?{request.url.query}" if request.url.query else ""
    return {
        "address": f"{request.url.path}{query}",
        "zone_chosen": request.cookies.get(ZONE, "~")[:1] != "~",
        "may_change": may_change(request),
        "has_logged_in": has_logged_in(request),
        "actor": sender_of(request),
    }


def render_page(request: Request, template: str, status: int = 200, /, **context: Any) -> Response:
    """Render *template* with *context* as a page that is not live; *status* is the HTTP status."""
    page = state_of(request).templates.get_template(template)
    text = page.render(_personal(request) | context)
    return HTMLResponse(text, status, {"cache-control": "no-store"})


async def show(request: Request, view: View, tail: Tail | None = None, **extra: Any) -> Response:
    """Answer with the page of *view*, with one piece of it, or with the stream of its changes.

    The query's `piece` names a piece, `live` is the last event id of a stream. *tail*: the log that
    the stream follows. *extra*: further variables of the template. Raises `NotFound` for a piece.
    """
    live: Live = request.app.state.live
    screen = live.screen(view, zone_of(request))
    version = request.query_params.get("live")
    if name := request.query_params.get("piece"):
        drawn = await screen.piece(name)
        if drawn is None:
            raise NotFound(f"this page has no part {name!r:.60}", hint="Load it again.")
        return HTMLResponse(drawn, headers={"cache-control": "no-store"})
    if version is None:
        text = await screen.whole(**_personal(request), **extra)
        return HTMLResponse(text, headers={"cache-control": "no-store"})

    async def stream() -> AsyncIterator[str]:
        with live.viewing(screen):
            async for message in screen.stream(version, tail):
                yield message

    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)


def read_number(text: str, most: int = 2**63 - 1) -> int:
    """Parse a whole number with an absolute value of at most *most*. Raises `InvalidInput`."""
    try:
        number = int(text)
    except ValueError:
        number = most + 1
    if abs(number) > most:
        raise InvalidInput(f"{text!r:.60} is not a number", hint="A whole number is expected.")
    return number


def read_amount(text: str) -> float | None:
    """Parse an amount in US dollars, with or without $; None for "". Raises `InvalidInput`."""
    try:
        return float(text.strip().removeprefix("$")) if text.strip() else None
    except ValueError as error:
        raise InvalidInput(f"{text!r:.60} is not an amount", hint="Such as 5 or 2.50.") from error


def queue_id_of(request: Request) -> str:
    """Return the queue_id in the request's path. Raises `NotFound` if it has a NUL."""
    queue_id: str = request.path_params["queue_id"]
    if "\0" in queue_id:
        raise NotFound("there is no phase with NUL in its name")
    return queue_id


def schedule_of(request: Request) -> str:
    """Return the name of the schedule in the request's path."""
    name: str = request.path_params["schedule"]
    return name.replace("\0", "")


def feature_id_of(request: Request) -> int:
    """Return the id of the feature in the request's path. Raises `InvalidInput`."""
    return read_number(request.path_params["feature_id"], 2**31 - 1)


async def read_form(request: Request, limit: int = _FORM, most_fields: int = _MOST_FIELDS) -> Form:
    """Read a form of at most *limit* bytes; return {field: its last value}, files as text.

    Raises `HTTPException` with 400 for more than *most_fields*, or a body that is not a form.
    """
    body = await read_bytes(request, limit)
    kind = request.headers.get("content-type", "")
    if kind.startswith("multipart/form-data"):
        return await _read_parts(request.headers, body, most_fields)
    try:
        fields = parse_qs(
            body.decode(errors="replace"), keep_blank_values=True, max_num_fields=most_fields
        )
    except ValueError as error:
        raise HTTPException(400, f"a form may have {most_fields} fields at most") from error
    return {name: values[-1] for name, values in fields.items()}


async def _read_parts(headers: Headers, body: bytes, most_fields: int) -> Form:
    """Parse a multipart form from *body*; nested parts stay text."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        headers,
        stream(),
        max_files=1,
        max_fields=most_fields,
        max_part_size=len(body),
    )
    try:
        parts = await parser.parse()
    except (MultiPartException, ValueError, LookupError) as error:  # LookupError: unknown charset
        raise HTTPException(400, f"not a form: {error!s:.200}") from error
    try:
        return {name: await _text_of(part) for name, part in parts.multi_items()}
    finally:
        await parts.close()


async def _text_of(part: UploadFile | str) -> str:
    text = part if isinstance(part, str) else (await part.read()).decode(errors="replace")
    return text.removeprefix("\ufeff")


def reason_of(form: Form) -> str | None:
    """Return the field `reason`, without NUL, at most 1000 characters; None if it is empty."""
    return form.get("reason", "").replace("\0", "").strip()[:1000] or None
