"""From nothing to a pull request, as docs/agents.md says it; of the agent only its program is ours.

It writes the file that its prompt names, and what Claude Code writes.
"""

import os
import re
import sys
from pathlib import Path

import pytest
from support import git
from support.desk import Desk
from support.fake_github import REPOSITORY, TOKEN, FakeGitHub, serving_github

PAGE = Path(__file__).parents[2] / "docs" / "agents.md"

CLAUDE = """#!/bin/sh
file=$(grep -o '[a-z]*/[a-z]*[.][a-z]*' | head -n1)
test -z "$file" || { mkdir -p "$(dirname "$file")"; echo > "$file"; }
echo '{"type": "result", "result": "Wrote '"$file"'.", "total_cost_usd": 0.5}'
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository whose tests want what the plan asks for, and an agent in `bin`."""
    folder = tmp_path / "project"
    git(tmp_path, "init", "--quiet", "--bare", "origin")
    git(tmp_path, "init", "--quiet", "--initial-branch", "main", "project")
    (folder / "Makefile").write_text("test:\n\tls */*\n")
    (folder / ".gitignore").write_text(".pgcoord\npgcoord.toml\nplan.md\n")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "first")
    git(folder, "remote", "add", "origin", "../origin")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "claude").write_text(CLAUDE)
    (tmp_path / "bin" / "claude").chmod(0o755)
    return folder


@pytest.mark.scale
def test_three_phases_in_parallel_become_one_pull_request(dsn: str, project: Path) -> None:
    configuration, plan = re.findall(
        r"```(?:toml|markdown)\n(.*?)```", PAGE.read_text(), re.DOTALL
    )[:2]
    fake = FakeGitHub()
    fake.branches = ["pgcoord/feature-1"]
    fake.fail("POST", "/pulls", 502)  # it is asked again
    path = f"{project.parent}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
    desk = Desk(project, {"DATABASE_URL": dsn, "GITHUB_TOKEN": TOKEN, "PATH": path})
    with serving_github(fake) as url:
        settings = f'repository = "{REPOSITORY}"\napi_url = "{url}"'
        configuration = configuration.replace('repository = "you/notes"', settings)
        desk.write("pgcoord.toml", f"[server]\nport = 0\n\n{configuration}")
        try:
            run = desk.start("run", desk.write("plan.md", plan))
            run.until("shall this become a pull request")
            desk.say("approve", "1.5", "--reason", "looks good")
            run.until("GitHub failed: 502")
            desk.say("retry", "1.6")
            assert run.wait() == 0, run.output
        finally:
            desk.close()
    [pull] = fake.pulls
    assert (pull["title"], pull["head"]["ref"], pull["base"]["ref"]) == (
        "Notes",
        "pgcoord/feature-1",
        "main",
    )
    assert "**Phase 1**: Wrote notes/storage.py." in pull["body"]
    branch = git(project.parent / "origin", "ls-tree", "-r", "--name-only", "pgcoord/feature-1")
    assert {"docs/notes.md", "notes/commands.py", "notes/storage.py"} <= set(branch.split())
