"""The panel: the pages that show all of it, live, and steer it.

A page is answered in full, and works so; with `?live=…` the same address answers with the stream of
what changes on it. Actions are forms that are posted to where they act; one that destroys work is
first a page that asks, and shows what it would change.
"""

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.parser import BytesParser
from email.policy import HTTP
from functools import wraps
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

import psycopg
from markupsafe import Markup
from psycopg_pool import PoolTimeout
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import BaseRoute, Route

from pgcoord import assets, queries, queries_panel
from pgcoord.errors import (
    CoordError,
    InvalidInput,
    InvalidPlan,
    NotFound,
    PlannerFailed,
    Refused,
)
from pgcoord.http import panel_log, panel_words
from pgcoord.http.answers import answer_error, meaning, read_bytes
from pgcoord.http.door import Door, door_of
from pgcoord.http.panel_live import Live, Tail, View
from pgcoord.http.panel_pages import FeaturePage, History, Overview, PhasePage
from pgcoord.http.security import may_steer
from pgcoord.plan import Plan, parse_plan, write_plan
from pgcoord.planner.planning import Workflows, declared_workflows
from pgcoord.planner.structure import Feature
from pgcoord.queries import Connection

# Bytes of a form, and of one with a plan in it.
_FORM = 16_384
_PLAN = 4_000_000

Handler = Callable[[Request], Awaitable[Response]]
Form = dict[str, str]


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


def _live_of(request: Request) -> Live:
    live: Live = request.app.state.live
    return live


@dataclass(frozen=True)
class _Trouble:
    """What went wrong, as it was said."""

    heading: str
    message: str = ""
    hint: str | None = None
    lines: list[tuple[str, str]] | None = None


_ERRORS = (CoordError, psycopg.Error, PoolTimeout)


def _answering(handler: Handler) -> Handler:
    """Answer what goes wrong with a page that says it as the database did."""

    @wraps(handler)
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except _ERRORS as error:
            plain = await answer_error(request, error)
            context = {"trouble": _trouble(error), "back": _back(request), "title": "Refused"}
            if plain.status_code == 404:
                context["title"] = "There is no such thing"
            elif plain.status_code == 503:
                context["title"] = "The database does not answer"
            page = _page(request, "error.html", plain.status_code, **context)
            if plain.status_code == 503:
                page.headers.update({"retry-after": "2", "refresh": "3"})
            return page

    return answer


def _trouble(error: Exception) -> _Trouble:
    cause = error.__cause__
    code = cause.sqlstate if isinstance(cause, psycopg.Error) else None
    hint = error.hint if isinstance(error, CoordError) else None
    if isinstance(error, InvalidPlan):
        lines = [_located(each) for each in error.problems]
        count = panel_words.plural(len(lines), "error")
        return _Trouble(f"{count}, nothing was stored", lines=lines)
    return _Trouble(f"Refused: {code}" if code else "Refused", str(error), hint)


def _located(problem: str) -> tuple[str, str]:
    _, line, words = problem.split(":", 2)
    return line, words.strip()


def _back(request: Request) -> str:
    """The page that an action is of."""
    parts = request.url.path.split("/")
    return quote("/".join(parts[:-1])) or "/" if request.method == "POST" else "/"


def _page(request: Request, template: str, status: int = 200, /, **context: Any) -> Response:
    text = (
        door_of(request)
        .templates.get_template(template)
        .render(steers=may_steer(request), **context)
    )
    return HTMLResponse(text, status, {"cache-control": "no-store"})


# --- Pages


async def _show(request: Request, view: View, tail: Tail | None = None, **extra: Any) -> Response:
    live = _live_of(request)
    screen = live.screen(view)
    seen = request.query_params.get("live")
    if seen is None:
        text = await screen.whole(steers=may_steer(request), **extra)
        return HTMLResponse(text, headers={"cache-control": "no-store"})

    async def stream() -> Any:
        with live.looking(screen):
            async for message in screen.look(seen, tail):
                yield message

    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)


@_answering
async def overview(request: Request) -> Response:
    """Show what needs somebody, the slots, the features."""
    show = request.query_params.get("show", "all")
    if show not in (*panel_words.SHOWN, *panel_words.STATES):
        raise NotFound(f"nothing is called {show!r:.60}", hint="Follow a link of the overview.")
    search = request.query_params.get("q", "").replace("\0", "").strip()[:200]
    return await _show(request, Overview(show, search or None))


@_answering
async def feature(request: Request) -> Response:
    """Show a feature."""
    most_tokens = door_of(request).planner.settings.max_prompt
    return await _show(request, FeaturePage(_id(request), most_tokens))


