"""Jobs of engines: one copy of each begins, and only that one says how it ended."""

from datetime import timedelta
from typing import Any

import pytest
from psycopg.types.json import Jsonb
from support.cases import case
from support.database import (
    WORKFLOW,
    Connection,
    add_feature,
    add_phase,
    attempt_of,
    claim,
    one,
    phase,
    refused,
    take_lead,
)


@pytest.fixture
def submitted(conn: Connection, epoch: int) -> str:
    """A phase whose job was submitted."""
    queue_id = add_phase(conn, add_feature(conn, {}), 1, phase_data=Jsonb({"timeout_seconds": 60}))
    assert claim(conn, epoch) == [queue_id]
    submit(conn, epoch, queue_id)
    return queue_id


def submit(conn: Connection, epoch: int, queue_id: str) -> None:
    attempt = attempt_of(conn, queue_id)["id"]
    conn.execute("select pgcoord_private.submit_attempt(%s, %s)", [epoch, attempt])


def begin(conn: Connection, queue_id: str, copy: str, secret: str | None = None) -> dict[str, Any]:
    attempt = attempt_of(conn, queue_id)
    return one(
        conn,
        "select * from pgcoord.begin_attempt(%s, %s, %s, '17', 'node1')",
        attempt["id"],
        secret or attempt["secret"],
        copy,
    )


def leave(conn: Connection, queue_id: str, copy: str, status: int) -> dict[str, Any]:
    attempt = attempt_of(conn, queue_id)
    return one(
        conn,
        "select * from pgcoord.exit_attempt(%s, %s, %s, %s, 'its last words')",
        attempt["id"],
        attempt["secret"],
        copy,
        status,
    )


def refusals(conn: Connection) -> list[str]:
    rows = conn.execute("select reason from pgcoord.event where kind = 'begin_refused' order by id")
    return [row["reason"] for row in rows.fetchall()]


def test_a_job_waits_as_ready_and_runs_from_its_begin_on(conn: Connection, submitted: str) -> None:
    attempt = attempt_of(conn, submitted)
    assert (phase(conn, submitted)["status"], attempt["deadline"]) == ("ready", None)
    conn.execute("select pgcoord_private.note_job(%s, '17', 'Resources')", [attempt["id"]])
    assert attempt_of(conn, submitted)["waits_for"] == "Resources"
    assert begin(conn, submitted, "a")["code"] is None
    attempt = attempt_of(conn, submitted)
    assert (attempt["job"], attempt["node"], attempt["waits_for"]) == ("17", "node1", None)
    assert (attempt["deadline"] - attempt["started_at"]).total_seconds() == pytest.approx(60, 0.1)
    assert phase(conn, submitted)["status"] == "running"
    event = one(conn, "select actor, reason from pgcoord.event where to_status = 'running'")
    assert event == {"actor": f"{attempt['adw_id']} (job)", "reason": "begun by job 17 on node1"}


def test_a_job_that_has_begun_keeps_its_deadline_at_a_second_submission(
    conn: Connection, epoch: int
) -> None:
    conn.execute("update pgcoord.workflow set queue_timeout = '1 minute'")
    queue_id = add_phase(conn, add_feature(conn, {}), 1)
    assert claim(conn, epoch) == [queue_id]
    submit(conn, epoch, queue_id)
    assert attempt_of(conn, queue_id)["deadline"] is not None
    begin(conn, queue_id, "a")
    submit(conn, epoch, queue_id)  # by a leader that does not know that yet
    assert attempt_of(conn, queue_id)["deadline"] is None


def test_a_claim_records_that_a_job_is_submitted_if_an_engine_runs_it(conn: Connection) -> None:
    far = {**WORKFLOW, "name": "far", "default": False, "pool": "far", "queue_timeout_seconds": 60}
    pools = [
        {"name": "local", "launcher": "local", "slots": 1},
        {"name": "far", "launcher": "slurm", "slots": 1, "settings": {"folder": "/shared"}},
    ]
    epoch = take_lead(conn, WORKFLOW, far, pools=pools)
    feature = add_feature(conn, {1: []})
    there = add_phase(conn, feature, 2, phase_data=Jsonb({"workflow_type": "far"}))
    [here] = set(claim(conn, epoch)) - {there}
    columns = ("submitted_at", "submitted_to", "deadline")
    assert [attempt_of(conn, here)[name] for name in columns] == [None] * 3
    since, launcher, deadline = (attempt_of(conn, there)[name] for name in columns)
    assert (launcher, deadline - since) == ("slurm", timedelta(seconds=60))
    words = one(conn, "select * from pgcoord.why(%s)", there)["words"]
    assert words.startswith("is being submitted to pool far since ")
    begin(conn, there, "a")
    assert attempt_of(conn, there)["deadline"] is None


def test_a_second_copy_is_refused_and_the_first_may_ask_again(
    conn: Connection, submitted: str
) -> None:
    assert begin(conn, submitted, "a")["code"] is None
    started_at = attempt_of(conn, submitted)["started_at"]
    answer = begin(conn, submitted, "b")
    assert answer["code"] == "PC003"
    assert "another copy of its job began on node1" in answer["reason"]
    assert begin(conn, submitted, "a")["code"] is None
    attempt = attempt_of(conn, submitted)
    assert (attempt["copy"], attempt["started_at"]) == ("a", started_at)
    assert len(refusals(conn)) == attempt["refused_begins"] == 1


