"""Whatever is killed, whenever: each attempt's process runs once, and its end counts."""

import asyncio
import fcntl
import os
import shutil
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
from support import PATIENCE
from support.coordination import (
    Gate,
    Watch,
    is_alive,
    make_coordinator,
    running,
    scripts,
    until_it_ends,
)
from support.forks import run_forked_source

from pgcoord.runs import linux

# A coordinator that kills itself as `kill -9` would, at one point of an attempt's way.
DYING = """
import asyncio, os, signal, sys
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, {tests!r})
from support.coordination import make_coordinator
from pgcoord.coordination.coordinator import Coordinator
from pgcoord.coordination.supervision import Supervision

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Dies(Supervision):
    async def launch_and_supervise(self):
        die() if {point!r} == "claimed" else None
        await super().launch_and_supervise()
    async def _launch(self):
        die() if {point!r} == "prepared" else None
        await super()._launch()
    async def _record_start(self):
        die() if {point!r} == "spawned" else None
        await super()._record_start()
    async def _supervise_to_end(self):
        die() if {point!r} == "running" else None
        await super()._supervise_to_end()

class Dying(Coordinator):
    supervision = Dies

asyncio.run(make_coordinator({dsn!r}, Path({folder!r}), kind=Dying).run())
"""


async def kill_coordinator_at(point: str, dsn: str, folder: Path) -> None:
    """Run a coordinator until it kills itself at `point`."""
    source = DYING.format(
        tests=str(Path(__file__).parents[1]), point=point, dsn=dsn, folder=str(folder)
    )
    died = run_forked_source(source, stdout=2)
    assert await asyncio.to_thread(died.wait, PATIENCE) == -signal.SIGKILL


