"""The programs of agents, installed from npm once, below .agents, and how they find a model."""

import fcntl
import functools
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from support.fake_model import FakeModel

PACKAGES = {
    "claude": "@anthropic-ai/claude-code@2.1.197",
    "codex": "@openai/codex@0.171.0",
    "gemini": "@google/gemini-cli@0.61.0",
    "copilot": "@github/copilot@1",
    "opencode": "opencode-ai@1.18.33",
    "qwen": "@qwen-code/qwen-code@0.15.10",
}
# Programs ask again for minutes at an answer that is an error; their last words are the same then.
FEW_TRIES = {"claude": {"CLAUDE_CODE_MAX_RETRIES": "1"}}

# Read by programs, and by nobody else.
KEY = "secret-of-tests"

_MOST_SECONDS = 300  # of an installation: the tests themselves have 2,400 with it

AGENTS = Path(__file__).parents[2] / ".agents"


def program(agent: str) -> Path:
    """The folder of an agent's program; skip the test where it cannot be installed."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm")
    fault = _install(npm, agent)
    if fault:
        pytest.skip(f"npm cannot install {PACKAGES[agent]}: {fault}")
    return AGENTS / agent / "node_modules" / ".bin"


@functools.cache
def _install(npm: str, agent: str) -> str:
    """Install a program that is not there yet; return why it could not be, or "".

    A registry that does not answer is asked once for each program, by the first of all workers.
    """
    AGENTS.mkdir(exist_ok=True)
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    with open(AGENTS / f"{agent}.lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (AGENTS / agent / "node_modules" / ".bin" / agent).exists():
            return ""
        lock.seek(0)
        of_session, _, fault = lock.read().partition("\n")
        if of_session != session:
            fault = _run_npm(npm, agent)
            lock.truncate(0)
            lock.write(f"{session}\n{fault}")
    return fault


def _run_npm(npm: str, agent: str) -> str:
    options = ("--loglevel=error", "--no-save", "--no-package-lock")
    patience = ("--fetch-retries=1", "--fetch-timeout=60000")
    place = ("--prefix", str(AGENTS / agent), PACKAGES[agent])
    try:
        result = subprocess.run(
            [npm, "install", *options, *patience, *place],
            capture_output=True,
            text=True,
            check=False,
            timeout=_MOST_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"not within {_MOST_SECONDS} s"
    return "" if result.returncode == 0 else result.stderr.strip()[-200:] or "it says not why"


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
        chosen = {
            "security": {"auth": {"selectedType": "gemini-api-key"}},
            "general": {"maxAttempts": 2},
        }
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
