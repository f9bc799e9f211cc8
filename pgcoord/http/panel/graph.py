"""Lay out the graph of a feature: layers from left to right, with few crossings.

In a large feature, completed phases on which no open phase depends are left out ("folded"), and a
phase that depends on them is marked as cut.

The layout follows from the dependencies alone, so it is cached, and does not move when states
change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import NamedTuple

from pgcoord.database.panel import Forecast, TreePhase

# More phases than this are a list, not a picture.
MOST_PHASES = 400

# The most stretches of edges; an edge has one for each column that it spans. More would be a grey
# area, and megabytes of HTML.
MOST_STRETCHES = 10_000

# With more phases than this, each node is one line of text, and completed phases are folded.
ROOMY = 40

# Characters of a title that fit in a small node.
_FITS = 17

# Passes over the columns that reduce crossings.
_SWEEPS = 6

_Edges = tuple[tuple[int, int], ...]


class Measures(NamedTuple):
    """Widths and heights in pixels."""

    width: int
    height: int
    across: int  # between columns
    down: int  # between rows
    lane: int  # of an edge that passes a column
    port: int  # between two edges at a phase


_LARGE = Measures(168, 46, 48, 18, 12, 8)
_SMALL = Measures(136, 26, 36, 8, 6, 4)


@dataclass(frozen=True)
class Layout:
    """A laid out graph, in pixels.

    *corners*: the upper left corner (x, y) by phase. *paths*: by (prerequisite, dependent).
    """

    width: int
    height: int
    measures: Measures
    corners: dict[int, tuple[int, int]]
    paths: dict[tuple[int, int], "Path"]


@dataclass(frozen=True)
class Path:
    """The path of an edge: *line* as SVG path data, the point of its mark, its end, as (x, y)."""

    line: str
    mark: tuple[int, int]
    end: tuple[int, int]


@dataclass(frozen=True)
class Edge:
    """An edge: its path, and the state of its prerequisite."""

    path: Path
    status: str

    @property
    def kind(self) -> str:
        """What the prerequisite's state means for the dependent: "met", "waits" or "broken"."""
        if self.status == "completed":
            return "met"
        return "broken" if self.status in ("failed", "cancelled", "blocked") else "waits"


@dataclass(frozen=True)
class Graph:
    """The graph of a feature; *forecast* by number of phase; *folds*: leave out completed parts."""

    all: Sequence[TreePhase]
    forecast: dict[int, Forecast]
    folds: bool = False

    @cached_property
    def phases(self) -> Sequence[TreePhase]:
        """The phases to draw; all of them if every phase would be left out."""
        if not self.folds:
            return self.all
        needed = {
            up for each in self.all if each.status != "completed" for up in each.depends_on_phases
        }
        return [
            each for each in self.all if each.status != "completed" or each.phase_number in needed
        ] or self.all

    @property
    def folded(self) -> int:
        """The number of phases that are left out."""
        return len(self.all) - len(self.phases)

    @cached_property
    def cut(self) -> set[int]:
        """The numbers of drawn phases with a prerequisite that is left out."""
        drawn, numbers = set(self._layer), {each.phase_number for each in self.all}
        return {
            each.phase_number
            for each in self.phases
            if any(up in numbers and up not in drawn for up in each.depends_on_phases)
        }

    @cached_property
    def titles(self) -> dict[int, str]:
        """The titles to draw, by number of phase, as `distinct_labels` shortens them."""
        return distinct_labels({each.phase_number: each.title for each in self.phases}, _FITS)

    @property
    def too_large(self) -> str | None:
        """The subject of a sentence, such as "450 phases are", if it is too large; else None."""
        if len(self.phases) > MOST_PHASES:
            return f"{len(self.phases)} phases are"
        layer = self._layer
        if sum(layer[down] - layer[up] for up, down in self._pairs) > MOST_STRETCHES:
            return f"{len(self._pairs)} dependencies of {len(self.phases)} phases are"
        return None

    @cached_property
    def layout(self) -> Layout:
        """The layout of the phases to draw."""
        return lay_out(tuple(self._layer.items()), self._pairs)

    @cached_property
    def _layer(self) -> dict[int, int]:
        numbers = {each.phase_number for each in self.phases}
        layers = {n: self.forecast[n].layer if n in self.forecast else 0 for n in numbers}
        # Columns without a drawn phase are dropped.
        column = {layer: at for at, layer in enumerate(sorted(set(layers.values())))}
        return {n: column[layer] for n, layer in layers.items()}

    @cached_property
    def _pairs(self) -> _Edges:
        return tuple(
            (up, phase.phase_number)
            for phase in self.phases
            for up in phase.depends_on_phases
            if up in self._layer
        )

    @cached_property
    def edges(self) -> list[Edge]:
        """The edges, in an order that stays the same whatever happens to the phases."""
        return [self._edge(pair) for pair in self.layout.paths]

    @cached_property
    def critical_edges(self) -> list[Edge]:
        """The edges of the critical path."""
        return [
            self._edge((up, down))
            for up, down in self.layout.paths
            if self._is_critical(up) and self._is_critical(down)
        ]

    def _edge(self, pair: tuple[int, int]) -> Edge:
        return Edge(self.layout.paths[pair], self._status[pair[0]])

    @cached_property
    def _status(self) -> dict[int, str]:
        return {each.phase_number: each.status for each in self.phases}

    def _is_critical(self, number: int) -> bool:
        return number in self.forecast and self.forecast[number].critical


