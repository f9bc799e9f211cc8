"""What the database finds wrong with an installation: pgcoord.checkup, a row for each kind."""

import re
from datetime import timedelta

import psycopg
import pytest
from psycopg.types.json import Jsonb
from support.database import (
    WORKFLOW,
    Connection,
    add_feature,
    add_phase,
    claim,
    force,
    start,
    take_lead,
)

from pgcoord import __version__
from pgcoord.database import schema

KINDS = [
    *("definitions", "rights", "coordinator", "slots", "line", "retries", "workflows"),
    *(
        "prerequisites",
        "attempts",
        "external",
        "quiet",
        "empty",
        "replication",
        "schedules",
        "issues",
        "locks",
        "transactions",
    ),
    "notifications",
]

Found = dict[str, tuple[str, str, str | None]]


def checkup(conn: Connection) -> Found:
    """Level, words and remedy of each kind."""
    rows = conn.execute("select * from pgcoord.checkup()").fetchall()
    assert [row["kind"] for row in rows] == KINDS
    for row in rows:
        assert (row["remedy"] is None) == (row["level"] == "ok"), row
    return {row["kind"]: (row["level"], row["words"], row["remedy"]) for row in rows}


def not_ok(conn: Connection) -> Found:
    """What is not, but that phases of tests say nothing of what is to be done."""
    found = checkup(conn)
    del found["empty"]
    return {kind: each for kind, each in found.items() if each[0] != "ok"}


def back(conn: Connection, seconds: int) -> None:
    """Let everything have happened so much earlier."""
    conn.execute("alter table phase_queue disable trigger user")
    by = timedelta(seconds=seconds)
    conn.execute(
        "update phase_queue set eligible_at = eligible_at - %(by)s,"
        " updated_at = updated_at - %(by)s, retry_at = retry_at - %(by)s",
        {"by": by},
    )
    conn.execute("alter table phase_queue enable trigger user")
    conn.execute("update pgcoord.coordinator set lead_at = lead_at - %s", [by])


def test_all_is_ok_where_a_coordinator_leads(conn: Connection, epoch: int) -> None:
    conn.execute("update pgcoord.coordinator set host = 'there'")
    add_feature(conn, {1: [], 2: [1], 3: [2]})
    (running,) = claim(conn, epoch)
    start(conn, epoch, running)
    conn.execute("update pgcoord.attempt set host = 'there'")
    found = checkup(conn)
    assert not not_ok(conn)
    assert found["definitions"][1] == (
        f"functions, views and triggers are as the upgrade to {__version__} left them"
    )
    assert found["rights"][1] == f"{conn.info.user} may watch, bring work in, steer, coordinate"
    assert found["coordinator"][1].startswith("process 1 on there leads since ")
    assert found["coordinator"][1].endswith(", 0 stand by")
    assert found["slots"][1] == "1 of 3 slots are held"


def test_a_schema_public_in_which_anybody_may_create_is_warned_of(conn: Connection) -> None:
    conn.execute("grant create on schema public to public")
    level, words, remedy = checkup(conn)["rights"]
    assert (level, words.endswith("anybody may create in the schema public")) == ("warn", True)
    assert remedy is not None
    assert remedy.startswith("revoke create on schema public from public")
    conn.execute("revoke create on schema public from public")
    assert checkup(conn)["rights"][0] == "ok"


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        (
            "create or replace function pgcoord_private.ordinal(p_number bigint) returns text"
            " language sql immutable return 'any'",
            "function pgcoord_private.ordinal(bigint)",
        ),
        (
            "drop function pgcoord_private.ordinal(bigint) cascade",
            "function pgcoord_private.ordinal(bigint)",
        ),
        ("alter function pgcoord.why(text) set jit = on", "function pgcoord.why(text)"),
        (
            "create or replace view pgcoord.leader as"
            " select epoch, host, pid, version, lead_at from pgcoord.coordinator",
            "view pgcoord.leader",
        ),
        (
            "alter table pgcoord.event disable trigger event_change_refuses",
            "trigger event_change_refuses on pgcoord.event",
        ),
    ],
    ids=["changed", "dropped", "set", "view", "switched off"],
)
def test_definitions_that_were_changed_are_named_and_an_upgrade_mends_them(
    conn: Connection, dsn: str, statement: str, name: str
) -> None:
    conn.execute(statement.encode())
    found = conn.execute("select * from pgcoord.checkup()").fetchall()[0]
    assert (found["kind"], found["level"]) == ("definitions", "fail")
    assert found["remedy"] == "'pgcoord upgrade' writes them anew"
    assert re.match(
        f"changed since the upgrade to {__version__}: .*{re.escape(name)}", found["words"]
    )
    with psycopg.connect(dsn, autocommit=True) as owner:
        assert schema.upgrade(owner) == ["functions"]
        assert schema.upgrade(owner) == []
    assert checkup(conn)["definitions"][0] == "ok"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("search_path", "pgcoord, public"),
        ("timezone", "Asia/Kolkata"),
        ("datestyle", "German"),
        ("intervalstyle", "iso_8601"),
        ("extra_float_digits", "-15"),
        ("quote_all_identifiers", "on"),
    ],
)
def test_definitions_are_the_same_whatever_the_session_has_set(
    conn: Connection, name: str, value: str
) -> None:
    conn.execute("select set_config(%s, %s, false)", [name, value])
    assert checkup(conn)["definitions"][0] == "ok"


