"""Results by SQL: their readers, refusals and costs."""

import pytest
from psycopg.types.json import Jsonb
from support.database import (
    WORKFLOW,
    Connection,
    add_feature,
    add_phase,
    attempt_of,
    claim,
    one,
    refused,
    start,
    take_lead,
)

from pgcoord.runs import worktree


def set_result(
    conn: Connection, queue_id: str, result: object, adw_id: str | None = None
) -> object:
    row = one(
        conn, "select pgcoord.set_result(%s, %s, %s) as found", queue_id, Jsonb(result), adw_id
    )
    return row["found"]


@pytest.fixture
def phase_1(conn: Connection) -> str:
    epoch = take_lead(conn, WORKFLOW)
    queue_id = add_phase(conn, add_feature(conn, {}), 1)
    claim(conn, epoch)
    start(conn, epoch, queue_id)
    return queue_id


def test_results_add_up(conn: Connection, phase_1: str) -> None:
    assert set_result(conn, phase_1, {"summary": "a", "cost_usd": 1}) == {
        "summary": "a",
        "cost_usd": 1,
    }
    assert set_result(conn, phase_1, {"cost_usd": 1.5, "pr_number": 4}) == {
        "summary": "a",
        "cost_usd": 1.5,
        "pr_number": 4,
    }
    row = one(conn, "select summary, cost_usd::float8, pr_number, attempt from pgcoord.results")
    assert row == {"summary": "a", "cost_usd": 1.5, "pr_number": 4, "attempt": 1}
    assert one(conn, "select pr_number from phase_queue")["pr_number"] == 4
    assert one(conn, "select cost_usd::float8 from pgcoord.costs")["cost_usd"] == 1.5


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ([], "the result is of type array, not an object"),
        ({"summary": 1}, "the result has summary that is not a text: 1"),
        ({"tokens_in": 1.5}, "the result has tokens_in that is not a number: 1.5"),
        ({"cost_usd": -1}, "the result has cost_usd that is not an amount: -1"),
        ({"x": "y" * 70_000}, "64 kB at most"),
    ],
)
def test_an_invalid_result_is_refused(
    conn: Connection, phase_1: str, result: object, words: str
) -> None:
    with refused("PC005", words):
        set_result(conn, phase_1, result)


def test_worktree_and_database_measure_a_result_alike(conn: Connection) -> None:
    for value in (
        {},
        {"a": [1, 2.5, [], {}, {"b": None}], "c": True},
        {"é": '\u20ac \U0001f600 \x7f \u0001 \b\f\n\r\t " \\ / \u2028'},
    ):
        counted = one(conn, "select octet_length(%s::jsonb::text) as n", Jsonb(value))["n"]
        assert worktree.size_of(value) == counted


def test_a_result_belongs_to_an_attempt(conn: Connection, phase_1: str) -> None:
    waiting = add_phase(conn, add_feature(conn, {}), 1)
    with refused("PC002", "never started"):
        set_result(conn, waiting, {})
    with refused("PC003", "is not an attempt of phase"):
        set_result(conn, phase_1, {}, "adw-none")
    assert set_result(conn, phase_1, {}, str(attempt_of(conn, phase_1)["adw_id"])) == {}


def inputs_of(conn: Connection, feature_id: int, number: int) -> object:
    return one(conn, "select pgcoord_private.inputs_of(%s, %s) as found", feature_id, number)[
        "found"
    ]


def test_inputs_come_from_all_that_a_phase_needs_and_that_was_completed(conn: Connection) -> None:
    epoch = take_lead(conn, WORKFLOW)
    feature_id = add_feature(conn, {})
    for number, needs in enumerate([[], [1], [2], [1]], 1):
        add_phase(conn, feature_id, number, depends_on_phases=Jsonb(needs))
    for number in (1, 2):
        claim(conn, epoch)
        name = f"queue-{feature_id}-{number}"
        set_result(conn, name, {"branch": f"b{number}"})
        if number == 1:
            conn.execute("select pgcoord.complete_phase(%s)", [name])
    conn.execute("select pgcoord.fail_phase(%s, 'x')", [f"queue-{feature_id}-2"])
    conn.execute(
        "select pgcoord_private.end_attempt(%s, 1)",
        [attempt_of(conn, f"queue-{feature_id}-2")["id"]],
    )
    conn.execute("select pgcoord.skip_phase(%s, 'done by hand')", [f"queue-{feature_id}-2"])
    assert inputs_of(conn, feature_id, 3) == {"1": {"branch": "b1"}}
    assert inputs_of(conn, feature_id, 4) == {"1": {"branch": "b1"}}
    assert inputs_of(conn, feature_id, 1) == {}


def test_a_report_brings_its_result(conn: Connection, phase_1: str) -> None:
    def take(**report: object) -> dict[str, object]:
        return one(
            conn,
            "select code, reason, status from pgcoord_private.take_report(%s, 'm', 'test')",
            Jsonb({"queue_id": phase_1, "status": "completed", **report}),
        )

    refusal = take(result={"tokens_in": "many"})
    assert refusal["code"] == "PC005"
    assert one(conn, "select status from phase_queue")["status"] == "running"
    assert take(result={"summary": "s"})["status"] == "completed"
    assert one(conn, "select summary from pgcoord.results")["summary"] == "s"
