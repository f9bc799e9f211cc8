"""The planner itself: its plans for descriptions, without database and network."""

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from graphlib import TopologicalSorter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cases import case

from pgcoord.errors import InvalidConfiguration, InvalidInput
from pgcoord.plan.parsing import parse_plan
from pgcoord.plan.writing import write_plan
from pgcoord.planner.analysis import analyse
from pgcoord.planner.items import files_in
from pgcoord.planner.phases import MOST_PHASES, phases_by_hours
from pgcoord.planner.planning import as_markdown, build
from pgcoord.planner.prompts import load_template
from pgcoord.planner.structure import Feature, described_by, read_structure
from pgcoord.planner.survey import Repository

FEATURES = sorted((Path(__file__).parent / "features").glob("*.md"))
PLANS = sorted((Path(__file__).parents[1] / "plans").glob("*.md"))


def load(path: Path) -> Feature:
    """Read a feature of tests/planner/features: title, lines `hours:` and `kind:`, description."""
    title, *lines = path.read_text().splitlines()
    values = {}
    while match := re.fullmatch(r"(hours|kind): (.+)", lines[0]):
        values[match[1]] = match[2]
        lines.pop(0)
    hours = float(values["hours"]) if "hours" in values else None
    return Feature(title.removeprefix("# "), "\n".join(lines), hours, values.get("kind", "feature"))


def rows(description: str, hours: float | None = None, title: str = "A feature") -> Any:
    return build(Feature(title, description, hours)).phases


def graph(description: str, hours: float | None = None, title: str = "A feature") -> dict[str, Any]:
    """Each phase by title, with the titles of those that it needs."""
    found = rows(description, hours, title)
    titles = {row["phase_number"]: row["title"] for row in found}
    return {row["title"]: {titles[each] for each in row["depends_on_phases"]} for row in found}


@pytest.mark.parametrize("path", FEATURES, ids=lambda path: path.stem)
def test_each_feature_has_its_expected_graph(path: Path) -> None:
    actual = []
    for row in build(load(path)).phases:
        needs = ", ".join(map(str, row["depends_on_phases"])) or "none"  # type: ignore[call-overload]
        hours = f"{row['estimated_hours']:g} h" if "estimated_hours" in row else "-"
        actual.append(f"{row['phase_number']} | {needs} | {hours} | {row['title']}")
    assert actual == path.with_suffix(".graph").read_text().splitlines()


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_the_numbering_of_an_author_is_kept(path: Path) -> None:
    text = path.read_text()
    hours = re.search(r"^hours: (\d+)\n", text, re.MULTILINE)
    described = described_by(text.replace(hours[0], "") if hours else text)
    feature = replace(described, hours=float(hours[1]) if hours else None)
    actual = []
    for row in build(feature).phases:
        needs = ", ".join(map(str, row["depends_on_phases"])) or "none"  # type: ignore[call-overload]
        actual.append(f"{row['phase_number']} | {needs} | {row['title']}")
    assert actual == path.with_suffix(".graph").read_text().splitlines()


def test_there_are_forty_plans_in_different_styles() -> None:
    assert len(PLANS) >= 40


def test_there_are_fifteen_features_of_different_kinds() -> None:
    assert len(FEATURES) >= 15


@pytest.mark.parametrize(
    ("hours", "count"),
    [(0.5, 1), (2, 1), (2.5, 2), (6, 2), (6.5, 3), (12, 3), (12.5, 4), (16, 4), (40, 10)],
)
def test_hours_decide_how_many_phases_there_are(hours: float, count: int) -> None:
    assert phases_by_hours(hours) == count


def test_hours_are_shared_out_whole() -> None:
    for path in FEATURES:
        feature = load(path)
        shares = [row.get("estimated_hours") for row in build(feature).phases]
        if feature.hours:
            assert sum(map(float, shares)) == pytest.approx(feature.hours)  # type: ignore[arg-type]
            assert all(share and share > 0 for share in shares)  # type: ignore[operator]
        else:
            assert shares == [None] * len(shares)


def test_a_list_of_phases_in_the_specification_is_kept() -> None:
    description = """\
Backend analyzes: 5 phases needed
  - Phase 1: Database Schema (blocking all)
  - Phase 2: Backend API (depends on [1])
  - Phase 3: Frontend UI (depends on [1])
  - Phase 4: Integration Tests (depends on [2,3])
  - Phase 5: Documentation (depends on [1])
"""
    assert graph(description) == {
        "Database Schema": set(),
        "Backend API": {"Database Schema"},
        "Frontend UI": {"Database Schema"},
        "Integration Tests": {"Backend API", "Frontend UI"},
        "Documentation": {"Database Schema"},
    }


