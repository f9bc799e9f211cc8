"""Plans: what is a phase and what is text, and every fault by its line."""

import json
import random
import string
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cases import case

from pgcoord.errors import InvalidPlan
from pgcoord.plan.files import read_plan
from pgcoord.plan.headings import looks_like_plan
from pgcoord.plan.model import Plan, PlannedPhase
from pgcoord.plan.parsing import parse_plan
from pgcoord.plan.writing import write_plan
from pgcoord.planner.rows import Changes, change_plan

HEAD = "# T\n\n"
PHASE_1 = "## Phase 1: a\n\nx\n\n"


def parse(text: str, **options: Any) -> Plan:
    return parse_plan(text, name="plan.md", **options)


def phase(below_heading: str) -> PlannedPhase:
    [phase] = parse(f"# T\n## Phase 1: a\n{below_heading}").phases
    return phase


def problems(text: str, **options: Any) -> list[str]:
    """The faults of `text` as `line: what is expected`."""
    with pytest.raises(InvalidPlan) as caught:
        parse(text, **options)
    assert all(problem.startswith("plan.md:") for problem in caught.value.problems)
    return [problem.removeprefix("plan.md:") for problem in caught.value.problems]


def test_a_plan_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.md"
    path.write_text(
        """# User login

Lets people log in.

- safely

## Phase 1: Tables
Workflow: build
Hours: 1.5
Priority: 10
Files: sql/a.sql, `sql/b c.sql`
Max attempts: 3
Timeout: 1h 30m

Create the tables.

## Notes

Keep them small.

## Phase Two — The "API" {x} `$(rm)`

depends ON: Phase 1
Write it.
## Phase 3 - Panel
Depends on: none

Draw it.
"""
    )
    assert read_plan(path) == Plan(
        title="User login",
        description="Lets people log in.\n\n- safely",
        phases=(
            PlannedPhase(
                number=1,
                title="Tables",
                prompt="Create the tables.",
                depends_on=(),
                line=7,
                workflow="build",
                hours=1.5,
                priority=10,
                files=("sql/a.sql", "sql/b c.sql"),
                max_attempts=3,
                timeout=timedelta(minutes=90),
            ),
            PlannedPhase(2, 'The "API" {x} `$(rm)`', "Write it.", (1,), 21),
            PlannedPhase(3, "Panel", "Draw it.", (), 25),
        ),
        notes=(f"{path}:17: 'Notes' is not part of phase 1, nor of any",),
    )


def test_a_plan_becomes_the_feature_that_the_database_takes() -> None:
    plan = parse(
        "# T\nd\n## Phase 1: a\nHours: 0.1\nWorkflow: w\nPriority: 0\nFiles: f\n"
        "Max attempts: 2\nTimeout: 90s\n\nx\n## Phase 2: b\nHours: 0.2\nTimeout: 500ms\n\ny\n"
    )
    assert json.loads(json.dumps(plan.feature())) == {
        "title": "T",
        "description": "d",
        "estimated_hours": 0.3,
        "phases": [
            {
                "phase_number": 1,
                "title": "a",
                "prompt_content": "x",
                "depends_on_phases": [],
                "workflow_type": "w",
                "estimated_hours": 0.1,
                "priority": 0,
                "files": ["f"],
                "max_attempts": 2,
                "timeout_seconds": 90,
            },
            {
                "phase_number": 2,
                "title": "b",
                "prompt_content": "y",
                "depends_on_phases": [1],
                "estimated_hours": 0.2,
                "timeout_seconds": 0.5,
            },
        ],
    }


@pytest.mark.parametrize("line", ["Budget: $2.50", "**Budget:** 2.5", "budget : 2.5 USD"])
def test_a_budget_stands_below_the_title(line: str) -> None:
    feature = parse(f"# T\n\n{line}\nd\n{PHASE_1}").feature()
    assert (feature["description"], feature["max_cost_usd"]) == ("d", 2.5)
    [problem] = problems(f"# T\nBudget: much\n{PHASE_1}")
    assert problem == "2: Budget: expected US dollars such as \"Budget: $5\", not 'much'"
    assert "max_cost_usd" not in parse(f"# T\nd\nBudget: x\n{PHASE_1}").feature()


def test_keys_missing_in_a_plan_are_missing_in_its_feature() -> None:
    feature = parse(HEAD + PHASE_1).feature()
    assert feature["estimated_hours"] is None
    assert feature["phases"] == [
        {"phase_number": 1, "title": "a", "prompt_content": "x", "depends_on_phases": []}
    ]


@pytest.mark.parametrize(
    "heading",
    [
        "## Phase 1: Make it",
        "## phase ONE: Make it",
        "## Phase 1:Make it",
        "## Phase 1 : Make it",
        "## Phase 1 - Make it",
        "## Phase 1 – Make it",  # noqa: RUF001
        "## Phase One—Make it",
        "   ##   Phase\t01: Make it ##",
        "Phase 1: Make it\n---",
    ],
)
def test_a_heading_of_a_phase(heading: str) -> None:
    [phase] = parse(f"{HEAD}{heading}\nx").phases
    assert (phase.number, phase.title, phase.line) == (1, "Make it", 3)


def test_number_words_go_up_to_twenty() -> None:
    words = (
        "One Two Three Four Five Six Seven Eight Nine Ten Eleven Twelve Thirteen Fourteen "
        "Fifteen Sixteen Seventeen Eighteen Nineteen Twenty"
    )
    plan = parse(HEAD + "".join(f"## Phase {word}: t\nx\n" for word in words.split()))
    assert [phase.number for phase in plan.phases] == list(range(1, 21))


