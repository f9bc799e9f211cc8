"""A command is judged by its own words and a check after it: pgcoord/judge.py by itself."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.coordination import is_alive

from pgcoord import judge

CLAUDE_DENIED = {
    "type": "result",
    "subtype": "success",
    "is_error": False,
    "result": "All done.",
    "num_turns": 3,
    "total_cost_usd": 0.03,
    "usage": {"input_tokens": 3000, "cache_read_input_tokens": 500, "output_tokens": 300},
    "permission_denials": [{"tool_name": "Bash", "tool_input": {"command": "npm test"}}],
}
CLAUDE_OVERLOADED = {
    "type": "result",
    "subtype": "success",
    "is_error": True,
    "result": "API Error: Repeated 529 Overloaded errors",
}
CODEX_FAILED = {"type": "turn.failed", "error": {"message": "unexpected status 401 Unauthorized"}}


def judged(
    script: str, environment: Mapping[str, str] | None = None, **spec: Any
) -> tuple[int, list[str]]:
    """The exit status and the output of a shell script that is judged."""
    command = [sys.executable, "-I", judge.__file__, json.dumps(spec), "sh", "-c", script]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    return done.returncode, (done.stdout + done.stderr).splitlines()


def writes(*events: object) -> str:
    return "cat <<'END'\n" + "\n".join(map(json.dumps, events)) + "\nEND\n"


@pytest.mark.parametrize(
    ("script", "spec", "status", "last"),
    [
        ("echo a; exit 7", {"check": ["false"]}, 7, "a"),
        ("echo a", {"check": ["sh", "-c", "echo b; exit 3"]}, 3, "pgcoord: the check failed with status 3"),
        ("kill -9 $$", {"fails_on": ["x"]}, 137, None),
        ("echo a FATAL b", {"fails_on": ["^a FATAL"]}, 1, "pgcoord: its output matches ^a FATAL: a FATAL b"),
        ("echo FATAL >&2", {"fails_on": ["FATAL"]}, 1, "pgcoord: its output matches FATAL: FATAL"),
        ('echo \'{"error": {"code": 5}}\'', {"fails_on": ["$.error.code"]}, 1, "pgcoord: its output has $.error.code: 5"),
        ('echo \'{"error": {"code": 0}}\'', {"fails_on": ["$.error.code"]}, 0, None),
        ("printf 'no end of line'", {"fails_on": ["end of line$"]}, 1, "pgcoord: its output matches end of line$: no end of line"),
        ("sleep 60 & echo done", {"fails_on": ["x"]}, 0, "done"),  # who holds the pipe is not waited for
        ("true", {"check": ["no-such-program"]}, 127, "pgcoord: cannot start the check no-such-program: No such file or directory"),
        (writes(CLAUDE_DENIED), {"agent": "claude"}, 1, "pgcoord: the agent was not allowed to use Bash npm test"),
        (writes(CLAUDE_OVERLOADED) + "exit 1", {"agent": "claude"}, 75, "pgcoord: try again later: API Error: Repeated 529 Overloaded errors"),
        (writes({"type": "result", "is_error": False, "result": "[API Error: 529 Overloaded]"}), {"agent": "qwen"}, 75, "pgcoord: try again later: [API Error: 529 Overloaded]"),
        (writes(CODEX_FAILED), {"agent": "codex"}, 1, "pgcoord: the agent ended with an error: unexpected status 401 Unauthorized"),
        ("echo 'connect ECONNREFUSED 127.0.0.1:1' >&2; exit 1", {"agent": "codex"}, 75, "pgcoord: try again later: connect ECONNREFUSED 127.0.0.1:1"),
        ("echo 'No authentication found' >&2; exit 1", {"agent": "codex"}, 1, "No authentication found"),
    ],
)  # fmt: skip
def test_a_command_is_judged_by_what_it_says_and_by_its_check(
    script: str, spec: dict[str, Any], status: int, last: str | None
) -> None:
    found, lines = judged(script, **spec)
    assert (found, lines[-1] if last else None) == (status, last)


def test_what_an_agent_writes_as_json_is_read_by_people_and_counted(tmp_path: Path) -> None:
    text = {"type": "text", "text": "I look."}
    use = {"type": "tool_use", "name": "Bash", "input": {"command": "ls  -l"}}
    refused = {"type": "tool_result", "is_error": True, "content": "This needs approval"}
    result = tmp_path / "result.json"
    status, lines = judged(
        writes(
            {"type": "system", "subtype": "init"},
            {"type": "assistant", "message": {"content": [text, use]}},
            {"type": "user", "message": {"content": [refused]}},
            {**CLAUDE_DENIED, "permission_denials": []},
        )
        + "echo plain words",
        {"PGCOORD_RESULT_FILE": str(result)},
        agent="claude",
    )
    assert status == 0
    assert lines == [
        "I look.",
        "  → Bash ls -l",
        "  ✗ This needs approval",
        "  = 3 turns, $0.0300",
        "plain words",
    ]
    assert json.loads(result.read_text()) == {
        "tokens_in": 3500,
        "tokens_out": 300,
        "cost_usd": 0.03,
        "summary": "All done.",
    }


def test_a_command_can_say_in_its_result_that_it_failed(tmp_path: Path) -> None:
    result = {"PGCOORD_RESULT_FILE": str(tmp_path / "result.json")}
    said = '{"status": "failed", "error_message": "no network"}'
    status, lines = judged(f"echo '{said}' >$PGCOORD_RESULT_FILE", result, check=["true"])
    assert (status, lines[-1]) == (1, "pgcoord: it reports that it failed: no network")


def test_a_check_that_hangs_is_ended_with_all_that_it_started() -> None:
    check = ["sh", "-c", "trap '' TERM; sleep infinity & echo $$ $!; wait; wait"]
    status, lines = judged("true", check=check, check_seconds=0.2)
    assert (status, lines[-1]) == (124, "pgcoord: the check did not end within 0.2 s")
    assert not [pid for pid in lines[1].split() if is_alive(int(pid))]


def test_a_phase_that_is_ended_during_its_check_ends_the_check() -> None:
    # Told by the check itself, at its very beginning: it is hardly known then who it is.
    spec = json.dumps({"check": ["sh", "-c", "echo $$; kill -TERM $PPID; exec sleep infinity"]})
    command = [sys.executable, "-I", judge.__file__, spec, "true"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        check = int(process.stdout.readline())
        assert process.wait(10) == 128 + signal.SIGTERM
    assert not is_alive(check)
