"""What a phase can learn of the coordinator, and what it runs as."""

import grp
import os
import pwd
import shutil
import signal
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.database import Connection
from support.desk import Desk, address_of, until

from pgcoord.errors import CannotStart
from pgcoord.runs.account import find_account

IS_ROOT = os.geteuid() == 0

root_only = pytest.mark.skipif(not IS_ROOT, reason="only root can start processes of other users")

needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc")

SECRET = "whsec_bm9uZSBvZiB0aGUgYnVzaW5lc3Mgb2YgYSBwaGFzZQ=="

# Root without a capability is an ordinary user, as far as the kernel is concerned.
ORDINARY = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if IS_ROOT else ()

# Prints what can be seen of the process that started this one's shell, and how it was refused.
SPY = """
import os
for name in ("environ", "mem", "maps"):
    try:
        with open(f"/proc/{os.environ['COORDINATOR']}/{name}", "rb") as file:
            print(name, "is open", file.read(100_000) if name == "environ" else "")
    except OSError as error:
        print(name, error.strerror)
"""


def statuses(conn: Connection) -> list[str]:
    rows = conn.execute("select status from phase_queue order by feature_id, phase_number")
    return [row["status"] for row in rows.fetchall()]


@needs_proc
@pytest.mark.skipif(IS_ROOT and not shutil.which("setpriv"), reason="no setpriv")
def test_a_phase_cannot_look_into_the_coordinator(desk: Desk, dsn: str) -> None:
    desk.write(
        "pgcoord.toml",
        '[server]\nport = 0\nwebhook_secrets = ["HOOK_SECRET"]\n[workflow.sh]\n'
        'command = ["sh", "-c", "{prompt}"]\ndefault = true\n',
    )
    desk.write("spy.py", SPY)
    serve = desk.execute("serve", prefix=ORDINARY, HOOK_SECRET=SECRET)
    address = address_of(serve)
    desk.say("submit", desk.plan(f"COORDINATOR={serve.pid} python3 spy.py"))
    until(dsn, "bool_and(status = 'completed') from phase_queue")
    log = desk.say("logs", "1.1")
    assert log.splitlines() == [f"{each} Permission denied" for each in ("environ", "mem", "maps")]
    # It can still open its own log, by the descriptor that it holds.
    with urllib.request.urlopen(f"http://{address}/api/v1/queue/queue-1-1/log") as answer:
        assert answer.read().decode().strip() == log
    # And not even root finds the secret where it was, for it was read already.
    assert SECRET.encode() not in Path(f"/proc/{serve.pid}/environ").read_bytes()


@pytest.mark.scale
@needs_proc
@pytest.mark.skipif(IS_ROOT and not shutil.which("setpriv"), reason="no setpriv")
def test_a_coordinator_that_nobody_can_look_into_adopts_processes(desk: Desk, dsn: str) -> None:
    gate = desk.gate()
    first = desk.execute("serve", prefix=ORDINARY)
    first.until("leading")
    desk.say("submit", desk.plan(f"(sleep 1000 &) ; cat {gate}; exit 3"))
    until(dsn, "bool_and(status = 'running') from phase_queue")
    first.send(signal.SIGKILL)
    first.wait()
    second = desk.execute("serve", prefix=ORDINARY)
    second.until("taken over, pid")
    gate.write_text("on\n")
    until(dsn, "bool_and(status = 'failed') from phase_queue")
    second.until("left behind sleep 1000")


# As another user


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can pass through, as those of pytest are not."""
    folder = Path(tempfile.mkdtemp(prefix="pgcoord-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


def as_user(desk: Desk, user: str, runs: Path | None = None) -> None:
    log = f'[log]\nfolder = "{runs}"\n' if runs else ""
    desk.write(
        "pgcoord.toml",
        f'{log}[server]\nport = 0\n[workflow.sh]\ncommand = ["sh", "-c", "{{prompt}}"]\n'
        f'default = true\nuser = "{user}"\ndirectory = "/"\n',
    )


@root_only
def test_a_workflow_runs_as_its_declared_user(
    desk: Desk, conn: Connection, open_folder: Path
) -> None:
    as_user(desk, "nobody", open_folder / "runs")
    nobody = pwd.getpwnam("nobody")
    script = (
        'cd "$(dirname "$PGCOORD_PROMPT_FILE")"; id -un; id -Gn; echo $USER $HOME;'
        " cat prompt.md > /dev/null && echo reads;"
        " for each in log status; do rm -f $each; echo > $each; mv prompt.md $each; done"
        " 2>/dev/null; echo x > report.json && echo writes; ls | sort | xargs; exit 4"
    )
    result = desk.call("run", desk.plan(script))
    assert result.returncode == 1, result
    log = desk.say("logs", "1.1").splitlines()
    group = grp.getgrgid(nobody.pw_gid).gr_name
    assert log == [
        "nobody",
        group,
        f"nobody {nobody.pw_dir}",
        "reads",
        "writes",
        "inputs.json log prompt.md report.json status",
    ]
    [row] = conn.execute("select error_message from phase_queue").fetchall()
    assert row["error_message"].startswith("exited with status 4")


@root_only
def test_a_process_of_another_user_is_ended(desk: Desk, dsn: str, open_folder: Path) -> None:
    as_user(desk, "nobody", open_folder / "runs")
    serve = desk.start("serve")
    serve.until("leading")
    desk.say("submit", desk.plan("(setsid sleep 1000 &) ; sleep 1000"))
    until(dsn, "bool_and(status = 'running') from phase_queue")
    desk.say("cancel", "1.1", "--reason", "enough")
    until(dsn, "bool_and(status = 'cancelled') from phase_queue")
    serve.until("left behind sleep 1000")


@root_only
def test_a_run_where_the_user_cannot_come_is_refused(desk: Desk, conn: Connection) -> None:
    (desk.folder / "closed").mkdir(mode=0o700)
    as_user(desk, "nobody", desk.folder / "closed" / "runs")
    desk.call("run", desk.plan("true"))
    [row] = conn.execute("select status, error_message from phase_queue").fetchall()
    assert row["status"] == "failed"
    assert "user nobody cannot reach" in row["error_message"]
    assert "'folder' of [log]" in row["error_message"]


def test_an_unknown_user_is_refused_at_the_start(desk: Desk) -> None:
    as_user(desk, "no-such-user")
    result = desk.call("serve")
    assert (result.returncode, result.stderr) == (
        7,
        "pgcoord: workflow sh: there is no user no-such-user on this machine\n",
    )


@root_only
def test_only_root_can_start_processes_of_another_user() -> None:
    os.seteuid(pwd.getpwnam("nobody").pw_uid)
    try:
        with pytest.raises(CannotStart, match="only root can do that") as caught:
            find_account("daemon")
        assert find_account("nobody") is None  # itself: there is nothing to change
    finally:
        os.seteuid(0)
    assert "Start pgcoord as root, or as daemon" in str(caught.value.hint)
