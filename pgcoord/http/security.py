"""Access to the server: host names, origins, tokens, and security headers for browsers.

Without a token, every client on this machine may do everything, and the server listens on loopback
only. Reports of workflows have a signature of their own (webhook.py).
"""

import base64
import hashlib
import hmac
import ipaddress
import re
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from urllib.parse import quote, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pgcoord.http.access import Access
from pgcoord.http.proxy import user_of
from pgcoord.http.responses import refusal

COOKIE = "pgcoord_session"
SESSION_SECONDS = 7 * 24 * 3600

# Wrong tokens from one address within a minute, before further ones are answered with 429.
_MOST_FAILURES = 5
_MINUTE = 60.0

_OPEN = (
    *("/healthz", "/readyz", "/login", "/logout"),
    *("/workflow-complete", "/api/v1/workflow-complete"),
    *("/webhooks/github", "/api/v1/webhooks/github"),
)
# Requests of an engine's job, which are signed with the secret of its attempt.
_OF_JOBS = re.compile(r"(/api/v1)?/attempts/[0-9]+/(begin|exit)")
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


def actor_of(request: HTTPConnection) -> str:
    """Return the sender of a request, as the history names it."""
    sender: _Sender = request.scope[_SENDER]
    return sender.actor


def sender_of(request: HTTPConnection) -> str | None:
    """Return `actor_of` the request; None if its sender was not authenticated."""
    sender: _Sender | None = request.scope[_SENDER]
    return sender.actor if sender else None


def client_of(request: HTTPConnection) -> str:
    """Return the address of the client, as given by a trusted proxy if there is one."""
    return request.client.host if request.client else "unknown"


def may_change(request: HTTPConnection) -> bool:
    """Whether the sender of a request may change things."""
    sender: _Sender | None = request.scope[_SENDER]
    return sender is not None and sender.may_change


def has_logged_in(request: HTTPConnection) -> bool:
    """Whether the sender of a request logged in on the login page, and so can log out."""
    sender: _Sender | None = request.scope[_SENDER]
    return sender is not None and sender.has_cookie


_SENDER = "pgcoord.sender"


@dataclass(frozen=True)
class _Sender:
    actor: str
    may_change: bool
    has_cookie: bool = False


class Sessions:
    """Sessions of people: a cookie, signed with a key derived from the tokens."""

    def __init__(self, access: Access) -> None:
        self._access = access
        key = f"pgcoord session\0{access.token}\0{access.read_token}"
        self._key = hashlib.sha256(key.encode()).digest()
        self._failures: dict[str, deque[float]] = {}

    def log_in(self, token: str, name: str) -> str | None:
        """Return the cookie for the person *name*; None when *token* is wrong."""
        # Without a token everybody may change things: a log-in only gives a name for the history.
        changes = self.permits_changes(token) if self._access.token else True
        if changes is None:
            return None
        until = int(time.time()) + SESSION_SECONDS
        encoded_name = base64.urlsafe_b64encode(name.encode(errors="replace")).decode().rstrip("=")
        login = secrets.token_hex(8)
        return self._seal(f"{'steer' if changes else 'read'}.{until}.{encoded_name}.{login}")

    def sender(self, cookie: str) -> _Sender | None:
        """Return the holder of a cookie; None when its signature is wrong or it has expired."""
        text, _, _ = cookie.rpartition(".")
        if not hmac.compare_digest(self._seal(text).encode(), cookie.encode()):
            return None
        level, until, encoded_name, *login = text.split(".")
        if int(until) < time.time() or not login:  # an older release could not end its log-ins
            return None
        name = base64.urlsafe_b64decode(encoded_name + "==").decode()
        return _Sender(f"{name or 'somebody'} (panel)", level == "steer", has_cookie=True)

    def login_of(self, cookie: str | None) -> tuple[str, int] | None:
        """Return (digest of the log-in, when its cookies expire) of a cookie that is valid."""
        if not cookie or self.sender(cookie) is None:
            return None
        _, until, _, login, _ = cookie.split(".")
        return hashlib.sha256(login.encode()).hexdigest(), int(until)

    def permits_changes(self, token: str) -> bool | None:
        """Whether *token* permits changes, or reading only; None when it is wrong."""
        changing = [self._access.token, *self._access.tokens.values()]
        for stored, changes in (
            *((each, True) for each in changing),
            (self._access.read_token, False),
        ):
            if stored and hmac.compare_digest(stored.encode(), token.encode()):
                return changes
        return None

    def has_to_wait(self, client: str) -> bool:
        """Whether too many wrong tokens came from the address *client* within the last minute."""
        failures = self._failures.get(client, deque())
        return len(failures) == _MOST_FAILURES and failures[0] > time.monotonic() - _MINUTE

    def failed(self, client: str) -> None:
        """Count a wrong token from the address *client*."""
        now = time.monotonic()
        for each in [one for one, at in self._failures.items() if at[-1] < now - _MINUTE]:
            del self._failures[each]
        self._failures.setdefault(client, deque(maxlen=_MOST_FAILURES)).append(now)

    def _seal(self, text: str) -> str:
        return f"{text}.{hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()}"


