"""Who may enter: names of hosts, origins, tokens, and what browsers are told to refuse.

Whoever is on this machine may do all, unless there is a token; from elsewhere nobody comes in
without one. Reports of workflows carry their own signature (webhook.py).
"""

import base64
import hashlib
import hmac
import ipaddress
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pgcoord.configuration import GitHub, Server
from pgcoord.errors import CannotStart, InvalidConfiguration
from pgcoord.http.responses import refusal
from pgcoord.report import is_secret

COOKIE = "pgcoord_session"
SESSION_SECONDS = 7 * 24 * 3600

# A token of fewer characters could be guessed.
_SHORTEST_TOKEN = 16

# Failed log-ins from one address within a minute, after which it has to wait.
_MOST_FAILURES = 5
_MINUTE = 60.0

_OPEN = (
    *("/healthz", "/readyz", "/login", "/logout"),
    *("/workflow-complete", "/api/v1/workflow-complete"),
    *("/webhooks/github", "/api/v1/webhooks/github"),
)
_SAFE = ("GET", "HEAD", "OPTIONS")

_HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'self';"
    " frame-ancestors 'none'; object-src 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


@dataclass(frozen=True)
class Access:
    """Who may do what, as the configuration and the environment say."""

    token: str | None
    read_token: str | None
    names: frozenset[str]  # of hosts, besides addresses
    origin: str | None  # of the public URL
    webhook_secrets: Mapping[str, str]
    unsigned_webhooks: bool = False
    github_secret: str | None = None

    def risks(self) -> Iterator[str]:
        """What whoever serves so has to know."""
        if self.unsigned_webhooks:
            yield "reports that nobody has signed are taken: whoever comes here can end any phase"
        if self.token is None and self.origin and not _is_loopback(urlsplit(self.origin).hostname):
            yield (
                f"public_url is {self.origin}, and there is no PGCOORD_TOKEN: whoever is let in"
                " there can steer everything"
            )


def read_access(
    server: Server,
    environment: Mapping[str, str],
    *,
    address: str,
    name: str,
    unsigned_webhooks: bool = False,
    github: GitHub | None = None,
) -> Access:
    """Who may do what where `address`, which was given as `name`, is served.

    Raises `CannotStart` when that would let in everybody, `InvalidConfiguration` for secrets that
    are missing or too weak.
    """
    token, read_token = (
        _token(environment, each) for each in ("PGCOORD_TOKEN", "PGCOORD_READ_TOKEN")
    )
    if token is None and (read_token or not _is_loopback(address)):
        why = "PGCOORD_READ_TOKEN alone" if read_token else f"{address} can be reached by others"
        raise CannotStart(
            f"{why}: not served without PGCOORD_TOKEN, which only who may steer pgcoord knows",
            hint='For example: export PGCOORD_TOKEN="$(openssl rand -hex 32)"',
        )
    public = urlsplit(server.public_url) if server.public_url else None
    return Access(
        token=token,
        read_token=read_token,
        names=frozenset(
            {"localhost", name.lower()} | ({public.hostname or ""} if public else set())
        ),
        origin=f"{public.scheme}://{public.netloc}".lower() if public else None,
        webhook_secrets={each: _secret(environment, each) for each in server.webhook_secrets},
        unsigned_webhooks=unsigned_webhooks,
        github_secret=_github_secret(environment, github),
    )


def _github_secret(environment: Mapping[str, str], github: GitHub | None) -> str | None:
    """The secret that GitHub signs its events with: any text, as somebody has entered it there."""
    if github is None or github.webhook_secret is None:
        return None
    secret = _token(environment, github.webhook_secret)
    if secret is None:
        raise InvalidConfiguration(
            f"github.webhook_secret: {github.webhook_secret} is not set",
            hint=f'For example: export {github.webhook_secret}="$(openssl rand -hex 32)"',
        )
    return secret


def _token(environment: Mapping[str, str], name: str) -> str | None:
    token = environment.get(name)
    if token and (len(token) < _SHORTEST_TOKEN or not token.isascii()):
        raise InvalidConfiguration(
            f"{name} is too short, or not ASCII: {_SHORTEST_TOKEN} characters at least",
            hint=f'For example: export {name}="$(openssl rand -hex 32)"',
        )
    return token or None


def _secret(environment: Mapping[str, str], name: str) -> str:
    secret = environment.get(name, "")
    if not is_secret(secret):
        raise InvalidConfiguration(
            f"server.webhook_secrets: {name} holds no secret: expected whsec_… of 24 bytes",
            hint=f'For example: export {name}="whsec_$(openssl rand -base64 32)"',
        )
    return secret


def actor_of(request: HTTPConnection) -> str:
    """Who sent a request, as the history shall name them."""
    entrant: _Entrant = request.scope[_ENTRANT]
    return entrant.actor


def may_change(request: HTTPConnection) -> bool:
    """Whether who sent a request may change things, too."""
    entrant: _Entrant | None = request.scope[_ENTRANT]
    return entrant is not None and entrant.steers


def has_logged_in(request: HTTPConnection) -> bool:
    """Whether who sent a request came in by the page for that, and so may leave again."""
    entrant: _Entrant | None = request.scope[_ENTRANT]
    return entrant is not None and entrant.has_cookie


_ENTRANT = "pgcoord.entrant"


@dataclass(frozen=True)
class _Entrant:
    actor: str
    steers: bool
    has_cookie: bool = False


