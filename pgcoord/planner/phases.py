"""Splits the work of a feature into phases with dependencies.

The number of phases depends on the hours and on the number of work items. Items are ordered after
those they depend on, and only neighbours are merged: an edge always goes from a lower number to a
higher one, and no plan has a cycle.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from itertools import islice, pairwise

from pgcoord.planner.items import Item, title_of
from pgcoord.planner.layers import layer, needs, stage
from pgcoord.planner.structure import Feature, Structure

MOST_PHASES = 12

# Titles of layers that say less than the work items.
_VAGUE = ("Groundwork", "Implementation")

# Characters of a title that names several work items.
_LONGEST_TITLE = 60

# Up to so many hours, so many phases; above, one for each four hours.
_STEPS = ((2, 1), (6, 2), (12, 3))
_HOURS_A_PHASE = 4

# Hours of a work item without an estimate, and the fewest hours of a phase.
_USUAL_HOURS = 2
_LEAST_HOURS = 2

# Layers that are merged first when there are too many phases.
_KIN = (
    {"tests", "documentation"},
    {"core", "backend", "cli"},
    {"setup", "database"},
    {"backend", "frontend"},
)

_BUG = re.compile(
    r"\b(?:bug|fix(?:es|ed)?|crash\w*|error|regression|defect|broken|leaks?)\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Draft:
    """A phase before it has a prompt: its work items and its dependencies, by number."""

    items: tuple[Item, ...]
    needs: frozenset[int] = frozenset()
    hours: float | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers of its work items, in order."""
        return tuple(sorted({each.layer for each in self.items}, key=stage))

    @property
    def files(self) -> tuple[str, ...]:
        """The files that its work items name."""
        return tuple(dict.fromkeys(file for each in self.items for file in each.files))


def titles(feature: Feature, drafts: Sequence[Draft]) -> list[str]:
    """Return the titles of the phases: of the only work item, else of the layers."""
    if len(drafts) == 1:
        return [title_of(feature.title)]
    candidates = [_by_layers(draft) for draft in drafts]
    repeated = {each for each, count in Counter(candidates).items() if count > 1}
    candidates = [
        _by_items(draft) if title in repeated else title
        for title, draft in zip(candidates, drafts, strict=True)
    ]
    before = Counter[str]()
    for index, title in enumerate(candidates):
        before[title] += 1
        if before[title] > 1:
            candidates[index] = f"{title} ({before[title]})"
    return candidates


def _by_layers(draft: Draft) -> str:
    if len(draft.items) == 1:
        return draft.items[0].title
    sections = {each.section for each in draft.items}
    if len(sections) == 1 and (section := sections.pop()):
        return section
    first, *others = (layer(name).title for name in draft.layers)
    return _joined([first, *map(_lower, others)]) if others else _by_items(draft, else_called=first)


def _by_items(draft: Draft, else_called: str | None = None) -> str:
    """Return a title of as many work items as fit."""
    first, *others = (each.title for each in draft.items)
    both = _joined([first, *map(_lower, others)])
    if len(both) <= _LONGEST_TITLE or not others:
        return both
    return f"{first}, and {len(others)} more" if else_called in (None, *_VAGUE) else else_called


