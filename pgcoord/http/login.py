"""The login page: people enter the token and get a cookie."""

from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from pgcoord.http.proxy import prefix_of
from pgcoord.http.responses import read_bytes
from pgcoord.http.security import COOKIE, SESSION_SECONDS, client_of
from pgcoord.http.state import state_of

# Bytes of the form.
_LIMIT = 4_096


async def show(request: Request) -> Response:
    """Show the form."""
    return _page(request, request.query_params.get("next", "/"))


async def log_in(request: Request) -> Response:
    """Check the token of the form; set the cookie and redirect to the page of `next`."""
    sessions = state_of(request).sessions
    form = parse_qs((await read_bytes(request, _LIMIT)).decode(errors="replace"))
    token, name, target = (form.get(each, [""])[0].strip() for each in ("token", "name", "next"))
    cookie = sessions.log_in(token, name.replace("\0", "")[:60])
    if cookie is None:
        # The right token is always accepted: another client of the same address could lock it out.
        client = client_of(request)
        waits = sessions.has_to_wait(client)
        sessions.failed(client)
        if waits:
            return _page(request, target, "Too many wrong tokens. Try again in a minute.", 429)
        return _page(request, target, "This is not the token.", 403)
    answer = RedirectResponse(local(target), 303)
    answer.set_cookie(
        COOKIE,
        cookie,
        max_age=SESSION_SECONDS,
        path=prefix_of(request.scope) or "/",
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


async def log_out(request: Request) -> Response:
    """End the log-in: its cookies are refused from now on, wherever they were copied to."""
    await state_of(request).end_login(request)
    answer = RedirectResponse("/login", 303)
    path = prefix_of(request.scope) or "/"
    answer.delete_cookie(COOKIE, path=path, httponly=True, samesite="strict")
    return answer


def _page(request: Request, target: str, fault: str = "", status: int = 200) -> Response:
    template = state_of(request).templates.get_template("login.html")
    page = template.render(
        next=local(target), fault=fault, needs_token=state_of(request).access.token is not None
    )
    headers = {"cache-control": "no-store"}
    if status == 429:
        headers["retry-after"] = "60"
    return HTMLResponse(page, status, headers)


def local(path: str) -> str:
    """Return *path* if it is a path on this server, else /."""
    local = path.startswith("/") and not path.startswith(("//", "/\\"))
    return path if local and path.isprintable() else "/"


routes: list[BaseRoute] = [
    Route("/login", show, methods=["GET"]),
    Route("/login", log_in, methods=["POST"]),
    Route("/logout", log_out, methods=["POST"]),
]
