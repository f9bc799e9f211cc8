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
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

import jinja2
import psycopg
from markupsafe import Markup
from psycopg_pool import PoolTimeout

from pgcoord.errors import CoordError
from pgcoord.http.feed import Connected, Cursor, Event, Feed
from pgcoord.queries import Connection

logger = logging.getLogger(__name__)

# Seconds between two drawings while much happens; and how many times as long as a drawing took
# nothing is drawn, for the coordinator lives in the same process.
_ROUND = 0.05
_REST = 3

# Seconds after which pieces that show how time passes are drawn again.
_AGEING = 15.0

# Seconds after which a viewer is told that it is still live.
_BEAT = 4.0

# Seconds until the connection is looked at again, at the beginning.
_SOON = 0.02

# Seconds after which a log is looked at again while somebody does.
_LOG_ROUND = 0.3

# Seconds for which a screen that nobody looks at any more is kept, for those who come back.
_KEPT = 60.0

# A place in the stream of events beyond all of them: a screen reads the tables, not the past.
_FROM_NOW_ON = Cursor(2**62)

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
    """A part of a page that is drawn by itself; `ages` when it shows how time passes."""

    template: str
    data: Any
    ages: bool = False


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


@dataclass
class _Drawn:
    piece: Piece
    html: str
    version: int


