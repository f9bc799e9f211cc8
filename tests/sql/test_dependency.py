"""Dependencies: which edges are valid, and which phases wait, or are blocked, because of them."""

from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from support.cases import case
from support.database import (
    Connection,
    add_feature,
    add_phase,
    claim,
    refused,
    rows_read,
    start,
    statuses,
)


def phase(conn: Connection, number: int) -> dict[str, Any]:
    row = conn.execute("select * from phase_queue where phase_number = %s", [number]).fetchone()
    assert row
    return row


def unmet(conn: Connection) -> dict[int, int]:
    """The open prerequisites of each phase; eligible_at has to agree."""
    rows = conn.execute("select phase_number, unmet, eligible_at from phase_queue").fetchall()
    assert all((row["eligible_at"] is None) == (row["unmet"] > 0) for row in rows)
    return {row["phase_number"]: row["unmet"] for row in rows}


def edges(conn: Connection) -> set[tuple[int, int]]:
    rows = conn.execute("select prerequisite, dependent from pgcoord.dependency").fetchall()
    return {(row["prerequisite"], row["dependent"]) for row in rows}


def depend(conn: Connection, number: int, prerequisites: object) -> None:
    conn.execute(
        "update phase_queue set depends_on_phases = %s where phase_number = %s",
        [Jsonb(prerequisites), number],
    )


def become(conn: Connection, number: int, status: str) -> None:
    conn.execute("update phase_queue set status = %s where phase_number = %s", [status, number])


def fail(conn: Connection, epoch: int, number: int) -> None:
    """Fail the attempt of a claimed phase."""
    conn.execute(
        "select pgcoord_private.end_attempt(id, 1)"
        " from pgcoord.attempt join phase_queue using (queue_id)"
        " where phase_number = %s and ended_at is null",
        [number],
    )


# --- What an edge may be


MALFORMED = [
    ({"1": 2}, "a JSON object"),
    ("1", 'is "1", a JSON string'),
    (1, "is 1, a JSON number"),
    (True, "a JSON boolean"),
    (["1"], 'holds "1"'),
    ([None], "holds null"),
    ([[1]], "holds [1]"),
    ([{}], "holds {}"),
    ([True], "holds true"),
    ([1.5], "holds 1.5"),
    ([0], "holds 0"),
    ([-1], "holds -1"),
    ([2147483648], "holds 2147483648"),
    ([1, 3, 1], "names phase 1 twice"),
    ([1, 2], "names the phase itself"),
]


def test_an_array_that_cannot_be_meant_is_refused(conn: Connection) -> None:
    feature = add_feature(conn, {1: []})
    for value, words in MALFORMED:
        with case(value, words):
            with refused("PC005", f"depends_on_phases of phase queue-{feature}-2", words):
                conn.execute(
                    "insert into phase_queue (feature_id, phase_number, depends_on_phases)"
                    " values (%s, 2, %s)",
                    [feature, Jsonb(value)],
                )
            assert statuses(conn) == {1: "queued"}


def test_every_empty_form_of_dependencies_means_none(conn: Connection) -> None:
    """Empty arrays and null as clients write them that cannot tell an array from an object."""
    feature = add_feature(conn, {1: [], 2: [1], 3: [1]})
    for number, value in ((2, Jsonb({})), (3, Jsonb(None))):
        update = (
            "update phase_queue set depends_on_phases = %s, phase_data = %s where phase_number = %s"
        )
        conn.execute(update, [value, Jsonb([]), number])
    add_phase(conn, feature, 4, depends_on_phases=Jsonb({}), phase_data=Jsonb(None))
    add_phase(conn, feature, 5, depends_on_phases=Jsonb(None), phase_data=Jsonb([]))
    rows = conn.execute(
        "select distinct depends_on_phases, phase_data, unmet from phase_queue"
    ).fetchall()
    assert rows == [{"depends_on_phases": [], "phase_data": {}, "unmet": 0}]


def test_an_array_that_cannot_be_meant_is_refused_in_an_update(conn: Connection) -> None:
    feature = add_feature(conn, {1: [], 2: [1]})
    for value, words in MALFORMED:
        with case(value, words):
            with refused("PC005", f"depends_on_phases of phase queue-{feature}-2", words):
                depend(conn, 2, value)
            assert edges(conn) == {(1, 2)}


