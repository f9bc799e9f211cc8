"""`pgcoord doctor`: a line a finding, a remedy for each that is not ok, and an exit status."""

import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support import PATIENCE, git
from support.database import Connection, add_feature
from support.desk import CONFIGURATION, Desk, address_of, until
from support.disk import small_disk
from support.fake_github import REPOSITORY, TOKEN, FakeGitHub, serving_github
from support.pooler import Pooler, Proxy

from pgcoord import doctor
from pgcoord.database import connect
from pgcoord.errors import DatabaseUnusable

WORKFLOW = '[workflow.sh]\ncommand = ["true"]\n'

NO_OTHER_SESSION = (
    "not exists (select from pg_stat_activity where backend_type = 'client backend'"
    " and datname = current_database() and pid <> pg_backend_pid())"
)

KINDS = [
    *(
        "connection",
        "wake-ups",
        "settings",
        "clock",
        "schema",
        "definitions",
        "rights",
        "coordinator",
        "slots",
    ),
    *("line", "retries", "workflows", "prerequisites", "attempts", "external", "quiet"),
    *("empty", "replication", "schedules", "issues"),
    *("locks", "transactions", "notifications", "configuration", "reports", "disk"),
]


def levels(desk: Desk, *arguments: str) -> tuple[int, dict[str, str]]:
    """The exit status, and the level of each kind."""
    result = desk.call("doctor", "--json", *arguments)
    assert result.stderr == ""
    findings = json.loads(result.stdout)["findings"]
    assert all((each["remedy"] is None) == (each["level"] == "ok") for each in findings), findings
    return result.returncode, {each["kind"]: each["level"] for each in findings}


@pytest.mark.scale
def test_all_is_well_beside_a_coordinator(desk: Desk) -> None:
    desk.start("serve").until("leading")
    output = desk.say("doctor")
    assert [line.split()[:3] for line in output.splitlines()] == [
        ["✓", "ok", kind] for kind in KINDS
    ]
    assert levels(desk) == (0, dict.fromkeys(KINDS, "ok"))
    assert ", 0 stand by\n" in output
    desk.start("serve").until("standing by")
    assert ", 1 stands by\n" in desk.say("doctor")


