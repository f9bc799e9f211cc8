"""The REST API under /api/v1: each operation calls a function of the schema pgcoord.

The one rule: `OPERATIONS` defines each operation completely; those of actions are made from
`pgcoord.actions`. Routing, validation of requests and /openapi.json are derived from it.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from pgcoord.actions import SEVERAL, Action, Scope, of_scope
from pgcoord.database import actions, reads, schedules
from pgcoord.database._sql import Connection
from pgcoord.database.reads import Listing
from pgcoord.errors import NotFound
from pgcoord.http import schemas
from pgcoord.http.responses import BODY_LIMIT, Json, LogFile, read_body
from pgcoord.http.state import state_of
from pgcoord.messages.json_schema import HIGHEST_INTEGER, Fault, Schema, faults
from pgcoord.messages.signing import WrongShape, parse_json
from pgcoord.runs.logs import log_of
from pgcoord.text import counted

if TYPE_CHECKING:
    from pgcoord.planner.planning import Planned

PREFIX = "/api/v1"


@dataclass(frozen=True)
class Call:
    """A valid request: its path parameters, query and body."""

    request: Request
    conn: Connection
    feature_id: int = 0
    queue_id: str = ""
    schedule: str = ""
    query: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    planned: "Planned | None" = None


@dataclass(frozen=True)
class Operation:
    """One operation of the API."""

    method: str
    path: str
    summary: str
    call: Callable[[Call], Awaitable[Response]]
    answer: Schema
    body: Schema | None = None
    query: Mapping[str, Schema] = field(default_factory=dict)
    status: int = 200
    refusals: tuple[int, ...] = ()
    media: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Request, int], Awaitable["Planned | None"]] | None = None
    """Runs before a connection is taken, because it may take minutes."""


async def list_features(call: Call) -> Response:
    columns = {"status": "status", "item_type": "item_type", "priority": "priority"}
    return _listed(call, await reads.feature_objects(call.conn, _listing(call, columns)))


async def create_feature(call: Call) -> Response:
    make = actions.submit_feature if call.query["execute"] else actions.store_feature
    feature_id = await make(call.conn, call.body)
    location = f"{PREFIX}/planned-features/{feature_id}"
    return await _feature(call, feature_id, 201, location=location)


async def show_feature(call: Call) -> Response:
    return await _feature(call, call.feature_id)


async def change_feature(call: Call) -> Response:
    if_match = call.request.headers.get("if-match", "*").strip()
    version = None if if_match == "*" else if_match.strip('"')
    await actions.change_feature(call.conn, call.feature_id, call.body, version)
    return await _feature(call, call.feature_id)


async def _plan(request: Request, feature_id: int) -> "Planned | None":
    return await state_of(request).plan(request, feature_id)


async def _plan_unless_planned(request: Request, feature_id: int) -> "Planned | None":
    return await state_of(request).plan_unless_planned(request, feature_id)


async def generate_implementation(call: Call) -> Response:
    assert call.planned is not None
    slots = await reads.slot_count(call.conn)
    analysis = state_of(call.request).planner.analyse(call.planned.phases, slots)
    planning = {
        "source": call.planned.source,
        "notes": list(call.planned.notes),
        **analysis.as_json(),
    }
    return await _feature(call, call.feature_id, planning=planning)


async def execute_feature(call: Call) -> Response:
    queued = await actions.execute_feature(call.conn, call.feature_id)
    feature = await reads.feature_object(call.conn, call.feature_id)
    words = f"{counted(queued, 'phase is', 'phases are')} queued"
    message = words if queued else "its phases were queued before"
    return Json({"queued": queued, "message": message, "feature": feature})


async def list_queue(call: Call) -> Response:
    columns = {each: each for each in ("feature_id", "status", "workflow_type", "adw_id", "slot")}
    return _listed(call, await reads.queue_objects(call.conn, _listing(call, columns)))


async def show_phase(call: Call) -> Response:
    return Json(await reads.phase_object(call.conn, call.queue_id))


async def why(call: Call) -> Response:
    reasons = await reads.why(call.conn, call.queue_id)
    return Json(
        [{"kind": each.kind, "words": each.words, "refers_to": each.refers_to} for each in reasons]
    )


async def log(call: Call) -> Response:
    """Send the log of an attempt, or the range that a Range header requests."""
    attempts = await reads.attempts(call.conn, call.queue_id)
    at = state_of(call.request).coordinator
    number = call.query["attempt"]
    _, log = log_of(call.queue_id, attempts, number, host=at.host, runs=at.runs_folder)
    return LogFile(log.open_for_people())


async def show_slots(call: Call) -> Response:
    slots = await reads.slot_objects(call.conn)
    draining = sum(each["draining"] for each in slots)
    return Json(
        {
            "slots": len(slots) - draining,
            "held": sum(each["queue_id"] is not None for each in slots),
            "draining": draining,
            "pools": [asdict(each) for each in await reads.pools(call.conn)],
            "holders": slots,
        }
    )


async def list_schedules(call: Call) -> Response:
    return Json([_schedule(each) for each in await schedules.schedules(call.conn)])


async def show_schedule(call: Call) -> Response:
    return Json(_schedule(await schedules.schedule(call.conn, call.schedule)))


async def create_schedule(call: Call) -> Response:
    name = call.body["name"]
    options = {each: call.body.get(each) for each in ("timezone", "overlap", "missed")}
    await schedules.add_schedule(
        call.conn, name, call.body["cron"], call.body["feature"], **options
    )
    created = _schedule(await schedules.schedule(call.conn, name))
    return Json(created, 201, location=f"{PREFIX}/schedules/{name}")


def _schedule(schedule: schedules.Schedule) -> dict[str, object]:
    return {
        key: value.isoformat() if isinstance(value, datetime) else value
        for key, value in asdict(schedule).items()
    }


async def _feature(
    call: Call,
    feature_id: int,
    status: int = 200,
    *,
    location: str | None = None,
    **more: object,
) -> Response:
    feature = await reads.feature_object(call.conn, feature_id)
    headers = {"location": location} if location else {}
    return Json({**feature, **more}, status, etag=f'"{feature["version"]}"', **headers)


async def _paused(call: Call) -> Response:
    since = await reads.paused(call.conn)
    return Json({"paused": since is not None, "paused_at": since and since.isoformat()})


def _listing(call: Call, columns: Mapping[str, str]) -> Listing:
    conditions = {column: call.query[name] for name, column in columns.items() if call.query[name]}
    part = call.query["limit"], call.query["offset"]
    return Listing(conditions, call.query["order"], part[0] + 1, part[1])


def _listed(call: Call, rows: list[dict[str, Any]]) -> Response:
    """Return a bare list, with a Link header to the next part if there is one."""
    limit, offset = call.query["limit"], call.query["offset"]
    answer = Json(rows[:limit])
    if len(rows) > limit:
        following = urlencode({**call.request.query_params, "offset": offset + limit})
        answer.headers["link"] = f'<{call.request.url.path}?{following}>; rel="next"'
    return answer


_ETAG = {"ETag": "The version of the feature, for If-Match."}
_FEATURE = "/planned-features/{feature_id}"
_PHASE = "/queue/{queue_id}"

_SCHEDULE = "/schedules/{schedule}"

_PATHS: Mapping[Scope, str] = {
    "phase": _PHASE,
    "feature": _FEATURE,
    "all": "/queue",
    "schedule": _SCHEDULE,
}


def _operations(scope: Scope) -> Iterator[Operation]:
    """Yield the operations of the actions on a phase, on a feature, or on all."""
    for action in of_scope(scope):
        method, path = (action.operation or f"POST {_PATHS[scope]}/{action.slug}").split()
        call, answer = _act(action)
        yield Operation(
            method,
            path,
            action.summary,
            call,
            answer,
            body=_body_of(action),
            refusals=((409,) if action.refused else ())
            + ((404,) if "pool" in action.arguments else ()),
        )


def _act(action: Action) -> tuple[Callable[[Call], Awaitable[Response]], Schema]:
    """Return the handler of an action, which answers with its target, and the schema of that."""
    creates = action.returns == "feature"
    about: str = "slots" if action.number == "slots" else "feature" if creates else action.scope
    if action.name == "delete_schedule":
        about = "schedules"  # those that are left
    answer, schema = _ANSWERS[about]

    async def act(call: Call) -> Response:
        targets: dict[Scope, str | int | None] = {
            "phase": call.queue_id,
            "feature": call.feature_id,
            "all": None,
            "schedule": call.schedule,
        }
        number = call.body[action.number] if action.number else None
        result = await actions.perform(
            call.conn,
            action,
            targets[action.scope],
            reason=call.body.get("reason"),
            number=number,
            pool=call.body.get("pool"),
        )
        return await answer(replace(call, feature_id=int(result or 0)) if creates else call)

    act.__name__ = action.name  # the operationId
    return act, schema


async def act_on_phases(call: Call) -> Response:
    """Perform an action on several phases; answer with the state, or refusal, of each."""
    [action] = [each for each in SEVERAL if each.verb == call.body["action"]]
    results = await actions.perform_on_several(
        call.conn,
        action,
        call.body["queue_ids"],
        reason=call.body.get("reason"),
        number=call.body.get("priority"),
    )
    return Json([asdict(each) for each in results])


def _body_of(action: Action) -> Schema:
    if action.number:
        return {
            "priority": schemas.PRIORITY,
            "slots": schemas.SET_SLOTS,
            "max_cost_usd": schemas.BUDGET,
        }[action.number]
    return schemas.REASON if "reason" in action.arguments else schemas.NOTHING


_ANSWERS: Mapping[str, tuple[Callable[[Call], Awaitable[Response]], Schema]] = {
    "phase": (show_phase, schemas.PHASE),
    "feature": (show_feature, schemas.FEATURE),
    "all": (_paused, schemas.PAUSED),
    "slots": (show_slots, schemas.SLOTS),
    "schedule": (show_schedule, schemas.SCHEDULE),
    "schedules": (list_schedules, schemas.array(schemas.SCHEDULE)),
}

OPERATIONS = (
    Operation(
        "GET",
        "/planned-features",
        "Features, without their phases",
        list_features,
        schemas.array(schemas.FEATURE),
        query=schemas.FEATURE_QUERY,
        headers={"Link": "The next part of the list."},
    ),
    Operation(
        "POST",
        "/planned-features",
        "Store a feature with its plan; with execute, queue its phases as well",
        create_feature,
        schemas.FEATURE,
        body=schemas.NEW_FEATURE,
        query={"execute": {"type": "boolean", "default": False}},
        status=201,
        refusals=(409,),
        headers={**_ETAG, "Location": "The path of the feature."},
    ),
    Operation(
        "GET", _FEATURE, "A feature with its phases", show_feature, schemas.FEATURE, headers=_ETAG
    ),
    Operation(
        "PATCH",
        _FEATURE,
        "Change the given fields; with If-Match only if nobody else has changed the feature",
        change_feature,
        schemas.FEATURE,
        body=schemas.FEATURE_CHANGES,
        refusals=(409, 412),
        headers=_ETAG,
    ),
    Operation(
        "POST",
        f"{_FEATURE}/generate-implementation",
        "Plan a feature: phases with dependencies and prompts, stored in place of its plan",
        generate_implementation,
        schemas.PLANNED_FEATURE,
        body=schemas.NOTHING,
        refusals=(409, 412, 422, 502),
        headers=_ETAG,
        prepare=_plan,
    ),
    Operation(
        "POST",
        f"{_FEATURE}/execute",
        "Queue the planned phases; plan the feature first if it has none; again changes nothing",
        execute_feature,
        schemas.EXECUTED,
        body=schemas.NOTHING,
        refusals=(409, 412, 422, 502),
        prepare=_plan_unless_planned,
    ),
    *_operations("feature"),
    Operation(
        "GET",
        "/queue",
        "Phases, with what each waits for",
        list_queue,
        schemas.array(schemas.PHASE),
        query=schemas.QUEUE_QUERY,
        headers={"Link": "The next part of the list."},
    ),
    *_operations("all"),
    Operation(
        "POST",
        "/queue/several",
        "Do an action to several phases at once; those whose state refuses it stay as they are",
        act_on_phases,
        schemas.array(schemas.RESULT_OF_SEVERAL),
        body=schemas.SEVERAL,
    ),
    Operation("GET", _PHASE, "A phase", show_phase, schemas.PHASE),
    *_operations("phase"),
    Operation(
        "GET",
        f"{_PHASE}/why",
        "Why a phase is in its state, most decisive reason first",
        why,
        schemas.array(schemas.WHY),
    ),
    Operation(
        "GET",
        f"{_PHASE}/log",
        "The log of an attempt, by default the latest",
        log,
        {"type": "string"},
        query={"attempt": {"type": "integer", "minimum": 1, "maximum": HIGHEST_INTEGER}},
        refusals=(409, 416),
        media="text/plain",
    ),
    Operation(
        "GET", "/slots", "How many phases may run at once, and what runs", show_slots, schemas.SLOTS
    ),
    Operation(
        "GET",
        "/schedules",
        "Schedules, with when each is due next and how its last run went",
        list_schedules,
        schemas.array(schemas.SCHEDULE),
    ),
    Operation(
        "POST",
        "/schedules",
        "Queue a feature at certain times, again and again",
        create_schedule,
        schemas.SCHEDULE,
        body=schemas.NEW_SCHEDULE,
        status=201,
        refusals=(409,),
        headers={"Location": "The path of the schedule."},
    ),
    Operation("GET", _SCHEDULE, "A schedule", show_schedule, schemas.SCHEDULE),
    *_operations("schedule"),
)


def _endpoint(operation: Operation) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        query = _read_query(request, operation.query)
        body = await _read_body(request, operation.body)
        feature_id = _feature_id(request)
        planned = await operation.prepare(request, feature_id) if operation.prepare else None
        async with state_of(request).acting(request) as conn:
            queue_id, schedule = _name(request, "queue_id"), _name(request, "schedule")
            return await operation.call(
                Call(request, conn, feature_id, queue_id, schedule, query, body, planned)
            )

    return answer


def _name(request: Request, parameter: str) -> str:
    """Return a name of the path, or nothing; NUL, which Postgres takes in no text, as U+FFFD."""
    name: str = request.path_params.get(parameter, "")
    return name.replace("\0", "\ufffd")


def _feature_id(request: Request) -> int:
    text = request.path_params.get("feature_id", "0")
    if not (text.isascii() and text.isdecimal() and int(text[:20]) <= HIGHEST_INTEGER):
        raise NotFound(f"there is no feature {text:.60}")
    return int(text)


def _read_query(request: Request, parameters: Mapping[str, Schema]) -> dict[str, Any]:
    """Return the query parameters by name, with defaults. Raises `WrongShape`."""
    violations: list[Fault] = []
    values = {name: schema.get("default") for name, schema in parameters.items()}
    repeated: set[str] = set()
    for name, text in request.query_params.multi_items():
        if name not in parameters:
            names = ", ".join(parameters) or "none"
            violations.append(
                Fault(f"{name:.60}", None, f"one of the parameters {names}; it is unknown")
            )
            continue
        if name in repeated:
            violations.append(
                Fault(name, text, "given once; several values have commas between them")
            )
            continue
        repeated.add(name)
        value = _from_text(text, parameters[name])
        violations += faults(value, parameters[name], name)
        values[name] = value
    if violations:
        raise WrongShape(violations)
    return values


def _from_text(text: str, schema: Schema) -> object:
    """Convert a text of a URL to the type of *schema*; return it unchanged if that fails."""
    match schema.get("type"):
        case "array":
            return [_from_text(part, schema["items"]) for part in text.split(",") if part]
        case "integer" if text.removeprefix("-").isdecimal() and text.isascii() and len(text) < 20:
            return int(text)
        case "boolean" if text in ("true", "false"):
            return text == "true"
    return text


async def _read_body(request: Request, schema: Schema | None) -> dict[str, Any]:
    """Return the body; it may be missing when no property is required. Raises `WrongShape`."""
    if schema is None:
        return {}
    has_body = (
        request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    )
    if not has_body and not schema.get("required"):
        return {}
    body = parse_json(await read_body(request, BODY_LIMIT))
    if violations := list(faults(body, schema)):
        raise WrongShape(violations)
    body_read: dict[str, Any] = body
    return body_read


def _routes() -> list[BaseRoute]:
    """Return one route for each path, so that another method gets 405 with those allowed."""
    paths: dict[str, dict[str, Callable[[Request], Awaitable[Response]]]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _endpoint(operation)
    return [
        Route(PREFIX + path, _by_method(methods), methods=list(methods))
        for path, methods in paths.items()
    ]


def _by_method(
    endpoints: Mapping[str, Callable[[Request], Awaitable[Response]]],
) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return await endpoints["GET" if request.method == "HEAD" else request.method](request)

    return answer


routes = _routes()
