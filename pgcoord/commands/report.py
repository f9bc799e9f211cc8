"""The command that workflows call: report."""

import enum
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from pgcoord.commands.options import surroundings_of
from pgcoord.commands.terminal import say
from pgcoord.errors import CannotStart, CoordError, InvalidInput, NotFound, Refused

if TYPE_CHECKING:
    from pgcoord.messages.signing import Signed

# Seconds that one request may take.
_TIMEOUT = 10

# Answers of pgcoord that a retry would not change. Any other status may come from a proxy, or pass.
_REFUSALS: Mapping[int, type[CoordError]] = {
    400: InvalidInput,
    404: NotFound,
    409: Refused,
    413: InvalidInput,
    422: InvalidInput,
}


class Outcome(enum.StrEnum):
    """The outcomes that can be reported."""

    COMPLETED = "completed"
    FAILED = "failed"


class _NotDelivered(Exception):
    """No answer, or one that a retry may change; *now*: the time of the server, if it said so."""

    def __init__(self, words: str, now: float | None = None) -> None:
        super().__init__(words)
        self.now = now


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command()(report)


def report(
    ctx: typer.Context,
    outcome: Annotated[
        Outcome, typer.Argument(help="The outcome of the phase.", show_default=False)
    ],
    error: Annotated[
        str | None, typer.Option("--error", metavar="TEXT", help="The error message.")
    ] = None,
    pr: Annotated[
        int | None, typer.Option("--pr", metavar="N", min=1, help="The pull request of the phase.")
    ] = None,
    result: Annotated[
        Path | None,
        typer.Option(
            "--result",
            metavar="FILE",
            help="A file with the result, a JSON object; by default PGCOORD_RESULT_FILE, if that"
            " exists.",
            show_default=False,
        ),
    ] = None,
    patience: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0, help="How long to retry while the server does not answer."
        ),
    ] = 60,
) -> None:
    """Report the end of a phase, from within its workflow.

    It reads the phase and its secret from the environment of the workflow. When the server cannot
    be reached, the report is kept in the folder of the run, and taken from there when the process
    has ended or a coordinator starts.
    """
    environment = surroundings_of(ctx).environment
    queue_id = _required(environment, "PGCOORD_QUEUE_ID")
    body = {
        "queue_id": queue_id,
        "adw_id": environment.get("PGCOORD_ADW_ID"),
        "status": outcome.value,
        "error_message": error and os.fsencode(error).decode(errors="replace"),
        "pr_number": pr,
        "result": _read_result(result, environment),
    }
    answer = _deliver(
        {key: value for key, value in body.items() if value is not None}, environment, patience
    )
    say(f"{queue_id} is reported {outcome.value}{answer}")


def _read_result(
    file_given: Path | None, environment: Mapping[str, str]
) -> dict[str, object] | None:
    """Return the result of the phase; None if it has none. Raises `InvalidInput`."""
    from pgcoord.configuration import results
    from pgcoord.messages import signing

    named = environment.get("PGCOORD_RESULT_FILE")
    path = file_given or (Path(named) if named else None)
    if path is None or (file_given is None and not path.exists()):
        return None
    try:
        with path.open("rb") as file:
            content = file.read(results.FILE_LIMIT + 1)
    except OSError as error:
        raise InvalidInput(f"{path}: {(error.strerror or str(error)).lower()}") from error
    if len(content) > results.FILE_LIMIT:
        raise InvalidInput(f"{path}: it has more than 204 kB; a result has 64 kB at most")
    result = signing.parse_json(content)
    if not isinstance(result, dict):
        raise InvalidInput(f"{path}: a result is a JSON object")
    return result


def _deliver(body: Mapping[str, object], environment: Mapping[str, str], patience: float) -> str:
    """Send a report, retrying with back-off for *patience* seconds; else keep it in its folder.

    Return the end of the line that the command prints. Raises `CoordError` when pgcoord refuses the
    report, `CannotStart` when it could be neither sent nor kept.
    """
    from pgcoord.database.backoff import Backoff
    from pgcoord.messages import signing

    secret, url = (
        _required(environment, "PGCOORD_WEBHOOK_SECRET"),
        environment.get("PGCOORD_REPORT_URL"),
    )
    if not signing.is_secret(secret):
        raise InvalidInput("PGCOORD_WEBHOOK_SECRET is not a secret: expected whsec_…")
    signed = _sign(secret, body)
    # Kept first, so that the report survives if this process is killed while it retries.
    folder = _keep(_folder_of_run(environment), signed)
    deadline, backoff = time.monotonic() + patience, Backoff(most=5.0)
    ahead = 0.0  # seconds by which the server's clock is ahead of ours
    while True:
        try:
            answer = _send(url, signing.sign_again(secret, signed, ahead=ahead))
        except _NotDelivered as trouble:
            if trouble.now is not None:
                before, ahead = ahead, trouble.now - time.time()
                if abs(ahead - before) > 60:
                    continue  # our clock is off: sign by the server's
            wait = backoff.next()
            if not url or time.monotonic() + wait > deadline:
                return _kept(folder, trouble)
            time.sleep(wait)
            continue
        except CoordError:
            _forget(folder)
            raise
        _forget(folder)
        return ", as it was before" if answer.get("repeated") else ""


