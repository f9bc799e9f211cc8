"""The timeline of a feature: a lane a phase, with its times of waiting, running and forecast.

Positions and widths are percentages of the whole width. Long idle stretches are folded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from pgcoord.database.panel import Forecast, Span, TreePhase
from pgcoord.http.panel.format import lasting
from pgcoord.http.panel.graph import distinct_labels

# Characters of a title that fit beside its lane.
_FITS = 20

# The most phases to draw.
MOST_PHASES = 300

# An idle stretch is folded if it is longer than this share of all work, and than this time.
_FOLDED_SHARE = 0.08
_FOLDED_TIME = timedelta(seconds=30)

# Percent of the width that a folded stretch takes.
_FOLD = 3.0

_STEPS = [
    timedelta(seconds=each)
    for each in (1, 5, 15, 30, 60, 300, 900, 1800, 3600, 10800, 21600, 43200, 86400, 604800)
]

_MINUTE = timedelta(minutes=1)

# The most marks on the axis, and the least percent between two of them.
_MARKS = 9
_APART = 6.0


@dataclass(frozen=True)
class Bar:
    """A stretch of a lane, at *x* and *width* in percent.

    *kind*: wait, queue, backoff, prepare, work, expect or spread. *state*: of the phase or attempt.
    """

    kind: str
    x: float
    width: float
    state: str = ""
    words: str = ""


@dataclass(frozen=True)
class Lane:
    """A phase on the timeline; *description*: the lane in words, for a title and screen readers."""

    phase: TreePhase
    bars: list[Bar]
    description: str


@dataclass(frozen=True)
class Drawing:
    """The timeline at one moment; positions in percent.

    *folds*: (position, width) of folded stretches. *marks*: (position, time) on the axis. *now*:
    the same for the present, None if that is in a fold. *folded*: the sum of folded times.
    """

    lanes: list[Lane]
    folds: list[tuple[float, float]]
    marks: list[tuple[float, str]]
    now: tuple[float, str] | None
    folded: timedelta


@dataclass(frozen=True)
class Timeline:
    """The data of a feature's timeline; *forecast* by number of phase."""

    phases: Sequence[TreePhase]
    spans: Sequence[Span]
    forecast: dict[int, Forecast]
    ended: bool  # the feature has ended, so no forecast is drawn

    @cached_property
    def titles(self) -> dict[int, str]:
        """The titles to draw, by number of phase, as `distinct_labels` shortens them."""
        shown = self.phases[:MOST_PHASES]
        return distinct_labels({each.phase_number: each.title for each in shown}, _FITS)

    def draw(self, now: datetime) -> Drawing:
        """Return the drawing for *now*, whose time zone is that of the axis."""
        shown = {each.phase_number: each for each in self.phases[:MOST_PHASES]}
        spans: dict[int, list[Span]] = {number: [] for number in shown}
        for each in self.spans:
            if each.phase_number in spans:
                spans[each.phase_number].append(each)
        forecast = {} if self.ended else self.forecast
        scale = _Scale(list(_busy(spans, forecast, shown, now)), now)
        lanes = [
            _lane(phase, spans[number], forecast.get(number), scale, now)
            for number, phase in shown.items()
        ]
        return Drawing(lanes, scale.folds, list(scale.marks()), scale.now, scale.folded)


def _busy(
    spans: dict[int, list[Span]],
    forecast: dict[int, Forecast],
    phases: dict[int, TreePhase],
    now: datetime,
) -> Iterator[tuple[datetime, datetime]]:
    """Yield the intervals (start, end) in which an attempt ran, or is expected to."""
    for number, each in spans.items():
        for span in each:
            if span.claimed_at:
                yield span.claimed_at, max(span.claimed_at, span.ended_at or now)
        expected = forecast.get(number)
        if expected and expected.ends_at and expected.starts_at and _is_open(phases[number]):
            yield max(now, expected.starts_at), max(now, expected.latest or expected.ends_at)


def _is_open(phase: TreePhase) -> bool:
    return phase.status not in ("completed", "cancelled")


