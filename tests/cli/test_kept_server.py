"""`pgcoord serve` and `run` keep their embedded Postgres up: each way in which it can go."""

import fcntl
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection

import psycopg
import pytest
from support import PATIENCE, wait_until
from support.database import kill_server
from support.desk import Desk, Program, address_of, until

from pgcoord.database.embedded import EmbeddedPostgres

AGAIN = "was gone: started it again"


def server_of(desk: Desk) -> EmbeddedPostgres:
    return EmbeddedPostgres(desk.folder / ".pgcoord")


def kill_postmaster(desk: Desk) -> None:
    pid = server_of(desk).server.data / "postmaster.pid"
    os.kill(int(pid.read_text().splitlines()[0]), signal.SIGKILL)


def pg_ctl(desk: Desk, *arguments: str) -> None:
    server = server_of(desk)
    command = [*server._identity().prefix, str(server.binaries.directory / "pg_ctl"), "-D", "data"]
    done = subprocess.run([*command, *arguments], cwd=server.server.data.parent, check=False)
    assert done.returncode == 0


def kill_and_spoil(desk: Desk) -> Callable[[], object]:
    """Kill the server, whose settings keep it from starting; return a call that repairs them."""
    settings = server_of(desk).server.data / "postgresql.conf"
    before = settings.read_text()
    settings.write_text(before + "\nno_such_setting = 1\n")
    kill_server(server_of(desk))
    return lambda: settings.write_text(before)


def ready(program: Program) -> tuple[int, str]:
    with closing(HTTPConnection(address_of(program), timeout=PATIENCE)) as connection:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()).get("reason", "")


