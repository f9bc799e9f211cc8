"""Reports of a workflow about its phase: read, verify the signature, and record the outcome.

A report is signed as Standard Webhooks prescribes, by the secret of its attempt or by one that the
configuration names; an unsigned one is refused. It arrives by POST /workflow-complete, or as a file
in the folder of the run where the server could not be reached.
"""

import base64
import hashlib
import hmac
import json
import os
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from standardwebhooks import Webhook, WebhookVerificationError

from pgcoord.database import actions, claims
from pgcoord.database._sql import Connection
from pgcoord.database.rows import TakenReport
from pgcoord.database.work import Recorded
from pgcoord.errors import CoordError, InvalidInput
from pgcoord.json_schema import HIGHEST_INTEGER, Fault, Schema, faults
from pgcoord.runs import files

# Bytes of a body: an error message of some pages, and a result of 68 kB, three times as much where
# all of its characters are written as ASCII.
LIMIT = 262_144

SCHEMA: Schema = {
    "type": "object",
    "description": "What became of a phase. It names the phase by `queue_id`, or `adw_id`, or"
    " `feature_id` with `phase_number`; what else is given has to fit.",
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


class NotSigned(CoordError):
    """A report without a signature, or with one that no secret gives."""


class NotJson(InvalidInput):
    """A body that is not JSON."""


class WrongShape(InvalidInput):
    """JSON that does not look as it should; `faults` holds every fault."""

    def __init__(self, found: Sequence[Fault]) -> None:
        super().__init__("; ".join(map(str, found[:5])))
        self.faults = tuple(found)


@dataclass(frozen=True)
class Signed:
    """A report as it is sent: the signed bytes, and the headers with its id, time and signature."""

    body: bytes
    headers: Mapping[str, str]

    @property
    def message_id(self) -> str | None:
        """The sender's id of the message, the same when it is repeated."""
        return self.headers.get("webhook-id") or self.headers.get("x-github-delivery")

    def is_signed(self) -> bool:
        """Whether it claims to be."""
        return any(name in self.headers for name in ("webhook-signature", "x-hub-signature-256"))

    def is_by(self, secret: str) -> bool:
        """Whether *secret* signed it, not five minutes ago. Raises `NotSigned` if none can have."""
        try:
            if "webhook-signature" in self.headers:
                Webhook(secret).verify(self.body, dict(self.headers), json_parse=False)
                return True
        except WebhookVerificationError as error:
            if "matching signature" in str(error):
                return False
            raise NotSigned(f"the signature is not valid: {error}") from error
        except (ValueError, TypeError, OverflowError) as error:
            raise NotSigned("the signature is malformed") from error
        given = self.headers.get("x-hub-signature-256", "")
        wanted = "sha256=" + hmac.new(secret.encode(), self.body, hashlib.sha256).hexdigest()
        return hmac.compare_digest(given.encode(), wanted.encode())


def is_secret(text: str) -> bool:
    """Whether a text is a secret as Standard Webhooks writes them: whsec_ and 24 bytes or more."""
    try:
        return text.startswith("whsec_") and len(base64.b64decode(text[6:], validate=True)) >= 24
    except ValueError:
        return False


def sign(secret: str, report: Mapping[str, object]) -> Signed:
    """Sign a report as of now."""
    return sign_body(secret, json.dumps(report).encode())


def sign_again(secret: str, signed: Signed) -> Signed:
    """The same message, signed as of now: for another try."""
    return sign_body(secret, signed.body, signed.headers["webhook-id"])


def sign_body(secret: str, body: bytes, message_id: str | None = None) -> Signed:
    """Sign the bytes of a report as of now."""
    message_id = message_id or f"msg_{uuid.uuid4().hex}"
    now = datetime.now(UTC)  # the library takes any other zone for UTC
    return Signed(
        body,
        {
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(secret).sign(message_id, now, body.decode()),
        },
    )


def parse_json(body: bytes) -> Any:
    """Read JSON. Raises `NotJson`."""
    try:
        return json.loads(body, parse_constant=_refuse, parse_float=_number)
    except (ValueError, RecursionError) as error:
        raise NotJson(f"the body is not JSON: {error}") from error


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not a JSON value")


def _number(text: str) -> float | int:
    """A number; 2.0 is a whole one."""
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text:.20} is too large")
    return int(number) if number.is_integer() else number


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
    if found := list(faults(report, SCHEMA)):
        raise WrongShape(found)
    return {name: report[name] for name in SCHEMA["properties"] if report.get(name) is not None}


class Kept(NamedTuple):
    """A report that could not be sent."""

    message_id: str
    report: dict[str, Any]


def spool(folder: Path, signed: Signed) -> None:
    """Keep a report in the folder of its run, for a coordinator to take. Blocks; raises OSError."""
    kept = {"headers": dict(signed.headers), "body": signed.body.decode()}
    files.write_plain(folder, _SPOOLED, json.dumps(kept).encode())


def remove_spooled(folder: Path) -> None:
    """Remove what was kept, if it is there: it was answered. Raises OSError."""
    (folder / _SPOOLED).unlink(missing_ok=True)


def spooled(folder: Path, secret: str) -> Kept | None:
    """The report that is kept in the folder of a run, when *secret* signed it, however long ago.

    Raises `NotSigned` when it did not, or `NotJson`, `WrongShape`, whatever lies there instead.
    """
    try:
        message_id, report = read_spooled(folder, _SPOOLED, secret, 4 * LIMIT)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NotJson(f"it cannot be read: {error.strerror}") from error
    return Kept(message_id, _shaped(report))


def read_spooled(folder: Path, name: str, secret: str, most: int) -> tuple[str, Any]:
    """Return (id, body) of a message that a file keeps, when *secret* signed it. Blocks.

    Raises `OSError`, `NotSigned`, `NotJson`.
    """
    try:
        kept = parse_json(files.read_plain(folder, name, most))
        headers, body = kept["headers"], kept["body"].encode()
        at = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
        wanted = Webhook(secret).sign(headers["webhook-id"], at, body.decode())
        if not hmac.compare_digest(wanted, headers["webhook-signature"]):
            raise NotSigned("it is not signed by the secret of its attempt")
        return headers["webhook-id"], parse_json(body)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise NotJson(f"it is not a report: {error}") from error
