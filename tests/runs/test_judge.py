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
from support import PATIENCE
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
CODEX_DECLINED = {
    "type": "item.completed",
    "item": {"type": "command_execution", "command": "curl example.org", "status": "declined"},
}
MAX_TURNS = {
    "type": "result",
    "subtype": "error_max_turns",
    "errors": ["Reached maximum number of turns (3)"],
}
HALF_A_CHARACTER = {
    "type": "assistant",
    "message": {"content": [{"type": "text", "text": "a \ud83d b"}]},
}


def judged(
    script: str, environment: Mapping[str, str] | None = None, given: str = "", **spec: Any
) -> tuple[int, list[str]]:
    """The exit status and the output of a shell script that is judged, with *given* as its input."""
    command = [sys.executable, "-I", judge.__file__, json.dumps(spec), "sh", "-c", script]
    result = subprocess.run(
        command,
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env={**os.environ, **(environment or {})},
    )
    return result.returncode, (result.stdout + result.stderr).splitlines()


def writes(*events: object) -> str:
    return "cat <<'END'\n" + "\n".join(map(json.dumps, events)) + "\nEND\n"


QUOTA = "429: You exceeded your current quota, please check your plan and billing details."


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
        ("sleep 60 & echo done", {"fails_on": ["x"]}, 0, "done"),  # not waiting for other holders of the pipe
        ("true", {"check": ["no-such-program"]}, 127, "pgcoord: cannot start the check no-such-program: No such file or directory"),
        (writes(CLAUDE_DENIED), {"agent": "claude"}, 1, "pgcoord: the agent was not allowed to use Bash npm test"),
        (writes(CLAUDE_OVERLOADED) + "exit 1", {"agent": "claude"}, 75, "pgcoord: try again later: API Error: Repeated 529 Overloaded errors"),
        (writes({"type": "turn.failed", "error": {"message": QUOTA}}) + "exit 1", {"agent": "codex"}, 1, f"pgcoord: the agent ended with an error: {QUOTA}"),
        (writes({"type": "turn.failed", "error": {"message": f"{QUOTA} Please retry in 20s."}}) + "exit 1", {"agent": "codex"}, 75, f"pgcoord: try again later: {QUOTA} Please retry in 20s."),
        (writes({"type": "result", "is_error": False, "result": "[API Error: 529 Overloaded]"}), {"agent": "qwen"}, 75, "pgcoord: try again later: [API Error: 529 Overloaded]"),
        (writes(CODEX_FAILED), {"agent": "codex"}, 1, "pgcoord: the agent ended with an error: unexpected status 401 Unauthorized"),
        ("echo 'connect ECONNREFUSED 127.0.0.1:1' >&2; exit 1", {"agent": "codex"}, 75, "pgcoord: try again later: connect ECONNREFUSED 127.0.0.1:1"),
        ("echo 'No authentication found' >&2; exit 1", {"agent": "codex"}, 1, "No authentication found"),
        # What the agent says at its end counts, not what it had got over before.
        ("echo 'mcp: connection refused' >&2;" + writes(MAX_TURNS) + "exit 1", {"agent": "claude"}, 1, "pgcoord: the agent ended with an error: ['Reached maximum number of turns (3)']"),
        ("echo 'mcp: timed out' >&2;" + writes(CLAUDE_DENIED), {"agent": "claude"}, 1, "pgcoord: the agent was not allowed to use Bash npm test"),
        (writes(CODEX_DECLINED, {"type": "turn.completed"}), {"agent": "codex"}, 1, "pgcoord: the agent was not allowed to use $ curl example.org"),
        (writes({"type": "thread.started"}, {"type": "turn.started"}), {"agent": "codex"}, 1, "pgcoord: the agent has exited in the middle of its turn"),
        ("true", {"agent": "codex"}, 1, "pgcoord: the agent has exited without a word"),
        ("echo 'a command of their own'", {"agent": "codex"}, 0, "a command of their own"),
        (writes(HALF_A_CHARACTER, {"type": "result", "result": "Done."}), {"agent": "claude"}, 0, "a ? b"),
    ],
)  # fmt: skip
def test_a_command_is_judged_by_its_output_and_by_its_check(
    script: str, spec: dict[str, Any], status: int, last: str | None
) -> None:
    found, lines = judged(script, **spec)
    assert (found, lines[-1] if last else None) == (status, last)


def test_json_of_an_agent_becomes_readable_lines_and_costs(tmp_path: Path) -> None:
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


def test_a_command_can_report_its_failure_in_its_result(tmp_path: Path) -> None:
    result = {"PGCOORD_RESULT_FILE": str(tmp_path / "result.json")}
    words = '{"status": "failed", "error_message": "no network"}'
    status, lines = judged(f"echo '{words}' >$PGCOORD_RESULT_FILE", result, check=["true"])
    assert (status, lines[-1]) == (1, "pgcoord: it reports that it failed: no network")