@pytest.mark.parametrize(
    "heading",
    [
        "Phase: x",
        "Phase 1",
        "Phase 1:",
        "Phase one",
        "Phase X: y",
        "Phase X - y",
        "Phase 1 Make it",
        "Phase1: x",
        "Phase 1.5: x",
        "Phase 1-2: x",
        "Phase -1: x",
        "Phase Twenty-One: x",
        "Phase 9999999: x",
        "Phase \u0661: x",
        "Phase",
        "**Phase 1: x**",
    ],
)
def test_a_malformed_phase_is_an_error(heading: str) -> None:
    [problem] = problems(f"{HEAD}## {heading}\n\nx")
    assert problem.startswith(f"3: not a phase: {heading!r}; expected ")


def test_a_phase_underlined_over_two_lines_is_an_error() -> None:
    [problem] = problems(f"{HEAD}Phase 1:\nx\n---\n\nx")
    assert problem.startswith("3: not a phase: 'Phase 1:\\nx'; expected ")


@pytest.mark.parametrize(
    "heading",
    [
        "### Notes",
        "### Step 2: x",
        "### As in phase 2",
        "#### Part one",
        "> ## Phase 2: x",
        "- a\n  ## Phase 2: x",
        "1. a\n   ## Phase 2: x",
        "```\n## Phase 2: x\n```",
        "~~~~md\n```\n## Phase 2: x\n```\n~~~~",
        "<!--\n## Phase 2: x\n-->",
        "    ## Notes",
    ],
)
def test_other_headings_are_text(heading: str) -> None:
    text = f"y\n\n{heading}\n\ny"
    assert phase(f"\n{text}\n").prompt == text


@pytest.mark.parametrize(
    "heading", ["## Risks", "# Another", "## Phase out the old API", "## Phases", "Notes\n---"]
)
def test_a_phase_ends_where_another_section_begins(heading: str) -> None:
    between = parse(f"{HEAD}{PHASE_1}{heading}\n\nlong\n\n## Phase 2: b\n\ny\n")
    after = parse(f"{HEAD}{PHASE_1}## Phase 2: b\n\ny\n\n{heading}\n\nlong\n")
    title = heading.strip("#\n -")
    for plan, line, number in ((between, 7, 1), (after, 11, 2)):
        assert [each.prompt for each in plan.phases] == ["x", "y"]
        note = f"plan.md:{line}: {title!r} is not part of phase {number}, nor of any"
        assert plan.notes == (note,)


def test_a_section_that_several_phases_have_is_part_of_each() -> None:
    tasks = "x\n\n## Tasks\n\n- a"
    text = f"## Phase 1: a\n\n{tasks}\n\n## Phase 2: b\n\n{tasks}\n\n## Risks\n\nlong\n"
    assert [each.prompt for each in parse(HEAD + text).phases] == [tasks, tasks]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("### Phase 2: b\n\ny", 7),
        ("## Step 2: b\n\ny", 7),
        ("## Milestone 2\n\ny", 7),
        ("## The second: phase 2\n\ny", 7),
        ("    ## Phase 2: b\n\ny", 7),
        ("\t## Phase 2: b\n\ny", 7),
        ("<details>\n## Phase 2: b\n</details>\n\ny", 8),
        ("<details>\n## 🚀 Phase 2: b\n</details>\n\ny", 8),
        ("## ~~Phase 2: b~~\n\ny", 7),
        ("## ✅ Phase 2: b\n\ny", 7),
        ("## Phase 2: b (COMPLETE)\n\ny", 7),
        ("## [x] Phase 2: b\n\ny", 7),
    ],
)
def test_a_heading_that_almost_names_a_phase_is_a_fault(text: str, line: int) -> None:
    found = problems(f"{HEAD}{PHASE_1}{text}\n")
    assert str(line) in {each.split(":")[0] for each in found}


@pytest.mark.parametrize("mark", ["🚀 ", "👩‍💻 ", "[ ] ", "▶️ ", "— "])
def test_a_mark_before_a_phase_says_nothing(mark: str) -> None:
    plan = parse(f"{HEAD}{PHASE_1}## {mark}Phase 2: b\n\ny\n")
    assert [(each.number, each.title) for each in plan.phases] == [(1, "a"), (2, "b")]


def test_a_plan_of_other_headings_names_them_all() -> None:
    found = problems(f"{HEAD}### Phase 1: a\n\nx\n\n### Step 2: b\n\ny\n")
    assert [each.split(":")[0] for each in found] == ["1", "3", "7"]
    assert "pgcoord plan" in found[0]


@pytest.mark.parametrize(
    ("title", "body", "needs"),
    [
        ("c", "**Goal:** all of it\n\n**Depends on:** Phase 1\n\ny", (1,)),
        ("c", "Some words.\n\n**Dependencies:** Phases 1 and 2", (1, 2)),
        ("c", "Some words.\n> Depends on: 1", (1,)),
        ("c", "y\n\n- *Blocked by*: phase 1.", (1,)),
        ("c", "**Depends on:** Phase 1\n\ny", (1,)),
        ("c", "Depends on phase 1.\n\ny", (1,)),
        ("c", "y\n\n**Requires:** Phase 1", (1,)),
        ("c", "y\n\nAfter: phases 1 and 2", (1, 2)),
        ("c", "y\n\nAbhängig von: Phase 1", (1,)),
        ("c", "y\n\n**Depends on**: —", ()),
        ("c", "y\n\nDepends on numpy 1.", (2,)),
        ("c", "y\n\nAfter: 5 minutes, try phase 1 again.", (2,)),
        ("c (after phase 1)", "y", (1,)),
        ("c [blocked by: 1]", "y", (1,)),
        ("c (depends on 1)", "y", (1,)),
        ("c [Depends on: none]", "y", ()),
        ("c", "y\n\n**Dependencies:** numpy 2, pandas", (2,)),
        ("c", "y\n\n```\nDepends on: 1\n```", (2,)),
        ("c", "Depends on: 1, 2\n\n**Depends on:** nothing but phase 1, really", (1, 2)),
    ],
)
def test_a_dependency_is_read_from_prose_and_title(
    title: str, body: str, needs: tuple[int, ...]
) -> None:
    plan = parse(f"{HEAD}{PHASE_1}## Phase 2: b\n\ny\n\n## Phase 3: {title}\n\n{body}\n")
    assert (plan.phases[2].title, plan.phases[2].depends_on) == ("c", needs)


