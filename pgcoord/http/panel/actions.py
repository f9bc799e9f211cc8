"""The actions of `pgcoord.actions` in the panel: each is a form, posted to its own path.

An action that destroys or holds up work is preceded by a question: a GET of the same path, whose
page has the form and a preview of the changes. The panel's script shows it as a dialog.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from pgcoord.actions import ACTIONS, Action, Question, Scope
from pgcoord.database import actions, panel, schedules
from pgcoord.database._sql import Connection
from pgcoord.errors import CoordError
from pgcoord.http.panel import format
from pgcoord.http.panel.responses import (
    ErrorView,
    Handler,
    error_page,
    error_view,
    feature_id_of,
    queue_id_of,
    read_amount,
    read_form,
    read_number,
    reason_of,
    redirect_after,
    render_page,
    schedule_of,
)
from pgcoord.http.state import state_of


@dataclass(frozen=True)
class _Subject:
    """The target of an action: in words, as an SQL literal, and the URL of its page."""

    words: str = ""
    argument: str = "null"
    url: str = ""
    feature_id: int | None = None
    queue_id: str | None = None
    gate: str | None = None


_Finding = Callable[[Connection, Request], Awaitable[_Subject]]


async def _phase(conn: Connection, request: Request) -> _Subject:
    phase = await panel.phase(conn, queue_id_of(request))
    return _Subject(
        f"phase {phase.phase_number}, {phase.title}",
        "'{}'".format(phase.queue_id.replace("'", "''")),
        f"/phases/{quote(phase.queue_id, safe='')}",
        queue_id=phase.queue_id,
        gate=phase.gate,
    )


async def _feature(conn: Connection, request: Request) -> _Subject:
    feature = await panel.feature_row(conn, feature_id_of(request))
    words = f"feature {feature.id}, {feature.title}"
    return _Subject(words, str(feature.id), f"/features/{feature.id}", feature_id=feature.id)


async def _schedule(conn: Connection, request: Request) -> _Subject:
    row = await schedules.schedule(conn, schedule_of(request))
    return _Subject(f"schedule {row.name}", f"'{row.name}'", f"/schedules/{row.name}")


async def _everything(conn: Connection, request: Request) -> _Subject:
    return _Subject()


def _asks(action: Action, its_question: Question, find: _Finding) -> Handler:
    @error_page
    async def ask(request: Request) -> Response:
        changes: list[panel.Change] | None = None
        refusal: ErrorView | None = None
        async with state_of(request).acting(request, kind="change") as conn:
            subject = await find(conn, request)
            if its_question.preview:
                try:
                    changes = await panel.preview(
                        conn,
                        its_question.preview,
                        feature_id=subject.feature_id,
                        queue_id=subject.queue_id,
                    )
                except CoordError as error:
                    refusal = error_view(error)
        question = its_question.question.format(subject.words)
        return render_page(
            request,
            "ask.html",
            409 if refusal else 200,
            title=f"{question} · pgcoord",
            question=question,
            asked=its_question,
            action=f"{subject.url}/{action.slug}",
            statement=f"select {action.statement(subject.argument, *action.arguments[1:])}",
            changes=changes,
            gate=subject.gate if action.name in ("approve", "reject") else None,
            error=refusal,
            url=subject.url,
            reasoned="reason" in action.arguments,
        )

    return ask


def _asks_whether_so_many(
    request: Request, number: int, pool: str | None, many: panel.MoreSlots
) -> Response:
    """Answer 409 with the question whether *number* slots are meant, as phases would start."""
    start = format.plural(many.start, "phase")
    counting = Question(
        "Let {} phases run at once?",
        "Set",
        words=f"{many.now} may run now. {start} that {'waits' if many.start == 1 else 'wait'}"
        f" in line would start at once, {format.plural(number, 'process')} at most."
        if many.start
        else f"{many.now} may run now. Nothing waits for a slot.",
    )
    return render_page(
        request,
        "ask.html",
        409,
        title=f"{number} slots? · pgcoord",
        question=counting.question.format(number),
        asked=counting,
        action="/slots",
        statement=f"select pgcoord.set_slots({number})",
        hidden=[("slots", number), ("sure", 1), *([("pool", pool)] if pool else [])],
        changes=None,
        gate=None,
        error=None,
        url="",
    )


def _acts(action: Action) -> Handler:
    """Make the handler that performs an action, then redirects to the page it was sent from."""

    @error_page
    async def act(request: Request) -> Response:
        form = await read_form(request)
        async with state_of(request).acting(request) as conn:
            target = _TARGETS[action.scope](request)
            number: float | None = None
            if action.number == "max_cost_usd":
                number = read_amount(form.get(action.number, ""))
            elif action.number:
                number = read_number(form.get(action.number, ""), 2**31 - 1)
            pool = form.get("pool")
            if action.name == "set_slots" and number and not form.get("sure"):
                many = await panel.many_more_slots(conn, int(number), pool or "local")
                if many:
                    return _asks_whether_so_many(request, int(number), pool, many)
            reason = reason_of(form) if "reason" in action.arguments else None
            result = await actions.perform(
                conn, action, target, reason=reason, number=number, pool=pool
            )
        if action.name == "delete_schedule":
            return redirect_after(request, "/")
        return redirect_after(
            request, f"/features/{result}" if action.returns == "feature" else None
        )

    return act


_FINDING: Mapping[Scope, _Finding] = {
    "phase": _phase,
    "feature": _feature,
    "all": _everything,
    "schedule": _schedule,
}

_TARGETS: Mapping[Scope, Callable[[Request], str | int | None]] = {
    "phase": queue_id_of,
    "feature": feature_id_of,
    "all": lambda request: None,
    "schedule": schedule_of,
}


def routes(feature: str, phase: str, schedule: str) -> Iterator[BaseRoute]:
    """Yield the routes of all questions and actions.

    *feature*, *phase* and *schedule*: the path patterns of their pages, above their actions.
    """
    paths: Mapping[Scope, str] = {
        "phase": phase,
        "feature": feature,
        "all": "",
        "schedule": schedule,
    }
    for action in ACTIONS:
        path = f"{paths[action.scope]}/{action.slug}"
        if action.question:
            yield Route(path, _asks(action, action.question, _FINDING[action.scope]))
        yield Route(path, _acts(action), methods=["POST"])
