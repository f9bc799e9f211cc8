"""The views of the panel; each reads its page in one snapshot of the database."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta, tzinfo
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from pgcoord.configuration.cron import NeverDue, due_times
from pgcoord.database import panel, reads, schedules, session
from pgcoord.database._sql import Connection
from pgcoord.database.history import HistoryEvent
from pgcoord.database.reads import why
from pgcoord.database.session import one_snapshot
from pgcoord.http.feed import Event
from pgcoord.http.panel.format import STATES, ranges
from pgcoord.http.panel.graph import ROOMY, Graph
from pgcoord.http.panel.live import Page, Piece, View
from pgcoord.http.panel.timeline import Timeline
from pgcoord.runs.logs import LastLine, Log

if TYPE_CHECKING:
    from pgcoord.planner.analysis import Analysis

# The most features of a list, events of a history, items of attention, phases in line to show.
MOST_FEATURES = 200
MOST_EVENTS = 200
_FEW_EVENTS = 12
_FEW_NEEDS = 5
_NEXT = 3

# With more slots than this, each is a row, and all free ones share one row (as in panel.css).
_MOST_CARDS = 8

# The most phases of a search.
_MOST_FOUND = 100

# The most phases of a feature to name as the next in line.
_NEXT_OF_FEATURE = 5

# With more phases than this, graph or timeline are heavy: fetched only when visible. A graph has
# few parts that change; in a timeline, all do with time.
_MOST_LIGHT = 40
_MOST_LANES = 12

# The most features of the overview with a forecast of their end.
_MOST_FORESEEN = 50


@dataclass(frozen=True)
class SlotCard:
    """A slot, and the last line of its phase's log, if that is on this machine."""

    slot: panel.HeldSlot
    last_line: LastLine | None = None


@dataclass(frozen=True)
class Opening:
    """The time at which a slot is expected to become free."""

    at: datetime
    slot: int


@dataclass(frozen=True)
class Overview(View):
    """The overview: items of attention, slots, features.

    *host*: the name of this machine. *show*: one of `FEATURE_FILTERS`, or a state of phases.
    *search*: the words to search phases and features for.
    """

    host: str
    show: str = "all"
    search: str | None = None

    @property
    def key(self) -> str:
        """A string that is equal for views that show the same."""
        return f"/ {self.show} {self.search or ''}"

    @property
    def query(self) -> str:
        """The filters of phases, as the query of a URL."""
        parameters = {"show": self.show if self.show in STATES else None, "q": self.search}
        return urlencode({name: value for name, value in parameters.items() if value})

    def concerns(self, event: Event) -> bool:
        """Return true: every event may change the overview."""
        return True

    async def read(self, conn: Connection) -> Page:
        """Read the page from the database."""
        async with one_snapshot(conn):
            now = await session.now(conn)
            installation = await panel.installation(conn)
            needs = await panel.attention(conn)
            slots = await panel.held_slots(conn)
            pools = await reads.pools(conn)
            line = await panel.line(conn, _NEXT)
            backlog = await panel.backlog(conn)
            features = await panel.feature_rows(conn, self.show, self.search, MOST_FEATURES)
            finishes = await panel.finishes(conn, _foreseen(features))
            phases = await self._found(conn)
            scheduled = await schedules.schedules(conn)
            refused = await schedules.refused(conn)
        finish = None if installation.paused_at else finishes.get(None)
        pieces = {
            "notice": Piece("piece/notice.html", installation),
            "needs": Piece(
                "piece/needs.html",
                {
                    "needs": needs[:_FEW_NEEDS],
                    "all": len(needs),
                    "schedules": [each for each in scheduled if each.error],
                    "refused": refused,
                },
            ),
            "slots-head": Piece("piece/slots_head.html", (installation, slots, pools)),
            "line": Piece(
                "piece/line.html",
                (line, backlog, _openings(installation, slots, line), finish),
                ages=True,
            ),
            "filters": Piece("piece/filters.html", (self, len(needs))),
            "tally": Piece("piece/tally.html", (self, _tally(features))),
            "found": Piece("piece/found.html", (phases, _MOST_FOUND, self.query)),
            "schedules": Piece("piece/schedules.html", scheduled),
            "none": Piece("piece/none.html", (self, bool(features))),
        }
        slot_pieces = _slot_pieces(slots, installation, line)
        pieces |= slot_pieces
        pieces |= {
            f"feature-{each.id}": Piece(
                "piece/feature.html", (each, finishes.get(each.id), installation.limit)
            )
            for each in features
        }
        lists = {
            "slots": [*slot_pieces, "line"],
            "features": [f"feature-{each.id}" for each in features],
        }
        title = f"({len(needs)}) pgcoord" if needs else "pgcoord"
        return Page("overview.html", title, now, pieces, lists)

    async def _found(self, conn: Connection) -> list[panel.FoundPhase]:
        """Return the phases that match the words or the state; [] without a filter."""
        status = self.show if self.show in STATES and self.show != "completed" else None
        if not self.search and not status:
            return []
        return await panel.found_phases(conn, self.search, status, _MOST_FOUND + 1)

    def glance(self, page: Page) -> Page:
        """Return *page* with the last lines of logs renewed; reads files."""
        cards = {
            name: replace(piece, data=self._card(piece.data.slot))
            for name, piece in page.pieces.items()
            if isinstance(piece.data, SlotCard)
        }
        return replace(page, pieces={**page.pieces, **cards})

    def _card(self, slot: panel.HeldSlot) -> SlotCard:
        if slot.folder is None or slot.host not in (None, self.host):
            return SlotCard(slot)
        return SlotCard(slot, Log(Path(slot.folder)).last_line())