@_answering
async def phase(request: Request) -> Response:
    """Show a phase, with the part of its log that is asked for."""
    queue_id, query = _queue_id(request), request.query_params
    view = PhasePage(queue_id)
    if "live" in query:
        return await _show(request, view, await _tail(request, queue_id, query.get("log", "")))
    number = _number(query["attempt"]) if query.get("attempt") else None
    log = await _read_log(request, queue_id, number)
    return await _show(request, view, log=log)


@_answering
async def history(request: Request) -> Response:
    """Show what has happened."""
    before, of = (request.query_params.get(each) for each in ("before", "feature"))
    view = History(_number(before) if before else None, _number(of, 2**31 - 1) if of else None)
    return await _show(request, view)


def _number(text: str, most: int = 2**63 - 1) -> int:
    try:
        number = int(text)
    except ValueError:
        number = most + 1
    if abs(number) > most:
        raise InvalidInput(f"{text!r:.60} is no number", hint="A whole number is expected.")
    return number


def _queue_id(request: Request) -> str:
    queue_id: str = request.path_params["queue_id"]
    if "\0" in queue_id:
        raise NotFound("there is no phase with NUL in its name")
    return queue_id


# --- Logs


@dataclass(frozen=True)
class _Log:
    """What is shown of a log: a part of it, or the lines that were looked for."""

    attempt: int | None = None
    trouble: str | None = None
    part: panel_log.Part = panel_log.NOTHING
    follows: bool = False
    find: str | None = None
    found: list[panel_log.Found] | None = None
    more: bool = False


async def _log_path(request: Request, queue_id: str, number: int | None) -> tuple[int, Path]:
    """The number and the log of an attempt, else of the latest.

    Raises `NotFound` and `Refused`, which say why there is none here.
    """
    door = door_of(request)
    async with door.database.connection() as conn:
        tries = await queries_panel.tries(conn, queue_id)
    attempt = next((each for each in tries if number in (None, each.number)), None)
    if attempt is None:
        raise NotFound("Nothing yet: it has not started." if number is None else "No such attempt.")
    if attempt.folder is None:
        raise Refused("It was inserted as running: its log is not kept here.")
    path = Path(attempt.folder, "log")
    if attempt.host != door.coordinator.host:
        raise Refused(f"The log is on {attempt.host}: {path}")
    return attempt.number, path


async def _read_log(request: Request, queue_id: str, number: int | None) -> _Log:
    query = request.query_params
    try:
        attempt, path = await _log_path(request, queue_id, number)
    except (NotFound, Refused) as error:
        return _Log(trouble=str(error))
    try:
        if find := query.get("find", "")[:200]:
            found, more = await asyncio.to_thread(panel_log.search, path, find)
            return _Log(attempt, find=find, found=found, more=more)
        if at := query.get("at"):
            part = await asyncio.to_thread(panel_log.read_from, path, _number(at))
            return _Log(attempt, part=part)
        part = await asyncio.to_thread(panel_log.read_end, path)
        return _Log(attempt, part=part, follows=True)
    except FileNotFoundError:
        return _Log(attempt, trouble="Nothing was written yet, or it was removed.", follows=True)
    except OSError as error:
        return _Log(attempt, trouble=f"The log cannot be read: {error.strerror or error}.")


async def _tail(request: Request, queue_id: str, place: str) -> Tail | None:
    """What is written to a log from a place on, `attempt:offset`; None where none is wanted."""
    attempt, _, offset = place.partition(":")
    if not (attempt.isdecimal() and offset.isdecimal()):
        return None
    number, path = await _log_path(request, queue_id, int(attempt))
    return panel_log.LogTail(path, number, int(offset))


@_answering
async def log(request: Request) -> Response:
    """Send the log of an attempt; a Range asks for a part."""
    number = request.query_params.get("attempt")
    queue_id = _queue_id(request)
    attempt, path = await _log_path(request, queue_id, _number(number) if number else None)
    if not path.is_file():
        raise NotFound(f"attempt {attempt} of phase {queue_id} has left no log")
    return FileResponse(
        path, media_type="text/plain; charset=utf-8", filename=f"{queue_id}-{attempt}.log"
    )


# --- Actions


async def _form(request: Request, limit: int = _FORM) -> Form:
    """The fields of a form; a file is a field with its text."""
    body = await read_bytes(request, limit)
    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        fields = parse_qs(body.decode(errors="replace"), keep_blank_values=True)
        return {name: values[-1] for name, values in fields.items()}
    head = f"content-type: {kind}\r\n\r\n".encode(errors="replace")
    message = BytesParser(policy=HTTP).parsebytes(head + body)
    form = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(content, bytes):
            form[name] = content.decode(errors="replace").removeprefix("\ufeff")
    return form