def page(program: Program) -> tuple[int, str]:
    with closing(HTTPConnection(address_of(program), timeout=PATIENCE)) as connection:
        connection.request("GET", "/", headers={"accept": "text/html"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_serve_starts_a_killed_server_again_and_nothing_runs_twice(bare_desk: Desk) -> None:
    desk = bare_desk
    serve = desk.start("serve")
    serve.until("leading")
    gate = desk.gate()
    one = f"echo one >> said; cat {gate}; echo end >> said"
    desk.say("submit", desk.plan(one, "echo two >> said"))
    serve.until("started, pid")
    kill_postmaster(desk)
    serve.until(AGAIN)
    serve.until(r"leading \(lead 2\)")
    gate.write_text("")
    dsn = server_of(desk).dsn
    until(dsn, "count(*) = 2 from phase_queue where status = 'completed'")
    until(dsn, "count(*) = 2 from pgcoord.attempt where outcome = 'completed'")
    assert (desk.folder / "said").read_text().split() == ["one", "end", "two"]
    assert "It is embedded" not in serve.output


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_serve_starts_a_server_again_that_pg_ctl_has_stopped(bare_desk: Desk, mode: str) -> None:
    serve = bare_desk.start("serve")
    serve.until("leading")
    pg_ctl(bare_desk, "-m", mode, "-W", "stop")  # waiting, it would wait for the new server
    serve.until(AGAIN)
    serve.until(r"leading \(lead 2\)")


def test_a_process_that_ends_while_the_server_is_gone_is_recorded(bare_desk: Desk) -> None:
    desk = bare_desk
    serve = desk.start("serve")
    serve.until("leading")
    gate = desk.gate()
    desk.say("submit", desk.plan(f"cat {gate}; echo end >> said"))
    serve.until("started, pid")
    with (server_of(desk).state / "postgres" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # holds up the start
        kill_server(server_of(desk))
        gate.write_text("")
        serve.until("trying again in")
        wait_until((desk.folder / "said").exists)
    serve.until(r"leading \(lead 2\)")
    until(server_of(desk).dsn, "count(*) = 1 from phase_queue where status = 'completed'")
    assert (desk.folder / "said").read_text() == "end\n"


def test_run_goes_on_after_its_server_was_killed(bare_desk: Desk) -> None:
    desk = bare_desk
    gate = desk.gate()
    run = desk.start("run", desk.plan(f"echo one >> said; cat {gate}", "echo two >> said"))
    wait_until((desk.folder / "said").exists)
    kill_postmaster(desk)
    run.until(AGAIN)
    gate.write_text("")
    assert run.wait() == 0, run.output
    assert (desk.folder / "said").read_text().split() == ["one", "two"]


def test_a_server_that_db_stop_has_stopped_is_left_stopped(bare_desk: Desk) -> None:
    desk = bare_desk
    serve = desk.start("serve")
    serve.until("leading")
    desk.say("db", "stop")
    serve.until(r"was stopped by 'pgcoord db stop' \('pgcoord db start' starts it\.\)")
    status, reason = ready(serve)
    assert (status, "was stopped by 'pgcoord db stop'" in reason) == (503, True), reason
    assert not server_of(desk).running()
    assert AGAIN not in serve.output
    desk.say("db", "start")
    serve.until(r"leading \(lead 2\)")
    kill_postmaster(desk)
    serve.until(AGAIN)
    serve.until(r"leading \(lead 3\)")


def test_a_server_that_cannot_start_is_said_everywhere_and_tried_until_it_can(
    bare_desk: Desk,
) -> None:
    desk = bare_desk
    serve = desk.start("serve")
    serve.until("leading")
    repair = kill_and_spoil(desk)
    said = serve.until(r'trying again in .* does not start: .*"no_such_setting".*\n')[0]
    assert f"the server's log is {server_of(desk).server.log}" in said
    status, reason = ready(serve)
    assert (status, "no_such_setting" in reason) == (503, True), reason
    assert re.search(r"; next start at \d\d:\d\d:\d\d \w+$", reason), reason
    status, shown = page(serve)
    assert (status, "no_such_setting" in shown) == (503, True), shown
    assert "no_such_setting" in page(serve)[1]
    repair()
    serve.until(AGAIN)
    serve.until(r"leading \(lead 2\)")
    assert serve.output.count("does not start") == 1
    assert ready(serve)[0] == 200
    assert page(serve)[0] == 200


def test_a_server_that_cannot_start_is_not_tried_after_db_stop(bare_desk: Desk) -> None:
    desk = bare_desk
    serve = desk.start("serve")
    serve.until("leading")
    repair = kill_and_spoil(desk)
    serve.until("does not start")
    assert "was stopped already" in desk.say("db", "stop")
    repair()
    serve.until("was stopped by 'pgcoord db stop'")
    assert AGAIN not in serve.output


@contextmanager
def upgrades_waiting(desk: Desk) -> Iterator[tuple[Program, Program, psycopg.Connection]]:
    """An `upgrade` and a `serve` that wait for the lock of upgrades, and its session."""
    assert desk.call("db", "start").returncode == 0
    with closing(psycopg.connect(server_of(desk).dsn, autocommit=True)) as conn:
        conn.execute("select pg_advisory_lock(hashtext('pgcoord.upgrade'))")
        upgrade, serve = desk.start("upgrade"), desk.start("serve")
        upgrade.until("waits for a lock")
        serve.until("waits for a lock")
        yield upgrade, serve, conn


def test_a_server_that_dies_while_it_is_upgraded_is_started_again(bare_desk: Desk) -> None:
    with upgrades_waiting(bare_desk) as (upgrade, serve, _):
        kill_server(server_of(bare_desk))
        assert upgrade.wait() == 6
    assert "Traceback" not in upgrade.output
    serve.until(AGAIN)
    serve.until("leading")


def test_an_upgrade_is_tried_again_whose_statement_was_cancelled(bare_desk: Desk) -> None:
    with upgrades_waiting(bare_desk) as (upgrade, serve, conn):
        conn.execute(
            "select pg_cancel_backend(pid) from pg_stat_activity where wait_event_type = 'Lock'"
        )
        assert upgrade.wait() == 6
    serve.until("leading")
    assert "Traceback" not in upgrade.output + serve.output


def test_a_server_that_dies_again_and_again_while_it_is_upgraded_is_started_again(
    bare_desk: Desk,
) -> None:
    desk = bare_desk
    assert desk.call("db", "start").returncode == 0
    dsn = server_of(desk).dsn
    with closing(psycopg.connect(dsn, autocommit=True)) as conn:
        conn.execute("alter system set max_prepared_transactions = 1")
    pg_ctl(desk, "restart", "-w", "-l", "log", "-o", f"-h '' -k {server_of(desk).server.socket}")
    with closing(psycopg.connect(dsn, autocommit=True)) as conn:  # a lock that outlives a crash
        conn.execute("begin")
        conn.execute("select pg_advisory_xact_lock(hashtext('pgcoord.upgrade'))")
        conn.execute("prepare transaction 'held'")

    def is_waiting() -> bool:
        try:
            with closing(psycopg.connect(dsn, autocommit=True)) as conn:
                row = conn.execute(
                    "select from pg_stat_activity where wait_event_type = 'Lock'"
                ).fetchone()
        except psycopg.OperationalError:  # not up yet
            return False
        return row is not None

    serve = desk.start("serve")
    for _ in range(4):
        wait_until(is_waiting)
        kill_server(server_of(desk))
    wait_until(is_waiting)
    with closing(psycopg.connect(dsn, autocommit=True)) as conn:
        conn.execute("rollback prepared 'held'")
    serve.until("leading")


def test_of_two_that_serve_one_starts_the_server(bare_desk: Desk) -> None:
    desk = bare_desk
    both = [desk.start("serve"), desk.start("serve")]
    both[0].until("leading|standing by")
    both[1].until("leading|standing by")
    kill_server(server_of(desk))
    for each in both:
        each.until(r"(?s)trying again.*(leading \(lead 2|standing by)")
    assert sum(each.output.count(AGAIN) for each in both) == 1
    assert sum(each.output.count("(lead 2)") for each in both) == 1


def test_sigterm_ends_serve_while_it_waits_for_the_start(bare_desk: Desk) -> None:
    desk = bare_desk
    serve = desk.start("serve")
    serve.until("leading")
    with (server_of(desk).state / "postgres" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kill_server(server_of(desk))
        serve.until("trying again in")
        serve.send(signal.SIGTERM)
        assert serve.wait() == 0
    assert not server_of(desk).running()


def test_a_folder_that_was_moved_away_is_said_and_not_made_anew(bare_desk: Desk) -> None:
    desk = bare_desk
    serve = desk.start("serve")
    serve.until("leading")
    kill_server(server_of(desk))
    (desk.folder / ".pgcoord").rename(desk.folder / "moved")
    serve.until("the data of the embedded Postgres are gone from")
    assert not (desk.folder / ".pgcoord").exists()
    (desk.folder / "moved").rename(desk.folder / ".pgcoord")
    serve.until(r"leading \(lead 2\)")