class Screen:
    """A view that somebody looks at, and what of it was drawn when."""

    def __init__(self, live: "Live", view: View) -> None:
        self.view = view
        self._live = live
        self._page: Page | None = None
        self._read_at = 0.0
        self._drawn: dict[str, _Drawn] = {}
        self._lists: dict[str, tuple[list[str], int]] = {}
        self._title = ("", 0)
        self._version = 0
        self._messages: dict[int, str] = {}
        self._changed = asyncio.Event()
        self._stale = asyncio.Event()
        self._drawing = asyncio.Lock()
        self.viewers = 0
        self.left_at = time.monotonic()

    @property
    def version(self) -> str:
        """The place after the last drawing, to be asked from later."""
        return f"{_BOOT}.{self._version}"

    def touch(self) -> None:
        """Have it read and drawn again."""
        self._stale.set()

    def tell(self) -> None:
        """Wake those who look at it."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def whole(self, **more: Any) -> str:
        """The page as it is now, in full; the template is given `more`, too."""
        await self._refresh()
        assert self._page is not None
        return await asyncio.to_thread(self._draw_whole, self._page, self.version, more)

    async def run(self) -> None:
        """Draw what changes, as long as somebody looks."""
        while True:
            took = 0.0
            try:
                async with asyncio.timeout(_AGEING):
                    await self._stale.wait()
                began = time.monotonic()
                self._stale.clear()
                await self._refresh()
                took = time.monotonic() - began
            except TimeoutError:
                await self._age()
            except (psycopg.Error, PoolTimeout) as error:
                logger.debug("%s is not read: %s", self.view.key, error)
                self._stale.set()
                took = 1 / _REST
            except CoordError as error:
                logger.debug("%s: %s", self.view.key, error)  # such as a feature that was deleted
            except Exception:
                logger.exception("%s cannot be shown", self.view.key)
            await asyncio.sleep(max(_ROUND, _REST * took))

    async def _refresh(self) -> None:
        async with self._drawing:
            async with self._live.reading() as conn:
                page = await self.view.read(conn)
            self._page, self._read_at = page, time.monotonic()
            if await asyncio.to_thread(self._draw, page):
                self.tell()

    async def _age(self) -> None:
        async with self._drawing:
            if self._page is None or not any(each.ages for each in self._page.pieces.values()):
                return
            if await asyncio.to_thread(self._redraw_ageing, self._page):
                self.tell()

    def _now(self, page: Page) -> datetime:
        return page.now + timedelta(seconds=time.monotonic() - self._read_at)

    def _draw(self, page: Page) -> bool:
        """Draw what has changed; whether anything has."""
        version = self._version + 1
        news = False
        for name, piece in page.pieces.items():
            before = self._drawn.get(name)
            if before is None or before.piece != piece:
                html = self._live.draw(name, piece, page.now)
                if before is None or before.html != html:
                    news = True
                    self._drawn[name] = _Drawn(piece, html, version)
                else:
                    before.piece = piece
        for name in self._drawn.keys() - page.pieces.keys():
            del self._drawn[name]
        for name, items in page.lists.items():
            if name not in self._lists or self._lists[name][0] != items:
                news = True
                self._lists[name] = (items, version)
        if self._title[0] != page.title:
            news = True
            self._title = (page.title, version)
        return self._count(news)

    def _redraw_ageing(self, page: Page) -> bool:
        now = self._now(page)
        news = False
        for name, drawn in self._drawn.items():
            if drawn.piece.ages:
                html = self._live.draw(name, drawn.piece, now)
                if html != drawn.html:
                    news = True
                    drawn.html, drawn.version = html, self._version + 1
        return self._count(news)

    def _count(self, news: bool) -> bool:
        if news:
            self._version += 1
            self._messages = {}
        return news

    def _draw_whole(self, page: Page, version: str, more: Mapping[str, Any]) -> str:
        template = self._live.templates.get_template(page.template)
        drawn = {
            name: Markup(self._live.draw(name, piece, page.now))
            for name, piece in page.pieces.items()
        }
        context = {**page.extra, **more, "title": page.title, "now": page.now, "seen": version}
        return template.render(context, pieces=drawn, lists=page.lists)

    def _since(self, seen: int) -> str:
        """What is newer than a drawing, as a message; made once for all who saw that one."""
        if seen not in self._messages:
            news = {
                "title": self._title[0],
                "pieces": {n: d.html for n, d in self._drawn.items() if d.version > seen},
                "lists": {n: items for n, (items, at) in self._lists.items() if at > seen},
            }
            self._messages[seen] = json.dumps(news, ensure_ascii=False, separators=(",", ":"))
        return self._messages[seen]

    async def look(self, seen: str, tail: Tail | None) -> AsyncIterator[str]:
        """Tell one viewer all that is newer than what it has seen, as server-sent events."""
        boot, _, number = seen.partition(".")
        known = boot == _BOOT and number.isdigit() and int(number) <= self._version
        at = int(number) if known else -1
        self.touch()
        told: Connected | None = None
        beat = 0.0
        while not self._live.closed:
            changed = self._changed
            if at < self._version and self._page is not None:
                # Whoever comes from another start of the server gets all of it, and is told so.
                kind = "news" if at >= 0 else "all"
                message, at = self._since(at), self._version
                yield f"event: {kind}\nid: {self.version}\ndata: {message}\n\n"
            state = self._live.state
            if state and (state is not told or time.monotonic() > beat):
                told, beat = state, time.monotonic() + _BEAT
                yield f"event: live\ndata: {json.dumps(self._live.told(state))}\n\n"
            if tail and (grown := tail.news()):
                yield f"event: log\ndata: {json.dumps(grown)}\n\n"
            # Nobody is told when the feed begins to be live, and who has just come waits for it.
            patience = _SOON if state is None else _LOG_ROUND if tail else _BEAT
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await changed.wait()


class Live:
    """All screens of a server. `run` it once; the feed is followed while somebody looks."""

    def __init__(self, feed: Feed, reading: Reading, templates: jinja2.Environment) -> None:
        self.templates = templates
        self.reading = reading
        self.closed = False
        self._feed = feed
        self._screens: dict[str, Screen] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._running: dict[str, asyncio.Task[None]] = {}

    @property
    def state(self) -> Connected | None:
        """Whether what is shown is live."""
        return self._feed.state

    def told(self, state: Connected) -> dict[str, Any]:
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

    def screen(self, view: View) -> Screen:
        """The screen of a view, which those who see the same share."""
        forgotten = time.monotonic() - _KEPT
        for key, screen in [*self._screens.items()]:
            if not screen.viewers and screen.left_at < forgotten:
                del self._screens[key]
        return self._screens.setdefault(view.key, Screen(self, view))

    @contextmanager
    def looking(self, screen: Screen) -> Iterator[None]:
        """Keep a screen drawn for the length of the block."""
        self._screens[screen.view.key] = screen
        self._begin(_FOLLOWING, self._follow)
        self._begin(screen.view.key, screen.run)
        screen.viewers += 1
        try:
            yield
        finally:
            screen.viewers -= 1
            screen.left_at = time.monotonic()
            if not screen.viewers:
                self._end(screen.view.key)
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
            with self._feed.subscribe(_FROM_NOW_ON) as messages:
                async for message in messages:
                    self._hear(message)
            # It ends with the server, or when more had come than could be taken.
            self.closed = not messages.overflowed.is_set()
            for screen in self._screens.values():
                screen.touch()
        for screen in self._screens.values():
            screen.tell()

    def _hear(self, message: object) -> None:
        for screen in self._screens.values():
            if not isinstance(message, Event):
                screen.touch()
                screen.tell()
            elif screen.viewers and screen.view.concerns(message):
                screen.touch()
