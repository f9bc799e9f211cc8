"""A round of the coordinator: the ends that lie ready and the claim after them, in one commit."""

from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from support.database import (
    Connection,
    add_feature,
    attempt_of,
    claim,
    rows_read,
    statuses,
    take_lead,
)


def exited(conn: Connection, queue_id: str, exit_code: int = 0) -> dict[str, Any]:
    attempt_id = attempt_of(conn, queue_id)["id"]
    return {"kind": "exited", "attempt_id": attempt_id, "exit_code": exit_code}


def record_and_claim(
    conn: Connection, epoch: int, *ends: dict[str, Any]
) -> tuple[list[bool], bool, list[str]]:
    """Return for each end whether it was recorded, whether the claim was made, and its phases."""
    rows = conn.execute(
        "select place, recorded, answer, (claimed).queue_id"
        " from pgcoord_private.record_and_claim(%s, %s)",
        [epoch, Jsonb(list(ends))],
    ).fetchall()
    (was_made,) = (row["recorded"] for row in rows if row["place"] == 0)
    recorded = [row["recorded"] for row in rows if row["place"]]
    return recorded, was_made, [row["queue_id"] for row in rows if row["place"] is None]


def claimed_two(conn: Connection) -> tuple[int, int, int]:
    """Two features whose first phases run, each with one that waits; and the epoch."""
    epoch = take_lead(conn)
    first, second = add_feature(conn, {1: [], 2: [1]}), add_feature(conn, {1: [], 2: [1]})
    claim(conn, epoch)
    return epoch, first, second


def test_ends_and_their_consequences_are_one_commit(dsn: str, conn: Connection) -> None:
    epoch, first, second = claimed_two(conn)
    ends = [exited(conn, f"queue-{first}-1"), exited(conn, f"queue-{second}-1", 3)]
    with psycopg.connect(dsn, autocommit=True) as other, conn.transaction():
        assert record_and_claim(conn, epoch, *ends) == ([True, True], True, [f"queue-{first}-2"])
        seen = other.execute("select array_agg(distinct status::text) from phase_queue").fetchone()
        assert seen == (["queued", "ready"],)
    assert statuses(conn, first) == {1: "completed", 2: "ready"}
    assert statuses(conn, second) == {1: "failed", 2: "blocked"}


def test_an_end_that_waits_for_a_lock_fails_neither_other_ends_nor_the_claim(
    dsn: str, conn: Connection
) -> None:
    epoch, first, second = claimed_two(conn)
    ends = [exited(conn, f"queue-{number}-1") for number in (first, second)]
    with psycopg.connect(dsn) as other:
        other.execute("select from planned_features where id = %s for update", [first])
        assert record_and_claim(conn, epoch, *ends) == ([False, True], True, [f"queue-{second}-2"])
        assert statuses(conn, first) == {1: "ready", 2: "queued"}
    assert record_and_claim(conn, epoch, ends[0]) == ([True], True, [f"queue-{first}-2"])


def test_a_claim_that_would_wait_or_fail_keeps_the_recorded_ends(
    dsn: str, conn: Connection
) -> None:
    epoch, first, second = claimed_two(conn)
    with psycopg.connect(dsn) as other:
        other.execute("select from pgcoord.control for update")
        ended = record_and_claim(conn, epoch, exited(conn, f"queue-{first}-1"))
        assert ended == ([True], False, [])
    ended = record_and_claim(conn, epoch - 1, exited(conn, f"queue-{second}-1"))  # an older lead
    assert ended == ([True], False, [])
    assert statuses(conn, first) == statuses(conn, second) == {1: "completed", 2: "queued"}


def test_a_report_in_a_round_is_answered_as_alone(conn: Connection) -> None:
    epoch, first, _ = claimed_two(conn)
    report = {"status": "completed", "queue_id": f"queue-{first}-1"}
    end = {"kind": "reported", "report": report, "message_id": "m", "actor": "a", "adw_id": None}
    answers = [
        conn.execute(
            "select answer from pgcoord_private.record_and_claim(%s, %s)", [epoch, Jsonb([end])]
        ).fetchall()[0]["answer"]
        for _ in range(2)
    ]
    assert [answer["repeated"] for answer in answers] == [False, True]
    assert statuses(conn, first) == {1: "completed", 2: "ready"}


@pytest.mark.own_database
def test_a_round_reads_no_more_however_many_slots_are_held_and_attempts_open(
    conn: Connection,
) -> None:
    epoch = take_lead(conn)
    add_feature(conn, {})

    def read_with(held: int) -> list[int]:
        """Hold so many slots, leave one free, and take it for a phase that comes."""
        holding = conn.execute("select from phase_queue where slot is not null").fetchall()
        conn.execute("select pgcoord.set_slots(%s)", [held])
        conn.execute(
            "insert into phase_queue (feature_id, phase_number)"
            " select 1, n + %s from generate_series(1, %s) as n",
            [held, held - len(holding)],
        )
        assert len(claim(conn, epoch)) > 0
        conn.execute("update pgcoord.attempt set deadline = now() + interval '1 h'")
        conn.execute("select pgcoord.set_slots(%s)", [held + 1])
        conn.execute(
            "insert into phase_queue (feature_id, phase_number) values (1, 5000 + %s)", [held]
        )
        conn.execute("vacuum analyze")
        return [
            rows_read(conn, "select pgcoord_private.claim_phases(%s)", epoch),
            rows_read(conn, "select pgcoord_private.look_round('here', '{}', '{}')"),
        ]

    few, many = read_with(3), read_with(400)
    assert all(after <= before + 10 for before, after in zip(few, many, strict=True)), (few, many)