@pytest.mark.parametrize("point", ["claimed", "prepared", "spawned", "running"])
@pytest.mark.parametrize(("script", "status"), [("true", "completed"), ("exit 3", "failed")])
async def test_a_coordinator_killed_at_any_point_is_replaced_and_the_process_ran_once(
    point: str, script: str, status: str, dsn: str, watch: Watch, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    await watch.submit(f"echo >> {tmp_path}/starts; read _ < {gate.path}; {script}")
    await kill_coordinator_at(point, dsn, tmp_path)
    async with running(make_coordinator(dsn, tmp_path)):
        gate.open()
        await watch.until_statuses(status)
    assert (tmp_path / "starts").read_text() == "\n"
    attempts = await watch.all("select number, outcome, exit_code from pgcoord.attempt")
    assert attempts == [
        {"number": 1, "outcome": status, "exit_code": 0 if status == "completed" else 3}
    ]


@pytest.mark.parametrize("point", ["spawned", "running"])
async def test_a_process_that_ended_while_nobody_coordinated_has_its_status_counted(
    point: str, dsn: str, watch: Watch, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    await watch.submit(f"read _ < {gate.path}; echo bye; exit 5")
    await kill_coordinator_at(point, dsn, tmp_path)
    (folder,) = (tmp_path / "runs").glob("*/1-*")
    gate.open()
    await wait_for_end(folder)
    async with running(make_coordinator(dsn, tmp_path)):
        (row,) = await watch.until_statuses("failed")
    assert row["error_message"] == "exited with status 5\nbye"


async def test_a_process_that_ended_in_time_without_a_coordinator_counts_from_its_real_end(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    await watch.submit(f"read _ < {gate.path}")
    await kill_coordinator_at("running", dsn, tmp_path)
    (folder,) = (tmp_path / "runs").glob("*/1-*")
    gate.open()
    await wait_for_end(folder)
    # It began an hour ago and ended four minutes later, before its time was up.
    await watch.all(
        "update pgcoord.attempt set claimed_at = now() - interval '1 h', timeout = '5 min',"
        " started_at = now() - interval '1 h', deadline = now() - interval '55 min' returning id"
    )
    os.utime(folder / "status", (time.time() - 56 * 60,) * 2)
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses("completed")
    assert await watch.one(
        "select outcome, round(extract(epoch from ended_at - started_at) / 60) as attempt,"
        " round(extract(epoch from finished_timestamp - started_at) / 60) as phase"
        " from pgcoord.attempt join phase_queue using (queue_id)"
    ) == {"outcome": "completed", "attempt": 4, "phase": 4}


async def test_an_end_asked_for_while_nobody_coordinated_is_brought_about(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit("sleep 1000")
    await kill_coordinator_at("running", dsn, tmp_path)
    await watch.one("select pgcoord.cancel_phase('queue-1-1', 'enough')")
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses("cancelled")


@pytest.mark.parametrize("point", ["claimed", "prepared"])
async def test_a_phase_cancelled_before_its_process_started_never_starts(
    point: str, dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit(f"echo >> {tmp_path}/starts")
    await kill_coordinator_at(point, dsn, tmp_path)
    await watch.one("select pgcoord.cancel_phase('queue-1-1', 'enough')")
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses("cancelled")
    assert not (tmp_path / "starts").exists()
    assert (await watch.one("select pid, outcome from pgcoord.attempt")) == {
        "pid": None,
        "outcome": "cancelled",
    }


async def test_a_reported_phase_whose_process_lives_on_is_ended_by_the_next_coordinator(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit("sleep 1000")
    await kill_coordinator_at("running", dsn, tmp_path)
    await watch.one("select pgcoord.complete_phase('queue-1-1')")
    work = scripts(linger=timedelta(0))
    async with running(make_coordinator(dsn, tmp_path, work)):
        await watch.until(bool, "select from pgcoord.event where kind = 'attempt_exited'")
    assert (await watch.one("select status from phase_queue")) == {"status": "completed"}


@pytest.mark.parametrize(
    ("retry_lost", "status", "attempts"), [(False, "failed", 1), (True, "completed", 2)]
)
async def test_a_process_that_vanished_without_a_status_is_lost(
    retry_lost: bool, status: str, attempts: int, dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit("test $PGCOORD_ATTEMPT = 2 || exec sleep 1000")
    work = scripts(retry_lost=retry_lost, retry_delay=timedelta(0))
    async with running(make_coordinator(dsn, tmp_path, work)):
        await watch.until_statuses("running")
    pid = (await watch.one("select pid from pgcoord.attempt"))["pid"]
    os.killpg(pid, signal.SIGKILL)
    async with running(make_coordinator(dsn, tmp_path, work)):
        (row,) = await watch.until_statuses(status)
    assert (row["attempt"], row["attempts_used"]) == (attempts, 0 if retry_lost else 1)
    first = await watch.one("select outcome from pgcoord.attempt where number = 1")
    assert first["outcome"] == "lost"


async def test_a_restored_state_whose_run_was_deleted_is_lost_not_run_again(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit(f"echo >> {tmp_path}/starts; exec sleep 1000")
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses("running")
        await until_it_ends(tmp_path / "starts", "\n")
    attempt = await watch.one("select pid, folder from pgcoord.attempt")
    os.killpg(attempt["pid"], signal.SIGKILL)
    shutil.rmtree(attempt["folder"])
    async with running(make_coordinator(dsn, tmp_path)):
        (row,) = await watch.until_statuses("failed")
    assert "left no exit status" in row["error_message"]
    assert (tmp_path / "starts").read_text() == "\n"


async def test_a_living_process_whose_run_was_deleted_is_ended_and_then_lost(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit(f"echo $$ > {tmp_path}/pid; exec sleep 1000")
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses("running")
        await until_it_ends(tmp_path / "pid", "\n")
    attempt = await watch.one("select pid, folder from pgcoord.attempt")
    shutil.rmtree(attempt["folder"])
    async with running(make_coordinator(dsn, tmp_path)):
        (row,) = await watch.until_statuses("failed")
    assert "left no exit status" in row["error_message"]
    assert not is_alive(attempt["pid"])
    assert not is_alive(int((tmp_path / "pid").read_text()))


async def test_a_stranger_with_the_pid_of_a_lost_process_is_left_alone(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit("exec sleep 1000")
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses("running")
    attempt = await watch.one("select pid, process_started, folder from pgcoord.attempt")
    os.killpg(attempt["pid"], signal.SIGKILL)
    shutil.rmtree(attempt["folder"])
    stranger = await asyncio.create_subprocess_exec("sleep", "1000", start_new_session=True)
    # A pid comes again much later than within the 10 ms that start times tell apart.
    while linux.start_time(stranger.pid) == attempt["process_started"]:
        stranger.kill()
        await stranger.wait()
        stranger = await asyncio.create_subprocess_exec("sleep", "1000", start_new_session=True)
    try:
        await watch.conn.execute("update pgcoord.attempt set pid = %s", [stranger.pid])
        async with running(make_coordinator(dsn, tmp_path)):
            await watch.until_statuses("failed")
        assert stranger.returncode is None
    finally:
        stranger.kill()
        await stranger.wait()
    assert stranger.returncode == -signal.SIGKILL


async def wait_for_end(folder: Path) -> None:
    """Wait until the wrapper of a run is gone, by its lock."""
    with (folder / "status").open("rb") as status:
        await asyncio.to_thread(fcntl.flock, status, fcntl.LOCK_SH)