def distinct_labels(titles: dict[int, str], fits: int) -> dict[int, str]:
    """Return *titles*, by number of phase, changed so that their first *fits* characters differ.

    Titles with a common beginning have an ellipsis instead of their common words.
    """
    alike: dict[str, list[int]] = {}
    for number, title in titles.items():
        alike.setdefault(title[:fits], []).append(number)
    for numbers in alike.values():
        same = [titles[number] for number in numbers]
        first, last = min(same), max(same)
        common = next((i for i, c in enumerate(first) if last[i : i + 1] != c), len(first))
        start = first[: first.rfind(" ", 0, common) + 1] or first[:common]
        if len(set(same)) < 2 or len(start) < 4:
            continue
        rest = {number: titles[number][len(start) :] for number in numbers}
        rest = distinct_labels(rest, fits - 1)
        titles = titles | {n: f"…{words.removeprefix('…')}" for n, words in rest.items()}
    return titles


# A spot in a column, as (number, column): a phase, or an edge from that phase that passes through.
_Spot = tuple[int, int]

# A stretch of an edge, from one column to the next; edges from the same phase share stretches.
_Link = tuple[_Spot, _Spot]


@lru_cache(maxsize=64)
def lay_out(layers: tuple[tuple[int, int], ...], edges: _Edges) -> Layout:
    """Return the layout of phases, as (number, column), and edges, as (prerequisite, dependent).

    The result is cached. Pure computation, which takes long for hundreds of phases.
    """
    layer = dict(layers)
    measures = _LARGE if len(layer) <= ROOMY else _SMALL
    columns, links = _columns(layer, edges)
    _order(columns, links)
    heights = _heights(columns, links, layer, measures)
    corners = {
        number: (at * (measures.width + measures.across), heights[number, at])
        for number, at in layer.items()
    }
    ends = _ends(links, layer, heights, measures)
    paths = {(up, down): _path(up, down, layer, ends, measures) for up, down in edges}
    width = max((x for x, _ in corners.values()), default=0) + measures.width
    bottom = max(heights.values(), default=0) + measures.height
    return Layout(width + 2, bottom + 2, measures, corners, paths)


def _columns(layer: dict[int, int], edges: _Edges) -> tuple[list[list[_Spot]], list[_Link]]:
    """Return the spots of each column, passing edges included, and the links between spots."""
    columns: list[list[_Spot]] = [[] for _ in range(max(layer.values(), default=0) + 1)]
    for number in sorted(layer):
        columns[layer[number]].append((number, layer[number]))
    links: dict[_Link, None] = {}
    for up, down in edges:
        for at in range(layer[up] + 1, layer[down]):
            if (up, at) not in columns[at]:
                columns[at].append((up, at))
            links[(up, at - 1), (up, at)] = None
        links[(up, layer[down] - 1), (down, layer[down])] = None
    return columns, list(links)


