"""Conditions: phases that run when what they depend on was not completed, or however it ended."""

import psycopg
import pytest
from psycopg.types.json import Jsonb
from support.database import (
    Connection,
    add_feature,
    add_phase,
    as_user,
    claim,
    one,
    phase,
    refused,
    statuses,
    why,
)


def fail(conn: Connection, queue_id: str) -> None:
    """End its process, which was started, with status 1."""
    conn.execute(
        "select pgcoord_private.end_attempt(id, 1) from pgcoord.attempt"
        " where queue_id = %s and exited_at is null",
        [queue_id],
    )


def test_clean_up_runs_after_failed_work_and_the_rest_is_blocked(
    conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {1: [], 2: [1]})
    add_phase(conn, feature, 3, [2], run_when="always")
    add_phase(conn, feature, 4, [1, 2], run_when="failed")
    add_phase(conn, feature, 5, [3])
    assert why(conn, "queue-1-4") == [
        "waits for phase 1, queued; runs only if what it depends on is not completed",
        "waits for phase 2, queued; runs only if what it depends on is not completed",
    ]
    assert claim(conn, epoch) == ["queue-1-1"]
    fail(conn, "queue-1-1")
    assert statuses(conn) == {1: "failed", 2: "blocked", 3: "queued", 4: "queued", 5: "queued"}
    assert claim(conn, epoch) == ["queue-1-3", "queue-1-4"]
    for name in ("queue-1-3", "queue-1-4"):
        conn.execute("select pgcoord.complete_phase(%s)", [name])
    assert claim(conn, epoch) == ["queue-1-5"]
    conn.execute("select pgcoord.complete_phase('queue-1-5')")
    feature_row = one(conn, "select status, finished_at from pgcoord.feature")
    assert feature_row == {"status": "in_progress", "finished_at": None}
    standstill = one(conn, "select words from pgcoord_private.standstill")
    assert standstill == {"words": "phase 1 failed"}


def test_phases_not_needed_are_skipped_and_the_feature_completes(
    conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {1: []})
    add_phase(conn, feature, 2, [1], run_when="failed", phase_data=Jsonb({"gate": "roll back?"}))
    add_phase(conn, feature, 3, [2])
    add_phase(conn, feature, 4, [1], run_when="always")
    assert claim(conn, epoch) == ["queue-1-1"]
    conn.execute("select pgcoord.complete_phase('queue-1-1')")
    assert one(
        conn, "select reason from pgcoord.event where to_status = 'completed' and phase_number = 2"
    ) == {"reason": "not needed: what it depends on is completed"}
    assert one(conn, "select skipped from pgcoord.board where phase_number = 2") == {
        "skipped": True
    }
    words = str(one(conn, "select words from pgcoord.why('queue-1-2')")["words"])
    assert words.startswith("skipped at ")
    assert claim(conn, epoch) == ["queue-1-3", "queue-1-4"]
    for name in ("queue-1-3", "queue-1-4"):
        conn.execute("select pgcoord.complete_phase(%s)", [name])
    assert one(conn, "select status from pgcoord.feature") == {"status": "completed"}


def test_a_retry_takes_back_phases_not_begun_and_waits_for_begun_ones(
    conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {1: [], 2: [1]})
    add_phase(conn, feature, 3, [2], run_when="always")
    conn.execute("select pgcoord.cancel_phase('queue-1-1', 'no')")
    conn.execute("select pgcoord.retry_phase('queue-1-1')")
    assert phase(conn, "queue-1-3")["eligible_at"] is None
    assert claim(conn, epoch) == ["queue-1-1"]
    fail(conn, "queue-1-1")
    assert claim(conn, epoch) == ["queue-1-3"]
    # Retrying 1 would have 2 wait again, by whose end 3 runs.
    message = (
        "phase 2 of feature 1 cannot wait again: phase 3 is ready, which runs now that it has ended"
    )
    with refused("PC002", message):
        conn.execute("select pgcoord.retry_phase('queue-1-1')")
    conn.execute("select pgcoord.complete_phase('queue-1-3')")
    conn.execute("select pgcoord.retry_phase('queue-1-1')")
    assert statuses(conn) == {1: "queued", 2: "queued", 3: "completed"}


def test_clean_up_is_not_retried_after_its_failed_prerequisite_was_skipped(
    conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {1: []}, phase_data=Jsonb({"max_attempts": 2}))
    add_phase(conn, feature, 2, [1], run_when="failed")
    conn.execute("select pgcoord.cancel_phase('queue-1-1', 'no')")
    assert claim(conn, epoch) == ["queue-1-2"]
    conn.execute("select pgcoord.skip_phase('queue-1-1', 'by hand')")
    fail(conn, "queue-1-2")
    # It would have been tried again.
    conn.execute("select pgcoord.retry_phase('queue-1-2')")
    assert statuses(conn) == {1: "completed", 2: "completed"}


def test_a_lock_on_a_dependent_of_a_skipped_phase_is_found(
    dsn: str, conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {1: []})
    add_phase(conn, feature, 2, [1], run_when="failed")
    add_phase(conn, feature, 3, [2])
    assert claim(conn, epoch) == ["queue-1-1"]
    found = "select pgcoord_private.find_lock(id, false) as name from pgcoord.attempt"
    with psycopg.connect(dsn) as other:
        other.execute("select from phase_queue where phase_number = 3 for update")
        assert one(conn, found) == {"name": "phase queue-1-3"}


@pytest.mark.parametrize(
    ("run_when", "depends_on", "message"),
    [
        ("never", [2], "run_when of phase queue-1-1 cannot be 'never'"),
        (
            "failed",
            [],
            "phase queue-1-1 runs when what it depends on fails, and depends on nothing",
        ),
    ],
)
def test_a_condition_that_cannot_be_is_refused(
    conn: Connection, run_when: str, depends_on: list[int], message: str
) -> None:
    feature = add_feature(conn, {})
    with refused("PC005", message):
        add_phase(conn, feature, 1, depends_on, run_when=run_when)


def test_a_client_sets_a_condition_that_nobody_can_change(
    dsn: str, conn: Connection, logins: dict[str, str]
) -> None:
    feature = add_feature(conn, {1: []})
    with psycopg.connect(as_user(dsn, logins["client"]), autocommit=True) as client:
        client.execute(
            "insert into phase_queue (feature_id, phase_number, depends_on_phases, run_when)"
            " values (%s, 2, '[1]', 'failed'), (%s, 3, '[1]', null)",
            [feature, feature],
        )
        with refused("PC005", "depends on nothing"):
            client.execute("update phase_queue set depends_on_phases = '[]' where phase_number = 2")
    with refused("PC008", "keeps its queue_id, feature_id, phase_number, run_when and lock"):
        conn.execute("update phase_queue set run_when = 'always'")
    assert [phase(conn, f"queue-1-{n}")["run_when"] for n in (1, 2, 3)] == [
        "completed",
        "failed",
        "completed",
    ]
