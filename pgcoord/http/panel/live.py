"""What keeps pages live: each page that somebody looks at is a screen, drawn once for all of them.

A page is made of pieces. A piece is a template and the data it is drawn from; it is drawn again
when its data has changed, and for nothing else. Each drawing of a screen has a number, each piece
the number of the drawing at which it last changed; so whoever says what was last seen is sent what
is newer, be it after a millisecond or after an hour without a network.

The one rule: nobody waits for anybody. A viewer takes what is newest when it is ready for it; what
changed twice meanwhile is sent once.
"""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, tzinfo
from typing import Any, Protocol

import jinja2
import psycopg
from markupsafe import Markup
from psycopg_pool import PoolTimeout

from pgcoord.database._sql import Connection
from pgcoord.errors import CoordError, DatabaseUnusable
from pgcoord.http.feed import FROM_NOW_ON, Connected, Event, Feed

logger = logging.getLogger(__name__)

# Seconds between two drawings while much happens; and how many times as long as a drawing took
# nothing is drawn, for the coordinator lives in the same process.
_ROUND = 0.02
_REST = 3

# Seconds until it is read again when the database did not answer.
_AGAIN = 1.0

# Seconds after which what changes without an event is looked at, such as a log.
_GLANCE = 2.0

# Time after which pieces that show how time passes are drawn again.
_AGEING = timedelta(seconds=15)

# Seconds after which a viewer is told that it is still live.
_BEAT = 4.0

# Seconds until the connection is looked at again, at the beginning.
_SOON = 0.02

# Seconds after which a log is looked at again while somebody does.
_LOG_ROUND = 0.3

# Seconds for which a screen that nobody looks at any more is kept, for those who come back.
_KEPT = 60.0

_BOOT = secrets.token_hex(4)

# The name of the task that follows the feed, beside those of the screens.
_FOLLOWING = "the feed"

Reading = Callable[[], AbstractAsyncContextManager[Connection]]


class Tail(Protocol):
    """Something that grows while it is looked at, without an event for it."""

    def news(self) -> dict[str, Any] | None:
        """What has come since it was last asked."""
        ...


@dataclass(frozen=True)
class Piece:
    """A part of a page that is drawn by itself; `ages` when it shows how time passes.

    One that is `heavy` is not sent when it changes: viewers are told, and fetch it if they look.
    """

    template: str
    data: Any
    ages: bool = False
    heavy: bool = False


@dataclass(frozen=True)
class Page:
    """A page: its template, its pieces by their ids, and which of them stand in which list."""

    template: str
    title: str
    now: datetime
    pieces: Mapping[str, Piece]
    lists: Mapping[str, list[str]] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


class View(Protocol):
    """Something that can be looked at."""

    @property
    def key(self) -> str:
        """The same for those who see the same."""
        ...

    def concerns(self, event: Event) -> bool:
        """Whether it looks different after an event."""
        ...

    async def read(self, conn: Connection) -> Page:
        """Read all that is shown."""
        ...

    def glance(self, page: Page) -> Page:
        """The page with what changes without an event as it is now, such as what is in files."""
        return page


@dataclass(frozen=True)
class _Drawn:
    """A piece as it was drawn, and at which drawing it last changed."""

    piece: Piece
    html: str
    at: datetime
    version: int

    def holds(self, piece: Piece, now: datetime) -> bool:
        """Whether it need not be drawn again."""
        return self.piece == piece and not (piece.ages and now - self.at >= _AGEING)


@dataclass(frozen=True)
class _Drawing:
    """A page as it was drawn; each list and the title with the drawing at which it last changed."""

    page: Page
    pieces: Mapping[str, _Drawn]
    lists: Mapping[str, tuple[list[str], int]]
    title: tuple[str, int]
    version: int

    def since(self, seen: int) -> str:
        """What is newer than a drawing, as a message."""
        news = {
            "title": self.title[0],
            "pieces": {
                n: e.html for n, e in self.pieces.items() if e.version > seen and not e.piece.heavy
            },
            "stale": [n for n, e in self.pieces.items() if e.version > seen and e.piece.heavy],
            "lists": {n: items for n, (items, at) in self.lists.items() if at > seen},
        }
        return json.dumps(news, ensure_ascii=False, separators=(",", ":"))


