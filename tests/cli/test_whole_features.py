"""Commands on whole features, before they run and after; and what every command has in common."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from psycopg.conninfo import make_conninfo
from support import git
from support.database import Connection, statuses
from support.desk import Desk

from pgcoord.__main__ import make_app
from pgcoord.commands import reference


def loaded(text: str) -> Any:
    return json.loads(text)


def test_retry_and_skip_take_a_whole_feature(desk: Desk, conn: Connection) -> None:
    desk.call("run", desk.plan("echo one; exit 1", "true", "exit 1", depends_on="none"))
    assert statuses(conn) == {1: "failed", 2: "completed", 3: "failed"}
    assert desk.say("retry", "1") == "queue-1-1 is queued\nqueue-1-3 is queued"
    refused = desk.call("retry", "1")
    assert refused.returncode == 3
    assert refused.stderr.startswith("pgcoord: feature 1 has no phase to retry: none is failed or")
    skipped = loaded(desk.say("skip", "1", "--reason", "by hand", "--json"))
    assert [(each["queue_id"], each["status"]) for each in skipped] == [
        ("queue-1-1", "completed"),
        ("queue-1-3", "completed"),
    ]
    assert statuses(conn) == {1: "completed", 2: "completed", 3: "completed"}
    assert "✓ skipped    1 Step 1" in desk.call("status", "1").stdout


def test_logs_take_a_whole_feature(desk: Desk) -> None:
    desk.call("run", desk.plan("echo one", "echo two", "exit 1", "true"))
    assert desk.say("logs", "1").splitlines() == [
        "==> queue-1-1: Step 1",
        "one",
        "",
        "==> queue-1-2: Step 2",
        "two",
        "",
        "==> queue-1-3: Step 3",
        "",
        "==> queue-1-4: Step 4",
        "it has not started, so it has no log",
    ]
    assert desk.call("logs", "-f", "1").returncode == 2


def test_a_dry_run_shows_its_phases_and_starts_nothing(desk: Desk, conn: Connection) -> None:
    desk.write(
        "pgcoord.toml",
        """
        [workflow.work]
        command = ["no-such-program", "{prompt_file}", "a b"]
        environment = ["API_KEY", "OTHER_KEY"]
        timeout = "2h"
        default = true
        """,
    )
    plan = desk.plan("one", "two", "three", depends_on="none")
    output = desk.say("run", "--dry-run", plan, API_KEY="x").splitlines()
    assert output[:8] == [
        "A plan: 3 phases; nothing is run",
        "wave 1",
        "  phase 1  Step 1",
        "    workflow: work",
        "    command: no-such-program {prompt_file} 'a b'",
        "    missing: there is no program no-such-program",
        f"    folder: {desk.folder}",
        "    environment: PATH, HOME, API_KEY",
    ]
    assert "    not set: OTHER_KEY" in output
    found = loaded(desk.say("run", "--dry-run", "--json", plan))
    assert [[phase["phase"] for phase in wave] for wave in found["waves"]] == [[1, 2, 3]]
    assert statuses(conn) == {}


@pytest.mark.scale
def test_queued_work_is_edited_and_deleted(desk: Desk, conn: Connection) -> None:
    desk.call("submit", desk.plan("exit 1", "echo two", "echo three"))
    desk.write("prompt.txt", "echo anew")
    changed = desk.say(
        "edit", "1.1", "--prompt", "prompt.txt", "--title", "Anew", "--timeout", "1h"
    )
    assert changed == "queue-1-1 is changed: no coordinator runs"
    edited = loaded(desk.say("edit", "1.3", "--after", "1", "--json"))
    assert edited["depends_on_phases"] == [1]
    assert desk.call("edit", "1.1").returncode == 2
    untitled = desk.call("edit", "1.1", "--title", " ")
    assert (untitled.returncode, "a phase needs one" in untitled.stderr) == (2, True)
    assert desk.call("edit", "1.3", "--after", "3").returncode == 5
    asks = desk.call("delete", "1.2")
    assert (asks.returncode, "no terminal to ask on" in asks.stderr) == (2, True)
    desk.say("edit", "1.3", "--after", "1,2")
    dry = desk.say("delete", "1.2", "--dry-run").splitlines()
    assert dry[1:] == ["queue-1-2 would be removed, with its history"]
    assert desk.say("delete", "1.2", "--yes").splitlines() == [
        "queue-1-2  Step 2: queued; its dependents then wait: 3",
        "queue-1-2 is removed",
    ]
    desk.say("edit", "1.3", "--after", "1")
    assert desk.call("run", "--feature", "1").returncode == 0
    assert desk.say("logs", "1.1") == "anew"
    refused = desk.call("edit", "1.1", "--title", "x")
    assert (refused.returncode, "cannot change" in refused.stderr) == (3, True)
    desk.say("submit", desk.plan("true"))
    assert desk.say("delete", "2", "--yes").startswith("feature 2  A plan: 1 phase, planned\n")
    dry = desk.say("delete", "1", "--dry-run").splitlines()
    assert dry[1:] == ["feature 1 would be removed, with its history"]
    desk.say("delete", "1", "--yes")
    assert desk.call("status", "1").returncode == 4


def test_a_client_that_deletes_is_refused_with_the_owner(
    desk: Desk, conn: Connection, dsn: str, logins: dict[str, str]
) -> None:
    desk.say("submit", desk.plan("true"))
    theirs = make_conninfo(dsn, user=logins["client"], password="secret")
    for target in ("1", "1.1"):
        result = desk.call("delete", target, "--yes", "--dsn", theirs)
        assert result.returncode == 6
        assert result.stderr.splitlines()[1:] == [
            "  Only the owner of the database deletes; 'pgcoord cancel' keeps the history."
        ]


@pytest.mark.scale
def test_text_comes_from_standard_input_too(desk: Desk, conn: Connection) -> None:
    def piped(given: bytes | None, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pgcoord", *arguments]
        if given is None:
            command = ["sh", "-c", 'exec "$@" <&-', "sh", *command]
        result = subprocess.run(
            command, input=given, env=desk.environment, cwd=desk.folder, capture_output=True
        )
        output = (result.stdout.decode(), result.stderr.decode())
        return subprocess.CompletedProcess(arguments, result.returncode, *output)

    text = "\ufeff# P\n## Phase 1: Ä\ntrue\n".encode()
    done = piped(text, "submit", "-")
    assert done.stdout.startswith("feature 1: 1 phase is queued"), done
    assert "Ä" in piped(text, "plan", "-").stdout
    edit = ("edit", "1.1", "--prompt", "-")
    assert piped("echo ö\r\n".encode(), *edit).returncode == 0
    row = conn.execute(
        "select phase_data ->> 'title' as title, phase_data ->> 'prompt_content' as prompt"
        " from phase_queue"
    ).fetchone()
    assert row == {"title": "Ä", "prompt": "echo ö\n"}
    dry = ("run", "-", "--dry-run")
    for given, arguments, words in (
        (b"# P\n", ("submit", "-"), "-:1: "),
        (b"# P\n\xe4", dry, "-:2: not UTF-8: byte 0xe4 at offset 4"),
        (None, dry, "-: standard input is closed"),
        (b"\xe4", edit, "-:1: not UTF-8: byte 0xe4 at offset 0"),
        (b"a\0", edit, "-: it contains a NUL character: expected plain text"),
        (None, edit, "-: standard input is closed"),
        (b"\xe4", ("plan", "-"), "-:1: not UTF-8"),
    ):
        refused = piped(given, *arguments)
        assert (refused.returncode, refused.stdout) == (5, ""), (arguments, refused)
        assert refused.stderr.startswith(f"pgcoord: {words}"), refused
    closed = piped(None, "delete", "1")
    assert (closed.returncode, "no terminal to ask on" in closed.stderr) == (2, True), closed


def shape_of(found: Any) -> str:
    """The keys of an object, or in brackets of the objects of a list, as in the reference."""
    if isinstance(found, list):
        [keys] = {", ".join(sorted(each)) for each in found}
        return f"[{{{keys}}}]"
    return f"{{{', '.join(sorted(found))}}}"


def shapes(command: str) -> set[str]:
    """What the reference says that a command prints with --json."""
    words = command.split()
    name = " ".join(words[: 2 if words[0] in ("schedule", "db") else 1])
    for option in ("--dry-run", "--check"):
        if f"{name} {option}" in reference.words()["json"] and option in words:
            name += f" {option}"
    return {
        re.sub(r"[^[\]{}]+", lambda keys: ", ".join(sorted(keys[0].split(", "))), shape)
        for names, (shape, _) in reference.words()["json"].items()
        if name in names.partition(" (")[0].split(", ")
    }


@pytest.mark.scale
def test_json_on_stdout_is_one_document_or_nothing(desk: Desk, conn: Connection) -> None:
    plan = desk.plan("exit 1", "echo two", depends_on="none")

    def refuse(word: str) -> None:
        raise AssertionError(word)

    wrong = []
    for status, command in (
        (1, f"run {plan}"),
        (0, f"submit {plan}"),
        (0, f"run {plan} --dry-run"),
        (0, f"submit {plan} --check"),
        (0, f"plan {plan}"),
        (0, "plan 2"),
        (1, "attach 1"),
        (0, "status"),
        (0, "why 2.1"),
        (0, "execute 2"),
        (0, "budget 2 2.50"),
        (0, "budget 2 none"),
        (0, "priority 2.1 10"),
        (0, "priority 1.2 10"),
        (0, "slots"),
        (0, "slots 2"),
        (4, "slots 2 --pool elsewhere"),
        (0, "pause 2"),
        (0, "resume"),
        (0, "edit 2.1 --title x"),
        (3, "edit 1.2 --title x"),
        (0, "again 1"),
        (0, "skip 2.1"),
        (0, "skip 1"),
        (3, "skip 1"),
        (3, "retry 1.1 1.2"),
        (3, "approve 2.2"),
        (4, "reject 9.1"),
        (0, "cancel 2"),
        (0, "prune 0 --dry-run"),
        (2, "prune 0"),
        (0, "prune 0 --yes"),
        (2, "delete 3"),
        (0, "delete 3 --yes"),
        (4, "delete 3 --yes"),
        (0, f"schedule create nightly '0 3 * * *' {plan}"),
        (0, "schedule list"),
        (0, "schedule show nightly"),
        (0, "schedule change nightly --cron '0 4 * * *'"),
        (0, "schedule pause nightly"),
        (0, "schedule resume nightly"),
        (0, "why nightly"),
        (0, "schedule run nightly"),
        (2, "schedule delete nightly"),
        (0, "schedule delete nightly --yes"),
        (9, "doctor"),
        (0, "upgrade"),
    ):
        result = desk.call(*shlex.split(command), "--json")
        if result.returncode != status:
            wrong.append((command, result))
            continue
        if result.stdout:
            found = json.loads(result.stdout, parse_constant=refuse)
            assert shape_of(found) in shapes(command), (command, shape_of(found))
        assert bool(result.stdout) == (
            status in (0, 1) or command in ("retry 1.1 1.2", "doctor")
        ), command
    assert not wrong


def test_run_prints_the_feature_at_its_end_as_json(desk: Desk) -> None:
    result = desk.call("run", "--json", desk.plan("true", "exit 1"))
    found = loaded(result.stdout)
    assert result.returncode == 1
    assert [phase["status"] for phase in found["phases"]] == ["completed", "failed"]
    assert loaded(desk.call("attach", "1", "--json").stdout)["id"] == 1


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("1.9", "Feature 1 (A plan) has 1.1, 1.2."),
        ("queue-1-7", "Feature 1 (A plan) has 1.1, 1.2."),
        ("7.1", "There is no feature 7 either; there is 1."),
        ("work", "'pgcoord status' shows those that exist."),
    ],
)
def test_a_missing_phase_is_reported_with_the_nearest_name(
    desk: Desk, name: str, hint: str
) -> None:
    desk.say("submit", desk.plan("true", "true"))
    for command in ("why", "logs", "retry", "result"):
        result = desk.call(command, name)
        assert (result.returncode, result.stderr) == (
            4,
            f"pgcoord: there is no phase {name}\n  {hint}\n",
        )


@pytest.mark.parametrize(
    "command",
    [
        *(
            "status 9",
            "logs 9",
            "retry 9",
            "cancel 9",
            "pause 9",
            "resume 9",
            "budget 9 5",
            "again 9",
        ),
        *("execute 9", "plan 9", "run --feature 9", "schedule create x '0 3 * * *' --feature 9"),
    ],
)
def test_a_missing_feature_is_reported_in_one_wording(desk: Desk, command: str) -> None:
    result = desk.call(*shlex.split(command))
    assert (result.returncode, result.stderr) == (
        4,
        "pgcoord: there is no feature 9\n  'pgcoord status --all' shows those that exist.\n",
    )


def test_times_are_in_the_zone_of_the_reader_and_name_the_zone(desk: Desk) -> None:
    desk.call("run", desk.plan("true"))
    assert desk.say("why", "1.1", TZ="Asia/Tokyo").endswith(" JST")
    assert desk.say("why", "1.1", TZ="UTC").endswith(" UTC")
    assert desk.say("why", "1.1", PGTZ="Asia/Kolkata", TZ="UTC").endswith(" IST")


# What prints something else than what is in the database, or is answered by a program of its own.
WITHOUT_JSON = {
    "init",
    "help",
    "serve",
    "logs",
    "psql",
    "report",
    "result",
    "migrate-v1",
    "worktree",
    "pull-request",
}


def test_every_command_prints_json_when_asked() -> None:
    program: Any = typer.main.get_command(make_app())
    commands = dict(program.commands)
    for group in ("db", "schedule"):
        of_group = commands.pop(group).commands
        commands |= {f"{group} {name}": each for name, each in of_group.items()}
    without = {
        name
        for name, each in commands.items()
        if not any("--json" in parameter.opts for parameter in each.params)
    }
    assert without == WITHOUT_JSON
    assert [name for name in set(commands) - without if not shapes(name)] == []


COMPLETED = """
eval "$SCRIPT"
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_pgcoord_completion "$1"
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (["stat"], ["status"]),
        (["schedule", "cr"], ["create"]),
        (["run", "--dr"], ["--dry-run"]),
        (["schedule", "change", "x", "--overlap", ""], ["skip", "queue", "start"]),
        (["nothing-like-it"], [""]),
    ],
)
def test_bash_completes_words(desk: Desk, typed: list[str], completed: list[str]) -> None:
    program = Path(sys.executable).with_name("pgcoord")
    given = desk.environment | {"PATH": f"{program.parent}{os.pathsep}{desk.environment['PATH']}"}
    shell = ["bash", "--norc", "-c"]
    script = subprocess.check_output([*shell, "pgcoord --show-completion; true"], env=given)
    done = subprocess.check_output(
        [*shell, COMPLETED, "bash", "pgcoord", *typed],
        env=given | {"SCRIPT": script.decode()},
        text=True,
    )
    assert done.splitlines() == completed


def test_run_names_the_work_that_the_branch_of_the_feature_lacks(desk: Desk) -> None:
    git(desk.folder, "init", "--quiet")
    git(desk.folder, "commit", "--quiet", "--allow-empty", "--message", "first")
    desk.write(
        "pgcoord.toml",
        '[server]\nport = 0\n[workflow.work]\ncommand = ["sh"]\ndirectory = "."\n'
        'workspace = "worktree"\ndefault = true\n',
    )
    two = "## Phase 2: two\nDepends on: none\n\necho 2 > same\n"
    plan = f"# Sides\n## Phase 1: one\n\necho 1 > same\n{two}"
    result = desk.call("run", desk.write("sides.md", plan))
    assert result.returncode == 0, result.stderr
    assert re.search(
        r"the branch of the feature lacks the work of phase [12]: pgcoord/queue-\d+-[12] cannot be"
        r" merged into pgcoord/feature-\d+: conflict in same\n",
        result.stderr,
    )


def test_the_cause_of_a_failure_is_named_where_the_log_goes_on(desk: Desk) -> None:
    result = desk.call("run", desk.plan("echo first; echo 'error: lost'; echo rest; exit 3"))
    assert "phase 1 failed: exited with status 3: error: lost\n" in result.stdout, result.stdout
