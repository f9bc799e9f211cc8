"""The example for agents: its configuration is read, and its phases work in worktrees."""

from pathlib import Path

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
