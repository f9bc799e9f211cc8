"""Endpoints for monitoring: /healthz, /readyz and /metrics."""

import asyncio
from contextlib import closing

import psycopg
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from pgcoord.database import reads, schema
from pgcoord.database.connect import connect_blocking
from pgcoord.errors import DatabaseUnusable, message_of
from pgcoord.http.responses import Json
from pgcoord.http.state import AppState, state_of


async def healthz(request: Request) -> Response:
    """Answer 200: the process is alive."""
    return PlainTextResponse("ok\n")


async def readyz(request: Request) -> Response:
    """Answer 200 when a coordinator leads and the database works, else 503 with the reason."""
    state = state_of(request)
    obstacle = state.obstacle or await _check_database(state)
    if obstacle:
        obstacle = state.coordinator.server_fault or obstacle
        return Json({"ready": False, "reason": obstacle}, 503)
    # Fails as well when other requests hold all connections.
    async with state.database.connection() as conn:
        leader = await reads.leader(conn)
        blocker = None if leader else await reads.lead_blocker(conn)
    if state.coordinator.leads.is_set():
        return Json({"ready": True, "role": "leading"})
    if leader is None:
        reason = f"no coordinator leads: {blocker}" if blocker else "no coordinator leads"
        return Json({"ready": False, "reason": reason}, 503)
    return Json({"ready": True, "role": "standing by", "leader": f"{leader.host}:{leader.pid}"})


async def _check_database(state: AppState) -> str | None:
    """Check the database; concurrent requests, which need no token, share one check."""
    if state.readiness_check is None or state.readiness_check.done():
        state.readiness_check = asyncio.create_task(
            asyncio.to_thread(_fault_of, state.database.dsn)
        )
    return await asyncio.shield(state.readiness_check)


def _fault_of(dsn: str) -> str | None:
    """Return why the database cannot be used, or None. Blocks while it connects."""
    try:
        with closing(connect_blocking(dsn)) as conn:
            conn.execute("set lock_timeout = '2s'")
            schema.check_schema(conn)
    except (DatabaseUnusable, psycopg.Error) as error:
        return message_of(error)
    return None


async def metrics(request: Request) -> Response:
    """Answer with the metrics in the format of Prometheus."""
    state = state_of(request)
    async with state.database.connection() as conn:
        return Response(await state.metrics.read(conn), media_type=state.metrics.media_type)


routes = [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)]