def test_what_surrounds_a_list_of_work_is_in_the_prompts_and_no_phase_of_its_own() -> None:
    found = rows(
        "## Tasks\n\nUse only what Postgres 14 has.\n\nThe steps:\n\n"
        "- Add a table\n- Build the page\n\nAsk Dana if in doubt.\n"
    )
    assert [each["title"] for each in found] == ["Add a table", "Build the page"]
    for each in found:
        assert "only what Postgres 14 has" in each["prompt_content"]
        assert "Ask Dana" in each["prompt_content"]
        assert "The steps:" not in each["prompt_content"]


def test_blanks_that_do_not_break_are_blanks() -> None:
    found = graph("1. Add a table\n2. Build a page\n3. Build another (depends\u00a0on\u00a01)")
    assert found == {
        "Add a table": set(),
        "Build a page": {"Add a table"},
        "Build another": {"Add a table"},
    }


@pytest.mark.parametrize(
    ("number", "digits"),
    [("一", 1), ("十", 10), ("十二", 12), ("二十", 20), ("二十三", 23), ("7", 7)],
)
def test_numbers_of_steps_may_be_in_chinese(number: str, digits: int) -> None:
    feature = Feature("x", f"## 第{number}步 甲\n\nA\n\n## 步骤 {digits + 1}: 乙\n\nB\n")
    assert [each.number for each in read_structure(feature).items] == [digits, digits + 1]


def test_a_description_that_says_little_gets_tests_and_documents_beside_each_other() -> None:
    assert graph("Multi-phase test", 10, "Test Feature") == {
        "Test Feature": set(),
        "Tests": {"Test Feature"},
        "Documentation": {"Test Feature"},
    }


def test_sentences_are_split_where_they_name_another_layer() -> None:
    actual = graph(
        "Support complains. Add an audit table to the database, record every change in the API"
        " and show the history on the order page. Then document it in docs/audit.md."
    )
    table, record, show, document = actual
    assert actual[record] == actual[show] == {table}
    assert actual[document] == {record, show}


def test_phases_that_name_the_same_file_are_not_parallel() -> None:
    apart = "- Report revenue (reports/a.py)\n- Report refunds (reports/b.py)\n"
    assert graph(apart, 6) == {"Report revenue": set(), "Report refunds": set()}
    together = apart.replace("b.py", "a.py")
    assert graph(together, 6)["Report refunds"] == {"Report revenue"}


def test_numbers_mean_an_order_where_the_layers_contradict_them() -> None:
    found = rows(
        "1. Download from the API\n2. Load into the database\n3. Validate the prices\n"
        "4. Dashboard of it\n5. Alert on failure in Grafana\n",
        20,
    )
    assert [row["depends_on_phases"] for row in found] == [[], [1], [2], [3], [3]]


def test_work_out_of_scope_is_in_the_prompts_and_no_phase() -> None:
    found = rows(
        "## Work\n\n- Add a table for votes\n- Add an endpoint to vote\n\n"
        "## Out of scope\n\n- Add a page of results\n",
        4,
    )
    assert [row["title"] for row in found] == ["Add a table for votes", "Add an endpoint to vote"]
    assert all(
        "Not part of this:\n\n- Add a page of results" in row["prompt_content"] for row in found
    )


def test_tasks_that_are_ticked_are_done_already() -> None:
    actual = graph("- [x] Create the table\n- [ ] Add the endpoint\n- [ ] Build the page\n", 6)
    assert list(actual) == ["Add the endpoint", "Build the page"]


def test_criteria_go_to_the_phases_that_they_are_about() -> None:
    _, api, page = rows(
        "- Create a table of comments\n- Add an endpoint for comments\n"
        "- Show comments on the page\n\n"
        "## Acceptance criteria\n\n- The endpoint refuses 1 MB\n- Nobody is surprised\n",
        6,
    )
    assert "The endpoint refuses 1 MB" in api["prompt_content"]
    assert "The endpoint refuses 1 MB" not in page["prompt_content"]
    assert "Nobody is surprised" in page["prompt_content"]