def _slot_pieces(
    slots: list[panel.HeldSlot], installation: panel.Installation, line: list[panel.InLine]
) -> dict[str, Piece]:
    """Return a card for each slot; of more than `_MOST_CARDS` the free ones share one."""
    free = [each for each in slots if not each.queue_id] if len(slots) > _MOST_CARDS else []
    pieces = {
        f"slot-{each.slot}": _slot_piece(each, installation, line)
        for each in slots
        if each not in free
    }
    if free:
        waited_for = any(each.pool in {slot.pool for slot in free} for each in line)
        pieces["free"] = Piece("piece/free_slots.html", (len(free), installation, waited_for))
    return pieces


def _slot_piece(
    slot: panel.HeldSlot, installation: panel.Installation, line: list[panel.InLine]
) -> Piece:
    if slot.queue_id:
        return Piece("piece/slot.html", SlotCard(slot), ages=True)
    waited_for = any(each.pool == slot.pool for each in line)
    return Piece("piece/free_slot.html", (slot, installation, waited_for))


def _openings(
    installation: panel.Installation, slots: list[panel.HeldSlot], line: list[panel.InLine]
) -> list[Opening | None]:
    """Return, for each phase in line, the next expected opening in its pool; None: unknown.

    [] while everything is paused, or no coordinator leads.
    """
    if installation.paused_at or not installation.leader:
        return []
    openings = sorted(
        (
            (each.pool, Opening(each.free_at, each.slot))
            for each in slots
            if each.free_at and not each.draining
        ),
        key=lambda each: each[1].at,
    )
    of_pool: dict[str, Iterator[Opening]] = {
        name: iter([opening for pool, opening in openings if pool == name])
        for name in {each.pool for each in line}
    }
    return [next(of_pool[each.pool], None) for each in line]


def _foreseen(features: list[panel.FeatureRow]) -> list[int]:
    open_ones = [each.id for each in features if each.status in ("in_progress", "planned")]
    return open_ones[:_MOST_FORESEEN]


def _tally(features: list[panel.FeatureRow]) -> dict[str, int]:
    return {state: sum(each.count(state) for each in features) for state in STATES}