@pytest.mark.parametrize(
    "text",
    [
        "y\n\n**Depends on:** phase 1, mostly",
        "y\n\nDepends on: 1\n\nDependencies: phase 2",
        "y\n\n**Dependencies:** the tables of phase 1",
        "### Dependencies\n\n- Phase 1 (tables)\n\n### Tasks\n\ny",
        "**Depends on:**\n1. Phase 1\n\ny",
    ],
)
def test_a_dependency_that_cannot_be_read_is_a_fault(text: str) -> None:
    plan = f"{HEAD}{PHASE_1}## Phase 2: b\n\ny\n\n## Phase 3: c\n\n{text}\n"
    [problem] = problems(plan)
    assert "Depends on: " in problem


@pytest.mark.parametrize(
    "line",
    [
        "## Phase No. 2: b",
        "## Phase #2: b",
        "## Phases 2-3: b",
        "## Phase-2: b",
        "Phase 2: b\n===",
        "## Étape 2 : b",
        "## ステップ2：b",  # noqa: RUF001
        "## 第2阶段: b",
    ],
)
def test_a_heading_that_names_a_phase_in_another_way_is_a_fault(line: str) -> None:
    [problem] = problems(f"{HEAD}{PHASE_1}{line}\n\ny\n")
    assert problem.startswith("7: ")
    assert "phase: " in problem


@pytest.mark.parametrize(
    "line",
    [
        "<h2>Phase 2: b</h2>",
        "**Phase 2: b**",
        "PHASE 2: b",
        "- [ ] Phase 2: b",
        "1. ## Phase 2: b",
    ],
)
def test_a_line_that_begins_a_phase_to_people_is_named(line: str) -> None:
    text = f"{HEAD}{PHASE_1}{line}\n\ny\n"
    [note] = parse(text).notes
    assert note.startswith(f"plan.md:7: {line!r} is text")
    assert parse(f"{text}\n## Phase 2: b\n\ny\n").notes == ()
    assert parse(f"{HEAD}{PHASE_1}```\n{line}\n```\n").notes == ()


@pytest.mark.parametrize("line", ["## Day 2 operations", "## Phasing in", "## Part of it"])
def test_a_section_is_no_fault_that_only_sounds_like_a_phase(line: str) -> None:
    [note] = parse(f"{HEAD}{PHASE_1}{line}\n\ny\n").notes
    assert "is not part of phase 1" in note


@pytest.mark.parametrize(
    ("title", "body", "line"),
    [
        ("c — depends on phase 1", "y", 11),
        ("c", "y\n\nIt can start once Phase 1 is merged.", 15),
        ("c", "**Abhängigkeiten:** Phase 1\n\ny", 13),
        ("c", "| Depends on | Hours |\n|---|---|\n| Phase 1 | 2 |\n\ny", 15),
    ],
)
def test_an_unread_possible_dependency_is_named(title: str, body: str, line: int) -> None:
    front = f"{HEAD}{PHASE_1}## Phase 2: b\n\ny\n\n"
    [note] = parse(f"{front}## Phase 3: {title}\n\n{body}\n").notes
    assert note.lower().startswith(f"plan.md:{line}: 'phase 1' is not read as a dependency")
    assert parse(f"{front}## Phase 3: c\nDepends on: 2\n\n{body}\n").notes == ()


@pytest.mark.parametrize(
    "text", ["After phase 2, do it.", "Blocks: Phase 4", "```\nafter phase 1\n```"]
)
def test_a_dependency_that_holds_already_is_not_named(text: str) -> None:
    plan = f"{HEAD}{PHASE_1}## Phase 2: b\n\ny\n\n## Phase 3: c\n\n{text}\n\ny\n"
    assert parse(f"{plan}\n## Phase 4: d\n\ny\n").notes == ()


def test_front_matter_and_pictures_may_stand_above_the_title() -> None:
    front = "---\ntitle: x\n---\n"
    badges = '<img src="a.png">\n\n[![ci](a.svg)](b) ![c](d)\n\n'
    plan = parse(f"{front}{badges}{HEAD}{PHASE_1}")
    assert (plan.title, plan.phases[0].line) == ("T", 10)
    assert plan.notes == ("plan.md:1: the front matter is not read: title",)


def test_what_the_front_matter_says_is_not_lost_in_silence() -> None:
    front = "---\n# of our editor\ntags:\n  - a: b\nmax attempts: 3\n---\n"
    assert parse(f"{front}{HEAD}{PHASE_1}").notes == (
        "plan.md:1: the front matter is not read: tags, max attempts",
    )
    expected = 'expected "Budget: $5" in the first line below the title'
    assert problems(f"---\nowner: dana\nbudget: 5\n---\n{HEAD}{PHASE_1}") == [
        f"3: budget: not read in front matter; {expected}"
    ]
    assert parse(f"---\n---\n{HEAD}{PHASE_1}").notes == ()


def test_a_budget_that_is_not_below_the_title_is_named() -> None:
    assert parse(f"# T\n\nAbout it.\n\nBudget: $5\n\n{PHASE_1}").notes == (
        "plan.md:5: 'Budget: $5' is text: as a budget it is the first line below the title",
    )


