"""Features by the real programs of agents, end to end, with a model of ours on loopback.

Their work reaches the phases after them, a failing check sends one round once, a refused tool
fails, and SIGKILL of the coordinator in the middle loses and repeats nothing.
"""

import json
import os
from pathlib import Path

import pytest
from support import git
from support.agents import program, settings
from support.coordination import Watch, watching
from support.desk import Desk, address_of
from support.fake_model import fake_model

CONFIGURATION = """
[server]
port = 0

[workflow.claude]
agent = "claude"
directory = "project"
workspace = "worktree"
default = true
max_attempts = 2
retry_delay = "0"
check = ["sh", "-c", '''test ! -f api.txt -o ! -f ui.txt -o -f joined.txt ||
    {{ echo no joined.txt; exit 3; }}''']
retry_prompt = '''{{prompt}}
It failed: {{error}}
WRITE: joined.txt yes'''

[workflow.codex]
agent = "codex"
command = {codex}
directory = "project"
workspace = "worktree"

[workflow.once]
agent = "claude"
directory = "project"
workspace = "worktree"
"""

FEATURE = """# The portal

## Phase 1: Schema

WRITE: schema.txt one
SAY: The schema is there.

## Phase 2: API
Depends on: 1

RUN: sleep 1
WRITE: api.txt two
SAY: The API is there.

## Phase 3: UI
Depends on: 1
Workflow: codex

WRITE: ui.txt three
SAY: The UI is there.

## Phase 4: Join
Depends on: 2, 3

Join what was done: {result.2.summary}
SAY: Joined.

## Phase 5: Documentation
Depends on: 4

WRITE: README.txt done
SAY: Documented.
"""

REFUSED = """# The other

## Phase 1: Tests
Workflow: once

RUN: npm test
SAY: All is well.

## Phase 2: Rest

WRITE: rest.txt never
"""


async def until(watch: Watch, *statuses: str) -> None:
    """Wait until the phases of the first feature have these statuses."""
    await watch.until(
        lambda rows: [row["status"] for row in rows] == list(statuses),
        "select status from phase_queue where feature_id = 1 order by phase_number",
    )


@pytest.mark.scale
@pytest.mark.timeout(3600)
async def test_features_by_agents_end_in_one_branch_each(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("support.coordination.PATIENCE", 1200.0)  # five programs, one by one
    programs = [str(program(agent)) for agent in ("claude", "codex")]
    project = tmp_path / "project"
    project.mkdir()

    git(project, "init", "--quiet", "--initial-branch", "main")
    git(project, "commit", "--quiet", "--allow-empty", "--message", "first")
    with fake_model() as model:
        variables: dict[str, str] = {}
        for agent in ("claude", "codex"):
            arguments, given = settings(agent, model, tmp_path)
            variables |= given
        path = ":".join([*programs, os.environ["PATH"]])
        desk = Desk(tmp_path, {"DATABASE_URL": dsn, "PATH": path, **variables})
        codex = ["codex", "exec", "--json", *arguments, "-"]
        quoted = json.dumps([each.replace("{", "{{").replace("}", "}}") for each in codex])
        desk.write("pgcoord.toml", CONFIGURATION.format(codex=quoted))
        try:
            async with watching(dsn) as watch:
                first = desk.start("serve")
                address_of(first)
                for plan in (FEATURE, REFUSED):
                    result = desk.call("submit", desk.write("plan.md", plan))
                    assert result.returncode == 0, result.stderr
                await until(watch, "completed", "running", "running", "queued", "queued")
                first.send(9)
                address_of(desk.start("serve"))
                await until(watch, *["completed"] * 5)
                attempts = await watch.all(
                    "select queue_id, number, outcome, error from pgcoord.attempt"
                    " order by queue_id, number"
                )
                cost = await watch.one("select * from pgcoord.feature where id = 1")
                other = await watch.all(
                    "select status, error_message from phase_queue where feature_id = 2"
                    " order by phase_number"
                )
        finally:
            desk.close()
    ended = [(each["queue_id"], each["outcome"]) for each in attempts]
    assert ended == [
        *((f"queue-1-{number}", "completed") for number in (1, 2, 3)),
        ("queue-1-4", "failed"),
        ("queue-1-4", "completed"),
        ("queue-1-5", "completed"),
        ("queue-2-1", "failed"),
    ]
    assert "no joined.txt" in attempts[3]["error"]
    assert other[0]["error_message"].endswith("the agent was not allowed to use Bash npm test")
    assert other[1]["status"] == "blocked"
    branch = "pgcoord/feature-1"
    assert set(git(project, "ls-tree", "--name-only", branch).split()) == {
        "schema.txt",
        "api.txt",
        "ui.txt",
        "joined.txt",
        "README.txt",
    }
    assert git(project, "show", f"{branch}:joined.txt") == "yes"
    assert cost["cost_usd"] > 0
    assert cost["tokens_in"] >= 2000 * 5
