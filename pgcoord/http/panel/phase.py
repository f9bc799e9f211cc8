"""The page of a phase, and the logs of its attempts: a part, a search, the whole file."""

import asyncio
import re
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pgcoord.database import panel, reads
from pgcoord.database.rows import Attempt
from pgcoord.errors import NotFound, Refused
from pgcoord.http.panel import format, terminal
from pgcoord.http.panel.live import Tail
from pgcoord.http.panel.pages import PhasePage
from pgcoord.http.panel.responses import (
    error_page,
    queue_id_of,
    read_number,
    render_page,
    show,
    zone_of,
)
from pgcoord.http.responses import LogFile
from pgcoord.http.state import state_of
from pgcoord.runs import logs

_POSITION = re.compile(r"(\d{1,9}):(\d{1,18}):(\d{1,18})", re.ASCII)

# A query for the next line of trouble after, or before, the line with that number.
_TROUBLE = re.compile(r"(after|before)-(\d{1,18})", re.ASCII)

# Bytes that are shown before the line to go to.
_BEFORE = 16_000


# Lines that are shown before and after one that was found.
_CONTEXT = 2


@error_page
async def phase(request: Request) -> Response:
    """Answer with a phase and the part of its log in the query, or with the stream of `live`."""
    queue_id, query = queue_id_of(request), request.query_params
    view = PhasePage(queue_id)
    if "live" in query:
        return await show(request, view, await _tail(request, queue_id, query.get("log", "")))
    number = read_number(query["attempt"]) if query.get("attempt") else None
    return await show(request, view, log=await _read_log(request, queue_id, number))


@dataclass(frozen=True)
class _Log:
    """The shown part of a log, or the lines that a search found.

    *line*: the number of the line to go to, in the whole log. *lines*: the part as HTML.
    *position*: from where to follow it, as "attempt:offset:line". *around*: lines before and after
    each one found. *more*: the search found more than it returned.
    """

    attempt: int | None = None
    trouble: str | None = None
    part: logs.Part = logs.NOTHING
    lines: str = ""
    follows: bool = False
    line: int | None = None
    position: str = ""
    find: str | None = None
    found: list[logs.Hit] | None = None
    around: list[tuple[list[str], list[str]]] | None = None
    more: bool = False


async def _find_log(
    request: Request, queue_id: str, number: int | None
) -> tuple[Attempt, logs.Log]:
    """Return attempt *number* (None: the latest) and its log.

    Raises `NotFound` for an unknown attempt, `Refused` when its log is on another host.
    """
    state = state_of(request)
    async with state.database.connection() as conn:
        attempts = await reads.attempts(conn, queue_id)
    at = state.coordinator
    return logs.log_of(queue_id, attempts, number, host=at.host, runs=at.runs_folder)


async def _read_log(request: Request, queue_id: str, number: int | None) -> _Log:
    query = request.query_params
    try:
        attempt, log = await _find_log(request, queue_id, number)
    except (NotFound, Refused) as error:
        return _Log(trouble=str(error))
    shown = _Log(attempt.number, follows=attempt.ended_at is None)
    try:
        if find := query.get("find", "")[:200]:
            hits, more = await asyncio.to_thread(log.search, find)
            around = None
            if query.get("context"):
                offsets = [each.offset for each in hits]
                around = await asyncio.to_thread(log.around, offsets, _CONTEXT)
            return replace(shown, find=find, found=hits, around=around, more=more, follows=False)
        return replace(shown, **await asyncio.to_thread(_part, log, attempt, query))
    except FileNotFoundError:
        return replace(shown, position=f"{attempt.number}:0:1")
    except OSError as error:
        return _Log(attempt.number, trouble=f"The log cannot be read: {error.strerror or error}.")


