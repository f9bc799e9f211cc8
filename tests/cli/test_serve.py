"""`pgcoord serve` and `pgcoord report` as programs: how they start, stop, and find each other."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing, suppress
from http.client import HTTPConnection
from typing import Any

import psycopg
import pytest
from support import PATIENCE, wait_until
from support.database import Connection, add_feature, statuses
from support.desk import CONFIGURATION, Desk, address_of, until
from support.ports import free_port
from support.serving import SECRET
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from pgcoord.database import schema
from pgcoord.database.embedded import EmbeddedPostgres

REPORT = f"{sys.executable} -m pgcoord report"


def configuration(port: int = 0, server: str = "", linger: str = "0s") -> str:
    return f"""
        [server]
        port = {port}
        {server}

        [workflow.sh]
        command = ["sh", "-c", "{{prompt}}"]
        reports = true
        default = true
        linger = "{linger}"
    """


def get(address: str, path: str, method: str = "GET", body: Any = None) -> tuple[int, Any]:
    with closing(HTTPConnection(address, timeout=PATIENCE)) as connection:
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"null")


@pytest.fixture
def reporting(desk: Desk) -> Desk:
    """A desk whose workflows have to report."""
    desk.write("pgcoord.toml", configuration())
    return desk


def test_a_workflow_reports_with_its_own_variables(
    reporting: Desk, dsn: str, conn: Connection
) -> None:
    serving = reporting.start("serve")
    serving.until("leading")
    reporting.say(
        "submit",
        reporting.plan(f"{REPORT} completed --pr 12", f"{REPORT} failed --error 'no luck'"),
    )
    until(dsn, "count(*) = 1 from phase_queue where status = 'failed'")
    rows = conn.execute("select * from phase_queue order by phase_number").fetchall()
    assert [(row["status"], row["pr_number"]) for row in rows] == [
        ("completed", 12),
        ("failed", None),
    ]
    assert rows[1]["error_message"] == "no luck"
    # Ended without linger, a process may leave the report that was taken, which is then repeated.
    results = conn.execute(
        "select reported, sender from pgcoord.webhook_delivery where result = 'taken' order by id"
    )
    assert [tuple(row.values()) for row in results] == [
        ("completed", f"{rows[0]['adw_id']} (webhook)"),
        ("failed", f"{rows[1]['adw_id']} (webhook)"),
    ]


def test_a_report_that_cannot_be_sent_is_taken_when_the_process_has_ended(
    desk: Desk, dsn: str, conn: Connection
) -> None:
    with socket.socket() as nobody:  # bound, and not listening: connections are refused
        nobody.bind(("127.0.0.1", 0))
        url = f'public_url = "http://127.0.0.1:{nobody.getsockname()[1]}"'
        desk.write("pgcoord.toml", configuration(server=url))
        desk.start("serve").until("leading")
        desk.say("submit", desk.plan(f"{REPORT} completed --patience 0 > said; exit 3"))
        until(dsn, "count(*) = 1 from phase_queue where status = 'completed'")
    assert "is reported completed: kept in" in (desk.folder / "said").read_text()
    delivery = conn.execute("select sender, result from pgcoord.webhook_delivery").fetchone()
    assert delivery
    assert delivery["sender"].endswith("(spooled report)")
    assert delivery["result"] == "taken"


@pytest.mark.parametrize("off", [600, -600])
def test_a_node_whose_clock_is_off_reports_by_the_servers(
    reporting: Desk, dsn: str, conn: Connection, off: int
) -> None:
    (reporting.folder / "skewed.py").write_text(
        "import datetime, sys, time\n"
        f"real = time.time\ntime.time = lambda: real() + {off}\n"
        "class Skewed(datetime.datetime):\n"
        "    @classmethod\n"
        "    def now(cls, tz=None):\n"
        "        return cls.fromtimestamp(time.time(), tz)\n"
        "datetime.datetime = Skewed\n"
        "from pgcoord.__main__ import main\n"
        "sys.exit(main())\n"
    )
    serving = reporting.start("serve")
    serving.until("leading")
    # Without a folder to keep it in, as where nodes share none: it arrives, or is lost.
    script = f"PGCOORD_PROMPT_FILE= {sys.executable} skewed.py report completed --patience 0"
    reporting.say("submit", reporting.plan(script))
    until(dsn, "count(*) = 1 from pgcoord.attempt where exited_at is not null")
    assert statuses(conn) == {1: "completed"}
    side = "ahead of" if off > 0 else "behind"
    serving.until(rf"the sender's clock is 0:(10:\d\d|09:5\d) {side} this server's")


def test_a_report_made_while_no_server_runs_is_taken_once_by_the_next(
    desk: Desk, dsn: str, conn: Connection
) -> None:
    desk.write("pgcoord.toml", configuration(free_port()))
    gate = desk.gate()
    first = desk.start("serve")
    first.until("leading")
    desk.say("submit", desk.plan(f"cat {gate}; {REPORT} completed; echo $? > status"))
    first.until("started, pid")
    first.send(signal.SIGTERM)
    first.wait()
    gate.write_text("")  # it reports now, without a server, and retries
    wait_until(lambda: list(desk.folder.glob(".pgcoord/runs/**/report.json")) != [])
    desk.start("serve").until("taken over")
    until(dsn, "count(*) = 1 from pgcoord.attempt where exited_at is not null")
    assert statuses(conn) == {1: "completed"}
    taken = conn.execute("select from pgcoord.webhook_delivery where result = 'taken'").fetchall()
    assert len(taken) == 1


def test_a_kept_report_is_taken_by_the_next_coordinator(
    reporting: Desk, dsn: str, conn: Connection
) -> None:
    gate = reporting.gate()
    first = reporting.start("serve")
    first.until("leading")
    unreachable = "PGCOORD_REPORT_URL=http://127.0.0.1:1/"
    script = f"{unreachable} {REPORT} completed --patience 0 > said; cat {gate}"
    reporting.say("submit", reporting.plan(script))
    first.until("started, pid")
    first.send(signal.SIGKILL)
    first.wait()
    said = reporting.folder / "said"
    wait_until(lambda: said.exists() and "kept in" in said.read_text())
    assert statuses(conn) == {1: "running"}
    reporting.start("serve").until("its spooled report is taken")
    assert statuses(conn) == {1: "completed"}


def test_a_kept_report_that_the_secret_did_not_sign_is_not_taken(
    reporting: Desk, dsn: str, conn: Connection
) -> None:
    serving = reporting.start("serve")
    serving.until("leading")
    forged = "PGCOORD_WEBHOOK_SECRET=whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
    reporting.say("submit", reporting.plan(f"PGCOORD_REPORT_URL= {forged} {REPORT} completed"))
    serving.until("its spooled report is not taken: it is not signed by the secret of its attempt")
    until(dsn, "count(*) = 1 from phase_queue where status = 'failed'")
    row = conn.execute("select error_message from phase_queue").fetchone()
    assert row == {"error_message": "exited 0 without reporting"}


def test_a_refusal_of_the_server_has_an_exit_status(reporting: Desk, dsn: str) -> None:
    reporting.write("pgcoord.toml", configuration(linger="30s"))
    reporting.start("serve").until("leading")
    script = (
        f"{REPORT} completed; {REPORT} completed > again; {REPORT} failed 2> other;"
        " echo $? > status"
    )
    reporting.say("submit", reporting.plan(script))
    until(dsn, "count(*) = 1 from pgcoord.attempt where exited_at is not null")
    assert (reporting.folder / "again").read_text().strip().endswith("completed, as it was before")
    assert "has ended completed" in (reporting.folder / "other").read_text()
    assert (reporting.folder / "status").read_text() == "3\n"


def test_report_outside_of_a_workflow_says_so(desk: Desk) -> None:
    result = desk.call("report", "completed")
    assert (result.returncode, result.stderr.splitlines()) == (
        5,
        [
            "pgcoord: PGCOORD_QUEUE_ID is not set",
            "  'pgcoord report' is for processes that pgcoord started.",
        ],
    )


def test_a_port_that_is_taken_is_one_line_with_the_remedy(desk: Desk) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = desk.call("serve", "--port", str(port))
    assert result.returncode == 7
    assert result.stderr.splitlines() == [
        f"pgcoord: cannot serve on 127.0.0.1:{port}: address already in use",
        "  Stop what uses it (another 'pgcoord serve'?), or choose another: --port.",
    ]


def test_another_address_needs_a_token(desk: Desk) -> None:
    result = desk.call("serve", "--host", "0.0.0.0")
    assert result.returncode == 7
    first, hint = result.stderr.splitlines()
    assert first.startswith("pgcoord: 0.0.0.0 can be reached by others: PGCOORD_TOKEN")
    assert "PGCOORD_TOKEN" in hint
    program = desk.start("serve", "--host", "0.0.0.0", PGCOORD_TOKEN="t" * 20)
    program.until("leading")
    assert get(address_of(program), "/api/v1/queue")[0] == 401
    with pytest.raises(InvalidStatus):
        connect(f"ws://{address_of(program)}/ws/queue")
    program.send(signal.SIGTERM)
    assert program.wait() == 0
    assert "ERROR" not in program.output
    assert "t" * 20 not in program.output


def test_health_is_answered_before_the_database_is_up(bare_desk: Desk) -> None:
    postgres = EmbeddedPostgres(bare_desk.folder / ".pgcoord")
    postgres.start()
    with psycopg.connect(postgres.dsn, autocommit=True) as conn:
        schema.upgrade(conn)
    postgres.stop()
    program = bare_desk.start("serve", "--dsn", postgres.dsn)
    address = address_of(program)
    program.until("trying again")
    with closing(HTTPConnection(address, timeout=PATIENCE)) as connection:
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b"ok\n"
    status, answer = get(address, "/readyz")
    assert (status, answer["ready"]) == (503, False)
    assert "the database cannot be used" in answer["reason"]
    postgres.start()
    program.until("leading")
    assert get(address, "/readyz") == (200, {"ready": True, "role": "leading"})
    program.send(signal.SIGTERM)
    assert program.wait() == 0


def test_a_hang_up_has_a_changed_configuration_read(desk: Desk, dsn: str, conn: Connection) -> None:
    program = desk.start("serve")
    program.until("leading")
    gate = desk.gate()
    desk.say("submit", desk.plan(f"cat {gate}"))
    program.until("started, pid")
    desk.write(
        "pgcoord.toml",
        CONFIGURATION.replace('["sh", "-c", "{prompt}"]', '["echo", "anew"]').replace("0", "1")
        + '[workflow.late]\ncommand = ["echo", "late"]\npool = "side"\n'
        + '[pool.side]\nlauncher = "local"\nslots = 1\n',
    )
    program.send(signal.SIGHUP)
    program.until("pgcoord.toml: workflow sh changed, workflow late added, pool side added")
    program.until("effective only after a restart: server changed")
    program.until(r"leading \(lead 2\)")
    locks = "pg_locks where locktype = 'advisory' and classid = 7405 and granted"
    assert len(conn.execute(f"select from {locks}".encode()).fetchall()) == 1
    desk.write("plan.md", "# P\n## Phase 1: A\nx\n## Phase 2: B\nWorkflow: late\nx\n")
    desk.say("submit", "plan.md")
    until(dsn, "count(*) = 2 from phase_queue where status = 'completed'")
    assert [desk.say("logs", phase) for phase in ("2.1", "2.2")] == ["anew", "late"]
    desk.write("pgcoord.toml", "[workflow.sh]\ncommand = 1\n")
    program.send(signal.SIGHUP)
    program.until("the configuration is unchanged: .*workflow.sh.command: expected a list")
    gate.write_text("")
    until(dsn, "count(*) = 3 from phase_queue where status = 'completed'")
    program.send(signal.SIGTERM)
    assert program.wait() == 0
    assert statuses(conn, 1) == {1: "completed"}


def test_a_lost_terminal_stops_serve_in_order(desk: Desk) -> None:
    program = desk.execute("serve", tty=True)
    program.until("leading")
    keyboard, program._output = program._output, os.open(os.devnull, os.O_RDONLY)
    os.close(keyboard)  # the window is closed, and the shell passes that on
    program.send(signal.SIGHUP)
    assert program._process.wait(PATIENCE) == 128 + signal.SIGHUP


def test_a_stop_closes_streams(desk: Desk) -> None:
    program = desk.start("serve")
    program.until("leading")
    address = address_of(program)
    with (
        connect(f"ws://{address}/ws/queue") as client,
        closing(HTTPConnection(address, timeout=PATIENCE)) as stream,
    ):
        stream.request("GET", "/events")
        events = stream.getresponse()
        assert events.readline() == b"retry: 1000\n"
        assert json.loads(client.recv())["type"] == "snapshot"
        program.send(signal.SIGTERM)
        with pytest.raises(Exception, match="1012"):
            client.recv()
        while events.readline():
            pass
        assert program.wait() == 0  # not that of a stop that took too long


def test_a_stop_waits_for_no_receiver_that_never_ends_its_answer(desk: Desk) -> None:
    asked, over = threading.Event(), threading.Event()

    def drip() -> None:
        with suppress(OSError):
            connection, _ = server.accept()
            with connection:
                asked.set()
                connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
                while not over.wait(0.1):
                    connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=drip, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        target = f'[notify.slow]\nevents = ["finished"]\nurl = "{url}"\nsecret = "HOOK"\n'
        desk.write("pgcoord.toml", CONFIGURATION + target)
        program = desk.start("serve", HOOK=SECRET)
        try:
            program.until("leading")
            desk.say("submit", desk.plan("true"))
            assert asked.wait(PATIENCE)
            program.send(signal.SIGTERM)
            assert program.wait() == 0
        finally:
            over.set()


@pytest.mark.scale
def test_a_stop_ends_although_the_schema_cannot_be_read(desk: Desk, dsn: str) -> None:
    with psycopg.connect(dsn, application_name="coffee") as other:
        other.execute("lock table pgcoord.migration")
        program = desk.start("serve")
        program.until(r"pgcoord: waits for a lock of process \d+ \(user .*, coffee\), in its")
        program.send(signal.SIGTERM)
        assert program.wait() == 0


@pytest.mark.scale
def test_a_stop_ends_although_the_database_is_frozen(desk: Desk, conn: Connection) -> None:
    program = desk.start("serve")
    program.until("leading")
    sessions = conn.execute(
        "select pid from pg_stat_activity"
        " where application_name like 'pgcoord%' and datname = current_database()"
    ).fetchall()
    try:
        for each in sessions:
            os.kill(each["pid"], signal.SIGSTOP)
        program.send(signal.SIGTERM)
        program.until("no clean stop within")
        assert program.wait() == 128 + signal.SIGTERM
    finally:
        for each in sessions:
            os.kill(each["pid"], signal.SIGCONT)


def test_a_connection_that_is_lost_as_the_schema_is_checked_is_tried_again(
    desk: Desk, dsn: str, conn: Connection
) -> None:
    with conn.transaction():
        conn.execute("lock table pgcoord.migration")
        serving = desk.start("serve")
        ends = (
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and wait_event_type = 'Lock'"
        )
        with psycopg.connect(dsn, autocommit=True) as other:
            wait_until(lambda: other.execute(ends).fetchone())
        serving.until("trying again")
    serving.until("leading")


@pytest.mark.scale
def test_a_request_that_waits_when_the_server_is_stopped_is_answered(
    desk: Desk, dsn: str, conn: Connection
) -> None:
    add_feature(conn, {1: []})
    serving = desk.start("serve")
    address = address_of(serving)
    serving.until("leading")
    conn.execute("select pgcoord.pause()")
    answers: list[tuple[int, Any]] = []
    with conn.transaction():
        conn.execute("select from phase_queue for update")

        def ask() -> None:
            answers.append(get(address, "/api/v1/queue/queue-1-1/cancel", "POST", {}))

        asking = threading.Thread(target=ask)
        asking.start()
        waits = (
            "select pid from pg_stat_activity where wait_event_type = 'Lock'"
            " and datname = current_database() and query like '%cancel_phase%'"
        )
        with psycopg.connect(dsn, autocommit=True) as watch:
            wait_until(lambda: watch.execute(waits).fetchone())
        serving.send(signal.SIGTERM)
        assert serving.wait() == 0
        asking.join()
    ((status, answer),) = answers
    assert (status, answer["error"]) in ((503, "unavailable"), (503, "locked"))
    assert "Traceback" not in serving.output


def test_the_script_of_the_specification_works(desk: Desk, dsn: str, conn: Connection) -> None:
    """Section 9.2, with the ids that were returned, under --insecure-webhooks."""
    gate = desk.gate()
    desk.write("pgcoord.toml", configuration().replace("{prompt}", f"cat {gate}"))
    program = desk.start("serve", "--insecure-webhooks")
    program.until("unsigned reports are accepted")
    program.until("leading")
    url = f"http://{address_of(program)}"

    def curl(path: str, *arguments: str) -> Any:
        result = subprocess.run(
            ["curl", "-sS", *arguments, url + path], capture_output=True, text=True, check=True
        )
        return json.loads(result.stdout)

    post = ("-X", "POST", "-H", "Content-Type: application/json")
    feature = curl(
        "/api/v1/planned-features",
        *post,
        "-d",
        '{"title": "Test Feature", "description": "Multi-phase test", "estimated_hours": 10}',
    )
    path = f"/api/v1/planned-features/{feature['id']}"
    curl(f"{path}/generate-implementation", "-X", "POST")
    with connect(f"{url.replace('http', 'ws')}/ws/queue") as client:
        assert json.loads(client.recv())["type"] == "snapshot"
        curl(f"{path}/execute", "-X", "POST")
        program.until("started, pid")
        [running] = [row for row in curl("/api/v1/queue") if row["status"] == "running"]
        report = {
            "queue_id": running["queue_id"],
            "feature_id": feature["id"],
            "phase_number": 1,
            "status": "completed",
            "adw_id": running["adw_id"],
        }
        wrong = curl(
            "/workflow-complete", *post, "-d", json.dumps({**report, "adw_id": "adw-test123"})
        )
        assert wrong["error"] == "stale_attempt"
        done = curl("/workflow-complete", *post, "-d", json.dumps(report))
        assert (done["outcome"], done["repeated"]) == ("completed", False)
        message = json.loads(client.recv())
        while message["type"] != "workflow_completed":
            message = json.loads(client.recv())
        data = message["data"]
        assert data | report == data
    # What depends on it is launched, and both at the same time.
    program.until(r"queue-\d+-2\b.*started, pid")
    program.until(r"queue-\d+-3\b.*started, pid")
    rows = [row for row in curl("/api/v1/queue") if row["feature_id"] == feature["id"]]
    assert [row["depends_on_phases"] for row in rows] == [[], [1], [1]]
    assert rows[0]["status"] == "completed"


def test_serve_leads_without_the_modules_of_the_web_server() -> None:
    code = (
        "import sys; from pgcoord.__main__ import make_app; make_app(['serve'])\n"
        "import pgcoord.commands.running, pgcoord.coordination.coordinator\n"
        "import pgcoord.http.access, pgcoord.http.sockets, pgcoord.database.schema\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    later = {"uvicorn", "starlette", "jinja2", "websockets", "markdown_it"}
    assert later & {*done.stdout.split()} == set()


def imported_by(output: str) -> set[str]:
    """The modules that an interpreter with PYTHONPROFILEIMPORTTIME has printed."""
    return {*re.findall(r"^import time: .* \| +(\S+)$", output, re.MULTILINE)}


def test_serve_imports_only_what_it_does(desk: Desk) -> None:
    serve = desk.execute("serve", PYTHONPROFILEIMPORTTIME="1")
    serve.until("leading")
    status, _ = get(address_of(serve), "/api/v1/queue")
    serve.send(signal.SIGTERM)
    assert (status, serve.wait()) == (200, 0)
    modules = imported_by(serve.output)
    of_pages = {"jinja2", "markupsafe", "markdown_it", "pgcoord.http.panel.routes"}
    of_streams = {"websockets", "uvicorn.protocols.websockets.websockets_sansio_impl"}
    of_monitoring = {"prometheus_client", "pgcoord.http.metrics"}
    of_github = {"gidgethub", "httpx", "httpx2", "pgcoord.github.client"}
    of_plans = {"pgcoord.planner.planning", "pgcoord.plan.parsing"}
    of_engines = {"pgcoord.runs.job", "pgcoord.runs.ray", "pgcoord.runs.slurm", "urllib.request"}
    of_worktrees = {"pgcoord.runs.worktree", "argparse"}
    of_host_names = {"encodings.idna", "stringprep"}
    on_demand = of_pages | of_streams | of_monitoring | of_github | of_plans | of_engines
    assert (on_demand | of_worktrees | of_host_names | {"rich"}) & modules == set()
    assert {"uvicorn", "starlette"} <= modules


def test_serve_says_what_to_do_when_the_schema_was_dropped(desk: Desk, conn: Connection) -> None:
    serve = desk.start("serve")
    serve.until("leading")
    conn.execute("drop schema pgcoord_private cascade")
    conn.execute("notify pgcoord_wake")
    serve.until(r'"pgcoord_private" does not exist \(\'pgcoord doctor\' says what is wrong')
    assert "rules of the tables" in desk.call("doctor").stdout
