"""The coordinator and schedules: started in time, once, by the leader, without polling."""

import logging
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from psycopg.types.json import Jsonb
from support.coordination import (
    Watch,
    coordinator_process,
    make_coordinator,
    running,
)
from support.database import Connection, one

from pgcoord.configuration.cron import NeverDue, due_times, latest_due

FEATURE = {"title": "nightly", "phases": [{"phase_number": 1, "prompt_content": "true"}]}


def add(conn: Connection, name: str, cron: str = "0 3 1 1 *", zone: str = "UTC") -> None:
    conn.execute("select pgcoord.add_schedule(%s, %s, %s, %s)", [name, cron, Jsonb(FEATURE), zone])


def make_due(conn: Connection, ago: str = "0 s") -> None:
    """Let every schedule be due since, as if the coordinator had computed that."""
    conn.execute("update pgcoord.schedule set next_at = clock_timestamp() - %s::interval", [ago])


async def test_a_new_schedule_is_planned_at_once_and_starts_at_its_due_time(
    dsn: str, conn: Connection, watch: Watch, tmp_path: Path
) -> None:
    async with running(make_coordinator(dsn, tmp_path)):
        # Nothing but the notification of the INSERT wakes the coordinator.
        add(conn, "yearly")
        await watch.until_found("select from pgcoord.schedule where next_at > now()")
        # The timer was set to next year; a person's change sets it again.
        conn.execute("update pgcoord.schedule set cron = '* * * * *', overlap = 'start'")
        await watch.until_found(
            "select from pgcoord.schedule where next_at <= now() + interval '1 min'"
        )
        make_due(conn)
        conn.execute("select pg_notify('pgcoord_wake', 'schedules')")
        await watch.until_found(
            "select from pgcoord.schedules where last_outcome = 'started'"
            " and last_status = 'completed' and next_at > now()"
        )


@pytest.mark.scale
async def test_two_coordinators_and_a_kill_between_start_each_due_time_once(
    dsn: str, conn: Connection, watch: Watch, tmp_path: Path
) -> None:
    add(conn, "minutely", "* * * * *")
    conn.execute("update pgcoord.schedule set overlap = 'start'")
    async with coordinator_process(dsn, tmp_path) as first:
        await first.until("leading (lead 1)")
        async with coordinator_process(dsn, tmp_path) as second:
            await second.until(f"standing by: process {first.pid}")
            await watch.until_found("select from pgcoord.schedule where next_at is not null")
            first.send(signal.SIGSTOP)
            # Due while nobody looks, five times over: the next leader runs one for all.
            make_due(conn, "5 min")
            first.send(signal.SIGKILL)
            await second.until("leading (lead 2)")
            await watch.until_found("select from pgcoord.schedules where last_outcome = 'started'")
            await watch.until_found("select from pgcoord.schedule where next_at > now()")
    runs = conn.execute(
        "select outcome, reason from pgcoord.schedule_run order by due_at"
    ).fetchall()
    # Where a minute ends meanwhile, that one is due, too.
    assert {each["outcome"] for each in runs} == {"started"}
    assert "missed since" in runs[0]["reason"]
    assert one(conn, "select count(*) as n from planned_features") == {"n": len(runs)}


async def test_a_schedule_that_is_never_due_has_an_error_and_holds_up_no_other(
    dsn: str,
    conn: Connection,
    watch: Watch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR)
    add(conn, "a", "0 3 31 2 *")
    add(conn, "b")
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_found("select from pgcoord.schedule where name = 'b' and next_at > now()")
        await watch.until_found("select from pgcoord.schedule where name = 'a' and error <> ''")
        assert "schedule a: '0 3 31 2 *'" in caplog.text
        conn.execute("""select pgcoord.change_schedule('a', '{"cron": "0 3 28 2 *"}')""")
        await watch.until_found(
            "select from pgcoord.schedule where name = 'a' and next_at > now() and error is null"
        )


async def test_a_paused_schedule_starts_nothing_and_a_waiting_run_follows_its_predecessor(
    dsn: str, conn: Connection, watch: Watch, tmp_path: Path
) -> None:
    add(conn, "nightly", "* * * * *")
    gated = {"title": "a", "phases": [{"phase_number": 1, "gate": "may it?"}]}
    conn.execute("update pgcoord.schedule set overlap = 'queue', feature = %s", [Jsonb(gated)])
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_found("select from pgcoord.schedule where next_at is not null")
        for outcome in ("started", "waiting"):
            make_due(conn)
            conn.execute("select pg_notify('pgcoord_wake', 'schedules')")
            await watch.until_found(f"select from pgcoord.schedule_run where outcome = '{outcome}'")
        conn.execute("select pgcoord.pause_schedule('nightly')")
        conn.execute("select pgcoord.approve(queue_id) from phase_queue")
        await watch.until_found("select from pgcoord.feature where status = 'completed'")
        assert one(conn, "select count(*) as n from planned_features") == {"n": 1}
        conn.execute("select pgcoord.resume_schedule('nightly')")
        await watch.until_found(
            "select from pgcoord.schedule_run where starts_with(reason, 'it waited for')"
        )


BERLIN = ZoneInfo("Europe/Berlin")


def local(cron: str, after: str, count: int, zone: ZoneInfo = BERLIN) -> list[str]:
    found = due_times(cron, zone.key, datetime.fromisoformat(after).astimezone(UTC))
    return [f"{next(found).astimezone(zone):%m-%d %H:%M %Z}" for _ in range(count)]


def test_the_clocks_change_and_a_nightly_run_stays_one_a_night() -> None:
    # 2026-03-29: from 02:00 to 03:00. What is due between is due at 03:00.
    assert local("30 2 * * *", "2026-03-28T00:00+01:00", 3) == [
        "03-28 02:30 CET",
        "03-29 03:00 CEST",
        "03-30 02:30 CEST",
    ]
    assert local("0,30 2,3 * * *", "2026-03-29T00:00+01:00", 3) == [
        "03-29 03:00 CEST",
        "03-29 03:30 CEST",
        "03-30 02:00 CEST",
    ]
    # 2026-10-25: from 03:00 back to 02:00. What is due at 02:30 is due once, the first time.
    assert local("30 2 * * *", "2026-10-25T00:00+02:00", 2) == [
        "10-25 02:30 CEST",
        "10-26 02:30 CET",
    ]
    # Asked within the hour that comes twice, it does not go back.
    assert local("30 2 * * *", "2026-10-25T02:15+01:00", 1) == ["10-26 02:30 CET"]
    assert local("0 * * * *", "2026-10-25T01:30+02:00", 3) == [
        "10-25 02:00 CEST",
        "10-25 02:00 CET",
        "10-25 03:00 CET",
    ]


def test_the_latest_of_many_due_times_is_found_however_long_ago_the_first_was() -> None:
    now = datetime(2026, 11, 29, 12, 0, 30, tzinfo=UTC)
    first = now - timedelta(days=3000)
    for cron, expected in (
        ("* * * * *", "2026-11-29 12:00"),
        ("0 3 * * *", "2026-11-29 03:00"),
        ("0 3 1 1 *", "2026-01-01 03:00"),
        ("0 3 29 2 *", "2024-02-29 03:00"),
    ):
        due = next(due_times(cron, "UTC", first))
        assert f"{latest_due(cron, 'UTC', due, now):%Y-%m-%d %H:%M}" == expected
    due = now - timedelta(seconds=30)
    assert latest_due("0 12 29 11 *", "UTC", due, now) == due
    with pytest.raises(NeverDue, match="does not know the time zone"):
        next(due_times("* * * * *", "Mars/Olympus", now))
