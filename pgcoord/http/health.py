"""Whether the program lives, and whether it can do its work."""

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from pgcoord.http.door import door_of


async def healthz(request: Request) -> Response:
    """Answer: the program lives."""
    return PlainTextResponse("ok\n")


async def readyz(request: Request) -> Response:
    """Answer whether work is coordinated, and if not, why."""
    door = door_of(request)
    if door.obstacle:
        return JSONResponse({"ready": False, "reason": door.obstacle}, status_code=503)
    return JSONResponse({"ready": True})


routes = [Route("/healthz", healthz), Route("/readyz", readyz)]
