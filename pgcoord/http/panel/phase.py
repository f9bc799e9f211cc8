"""The page of a phase, and the logs of its attempts: a part, what is searched for, all of it."""

import asyncio
import re
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from pgcoord.database import reads
from pgcoord.errors import NotFound, Refused
from pgcoord.http.panel.live import Tail
from pgcoord.http.panel.pages import PhasePage
from pgcoord.http.panel.responses import error_page, queue_id_of, read_number, show
from pgcoord.http.responses import LogFile
from pgcoord.http.state import state_of
from pgcoord.runs import logs

_PLACE = re.compile(r"(\d{1,9}):(\d{1,18})", re.ASCII)


@error_page
async def phase(request: Request) -> Response:
    """Show a phase, with the part of its log that is asked for."""
    queue_id, query = queue_id_of(request), request.query_params
    view = PhasePage(queue_id)
    if "live" in query:
        return await show(request, view, await _tail(request, queue_id, query.get("log", "")))
    number = read_number(query["attempt"]) if query.get("attempt") else None
    return await show(request, view, log=await _read_log(request, queue_id, number))


@dataclass(frozen=True)
class _Log:
    """What is shown of a log: a part of it, or the lines that were looked for."""

    attempt: int | None = None
    trouble: str | None = None
    part: logs.Part = logs.NOTHING
    follows: bool = False
    find: str | None = None
    found: list[logs.Found] | None = None
    more: bool = False


async def _find_log(request: Request, queue_id: str, number: int | None) -> tuple[int, logs.Log]:
    """The number and the log of an attempt, else of the latest.

    Raises `NotFound` and `Refused`, which say why there is none here.
    """
    state = state_of(request)
    async with state.database.connection() as conn:
        attempts = await reads.attempts(conn, queue_id)
    attempt, log = logs.log_of(queue_id, attempts, number, host=state.coordinator.host)
    return attempt.number, log


async def _read_log(request: Request, queue_id: str, number: int | None) -> _Log:
    query = request.query_params
    try:
        attempt, log = await _find_log(request, queue_id, number)
    except (NotFound, Refused) as error:
        return _Log(trouble=str(error))
    try:
        if find := query.get("find", "")[:200]:
            found, more = await asyncio.to_thread(log.search, find)
            return _Log(attempt, find=find, found=found, more=more)
        if at := query.get("at"):
            part = await asyncio.to_thread(log.read_from, read_number(at))
            return _Log(attempt, part=part)
        part = await asyncio.to_thread(log.read_end)
        return _Log(attempt, part=part, follows=True)
    except FileNotFoundError:
        return _Log(attempt, follows=True)
    except OSError as error:
        return _Log(attempt, trouble=f"The log cannot be read: {error.strerror or error}.")


async def _tail(request: Request, queue_id: str, place: str) -> Tail | None:
    """What is written to a log from a place on, `attempt:offset`; None where none is wanted."""
    match = _PLACE.fullmatch(place)
    if match is None:
        return None
    number, log = await _find_log(request, queue_id, int(match[1]))
    return logs.LogTail(log, number, int(match[2]))


@error_page
async def send_log(request: Request) -> Response:
    """Send the log of an attempt; a Range asks for a part."""
    number = request.query_params.get("attempt")
    queue_id = queue_id_of(request)
    attempt, log = await _find_log(request, queue_id, read_number(number) if number else None)
    return LogFile(log.open_for_people(), f"{queue_id}-{attempt}.log")