def _reason(form: Form) -> str | None:
    return form.get("reason", "").replace("\0", "").strip()[:1000] or None


Deed = Callable[[Connection, Request, Form], Awaitable[object]]


def _action(deed: Deed) -> Handler:
    """A handler that does something, then goes back to the page it was done on."""

    @_answering
    async def act(request: Request) -> Response:
        form = await _form(request)
        async with door_of(request).acting(request) as conn:
            await deed(conn, request, form)
        return _done(request)

    return act


def _done(request: Request) -> Response:
    if request.headers.get("x-panel"):  # the script stays on the page, which is live
        return Response(status_code=204)
    return RedirectResponse(_back(request), 303)


def _id(request: Request) -> int:
    return _number(request.path_params["feature_id"], 2**31 - 1)


def _planning(deed: Callable[[Request], Awaitable[object]]) -> Handler:
    """As `_action`, for what may take minutes: `deed` has connections only when it needs them."""

    @_answering
    async def act(request: Request) -> Response:
        await deed(request)
        return _done(request)

    return act


async def _generate(request: Request) -> None:
    await door_of(request).plan(request, _id(request))


async def _execute(request: Request) -> None:
    door, feature_id = door_of(request), _id(request)
    await door.plan_unless_planned(request, feature_id)
    async with door.acting(request) as conn:
        await queries.execute_feature(conn, feature_id)


_FEATURE_DEEDS: dict[str, Deed] = {
    "pause": lambda conn, request, form: queries.pause(conn, _id(request), _reason(form)),
    "resume": lambda conn, request, form: queries.resume(conn, _id(request)),
    "cancel": lambda conn, request, form: queries.cancel_feature(conn, _id(request), _reason(form)),
}

_PHASE_DEEDS: dict[str, Deed] = {
    "retry": lambda conn, request, form: queries.retry_phase(
        conn, _queue_id(request), _reason(form)
    ),
    "skip": lambda conn, request, form: queries.skip_phase(conn, _queue_id(request), _reason(form)),
    "cancel": lambda conn, request, form: queries.cancel_phase(
        conn, _queue_id(request), _reason(form)
    ),
    "cancel-branch": lambda conn, request, form: queries_panel.cancel_branch(
        conn, _queue_id(request), _reason(form)
    ),
    "priority": lambda conn, request, form: queries.set_priority(
        conn, _queue_id(request), _number(form.get("priority", ""), 2**31 - 1)
    ),
}

_DEEDS: dict[str, Deed] = {
    "pause": lambda conn, request, form: queries.pause(conn, None, _reason(form)),
    "resume": lambda conn, request, form: queries.resume(conn, None),
    "slots": lambda conn, request, form: queries.set_slots(
        conn, _number(form.get("slots", ""), 2**31 - 1)
    ),
}


# --- Asking first


@dataclass(frozen=True)
class _Question:
    """What is asked before an action, `{}` being its subject."""

    question: str
    verb: str
    leave: str
    statement: str
    words: str | None = None
    preview: str | None = None
    other: tuple[str, str, str] | None = None


_PHASE_QUESTIONS = {
    "retry": _Question(
        "Retry {}?",
        "Retry",
        "Leave it",
        "select pgcoord.retry_phase('{}', reason)",
        preview="retry",
    ),
    "skip": _Question(
        "Skip {}?",
        "Skip",
        "Leave it",
        "select pgcoord.skip_phase('{}', reason)",
        preview="skip",
    ),
    "cancel": _Question(
        "Cancel {}?",
        "Cancel phase",
        "Leave it",
        "select pgcoord.cancel_phase('{}', reason)",
        preview="cancel",
        other=(
            "What depends on it is blocked until it is retried or skipped.",
            "cancel-branch",
            "Cancel that, too",
        ),
    ),
    "cancel-branch": _Question(
        "Cancel {} and what depends on it?",
        "Cancel them all",
        "Leave them",
        "select pgcoord.cancel_branch('{}', reason)",
        preview="cancel_branch",
        other=("", "cancel", "Cancel this phase only"),
    ),
}

_FEATURE_QUESTIONS = {
    "cancel": _Question(
        "Cancel {}?",
        "Cancel feature",
        "Leave it",
        "select pgcoord.cancel_feature({}, reason)",
        preview="cancel_feature",
    ),
    "pause": _Question(
        "Pause {}?",
        "Pause",
        "Leave it",
        "select pgcoord.pause({}, reason)",
        words="Nothing new of it starts until it is resumed; what runs goes on.",
    ),
}

