"""JSON Schemas of the requests and responses of the REST API."""

from typing import Any

from pgcoord.actions import SEVERAL as SEVERAL_ACTIONS
from pgcoord.database.reads import FEATURE_ORDERS, QUEUE_ORDERS
from pgcoord.database.states import STATES
from pgcoord.messages.json_schema import HIGHEST_INTEGER, NOT_BLANK, Schema
from pgcoord.plan.model import RUN_WHEN

_TEXT = {"type": "string"}
_MAYBE_TEXT = {"type": ["string", "null"]}
_MAYBE_NUMBER = {"type": ["integer", "null"]}
_MAYBE_TIME = {"type": ["string", "null"], "format": "date-time"}
_COUNT = {"type": "integer", "minimum": 0}
_HOURS = {"type": ["number", "null"], "minimum": 0, "maximum": 1_000_000}
_ID = {"type": "integer", "minimum": 1, "maximum": HIGHEST_INTEGER}
_PRIORITY = {
    "type": "integer",
    "minimum": 0,
    "maximum": 100,
    "description": "Lower runs earlier: 10 urgent, 50 usual, 90 background.",
}

STATUSES = list(STATES)


def array(items: Schema, **more: Any) -> dict[str, Any]:
    """Return the schema of a list of *items*."""
    return {"type": "array", "items": items, **more}


def _object(properties: dict[str, Any], required: list[str] | None = None, **more: Any) -> Schema:
    return {"type": "object", "properties": properties, "required": required or [], **more}


_PHASE_MEMBERS = {
    "queue_id": _TEXT,
    "feature_id": {"type": "integer"},
    "phase_number": {"type": "integer"},
    "issue_number": _MAYBE_NUMBER,
    "status": {"type": "string", "enum": STATUSES},
    "depends_on_phases": array({"type": "integer"}),
    "adw_id": _MAYBE_TEXT,
    "pr_number": _MAYBE_NUMBER,
    "error_message": _MAYBE_TEXT,
    "priority": {"type": "integer"},
    "queue_position": {"type": "integer"},
    "created_at": _MAYBE_TIME,
    "updated_at": _MAYBE_TIME,
    "ready_timestamp": _MAYBE_TIME,
    "started_timestamp": _MAYBE_TIME,
    "finished_timestamp": _MAYBE_TIME,
    "eligible_at": _MAYBE_TIME,
    "retry_at": _MAYBE_TIME,
    "slot": _MAYBE_NUMBER,
    "attempt": {"type": "integer"},
    "workflow_type": _MAYBE_TEXT,
    "waiting_for": _MAYBE_TEXT,
    "result": {"type": ["object", "null"]},
    "gated": {"type": "boolean", "description": "It has a gate that nobody has approved."},
    "skipped": {"type": "boolean", "description": "It was marked as completed without a run."},
    "run_when": {"type": "string", "enum": list(RUN_WHEN)},
    "lock": _MAYBE_TEXT,
}

_PLANNED = {
    "phase_number": _ID,
    "title": {**_MAYBE_TEXT, "maxLength": 1_000},
    "prompt_content": _MAYBE_TEXT,
    "depends_on_phases": {"type": ["array", "null"], "items": _ID, "maxItems": 10_000},
    "workflow_type": {**_MAYBE_TEXT, "maxLength": 200},
    "estimated_hours": _HOURS,
    "priority": {**_PRIORITY, "type": ["integer", "null"]},
    "run_when": {
        "type": ["string", "null"],
        "enum": [*RUN_WHEN, None],
        "description": "How the phases it depends on must have ended; completed if left out.",
    },
    "lock": {
        **_MAYBE_TEXT,
        "maxLength": 200,
        "description": "Of all phases with this lock one runs at a time.",
    },
    "environment": {
        "type": ["object", "null"],
        "additionalProperties": _TEXT,
        "description": "Variables of its process, which phase_environment of its workflow allows.",
    },
    "files": {"type": ["array", "null"], "items": _TEXT},
    "check": {
        **_MAYBE_TEXT,
        "pattern": NOT_BLANK,
        "maxLength": 200,
        "description": "The check of the configuration that has to succeed after its command.",
    },
    "gate": {
        **_MAYBE_TEXT,
        "pattern": NOT_BLANK,
        "maxLength": 1_000,
        "description": "The question that a person answers before the phase starts.",
    },
    "max_attempts": {"type": ["integer", "null"], "minimum": 1, "maximum": 1_000_000},
    "timeout_seconds": {"type": ["integer", "null"], "minimum": 1, "maximum": 315_360_000},
}

# A phase may be sent back as the API returned it. Any other property is an error: a prompt under a
# wrong name would be ignored.
PLANNED_PHASE = _object(
    _PLANNED
    | {name: {"description": "Ignored."} for name in _PHASE_MEMBERS if name not in _PLANNED},
    ["phase_number"],
    additionalProperties=False,
)

