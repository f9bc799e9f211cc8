"""The client's address and the URL prefix, as a reverse proxy in front of the server sends them.

Their headers count only when they come from an address in `[server] trusted_proxies`. A page is
rendered once for all viewers, with paths from `/`; for those behind a prefix it is put before each
address in the response (in attributes, which no text of a user can create).
"""

import re
from collections.abc import MutableMapping
from typing import Any, cast
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

_PREFIX = "pgcoord.prefix"
_USER = "pgcoord.user"

_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")

# An address in an attribute of HTML, or of HTML in a JSON string.
ADDRESS = re.compile(rb"""\b(href|action|src|data-part)=(\\?")/(?!/)""")

# Characters of a name.
_MOST_NAME = 60


def prefix_of(scope: MutableMapping[str, Any]) -> str:
    """Return the path under which the sender of a request sees this server; empty for none."""
    prefix: str = scope.get(_PREFIX, "")
    return prefix


def user_of(scope: MutableMapping[str, Any]) -> str | None:
    """Return the user's name from a trusted proxy's header; None if there is none."""
    return scope.get(_USER)


class Proxied:
    """Middleware that passes requests on without a proxy's prefix, and puts it into the answers."""

    def __init__(
        self, app: ASGIApp, behind: ASGIApp, trusted: tuple[str, ...], public_url: str | None
    ) -> None:
        """Pass requests of the proxies *trusted* to *behind*, all others to *app*."""
        self._app = app
        self._trusting = (
            ProxyHeadersMiddleware(cast(Any, behind), list(trusted)) if trusted else None
        )
        public = urlsplit(public_url or "")
        self._host, self._prefix = public.netloc.lower(), public.path.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        client = scope.get("client")
        believed = client is not None and self.is_proxy(client[0])
        prefix = self._seen_under(scope, headers, believed=believed)
        path = scope["path"]
        if prefix and (path == prefix or path.startswith(f"{prefix}/")):
            scope = {**scope, "path": path[len(prefix) :] or "/"}
        scope = {**scope, _PREFIX: prefix}
        if believed and (user := headers.get("x-forwarded-user", "").strip()):
            scope[_USER] = user.encode("latin-1").decode(errors="replace")[:_MOST_NAME]
        # uvicorn has types of its own for ASGI, which are equal to Starlette's.
        app = cast(ASGIApp, self._trusting) if believed else self._app
        await app(scope, receive, _under(prefix, path, send) if prefix else send)

    def is_proxy(self, address: str) -> bool:
        """Whether a trusted proxy has this address."""
        return self._trusting is not None and address in self._trusting.trusted_hosts

    def _seen_under(self, scope: Scope, headers: Headers, *, believed: bool) -> str:
        """Return the prefix of paths for the sender: that of the proxy's header, if *believed*."""
        prefix = headers.get("x-forwarded-prefix", "").rstrip("/") if believed else ""
        if _PATH.fullmatch(prefix):
            return prefix
        path, ours = scope["path"], self._prefix
        if ours and (path == ours or path.startswith(f"{ours}/")):
            return ours
        return ours if headers.get("host", "").lower() == self._host else ""


def _under(prefix: str, path: str, send: Send) -> Send:
    """Put *prefix* before the addresses of an answer."""
    before = rb"\1=\2" + prefix.encode() + b"/"
    begun: Message | None = None
    kind = ""

    async def answer(message: Message) -> None:
        nonlocal begun, kind
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            location = headers.get("location", "")
            if location.startswith("/") and not location.startswith("//"):
                headers["location"] = prefix + location
            kind = headers.get("content-type", "").split(";")[0]
            if kind == "text/html":
                begun = message  # its length changes
                return
        elif message["type"] == "http.response.body" and (
            kind == "text/html" or (kind == "text/event-stream" and "/api/" not in path)
        ):
            body = ADDRESS.sub(before, message.get("body", b""))
            message = {**message, "body": body}
            if begun:
                length = None if message.get("more_body") else str(len(body))
                headers = MutableHeaders(scope=begun)
                if length and "content-length" in headers and begun["status"] != 304:
                    headers["content-length"] = length
                elif "content-length" in headers:
                    del headers["content-length"]
                await send(begun)
                begun = None
        await send(message)

    return answer