def test_text_that_is_no_json_is_refused(conn: Connection) -> None:
    feature = add_feature(conn, {})
    with refused("22P02"):
        conn.execute(
            "insert into phase_queue (feature_id, phase_number, depends_on_phases)"
            " values (%s, 1, '[1')",
            [feature],
        )


def test_null_dependencies_are_none(conn: Connection) -> None:
    feature = add_feature(conn, {1: []})
    add_phase(conn, feature, 2, [1])
    conn.execute("update phase_queue set depends_on_phases = null")
    assert unmet(conn) == {1: 0, 2: 0}
    assert phase(conn, 2)["depends_on_phases"] == []


@pytest.mark.parametrize(
    ("stored", "added", "path"),
    [
        ({1: [2]}, {2: [1]}, {"1 -> 2 -> 1", "2 -> 1 -> 2"}),
        ({1: [3], 2: [1]}, {3: [2]}, {"1 -> 2 -> 3 -> 1", "2 -> 3 -> 1 -> 2", "3 -> 1 -> 2 -> 3"}),
        (
            {1: [], 2: [1, 4], 3: [2]},
            {4: [3]},
            {"2 -> 3 -> 4 -> 2", "3 -> 4 -> 2 -> 3", "4 -> 2 -> 3 -> 4"},
        ),
    ],
)
def test_a_cycle_is_refused_with_its_path(
    conn: Connection, stored: dict[int, list[int]], added: dict[int, list[int]], path: set[str]
) -> None:
    feature = add_feature(conn, stored)
    [(number, prerequisites)] = added.items()
    with pytest.raises(psycopg.Error) as caught:
        add_phase(conn, feature, number, prerequisites)
    assert caught.value.sqlstate == "PC005"
    assert str(caught.value.diag.message_primary) in {
        f"phase {each[0]} of feature {feature} would wait for itself: {each}" for each in path
    }
    assert set(statuses(conn)) == set(stored)


def test_an_update_that_closes_a_cycle_is_refused(conn: Connection) -> None:
    add_feature(conn, {1: [], 2: [1], 3: [2], 4: [3]})
    with refused("PC005", "would wait for itself: ", "4 -> 2"):
        depend(conn, 2, [1, 4])
    assert edges(conn) == {(1, 2), (2, 3), (3, 4)}


def test_the_path_of_a_long_cycle_is_shortened(conn: Connection) -> None:
    feature = add_feature(conn, {n: [n - 1] if n > 1 else [] for n in range(1, 101)})
    with refused("PC005", " -> ... -> "):
        conn.execute(
            "update phase_queue set depends_on_phases = '[100]'"
            " where feature_id = %s and phase_number = 1",
            [feature],
        )


def test_a_cycle_within_one_insert_is_refused(conn: Connection) -> None:
    feature = add_feature(conn, {})
    with refused("PC005", "would wait for itself"):
        conn.execute(
            "insert into phase_queue (feature_id, phase_number, depends_on_phases)"
            " values (%(id)s, 1, '[2]'), (%(id)s, 2, '[1]')",
            {"id": feature},
        )
    assert statuses(conn) == {}


def test_phases_of_the_same_number_in_other_features_are_no_cycle(conn: Connection) -> None:
    first, second = add_feature(conn, {1: [2]}), add_feature(conn, {2: [1]})
    add_phase(conn, first, 2)
    add_phase(conn, second, 1)
    assert statuses(conn, first) == statuses(conn, second) == {1: "queued", 2: "queued"}


@pytest.mark.parametrize("swapped", [1, 2])
def test_an_edge_may_be_turned_round_in_one_statement(conn: Connection, swapped: int) -> None:
    other = 3 - swapped
    add_feature(conn, {swapped: [], other: [swapped]})
    conn.execute(
        "update phase_queue set depends_on_phases"
        " = case phase_number when %s then '[]'::jsonb else jsonb_build_array(%s::int) end",
        [other, other],
    )
    assert edges(conn) == {(other, swapped)}
    assert unmet(conn) == {other: 0, swapped: 1}


@pytest.mark.parametrize("first", [1, 2])
def test_an_edge_may_be_added_in_the_statement_that_completes_its_prerequisite(
    conn: Connection, first: int
) -> None:
    add_feature(conn, {1: [], 2: []})
    conn.execute(
        "update phase_queue set"
        " status = case phase_number when %(done)s then 'completed' else status end,"
        " depends_on_phases = case phase_number when %(done)s then depends_on_phases"
        " else jsonb_build_array(%(done)s::int) end",
        {"done": first},
    )
    assert unmet(conn) == {1: 0, 2: 0}
    assert statuses(conn) == {first: "completed", 3 - first: "queued"}


