"""The event feed: one LISTEN connection for any number of subscribers.

The feed sends events in the order of their commits. The ids of `pgcoord.event` are not in that
order: a slow transaction commits a lower id after the feed has sent a higher one. The ids of one
phase are, because the writer of an event holds the lock of its phase until its commit. So each read
returns the events that became visible since the last read, in order of their ids. The position of a
subscriber is a `Cursor`: the highest id that was sent, and the lower ids that may still appear.

The one rule: no subscriber waits for another. A subscriber that does not keep up is dropped.
"""

import asyncio
import json
import logging
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Generic, TypeVar

import psycopg

from pgcoord.database import history, reads, session
from pgcoord.database._sql import Connection
from pgcoord.database.backoff import Backoff
from pgcoord.database.connect import connect
from pgcoord.database.history import HistoryEvent
from pgcoord.database.listener import PING_EVERY, Listener
from pgcoord.errors import DatabaseUnusable, message_of

logger = logging.getLogger(__name__)

# Messages queued for one subscriber: at fifty a second, it may stall for twenty seconds.
_MOST_WAITING = 1_000

# Phases in a snapshot; finding what each waits for takes time.
_MOST_SHOWN = 500

# Events of one read.
_PAGE = 1_000

# Seconds between two reads while there are many events.
_ROUND = 0.02

# Seconds until the connection is closed after the last subscriber has left.
_LINGER = 10.0

# A starting feed looks for ids that may still appear among this many last events.
_LOOK_BACK = 10_000

_INFINITE = 2**63

# Message types of events, other than phase_changed, feature_changed, attempt_changed …
_TYPES = {"paused": "queue_paused", "resumed": "queue_resumed"}

_CURSOR = re.compile(r"(\d{1,18})((?:\.\d{1,18}(?:-\d{1,18})?)*)", re.ASCII)


