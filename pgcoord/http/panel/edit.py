"""The panel's pages that edit a phase, or delete a phase or a feature.

They are not in the table of `pgcoord.actions`: an edit is an UPDATE of columns that people edit;
deleting requires the owner of the database, which `serve` need not be.
"""

from dataclasses import dataclass, replace
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from pgcoord.actions import Question
from pgcoord.database import actions, panel
from pgcoord.database._sql import Connection
from pgcoord.errors import CoordError, InvalidInput, Refused
from pgcoord.http.errors import status_of
from pgcoord.http.panel import format
from pgcoord.http.panel.responses import (
    error_page,
    error_view,
    feature_id_of,
    queue_id_of,
    read_form,
    redirect_after,
    render_page,
)
from pgcoord.http.state import state_of

# Bytes of a form with a prompt in it.
_PROMPT = 4_000_000


@error_page
async def form(request: Request) -> Response:
    """Answer with the form to edit a phase."""
    async with state_of(request).acting(request) as conn:
        phase = await panel.editable_phase(conn, queue_id_of(request))
    return await _form(request, phase, _in_words(phase.needs), None)


@error_page
async def edit(request: Request) -> Response:
    """Change a phase, and redirect to it; a refusal is shown on the form, with what was typed.

    Only fields that differ from the form's original are changed. Refused if the phase was changed
    since.
    """
    form = await read_form(request, _PROMPT)
    async with state_of(request).acting(request) as conn:
        phase = await panel.editable_phase(conn, queue_id_of(request))
    title, prompt, after, workflow = (
        form.get(each, "").replace("\0", "").replace("\r\n", "\n")
        for each in ("title", "prompt", "after", "workflow")
    )
    try:
        changes = _changes(phase, title.strip(), prompt, workflow)
        numbers = _numbers(after)
        async with state_of(request).acting(request) as conn:
            await actions.edit_phase(
                conn,
                phase.queue_id,
                changes,
                None if set(numbers) == set(phase.needs) else numbers,
                form.get("version") or None,
            )
    except (InvalidInput, Refused) as error:
        typed = replace(phase, title=title, prompt=prompt, workflow=workflow or None)
        return await _form(request, typed, after, error)
    return RedirectResponse(_url(phase.queue_id), 303)


async def _form(
    request: Request, phase: panel.EditablePhase, after: str, error: CoordError | None
) -> Response:
    async with state_of(request).acting(request, kind="read") as conn:
        names, _ = await panel.workflows(conn)
    return render_page(
        request,
        "phase_edit.html",
        status_of(error)[0] if error else 200,
        title=f"Edit {phase.title} · pgcoord",
        phase=phase,
        after=after,
        url=_url(phase.queue_id),
        workflows=sorted({*names, *([phase.workflow] if phase.workflow else [])}),
        error=error_view(error) if error else None,
    )


def _changes(
    phase: panel.EditablePhase, title: str, prompt: str, workflow: str
) -> dict[str, object]:
    if not title:
        raise InvalidInput("a phase needs a title")
    changes: dict[str, tuple[object, object]] = {
        "title": (phase.title, title),
        "prompt_content": (phase.prompt.replace("\r\n", "\n"), prompt),
        "workflow_type": (phase.workflow, workflow or None),
    }
    return {name: now for name, (was, now) in changes.items() if now != was}


def _in_words(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def _numbers(text: str) -> list[int]:
    words = [each.strip() for each in text.split(",")]
    if words in ([""], ["none"]):
        return []
    if not all(each.isascii() and each.isdecimal() and len(each) < 10 for each in words):
        raise InvalidInput(
            f"{text!r:.60} are not numbers of phases", hint='Such as "1, 2"; or "none".'
        )
    return [int(each) for each in words]


def _url(queue_id: str) -> str:
    return f"/phases/{quote(queue_id, safe='')}"


# --- Deleting


@dataclass(frozen=True)
class _Target:
    """The target of a deletion: its key, its page, the page to show afterwards, and words."""

    key: str | int
    url: str
    left: str
    name: str
    goes: str
    statement: str


async def _target(conn: Connection, request: Request) -> _Target:
    """Return the target of a request. Raises `Refused` where the coordinator may not delete."""
    if not await panel.may_delete(conn):
        raise Refused(
            "only the owner of the database may delete, and this coordinator is another user",
            hint="'pgcoord delete' with the owner's --dsn does it; to cancel keeps the history.",
        )
    if "queue_id" in request.path_params:
        phase = await panel.phase(conn, queue_id_of(request))
        literal = phase.queue_id.replace("'", "''")
        return _Target(
            phase.queue_id,
            _url(phase.queue_id),
            f"/features/{phase.feature_id}",
            f"phase {phase.phase_number}, {phase.title}",
            "Its attempts and results are deleted, too. Phases that depend on it wait until they"
            " are edited.",
            f"delete from phase_queue where queue_id = '{literal}'",
        )
    feature = await panel.feature_row(conn, feature_id_of(request))
    return _Target(
        feature.id,
        f"/features/{feature.id}",
        "/",
        f"feature {feature.id}, {feature.title}",
        f"Its {format.plural(feature.total, 'phase')} and its history are deleted, too. Cancel"
        " it instead to keep them.",
        f"delete from planned_features where id = {feature.id}",
    )


@error_page
async def ask(request: Request) -> Response:
    """Answer with the question whether a phase or a feature is to be deleted."""
    async with state_of(request).acting(request) as conn:
        target = await _target(conn, request)
    deletion = Question(f"Delete {target.name}?", "Delete", words=target.goes)
    return render_page(
        request,
        "ask.html",
        title=f"{deletion.question} · pgcoord",
        question=deletion.question,
        asked=deletion,
        action=f"{target.url}/delete",
        statement=target.statement,
        changes=None,
        gate=None,
        error=None,
        url=target.url,
        reasoned=False,
    )


@error_page
async def delete(request: Request) -> Response:
    """Delete a phase or a feature of which nothing runs, and redirect to the page that remains."""
    await read_form(request)
    async with state_of(request).acting(request) as conn:
        target = await _target(conn, request)
        await actions.delete(conn, target.key)
    return redirect_after(request, target.left)


def routes(feature: str, phase: str) -> list[BaseRoute]:
    """Return the routes; *feature* and *phase*: the path patterns of their pages."""
    return [
        Route(f"{phase}/edit", form),
        Route(f"{phase}/edit", edit, methods=["POST"]),
        *(
            Route(f"{each}/delete", handler, methods=[method])
            for each in (phase, feature)
            for method, handler in (("GET", ask), ("POST", delete))
        ),
    ]