_PAUSE = _Question(
    "Pause everything?",
    "Pause all",
    "Go on",
    "select pgcoord.pause(null, reason)",
    words="Nothing new starts until it is resumed; what runs goes on.",
)


def _ask_about_phase(name: str) -> Handler:
    asked = _PHASE_QUESTIONS[name]

    @_answering
    async def ask(request: Request) -> Response:
        queue_id = _queue_id(request)
        async with door_of(request).acting(request) as conn:
            phase = await queries_panel.phase(conn, queue_id)
        subject = f"phase {phase.phase_number}, {phase.title}"
        url = f"/phases/{quote(queue_id, safe='')}"
        return await _ask(request, asked, name, subject, queue_id, url, queue_id=queue_id)

    return ask


def _ask_about_feature(name: str) -> Handler:
    asked = _FEATURE_QUESTIONS[name]

    @_answering
    async def ask(request: Request) -> Response:
        feature_id = _id(request)
        async with door_of(request).acting(request) as conn:
            feature = await queries_panel.feature_row(conn, feature_id)
        url = f"/features/{feature_id}"
        subject = f"feature {feature_id}, {feature.title}"
        return await _ask(
            request, asked, name, subject, str(feature_id), url, feature_id=feature_id
        )

    return ask


@_answering
async def ask_pause(request: Request) -> Response:
    """Ask before everything is paused."""
    return await _ask(request, _PAUSE, "pause", "", "", "")


async def _ask(
    request: Request,
    asked: _Question,
    name: str,
    subject: str,
    argument: str,
    url: str,
    **of: Any,
) -> Response:
    context: dict[str, Any] = {"changes": None, "trouble": None, "other": None, "refused": False}
    if asked.preview:
        try:
            async with door_of(request).acting(request) as conn:
                context["changes"] = await queries_panel.preview(conn, asked.preview, **of)
        except CoordError as error:
            context.update(trouble=_trouble(error), refused=True)
    changes = context["changes"]
    if asked.other and changes and (name == "cancel-branch" or len(changes) > 1):
        words, other, link = asked.other
        context["other"] = {"words": words, "href": f"{url}/{other}", "link": link}
    question = asked.question.format(subject)
    return _page(
        request,
        "ask.html",
        409 if context["refused"] else 200,
        **context,
        title=f"{question} · pgcoord",
        question=question,
        action=f"{url}/{name}",
        words=asked.words,
        statement=asked.statement.format(argument.replace("'", "''")),
        verb=asked.verb,
        leave=asked.leave,
        back=url or "/",
    )


# --- New features


@_answering
async def new(request: Request) -> Response:
    """Show the forms for a new feature."""
    return _new(request, {}, None)


@_answering
async def create(request: Request) -> Response:
    """Take a plan or a description; what is wrong with it is said beside it."""
    form = await _form(request, _PLAN)
    from_plan = "plan" in form or "file" in form
    try:
        given = await (_read_plan if from_plan else _read_description)(request, form)
        async with door_of(request).acting(request) as conn, conn.transaction():
            feature_id = await queries.store_feature(conn, given)
            if form.get("then") == "execute":
                await queries.execute_feature(conn, feature_id)
    except (InvalidInput, PlannerFailed) as error:
        return _new(request, form, error)
    return RedirectResponse(f"/features/{feature_id}", 303)


def _new(request: Request, form: Form, error: CoordError | None) -> Response:
    return _page(
        request,
        "new.html",
        meaning(error)[0] if error else 200,
        title="New feature · pgcoord",
        trouble=_trouble(error) if error else None,
        faulty=isinstance(error, InvalidPlan),
        plan=_plan_text(form),
        form=form,
    )


def _plan_text(form: Form) -> str:
    """The plan: a file, if one was given, else what was typed."""
    return form.get("file", "").strip() or form.get("plan", "")


async def _workflows(request: Request) -> Workflows:
    async with door_of(request).acting(request) as conn:
        return await declared_workflows(conn)


async def _parse(request: Request, text: str) -> Plan:
    workflows = await _workflows(request)
    return await asyncio.to_thread(
        parse_plan,
        text.replace("\r\n", "\n"),
        name="plan",
        workflows=workflows.names,
        has_default=workflows.has_default,
    )


async def _read_plan(request: Request, form: Form) -> dict[str, object]:
    """A feature as its plan describes it."""
    return (await _parse(request, _plan_text(form))).feature()


