"""Changes of a plan's phases in its text: what they are not about stays byte for byte."""

import pytest

from pgcoord.errors import InvalidInput
from pgcoord.plan.parsing import parse_plan
from pgcoord.planner.rows import Changes, change_plan

PLAN = """---
owner: dana
---

# Search

Budget: $5

What it is about, with  odd   spacing.

## Phase 1: Index

Do.
<!-- kept -->

## Notes

Of no phase.

## Phase 2: Page
Depends on: phase 1
Hours: 2

Show {result.1.path}, and {{result.1.path}} as it is.

## Phase 3: Old
Depends on: none

Look.

## Phase 4: Roll out (depends on: 2 and 3) ##

Take {result.2.url}.

## Phase 5: Tell

Go.

- **Depends on:** Phase 4.

## Appendix

The end"""


def differing(changes: Changes, text: str = PLAN) -> list[tuple[str, str]]:
    """Lines that were changed: as they were, and as they are, both joined."""
    before, after = text.split("\n"), change_plan(text, changes).split("\n")
    while before and after and before[0] == after[0]:
        del before[0], after[0]
    while before and after and before[-1] == after[-1]:
        del before[-1], after[-1]
    return [("\n".join(before), "\n".join(after))] if before or after else []


def test_unchanged_lines_stay_byte_for_byte() -> None:
    assert change_plan(PLAN, Changes({}, {})) == PLAN
    assert differing(Changes({2: "A page"}, {})) == [("## Phase 2: Page", "## Phase 2: A page")]
    assert differing(Changes({}, {2: [3]})) == [("Depends on: phase 1", "Depends on: 3")]
    [(before, after)] = differing(Changes({4: "Out"}, {4: [1]}))
    assert before == "## Phase 4: Roll out (depends on: 2 and 3) ##"
    assert after == "## Phase 4: Out (depends on: 1) ##"
    [(before, after)] = differing(Changes({}, {5: [1, 2]}))
    assert (before, after) == ("- **Depends on:** Phase 4.", "- **Depends on:** 1, 2.")


def test_phases_after_one_that_is_taken_out_are_renumbered_wherever_they_are_named() -> None:
    moved = PLAN.replace("## Phase 5: Tell", "## Phase 5: Tell\n\nWhere: {result.4.url}")
    after = change_plan(moved, Changes({}, {}, {3}))
    assert "Budget: $5" in after
    assert "## Notes\n\nOf no phase.\n" in after
    assert "## Phase 3: Roll out (depends on: 2) ##\n\nTake {result.2.url}." in after
    assert "## Phase 4: Tell\n\nWhere: {result.3.url}" in after
    assert "- **Depends on:** Phase 3.\n" in after
    assert [each.depends_on for each in parse_plan(after, name="plan").phases] == [
        *((), (1,), (2,), (3,)),
    ]
    # What depended on it by standing below it does no longer.
    after = change_plan("# a\n\n## Phase 1: b\nx\n\n## Phase 2: c\n\nx\n", Changes({}, {}, {1}))
    assert after == "# a\n\n## Phase 1: c\n\nx\n"
    [(_, inserted)] = differing(Changes({}, {2: []}), "# a\n\n## Phase 1: b\nx\n## Phase 2: c\nx\n")
    assert inserted == "Depends on: none"


def test_a_plan_with_a_phase_0_keeps_its_numbers() -> None:
    text = "# a\n\n## Phase 0: b\nx\n## Phase One: c\nDepends on: 0\nx\n## Phase 2: d\nx\n"
    assert change_plan(text, Changes({}, {})) == text
    assert change_plan(text, Changes({}, {}, {2}, adds=True)) == (
        "# a\n\n## Phase 0: b\nx\n## Phase 1: d\nDepends on: none\nx\n"
        "\n## Phase 2: Phase 2\nDepends on: none\n\nWhat is to be done.\n"
    )


def test_a_phase_is_added_below_the_last_or_to_an_empty_text() -> None:
    after = change_plan(PLAN, Changes({}, {}, adds=True))
    added = "## Phase 6: Phase 6\nDepends on: none\n\nWhat is to be done.\n\n"
    assert after.replace(added, "") == PLAN
    assert after.index(added) < after.index("## Appendix")
    assert parse_plan(change_plan("", Changes({}, {}, adds=True)), name="plan").phases


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (Changes({}, {}, {1}), r"phase 2 uses \{result.1.path\}, of phase 1 that is taken out"),
        (Changes({}, {1: [5]}), r"cycle 1 → 5 → 4 → 2 → 1"),
        (Changes({1: "x (depends on: 7)"}, {}), r"there is no phase 7"),
        (Changes({1: "x (depends on: none)"}, {}), r"would be read as 'x'"),
    ],
)
def test_a_row_that_cannot_be_written_is_refused(changes: Changes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        change_plan(PLAN, changes)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("**Depends on:** Phase 1", "**Depends on:** 2"),
        ("Depends on phase 1.", "Depends on: 2."),
        ("y\n\n**Requires:** Phase 1", "y\n\n**Requires:** 2"),
        ("- **Depends on**: —", "- **Depends on**: 2"),
    ],
)
def test_dependencies_are_rewritten_as_their_author_wrote_them(before: str, after: str) -> None:
    front = "".join(f"## Phase {n}: b\n\nx\n\n" for n in (1, 2, 3))
    text = f"# a\n\n{front}## Phase 4: d\n\n{before}\n\nx\n"
    assert change_plan(text, Changes({}, {4: [2]})) == text.replace(before, after)
