"""What the owner of the tables may not write by hand: it would contradict the rest, or be a lie.

The statements go to the tables behind phase_queue, as the superuser, whom no privilege stops.
"""

import pytest
from support.cases import case
from support.database import (
    Connection,
    add_feature,
    attempt_of,
    claim,
    one,
    refused,
    start,
    statuses,
    take_lead,
)
from support.mixed_load import faults

FAR = {"name": "far", "launcher": "slurm", "slots": 1, "settings": {"folder": "/far"}}


@pytest.fixture
def work(conn: Connection) -> None:
    """A phase of feature 1 that has completed, one that has failed, one that runs, one ready."""
    epoch = take_lead(conn, pools=[{"name": "local", "launcher": "local", "slots": 4}, FAR])
    add_feature(conn, {1: [], 2: [], 3: [], 4: [], 5: [1, 2]})
    add_feature(conn, {})
    claim(conn, epoch)
    for number in (1, 2, 3):
        start(conn, epoch, f"queue-1-{number}")
    conn.execute("""select pgcoord.set_result('queue-1-1', '{"summary": "done"}')""")
    conn.execute("select pgcoord_private.end_attempt(1, 0), pgcoord_private.end_attempt(2, 1)")
    conn.execute(
        "select pgcoord.add_schedule('nightly', '0 3 * * *',"
        """ '{"title": "s", "phases": [{"phase_number": 1, "title": "t"}]}')"""
    )
    conn.execute(
        "insert into pgcoord.schedule_run (schedule, due_at, outcome, feature_id)"
        " values ('nightly', '2026-01-01 03:00Z', 'started', 2)"
    )
    assert [*statuses(conn, 1).values()] == ["completed", "failed", "running", "ready", "blocked"]
    assert faults_but_slots(conn) == []


def faults_but_slots(conn: Connection) -> list[str]:
    """The faults of the tables; the number of slots there was asked for by pool."""
    return [each for each in faults(conn) if "slots are open" not in each]


OPEN = "(queue_id, number, adw_id, secret, slot)"