def test_a_result_of_the_command_does_not_hide_a_retry_later(
    tmp_path: Path,
) -> None:
    path = tmp_path / "result.json"
    words = (
        """echo '{"status": "failed", "error": "gave up", "cost_usd": 1}' >$PGCOORD_RESULT_FILE;"""
    )
    status, _ = judged(
        f"{words} {writes(CLAUDE_OVERLOADED)} exit 1",
        {"PGCOORD_RESULT_FILE": str(path)},
        agent="claude",
    )
    assert status == judge.TRY_LATER
    assert json.loads(path.read_text()) == {
        "status": "later",
        "error": "try again later: API Error: Repeated 529 Overloaded errors",
        "cost_usd": 1,
    }


def test_a_command_that_asks_to_be_tried_later_is_not_checked(tmp_path: Path) -> None:
    result = {"PGCOORD_RESULT_FILE": str(tmp_path / "result.json")}
    status, lines = judged(
        """echo '{"status": "later"}' >$PGCOORD_RESULT_FILE""", result, check=["echo", "checked"]
    )
    assert (status, lines) == (judge.TRY_LATER, [])


@pytest.mark.parametrize(
    ("own", "answer", "expected"),
    [
        ({"summary": "é" * 20_000}, "Done.", {"summary": "é" * 20_000}),  # 40 kB, escaped 120 kB
        ({"notes": "x" * 60_000}, "ü" * 4_000, {"notes": "x" * 60_000}),  # both were too much
        ({"notes": "x" * (65_536 - 13)}, "ü" * 4_000, {"notes": "x" * (65_536 - 13)}),
        ({}, "Nul \0, half \ud83d", {"summary": "Nul �, half ?"}),  # neither can be stored
        ({}, "x", {"summary": "x"}),
    ],
)
def test_additions_never_make_a_result_too_large(
    own: dict[str, str], answer: str, expected: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(own, ensure_ascii=False))
    event = {"type": "result", "result": answer, "total_cost_usd": 0.5}
    status, _ = judged(writes(event), {"PGCOORD_RESULT_FILE": str(path)}, agent="claude")
    assert status == 0
    assert path.stat().st_size <= 65_536 + 1_024
    assert json.loads(path.read_bytes()) == {"cost_usd": 0.5, **expected}
    assert [each.name for each in tmp_path.iterdir()] == ["result.json"]


def test_a_judged_command_keeps_its_standard_input(
    tmp_path: Path,
) -> None:
    """It is the prompt, in a worktree."""
    status, lines = judged("cat", given="do it", check=["true"])
    assert (status, lines[0]) == (0, "do itpgcoord: check: true")


@pytest.mark.scale
def test_a_process_left_behind_that_writes_for_ever_holds_up_nothing() -> None:
    status, lines = judged("while :; do echo; done & echo $!", fails_on=["x"])
    os.kill(int(next(filter(None, lines))), signal.SIGKILL)
    assert status == 0


def test_a_log_on_a_full_disk_fails_nothing(tmp_path: Path) -> None:
    spec = json.dumps({"agent": "claude", "check": ["true"]})
    path = tmp_path / "result.json"
    script = writes({"type": "result", "result": "Done.", "total_cost_usd": 0.5})
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [sys.executable, "-I", judge.__file__, spec, "sh", "-c", script],
            stdout=full,
            stderr=full,
            check=False,
            env={**os.environ, "PGCOORD_RESULT_FILE": str(path)},
        )
    assert result.returncode == 0
    assert json.loads(path.read_text())["summary"] == "Done."


def test_an_answer_that_comes_in_pieces_is_whole_in_log_and_result(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    pieces = [
        {"type": "message", "role": "assistant", "content": each, "delta": True}
        for each in ("First I lo", "ok.\nThen I wr", "ite.")
    ]
    tool = {"type": "tool_use", "tool_name": "write_file", "parameters": {"file_path": "a"}}
    last = [{**pieces[0], "content": each} for each in ("It is ", "done.")]
    end = {"type": "result", "status": "success", "stats": {}}
    status, lines = judged(
        writes(*pieces, tool, *last, end), {"PGCOORD_RESULT_FILE": str(path)}, agent="gemini"
    )
    assert (status, lines) == (
        0,
        ["First I look.", "Then I write.", "  → write_file a", "It is done."],
    )
    assert json.loads(path.read_text())["summary"] == "It is done."


@pytest.mark.scale
def test_a_check_that_hangs_is_ended_with_its_descendants() -> None:
    check = ["sh", "-c", "trap '' TERM; sleep infinity & echo $$ $!; wait; wait"]
    status, lines = judged("true", check=check, check_seconds=0.2)
    assert (status, lines[-1]) == (124, "pgcoord: the check did not end within 0.2 s")
    assert not [pid for pid in lines[1].split() if is_alive(int(pid))]


def test_a_phase_that_is_ended_during_its_check_ends_the_check() -> None:
    # Signalled by the check itself at its very beginning, when its pid has just been stored.
    spec = json.dumps({"check": ["sh", "-c", "echo $$; kill -TERM $PPID; exec sleep infinity"]})
    command = [sys.executable, "-I", judge.__file__, spec, "true"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        check = int(process.stdout.readline())
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM
    assert not is_alive(check)
