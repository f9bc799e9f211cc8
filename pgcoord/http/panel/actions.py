"""What is asked before work is destroyed or held up, and what would change then.

A question is a page with a form; the script of the panel shows it as a dialog.
"""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from pgcoord.database import panel
from pgcoord.database._sql import Connection
from pgcoord.errors import CoordError
from pgcoord.http.panel.responses import (
    ErrorView,
    Handler,
    error_page,
    error_view,
    feature_id_of,
    queue_id_of,
    render_page,
)
from pgcoord.http.state import state_of


@dataclass(frozen=True)
class _Other:
    """The question that may be meant instead."""

    words: str
    name: str
    link: str


@dataclass(frozen=True)
class _Question:
    """What is asked before an action on `{}`; `preview` is what the database calls the action."""

    question: str
    verb: str
    statement: str
    leave: str = "Leave it"
    words: str | None = None
    preview: str | None = None
    other: _Other | None = None


@dataclass(frozen=True)
class _Subject:
    """What a question is about: in words, as an argument of SQL, and where its page is."""

    words: str = ""
    argument: str = ""
    url: str = ""
    feature_id: int | None = None
    queue_id: str | None = None


_PHASE = {
    "retry": _Question(
        "Retry {}?", "Retry", "select pgcoord.retry_phase('{}', reason)", preview="retry"
    ),
    "skip": _Question(
        "Skip {}?", "Skip", "select pgcoord.skip_phase('{}', reason)", preview="skip"
    ),
    "cancel": _Question(
        "Cancel {}?",
        "Cancel phase",
        "select pgcoord.cancel_phase('{}', reason)",
        preview="cancel",
        other=_Other(
            "What depends on it is blocked until it is retried or skipped.",
            "cancel-branch",
            "Cancel that, too",
        ),
    ),
    "cancel-branch": _Question(
        "Cancel {} and what depends on it?",
        "Cancel them all",
        "select pgcoord.cancel_branch('{}', reason)",
        leave="Leave them",
        preview="cancel_branch",
        other=_Other("", "cancel", "Cancel this phase only"),
    ),
}

_FEATURE = {
    "cancel": _Question(
        "Cancel {}?",
        "Cancel feature",
        "select pgcoord.cancel_feature({}, reason)",
        preview="cancel_feature",
    ),
    "pause": _Question(
        "Pause {}?",
        "Pause",
        "select pgcoord.pause({}, reason)",
        words="Nothing new of it starts until it is resumed; what runs goes on.",
    ),
}

_ALL = {
    "pause": _Question(
        "Pause everything?",
        "Pause all",
        "select pgcoord.pause(null, reason)",
        leave="Go on",
        words="Nothing new starts until it is resumed; what runs goes on.",
    ),
}

_Finding = Callable[[Connection, Request], Awaitable[_Subject]]


async def _phase(conn: Connection, request: Request) -> _Subject:
    phase = await panel.phase(conn, queue_id_of(request))
    return _Subject(
        f"phase {phase.phase_number}, {phase.title}",
        phase.queue_id.replace("'", "''"),
        f"/phases/{quote(phase.queue_id, safe='')}",
        queue_id=phase.queue_id,
    )


async def _feature(conn: Connection, request: Request) -> _Subject:
    feature = await panel.feature_row(conn, feature_id_of(request))
    words = f"feature {feature.id}, {feature.title}"
    return _Subject(words, str(feature.id), f"/features/{feature.id}", feature_id=feature.id)


async def _everything(conn: Connection, request: Request) -> _Subject:
    return _Subject()


def _asks(name: str, asked: _Question, find: _Finding) -> Handler:
    @error_page
    async def ask(request: Request) -> Response:
        changes: list[panel.Change] | None = None
        refusal: ErrorView | None = None
        async with state_of(request).acting(request, kind="change") as conn:
            subject = await find(conn, request)
            if asked.preview:
                try:
                    changes = await panel.preview(
                        conn,
                        asked.preview,
                        feature_id=subject.feature_id,
                        queue_id=subject.queue_id,
                    )
                except CoordError as error:
                    refusal = error_view(error)
        question = asked.question.format(subject.words)
        return render_page(
            request,
            "ask.html",
            409 if refusal else 200,
            title=f"{question} · pgcoord",
            question=question,
            asked=asked,
            action=f"{subject.url}/{name}",
            statement=asked.statement.format(subject.argument),
            changes=changes,
            error=refusal,
            url=subject.url,
        )

    return ask


def routes(feature: str, phase: str) -> Iterator[BaseRoute]:
    """The questions about everything, and about features and phases, which are at these paths."""
    for path, questions, find in (
        ("", _ALL, _everything),
        (feature, _FEATURE, _feature),
        (phase, _PHASE, _phase),
    ):
        for name, asked in questions.items():
            yield Route(f"{path}/{name}", _asks(name, asked, find))