def test_a_late_or_never_submitted_job_is_refused(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {1: [], 2: [], 3: []})
    conn.execute("select pgcoord.set_slots(3)")
    late, reported, local = claim(conn, epoch)
    submit(conn, epoch, late)
    submit(conn, epoch, reported)
    conn.execute("select from pgcoord.cancel_phase(%s, 'not any more')", [late])
    conn.execute("select from pgcoord.complete_phase(%s)", [reported])
    for queue_id, words in (
        (late, "it is to end (cancelled: not any more)"),
        (reported, "it was reported completed"),
        (local, "no job was submitted for it"),
    ):
        with case(queue_id):
            answer = begin(conn, queue_id, "a")
            assert answer["code"] == "PC003"
            assert words in answer["reason"]
            assert attempt_of(conn, queue_id)["started_at"] is None
    assert len(refusals(conn)) == 2  # of jobs alone
    with refused("PC003", "given up"):
        submit(conn, epoch, late)
    with refused("PC007"):
        submit(conn, epoch - 1, local)
    assert feature == 1


@pytest.mark.parametrize("begins", [True, False])
def test_a_job_whose_submission_or_begin_a_failover_lost_goes_on(
    conn: Connection, epoch: int, begins: bool
) -> None:
    pools = Jsonb([{"name": "far", "launcher": "ray", "slots": 1}])
    conn.execute("select pgcoord_private.declare_pools(%s)", [pools])
    conn.execute("update pgcoord.workflow set pool = 'far'")
    queue_id = add_phase(conn, add_feature(conn, {}), 1)
    assert claim(conn, epoch) == [queue_id]
    if begins:
        assert begin(conn, queue_id, "a")["code"] is None
        assert begin(conn, queue_id, "b")["code"] == "PC003"
    assert leave(conn, queue_id, "a", 0)["code"] is None
    attempt = attempt_of(conn, queue_id)
    assert (attempt["outcome"], attempt["submitted_to"]) == ("completed", "ray")
    moves = conn.execute(
        "select to_status from pgcoord.event where kind = 'phase_moved' order by id"
    )
    assert [row["to_status"] for row in moves][-2:] == ["running", "completed"]
    assert begin(conn, queue_id, "b")["code"] == "PC003"


def test_a_forged_begin_is_refused_and_only_the_first_ten_are_events(
    conn: Connection, submitted: str
) -> None:
    for _ in range(12):
        assert begin(conn, submitted, "a", "whsec_of_somebody")["code"] == "PC001"
    attempt = attempt_of(conn, submitted)
    assert (attempt["copy"], attempt["refused_begins"]) == (None, 12)
    assert refusals(conn) == ["a job asked to begin with another secret"] * 10
    answer = one(conn, "select * from pgcoord.begin_attempt(4711, null, 'a')")
    assert answer["code"] == "PC001"


def test_only_the_copy_that_began_may_record_its_end(conn: Connection, submitted: str) -> None:
    assert leave(conn, submitted, "a", 0)["code"] == "PC003"
    begin(conn, submitted, "a")
    assert leave(conn, submitted, "b", 0)["code"] == "PC003"
    assert phase(conn, submitted)["status"] == "running"
    for _ in range(2):  # a repeat changes nothing
        assert leave(conn, submitted, "a", 3)["code"] is None
    row = phase(conn, submitted)
    assert row["status"] == "failed"
    assert row["error_message"] == "exited with status 3\nits last words"
    assert attempt_of(conn, submitted)["exit_code"] == 3
    assert begin(conn, submitted, "a")["code"] == "PC003"


def test_an_exit_after_the_attempt_was_taken_for_lost_is_recorded_and_changes_nothing(
    conn: Connection, submitted: str
) -> None:
    begin(conn, submitted, "a")
    attempt = attempt_of(conn, submitted)["id"]
    conn.execute("select pgcoord.give_up_attempt(%s, 'lost', 'not listed')", [attempt])
    assert leave(conn, submitted, "a", 0)["code"] is None
    assert phase(conn, submitted)["status"] == "failed"
    event = one(conn, "select reason from pgcoord.event where kind = 'attempt_exited'")
    assert event["reason"] == "exited with status 0, after it was taken for lost"


def test_the_end_of_a_job_and_the_claim_of_its_dependents_are_one_call(
    conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {1: [], 2: [1]})
    [queue_id] = claim(conn, epoch)
    submit(conn, epoch, queue_id)
    begin(conn, queue_id, "a")
    end = {
        "kind": "job_exited",
        "attempt_id": attempt_of(conn, queue_id)["id"],
        "copy": "a",
        "exit_code": 0,
    }
    rows = conn.execute(
        "select place, recorded, answer, (claimed).queue_id"
        " from pgcoord_private.record_and_claim(%s, %s)",
        [epoch, Jsonb([end])],
    ).fetchall()
    assert rows[0]["answer"] == {"code": None, "reason": None, "hint": None}
    assert rows[-1]["queue_id"] == f"queue-{feature}-2"
