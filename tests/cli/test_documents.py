"""What the documents say can be done: every command in them exists, every configuration is read."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from support.database import Connection
from support.desk import Desk
from support.help import help_of
from support.walk import blocks_of

from pgcoord.configuration.reading import read_configuration
from pgcoord.plan.parsing import parse_plan

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(document: Path) -> list[str]:
    """The code that is set off from the text, without its indentation or its fences."""
    text = document.read_text()
    fenced = re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    indented = re.findall(r"(?:^\n|\A)((?:(?: {4}.*)?\n)+)", text, re.MULTILINE)
    return fenced + ["\n".join(line[4:] for line in each.split("\n")) for each in indented]


def commands(document: Path) -> Iterator[str]:
    """Every call of pgcoord in the code of a document, set off or within a line."""
    within = re.findall(r"`([^`\n]+)`", document.read_text().replace("\n", " "))
    for code in (*within, *(line for block in blocks(document) for line in block.splitlines())):
        if re.match(r"(/\S+/)?pgcoord( |$)", code.strip()):
            yield code.strip()


def check(command: str) -> None:
    """Assert that its command and its options exist."""
    _, *words = shlex.split(command, comments=True)
    names = [
        word for word in words[: 2 if words[:1] in (["db"], ["schedule"]) else 1] if word[0] != "-"
    ]
    help = help_of(*names)
    assert help.exit_code == 0, f"there is no command {' '.join(names)}: {command}"
    if names == ["psql"]:  # hands on what it does not know
        return
    for option in (word.partition("=")[0] for word in words if word.startswith("-")):
        assert re.search(rf"(^| ){option}\b", help.output, re.MULTILINE), f"no {option}: {command}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: each.name)
def test_every_command_in_a_document_exists(document: Path) -> None:
    for command in commands(document):
        check(command)


def test_commands_are_found_and_wrong_ones_refused() -> None:
    assert "pgcoord doctor" in list(commands(ROOT / "docs" / "operating.md"))
    assert any("pgcoord run plan.md" in each for each in commands(ROOT / "README.md"))
    for wrong in ("pgcoord statsu", "pgcoord logs --folow 1.1", "pgcoord db begin"):
        with pytest.raises(AssertionError, match=r"^(there is no command|no -)"):
            check(wrong)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: each.name)
def test_every_link_of_a_document_leads_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        assert link.startswith("https://") or (document.parent / link).exists(), link


def test_every_configuration_in_the_documents_is_read(tmp_path: Path) -> None:
    found = [
        block
        for document in DOCUMENTS
        for block in blocks(document)
        if re.match(r"\s*\[(workflow\.|log\]|github\])", block)
    ]
    assert len(found) >= 5
    for number, block in enumerate(found):
        path = tmp_path / f"{number}.toml"
        path.write_text(block)
        read = read_configuration(path)
        assert read.workflows or read.github, block


def test_every_plan_below_a_configuration_fits_the_configuration(tmp_path: Path) -> None:
    pages = [list(blocks_of(ROOT / "docs" / name)) for name in ("recipes.md", "agents.md")]
    pairs = [(a, b) for page in pages for a, b in pairwise(page) if b.language == "markdown"]
    assert len(pairs) >= 7
    for configuration, plan in pairs:
        (tmp_path / "pgcoord.toml").write_text(configuration.code)
        read = read_configuration(tmp_path / "pgcoord.toml")
        has_default = read.default_workflow is not None
        text = plan.code.replace("{param.branch}", "main")
        parsed = parse_plan(text, name="recipe", workflows=read.workflows, has_default=has_default)
        for phase in parsed.phases:
            named = read.workflows[phase.workflow] if phase.workflow else read.default_workflow
            assert named is not None
            assert {name for name, _ in phase.environment} <= {*named.phase_environment}


def test_the_recipe_of_a_matrix_sets_the_variables_that_its_titles_name(
    desk: Desk, conn: Connection
) -> None:
    _, text = re.split(r"^## A matrix .*$", (ROOT / "docs/recipes.md").read_text(), flags=re.M)
    configuration, plan, *_ = re.findall(r"^```\w+\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    desk.write("pgcoord.toml", configuration)
    desk.say("submit", desk.write("matrix.md", plan), "--set", "branch=main")
    rows = conn.execute(
        "select phase_data ->> 'title' as title, phase_data -> 'environment' as environment"
        " from phase_queue where phase_number < 3 order by phase_number"
    ).fetchall()
    assert [(each["title"], each["environment"]) for each in rows] == [
        ("Python 3.11, Postgres 14", {"PYTHON": "3.11", "DATABASE": "14"}),
        ("Python 3.13, Postgres 18", {"PYTHON": "3.13", "DATABASE": "18"}),
    ]


def test_the_unit_of_the_service_is_one_to_systemd(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    (unit,) = (
        block
        for block in blocks(ROOT / "docs" / "operating.md")
        if block.strip().startswith("[Unit]")
    )
    assert "\nKillMode=process\n" in unit, "systemd would end the phases with the coordinator"
    check(
        next(line for line in unit.splitlines() if "ExecStart" in line).removeprefix("ExecStart=")
    )
    file = tmp_path / "pgcoord.service"
    file.write_text(
        unit.replace("/opt/pgcoord/bin/pgcoord", "/bin/true").replace("=pgcoord", "=root")
    )
    result = subprocess.run(
        ["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False
    )
    assert not [line for line in result.stderr.splitlines() if "pgcoord.service" in line]


def test_every_kind_of_finding_is_explained() -> None:
    text = (ROOT / "docs" / "operating.md").read_text()
    rows = re.findall(r"^\| (.+?) \| .* \| (?:SQL|`doctor`) \|$", text, re.MULTILINE)
    explained = {kind for row in rows for kind in row.split(", ")}
    shown = (ROOT / "sql" / "functions" / "70_checkup.sql").read_text()
    found = set(re.findall(r"^    select '(\w+)',", shown, re.MULTILINE))
    source = (ROOT / "pgcoord" / "doctor.py").read_text()
    found |= set(re.findall(r'Finding\(\s*"([\w-]+)"', source))
    assert found == explained


def test_the_example_names_existing_tests() -> None:
    workflows = read_configuration(ROOT / "examples" / "pgcoord.toml").workflows
    named = [word for word in workflows["tests"].command if word.startswith("tests/")]
    assert named
    assert [word for word in named if not (ROOT / word).exists()] == []