@dataclass(frozen=True)
class FeaturePage(View):
    """The page of a feature: its phases as tree, graph and timeline, and its history.

    Until the phases are queued it has the plan, with a warning for prompts of more than
    *most_tokens*. The tree has the phases in the state *show*, with the words *search* (None: all).
    """

    feature_id: int
    most_tokens: int
    show: str | None = None
    search: str | None = None
    whole: bool = False  # a large graph has completed phases, too

    @property
    def key(self) -> str:
        """A string that is equal for views that show the same."""
        return f"/features/{self.feature_id} {self.whole} {self.show or ''} {self.search or ''}"

    @property
    def query(self) -> str:
        """The filters, as the query of a URL."""
        parameters = {"show": self.show, "q": self.search}
        return urlencode({name: value for name, value in parameters.items() if value})

    def _is_wanted(self, phase: panel.TreePhase) -> bool:
        if self.show and phase.status != self.show:
            return False
        words = (self.search or "").casefold().removeprefix("#")
        text = f"{phase.title} {phase.error_message or ''} {' '.join(phase.reasons or [])}"
        numbers = (phase.queue_id, str(phase.phase_number), str(phase.issue_number))
        return not words or words in numbers or words in text.casefold()

    def concerns(self, event: Event) -> bool:
        """Whether it is of this feature or of none, or moves a phase to or from ready."""
        mine = event.row.feature_id in (self.feature_id, None)
        return mine or "ready" in (event.row.from_status, event.row.to_status)

    async def read(self, conn: Connection) -> Page:
        """Read the page from the database. Raises `NotFound`."""
        async with one_snapshot(conn):
            now = await session.now(conn)
            installation = await panel.installation(conn)
            feature = await panel.feature_row(conn, self.feature_id)
            described = await panel.described(conn, self.feature_id)
            needs = await panel.attention(conn, self.feature_id)
            finish = (await panel.finishes(conn, [self.feature_id])).get(self.feature_id)
            forecast = await panel.forecast(conn, self.feature_id)
            phases = await panel.tree(conn, self.feature_id)
            spans = await panel.spans(conn, self.feature_id)
            costs = await panel.costs(conn, self.feature_id)
            in_line = await panel.line(conn, _NEXT_OF_FEATURE, self.feature_id)
            events = await _latest(conn, self.feature_id)
        ended = feature.status in ("completed", "cancelled") or not phases
        timeline = Timeline(phases, spans, forecast, ended)
        graph = Graph(phases, forecast, len(phases) > ROOMY and not self.whole)
        runs, many = any(each.slot for each in phases), len(phases)
        listed = [each for each in phases if self._is_wanted(each)]
        pieces = {
            "notice": Piece("piece/notice.html", installation),
            "head": Piece("piece/feature_head.html", (feature, described, many)),
            "needs": Piece("piece/needs.html", {"needs": needs[:_FEW_NEEDS], "all": len(needs)}),
            "facts": Piece(
                "piece/facts.html",
                (feature, finish, phases, _spent(spans), installation.limit, costs),
                ages=runs,
            ),
            "plan": Piece(
                "piece/plan.html", self._planned(described.plan, phases, installation.limit)
            ),
            "graph": Piece("piece/graph.html", (graph, many > ROOMY), heavy=many > _MOST_LIGHT),
            "timeline": Piece("piece/timeline.html", timeline, ages=runs, heavy=many > _MOST_LANES),
            "in-line": Piece("piece/in_line.html", [each.phase_number for each in in_line]),
            "find": Piece("piece/find.html", (self, feature, many, len(listed))),
        }
        pieces |= {
            f"phase-{each.phase_number}": Piece(
                "piece/tree_phase.html", (each, forecast.get(each.phase_number))
            )
            for each in listed
        }
        event_pieces = _event_pieces(events, "feature", _FEW_EVENTS)
        pieces |= event_pieces
        lists = {
            "tree": [f"phase-{each.phase_number}" for each in listed],
            "events": list(event_pieces),
        }
        return Page(
            "feature.html", _title_of(feature, len(needs)), now, pieces, lists, {"feature": feature}
        )

    def _planned(
        self, plan: object, phases: Sequence[panel.TreePhase], slots: int
    ) -> "Analysis | None":
        """Return the analysis of the plan; None once phases are queued, or without a plan."""
        from pgcoord.planner.analysis import analyse

        weighed = None if phases else analyse(plan, slots, self.most_tokens)
        return weighed if weighed and weighed.phases else None


def _title_of(feature: panel.FeatureRow, needs: int) -> str:
    """Return the title of a feature's page, which browsers show in its tab."""
    trouble = f"({needs}) " if needs else ""
    progress = f", {feature.count('completed')}/{feature.total}" if feature.total else ""
    return f"{trouble}{feature.title}{progress} · pgcoord"


# Equal events of at least so many phases are one row, with at most this time between two of them.
_RUN = 3
_RUN_GAP = timedelta(minutes=1)

# With so many events read, a run is shown in part all the same: `MOST_EVENTS`, doubled six times.
_MOST_IN_RUN = 12_800


@dataclass(frozen=True)
class Run:
    """Equal events of several phases of a feature, shown as one; *latest* is the last of them."""

    latest: HistoryEvent
    phases: tuple[tuple[int, str], ...]  # (number, queue_id), by number

    @property
    def numbers(self) -> str:
        """The numbers of the phases, as ranges."""
        return ranges([number for number, _ in self.phases])


def _kind_of(event: HistoryEvent) -> tuple[object, ...]:
    """Return the key by which events are equal: all but phase and time."""
    parts = event.kind, event.from_status, event.to_status, event.reason
    return *parts, event.feature_id, event.actor, event.attempt, event.queue_id is None


