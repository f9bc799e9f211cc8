"""The programs of agents, installed from npm once, below .agents, and how they find a model."""

import fcntl
import functools
import json
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
# Read by programs, and by nobody else.
KEY = "secret-of-tests"

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


@functools.cache  # a registry that does not answer is asked once for each program
def _install(npm: str, agent: str) -> str:
    """Install a program that is not there yet; return why it could not be, or ""."""
    AGENTS.mkdir(exist_ok=True)
    folder = AGENTS / agent
    with open(AGENTS / f"{agent}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "node_modules" / ".bin" / agent).exists():
            return ""
        place = ("--prefix", str(folder), PACKAGES[agent])
        options = ("--loglevel=error", "--no-save", "--no-package-lock", "--fetch-retries=1")
        result = subprocess.run(
            [npm, "install", *options, *place], capture_output=True, text=True, check=False
        )
    return "" if result.returncode == 0 else result.stderr.strip()[-200:]


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
