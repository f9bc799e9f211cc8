"""The coordinator with a real database and real processes: claims, ends, retries, timeouts."""

import asyncio
import os
from dataclasses import replace
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
    watching,
)

from pgcoord.coordination.coordinator import Coordinator
from pgcoord.coordination.supervision import Supervision

NONE = timedelta(0)


async def test_phases_run_in_the_order_of_their_dependencies(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    log = tmp_path / "order"
    say = f"echo $PGCOORD_PHASE_NUMBER >> {log}"
    await watch.submit(say, (say, [1]), (say, [1]), (say, [2, 3]))
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses(*["completed"] * 4)
    first, *middle, last = log.read_text().split()
    assert (first, sorted(middle), last) == ("1", ["2", "3"], "4")


async def test_no_more_run_at_once_than_there_are_slots(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    await watch.submit(*[f"read _ < {gate.path}"] * 5)
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses("running", "running", "running", "queued", "queued")
        await watch.one("select pgcoord.set_slots(5)")
        await watch.until_statuses(*["running"] * 5)
        gate.open(5)
        await watch.until_statuses(*["completed"] * 5)


async def test_the_last_lines_of_a_failed_process_are_its_reason(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit("echo one; echo 'no \"such\" thing' >&2; exit 7", ("true", [1]))
    async with running(make_coordinator(dsn, tmp_path)):
        rows = await watch.until_statuses("failed", "blocked")
    assert rows[0]["error_message"] == 'exited with status 7\none\nno "such" thing'


async def test_the_reason_names_the_signal_that_ended_the_process(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit("kill -SEGV $$")
    async with running(make_coordinator(dsn, tmp_path)):
        (row,) = await watch.until_statuses("failed")
    assert row["error_message"].startswith("exited with status 139 (signal 11)")


async def test_a_phase_without_a_prompt_fails_where_its_workflow_needs_one(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit(" ", "true")
    async with running(make_coordinator(dsn, tmp_path, scripts(needs_prompt=True))):
        row, _ = await watch.until_statuses("failed", "completed")
    assert row["error_message"] == "it has no prompt, and workflow work needs_prompt"


async def test_exit_0_is_no_success_where_a_report_is_due(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit("true")
    async with running(make_coordinator(dsn, tmp_path, scripts(reports=True))):
        (row,) = await watch.until_statuses("failed")
    assert row["error_message"] == "exited 0 without reporting"


async def test_a_reported_phase_frees_its_slot_while_its_process_lingers(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit("exec cat /dev/zero > /dev/null", ("true", [1]))
    async with running(make_coordinator(dsn, tmp_path, scripts(linger=timedelta(hours=1)))):
        await watch.until_statuses("running", "queued")
        await watch.one("select pgcoord.complete_phase('queue-1-1')")
        await watch.until_statuses("completed", "completed")
        assert is_alive(await pid_of(watch, "queue-1-1"))
    await end(watch, "queue-1-1")


async def test_a_process_that_outstays_its_linger_is_ended_and_changes_nothing(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit(
        f"trap 'exit 9' TERM; echo > {tmp_path}/up; while :; do sleep 1 & wait; done"
    )
    async with running(make_coordinator(dsn, tmp_path, scripts(linger=NONE))):
        await watch.until_statuses("running")
        await until_it_ends(tmp_path / "up", "\n")
        await watch.one("select pgcoord.complete_phase('queue-1-1')")
        (row,) = await watch.until_statuses("completed")
        await watch.until(
            lambda rows: bool(rows), "select from pgcoord.attempt where exited_at is not null"
        )
    assert row["error_message"] is None
    attempt = await watch.one("select outcome, exit_code, exited_at from pgcoord.attempt")
    assert (attempt["outcome"], attempt["exit_code"]) == ("completed", 9)


async def test_a_running_phase_keeps_the_settings_of_its_start(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    coordinator = make_coordinator(dsn, tmp_path, scripts(linger=NONE))
    async with running(coordinator):
        await watch.submit(f"read _ < {gate.path}")
        await watch.until_statuses("running")
        work = scripts(linger=timedelta(hours=1))
        coordinator.reconfigure(replace(coordinator.configuration, workflows={"work": work}))
        await watch.until_found("select from pgcoord.control where epoch = 2")
        await watch.conn.execute("select pgcoord.complete_phase('queue-1-1')")
        await watch.until_found("select from pgcoord.attempt where exited_at is not null")


async def test_a_start_whose_record_waits_does_not_keep_a_new_configuration_from_counting(
    dsn: str, watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgcoord.coordination.coordinator._RETRY_AFTER", 0.2)
    await watch.conn.execute(
        b"""
        create function public.wait() returns trigger language plpgsql as $$
        begin perform pg_advisory_xact_lock(1); return new; end $$;
        create trigger wait before update on phase_queue for each row
            when (new.status = 'running' and new.feature_id = 1) execute function public.wait();
        select pg_advisory_lock(1)"""
    )
    coordinator = make_coordinator(dsn, tmp_path)
    async with running(coordinator):
        await watch.submit("true")
        await watch.until_found(
            "select from pg_stat_activity"
            " where wait_event = 'advisory' and datname = current_database()"
        )
        coordinator.reconfigure(coordinator.configuration)
        await watch.submit("true")
        await watch.until_found(
            "select from phase_queue where feature_id = 2 and status = 'completed'"
        )
        assert (await watch.one("select epoch from pgcoord.control"))["epoch"] == 2
        await watch.conn.execute("select pg_advisory_unlock(1)")
        await watch.until_statuses("completed", "completed")


@pytest.mark.parametrize(
    ("statement", "status"),
    [
        ("select pgcoord.cancel_phase('queue-1-1', 'enough')", "cancelled"),
        ("select pgcoord.fail_phase('queue-1-1', 'enough')", "failed"),
        ("update phase_queue set status = 'cancelled'", "cancelled"),
        ("update phase_queue set status = 'failed'", "failed"),
    ],
)
async def test_a_process_is_ended_before_its_phase_leaves_the_slot(
    statement: str, status: str, dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit("sleep 1000 & sleep 1000")
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses("running")
        pid = await pid_of(watch, "queue-1-1")
        await watch.conn.execute(statement.encode())
        await watch.until_statuses(status)
    assert not is_alive(pid)
    events = await watch.all("select kind, to_status from pgcoord.event order by id desc limit 2")
    assert [event["to_status"] or event["kind"] for event in events] == [status, "attempt_ending"]


@pytest.mark.scale
async def test_a_process_that_ignores_term_is_killed_with_its_group(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit(f"trap '' TERM; sleep 1000 & echo $! > {tmp_path}/pid; sleep 1000")
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses("running")
        await until_it_ends(tmp_path / "pid", "\n")
        await watch.one("select pgcoord.cancel_phase('queue-1-1', 'enough')")
        await watch.until_statuses("cancelled")
    assert not is_alive(int((tmp_path / "pid").read_text()))


async def test_processes_of_a_daemonising_child_are_ended_and_named(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    await watch.submit(f"setsid sh -c 'echo up > {ready}; exec sleep 4321' & read _ < {ready}")
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses("completed")
    event = await watch.one("select * from pgcoord.event where kind = 'attempt_left_behind'")
    assert "sleep 4321" in event["reason"] or "sh -c" in event["reason"]
    left = int(event["reason"].rpartition("(pid ")[2].rstrip(")"))
    assert not is_alive(left)


async def test_a_failed_phase_is_retried_after_growing_waits(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit(
        f"echo >> {tmp_path}/tries; test $(wc -l < {tmp_path}/tries) = 3", max_attempts=5
    )
    work = scripts(retry_delay=timedelta(milliseconds=40))
    async with running(make_coordinator(dsn, tmp_path, work)):
        (row,) = await watch.until_statuses("completed")
    assert (row["attempt"], row["attempts_used"]) == (3, 2)
    waits = await watch.all(
        "select extract(epoch from claimed_at - lag(ended_at) over (order by number)) * 1000 as ms"
        " from pgcoord.attempt order by number"
    )
    assert waits[1]["ms"] >= 40
    assert waits[2]["ms"] >= 80


async def test_a_process_that_runs_longer_than_its_timeout_is_ended(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit("sleep 1000")
    work = scripts(timeout=timedelta(milliseconds=100))
    async with running(make_coordinator(dsn, tmp_path, work)):
        (row,) = await watch.until_statuses("failed")
    assert row["error_message"] == "ran longer than its timeout of 0 s"
    attempt = await watch.one("select outcome, exit_code from pgcoord.attempt")
    assert attempt == {"outcome": "timed_out", "exit_code": 128 + 15}


async def test_ten_megabytes_of_output_do_not_block(dsn: str, watch: Watch, tmp_path: Path) -> None:
    await watch.submit("head -c 10000000 /dev/zero; echo done >&2")
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses("completed")
    folder = (await watch.one("select folder from pgcoord.attempt"))["folder"]
    assert (Path(folder) / "log").stat().st_size == 10_000_005


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"command": ("no-such-program",)}, "cannot start no-such-program: not found in "),
        ({"command": ("/etc/passwd",)}, "cannot start /etc/passwd: /etc/passwd is not executable"),
        ({"directory": Path("/no/such")}, "cannot start in /no/such: no such directory"),
        ({"command": ("sh", "{issue_number}")}, "{issue_number}: the phase has no issue number"),
        ({"command": ("echo", "{prompt}")}, "cannot start "),
    ],
)
async def test_a_command_that_cannot_be_started_fails_with_its_reason(
    settings: dict[str, object], reason: str, dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit("x" * 200_000)
    async with running(make_coordinator(dsn, tmp_path, scripts(**settings))):
        (row,) = await watch.until_statuses("failed")
    assert row["error_message"].startswith(reason.replace("issue number", "issue"))
    assert (await watch.one("select pid, exited_at is null as open from pgcoord.attempt")) == {
        "pid": None,
        "open": False,
    }


async def test_text_from_people_is_never_interpreted(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    title = "a 'b' \"c\" $(touch /tmp/x) `d` {queue_id} {{}} ; rm -rf / \n\\ %s é"
    out = tmp_path / "out"
    work = scripts(command=("sh", "-c", 'printf %s "$1" > "$2"', "sh", "{title}", str(out)))
    await watch.submit("x", title=title)
    async with running(make_coordinator(dsn, tmp_path, work)):
        await watch.until_statuses("completed")
    assert out.read_text() == title


async def test_a_prompt_of_five_megabytes_reaches_its_process_to_the_letter(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    prompt = "žluťoučký kůň\r\n" * 300_000
    out = tmp_path / "out"
    work = scripts(command=("cp", "{prompt_file}", str(out)))
    await watch.submit(prompt)
    async with running(make_coordinator(dsn, tmp_path, work)):
        await watch.until_statuses("completed")
    assert out.read_bytes() == prompt.encode()


async def test_a_process_gets_the_variables_of_its_attempt_and_no_others(
    dsn: str, watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_MINE", "x")
    monkeypatch.setenv("LET_THROUGH", "y")
    await watch.submit(f"env > {tmp_path}/env")
    work = scripts(environment=("LET_THROUGH",))
    async with running(make_coordinator(dsn, tmp_path, work)):
        (row,) = await watch.until_statuses("completed")
    lines = (tmp_path / "env").read_text().splitlines()
    actual = dict(line.split("=", 1) for line in lines)
    attempt = await watch.one("select adw_id, secret, folder from pgcoord.attempt")
    assert {name: actual.pop(name) for name in list(actual) if name.startswith("PGCOORD_")} == {
        "PGCOORD_QUEUE_ID": "queue-1-1",
        "PGCOORD_FEATURE_ID": "1",
        "PGCOORD_PHASE_NUMBER": "1",
        "PGCOORD_ADW_ID": row["adw_id"],
        "PGCOORD_ATTEMPT": "1",
        "PGCOORD_ISSUE_NUMBER": "",
        "PGCOORD_PROMPT_FILE": attempt["folder"] + "/prompt.md",
        "PGCOORD_INPUT_FILE": attempt["folder"] + "/inputs.json",
        "PGCOORD_RESULT_FILE": attempt["folder"] + "/result.json",
        "PGCOORD_INSTALLATION": attempt["folder"].split("/")[-2],
        "PGCOORD_WEBHOOK_SECRET": attempt["secret"],
    }
    assert actual.keys() - {"PWD", "OLDPWD", "SHLVL", "_"} <= {
        *("PATH", "HOME", "USER", "LANG", "TMPDIR", "LET_THROUGH")
    }


async def test_a_phase_of_an_unknown_workflow_waits_with_that_reason(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit("true", workflow_type="nobodys")
    await watch.submit("true")
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses("queued", "completed")
        why = await watch.all("select * from pgcoord.why('queue-1-1')")
    assert why[0]["words"] == "no coordinator knows workflow nobodys"


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_a_locked_phase_is_claimed_after_the_lock_is_released(
    end: str, dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit("true")
    async with watching(dsn) as other, running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses("completed")
        await watch.one("select pgcoord.pause()")
        await watch.submit("true")
        await other.conn.execute("begin")
        await other.conn.execute(
            "update phase_queue set priority = 10 where queue_id = 'queue-2-1'"
        )
        await watch.one("select pgcoord.resume()")
        await waits_for_lock(watch, "phase queue-2-1")
        await other.conn.execute(end.encode())
        await watch.until_statuses("completed", "completed")


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_a_lock_that_stops_claims_does_not_stop_the_ending_of_processes(
    end: str, dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit("exec sleep 1000")
    async with watching(dsn) as other, running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses("running")
        await other.conn.execute("begin")
        await other.conn.execute("update pgcoord.control set paused_reason = 'tea'")
        await watch.submit("true")
        await waits_for_lock(watch, "pgcoord.control")
        await watch.one("select pgcoord.cancel_phase('queue-1-1', 'enough')")
        await watch.until_statuses("cancelled", "queued")
        await other.conn.execute(end.encode())
        await watch.until_statuses("cancelled", "completed")


async def test_a_lingering_process_whose_phase_is_deleted_is_ended(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit("exec sleep 1000")
    async with running(make_coordinator(dsn, tmp_path, scripts(linger=timedelta(hours=1)))) as one:
        await watch.until_statuses("running")
        pid = await pid_of(watch, "queue-1-1")
        await watch.one("select pgcoord.complete_phase('queue-1-1')")
        await watch.conn.execute("delete from planned_features")
        async with asyncio.timeout(PATIENCE):
            while one.running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not is_alive(pid)


class RecordedLate(Supervision):
    """An attempt whose start is about to be recorded until somebody lets it."""

    spawned: asyncio.Event
    goes_on: asyncio.Event

    async def _record_start(self) -> None:
        self.spawned.set()
        await self.goes_on.wait()
        await super()._record_start()


class StartsLate(Coordinator):
    """A coordinator that is about to record a start until somebody lets it."""

    supervision = RecordedLate


async def test_a_process_whose_attempt_was_given_up_before_its_start_was_recorded_is_ended(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit(f"echo $$ > {tmp_path}/pid; exec sleep 1000")
    coordinator = make_coordinator(dsn, tmp_path, kind=StartsLate)
    RecordedLate.spawned, RecordedLate.goes_on = asyncio.Event(), asyncio.Event()
    async with running(coordinator):
        await RecordedLate.spawned.wait()
        (identity,) = [taken.job.identity for taken in coordinator._supervised.values()]
        await watch.one("select pgcoord.give_up_attempt(id, 'failed', 'x') from pgcoord.attempt")
        RecordedLate.goes_on.set()
        await watch.until_statuses("failed")
        async with asyncio.timeout(PATIENCE):
            while coordinator.running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert identity
    assert not is_alive(identity.pid)


async def test_stopping_leaves_processes_running_and_the_next_one_takes_them_over(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    await watch.submit(f"echo >> {tmp_path}/starts; read _ < {gate.path}; exit 3")
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses("running")
    assert is_alive(await pid_of(watch, "queue-1-1"))
    async with running(make_coordinator(dsn, tmp_path)):
        gate.open()
        (row,) = await watch.until_statuses("failed")
    assert row["error_message"].startswith("exited with status 3")
    assert (tmp_path / "starts").read_text() == "\n"


async def pid_of(watch: Watch, queue_id: str) -> int:
    row = await watch.one(
        "select pid from pgcoord.attempt where queue_id = %s order by number desc limit 1", queue_id
    )
    return int(row["pid"])


async def end(watch: Watch, queue_id: str) -> None:
    os.killpg(await pid_of(watch, queue_id), 9)


async def waits_for_lock(watch: Watch, lock: str) -> None:
    """Wait until a session of the coordinator waits for a lock that somebody holds."""
    await watch.until_found(f"select from pgcoord.lock_waits where lock = '{lock}'")


async def test_the_end_of_a_process_and_the_next_claim_are_one_commit(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.note_transactions()
    await watch.submit("true", ("true", [1]))
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses("completed", "completed")
    ended = await watch.transaction_of("queue-1-1", "completed")
    assert ended == await watch.transaction_of("queue-1-2", "ready")
