"""POST /attempts/ID/begin and /exit: the signed requests of engines' jobs; SQL decides the answer.

Any coordinator answers, leading or not.
"""

import logging
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from pgcoord.errors import CoordError, NotFound
from pgcoord.http.pool import until_disconnected
from pgcoord.http.responses import Json, read_body
from pgcoord.http.state import state_of
from pgcoord.messages import jobs
from pgcoord.messages.signing import NotSigned, Signed

logger = logging.getLogger(__name__)


async def begin(request: Request) -> Response:
    """Say whether a copy of a job may begin: 200, or it must run nothing."""
    return await _answer(request, "begin")


async def exit(request: Request) -> Response:
    """Record how the command of a job ended."""
    return await _answer(request, "exit")


async def _answer(request: Request, act: jobs.Act) -> Response:
    state = state_of(request)
    attempt_id: int = request.path_params["attempt_id"]
    signed = Signed(await read_body(request, jobs.LIMIT), _headers(request))
    answer: dict[str, Any]
    try:
        async with (
            until_disconnected(request),
            state.database.connection(kind="report") as conn,
        ):
            if act == "begin":
                prompt_of = state.coordinator.prompt_of
                answer = await jobs.answer_begin(conn, attempt_id, signed, prompt_of)
            else:
                record = state.coordinator.record_and_claim
                answer = await jobs.answer_exit(conn, attempt_id, signed, record)
    except CoordError as error:
        words = f"the job of attempt {attempt_id} is refused to {act}"
        if attempt_id == jobs.PROBED:
            logger.info("a probe of doctor reached this server")
        elif isinstance(error, NotSigned | NotFound):  # anybody may send these
            state.refusals.warn(request, act, words, error)
        else:
            logger.warning("%s: %s", words, error)
        raise
    return Json(answer)


def _headers(request: Request) -> dict[str, str]:
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    return {name: request.headers[name] for name in names if name in request.headers}


routes: list[BaseRoute] = [
    Route(f"{prefix}/attempts/{{attempt_id:int}}/{name}", act, methods=["POST"])
    for prefix in ("", "/api/v1")
    for name, act in (("begin", begin), ("exit", exit))
]
