"""Live pages: a page with viewers is a screen, rendered once for all of them.

A page consists of pieces. A piece is a template and its data, and is rendered again only when the
data changes. An element of a piece that is a line of its own, with an id such as `lane-3`, is a
part: as long as nothing else of the piece changes, only the parts that did are sent. Each drawing
of a screen has a version, and each piece and part the version at which it last changed. A viewer
sends the last version that it saw, and receives what is newer, whether that was a millisecond or an
hour ago.

The one rule: no viewer waits for another. Each takes the latest version when it is ready; a piece
that changed twice meanwhile is sent once.
"""

import asyncio
import json
import logging
import re
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
from pgcoord.errors import CoordError
from pgcoord.http.feed import FROM_NOW_ON, Connected, Event, Feed

logger = logging.getLogger(__name__)

# The least seconds between two drawings; and the pause after one, as a multiple of the time that it
# took, since the coordinator runs in the same process.
_ROUND = 0.02
_REST = 3

# Seconds until the next read when the database did not answer.
_AGAIN = 1.0

# Seconds between two `glance`s at data that changes without an event, such as logs.
_GLANCE = 2.0

# Time after which pieces that show durations (`ages`) are rendered again.
_AGEING = timedelta(seconds=15)

# The most seconds between two messages to a viewer that its page is still live.
_BEAT = 4.0

# Seconds between two checks of the feed until it has a state for the first time.
_SOON = 0.02

# Seconds between two reads of a log that a viewer follows.
_LOG_ROUND = 0.3

# Seconds for which a screen is kept after its last viewer left, for one that comes back.
_SCREEN_LIFETIME = 60.0

_BOOT = secrets.token_hex(4)

# The name of the task that follows the feed, beside those of the screens.
_FOLLOWING = "the feed"

Reading = Callable[[], AbstractAsyncContextManager[Connection]]


class Tail(Protocol):
    """A log that a viewer follows; it grows without events of the database."""

    def news(self) -> dict[str, Any] | None:
        """Return what was added since the last call, as an object for the script; None if nothing.

        Must not block for long: it runs in the event loop.
        """
        ...


@dataclass(frozen=True)
class Piece:
    """A part of a page that is rendered by itself, from *data*.

    *ages*: it shows durations, so it is rendered again as time passes. *heavy*: when it changes,
    viewers get only its name, and fetch it when it is visible.
    """

    template: str
    data: Any
    ages: bool = False
    heavy: bool = False


@dataclass(frozen=True)
class Page:
    """The data of a page, read at *now*.

    *pieces*: by the id of their element. *lists*: the ids of pieces in each list, in order.
    *extra*: further variables of the template.
    """

    template: str
    title: str
    now: datetime
    pieces: Mapping[str, Piece]
    lists: Mapping[str, list[str]] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


class View(Protocol):
    """A kind of page with its parameters, which can be read again and again."""

    @property
    def key(self) -> str:
        """A string that is equal for views that show the same."""
        ...

    def concerns(self, event: Event) -> bool:
        """Whether *event* may change it, so that it must be read again."""
        ...

    async def read(self, conn: Connection) -> Page:
        """Read the page from the database."""
        ...

    def glance(self, page: Page) -> Page:
        """Return *page* with the parts renewed that change without events, such as logs.

        Called in a thread; may block on files.
        """
        return page


@dataclass(frozen=True)
class _Drawn:
    """A rendered piece, and the version at which its HTML last changed."""

    piece: Piece
    html: str
    at: datetime
    version: int
    whole: int
    """The version of the last change outside of all parts."""
    parts: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """The HTML of each part that has changed since, with its version."""

    def since(self, name: str, version: int) -> Iterator[tuple[str, str]]:
        """Yield (id, HTML) of what changed after *version*: all of it, or parts."""
        if self.whole > version:
            yield name, self.html
        else:
            yield from ((part, html) for part, (html, at) in self.parts.items() if at > version)

    def holds(self, piece: Piece, now: datetime) -> bool:
        """Whether it is still valid for *piece*, so need not be rendered again."""
        return self.piece == piece and not (piece.ages and now - self.at >= _AGEING)