@contextmanager
def holding_up_once(dsn: str) -> Iterator[str]:
    """A way to the server on which the first notification takes 0.3 s, and no other."""
    values, held = conninfo_to_dict(dsn), threading.Event()
    host, port = str(values["host"]), int(values.get("port") or 5432)
    in_folder = host.startswith("/")

    def pump(source: socket.socket, sink: socket.socket, *, from_server: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if from_server and b"pgcoord_probe" in data and not held.is_set():
                    held.set()
                    time.sleep(0.3)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with suppress(OSError):
            while True:
                front, _ = listener.accept()
                back = socket.socket(socket.AF_UNIX if in_folder else socket.AF_INET)
                sockets.extend([front, back])
                back.connect(f"{host}/.s.PGSQL.{port}" if in_folder else (host, port))
                for pair, from_server in (((front, back), False), ((back, front), True)):
                    run(pump, *pair, from_server=from_server)

    def run(function: Callable[..., None], *given: socket.socket, **named: bool) -> None:
        threads.append(threading.Thread(target=function, args=given, kwargs=named))
        threads[-1].start()

    sockets = [listener := socket.create_server(("127.0.0.1", 0))]
    threads: list[threading.Thread] = []
    run(serve)
    address = listener.getsockname()
    try:
        yield make_conninfo(
            dsn, host=address[0], port=address[1], sslmode="disable", gssencmode="disable"
        )
    finally:
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(PATIENCE)
        for each in sockets:
            each.close()
    assert held.is_set()


def test_one_slow_notification_does_not_make_the_database_far_away(desk: Desk, dsn: str) -> None:
    with holding_up_once(dsn) as way:
        assert levels(desk, "--dsn", way)[1]["wake-ups"] == "ok"


def test_warnings_and_failures_have_exit_statuses_of_their_own(
    desk: Desk, conn: Connection
) -> None:
    status, found = levels(desk)
    assert (status, found["coordinator"]) == (8, "warn")
    add_feature(conn, {1: []})
    result = desk.call("doctor")
    assert (result.returncode, result.stderr) == (9, "")
    lines = result.stdout.splitlines()
    failed = lines.index("✗ fail  coordinator    no coordinator runs, and there is work")
    assert lines[failed + 1] == f"{'':<23}→ start one: 'pgcoord serve'"
    assert levels(desk)[0] == 9


def test_a_database_without_the_schema_fails_in_that_check_only(desk: Desk, dsn: str) -> None:
    status, found = levels(desk, "--dsn", make_conninfo(dsn, dbname="postgres"))
    assert status == 9
    assert found.pop("schema") == "fail"
    assert set(found.values()) == {"ok"}
    assert list(found) == [
        "connection",
        "wake-ups",
        "settings",
        "clock",
        "configuration",
        "reports",
        "disk",
    ]


def test_a_database_that_does_not_answer_is_a_finding_too(desk: Desk) -> None:
    status, found = levels(desk, "--dsn", "host=/nowhere")
    assert (status, found) == (
        9,
        {"connection": "fail", "configuration": "ok", "reports": "ok", "disk": "ok"},
    )


def test_a_view_that_was_broken_by_hand_is_a_finding(desk: Desk, conn: Connection) -> None:
    conn.execute("alter view pgcoord.leader rename column pid to process")
    status, found = levels(desk)
    assert (status, found["definitions"]) == (9, "fail")


@pytest.mark.scale
@pytest.mark.parametrize(
    ("table", "kind", "words"),
    [
        ("phase_queue", "locks", "a table is locked, so that nothing can be read"),
        ("pgcoord.migration", "schema", "it cannot be read: a table is locked: "),
    ],
)
def test_a_table_that_is_locked_is_a_finding_with_its_holder(
    table: str, kind: str, words: str, desk: Desk, dsn: str
) -> None:
    with psycopg.connect(dsn) as other:
        other.execute(f"lock table {table}".encode())
        lines = desk.call("doctor").stdout.splitlines()
        pid = other.info.backend_pid
    locked = next(each for each in lines if f"fail  {kind} " in each)
    assert locked.startswith(f"✗ fail  {kind:14} {words}")
    assert f"process {pid} " in locked
    assert lines[-1].split()[:3] == ["✓", "ok", "disk"]


def test_faults_of_the_configuration_are_named(desk: Desk) -> None:
    desk.write("pgcoord.toml", '[workflow.a]\ncommand = ["a"]\ntmeout = 1\nlinger = "x"\n')
    output = desk.call("doctor").stdout
    assert "✗ fail  configuration" in output
    assert "workflow.a.tmeout: unknown key; did you mean timeout?;" in output
    assert "workflow.a.linger: expected a duration" in output


def test_a_worktree_needs_a_repository_with_a_commit(desk: Desk) -> None:
    work = '[workflow.work]\ncommand = ["true"]\nworkspace = "worktree"\n'
    desk.write("pgcoord.toml", work)
    assert levels(desk)[1]["worktrees"] == "fail"
    assert "workflow work: " in desk.call("doctor").stdout
    git(desk.folder, "init", "--quiet")
    git(desk.folder, "commit", "--quiet", "--allow-empty", "--message", "first")
    assert levels(desk)[1]["worktrees"] == "ok"
    desk.write("pgcoord.toml", f'{work}base = "nowhere"\n')
    assert levels(desk)[1]["worktrees"] == "fail"


def test_doctor_tries_the_address_that_processes_report_to(desk: Desk) -> None:
    address = address_of(desk.start("serve"))
    for url, level, words in [
        (f"http://{address}", "✓ ok  ", ", which answers"),
        (f"http://{address}/x", "! warn", ": HTTP Error 404: Not Found"),
        ("http://127.0.0.1:1", "! warn", ": [Errno 111] Connection refused"),
    ]:
        desk.write("pgcoord.toml", f'[server]\npublic_url = "{url}"\n' + WORKFLOW)
        line = f"{level}  reports        processes report to {url}{words}\n"
        assert line in desk.call("doctor").stdout


POOL = """
[server]
port = 0

[pool.far]
launcher = "command"
slots = 2
folder = "shared"
submit = ["qsubx", "{script}"]
id = '(\\d+)'
list = ["true"]
jobs = '^(?P<id>\\d+) (?P<name>\\S+) (?P<state>\\S+)'
waiting = ["Q"]
running = ["R"]
cancel = ["qdelx", "{id}"]

[workflow.far]
command = ["true"]
pool = "far"
default = true
"""


def test_a_pool_whose_commands_are_missing_says_so_and_so_do_its_phases(desk: Desk) -> None:
    desk.write("pgcoord.toml", POOL)
    (desk.folder / "shared").mkdir()
    found = desk.call("doctor").stdout
    assert "✗ fail  pools          far: not installed on this machine: qdelx, qsubx\n" in found
    assert "→ install it, or correct the pool's submit, cancel\n" in found
    desk.start("serve").until("leading")
    desk.say("submit", desk.plan("nothing"))
    until(
        desk.environment["DATABASE_URL"],
        "exists (select from pgcoord.attempt where ended_at is not null)",
    )
    assert "after: pool far: qsubx is not installed on this machine" in desk.say("why", "1.1")
    desk.say("slots", "0", "--pool", "far")
    assert "pool far (command): none\n" in desk.say("status")


def test_a_loopback_report_url_is_a_warning_where_nodes_report(desk: Desk) -> None:
    url = "http://localhost:8002"
    desk.write("pgcoord.toml", POOL.replace("slots = 2", f'slots = 2\nreport_url = "{url}"'))
    words = f"far: its nodes reach themselves at {url}, not this server: jobs report by files"
    assert f"! warn  pools          {words}" in desk.call("doctor").stdout
    desk.write("pgcoord.toml", POOL)
    assert "far: its nodes know no address of this server: jobs" in desk.call("doctor").stdout


def test_the_disk_is_that_of_the_last_coordinator_of_this_machine(
    desk: Desk, conn: Connection, epoch: int
) -> None:
    assert f"free for logs in {desk.folder}/.pgcoord/runs" in desk.call("doctor").stdout
    conn.execute("update pgcoord.coordinator set host = %s", [socket.gethostname()])
    assert "free for logs in /runs" in desk.call("doctor").stdout


def test_the_disk_of_a_shared_folder_is_looked_at_as_well(desk: Desk, conn: Connection) -> None:
    with small_disk(desk.folder / "shared") as shared:
        pool = '[pool.far]\nlauncher = "slurm"\nslots = 2\nfolder = "shared/runs"\n'
        desk.write("pgcoord.toml", CONFIGURATION + pool)
        said = desk.call("doctor").stdout
    assert re.search(rf"✗ fail  disk           0 MB free for logs in {shared}/runs", said), said
    assert re.search(r"✓ ok    disk  .* free for logs in ", said)


@pytest.mark.parametrize(
    ("free", "level", "words"),
    [
        (50_000_000_000, "ok", "50.0 GB free for logs in /runs"),
        (1_999_000_000, "warn", "2.0 GB free for logs in /runs"),
        (199_000_000, "fail", "199 MB free for logs in /runs"),
    ],
)
def test_a_disk_that_fills_up_is_found(free: int, level: str, words: str) -> None:
    found = doctor._room(Path("/runs"), free)
    assert (found.level, found.words) == (level, words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("remount,ro", "the disk of {} can only be read: no phase can start"),
        ("remount,nr_inodes=100", "the disk of {} has room for 9\\d files more; a run makes six"),
        ("remount,size=100m", "105 MB free for logs in {}"),
    ],
)
def test_a_disk_on_which_no_phase_can_start_is_found(
    desk: Desk, conn: Connection, options: str, words: str
) -> None:
    disk = desk.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3g", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    try:
        desk.write("pgcoord.toml", f'{CONFIGURATION}[log]\nfolder = "disk/runs"\n')
        assert re.search(r"✓ ok    disk  .* free for logs in ", desk.call("doctor").stdout)
        subprocess.run(["mount", "-o", options, str(disk)], check=True)
        result = desk.call("doctor")
        line = f"✗ fail  disk           {words.format(re.escape(str(disk / 'runs')))}\n +→ "
        assert re.search(line, result.stdout), result.stdout
        assert result.returncode == 9
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("ahead", "level", "words"),
    [
        (0.25, "ok", "this machine and the database agree to 0.250 s"),
        (-1.9, "ok", "this machine and the database agree to 1.900 s"),
        (30.0, "warn", "this machine is 30.0 s behind the database"),
        (-30.0, "warn", "this machine is 30.0 s ahead of the database"),
    ],
)
def test_clocks_that_are_apart_are_found(ahead: float, level: str, words: str) -> None:
    found = doctor._clock(timedelta(seconds=ahead), timedelta(milliseconds=1))
    assert (found.level, found.words) == (level, words)


