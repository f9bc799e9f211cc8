"""The panel: live pages that show and control the installation.

A page is answered whole, and works without a script; with `?live=…` the same path answers with the
stream of its changes. Actions are forms, each posted to its own path; one that destroys work has a
page before it that asks, and previews the changes.
"""

import asyncio
import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, fields
from datetime import date

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from pgcoord import assets
from pgcoord.database import panel
from pgcoord.database.history import HistoryEvent
from pgcoord.database.states import ENDED
from pgcoord.errors import InvalidInput, NotFound
from pgcoord.http import login
from pgcoord.http.panel import actions, edit, format, several
from pgcoord.http.panel import phase as phase_pages
from pgcoord.http.panel import plan as plan_pages
from pgcoord.http.panel.live import Live
from pgcoord.http.panel.pages import EVENTS, FeaturePage, History, Overview, SchedulePage
from pgcoord.http.panel.responses import (
    ZONE,
    error_page,
    feature_id_of,
    keep,
    read_number,
    schedule_of,
    show,
    zone_of,
)
from pgcoord.http.proxy import prefix_of
from pgcoord.http.state import AppState, state_of


def make_live(state: AppState, tasks: asyncio.TaskGroup) -> Live:
    """Return the screens for *state*, after adding the filters and globals of their templates.

    *tasks* runs those that have viewers.
    """
    state.templates.filters.update(format.FILTERS)
    state.templates.globals.update(
        states=format.STATES,
        ended=ENDED,
        percent=format.percent,
        plural=format.plural,
        issue=lambda number: _link(state, "issues", number),
        pull_request=lambda number: _link(state, "pull", number),
        assets_version=_assets_version(),
        page_class="",
        here="",
        seen="",
    )
    return Live(state.feed, state.database.connection, state.templates, tasks)


def _link(state: AppState, kind: str, number: int) -> Markup:
    if state.repository is None:
        return Markup('<span class="issue">#{}</span>').format(number)
    return Markup('<a class="issue" href="{}/{}/{}" rel="noreferrer">#{}</a>').format(
        state.repository, kind, number, number
    )


def _assets_version() -> str:
    files = sorted((assets.WEB / "static").iterdir())
    return hashlib.sha256(b"".join(each.read_bytes() for each in files)).hexdigest()[:10]


@error_page
async def overview(request: Request) -> Response:
    """Answer with the overview, filtered by `show` and `q`, and the events since the last visit."""
    state = request.query_params.get("show", "all")
    if state not in (*format.FEATURE_FILTERS, *format.STATES):
        raise NotFound(f"there is no filter {state!r:.60}", hint="Follow a link of the overview.")
    search = _words(request.query_params.get("q", ""))
    view = Overview(state_of(request).coordinator.host, state, search)
    if {"live", "piece"} & request.query_params.keys():
        return await show(request, view)
    looked = request.cookies.get(_LOOKED, "")
    last_event = int(looked) if re.fullmatch(r"[0-9]{1,18}", looked) else None
    async with state_of(request).database.connection() as conn:
        since = await panel.since(conn, last_event)
    answer = await show(request, view, since=since if last_event else None, looked=last_event)
    if last_event is None:
        keep(request, answer, _LOOKED, str(since.latest))
    return answer


# The cookie with the id of the latest event that this browser has acknowledged.
_LOOKED = "pgcoord_looked"


@error_page
async def looked(request: Request) -> Response:
    """Store the latest event's id as acknowledged in this browser; redirect to the overview."""
    async with state_of(request).database.connection() as conn:
        since = await panel.since(conn, None)
    answer = RedirectResponse("/", 303)
    keep(request, answer, _LOOKED, str(since.latest))
    return answer


@error_page
async def zone(request: Request) -> Response:
    """Set the browser's cookie to show times in UTC, or delete it; redirect to `next`."""
    answer = RedirectResponse(login.local(request.query_params.get("next", "/")), 303)
    if request.query_params.get("zone") == "UTC":
        keep(request, answer, ZONE, "UTC")
    else:
        answer.delete_cookie(ZONE, path=f"{prefix_of(request.scope)}/", samesite="strict")
    return answer


def _words(text: str) -> str | None:
    """Return the words of a search, without NUL, at most 200 characters; None if empty."""
    return text.replace("\0", "").strip()[:200] or None