class Sessions:
    """Log-ins of people: a cookie that only who knows the tokens can have made."""

    def __init__(self, access: Access) -> None:
        self._access = access
        known = f"pgcoord session\0{access.token}\0{access.read_token}"
        self._key = hashlib.sha256(known.encode()).digest()
        self._failures: dict[str, deque[float]] = {}

    def log_in(self, token: str, name: str) -> str | None:
        """The cookie for a person who knows a token; None when it is not one."""
        steers = self.steers(token)
        if steers is None:
            return None
        until = int(time.time()) + SESSION_SECONDS
        said = base64.urlsafe_b64encode(name.encode(errors="replace")).decode().rstrip("=")
        return self._seal(f"{'steer' if steers else 'read'}.{until}.{said}")

    def entrant(self, cookie: str) -> _Entrant | None:
        """Who holds a cookie; None when it was not made here, or has run out."""
        text, _, _ = cookie.rpartition(".")
        if not hmac.compare_digest(self._seal(text).encode(), cookie.encode()):
            return None
        level, until, said = text.split(".")
        if int(until) < time.time():
            return None
        name = base64.urlsafe_b64decode(said + "==").decode()
        return _Entrant(f"{name or 'somebody'} (panel)", level == "steer", has_cookie=True)

    def steers(self, token: str) -> bool | None:
        """Whether who knows a token may steer, or read only; None when it is none."""
        for known, steers in ((self._access.token, True), (self._access.read_token, False)):
            if known and hmac.compare_digest(known.encode(), token.encode()):
                return steers
        return None

    def has_to_wait(self, client: str) -> bool:
        """Whether too many log-ins from an address have failed within the last minute."""
        failures = self._failures.get(client, deque())
        return len(failures) == _MOST_FAILURES and failures[0] > time.monotonic() - _MINUTE

    def failed(self, client: str) -> None:
        """Count a failed log-in."""
        now = time.monotonic()
        for each in [one for one, at in self._failures.items() if at[-1] < now - _MINUTE]:
            del self._failures[each]
        self._failures.setdefault(client, deque(maxlen=_MOST_FAILURES)).append(now)

    def _seal(self, text: str) -> str:
        return f"{text}.{hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()}"


class Guard:
    """Stands before the application: lets in who may enter, and sends the headers that protect."""

    def __init__(self, app: ASGIApp, access: Access, sessions: Sessions) -> None:
        self._app = app
        self._access = access
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on when its sender may send it; else refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def send_protected(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        request = HTTPConnection(scope)
        entrant = self._entrant(request)
        answer = self._refuse(request, entrant)
        if answer is None:
            scope[_ENTRANT] = entrant
            await self._app(scope, receive, send_protected)
        elif scope["type"] == "websocket":
            await receive()  # the server waits for its request to be taken
            await _deny(answer, scope, receive, send_protected)
        else:
            await answer(scope, receive, send_protected)

    def _refuse(self, request: HTTPConnection, entrant: _Entrant | None) -> Response | None:
        """The answer to a request that may not enter."""
        scope = request.scope
        method = scope.get("method", "GET")
        unsafe = scope["type"] == "websocket" or method not in _SAFE
        if not self._is_our_host(request.headers.get("host", "")):
            return refusal(
                403, "forbidden", "this server has another name; see public_url of [server]"
            )
        if unsafe and not self._is_same_site(request):
            return refusal(403, "forbidden", "the request comes from a page of another site")
        path = scope["path"]
        if path in _OPEN or path.startswith("/static/"):
            return None
        if entrant is None:
            if method == "GET" and "text/html" in request.headers.get("accept", ""):
                query = f"?{request.url.query}" if request.url.query else ""
                return RedirectResponse(f"/login?next={quote(path + query)}", 303)
            tried = "authorization" in request.headers
            reason = "this is not the token" if tried else "a token is needed"
            return refusal(401, "not_authenticated", f"{reason}: Authorization: Bearer …")
        if not entrant.steers and method not in _SAFE:
            return refusal(403, "forbidden", "this token is for reading only")
        return None

    def _entrant(self, request: HTTPConnection) -> _Entrant | None:
        """Who sent a request, where that is known."""
        client = request.client.host if request.client else "unknown"
        if self._access.token is None:
            return _Entrant(f"http ({client})", True)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            steers = self._sessions.steers(token.strip())
            return None if steers is None else _Entrant(f"http ({client})", steers)
        cookie = request.cookies.get(COOKIE)
        return self._sessions.entrant(cookie) if cookie else None

    def _is_our_host(self, host: str) -> bool:
        """Whether a Host names us: by an address, which cannot be rebound, or by a name of ours."""
        name = _hostname(f"//{host}")
        if name is None:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._access.names
        return True

    def _is_same_site(self, request: HTTPConnection) -> bool:
        origin = request.headers.get("origin")
        if origin is None:
            return request.headers.get("sec-fetch-site", "none") in ("same-origin", "none")
        ours = f"//{request.headers.get('host', '')}".lower()
        return origin.lower() in (f"http:{ours}", f"https:{ours}", self._access.origin)


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


async def _deny(answer: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer the request of a WebSocket with a response of HTTP."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008})
        return

    async def send_denial(message: Message) -> None:
        await send({**message, "type": f"websocket.{message['type']}"})

    await answer({**scope, "type": "http", "method": "GET"}, receive, send_denial)