class Guard:
    """Middleware that refuses requests without permission, and adds the security headers."""

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        sessions: Sessions,
        has_ended: Callable[[str], Awaitable[bool]],
    ) -> None:
        """Refuse the cookies of log-ins of which *has_ended*, given a digest, is true."""
        self._app = app
        self._has_ended = has_ended
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
        sender = self._sender(request)
        if sender and sender.has_cookie and not self._is_open(scope["path"]):
            login = self._sessions.login_of(request.cookies.get(COOKIE))
            if login and await self._has_ended(login[0]):
                sender = self._without_cookie(request)
        answer = self._refuse(request, sender)
        if answer is None:
            scope[_SENDER] = sender
            await self._app(scope, receive, send_protected)
        elif scope["type"] == "websocket":
            await receive()  # the server waits until the handshake is read
            await _deny(answer, scope, receive, send_protected)
        else:
            await answer(scope, receive, send_protected)

    def _refuse(self, request: HTTPConnection, sender: _Sender | None) -> Response | None:
        """Return the refusal of a request; None when it is permitted."""
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
        if self._is_open(path):
            return None
        if sender is None:
            if _bearer(request) is not None and self._is_guessing(request):
                return refusal(429, "too_many_attempts", "too many wrong tokens: wait a minute")
            if method == "GET" and "text/html" in request.headers.get("accept", ""):
                query = f"?{request.url.query}" if request.url.query else ""
                return RedirectResponse(f"/login?next={quote(path + query)}", 303)
            has_credentials = "authorization" in request.headers
            reason = "this is not the token" if has_credentials else "a token is needed"
            return refusal(401, "not_authenticated", f"{reason}: Authorization: Bearer …")
        if not sender.may_change and method not in _SAFE:
            return refusal(403, "forbidden", "this token is for reading only")
        return None

    def _is_open(self, path: str) -> bool:
        return path in _OPEN or path.startswith("/static/") or bool(_OF_JOBS.fullmatch(path))

    def _without_cookie(self, request: HTTPConnection) -> _Sender | None:
        """Return the sender of a request without a valid cookie; None where a token is needed."""
        if self._access.token is not None:
            return None
        return _Sender(f"http ({client_of(request)})", True)

    def _sender(self, request: HTTPConnection) -> _Sender | None:
        """Return the sender of a request; None when it has neither a valid token nor a cookie."""
        client = client_of(request)
        user = user_of(request.scope)
        token = _bearer(request)
        if token is not None and self._access.token is not None:
            changes = self._sessions.permits_changes(token)
            name = user or self._access.name_of(token)
            return None if changes is None else _Sender(f"{name or 'http'} ({client})", changes)
        cookie = request.cookies.get(COOKIE)
        sender = self._sessions.sender(cookie) if cookie else None
        if sender is None:
            sender = self._without_cookie(request)
        return replace(sender, actor=f"{user} (panel)") if sender and user else sender

    def _is_guessing(self, request: HTTPConnection) -> bool:
        """Count a wrong token of this client; return whether there were too many before."""
        client = client_of(request)
        waits = self._sessions.has_to_wait(client)
        self._sessions.failed(client)
        return waits

    def _is_our_host(self, host: str) -> bool:
        """Whether *host* is an address, which DNS cannot rebind, or a name of this server."""
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


def _bearer(request: HTTPConnection) -> str | None:
    """Return the bearer token of a request, right or wrong."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


async def _deny(answer: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a WebSocket handshake with an HTTP response."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008})
        return

    async def send_denial(message: Message) -> None:
        await send({**message, "type": f"websocket.{message['type']}"})

    await answer({**scope, "type": "http", "method": "GET"}, receive, send_denial)