def test_lists_however_deep_do_not_hide_the_next_phase() -> None:
    plan = parse(HEAD + PHASE_1 + "- " * 30 + "deep\n\n## Phase 2: b\n\nx")
    assert [phase.number for phase in plan.phases] == [1, 2]
    [problem] = problems(HEAD + PHASE_1 + "- " * 300 + "deep\n\n## Phase 2: b\n\nx")
    assert problem.startswith("9: Markdown does not take this for a heading")


def test_a_phase_without_a_space_after_the_hashes_is_an_error() -> None:
    [problem] = problems(f"{HEAD}{PHASE_1}##Phase 2: b\n\nx\n")
    assert problem.startswith('7: Markdown does not take this for a heading: expected "## Phase 1')


@pytest.mark.parametrize(
    ("opening", "kind"), [("```", "code block"), ("~~~ md\n~~", "code block"), ("<!--", "comment")]
)
def test_a_phase_in_a_block_that_is_never_closed_is_an_error(opening: str, kind: str) -> None:
    text = f"{HEAD}{PHASE_1}{opening}\n\n## Phase 2: b\n\nx\n"
    line = text[: text.index("## Phase 2")].count("\n") + 1
    expected = f"{line}: this phase is inside the {kind} of line 7, which is never closed"
    assert problems(text) == [expected]


def test_a_block_that_is_never_closed_but_hides_no_phase_is_text() -> None:
    assert phase("\n```\nx\n").prompt == "```\nx"


def test_phases_may_stand_in_any_order() -> None:
    plan = parse(f"{HEAD}## Phase 2: b\n\ny\n{PHASE_1}")
    assert [(phase.number, phase.depends_on) for phase in plan.phases] == [(1, ()), (2, (1,))]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1, 2", (1, 2)),
        ("2,1", (2, 1)),
        ("Phase 1, Phase 2", (1, 2)),
        ("1 and 2", (1, 2)),
        ("phases One and Two", (1, 2)),
        ("1, and 2", (1, 2)),
        ("None", ()),
    ],
)
def test_dependencies(value: str, expected: tuple[int, ...]) -> None:
    plan = parse(f"{HEAD}{PHASE_1}## Phase 2: b\n\nx\n## Phase 3: c\nDepends on: {value}\n\nx")
    assert plan.phases[2].depends_on == expected


def test_a_phase_that_names_no_dependencies_depends_on_the_one_before() -> None:
    plan = parse(HEAD + "".join(f"## Phase {n}: t\n\nx\n" for n in (1, 2, 3)))
    assert [phase.depends_on for phase in plan.phases] == [(), (1,), (2,)]


def test_keys_end_at_the_first_other_line() -> None:
    read = phase("Hours: 1\nPriority: 2\nBuild it.\nHours: 3\n")
    assert (read.hours, read.priority, read.prompt) == (1, 2, "Build it.\nHours: 3")


def test_keys_may_stand_below_a_blank_line() -> None:
    read = phase("\n \nHours: 1\n\nNote: x\n")
    assert (read.hours, read.prompt) == (1, "Note: x")


@pytest.mark.parametrize(
    "text",
    [
        "\nNote: this is text",
        "\nTODO: x\nand more",
        "Steps:\n1. a",
        "http://example.com/a",
        "See http://example.com: it says",
        "This is not a key: it has five words",
        "    Hours: 3",
        "- an item: x",
        "**Beware**: x",
        "`Hours`: 3",
    ],
)
def test_prose_with_a_colon_is_the_prompt(text: str) -> None:
    assert phase(text).prompt == text.removeprefix("\n")


def test_a_gate_needs_no_prompt_and_no_workflow() -> None:
    text = "# T\n## Phase 1: a\n\nx\n\n## Phase 2: Look\nGate: may it be merged?\n"
    plan = parse(text)
    assert plan.phases[1].row() == {
        "phase_number": 2,
        "title": "Look",
        "prompt_content": "",
        "depends_on_phases": [1],
        "gate": "may it be merged?",
    }
    assert write_plan(plan.title, "", [each.row() for each in plan.phases]).endswith(
        "## Phase 2: Look\nDepends on: 1\nGate: may it be merged?\n\n\n"
    )
    assert problems(text.replace("may it be merged?", ""))[0].startswith(
        "7: Gate: expected what is asked"
    )


def test_a_plan_that_begins_with_phase_0_is_numbered_from_1() -> None:
    plan = parse(f"{HEAD}## Phase 0: a\nx\n## Phase 1: b\nx\n## Phase 2: c\nDepends on: 0\n\nx\n")
    assert [(each.number, each.depends_on) for each in plan.phases] == [
        (1, ()),
        (2, (1,)),
        (3, (1,)),
    ]
    assert plan.notes == (
        "plan.md:3: phases are numbered from 1, so each has the number after its own",
    )


@pytest.mark.parametrize(
    "heading",
    ["✅ Phase 1: a", "[x] Phase 1: a", "~~Phase 1: a~~", "Phase 1: a (COMPLETE)", "Phase 1: a ✔️"],
)
def test_a_phase_marked_as_done_is_completed_or_a_fault(heading: str) -> None:
    text = f"{HEAD}## {heading}\n\n## Phase 2: b\n\nx\n"
    assert "marked as done" in problems(text)[0]
    done, after = parse(text, takes_done=True, workflows=[], has_default=True).phases
    assert (done.title, done.row()["status"], after.is_completed) == ("a", "completed", False)
    assert parse(write_plan("T", "", [done.row()]), takes_done=True).phases == (
        replace(done, line=3),
    )


@pytest.mark.parametrize("above", ["", "**Goal:** g\n\n", "Hours: 1\n"])
@pytest.mark.parametrize("mark", ["**Files:**", "Files:", "- **Files**:"])
def test_files_may_be_a_list(mark: str, above: str) -> None:
    listed = "- Create: `a/b.py`\n- [ ] Modify: `c.py:12-30`\n* tests/x.py: new\n- the others"
    found = phase(f"{above}{mark}\n\n{listed}\n\nDo it.")
    assert found.files == ("a/b.py", "c.py", "tests/x.py")
    assert found.prompt.endswith(f"{listed}\n\nDo it.")