@pytest.mark.parametrize("order", [[1, 2], [2, 1]])
def test_a_phase_may_be_retried_in_the_statement_that_completes_its_prerequisite(
    conn: Connection, order: list[int]
) -> None:
    feature = add_feature(conn, {})
    for number in order:
        add_phase(conn, feature, number, [1] if number == 2 else [])
    become(conn, 2, "cancelled")
    conn.execute(
        "update phase_queue"
        " set status = case phase_number when 1 then 'completed' else 'queued' end"
    )
    assert statuses(conn) == {1: "completed", 2: "queued"}
    assert unmet(conn) == {1: 0, 2: 0}


_COMPLETE = "update phase_queue set status = 'completed' where phase_number = 1 returning 1"


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    "other",
    [
        "insert into phase_queue (feature_id, phase_number, depends_on_phases)"
        " select id, 4, '[1, 2]' from planned_features returning 1",
        "update phase_queue set depends_on_phases = '[1, 2]' where phase_number = 4 returning 1",
        "update phase_queue set status = 'queued' where phase_number = 4 returning 1",
        "delete from phase_queue where phase_number = 3 returning 1",
    ],
)
def test_a_statement_of_several_parts_counts_no_completion_twice(
    conn: Connection, other: str, swapped: bool
) -> None:
    feature = add_feature(conn, {1: [], 2: []})
    add_phase(conn, feature, 3, status="completed")
    if not other.startswith("insert"):
        edges = {"delete": [1, 3], "update": [1, 2]}[other[:6]]
        status = "cancelled" if "status" in other else "queued"
        add_phase(conn, feature, 4, [] if "depends" in other else edges, status=status)
    first, second = (other, _COMPLETE) if swapped else (_COMPLETE, other)
    conn.execute(f"with one as ({first}), two as ({second}) select 1".encode())
    assert statuses(conn)[1] == "completed"
    assert unmet(conn)[4] == 1
    become(conn, 2, "completed")
    assert unmet(conn)[4] == (1 if other.startswith("delete") else 0)


@pytest.mark.parametrize("cancelled", [1, 2])
def test_one_statement_may_cancel_a_phase_and_complete_another(
    conn: Connection, cancelled: int
) -> None:
    """What the completion updates in its turn settles nothing of the statement around it."""
    add_feature(conn, {1: [], 2: [], 3: [1], 4: [2]})
    conn.execute(
        "update phase_queue set status = case phase_number when %s then 'cancelled'"
        " else 'completed' end where phase_number in (1, 2)",
        [cancelled],
    )
    freed, blocked = (4, 3) if cancelled == 1 else (3, 4)
    assert (statuses(conn)[freed], statuses(conn)[blocked]) == ("queued", "blocked")
    assert unmet(conn)[freed] == 0


def test_an_edge_to_a_phase_of_a_higher_number_is_one_like_any_other(
    conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {1: [2], 2: [3], 3: []})
    assert claim(conn, epoch) == [f"queue-{feature}-3"]
    become(conn, 3, "completed")
    assert claim(conn, epoch) == [f"queue-{feature}-2"]


# --- Who waits


def test_eligible_at_is_when_the_last_prerequisite_was_completed(
    conn: Connection, epoch: int
) -> None:
    add_feature(conn, {1: [], 2: [], 3: [1, 2]})
    assert unmet(conn) == {1: 0, 2: 0, 3: 2}
    become(conn, 2, "completed")
    assert unmet(conn) == {1: 0, 2: 0, 3: 1}
    become(conn, 1, "completed")
    assert unmet(conn)[3] == 0
    assert phase(conn, 3)["eligible_at"] >= phase(conn, 1)["finished_timestamp"]


@pytest.mark.parametrize("order", [[1, 2, 3], [3, 2, 1], [2, 3, 1]])
def test_the_order_of_insertion_within_a_transaction_does_not_matter(
    conn: Connection, order: list[int]
) -> None:
    feature = add_feature(conn, {})
    graph: dict[int, list[int]] = {1: [], 2: [1], 3: [1, 2]}
    with conn.transaction():
        for number in order:
            add_phase(conn, feature, number, graph[number])
    assert edges(conn) == {(1, 2), (1, 3), (2, 3)}
    assert unmet(conn) == {1: 0, 2: 1, 3: 2}


