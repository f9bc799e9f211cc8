"""Requests of an engine's job: to begin, and to report its exit status.

They arrive by POST /attempts/ID/begin and /exit, or as files in the shared folder of the run. Each
is signed by the secret of its attempt. A copy of a job begins only if the database permits it.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pgcoord.configuration import results
from pgcoord.database import claims, jobs
from pgcoord.database._sql import Connection
from pgcoord.database.rows import Answer
from pgcoord.database.work import Assignment
from pgcoord.errors import InvalidInput, NotFound, StaleAttempt
from pgcoord.messages import plain_files
from pgcoord.messages.json_schema import NOT_BLANK, Fault, Schema, faults
from pgcoord.messages.report import Record
from pgcoord.messages.signing import NotSigned, Signed, WrongShape, parse_json, read_spooled

Act = Literal["begin", "exit"]
PromptOf = Callable[[Connection, Assignment, str], Awaitable[str]]

_COPY = {"type": "string", "pattern": NOT_BLANK, "maxLength": 64}
_TEXT = {"type": ["string", "null"], "maxLength": 200}
_MESSAGE = {
    "attempt": {"type": "integer", "minimum": 1, "description": "The number in the address."},
    "copy": {**_COPY, "description": "The copy of the job that speaks: a random text."},
}

BEGIN: Schema = {
    "type": "object",
    "description": "A copy of a job asks whether it may begin.",
    "required": ["act", "attempt", "copy"],
    "properties": {
        "act": {"type": "string", "enum": ["begin"]},
        **_MESSAGE,
        "job": {**_TEXT, "description": "The engine's id of the job."},
        "node": {**_TEXT, "description": "The machine that it is on."},
        "prompt": {"type": "boolean", "description": "Whether to answer with the prompt."},
    },
}
EXIT: Schema = {
    "type": "object",
    "description": "The copy of a job that began says how its command ended.",
    "required": ["act", "attempt", "copy", "exit_code"],
    "properties": {
        "act": {"type": "string", "enum": ["exit"]},
        **_MESSAGE,
        "exit_code": {"type": "integer", "minimum": 0, "maximum": 255},
        "log_tail": {"type": ["string", "null"], "description": "The last lines of its output."},
        "left_behind": {"type": ["string", "null"], "description": "Processes that were ended."},
        "result": {"type": ["string", "null"], "description": "The text of its result file."},
        "result_fault": {"type": ["string", "null"], "description": "Why that cannot be used."},
    },
}
_SCHEMAS: Mapping[Act, Schema] = {"begin": BEGIN, "exit": EXIT}

# Files in the shared folder of a run: what its job says, and the answer to each copy.
_EXIT = "exit.json"
_BEGIN = "begin-{}.json"
_ANSWER = "begun-{}.json"

# Bytes of a message: a result file has 204 kB, of which JSON may make three times as much.
LIMIT = 1_048_576

# The highest number of an attempt that the database can have.
_HIGHEST = 2**63 - 1

# The number in the address of a probe (runs/job.py), which no attempt has.
PROBED = 0

# How many copies of a job may ask by file.
_MOST_COPIES = 20


async def answer_begin(
    conn: Connection, attempt_id: int, signed: Signed, prompt_of: PromptOf
) -> dict[str, Any]:
    """Let a copy of a job begin; return {"attempt": …}, with `prompt` and `inputs` if it asked.

    *prompt_of*: makes the prompt of an attempt from that of its phase.
    Raises `NotFound`, `NotSigned`, `NotJson`, `WrongShape`, and `StaleAttempt` when it must run
    nothing; each refusal of an attempt that exists is recorded.
    """
    message = await _checked(conn, attempt_id, signed, "begin")
    await begin(conn, attempt_id, message)
    if not message.get("prompt"):
        return {"attempt": attempt_id}
    assignment = await claims.assignment(conn, attempt_id)
    if assignment is None:  # it was ended this moment
        raise StaleAttempt(f"attempt {attempt_id} was given up")
    inputs = await claims.inputs(conn, assignment) if assignment.has_inputs else {}
    prompt = results.fill_prompt(assignment.prompt or "", results.placeholders(inputs))
    prompt = await prompt_of(conn, assignment, prompt)
    return {"attempt": attempt_id, "prompt": prompt, "inputs": inputs}


async def begin(conn: Connection, attempt_id: int, message: Mapping[str, Any]) -> None:
    """Let the copy of a job that sent *message* begin. Raises `StaleAttempt` or `NotFound`."""
    job, node = message.get("job"), message.get("node")
    answer = await jobs.begin_job(conn, attempt_id, message["copy"], job, node)
    if refused := answer.refusal():
        raise refused


async def answer_exit(
    conn: Connection, attempt_id: int, signed: Signed, record: Record | None = None
) -> dict[str, Any]:
    """Record how the command of a job ended; return {"attempt": …}.

    *record* is tried first, *conn* then. Raises as `answer_begin` does.
    """
    end = jobs.job_exited(attempt_id, await _checked(conn, attempt_id, signed, "exit"))
    recorded = await record(end) if record else None
    if recorded is None or recorded.answer is None:
        recorded = await claims.record_end(conn, end)
    assert recorded.answer is not None
    if refused := Answer(**recorded.answer).refusal():
        raise refused
    return {"attempt": attempt_id}


async def _checked(conn: Connection, attempt_id: int, signed: Signed, act: Act) -> dict[str, Any]:
    """Return the message of a job after checking its signature; record a wrong signature."""
    is_id = attempt_id <= _HIGHEST
    secret = await jobs.secret_of(conn, attempt_id) if is_id else None
    if secret is None:
        raise NotFound(f"there is no attempt {attempt_id}")
    if "webhook-signature" not in signed.headers:
        raise NotSigned("what a job says is signed by webhook-id, -timestamp and -signature")
    if not signed.is_by(secret):
        if act == "begin":
            reason = "somebody asked to begin its job, and has not its secret"
            await jobs.note_refused_begin(conn, attempt_id, reason)
        raise NotSigned("the signature was not made with the secret of this attempt")
    return _shaped(parse_json(signed.body), attempt_id, act)


def _shaped(message: Any, attempt_id: int, act: Act) -> dict[str, Any]:
    """Return the known members. Raises `WrongShape`."""
    schema = _SCHEMAS[act]
    violations = list(faults(message, schema))
    if not violations and message["attempt"] != attempt_id:
        violations = [Fault("attempt", message["attempt"], str(attempt_id))]
    if violations:
        raise WrongShape(violations)
    return {name: message.get(name) for name in schema["properties"]}


def spooled_begins(folder: Path, attempt_id: int, secret: str) -> list[dict[str, Any]]:
    """Return the unanswered requests of copies of a job in the shared *folder* of their run.
    Requests that are malformed, or not signed by *secret*, are left out. Blocks. Raises `OSError`.
    """
    prefix, suffix = _BEGIN.split("{}")
    with_answer = {path.name for path in folder.glob(_ANSWER.format("*"))}
    requests = []
    for path in sorted(folder.glob(_BEGIN.format("*")))[:_MOST_COPIES]:
        copy = path.name.removeprefix(prefix).removesuffix(suffix)
        if _ANSWER.format(copy) not in with_answer:
            message = _spooled(folder, path.name, attempt_id, secret, "begin")
            if message and message["copy"] == copy:
                requests.append(message)
    return requests


def answer_spooled(folder: Path, copy: str, refused: str | None) -> None:
    """Write the answer to a copy that asked in *folder* to begin. Blocks; raises OSError.

    *refused*: the reason for which it must not begin; None: it may.
    """
    content = json.dumps({"refused": refused}).encode()
    plain_files.write_plain(folder, _ANSWER.format(copy), content)


def spooled_exit(folder: Path, attempt_id: int, secret: str) -> dict[str, Any] | None:
    """Return the end of a job's command that its copy reported in *folder*; None if there is none.

    Blocks. Never raises for a file that is malformed, or not signed by *secret*. Raises `OSError`
    when the folder cannot be read.
    """
    return _spooled(folder, _EXIT, attempt_id, secret, "exit")


def _spooled(
    folder: Path, name: str, attempt_id: int, secret: str, act: Act
) -> dict[str, Any] | None:
    try:
        _, message = read_spooled(folder, name, secret, LIMIT)
        return _shaped(message, attempt_id, act)
    except (NotSigned, InvalidInput, ValueError, FileNotFoundError, plain_files.NotPlain):
        return None
