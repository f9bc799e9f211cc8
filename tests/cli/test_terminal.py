"""What comes out of the program: in any locale, on any terminal, whatever clients have written."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE
from support.database import Connection, add_feature
from support.desk import Desk

from pgcoord import assets
from pgcoord.text import printable, shortened

HOSTILE = "\x1b]0;owned\x07\x1b[31mred\x9b32mgreen\u202edrawkcab"

OURS = Path(assets.__file__).parent


def test_every_text_file_is_read_and_written_in_a_named_encoding() -> None:
    unnamed = [
        f"{path.relative_to(OURS)}:{call.lineno}"
        for path in OURS.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and _is_text(call)
        if "encoding" not in {each.arg for each in call.keywords}
    ]
    assert unnamed == []


def _is_text(call: ast.Call) -> bool:
    """Whether a call opens, reads or writes text: of a file, or of a process."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name in ("run", "Popen", "check_output"):
        return any(each.arg in ("text", "universal_newlines") for each in call.keywords)
    if name in ("read_text", "write_text"):
        return isinstance(call.func, ast.Attribute)  # not pgcoord.text.read_text
    mode = {"open": 0, "fdopen": 1}.get(name)
    words = call.args[mode : mode + 1] if mode is not None else []
    return any(
        isinstance(each, ast.Constant) and re.fullmatch("[rwax]t?[+]?", str(each.value))
        for each in words
    )


@pytest.mark.parametrize("locale", ["C", pytest.param("en_US.ISO-8859-1", marks=pytest.mark.scale)])
def test_a_plan_is_written_in_utf8_in_any_locale(desk: Desk, locale: str) -> None:
    desk.write("idea.md", "x")
    (desk.folder / "idea.md").write_text("# Grüße an Łódź ✗\n\nEin Ding\n", encoding="utf-8")
    # Python follows the locale only if UTF-8 mode is off.
    odd: dict[str, Any] = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    plan = desk.execute("plan", "idea.md", "--output", "plan.md", **odd)
    assert plan.wait() == 0, plan.output
    assert "Grüße an Łódź" in (desk.folder / "plan.md").read_text(encoding="utf-8")
    for command in (["submit", "plan.md"], ["status"], ["why", "1.1"], ["doctor"]):
        shown = desk.execute(*command, **odd)
        assert shown.wait() in (0, 8, 9), shown.output
        assert "Traceback" not in shown.output
    status = desk.execute("status", "--json", **odd)
    status.wait()
    title = json.loads(status.output)["features"][0]["title"]
    assert title == "Grüße an Łódź ✗"


@pytest.mark.parametrize(
    "command",
    [
        ("why", "1.1"),
        ("status",),
        ("status", "1"),
        ("doctor",),
        ("logs", "1.1"),
        ("skip", "1.1", "--reason", "done by hand"),
        ("retry", HOSTILE),
        ("submit", HOSTILE),
    ],
)
def test_no_command_prints_escape_sequences_of_a_client(
    desk: Desk, conn: Connection, command: tuple[str, ...]
) -> None:
    add_feature(conn, {1: []})
    conn.execute(
        "update phase_queue set phase_data = jsonb_build_object('workflow_type', %s::text)",
        [HOSTILE],
    )
    conn.execute("update planned_features set title = %s", [HOSTILE])
    program = desk.start(*command, tty=True, NO_COLOR="1")
    program.wait()
    assert program.output.strip()
    for sequence in ("\x1b]0", "\x07", "\x1b[31mred", "\x9b", "\u202e"):
        assert sequence not in program.output, program.output


def test_a_long_line_of_a_log_is_quoted_but_not_printed(desk: Desk) -> None:
    result = desk.call("run", desk.plan("head -c 4000 /dev/zero | tr '\\0' x; exit 1"))
    assert result.returncode == 1
    assert "x" * 150 in result.stdout
    assert max(map(len, result.stdout.splitlines())) < 500


def test_a_status_beyond_the_signals_names_none(desk: Desk) -> None:
    result = desk.call("run", desk.plan("exit 255"))
    assert "exited with status 255" in result.stdout
    assert "signal" not in result.stdout
    assert "exited with status 130 (signal 2)" in desk.call("run", desk.plan("exit 130")).stdout


def call_from_nowhere(desk: Desk, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call the program from a folder that was removed."""
    gone = desk.folder / "gone"
    gone.mkdir()
    words = ["sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh", sys.executable, "-m", "pgcoord"]
    return subprocess.run(
        [*words, *arguments],
        cwd=gone,
        env=desk.environment | {"PYTHONPATH": str(OURS.parent)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_a_report_needs_no_current_folder(desk: Desk) -> None:
    report = f"cd $(mktemp -d); rmdir $PWD; {sys.executable} -m pgcoord report completed"
    desk.write(
        "pgcoord.toml",
        '[server]\nport = 0\n[workflow.sh]\ncommand = ["sh", "-c", "{prompt}"]\n'
        'default = true\nreports = true\nenvironment = ["PYTHONPATH"]\n',
    )
    result = desk.call("run", desk.plan(report), PYTHONPATH=str(OURS.parent))
    assert (result.returncode, "completed" in result.stdout) == (0, True), result


@pytest.mark.scale
def test_commands_that_need_no_folder_need_none(desk: Desk, conn: Connection) -> None:
    add_feature(conn, {1: []})
    for command in (["status"], ["why", "1.1"], ["pause"], ["resume"], ["skip", "1.1"]):
        result = call_from_nowhere(
            desk, *command, *(["--reason", "x"] if "skip" in command else [])
        )
        assert (result.returncode, result.stderr) == (0, ""), (command, result)
    result = call_from_nowhere(desk, "run", "plan.md")
    assert (result.returncode, result.stderr) == (
        7,
        "pgcoord: the current folder was removed\n  This command needs one: change to another.\n",
    )


def test_the_error_of_a_report_is_cut_in_its_middle_not_refused(
    desk: Desk, conn: Connection
) -> None:
    error = 'python3 -c \'print("first" + "é" * 60000 + "last")\''
    report = f'{sys.executable} -m pgcoord report failed --error "$({error})"'
    desk.write(
        "pgcoord.toml",
        '[server]\nport = 0\n[workflow.sh]\ncommand = ["sh", "-c", "{prompt}"]\n'
        'default = true\nreports = true\nenvironment = ["PYTHONPATH"]\n',
    )
    result = desk.call("run", desk.plan(report), PYTHONPATH=str(OURS.parent))
    assert result.returncode == 1, result
    [row] = conn.execute("select status, error_message from phase_queue").fetchall()
    assert row["status"] == "failed"
    assert re.fullmatch(
        r"firsté+\n… \d+ characters left out …\né+last",
        row["error_message"],
    ), row["error_message"][:300]


def test_only_a_text_that_is_too_long_is_shortened() -> None:
    assert shortened("abc", 3) == "abc"
    cut = shortened("a" * 50 + "b" * 50, 30)
    assert cut == "a" * 10 + "\n-- pgcoord: 70 characters were left out here --\n" + "b" * 20


def test_controls_are_written_as_python_writes_them() -> None:
    assert printable("a\x1b[1m\x07\x9b\u202e\tb\nc é ✗") == "a\\x1b[1m\\x07\\x9b\\u202e\tb\nc é ✗"
    assert os.linesep not in printable("plain")
