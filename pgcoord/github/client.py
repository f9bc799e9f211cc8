"""A client of one GitHub repository: the calls that issues need, and an error for each failure.

Each call is made once. A failure raises `NotNow` (a limit or an outage: try again later) or
`Refusal`; the caller decides when to retry. Imported only where a repository is configured.
"""

import re
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from urllib.parse import urlencode

import httpx2
from gidgethub import HTTPException, apps
from gidgethub.httpx import GitHubAPI
from jwt import PyJWTError

from pgcoord import __version__
from pgcoord.configuration.model import GitHub
from pgcoord.errors import CannotStart, InvalidConfiguration, NotNow, message_of

# Seconds that GitHub has for an answer; it gives up itself after ten.
_TIMEOUT = 15.0

# The token of an app is renewed so long before it runs out.
_RENEWED = timedelta(minutes=5)

# Largest accepted difference between the clocks of GitHub and of the database.
_SKEW = timedelta(minutes=5)

# Waits before the next request when GitHub gives none; each further one is twice as long. After a
# request of unknown outcome, until an issue would be listed: pgcoord_private.issue_settles().
_LIMITED = timedelta(seconds=60)
_UNREACHABLE = timedelta(seconds=5)
_UNKNOWN = timedelta(seconds=20)

# GitHub's limits end within an hour: a wrong clock must not stop requests for days.
_LONGEST = timedelta(hours=1)

_VERSION = {"x-github-api-version": "2022-11-28"}

_NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


