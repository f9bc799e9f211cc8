"""The panel's pages for work that is not queued yet: a new feature, and the plan of one.

Planning may take minutes if a planner command is configured: no connection is held meanwhile. The
planner is imported on first use: most coordinators plan nothing.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from pgcoord.database import actions, panel, plans
from pgcoord.errors import CoordError, InvalidInput, InvalidPlan, PlannerFailed, Refused
from pgcoord.http.errors import status_of
from pgcoord.http.panel.graph import Layout, lay_out
from pgcoord.http.panel.responses import (
    Form,
    Handler,
    error_page,
    error_view,
    feature_id_of,
    read_form,
    redirect_after,
    render_page,
)
from pgcoord.http.state import state_of

if TYPE_CHECKING:
    from pgcoord.plan.model import Plan
    from pgcoord.planner.analysis import Analysis
    from pgcoord.planner.planning import Workflows

# Bytes of a form with a plan in it.
_PLAN = 4_000_000

# The number of slots for the forecast of a draft.
_SLOTS = 3


# --- Generating and executing


def _planning(change: Callable[[Request], Awaitable[object]]) -> Handler:
    @error_page
    async def act(request: Request) -> Response:
        await change(request)
        return redirect_after(request)

    return act


async def _generate(request: Request) -> None:
    await state_of(request).plan(request, feature_id_of(request))


async def _execute(request: Request) -> None:
    state, feature_id = state_of(request), feature_id_of(request)
    await state.plan_unless_planned(request, feature_id)
    async with state.acting(request) as conn:
        await actions.execute_feature(conn, feature_id)


# --- New features


@error_page
async def new(request: Request) -> Response:
    """Answer with the forms for a new feature."""
    return await _new(request, {}, None, "")


@error_page
async def create(request: Request) -> Response:
    """Store a feature from a plan or a description, and redirect to it; with faults, show the form.

    The field `then`: "generate" plans a description, "execute" queues the phases as well; "check",
    "rows" and "add" only show the form again, as `edit` does.
    """
    form = await read_form(request, _PLAN, _MOST_CHOICES)
    from_plan = "plan" in form or "file" in form
    text = _plan_text(form)
    try:
        if from_plan:
            text = await _with_rows(text, form)
            if form.get("then") in _SHOWS:
                await _parse(request, text)
                return await _new(request, form, None, text)
        fields = await (_read_plan if from_plan else _read_description)(request, form)
        async with state_of(request).acting(request) as conn, conn.transaction():
            feature_id = await actions.store_feature(conn, fields)
            if form.get("then") == "execute":
                await actions.execute_feature(conn, feature_id)
    except (InvalidInput, PlannerFailed) as error:
        return await _new(request, form, error, text)
    return RedirectResponse(f"/features/{feature_id}", 303)


async def _new(request: Request, form: Form, error: CoordError | None, text: str) -> Response:
    return render_page(
        request,
        "new.html",
        status_of(error)[0] if error else 200,
        title="New feature · pgcoord",
        error=error_view(error) if error else None,
        faulty=isinstance(error, InvalidPlan),
        plan=text,
        form=form,
        draft=await _draft(request, text),
    )


def _plan_text(form: Form) -> str:
    """Return the text of the plan: the uploaded file, else the text field."""
    return form.get("file", "").strip() or form.get("plan", "")


async def _workflows(request: Request) -> "Workflows":
    from pgcoord.planner.planning import declared_workflows

    async with state_of(request).acting(request) as conn:
        return await declared_workflows(conn)


async def _parse(request: Request, text: str) -> "Plan":
    from pgcoord.plan.parsing import parse_plan

    workflows = await _workflows(request)
    return await asyncio.to_thread(
        parse_plan,
        text.replace("\r\n", "\n"),
        name="plan",
        workflows=workflows.names,
        has_default=workflows.has_default,
        parameters={},
    )


async def _read_plan(request: Request, form: Form) -> dict[str, object]:
    """Return the plan in *form* as the object of `Plan.feature`. Raises `InvalidPlan`."""
    return (await _parse(request, _plan_text(form))).feature()


async def _read_description(request: Request, form: Form) -> dict[str, object]:
    """Return the described feature as an object for `store_feature`.

    It has "phases" if the form says to plan it, which may take minutes. Raises `InvalidInput` and
    `PlannerFailed`.
    """
    title, description, hours = (
        form.get(each, "").replace("\0", "").replace("\r\n", "\n").strip()
        for each in ("title", "description", "hours")
    )
    fields: dict[str, object] = {
        "title": title,
        "description": description or None,
        "estimated_hours": _hours(hours) if hours else None,
    }
    if form.get("then") in ("generate", "execute") and title:
        from pgcoord.planner.structure import Feature

        feature = Feature(title, description, _hours(hours) if hours else None)
        planned = await state_of(request).planner.plan(feature, await _workflows(request))
        fields["phases"] = planned.phases
    return fields


def _hours(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,6}([.,][0-9]{1,2})?", text):
        raise InvalidInput(
            f"{text!r:.60} is not a number of hours", hint='A number such as "6" or "2.5".'
        )
    return float(text.replace(",", "."))


# --- Plans


@error_page
async def plan(request: Request) -> Response:
    """Answer with a form that has the stored plan of a feature as Markdown."""
    from pgcoord.plan.writing import write_plan

    feature_id = feature_id_of(request)
    async with state_of(request).acting(request) as conn:
        feature = await plans.feature_to_plan(conn, feature_id)
        rows = (await panel.described(conn, feature_id)).plan
    text = write_plan(feature.title, None, rows, literal=True)
    faithful = await asyncio.to_thread(_faithful, text, rows)
    return await _plan_form(request, feature.title, text, feature.version, None, faithful)


def _faithful(text: str, rows: list[Any]) -> bool:
    """Whether the plan *text* parses to the stored *rows*; true without rows."""
    from pgcoord.plan.parsing import parse_plan

    try:
        read = parse_plan(text, name="plan", parameters={})
        return not rows or [each.row() for each in read.phases] == rows
    except InvalidPlan:
        return False


@error_page
async def edit(request: Request) -> Response:
    """Check a plan, change its rows, or replace the stored plan of a feature by it.

    The field `then`: "check", "rows" and "add" only show the form again; "execute" stores the plan
    and queues its phases; any other stores it. Faults are shown by line, on the form.
    """
    form = await read_form(request, _PLAN, _MOST_CHOICES)
    feature_id, version = feature_id_of(request), form.get("version") or None
    state = state_of(request)
    async with state.acting(request) as conn:
        feature = await plans.feature_to_plan(conn, feature_id)
    text = _plan_text(form)
    then = form.get("then")
    try:
        text = await _with_rows(text, form)
        read = await _parse(request, text)
        if then in _SHOWS:
            return await _plan_form(request, feature.title, text, version or "", None, True)
        changes: dict[str, object] = {"title": read.title, "phases": read.feature()["phases"]}
        if read.description:
            changes["description"] = read.description
        if read.max_cost_usd is not None:
            changes["max_cost_usd"] = read.max_cost_usd
        async with state.acting(request) as conn, conn.transaction():
            await actions.change_feature(conn, feature_id, changes, version)
            if then == "execute":
                await actions.execute_feature(conn, feature_id)
    except (InvalidInput, Refused) as error:
        return await _plan_form(request, feature.title, text, version or "", error, True)
    return RedirectResponse(f"/features/{feature_id}", 303)


# The most fields of a plan's form: for each phase a title, and a box for each other phase.
_MOST_CHOICES = 20_000

# A plan of more phases is shown as text only: its rows would have too many boxes.
_MOST_ROWS = 60


# The form's actions that store nothing.
_SHOWS = ("check", "rows", "add")


async def _with_rows(text: str, form: Form) -> str:
    """Return the plan *text* with what was changed in the form's rows since they were drawn.

    Raises `InvalidPlan` and `InvalidInput`; neither if the form asks for another action.
    """
    from pgcoord.planner.rows import Changes, change_plan

    if form.get("then") not in ("rows", "add"):
        return text
    numbers = [int(name[4:]) for name in form if re.fullmatch(r"row-[0-9]{1,6}", name)]
    titles = {
        each: title
        for each in numbers
        if (title := form.get(f"title-{each}", "").replace("\0", "").strip())
        and title != form.get(f"was-{each}", "").strip()
    }
    needs = {}
    for each in numbers:
        picked = {other for other in numbers if f"needs-{each}-{other}" in form}
        if picked != {int(other) for other in re.findall("[0-9]{1,6}", form[f"row-{each}"])}:
            needs[each] = picked
    removed = {each for each in numbers if f"remove-{each}" in form}
    changes = Changes(titles, needs, removed, adds=form["then"] == "add")
    return await asyncio.to_thread(change_plan, text, changes)


@dataclass(frozen=True)
class _Draft:
    """A plan, analysed for its rows, and the layout of its graph."""

    weighed: "Analysis"
    layout: Layout


async def _draft(request: Request, text: str) -> _Draft | None:
    """Return the draft of a plan; None if it is faulty, empty, or has more than `_MOST_ROWS`."""
    most_tokens = state_of(request).planner.settings.max_prompt
    return await asyncio.to_thread(_analysed, text, most_tokens) if text.strip() else None


def _analysed(text: str, most_tokens: int) -> _Draft | None:
    from pgcoord.plan.parsing import parse_plan
    from pgcoord.planner.analysis import analyse

    try:
        read = parse_plan(text.replace("\r\n", "\n"), name="plan")
    except InvalidPlan:
        return None
    if not 0 < len(read.phases) <= _MOST_ROWS:
        return None
    weighed = analyse([each.row() for each in read.phases], _SLOTS, most_tokens)
    column = {number: at for at, wave in enumerate(weighed.waves) for number in wave}
    layers = tuple((each.number, column.get(each.number, 0)) for each in weighed.phases)
    edges = tuple(
        (up, each.number) for each in weighed.phases for up in sorted(each.needs) if up in column
    )
    return _Draft(weighed, lay_out(layers, edges))


async def _plan_form(
    request: Request,
    title: str,
    text: str,
    version: str,
    error: CoordError | None,
    faithful: bool,
) -> Response:
    return render_page(
        request,
        "plan.html",
        status_of(error)[0] if error else 200,
        title=f"Plan of {title} · pgcoord",
        feature_id=feature_id_of(request),
        feature=title,
        plan=text,
        version=version,
        error=error_view(error) if error else None,
        faulty=isinstance(error, InvalidPlan),
        faithful=faithful,
        draft=await _draft(request, text),
    )


def routes(feature: str) -> list[BaseRoute]:
    """Return the routes of these pages and forms; *feature*: the path pattern of a feature."""
    return [
        Route("/features/new", new),
        Route("/features/new", create, methods=["POST"]),
        Route(f"{feature}/generate", _planning(_generate), methods=["POST"]),
        Route(f"{feature}/execute", _planning(_execute), methods=["POST"]),
        Route(f"{feature}/plan", plan),
        Route(f"{feature}/plan", edit, methods=["POST"]),
    ]
