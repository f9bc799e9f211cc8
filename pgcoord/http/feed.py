"""What happens, as it happens: one LISTEN connection for any number of subscribers.

Events are told in the order of their commits. The ids of `pgcoord.event` are not that order: a slow
transaction commits a lower id after a higher one was told. Of one phase they are, for who writes an
event holds the lock of its phase until the end. So each reading takes what has become visible since
the one before, in order of the ids, and where somebody stands is a `Cursor`: the highest id that
was told, and the ids below it that were not and may yet come.

The one rule: nobody waits for anybody. A subscriber that does not keep up is dropped.
"""

import asyncio
import json
import logging
import re
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Generic, TypeVar

import psycopg

from pgcoord.backoff import Backoff
from pgcoord.database import reads, session
from pgcoord.database._sql import Connection
from pgcoord.database.connect import connect
from pgcoord.database.listener import PING_EVERY, Listener
from pgcoord.database.rows import HistoryEvent
from pgcoord.errors import DatabaseUnusable

logger = logging.getLogger(__name__)

# Messages that may wait for a subscriber: at fifty a second, it may stall for twenty seconds.
_MOST_WAITING = 1_000

# Phases in a snapshot; what each waits for takes time to find out.
_MOST_SHOWN = 500

# Events that are read at once.
_PAGE = 1_000

# Seconds between two readings while much happens.
_ROUND = 0.02

# Seconds for which the connection is kept when the last subscriber has gone.
_KEPT = 10.0

# Events back from the last among which a starting feed looks for ids that may yet come.
_LOOK_BACK = 10_000

_INFINITE = 2**63

# What the streams call an event, where it is not phase_changed, feature_changed, attempt_changed …
_TYPES = {"paused": "queue_paused", "resumed": "queue_resumed"}

_CURSOR = re.compile(r"(\d{1,18})((?:\.\d{1,18}(?:-\d{1,18})?)*)", re.ASCII)


