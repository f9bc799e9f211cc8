"""An action on several phases at once: pick them from a list, confirm once, see refusals.

It works without a script: the list is a form, whose answer is a second form with the question.
"""

from dataclasses import dataclass
from urllib.parse import parse_qs, urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from pgcoord.actions import SEVERAL, Action, Question
from pgcoord.database import actions, panel
from pgcoord.errors import InvalidInput, NotFound
from pgcoord.http.panel import format
from pgcoord.http.panel.responses import (
    error_page,
    read_number,
    reason_of,
    render_page,
)
from pgcoord.http.responses import read_bytes
from pgcoord.http.state import state_of

# The most phases of the list, and the most bytes of the form that names them.
MOST = 1000
_FORM = 400_000

_ACTIONS = {each.verb: each for each in SEVERAL}


@dataclass(frozen=True)
class _Filters:
    """The filters of the list: a feature, a state, words (None: no filter)."""

    feature_id: int | None
    show: str | None
    search: str | None

    @property
    def query(self) -> str:
        """The filters, as the query of a URL."""
        parameters = {"feature": self.feature_id, "show": self.show, "q": self.search}
        return urlencode({name: value for name, value in parameters.items() if value is not None})

    @property
    def back(self) -> str:
        """The path and query of the page that shows these phases."""
        if self.feature_id is None:
            return f"/?{self.query}" if self.query else "/"
        query = _Filters(None, self.show, self.search).query
        return f"/features/{self.feature_id}{'?' if query else ''}{query}"


def _filters(parameters: dict[str, str]) -> _Filters:
    show = parameters.get("show") or None
    if show is not None and show not in format.STATES:
        raise NotFound(f"no state is called {show!r:.60}", hint="Follow a link of the overview.")
    feature = parameters.get("feature")
    return _Filters(
        read_number(feature, 2**31 - 1) if feature else None,
        show,
        parameters.get("q", "").replace("\0", "").strip()[:200] or None,
    )


@error_page
async def pick(request: Request) -> Response:
    """Answer with a list of at most `MOST` phases to pick from, all picked if there is a filter."""
    filters = _filters(dict(request.query_params))
    async with state_of(request).acting(request) as conn:
        feature = await panel.feature_row(conn, filters.feature_id) if filters.feature_id else None
        phases = await panel.found_phases(
            conn, filters.search, filters.show, MOST + 1, filters.feature_id
        )
    return render_page(
        request,
        "several.html",
        title="Several phases · pgcoord",
        filters=filters,
        feature=feature,
        found=phases[:MOST],
        more=len(phases) > MOST,
        picked=bool(filters.show or filters.search),
    )


@error_page
async def act(request: Request) -> Response:
    """Answer with the question about the picked phases or, with the field `sure`, perform it.

    Refusals of single phases are listed with status 409; the others are done. Raises `NotFound` for
    an unknown action, `InvalidInput` if no phase is picked.
    """
    form, picked = await _read(request)
    filters = _filters(form)
    action = _ACTIONS.get(form.get("action", ""))
    if action is None:
        raise NotFound(f"{form.get('action', '')!r:.60} is not an action on several phases")
    if not picked:
        raise InvalidInput("no phase was picked", hint="Tick the phases to act on.")
    number = read_number(form.get("priority", ""), 2**31 - 1) if action.number else None
    async with state_of(request).acting(request, kind="change") as conn:
        if not form.get("sure"):
            changes = await panel.preview_several(conn, action.verb, picked, number)
            return _question_page(request, filters, action, picked, number, changes)
        results = await actions.perform_on_several(
            conn, action, picked, reason=reason_of(form), number=number
        )
    refused = [each for each in results if each.refused]
    if not refused:
        return RedirectResponse(filters.back, 303)
    return render_page(
        request,
        "some_refused.html",
        409,
        title="Some were refused · pgcoord",
        refused=refused,
        done=len(results) - len(refused),
        back=filters.back,
    )


async def _read(request: Request) -> tuple[dict[str, str], list[str]]:
    """Return the fields of the form, and the queue_ids of its fields `phase`, each once."""
    body = await read_bytes(request, _FORM)
    try:
        fields = parse_qs(body.decode(errors="replace"), max_num_fields=MOST + 20)
    except ValueError as error:
        raise HTTPException(400, f"a form may name {MOST} phases at most") from error
    form = {name: values[-1] for name, values in fields.items()}
    return form, [each for each in dict.fromkeys(fields.get("phase", [])) if "\0" not in each]


def _question_page(
    request: Request,
    filters: _Filters,
    action: Action,
    picked: list[str],
    number: int | None,
    changes: list[panel.Change],
) -> Response:
    some = format.plural(len(picked), "phase")
    its_question = action.question or Question("Give {} priority " + str(number) + "?", "Set")
    question = its_question.question.format(some)
    named = ",".join(picked[:3]) + (",…" if len(picked) > 3 else "")
    priority = "" if number is None else f", p_priority => {number}"
    fields = {
        "action": action.verb,
        "sure": 1,
        "feature": filters.feature_id,
        "show": filters.show,
        "q": filters.search,
        "priority": number,
    }
    hidden = [(name, value) for name, value in fields.items() if value is not None]
    return render_page(
        request,
        "ask.html",
        title=f"{question} · pgcoord",
        question=question,
        asked=Question(its_question.question, its_question.button, leave="Leave them"),
        action="/several",
        statement=f"select * from pgcoord.act_on_phases('{action.verb}', '{{{named}}}'{priority})",
        hidden=[*hidden, *(("phase", each) for each in picked)],
        reasoned="reason" in action.arguments,
        changes=changes,
        gate=None,
        error=None,
        url=filters.back,
    )


routes: list[BaseRoute] = [
    Route("/several", pick),
    Route("/several", act, methods=["POST"]),
]
