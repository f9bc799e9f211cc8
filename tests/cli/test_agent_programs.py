"""The presets of agents against the real programs, which talk to a model of ours on loopback.

They are installed from npm once, below .agents; without npm, or a registry, they are skipped.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from support.fake_model import FakeModel, fake_model

from pgcoord import judge

PACKAGES = {
    "claude": "@anthropic-ai/claude-code@2.1.197",
    "codex": "@openai/codex@0.171.0",
    "gemini": "@google/gemini-cli@0.61.0",
    "copilot": "@github/copilot@1",
    "opencode": "opencode-ai@1.18.33",
    "qwen": "@qwen-code/qwen-code@0.15.10",
}
# Read by programs, and by nobody else.
KEY = "secret-of-tests"

AGENTS = Path(__file__).parents[2] / ".agents"


def program(agent: str) -> Path:
    """The folder of an agent's program; skip the test where it cannot be installed."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm")
    AGENTS.mkdir(exist_ok=True)
    folder = AGENTS / agent
    with open(AGENTS / f"{agent}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "node_modules" / ".bin" / agent).exists():
            place = ("--prefix", str(folder), PACKAGES[agent])
            done = subprocess.run(
                [npm, "install", "--silent", "--no-save", "--no-package-lock", *place],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                pytest.skip(f"npm cannot install {PACKAGES[agent]}: {done.stderr.strip()[-200:]}")
    return folder / "node_modules" / ".bin"


@pytest.fixture(scope="module")
def model() -> Iterator[FakeModel]:
    with fake_model() as model:
        yield model


def settings(agent: str, model: FakeModel, home: Path) -> tuple[list[str], dict[str, str]]:
    """The further arguments of an agent that talks to the model, and its environment."""
    if agent == "codex":
        provider = f'{{name="m",base_url="{model.url}/v1",wire_api="responses"'
        retries = "request_max_retries=1,stream_max_retries=1"
        provider = f'{provider},env_key="CODEX_API_KEY",{retries}}}'
        words = ["-m", "gpt-5", "-c", 'model_provider="m"', "-c", f"model_providers.m={provider}"]
        # Its sandbox needs what a container has not.
        return [*words, "--sandbox", "danger-full-access"], {"CODEX_API_KEY": KEY}
    if agent == "gemini":
        (home / ".gemini").mkdir()
        chosen = {"security": {"auth": {"selectedType": "gemini-api-key"}}}
        (home / ".gemini" / "settings.json").write_text(json.dumps(chosen))
        variables = {"GEMINI_API_KEY": KEY, "GOOGLE_GEMINI_BASE_URL": model.url}
        return ["--model", "gemini-2.5-flash", "--approval-mode", "yolo"], variables
    if agent == "copilot":
        return [], {
            "COPILOT_PROVIDER_BASE_URL": model.url,
            "COPILOT_PROVIDER_TYPE": "anthropic",
            "COPILOT_PROVIDER_API_KEY": KEY,
            "COPILOT_MODEL": "claude-sonnet-4.5",
            "COPILOT_OFFLINE": "true",
        }
    if agent == "qwen":
        variables = {"OPENAI_API_KEY": KEY, "OPENAI_MODEL": "gpt-5"}
        return ["--approval-mode", "yolo"], {**variables, "OPENAI_BASE_URL": f"{model.url}/v1"}
    return [], {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": model.url}


def run(
    agent: str, prompt: str, model: FakeModel, place: Path, further: Mapping[str, str] | None = None
) -> tuple[int, list[str], dict[str, object]]:
    """Run an agent as its preset does; its exit status, log and result."""
    home, work = place / "home", place / "work"
    home.mkdir()
    subprocess.run(["git", "init", "--quiet", str(work)], check=True)
    (place / "prompt.md").write_text(prompt)
    preset = judge.AGENTS[agent]
    arguments, variables = settings(agent, model, home)
    assert set(variables) <= set(preset.environment)
    words = [*preset.command]
    if agent == "codex":
        words[words.index("--sandbox") : words.index("--sandbox") + 2] = []
        words[-1:] = [*arguments, "-"]
    else:
        if "--approval-mode" in arguments:
            words[words.index("--approval-mode") : words.index("--approval-mode") + 2] = []
        words += arguments
    spec = json.dumps(judge.Spec(agent=agent)._asdict())
    done = subprocess.run(
        [sys.executable, "-I", judge.__file__, spec, *words],
        cwd=work,
        env={
            "PATH": f"{program(agent)}:{os.environ['PATH']}",
            "HOME": str(home),
            "PGCOORD_PROMPT_FILE": str(place / "prompt.md"),
            "PGCOORD_RESULT_FILE": str(place / "result.json"),
            **variables,
            **(further or {}),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
        timeout=250,
    )
    result = place / "result.json"
    found = json.loads(result.read_text()) if result.exists() else {}
    return done.returncode, done.stdout.splitlines(), found


@pytest.mark.scale
@pytest.mark.timeout(300)
@pytest.mark.parametrize("agent", PACKAGES)
def test_an_agent_works_tells_what_it_does_and_what_it_cost(
    agent: str, model: FakeModel, tmp_path: Path
) -> None:
    status, lines, result = run(agent, "WRITE: new.txt hello\nSAY: It is written.", model, tmp_path)
    assert status == 0, lines
    assert (tmp_path / "work" / "new.txt").read_text() == "hello\n"
    assert "It is written." in lines
    assert [line for line in lines if line.startswith("  → ") and "new.txt" in line], lines
    assert not [line for line in lines if line.startswith('{"')], lines
    assert result["summary"] == "It is written."
    if agent != "copilot":  # which tells no tokens
        assert result["tokens_in"] == 2000
        assert result["tokens_out"] == 200
    if agent in ("claude", "opencode"):
        assert isinstance(result["cost_usd"], float)
        assert result["cost_usd"] > 0


@pytest.mark.scale
@pytest.mark.timeout(300)
def test_an_agent_that_was_refused_a_tool_has_failed(model: FakeModel, tmp_path: Path) -> None:
    status, lines, result = run("claude", "RUN: npm test\nSAY: Done.", model, tmp_path)
    assert (status, lines[-1]) == (1, "pgcoord: the agent was not allowed to use Bash npm test")
    assert result["summary"] == "Done."


@pytest.mark.scale
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("agent", "answer"), [("claude", 529), ("codex", 429), ("copilot", 429)])
def test_an_agent_whose_model_takes_no_more_is_to_be_tried_later(
    agent: str, answer: int, model: FakeModel, tmp_path: Path
) -> None:
    status, lines, _ = run(agent, f"STATUS: {answer}\nSAY: Done.", model, tmp_path)
    assert status == judge.TRY_LATER, lines
    assert lines[-1].startswith("pgcoord: try again later: ")
