"""Several coordinators on one database: the lead, its takeover, and the owner of each process."""

import asyncio
import os
import signal
from datetime import timedelta
from pathlib import Path

import pytest
from support import PATIENCE
from support.coordination import (
    CoordinatorProcess,
    Gate,
    Watch,
    coordinator_process,
    is_alive,
    make_coordinator,
    running,
    scripts,
)
from support.pooler import Pooler

from pgcoord.coordination.coordinator import _LEAD_EVERY

LEADER = (
    "from pg_stat_activity"
    " where datname = current_database() and application_name = 'pgcoord listener'"
)


@pytest.mark.scale
async def test_a_stand_by_takes_over_within_five_seconds_of_the_leaders_death(
    dsn: str, watch: Watch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It asks every four seconds, and the first time after the death it is told yes."""
    caplog.set_level("INFO")
    assert _LEAD_EVERY < 5
    async with coordinator_process(dsn, tmp_path) as first:
        await first.until("leading (lead 1)")
        (leader,) = await watch.all(f"select pid {LEADER}")
        second = make_coordinator(dsn, tmp_path)
        try_to_lead, tries = second._leadership.try_to_lead, 0

        async def count() -> bool:
            nonlocal tries
            tries += 1
            return await try_to_lead()

        second._leadership.try_to_lead = count  # type: ignore[method-assign]
        async with running(second, until_it_leads=False):
            await until_logged(caplog, f"standing by: process {first.pid} on {os.uname().nodename}")
            first.send(signal.SIGKILL)
            await watch.until_found(f"select {LEADER} and pid = {leader['pid']}", nothing=True)
            before = tries
            await second.leads.wait()
            assert tries - before <= 1
            await until_logged(caplog, f"leading (lead 2), taking over from process {first.pid} on")
            await watch.submit("true")
            await watch.until_statuses("completed")


@pytest.mark.scale
async def test_a_stand_by_takes_over_at_once_when_the_leader_stops_in_order(
    dsn: str,
    watch: Watch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("pgcoord.coordination.coordinator._LEAD_EVERY", 2 * PATIENCE)
    second = make_coordinator(dsn, tmp_path)
    async with (
        running(make_coordinator(dsn, tmp_path)) as first,
        running(second, until_it_leads=False),
    ):
        await until_logged(caplog, "standing by")
        # Not while it asks: it would be answered as soon as the first one is gone.
        await watch.until_found(
            "select from pg_stat_activity where datname = current_database() and state = 'idle'"
            " and position('pgcoord_private.lead(' in query) > 0"
        )
        first.stop()
        await second.leads.wait()


@pytest.mark.scale
@pytest.mark.parametrize("host", [None, "elsewhere"])
async def test_a_stand_by_claims_nothing(
    host: str | None,
    dsn: str,
    watch: Watch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    async with running(make_coordinator(dsn, tmp_path)):
        second = make_coordinator(dsn, tmp_path, host=host)
        async with running(second, until_it_leads=False):
            await until_logged(caplog, "standing by")
            await watch.submit(*["true"] * 5)
            await watch.until_statuses(*["completed"] * 5)
            assert not second.led
    hosts = await watch.all("select distinct host, epoch from pgcoord.attempt")
    assert hosts == [{"host": os.uname().nodename, "epoch": 1}]


@pytest.mark.scale
@pytest.mark.parametrize(
    "step", ["launch_and_supervise", "_launch", "_record_start", "_supervise_to_end"]
)
async def test_a_frozen_leader_is_replaced_and_after_its_thaw_starts_nothing_twice(
    step: str, dsn: str, watch: Watch, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    await watch.submit(f"echo >> {tmp_path}/starts; read _ < {gate.path}; exit 3", "true")
    await watch.one("select pgcoord.set_slots(1)")
    async with coordinator_process(dsn, tmp_path, step=step) as frozen:
        await until_given_up(frozen, watch)
        async with coordinator_process(dsn, tmp_path) as second:
            await second.until("leading (lead 2)")
            await watch.until_statuses("running", "queued")
            frozen.send(signal.SIGCONT)
            await frozen.until("standing by: process")
            gate.open()
            await watch.until_statuses("failed", "completed")
    assert (tmp_path / "starts").read_text() == "\n"
    attempts = await watch.all("select number, epoch, exit_code from pgcoord.attempt order by id")
    assert attempts == [
        {"number": 1, "epoch": 1, "exit_code": 3},
        {"number": 1, "epoch": 2, "exit_code": 0},
    ]


@pytest.mark.scale
async def test_a_frozen_leader_behind_a_pool_in_session_mode_is_replaced(
    dsn: str, watch: Watch, tmp_path: Path, pooler: Pooler
) -> None:
    """A pool drops what is sent as `options`, and with them the fence would go."""
    pooler.start(pool_mode="session")
    await watch.submit("true")
    # Longer than a machine that is slow for a moment keeps a leader that is not frozen silent.
    soon = """
connect._OF_LEAD["idle_session_timeout"] = "10s"
listener.PING_EVERY = 0.5
"""
    async with coordinator_process(pooler.dsn, tmp_path, step="_launch", setting=soon) as frozen:
        await frozen.until_frozen()
        async with coordinator_process(dsn, tmp_path) as second:
            await second.until("leading (lead 2)")
            await watch.until_statuses("completed")


@pytest.mark.scale
async def test_a_start_by_a_frozen_leader_was_given_up_by_its_host(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit(f"echo >> {tmp_path}/starts")
    setting = "supervision._TRUSTED_FOR = 1000"
    async with coordinator_process(dsn, tmp_path, step="_launch", setting=setting) as frozen:
        await until_given_up(frozen, watch)
        await watch.one("select pgcoord.cancel_phase('queue-1-1', 'enough')")
        async with running(make_coordinator(dsn, tmp_path)):
            await watch.until_statuses("cancelled")
            frozen.send(signal.SIGCONT)
            await frozen.until("standing by: process")
            frozen.send(signal.SIGTERM)
            await frozen.wait()
    assert not (tmp_path / "starts").exists()


@pytest.mark.scale
async def test_a_frozen_leader_proves_its_lead_before_starting_a_process(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit(f"echo $PGCOORD_ATTEMPT >> {tmp_path}/starts")
    setting = "supervision._TRUSTED_FOR = 0.1"
    work = scripts(retry_lost=True, retry_delay=timedelta(0))
    async with coordinator_process(
        dsn,
        tmp_path,
        host="a",
        step="_launch",
        setting=setting,
        work="scripts(retry_lost=True, retry_delay=timedelta(0))",
    ) as frozen:
        await until_given_up(frozen, watch)
        async with running(make_coordinator(dsn, tmp_path, work, host="b")):
            await let_leases_run_out(watch)
            await watch.until_statuses("completed")
            frozen.send(signal.SIGCONT)
            await frozen.until("is left to the present leader: lead 1 is over")
            # As a stand-by it gives the lost attempt's run up for good.
            await watch.until_found(OPEN, nothing=True)
    assert (tmp_path / "starts").read_text() == "2\n"


@pytest.mark.scale
async def test_attempts_of_another_host_are_left_alone_until_its_lease_has_run_out(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit("exec sleep 1000", ("true", [1]), "true")
    async with coordinator_process(dsn, tmp_path, host="a") as first:
        await watch.until_statuses("running", "queued", "completed")
        first.send(signal.SIGKILL)
    (pid,) = [row["pid"] for row in await open_attempts(watch)]
    async with running(make_coordinator(dsn, tmp_path, host="b")):
        await watch.submit("true")
        await watch.until_statuses("running", "queued", "completed", "completed")
        await let_leases_run_out(watch)
        rows = await watch.until_statuses("failed", "blocked", "completed", "completed")
        assert rows[0]["error_message"] == "nothing was heard of its host a for 60 s"
        assert is_alive(pid)
        # When a coordinator comes to life there, it ends what was given up.
        second = make_coordinator(dsn, tmp_path, host="a")
        async with running(second, until_it_leads=False):
            await watch.until_found(OPEN, nothing=True)
        assert not is_alive(pid)
        assert not second.led


async def test_the_end_of_a_lease_wakes_a_resting_leader(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit("exec sleep 1000")
    async with coordinator_process(dsn, tmp_path, host="a"):
        await watch.until_statuses("running")
    try:
        # The lease is over in a second, and nothing but the timer tells of it.
        await watch.conn.execute(
            "create or replace function pgcoord_private.lease_length() returns interval"
            " language sql immutable return interval '1 second'"
        )
        async with running(make_coordinator(dsn, tmp_path, host="b")):
            await watch.until_statuses("failed")
    finally:
        await end_all(watch)


@pytest.mark.scale
async def test_a_stand_by_sees_to_the_processes_of_its_host_under_the_lead_of_another(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    await watch.submit(f"read _ < {gate.path}; exit 3", "exec sleep 1000", ("true", [1]))
    async with coordinator_process(dsn, tmp_path, host="a"):
        await watch.until_statuses("running", "running", "queued")
    async with running(make_coordinator(dsn, tmp_path, host="b")):
        second = make_coordinator(dsn, tmp_path, host="a")
        async with running(second, until_it_leads=False):
            await watch.until_found("select from pgcoord.host where name = 'a'")
            gate.open()
            await watch.until_statuses("failed", "running", "blocked")
            await watch.one("select pgcoord.cancel_phase('queue-1-2', 'enough')")
            await watch.until_statuses("failed", "cancelled", "blocked")
            assert not second.led
    exits = await watch.all("select exit_code from pgcoord.attempt order by queue_id")
    assert exits == [{"exit_code": 3}, {"exit_code": 143}]


@pytest.mark.scale
async def test_a_stand_by_gives_back_attempts_that_its_host_had_not_started(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit(f"echo $PGCOORD_ATTEMPT >> {tmp_path}/starts")
    async with coordinator_process(
        dsn, tmp_path, host="a", step="_launch", number=signal.SIGKILL
    ) as first:
        await first.wait()
    async with running(make_coordinator(dsn, tmp_path, host="b")):
        second = make_coordinator(dsn, tmp_path, host="a")
        async with running(second, until_it_leads=False):
            await watch.until_statuses("completed")
    assert (tmp_path / "starts").read_text() == "2\n"
    attempts = await watch.all("select host, outcome from pgcoord.attempt order by id")
    assert attempts == [
        {"host": "a", "outcome": "returned"},
        {"host": "b", "outcome": "completed"},
    ]


async def test_a_drained_leader_lets_another_lead_and_ends_with_its_last_process(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    await watch.submit(f"read _ < {gate.path}")
    first, second = (make_coordinator(dsn, tmp_path, host=host) for host in ("a", "b"))
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        drained = tasks.create_task(first.run())
        await watch.until_statuses("running")
        async with running(second, until_it_leads=False):
            first.drain()
            await second.leads.wait()
            await watch.submit("true")
            await watch.until_statuses("running", "completed")
            assert not drained.done()
            gate.open()
            await drained
    assert (await watch.one("select host from pgcoord.attempt where queue_id = 'queue-2-1'")) == {
        "host": "b"
    }
    await watch.until_statuses("completed", "completed")


async def test_a_drained_coordinator_that_runs_alone_still_ends_cancelled_phases(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit("exec sleep 1000", "true")
    await watch.one("select pgcoord.set_slots(1)")
    coordinator = make_coordinator(dsn, tmp_path)
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        drained = tasks.create_task(coordinator.run())
        await watch.until_statuses("running", "queued")
        coordinator.drain()
        await watch.one("select pgcoord.cancel_phase('queue-1-1', 'enough')")
        await drained
    await watch.until_statuses("cancelled", "queued")
    assert (await watch.one("select max(epoch) as epoch from pgcoord.coordinator"))["epoch"] == 1


OPEN = "select pid from pgcoord.attempt where exited_at is null"


async def open_attempts(watch: Watch) -> list[dict[str, int]]:
    return await watch.all(OPEN)


async def end_all(watch: Watch) -> None:
    for row in await open_attempts(watch):
        os.killpg(row["pid"], signal.SIGKILL)


async def let_leases_run_out(watch: Watch) -> None:
    """Have a lease's length go by."""
    await watch.conn.execute(
        "update pgcoord.coordinator set lead_at = lead_at - pgcoord_private.lease_length()"
    )
    await watch.conn.execute("update pgcoord.host set lease_until = clock_timestamp()")
    await watch.conn.execute("notify pgcoord_wake")


async def until_logged(caplog: pytest.LogCaptureFixture, words: str) -> None:
    """Wait until a coordinator of this process has logged these words."""
    async with asyncio.timeout(PATIENCE):
        while words not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def until_given_up(frozen: CoordinatorProcess, watch: Watch) -> None:
    """Wait until the process is frozen, and have the server give it up.

    The server does so by itself when it has heard nothing for three pings, which is 30 s.
    """
    await frozen.until_frozen()
    assert await watch.all(f"select pg_terminate_backend(pid, 60000) {LEADER}")