class Refusal(CannotStart):
    """A permanent refusal: missing permission, issues disabled, or no such repository."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, hint="'pgcoord doctor' names what is missing.")
        self.status = status


@dataclass(frozen=True)
class Issue:
    """An issue: its number, its id in the API, its author, and whether it is open."""

    number: int
    id: int
    author: str
    is_open: bool

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self:
        """Read an issue from the JSON of the API."""
        return cls(fields["number"], fields["id"], _author_of(fields), fields["state"] == "open")


@dataclass(frozen=True)
class PullRequest:
    """A pull request: its number and its page."""

    number: int
    url: str

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self:
        """Read a pull request from the JSON of the API."""
        return cls(fields["number"], fields["html_url"])


@dataclass(frozen=True)
class Credentials:
    """A token, or the private key of a GitHub app."""

    token: str | None = None
    app_id: str = ""
    installation_id: str = ""
    private_key: str = ""


def read_credentials(settings: GitHub, environment: Mapping[str, str]) -> Credentials:
    """Read the configured credentials. Raises `InvalidConfiguration` when they are missing."""
    if settings.app_id is None:
        token = environment.get("GITHUB_TOKEN") or environment.get("GH_TOKEN")
        if not token or not token.isascii() or not token.isprintable():
            raise InvalidConfiguration(
                "[github]: neither GITHUB_TOKEN nor GH_TOKEN holds a token",
                hint="Set one that may write issues, or name an app: app_id, installation_id,"
                " private_key_file. See docs/github.md.",
            )
        return Credentials(token)
    assert settings.installation_id is not None
    assert settings.private_key_file is not None
    try:
        private_key = settings.private_key_file.read_text(encoding="utf-8")
        apps.get_jwt(app_id=settings.app_id, private_key=private_key)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise InvalidConfiguration(f"{settings.private_key_file}: {why}") from error
    except (PyJWTError, ValueError, TypeError) as error:
        raise InvalidConfiguration(
            f"{settings.private_key_file}: not a private key in PEM format"
        ) from error
    return Credentials(None, settings.app_id, settings.installation_id, private_key)


class Repository:
    """The issues of one repository. Close it with `async with` or `disconnect`."""

    def __init__(self, settings: GitHub, credentials: Credentials) -> None:
        self.name = settings.repository
        self._client = httpx2.AsyncClient(timeout=_TIMEOUT)
        self._api = GitHubAPI(self._client, f"pgcoord/{__version__}", base_url=settings.api_url)
        self._credentials = credentials
        self._token = credentials.token
        self._token_ends: datetime | None = None
        self._login: str | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.disconnect()

    async def disconnect(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def post_issue(self, title: str, body: str, labels: list[str]) -> Issue:
        """Create an issue. Raises `NotNow` or `Refusal`, as all methods do."""
        with self._errors_translated("no repository, or no right to see it"):
            issue = {"title": title, "body": body, "labels": labels}
            return Issue.read(await self._post("/issues", issue))

    async def find_issues(self, words: str, since: datetime) -> list[Issue]:
        """Return pgcoord's issues with *words* in their body, created after *since*, lowest first.

        Lists all issues: filters and the search of GitHub lag minutes behind.
        """
        author = await self._author()
        with_key = []
        newest_first = "/issues?state=all&sort=created&direction=desc&per_page=100"
        async with aclosing(self._listed(newest_first)) as issues:
            async for issue in issues:
                if datetime.fromisoformat(issue["created_at"]) < since - _SKEW:
                    break
                ours = author is None or _author_of(issue) == author
                if ours and "pull_request" not in issue and words in (issue.get("body") or ""):
                    with_key.append(Issue.read(issue))
        return sorted(with_key, key=lambda each: each.number)

    async def issue(self, number: int) -> Issue:
        """Return the issue *number*."""
        with self._errors_translated(f"no issue #{number}", changes=False):
            return Issue.read(await self._get(f"/issues/{number}"))

    async def make_label(self, name: str, color: str, description: str) -> None:
        """Create a label unless it exists."""
        label = {"name": name, "color": color, "description": description[:100]}
        try:
            with self._errors_translated("no right to make labels"):
                await self._post("/labels", label)
        except Refusal as error:
            if error.status != 422:
                raise

    async def has_comment(self, number: int, words: str) -> bool:
        """Whether an issue has a comment that contains *words*."""
        async with aclosing(self._listed(f"/issues/{number}/comments?per_page=100")) as comments:
            async for comment in comments:
                if words in (comment.get("body") or ""):
                    return True
        return False

    async def comment(self, number: int, body: str) -> None:
        """Comment on an issue."""
        with self._errors_translated(f"no issue #{number}"):
            await self._post(f"/issues/{number}/comments", {"body": body})

    async def close(self, number: int, reason: str) -> None:
        """Close an issue as completed or not_planned."""
        await self._change(number, state="closed", state_reason=reason)

    async def close_duplicate(self, number: int, of: Issue) -> None:
        """Close an issue as the duplicate of another."""
        await self._change(
            number, state="closed", state_reason="duplicate", duplicate_issue_id=of.id
        )

    async def reopen(self, number: int) -> None:
        """Reopen an issue."""
        await self._change(number, state="open")

    async def find_pull_request(self, head: str, base: str) -> PullRequest | None:
        """Return the pull request of the branch *head* into *base* that is open."""
        owner = self.name.partition("/")[0]
        query = urlencode({"head": f"{owner}:{head}", "base": base, "state": "open"})
        with self._errors_translated("no repository, or no right to see it", changes=False):
            pulls = await self._get(f"/pulls?{query}")
            return PullRequest.read(pulls[0]) if pulls else None

    async def open_pull_request(
        self, title: str, head: str, base: str, body: str, *, draft: bool
    ) -> PullRequest:
        """Open a pull request of the branch *head* into *base*."""
        fields = {"title": title, "head": head, "base": base, "body": body, "draft": draft}
        with self._errors_translated(f"no branch {head}, or no right to open a pull request"):
            return PullRequest.read(await self._post("/pulls", fields))

    async def about(self) -> dict[str, Any]:
        """Return the repository, as the API describes it."""
        with self._errors_translated("no repository, or no right to see it", changes=False):
            repository: dict[str, Any] = await self._get("")
            return repository

    async def check_may_post(self) -> None:
        """Raise `Refusal` unless the credentials may create issues.

        Sends an issue without a title: GitHub checks permissions first, and never creates it.
        """
        try:
            with self._errors_translated("no right to make issues"):
                await self._post("/issues", {})
        except Refusal as error:
            if error.status != 422:
                raise

    async def _change(self, number: int, **change: object) -> None:
        with self._errors_translated(f"no issue #{number}"):
            path = self._path(f"/issues/{number}")
            await self._api.patch(path, data=change, **await self._options())

    async def _author(self) -> str | None:
        """Return the login of the token; None for an app, which has no user."""
        if self._login is None:
            try:
                with self._errors_translated("no user", changes=False):
                    user = await self._api.getitem("/user", **await self._options())
                    self._login = str(user["login"])
            except Refusal as error:
                if error.status not in (403, 404):
                    raise
                self._login = ""
        return self._login or None

    async def _listed(self, path: str) -> AsyncGenerator[dict[str, Any]]:
        with self._errors_translated("no repository, or no right to see it", changes=False):
            pages = self._api.getiter(self._path(path), **await self._options())
            async for each in pages:
                yield each

    async def _get(self, path: str) -> Any:
        return await self._api.getitem(self._path(path), **await self._options())

    async def _post(self, path: str, data: Mapping[str, object]) -> Any:
        return await self._api.post(self._path(path), data=data, **await self._options())

    async def _options(self) -> dict[str, Any]:
        return {
            "oauth_token": await self._oauth_token(),
            "accept": "application/json",
            "extra_headers": dict(_VERSION),
        }

    def _path(self, path: str) -> str:
        return f"/repos/{self.name}{path}"

    async def _oauth_token(self) -> str:
        """Return the token; renew that of an app before it expires.

        When this fails, certainly no request was sent with it.
        """
        ends = self._token_ends
        if self._token is None or (ends and datetime.now(UTC) > ends - _RENEWED):
            with self._errors_translated("no such installation of the app", changes=False):
                token = await apps.get_installation_access_token(
                    self._api,
                    installation_id=self._credentials.installation_id,
                    app_id=self._credentials.app_id,
                    private_key=self._credentials.private_key,
                )
                self._token = str(token["token"])
                self._token_ends = datetime.fromisoformat(token["expires_at"])
        return self._token

    @contextmanager
    def _errors_translated(self, missing: str, *, changes: bool = True) -> Iterator[None]:
        """Convert errors of the block to `NotNow` or `Refusal`.

        *missing*: the meaning of 404. *changes*: a request without an answer may have succeeded.
        """
        try:
            yield
        except HTTPException as error:
            raise _error_of(error, self.name, missing, changes=changes) from error
        except _NOT_SENT as error:
            raise NotNow(
                f"GitHub cannot be reached: {_words(error)}", _UNREACHABLE, grows=True
            ) from error
        except httpx2.TransportError as error:
            raise NotNow(
                f"GitHub did not answer: {_words(error)}",
                _UNKNOWN,
                grows=True,
                certain=not changes,
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise NotNow(
                f"the response is not valid: {_words(error)}",
                _UNKNOWN,
                grows=True,
                certain=not changes,
            ) from error


def _error_of(
    error: HTTPException, repository: str, missing: str, *, changes: bool
) -> NotNow | Refusal:
    """Convert an error response, by its status, headers and message."""
    status, words = int(error.status_code), _words(error)
    limited = status == 429 or (status == 403 and _is_limit(error))
    if limited:
        wait = _wait_of(error.headers)
        return NotNow(f"GitHub limits requests: {words}", wait or _LIMITED, grows=wait is None)
    if status >= 500 or status in (408, 409):
        wait = _wait_of(error.headers)
        return NotNow(
            f"GitHub failed: {status} {words}",
            max(wait or _UNKNOWN, _UNKNOWN),
            grows=wait is None,
            certain=not changes,
        )
    return Refusal(f"GitHub, {repository}: {_refusal(error, status, words, missing)}", status)


def _refusal(error: HTTPException, status: int, words: str, missing: str) -> str:
    if status == 401:
        return f"the credentials are not valid ({words})"
    if status == 403:
        right = error.headers.get("x-accepted-github-permissions")
        return f"{words} (it needs {right})" if right else words
    if status == 404:
        return f"{missing} ({words})"
    if status == 410:
        return f"issues are disabled there, or the issue was deleted ({words})"
    if status < 400:
        return "the repository was moved; name the new one in [github]"
    return words


def _is_limit(error: HTTPException) -> bool:
    return (
        "retry-after" in error.headers
        or error.headers.get("x-ratelimit-remaining") == "0"
        or re.search("rate limit|abuse", str(error), re.IGNORECASE) is not None
    )


def _wait_of(headers: Mapping[str, str]) -> timedelta | None:
    """Return how long GitHub asks to wait; None if it does not say."""
    try:
        if "retry-after" in headers:
            seconds = float(headers["retry-after"])
        elif headers.get("x-ratelimit-remaining") == "0":
            seconds = float(headers["x-ratelimit-reset"]) - time.time()
        else:
            return None
        return min(max(timedelta(seconds=seconds + 1), timedelta(seconds=1)), _LONGEST)
    except (KeyError, ValueError, OverflowError):
        return None


def _author_of(issue: Mapping[str, Any]) -> str:
    """Return the author's login; empty for a deleted user."""
    return str((issue.get("user") or {}).get("login", ""))


def _words(error: Exception) -> str:
    return message_of(error)[:300] or type(error).__name__
