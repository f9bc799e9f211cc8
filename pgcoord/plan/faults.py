"""Faults of a plan as a whole: its order, its dependencies, its workflows."""

from collections import Counter
from collections.abc import Collection, Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import islice, pairwise

from pgcoord.errors import did_you_mean
from pgcoord.plan.model import Problem, Section

# The most cycles that are reported: a plan with more needs a rewrite, not a longer list.
_MOST_CYCLES = 20


def faults_in_order(sections: list[Section]) -> Iterator[Problem]:
    """Find numbers of phases that occur twice, or are missing."""
    lines: dict[int, int] = {}
    for section in sections:
        if section.number in lines:
            first = f"the first one is on line {lines[section.number]}"
            yield section.line, f"phase {section.number} is here a second time: {first}"
        elif section.number:
            lines[section.number] = section.line
    # A missing number is most likely that of a faulty heading.
    if all(section.number for section in sections):
        for before, number in pairwise([0, *sorted(lines)]):
            if number - before == 2:
                yield lines[number], f"phase {number} is here, but no phase {before + 1}"
            elif number - before > 2:
                missing = f"no phases {before + 1} to {number - 1}"
                yield lines[number], f"phase {number} is here, but {missing}"


def faults_in_dependencies(sections: list[Section]) -> Iterator[Problem]:
    """Yield a fault for each prerequisite that does not exist, or that makes a cycle."""
    numbers = {section.number for section in sections}
    for section in sections:
        line = section.line_of("depends on")
        named = section.value("depends on") or ()
        for number in sorted(number for number, count in Counter(named).items() if count > 1):
            yield line, f"Depends on: phase {number} is named more than once"
        if section.value("when") == "failed" and not section.depends_on:
            problem = "When: failed: expected phases that it depends on"
            yield section.line_of("when"), problem
        if section.number in named:
            yield line, f"Depends on: phase {section.number} cannot depend on itself"
        # An unknown phase may be the one with the faulty heading.
        for number in sorted(set(named) - numbers) if 0 not in numbers else ():
            yield line, f"Depends on: there is no phase {number}"
    yield from _cycles(sections)


def _cycles(sections: list[Section]) -> Iterator[Problem]:
    """Find cycles of dependencies, at most `_MOST_CYCLES`, none of which share a dependency."""
    of_number = {section.number: section for section in sections if section.number}
    graph = {
        number: {each for each in section.depends_on if each in of_number and each != number}
        for number, section in of_number.items()
    }
    for path in islice(_paths_of_cycles(graph), _MOST_CYCLES):
        cycle = f"Depends on: cycle {' → '.join(map(str, path))}"
        if any("depends on" not in of_number[number].keys for number in path):
            cycle += ' (without "Depends on:", a phase depends on the one before it)'
        yield of_number[path[0]].line_of("depends on"), cycle


def _paths_of_cycles(graph: dict[int, set[int]]) -> Iterator[list[int]]:
    """Yield cycles, each from its lowest number back to it, and remove their edges from *graph*.

    *graph*: {phase: its prerequisites}.
    """
    while True:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            # Its path goes from prerequisite to dependent, and ends where it began.
            ring = error.args[1][:0:-1]
        else:
            return
        lowest = ring.index(min(ring))
        path = [*ring[lowest:], *ring[: lowest + 1]]
        for dependent, prerequisite in pairwise(path):
            graph[dependent].remove(prerequisite)
        yield path


def faults_in_workflows(
    sections: list[Section], workflows: Collection[str] | None, has_default: bool
) -> Iterator[Problem]:
    """Yield a fault for each workflow that is not in *workflows*, or missing without a default."""
    if workflows is None:
        return
    for section in sections:
        name = section.value("workflow")
        if name is not None and name not in workflows:
            hint = did_you_mean(name, sorted(workflows))
            yield section.line_of("workflow"), f"Workflow: {name!r:.60} is not declared{hint}"
        elif (
            "workflow" not in section.keys
            and section.prompt.strip()
            and not has_default
            and not section.is_completed
        ):
            problem = "no workflow: expected a line `Workflow: name`, for none is the default"
            yield section.line, problem
