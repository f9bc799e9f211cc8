"""The panel: the pages that show all of it, live, and steer it."""

from html import escape

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from pgcoord import queries
from pgcoord.http.door import door_of


async def overview(request: Request) -> Response:
    """Show every phase."""
    async with door_of(request).acting(request) as conn:
        rows = [
            f"<li>{escape(phase.queue_id)} {escape(phase.title)}: {phase.status}</li>"
            for feature in await queries.features(conn, unfinished=False)
            for phase in await queries.board(conn, feature.id)
        ]
    title = "<title>pgcoord</title>"
    return HTMLResponse(f'<!doctype html><html lang="en">{title}<ul>{"".join(rows)}</ul></html>')


routes: list[BaseRoute] = [Route("/", overview)]