def test_parameters_are_filled_in_and_never_looked_at_again() -> None:
    text = (
        "# Deploy to {param.to}\n## Phase 1: Build {param.to}\nLock: {param.to}\n"
        "Files: src/{param.to}/a.py, b.py\n"
        "Env: MODE={param.mode} TITLE='a b'\n\n"
        "{param.mode} {{param.mode}} {result.1.x} {param} {PARAM.to}\n"
    )
    values = {"to": "prod", "mode": "{param.to}\n## Phase 2: x"}
    plan = parse(text, parameters=values)
    assert plan.title == "Deploy to prod"
    [row] = [each.row() for each in plan.phases]
    assert row["title"] == "Build prod"
    assert row["lock"] == "prod"
    assert row["files"] == ["src/prod/a.py", "b.py"]
    assert row["environment"] == {"MODE": values["mode"], "TITLE": "a b"}
    assert row["prompt_content"] == (
        f"{values['mode']} {{param.mode}} {{result.1.x}} {{param}} {{PARAM.to}}"
    )
    assert "Env: 'MODE={param.mode}' 'TITLE=a b'" in write_plan(
        "T", "", [parse(text).phases[0].row()]
    )


def test_a_parameter_without_a_value_and_a_value_without_a_parameter_are_faults() -> None:
    text = f"{HEAD}## Phase 1: a\n\nx {{param.mode}}\n"
    assert problems(text, parameters={"mod": "x"}) == [
        "1: --set mod: there is no {param.mod} in the plan; did you mean mode?",
        "5: {param.mode} has no value: 'run', 'submit' and 'schedule' take one by --set mode=VALUE;"
        " {{param.mode}} is this text itself",
    ]


def test_a_parameter_in_a_name_of_the_configuration_is_a_fault_of_its_line() -> None:
    text = f"{HEAD}## Phase 1: a\nWorkflow: {{param.a}}\nCheck: x-{{param.a}}\n\nx\n"
    assert problems(text, parameters={"a": "x"}) == [
        "4: Workflow is a name of pgcoord.toml: {param.a} is not filled there",
        "5: Check is a name of pgcoord.toml: {param.a} is not filled there",
    ]


def test_stored_text_that_looks_like_a_parameter_is_written_escaped() -> None:
    words = "{param.a} {{param.b}} {{{param.c}}} {{param.d} {param.e}}"
    row = phase(f"Gate: {words}\nEnv: A='{words}'\n\n{words}").row() | {"title": words}
    text = write_plan(words, words, [row], literal=True)
    read = parse(text, parameters={})
    assert (read.title, read.description, [each.row() for each in read.phases]) == (
        words,
        words,
        [row],
    )


def test_a_comma_within_a_value_is_kept_and_a_final_comma_needs_quotes() -> None:
    actual = phase("""Env: A=x,y B="1," C='p, q=r' D="1,E=2"\n\nx""")
    assert dict(actual.environment) == {"A": "x,y", "B": "1,", "C": "p, q=r", "D": "1,E=2"}
    assert parse(write_plan("T", "", [actual.row()])).phases[0].environment == actual.environment


def test_an_unknown_key_is_an_error_with_the_way_to_write_text() -> None:
    assert problems(f"{HEAD}## Phase 1: a\nTODO: x\n\nx") == [
        "4: TODO: unknown key; expected one of Depends on, When, Lock, Env, Workflow, Hours, "
        "Priority, Files, Gate, Check, Max attempts, Timeout; "
        "if it is text, put a blank line before it"
    ]
    [problem] = problems(f"{HEAD}## Phase 1: a\n\nHours: 1\nDepend on: 1\n\nx")
    assert problem.startswith("6: Depend on: unknown key; did you mean Depends on?")