async def _read_description(request: Request, form: Form) -> dict[str, object]:
    """A feature in words; with its plan, where that is asked for."""
    title, description, hours = (
        form.get(each, "").replace("\0", "").replace("\r\n", "\n").strip()
        for each in ("title", "description", "hours")
    )
    given: dict[str, object] = {
        "title": title,
        "description": description or None,
        "estimated_hours": _hours(hours) if hours else None,
    }
    if form.get("then") in ("generate", "execute") and title:
        feature = Feature(title, description, _hours(hours) if hours else None)
        planned = await door_of(request).planner.plan(feature, await _workflows(request))
        given["phases"] = planned.phases
    return given


def _hours(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,6}([.,][0-9]{1,2})?", text):
        raise InvalidInput(f"{text!r:.60} are no hours", hint='A number such as "6" or "2.5".')
    return float(text.replace(",", "."))


# --- Plans


@_answering
async def plan(request: Request) -> Response:
    """Show the stored plan of a feature as Markdown, to be edited."""
    feature_id = _id(request)
    async with door_of(request).acting(request) as conn:
        feature = await queries.feature_to_plan(conn, feature_id)
        rows = (await queries_panel.described(conn, feature_id)).plan
    text = write_plan(feature.title, None, rows)
    return _plan_form(request, feature.title, text, feature.version, None, _faithful(text, rows))


def _faithful(text: str, rows: list[Any]) -> bool:
    """Whether a plan says all that the stored one does; nothing says nothing."""
    try:
        return not rows or [each.row() for each in parse_plan(text, name="plan").phases] == rows
    except InvalidPlan:
        return False


@_answering
async def edit(request: Request) -> Response:
    """Store a plan in place of the one that a feature had; what is wrong is said line by line."""
    form = await _form(request, _PLAN)
    feature_id, version = _id(request), form.get("version") or None
    door = door_of(request)
    async with door.acting(request) as conn:
        feature = await queries.feature_to_plan(conn, feature_id)
    try:
        read = await _parse(request, _plan_text(form))
        changes: dict[str, object] = {"title": read.title, "phases": read.feature()["phases"]}
        if read.description:
            changes["description"] = read.description
        async with door.acting(request) as conn, conn.transaction():
            await queries.change_feature(conn, feature_id, changes, version)
            if form.get("then") == "execute":
                await queries.execute_feature(conn, feature_id)
    except (InvalidInput, Refused) as error:
        return _plan_form(request, feature.title, _plan_text(form), version or "", error, True)
    return RedirectResponse(f"/features/{feature_id}", 303)


def _plan_form(
    request: Request,
    title: str,
    text: str,
    version: str,
    error: CoordError | None,
    faithful: bool,
) -> Response:
    return _page(
        request,
        "plan.html",
        meaning(error)[0] if error else 200,
        title=f"Plan of {title} · pgcoord",
        feature_id=_id(request),
        feature=title,
        plan=text,
        version=version,
        trouble=_trouble(error) if error else None,
        faulty=isinstance(error, InvalidPlan),
        faithful=faithful,
    )


_PHASE = "/phases/{queue_id:path}"
_FEATURE = "/features/{feature_id}"

routes: list[BaseRoute] = [
    Route("/", overview),
    Route("/history", history),
    Route("/pause", ask_pause),
    *(Route(f"/{name}", _action(deed), methods=["POST"]) for name, deed in _DEEDS.items()),
    Route("/features/new", new),
    Route("/features/new", create, methods=["POST"]),
    *(Route(f"{_FEATURE}/{name}", _ask_about_feature(name)) for name in _FEATURE_QUESTIONS),
    *(
        Route(f"{_FEATURE}/{name}", _action(deed), methods=["POST"])
        for name, deed in _FEATURE_DEEDS.items()
    ),
    Route(f"{_FEATURE}/generate", _planning(_generate), methods=["POST"]),
    Route(f"{_FEATURE}/execute", _planning(_execute), methods=["POST"]),
    Route(f"{_FEATURE}/plan", plan),
    Route(f"{_FEATURE}/plan", edit, methods=["POST"]),
    Route(_FEATURE, feature),
    *(Route(f"{_PHASE}/{name}", _ask_about_phase(name)) for name in _PHASE_QUESTIONS),
    *(
        Route(f"{_PHASE}/{name}", _action(deed), methods=["POST"])
        for name, deed in _PHASE_DEEDS.items()
    ),
    Route(f"{_PHASE}/log", log),
    Route(_PHASE, phase),
]