def test_no_coordinator_is_a_failure_as_soon_as_there_is_work(conn: Connection) -> None:
    serve = "start one: 'pgcoord serve'"
    assert not_ok(conn) == {"coordinator": ("warn", "no coordinator runs", serve)}
    add_feature(conn, {1: []})
    words = "no coordinator runs, and there is work"
    assert not_ok(conn) == {"coordinator": ("fail", words, serve)}


def test_a_coordinator_of_another_release_than_the_schema_is_to_be_restarted(
    conn: Connection, epoch: int
) -> None:
    conn.execute("update pgcoord.migration set release = '9', at = clock_timestamp()")
    level, words, remedy = checkup(conn)["coordinator"]
    assert (level, remedy) == ("warn", "restart it with the release of the schema")
    assert words.endswith("; it is of release 0, the schema is of another")


def test_a_pause_and_a_lack_of_slots_are_reported(conn: Connection, epoch: int) -> None:
    conn.execute("select pgcoord.pause(null, 'tea')")
    level, words, remedy = not_ok(conn)["slots"]
    assert (level, remedy) == ("warn", "'pgcoord resume'")
    assert words.startswith("everything is paused since ")
    assert words.endswith(": tea")
    conn.execute("select pgcoord.resume(), pgcoord.set_slots(0)")
    expected = ("warn", "there is none: no phase can start", "'pgcoord slots 3'")
    assert not_ok(conn) == {"slots": expected}


def test_an_unclaimed_claimable_phase_is_found(conn: Connection, epoch: int) -> None:
    add_feature(conn, {1: [], 2: []})
    assert checkup(conn)["line"] == ("ok", "2 phases wait for a slot", None)
    back(conn, 60)
    level, words, _ = not_ok(conn)["line"]
    assert level == "fail"
    assert re.fullmatch("2 phases wait, the first for 6. s, though a slot is free", words)
    conn.execute("select pgcoord.pause()")
    assert checkup(conn)["line"][0] == "ok"
    conn.execute("select pgcoord.resume(), pgcoord.set_slots(1)")
    claim(conn, epoch)
    back(conn, 60)
    assert checkup(conn)["line"] == ("ok", "1 phase waits for a slot", None)


def test_a_retry_that_is_overdue_is_found(conn: Connection, epoch: int) -> None:
    add_feature(conn, {1: []}, retry_at="2099-01-01")
    level, words, _ = checkup(conn)["retries"]
    assert level == "ok"
    assert words.startswith("1 phase waits for another attempt, the first in ")
    conn.execute("update phase_queue set retry_at = clock_timestamp() + interval '90 s'")
    back(conn, 180)
    level, words, _ = not_ok(conn)["retries"]
    assert level == "fail"
    assert re.fullmatch("1 phase waits for another attempt, the first overdue for 9. s", words)


def test_phases_that_no_coordinator_can_run_are_named(conn: Connection) -> None:
    feature = add_feature(conn, {})
    for number in range(1, 6):
        data = Jsonb({"workflow_type": "sculpt"} if number > 1 else {})
        add_phase(conn, feature, number, phase_data=data)
    assert checkup(conn)["workflows"][0] == "ok", "nobody has said what can be run"
    take_lead(conn, WORKFLOW | {"default": False})
    level, words, remedy = checkup(conn)["workflows"]
    assert level == "warn"
    assert remedy
    assert words == (
        "5 phases have one that no coordinator knows: queue-1-1 (none, and there is no default),"
        " queue-1-2 (sculpt), queue-1-3 (sculpt) and 2 more"
    )


def test_phases_that_wait_for_one_that_does_not_exist_are_named(
    conn: Connection, epoch: int
) -> None:
    add_feature(conn, {1: [], 2: [7], 3: [2]})
    level, words, _ = not_ok(conn)["prerequisites"]
    assert level == "warn"
    assert words == "1 phase waits for a phase that does not exist: queue-1-2 (for phase 7)"
    add_phase(conn, 1, 7)
    assert checkup(conn)["prerequisites"][0] == "ok"


