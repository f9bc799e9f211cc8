"""Workflows with `workspace = "worktree"`: the work of phases reaches their dependents."""

import os
import pwd
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import git
from support.coordination import Watch, running

from pgcoord.configuration.reading import read_configuration
from pgcoord.coordination.coordinator import Coordinator

TWO_SIDES = [("echo left > same", [1]), ("echo right > same", [1]), ("cat same", [2, 3])]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "first")
    git(folder, "branch", "develop")
    return folder


def coordinator(dsn: str, project: Path, settings: str = "", more: str = "") -> Coordinator:
    """One that runs the prompt of a phase as a shell script, in a worktree of the project."""
    path = project.parent / "pgcoord.toml"
    path.write_text(f"""
[workflow.work]
command = ["sh", "{{prompt_file}}"]
workspace = "worktree"
directory = "project"
default = true
{settings}
{more}
""")
    url = "http://127.0.0.1:9/api/v1/workflow-complete"  # nobody answers
    return Coordinator(
        dsn,
        read_configuration(path),
        runs_folder=project.parent / "runs",
        environment=os.environ | {"HOME": str(project.parent)},
        report_url=url,
    )


async def test_a_join_sees_the_work_of_both_its_parents(
    dsn: str, watch: Watch, project: Path
) -> None:
    git(project, "checkout", "--quiet", "-b", "elsewhere")
    report = f"{sys.executable} -m pgcoord report completed --patience 0"
    await watch.submit(
        'test "$(git log -1 --format=%s develop)" = first; echo 1 > one',
        (f"echo 2 > two; {report}", [1]),
        ("echo 3 > three", [1]),
        ('cat one two three && test -z "$PGCOORD_REPORT_URL"', [2, 3]),
    )
    async with running(coordinator(dsn, project, 'base = "develop"\nworktrees = "trees"')):
        await watch.until_statuses(*["completed"] * 4)
    last = await watch.one("select branch, result from pgcoord.results where phase_number = 4")
    feature = last["result"]["feature_branch"]
    assert last["branch"] == "pgcoord/queue-1-4"
    assert git(project, "ls-tree", "--name-only", feature).split() == ["one", "three", "two"]
    assert git(project, "log", "-1", "--format=%s", "pgcoord/queue-1-3") == "Step 3"
    assert git(project, "worktree", "list").count("\n") == 0
    assert not list((project.parent / "trees").iterdir())


async def test_a_conflict_fails_the_phase_before_its_command_runs(
    dsn: str, watch: Watch, project: Path
) -> None:
    await watch.submit("true", *TWO_SIDES)
    async with running(coordinator(dsn, project)):
        rows = await watch.until_statuses("completed", "completed", "completed", "failed")
    words = "pgcoord/queue-1-3 cannot be merged into pgcoord/queue-1-4: conflict in same"
    assert rows[3]["error_message"].startswith(f"{words}\nexited with status 69")


@pytest.mark.scale
async def test_a_resolver_is_not_run_for_a_phase_that_never_ran(
    dsn: str, watch: Watch, project: Path
) -> None:
    await watch.submit("true", *TWO_SIDES[:2], ("echo x > joined", [2, 3]))
    async with running(coordinator(dsn, project, "retry_prompt = 'echo {error} > mended'")):
        await watch.until_statuses("completed", "completed", "completed", "failed")
        resolved = f"{project.parent}/resolved"
        git(project, "worktree", "add", "--quiet", resolved, "pgcoord/queue-1-3")
        git(Path(resolved), "merge", "--quiet", "--strategy", "ours", "pgcoord/queue-1-2")
        git(project, "worktree", "remove", "--force", resolved)
        await watch.one("select pgcoord.retry_phase('queue-1-4')")
        await watch.until_statuses(*["completed"] * 4)
    found = git(project, "ls-tree", "--name-only", "pgcoord/feature-1").split()
    assert "joined" in found
    assert "mended" not in found


async def test_a_conflict_is_handed_to_another_workflow(
    dsn: str, watch: Watch, project: Path
) -> None:
    resolver = """
[workflow.resolver]
command = ["sh", "-c", '''grep -q "conflicts in same" && echo both > same &&
    echo '{{"cost_usd": 0.5}}' > $PGCOORD_RESULT_FILE''']
"""
    cost = """echo '{"cost_usd": 0.25}' > $PGCOORD_RESULT_FILE; test "$(cat same)" = both"""
    await watch.submit("true", *TWO_SIDES[:2], (cost, [2, 3]))
    async with running(coordinator(dsn, project, 'on_conflict = "resolver"', resolver)):
        await watch.until_statuses(*["completed"] * 4)
    spent = await watch.one("select cost_usd::float8 from pgcoord.results where phase_number = 4")
    assert spent == {"cost_usd": 0.75}
    assert git(project, "show", "pgcoord/feature-1:same") == "both"


async def test_a_retry_keeps_finished_work_without_running_the_command(
    dsn: str, watch: Watch, project: Path
) -> None:
    """The attempt before has done the work, and could not commit it."""
    ran = project.parent / "ran"
    result = """echo '{"summary": "did it", "cost_usd": 2}' > $PGCOORD_RESULT_FILE"""
    stuck = "mkdir $(git rev-parse --git-path index.lock)"
    again = f'test "{{result.1.summary}}" = "did it" && test -s work && cp {ran} runs'
    await watch.submit(
        f"echo $PGCOORD_ATTEMPT >> {ran}; echo x > work; {result}; {stuck}", (again, [1])
    )
    async with running(coordinator(dsn, project, 'retry_prompt = "{error}: {prompt}"')):
        (row, _) = await watch.until_statuses("failed", "blocked")
        assert "exited with status 65" in row["error_message"]
        (lock,) = (project / ".git/worktrees").glob("*/index.lock")
        lock.rmdir()
        await watch.one("select pgcoord.retry_phase('queue-1-1')")
        await watch.until_statuses("completed", "completed")
    assert ran.read_text() == "1\n"
    costs = await watch.all("select cost_usd::float8 from pgcoord.results where phase_number = 1")
    assert sum(each["cost_usd"] or 0 for each in costs) == 2


def give(folder: Path, user: str) -> None:
    """Let all of a folder belong to a user."""
    account = pwd.getpwnam(user)
    folder.mkdir(exist_ok=True)
    for place, _, files in os.walk(folder):
        for each in (place, *(os.path.join(place, file) for file in files)):
            os.chown(each, account.pw_uid, account.pw_gid)


@pytest.fixture
def open_project() -> Iterator[Path]:
    """A project of root in a place that all users may enter."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        project = Path(place, "project")
        git(Path(place), "init", "--quiet", "--initial-branch", "main", "project")
        git(project, "commit", "--quiet", "--allow-empty", "--message", "first")
        yield project


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may use another account")
async def test_worktrees_of_another_account_are_its_own(
    dsn: str, watch: Watch, open_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs no access to our Python or files; a repository of another user is refused with a
    message."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    settings = """user = "nobody"
check = ["test", "-e", "owner"]
worktrees = "trees" """
    await watch.submit("id -un > owner")
    async with running(coordinator(dsn, open_project, settings)):
        (row,) = await watch.until_statuses("failed")
        assert "belongs to another user than nobody" in row["error_message"]
        give(open_project, "nobody")
        give(open_project.parent / "trees", "nobody")
        await watch.one("select pgcoord.retry_phase('queue-1-1')")
        await watch.until_statuses("completed")
    safe = ("-c", f"safe.directory={open_project}")
    assert git(open_project, *safe, "show", "pgcoord/feature-1:owner") == "nobody"