def test_a_prompt_has_its_own_phase_in_detail_and_of_others_a_line() -> None:
    first, api, _ = rows(
        "1. Database schema: a table\n\n   with these columns: id, body\n"
        "2. Backend API: an endpoint\n\n   which answers in pages\n3. Frontend: a page\n",
        8,
    )
    assert "with these columns" in first["prompt_content"]
    assert "with these columns" not in api["prompt_content"]
    assert "- Phase 1, Database schema: a table\n" in api["prompt_content"]
    assert "phase 2 of 3" in api["prompt_content"]
    assert "pgcoord report failed" in api["prompt_content"]
    assert "at the same time\n\n- Phase 3, Frontend" in api["prompt_content"]


def test_a_code_block_that_is_never_closed_stays_in_its_phase() -> None:
    actual = rows("- Add a table\n\n  ```sql\n  create table a ();\n- Add an endpoint\n", 8)
    assert len(actual) >= 2
    actual = rows("Fix this:\n\n```\nls\n\n## Background\n\nold", 8, "Fix the build")
    text = write_plan("T", None, actual)
    assert [each.row() for each in parse_plan(text, name="plan").phases] == actual


@pytest.mark.parametrize(
    ("text", "files"),
    [
        ("Edit src/app.py, ./web/a.ts and Makefile.", ["src/app.py", "web/a.ts", "Makefile"]),
        ("See https://example.com/a.html, e.g. with Node.js 3.11.", []),
        ("call(os.environ), v1.2.md", ["v1.2.md"]),
        ("../other/a.py /etc/passwd.conf .github/workflows/ci.yml", [".github/workflows/ci.yml"]),
    ],
)
def test_files_are_known_by_their_names(text: str, files: list[str]) -> None:
    assert list(files_in(text)) == files


def test_files_of_the_repository_are_found_by_name_and_content() -> None:
    paths = [f"src/misc/file{number}.py" for number in range(50)]
    repository = Repository(
        (*paths, "app/models/invoice.py", "app/views/invoice_page.py", "tests/test_invoice.py"),
        {"overdue": frozenset({"src/misc/file7.py"})},
    )
    planned = build(Feature("Mark `overdue` invoices", "Fix invoice.py.", 2), repository)
    [row] = planned.phases
    assert row["files"] == ["app/models/invoice.py"]
    assert "- `app/models/invoice.py`\n" in str(row["prompt_content"])
    assert "`src/misc/file7.py`" in str(row["prompt_content"])
    assert "`src/misc/file8.py`" not in str(row["prompt_content"])
    new = build(Feature("x", "Write src/new.py", 2), repository).phases[0]
    assert "- `src/new.py` (new)" in str(new["prompt_content"])


def test_people_can_replace_the_template(tmp_path: Path) -> None:
    path = tmp_path / "prompt.md"
    path.write_text("{{ number }}/{{ total }} {{ title }}: {{ work | join(';') }}")
    feature = Feature("T", "- Add a table\n- Add an endpoint", 4)
    found = build(feature, template=load_template(path)).phases
    assert [row["prompt_content"] for row in found] == [
        "1/2 Add a table: Add a table",
        "2/2 Add an endpoint: Add an endpoint",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\n{% for x in %}", r"prompt.md:2: not a template"),
        ("{{ nothing }}", r"template: 'nothing' is undefined"),
        ("{{ 1 / 0 }}", r"template: division by zero"),
        ("{# nothing #}", r"template: it produces an empty prompt"),
        (None, r"prompt.md: no such file"),
    ],
)
def test_a_faulty_template_is_named(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "prompt.md"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidConfiguration, match=words):
        build(Feature("T"), template=load_template(path))


def test_a_plan_is_analysed() -> None:
    plan = [
        {"phase_number": 1, "title": "Schema", "estimated_hours": 2, "files": ["a.sql"]},
        {"phase_number": 2, "title": "One", "depends_on_phases": [1], "files": ["x.py", "y.py"]},
        {"phase_number": 3, "title": "Two", "depends_on_phases": [1], "files": ["x.py"]},
        {"phase_number": 4, "title": "Three", "depends_on_phases": [3], "files": ["a.sql"]},
        {"phase_number": 5, "title": "Docs", "depends_on_phases": [1], "prompt_content": "x" * 41},
    ]
    analysis = analyse(plan, 2, most_tokens=10)
    assert analysis.waves == [[1], [2, 3, 5], [4]]
    assert analysis.hours is None
    assert (analysis.critical_path, analysis.critical_hours) == ([1, 3, 4], None)
    assert analysis.as_json()["estimated_tokens"]["5"] == 11
    assert analysis.warnings == [
        "phase 2 (One) and phase 3 (Two) may run together, and both name x.py",
        "no phase depends on phase 2 (One), although others come after it",
        "the prompt of phase 5 (Docs) has about 11 tokens, more than 10",
    ]


