"""The panel: the pages that show all of it, live, and steer it.

A page is answered in full, and works so; with `?live=…` the same address answers with the stream of
what changes on it. Actions are forms that are posted to where they act; one that destroys work is
first a page that asks, and shows what it would change.
"""

import hashlib
from collections.abc import Awaitable, Callable

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from pgcoord import assets
from pgcoord.database import actions, panel
from pgcoord.database._sql import Connection
from pgcoord.errors import NotFound
from pgcoord.http.panel import actions as questions
from pgcoord.http.panel import format
from pgcoord.http.panel import phase as phase_pages
from pgcoord.http.panel import plan as plan_pages
from pgcoord.http.panel.live import Live
from pgcoord.http.panel.pages import FeaturePage, History, Overview
from pgcoord.http.panel.responses import (
    Form,
    Handler,
    done,
    error_page,
    feature_id_of,
    queue_id_of,
    read_form,
    read_number,
    reason_of,
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


# --- Pages


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


# --- Actions


Deed = Callable[[Connection, Request, Form], Awaitable[object]]


def _action(deed: Deed) -> Handler:
    """A handler that does something, then goes back to the page it was done on."""

    @error_page
    async def act(request: Request) -> Response:
        form = await read_form(request)
        async with state_of(request).acting(request) as conn:
            await deed(conn, request, form)
        return done(request)

    return act


_FEATURE_DEEDS: dict[str, Deed] = {
    "pause": lambda conn, request, form: actions.pause(
        conn, feature_id_of(request), reason_of(form)
    ),
    "resume": lambda conn, request, form: actions.resume(conn, feature_id_of(request)),
    "cancel": lambda conn, request, form: actions.cancel_feature(
        conn, feature_id_of(request), reason_of(form)
    ),
}

_PHASE_DEEDS: dict[str, Deed] = {
    "retry": lambda conn, request, form: actions.retry_phase(
        conn, queue_id_of(request), reason_of(form)
    ),
    "skip": lambda conn, request, form: actions.skip_phase(
        conn, queue_id_of(request), reason_of(form)
    ),
    "cancel": lambda conn, request, form: actions.cancel_phase(
        conn, queue_id_of(request), reason_of(form)
    ),
    "cancel-branch": lambda conn, request, form: panel.cancel_branch(
        conn, queue_id_of(request), reason_of(form)
    ),
    "priority": lambda conn, request, form: actions.set_priority(
        conn, queue_id_of(request), read_number(form.get("priority", ""), 2**31 - 1)
    ),
}

_DEEDS: dict[str, Deed] = {
    "pause": lambda conn, request, form: actions.pause(conn, None, reason_of(form)),
    "resume": lambda conn, request, form: actions.resume(conn, None),
    "slots": lambda conn, request, form: actions.set_slots(
        conn, read_number(form.get("slots", ""), 2**31 - 1)
    ),
}


_PHASE = "/phases/{queue_id:path}"
_FEATURE = "/features/{feature_id}"

routes: list[BaseRoute] = [
    Route("/", overview),
    Route("/history", history),
    *plan_pages.routes(_FEATURE),
    *questions.routes(_FEATURE, _PHASE),
    *(
        Route(f"{path}/{name}", _action(deed), methods=["POST"])
        for path, deeds in (("", _DEEDS), (_FEATURE, _FEATURE_DEEDS), (_PHASE, _PHASE_DEEDS))
        for name, deed in deeds.items()
    ),
    Route(_FEATURE, feature),
    Route(f"{_PHASE}/log", phase_pages.send_log),
    Route(_PHASE, phase_pages.phase),
]