@pytest.mark.parametrize(
    ("status", "dependent"),
    [("completed", "queued"), ("failed", "blocked"), ("cancelled", "blocked")],
)
@pytest.mark.parametrize("order", [[1, 2, 3], [3, 2, 1]])
def test_ended_phases_may_be_inserted_before_or_after_their_dependents(
    conn: Connection, status: str, dependent: str, order: list[int]
) -> None:
    feature = add_feature(conn, {})
    for number in order:
        if number == 1:
            add_phase(conn, feature, 1, status=status)
        else:
            add_phase(conn, feature, number, [number - 1])
    assert statuses(conn) == {1: status, 2: dependent, 3: dependent}
    assert unmet(conn) == {1: 0, 2: 0 if status == "completed" else 1, 3: 1}


def test_a_missing_prerequisite_holds_back_only_its_dependents(
    conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {1: [9], 2: [], 3: [2]})
    assert claim(conn, epoch) == [f"queue-{feature}-2"]
    become(conn, 2, "completed")
    assert claim(conn, epoch) == [f"queue-{feature}-3"]
    add_phase(conn, feature, 9)
    assert claim(conn, epoch) == [f"queue-{feature}-9"]
    become(conn, 9, "completed")
    assert claim(conn, epoch) == [f"queue-{feature}-1"]


def test_a_phase_added_to_a_running_feature_waits_for_open_prerequisites(
    conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {1: [], 2: []})
    claim(conn, epoch)
    become(conn, 1, "completed")
    add_phase(conn, feature, 3, [1])
    add_phase(conn, feature, 4, [1, 2])
    assert unmet(conn) == {1: 0, 2: 0, 3: 0, 4: 1}
    assert claim(conn, epoch) == [f"queue-{feature}-3"]


# --- Edges that change


def test_an_edge_added_to_an_eligible_phase_makes_it_wait(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {1: [], 2: []})
    depend(conn, 2, [1])
    assert unmet(conn) == {1: 0, 2: 1}
    assert claim(conn, epoch) == [f"queue-{feature}-1"]


def test_an_edge_removed_from_a_waiting_phase_makes_it_eligible(
    conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {1: [], 2: [1, 7]})
    depend(conn, 2, [1])
    assert unmet(conn)[2] == 1
    depend(conn, 2, [])
    assert edges(conn) == set()
    assert claim(conn, epoch) == [f"queue-{feature}-1", f"queue-{feature}-2"]


@pytest.mark.parametrize(
    ("prerequisite", "status", "open_ones"),
    [
        ("completed", "queued", 0),
        ("queued", "queued", 1),
        ("running", "queued", 1),
        ("failed", "blocked", 1),
        ("cancelled", "blocked", 1),
        (None, "queued", 1),
    ],
)
def test_an_edge_added_counts_as_its_prerequisite_stands(
    conn: Connection, prerequisite: str | None, status: str, open_ones: int
) -> None:
    feature = add_feature(conn, {2: [], 3: [2]})
    if prerequisite:
        add_phase(conn, feature, 1, status=prerequisite)
    depend(conn, 2, [1])
    assert (phase(conn, 2)["status"], phase(conn, 2)["unmet"]) == (status, open_ones)
    assert statuses(conn)[3] == status


def test_an_edge_removed_unblocks(conn: Connection) -> None:
    feature = add_feature(conn, {})
    add_phase(conn, feature, 1, status="failed")
    add_phase(conn, feature, 2, [1])
    add_phase(conn, feature, 3, [2])
    depend(conn, 2, [])
    assert statuses(conn) == {1: "failed", 2: "queued", 3: "queued"}
    assert unmet(conn) == {1: 0, 2: 0, 3: 1}


def test_an_array_in_another_order_changes_nothing(conn: Connection) -> None:
    add_feature(conn, {1: [], 2: [], 3: [1, 2]})
    depend(conn, 3, [2, 1])
    assert edges(conn) == {(1, 3), (2, 3)}
    assert unmet(conn) == {1: 0, 2: 0, 3: 2}


