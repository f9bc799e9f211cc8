"""/openapi.json, generated from the table of operations."""

import re
from functools import cache
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from pgcoord import __version__
from pgcoord.http import api, schemas
from pgcoord.http import github_webhook as github
from pgcoord.http.responses import Json
from pgcoord.messages import jobs, report
from pgcoord.messages.json_schema import Schema

REASONS = {
    400: "The body is not JSON.",
    401: "There is no valid token or signature.",
    403: "The token is for reading only, or the request comes from another site.",
    404: "The feature, phase or schedule does not exist.",
    409: "The present state does not permit it.",
    412: "The feature or phase was changed meanwhile.",
    413: "The body is too large.",
    415: "The content type is not application/json.",
    416: "The requested range does not exist.",
    422: "The request is invalid: `faults` lists every fault.",
    429: "Too many wrong tokens came from this address: wait a minute.",
    502: "The planner command did not answer with a plan.",
    503: "The database cannot be reached; the request may be repeated.",
}

_PARAMETERS: dict[str, Schema] = {
    "feature_id": {"type": "integer", "minimum": 1},
    "queue_id": {"type": "string", "minLength": 1},
    "schedule": {"type": "string", "minLength": 1},
}


@cache
def document() -> dict[str, Any]:
    """Return the OpenAPI description."""
    paths: dict[str, Any] = {}
    for operation in api.OPERATIONS:
        path = paths.setdefault(api.PREFIX + operation.path, {})
        path[operation.method.lower()] = _operation(operation)
    paths[f"{api.PREFIX}/workflow-complete"] = {"post": _WEBHOOK}
    paths[f"{api.PREFIX}/webhooks/github"] = {"post": _GITHUB}
    paths[f"{api.PREFIX}/attempts/{{attempt_id}}/begin"] = {"post": _BEGIN}
    paths[f"{api.PREFIX}/attempts/{{attempt_id}}/exit"] = {"post": _EXIT}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "pgcoord",
            "version": __version__,
            "summary": "Phases of long jobs, run in the order that their dependencies allow.",
        },
        "paths": paths,
        "components": {
            "schemas": {"Error": schemas.ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _operation(operation: api.Operation) -> dict[str, Any]:
    names = re.findall(r"\{(\w+)\}", operation.path)
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _PARAMETERS[name]}
        for name in names
    ]
    parameters += [
        {"name": name, "in": "query", "schema": schema, "style": "form", "explode": False}
        for name, schema in operation.query.items()
    ]
    refusals = {401, 403, 429, 503, *operation.refusals}
    refusals |= {404} if names else set()
    refusals |= {422} if operation.query or operation.body else set()
    refusals |= {400, 413, 415} if operation.body else set()
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": operation.call.__name__,
        "parameters": parameters,
        "responses": {
            str(operation.status): {
                "description": "Done.",
                "content": {operation.media: {"schema": operation.answer}},
                "headers": {
                    name: {"description": words, "schema": {"type": "string"}}
                    for name, words in operation.headers.items()
                },
            },
            **_refusals(refusals),
        },
    }
    if operation.body is not None:
        described["requestBody"] = _body(
            operation.body, required=bool(operation.body.get("required"))
        )
    return described


def _body(schema: Schema, *, required: bool) -> dict[str, Any]:
    return {"required": required, "content": {"application/json": {"schema": schema}}}


def _refusals(statuses: set[int]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        str(status): {"description": REASONS[status], "content": error}
        for status in sorted(statuses)
    }


_WEBHOOK: dict[str, Any] = {
    "summary": "Report the end of a phase, signed as Standard Webhooks prescribes",
    "operationId": "workflow_complete",
    "security": [{}],
    "requestBody": _body(report.SCHEMA, required=True),
    "responses": {
        "200": {
            "description": "Accepted, now or before.",
            "content": {"application/json": {"schema": schemas.REPORTED}},
        },
        **_refusals({400, 401, 404, 409, 413, 415, 422, 503}),
    },
}


_GITHUB: dict[str, Any] = {
    "summary": "Receive an event of GitHub, signed with the secret of its webhook",
    "operationId": "github_event",
    "security": [{}],
    "requestBody": _body(github.SCHEMA, required=True),
    "responses": {
        "200": {
            "description": "Recorded now or before, or ignored because it concerns no phase.",
            "content": {"application/json": {"schema": schemas.GITHUB_EVENT}},
        },
        **_refusals({400, 401, 404, 413, 415, 422, 503}),
    },
}


def _of_job(summary: str, name: str, body: Schema) -> dict[str, Any]:
    identifier = {"type": "integer", "minimum": 1, "maximum": 2**63 - 1}
    return {
        "summary": summary,
        "operationId": name,
        "security": [{}],
        "parameters": [
            {"name": "attempt_id", "in": "path", "required": True, "schema": identifier}
        ],
        "requestBody": _body(body, required=True),
        "responses": {
            "200": {
                "description": "Permitted, or recorded; a repeated request gets the same answer.",
                "content": {"application/json": {"schema": schemas.JOB_ANSWER}},
            },
            **_refusals({400, 401, 404, 409, 413, 415, 422, 503}),
        },
    }


_BEGIN = _of_job("Ask whether a copy of an engine's job may begin", "begin_attempt", jobs.BEGIN)
_EXIT = _of_job("Say how the command of an engine's job ended", "exit_attempt", jobs.EXIT)


async def show(request: Request) -> Response:
    """Return the OpenAPI description."""
    return Json(document())


routes: list[BaseRoute] = [Route("/openapi.json", show), Route("/api/v1/openapi.json", show)]
