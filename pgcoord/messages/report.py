"""Reports of a workflow about its phase: read, verify the signature, and record the outcome.

A report is signed as Standard Webhooks prescribes, by the secret of its attempt or by one that the
configuration names; an unsigned one is refused. It arrives by POST /workflow-complete, or as a file
in the folder of the run where the server could not be reached.
"""

import base64
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pgcoord.database import actions, claims
from pgcoord.database._sql import Connection
from pgcoord.database.rows import TakenReport
from pgcoord.database.work import Recorded
from pgcoord.messages import plain_files
from pgcoord.messages.json_schema import HIGHEST_INTEGER, Fault, Schema, faults
from pgcoord.messages.signing import (
    NotJson,
    NotSigned,
    Signed,
    WrongShape,
    parse_json,
    read_spooled,
)

# Bytes of a body: an error message of some pages, and a result of 68 kB, three times as much where
# all of its characters are written as ASCII.
LIMIT = 262_144

SCHEMA: Schema = {
    "type": "object",
    "description": "The outcome of a phase. It names the phase by `queue_id`, or `adw_id`, or"
    " `feature_id` with `phase_number`; other given ids must agree.",
    "required": ["status"],
    "properties": {
        "status": {"type": "string", "enum": ["completed", "failed"]},
        "queue_id": {"type": ["string", "null"]},
        "adw_id": {"type": ["string", "null"]},
        "feature_id": {"type": ["integer", "null"], "minimum": 0, "maximum": HIGHEST_INTEGER},
        "phase_number": {"type": ["integer", "null"], "minimum": 0, "maximum": HIGHEST_INTEGER},
        "error_message": {"type": ["string", "null"]},
        "result": {"type": ["object", "null"]},
        "pr_number": {"type": ["integer", "null"], "minimum": 1, "maximum": HIGHEST_INTEGER},
    },
}

# Takes an end together with other work; returns None if it cannot.
Record = Callable[[claims.End], Awaitable[Recorded | None]]

_SPOOLED = "report.json"

_NOBODYS = f"whsec_{base64.b64encode(os.urandom(32)).decode()}"


async def take(
    conn: Connection,
    signed: Signed,
    *,
    secrets: Mapping[str, str],
    unsigned: bool = False,
    record: Record | None = None,
) -> TakenReport:
    """Take a report, if one of *secrets* (by their names) or the attempt's own signed it.

    With *unsigned*, one that claims no signature is taken as well. *record* is tried first, *conn*
    then. Raises `NotSigned`, `NotJson`, `WrongShape`; what the database refuses is in the result.
    """
    checked = _Checked(conn, record, signed)
    if signed.is_signed():
        signed.is_by(_NOBODYS)  # refuses what is malformed or old, before anything is looked up
        sender = next((name for name, each in secrets.items() if signed.is_by(each)), None)
        report = parse_json(signed.body)
        if sender is not None:
            if "webhook-signature" not in signed.headers:
                _check_names_attempt(report)
            return await checked.take(report, f"{sender} (webhook)", None)
        adw_id = await _attempt_that_signed(conn, report, signed)
        return await checked.take(report, f"{adw_id} (webhook)", adw_id)
    if not unsigned:
        raise NotSigned("the report is not signed")
    return await checked.take(parse_json(signed.body), "unsigned webhook", None)


def _check_names_attempt(report: object) -> None:
    """Refuse a report that is signed without a time and could be sent again for another attempt.

    `X-Hub-Signature-256` signs the body alone. Raises `WrongShape`.
    """
    if isinstance(report, dict) and not isinstance(report.get("adw_id"), str):
        expected = "the adw_id of the attempt, where the report is signed by X-Hub-Signature-256"
        raise WrongShape([Fault("adw_id", report.get("adw_id"), expected)])


async def _attempt_that_signed(conn: Connection, report: object, signed: Signed) -> str:
    if not any(faults(report, SCHEMA)):
        for adw_id, secret in await actions.report_secrets(conn, report):
            if signed.is_by(secret):
                return adw_id
    raise NotSigned("the signature is of no secret that may report this")


@dataclass(frozen=True)
class _Checked:
    """A message whose signature was checked, and how it is recorded."""

    conn: Connection
    record: Record | None
    signed: Signed

    async def take(self, report: Any, actor: str, adw_id: str | None) -> TakenReport:
        shaped, message_id = _shaped(report), self.signed.message_id
        if self.record:
            end = claims.reported(shaped, message_id=message_id, actor=actor, adw_id=adw_id)
            recorded = await self.record(end)
            if recorded and recorded.answer:
                return TakenReport(**recorded.answer)
        return await actions.take_report(
            self.conn, shaped, message_id=message_id, actor=actor, adw_id=adw_id
        )


def _shaped(report: Any) -> dict[str, Any]:
    """The members of a report that are stored. Raises `WrongShape`."""
    if violations := list(faults(report, SCHEMA)):
        raise WrongShape(violations)
    return {name: report[name] for name in SCHEMA["properties"] if report.get(name) is not None}


class SpooledReport(NamedTuple):
    """A report that could not be sent."""

    message_id: str
    report: dict[str, Any]


def spool(folder: Path, signed: Signed) -> None:
    """Keep a report in the folder of its run, for a coordinator to take. Blocks; raises OSError."""
    content = {"headers": dict(signed.headers), "body": signed.body.decode()}
    plain_files.write_plain(folder, _SPOOLED, json.dumps(content).encode())


def remove_spooled(folder: Path) -> None:
    """Remove the kept report, if there is one, since it was answered. Raises OSError."""
    (folder / _SPOOLED).unlink(missing_ok=True)


def spooled(folder: Path, secret: str) -> SpooledReport | None:
    """The report that is kept in the folder of a run, when *secret* signed it, however long ago.

    Raises `NotSigned`, `NotJson` or `WrongShape` for a file that is not such a report.
    """
    try:
        message_id, report = read_spooled(folder, _SPOOLED, secret, 4 * LIMIT)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NotJson(f"it cannot be read: {error.strerror}") from error
    return SpooledReport(message_id, _shaped(report))