@dataclass(frozen=True)
class Cursor:
    """A position in the stream: sent are the ids up to `last`, but for those in `gaps`.

    As text, `1042`, or `1042.1037.1039-1041` where ids are left out.
    """

    last: int
    gaps: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Read what `str` wrote. Raises ValueError."""
        match = _CURSOR.fullmatch(text)
        if not match:
            raise ValueError(f"{text!r:.60} is not a position in the event stream")
        bounds = [part.split("-") for part in match[2].split(".")[1:]]
        return cls(int(match[1]), tuple((int(each[0]), int(each[-1])) for each in bounds))

    def __str__(self) -> str:
        gaps = (f"{low}" if low == high else f"{low}-{high}" for low, high in self.gaps)
        return ".".join([str(self.last), *gaps])

    def has(self, number: int) -> bool:
        """Whether the event with this id was told."""
        return number <= self.last and not any(low <= number <= high for low, high in self.gaps)

    def past(self, number: int) -> "Cursor":
        """The position after the event with this id was told, too."""
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
        """The same position without the gaps of which `other` knows that nothing will come."""
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
    """Something that happened, and the position in the stream after it."""

    row: HistoryEvent
    cursor: Cursor

    @cached_property
    def text(self) -> str:
        """As a message of the streams: rendered once, whoever gets it."""
        return _message(_type(self.row), _data(self.row), self.cursor)


@dataclass(frozen=True)
class Snapshot:
    """How things stand, at a position in the stream."""

    data: dict[str, Any]
    cursor: Cursor

    @cached_property
    def text(self) -> str:
        """As a message of the streams."""
        return _message("snapshot", self.data, self.cursor)


@dataclass(frozen=True)
class Connected:
    """Whether what is told is live; `as_of` is when it last was, by our clock."""

    live: bool
    as_of: datetime
    reason: str | None = None
    cursor: None = None  # it moves no position

    @cached_property
    def text(self) -> str:
        """As a message of the streams."""
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
    """What waits to be taken by one reader, in order: iterate over it."""

    def __init__(self) -> None:
        self.ended = False
        self.overflowed = asyncio.Event()
        self._waiting: deque[Item] = deque()
        self._news = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[Item]:
        """Yield what comes, until the end, or until too much waited to be taken."""
        while not self.ended and not self.overflowed.is_set():
            while self._waiting:
                yield self._waiting.popleft()
            self._emptied()
            self._news.clear()
            await self._news.wait()

    def put(self, item: Item) -> bool:
        """Have it taken; False when too much waits already: the reader gets nothing any more."""
        if len(self._waiting) < _MOST_WAITING:
            self._waiting.append(item)
        else:
            self._waiting.clear()
            self.overflowed.set()
        self._news.set()
        return not self.overflowed.is_set()

    def end(self) -> None:
        """Let the iteration end."""
        self.ended = True
        self._news.set()

    def _emptied(self) -> None:
        """Do what is to be done when all has been taken."""


class Subscription(Mailbox[Message]):
    """What one subscriber of a feed is told.

    That is what it missed since `after`, or a snapshot, then what happens.
    """

    def __init__(self, feed: "Feed", after: Cursor | None) -> None:
        super().__init__()
        self.after = after
        self._feed = feed
        self._behind = False

    def put_missed(self, events: Sequence[Event], after: Cursor, *, more: bool) -> None:
        """Have it told what it missed; when there is `more`, it comes back for that."""
        self.after, self._behind = after, more
        for event in events:
            self.put(event)
        self._news.set()

    def _emptied(self) -> None:
        if self._behind:
            self._behind = False
            self._feed.join(self)


class Feed:
    """The events of one database. `run` it once; it connects while somebody subscribes."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self.state: Connected | None = None  # None while nobody watches
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
        """How many there are."""
        return len(self._receiving) + len(self._joining)

    async def run(self) -> None:
        """Tell the subscribers what happens, until cancelled; no lost connection ends it."""
        backoff = Backoff()
        while True:
            await self._wanted.wait()
            try:
                async with await connect(self._dsn, name="pgcoord events") as conn:
                    await session.listen(conn, session.EVENT)
                    self._listener = Listener(conn)
                    await self._follow(self._listener, backoff)
            except (psycopg.Error, DatabaseUnusable) as error:
                reason = " ".join(str(error).split())
                logger.warning("events cannot be followed: %s", reason)
                self._set_connected(live=False, reason=reason)
                await asyncio.sleep(backoff.next())
            except Exception as error:
                logger.exception("events cannot be followed")
                self._set_connected(live=False, reason=f"an error of the program: {error!r}")
                await asyncio.sleep(backoff.next())
            finally:
                self._listener = None

    def close(self) -> None:
        """End all subscriptions, those to come too."""
        self._closed = True
        for subscription in (*self._receiving, *self._joining):
            subscription.end()

    def join(self, subscription: Subscription) -> None:
        """Have a subscriber told from where it stands."""
        self._joining.append(subscription)
        self._wanted.set()
        if self._listener:
            self._listener.wake()
        elif self.state:
            subscription.put(self.state)

    async def _follow(self, listener: Listener, backoff: Backoff) -> None:
        """Read and tell after each notification, as long as somebody is there."""
        loop = asyncio.get_running_loop()
        left_at = loop.time()
        while self.subscribers or loop.time() < left_at + _KEPT:
            if self.subscribers:
                left_at = loop.time()
            await self._round(listener.conn)
            backoff.reset()
            self._set_connected(live=True)
            soon = loop.time() + _ROUND
            await listener.wait(PING_EVERY if self.subscribers else _KEPT)
            await asyncio.sleep(max(0.0, soon - loop.time()))
        self._wanted.clear()
        self._position = self._snapshot = self.state = None

    async def _round(self, conn: Connection) -> None:
        """Tell what is new, and take those on who have come."""
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
                self.close()  # those too that were just being taken on

    async def _publish_news(self, conn: Connection, position: "Position") -> None:
        while events := await position.read(conn):
            self._snapshot = None
            for event in events:
                self._publish(event)
            if len(events) < _PAGE:
                break

    async def _catch_up(self, conn: Connection, subscription: Subscription, upto: Cursor) -> None:
        """Tell a subscriber what it has missed up to where all others stand."""
        after = subscription.after
        if subscription.ended:
            return
        if after is FROM_NOW_ON:
            self._receiving.add(subscription)
            return
        if after is not None and after.last > upto.last:
            subscription.after = None  # of another database, or of this one before a restore
            self.join(subscription)
            return
        if after is None:
            assert self._snapshot is not None
            subscription.put(self._snapshot)
            self._receiving.add(subscription)
            return
        rows = await reads.events_after(conn, after.last, after.gaps, _PAGE)
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
        """Keep whether what is told is live, and tell when that has changed."""
        was = self.state
        self.interruptions += not live
        self.state = Connected(live, was.as_of if was and not live else _now(), reason)
        if live != (was.live if was else True):
            for subscription in (*self._receiving, *self._joining):
                subscription.put(self.state)


class Position:
    """Where a feed stands, and which transactions may still fill each of its gaps."""

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor
        self._writers: dict[tuple[int, int], frozenset[str]] = {}

    @classmethod
    async def now(cls, conn: Connection) -> "Position":
        """The position after all that is there."""
        position = cls(Cursor(*await reads.last_event(conn, _LOOK_BACK)))
        await position.settle(conn)
        return position

    async def read(self, conn: Connection) -> list[Event]:
        """Read what has come, at most `_PAGE` events, and go on past it."""
        settled = [gap for gap, writers in self._writers.items() if not writers]
        events = []
        for row in await reads.events_after(conn, self.cursor.last, self.cursor.gaps, _PAGE):
            self.cursor = self.cursor.past(row.id)
            events.append(Event(row, self.cursor))
        if len(events) < _PAGE:
            gaps = (gap for gap in self.cursor.gaps if not _within(gap, settled))
            self.cursor = Cursor(self.cursor.last, tuple(gaps))
        return events

    async def settle(self, conn: Connection) -> None:
        """Find out who may still fill the gaps: nobody who was not writing when they were seen."""
        if not self.cursor.gaps:
            self._writers = {}
            return
        writing = await reads.event_writers(conn)
        self._writers = {gap: self._known_writers(gap, writing) for gap in self.cursor.gaps}

    def _known_writers(self, gap: tuple[int, int], writing: frozenset[str]) -> frozenset[str]:
        known = (each for around, each in self._writers.items() if _within(gap, [around]))
        return writing & next(known, writing)


def _within(gap: tuple[int, int], ranges: Sequence[tuple[int, int]]) -> bool:
    return any(low <= gap[0] and gap[1] <= high for low, high in ranges)


def _now() -> datetime:
    return datetime.now(UTC)
