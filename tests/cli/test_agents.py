"""The example for agents: its configuration is read, and its phases work in worktrees."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pgcoord.configuration import PLACEHOLDERS, read_configuration

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_every_workflow_is_read_and_every_placeholder_filled() -> None:
    workflows = read_configuration(EXAMPLES / "agents.toml").workflows
    assert set(workflows) == {"claude", "claude_own_worktree", "codex", "adw_sdlc_complete_iso"}
    values = {name: f"<{name}>" for name in PLACEHOLDERS}
    for workflow in workflows.values():
        arguments = workflow.arguments(values)
        assert not [each for each in arguments if "{" in each], workflow.name
        assert "<prompt>" not in arguments, "a prompt belongs into a file"
        assert workflow.timeout
    adw = workflows["adw_sdlc_complete_iso"]
    assert adw.reports
    assert adw.arguments(values)[-2:] == ["<issue_number>", "<adw_id>"]


@pytest.mark.parametrize("name", ["claude", "codex"])
def test_the_work_of_an_agent_is_on_a_branch_of_its_own(name: str, tmp_path: Path) -> None:
    """With a program of the agent's name that keeps its prompt and its arguments."""
    programs, project = tmp_path / "bin", tmp_path / "project"
    programs.mkdir()
    project.mkdir()
    agent = programs / name
    agent.write_text('#!/bin/sh\ncat >prompt\nprintf "%s\\n" "$@" >arguments\n')
    agent.chmod(0o755)
    (tmp_path / "prompt.md").write_text("Do it; $(x)")
    environment = {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "PGCOORD_QUEUE_ID": "queue-1-2",
        "PGCOORD_PROMPT_FILE": str(tmp_path / "prompt.md"),
    }

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    run("git", "init", "--quiet", "--initial-branch", "main")
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    run("git", *identity, "commit", "--quiet", "--allow-empty", "--message", "first")
    workflow = read_configuration(EXAMPLES / "agents.toml").workflows[name]
    values = {each: f"<{each}>" for each in PLACEHOLDERS} | {"title": "--title; $(x)"}
    run(*workflow.arguments(values))
    assert run("git", "log", "-1", "--format=%s", "pgcoord/queue-1-2") == "--title; $(x)"
    assert run("git", "show", "pgcoord/queue-1-2:prompt") == "Do it; $(x)"
    arguments = run("git", "show", "pgcoord/queue-1-2:arguments").splitlines()
    assert arguments == [*workflow.command[workflow.command.index(name) + 1 :]]
