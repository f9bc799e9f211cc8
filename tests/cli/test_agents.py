"""The example for agents: its configuration is read, and its phases work in worktrees."""

import os
import subprocess
from pathlib import Path

import pytest

from pgcoord.configuration import PLACEHOLDERS, read_configuration

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT = EXAMPLES / "in_worktree.sh"


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


def test_the_script_that_the_workflows_name_is_there() -> None:
    for workflow in read_configuration(EXAMPLES / "agents.toml").workflows.values():
        if workflow.command[1].endswith(".sh"):
            assert (workflow.directory / workflow.command[1]).resolve() == SCRIPT


class Repository:
    """A git repository, and phases that work on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "project"
        self.worktree = folder / "project.worktrees" / "queue-1-2"
        self._prompt = folder / "prompt.md"
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PGCOORD_QUEUE_ID": "queue-1-2",
            "PGCOORD_PROMPT_FILE": str(self._prompt),
            **{
                f"GIT_{who}_{what}": "x"
                for who in ("AUTHOR", "COMMITTER")
                for what in ("NAME", "EMAIL")
            },
        }
        self.folder.mkdir()
        self.git("init", "--quiet", "--initial-branch", "main")
        (self.folder / "file").write_text("as it was\n")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "first")

    def git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    def run(self, prompt: str, *command: str) -> int:
        """Run a phase whose agent is `command`; return its exit status."""
        self._prompt.write_text(prompt)
        script = ["sh", str(SCRIPT), "The title; $(x)", *command]
        return subprocess.run(script, cwd=self.folder, env=self._environment).returncode


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def test_a_phase_commits_to_a_branch_of_its_own(repository: Repository) -> None:
    assert repository.run("echo 'as it is' > file; echo new > other", "sh") == 0
    assert repository.git("show", "pgcoord/queue-1-2:file") == "as it is"
    assert repository.git("show", "pgcoord/queue-1-2:other") == "new"
    assert repository.git("log", "-1", "--format=%s", "pgcoord/queue-1-2") == "The title; $(x)"
    assert (repository.folder / "file").read_text() == "as it was\n"
    assert repository.git("status", "--porcelain") == ""
    assert not repository.worktree.exists()


def test_a_failed_attempt_leaves_what_it_did_to_the_next(repository: Repository) -> None:
    assert repository.run("echo half > file; exit 7", "sh") == 7
    assert (repository.worktree / "file").read_text() == "half\n"
    assert repository.run("echo whole >> file", "sh") == 0
    assert repository.git("show", "pgcoord/queue-1-2:file") == "half\nwhole"
    assert not repository.worktree.exists()


def test_a_phase_that_is_run_again_goes_on_in_its_branch(repository: Repository) -> None:
    assert repository.run("echo one > one", "sh") == 0
    assert repository.run("cat one; echo two > two", "sh") == 0
    assert repository.git("ls-tree", "--name-only", "pgcoord/queue-1-2") == "file\none\ntwo"


def test_a_phase_without_changes_makes_no_commit(repository: Repository) -> None:
    assert repository.run("true", "sh") == 0
    assert repository.git("rev-list", "--count", "pgcoord/queue-1-2") == "1"
