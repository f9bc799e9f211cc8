"""POST /webhooks/github: records events of GitHub, and acts on them where configured."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from pgcoord.configuration.model import GitHub
from pgcoord.database import issues
from pgcoord.http.pool import until_disconnected
from pgcoord.http.responses import BODY_LIMIT, Json, read_body
from pgcoord.http.state import state_of
from pgcoord.messages.json_schema import HIGHEST_INTEGER, Schema, faults
from pgcoord.messages.signing import NotSigned, WrongShape, parse_json

# The most words of a pull request in which to search for the name of a phase.
_MOST_WORDS = 2_000

_TEXT = {"type": ["string", "null"]}
_NUMBER = {"type": "integer", "minimum": 1, "maximum": HIGHEST_INTEGER}
_REPOSITORY = {
    "type": ["object", "null"],  # the fork of a pull request may have been deleted
    "required": ["full_name"],
    "properties": {"full_name": {"type": "string"}},
}
_NAMED = {"type": "object", "required": ["login"], "properties": {"login": {"type": "string"}}}

# The fields that are read; GitHub sends many more.
SCHEMA: Schema = {
    "type": "object",
    "description": "An event as GitHub sends it; `issues` and `pull_request` are of interest.",
    "properties": {
        "action": {"type": "string"},
        "repository": _REPOSITORY,
        "sender": _NAMED,
        "issue": {
            "type": "object",
            "required": ["number"],
            "properties": {"number": _NUMBER, "state_reason": _TEXT},
        },
        "pull_request": {
            "type": "object",
            "required": ["number", "title", "head"],
            "properties": {
                "number": _NUMBER,
                "title": {"type": "string"},
                "body": _TEXT,
                "merged": {"type": ["boolean", "null"]},
                "head": {
                    "type": "object",
                    "required": ["ref"],
                    "properties": {"ref": {"type": "string"}, "repo": _REPOSITORY},
                },
            },
        },
    },
}

_CLOSING = re.compile(r"\b(?:close[sd]?|fix(?:e[sd])?|resolve[sd]?):?\s+#(\d{1,9})\b", re.I)
_WORD = re.compile(r"[A-Za-z0-9][\w.-]*[A-Za-z0-9]")


@dataclass(frozen=True)
class GitHubEvent:
    """An event that may concern phases.

    `summary` is its text for the history; `numbers` are the issues and `words` the words by
    which it may name phases.
    """

    kind: str
    summary: str
    numbers: list[int]
    words: list[str]
    pr_number: int | None = None

    def action(self, settings: GitHub) -> str:
        """The configured action on its phases."""
        return {
            "issue_closed": settings.on_issue_closed,
            "issue_reopened": settings.on_issue_reopened,
            "pull_request_merged": settings.on_pull_request_merged,
        }.get(self.kind, "nothing")


async def github_event(request: Request) -> Response:
    """Record an event and answer after the commit; an event that concerns no phase is ignored."""
    state = state_of(request)
    settings = state.coordinator.configuration.github
    secret = state.access.github_secret
    if settings is None or secret is None:
        raise HTTPException(
            404, "no webhook_secret in [github] of pgcoord.toml: no event is accepted"
        )
    body = await read_body(request, BODY_LIMIT)
    _check_signature(body, request.headers.get("x-hub-signature-256", ""), secret)
    event = parse_json(body)
    if violations := list(faults(event, SCHEMA)):
        raise WrongShape(violations)
    change = _event_of(request.headers.get("x-github-event", ""), event)
    if change is None or not _is_ours(event, settings):
        return Json({"result": "ignored", "phases": []})
    async with (
        until_disconnected(request),
        state.database.connection(kind="report") as conn,
    ):
        result, phases = await issues.take_github_event(
            conn,
            {
                # The delivery's own header is not signed.
                "delivery": f"sha256:{hashlib.sha256(body).hexdigest()}",
                "kind": change.kind,
                "repository": event["repository"]["full_name"],
                "sender": event["sender"]["login"],
                "said": change.summary,
                "numbers": change.numbers,
                "words": change.words,
                "pr_number": change.pr_number,
            },
            change.action(settings),
        )
    return Json({"result": result, "phases": phases})


def _check_signature(body: bytes, signature: str, secret: str) -> None:
    from gidgethub import ValidationFailure, sansio

    if not signature.startswith("sha256=") or not signature.isascii():
        raise NotSigned("the event is not signed: X-Hub-Signature-256 is missing")
    try:
        sansio.validate_event(body, signature=signature, secret=secret)
    except ValidationFailure as error:
        raise NotSigned("the signature was not made with the webhook secret of [github]") from error


def _event_of(name: str, event: dict[str, Any]) -> GitHubEvent | None:
    """Return a GitHub event in the terms of phases; None if it cannot concern any."""
    action = event.get("action")
    if not event.get("repository") or not event.get("sender"):
        return None
    if name == "issues" and action in ("closed", "reopened") and "issue" in event:
        number, reason = event["issue"]["number"], event["issue"].get("state_reason")
        how = f" as {reason.replace('_', ' ')}" if reason and action == "closed" else ""
        return GitHubEvent(f"issue_{action}", f"issue #{number} was {action}{how}", [number], [])
    if name == "pull_request" and "pull_request" in event:
        return _pull_request(event)
    return None


def _pull_request(event: dict[str, Any]) -> GitHubEvent | None:
    """Return a pull request that was merged, or opened from a branch of the repository itself.

    Ignores those from a fork, which anybody may open.
    """
    action, pull = event.get("action"), event["pull_request"]
    merged = action == "closed" and bool(pull.get("merged"))
    ours = _name(pull["head"].get("repo")) == _name(event["repository"])
    if not merged and not (action in ("opened", "reopened") and ours):
        return None
    text = f"{pull['head']['ref'].replace('/', ' ')}\n{pull['title']}\n{pull.get('body') or ''}"
    numbers = sorted({int(number) for number in _CLOSING.findall(text)})
    change = "merged" if merged else "opened"
    message = f"pull request #{pull['number']} was {change}"
    words = sorted(set(_words(text)))
    return GitHubEvent(f"pull_request_{change}", message, numbers, words, pull["number"])


def _is_ours(event: dict[str, Any], settings: GitHub) -> bool:
    return bool(event["repository"]["full_name"].lower() == settings.repository.lower())


def _name(repository: dict[str, Any] | None) -> str | None:
    return repository["full_name"] if repository else None


def _words(text: str) -> Iterator[str]:
    """Yield the words of *text* that may name a phase or an attempt, such as queue-104-2."""
    for number, match in enumerate(_WORD.finditer(text)):
        if number == _MOST_WORDS:
            return
        if "-" in match[0]:
            yield match[0]


routes: list[BaseRoute] = [
    Route(path, github_event, methods=["POST"])
    for path in ("/webhooks/github", "/api/v1/webhooks/github")
]
