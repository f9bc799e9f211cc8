"""Where the phases of a feature stand in its graph: layers from left to right, few crossings.

The layout follows from the dependencies alone, so it is made once for each shape of a graph and
stays put while states change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from pgcoord.queries_panel import Forecast, TreePhase

# More phases than this are a list, not a picture.
MOST_PHASES = 400

# With more phases than this, each is one line of text.
_ROOMY = 40

# Orderings that are tried for fewer crossings.
_SWEEPS = 6

_Edges = tuple[tuple[int, int], ...]


class Measures(NamedTuple):
    """Widths and heights in pixels."""

    width: int
    height: int
    across: int  # between columns
    down: int  # between rows
    lane: int  # of an edge that passes a column


_LARGE = Measures(168, 46, 40, 18, 12)
_SMALL = Measures(136, 26, 36, 8, 6)


@dataclass(frozen=True)
class Layout:
    """Where each phase stands (its upper left corner) and along which points each edge goes."""

    width: int
    height: int
    measures: Measures
    places: dict[int, tuple[int, int]]
    paths: dict[tuple[int, int], str]


@dataclass(frozen=True)
class Edge:
    """An edge: its line, where it ends, and what it is: met, waits or broken."""

    line: str
    x: int
    y: int
    kind: str
    critical: bool


@dataclass(frozen=True)
class Graph:
    """The graph of a feature."""

    phases: Sequence[TreePhase]
    forecast: dict[int, Forecast]

    @property
    def too_large(self) -> bool:
        """Whether it is not drawn."""
        return len(self.phases) > MOST_PHASES

    @cached_property
    def layout(self) -> Layout:
        """Where everything stands."""
        numbers = {each.phase_number for each in self.phases}
        layers = tuple((n, self.forecast[n].layer if n in self.forecast else 0) for n in numbers)
        edges = tuple(
            (up, phase.phase_number)
            for phase in self.phases
            for up in phase.depends_on_phases
            if up in numbers
        )
        return _lay_out(layers, edges)

    @cached_property
    def edges(self) -> list[Edge]:
        """The edges, those of the critical path last, on top of the others."""
        status = {each.phase_number: each.status for each in self.phases}
        found = []
        for (up, down), line in self.layout.paths.items():
            x, y = self.layout.places[down]
            critical = self._is_critical(up) and self._is_critical(down)
            y += self.layout.measures.height // 2
            found.append(Edge(line, x, y, _kind(status[up]), critical))
        return sorted(found, key=lambda each: (each.kind == "broken", each.critical))

    def _is_critical(self, number: int) -> bool:
        return number in self.forecast and self.forecast[number].critical


def _kind(status: str) -> str:
    if status == "completed":
        return "met"
    return "broken" if status in ("failed", "cancelled", "blocked") else "waits"


# A place in a column: a phase, or an edge of the phase `number` that passes the column `layer`.
_Spot = tuple[int, int]


@lru_cache(maxsize=64)
def _lay_out(layers: tuple[tuple[int, int], ...], edges: _Edges) -> Layout:
    layer = dict(layers)
    measures = _LARGE if len(layer) <= _ROOMY else _SMALL
    columns, links = _columns(layer, edges)
    _order(columns, links)
    heights = _heights(columns, links, layer, measures)
    places = {
        number: (at * (measures.width + measures.across), heights[number, at])
        for number, at in layer.items()
    }
    paths = {(up, down): _path(up, down, layer, heights, places, measures) for up, down in edges}
    width = max((x for x, _ in places.values()), default=0) + measures.width
    bottom = max(heights.values(), default=0) + measures.height
    return Layout(width + 2, bottom + 2, measures, places, paths)


def _columns(
    layer: dict[int, int], edges: _Edges
) -> tuple[list[list[_Spot]], list[tuple[_Spot, _Spot]]]:
    """What stands in each column, edges that pass through it too, and what is next to what."""
    columns: list[list[_Spot]] = [[] for _ in range(max(layer.values(), default=0) + 1)]
    for number in sorted(layer):
        columns[layer[number]].append((number, layer[number]))
    links: dict[tuple[_Spot, _Spot], None] = {}
    for up, down in edges:
        for at in range(layer[up] + 1, layer[down]):
            if (up, at) not in columns[at]:
                columns[at].append((up, at))
            links[(up, at - 1), (up, at)] = None
        links[(up, layer[down] - 1), (down, layer[down])] = None
    return columns, list(links)


def _neighbours(
    links: list[tuple[_Spot, _Spot]],
) -> tuple[dict[_Spot, list[_Spot]], dict[_Spot, list[_Spot]]]:
    left: dict[_Spot, list[_Spot]] = {}
    right: dict[_Spot, list[_Spot]] = {}
    for one, other in links:
        right.setdefault(one, []).append(other)
        left.setdefault(other, []).append(one)
    return left, right


def _order(columns: list[list[_Spot]], links: list[tuple[_Spot, _Spot]]) -> None:
    """Sort each column by the middle of what its members are linked to, back and forth."""
    left, right = _neighbours(links)
    for sweep in range(_SWEEPS):
        forth = sweep % 2 == 0
        near = left if forth else right
        for column in columns if forth else reversed(columns):
            at = {spot: i for each in columns for i, spot in enumerate(each)}
            middle = {
                spot: sum(at[other] for other in near[spot]) / len(near[spot])
                if spot in near
                else float(at[spot])
                for spot in column
            }
            column.sort(key=middle.__getitem__)


def _heights(
    columns: list[list[_Spot]],
    links: list[tuple[_Spot, _Spot]],
    layer: dict[int, int],
    measures: Measures,
) -> dict[_Spot, int]:
    """How far down each spot stands: near what it is linked to, without overlaps."""

    def room(spot: _Spot) -> int:
        return measures.height if layer[spot[0]] == spot[1] else measures.lane

    heights: dict[_Spot, float] = {}
    for column in columns:
        y = 0.0
        for spot in column:
            heights[spot] = y
            y += room(spot) + measures.down
    left, right = _neighbours(links)
    for sweep in range(_SWEEPS):
        forth = sweep % 2 == 0
        for column in columns if forth else reversed(columns):
            near = left if forth else right
            wanted = [
                sum(heights[o] + room(o) / 2 for o in near[spot]) / len(near[spot]) - room(spot) / 2
                if spot in near
                else heights[spot]
                for spot in column
            ]
            rooms = [room(spot) + measures.down for spot in column]
            heights.update(zip(column, _apart(wanted, rooms), strict=True))
    top = min(heights.values(), default=0)
    return {spot: round(y - top) + 1 for spot, y in heights.items()}


def _apart(wanted: list[float], rooms: list[int]) -> list[float]:
    """The places closest to those wanted that keep their order and their distance."""
    # Runs of neighbours that touch move as one: (sum of wishes, members, total room).
    runs: list[tuple[float, int, float]] = []
    for wish, room in zip(wanted, rooms, strict=True):
        total, count, taken = wish, 1, float(room)
        while runs:
            before, members, length = runs[-1]
            if before / members + length <= total / count:
                break
            runs.pop()
            total, count, taken = before + total - count * length, members + count, length + taken
        runs.append((total, count, taken))
    places: list[float] = []
    at = iter(rooms)
    for total, count, _ in runs:
        y = total / count
        for _ in range(count):
            places.append(y)
            y += next(at)
    return places


def _path(
    up: int,
    down: int,
    layer: dict[int, int],
    heights: dict[_Spot, int],
    places: dict[int, tuple[int, int]],
    measures: Measures,
) -> str:
    half = measures.height // 2
    x, y = places[up][0] + measures.width, places[up][1] + half
    line = f"M{x} {y}"
    for at in range(layer[up] + 1, layer[down]):
        passing = heights[up, at] + measures.lane // 2
        line += _bend(x, y, measures.across, passing) + f"h{measures.width}"
        x, y = x + measures.across + measures.width, passing
    return line + _bend(x, y, measures.across - 6, places[down][1] + half)


def _bend(x: int, y: int, across: int, to: int) -> str:
    middle = x + across // 2
    return f"C{middle} {y} {middle} {to} {x + across} {to}"