def _runs(events: list[HistoryEvent]) -> Iterator[list[HistoryEvent]]:
    """Group consecutive events, latest first, that are equal and less than `_RUN_GAP` apart."""
    run: list[HistoryEvent] = []
    numbers: set[int | None] = set()
    for event in events:
        if run and not (
            _kind_of(event) == _kind_of(run[-1])
            and event.queue_id is not None
            and run[-1].at - event.at <= _RUN_GAP
            and event.phase_number not in numbers
        ):
            yield run
            run, numbers = [], set()
        run.append(event)
        numbers.add(event.phase_number)
    if run:
        yield run


async def _latest(conn: Connection, feature_id: int) -> list[HistoryEvent]:
    """Read the latest events of a feature, on to the end of a run that would be shown in part."""
    limit = MOST_EVENTS
    events = await panel.history(conn, feature_id, None, None, limit)
    while len(events) == limit < _MOST_IN_RUN:
        runs = list(_runs(events))
        if len(runs[-1]) < _RUN or len(runs) > _FEW_EVENTS:
            break
        events += await panel.history(conn, feature_id, None, events[-1].id, limit)
        limit *= 2
    return events


def _event_pieces(
    events: list[HistoryEvent], where: str, most: int | None = None
) -> dict[str, Piece]:
    """Return a piece for each event or run of equal events, at most *most* (None: all)."""
    rows: list[HistoryEvent | Run] = []
    for run in _runs(events):
        if len(run) < _RUN:
            rows += run
        else:
            named = sorted((each.phase_number or 0, each.queue_id or "") for each in run)
            rows.append(Run(run[0], tuple(named)))
    return {
        f"event-{(each.latest if isinstance(each, Run) else each).id}": Piece(
            "piece/run.html" if isinstance(each, Run) else "piece/event.html", (each, where)
        )
        for each in rows[:most]
    }


def _spent(spans: list[panel.Span]) -> dict[str, Any]:
    """Return a feature's times: `worked` and `waited` of ended attempts (timedelta).

    Also `running`, the starts of attempts that run, and `attempts`, the number of all.
    """
    claimed = [each for each in spans if each.claimed_at]
    worked, waited = timedelta(), timedelta()
    for _, each in groupby(claimed, key=lambda span: span.phase_number):
        free_since = None
        for span in each:
            assert span.claimed_at is not None
            begin = free_since or span.eligible_at or span.claimed_at
            waited += max(timedelta(), span.claimed_at - begin)
            if span.ended_at:
                worked += span.ended_at - (span.started_at or span.claimed_at)
            free_since = span.ended_at
    running = [each.started_at for each in claimed if each.started_at and not each.ended_at]
    return {"worked": worked, "waited": waited, "running": running, "attempts": len(claimed)}


@dataclass(frozen=True)
class PhasePage(View):
    """The page of a phase: reasons for its state, attempts, prompt, dependencies, events."""

    queue_id: str

    @property
    def key(self) -> str:
        """A string that is equal for views that show the same."""
        return f"/phases/{self.queue_id}"

    def concerns(self, event: Event) -> bool:
        """Whether it is of this feature or of none, or moves a phase to or from ready."""
        name = f"queue-{event.row.feature_id}-"
        mine = event.row.queue_id == self.queue_id or event.row.feature_id is None
        return (
            mine
            or self.queue_id.startswith(name)
            or "ready" in (event.row.from_status, event.row.to_status)
        )

    async def read(self, conn: Connection) -> Page:
        """Read the page from the database. Raises `NotFound`."""
        async with one_snapshot(conn):
            now = await session.now(conn)
            installation = await panel.installation(conn)
            phase = await panel.phase(conn, self.queue_id)
            reasons = await why(conn, self.queue_id)
            attempts = (await reads.attempts(conn, self.queue_id))[::-1]  # latest first
            needs, needed_by = await panel.neighbours(conn, phase.feature_id, phase.phase_number)
            events = await panel.history(
                conn, phase.feature_id, phase.phase_number, None, MOST_EVENTS
            )
        runs = phase.slot is not None
        pieces = {
            "notice": Piece("piece/notice.html", installation),
            "head": Piece("piece/phase_head.html", (phase, reasons, attempts[:1]), ages=runs),
            "attempts": Piece("piece/attempts.html", (phase, attempts)),
            "prompt": Piece("piece/prompt.html", phase),
            "needs-of": Piece("piece/neighbours.html", ("Needs", "needs", phase, needs)),
            "needed-by": Piece("piece/neighbours.html", ("Needed by", "by", phase, needed_by)),
            "details": Piece("piece/details.html", (phase, attempts[:1])),
        }
        event_pieces = _event_pieces(events, "phase")
        pieces |= event_pieces
        lists = {"events": list(event_pieces)}
        status = "skipped" if phase.skipped else phase.status
        title = f"{phase.phase_number} {phase.title}, {status} · pgcoord"
        return Page("phase.html", title, now, pieces, lists, {"phase": phase, "attempts": attempts})


