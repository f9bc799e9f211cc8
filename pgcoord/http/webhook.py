"""POST /workflow-complete: the report of a workflow, taken when its signature is valid."""

import logging

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from pgcoord import report
from pgcoord.http.answers import Json, answer_error, read_body
from pgcoord.http.door import door_of
from pgcoord.report import NotSigned, Signed

logger = logging.getLogger(__name__)

_HEADERS = (
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "x-hub-signature-256",
    "x-github-delivery",
)


async def workflow_complete(request: Request) -> Response:
    """Take a report; answer after the commit. A repeat is answered with what is stored."""
    door = door_of(request)
    body = await read_body(request, report.LIMIT)
    headers = {name: request.headers[name] for name in _HEADERS if name in request.headers}
    try:
        async with door.database.connection() as conn:
            taken = await report.take(
                conn,
                Signed(body, headers),
                secrets=door.access.webhook_secrets,
                unsigned=door.access.unsigned_webhooks,
            )
    except NotSigned as error:
        logger.warning("a report was refused: %s", error)
        raise
    if refused := taken.refusal():
        logger.warning("a report was refused: %s", refused)
        return await answer_error(request, refused)
    return Json(
        {
            "queue_id": taken.queue_id,
            "feature_id": taken.feature_id,
            "phase_number": taken.phase_number,
            "adw_id": taken.adw_id,
            "outcome": taken.outcome,
            "status": taken.status,
            "repeated": taken.repeated,
        }
    )


routes: list[BaseRoute] = [
    Route(path, workflow_complete, methods=["POST"])
    for path in ("/workflow-complete", "/api/v1/workflow-complete")
]
