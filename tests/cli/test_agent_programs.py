"""The presets of agents with the real programs, which use a fake model on loopback.

They are installed from npm once, below .agents; without npm, or a registry, they are skipped.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.agents import FEW_TRIES, PACKAGES, program, settings
from support.fake_model import FakeModel, fake_model

from pgcoord import judge


@pytest.fixture(scope="module")
def model() -> Iterator[FakeModel]:
    with fake_model() as model:
        yield model


def run(
    agent: str, prompt: str, model: FakeModel, place: Path, *, is_refused: bool = False
) -> tuple[int, list[str], dict[str, object]]:
    """Run an agent as its preset does; its exit status, log and result.

    It may run commands, unless it *is_refused* them: by the preset itself (claude, gemini, qwen),
    by an argument, or by a rule of its own configuration.
    """
    home, work = place / "home", place / "work"
    home.mkdir()
    subprocess.run(["git", "init", "--quiet", str(work)], check=True)
    (place / "prompt.md").write_text(prompt)
    preset = judge.AGENTS[agent]
    arguments, variables = settings(agent, model, home)
    assert set(variables) <= set(preset.environment)
    words = [*preset.command]
    if is_refused:
        if "--approval-mode" in arguments:
            del arguments[arguments.index("--approval-mode") :]
        variables |= refuse_commands(agent, home, arguments)
    if agent == "codex":
        words[words.index("--sandbox") : words.index("--sandbox") + 2] = []
        words[-1:] = [*arguments, "-"]
    else:
        if "--approval-mode" in arguments:
            words[words.index("--approval-mode") : words.index("--approval-mode") + 2] = []
        words += arguments
    spec = json.dumps(judge.Spec(agent=agent)._asdict())
    completed = subprocess.run(
        [sys.executable, "-I", judge.__file__, spec, *words],
        cwd=work,
        env={
            "PATH": f"{program(agent)}:{os.environ['PATH']}",
            "HOME": str(home),
            "PGCOORD_PROMPT_FILE": str(place / "prompt.md"),
            "PGCOORD_RESULT_FILE": str(place / "result.json"),
            **variables,
            **FEW_TRIES.get(agent, {}),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
        timeout=1800,
    )
    result = place / "result.json"
    found = json.loads(result.read_text()) if result.exists() else {}
    return completed.returncode, completed.stdout.splitlines(), found


def refuse_commands(agent: str, home: Path, arguments: list[str]) -> dict[str, str]:
    """Forbid an agent's shell where its preset allows it; variables that it needs for that."""
    if agent == "codex":
        rules = home / ".codex" / "rules"
        rules.mkdir(parents=True)
        rule = 'prefix_rule(pattern=["npm", "test"], decision="forbidden")\n'
        (rules / "default.rules").write_text(rule)
    elif agent == "copilot":
        arguments.append("--deny-tool=shell")
    elif agent == "opencode":
        path = home / "opencode.json"
        path.write_text(json.dumps({"permission": {"bash": "deny"}}))
        return {"OPENCODE_CONFIG": str(path)}
    return {}


@pytest.mark.scale
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("agent", PACKAGES)
def test_an_agent_works_and_reports_its_steps_and_its_costs(
    agent: str, model: FakeModel, tmp_path: Path
) -> None:
    status, lines, result = run(agent, "WRITE: new.txt hello\nSAY: It is written.", model, tmp_path)
    assert status == 0, lines
    assert (tmp_path / "work" / "new.txt").read_text() == "hello\n"
    assert "It is written." in lines
    assert [line for line in lines if line.startswith("  → ") and "new.txt" in line], lines
    assert not [line for line in lines if line.startswith('{"')], lines
    assert result["summary"] == "It is written."
    if agent != "copilot":  # which reports no tokens
        assert result["tokens_in"] == 2000
        assert result["tokens_out"] == 200
    if agent in ("claude", "opencode"):
        assert isinstance(result["cost_usd"], float)
        assert result["cost_usd"] > 0


@pytest.mark.scale
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("agent", PACKAGES)
def test_an_agent_that_was_refused_a_tool_has_failed(
    agent: str, model: FakeModel, tmp_path: Path
) -> None:
    prompt = "RUN: npm test\nSAY: Done."
    status, lines, result = run(agent, prompt, model, tmp_path, is_refused=True)
    assert status == 1, lines
    assert lines[-1].startswith("pgcoord: the agent was not allowed to use "), lines
    assert result["summary"] == "Done."


@pytest.mark.scale
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("agent", PACKAGES)
def test_an_agent_whose_key_is_refused_has_failed(
    agent: str, model: FakeModel, tmp_path: Path
) -> None:
    status, lines, _ = run(agent, "STATUS: 401\nSAY: Done.", model, tmp_path)
    assert status not in (0, judge.TRY_LATER), lines
    assert lines[-1].startswith("pgcoord: the agent ended with an error: "), lines


@pytest.mark.scale
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(
    ("agent", "answer"),
    [
        ("claude", 529),
        ("codex", 429),
        ("copilot", 429),
        ("gemini", 529),
        ("opencode", 429),
        ("qwen", 529),  # at 429 it retries for more than 25 minutes
    ],
)
def test_a_phase_is_tried_later_when_the_model_takes_no_more_requests(
    agent: str, answer: int, model: FakeModel, tmp_path: Path
) -> None:
    status, lines, _ = run(agent, f"STATUS: {answer}\nSAY: Done.", model, tmp_path)
    assert status == judge.TRY_LATER, lines
    assert lines[-1].startswith("pgcoord: try again later: ")
