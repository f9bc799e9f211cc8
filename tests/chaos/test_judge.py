"""The judge of a storm sees what is wrong, and the storm knows all that people can do."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from support.database import Connection, add_feature, claim, one, start, statuses, take_lead

import pgcoord
from chaos.faults import CALLS, Faults
from chaos.judge import Judge
from chaos.site import Site, without_interrupts


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with closing(Site(tmp_path_factory.mktemp("chaos") / "storm", 1)) as site:
        site.open()
        yield site


@pytest.mark.scale
def test_the_judge_reads_marks_logs_and_tables(site: Site) -> None:
    judge = Judge(site, Faults(site, 1))
    with site.session() as conn:
        epoch = take_lead(conn)
        add_feature(conn, {1: [], 2: [1]})
        claim(conn, epoch)
        start(conn, epoch, "queue-1-1")
        conn.execute("select pgcoord_private.end_attempt(id, 0) from pgcoord.attempt")
        claim(conn, epoch)
        # As nothing but a fault could.
        conn.execute("set session_replication_role = replica")
        conn.execute("delete from pgcoord.event where to_status = 'completed'")
        first, second = (
            row["adw_id"]
            for row in conn.execute("select adw_id from pgcoord.attempt order by id").fetchall()
        )
    judge.faults.acknowledged.append((second, "completed"))
    site.marks.write_text(f"start {first} 1\nstart {first} 2\nend {first} 3\nstart {second} 1\n")
    (site.logs / "coordinator-0-1").write_text('Traceback\n  File "a"\nKeyError: 1\n')
    judge.judge_history()
    for found in (
        f"{first} started 2 times",
        f"{first} exited with 0, it said 3",
        f"{second} started, and is taken as not (None)",
        f"{second} was acknowledged as completed, and is None",
        "queue-1-2 (attempt 1) was claimed before phase 1 was completed",
        "coordinator-0-1: a traceback: KeyError: 1",
    ):
        assert found in judge.wrong
    assert any(each.startswith("events replayed and tables") for each in judge.wrong)


@pytest.mark.scale
def test_the_judge_knows_that_completed_phases_of_a_copy_were_not_claimed(site: Site) -> None:
    judge = Judge(site, Faults(site, 1))
    with site.session() as conn:
        epoch = take_lead(conn)
        feature = add_feature(conn, {1: [], 2: [1], 3: [2]})
        for number in (1, 2):
            claim(conn, epoch)
            start(conn, epoch, f"queue-{feature}-{number}")
            conn.execute("select pgcoord.complete_phase(%s)", [f"queue-{feature}-{number}"])
        copy = one(conn, "select pgcoord.again_from(%s) as id", f"queue-{feature}-3")["id"]
        assert statuses(conn, copy) == {1: "completed", 2: "completed", 3: "queued"}
    judge.judge_history()
    assert not [each for each in judge.wrong if each.startswith(f"queue-{copy}-")]


def test_the_judge_counts_anew_for_those_in_line_when_another_is_claimed(site: Site) -> None:
    judge = Judge(site, Faults(site, 1))
    in_line = ("queue-1-1", "is eligible beside a free slot", 30)
    running = ("queue-2-1", "runs as adw-1", 60)
    judge.newest = 1
    assert judge.overdue([in_line, running], 0) is None
    assert judge.overdue([in_line, running], 30) is None
    judge.newest = 2
    assert judge.overdue([in_line, running], 31) is None
    assert judge.overdue([in_line, running], 61) == running
    assert judge.overdue([in_line], 61) is None
    assert judge.overdue([in_line], 62) == in_line


@pytest.mark.scale
def test_the_judge_knows_a_server_that_did_not_start_beside_busy_backends_of_a_killed_one(
    site: Site,
) -> None:
    faults = Faults(site, 1)
    with site.session(60) as conn, ThreadPoolExecutor() as thread:
        pid = conn.info.backend_pid
        busy = thread.submit(conn.execute, "select count(*) from generate_series(1, 1000000000)")
        while Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "R":  # it counts
            pass
        faults._kill_postmaster(random.Random(1))
        site.postgres.start()
        assert isinstance(busy.exception(), psycopg.Error)
    assert "F0001 : FATAL" in site.postgres.server.log.read_text()
    judge = Judge(site, faults)
    judge._judge_logs()
    assert not [each for each in judge.wrong if "F0001" in each]


@pytest.mark.scale
@pytest.mark.timeout(60)
def test_a_coordinator_that_is_frozen_as_it_starts_the_server_does_not_hold_up_the_storm(
    site: Site,
) -> None:
    hold = "import fcntl, os, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX)"
    lock = site.folder / ".pgcoord" / "postgres" / "lock"
    command = [sys.executable, "-c", f"{hold}; os.kill(os.getpid(), {signal.SIGSTOP})", str(lock)]
    with subprocess.Popen(command) as frozen:
        assert os.WIFSTOPPED(os.waitpid(frozen.pid, os.WUNTRACED)[1])
        (seat,) = site.seats
        seat.process = frozen
        site.start_server()
        seat.process = None


def test_python_that_was_interrupted_before_our_first_line_is_no_violation(site: Site) -> None:
    frozen = '  File "<frozen runpy>", line 198, in _run_module_as_main\n'
    ours = (
        f'  File "{Path(pgcoord.__file__).parent}/logs.py", line 8, in {{}}\n    import logging\n'
    )
    imports = f"Traceback (most recent call last):\n{frozen}{ours}KeyboardInterrupt\n"
    said = "Could not import runpy module\n"
    assert without_interrupts(said + imports.format("<module>")) == f"{said}\n"
    for fault in (
        imports.format("configure"),
        imports.format("<module>").replace("KeyboardInterrupt", "KeyError: 1"),
    ):
        assert without_interrupts(said + fault) == said + fault


@pytest.mark.scale
def test_the_judge_sees_an_unexpected_error_in_the_log_of_the_server(site: Site) -> None:
    judge = Judge(site, Faults(site, 1))
    with psycopg.connect(site.postgres.dsn, application_name="pgcoord") as conn:
        for statement in ("select 1/0", "select pg_cancel_backend(pg_backend_pid())"):
            with pytest.raises(psycopg.Error):
                conn.execute(statement.encode())
            conn.rollback()
    judge.judge_history()
    logged = [each for each in judge.wrong if each.startswith("server's log")]
    assert logged == ["server's log: ERROR 22012 of 'pgcoord': division by zero (1 times)"]


def test_a_plan_of_faults_follows_from_its_seed(site: Site) -> None:
    def plan() -> list[str]:
        faults = Faults(site, 7)
        return [str(faults.feature(random.Random(f"7 {number}"))) for number in range(20)]

    assert plan() == plan()


def test_the_storm_calls_every_function_that_people_change_something_with(
    conn: Connection,
) -> None:
    rows = conn.execute(
        "select distinct proname from pg_proc where pronamespace = 'pgcoord'::regnamespace"
        " and provolatile = 'v' and prosecdef"
    ).fetchall()
    called = {call.partition("(")[0] for call in CALLS} | {"submit_feature"}
    assert {row["proname"] for row in rows} <= called
    for call in CALLS:  # the arguments as well
        given = call.format(phase="queue-1-1", feature=1, number=1, slots=1)
        conn.execute(f"explain select * from pgcoord.{given}".encode())