# --- Poolers


def test_a_pooler_in_transaction_mode_is_named_with_its_remedy(desk: Desk, pooler: Pooler) -> None:
    pooler.start(pool_mode="transaction")
    result = desk.call("doctor", "--dsn", pooler.dsn)
    assert result.returncode == 9
    lines = result.stdout.splitlines()
    failed = lines.index(
        "✗ fail  wake-ups       this DSN goes through a pooler in transaction mode, where"
        " notifications never arrive"
    )
    assert lines[failed + 1].split()[:6] == ["→", "give", "the", "coordinator", "the", "address"]


@pytest.mark.scale
def test_a_coordinator_does_not_start_where_nothing_would_wake_it(
    desk: Desk, pooler: Pooler
) -> None:
    pooler.start(pool_mode="transaction")
    for arguments in (["serve"], ["run", desk.plan("true")]):
        result = desk.call(*arguments, "--dsn", pooler.dsn)
        assert result.returncode == 6
        assert result.stderr.splitlines()[-2:] == [
            "pgcoord: notifications do not arrive through this DSN:"
            " no work would be started in time",
            "  'pgcoord doctor' says why, and what to do.",
        ]


def test_a_pooler_in_statement_mode_is_named_with_its_remedy(desk: Desk, pooler: Pooler) -> None:
    pooler.start(pool_mode="statement")
    result = desk.call("doctor", "--dsn", pooler.dsn)
    assert result.returncode == 6
    assert "That is PgBouncer in statement mode." in result.stderr


