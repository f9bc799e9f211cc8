"""`pgcoord schedule`: commands, output, refusals."""

import json
import signal
from urllib.request import urlopen

import pytest
from support.database import Connection, one, statuses
from support.desk import CONFIGURATION, Desk, address_of, until


def test_a_schedule_from_its_creation_to_its_end(desk: Desk, conn: Connection) -> None:
    plan = desk.plan("echo one", "true")
    output = desk.say("schedule", "create", "nightly", "0 3 * * *", plan, "--timezone", "UTC")
    assert output.startswith("schedule nightly is created: next 2")
    assert output.endswith("03:00 UTC; no coordinator runs: 'pgcoord serve' starts it then")
    refused = desk.call("schedule", "create", "nightly", "0 4 * * *", plan)
    assert (refused.returncode, refused.stderr.splitlines()[0]) == (
        3,
        "pgcoord: there is a schedule nightly already",
    )
    paused = desk.say("schedule", "pause", "nightly", "--reason", "holidays")
    assert paused == "schedule nightly is paused"
    assert "schedule nightly: paused since" in desk.say("status")
    desk.say("schedule", "resume", "nightly")
    desk.say("schedule", "change", "nightly", "--cron", "30 4 * * MON", "--overlap", "queue")
    feature = one(conn, "select pgcoord.run_schedule('nightly') as id")["id"]
    assert statuses(conn, feature) == {1: "queued", 2: "queued"}
    assert f", as feature {feature + 1};" in desk.say("schedule", "run", "nightly")
    lines = desk.say("schedule", "list").splitlines()
    assert lines[0].startswith("nightly: 30 4 * * MON (UTC), its next time is found once")
    assert lines[2].endswith(f", feature {feature + 1} planned")
    shown = json.loads(desk.say("schedule", "show", "nightly", "--next", "3", "--json"))
    assert [each[10:] for each in shown["next"]] == ["T04:30:00+00:00"] * 3
    assert [each["outcome"] for each in shown["runs"]] == ["started", "started"]
    assert json.loads(desk.say("status", "--json"))["schedules"][0]["overlap"] == "queue"
    desk.say("schedule", "create", "copy", "0 3 * * *", "--feature", str(feature))
    dry = desk.say("schedule", "delete", "nightly", "--dry-run").splitlines()
    assert dry[-1] == "schedule nightly would be deleted"
    first, *_, last = desk.say("schedule", "delete", "nightly", "--yes").splitlines()
    assert first.startswith("nightly: 30 4 * * MON (UTC)")
    assert last == "schedule nightly is deleted"
    assert desk.call("schedule", "delete", "nightly").returncode == 4  # it asks about what is there
    unknown = desk.call("schedule", "run", "nightly")
    assert (unknown.returncode, unknown.stderr) == (
        4,
        "pgcoord: there is no schedule nightly\n  There is copy.\n",
    )


def test_times_that_cannot_be_are_refused_with_a_hint(desk: Desk) -> None:
    plan = desk.plan("true")
    for cron, zone, words in (
        ("0 25 * * *", "UTC", "'25' is not a valid hour"),
        ("0 3 31 2 *", "UTC", "'0 3 31 2 *' is not a cron expression: Bad day-of-month"),
        ("0 3 * * *", "Nowhere/Else", "there is none of that name"),
    ):
        refused = desk.call("schedule", "create", "a", cron, plan, "--timezone", zone)
        message, hint = refused.stderr.splitlines()
        assert (refused.returncode, words in message) == (5, True), refused.stderr
        assert hint.startswith("  ")
    assert desk.say("schedule", "list") == "no schedules: 'pgcoord schedule create' makes one"


@pytest.mark.scale
def test_declared_schedules_follow_the_file_of_each_leader(
    desk: Desk, conn: Connection, dsn: str
) -> None:
    table = '[schedule.nightly]\nplan = "plan.md"\ncron = "0 3 * * *"\ntimezone = "UTC"\n'
    desk.plan("true")
    desk.write("pgcoord.toml", CONFIGURATION + table)
    first = desk.start("serve")
    first.until("leading")
    until(dsn, "next_at is not null from pgcoord.schedule where name = 'nightly'")
    assert "; declared in pgcoord.toml" in desk.say("schedule", "show", "nightly")
    assert "schedule nightly: next" in (status := desk.say("status"))
    assert "(declared in pgcoord.toml)" in status
    for command in (["change", "nightly", "--cron", "0 4 * * *"], ["delete", "nightly", "--yes"]):
        refused = desk.call("schedule", *command)
        message, hint = refused.stderr.splitlines()
        assert (refused.returncode, message[:55]) == (
            3,
            "pgcoord: schedule nightly is declared in pgcoord.toml, ",
        )
        assert "Edit [schedule.nightly] or its plan, and send SIGHUP" in hint
    desk.say("schedule", "pause", "nightly")
    desk.say("schedule", "run", "nightly")
    # A changed plan is read at the next SIGHUP; the next leader declares its own file.
    desk.plan("true", "true")
    first.send(signal.SIGHUP)
    first.until("read .*pgcoord.toml: schedule nightly changed")
    until(dsn, "phases = 2 from pgcoord.schedules")
    desk.write("pgcoord.toml", CONFIGURATION + table.replace("3", "5"))
    second = desk.start("serve")
    second.until("standing by")
    first.send(signal.SIGTERM)
    second.until("leading")
    until(dsn, "cron = '0 5 * * *' from pgcoord.schedule where declared and paused_at is not null")
    assert one(conn, "select outcome from pgcoord.schedule_run") == {"outcome": "started"}
    desk.write("pgcoord.toml", CONFIGURATION)
    # A run leads, too, and leaves schedules as they are.
    second.send(signal.SIGTERM)
    second.wait()
    desk.say("run", "plan.md")
    assert desk.say("schedule", "list").startswith("nightly: 0 5")
    third = desk.start("serve")
    third.until("leading")
    until(dsn, "count(*) = 0 from pgcoord.schedule")


def test_a_refused_schedule_is_shown_and_notes_of_its_plan_are_logged(
    desk: Desk,
) -> None:
    desk.write("plan.md", "# T\n## Phase 0: a\nLock: {param.to}\n\ntrue\n## Phase 1: b\n\ntrue\n")
    table = '[schedule.nightly]\nplan = "plan.md"\ncron = "0 3 * * *"\nparameters = {to = "%s"}\n'
    desk.write("pgcoord.toml", CONFIGURATION + table % ("x" * 300))
    serve = desk.start("serve")
    serve.until(r"schedule nightly: .*plan.md:2: phases are numbered from 1")
    serve.until("schedule nightly of pgcoord.toml is not stored")
    assert "schedule nightly of pgcoord.toml is not stored: " in desk.say("status")
    assert desk.say("why", "nightly").startswith("pgcoord.toml declares it, and the database refu")
    [found] = json.loads(desk.say("status", "--json"))["refused_schedules"]
    assert found["name"] == "nightly"
    with urlopen(f"http://{address_of(serve)}/") as page:
        assert "Schedule nightly" in page.read().decode()
    desk.write("pgcoord.toml", CONFIGURATION + table % "staging")
    serve.send(signal.SIGHUP)
    serve.until("read .*pgcoord.toml: schedule nightly changed")
    until(desk.environment["DATABASE_URL"], "next_at is not null from pgcoord.schedule")
    assert desk.say("why", "nightly").startswith("it is due next at 2")
    unknown = desk.call("why", "nightl")
    assert (unknown.returncode, unknown.stderr.splitlines()[0]) == (
        4,
        "pgcoord: there is no phase nightl",
    )