_BUDGET: Schema = {
    "type": ["number", "null"],
    "minimum": 0.01,
    "maximum": 1_000_000_000,
    "description": "The feature is paused once its attempts have cost so much.",
}
BUDGET = _object({"max_cost_usd": _BUDGET}, ["max_cost_usd"], additionalProperties=False)

_FEATURE_MEMBERS = {
    "title": {"type": "string", "pattern": NOT_BLANK, "maxLength": 1_000},
    "description": _MAYBE_TEXT,
    "item_type": {"type": "string", "maxLength": 200},
    "priority": _PRIORITY,
    "estimated_hours": _HOURS,
    "max_cost_usd": _BUDGET,
    "tags": array({"type": "string"}, maxItems=1_000),
    "phases": array(PLANNED_PHASE, maxItems=10_000),
}

NEW_FEATURE = _object(_FEATURE_MEMBERS, ["title"])
FEATURE_CHANGES = _object(_FEATURE_MEMBERS, additionalProperties=False)

NOTHING = _object({}, additionalProperties=False, description="Nothing, or an empty object.")
REASON = _object({"reason": _MAYBE_TEXT}, additionalProperties=False)
PRIORITY = _object({"priority": _PRIORITY}, ["priority"], additionalProperties=False)
SET_SLOTS = _object(
    {
        "slots": {"type": "integer", "minimum": 0, "maximum": 1_000},
        "pool": {**_TEXT, "description": "local, unless it is named.", "default": "local"},
    },
    ["slots"],
    additionalProperties=False,
)

PHASE = _object(
    {**_PHASE_MEMBERS, "phase_data": {"type": "object"}}, [*_PHASE_MEMBERS, "phase_data"]
)

FEATURE = _object(
    {
        "id": {"type": "integer"},
        "title": _TEXT,
        "description": _MAYBE_TEXT,
        "item_type": _TEXT,
        "priority": {"type": "integer"},
        "estimated_hours": {"type": ["number", "null"]},
        "max_cost_usd": {"type": ["number", "null"]},
        "origin_id": _MAYBE_NUMBER,
        "tags": {"type": "array"},
        "status": {"type": "string", "enum": ["planned", "in_progress", "completed", "cancelled"]},
        "total_phases": _COUNT,
        "phases_completed": _COUNT,
        "phases_running": _COUNT,
        "phases_failed": _COUNT,
        "phases_blocked": _COUNT,
        "paused_at": _MAYBE_TIME,
        "paused_reason": _MAYBE_TEXT,
        "cancelled_at": _MAYBE_TIME,
        "cancelled_reason": _MAYBE_TEXT,
        "created_by": _TEXT,
        "created_at": _MAYBE_TIME,
        "updated_at": _MAYBE_TIME,
        "started_at": _MAYBE_TIME,
        "finished_at": _MAYBE_TIME,
        "version": _TEXT,
        "phases": {
            "type": "array",
            "items": {"type": "object"},
            "description": "The planned phases; once queued, with their states.",
        },
    },
    ["id", "title", "status", "total_phases", "version"],
)

_NUMBERS = array({"type": "integer"})
_MAYBE_HOURS = {"type": ["number", "null"]}

PLANNING = _object(
    {
        "source": {
            "type": "string",
            "enum": ["description", "command", "built-in"],
            "description": "The planner: the description, the planner command, or pgcoord.",
        },
        "notes": array(_TEXT, description="How the plan could be improved."),
        "waves": array(
            _NUMBERS, description="Phases that could start together with unlimited slots."
        ),
        "critical_path": {
            **_NUMBERS,
            "description": "The chain of phases that determines the duration.",
        },
        "critical_path_hours": _MAYBE_HOURS,
        "hours": {**_MAYBE_HOURS, "description": "Sum of all estimates; null if one is missing."},
        "slots": _COUNT,
        "hours_with_slots": {**_MAYBE_HOURS, "description": "Duration with the present slots."},
        "estimated_tokens": {
            "type": "object",
            "additionalProperties": _COUNT,
            "description": "Tokens of the prompt of each phase, at four characters a token.",
        },
        "warnings": array(_TEXT, description="Findings to check before execution."),
    },
    ["source", "notes", "waves", "critical_path", "slots", "estimated_tokens", "warnings"],
)
PLANNED_FEATURE = _object(
    {**FEATURE["properties"], "planning": PLANNING}, [*FEATURE["required"], "planning"]
)