@pytest.mark.scale
async def test_a_pooler_whose_pool_is_full_is_named(
    pooler: Pooler, monkeypatch: pytest.MonkeyPatch
) -> None:
    pooler.start(pool_mode="session", default_pool_size="1")
    monkeypatch.setattr(connect, "_MOST_SECONDS_TO_FIRST_ANSWER", 0.5)
    with psycopg.connect(pooler.dsn) as conn:
        conn.execute("select")
        with pytest.raises(DatabaseUnusable, match="answered nothing on it") as caught:
            await connect.connect(pooler.dsn)
    assert "whose pool is full" in str(caught.value.hint)


def test_a_pooler_that_refuses_a_setting_of_the_dsn_is_named(desk: Desk, pooler: Pooler) -> None:
    pooler.start(pool_mode="session")
    result = desk.call("doctor", "--dsn", make_conninfo(pooler.dsn, options="-c work_mem=8MB"))
    assert result.returncode == 9
    assert "unsupported startup parameter" in result.stdout
    assert "→ That is a pooler. Leave out the options of the DSN" in result.stdout


def test_a_pooler_in_session_mode_is_fine(desk: Desk, pooler: Pooler) -> None:
    pooler.start(pool_mode="session")
    result = desk.call("doctor", "--dsn", pooler.dsn)
    assert "✓ ok    wake-ups" in result.stdout
    assert (
        "✓ ok    settings       those that the coordinator depends on are in force" in result.stdout
    )
    assert "ms through a pooler in session mode" in result.stdout
    with psycopg.connect(pooler.dsn) as conn:
        assert conn.execute("select status from pgcoord.board").fetchall() == []


def test_a_proxy_that_passes_everything_on_is_fine(desk: Desk, proxy: Proxy) -> None:
    proxy.start()
    result = desk.call("doctor", "--dsn", proxy.dsn)
    assert "✓ ok    wake-ups" in result.stdout
    assert "✓ ok    settings" in result.stdout


@pytest.mark.parametrize("proxy", ["pgpool"], indirect=True)
def test_pgpool_that_reads_from_a_stand_by_is_named_and_refused(desk: Desk, proxy: Proxy) -> None:
    proxy.start(stand_by=True)
    result = desk.call("doctor", "--dsn", proxy.dsn)
    assert "✗ fail  settings       pgpool-II is between here and the server" in result.stdout
    result = desk.call("serve", "--port", "0", "--dsn", proxy.dsn)
    assert result.returncode == 6
    assert "phases that have just started would be ended" in result.stderr
    assert "Set app_name_redirect_preference_list" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("proxy", ["pgpool"], indirect=True)
def test_pgpool_that_sends_us_to_the_primary_is_fine(desk: Desk, proxy: Proxy) -> None:
    proxy.start(stand_by=True, app_name_redirect_preference_list="pgcoord.*:primary")
    result = desk.call("doctor", "--dsn", proxy.dsn)
    assert "are in force through pgpool-II, which sends all to the primary" in result.stdout