@error_page
async def feature(request: Request) -> Response:
    """Answer with a feature, its phases filtered by `show` and `q`; `graph=whole` unfolds it."""
    most_tokens = state_of(request).planner.settings.max_prompt
    query = request.query_params
    state = query.get("show") or None
    if state not in (None, *format.STATES):
        raise NotFound(f"no state is called {state!r:.60}", hint="Follow a link of the page.")
    search = _words(query.get("q", ""))
    whole = query.get("graph") == "whole"
    view = FeaturePage(feature_id_of(request), most_tokens, state, search, whole)
    return await show(request, view)


@error_page
async def schedule(request: Request) -> Response:
    """Answer with a schedule, its next due times, and the results of its last runs."""
    return await show(request, SchedulePage(schedule_of(request)))


def _history_of(request: Request) -> History:
    """Return the history with the filters of the query. Raises `NotFound`, `InvalidInput`."""
    query = {name: value.replace("\0", "").strip() for name, value in request.query_params.items()}
    what, day = query.get("what") or None, query.get("until") or None
    if what is not None and what not in EVENTS:
        raise NotFound(f"no event is called {what!r:.60}", hint="Choose one of the list.")
    try:
        until = date.fromisoformat(day) if day else None
    except ValueError as error:
        raise InvalidInput(
            f"{day!r:.60} is not a date", hint="A date such as 2026-11-29."
        ) from error
    return History(
        read_number(query["before"]) if query.get("before") else None,
        read_number(query["feature"], 2**31 - 1) if query.get("feature") else None,
        what,
        query.get("by", "")[:60] or None,
        until,
        read_number(query["after"]) if query.get("after") else None,
        zone_of(request),
    )


@error_page
async def history(request: Request) -> Response:
    """Answer with the history, filtered by the query."""
    return await show(request, _history_of(request))


@error_page
async def export_history(request: Request) -> Response:
    """Answer with the filtered history as CSV or JSON, latest first, at most 100,000 events."""
    kind = request.path_params["kind"]
    if kind not in _ATTACHED:
        raise NotFound(
            f"the history cannot be exported as {kind!r:.60}",
            hint="There is /history.csv, /history.json.",
        )
    async with state_of(request).acting(request) as conn:
        events = await _history_of(request).events(conn, _MOST_EXPORTED)
    # It takes seconds of processor time: in a thread, so that the loop continues.
    body = await asyncio.to_thread(_as_json if kind == "json" else _as_csv, events)
    media_type = "application/json" if kind == "json" else "text/csv"
    return Response(body, media_type=media_type, headers=_ATTACHED[kind])


def _as_json(events: Iterable[HistoryEvent]) -> bytes:
    return json.dumps([asdict(each) for each in events], default=str, ensure_ascii=False).encode()


def _as_csv(events: Iterable[HistoryEvent]) -> bytes:
    written = io.StringIO()
    writer = csv.DictWriter(written, [each.name for each in fields(HistoryEvent)])
    writer.writeheader()
    for each in events:
        writer.writerow({name: _cell(value) for name, value in asdict(each).items()})
    return written.getvalue().encode()


def _cell(value: object) -> object:
    """Return *value* for CSV, quoted if a spreadsheet would take it for a formula."""
    unsafe = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if unsafe else value


_MOST_EXPORTED = 100_000

_ATTACHED = {
    kind: {
        "content-disposition": f"attachment; filename=history.{kind}",
        "cache-control": "no-store",
    }
    for kind in ("csv", "json")
}

_PHASE = "/phases/{queue_id:path}"
_FEATURE = "/features/{feature_id}"
_SCHEDULE = "/schedules/{schedule}"

routes: list[BaseRoute] = [
    *login.routes,
    Route("/", overview),
    Route("/looked", looked),
    Route("/zone", zone),
    *several.routes,
    Route("/history", history),
    Route("/history.{kind:str}", export_history),
    *plan_pages.routes(_FEATURE),
    *edit.routes(_FEATURE, _PHASE),
    *actions.routes(_FEATURE, _PHASE, _SCHEDULE),
    Route(_SCHEDULE, schedule),
    Route(_FEATURE, feature),
    Route(f"{_PHASE}/log", phase_pages.send_log),
    Route(f"{_PHASE}/part", phase_pages.send_part),
    Route(f"{_PHASE}/compare", phase_pages.compare),
    Route("/workflows/{name:path}", phase_pages.workflow),
    Route(_PHASE, phase_pages.phase),
]