class _Scale:
    """Maps moments to percent of the width, with idle stretches folded."""

    def __init__(self, busy: list[tuple[datetime, datetime]], now: datetime) -> None:
        stretches = _merged(busy) or [(now - timedelta(minutes=1), now)]
        work = sum((b - a for a, b in stretches), timedelta())
        least = max(work * _FOLDED_SHARE, _FOLDED_TIME)
        joined = [stretches[0]]
        for start, end in stretches[1:]:
            if start - joined[-1][1] < least:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((start, end))
        margin = max(work * 0.01, timedelta(milliseconds=500))
        self._stretches = [(a - margin, b + margin) for a, b in joined]
        gaps = len(self._stretches) - 1
        fold = min(_FOLD, 30 / gaps) if gaps else 0
        total = sum((b - a for a, b in self._stretches), timedelta())
        self._percent = (100 - fold * gaps) / (total / timedelta(seconds=1))
        self._starts: list[float] = []
        self.folds: list[tuple[float, float]] = []
        x = 0.0
        for i, (start, end) in enumerate(self._stretches):
            self._starts.append(x)
            x += (end - start).total_seconds() * self._percent
            if i < gaps:
                self.folds.append((round(x, 2), fold))
                x += fold
        self._fold = fold
        self.folded = sum(
            (b[0] - a[1] for a, b in zip(self._stretches, self._stretches[1:], strict=False)),
            timedelta(),
        )
        self._zone = now.tzinfo
        within = any(a <= now <= b for a, b in self._stretches)
        self.now = (self.at(now), f"{now:%H:%M}") if within else None

    def at(self, moment: datetime) -> float:
        """Return the position of *moment* in percent from the left; in a fold, its middle."""
        for (start, end), x in zip(self._stretches, self._starts, strict=True):
            if moment <= start:
                return round(max(0.0, x - (self._fold / 2 if x else 0)), 2)
            if moment <= end:
                return round(x + (moment - start).total_seconds() * self._percent, 2)
        return 100.0

    def marks(self) -> Iterator[tuple[float, str]]:
        """Yield (position in percent, time in words) for the marks on the axis."""
        total = sum((b - a for a, b in self._stretches), timedelta())
        step = next((each for each in _STEPS if total / each <= _MARKS), _STEPS[-1])
        last = -_APART
        local = [(a.astimezone(self._zone), b) for a, b in self._stretches]
        first, until = local[0][0], local[-1][1].astimezone(self._zone)
        day = first.date() if first.date() == until.date() else None
        for start, end in local:
            midnight = start.replace(hour=0, minute=0, second=0, microsecond=0)
            moment = midnight + step * ((start - midnight) // step + 1)
            while moment <= end:
                x = self.at(moment)
                free = not self.now or not -_APART < x - self.now[0] < _APART
                if free and last + _APART <= x <= 100 - _APART / 2:
                    clock = moment.strftime("%H:%M:%S" if step < _MINUTE else "%H:%M")
                    yield x, clock if moment.date() == day else f"{moment:%a} {clock}"
                    last, day = x, moment.date()
                moment += step


def _merged(intervals: list[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    merged: list[tuple[datetime, datetime]] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _lane(
    phase: TreePhase, spans: list[Span], expected: Forecast | None, scale: _Scale, now: datetime
) -> Lane:
    lane = _LaneInMaking(scale)
    waits_until = spans[0].eligible_at or now if spans else now
    if spans:
        first = spans[0].claimed_at or now
        if spans[0].queued_at < min(waits_until, first):
            lane.bar("wait", spans[0].queued_at, min(waits_until, first))
    free_since = waits_until
    for span in spans:
        if span.claimed_at is not None:
            free_since = lane.add_attempt(span, span.claimed_at, free_since, now)
    if phase.status == "queued" and spans and waits_until < now:
        lane.bar("queue", max(waits_until, free_since), now)
    if expected and _is_open(phase):
        lane.add_forecast(phase.status, expected, now)
    words = [phase.shown_status, *_waits(phase), *lane.words]
    return Lane(phase, lane.bars, "; ".join(words))


class _LaneInMaking:
    """Collects the bars of a lane, and its description in words."""

    def __init__(self, scale: _Scale) -> None:
        self._scale = scale
        self.bars: list[Bar] = []
        self.words: list[str] = []

    def bar(
        self, kind: str, start: datetime, end: datetime, state: str = "", words: str = ""
    ) -> None:
        x = self._scale.at(start)
        width = round(max(0.0, self._scale.at(end) - x), 2)
        self.bars.append(Bar(kind, x, width, state, words))

    def add_attempt(
        self, span: Span, claimed_at: datetime, free_since: datetime, now: datetime
    ) -> datetime:
        """Add an attempt, and what its phase waited since *free_since*; return when it ended."""
        if claimed_at - free_since > timedelta(seconds=1):
            self.bar("backoff" if (span.attempt or 1) > 1 else "queue", free_since, claimed_at)
            self.words.append(f"waited {lasting(claimed_at - free_since)}")
        if span.started_at:
            self.bar("prepare", claimed_at, span.started_at)
        began, ended = span.started_at or claimed_at, span.ended_at or now
        state = _state(span)
        took = lasting(ended - began)
        self.bar("work" if span.started_at else "prepare", began, ended, state, took)
        verb = "took" if span.ended_at else "runs for"
        self.words.append(f"attempt {span.attempt} {verb} {took}, {state}")
        return ended

    def add_forecast(self, status: str, expected: Forecast, now: datetime) -> None:
        """Add the expected time of a phase that has the state *status*, where one is known."""
        if not (expected.starts_at and expected.ends_at):
            return
        start = now if status == "running" else max(now, expected.starts_at)
        ends = max(start, expected.ends_at)
        words = "if retried" if status in ("failed", "blocked") else lasting(ends - start)
        self.bar("expect", start, ends, status, words)
        if expected.latest and expected.latest > expected.ends_at:
            self.bar("spread", ends, expected.latest, status)
        self.words.append(f"expected to end at {expected.ends_at.astimezone(now.tzinfo):%H:%M}")


def _waits(phase: TreePhase) -> list[str]:
    """Return the reasons why a phase waits that were read, and the number of further ones."""
    shown = phase.reasons or []
    more = phase.all_reasons - len(shown)
    return [*shown, f"and {more} more"] if more else shown


def _state(span: Span) -> str:
    if span.outcome is None:
        return "running" if span.started_at else "ready"
    return {"timed_out": "failed", "lost": "failed", "returned": "queued"}.get(
        span.outcome, span.outcome
    )