REFUSED = {
    # an attempt
    "update pgcoord.attempt set outcome = 'completed' where id = 2": "PC008",
    "update pgcoord.attempt set outcome = 'lost' where id = 2": "PC008",
    "update pgcoord.attempt set outcome = null, ended_at = null where id = 2": "PC008",
    "update pgcoord.attempt set outcome = 'failed', ended_at = now() where id = 3": "PC002",
    "update pgcoord.attempt set outcome = 'done', ended_at = now() where id = 3": "PC005",
    "update pgcoord.attempt set exited_at = now() where id = 3": "PC002",
    "update pgcoord.attempt set exited_at = null where id = 2": "PC008",
    "update pgcoord.attempt set started_at = null where id = 3": "PC008",
    "update pgcoord.attempt set ending = 'completed' where id = 3": "PC005",
    "update pgcoord.attempt set ending = 'failed' where id = 2": "PC008",
    **{
        f"update pgcoord.attempt set {change} where id = 3": "PC008"
        for change in (
            *("id = 99", "number = 2", "queue_id = 'queue-1-2'", "adw_id = 'other'"),
            *("secret = 'known'", "slot = 1", "pool = 'far'", "lock = 'mine'", "epoch = null"),
            *("external = true", "host = null", "folder = '/elsewhere'"),
        )
    },
    "delete from pgcoord.attempt where id = 2": "PC008",
    "delete from pgcoord.attempt where id = 3": "PC002",
    f"insert into pgcoord.attempt {OPEN[:-1]}, outcome, ended_at)"
    " values ('queue-1-1', 2, 'other', 's', 1, 'completed', now())": "PC002",
    f"insert into pgcoord.attempt {OPEN[:-1]}, outcome, ended_at)"
    " values ('queue-1-5', 0, 'other', 's', 1, 'splendid', now())": "PC005",
    # its result
    "update pgcoord.result set attempt_id = 2": "PC008",
    "insert into pgcoord.result (attempt_id, feature_id, value) values (2, 2, '{}')": "PC008",
    "delete from pgcoord.result": "PC008",
    "truncate pgcoord.result": "PC008",
    # history
    "truncate pgcoord.event": "PC008",
    "insert into pgcoord.event (kind, feature_id, phase_number, queue_id, from_status, to_status,"
    " actor) values ('phase_moved', 1, 5, 'queue-1-5', 'blocked', 'completed', 'me')": "PC008",
    "insert into pgcoord.event (kind, feature_id, actor)"
    " values ('feature_inserted', 1, 'me')": "PC008",
    # what follows from phases
    "insert into pgcoord.dependency values (1, 3, 5)": "PC008",
    "update pgcoord.dependency set prerequisite = 3": "PC008",
    "delete from pgcoord.dependency": "PC008",
    "truncate pgcoord.dependency": "PC008",
    "delete from pgcoord.unqueued": "PC008",
    "truncate pgcoord.unqueued": "PC008",
    "update phase_queue set parked = true where queue_id = 'queue-1-5'": "PC008",
    "update phase_queue set finished_timestamp = null where queue_id = 'queue-1-1'": "PC008",
    "update phase_queue set finished_timestamp = now() where queue_id = 'queue-1-3'": "PC008",
    # slots
    "update pgcoord.slot set pool = 'far' where number = 1"
    " or number = (select slot from phase_queue where queue_id = 'queue-1-3')": "PC002",
    "update pgcoord.free_slot set number = 9": "PC008",
    "truncate pgcoord.free_slot": "PC008",
    # the lead
    "delete from pgcoord.control": "PC008",
    "truncate pgcoord.control": "PC008",
    "update pgcoord.control set epoch = 0": "PC008",
    "update pgcoord.control set epoch = 99": "PC008",
    "delete from pgcoord.coordinator": "PC008",
    "update pgcoord.coordinator set epoch = 9": "PC008",
    "truncate pgcoord.coordinator": "PC008",
    # a schedule
    "update pgcoord.schedule_run set outcome = 'waiting'": "PC008",
    "update pgcoord.schedule_run set due_at = due_at - interval '1 hour'": "PC008",
    "delete from pgcoord.schedule_run": "PC008",
    "truncate pgcoord.schedule_run": "PC008",
}


@pytest.mark.usefixtures("work")
def test_what_follows_and_what_has_happened_cannot_be_written_by_hand(conn: Connection) -> None:
    for statement, sqlstate in REFUSED.items():
        with case(statement):
            with refused(sqlstate):
                conn.execute(statement.encode())
            assert faults_but_slots(conn) == []


@pytest.mark.usefixtures("work")
def test_a_merge_is_refused_as_an_update_is(conn: Connection) -> None:
    if conn.info.server_version < 150000:
        pytest.skip("PostgreSQL has MERGE since 15")
    with refused("PC008"):
        conn.execute(
            "merge into pgcoord.attempt using (values (2)) as v (i) on id = i"
            " when matched then update set outcome = 'completed'"
        )
    assert faults_but_slots(conn) == []


@pytest.mark.usefixtures("work")
def test_an_end_that_its_phase_does_not_share_is_refused_at_the_commit(conn: Connection) -> None:
    with refused("PC002", "attempt 1 of phase queue-1-3 cannot end alone"), conn.transaction():
        conn.execute("update pgcoord.attempt set outcome = 'failed', ended_at = now() where id = 3")
        conn.execute("select pgcoord.pause()")
    assert attempt_of(conn, "queue-1-3")["outcome"] is None
    conn.execute("select pgcoord.give_up_attempt(3, 'lost', 'gone')")
    assert statuses(conn, 1)[3] == "failed"


def test_a_cancellation_is_not_taken_back(conn: Connection, epoch: int) -> None:
    add_feature(conn, {1: []})
    claim(conn, epoch)
    conn.execute("select pgcoord.cancel_phase('queue-1-1', 'no')")
    for ending in ("null", "'failed'"):
        with refused("PC008", "attempt 1 of phase queue-1-1 is to end (cancelled)"):
            conn.execute(f"update pgcoord.attempt set ending = {ending}".encode())


