"""The example of an ADW, end to end: each phase its issue, its worktree, its report."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support import git
from support.coordination import watching
from support.fake_github import REPOSITORY, TOKEN, FakeGitHub, serving_github
from support.serving import served

from pgcoord.configuration.model import GitHub
from pgcoord.configuration.reading import read_configuration

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT = "adws/adw_sdlc_complete_iso.py"


@pytest.fixture
def github() -> Iterator[tuple[FakeGitHub, str]]:
    fake = FakeGitHub()
    with serving_github(fake) as url:
        yield fake, url


async def test_adws_work_on_their_issues_and_hand_their_work_on(
    dsn: str, tmp_path: Path, github: tuple[FakeGitHub, str]
) -> None:
    project = tmp_path / "project"
    (project / "adws").mkdir(parents=True)
    (project / SCRIPT).write_text((EXAMPLES / SCRIPT).read_text())

    git(project, "init", "--quiet", "--initial-branch", "main")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "first")
    git(project, "config", "user.name", "adw")
    git(project, "config", "user.email", "adw@example.org")

    fake, url = github
    example = read_configuration(EXAMPLES / "agents.toml").workflows["adw_sdlc_complete_iso"]
    assert example.command[:3] == ("uv", "run", SCRIPT)
    work = replace(
        example,
        command=(sys.executable, *example.command[2:]),
        directory=project,
        default=True,
    )
    environment = {
        "GITHUB_TOKEN": TOKEN,
        "GITHUB_API_URL": url,
        "GITHUB_REPOSITORY": REPOSITORY,
    }
    settings = GitHub(REPOSITORY, url)
    async with (
        watching(dsn) as watch,
        served(dsn, tmp_path, work=work, environment=environment, github=settings),
    ):
        await watch.submit(
            "Write one.txt: 1",
            ("Write two.txt: 2", [1]),
            ("Write three.txt: 3", [1]),
            ("Write four.txt: 4", [2, 3]),
            "Think about it",
        )
        rows = await watch.until_statuses(*["completed"] * 4, "failed")
        await watch.until_found("select from pgcoord.errand", nothing=True)
        last = await watch.one("select branch from pgcoord.results where phase_number = 4")
    branch, failed = last["branch"], rows[4]["issue_number"]
    assert rows[4]["error_message"] == "ValueError: the issue does not say what to write"
    assert {issue["state_reason"] for issue in fake.issues if issue["number"] != failed} == {
        "completed"
    }
    assert fake.issue(failed)["state_reason"] == "not_planned"
    assert git(project, "ls-tree", "--name-only", branch).split() == [
        "adws",
        "four.txt",
        "one.txt",
        "three.txt",
        "two.txt",
    ]
    assert git(project, "log", "-1", "--format=%s", branch).startswith(
        "Feature #1 - Phase 4: Step 4 (#"
    )