class Screen:
    """A view that somebody looks at, and what of it was drawn when."""

    def __init__(self, live: "Live", view: View, zone: tzinfo | None) -> None:
        self.view = view
        self.key = f"{view.key} {zone or ''}"
        self._zone = zone
        self._live = live
        self._drawing: _Drawing | None = None
        self._read_at = 0.0
        self._messages: dict[int, str] = {}
        self._changed = asyncio.Event()
        self._stale = asyncio.Event()
        self._busy = asyncio.Lock()
        self.viewers = 0
        self.left_at = time.monotonic()

    def touch(self) -> None:
        """Have it read and drawn again."""
        self._stale.set()

    def wake(self) -> None:
        """Wake those who look at it."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def whole(self, **more: Any) -> str:
        """The page as it is now, in full; the template is given `more`, too."""
        drawing = await self._refresh()
        return await asyncio.to_thread(self._draw_whole, drawing, more)

    async def piece(self, name: str) -> str | None:
        """One piece as it is now; None where there is no such one."""
        drawn = (await self._refresh()).pieces.get(name)
        return None if drawn is None else drawn.html

    async def run(self) -> None:
        """Draw what changes, as long as somebody looks."""
        while True:
            stale = await self._stale_within(_GLANCE)
            began = time.monotonic()
            rest = _ROUND
            try:
                await (self._refresh() if stale else self._glance())
            except (psycopg.Error, PoolTimeout) as error:
                logger.debug("%s is not read: %s", self.view.key, error)
                self.touch()
                rest = _AGAIN
            except CoordError as error:
                logger.debug("%s: %s", self.view.key, error)  # such as a feature that was deleted
            except Exception:
                logger.exception("%s cannot be shown", self.view.key)
            await asyncio.sleep(max(rest, _REST * (time.monotonic() - began)))

    async def _stale_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stale.wait()
        return self._stale.is_set()

    async def _refresh(self) -> _Drawing:
        """Read and draw."""
        async with self._busy:
            self._stale.clear()
            async with self._live.reading() as conn:
                page = await self.view.read(conn)
            if self._zone:
                page = replace(page, now=page.now.astimezone(self._zone))
            self._read_at = time.monotonic()
            return await self._redraw(page, page.now)

    async def _glance(self) -> None:
        """Draw what changes though nothing has happened."""
        async with self._busy:
            if self._drawing:
                page = self._drawing.page
                passed = timedelta(seconds=time.monotonic() - self._read_at)
                await self._redraw(page, page.now + passed)

    async def _redraw(self, page: Page, now: datetime) -> _Drawing:
        before = self._drawing
        drawing = await asyncio.to_thread(self._draw, before, page, now)
        self._drawing = drawing
        if before is None or drawing.version > before.version:
            self._messages = {}
            self.wake()
        return drawing

    def _draw(self, before: _Drawing | None, page: Page, now: datetime) -> _Drawing:
        """Draw what has changed since the drawing before."""
        page = self.view.glance(page)
        if before is None:
            before = _Drawing(page, {}, {}, ("", 0), 0)
        version = before.version + 1
        pieces = {
            name: self._draw_piece(name, piece, before.pieces.get(name), now, version)
            for name, piece in page.pieces.items()
        }
        lists = {
            name: (items, version)
            if name not in before.lists or before.lists[name][0] != items
            else before.lists[name]
            for name, items in page.lists.items()
        }
        title = before.title if before.title[0] == page.title else (page.title, version)
        news = (
            title[1] == version
            or any(at == version for _, at in lists.values())
            or any(each.version == version for each in pieces.values())
        )
        return _Drawing(page, pieces, lists, title, version if news else before.version)

    def _draw_piece(
        self, name: str, piece: Piece, before: _Drawn | None, now: datetime, version: int
    ) -> _Drawn:
        if before and before.holds(piece, now):
            return before
        html = self._live.draw(name, piece, now)
        changed = before is None or before.html != html
        return _Drawn(piece, html, now, version if changed or before is None else before.version)

    def _draw_whole(self, drawing: _Drawing, more: Mapping[str, Any]) -> str:
        """The page in full; times that have passed are told anew, for those without a script."""
        page = drawing.page
        pieces = {
            name: Markup(
                each.html if each.at == page.now else self._live.draw(name, each.piece, page.now)
            )
            for name, each in drawing.pieces.items()
        }
        context = {**page.extra, **more, "title": page.title, "now": page.now}
        template = self._live.templates.get_template(page.template)
        return template.render(
            context, seen=_position(drawing.version), pieces=pieces, lists=page.lists
        )

    def _since(self, drawing: _Drawing, seen: int) -> str:
        """What is newer than what was seen, made once for all who saw that."""
        if seen not in self._messages:
            self._messages[seen] = drawing.since(seen)
        return self._messages[seen]

    async def stream(self, seen: str, tail: Tail | None) -> AsyncIterator[str]:
        """Tell one viewer all that is newer than what it has seen, as server-sent events."""
        at = self._version_of(seen)
        self.touch()
        told: Connected | None = None
        beat = 0.0
        while not self._live.closed:
            changed = self._changed
            drawing = self._drawing
            if drawing and at < drawing.version:
                # Whoever comes from another start of the server gets all of it, and is told so.
                kind = "news" if at >= 0 else "all"
                message, at = self._since(drawing, at), drawing.version
                yield f"event: {kind}\nid: {_position(at)}\ndata: {message}\n\n"
            state = self._live.state
            if state and (state is not told or time.monotonic() > beat):
                told, beat = state, time.monotonic() + _BEAT
                yield f"event: live\ndata: {json.dumps(self._live.connection_payload(state))}\n\n"
            if tail and (grown := tail.news()):
                yield f"event: log\ndata: {json.dumps(grown)}\n\n"
            # Nobody is told when the feed begins to be live, and who has just come waits for it.
            patience = _SOON if state is None else _LOG_ROUND if tail else _BEAT
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await changed.wait()

    def _version_of(self, seen: str) -> int:
        boot, _, number = seen.partition(".")
        latest = self._drawing.version if self._drawing else 0
        known = boot == _BOOT and number.isdecimal() and int(number) <= latest
        return int(number) if known else -1


def _position(version: int) -> str:
    """A drawing, to be asked from later; of this start of the server."""
    return f"{_BOOT}.{version}"


class Live:
    """All screens of a server. `run` it once; the feed is followed while somebody looks."""

    def __init__(self, feed: Feed, reading: Reading, templates: jinja2.Environment) -> None:
        self.templates = templates
        self.closed = False
        self._feed = feed
        self._reading = reading
        self._screens: dict[str, Screen] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._running: dict[str, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Connection]:
        """A connection to read with; raises `DatabaseUnusable` at once where none can be had."""
        if self.state and not self.state.live:
            raise DatabaseUnusable(f"the database does not answer: {self.state.reason}")
        async with self._reading() as conn:
            yield conn

    @property
    def state(self) -> Connected | None:
        """Whether what is shown is live."""
        return self._feed.state

    def connection_payload(self, state: Connected) -> dict[str, Any]:
        """What a viewer is told of the connection, and of what its page was made with."""
        return {
            "live": state.live,
            "as_of": state.as_of.isoformat(timespec="milliseconds"),
            "now": time.time() * 1000,
            "reason": state.reason,
            "assets": self.templates.globals["assets_version"],
        }

    def draw(self, name: str, piece: Piece, now: datetime) -> str:
        """The HTML of a piece."""
        template = self.templates.get_template(piece.template)
        return template.render(id=name, it=piece.data, now=now)

    def screen(self, view: View, zone: tzinfo | None = None) -> Screen:
        """The screen of a view, which those who see the same share; None: the server's zone."""
        forgotten = time.monotonic() - _KEPT
        for key, screen in [*self._screens.items()]:
            if not screen.viewers and screen.left_at < forgotten:
                del self._screens[key]
        screen = Screen(self, view, zone)
        return self._screens.setdefault(screen.key, screen)

    @contextmanager
    def viewing(self, screen: Screen) -> Iterator[None]:
        """Keep a screen drawn for the length of the block."""
        self._screens[screen.key] = screen
        self._begin(_FOLLOWING, self._follow)
        self._begin(screen.key, screen.run)
        screen.viewers += 1
        try:
            yield
        finally:
            screen.viewers -= 1
            screen.left_at = time.monotonic()
            if not screen.viewers:
                self._end(screen.key)
            if not any(each.viewers for each in self._screens.values()):
                self._end(_FOLLOWING)

    async def run(self) -> None:
        """Draw until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            await asyncio.Event().wait()

    def _begin(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if name not in self._running and not self.closed:
            assert self._tasks is not None
            self._running[name] = self._tasks.create_task(work())

    def _end(self, name: str) -> None:
        task = self._running.pop(name, None)
        if task:
            task.cancel()

    async def _follow(self) -> None:
        """Have screens drawn again when something has happened that concerns them."""
        while not self.closed:
            with self._feed.subscribe(FROM_NOW_ON) as messages:
                async for message in messages:
                    self._on_message(message)
            # It ends with the server, or when more had come than could be taken.
            self.closed = not messages.overflowed.is_set()
            for screen in self._screens.values():
                screen.touch()
        for screen in self._screens.values():
            screen.wake()

    def _on_message(self, message: object) -> None:
        for screen in self._screens.values():
            if not isinstance(message, Event):
                screen.touch()
                screen.wake()
            elif screen.viewers and screen.view.concerns(message):
                screen.touch()
