"""Messages as they are sent: JSON, and the signature of Standard Webhooks.

A message that could not be sent is kept as a file with the same signature; `read_spooled` reads it.
"""

import base64
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

from pgcoord.errors import CoordError, InvalidInput
from pgcoord.messages import plain_files
from pgcoord.messages.json_schema import Fault


class NotSigned(CoordError):
    """A report without a signature, or with one that no secret gives."""


class NotJson(InvalidInput):
    """A body that is not JSON."""


class WrongShape(InvalidInput):
    """JSON that violates the schema; `faults` holds every fault."""

    def __init__(self, violations: Sequence[Fault]) -> None:
        super().__init__("; ".join(map(str, violations[:5])))
        self.faults = tuple(violations)


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
        """Whether it has the headers of a signature."""
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
            hint = self._clock() if "timestamp too" in str(error) else None
            raise NotSigned(f"the signature is not valid: {error}", hint=hint) from error
        except (ValueError, TypeError, OverflowError) as error:
            raise NotSigned("the signature is malformed") from error
        signature = self.headers.get("x-hub-signature-256", "")
        expected = "sha256=" + hmac.new(secret.encode(), self.body, hashlib.sha256).hexdigest()
        return hmac.compare_digest(signature.encode(), expected.encode())

    def _clock(self) -> str:
        """Return in words how far the clock that dated it is off ours."""
        off = float(self.headers["webhook-timestamp"]) - time.time()
        side = "ahead of" if off > 0 else "behind"
        return f"the sender's clock is {timedelta(seconds=round(abs(off)))} {side} this server's"


def is_secret(text: str) -> bool:
    """Whether a text is a secret as Standard Webhooks writes them: whsec_ and 24 bytes or more."""
    try:
        return text.startswith("whsec_") and len(base64.b64decode(text[6:], validate=True)) >= 24
    except ValueError:
        return False


def sign(secret: str, report: Mapping[str, object]) -> Signed:
    """Sign a report as of now."""
    return sign_body(secret, json.dumps(report).encode())


def sign_again(secret: str, signed: Signed, *, ahead: float = 0.0) -> Signed:
    """The same message, signed as of now, for a retry.

    *ahead*: seconds by which the receiver's clock is ahead of ours.
    """
    return sign_body(secret, signed.body, signed.headers["webhook-id"], ahead=ahead)


def sign_body(
    secret: str, body: bytes, message_id: str | None = None, *, ahead: float = 0.0
) -> Signed:
    """Sign the bytes of a report as of now; *ahead* as for `sign_again`."""
    message_id = message_id or f"msg_{uuid.uuid4().hex}"
    # The library takes any zone but UTC for UTC.
    now = datetime.now(UTC) + timedelta(seconds=ahead)
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


def read_spooled(folder: Path, name: str, secret: str, most: int) -> tuple[str, Any]:
    """Return (id, body) of a message that a file keeps, when *secret* signed it. Blocks.

    Raises `OSError`, `NotSigned`, `NotJson`.
    """
    try:
        message = parse_json(plain_files.read_plain(folder, name, most))
        headers, body = message["headers"], message["body"].encode()
        at = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
        expected = Webhook(secret).sign(headers["webhook-id"], at, body.decode())
        if not hmac.compare_digest(expected, headers["webhook-signature"]):
            raise NotSigned("it is not signed by the secret of its attempt")
        return headers["webhook-id"], parse_json(body)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise NotJson(f"it is not a report: {error}") from error
