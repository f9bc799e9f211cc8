"""The panel: the pages that show all of it, live, and steer it.

A page is answered in full, and works so; with `?live=…` the same address answers with the stream of
what changes on it. Actions are forms that are posted to where they act; one that destroys work is
first a page that asks, and shows what it would change.
"""

import hashlib

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from pgcoord import assets
from pgcoord.errors import NotFound
from pgcoord.http.panel import actions, format
from pgcoord.http.panel import phase as phase_pages
from pgcoord.http.panel import plan as plan_pages
from pgcoord.http.panel.live import Live
from pgcoord.http.panel.pages import FeaturePage, History, Overview
from pgcoord.http.panel.responses import (
    error_page,
    feature_id_of,
    read_number,
    show,
)
from pgcoord.http.state import AppState, state_of


def make_live(state: AppState) -> Live:
    """The screens of a state, and what its templates know besides their data."""
    state.templates.filters.update(format.FILTERS)
    state.templates.globals.update(
        states=format.STATES,
        percent=format.percent,
        plural=format.plural,
        issue=lambda number: _link(state, "issues", number),
        pull_request=lambda number: _link(state, "pull", number),
        assets_version=_assets_version(),
        page_class="",
        here="",
        seen="",
    )
    return Live(state.feed, state.database.connection, state.templates)


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
    """Show what needs somebody, the slots, the features."""
    wanted = request.query_params.get("show", "all")
    if wanted not in (*format.FEATURE_FILTERS, *format.STATES):
        raise NotFound(f"nothing is called {wanted!r:.60}", hint="Follow a link of the overview.")
    search = request.query_params.get("q", "").replace("\0", "").strip()[:200]
    return await show(request, Overview(state_of(request).coordinator.host, wanted, search or None))


@error_page
async def feature(request: Request) -> Response:
    """Show a feature."""
    most_tokens = state_of(request).planner.settings.max_prompt
    return await show(request, FeaturePage(feature_id_of(request), most_tokens))


@error_page
async def history(request: Request) -> Response:
    """Show what has happened."""
    before, of = (request.query_params.get(each) for each in ("before", "feature"))
    first = read_number(before) if before else None
    feature_id = read_number(of, 2**31 - 1) if of else None
    return await show(request, History(first, feature_id))


_PHASE = "/phases/{queue_id:path}"
_FEATURE = "/features/{feature_id}"

routes: list[BaseRoute] = [
    Route("/", overview),
    Route("/history", history),
    *plan_pages.routes(_FEATURE),
    *actions.routes(_FEATURE, _PHASE),
    Route(_FEATURE, feature),
    Route(f"{_PHASE}/log", phase_pages.send_log),
    Route(_PHASE, phase_pages.phase),
]