def test_an_attempt_that_no_claim_made_is_not_run_and_is_named(
    conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {1: [], 2: [1]})
    claim(conn, epoch)
    start(conn, epoch, "queue-1-1")
    for queue_id, number in (("queue-1-1", 2), ("queue-1-2", 1)):
        conn.execute(
            f"insert into pgcoord.attempt {OPEN[:-1]}, host, folder) values"
            " (%s, %s, %s, 's', 2, 'here', '/runs/1')".encode(),
            [queue_id, number, queue_id],
        )
    rows = conn.execute("select queue_id, attempt from pgcoord_private.assignment").fetchall()
    assert rows == [{"queue_id": "queue-1-1", "attempt": 1}]
    found = "select * from pgcoord.checkup() where kind = 'attempts'"
    assert one(conn, found)["words"] == (
        "2 attempts were inserted by hand, and no phase holds:"
        " attempt 2 of queue-1-1, attempt 1 of queue-1-2"
    )
    with conn.transaction(force_rollback=True):  # whatever becomes of it
        stray = attempt_of(conn, "queue-1-1")["id"]
        conn.execute("select pgcoord_private.end_attempt(%s, 0)", [stray])
        assert statuses(conn, feature) == {1: "running", 2: "queued"}
    while remedy := one(conn, found)["remedy"]:
        conn.execute(remedy.encode())
    conn.execute("select pgcoord_private.end_attempt(1, 0)")
    assert claim(conn, epoch) == ["queue-1-2"]


def test_slots_that_are_written_by_hand_are_used(conn: Connection, epoch: int) -> None:
    """The number of slots is that of the rows, whoever writes them."""
    conn.execute("delete from pgcoord.slot")
    add_feature(conn, {1: [], 2: [], 3: []})
    assert claim(conn, epoch) == []
    conn.execute("listen pgcoord_wake")
    conn.execute("insert into pgcoord.slot values (7), (8)")
    assert [each.channel for each in conn.notifies(timeout=0)] == ["pgcoord_wake"]
    assert claim(conn, epoch) == ["queue-1-1", "queue-1-2"]
    with refused("PC002", "slot 7 is held by phase queue-1-1: it stays in pool local"):
        conn.execute("update pgcoord.slot set number = 9 where number = 7")


def test_a_lead_that_was_written_by_hand_keeps_nobody_from_leading(conn: Connection) -> None:
    epoch = take_lead(conn)
    conn.execute(
        "insert into pgcoord.coordinator (epoch, host, pid, version, runs_folder)"
        " values (%s, 'here', 1, '0', '/runs')",
        [epoch + 1],
    )
    assert take_lead(conn) == epoch + 2


@pytest.mark.usefixtures("work")
def test_all_may_go_that_belongs_together(conn: Connection) -> None:
    conn.execute("delete from planned_features where id = 2")  # which the schedule has queued
    assert one(conn, "select feature_id from pgcoord.schedule_run")["feature_id"] is None
    conn.execute("select pgcoord.delete_schedule('nightly')")
    for queue_id in ("queue-1-3", "queue-1-4"):
        conn.execute("select pgcoord.complete_phase(%s)", [queue_id])
    conn.execute("select pgcoord.skip_phase('queue-1-2', 'as it is')")
    conn.execute("select pgcoord.skip_phase('queue-1-5', 'as it is')")
    conn.execute("update pgcoord.attempt set folder = '/moved', host = 'renamed' where id = 1")
    conn.execute("select pgcoord.prune('0 days'::interval)")
    for table in ("phase_queue", "pgcoord.attempt", "pgcoord.result", "pgcoord.dependency"):
        assert conn.execute(f"select from {table}".encode()).rowcount == 0, table
    assert one(conn, "select count(*) as n from pgcoord.event where feature_id = 1")["n"] == 0

    add_feature(conn, {1: [], 2: [1]})
    conn.execute(
        "truncate planned_features, pgcoord.event, pgcoord.control, pgcoord.coordinator,"
        " pgcoord.unqueued cascade"
    )
    conn.execute("truncate pgcoord.slot, pgcoord.free_slot cascade")
