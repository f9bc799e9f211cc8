"""POST /workflow-complete: the report of a workflow, taken when its signature is valid."""

import psycopg
from psycopg_pool import PoolTimeout, TooManyRequests
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from pgcoord.database.rows import TakenReport
from pgcoord.errors import CoordError
from pgcoord.http.errors import status_of
from pgcoord.http.pool import until_disconnected
from pgcoord.http.responses import Json, read_body
from pgcoord.http.state import state_of
from pgcoord.messages import report
from pgcoord.messages.signing import Signed

_HEADERS = (
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "x-hub-signature-256",
    "x-github-delivery",
)


async def workflow_complete(request: Request) -> Response:
    """Take a report; answer after the commit. A repeat is answered with what is stored."""
    webhooks = state_of(request).metrics.webhooks
    try:
        answer = await _take(request)
    except (CoordError, HTTPException, psycopg.Error, PoolTimeout, TooManyRequests) as error:
        _, result = status_of(error)
        state_of(request).refusals.warn(request, "report", "a report was refused", error)
        webhooks.labels(result).inc()
        raise
    webhooks.labels("repeated" if answer.repeated else "taken").inc()
    return Json(
        {
            "queue_id": answer.queue_id,
            "feature_id": answer.feature_id,
            "phase_number": answer.phase_number,
            "adw_id": answer.adw_id,
            "outcome": answer.outcome,
            "status": answer.status,
            "repeated": answer.repeated,
        }
    )


async def _take(request: Request) -> TakenReport:
    state = state_of(request)
    body = await read_body(request, report.LIMIT)
    headers = {name: request.headers[name] for name in _HEADERS if name in request.headers}
    async with (
        until_disconnected(request),
        state.database.connection(kind="report") as conn,
    ):
        answer = await report.take(
            conn,
            Signed(body, headers),
            secrets=state.access.webhook_secrets,
            unsigned=state.access.unsigned_webhooks,
            record=state.coordinator.record_and_claim,
        )
    if refused := answer.refusal():
        raise refused
    return answer


routes: list[BaseRoute] = [
    Route(path, workflow_complete, methods=["POST"])
    for path in ("/workflow-complete", "/api/v1/workflow-complete")
]