@pytest.mark.parametrize("status", ["ready", "running", "completed", "failed", "cancelled"])
def test_edges_of_a_phase_that_does_not_wait_cannot_change(
    conn: Connection, epoch: int, status: str
) -> None:
    add_feature(conn, {1: []})
    if status == "cancelled":
        become(conn, 1, "cancelled")
    else:
        [queue_id] = claim(conn, epoch)
        if status != "ready":
            start(conn, epoch, queue_id)
        if status == "completed":
            become(conn, 1, "completed")
        elif status == "failed":
            fail(conn, epoch, 1)
    assert phase(conn, 1)["status"] == status
    with refused("PC002", f"is {status}: its dependencies cannot change any more"):
        depend(conn, 1, [2])
    assert edges(conn) == set()


# --- Who is blocked

DIAMOND = {1: [], 2: [1], 3: [1], 4: [2, 3], 5: [4], 6: []}


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_a_phase_that_ends_badly_blocks_all_downstream_and_nothing_else(
    conn: Connection, epoch: int, end: str
) -> None:
    add_feature(conn, DIAMOND)
    claim(conn, epoch)
    become(conn, 1, "completed")
    claim(conn, epoch)
    if end == "failed":
        fail(conn, epoch, 2)
    else:
        become(conn, 2, "cancelled")
        fail(conn, epoch, 2)
    assert statuses(conn) == {
        1: "completed",
        2: end,
        3: "ready",
        4: "blocked",
        5: "blocked",
        6: "ready",
    }


def test_a_retry_unblocks_phases_that_no_other_phase_blocks(conn: Connection) -> None:
    add_feature(conn, DIAMOND)
    become(conn, 2, "cancelled")
    become(conn, 3, "cancelled")
    assert statuses(conn)[5] == "blocked"
    become(conn, 2, "queued")
    assert [statuses(conn)[n] for n in (2, 4, 5)] == ["queued", "blocked", "blocked"]
    become(conn, 3, "queued")
    assert [statuses(conn)[n] for n in (2, 4, 5)] == ["queued", "queued", "queued"]
    assert unmet(conn) == {1: 0, 2: 1, 3: 1, 4: 2, 5: 1, 6: 0}


def test_skipping_the_phase_that_blocks_lets_its_dependents_go_on(
    conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {1: [], 2: [1], 3: [2]})
    become(conn, 1, "cancelled")
    become(conn, 1, "completed")
    assert statuses(conn) == {1: "completed", 2: "queued", 3: "queued"}
    assert claim(conn, epoch) == [f"queue-{feature}-2"]


def test_skipping_a_blocked_phase_lets_its_dependents_go_on(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {1: [], 2: [1], 3: [2], 4: [1, 3]})
    become(conn, 1, "cancelled")
    become(conn, 2, "completed")
    assert statuses(conn) == {1: "cancelled", 2: "completed", 3: "queued", 4: "blocked"}
    assert claim(conn, epoch) == [f"queue-{feature}-3"]


def test_a_phase_retried_below_a_failed_one_is_blocked_again(conn: Connection) -> None:
    add_feature(conn, {1: [], 2: [1], 3: [2]})
    become(conn, 2, "cancelled")
    become(conn, 1, "cancelled")
    become(conn, 2, "queued")
    assert statuses(conn) == {1: "cancelled", 2: "blocked", 3: "blocked"}
    become(conn, 1, "queued")
    assert statuses(conn) == {1: "queued", 2: "queued", 3: "queued"}


def test_a_phase_retried_below_a_blocked_one_is_blocked_again(conn: Connection) -> None:
    add_feature(conn, {1: [], 2: [1], 3: [2]})
    become(conn, 3, "cancelled")
    become(conn, 1, "cancelled")
    become(conn, 3, "queued")
    assert statuses(conn) == {1: "cancelled", 2: "blocked", 3: "blocked"}


def test_a_failure_with_attempts_left_blocks_nobody(conn: Connection, epoch: int) -> None:
    conn.execute("update pgcoord.workflow set max_attempts = 2")
    add_feature(conn, {1: [], 2: [1]})
    claim(conn, epoch)
    fail(conn, epoch, 1)
    assert statuses(conn) == {1: "queued", 2: "queued"}


def test_one_statement_may_end_phases_of_many_features(conn: Connection) -> None:
    first, second = add_feature(conn, DIAMOND), add_feature(conn, DIAMOND)
    conn.execute(
        "update phase_queue set status = case feature_id when %s then 'cancelled'"
        " else 'completed' end where phase_number = 1",
        [first],
    )
    assert [statuses(conn, first)[n] for n in (2, 5, 6)] == ["blocked", "blocked", "queued"]
    assert [statuses(conn, second)[n] for n in (2, 5, 6)] == ["queued", "queued", "queued"]


