"""From a feature to its phases by every state: planned, edited, planned again, executed."""

import asyncio
import json
import re
import subprocess
from pathlib import Path
from typing import Any

from support.cases import case
from support.database import Connection, statuses
from support.desk import Desk
from support.serving import Site, served

from pgcoord.configuration.model import Planner

API = "/api/v1/planned-features"

DESCRIPTION = """\
Show changes in the panel as they happen.

1. Database schema: add the WebSocket tables
2. Backend API: implement WebSocket endpoints for real-time updates
3. Frontend components: build the WebSocket UI
4. Integration tests of the whole
5. Documentation of the WebSocket API
"""


async def make(site: Site, **feature: object) -> str:
    """Store a feature; return its path."""
    created = await site.client.post(API, json=feature)
    assert created.status_code == 201, created.text
    return str(created.headers["location"])


async def make_example(site: Site) -> str:
    return await make(
        site, title="WebSocket Migration", description=DESCRIPTION, estimated_hours=10
    )


async def post(site: Site, path: str, status: int = 200) -> Any:
    answer = await site.client.post(path)
    assert answer.status_code == status, answer.text
    return answer.json()


def inserted(conn: Connection) -> list[Any]:
    """The phases in the queue, as planned_features.plan would have them."""
    rows = conn.execute(
        "select jsonb_build_object('phase_number', phase_number,"
        " 'depends_on_phases', depends_on_phases) || phase_data as phase"
        " from phase_queue order by phase_number"
    ).fetchall()
    return [row["phase"] for row in rows]


async def test_the_example_of_the_specification_comes_out_with_its_parallel_phases(
    site: Site, conn: Connection
) -> None:
    path = await make_example(site)
    planned = await post(site, f"{path}/generate-implementation")
    edges = {each["phase_number"]: each["depends_on_phases"] for each in planned["phases"]}
    assert edges == {1: [], 2: [1], 3: [1], 4: [2, 3], 5: [1]}
    assert [each["estimated_hours"] for each in planned["phases"]] == [2, 3, 2, 2, 1]
    planning = planned["planning"]
    assert planning["source"] == "built-in"
    assert planning["waves"] == [[1], [2, 3, 5], [4]]
    assert (planning["critical_path"], planning["critical_path_hours"]) == ([1, 2, 4], 7)
    assert (planning["slots"], planning["hours"], planning["hours_with_slots"]) == (3, 10, 7)
    assert planning["warnings"] == planning["notes"] == []
    assert statuses(conn) == {}
    done = await post(site, f"{path}/execute")
    assert done["queued"] == 5
    assert inserted(conn) == planned["phases"]
    assert statuses(conn) == dict.fromkeys(range(1, 6), "queued")


async def test_executing_plans_first_where_there_is_no_plan(site: Site, conn: Connection) -> None:
    path = await make_example(site)
    assert (await post(site, f"{path}/execute"))["queued"] == 5
    assert (await post(site, f"{path}/execute"))["message"] == "its phases were queued before"
    late = await post(site, f"{path}/generate-implementation", 409)
    assert "its plan stays as it is" in late["reason"]
    assert len(statuses(conn)) == 5


async def test_a_plan_of_people_wins(site: Site, conn: Connection) -> None:
    plan = "Why.\n\n## Phase 1: Tables\nHours: 2\n\nAdd them.\n\n## Phase 2: View\n\nBuild it.\n"
    path = await make(site, title="Live", description=plan, estimated_hours=40)
    planned = await post(site, f"{path}/generate-implementation")
    assert planned["planning"]["source"] == "description"
    assert [each["prompt_content"] for each in planned["phases"]] == ["Add them.", "Build it."]
    await post(site, f"{path}/execute")
    assert inserted(conn) == planned["phases"]


async def test_a_faulty_plan_of_people_is_said_by_line_and_the_old_one_stays(site: Site) -> None:
    path = await make_example(site)
    before = (await post(site, f"{path}/generate-implementation"))["phases"]
    faulty = "## Phase 1: A\nDepends on: 2\n\nx\n\n## Phase 2: B\nDepends on: 1\n\ny\n"
    await site.client.patch(path, json={"description": faulty})
    refused = await post(site, f"{path}/generate-implementation", 422)
    assert refused["error"] == "invalid"
    assert refused["problems"] == ["description:2: Depends on: cycle 1 → 2 → 1"]
    assert (await site.client.get(path)).json()["phases"] == before