@pytest.mark.parametrize(
    "line", ["**Hours:** 1", "**Hours**: 1", "- Hours: 1", "* **hours**: 1", "\n- **Hours:** 1"]
)
def test_a_key_in_markup_is_an_error_rather_than_text(line: str) -> None:
    [problem] = problems(f"{HEAD}## Phase 1: a\n{line}\n\nx")
    assert problem.endswith('expected it without markup: "Hours: value"')


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Depends on:", """expected phases such as "1, 2" or "none", not ''"""),
        ("Depends on: 1-3", "expected phases"),
        ("Depends on: 1,,2", "expected phases"),
        ("Env: MODE", "expected NAME=value"),
        ("Env: A=1 A=2", "a variable is given twice"),
        ("Env: A=3.11, B=14", "a comma after 'A=3.11': variables are separated by spaces"),
        ("Env: A=3.11,B=14", "a comma after 'A=3.11'"),
        ('Env: A="1", B=2', "a comma after"),
        ("Env: A=1,", "a comma after 'A=1'"),
        ("Lock:", 'expected a name such as "staging"'),
        ("When: never", "expected completed, failed or always, not 'never'"),
        ("When: failed", "failed: expected phases that it depends on"),
        ("Depends on: 0", "there is no phase 0"),
        ("Workflow:", "expected the name of a workflow, not nothing"),
        ("Hours: 0", "expected a number above 0, not '0'"),
        ("Hours: nan", "expected a number above 0"),
        ("Hours: 1e999", "expected a number above 0"),
        ("Priority: 101", "expected a whole number from 0 to 100, not '101'"),
        ("Priority: high", "expected a whole number"),
        ("Priority: 1.5", "expected a whole number"),
        ("Files: a,,b", "expected names separated by commas, not 'a,,b'"),
        ("Max attempts: 0", "expected a whole number from 1 to 1000000"),
        ("Timeout: 0s", "expected a duration above 0"),
        ("Timeout: 3 weeks", 'expected a duration such as "90s"'),
    ],
)
def test_a_bad_value_is_an_error(line: str, expected: str) -> None:
    [problem] = problems(f"{HEAD}## Phase 1: a\n{line}\n\nx")
    assert problem.startswith(f"4: {line.partition(':')[0]}: {expected}")


def test_a_repeated_key_is_an_error() -> None:
    actual = problems(f"{HEAD}## Phase 1: a\nHours: 1\nhours: 2\n\nx")
    assert actual == ["5: hours: repeated; first on line 4"]


@pytest.mark.parametrize("body", ["", "\n \n\t\n", "Hours: 1\n", "\n\u00a0\n"])
def test_a_phase_without_a_prompt_is_an_error(body: str) -> None:
    expected = "3: phase 1 is empty: expected its prompt below the heading and keys"
    assert problems(f"{HEAD}## Phase 1: a\n{body}") == [expected]


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([2], ["2: phase 2 is here, but no phase 1"]),
        ([1, 3], ["5: phase 3 is here, but no phase 2"]),
        ([1, 5], ["5: phase 5 is here, but no phases 2 to 4"]),
        ([1, 1], ["5: phase 1 is here a second time: the first one is on line 2"]),
        ([1, 999999], ["5: phase 999999 is here, but no phases 2 to 999998"]),
    ],
)
def test_numbers_have_no_gap_and_no_duplicate(numbers: list[int], expected: list[str]) -> None:
    assert problems("# T\n" + "".join(f"## Phase {n}: t\n\nx\n" for n in numbers)) == expected


def test_a_faulty_heading_may_be_the_phase_that_others_miss() -> None:
    text = f"# T\n{PHASE_1}## Phase X: b\n\nx\n\n## Phase 3: c\nDepends on: 2\n\nx"
    [problem] = problems(text)
    assert problem.startswith("6: not a phase: 'Phase X: b'")


def graph(**depends_on: str) -> str:
    """A plan of phases p1, p2… each of five lines, with its `Depends on:` in the second."""
    phases = (f"## Phase {n[1:]}: t\nDepends on: {on}\n\nx\n\n" for n, on in depends_on.items())
    return "# T\n" + "".join(phases)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (graph(p1="none", p2="1, 7"), ["8: Depends on: there is no phase 7"]),
        (graph(p1="1"), ["3: Depends on: phase 1 cannot depend on itself"]),
        (graph(p1="none", p2="1, 1"), ["8: Depends on: phase 1 is named more than once"]),
        (graph(p1="none", p2="4", p3="2", p4="2"), ["8: Depends on: cycle 2 → 4 → 2"]),
        (graph(p1="2", p2="3", p3="1"), ["3: Depends on: cycle 1 → 2 → 3 → 1"]),
        (
            graph(p1="2", p2="1", p3="4", p4="3, 5", p5="4"),
            [
                "3: Depends on: cycle 1 → 2 → 1",
                "13: Depends on: cycle 3 → 4 → 3",
                "18: Depends on: cycle 4 → 5 → 4",
            ],
        ),
    ],
)
def test_impossible_dependencies_are_errors(text: str, expected: list[str]) -> None:
    assert problems(text) == expected


def test_a_cycle_through_an_unsaid_dependency_says_so() -> None:
    [problem] = problems(graph(p1="2") + "## Phase 2: t\n\nx")
    assert problem == (
        "3: Depends on: cycle 1 → 2 → 1 "
        '(without "Depends on:", a phase depends on the one before it)'
    )


@given(
    st.integers(2, 12).flatmap(
        lambda n: st.lists(
            st.sets(st.integers(1, n)).map(sorted).map(tuple), min_size=n, max_size=n
        )
    )
)
def test_a_plan_is_refused_exactly_if_no_order_of_its_phases_exists(
    edges: list[tuple[int, ...]],
) -> None:
    """Compared with an order found by brute force."""
    waiting = dict(enumerate(edges, 1))
    while ready := [n for n, on in waiting.items() if not set(on) & waiting.keys()]:
        for number in ready:
            del waiting[number]
    text = graph(**{f"p{n}": ",".join(map(str, on)) or "none" for n, on in enumerate(edges, 1)})
    if not waiting:
        assert [phase.depends_on for phase in parse(text).phases] == edges
        return
    for problem in problems(text):
        path = problem.rpartition(" cycle ")[2].split(" → ")
        if len(path) > 1:
            assert path[0] == path[-1]
            assert len(set(path)) == len(path) - 1
            assert all(int(b) in edges[int(a) - 1] for a, b in pairwise(path))


def test_more_than_200_phases_are_an_error() -> None:
    phases = [f"## Phase {n}: t\n\nx\n" for n in range(1, 202)]
    assert len(parse(HEAD + "".join(phases[:200])).phases) == 200
    expected = "603: too many phases: a plan has at most 200"
    assert problems(HEAD + "".join(phases)) == [expected]


def test_a_plan_that_would_take_long_to_parse_is_an_error() -> None:
    expected = "too many headings, list items and quotations: a plan has at most 20000"
    for block in ("## x\n", "  - x\n", "> x\n", "12. x\n"):
        with case(block):
            fault = f"20003: {expected}"  # two headings and two empty lines come before
            assert fault in problems(HEAD + "## Phase 1: a\n\n" + block * 100_000)
    assert len(parse(HEAD + "## Phase 1: a\n\n" + "### x\n" * 19_998).phases) == 1
    code = HEAD + "## Phase 1: a\n\n```\n" + "x\n" * 99_994 + "```\n"
    assert len(parse(code).phases) == 1
    assert problems(code + "x\n") == ["100001: too many lines: a plan has at most 100000"]


def test_an_undeclared_workflow_is_an_error_where_they_are_known() -> None:
    text = f"{HEAD}## Phase 1: a\nWorkflow: Biuld\n\nx"
    assert parse(text).phases[0].workflow == "Biuld"
    expected = ["4: Workflow: 'Biuld' is not declared; did you mean build?"]
    assert problems(text, workflows={"build", "test"}) == expected
    assert problems(text, workflows=()) == ["4: Workflow: 'Biuld' is not declared"]
    assert parse(text, workflows={"Biuld"}).phases[0].workflow == "Biuld"


def test_a_phase_needs_a_workflow_where_none_is_the_default() -> None:
    text = HEAD + PHASE_1
    parse(text, has_default=False)
    parse(text, workflows={"build"})
    [problem] = problems(text, workflows={"build"}, has_default=False)
    assert problem.startswith("3: no workflow: expected a line `Workflow: name`")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["1: no phase", "1: no title"]),
        ("# T\n", ["1: no phase"]),
        (PHASE_1, ["1: no title"]),
        (f"{PHASE_1}# T\n", ["1: no title"]),
        (f"#\n{PHASE_1}", ["1: no title"]),
        (f"# T\n\n# U\n{PHASE_1}", ["3: a second title: the first is on line 1"]),
        (f"by me\n\n# T\n{PHASE_1}", ["1: text above the title"]),
    ],
)
def test_title_and_phases_are_required(text: str, expected: list[str]) -> None:
    actual = problems(text)
    assert len(actual) == len(expected)
    assert all(a.startswith(b) for a, b in zip(actual, expected, strict=True))


def test_a_comment_may_stand_above_the_title() -> None:
    assert parse(f"<!-- SPDX -->\n\n# T\n{PHASE_1}").title == "T"


def test_a_title_of_two_lines_becomes_one() -> None:
    assert parse(f"A long\ntitle\n===\n{PHASE_1}").title == "A long title"


@pytest.mark.parametrize("text", ["```\n# no title\n```", "> # no title", "- # no title"])
def test_a_line_that_only_looks_like_a_title_is_description(text: str) -> None:
    assert parse(f"# T\n{text}\n\n{PHASE_1}").description == text


def test_all_faults_are_reported_at_once_in_the_order_of_lines() -> None:
    found = problems(
        "# T\n## Phase 1: a\nDepends on: 2\nHours: x\nOwner: me\n## Phase X: b\n"
        "## Phase 2: c\n\nx\n# U\n",
    )
    assert [problem.split(":")[0] for problem in found] == ["2", "3", "4", "5", "6", "6"]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "plan.md"
    with pytest.raises(InvalidPlan, match=r"plan\.md: no such file or directory$"):
        read_plan(path)
    with pytest.raises(InvalidPlan, match=r"is a directory$"):
        read_plan(tmp_path)
    path.write_bytes(b"# T\n\n\xff")
    with pytest.raises(InvalidPlan, match=r"plan\.md:3: not UTF-8: byte 0xff at offset 5$"):
        read_plan(path)


def test_a_byte_order_mark_is_no_part_of_the_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.md"
    path.write_text(HEAD + PHASE_1, encoding="utf-8-sig")
    assert read_plan(path).title == "T"


@pytest.mark.parametrize(("character", "name"), [("\0", "U+0000"), ("\ud800", "U+D800")])
def test_a_value_that_the_database_cannot_store_is_an_error(character: str, name: str) -> None:
    actual = problems(f"{HEAD}## Phase 1: a\n\nx{character}\n")
    assert actual == [f"5: unusable character {name}: a plan is plain text"]


def test_line_ends_and_trailing_spaces_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "plan.md"
    path.write_bytes(b"# T\r\na\r\nb\r\n\r\n## Phase 1: a\r\nHours: 1\r\n\r\n  x \r\ny\rz\n\r\n \n")
    plan = read_plan(path)
    assert plan.description == "a\r\nb"
    assert (plan.phases[0].hours, plan.phases[0].prompt) == (1, "  x \r\ny\rz")


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_a_prompt_is_kept_to_the_letter(text: str) -> None:
    prompt = f"\u00a0\nx{text}x\n\x0c"  # neither of these lines is blank to Markdown
    assert phase(f"\n\n{prompt}\n\n").prompt == prompt


# A line that begins with one of these decides what the lines after it mean.
MARKDOWN = st.sampled_from([
    "# ", "## ", "##", "Phase 1: x", "Phase 2", "Depends on: 1", "Hours: ", "**", "```", "~~~",
    "- ", "> ", "    ", "\t", "<!--", "-->", "<div>", "---", "===", "\n", "\n\n", "\r\n", "\r",
    "x", "1. ", "\u2028", "\x0b", "\u00a0", "\0", "[a]: b", "|",
])  # fmt: skip


@given(st.lists(MARKDOWN | st.text(max_size=3)).map("".join))
def test_arbitrary_text_is_a_plan_or_an_invalid_plan(text: str) -> None:
    for candidate in (text, f"{HEAD}{PHASE_1}{text}"):
        try:
            plan = parse(candidate, workflows={"build"})
        except InvalidPlan as error:
            assert error.problems  # noqa: PT017
        else:
            assert all(phase.prompt in candidate for phase in plan.phases)


WORDS = st.text(string.ascii_letters + string.digits + "'\"{}$;|&éß→", min_size=1, max_size=9)
TITLES = st.lists(WORDS, min_size=1, max_size=4).map(" ".join)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    count = draw(st.integers(1, 6))
    phases = [
        PlannedPhase(
            number=number,
            title=draw(TITLES),
            prompt=draw(st.lists(TITLES, min_size=1).map("\n\n".join)),
            depends_on=tuple(draw(st.permutations(range(1, number))))[: draw(st.integers(0, 3))],
            line=0,
            workflow=draw(st.none() | WORDS),
            hours=draw(st.none() | st.integers(1, 9999).map(lambda n: n / 100)),
            priority=draw(st.none() | st.integers(0, 100)),
            files=tuple(draw(st.lists(WORDS, max_size=3))),
            max_attempts=draw(st.none() | st.integers(1, 99)),
            timeout=draw(st.none() | st.integers(1, 10**6).map(lambda n: timedelta(seconds=n))),
        )
        for number in range(1, count + 1)
    ]
    return Plan(draw(TITLES), draw(st.lists(TITLES).map("\n\n".join)), tuple(phases))


def written(plan: Plan) -> tuple[str, list[int]]:
    """`plan` as text, with the lines of its phases' headings."""
    text, lines = f"# {plan.title}\n\n{plan.description}\n\n", []
    for phase in plan.phases:
        lines.append(text.count("\n") + 1)
        seconds = phase.timeout and phase.timeout.total_seconds()
        keys = {
            "Depends on": " and ".join(map(str, phase.depends_on)) or "none",
            "When": phase.when,
            "Lock": phase.lock,
            "Workflow": phase.workflow,
            "Hours": phase.hours,
            "Priority": phase.priority,
            "Files": ", ".join(phase.files) or None,
            "Max attempts": phase.max_attempts,
            "Timeout": seconds and f"{seconds:.0f}s",
        }
        block = [f"{key}: {value}\n" for key, value in keys.items() if value is not None]
        random.shuffle(block)
        text += f"## Phase {phase.number}: {phase.title}\n{''.join(block)}\n{phase.prompt}\n\n"
    return text, lines