def test_processes_without_a_coordinator_on_their_machine_are_named(
    conn: Connection, epoch: int
) -> None:
    add_feature(conn, {1: [], 2: []})
    claim(conn, epoch)
    assert checkup(conn)["attempts"][0] == "ok"
    conn.execute("update pgcoord.attempt set host = 'elsewhere' where queue_id = 'queue-1-2'")
    level, words, remedy = not_ok(conn)["attempts"]
    assert level == "fail"
    assert words == "1 process has no coordinator on the same machine: queue-1-2 on elsewhere"
    conn.execute("select pgcoord_private.renew_lease('elsewhere')")
    assert checkup(conn)["attempts"][0] == "ok"
    conn.execute("update pgcoord.host set lease_until = now() - interval '1 s'")
    assert checkup(conn)["attempts"][0] == "fail"
    assert remedy
    conn.execute(remedy.partition("for good: ")[2].encode())  # what it says can be run as it stands
    assert checkup(conn)["attempts"][0] == "ok"
    assert checkup(conn)["slots"][1] == "1 of 3 slots are held"


def test_a_job_of_an_engine_has_the_leader_and_a_late_start_is_named(
    conn: Connection, epoch: int
) -> None:
    add_feature(conn, {1: [], 2: []})
    claim(conn, epoch)
    conn.execute("update pgcoord.attempt set claimed_at = claimed_at - interval '1 min'")
    force(conn, "update pgcoord.attempt set host = null where queue_id = 'queue-1-1'")
    level, words, _ = not_ok(conn)["attempts"]
    assert level == "warn"
    assert words.startswith("1 phase is claimed, and not started: queue-1-2 for ")


def test_a_lost_process_that_may_still_run_is_something_to_look_at(
    conn: Connection, epoch: int
) -> None:
    add_feature(conn, {1: []})
    claim(conn, epoch)
    conn.execute("update pgcoord.attempt set host = 'elsewhere'")
    conn.execute("update pgcoord.coordinator set lead_at = lead_at - interval '1 hour'")
    conn.execute("select pgcoord_private.abandon_attempt(%s, id) from pgcoord.attempt", [epoch])
    level, words, remedy = not_ok(conn)["attempts"]
    assert level == "warn"
    assert words == "1 process has no coordinator on the same machine: queue-1-1 on elsewhere"
    assert remedy
    conn.execute(remedy.partition("for good: ")[2].encode())
    assert checkup(conn)["attempts"][0] == "ok"


def test_phases_that_nobody_supervises_are_named(conn: Connection, epoch: int) -> None:
    add_feature(conn, {1: []}, status="running")
    level, words, remedy = not_ok(conn)["external"]
    assert level == "warn"
    assert re.fullmatch(
        r"1 phase runs unsupervised, as it was inserted: queue-1-1 since \d+ s", words
    )
    assert remedy
    conn.execute(remedy.partition("such as: ")[2].encode())
    assert not not_ok(conn)


def test_transactions_that_are_open_for_long_are_named_with_how_to_end_them(
    conn: Connection, epoch: int, dsn: str
) -> None:
    # How long a transaction is open cannot be moved, so the limits are.
    definition = conn.execute(
        "select pg_get_functiondef('pgcoord_private.checkup_transactions()'::regprocedure) as text"
    ).fetchone()
    assert definition
    text = definition["text"]
    assert "interval '1 min'" in text
    with psycopg.connect(dsn) as reads, psycopg.connect(dsn) as locks:
        reads.execute("select count(*) from phase_queue")
        locks.execute("select from pgcoord.control for update")
        assert checkup(conn)["transactions"] == ("ok", "none is open for long", None)
        conn.execute(text.replace("interval '1 min'", "interval '0'").encode())
        level, words, remedy = checkup(conn)["transactions"]
        pid, user = locks.info.backend_pid, conn.info.user
        assert (level, remedy) == ("warn", f"end it, or: select pg_terminate_backend({pid})")
        said = rf"process {pid} of {user} is in a transaction for \d s, with locks on the queue"
        assert re.fullmatch(said, words)
        conn.execute(text.replace("interval '10 min'", "interval '0'").encode())
        words = checkup(conn)["transactions"][1]
        said = rf"process {reads.info.backend_pid} of {user} is in a transaction for \d s"
        assert re.fullmatch(said, words)


def test_the_queue_of_notifications_is_measured(conn: Connection, epoch: int) -> None:
    level, words, _ = checkup(conn)["notifications"]
    assert (level, words) == ("ok", "the server's queue of notifications is 0 % full")


def test_phases_without_a_prompt_are_named(conn: Connection) -> None:
    feature = add_feature(conn, {1: []})
    for number, data in ((2, {"title": "a"}), (3, {"workflow_type": "a"}), (4, {"gate": "Go?"})):
        add_phase(conn, feature, number, phase_data=Jsonb(data))
    level, words, _ = checkup(conn)["empty"]
    assert (level, words) == ("warn", "1 phase that waits has neither title nor prompt: queue-1-1")