EXECUTED = _object(
    {"queued": _COUNT, "message": _TEXT, "feature": FEATURE}, ["queued", "message", "feature"]
)
SEVERAL = _object(
    {
        "action": {"type": "string", "enum": [each.verb for each in SEVERAL_ACTIONS]},
        "queue_ids": array(_TEXT, maxItems=10_000),
        "reason": _MAYBE_TEXT,
        "priority": {"type": ["integer", "null"], "minimum": 0, "maximum": 100},
    },
    ["action", "queue_ids"],
    additionalProperties=False,
)
RESULT_OF_SEVERAL = _object(
    {
        "queue_id": _TEXT,
        "status": _MAYBE_TEXT,
        "refused": {**_MAYBE_TEXT, "description": "Why it was refused; it stays as it was."},
    },
    ["queue_id", "status", "refused"],
)
_SCHEDULE = {
    "name": _TEXT,
    "cron": _TEXT,
    "timezone": _TEXT,
    "title": _TEXT,
    "phases": _COUNT,
    "overlap": {"type": "string", "enum": ["skip", "queue", "start"]},
    "missed": {"type": "string", "enum": ["run", "skip"]},
    "paused_at": _MAYBE_TIME,
    "paused_reason": _MAYBE_TEXT,
    "next_at": _MAYBE_TIME,
    "error": _MAYBE_TEXT,
    "last_due_at": _MAYBE_TIME,
    "last_outcome": _MAYBE_TEXT,
    "last_reason": _MAYBE_TEXT,
    "last_feature_id": _MAYBE_NUMBER,
    "last_status": _MAYBE_TEXT,
    "created_at": _MAYBE_TIME,
    "created_by": _TEXT,
    "declared": {"type": "boolean", "description": "Whether pgcoord.toml declares it."},
}
SCHEDULE = _object(_SCHEDULE, [*_SCHEDULE])
NEW_SCHEDULE = _object(
    {
        "name": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"},
        "cron": {"type": "string", "maxLength": 200, "description": "Five fields: 0 3 * * *."},
        "feature": {**NEW_FEATURE, "required": ["title", "phases"]},
        "timezone": {
            "type": ["string", "null"],
            "maxLength": 100,
            "description": "Such as Europe/Berlin; that of the database where it is left out.",
        },
        "overlap": {"type": ["string", "null"], "enum": ["skip", "queue", "start", None]},
        "missed": {"type": ["string", "null"], "enum": ["run", "skip", None]},
    },
    ["name", "cron", "feature"],
    additionalProperties=False,
)
PAUSED = _object({"paused": {"type": "boolean"}, "paused_at": _MAYBE_TIME}, ["paused"])
WHY = _object({"kind": _TEXT, "words": _TEXT, "refers_to": _MAYBE_TEXT}, ["kind", "words"])
SLOTS = _object(
    {
        "slots": {**_COUNT, "description": "Of all pools."},
        "held": _COUNT,
        "draining": _COUNT,
        "pools": array({"type": "object"}),
        "holders": array({"type": "object"}),
    },
    ["slots", "held", "draining", "pools", "holders"],
)

ERROR = _object(
    {
        "error": {"type": "string", "description": "A code for programs."},
        "reason": {"type": "string", "description": "The reason, for people."},
        "hint": {"type": "string", "description": "What can be done."},
        "faults": array(
            _object({"field": _TEXT, "given": {}, "expected": _TEXT}, ["field", "expected"])
        ),
        "problems": array(
            _TEXT, description="Errors of a plan, each as `where:line: what is expected`."
        ),
    },
    ["error", "reason"],
)

JOB_ANSWER = _object(
    {
        "attempt": {"type": "integer"},
        "prompt": {**_TEXT, "description": "The prompt of the phase, if it was asked for."},
        "inputs": {"type": "object", "description": "The results of its prerequisites."},
    },
    ["attempt"],
)

REPORTED = _object(
    {
        "queue_id": _TEXT,
        "feature_id": {"type": "integer"},
        "phase_number": {"type": "integer"},
        "adw_id": _MAYBE_TEXT,
        "outcome": _MAYBE_TEXT,
        "status": {"type": "string", "enum": STATUSES},
        "repeated": {"type": "boolean"},
    },
    ["queue_id", "status", "repeated"],
)

GITHUB_EVENT = _object(
    {
        "result": {"type": "string", "enum": ["recorded", "repeated", "ignored"]},
        "phases": array(_TEXT),
    },
    ["result", "phases"],
)

_PART = {
    "limit": {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 1_000},
    "offset": {"type": "integer", "minimum": 0, "maximum": HIGHEST_INTEGER, "default": 0},
}

QUEUE_QUERY: dict[str, Schema] = {
    "feature_id": array(_ID),
    "status": array({"type": "string", "enum": STATUSES}),
    "workflow_type": array(_TEXT),
    "adw_id": array(_TEXT),
    "slot": array({"type": "integer", "minimum": 1, "maximum": 1_000}),
    "order": {"type": "string", "enum": list(QUEUE_ORDERS), "default": "feature"},
    **_PART,
}

FEATURE_QUERY: dict[str, Schema] = {
    "status": array(
        {"type": "string", "enum": ["planned", "in_progress", "completed", "cancelled"]}
    ),
    "item_type": array(_TEXT),
    "priority": array({"type": "integer", "minimum": 0, "maximum": HIGHEST_INTEGER}),
    "order": {"type": "string", "enum": list(FEATURE_ORDERS), "default": "id"},
    **_PART,
}
