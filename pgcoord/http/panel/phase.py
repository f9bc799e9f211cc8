"""The page of a phase, and the logs of its attempts: a part, what is searched for, all of it."""

import asyncio
import re
from dataclasses import dataclass, replace
from typing import Any

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from pgcoord.database import reads
from pgcoord.database.rows import Attempt
from pgcoord.errors import NotFound, Refused
from pgcoord.http.panel import format, terminal
from pgcoord.http.panel.live import Tail
from pgcoord.http.panel.pages import PhasePage
from pgcoord.http.panel.responses import error_page, queue_id_of, read_number, show
from pgcoord.http.responses import LogFile
from pgcoord.http.state import state_of
from pgcoord.runs import logs

_PLACE = re.compile(r"(\d{1,9}):(\d{1,18}):(\d{1,18})", re.ASCII)

# The line of trouble after or before a line.
_TROUBLE = re.compile(r"(after|before)-(\d{1,18})", re.ASCII)

# Bytes before the line to go to that are shown, too.
_BEFORE = 16_000


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
    """What is shown of a log: a part of it, or the lines that were looked for.

    `line`: the one to go to, of the whole log. `lines`: those of the part, drawn. `place`: from
    where on it is followed.
    """

    attempt: int | None = None
    trouble: str | None = None
    part: logs.Part = logs.NOTHING
    lines: str = ""
    follows: bool = False
    line: int | None = None
    place: str = ""
    find: str | None = None
    found: list[logs.Found] | None = None
    more: bool = False


async def _find_log(
    request: Request, queue_id: str, number: int | None
) -> tuple[Attempt, logs.Log]:
    """An attempt, else the latest, and its log.

    Raises `NotFound` and `Refused`, which say why there is none here.
    """
    state = state_of(request)
    async with state.database.connection() as conn:
        attempts = await reads.attempts(conn, queue_id)
    return logs.log_of(queue_id, attempts, number, host=state.coordinator.host)


async def _read_log(request: Request, queue_id: str, number: int | None) -> _Log:
    query = request.query_params
    try:
        attempt, log = await _find_log(request, queue_id, number)
    except (NotFound, Refused) as error:
        return _Log(trouble=str(error))
    shown = _Log(attempt.number, follows=attempt.ended_at is None)
    try:
        if find := query.get("find", "")[:200]:
            found, more = await asyncio.to_thread(log.search, find)
            return replace(shown, find=find, found=found, more=more, follows=False)
        return replace(shown, **await asyncio.to_thread(_part, log, attempt, query))
    except FileNotFoundError:
        return replace(shown, place=f"{attempt.number}:0:1")
    except OSError as error:
        return _Log(attempt.number, trouble=f"The log cannot be read: {error.strerror or error}.")


def _part(log: logs.Log, attempt: Attempt, query: QueryParams) -> dict[str, Any]:
    """The part of a log that is asked for: from an offset, around a line, around trouble, the end.

    Of an attempt that failed, what it failed of is looked for.
    """
    target = read_number(query["at"]) if query.get("at") else None
    if query.get("line"):
        target = log.offset_of_line(read_number(query["line"]))
    elif match := _TROUBLE.fullmatch(query.get("trouble", "")):
        from_there = log.offset_of_line(int(match[2]))
        target = log.find_trouble(from_there, before=match[1] == "before")
        target = from_there if target is None else target
    elif target is None and attempt.ended_at and attempt.outcome not in ("completed", "returned"):
        target = log.find_trouble(None, before=True)
    part = log.read_end()
    line = None
    if target is not None:
        if not part.start <= target < part.end:
            part = log.read_from(max(0, target - _BEFORE))
        line = part.line + part.raw.encode(errors="replace")[: target - part.start].count(b"\n")
    drawn, style = terminal.lines(part.lines, part.line, terminal.Style())
    at_end = part.end == part.size
    if at_end and part.raw and not part.raw.endswith("\n"):
        # The line that goes on is drawn so that it can be drawn anew.
        drawn, style = terminal.lines(part.lines[:-1], part.line, terminal.Style())
        number = part.line + len(part.lines) - 1
        drawn += terminal.line(part.lines[-1], number, style, going_on=True)[0]
    offset, number = part.open
    return {
        "part": part,
        "lines": drawn,
        "line": line,
        "follows": attempt.ended_at is None and at_end,
        "place": f"{attempt.number}:{offset}:{number}",
    }


class _Tail:
    """What is written to a log, drawn."""

    def __init__(self, log: logs.Log, attempt: int, offset: int, number: int) -> None:
        self._tail = logs.LogTail(log, offset, number)
        self._attempt = attempt
        self._style = terminal.Style()

    def news(self) -> dict[str, Any] | None:
        """The lines that have come since it was last asked, and the one that goes on."""
        grown = self._tail.news()
        if grown is None:
            return None
        drawn, self._style = terminal.lines(grown.lines, grown.line, self._style)
        number = grown.line + len(grown.lines)
        if grown.going_on:
            drawn += terminal.line(grown.going_on, number, self._style, going_on=True)[0]
        return {
            "place": f"{self._attempt}:{grown.at}:{number}",
            "skipped": grown.skipped,
            "html": drawn,
            "size": format.size(grown.size),
            "written": grown.written,
        }


async def _tail(request: Request, queue_id: str, place: str) -> Tail | None:
    """What is written to a log from a place on, `attempt:offset:line`; None where none is asked."""
    match = _PLACE.fullmatch(place)
    if match is None:
        return None
    attempt, log = await _find_log(request, queue_id, int(match[1]))
    return _Tail(log, attempt.number, int(match[2]), int(match[3]))


@error_page
async def send_log(request: Request) -> Response:
    """Send the log of an attempt; a Range asks for a part."""
    number = request.query_params.get("attempt")
    queue_id = queue_id_of(request)
    attempt, log = await _find_log(request, queue_id, read_number(number) if number else None)
    return LogFile(log.open_for_people(), f"{queue_id}-{attempt.number}.log")