def _joined(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _lower(title: str) -> str:
    """Return a title in lower case for the middle of another, except abbreviations and names."""
    first = title.split(" ", 1)[0]
    return title[:1].lower() + title[1:] if first[1:].islower() else title


def phases_by_hours(hours: float) -> int:
    """Return the number of phases for *hours*, if there is enough work to split."""
    return next(
        (count for most, count in _STEPS if hours <= most), math.ceil(hours / _HOURS_A_PHASE)
    )


def split(feature: Feature, structure: Structure, most: int = MOST_PHASES) -> tuple[Draft, ...]:
    """Split a feature into at most *most* phases, each after those it depends on."""
    items = list(structure.items)
    natural = _natural(items, structure.in_prose)
    count = _count(feature, items, natural, most)
    if len(items) == 1 and count > 1 and _is_bug(feature):
        items = _reproduction_and_fix(items[0])[:count]
    else:
        items += _added(items, count - natural)
    steps = _steps(items)
    needs = _without_cycles([_stated_needs(items, index, steps) for index in range(len(items))])
    order = _order(items, needs, steps)
    edges = _edges(items, needs, order, steps)
    groups = _put_together(items, order, count)
    return _with_hours(feature.hours or None, _connect(items, edges, groups))


def _natural(items: Sequence[Item], in_prose: bool) -> int:
    """Return the number of phases that the text suggests: its sections, list items, or layers."""
    layers = len({each.layer for each in items})
    sections = len({each.section for each in items})
    if sections > 1 and not all(each.is_phase for each in items):
        return max(sections, layers)
    return layers if in_prose else len(items)


def _count(feature: Feature, items: Sequence[Item], natural: int, most: int) -> int:
    """Return the number of phases to create."""
    if all(each.is_phase for each in items):  # people have split it
        return natural
    says_its_size = feature.hours or len(items) > 1 or items[0].hours
    hours = feature.hours or sum(each.hours or _USUAL_HOURS for each in items)
    if hours <= _STEPS[0][0] or not says_its_size:
        return 1
    # What is suggested, where that leaves two hours to each; each layer, where that leaves one.
    layers = len({each.layer for each in items})
    suggested = natural if natural * _LEAST_HOURS <= hours else min(layers, math.ceil(hours))
    return min(max(phases_by_hours(hours), suggested), most)


def _is_bug(feature: Feature) -> bool:
    return feature.kind == "bug" or _BUG.search(feature.title) is not None


def _reproduction_and_fix(fault: Item) -> list[Item]:
    """Return the work items for a bug: find the cause, remove it, look for similar places."""
    find = "Find the cause, and reproduce it by a test that fails for that reason"
    cause = Item(f"{find}:\n\n{fault.text}", "Find the cause", "setup", fault.files)
    fix = replace(
        fault,
        text=f"Remove the cause, so that the test passes:\n\n{fault.text}",
        title=fault.title if _BUG.match(fault.title) else f"Fix: {fault.title}",
    )
    similar = Item(
        "Look for the same fault in similar places, and cover these by tests.",
        "Similar places",
        "tests",
    )
    return [cause, fix, similar]


def _added(items: Sequence[Item], room: int) -> list[Item]:
    """Return items for tests and documentation where the text has none; at most *room*."""
    layers = {each.layer for each in items}
    if room < 1 or layers <= {"documentation", "tests", "infrastructure", "rollout"}:
        return []
    added = [each for each in (_TESTS, _DOCUMENTATION) if each.layer not in layers]
    return added[:room]


_TESTS = Item("Test all of it together, with what may go wrong.", "Tests", "tests")
_DOCUMENTATION = Item("Document it for those who use it.", "Documentation", "documentation")


_Needs = list[set[int]]
"""For each piece of work the indexes of those that it needs."""


# Layers of the steps that follow from each other, where the numbers of a list mean their order.
_STEPPING = ("setup", "database", "core", "backend", "cli")


def _steps(items: Sequence[Item]) -> set[int]:
    """Return the numbered lists that do not follow the order of layers: their numbers do count."""
    stages: dict[int, list[int]] = {}
    for item in items:
        if item.number and item.sequence and item.layer in _STEPPING:
            stages.setdefault(item.sequence, []).append(stage(item.layer))
    return {sequence for sequence, order in stages.items() if order != sorted(order)}


def _stated_needs(items: Sequence[Item], index: int, steps: set[int]) -> set[int]:
    """Return the indexes of the items on which the item *index* depends by its own words."""
    item = items[index]
    if item.after is not None:
        return {
            other
            for other, each in enumerate(items)
            if each.number in item.after and each.sequence == item.sequence and other != index
        }
    if item.last:
        return set(range(index))
    if item.sequence in steps:
        before = (
            other
            for other in range(index - 1, -1, -1)
            if items[other].sequence == item.sequence and items[other].layer in _STEPPING
        )
        return set(islice(before, 1))
    return set(range(max(0, index - item.then), index))


def _without_cycles(needs: _Needs) -> _Needs:
    """Leave out each dependency that would close a cycle with an earlier one."""
    acyclic: _Needs = [set() for _ in needs]
    for index, others in enumerate(needs):
        for other in sorted(others):
            if not _leads(acyclic, other, index):
                acyclic[index].add(other)
    return acyclic


def _leads(needed: _Needs, start: int, end: int) -> bool:
    """Whether *start* is *end* or depends on it, directly or indirectly."""
    visited: set[int] = set()
    open_ones = [start]
    while open_ones:
        index = open_ones.pop()
        if index == end:
            return True
        if index not in visited:
            visited.add(index)
            open_ones += needed[index]
    return False


def _order(items: Sequence[Item], needs: _Needs, steps: set[int]) -> list[int]:
    """Order items by their stated dependencies, then by layer, then by their order in the text."""
    as_written = all(each.is_phase or each.sequence in steps for each in items)
    sorter = TopologicalSorter(dict(enumerate(needs)))
    sorter.prepare()
    ready: list[int] = []
    order = []
    while sorter.is_active():
        ready += sorter.get_ready()
        ready.sort(key=lambda index: (0 if as_written else stage(items[index].layer), index))
        order.append(ready.pop(0))
        sorter.done(order[-1])
    return order


def _edges(items: Sequence[Item], needs: _Needs, order: Sequence[int], steps: set[int]) -> _Needs:
    """Return the dependencies of each item on items before it, by index."""
    present = {each.layer for each in items}
    edges = [set(others) for others in needs]
    for at, index in enumerate(order):
        edges[index] |= {
            other for other in order[:at] if _needs(items[index], items[other], present, steps)
        }
        if not edges[index] and items[index].is_phase and items[index].after is None:
            # A numbered step that no rule connects follows the one before it.
            numbered = (o for o in reversed(order[:at]) if _is_step_of(items[o], items[index]))
            edges[index] |= set(islice(numbered, 1))
    return edges


def _needs(item: Item, before: Item, present: set[str], steps: set[int]) -> bool:
    """Whether *item* depends on the earlier item *before*, without saying so."""
    if set(item.files) & set(before.files):
        return True
    if item.after is not None:
        return False
    if item.sequence == before.sequence in steps and item.layer not in ("tests", "rollout"):
        return False
    if item.layer == before.layer:
        return _follows(item, before)
    return needs(item.layer, before.layer, present)


def _is_step_of(before: Item, item: Item) -> bool:
    return bool(item.sequence) and before.sequence == item.sequence


def _follows(item: Item, before: Item) -> bool:
    """Whether two steps of a numbered list, of one layer, depend on each other in order.

    If both name files, and different ones, the numbers are only names.
    """
    return (
        bool(item.sequence)
        and item.sequence == before.sequence
        and not (item.files and before.files)
    )


def _put_together(items: Sequence[Item], order: Sequence[int], count: int) -> list[list[int]]:
    """Merge neighbours until there are at most *count* groups."""
    groups = [[index] for index in order]
    while len(groups) > count:
        pairs = enumerate(pairwise(groups))
        _, at = min((_cost(items, [*one, *other]), at) for at, (one, other) in pairs)
        groups[at : at + 2] = [groups[at] + groups[at + 1]]
    return groups


def _cost(items: Sequence[Item], group: Sequence[int]) -> tuple[int, float]:
    """Return the cost of merging *group*: different kinds of work first, then the amount."""
    layers = {items[index].layer for index in group}
    sections = {items[index].section for index in group}
    if sections == {""} or len(sections) > 1:
        kinds = 1 if len(layers) == 1 else 2 if any(layers <= kin for kin in _KIN) else 3
    else:
        kinds = 0 if len(layers) == 1 else 1
    return kinds, sum(_weight(items[index]) for index in group)


def _weight(item: Item) -> float:
    return item.hours or layer(item.layer).weight


def _connect(
    items: Sequence[Item], edges: _Needs, groups: Sequence[Sequence[int]]
) -> tuple[Draft, ...]:
    """Return a draft for each group, with its direct dependencies."""
    number_of = {index: number for number, group in enumerate(groups) for index in group}
    needed = [
        {number_of[other] for index in group for other in edges[index]} - {number}
        for number, group in enumerate(groups)
    ]
    return tuple(
        Draft(
            tuple(items[index] for index in group),
            frozenset(other + 1 for other in _nearest(needed, needed[number])),
        )
        for number, group in enumerate(groups)
    )


def _nearest(needed: _Needs, numbers: set[int]) -> set[int]:
    """Return *numbers* without those on which another of them depends."""
    return {
        each
        for each in numbers
        if not any(_leads(needed, other, each) for other in numbers - {each})
    }


def _with_hours(hours: float | None, drafts: tuple[Draft, ...]) -> tuple[Draft, ...]:
    """Give each phase its share of the hours; without a total, the sum of its items' estimates."""
    if hours is None:
        shares = [_stated(draft) for draft in drafts]
    else:
        shares = _shares(hours, [sum(map(_weight, draft.items)) for draft in drafts])
    return tuple(replace(draft, hours=share) for draft, share in zip(drafts, shares, strict=True))


def _stated(draft: Draft) -> float | None:
    """Return the hours of a phase whose items all have an estimate; else None."""
    hours = [each.hours for each in draft.items if each.hours]
    return round(sum(hours), 2) if len(hours) == len(draft.items) else None


def _shares(hours: float, weights: Sequence[float]) -> list[float | None]:
    """Distribute *hours* by weight, in half hours if there are enough."""
    step = 0.5 if hours >= len(weights) / 2 else hours / 10 / len(weights)
    units = int(hours / step)
    exact = [units * weight / sum(weights) for weight in weights]
    # At least an hour for each, if there are enough hours.
    least = min(2, units // len(weights))
    parts = [max(least, int(each)) for each in exact]
    # Hours lost by rounding go to the phases that lost most; hours gained come from the largest.
    by_loss = sorted(range(len(parts)), key=lambda index: (parts[index] - exact[index], index))
    while (missing := units - sum(parts)) > 0:
        for index in by_loss[:missing]:
            parts[index] += 1
    while sum(parts) > units:
        parts[parts.index(max(parts))] -= 1
    shares = [part * step for part in parts]
    shares[parts.index(max(parts))] += hours - units * step
    return [round(share, 2) or None for share in shares]