def _part(log: logs.Log, attempt: Attempt, query: QueryParams) -> dict[str, Any]:
    """Return the fields of `_Log` for the part in *query*: at an offset, a line, trouble, the end.

    Without one of these, a failed attempt's last trouble is shown. Blocks on I/O.
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
        # The last line is incomplete: it is marked, so that the script can replace it.
        drawn, style = terminal.lines(part.lines[:-1], part.line, terminal.Style())
        number = part.line + len(part.lines) - 1
        drawn += terminal.line(part.lines[-1], number, style, going_on=True)[0]
    offset, number = part.open
    return {
        "part": part,
        "lines": drawn,
        "line": line,
        "follows": attempt.ended_at is None and at_end,
        "position": f"{attempt.number}:{offset}:{number}",
    }


class _Tail:
    """Follows a log from an offset, and renders the lines that are added."""

    def __init__(self, log: logs.Log, attempt: int, offset: int, number: int) -> None:
        self._tail = logs.LogTail(log, offset, number)
        self._attempt = attempt
        self._style = terminal.Style()

    def news(self) -> dict[str, Any] | None:
        """Return the lines added since the last call, the incomplete one included; None if none."""
        grown = self._tail.news()
        if grown is None:
            return None
        drawn, self._style = terminal.lines(grown.lines, grown.line, self._style)
        number = grown.line + len(grown.lines)
        if grown.going_on:
            drawn += terminal.line(grown.going_on, number, self._style, going_on=True)[0]
        return {
            "position": f"{self._attempt}:{grown.at}:{number}",
            "skipped": grown.skipped,
            "html": drawn,
            "size": format.size(grown.size),
            "written": grown.written,
        }


async def _tail(request: Request, queue_id: str, position: str) -> Tail | None:
    """Return the tail of a log from *position*, "attempt:offset:line"; None if not of that form.

    Raises as `_find_log`.
    """
    match = _POSITION.fullmatch(position)
    if match is None:
        return None
    attempt, log = await _find_log(request, queue_id, int(match[1]))
    return _Tail(log, attempt.number, int(match[2]), int(match[3]))


@error_page
async def send_log(request: Request) -> Response:
    """Answer with the log of an attempt as a file; supports Range."""
    number = request.query_params.get("attempt")
    queue_id = queue_id_of(request)
    attempt, log = await _find_log(request, queue_id, read_number(number) if number else None)
    return LogFile(log.open_for_people(), f"{queue_id}-{attempt.number}.log")


@error_page
async def send_part(request: Request) -> Response:
    """Answer with a part of a log from the line at an offset on, as JSON with its HTML."""
    query = request.query_params
    number = read_number(query["attempt"]) if query.get("attempt") else None
    _, log = await _find_log(request, queue_id_of(request), number)
    start = read_number(query.get("at", "0"))

    def draw() -> dict[str, Any]:
        part = log.read_from(max(0, start))
        drawn, _ = terminal.lines(part.lines, part.line, terminal.Style())
        return {
            "start": part.start,
            "end": part.end,
            "size": part.size,
            "html": drawn,
            "place": f"{format.size(part.start)} to {format.size(part.end)}"
            f" of {format.size(part.size)}",
        }

    try:
        return JSONResponse(await asyncio.to_thread(draw), headers={"cache-control": "no-store"})
    except OSError as error:
        raise NotFound(f"the log cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True)
class _Side:
    """One side of a comparison: an attempt, and its lines as (text, differs), or why none."""

    attempt: Attempt
    trouble: str | None = None
    lines: list[tuple[str, bool]] | None = None


_NUMBERS = re.compile(r"[0-9]+|0x[0-9a-f]+|[0-9a-f]{8,}")


@error_page
async def compare(request: Request) -> Response:
    """Answer with the ends of two attempts' logs side by side: by default the last two."""
    queue_id, query = queue_id_of(request), request.query_params
    async with state_of(request).database.connection() as conn:
        row = await panel.phase(conn, queue_id)
        attempts = await reads.attempts(conn, queue_id)
    if len(attempts) < 2:
        raise NotFound(f"phase {queue_id} has no two attempts to compare")
    by_number = {each.number: each for each in attempts}
    numbers = [
        read_number(query[name]) if query.get(name) else attempts[at].number
        for name, at in (("one", -2), ("other", -1))
    ]
    for number in numbers:
        if number not in by_number:
            raise NotFound(f"phase {queue_id} has no attempt {number}")
    sides = await asyncio.gather(*(_side(request, queue_id, by_number[each]) for each in numbers))
    if all(each.lines is not None for each in sides):
        sides = await asyncio.to_thread(_differing, sides)
    return render_page(
        request,
        "compare.html",
        title=f"Attempts {numbers[0]} and {numbers[1]} of {row.title} · pgcoord",
        phase=row,
        attempts=attempts,
        sides=sides,
        now=datetime.now(zone_of(request) or UTC),
    )


async def _side(request: Request, queue_id: str, attempt: Attempt) -> _Side:
    try:
        _, log = await _find_log(request, queue_id, attempt.number)
        part = await asyncio.to_thread(log.read_end)
    except (NotFound, Refused) as error:
        return _Side(attempt, str(error))
    except FileNotFoundError:
        return _Side(attempt, "There was no output, or it was removed.")
    except OSError as error:
        return _Side(attempt, f"The log cannot be read: {error.strerror or error}.")
    return _Side(attempt, None, [(each, False) for each in part.text.split("\n")])


def _differing(sides: list[_Side]) -> list[_Side]:
    """Mark the lines that one side has more often than the other, wherever they stand.

    Lines that differ only in numbers are equal. The order is ignored: what runs in parallel is
    written in another one each time.
    """
    texts = [[_NUMBERS.sub("0", line) for line, _ in side.lines or []] for side in sides]
    marked = []
    for side, mine, others in zip(sides, texts, texts[::-1], strict=True):
        remaining = Counter(others)
        lines = []
        for (line, _), text in zip(side.lines or [], mine, strict=True):
            lines.append((line, not remaining[text]))
            remaining[text] = max(0, remaining[text] - 1)
        marked.append(replace(side, lines=lines))
    return marked


@error_page
async def workflow(request: Request) -> Response:
    """Answer with the durations of a workflow's attempts, over time."""
    name = request.path_params["name"]
    async with state_of(request).database.connection() as conn:
        runs = await panel.durations(conn, name)
    if not runs:
        raise NotFound(f"no attempt of a workflow {name!r:.60} has ended yet")
    longest = max(each.took for each in runs)
    return render_page(
        request,
        "workflow.html",
        title=f"{name} · pgcoord",
        name=name,
        runs=runs,
        longest=longest,
        now=datetime.now(zone_of(request) or UTC),
    )
