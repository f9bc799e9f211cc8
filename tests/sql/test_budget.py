"""Budgets: nothing of a feature starts once what it may cost is spent, and `why` says so."""

import psycopg
from psycopg.types.json import Jsonb
from support.database import (
    WORKFLOW,
    Connection,
    add_feature,
    claim,
    one,
    refused,
    start,
    take_lead,
)


def end(conn: Connection, queue_id: str, cost: float, exit_code: int = 0) -> None:
    conn.execute("select pgcoord.set_result(%s, %s)", [queue_id, Jsonb({"cost_usd": cost})])
    conn.execute(
        "select pgcoord_private.end_attempt(id, %s) from pgcoord.attempt"
        " where queue_id = %s and exited_at is null",
        [exit_code, queue_id],
    )


def why(conn: Connection, queue_id: str) -> str:
    return str(one(conn, "select words from pgcoord.why(%s) limit 1", queue_id)["words"])


def test_nothing_starts_once_the_budget_of_a_feature_is_spent(conn: Connection, epoch: int) -> None:
    add_feature(conn, {1: [], 2: [1], 3: [2]}, phase_data=Jsonb({"max_attempts": 2}))
    add_feature(conn, {1: []})
    conn.execute("update planned_features set max_cost_usd = 1.5 where id = 1")
    assert claim(conn, epoch) == ["queue-1-1", "queue-2-1"]
    start(conn, epoch, "queue-1-1")
    end(conn, "queue-1-1", 0.5)
    assert claim(conn, epoch) == ["queue-1-2"]
    start(conn, epoch, "queue-1-2")
    end(conn, "queue-1-2", 1, exit_code=1)  # with an attempt left
    conn.execute("update phase_queue set retry_at = null")
    assert claim(conn, epoch) == []
    assert why(conn, "queue-1-2").endswith(": its budget of $1.5 is spent: $1.5")
    with refused("PC002", "feature 1 cannot be resumed: its budget of $1.5 is spent"):
        conn.execute("select pgcoord.resume(1)")
    conn.execute("update planned_features set max_cost_usd = 2 where id = 1")
    assert claim(conn, epoch) == ["queue-1-2"]
    conn.execute("update planned_features set max_cost_usd = 0.1 where id = 1")
    assert one(conn, "select paused_at is not null as paused from planned_features where id = 1")[
        "paused"
    ]


def test_a_workflow_has_a_budget_in_each_feature(conn: Connection) -> None:
    epoch = take_lead(conn, {**WORKFLOW, "max_cost_usd": 0.5})
    add_feature(conn, {1: [], 2: [1]})
    add_feature(conn, {1: [], 2: [1]})
    assert claim(conn, epoch) == ["queue-1-1", "queue-2-1"]
    end(conn, "queue-1-1", 0.7)
    end(conn, "queue-2-1", 0.3)
    assert claim(conn, epoch) == ["queue-2-2"]
    assert why(conn, "queue-1-2").endswith(
        ": the budget of workflow work in a feature, $0.5, is spent: $0.7"
    )
    with refused("PC002", "the budget of workflow work in a feature"):
        conn.execute("select pgcoord.resume(1)")
    # The next leader may have another configuration.
    for most, statuses in ((1.0, [False, False]), (0.2, [True, True]), (None, [False, False])):
        take_lead(conn, {**WORKFLOW, "max_cost_usd": most})
        conn.execute("select pgcoord_private.follow_budgets()")
        rows = conn.execute(
            "select paused_at is not null as paused from planned_features order by id"
        ).fetchall()
        assert [row["paused"] for row in rows] == statuses


def test_a_feature_locked_during_a_check_of_budgets_is_checked_later(
    conn: Connection, dsn: str
) -> None:
    take_lead(conn, {**WORKFLOW, "max_cost_usd": 0.5})
    add_feature(conn, {1: [], 2: [1]})
    conn.execute(
        "update planned_features set paused_at = now(),"
        " paused_reason = 'the budget of workflow work in a feature, $0.1, is spent: $0.2'"
    )
    follow = "select pgcoord_private.follow_budgets() as passed_over"
    with psycopg.connect(dsn) as other:
        other.execute("select from planned_features for update")
        assert one(conn, follow) == {"passed_over": True}
    assert one(conn, follow) == {"passed_over": False}
    assert one(conn, "select paused_at from planned_features") == {"paused_at": None}