@dataclass(frozen=True)
class _Drawing:
    """A rendered page; each list and the title with the version at which it last changed."""

    page: Page
    pieces: Mapping[str, _Drawn]
    lists: Mapping[str, tuple[list[str], int]]
    title: tuple[str, int]
    version: int

    def since(self, after: int) -> str:
        """Return the changes after version *after*, as JSON for the script."""
        news = {
            "title": self.title[0],
            "pieces": dict(
                each
                for n, e in self.pieces.items()
                if e.version > after and not e.piece.heavy
                for each in e.since(n, after)
            ),
            "stale": [n for n, e in self.pieces.items() if e.version > after and e.piece.heavy],
            "lists": {n: items for n, (items, at) in self.lists.items() if at > after},
        }
        return json.dumps(news, ensure_ascii=False, separators=(",", ":"))


class Screen:
    """A rendered page shared by its viewers, with the version at which each part last changed."""

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
        """Mark it as stale, so that `run` reads and renders it again."""
        self._stale.set()

    def wake(self) -> None:
        """Wake the streams of all its viewers."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def whole(self, **more: Any) -> str:
        """Read the page, and return its whole HTML; *more*: further variables of the template."""
        drawing = await self._refresh()
        return await asyncio.to_thread(self._draw_whole, drawing, more)

    async def piece(self, name: str) -> str | None:
        """Read the page, and return the HTML of one piece; None if it has no such piece."""
        drawn = (await self._refresh()).pieces.get(name)
        return None if drawn is None else drawn.html

    async def run(self) -> None:
        """Render changes until cancelled; `Live.viewing` runs it while there are viewers."""
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
        """Read the page and render it."""
        async with self._busy:
            self._stale.clear()
            async with self._live.reading() as conn:
                page = await self.view.read(conn)
            if self._zone:
                page = replace(page, now=page.now.astimezone(self._zone))
            self._read_at = time.monotonic()
            return await self._redraw(page, page.now)

    async def _glance(self) -> None:
        """Render what changes without an event, from the data read last."""
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
        """Render what changed since *before*; return the new drawing. Runs in a thread."""
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
        if before is None:
            return _Drawn(piece, html, now, version, version)
        if before.html == html:
            return replace(before, piece=piece, at=now)
        changed = _changed_parts(before.html, html)
        if changed is None:
            return _Drawn(piece, html, now, version, version)
        parts = {**before.parts, **{name: (part, version) for name, part in changed.items()}}
        return _Drawn(piece, html, now, version, before.whole, parts)

    def _draw_whole(self, drawing: _Drawing, more: Mapping[str, Any]) -> str:
        """Return the whole HTML; pieces of an earlier time are rendered anew, for its durations."""
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

    def _since(self, drawing: _Drawing, version: int) -> str:
        """Return the changes after version *version*, cached for all viewers with that version."""
        if version not in self._messages:
            self._messages[version] = drawing.since(version)
        return self._messages[version]

    async def stream(self, version_seen: str, tail: Tail | None) -> AsyncIterator[str]:
        """Yield server-sent events to one viewer: all changes after *version_seen*, without end.

        *version_seen*: the id of the last event that it received, or "". Events: "news" with
        changes, "all" with everything if *version_seen* is unknown, "live" with the state of the
        connection, "log" with what *tail* has.
        """
        at = self._version_of(version_seen)
        self.touch()
        last_state: Connected | None = None
        beat = 0.0
        while not self._live.closed:
            changed = self._changed
            drawing = self._drawing
            if drawing and at < drawing.version:
                # A viewer with an id of an earlier process gets everything, marked as "all".
                kind = "news" if at >= 0 else "all"
                message, at = self._since(drawing, at), drawing.version
                yield f"event: {kind}\nid: {_position(at)}\ndata: {message}\n\n"
            state = self._live.state
            if state and (state is not last_state or time.monotonic() > beat):
                last_state, beat = state, time.monotonic() + _BEAT
                yield f"event: live\ndata: {json.dumps(self._live.connection_payload(state))}\n\n"
            if tail and (grown := tail.news()):
                yield f"event: log\ndata: {json.dumps(grown)}\n\n"
            # No event says when the feed becomes live, and a new viewer waits for that.
            patience = _SOON if state is None else _LOG_ROUND if tail else _BEAT
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await changed.wait()

    def _version_of(self, text: str) -> int:
        boot, _, number = text.partition(".")
        latest = self._drawing.version if self._drawing else 0
        is_known = boot == _BOOT and number.isdecimal() and int(number) <= latest
        return int(number) if is_known else -1


# A line that is a whole element with an id such as "lane-3".
_PART = re.compile(r"""<(\w+) id="([a-z]+(?:-\d+)+)".*</\1>""", re.ASCII)


def _changed_parts(before: str, after: str) -> dict[str, str] | None:
    """Return {id: HTML} of the parts that differ; None if anything else does."""
    old, new = before.split("\n"), after.split("\n")
    if len(old) != len(new):
        return None
    changed = {}
    for one, other in zip(old, new, strict=True):
        if one != other:
            match, again = _PART.fullmatch(one), _PART.fullmatch(other)
            if not match or not again or match[2] != again[2]:
                return None
            changed[again[2]] = other
    return changed


def _position(version: int) -> str:
    """Return the event id of a version; it is valid for this process only."""
    return f"{_BOOT}.{version}"


class Live:
    """All screens of a server; *tasks* runs those with viewers, and follows the feed for them."""

    def __init__(
        self,
        feed: Feed,
        reading: Reading,
        templates: jinja2.Environment,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.templates = templates
        self.closed = False
        self._feed = feed
        self._reading = reading
        self._screens: dict[str, Screen] = {}
        self._tasks = tasks
        self._running: dict[str, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Connection]:
        """Take a connection of the pool for the block.

        Raises `DatabaseUnusable` at once, without waiting, while the feed has lost the database.
        """
        self._feed.refuse_if_lost()
        async with self._reading() as conn:
            yield conn

    @property
    def state(self) -> Connected | None:
        """The state of the feed's connection; None until it is first known."""
        return self._feed.state

    def connection_payload(self, state: Connected) -> dict[str, Any]:
        """Return the data of a "live" event: state, times, reason, and the version of assets.

        *as_of* is ISO 8601; *now* is milliseconds since 1970.
        """
        return {
            "live": state.live,
            "as_of": state.as_of.isoformat(timespec="milliseconds"),
            "now": time.time() * 1000,
            "reason": state.reason,
            "assets": self.templates.globals["assets_version"],
        }

    def draw(self, name: str, piece: Piece, now: datetime) -> str:
        """Render a piece, whose element has the id *name*, to HTML."""
        template = self.templates.get_template(piece.template)
        return template.render(id=name, data=piece.data, now=now)

    def screen(self, view: View, zone: tzinfo | None = None) -> Screen:
        """Return the screen for a view, shared with equal views in the same time zone.

        *zone*: None is the server's. Screens without viewers for `_SCREEN_LIFETIME` are dropped.
        """
        forgotten = time.monotonic() - _SCREEN_LIFETIME
        for key, screen in [*self._screens.items()]:
            if not screen.viewers and screen.left_at < forgotten:
                del self._screens[key]
        screen = Screen(self, view, zone)
        return self._screens.setdefault(screen.key, screen)

    @contextmanager
    def viewing(self, screen: Screen) -> Iterator[None]:
        """Within the block, count a viewer of *screen*, and keep it rendered."""
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

    def close(self) -> None:
        """Cancel the tasks of all screens."""
        self.closed = True
        for name in [*self._running]:
            self._end(name)

    def _begin(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if name not in self._running and not self.closed:
            self._running[name] = self._tasks.create_task(work())

    def _end(self, name: str) -> None:
        task = self._running.pop(name, None)
        if task:
            task.cancel()

    async def _follow(self) -> None:
        """Follow the feed, and mark the screens as stale that an event concerns."""
        while not self.closed:
            with self._feed.subscribe(FROM_NOW_ON) as messages:
                async for message in messages:
                    self._on_message(message)
            # The iteration ends with the server, or when the subscription overflowed.
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