@dataclass(frozen=True)
class SchedulePage(View):
    """The page of a schedule: its next times, and what became of the last ones."""

    name: str

    @property
    def key(self) -> str:
        """A string that is equal for views that show the same."""
        return f"/schedules/{self.name}"

    def concerns(self, event: Event) -> bool:
        """Whether it is of the whole installation, or of a feature: maybe of one of its runs."""
        return event.row.queue_id is None

    async def read(self, conn: Connection) -> Page:
        """Read the page from the database. Raises `NotFound`."""
        async with one_snapshot(conn):
            now = await session.now(conn)
            installation = await panel.installation(conn)
            row = await schedules.schedule(conn, self.name)
            runs = await schedules.runs(conn, row.name)
        times: list[datetime] = []
        if not row.paused_at:
            with suppress(NeverDue):
                times = list(islice(due_times(row.cron, row.timezone, now), _NEXT_TIMES))
        pieces = {
            "notice": Piece("piece/notice.html", installation),
            "schedule": Piece("piece/schedule_head.html", row),
            "next": Piece("piece/schedule_next.html", [row.clock(each) for each in times]),
            "runs": Piece("piece/schedule_runs.html", (row, runs)),
        }
        return Page("schedule.html", f"schedule {row.name} · pgcoord", now, pieces)


_NEXT_TIMES = 5


# The filters of the history: kinds of events, and states that phases moved to.
EVENTS = (
    *STATES,
    *("phase_inserted", "phase_deleted", "phase_edited", "phase_reprioritised", "gate_asked"),
    *("feature_inserted", "feature_changed", "feature_paused", "feature_resumed"),
    "feature_budget",
    *("schedule_changed", "schedule_due"),
    *("feature_cancelled", "slots_changed", "paused", "resumed"),
)


@dataclass(frozen=True)
class History(View):
    """The history, latest first, with its filters (None: no filter).

    *before*, *after*: ids of events, excluded. *what*: one of `EVENTS`. *actor*: a part of the
    name. *until*: the last day, in *zone* (None: the server's).
    """

    before: int | None = None
    feature_id: int | None = None
    what: str | None = None
    actor: str | None = None
    until: date | None = None
    after: int | None = None
    zone: tzinfo | None = None

    @property
    def key(self) -> str:
        """A string that is equal for views that show the same."""
        return f"/history {self.before} {self.query}"

    @property
    def query(self) -> str:
        """The filters, as the query of a URL."""
        parameters = {
            "feature": self.feature_id,
            "what": self.what,
            "by": self.actor,
            "until": self.until,
            "after": self.after,
        }
        return urlencode({name: value for name, value in parameters.items() if value is not None})

    def concerns(self, event: Event) -> bool:
        """Whether it is an event for the first page; later pages do not change."""
        return self.before is None and self.feature_id in (None, event.row.feature_id)

    async def events(self, conn: Connection, limit: int) -> list[HistoryEvent]:
        """Read the events that match the filters, at most *limit*, latest first."""
        return await panel.history(
            conn,
            self.feature_id,
            None,
            self.before,
            limit,
            what=self.what,
            actor=self.actor,
            until=self.until,
            after=self.after,
            zone=str(self.zone) if self.zone else None,
        )

    async def read(self, conn: Connection) -> Page:
        """Read the page from the database."""
        async with one_snapshot(conn):
            now = await session.now(conn)
            installation = await panel.installation(conn)
            events = await self.events(conn, MOST_EVENTS)
        last = events[-1].id if len(events) == MOST_EVENTS else None
        pieces = {
            "notice": Piece("piece/notice.html", installation),
            "older": Piece("piece/older.html", (last, self.query)),
        }
        event_pieces = _event_pieces(events, "all")
        pieces |= event_pieces
        lists = {"events": list(event_pieces)}
        extra = {"feature_id": self.feature_id, "view": self, "kinds": EVENTS}
        return Page("history.html", "History · pgcoord", now, pieces, lists, extra)
