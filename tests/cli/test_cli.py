"""The command line as people use it: real plans, real processes, a real database."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support import PATIENCE
from support.cases import case
from support.database import Connection, add_feature, add_phase, claim, statuses, take_lead
from support.desk import CONFIGURATION, Desk, until
from support.help import help_of

from pgcoord.__main__ import _MODULE_OF
from pgcoord.database import schema
from pgcoord.database.embedded import EmbeddedPostgres


def lines(text: str) -> list[str]:
    """The lines of progress, without their times."""
    return [re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in text.splitlines()]


# run


def test_run_ends_with_0_when_every_phase_completed(desk: Desk, conn: Connection) -> None:
    output = desk.say("run", desk.plan("echo one", "echo two"))
    panel, *told, last = lines(output)
    assert re.fullmatch(r"panel: http://127\.0\.0\.1:\d+/features/1", panel)
    assert told[0] == "feature 1  A plan, 2 phases"
    moves = [re.match(r"phase (\d)  (\w+) +Step \1", line) for line in told[1:]]
    assert [move.groups() for move in moves if move] == [
        ("1", "running"),
        ("1", "completed"),
        ("2", "running"),
        ("2", "completed"),
    ]
    assert re.fullmatch(r"feature 1 \(A plan\) completed: 2 phases in \d\.\d s", last)
    assert statuses(conn) == {1: "completed", 2: "completed"}


def test_run_ends_with_1_and_a_line_that_names_the_failed_phase_and_the_reason(desk: Desk) -> None:
    result = desk.call("run", desk.plan("true", "echo oh no; exit 3", "true"))
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == (
        "feature 1 (A plan): 1 of 3 phases completed; phase 2 failed: exited with status 3: oh no;"
        " phase 3 blocked: waits for phase 2, failed"
    )
    assert result.stderr == (
        "  to continue: 'pgcoord logs 1.2', 'pgcoord retry 1.2', 'pgcoord run --feature 1';"
        " to cancel it: 'pgcoord cancel 1'\n"
    )


def test_run_stays_for_the_clean_up_of_a_failed_phase(desk: Desk) -> None:
    path = desk.folder / "plan.md"
    path.write_text(
        "# A plan\n## Phase 1: Work\n\nexit 3\n## Phase 2: More\n\ntrue\n"
        "## Phase 3: Clean up\nWhen: always\n\ntrue\n"
        "## Phase 4: Report\nDepends on: 1\nWhen: failed\n\ntrue\n"
        "## Phase 5: Undo the report\nWhen: failed\n\nfalse\n"
    )
    result = desk.call("run", str(path))
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == (
        "feature 1 (A plan): 3 of 5 phases completed; phase 1 failed: exited with status 3;"
        " phase 2 blocked: waits for phase 1, failed"
    )


@pytest.mark.scale
def test_a_feature_runs_again_from_a_phase_on(desk: Desk, conn: Connection) -> None:
    plan = desk.plan("touch a; test ! -e b || exit 3", "test -e ok")
    assert desk.call("run", plan).returncode == 1
    (desk.folder / "ok").touch()
    (desk.folder / "b").touch()
    assert desk.say("again", "1", "--from", "2") == (
        "queue-1-2 and its dependents are queued again, as feature 2"
    )
    assert desk.call("run", "--feature", "2").returncode == 0
    assert desk.call("logs", "2.1").stderr == (
        "pgcoord: queue-2-1 was completed in the feature that this one copies: its log is there\n"
    )
    assert desk.call("again", "1.1", "--from", "2").returncode == 2
    assert desk.say("again", "1") == "feature 1 is queued again, as feature 3"
    assert desk.call("run", "--feature", "3").returncode == 1
    assert desk.call("again", "9").returncode != 0


def test_a_phase_gets_its_variables_and_those_of_its_workflow(desk: Desk, conn: Connection) -> None:
    (desk.folder / "pgcoord.toml").write_text(
        '[server]\nport = 0\n[workflow.sh]\ncommand = ["sh", "-c", "{prompt}"]\n'
        'environment = { MODE = "dev", REGION = "eu", HOME = true }\n'
        'phase_environment = ["MODE"]\n'
    )
    path = desk.folder / "plan.md"
    plan = (
        "# A plan\n## Phase 1: Work\nEnv: MODE={param.mode}\n\n"
        'test "$MODE $REGION" = "prod eu"\n'
        "## Phase 2: Defaults\n\n"
        'test "$MODE" = dev\n'
    )
    path.write_text(plan + "## Phase 3: Too much\nEnv: LD_PRELOAD=x\n\ntrue\n")
    for command in (["run"], ["run", "--dry-run"], ["submit", "--check"]):
        refused = desk.call(*command, str(path), "--set", "mode=prod")
        assert (refused.returncode, refused.stderr) == (
            5,
            f"pgcoord: {path}:10: Env: phases of workflow sh may not set LD_PRELOAD;"
            " phase_environment of [workflow.sh] lists what they may\n",
        )
    # What is inserted by SQL has no line: it is refused when it is to be started.
    path.write_text(plan)
    desk.say("submit", str(path), "--set", "mode=prod")
    add_phase(conn, 1, 3, phase_data='{"environment": {"LD_PRELOAD": "x"}, "prompt_content": "x"}')
    result = desk.call("run", "--feature", "1")
    assert result.stdout.splitlines()[-1] == (
        "feature 1 (A plan): 2 of 3 phases completed; phase 3 failed: the phase sets LD_PRELOAD,"
        " which workflow sh does not let phases set (phase_environment)"
    )


@pytest.mark.scale
def test_run_goes_on_with_a_feature_that_exists(desk: Desk, conn: Connection) -> None:
    gate = desk.gate()
    desk.write("work.sh", f"cat {gate}; exit 3")
    run = desk.start("run", desk.plan("sh work.sh", "true"))
    run.until("phase 1  running")
    run.send(signal.SIGINT)
    assert run.wait() == 130
    again = run.until(r"to continue: 'pgcoord (run --feature 1)'")[1].split()
    goes_on, beside = desk.start(*again), desk.start("attach", "1")
    for each in (goes_on, beside):
        each.until("phase 1  running")
    gate.write_text("go on")
    for each in (goes_on, beside):
        assert each.wait() == 1
        each.until(
            "to continue: 'pgcoord logs 1.1', 'pgcoord retry 1.1', 'pgcoord run --feature 1'"
        )
    desk.write("work.sh", "true")
    desk.say("retry", "1.1")
    assert desk.call(*again).returncode == 0
    assert "completed: 2 phases" in desk.say("attach", "1")
    assert (desk.call("run").returncode, desk.call("run", "--feature", "9").returncode) == (2, 4)


def test_run_stays_until_phases_of_other_features_that_it_started_have_ended(
    desk: Desk, conn: Connection
) -> None:
    gate = desk.gate()
    desk.call("submit", desk.plan(f"cat {gate}", "true", name="other.md"))
    run = desk.start("run", desk.plan("true"))
    run.until(
        r"this process leads, so it also runs the other queued features: feature 1 \(A plan\)"
    )
    run.until("waits for the other phases that it started: queue-1-1; Ctrl-C leaves them running")
    assert statuses(conn, 1) == {1: "running", 2: "queued"}
    gate.write_text("go on")
    assert run.wait() == 0
    run.until(r"still queued: feature 1 \(A plan\); 'pgcoord serve' runs it")
    assert statuses(conn, 1) == {1: "completed", 2: "queued"}


@pytest.mark.scale
def test_two_runs_see_both_their_features_through(desk: Desk, conn: Connection) -> None:
    gates = [desk.gate(name) for name in ("one", "two")]
    runs = []
    for gate in gates:
        runs.append(desk.start("run", desk.plan(f"cat {gate}", "true", name=f"{gate.name}.md")))
        runs[-1].until("phase 1  running")
    gates[0].write_text("go on")
    runs[0].until("waits for the other phases that it started: queue-2-1")
    until(conn.info.dsn, "count(*) = 2 from pgcoord.coordinator")  # the second one leads
    gates[1].write_text("go on")
    assert [each.wait() for each in runs] == [0, 0]
    assert "'pgcoord serve' takes over" not in runs[0].output, "the second one has taken over"
    assert statuses(conn, 2) == {1: "completed", 2: "completed"}


def test_attach_names_the_ways_on_when_it_is_interrupted_and_needs_phases(
    desk: Desk, conn: Connection
) -> None:
    add_feature(conn, {1: []})
    attached = desk.start("attach", "1")
    attached.until("feature 1  a, 1 phase")
    attached.send(signal.SIGINT)
    assert attached.wait() == 130
    attached.until("to continue: 'pgcoord run --feature 1'; to cancel it: 'pgcoord cancel 1'")
    add_feature(conn, {})
    refused = desk.call("attach", "2")
    assert (refused.returncode, refused.stdout) == (3, "")
    assert "feature 2 has no phases queued" in refused.stderr
    assert "'pgcoord execute 2'" in refused.stderr


def test_run_names_cancelled_phases_with_the_reason(desk: Desk) -> None:
    gate = desk.gate()
    run = desk.start("run", desk.plan(f"cat {gate}", "true"))
    run.until("phase 1  running")
    assert desk.say("cancel", "1.2", "--reason", "wrong branch") == "queue-1-2 is cancelled"
    gate.write_text("go on")
    assert run.wait() == 1
    assert run.output.splitlines()[-2] == (
        "feature 1 (A plan): 1 of 2 phases completed; phase 2 cancelled: wrong branch"
    )


def test_run_prints_each_attempt(desk: Desk) -> None:
    desk.write("pgcoord.toml", f'{CONFIGURATION}max_attempts = 2\nretry_delay = "0s"\n')
    output = desk.say("run", desk.plan("test -e tried || { touch tried; exit 9; }"))
    assert re.search(r"phase 1  running +Step 1 \(slot 1, attempt 2\)", output) or re.search(
        r"phase 1  running +Step 1 \(attempt 2\)", output
    )
    assert output.splitlines()[-1].startswith("feature 1 (A plan) completed: 1 phase in ")


@pytest.mark.scale
def test_run_beside_a_serve_submits_and_watches(desk: Desk, conn: Connection) -> None:
    serve = desk.start("serve")
    serve.until("leading")
    result = desk.call("run", desk.plan("true"))
    assert result.returncode == 0
    assert result.stderr == (
        f"pgcoord: process {serve.pid} on {os.uname().nodename} leads and runs the phases,"
        " by the pgcoord.toml that it has read; this process only watches, and takes over when the"
        " other one ends\n"
    )
    assert "completed: 1 phase in" in result.stdout
    assert len(conn.execute("select from pgcoord.coordinator").fetchall()) == 1


@pytest.mark.scale
def test_run_beside_a_serve_takes_over_when_the_serve_ends(desk: Desk) -> None:
    serve = desk.start("serve")
    serve.until("leading")
    gate = desk.gate("gate")
    run = desk.start("run", desk.plan(f"read _ < {gate}", "true"))
    run.until("phase 1  running")
    serve.send(signal.SIGTERM)
    assert serve.wait() == 0
    gate.write_text("go on\n")
    assert run.wait() == 0


@pytest.mark.scale
def test_run_names_the_obstacle_of_a_feature_without_a_running_phase(desk: Desk) -> None:
    desk.say("pause", "--reason", "tea")
    run = desk.start("run", desk.plan("true"))
    run.until(r"phase 1  queued     Step 1: everything is paused since [-:0-9 ]+ \S+: tea\n")
    assert desk.say("resume") == "everything is resumed"
    assert run.wait() == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_names_processes_that_it_leaves_running(
    desk: Desk, conn: Connection, number: int, status: int
) -> None:
    gate = desk.gate()
    run = desk.start("run", desk.plan(f"cat {gate}", "true"))
    run.until("phase 1  running")
    run.send(number)
    assert run.wait() == status
    left = run.until(r"left running: queue-1-1 \(pid (\d+)\); 'pgcoord serve' takes over")
    os.kill(int(left[1]), 0)
    assert "Traceback" not in run.output
    assert statuses(conn) == {1: "running", 2: "queued"}


def test_an_interrupt_before_all_is_imported_ends_it_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = subprocess.run(
        [sys.executable, "-m", "pgcoord", "status"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_a_stopped_serve_names_the_pools_of_the_jobs_that_it_leaves_running(
    desk: Desk, conn: Connection
) -> None:
    pool = f"""