@settings(max_examples=40)
@given(plans())
def test_a_plan_that_is_written_reads_back(plan: Plan) -> None:
    text, lines = written(plan)
    read = parse(text)
    assert [phase.line for phase in read.phases] == lines
    assert read.title == plan.title
    assert read.description == plan.description
    assert change_plan(text, Changes({}, {})) == text.replace("\r\n", "\n")
    plain = {"line": 0, "taken": (), "body": (0, 0)}
    assert [vars(phase) | plain for phase in read.phases] == list(map(vars, plan.phases))


@pytest.mark.parametrize(
    "prompt",
    [
        ("- " + "x y " * 20 + "\n") * 6_000,
        ("- " + "x y " * 20 + "\n") * 19_990,
        "x" * 5_000_000,
    ],
    ids=["many items", "very many items", "one word"],
)
def test_a_prompt_of_megabytes_is_read(prompt: str) -> None:
    assert phase(f"\n{prompt}").prompt == prompt.rstrip("\n")


def test_unread_dependencies_are_named() -> None:
    graph = "```mermaid\ngraph TD\n    A[Phase 1: a] --> B[Phase 2: b]\n```\n\n"
    words = "Phase 2 can only start after Phase 1.\n\n"
    below = "say it by 'Depends on: …' below the heading of each phase"
    plan = parse(f"{HEAD}{words}{graph}{PHASE_1}## Phase 2: b\n\ny\n")
    assert plan.notes == (
        f"plan.md:3: dependencies that are named above the phases are not read: {below}",
        f"plan.md:5: the dependencies that this graph draws are not read: {below}",
    )