@dataclass(frozen=True)
class Cursor:
    """A position in the stream: the ids up to `last` were sent, except those in `gaps`.

    As text: `1042`, or `1042.1037.1039-1041` with gaps.
    """

    last: int
    gaps: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Parse the text of a cursor, as `str` writes it. Raises ValueError."""
        match = _CURSOR.fullmatch(text)
        if not match:
            raise ValueError(f"{text!r:.60} is not a position in the event stream")
        bounds = [part.split("-") for part in match[2].split(".")[1:]]
        return cls(int(match[1]), tuple((int(each[0]), int(each[-1])) for each in bounds))

    def __str__(self) -> str:
        gaps = (f"{low}" if low == high else f"{low}-{high}" for low, high in self.gaps)
        return ".".join([str(self.last), *gaps])

    def has(self, number: int) -> bool:
        """Whether the event with the id *number* was sent."""
        return number <= self.last and not any(low <= number <= high for low, high in self.gaps)

    def past(self, number: int) -> "Cursor":
        """Return the position after the event with the id *number* was sent as well."""
        if number > self.last:
            skipped = ((self.last + 1, number - 1),) if number > self.last + 1 else ()
            return Cursor(number, self.gaps + skipped)
        parts: list[tuple[int, int]] = []
        for low, high in self.gaps:
            if low <= number <= high:
                around = ((low, number - 1), (number + 1, high))
                parts += [(first, last) for first, last in around if first <= last]
            else:
                parts.append((low, high))
        return Cursor(self.last, tuple(parts))

    def settled_by(self, other: "Cursor") -> "Cursor":
        """Return this position without the gaps that *other* knows to stay empty."""
        open_ends = (*other.gaps, (other.last + 1, _INFINITE))
        return Cursor(
            self.last,
            tuple(
                (low, high)
                for low, high in self.gaps
                if any(low <= last and first <= high for first, last in open_ends)
            ),
        )


# The position of a subscriber that wants future events only.
FROM_NOW_ON = Cursor(_INFINITE)


@dataclass(frozen=True)
class Event:
    """An event, and the position in the stream after it."""

    row: HistoryEvent
    cursor: Cursor

    @cached_property
    def text(self) -> str:
        """The event as JSON, rendered once for all subscribers."""
        return _message(_type(self.row), _data(self.row), self.cursor)


@dataclass(frozen=True)
class Snapshot:
    """The state of the queue at a position in the stream."""

    data: dict[str, Any]
    cursor: Cursor

    @cached_property
    def text(self) -> str:
        """The message as JSON."""
        return _message("snapshot", self.data, self.cursor)


@dataclass(frozen=True)
class Connected:
    """Whether the feed is live; `as_of` is when it last was, by the clock of this machine."""

    live: bool
    as_of: datetime
    reason: str | None = None
    cursor: None = None  # does not move the position

    @cached_property
    def text(self) -> str:
        """The message as JSON."""
        data = {"live": self.live, "as_of": self.as_of.isoformat(), "reason": self.reason}
        return _message("connection", data, None)


Message = Event | Snapshot | Connected

Item = TypeVar("Item")


def _type(row: HistoryEvent) -> str:
    if row.kind == "phase_moved" and row.to_status in ("completed", "failed"):
        return "workflow_completed"
    return _TYPES.get(row.kind) or f"{row.kind.partition('_')[0]}_changed"


def _data(row: HistoryEvent) -> dict[str, Any]:
    return {
        "event": row.id,
        "kind": row.kind,
        "queue_id": row.queue_id,
        "feature_id": row.feature_id,
        "phase_number": row.phase_number,
        "status": row.to_status,
        "from_status": row.from_status,
        "attempt": row.attempt,
        "adw_id": row.adw_id,
        "timestamp": row.at.isoformat(),
        "actor": row.actor,
        "reason": row.reason,
    }


def _message(kind: str, data: dict[str, Any], cursor: Cursor | None) -> str:
    message: dict[str, Any] = {"type": kind, "data": data}
    if cursor is not None:
        message["id"] = str(cursor)
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))


class Mailbox(Generic[Item]):
    """A bounded queue of items for one reader, who iterates over it."""

    def __init__(self) -> None:
        self.ended = False
        self.overflowed = asyncio.Event()
        self._waiting: deque[Item] = deque()
        self._news = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[Item]:
        """Yield items until `end`, or until too many items were waiting."""
        while not self.ended and not self.overflowed.is_set():
            while self._waiting:
                yield self._waiting.popleft()
            self._emptied()
            self._news.clear()
            await self._news.wait()

    def put(self, item: Item) -> bool:
        """Append *item*; return False when the mailbox overflowed, which ends the iteration."""
        if len(self._waiting) < _MOST_WAITING:
            self._waiting.append(item)
        else:
            self._waiting.clear()
            self.overflowed.set()
        self._news.set()
        return not self.overflowed.is_set()

    def end(self) -> None:
        """End the iteration."""
        self.ended = True
        self._news.set()

    def _emptied(self) -> None:
        """Called when the reader has taken all items."""


class Subscription(Mailbox[Message]):
    """The messages for one subscriber of a feed.

    First the events since `after`, or a snapshot without it; then new events.
    """

    def __init__(self, feed: "Feed", after: Cursor | None) -> None:
        super().__init__()
        self.after = after
        self._feed = feed
        self._behind = False

    def put_missed(self, events: Sequence[Event], after: Cursor, *, more: bool) -> None:
        """Append missed *events*, which end at *after*; with *more*, join again for the rest."""
        self.after, self._behind = after, more
        for event in events:
            self.put(event)
        self._news.set()

    def _emptied(self) -> None:
        if self._behind:
            self._behind = False
            self._feed.join(self)


class Feed:
    """The event feed of one database. Call `run` once; it connects while there are subscribers."""

    def __init__(self, dsn: str, explain: Callable[[], str | None] = lambda: None) -> None:
        """*explain*: why the server is not up, where that is known."""
        self._dsn = dsn
        self._explain = explain
        self.state: Connected | None = None  # None without subscribers
        self._position: Position | None = None
        self._snapshot: Snapshot | None = None
        self._receiving: set[Subscription] = set()
        self._joining: list[Subscription] = []
        self._wanted = asyncio.Event()
        self._listener: Listener | None = None
        self._closed = False
        self.interruptions = 0

    @contextmanager
    def subscribe(self, after: Cursor | None = None) -> Iterator[Subscription]:
        """Subscribe for the length of the block: to events after *after*, or from a snapshot."""
        subscription = Subscription(self, after)
        if self._closed:
            subscription.end()
        self.join(subscription)
        try:
            yield subscription
        finally:
            subscription.end()
            self._receiving.discard(subscription)

    @property
    def subscribers(self) -> int:
        """The number of subscribers."""
        return len(self._receiving) + len(self._joining)

    async def run(self) -> None:
        """Send events to the subscribers until cancelled; reconnects after a lost connection."""
        backoff = Backoff()
        while True:
            await self._wanted.wait()
            try:
                async with await connect(self._dsn, name="pgcoord events") as conn:
                    await session.listen(conn, session.EVENT)
                    self._listener = Listener(conn)
                    await self._follow(self._listener, backoff)
            except (psycopg.Error, DatabaseUnusable) as error:
                reason = message_of(error)
                logger.warning("events cannot be followed: %s", reason)
                # The further lines of libpq's message are guesses.
                first = self._explain() or str(error).strip().partition("\n")[0].strip()
                self._set_connected(live=False, reason=first)
                await asyncio.sleep(backoff.next())
            except Exception as error:
                logger.exception("events cannot be followed")
                self._set_connected(live=False, reason=f"an error of the program: {error!r}")
                await asyncio.sleep(backoff.next())
            finally:
                self._listener = None

    def refuse_if_lost(self, hint: str | None = None) -> None:
        """Raise `DatabaseUnusable`, with *hint*, while the database is known not to answer."""
        if self.state and not self.state.live:
            raise DatabaseUnusable(self.state.reason or "the database does not answer", hint=hint)

    def close(self) -> None:
        """End all subscriptions, and every later one at once."""
        self._closed = True
        for subscription in (*self._receiving, *self._joining):
            subscription.end()

    def join(self, subscription: Subscription) -> None:
        """Send messages to *subscription* from its own position on."""
        self._joining.append(subscription)
        self._wanted.set()
        if self._listener:
            self._listener.wake()
        elif self.state:
            subscription.put(self.state)

    async def _follow(self, listener: Listener, backoff: Backoff) -> None:
        """Read and send after each notification, while there are subscribers."""
        loop = asyncio.get_running_loop()
        left_at = loop.time()
        while self.subscribers or loop.time() < left_at + _LINGER:
            if self.subscribers:
                left_at = loop.time()
            await self._round(listener.conn)
            backoff.reset()
            self._set_connected(live=True)
            soon = loop.time() + _ROUND
            await listener.wait(PING_EVERY if self.subscribers else _LINGER)
            await asyncio.sleep(max(0.0, soon - loop.time()))
        self._wanted.clear()
        self._position = self._snapshot = self.state = None

    async def _round(self, conn: Connection) -> None:
        """Send new events, and bring the subscribers that joined up to date."""
        joining, self._joining = self._joining, []
        try:
            if self._position is None:
                self._position = await Position.now(conn)
            if any(each.after is None for each in joining):
                async with session.one_snapshot(conn):
                    await self._publish_news(conn, self._position)
                    if self._snapshot is None:
                        data = await reads.queue_snapshot(conn, _MOST_SHOWN)
                        self._snapshot = Snapshot(data, self._position.cursor)
            else:
                await self._publish_news(conn, self._position)
            await self._position.settle(conn)
            while joining:
                await self._catch_up(conn, joining[0], self._position.cursor)
                joining.pop(0)
        finally:
            self._joining = joining + self._joining
            if self._closed:
                self.close()  # also the subscribers that were just joining

    async def _publish_news(self, conn: Connection, position: "Position") -> None:
        while events := await position.read(conn):
            self._snapshot = None
            for event in events:
                self._publish(event)
            if len(events) < _PAGE:
                break

    async def _catch_up(self, conn: Connection, subscription: Subscription, upto: Cursor) -> None:
        """Send a subscriber the events that it missed, up to the position *upto* of the others."""
        after = subscription.after
        if subscription.ended:
            return
        if after is FROM_NOW_ON:
            self._receiving.add(subscription)
            return
        if after is not None and after.last > upto.last:
            subscription.after = None  # a position of another database, or from before a restore
            self.join(subscription)
            return
        if after is None:
            assert self._snapshot is not None
            subscription.put(self._snapshot)
            self._receiving.add(subscription)
            return
        rows = await history.events_after(conn, after.last, after.gaps, _PAGE)
        events = []
        for row in rows:
            if upto.has(row.id):
                after = after.past(row.id).settled_by(upto)
                events.append(Event(row, after))
        more = len(rows) == _PAGE
        subscription.put_missed(events, after, more=more)
        if not more:
            self._receiving.add(subscription)

    def _publish(self, message: Message) -> None:
        for subscription in [each for each in self._receiving if not each.put(message)]:
            self._receiving.discard(subscription)

    def _set_connected(self, *, live: bool, reason: str | None = None) -> None:
        """Store whether the feed is live; send a message when that, or the reason, has changed."""
        was = self.state
        self.interruptions += not live
        self.state = Connected(live, was.as_of if was and not live else _now(), reason)
        if (live, reason) != ((was.live, was.reason) if was else (True, None)):
            for subscription in (*self._receiving, *self._joining):
                subscription.put(self.state)


class Position:
    """The position of a feed, with the transactions that may still fill each of its gaps."""

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor
        self._writers: dict[tuple[int, int], frozenset[str]] = {}

    @classmethod
    async def now(cls, conn: Connection) -> "Position":
        """Return the position after all visible events."""
        position = cls(Cursor(*await history.last_event(conn, _LOOK_BACK)))
        await position.settle(conn)
        return position

    async def read(self, conn: Connection) -> list[Event]:
        """Read new events, at most `_PAGE`, and advance the position."""
        settled = [gap for gap, writers in self._writers.items() if not writers]
        events = []
        for row in await history.events_after(conn, self.cursor.last, self.cursor.gaps, _PAGE):
            self.cursor = self.cursor.past(row.id)
            events.append(Event(row, self.cursor))
        if len(events) < _PAGE:
            gaps = (gap for gap in self.cursor.gaps if not _within(gap, settled))
            self.cursor = Cursor(self.cursor.last, tuple(gaps))
        return events

    async def settle(self, conn: Connection) -> None:
        """Update which transactions may fill each gap: those that wrote when it appeared."""
        if not self.cursor.gaps:
            self._writers = {}
            return
        writing = await history.event_writers(conn)
        self._writers = {gap: self._known_writers(gap, writing) for gap in self.cursor.gaps}

    def _known_writers(self, gap: tuple[int, int], writing: frozenset[str]) -> frozenset[str]:
        known = (each for around, each in self._writers.items() if _within(gap, [around]))
        return writing & next(known, writing)


def _within(gap: tuple[int, int], ranges: Sequence[tuple[int, int]]) -> bool:
    return any(low <= gap[0] and gap[1] <= high for low, high in ranges)


def _now() -> datetime:
    return datetime.now(UTC)
