"""Whatever somebody does to one phase, one feature or one connection holds up nothing else."""

import asyncio
import contextlib
import logging
from datetime import timedelta
from pathlib import Path

import pytest
from support import PATIENCE
from support.coordination import Gate, Watch, holding, is_alive, make_coordinator, running, scripts

_WAITS_FOR_LOCK = (
    "select pid from pg_stat_activity where datname = current_database()"
    " and cardinality(pg_blocking_pids(pid)) > 0"
)


def lock_feature(feature_id: int) -> str:
    return f"update planned_features set description = 'tea' where id = {feature_id}"


def lock_phase(queue_id: str) -> str:
    return f"select from phase_queue where queue_id = '{queue_id}' for update"


async def test_an_end_is_recorded_however_often_its_statement_was_cancelled(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    await watch.one("select pgcoord.set_slots(1)")
    phases = 5
    feature = await watch.submit(*[f"read _ < {gate.path}"] * phases)
    async with running(make_coordinator(dsn, tmp_path), patience=3 * PATIENCE):
        for number in range(1, phases + 1):
            await watch.until_found(
                f"select from phase_queue where phase_number = {number} and status = 'running'"
            )
            async with holding(dsn, lock_feature(feature)):
                gate.open()
                for _ in range(3):
                    await watch.until_found(_WAITS_FOR_LOCK)
                    await watch.all(f"select pg_cancel_backend(pid) from ({_WAITS_FOR_LOCK}) as w")
            await watch.until_found(
                f"select from phase_queue where phase_number = {number} and status = 'completed'"
            )


async def test_a_locked_feature_with_eight_ends_holds_up_no_other_feature(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    await watch.one("select pgcoord.set_slots(9)")
    feature = await watch.submit(*[f"read _ < {gate.path}"] * 8)
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses(*["running"] * 8)
        async with holding(dsn, lock_feature(feature)):
            gate.open(8)
            await watch.until_found("select from pgcoord.unrecorded offset 7")
            await watch.submit("true", ("true", [1]))
            await watch.until_statuses(*["running"] * 8, "completed", "completed")
        await watch.until_statuses(*["completed"] * 10)
        await watch.until_found("select from pgcoord.unrecorded", nothing=True)


async def test_a_locked_feature_with_ten_lingering_processes_holds_up_no_other_feature(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    feature = await watch.submit(*[f"read _ < {gate.path}"] * 10)
    work = scripts(linger=timedelta(hours=1))
    async with running(make_coordinator(dsn, tmp_path, work), patience=2 * PATIENCE):
        for number in range(1, 11):
            await watch.until_found(
                f"select from phase_queue where phase_number = {number} and status = 'running'"
            )
            await watch.one(f"select pgcoord.complete_phase('queue-{feature}-{number}')")
        async with holding(dsn, lock_feature(feature)):
            gate.open(10)
            await watch.until_found("select from pgcoord.unrecorded offset 9")
            await watch.submit("true", ("true", [1]))
            await watch.until_statuses(*["completed"] * 12)
        await watch.until_found("select from pgcoord.attempt where exited_at is null", nothing=True)


async def test_a_locked_phase_holds_up_no_other_phase_of_its_feature(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    await watch.submit(f"read _ < {gate.path}", f"read _ < {gate.path}", ("true", [2]))
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses("running", "running", "queued")
        async with holding(dsn, lock_phase("queue-1-1")):
            gate.open(2)
            await watch.until_statuses("running", "completed", "completed")
        await watch.until_statuses("completed", "completed", "completed")


@pytest.mark.parametrize("locked", ["queue-1-1", "queue-1-2", "queue-1-3"])
async def test_an_end_waits_for_its_locked_rows_and_shows_the_wait(
    locked: str, dsn: str, watch: Watch, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    await watch.submit(f"read _ < {gate.path}; exit 1", ("true", [1]), ("true", [2]))
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses("running", "queued", "queued")
        async with holding(dsn, lock_phase(locked)):
            gate.open()
            await watch.until_found(f"select from pgcoord.lock_waits where lock = 'phase {locked}'")
            (row,) = await watch.all("select lock from pgcoord.unrecorded")
            assert row["lock"] == f"phase {locked}"
        await watch.until_statuses("failed", "blocked", "blocked")


@pytest.mark.scale
async def test_an_end_that_waits_for_a_lock_counts_from_its_own_time(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    await watch.submit(f"read _ < {gate.path}")
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses("running")
        async with holding(dsn, lock_phase("queue-1-1")):
            gate.open()
            await watch.until_found("select from pgcoord.unrecorded")
            # Its time is up only now.
            await watch.all("update pgcoord.attempt set deadline = now() returning id")
            await watch.all("select pg_notify('pgcoord_wake', '') is null")
            await watch.until_found("select from pgcoord.attempt where ending = 'timed_out'")
            await watch.until_found(
                "select from pgcoord.attempt where deadline < clock_timestamp() - interval '2 s'"
            )
        await watch.until_statuses("completed")
    assert await watch.one(
        "select outcome, ended_at < deadline as in_time, finished_timestamp = ended_at as same"
        " from pgcoord.attempt join phase_queue using (queue_id)"
    ) == {"outcome": "completed", "in_time": True, "same": True}


@pytest.mark.scale
@pytest.mark.parametrize("sessions", [1, 8])
async def test_the_ninth_locked_phase_is_claimed_when_its_lock_goes(
    sessions: int, dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.one("select pgcoord.set_slots(9)")
    await watch.one("select pgcoord.pause()")
    await watch.submit(*["true"] * 9)
    first = [f"queue-1-{number}" for number in range(1, 9)]
    async with contextlib.AsyncExitStack() as others, running(make_coordinator(dsn, tmp_path)):
        for number in range(sessions):
            names = "', '".join(first[number::sessions])
            held = f"select from phase_queue where queue_id in ('{names}') for update"
            await others.enter_async_context(holding(dsn, held))
        async with holding(dsn, lock_phase("queue-1-9")):
            await watch.one("select pgcoord.resume()")
            await watch.until_found("select from pgcoord.lock_waits where lock = 'phase queue-1-9'")
        await watch.until_statuses(*["queued"] * 8, "completed")


@pytest.mark.scale
async def test_a_phase_whose_claim_is_refused_holds_up_no_other(
    dsn: str, watch: Watch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await watch.conn.execute("""
        create function public.refuse() returns trigger language plpgsql as
            $$begin raise 'not this one'; end$$""")
    await watch.conn.execute("""
        create trigger refuse before update on public.phase_queue for each row
            when (new.queue_id = 'queue-1-1') execute function public.refuse()""")
    await watch.submit("true", "true")
    await watch.submit("true")
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses("queued", "completed", "completed")
        assert "queue-1-1 is set aside and tried again later" in caplog.text
        why = await watch.one("select kind, words from pgcoord.why('queue-1-1') limit 1")
        assert why["kind"] == "unclaimable"
        assert why["words"].endswith(": not this one")
        found = await watch.one("select level, words from pgcoord.checkup() where kind = 'line'")
        assert found["level"] == "warn"
        assert "queue-1-1: not this one" in found["words"]
        await watch.conn.execute("drop trigger refuse on public.phase_queue")
        await watch.until_statuses(*["completed"] * 3)


async def test_a_retry_in_a_locked_feature_holds_up_no_other_feature(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    locked = await watch.submit("true")
    await watch.submit("true")
    await watch.all("update phase_queue set retry_at = now() returning true")
    held = f"select from planned_features where id = {locked} for update"
    async with contextlib.AsyncExitStack() as coordinator:
        async with holding(dsn, held):
            await coordinator.enter_async_context(running(make_coordinator(dsn, tmp_path)))
            await watch.until_statuses("running", "completed")
        await watch.until_statuses("completed", "completed")


async def test_a_locked_slot_is_passed_over(dsn: str, watch: Watch, tmp_path: Path) -> None:
    held = "select from pgcoord.slot where number < 3 for update"
    async with running(make_coordinator(dsn, tmp_path)), holding(dsn, held):
        await watch.submit("true")
        await watch.until_statuses("completed")


@pytest.mark.scale
@pytest.mark.parametrize("table", ["slot", "free_slot"])
async def test_a_claim_waits_for_locked_slots_and_names_them(
    dsn: str, watch: Watch, tmp_path: Path, caplog: pytest.LogCaptureFixture, table: str
) -> None:
    async with running(make_coordinator(dsn, tmp_path)):
        async with holding(dsn, f"select from pgcoord.{table} for update") as other:
            await watch.submit("true")
            pid = other.conn.info.backend_pid
            await watch.until_found("select from pgcoord.lock_waits where lock like 'slot %%'")
            (reason, *_) = await watch.all("select * from pgcoord.why('queue-1-1')")
            assert reason["kind"] == "locked"
            assert f"process {pid} " in reason["words"]
            await until_logged(caplog, f"slot 1 is held by process {pid}")
            assert "pgcoord.control" not in caplog.text
        await watch.until_statuses("completed")


async def test_an_end_that_the_database_refuses_is_visible_with_the_error(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    await watch.submit(f"read _ < {gate.path}")
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses("running")
        await watch.conn.execute(
            "create function public.refuse() returns trigger language plpgsql as"
            " $$ begin raise 'not on a Friday'; end $$;"
            " create trigger refuses before update of status on phase_queue"
            " for each row execute function public.refuse()"
        )
        gate.open()
        await watch.until_found("select from pgcoord.unrecorded")
        (reason, *_) = await watch.all("select * from pgcoord.why('queue-1-1')")
        assert reason["kind"] == "unrecorded"
        assert reason["words"] == (
            "its process exited with status 0, which is not recorded yet: it is tried again and"
            " again, and the database refuses it: not on a Friday"
        )
        found = await watch.one("select * from pgcoord.checkup() where kind = 'locks'")
        assert found["words"].endswith("cannot be recorded yet: queue-1-1: not on a Friday")
        assert "look at triggers of yours" in found["remedy"]
        assert await watch.all("select from pgcoord.attention where kind = 'locked'")
        await watch.conn.execute("drop trigger refuses on phase_queue")
        await watch.until_statuses("completed")
    assert not await watch.all("select from pgcoord_private.unrecorded_now")


async def test_stopping_leaves_an_end_that_waits_for_a_lock_to_the_next_coordinator(
    dsn: str, watch: Watch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(tmp_path / "gate")
    feature = await watch.submit(f"read _ < {gate.path}; exit 3")
    async with holding(dsn, "select") as other:
        async with running(make_coordinator(dsn, tmp_path)):
            await watch.until_statuses("running")
            await other.conn.execute(lock_feature(feature).encode())
            gate.open()
            await watch.until_found("select from pgcoord.lock_waits where lock like 'feature %%'")
            pid = other.conn.info.backend_pid
        assert f"feature {feature}, held by process {pid}" in caplog.text
        assert "Traceback" not in caplog.text
    async with running(make_coordinator(dsn, tmp_path)):
        (row,) = await watch.until_statuses("failed")
    assert row["error_message"].startswith("exited with status 3")


async def test_an_end_that_waits_is_shown_with_the_holder_of_its_lock(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    feature = await watch.submit(f"read _ < {gate.path}")
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses("running")
        async with holding(dsn, lock_feature(feature)) as other:
            gate.open()
            await watch.until_found("select from pgcoord.lock_waits")
            reason = (await watch.all("select * from pgcoord.why('queue-1-1')"))[0]
            holder = f"process {other.conn.info.backend_pid} "
            assert reason["kind"] == "unrecorded"
            assert "exited with status 0" in reason["words"]
            assert holder in reason["words"]
            assert "set description = 'tea'" in reason["words"]
            (need,) = await watch.all("select * from pgcoord.attention")
            assert (need["kind"], need["queue_id"]) == ("locked", "queue-1-1")
            assert holder in need["words"]
            (found,) = await watch.all("select * from pgcoord.checkup() where kind = 'locks'")
            assert found["level"] == "warn"
            assert holder in found["words"]
            assert f"pg_terminate_backend({other.conn.info.backend_pid})" in found["remedy"]
        await watch.until_statuses("completed")
    assert await watch.all("select from pgcoord.attention") == []
    assert (await watch.one("select level from pgcoord.checkup() where kind = 'locks'")) == {
        "level": "ok"
    }


async def test_a_process_unknown_to_a_stand_by_is_not_ended(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    await watch.submit(f"read _ < {gate.path}")
    (view,) = await watch.all(
        "select pg_get_viewdef('pgcoord_private.assignment'::regclass) as text"
    )
    async with running(make_coordinator(dsn, tmp_path)) as coordinator:
        await watch.until_statuses("running")
        (assignment,) = coordinator.running
        # What a pooler's stand-by answers that lags behind.
        await watch.conn.execute(
            f"create or replace view pgcoord_private.assignment as"
            f" {view['text'].rstrip().rstrip(';')} and false".encode()
        )
        await watch.submit("true")
        await watch.until_statuses("running", "completed")
        pid = (await watch.one("select pid from pgcoord.attempt where id = %s", 1))["pid"]
        assert is_alive(pid)
        await watch.conn.execute(
            f"create or replace view pgcoord_private.assignment as {view['text']}".encode()
        )
        gate.open()
        await watch.until_statuses("completed", "completed")
    assert assignment.queue_id == "queue-1-1"


async def test_a_server_that_only_reads_costs_at_most_one_line_an_end(
    dsn: str, watch: Watch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(tmp_path / "gate")
    await watch.submit(*[f"read _ < {gate.path}"] * 2)
    name = (await watch.one("select current_database() as name"))["name"]
    async with running(make_coordinator(dsn, tmp_path)) as coordinator:
        await watch.until_statuses("running", "running")
        await reconnect(watch, f"alter database {name} set default_transaction_read_only = on")
        pids = await watch.all("select pid from pgcoord.attempt")
        gate.open(2)
        while any(is_alive(each["pid"]) for each in pids):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await until_logged(caplog, "read-only transaction")
        await watch.conn.execute("set default_transaction_read_only = off")
        await reconnect(watch, f"alter database {name} reset default_transaction_read_only")
        await watch.until_statuses("completed", "completed")
        assert coordinator.interruptions
    for queue_id in ("queue-1-1", "queue-1-2"):
        lines = [
            record
            for record in caplog.records
            if record.levelno >= logging.WARNING and queue_id in record.getMessage()
        ]
        # None where no session lived for long enough to try.
        assert len(lines) <= 1
    assert not [record for record in caplog.records if record.exc_info]


async def reconnect(watch: Watch, statement: str) -> None:
    """Execute *statement* and end all other sessions, so that new ones use it."""
    await watch.conn.execute(statement.encode())
    await watch.all(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )


async def until_logged(caplog: pytest.LogCaptureFixture, *words: str) -> None:
    """Wait until a line with all these words was logged."""
    async with asyncio.timeout(PATIENCE):
        while not any(  # noqa: ASYNC110
            all(word in record.getMessage() for word in words) for record in caplog.records
        ):
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