def _sign(secret: str, body: Mapping[str, object]) -> "Signed":
    """Sign a report, cutting the middle of its error message if the body exceeds the limit."""
    from pgcoord.messages import report as reports
    from pgcoord.messages import signing
    from pgcoord.text import shortened

    error, most = str(body.get("error_message", "")), reports.LIMIT
    signed = signing.sign(secret, body)
    while len(signed.body) > reports.LIMIT and most:  # a character takes up to twelve bytes
        most = most * 3 // 4
        signed = signing.sign(secret, {**body, "error_message": shortened(error, most)})
    if not most:
        raise InvalidInput(f"the report is too long: {reports.LIMIT} bytes at most")
    return signed


def _required(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name)
    if not value:
        raise InvalidInput(
            f"{name} is not set", hint="'pgcoord report' is for processes that pgcoord started."
        )
    return value


def _folder_of_run(environment: Mapping[str, str]) -> Path | None:
    prompt = environment.get("PGCOORD_PROMPT_FILE")
    folder = Path(prompt).parent if prompt else None
    return folder if folder and folder.is_dir() else None


def _keep(folder: Path | None, signed: "Signed") -> Path | None:
    """Write a report to the folder of its run, and return that folder; None if that fails."""
    from pgcoord.messages import report as reports

    if folder:
        try:
            reports.spool(folder, signed)
        except OSError as error:
            reason = error.strerror or error
            say(f"pgcoord: the report is only sent, not kept in {folder}: {reason}", err=True)
            return None
    return folder


def _forget(folder: Path | None) -> None:
    from pgcoord.messages import report as reports

    if folder:
        with suppress(OSError):
            reports.remove_spooled(folder)


def _kept(folder: Path | None, trouble: Exception) -> str:
    """Return the end of the printed line; raise `CannotStart` if the report was not kept."""
    if folder is None:
        raise CannotStart(f"the report could not be sent: {trouble}", hint="Try again later.")
    return f": kept in {folder} until a coordinator takes it ({trouble})"


def _send(url: str | None, signed: "Signed") -> dict[str, object]:
    """POST a report to *url*, and return the answer's object.

    Blocks up to `_TIMEOUT` seconds for each step. Raises `_NotDelivered` when a retry may help,
    and a `CoordError` when pgcoord refuses the report.
    """
    from http.client import HTTPConnection, HTTPException, HTTPSConnection

    if not url:
        raise _NotDelivered("PGCOORD_REPORT_URL names no server")
    parts = urlsplit(url)
    scheme = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = scheme(parts.netloc, timeout=_TIMEOUT)
    headers = {"content-type": "application/json", **signed.headers}
    try:
        connection.request("POST", parts.path or "/", signed.body, headers)
        response = connection.getresponse()
        status, text = response.status, response.read(1_000_000)
    except (OSError, HTTPException) as error:
        raise _NotDelivered(f"{parts.netloc}: {error}") from error
    finally:
        connection.close()
    answer = _answer(text)
    if status == 200 and "outcome" in answer:
        return answer
    if status in _REFUSALS and "error" in answer:
        hint = answer.get("hint")
        reason = f"the report is refused: {answer.get('reason')}"
        raise _REFUSALS[status](reason, hint=str(hint) if hint else None)
    words, now = f"{parts.netloc} answered {status}", answer.get("now")
    if status == 401 and "error" in answer:  # of pgcoord: a secret or a clock, which may be mended
        words = f"{words}: {answer.get('reason')}"
    raise _NotDelivered(words, now if isinstance(now, int | float) else None)


def _answer(text: bytes) -> dict[str, object]:
    try:
        answer = json.loads(text)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
