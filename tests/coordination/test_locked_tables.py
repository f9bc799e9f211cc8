"""A lock that keeps a coordinator from the lead, or from its rounds, is named while it is held."""

import asyncio
from pathlib import Path

import pytest
from support.coordination import Watch, holding, make_coordinator, running, watching


async def until_logged(watch: Watch, caplog: pytest.LogCaptureFixture, words: str) -> None:
    """Make the coordinators that stand by try to lead until *words* are logged."""
    while words not in caplog.text:
        await watch.conn.execute("notify pgcoord_stand_by")
        await asyncio.sleep(0.05)


@pytest.mark.scale
@pytest.mark.parametrize("table", ["workflow", "pool"])
async def test_a_lead_that_waits_for_a_row_keeps_the_control_row_from_nobody(
    table: str, dsn: str, watch: Watch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(make_coordinator(dsn, tmp_path)):
        pass
    async with holding(dsn, f"select from pgcoord.{table} for update") as other:
        coordinator = make_coordinator(dsn, tmp_path)
        async with running(coordinator, until_it_leads=False):
            words = f"the coordinator waits for process {other.conn.info.backend_pid} "
            await until_logged(watch, caplog, words)
            await watch.one("select pgcoord.pause(null, 'while it waits')")  # locks that row
            await other.conn.execute("rollback")
            await watch.conn.execute("notify pgcoord_stand_by")
            await coordinator.leads.wait()
            await watch.one("select pgcoord.resume()")
            await watch.submit("true")
            await watch.until_statuses("completed")


@pytest.mark.scale
async def test_the_holder_of_the_control_row_is_named_before_anybody_leads(
    dsn: str, watch: Watch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await watch.submit("true")
    async with holding(dsn, "select from pgcoord.control for update") as other:
        coordinator = make_coordinator(dsn, tmp_path)
        async with running(coordinator, until_it_leads=False):
            held = f"pgcoord.control is held by process {other.conn.info.backend_pid} "
            await until_logged(watch, caplog, "cannot lead: " + held)
            await watch.until_found(
                "select from pgcoord.why('queue-1-1')"
                f" where position('no coordinator leads: {held}' in words) = 1"
            )
            await other.conn.execute("rollback")
            await watch.conn.execute("notify pgcoord_stand_by")
            await watch.until_statuses("completed")


@pytest.mark.scale
@pytest.mark.parametrize("table", ["pgcoord.attempt", "pgcoord.control", "pgcoord.free_slot"])
async def test_a_locked_table_is_named_by_the_leader_and_by_one_that_cannot_lead(
    table: str, dsn: str, watch: Watch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    coordinator = make_coordinator(dsn, tmp_path)
    async with running(coordinator):
        async with holding(dsn, f"lock table {table}") as other:
            await watch.conn.execute("notify pgcoord_wake")
            await until_logged(watch, caplog, f"process {other.conn.info.backend_pid} ")
        await watch.submit("true")
        await watch.until_statuses("completed")
    async with holding(dsn, f"lock table {table}") as other:
        coordinator = make_coordinator(dsn, tmp_path)
        async with running(coordinator, until_it_leads=False):
            await until_logged(watch, caplog, f"process {other.conn.info.backend_pid} ")
            await other.conn.execute("rollback")
            await watch.conn.execute("notify pgcoord_stand_by")
            await coordinator.leads.wait()


async def test_of_a_chain_of_waits_the_session_at_its_end_is_named(dsn: str, watch: Watch) -> None:
    await watch.submit("true")
    feature = "select from planned_features for update"
    async with (
        holding(dsn, "lock table pgcoord.free_slot") as last,
        holding(dsn, feature) as between,
        watching(dsn) as first,
    ):
        tasks = [
            asyncio.create_task(each.conn.execute(statement))
            for each, statement in (
                (between, b"select from pgcoord.free_slot"),
                (first, b"select pgcoord_private.await_lock('feature 1')"),
            )
        ]
        try:
            await watch.until_found("select from pgcoord.lock_waits")
            await watch.until_found(
                "select from pg_stat_activity"
                f" where {last.conn.info.backend_pid} = any (pg_blocking_pids(pid))"
            )
            [wait] = await watch.all("select lock, holder from pgcoord.lock_waits")
            assert wait == {"lock": "feature 1", "holder": last.conn.info.backend_pid}
        finally:
            await last.conn.execute("rollback")
            await tasks[0]
            await between.conn.execute("rollback")
            await tasks[1]
