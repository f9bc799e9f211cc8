"""bench as people run it; what it measures is not judged here, only that it does, and cleans up."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from support import PATIENCE
from support.database import Connection, add_feature

from pgcoord.bench import resources
from pgcoord.bench.figures import Figure, Goal, beside_floors
from pgcoord.bench.report import Machine, Report
from pgcoord.bench.scratch import NAME
from pgcoord.commands.bench import print_report

KEYS = {
    "hop": "ms",
    "hop_start": "ms",
    "webhook": "ms",
    "floor": "ms",
    "hop_ratio": "x",
    "memory": "MB",
    "start": "ms",
    "drain": "/s",
    "drain_own": "/s",
    "floor_drain": "/s",
    "insert": "/s",
}


def started(dsn: str, folder: Path, *options: str) -> "subprocess.Popen[str]":
    """`pgcoord bench`, started; its files and those of its processes are below `folder`."""
    return subprocess.Popen(
        [sys.executable, "-m", "pgcoord", "bench", *options, "--dsn", dsn],
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def scratch_databases(conn: Connection, pid: int) -> list[str]:
    rows = conn.execute(
        "select datname from pg_database where datname like %s", [f"pgcoord\\_bench\\_{pid}\\_%"]
    )
    return [row["datname"] for row in rows]


def processes_with(text: str) -> list[str]:
    shown = subprocess.run(
        ["ps", "-Aww", "-o", "args="], capture_output=True, text=True, check=True
    )
    return [line for line in shown.stdout.splitlines() if text in line]


def all_rows(conn: Connection) -> list[list[dict[str, Any]]]:
    """What a user has in a database."""
    return [
        conn.execute(statement).fetchall()
        for statement in (
            "select * from planned_features order by id",
            "select * from phase_queue order by queue_id",
            "select * from pgcoord.event order by id",
            "select * from pgcoord.attempt order by id",
            "select * from pgcoord.coordinator order by id",
            "select * from pgcoord.control",
        )
    ]


@pytest.mark.scale
def test_bench_measures_beside_the_users_tables_and_leaves_nothing(
    dsn: str, conn: Connection, tmp_path: Path
) -> None:
    add_feature(conn, {1: [], 2: [1]})
    before = all_rows(conn)
    process = started(dsn, tmp_path, "--quick", "--json", "--check")
    out, said = process.communicate()
    assert out, said

    report = json.loads(out)
    figures = {figure["key"]: figure for figure in report["figures"]}
    assert {key: figure["unit"] for key, figure in figures.items()} == KEYS
    assert all(figure["value"] > 0 for figure in figures.values())
    for key in ("hop", "hop_start", "webhook", "floor"):
        assert figures[key]["p99"] >= figures[key]["value"]
    assert figures["hop_start"]["value"] > figures["hop"]["value"]
    assert figures["floor"]["verdict"] is None
    assert figures["floor_drain"]["verdict"] is None
    assert report["machine"]["cores"] > 0
    assert report["machine"]["postgres"]
    missed = any(figure["verdict"] == "LIMIT MISSED" for figure in figures.values())
    assert process.returncode == (1 if missed else 0), said

    assert all_rows(conn) == before
    assert scratch_databases(conn, process.pid) == []
    assert list(tmp_path.iterdir()) == []


def test_the_table_gives_verdicts_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine("1.0", "3.11", "Linux", "a processor", 2, 0.5, "18.4", "on", "off", "128MB")
    goal, goal_p99 = Goal(3, 1), Goal(25, 5)
    figures = [
        Figure("hop", "claimed", "ms", 1.234, 26.5, goal=goal, goal_p99=goal_p99, floor=0.5),
        Figure("floor", "bare floor", "ms", 0.5, 1),
        Figure("insert", "inserted", "/s", 61234.5, goal=Goal(20_000, 60_000, more_is_better=True)),
    ]
    print_report(Report(machine, figures), {"floor": 0.25})
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert printed[:4] == [
        "what value or p50 p99 ÷ floor before ÷ before limit aim verdict",
        "claimed 1.23 ms 26.5 ms 2.47 3 / 25 1 / 5 LIMIT MISSED",
        "bare floor 0.50 ms 1 ms 0.25 ms 2.00",
        "inserted 61,234 /s 20,000 60,000 aim reached",
    ]
    assert "a processor, 2 cores, load 0.5" in " ".join(printed)
    assert "synchronous_commit off" in " ".join(printed)


def test_a_comparison_cuts_no_word_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")  # 80 columns, and no colours
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    machine = Machine("1.0", "3.11", "Linux", "a processor", 2, 0.5, "18.4", "on", "off", "128MB")
    what = "coordinator: start until listening"
    goals: dict[str, Any] = {"goal": Goal(1_000, 300), "goal_p99": Goal(25, 5)}
    figures = [Figure("start", what, "ms", 1_336.0, 2_888.9, floor=1_111.0, slowness=9.9, **goals)]
    print_report(Report(machine, figures), {"start": 1_107.0})
    lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    printed = " ".join(lines)
    assert all(len(line) <= 80 for line in lines)
    assert {*what.split(), "1,336", "2,889", "1.20", "1,107", "1.21"} <= {*printed.split()}
    assert "…" not in printed


@pytest.mark.scale
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_bench_that_is_interrupted_drops_its_databases_and_ends_its_processes(
    dsn: str, conn: Connection, tmp_path: Path, sent: signal.Signals
) -> None:
    process = started(dsn, tmp_path)
    assert process.stderr
    for line in process.stderr:
        if "each started by" in line:
            break
    assert scratch_databases(conn, process.pid)
    process.send_signal(sent)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, said
    assert scratch_databases(conn, process.pid) == []
    assert processes_with(str(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_bench_names_the_right_that_it_needs(server: str, conn: Connection, tmp_path: Path) -> None:
    role = f"pgcoord_bench_{os.getpid()}"
    conn.execute(f"create role {role} login password 'of-no-use'")
    try:
        process = started(
            make_conninfo(server, user=role, password="of-no-use"), tmp_path, "--quick"
        )
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        conn.execute(f"drop role {role}")
    assert process.returncode == 6
    assert f"user '{role}' may not create databases" in said
    assert "createdb" in said
    assert "Traceback" not in said


@contextmanager
def busy(dsn: str, statement: str) -> Iterator[None]:
    """A session with the coordinator's name that runs a statement again and again."""
    enough = threading.Event()

    def ask() -> None:
        named = make_conninfo(dsn, application_name=NAME)
        with psycopg.connect(named, autocommit=True) as conn:
            while not enough.wait(0.05):
                conn.execute(statement.encode())

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        yield
    finally:
        enough.set()
        asker.join()