async def test_a_plan_can_be_made_again_before_its_execution(site: Site) -> None:
    path = await make(site, title="Votes", description="Add a table of votes.", estimated_hours=2)
    assert len((await post(site, f"{path}/generate-implementation"))["phases"]) == 1
    await site.client.patch(path, json={"description": DESCRIPTION, "estimated_hours": 10})
    again = await post(site, f"{path}/generate-implementation")
    assert len(again["phases"]) == 5
    assert again["version"] == (await site.client.get(path)).json()["version"]


async def test_people_are_warned_of_phases_that_overwrite_each_other(site: Site) -> None:
    plan = "\n".join(
        f"## Phase {number}: {title}\nDepends on: none\nFiles: src/app.py\n\nx\n"
        for number, title in ((1, "One"), (2, "Two"))
    )
    path = await make(site, title="Both", description=plan)
    planned = await post(site, f"{path}/generate-implementation")
    assert planned["planning"]["warnings"] == [
        "phase 1 (One) and phase 2 (Two) may run together, and both name src/app.py"
    ]


async def test_two_concurrent_executions_both_succeed(site: Site, conn: Connection) -> None:
    path = await make_example(site)
    answers = await asyncio.gather(*(post(site, f"{path}/execute") for _ in range(6)))
    assert sorted(each["queued"] for each in answers) == [0, 0, 0, 0, 0, 5]
    assert len(statuses(conn)) == 5


async def test_the_files_of_the_repository_are_in_the_prompts(dsn: str, tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "code", {"shop/export.py": "x", "notes.txt": "y"})
    async with served(dsn, tmp_path, leads=False, planner=Planner(repository)) as site:
        path = await make(site, title="Fix the crash of export.py", estimated_hours=1)
        [phase] = (await post(site, f"{path}/generate-implementation"))["phases"]
    assert phase["files"] == ["shop/export.py"]