[pool.far]
launcher = "command"
slots = 2
folder = "{desk.folder}"
submit = ["echo", "17", "{{script}}"]
id = "^(17)"
list = ["true"]
jobs = "(?P<id>.*) (?P<name>.*) (?P<state>.*)"
waiting = ["PENDING"]
running = ["RUNNING"]
cancel = ["true", "{{id}}"]

[workflow.there]
command = ["true"]
pool = "far"
"""
    desk.write("pgcoord.toml", CONFIGURATION + pool)
    serve = desk.start("serve")
    desk.say("submit", desk.plan("Go.", "Go.", depends_on="none\nWorkflow: there"))
    for number in (1, 2):
        serve.until(rf"queue-1-{number} .* submitted, job 17")
    conn.execute(
        "select pgcoord.begin_attempt(id, secret, 'a') from pgcoord.attempt"
        " where queue_id = 'queue-1-2'"
    )
    serve.send(signal.SIGTERM)
    serve.wait()
    said = "left running: queue-1-1 (in pool far, not begun yet), queue-1-2 (in pool far);"
    assert said in serve.output


@pytest.mark.scale
def test_run_draws_a_tree_on_a_terminal(desk: Desk) -> None:
    gate = desk.gate()
    run = desk.start("run", desk.plan(f"cat {gate}", "true"), tty=True, NO_COLOR="1")
    run.until(r"Feature 1: A plan  0/2 \(0 %\) in progress\r\n├── ▶ running    1 Step 1 · slot 1 ·")
    run.until(r"└── · queued     2 Step 2 · waits for phase 1, running")
    run.until(r"slot 1 · [1-9]\d* s")  # the clock ticks though nothing happens
    gate.write_text("go on")
    assert run.wait() == 0
    run.until(r"Feature 1: A plan  2/2 \(100 %\) completed\r\n├── ✓ completed  1 Step 1 · \d\.\d s")
    run.until(r"feature 1 \(A plan\) completed: 2 phases in \d\.\d s\r\n$")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", run.output), "colours, in spite of NO_COLOR"


def test_run_goes_on_when_the_database_was_restarted(bare_desk: Desk) -> None:
    gate = bare_desk.gate()
    run = bare_desk.start("run", bare_desk.plan(f"cat {gate}", "echo done"))
    run.until("phase 1  running")
    assert (bare_desk.folder / ".pgcoord" / ".gitignore").read_text() == "*\n"
    (bare_desk.folder / "below").mkdir()
    bare_desk.folder /= "below"  # .pgcoord is found upward
    assert "1 Step 1 · slot 1" in bare_desk.say("status")
    assert bare_desk.say("db", "stop").endswith(".pgcoord is stopped")
    run.until("the database is lost")
    stopped = bare_desk.call("status")
    assert stopped.returncode == 6
    assert stopped.stderr.endswith(".pgcoord is stopped\n  'pgcoord db start' starts it.\n")
    assert bare_desk.call("db", "status").returncode == 6
    gate.write_text("go on")  # it ends while no server accepts its report
    assert ".pgcoord runs: host='" in bare_desk.say("db", "start")
    assert run.wait() == 0
    assert ".pgcoord runs: host='" in bare_desk.say("db", "status")
    assert bare_desk.say("logs", "1.2") == "done"


# serve


def test_a_stopped_serve_leaves_work_running_that_the_next_one_takes_over(
    desk: Desk, conn: Connection, dsn: str
) -> None:
    gate = desk.gate()
    first = desk.start("serve")
    first.until("leading")
    assert desk.say("submit", desk.plan(f"cat {gate}", "true")) == "feature 1: 2 phases are queued"
    pid = first.until(r"queue-1-1 .* started, pid (\d+)")[1]
    first.send(signal.SIGTERM)
    assert first.wait() == 0
    assert f"left running: queue-1-1 (pid {pid})" in first.output
    os.kill(int(pid), 0)
    assert statuses(conn) == {1: "running", 2: "queued"}

    second = desk.start("serve")
    second.until(rf"queue-1-1 .* taken over, pid {pid}, alive")
    gate.write_text("go on")
    until(dsn, "bool_and(status = 'completed') from phase_queue")
    assert len(conn.execute("select from pgcoord.attempt").fetchall()) == 2
    second.send(signal.SIGINT)
    assert second.wait() == 130
    assert "nothing is left running" in second.output


@pytest.mark.scale
def test_a_second_serve_stands_by_and_takes_over_when_the_first_is_stopped(
    desk: Desk, conn: Connection
) -> None:
    first = desk.start("serve")
    first.until("leading")
    second = desk.start("serve")
    second.until(f"standing by: process {first.pid} on {os.uname().nodename} leads\n")
    first.send(signal.SIGTERM)
    second.until(rf"leading \(lead 2\), taking over from process {first.pid} on ")
    assert first.wait() == 0
    desk.say("submit", desk.plan("true"))
    second.until("queue-1-1 running → completed")
    second.send(signal.SIGTERM)
    assert second.wait() == 0
    assert statuses(conn) == {1: "completed"}


def test_a_draining_serve_claims_nothing_more_and_ends_with_its_last_phase(
    desk: Desk, conn: Connection
) -> None:
    gate = desk.gate("gate")
    serve = desk.start("serve", "--drain")
    desk.say("submit", desk.plan(f"read _ < {gate}", "true"))
    serve.until("queue-1-1 .* started")
    serve.send(signal.SIGTERM)
    serve.until(
        "claims no further phase, and waits for queue-1-1; a second signal leaves them running\n"
    )
    gate.write_text("go on\n")
    assert serve.wait() == 0
    assert "stopped; nothing is left running" in serve.output
    assert statuses(conn) == {1: "completed", 2: "queued"}


def test_a_second_interrupt_ends_a_draining_serve_and_leaves_processes_running(desk: Desk) -> None:
    gate = desk.gate("gate")
    serve = desk.start("serve", "--drain")
    desk.say("submit", desk.plan(f"read _ < {gate}"))
    pid = serve.until(r"queue-1-1 .* started, pid (\d+)")[1]
    serve.send(signal.SIGINT)
    serve.until("claims no further phase")
    serve.send(signal.SIGINT)
    assert serve.wait() == 130
    assert f"left running: queue-1-1 (pid {pid})" in serve.output


def test_serve_waits_for_a_server_that_is_down(bare_desk: Desk) -> None:
    postgres = EmbeddedPostgres(bare_desk.folder / ".pgcoord")
    postgres.start()
    with psycopg.connect(postgres.dsn, autocommit=True) as conn:
        schema.upgrade(conn)
    postgres.stop()
    serve = bare_desk.start("serve", "--dsn", postgres.dsn)
    serve.until(r"trying again in \S+ s: the database cannot be used")
    postgres.start()
    serve.until("leading")
    serve.send(signal.SIGTERM)
    assert serve.wait() == 0


def test_a_second_signal_ends_a_serve_at_once(bare_desk: Desk) -> None:
    # A server that takes connections and never answers keeps the first signal waiting.
    listening = subprocess.Popen(
        [sys.executable, "-c", _SILENT_SERVER], stdout=subprocess.PIPE, text=True
    )
    try:
        assert listening.stdout
        port = listening.stdout.readline().strip()
        serve = bare_desk.start("serve", "--dsn", f"host=127.0.0.1 port={port} connect_timeout=20")
        listening.stdout.readline()  # connected
        serve.send(signal.SIGTERM)
        serve.send(signal.SIGINT)
        assert serve.wait() in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    finally:
        listening.kill()
        listening.communicate()


_SILENT_SERVER = """
import socket
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
client, _ = server.accept()
print("connected", flush=True)
client.recv(1000)
import time
time.sleep(60)
"""


# Control


def test_retry_queues_a_failed_phase_again(desk: Desk, conn: Connection) -> None:
    assert desk.call("run", desk.plan("exit 1", "true")).returncode == 1
    assert desk.say("retry", "1/1", "--reason", "disk was full").startswith("queue-1-1 is queued: ")
    assert statuses(conn) == {1: "queued", 2: "queued"}
    event = conn.execute("select * from pgcoord.event where reason = 'disk was full'").fetchone()
    assert event
    assert (event["from_status"], event["to_status"]) == ("failed", "queued")
    assert event["actor"].endswith(" (command line)")


def test_skip_takes_a_phase_as_completed(desk: Desk, conn: Connection) -> None:
    add_feature(conn, {1: [], 2: [1]})
    output = desk.say("skip", "queue-1-1", "--reason", "done by hand")
    assert output == "queue-1-1 is completed: phases that depend on it can run"
    assert statuses(conn) == {1: "completed", 2: "queued"}
    assert conn.execute("select from pgcoord.event where reason = 'done by hand'").fetchall()


def test_cancel_gives_up_a_phase_or_a_feature(desk: Desk, conn: Connection) -> None:
    add_feature(conn, {1: [], 2: [1], 3: []})
    assert desk.say("cancel", "1.1", "--reason", "no") == "queue-1-1 is cancelled"
    assert statuses(conn) == {1: "cancelled", 2: "blocked", 3: "queued"}
    assert desk.say("cancel", "1") == "feature 1 is cancelled: 2 phases cancelled"
    assert set(statuses(conn).values()) == {"cancelled"}


@pytest.mark.scale
@pytest.mark.parametrize(
    ("locked", "arguments", "said"),
    [
        ("select from phase_queue for update", ("cancel", "1.1"), "cancelled"),
        ("lock table phase_queue", ("status",), "Feature 1"),
        ("lock table pgcoord.migration", ("submit", "plan.md"), "feature 2"),
        ("lock table pgcoord.migration", ("upgrade",), "up to date"),
    ],
    ids=["a row", "a table", "the table of the schema", "that table in an upgrade"],
)
def test_a_command_that_waits_for_a_lock_names_the_holder(
    desk: Desk, conn: Connection, dsn: str, locked: str, arguments: tuple[str, ...], said: str
) -> None:
    add_feature(conn, {1: []})
    desk.write("plan.md", "# Two\n\n## Phase 1: One\n\nWork.\n")
    desk.write("pgcoord.toml", '[workflow.work]\ncommand = ["true"]\ndefault = true\n')
    with psycopg.connect(dsn, application_name="coffee") as other:
        other.execute(locked.encode())
        waiting = desk.start(*arguments)
        pid = other.info.backend_pid
        waiting.until(rf"pgcoord: waits for a lock of process {pid} \(user .*, coffee\), in its")
    assert waiting.wait() == 0
    assert said in waiting.output


def test_cancel_gives_up_a_phase_and_its_dependents(desk: Desk, conn: Connection) -> None:
    add_feature(conn, {1: [], 2: [1], 3: [2], 4: []})
    output = desk.say("cancel", "1.1", "--branch", "--reason", "no")
    assert (
        output
        == "queue-1-1 and its dependents: 3 phases cancelled; running processes are ended first"
    )
    assert statuses(conn) == {1: "cancelled", 2: "cancelled", 3: "cancelled", 4: "queued"}
    refused = desk.call("cancel", "1", "--branch")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1] == (
        "Error: Invalid value for --branch: 1 is a feature; name one of its phases, such as 1.1."
    )
    assert statuses(conn)[4] == "queued"


def test_cancel_of_a_running_phase_ends_its_process_first(
    desk: Desk, conn: Connection, dsn: str
) -> None:
    gate = desk.gate()
    serve = desk.start("serve")
    serve.until("leading")
    desk.say("submit", desk.plan(f"cat {gate}"))
    pid = int(serve.until(r"started, pid (\d+)")[1])
    output = desk.say("cancel", "1.1")
    assert output == "queue-1-1 is being cancelled: its process is ended first"
    until(dsn, "status = 'cancelled' from phase_queue")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_cancel_says_that_no_coordinator_ends_the_process(
    desk: Desk, conn: Connection, dsn: str
) -> None:
    with psycopg.connect(dsn, autocommit=True, row_factory=conn.row_factory) as leader:
        epoch = take_lead(leader)
        add_feature(conn, {1: [], 2: []})
        claim(conn, epoch)
    expected = ", once a coordinator runs ('pgcoord serve')"
    assert desk.say("cancel", "1.1").endswith(f"its process is ended first{expected}")
    expected = f"2 phases cancelled, of which 2 processes must be ended first{expected}"
    assert desk.say("cancel", "1") == f"feature 1 is cancelled: {expected}"


def test_pause_and_resume(desk: Desk, conn: Connection) -> None:
    def paused() -> tuple[bool, bool]:
        row = conn.execute(
            "select c.paused_at is not null as all, f.paused_at is not null as one"
            " from pgcoord.control c, planned_features f"
        ).fetchone()
        assert row
        return row["all"], row["one"]

    add_feature(conn, {1: []})
    assert desk.say("pause", "1", "--reason", "tea").startswith("feature 1 is paused")
    assert paused() == (False, True)
    assert desk.say("pause").startswith("everything is paused")
    assert paused() == (True, True)
    assert "but everything is paused" in desk.say("resume", "1")
    assert paused() == (True, False)
    assert desk.say("resume").startswith("everything is resumed; no coordinator runs")
    assert paused() == (False, False)


def test_slots_shows_and_sets_how_many_run_at_once(
    desk: Desk, conn: Connection, epoch: int
) -> None:
    assert desk.say("slots") == "3 slots, 0 held"
    add_feature(conn, {1: [], 2: []})
    claim(conn, epoch)
    assert desk.say("slots", "1") == "1 slot, 1 held; queue-1-2 runs to its end beyond them"
    both = desk.say("slots", "0")
    assert both == "0 slots, 0 held; queue-1-1, queue-1-2 run to their end beyond them"
    assert desk.say("slots", "5") == "5 slots, 2 held"
    assert len(conn.execute("select from pgcoord.slot").fetchall()) == 5


def test_priority_changes_the_place_in_line(desk: Desk, conn: Connection) -> None:
    add_feature(conn, {1: []})
    assert desk.say("priority", "1.1", "10") == "queue-1-1 has priority 10"
    row = conn.execute("select priority from phase_queue").fetchone()
    assert row == {"priority": 10}


def test_submit_queues_phases_and_names_them(desk: Desk, conn: Connection) -> None:
    plan = desk.plan("true", "true")
    assert desk.say("submit", plan) == (
        "feature 1: 2 phases are queued; no coordinator runs: 'pgcoord serve' starts one"
    )
    printed = json.loads(desk.say("submit", plan, "--json"))
    assert printed == {"id": 2, "title": "A plan", "total_phases": 2}
    assert statuses(conn, 2) == {1: "queued", 2: "queued"}


def test_submit_needs_no_configuration(desk: Desk, conn: Connection) -> None:
    (desk.folder / "pgcoord.toml").unlink()
    plan = desk.write("plan.md", "# A\n## Phase 1: B\nWorkflow: elsewhere\n\nC\n")
    assert desk.say("submit", plan).startswith("feature 1: 1 phase is queued")


def test_submit_previews_phases_without_a_database(desk: Desk) -> None:
    text = "# A\n## ✅ Phase 1: B\n\n## Phase 2: C\n\nx\n\n## Phase 3: D (depends on 1)\n\ny\n"
    plan = desk.write("plan.md", text)
    nowhere = ("submit", plan, "--check", "--dsn", "host=/nowhere")
    refused = desk.call(*nowhere)
    assert (refused.returncode, "plan.md:2: this phase is marked as done" in refused.stderr) == (
        5,
        True,
    )
    shown = desk.say(*nowhere, "--done", "completed")
    assert "A: 2 phases, besides 1 completed" in shown
    assert "  1  line 2, completed: no prompt" in shown
    assert "  3  line 8: a prompt of 1 characters; depends on of line 8" in shown
    printed = json.loads(desk.say(*nowhere, "--done", "completed", "--json"))
    assert printed["planning"]["waves"] == [[2, 3]]
    dry = json.loads(desk.say("run", plan, "--dry-run", "--done", "completed", "--json"))
    assert dry["completed"] == [1]
    assert [[each["phase"] for each in wave] for wave in dry["waves"]] == [[2, 3]]
    output = desk.say("run", plan, "--dry-run", "--done", "completed").splitlines()
    assert output[:4] == ["A: 3 phases; nothing is run", "completed: 1", "wave 1", "  phase 2  C"]


def test_submit_takes_phases_marked_done_as_completed(desk: Desk, conn: Connection) -> None:
    plan = desk.write("plan.md", "# A\n## ✅ Phase 1: B\n\n## Phase 2: C\n\nx\n")
    desk.say("submit", plan, "--done", "completed")
    assert statuses(conn, 1) == {1: "completed", 2: "queued"}
    row = conn.execute("select unmet from phase_queue where phase_number = 2").fetchone()
    assert row == {"unmet": 0}


def test_upgrade_brings_the_schema_and_names_its_migrations(
    desk: Desk, dsn: str, conn: Connection
) -> None:
    assert desk.say("upgrade").endswith("is up to date")
    conn.execute("update pgcoord.migration set digest = 'older' where name = 'functions'")
    result = desk.call("run", desk.plan("true"))
    assert (result.returncode, result.stderr.splitlines()[1]) == (6, "  Run 'pgcoord upgrade'.")
    assert desk.say("upgrade").endswith(": ran functions")
    assert desk.say("upgrade").endswith("is up to date")
    conn.execute("alter table pgcoord.event disable trigger event_change_refuses")
    output = desk.call("upgrade").stderr
    assert output == (
        "pgcoord: enabled a trigger that was disabled: event_change_refuses on pgcoord.event\n"
    )


# Showing


def test_prune_removes_features_that_finished_before_the_given_age(
    desk: Desk, conn: Connection
) -> None:
    for _ in range(2):
        feature = add_feature(conn, {1: []})
        conn.execute("select pgcoord.cancel_feature(%s, 'no')", [feature])
    add_feature(conn, {1: []})
    conn.execute(
        "update planned_features set cancelled_at = now() - interval '3 days'"
        " where cancelled_at is not null"
    )
    conn.execute(
        "update phase_queue set finished_timestamp = now() - interval '2 days'"
        " where status = 'cancelled'"
    )
    assert desk.say("prune", "50h") == "0 features removed"
    shown = "feature 1  a: 1 phase, cancelled\nfeature 2  a: 1 phase, cancelled"
    assert desk.say("prune", "1d 12h", "--dry-run") == (
        f"{shown}\n2 features would be removed, with their history"
    )
    refused = desk.call("prune", "1d 12h")
    assert (refused.returncode, refused.stdout.strip()) == (2, shown)
    assert "there is no terminal to ask on" in refused.stderr
    for answer, status in (("n", 1), ("y", 0)):
        asking = desk.execute("prune", "0", tty=True)
        asking.until("Remove 2 features with their history permanently")
        if answer == "y":
            # Finished between the look and the answer: nobody was shown it.
            conn.execute("select pgcoord.cancel_feature(3, 'no')")
        asking.type(answer)
        assert asking.wait() == status
    left = conn.execute("select count(*) as n from planned_features").fetchone()
    assert left == {"n": 1}
    assert desk.say("prune", "0", "--yes").endswith("1 feature removed")
    for age in ("soon", "30", "0.5"):
        refused = desk.call("prune", age)
        assert refused.returncode == 2
        assert "expected a duration" in refused.stderr


def test_status_shows_slots_and_the_phases_of_unfinished_features(
    desk: Desk, conn: Connection, epoch: int
) -> None:
    add_feature(conn, {1: []}, status="completed")
    add_feature(conn, {1: [], 2: [1]})
    claim(conn, epoch)
    desk.say("pause")
    output = desk.say("status").splitlines()
    assert output[0] == "slots: 1 queue-2-1, 2 free, 3 free"
    assert output[1].startswith("coordinator: process 1 on here, since ")
    assert output[2].startswith("everything is paused since ")
    assert output[3] == "Feature 2: a  0/2 (0 %) in progress"
    desk.say("slots", "40")
    assert desk.say("status").splitlines()[0] == "slots: 1 queue-2-1, 39 free"
    assert re.fullmatch(r"├── ▷ ready      1 Phase 1 · slot 1 · \d s", output[4])
    assert output[5:] == ["└── · queued     2 Phase 2 · waits for phase 1, ready"]
    assert "Feature 1: a  1/1 (100 %) completed" in desk.say("status", "--all").splitlines()
    assert "└── ✓ completed  1 Phase 1" in desk.say("status", "1")


def test_a_skipped_phase_and_a_feature_that_cannot_go_on_say_so(
    desk: Desk, conn: Connection
) -> None:
    desk.call("run", desk.plan("exit 3", "true", "true"))
    output = desk.say("status", "1").splitlines()
    assert "├── cannot proceed: phase 1 failed" in output
    desk.say("skip", "1.1")
    output = desk.say("status", "1").splitlines()
    assert "├── ✓ skipped    1 Step 1" in output
    assert not any("cannot proceed" in line for line in output)
    [feature] = json.loads(desk.say("status", "1", "--json"))["features"]
    assert [phase["skipped"] for phase in feature["phases"]] == [True, False, False]
    result = desk.call("run", "--feature", "1")
    assert result.returncode == 0
    assert "feature 1 (A plan) completed: 3 phases (1 skipped) in " in result.stdout
    row = conn.execute("select pgcoord.feature_object(1) -> 'phases' as phases").fetchone()
    assert row
    assert [phase["skipped"] for phase in row["phases"]] == [True, False, False]


def test_status_why_and_logs_say_that_no_coordinator_runs(desk: Desk) -> None:
    gate = desk.gate()
    serve = desk.start("serve")
    serve.until("leading")
    assert not desk.say("status").startswith("no coordinator")
    desk.say("submit", desk.plan(f"echo here; cat {gate}"))
    follows = desk.start("logs", "-f", "1.1")
    follows.until("here")
    serve.send(signal.SIGTERM)
    assert serve.wait() == 0
    since = r"no coordinator runs since \S+ UTC: "
    follows.until(
        f"queue-1-1: {since}no coordinator watches its process, and this is its last known state"
    )
    assert re.match(f"{since}this is the last known state", desk.say("status"))
    assert re.match(f"{since}no coordinator watches", desk.say("why", "1.1"))


def test_the_keys_of_status_json_are_stable(desk: Desk, conn: Connection, epoch: int) -> None:
    add_feature(conn, {1: [], 2: [1]})
    claim(conn, epoch)
    actual = json.loads(desk.say("status", "--json"))
    members = [
        "slots",
        "paused_at",
        "coordinator",
        "lead_blocker",
        "features",
        "schedules",
        "refused_schedules",
    ]
    assert list(actual) == members
    assert actual["paused_at"] is None
    assert list(actual["coordinator"]) == ["epoch", "host", "pid", "version", "lead_at"]
    assert actual["slots"][1:] == [
        dict.fromkeys(["queue_id", "title", "status", "since", "job", "node", "waits_for"])
        | {"slot": slot, "draining": False, "pool": "local", "launcher": "local"}
        for slot in (2, 3)
    ]
    (feature,) = actual["features"]
    phases = feature.pop("phases")
    assert feature == {
        "id": 1,
        "title": "a",
        "status": "in_progress",
        "total_phases": 2,
        "phases_completed": 0,
        "phases_running": 1,
        "phases_failed": 0,
        "phases_blocked": 0,
        "paused_at": None,
        "cost_usd": None,
        "tokens_in": None,
        "tokens_out": None,
        "max_cost_usd": None,
        "costs": [],
    }
    since = phases[1].pop("since")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?[+-]\d\d:\d\d", since)
    assert phases[1] == {
        "queue_id": "queue-1-2",
        "feature_id": 1,
        "phase_number": 2,
        "title": "Phase 2",
        "status": "queued",
        "slot": None,
        "attempt": 0,
        "priority": 50,
        "depends_on_phases": [1],
        "error_message": None,
        "started_timestamp": None,
        "finished_timestamp": None,
        "waiting_for": "waits for phase 1, ready",
        "result": None,
        "skipped": False,
    }
    assert json.loads(desk.say("status", "1", "--json"))["features"][0]["id"] == 1


def test_results_are_printed_by_phase_and_by_feature(
    desk: Desk, conn: Connection, epoch: int
) -> None:
    add_feature(conn, {1: [], 2: [1]})
    claim(conn, epoch)
    conn.execute("""select pgcoord.set_result('queue-1-1', '{"summary": "done", "cost_usd": 1}')""")
    assert json.loads(desk.say("result", "1.1")) == {"summary": "done", "cost_usd": 1}
    assert json.loads(desk.say("result", "1")) == {"1": {"summary": "done", "cost_usd": 1}}
    (feature,) = json.loads(desk.say("status", "--json"))["features"]
    assert (feature["cost_usd"], feature["phases"][0]["result"]["summary"]) == (1, "done")
    tokens: dict[str, None] = dict.fromkeys(["tokens_in", "tokens_out"])
    assert feature["costs"] == [{"workflow": "work", "attempts": 1, "cost_usd": 1, **tokens}]
    assert desk.say("budget", "1", "2.5") == "feature 1 may cost $2.50"
    assert "$1.00 of $2.50" in desk.say("status")
    assert desk.say("budget", "1", "none") == "feature 1 may cost as much as it takes"
    refused = desk.call("budget", "1", "0")
    assert "the budget of feature 1 cannot be 0" in refused.stderr
    missing = desk.call("result", "1.2")
    assert (missing.returncode, missing.stderr) == (4, "pgcoord: phase queue-1-2 has no result\n")


def test_status_cuts_no_advice_at_the_width_of_a_terminal(desk: Desk, conn: Connection) -> None:
    assert desk.call("run", desk.plan("true")).returncode == 0
    conn.execute("select pgcoord.pause()")
    for columns in ("40", "80"):
        shown = desk.start("status", tty=True, COLUMNS=columns, NO_COLOR="1")
        assert shown.wait() == 0
        assert max(map(len, shown.output.splitlines())) <= int(columns)
        said = " ".join(shown.output.split())
        assert "this is the last known state; 'pgcoord serve' continues slots:" in said
        assert "('pgcoord resume')" in said


def test_status_watches_only_where_it_can_redraw(desk: Desk) -> None:
    refused = desk.start("status", "--watch", tty=True, TERM="dumb")
    assert refused.wait() == 2
    assert "that can redraw lines" in refused.output


def test_status_says_that_there_are_no_features(desk: Desk) -> None:
    assert desk.say("status").splitlines()[2:] == ["no unfinished features"]


def test_status_watch_redraws_until_it_is_interrupted(desk: Desk, conn: Connection) -> None:
    watch = desk.start("status", "--watch", tty=True)
    watch.until("no unfinished features")
    add_feature(conn, {1: []})
    watch.until("Feature 1: a")
    watch.send(signal.SIGINT)
    assert watch.wait() == 130
    assert "Traceback" not in watch.output


def test_a_lost_connection_is_one_line(desk: Desk, conn: Connection) -> None:
    watch = desk.start("status", "--watch", tty=True)
    watch.until("no unfinished features")
    conn.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where pid <> pg_backend_pid() and datname = current_database()"
    )
    assert watch.wait() == 6
    assert re.search(r"pgcoord: the database cannot be used: .*\r\n  Does it run", watch.output)
    assert "Traceback" not in watch.output


def test_why_gives_a_line_for_each_reason(desk: Desk, conn: Connection) -> None:
    add_feature(conn, {1: [], 2: [1, 7]})
    assert desk.say("why", "1.2").splitlines() == [
        "waits for phase 7, which does not exist",
        "waits for phase 1, queued",
        "says nothing of what is to be done: it has neither title nor prompt",
    ]


# Which database


def test_options_come_before_or_after_the_name_of_the_command(
    desk: Desk, dsn: str, tmp_path: Path
) -> None:
    (desk.folder / "pgcoord.toml").rename(tmp_path / "other.toml")
    plan = desk.plan("true")
    nowhere = {"DATABASE_URL": "host=/nowhere"}
    for arguments in (
        ["--dsn", dsn, "--config", "other.toml", "run", plan],
        ["run", plan, "--config", "other.toml", "--dsn", dsn],
        ["--dsn", "host=/nowhere", "run", plan, "--dsn", dsn, "--config", "other.toml"],
    ):
        desk.say(*arguments, **nowhere)


def test_libpq_variables_name_the_database(bare_desk: Desk, dsn: str) -> None:
    values = conninfo_to_dict(dsn)
    names = {
        "host": "PGHOST",
        "port": "PGPORT",
        "dbname": "PGDATABASE",
        "user": "PGUSER",
        "password": "PGPASSWORD",
    }
    variables = {name: str(values[key]) for key, name in names.items() if values.get(key)}
    assert bare_desk.say("status", **variables).endswith("no unfinished features")
    assert not (bare_desk.folder / ".pgcoord").exists()


# Mistakes


def test_each_mistake_has_an_exit_status_and_a_line(desk: Desk, conn: Connection, dsn: str) -> None:
    add_feature(conn, {1: []})
    plan = desk.plan("true")
    desk.write("nonsense.md", "hello\n")
    desk.write("unknown.md", "# A\n## Phase 1: B\nWorkflow: sb\n\nC\n")
    desk.write("odd.toml", f"{CONFIGURATION}tmeout = 3\n")
    desk.write("empty.toml", "")
    elsewhere = make_conninfo(dsn, dbname="postgres")
    for arguments, status, message in [
        (["why", "9.9"], 4, "there is no phase 9.9"),
        (["retry", "queue-1-7"], 4, "there is no phase queue-1-7"),
        (["status", "7"], 4, "there is no feature 7"),
        (["cancel", "7"], 4, "there is no feature 7"),
        (["pause", "7"], 4, "there is no feature 7"),
        (["retry", "1.1"], 3, "phase queue-1-1 is queued: only a failed or cancelled one can"),
        (["logs", "1.1"], 3, "queue-1-1 has not started, so it has no log: no coordinator runs"),
        (["run", "nothing.md"], 5, "nothing.md: no such file or directory"),
        (["run", "."], 5, ".: is a directory"),
        (["run", "nonsense.md"], 5, "nonsense.md:1: no phase: expected a heading"),
        (["run", "unknown.md"], 5, "unknown.md:3: Workflow: 'sb' is not declared; expected one"),
        (["submit", "unknown.md"], 5, "unknown.md:3: Workflow: 'sb' is not declared"),
        (["run", plan, "--config", "no"], 5, f"{desk.folder}/no: no such file or directory"),
        (["serve", "--config", "odd.toml"], 5, f"{desk.folder}/odd.toml: workflow.sh.tmeout: unkn"),
        (["serve", "--config", "empty.toml"], 5, f"{desk.folder}/empty.toml: no workflow is decl"),
        (["status", "--dsn", "foo bar"], 6, 'this is not a DSN: missing "="'),
        (["status", "--dsn", f"{dsn} dbname=nosuch"], 6, "the database cannot be used: "),
        (["serve", "--dsn", f"{dsn} dbname=nosuch"], 6, "the database cannot be used: "),
        (["run", plan, "--dsn", "host=/nowhere"], 6, "the database cannot be used: "),
        (["status", "--dsn", elsewhere], 6, "database 'postgres' has no pgcoord schema"),
        (["run", plan, "--dsn", elsewhere], 6, "database 'postgres' has no pgcoord schema"),
        (["serve", "--dsn", elsewhere], 6, "database 'postgres' has no pgcoord schema"),
        (["db", "status"], 6, "no database: no .pgcoord/ with an embedded Postgres in"),
        (["db", "stop"], 6, "no database: no .pgcoord/ with an embedded Postgres in"),
    ]:
        result = desk.call(*arguments)
        assert result.returncode == status, (arguments, result)
        first, *more = (line for line in result.stderr.splitlines() if "serving on" not in line)
        assert first.startswith(f"pgcoord: {message}"), arguments
        assert all(line.startswith(("  ", "pgcoord: nonsense.md:")) for line in more), result
        assert result.stdout == "", result
    assert len(statuses(conn)) == 1, "something was submitted"


MALFORMED = "postgresql://ada:%zhunter@here/db"


FAULTY_DSNS: Any = [
    (["status"], MALFORMED),
    (["psql"], MALFORMED),
    (["serve", "--port", "0"], MALFORMED),
    (["status"], "postgresql//ada:hunter@here/db"),
    (["status"], "postgresql://ada:hunter@[::1/db"),
    (["status"], "postgresql://ada:p/hunter@here/db"),
    (["status"], "postgres://ada:p@hunter@here/db"),
    (["status"], "host=here password=the hunter"),
]


def test_a_dsn_with_a_fault_is_refused_without_its_password(desk: Desk) -> None:
    desk.write("pgcoord.toml", "[workflow.work]\ncommand = ['true']")
    for command, wrong in FAULTY_DSNS:
        with case(command, wrong):
            result = desk.call(*command, "--dsn", wrong)
            assert result.returncode == 6, result
            assert "pgcoord: this is not a DSN: " in result.stderr
            assert "hunter" not in result.stderr + result.stdout


WRONG_USAGE: Any = [
    ["status", "0"],
    ["status", "one"],
    ["status", "99999999999"],
    ["status", "--watch"],
    ["cancel", "0"],
    ["slots", "-1"],
    ["slots", "many"],
    ["priority", "1.1", "first"],
    ["logs", "1.1", "--attempt", "0"],
    ["run"],
    ["statsu"],
]


def test_wrong_usage_ends_with_2(desk: Desk) -> None:
    for arguments in WRONG_USAGE:
        with case(arguments):
            result = desk.call(*arguments)
            assert (result.returncode, result.stdout) == (2, "")
            usage, _, *rest = result.stderr.splitlines()
            assert usage.startswith("Usage: pgcoord")
            assert any(line.startswith("Error: ") for line in rest)
            assert "Traceback" not in result.stderr


def test_a_missing_database_is_reported_with_the_way_to_get_one(bare_desk: Desk) -> None:
    for arguments in (["status"], ["why", "1.1"], ["upgrade"], ["pause"]):
        result = bare_desk.call(*arguments)
        assert result.returncode == 6
        assert result.stderr.splitlines() == [
            f"pgcoord: no database: no .pgcoord/ with an embedded Postgres in"
            f" {bare_desk.folder} or above",
            "  Give --dsn or DATABASE_URL; or 'pgcoord run PLAN' makes one here.",
        ]
    assert not (bare_desk.folder / ".pgcoord").exists()


def test_a_missing_configuration_is_reported_with_the_way_to_make_one(desk: Desk) -> None:
    (desk.folder / "pgcoord.toml").unlink()
    for arguments in (["run", desk.plan("true")], ["serve"]):
        result = desk.call(*arguments)
        assert result.returncode == 5
        assert "no pgcoord.toml" in result.stderr
        assert '[workflow.build]\n    command = ["make"' in result.stderr


@pytest.mark.parametrize("place", [".pgcoord", ".pgcoord/runs", "pgcoord.toml/runs"])
def test_a_folder_that_cannot_be_written_to_is_found_before_anything_is_queued(
    desk: Desk, conn: Connection, place: str
) -> None:
    if place.endswith("toml/runs"):
        desk.write("pgcoord.toml", f'{CONFIGURATION}\n[log]\nfolder = "{place}"\n')
    else:
        (desk.folder / place).parent.mkdir(exist_ok=True)
        desk.write(place, "a file, which nobody can write into, not even root")
    plan = desk.plan("true")
    for arguments in (["run", plan], ["serve"]):
        result = desk.call(*arguments)
        assert result.returncode == 7
        assert re.match(
            r"pgcoord: the runs cannot be kept in .*runs: (file ex|not a d)", result.stderr
        )
        assert len(result.stderr.splitlines()) == 2
    assert statuses(conn) == {}


def test_an_embedded_database_that_cannot_be_made_is_one_line(bare_desk: Desk) -> None:
    bare_desk.write(".pgcoord", "a file")
    result = bare_desk.call("run", bare_desk.plan("true"))
    assert result.returncode == 7
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("pgcoord: cannot use the state folder")


def test_an_argument_that_is_no_text_is_one_line(desk: Desk) -> None:
    command = [sys.executable.encode(), b"-m", b"pgcoord", b"why", b"\xff"]
    result = subprocess.run(command, cwd=desk.folder, env=desk.environment, capture_output=True)
    assert result.returncode == 5
    assert b"is not text in UTF-8" in result.stderr
    assert b"Traceback" not in result.stderr


def test_a_reader_that_has_gone_is_no_error(desk: Desk) -> None:
    desk.say("run", desk.plan("echo one"))
    for arguments in (["status"], ["status", "--json"], ["logs", "1.1"], ["--help"]):
        ours, theirs = os.pipe()
        os.close(ours)
        with open(theirs, "wb") as output:
            command = [sys.executable, "-m", "pgcoord", *arguments]
            result = subprocess.run(
                command,
                cwd=desk.folder,
                env=desk.environment,
                stdout=output,
                stderr=subprocess.PIPE,
                timeout=PATIENCE,
            )
        assert result.stderr == b"", arguments


def test_help_imports_nothing_that_takes_long(desk: Desk) -> None:
    for arguments in (["--help"], ["run", "--help"], ["db", "--help"]):
        command = [sys.executable, "-X", "importtime", "-m", "pgcoord", *arguments]
        result = subprocess.run(
            command, cwd=desk.folder, env=desk.environment, capture_output=True, text=True
        )
        assert result.returncode == 0
        assert result.stdout.startswith("Usage: ")
        for module in ("psycopg", "rich", "asyncio", "markdown_it"):
            assert not re.search(rf"\| +{module}$", result.stderr, re.MULTILINE), module


def test_version(desk: Desk) -> None:
    assert re.fullmatch(r"pgcoord \d+\.\d+\.\d+", desk.say("--version"))


def test_a_server_without_a_free_connection_is_not_said_to_be_down(
    desk: Desk, dsn: str, conn: Connection
) -> None:
    conn.execute("create role crowded login connection limit 0")
    try:
        result = desk.call("--dsn", make_conninfo(dsn, user="crowded"), "status")
    finally:
        conn.execute("drop role crowded")
    assert result.returncode == 6
    assert "too many connections" in result.stderr
    assert "It runs, but lacks connections, memory or room" in result.stderr


# how little a short command does


@pytest.mark.parametrize(
    ("words", "others"),
    [("status", set()), ("why 1.1", {"rich", "pgcoord.commands.progress"})],
)
def test_a_short_command_imports_only_what_it_does(
    desk: Desk, conn: Connection, words: str, others: set[str]
) -> None:
    add_feature(conn, {1: []})
    command = desk.execute(*words.split(), PYTHONPROFILEIMPORTTIME="1")
    assert command.wait() == 0
    modules = {*re.findall(r"^import time: .* \| +(\S+)$", command.output, re.MULTILINE)}
    ours = {"pgcoord.commands.work", "pgcoord.configuration.model", "pgcoord.coordination"}
    others |= ours | {"psycopg_pool", "rich.live", "typer.rich_utils", "tomllib", "starlette"}
    assert "pgcoord.database.reads" in modules
    assert modules & others == set()


@pytest.mark.parametrize("words", ["status", "why 1.1", "retry 1.1", "logs 1.1", "doctor"])
def test_a_short_command_looks_for_no_garbage(desk: Desk, conn: Connection, words: str) -> None:
    add_feature(conn, {1: []})
    program = "import gc; gc.set_debug(gc.DEBUG_STATS); from pgcoord.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *words.split()],
        cwd=desk.folder,
        env=desk.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    # Python collects once more at its end.
    collections = re.findall(r"^gc: objects in each generation: ([\d ]+)$", done.stderr, re.M)
    assert collections
    assert max(sum(map(int, each.split())) for each in collections) < 10_000


@pytest.mark.parametrize("name", sorted(_MODULE_OF))
def test_a_frequent_command_is_the_same_with_all_others(name: str) -> None:
    alone, among_all = (help_of(name, words=words) for words in ([name], []))
    assert (alone.exit_code, alone.output) == (0, among_all.output)


def test_help_that_is_asked_for_here_leaves_the_log_as_it_was() -> None:
    loggers = [logging.getLogger(name) for name in ("", "pgcoord", "psycopg")]
    before = [(each.level, [*each.handlers]) for each in loggers]
    help_of("status")
    assert [(each.level, [*each.handlers]) for each in loggers] == before