@pytest.mark.parametrize(("slots", "hours"), [(1, 11), (2, 7), (3, 5), (9, 5)])
def test_the_time_with_slots_is_that_of_the_line(slots: int, hours: float) -> None:
    needs: dict[int, list[int]] = {1: [], 2: [1], 3: [1], 4: [1], 5: [2], 6: [1]}
    lasts = {1: 1, 2: 2, 3: 2, 4: 2, 5: 2, 6: 2}
    plan = [
        {"phase_number": each, "depends_on_phases": needs[each], "estimated_hours": lasts[each]}
        for each in needs
    ]
    analysis = analyse(plan, slots)
    assert (analysis.hours_with_slots, analysis.critical_hours) == (hours, 5)


def test_a_phase_that_can_never_start_is_reported() -> None:
    plan = [
        {"phase_number": 1, "title": "A", "depends_on_phases": [2], "estimated_hours": 1},
        {"phase_number": 2, "title": "B", "depends_on_phases": [1], "estimated_hours": 1},
        {"phase_number": 3, "title": "C", "depends_on_phases": [9], "estimated_hours": 1},
        [1],
        {"phase_number": "x"},
    ]
    analysis = analyse(plan, 3)
    assert (analysis.waves, analysis.critical_path, analysis.hours_with_slots) == ([], [], None)
    assert analysis.warnings == [
        "phase 1 (A) can never start: a prerequisite waits for it or never starts",
        "phase 2 (B) can never start: a prerequisite waits for it or never starts",
        "phase 3 (C) needs phase 9, which is not in the plan",
    ]


def test_the_same_plan_comes_out_whatever_the_order_of_sets(tmp_path: Path) -> None:
    path = next(each for each in FEATURES if each.stem == "web_comments")
    program = (
        "import json, sys; from pathlib import Path; from test_planner import *\n"
        "files = Repository(tuple(sorted(str(each) for each in Path('pgcoord').rglob('*.py'))))\n"
        f"print(json.dumps(build(load(Path({str(path)!r})), files).phases))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={
                **os.environ,
                "PYTHONHASHSEED": seed,
                "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[:2])),
            },
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1
    assert len(json.loads(said.pop())) == 4


WORDS = st.sampled_from(
    [
        "Add",
        "a",
        "the",
        "table",
        "database",
        "API",
        "endpoint",
        "page",
        "button",
        "tests",
        "document",
        "README",
        "then",
        "finally",
        "and",
        ",",
        ".",
        ";",
        ":",
        "after 2",
        "depends on [1]",
        "(3h)",
        "`x`",
        "src/a.py",
        "src/b.py",
        "docs/x.md",
        "#",
        "##",
        "-",
        "1.",
        "2.",
        "*",
        "```",
        ">",
        "<!--",
        "Phase 1:",
        "\n",
        "\n\n",
        "\n  Step",
        "fix",
        "bug",
        "Expected:",
        "\t",
        "é",
        "😀",
    ]
)
DESCRIPTIONS = st.one_of(
    st.text(max_size=400),
    st.lists(WORDS, max_size=120).map(" ".join),
    st.lists(
        st.tuples(st.sampled_from(["- ", "1. ", "## ", "* [ ] ", ""]), st.lists(WORDS, max_size=8)),
        max_size=20,
    ).map(lambda lines: "\n".join(mark + " ".join(words) for mark, words in lines)),
)


def has_letters(title: str) -> bool:
    return bool(title.strip().strip("#").strip())


HOURS = st.none() | st.floats(0.1, 500).map(lambda hours: round(hours, 2))
TITLES = st.text(min_size=1, max_size=80).filter(has_letters) | st.lists(WORDS, min_size=1).map(
    lambda words: " ".join(["x", *words])
)


def is_storable(text: str) -> bool:
    return not re.search("[\0\ud800-\udfff]", text)


