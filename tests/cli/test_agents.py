"""The example for agents: its configuration is read, and its placeholders are filled."""

from datetime import timedelta
from pathlib import Path

from pgcoord.configuration.model import PLACEHOLDERS
from pgcoord.configuration.reading import read_configuration

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
    assert workflows["claude"].later_delay == timedelta(minutes=1)
    assert adw.later_delay == timedelta(seconds=30)
    assert adw.arguments(values)[-2:] == ["<issue_number>", "<adw_id>"]