def _neighbours(
    links: list[_Link],
) -> tuple[dict[_Spot, list[_Spot]], dict[_Spot, list[_Spot]]]:
    left: dict[_Spot, list[_Spot]] = {}
    right: dict[_Spot, list[_Spot]] = {}
    for one, other in links:
        right.setdefault(one, []).append(other)
        left.setdefault(other, []).append(one)
    return left, right


def _order(columns: list[list[_Spot]], links: list[_Link]) -> None:
    """Sort each column, in place, by the mean position of linked spots, in alternating passes."""
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
    links: list[_Link],
    layer: dict[int, int],
    measures: Measures,
) -> dict[_Spot, int]:
    """Return the y of each spot: close to its linked spots, without overlaps."""

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
            targets = [
                sum(heights[o] + room(o) / 2 for o in near[spot]) / len(near[spot]) - room(spot) / 2
                if spot in near
                else heights[spot]
                for spot in column
            ]
            rooms = [room(spot) + measures.down for spot in column]
            heights.update(zip(column, _apart(targets, rooms), strict=True))
    top = min(heights.values(), default=0)
    return {spot: round(y - top) + 1 for spot, y in heights.items()}


def _apart(targets: list[float], rooms: list[int]) -> list[float]:
    """Return the positions closest to *targets* that keep order and distance (*rooms*)."""
    # Neighbours that touch move as one run: (sum of wanted positions, members, total room).
    runs: list[tuple[float, int, float]] = []
    for wish, room in zip(targets, rooms, strict=True):
        total, count, taken = wish, 1, float(room)
        while runs:
            before, members, length = runs[-1]
            if before / members + length <= total / count:
                break
            runs.pop()
            total, count, taken = before + total - count * length, members + count, length + taken
        runs.append((total, count, taken))
    positions: list[float] = []
    at = iter(rooms)
    for total, count, _ in runs:
        y = total / count
        for _ in range(count):
            positions.append(y)
            y += next(at)
    return positions


def _ends(
    links: list[_Link], layer: dict[int, int], heights: dict[_Spot, int], measures: Measures
) -> dict[_Link, tuple[int, int]]:
    """Return the y at which each link begins and ends; those of one phase are side by side."""
    left, right = _neighbours(links)

    def sides(spot: _Spot, others: list[_Spot]) -> dict[_Spot, int]:
        if layer[spot[0]] != spot[1]:
            return dict.fromkeys(others, heights[spot] + measures.lane // 2)
        others = sorted(others, key=heights.__getitem__)
        apart = min(measures.port, (measures.height - 10) // len(others))
        first = heights[spot] + measures.height // 2 - apart * (len(others) - 1) // 2
        return {other: first + apart * i for i, other in enumerate(others)}

    begins = {spot: sides(spot, others) for spot, others in right.items()}
    ends = {spot: sides(spot, others) for spot, others in left.items()}
    return {(one, other): (begins[one][other], ends[other][one]) for one, other in links}


def _path(
    up: int,
    down: int,
    layer: dict[int, int],
    ends: dict[_Link, tuple[int, int]],
    measures: Measures,
) -> Path:
    width, across = measures.width, measures.across
    passed = [(up, at) for at in range(layer[up] + 1, layer[down])]
    spots = [(up, layer[up]), *passed, (down, layer[down])]
    *passing, (y, to) = [ends[link] for link in pairwise(spots)]
    x = layer[up] * (width + across) + width
    mark = (x + across // 2, (y + to) // 2)
    if passing:
        mark = (x + across + width // 2, passing[0][1])
    line = f"M{x} {passing[0][0] if passing else y}"
    for start, end in passing:
        line += _bend(x, start, x + across, end) + f"h{width}"
        x += across + width
    # The last 6 pixels are the arrow's tip.
    return Path(line + _bend(x, y, x + across - 6, to), mark, (x + across, to))


def _bend(x: int, y: int, to_x: int, to_y: int) -> str:
    middle = (x + to_x) // 2
    return f"C{middle} {y} {middle} {to_y} {to_x} {to_y}"