DESCRIBED = (TITLES.filter(is_storable), DESCRIPTIONS.filter(is_storable), HOURS)


@settings(max_examples=10)
@given(*DESCRIBED)
def test_whatever_is_described_the_plan_is_valid(
    title: str, description: str, hours: float | None
) -> None:
    check_plan(title, description, hours)


@pytest.mark.scale
@settings(max_examples=300)
@given(*DESCRIBED)
def test_whatever_is_described_in_many_ways_the_plan_is_valid(
    title: str, description: str, hours: float | None
) -> None:
    check_plan(title, description, hours)


def check_plan(title: str, description: str, hours: float | None) -> None:
    feature = Feature(title, description, hours)
    planned = build(feature)
    assert planned == build(feature)
    actual: list[Any] = planned.phases
    numbers = [row["phase_number"] for row in actual]
    assert numbers == list(range(1, len(actual) + 1))
    assert 1 <= len(actual) <= MOST_PHASES
    needs = {row["phase_number"]: set(row["depends_on_phases"]) for row in actual}
    assert all(each < number for number in needs for each in needs[number])
    assert list(TopologicalSorter(needs).static_order())
    assert len({row["title"] for row in actual}) == len(actual)
    assert all(row["title"].strip() and row["prompt_content"].strip() for row in actual)
    plan = parse_plan(as_markdown(feature, actual), name="plan")
    assert [phase.row() for phase in plan.phases] == actual
    if hours:
        assert sum(row["estimated_hours"] for row in actual) == pytest.approx(hours, abs=0.05)
    above = {number: set(needs[number]) for number in numbers}
    for number in numbers:
        above[number].update(*(above[each] for each in needs[number]))
    for one, other in combinations(actual, 2):
        if set(one.get("files", ())) & set(other.get("files", ())):
            assert one["phase_number"] in above[other["phase_number"]]


@settings(max_examples=30)
@given(st.text(max_size=300).filter(is_storable))
def test_any_text_describes_a_feature_or_nothing(text: str) -> None:
    feature = described_by(text)
    assert "\n" not in feature.title


@pytest.mark.parametrize("length", [40_000, pytest.param(150_000, marks=pytest.mark.scale)])
def test_no_description_takes_long(length: int) -> None:
    for part in (
        *("a", " ", "[", "(", "`", "a_", "src/", "Add, ", "(depends on ", "1. "),
        *("Add a table. ", "| a ", "> ", "word "),
    ):
        with case(part), suppress(InvalidInput):  # it names too much
            assert build(Feature("T", part * (length // len(part)), 8)).phases


def test_a_description_beyond_all_measure_is_refused() -> None:
    with pytest.raises(InvalidInput, match="200,001 characters; 200,000 are planned at most"):
        read_structure(Feature("T", "x" * 200_001))
    with pytest.raises(InvalidInput, match="201 pieces of work; 200 are planned at most"):
        read_structure(Feature("T", "- Add a table\n" * 201))


def test_a_key_that_nothing_has_is_named() -> None:
    text = "- T001 Add the table\n- T002 Add the page (depends on T001, T009)\n"
    planned = build(Feature("A feature", text))
    assert planned.phases[1]["depends_on_phases"] == [1]
    assert planned.notes == ("T002 comes after T009, which is not among them: ignored",)


@pytest.mark.parametrize(
    "text",
    [
        "1. Add one\n2. Add two\n3. Add three\n4. Join them (after steps 1-3)\n",
        "- T1 [P] Add one\n- T2 [P] Add two\n- T3 [P] Add three\n- T4 Join (depends on T1-T3)\n",
        "| # | Task | After |\n|---|---|---|\n| 1 | One | |\n| 2 | Two | |\n| 3 | Three | |\n"
        "| 4 | Join | 1–3 |\n",  # noqa: RUF001
        "| # | Task | After |\n|---|---|---|\n| 1 | One | |\n| 2 | Two | |\n| 3 | Three | |\n"
        "| 4 | Join | all |\n",
    ],
)
def test_a_range_names_all_its_phases(text: str) -> None:
    needs = rows(text)[3]["depends_on_phases"]
    found = rows(text)
    reached, open_ones = set(), set(needs)
    while open_ones:
        reached |= open_ones
        open_ones = {n for o in open_ones for n in found[o - 1]["depends_on_phases"]} - reached
    assert reached == {1, 2, 3}