@pytest.mark.parametrize("proxy", ["haproxy"], indirect=True)
def test_a_server_for_one_connection_is_named_as_such(desk: Desk, proxy: Proxy, dsn: str) -> None:
    proxy.start(for_one=True)
    for command in ("doctor", "serve"):
        for _ in range(10):  # HAProxy may count a connection for a while that the server has ended
            until(dsn, NO_OTHER_SESSION)
            result = desk.call(command, "--dsn", proxy.dsn)
            assert result.returncode in (6, 9)
            if "this server takes one connection at a time" in result.stdout + result.stderr:
                break
        else:
            pytest.fail(f"{command} does not say so: {result.stdout}{result.stderr}")
        assert "give it a PostgreSQL server" in result.stdout + result.stderr


@pytest.fixture
def github(desk: Desk) -> Iterator[FakeGitHub]:
    """A GitHub whose repository the desk's configuration names."""
    fake = FakeGitHub()
    with serving_github(fake) as url:
        section = f'[github]\nrepository = "{REPOSITORY}"\napi_url = "{url}"\n'
        desk.write("pgcoord.toml", section + CONFIGURATION)
        desk.environment["GITHUB_TOKEN"] = TOKEN
        yield fake


def about_github(desk: Desk) -> tuple[str, str]:
    """The level and the words of what is found about GitHub."""
    output = json.loads(desk.call("doctor", "--json").stdout)["findings"]
    (found,) = [each for each in output if each["kind"] == "github"]
    return found["level"], found["words"]


def test_the_rights_at_github_are_looked_at_without_making_anything(
    desk: Desk, github: FakeGitHub
) -> None:
    assert about_github(desk) == ("ok", f"issues can be made in {REPOSITORY}")
    github.may_label = False
    assert about_github(desk) == ("warn", f"issues can be made in {REPOSITORY}, but no labels")
    assert (github.issues, github.labels) == ([], {})


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"token": "another"}, "the credentials are not valid (Bad credentials)"),
        ({"exists": False}, "no repository, or no right to see it (Not Found)"),
        ({"has_issues": False}, "its issues are disabled"),
    ],
)
def test_a_refusal_of_github_is_named(
    broken: dict[str, Any], words: str, desk: Desk, github: FakeGitHub
) -> None:
    for name, value in broken.items():
        setattr(github, name, value)
    level, said = about_github(desk)
    assert level == "fail"
    assert words in said
    assert TOKEN not in said


def test_a_missing_right_has_the_name_that_github_uses(desk: Desk, github: FakeGitHub) -> None:
    message = "Resource not accessible by personal access token"
    accepted = {"x-accepted-github-permissions": "issues=write"}
    github.fail("POST", "/issues", 403, message=message, headers=accepted)
    assert about_github(desk) == (
        "fail",
        f"GitHub, {REPOSITORY}: {message} (it needs issues=write)",
    )


def test_a_missing_token_is_found_by_doctor_and_refuses_serve(
    desk: Desk, github: FakeGitHub
) -> None:
    del desk.environment["GITHUB_TOKEN"]
    words = "[github]: neither GITHUB_TOKEN nor GH_TOKEN holds a token"
    assert about_github(desk) == ("fail", words)
    result = desk.call("serve")
    assert result.returncode == 5
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_transaction_pool_is_left_as_it_is_for_its_other_clients(
    desk: Desk, pooler: Pooler
) -> None:
    pooler.start(pool_mode="transaction", default_pool_size="1")
    desk.say("submit", desk.plan("true"), "--dsn", pooler.dsn)
    desk.call("doctor", "--dsn", pooler.dsn)
    with psycopg.connect(pooler.dsn, autocommit=True) as conn:
        actual = conn.execute(
            "select current_setting('search_path'), current_setting('idle_session_timeout'),"
            " current_setting('jit')"
        ).fetchone()
    assert actual == ('"$user", public', "0", "on")


def test_settings_of_other_clients_of_the_pool_do_not_count_or_are_named(
    desk: Desk, pooler: Pooler
) -> None:
    pooler.start(pool_mode="transaction", default_pool_size="1")
    with psycopg.connect(pooler.dsn, autocommit=True) as conn:
        conn.execute("set default_transaction_isolation = 'serializable'")
        desk.say("submit", desk.plan("true"), "--dsn", pooler.dsn)
        conn.execute("set default_transaction_read_only = on")
    result = desk.call("submit", desk.plan("true"), "--dsn", pooler.dsn)
    assert result.returncode == 6
    assert "by another client of the pool that this DSN leads to" in result.stderr
