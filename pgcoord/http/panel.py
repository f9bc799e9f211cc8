"""The panel: the pages that show all of it, live, and steer it.

A page is answered in full, and works so; with `?live=…` the same address answers with the stream of
what changes on it. Actions are forms that are posted to where they act; one that destroys work is
first a page that asks, and shows what it would change.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from pgcoord import assets, queries, queries_panel
from pgcoord.errors import InvalidInput, InvalidPlan, NotFound
from pgcoord.http import panel_asking, panel_phase, panel_words
from pgcoord.http.door import Door, door_of
from pgcoord.http.panel_answers import (
    Form,
    Handler,
    answering,
    back_of,
    feature_id_of,
    queue_id_of,
    read_form,
    read_number,
    reason_of,
    render_page,
    show,
    trouble_of,
)
from pgcoord.http.panel_live import Live
from pgcoord.http.panel_pages import FeaturePage, History, Overview
from pgcoord.plan import parse_plan
from pgcoord.queries import Connection

# Bytes of a form with a plan in it.
_PLAN = 4_000_000


def make_live(door: Door) -> Live:
    """The screens of a door, and what its templates know besides their data."""
    door.templates.filters.update(panel_words.FILTERS)
    door.templates.globals.update(
        states=panel_words.STATES,
        percent=panel_words.percent,
        plural=panel_words.plural,
        issue=lambda number: _link(door, "issues", number),
        pull_request=lambda number: _link(door, "pull", number),
        assets_version=_assets_version(),
        page_class="",
        here="",
        seen="",
    )
    return Live(door.feed, door.database.connection, door.templates)


def _link(door: Door, kind: str, number: int) -> Markup:
    if door.repository is None:
        return Markup('<span class="issue">#{}</span>').format(number)
    return Markup('<a class="issue" href="{}/{}/{}" rel="noreferrer">#{}</a>').format(
        door.repository, kind, number, number
    )


def _assets_version() -> str:
    files = sorted((assets.WEB / "static").iterdir())
    return hashlib.sha256(b"".join(each.read_bytes() for each in files)).hexdigest()[:10]


# --- Pages


@answering
async def overview(request: Request) -> Response:
    """Show what needs somebody, the slots, the features."""
    wanted = request.query_params.get("show", "all")
    if wanted not in (*panel_words.SHOWN, *panel_words.STATES):
        raise NotFound(f"nothing is called {wanted!r:.60}", hint="Follow a link of the overview.")
    search = request.query_params.get("q", "").replace("\0", "").strip()[:200]
    return await show(request, Overview(door_of(request).coordinator.host, wanted, search or None))


@answering
async def feature(request: Request) -> Response:
    """Show a feature."""
    return await show(request, FeaturePage(feature_id_of(request)))


@answering
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

    @answering
    async def act(request: Request) -> Response:
        form = await read_form(request)
        async with door_of(request).acting(request) as conn:
            await deed(conn, request, form)
        if request.headers.get("x-panel"):  # the script stays on the page, which is live
            return Response(status_code=204)
        return RedirectResponse(back_of(request), 303)

    return act


async def _generate_and_execute(conn: Connection, request: Request, form: Form) -> None:
    async with conn.transaction():
        await queries.make_plan(conn, feature_id_of(request))
        await queries.execute_feature(conn, feature_id_of(request))


_FEATURE_DEEDS: dict[str, Deed] = {
    "generate": lambda conn, request, form: queries.make_plan(conn, feature_id_of(request)),
    "execute": lambda conn, request, form: queries.execute_feature(conn, feature_id_of(request)),
    "generate-execute": _generate_and_execute,
    "pause": lambda conn, request, form: queries.pause(
        conn, feature_id_of(request), reason_of(form)
    ),
    "resume": lambda conn, request, form: queries.resume(conn, feature_id_of(request)),
    "cancel": lambda conn, request, form: queries.cancel_feature(
        conn, feature_id_of(request), reason_of(form)
    ),
}

_PHASE_DEEDS: dict[str, Deed] = {
    "retry": lambda conn, request, form: queries.retry_phase(
        conn, queue_id_of(request), reason_of(form)
    ),
    "skip": lambda conn, request, form: queries.skip_phase(
        conn, queue_id_of(request), reason_of(form)
    ),
    "cancel": lambda conn, request, form: queries.cancel_phase(
        conn, queue_id_of(request), reason_of(form)
    ),
    "cancel-branch": lambda conn, request, form: queries_panel.cancel_branch(
        conn, queue_id_of(request), reason_of(form)
    ),
    "priority": lambda conn, request, form: queries.set_priority(
        conn, queue_id_of(request), read_number(form.get("priority", ""), 2**31 - 1)
    ),
}

_DEEDS: dict[str, Deed] = {
    "pause": lambda conn, request, form: queries.pause(conn, None, reason_of(form)),
    "resume": lambda conn, request, form: queries.resume(conn, None),
    "slots": lambda conn, request, form: queries.set_slots(
        conn, read_number(form.get("slots", ""), 2**31 - 1)
    ),
}


# --- New features


@answering
async def new(request: Request) -> Response:
    """Show the forms for a new feature."""
    return _new(request, {}, None)


@answering
async def create(request: Request) -> Response:
    """Take a plan or a description; what is wrong with it is said beside it."""
    form = await read_form(request, _PLAN)
    try:
        async with door_of(request).acting(request) as conn, conn.transaction():
            if "plan" in form or "file" in form:
                feature_id = await _create_from_plan(conn, form)
            else:
                feature_id = await _create_from_description(conn, form)
    except InvalidInput as error:
        return _new(request, form, error)
    return RedirectResponse(f"/features/{feature_id}", 303)


def _new(request: Request, form: Form, error: InvalidInput | None) -> Response:
    return render_page(
        request,
        "new.html",
        422 if error else 200,
        title="New feature · pgcoord",
        trouble=trouble_of(error) if error else None,
        faulty=isinstance(error, InvalidPlan),
        plan=_plan_text(form),
        form=form,
    )


def _plan_text(form: Form) -> str:
    """The plan: a file, if one was given, else what was typed."""
    return form.get("file", "").strip() or form.get("plan", "")


async def _create_from_plan(conn: Connection, form: Form) -> int:
    text = _plan_text(form)
    names, has_default = await queries_panel.workflows(conn)
    plan = await asyncio.to_thread(
        parse_plan,
        text.replace("\r\n", "\n"),
        name="plan",
        workflows=names or None,
        has_default=has_default or not names,
    )
    feature_id = await queries.store_feature(conn, plan.feature())
    if form.get("then") == "execute":
        await queries.execute_feature(conn, feature_id)
    return feature_id


async def _create_from_description(conn: Connection, form: Form) -> int:
    title, description = (
        form.get(each, "").replace("\0", "").replace("\r\n", "\n").strip()
        for each in ("title", "description")
    )
    feature_id = await queries.store_feature(
        conn, {"title": title, "description": description or None}
    )
    if form.get("then") in ("generate", "execute"):
        await queries.make_plan(conn, feature_id)
    if form.get("then") == "execute":
        await queries.execute_feature(conn, feature_id)
    return feature_id


_PHASE = "/phases/{queue_id:path}"
_FEATURE = "/features/{feature_id}"

routes: list[BaseRoute] = [
    Route("/", overview),
    Route("/history", history),
    Route("/features/new", new),
    Route("/features/new", create, methods=["POST"]),
    *panel_asking.routes(_FEATURE, _PHASE),
    *(
        Route(f"{path}/{name}", _action(deed), methods=["POST"])
        for path, deeds in (("", _DEEDS), (_FEATURE, _FEATURE_DEEDS), (_PHASE, _PHASE_DEEDS))
        for name, deed in deeds.items()
    ),
    Route(_FEATURE, feature),
    Route(f"{_PHASE}/log", panel_phase.log),
    Route(_PHASE, panel_phase.phase),
]