@pytest.mark.parametrize(
    "text",
    [
        "T\n=\n\nPhase 1: a\n---\n\nx\n",
        "# T\n\n## [ ] Phase 1: a\n\nx\n",
        "# T\n\n## 🚀 Phase 1: a\n\nx\n",
    ],
)
def test_what_is_read_as_a_plan_looks_like_one(text: str) -> None:
    assert len(parse(text).phases) == 1
    assert looks_like_plan(text)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("# T\n\n**Phase 1: a**\nx\n\n**Phase 2: b**\ny\n", [3, 6]),
        ("<h1>T</h1>\n<h2>Phase 1: a</h2>\n<p>x</p>\n<h2>Phase 2: b</h2>\n", [2, 4]),
        ("# Phase 1: a\nx\n\n# Phase 2: b\ny\n", [1, 4]),
        ("T\n\nPHASE 1 - a\nx\n\nPHASE 2 - b\ny\n", [3, 6]),
        ("# T\n\n## 第一步: a\n\n## 2단계: b\n\n## Etap 3: c\n", [3, 5, 7]),
    ],
)
def test_a_file_without_a_phase_names_what_its_author_took_for_one(
    text: str, lines: list[int]
) -> None:
    told = [each for each in problems(text) if "no phase" not in each and "no title" not in each]
    assert [int(each.partition(":")[0]) for each in told] == lines


@pytest.mark.parametrize(
    "text",
    [
        "## Phase 3: c\n\nDepends\u00a0on: 1\n\nx\n",
        "## Phase 3: c\nDepends on:\u00a01\n\nx\n",
        "## Phase 3: c\n\nx\n\nDepends\u00a0on phase\u00a01.\n",
        "## Phase 3: c (depends\u202fon\u00a01)\n\nx\n",
        "## Phase\u00a03\u00a0: c\n**Depends\u00a0on:** 1\n\nx\n",
    ],
)
def test_blanks_that_do_not_break_are_blanks(text: str) -> None:
    plan = parse(f"{HEAD}{PHASE_1}## Phase 2: b\n\nx\n\n{text}")
    assert plan.phases[2].depends_on == (1,)


def test_dependencies_in_a_section_of_no_phase_are_named() -> None:
    phases = f"{HEAD}{PHASE_1}## Phase 2: b\n{{}}\ny\n\n"
    section = "## Dependencies\n\n- Phase 2 depends on Phase 1\n- Phase 3 depends on Phase 1\n"
    below = "say it by 'Depends on: …' below the heading of each phase"
    said = f"plan.md:13: dependencies that are named outside of a phase are not read: {below}"
    assert said in parse(phases.format("") + section).notes
    assert said not in parse(phases.format("Depends on: 1") + section).notes