@pytest.fixture
def watch(
    server: str, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], tuple[float, float]]:
    """Counts the statements and the table reads a minute in the test's database."""
    monkeypatch.setattr(resources, "FLUSHED", 0.5)

    def count() -> tuple[float, float]:
        with psycopg.connect(server, autocommit=True) as admin:
            statements, reads = resources.idle(admin, dsn, 2)
        return statements.value, reads.value

    return count


@pytest.fixture
def no_autovacuum(server: str) -> Iterator[None]:
    """None, which is left out of the count only where it is seen, and it may be there for 10 ms."""
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute("alter system set autovacuum = off")
        admin.execute("select pg_reload_conf()")
        yield
        admin.execute("alter system reset autovacuum")
        admin.execute("select pg_reload_conf()")


@pytest.mark.scale
@pytest.mark.usefixtures("no_autovacuum")
def test_statements_are_not_counted_unless_asked_for(
    watch: Callable[[], tuple[float, float]],
) -> None:
    assert watch() == (0, 0)


@pytest.mark.scale
def test_statements_are_counted(dsn: str, watch: Callable[[], tuple[float, float]]) -> None:
    with busy(dsn, "select 1"):
        statements, reads = watch()
    assert statements > 60
    assert reads == 0


@pytest.mark.scale
def test_reads_of_tables_are_counted(dsn: str, watch: Callable[[], tuple[float, float]]) -> None:
    with busy(dsn, "select * from phase_queue"):
        assert min(watch()) > 0


def test_a_verdict_tells_aim_limit_and_miss() -> None:
    less, more = Goal(3, 1), Goal(10, 20, more_is_better=True)
    assert [less.verdict(value) for value in (1, 2, 4)] == [
        "aim reached",
        "within the limit",
        "LIMIT MISSED",
    ]
    assert [more.verdict(value) for value in (20, 10, 9)] == [
        "aim reached",
        "within the limit",
        "LIMIT MISSED",
    ]
    assert Goal(None, 0).verdict(1) == "aim missed"


def test_a_slow_machine_is_told_from_a_missed_limit_by_its_floors() -> None:
    goals: dict[str, Any] = {"goal": Goal(3, 1)}
    for hop, verdict in ((5.5, "slow machine"), (7.0, "LIMIT MISSED")):
        figures = [
            Figure("hop", "claimed", "ms", hop, **goals),
            Figure("floor", "bare floor", "ms", 2.08),  # twice that of the machine of the limits
            Figure("memory", "memory", "MB", 5.0, **goals),  # no machine is slow at that
            Figure("floor_drain", "bare floor", "/s", 2_594),
        ]
        claimed, _, memory, _ = beside_floors(figures)
        assert (claimed.ratio, claimed.verdict) == (hop / 2.08, verdict)
        assert (memory.ratio, memory.verdict) == (None, "LIMIT MISSED")
        assert claimed.misses_limit == (verdict == "LIMIT MISSED")


def test_a_file_to_compare_with_has_to_be_of_bench(tmp_path: Path, dsn: str) -> None:
    (tmp_path / "before.json").write_text('{"figures": [{"key": "hop"}]}')
    process = started(dsn, tmp_path, "--quick", "--compare", str(tmp_path / "before.json"))
    assert "is not what 'pgcoord bench --json' prints" in process.communicate()[1]
    assert process.returncode == 5


def test_a_figure_is_as_good_as_the_worse_of_its_two_values() -> None:
    figure = Figure("a", "a", "ms", value=1, p99=30, goal=Goal(3, 1), goal_p99=Goal(25, 5))
    assert figure.verdict == "LIMIT MISSED"
    assert figure.misses_limit
    assert Figure("a", "a", "ms", value=1).verdict is None