def make_repository(folder: Path, files: dict[str, str]) -> Path:
    """A git repository with these files in its index."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    subprocess.run(["git", "init", "-q", "."], cwd=folder, check=True)
    subprocess.run(["git", "add", "."], cwd=folder, check=True)
    return folder


def test_the_command_line_plans_and_queues_a_feature(desk: Desk, conn: Connection) -> None:
    conn.execute(
        "insert into planned_features (id, title, description, estimated_hours)"
        " values (7, 'WebSocket Migration', %s, 10)",
        [DESCRIPTION],
    )
    output = desk.say("plan", "7")
    assert output.startswith("feature 7, WebSocket Migration: planned, 5 phases\n")
    assert re.search(r"4 +Integration tests of the whole +2, 3 +2 +\d+", output)
    assert "runs as 1, then 2, 3 and 5, then 4\n" in output
    assert "10 hours of work, 7 hours with 3 slots" in output
    assert "stored with feature 7" in output
    assert statuses(conn) == {}
    told = json.loads(desk.say("plan", "7", "--json", "--slots", "1"))
    assert told["planning"]["waves"] == [[1], [2, 3, 5], [4]]
    assert told["planning"]["hours_with_slots"] == 10
    assert "queued" in desk.say("plan", "7", "--execute")
    assert inserted(conn) == told["phases"]
    assert desk.say("plan", "7").startswith("feature 7, WebSocket Migration: queued, 5 phases\n")
    assert desk.say("execute", "7") == "feature 7: its phases were queued before"
    late = desk.call("plan", "7", "--again", "--yes")
    assert late.returncode == 3
    assert "its plan stays as it is" in late.stderr


def test_a_plan_is_written_edited_and_taken_back(desk: Desk, conn: Connection) -> None:
    conn.execute("insert into planned_features (title, description) values ('T', 'Add a table.')")
    output = desk.say("plan", "1", "--output", "plan.md")
    assert output.splitlines()[-1].startswith("wrote plan.md; stored with feature 1")
    text = (desk.folder / "plan.md").read_text()
    assert text.startswith("# T\n\nAdd a table.\n\n## Phase 1: T\nDepends on: none\n")
    desk.write("plan.md", f"{text}\n## Phase 2: View\n\nBuild it.\n")
    refused = desk.call("plan", "1", "--from", "plan.md")
    assert (refused.returncode, "there is no terminal to ask on" in refused.stderr) == (2, True)
    output = desk.say("plan", "1", "--from", "plan.md", "--yes")
    assert "a plan of your own, 2 phases" in output
    for _ in range(2):  # looking writes nothing
        assert "View" in desk.say("plan", "1")
    row = conn.execute("select plan from planned_features").fetchone()
    assert row
    assert [(each["title"], each["depends_on_phases"]) for each in row["plan"]] == [
        ("T", []),
        ("View", [1]),
    ]
    desk.write("plan.md", text.replace("none", "9"))
    faulty = desk.call("plan", "1", "--from", "plan.md")
    assert faulty.returncode == 5
    assert "plan.md:6: Depends on: there is no phase 9" in faulty.stderr
    assert conn.execute("select plan from planned_features").fetchone() == row
    kept = desk.call("plan", "1", "--output", "plan.md")
    assert (kept.returncode, (desk.folder / "plan.md").read_text()) == (
        2,
        text.replace("none", "9"),
    )
    # What it tells to do queues this plan, and no other one.
    [command] = re.findall(r"'pgcoord ([^']+)'", output.splitlines()[-1])
    assert desk.say(*command.split()).startswith("feature 1: 2 phases are queued")
    assert inserted(conn) == row["plan"]
    desk.say("plan", "1", "--output", "again.md")
    assert (
        (desk.folder / "again.md").read_text().startswith("# T\n\nAdd a table.\n\n## Phase 1: T\n")
    )


def test_a_text_file_is_planned_without_a_database(bare_desk: Desk) -> None:
    bare_desk.write("idea.txt", f"# Live updates\n\n{DESCRIPTION}")
    said = bare_desk.say("plan", "idea.txt", "--hours", "10", "--output", "plan.md")
    assert said.startswith("Live updates: planned, 5 phases\n")
    assert max(map(len, said.splitlines())) <= 100
    assert said.splitlines()[-1] == "wrote plan.md; 'pgcoord submit plan.md' queues it"
    again = json.loads(bare_desk.say("plan", "plan.md", "--json"))
    assert again["planning"]["source"] == "file"
    assert [each["depends_on_phases"] for each in again["phases"]] == [[], [1], [1], [2, 3], [1]]
    assert not (bare_desk.folder / ".pgcoord").exists()


def test_a_plan_fits_a_terminal_of_eighty_columns(bare_desk: Desk) -> None:
    bare_desk.write("idea.txt", f"Live updates\n\n{DESCRIPTION}")
    shown = bare_desk.start("plan", "idea.txt", "--hours", "10", tty=True, COLUMNS="80")
    assert shown.wait() == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown.output)
    assert max(map(len, plain.splitlines())) <= 80
    assert "Documentation of the WebSocket API" in plain


WRONG_USE: Any = [
    (["99"], 4, "there is no feature 99"),
    (["99999999999"], 2, "there is no feature 99999999999"),
    (["no.md"], 5, "no.md: no such file or directory"),
    (["empty.md"], 5, "empty.md: it is empty"),
    (["binary.md"], 5, "binary.md:1: not UTF-8: byte 0xff at offset 0"),
    (["nul.md"], 5, "nul.md: it contains a NUL character"),
    (["faulty.md"], 5, "faulty.md:3: phase 1 is empty"),
    (["idea.md", "--execute"], 2, "--execute"),
    (["idea.md", "--output", "no/where.md"], 7, "no/where.md: no such file or directory"),
    (["7", "--hours", "3"], 2, "--hours"),
    (["8", "--show"], 3, "feature 8 has no plan"),
]


def test_a_file_without_a_title_is_called_by_its_name_and_keeps_its_first_step(
    bare_desk: Desk,
) -> None:
    (bare_desk.folder / "add-two_factor").mkdir()
    for name, title in {
        "add-two_factor/tasks.md": "Add two factor",
        "dark-mode.md": "Dark mode",
    }.items():
        bare_desk.write(name, "- [ ] Add a table\n- [ ] Build the page\n")
        said = bare_desk.say("plan", name)
        assert said.startswith(f"{title}: planned, 2 phases\n")


def test_wrong_use_is_reported(desk: Desk, conn: Connection) -> None:
    conn.execute("insert into planned_features (id, title) values (8, 'T')")
    desk.write("empty.md", "\n")
    (desk.folder / "binary.md").write_bytes(b"\xff\xfe")
    desk.write("nul.md", "a\0b")
    desk.write("faulty.md", "# T\n\n## Phase 1: A\n")
    desk.write("idea.md", "Add a table")
    for arguments, status, words in WRONG_USE:
        with case(arguments, status, words):
            result = desk.call("plan", *arguments)
            assert (result.returncode, result.stdout) == (status, "")
            assert words in re.sub(r"[\s│]+", " ", result.stderr)