@pytest.mark.parametrize(
    ("graph", "cancelled", "obstacles"),
    [
        ({1: [], 2: [1]}, [1], {2: 1}),
        ({1: [], 2: [1], 3: [2], 4: [3]}, [1], {2: 1, 3: 1, 4: 1}),
        ({1: [], 2: [1], 3: [], 4: [2, 3]}, [1, 3], {2: 1, 4: 3}),
        ({1: [], 2: [], 3: [1, 2], 4: [3]}, [2, 1], {3: 1, 4: 1}),
        ({9: [], 1: [9], 2: [], 3: [2], 4: [1, 3]}, [2, 9], {1: 9, 3: 2, 4: 2}),
        ({1: [], 2: [1]}, [], {}),
    ],
    ids=["direct", "through others", "fewest steps", "lowest number", "lowest of equals", "none"],
)
def test_the_obstacle_of_a_blocked_phase_is_the_nearest(
    conn: Connection,
    graph: dict[int, list[int]],
    cancelled: list[int],
    obstacles: dict[int, int],
) -> None:
    feature = add_feature(conn, graph)
    for each in cancelled:
        become(conn, each, "cancelled")
    actual = conn.execute("select * from pgcoord_private.obstacles(%s)", [feature]).fetchall()
    assert {row["phase_number"]: row["obstacle"] for row in actual} == obstacles
    assert {row["status"] for row in actual} <= {"cancelled"}


# --- Many


def chain(conn: Connection, length: int, prerequisite: str = "n - 1", first: int = 1) -> int:
    feature = add_feature(conn, {})
    conn.execute(
        "insert into phase_queue (feature_id, phase_number, depends_on_phases)"
        f" select %s, n, case when n = %s then '[]' else jsonb_build_array({prerequisite}) end"
        " from generate_series(1, %s) as n".encode(),
        [feature, first, length],
    )
    return feature


@pytest.mark.scale
def test_a_chain_of_30000_is_blocked_and_unblocked_in_one_statement(conn: Connection) -> None:
    # So long that comparing each phase with each would outlast the timeout of the test.
    chain(conn, 30_000)
    become(conn, 1, "cancelled")
    counts = "select status, count(*) as n from phase_queue group by status order by status"
    assert [tuple(row.values()) for row in conn.execute(counts)] == [
        ("blocked", 29_999),
        ("cancelled", 1),
    ]
    become(conn, 1, "queued")
    assert [tuple(row.values()) for row in conn.execute(counts)] == [("queued", 30_000)]


def test_a_chain_of_2000_backward_edges_is_accepted(conn: Connection) -> None:
    chain(conn, 2000, "n + 1", first=2000)
    assert sum(unmet(conn).values()) == 1999
    with refused("PC005", "would wait for itself"):
        depend(conn, 2000, [1])


def test_one_phase_may_have_2000_dependents_and_2000_prerequisites(conn: Connection) -> None:
    feature = add_feature(conn, {})
    conn.execute(
        "insert into phase_queue (feature_id, phase_number, depends_on_phases)"
        " select %s, n, case n when 1 then '[]'"
        " when 2002 then (select jsonb_agg(m) from generate_series(2, 2001) as m)"
        " else '[1]' end from generate_series(1, 2002) as n",
        [feature],
    )
    become(conn, 1, "completed")
    conn.execute("update phase_queue set status = 'completed' where phase_number < 2001")
    assert unmet(conn)[2002] == 1
    become(conn, 2001, "completed")
    assert unmet(conn)[2002] == 0


# Statistics that were taken while the tables were empty make each index look like any other.
@pytest.mark.own_database
def test_phases_added_to_a_long_feature_read_no_more_for_each(conn: Connection) -> None:
    conn.execute("insert into planned_features (title) select 'f' from generate_series(1, 50)")
    conn.execute("vacuum analyze")
    added = (
        "insert into phase_queue (feature_id, phase_number, depends_on_phases)"
        " select 1, n, case when n > 1 then jsonb_build_array(n - 1) else '[]' end"
        " from generate_series(%s::integer, %s) as n"
    )
    read = [rows_read(conn, added, first, first + 199) for first in (1, 201, 401)]
    assert max(read) < 20 * 200, read
