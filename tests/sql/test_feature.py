"""Features: how they come in, what their state follows from, how they are given up and cleared."""

from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb
from support.cases import case
from support.database import (
    Connection,
    add_feature,
    add_phase,
    claim,
    one,
    refused,
    start,
    statuses,
)

PHASES = [
    {"phase_number": 1, "title": "Tables", "prompt_content": "Add them.", "priority": 10},
    {
        "phase_number": 2,
        "title": "Service",
        "depends_on_phases": [1],
        "workflow_type": "work",
        "estimated_hours": 2.5,
        "files": ["a.py"],
        "max_attempts": 3,
        "timeout_seconds": 60,
    },
    {"phase_number": 3, "depends_on_phases": None},
]


def submit(conn: Connection, feature: object) -> int:
    return int(one(conn, "select pgcoord.submit_feature(%s) as id", Jsonb(feature))["id"])


def execute(conn: Connection, feature: int) -> int:
    return int(one(conn, "select pgcoord.execute_feature(%s) as n", feature)["n"])


def cancel(conn: Connection, feature: int, reason: str | None = "no need") -> int:
    return int(one(conn, "select pgcoord.cancel_feature(%s, %s) as n", feature, reason)["n"])


def shown(conn: Connection, feature: int) -> dict[str, Any]:
    return one(conn, "select * from pgcoord.feature where id = %s", feature)


def complete(conn: Connection, feature: int) -> None:
    """Take whatever does not run as completed."""
    conn.execute("update phase_queue set status = 'completed' where feature_id = %s", [feature])


def kinds(conn: Connection) -> list[str]:
    rows = conn.execute("select kind from pgcoord.event where queue_id is null order by id")
    return [row["kind"] for row in rows]


# --- Coming in


def test_a_submitted_feature_is_stored_and_its_phases_are_queued(conn: Connection) -> None:
    feature = submit(
        conn,
        {
            "title": "Login",
            "description": "Let people in.",
            "item_type": "bug",
            "priority": 20,
            "estimated_hours": 4.5,
            "tags": ["a"],
            "phases": PHASES,
        },
    )
    row = shown(conn, feature)
    assert (row["title"], row["description"], row["item_type"]) == (
        "Login",
        "Let people in.",
        "bug",
    )
    assert (row["priority"], row["estimated_hours"], row["tags"]) == (20, 4.5, ["a"])
    assert (row["status"], row["total_phases"], row["plan"]) == ("planned", 3, PHASES)
    phases = conn.execute(
        "select depends_on_phases, priority, phase_data from phase_queue order by phase_number"
    ).fetchall()
    assert [tuple(phase.values()) for phase in phases] == [
        ([], 10, {"title": "Tables", "prompt_content": "Add them."}),
        (
            [1],
            20,
            {
                "title": "Service",
                "workflow_type": "work",
                "estimated_hours": 2.5,
                "files": ["a.py"],
                "max_attempts": 3,
                "timeout_seconds": 60,
            },
        ),
        ([], 20, {}),
    ]


def test_a_title_is_all_a_feature_needs(conn: Connection) -> None:
    feature = submit(conn, {"title": "a"})
    row = shown(conn, feature)
    assert (row["item_type"], row["priority"], row["tags"], row["plan"]) == ("feature", 50, [], [])
    nulls = dict.fromkeys(["description", "priority", "estimated_hours", "tags", "phases"])
    other = shown(conn, submit(conn, {"title": "a", **nulls}))
    own = dict.fromkeys(["id", "created_at", "updated_at", "version"])
    assert other | own == row | own


def test_phase_numbers_may_be_written_with_a_decimal_point(conn: Connection) -> None:
    # As a client that knows only floats would.
    conn.execute(
        """select pgcoord.submit_feature('{"title": "a", "priority": 1.0, "phases":
        [{"phase_number": 1.0}, {"phase_number": 2.0, "depends_on_phases": [1.0]}]}')"""
    )
    assert statuses(conn) == {1: "queued", 2: "queued"}
    assert one(conn, "select unmet from phase_queue where phase_number = 2")["unmet"] == 1


NO_FEATURES: Any = [
    [],
    "a",
    1,
    None,
    {},
    {"title": None},
    {"title": 1},
    {"title": " "},
    {"title": "a", "priority": "high"},
    {"title": "a", "priority": 1.5},
    {"title": "a", "priority": 99999999999},
    {"title": "a", "estimated_hours": "two"},
    {"title": "a", "estimated_hours": -1},
    {"title": "a", "tags": "x"},
    {"title": "a", "tags": {}},
    {"title": "a", "phases": {}},
    {"title": "a", "phases": "x"},
    {"title": "a", "phases": [1]},
    {"title": "a", "phases": [None]},
    {"title": "a", "phases": [[]]},
    {"title": "a", "phases": [{}]},
    {"title": "a", "phases": [{"phase_number": "1"}]},
    {"title": "a", "phases": [{"phase_number": None}]},
    {"title": "a", "phases": [{"phase_number": 0}]},
    {"title": "a", "phases": [{"phase_number": -1}]},
    {"title": "a", "phases": [{"phase_number": 1.5}]},
    {"title": "a", "phases": [{"phase_number": 99999999999}]},
    {"title": "a", "phases": [{"phase_number": 1, "priority": "high"}]},
    {"title": "a", "phases": [{"phase_number": 1, "priority": 1.5}]},
    {"title": "a", "phases": [{"phase_number": 1, "depends_on_phases": 1}]},
    {"title": "a", "phases": [{"phase_number": 1, "depends_on_phases": ["2"]}]},
    {"title": "a", "phases": [{"phase_number": 1, "depends_on_phases": [1]}]},
    {
        "title": "a",
        "phases": [
            {"phase_number": 1, "depends_on_phases": [2]},
            {"phase_number": 2, "depends_on_phases": [1]},
        ],
    },
]


def test_an_object_that_is_no_feature_is_refused(conn: Connection) -> None:
    for feature in NO_FEATURES:
        with case(feature):
            with refused("PC005"):
                submit(conn, feature)
            assert conn.execute("select from planned_features").fetchall() == []


@pytest.mark.parametrize(
    ("members", "sqlstate", "words"),
    [
        ({"title": 1}, "PC005", "title is 1"),
        ({"prompt_content": {}}, "PC005", "prompt_content is {}"),
        ({"workflow_type": []}, "PC005", "workflow_type is []"),
        ({"max_attempts": 0}, "PC005", "max_attempts is 0"),
        ({"timeout_seconds": "1h"}, "PC005", 'timeout_seconds is "1h"'),
        ({"phase_number": 1}, "PC002", "has phase 1 more than once"),
    ],
    ids=str,
)
def test_a_phase_of_a_feature_is_checked_like_any_other(
    conn: Connection, members: dict[str, Any], sqlstate: str, words: str
) -> None:
    with refused(sqlstate, words):
        submit(
            conn, {"title": "a", "phases": [{"phase_number": 1}, {"phase_number": 2, **members}]}
        )
    assert conn.execute("select from planned_features").fetchall() == []


def test_a_nul_in_a_feature_is_refused(conn: Connection) -> None:
    with refused("22P05"):
        submit(conn, {"title": "a\0b"})


def test_a_feature_may_be_inserted_with_nulls_and_empty_values(
    conn: Connection, logins: dict[str, str]
) -> None:
    """As clients do that name every column of a model."""
    conn.execute(sql.SQL("set session authorization {}").format(sql.Identifier(logins["client"])))
    conn.execute(
        "insert into planned_features (id, title, item_type, priority, tags, plan, created_by,"
        " created_at, updated_at) values (null, 'a', null, null, null, 'null', '', null, null),"
        " (default, 'b', 'bug', 10, '{}', '{}', null, now(), now())"
    )
    conn.execute("reset session authorization")
    rows = conn.execute(
        "select id, item_type, priority, tags, plan, created_by, created_at is not null as made"
        " from planned_features order by id"
    ).fetchall()
    common = {"tags": [], "created_by": logins["client"], "made": True}
    assert rows == [
        {"id": 1, "item_type": "feature", "priority": 50, "plan": None, **common},
        {"id": 2, "item_type": "bug", "priority": 10, "plan": [], **common},
    ]


@pytest.mark.parametrize(
    ("column", "value", "sqlstate", "words"),
    [
        ("title", " ", "PC005", "feature 1 has no title"),
        ("title", None, "PC005", "feature 1 has no title"),
        ("priority", None, "PC005", "priority of feature 1 cannot be null"),
        ("tags", Jsonb({"a": 1}), "PC005", "tags of feature 1 is not an array"),
        ("plan", Jsonb({"a": 1}), "PC005", "the plan of feature 1 is not an array"),
        ("plan", Jsonb("x"), "PC005", "the plan of feature 1 is not an array"),
        ("estimated_hours", -1, "PC005", "feature 1 cannot take -1 hours"),
        ("max_cost_usd", 0, "PC005", "the budget of feature 1 cannot be 0"),
    ],
)
def test_the_table_refuses_rows_that_are_no_feature(
    conn: Connection, column: str, value: object, sqlstate: str, words: str
) -> None:
    feature = add_feature(conn, {})
    with refused(sqlstate, words):
        conn.execute(
            f"update planned_features set {column} = %s where id = %s".encode(), [value, feature]
        )


@pytest.mark.parametrize(
    "plan", [[{}], [{"phase_number": "1"}], [{"phase_number": 1, "priority": "x"}]]
)
def test_a_malformed_stored_plan_is_refused_at_its_execution(
    conn: Connection, plan: object
) -> None:
    feature = add_feature(conn, {})
    conn.execute("update planned_features set plan = %s", [Jsonb(plan)])
    with refused("PC005", 'element 1 of "phases"'):
        execute(conn, feature)
    assert statuses(conn) == {}


def test_a_stored_plan_is_executed_once(conn: Connection) -> None:
    feature = add_feature(conn, {})
    conn.execute("update planned_features set plan = %s, priority = 7", [Jsonb(PHASES)])
    assert execute(conn, feature) == 3
    assert execute(conn, feature) == 0
    assert statuses(conn) == {1: "queued", 2: "queued", 3: "queued"}
    rows = conn.execute("select priority from phase_queue order by phase_number").fetchall()
    assert [row["priority"] for row in rows] == [10, 7, 7]


def test_a_feature_without_a_plan_cannot_be_executed(conn: Connection) -> None:
    for feature in (add_feature(conn, {1: []}), submit(conn, {"title": "a"})):
        with refused("PC002", f"feature {feature} has no plan"):
            execute(conn, feature)


@pytest.mark.parametrize("function", ["execute_feature(99)", "cancel_feature(99, 'x')"])
def test_a_feature_that_does_not_exist_is_named(conn: Connection, function: str) -> None:
    with refused("PC001", "there is no feature 99"):
        conn.execute(f"select pgcoord.{function}".encode())


@pytest.mark.parametrize("given", [1, 104])
def test_an_id_given_by_hand_moves_the_sequence_on(conn: Connection, given: int) -> None:
    conn.execute("insert into planned_features (id, title) values (%s, 'a')", [given])
    assert add_feature(conn, {}) == given + 1
    conn.execute(
        "insert into planned_features (id, title) values (%s, 'a'), (%s, 'b')",
        [given + 20, given + 10],
    )
    assert add_feature(conn, {}) == given + 21


def test_the_last_id_of_all_leaves_others_to_generate(conn: Connection) -> None:
    conn.execute("insert into planned_features (id, title) values (2147483647, 'the last')")
    row = conn.execute("insert into planned_features (title) values ('a') returning id").fetchone()
    assert row == {"id": 1}


def test_an_id_below_the_last_one_leaves_the_sequence(conn: Connection) -> None:
    conn.execute("insert into planned_features (id, title) values (50, 'a')")
    conn.execute("insert into planned_features (id, title) values (20, 'a')")
    assert add_feature(conn, {}) == 51


def test_a_feature_keeps_its_id(conn: Connection) -> None:
    feature = add_feature(conn, {})
    with refused("PC008", f"feature {feature} keeps its id"):
        conn.execute("update planned_features set id = id + 1")


# --- What a feature is


def test_the_status_of_a_feature_follows_from_its_phases(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {})
    assert shown(conn, feature)["status"] == "planned"
    for number in (1, 2, 3):
        add_phase(conn, feature, number, [number - 1] if number > 1 else [])
    row = shown(conn, feature)
    assert (row["status"], row["started_at"], row["finished_at"]) == ("planned", None, None)
    [queue_id] = claim(conn, epoch)
    row = shown(conn, feature)
    assert (row["status"], row["total_phases"], row["phases_running"]) == ("in_progress", 3, 1)
    assert row["started_at"]
    start(conn, epoch, queue_id)
    conn.execute("select pgcoord_private.end_attempt(id, 1) from pgcoord.attempt")
    row = shown(conn, feature)
    assert (row["status"], row["phases_failed"], row["phases_blocked"]) == ("in_progress", 1, 2)
    complete(conn, feature)
    row = shown(conn, feature)
    assert (row["status"], row["phases_completed"]) == ("completed", 3)
    assert row["finished_at"] >= row["started_at"]


def test_a_phase_added_to_a_completed_feature_puts_the_feature_in_progress_again(
    conn: Connection,
) -> None:
    feature = add_feature(conn, {1: []}, status="completed")
    assert shown(conn, feature)["status"] == "completed"
    add_phase(conn, feature, 2, [1])
    row = shown(conn, feature)
    assert (row["status"], row["finished_at"]) == ("in_progress", None)
    assert statuses(conn) == {1: "completed", 2: "queued"}


def test_a_change_of_a_feature_is_stamped_and_logged(conn: Connection) -> None:
    feature = add_feature(conn, {})
    row = one(conn, "update planned_features set title = 'b' returning *")
    assert row["updated_at"] > row["created_at"]
    conn.execute("select pgcoord.pause(%s, 'lunch')", [feature])
    conn.execute("select pgcoord.resume(%s)", [feature])
    cancel(conn, feature)
    conn.execute("delete from planned_features")
    assert kinds(conn) == [
        "feature_inserted",
        "feature_changed",
        "feature_paused",
        "feature_resumed",
        "feature_cancelled",
        "feature_deleted",
    ]


# --- Giving it up


@pytest.mark.parametrize("by_hand", [False, True], ids=["function", "by hand"])
def test_cancelling_a_feature_cancels_its_unfinished_phases(
    conn: Connection, epoch: int, by_hand: bool
) -> None:
    feature = add_feature(conn, {1: [], 2: [], 3: [], 4: [1], 5: [3], 6: [5]})
    start(conn, epoch, claim(conn, epoch)[0])
    conn.execute("select pgcoord_private.end_attempt(id, 1) from pgcoord.attempt where slot = 3")
    add_phase(conn, feature, 7, status="completed")
    other = add_feature(conn, {1: []})
    assert statuses(conn, feature)[6] == "blocked"

    if by_hand:
        conn.execute(
            "update planned_features set cancelled_at = now(), cancelled_reason = 'no need'"
            " where id = %s",
            [feature],
        )
    else:
        assert cancel(conn, feature) == 5
    assert shown(conn, feature)["status"] == "cancelled"
    assert statuses(conn, feature) == {
        1: "running",
        2: "ready",
        3: "failed",
        4: "cancelled",
        5: "cancelled",
        6: "cancelled",
        7: "completed",
    }
    rows = conn.execute(
        "select ending, ending_reason from pgcoord.attempt order by slot"
    ).fetchall()
    assert [tuple(row.values()) for row in rows] == [
        ("cancelled", "no need"),
        ("cancelled", "no need"),
        (None, None),
    ]
    conn.execute(
        "select pgcoord_private.end_attempt(id, 143) from pgcoord.attempt where ended_at is null"
    )
    assert [statuses(conn, feature)[n] for n in (1, 2)] == ["cancelled", "cancelled"]
    assert statuses(conn, other) == {1: "queued"}
    reasons = conn.execute(
        "select distinct reason from pgcoord.event where to_status = 'cancelled'"
    ).fetchall()
    assert [row["reason"] for row in reasons] == ["no need"]


def test_a_feature_cancelled_twice_is_cancelled_once(conn: Connection) -> None:
    feature = add_feature(conn, {1: []})
    assert cancel(conn, feature, None) == 1
    was = shown(conn, feature)
    assert cancel(conn, feature, "again") == 0
    assert shown(conn, feature) == was
    assert kinds(conn).count("feature_cancelled") == 1


def test_a_completed_feature_cannot_be_cancelled(conn: Connection) -> None:
    feature = add_feature(conn, {1: [], 2: []}, status="completed")
    with refused("PC002", f"feature {feature} is completed"):
        cancel(conn, feature)
    with refused("PC002", f"feature {feature} is completed"):
        conn.execute("update planned_features set cancelled_at = now()")
    assert shown(conn, feature)["status"] == "completed"
    add_phase(conn, feature, 3)
    assert cancel(conn, feature) == 1


def test_nothing_can_be_added_to_a_cancelled_feature(conn: Connection) -> None:
    feature = add_feature(conn, {1: []})
    cancel(conn, feature)
    with refused("PC002", f"feature {feature} is cancelled", "queue-1-2"):
        add_phase(conn, feature, 2)
    conn.execute("update planned_features set plan = '[{\"phase_number\": 3}]'")
    conn.execute("delete from phase_queue")
    with refused("PC002", f"feature {feature} is cancelled"):
        execute(conn, feature)


def test_retrying_a_phase_takes_its_feature_up_again(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {1: [], 2: [1]})
    cancel(conn, feature)
    conn.execute("select pgcoord.retry_phase('queue-1-1')")
    row = shown(conn, feature)
    assert (row["status"], row["cancelled_at"], row["cancelled_reason"]) == ("planned", None, None)
    assert kinds(conn)[-1] == "feature_taken_up"
    assert claim(conn, epoch) == ["queue-1-1"]


def test_5000_phases_are_cancelled_right_after_one_was_completed(conn: Connection) -> None:
    # The session has kept its plans for one row by then.
    feature = add_feature(conn, {})
    conn.execute(
        "insert into phase_queue (feature_id, phase_number, depends_on_phases)"
        " select %s, n, case when n < 3 then '[]' else jsonb_build_array(n - 2) end"
        " from generate_series(1, 5001) as n",
        [feature],
    )
    for number in range(1, 9):
        conn.execute(
            "update phase_queue set status = 'completed' where phase_number = %s", [number]
        )
    assert cancel(conn, feature) == 4993
    counts = one(conn, "select count(*) as n from phase_queue where status = 'cancelled'")
    assert counts["n"] == 4993


# --- Clearing away


def prune(conn: Connection, older_than: str = "1 day") -> int:
    return int(one(conn, "select pgcoord.prune(%s) as n", older_than)["n"])


def test_prune_removes_finished_features_with_their_history(conn: Connection, epoch: int) -> None:
    done = add_feature(conn, {1: []})
    claim(conn, epoch)
    conn.execute("select pgcoord.complete_phase('queue-1-1')")
    given_up = add_feature(conn, {1: []})
    cancel(conn, given_up)
    untouched = {
        add_feature(conn, {}),
        add_feature(conn, {1: []}),
        add_feature(conn, {1: [], 2: []}, status="failed"),
    }
    assert prune(conn) == 0
    assert prune(conn, "0") == 2
    assert {row["id"] for row in conn.execute("select id from planned_features")} == untouched
    for table in ("phase_queue", "pgcoord.event"):
        left = conn.execute(
            f"select from {table} where feature_id in (%s, %s)".encode(), [done, given_up]
        )
        assert left.fetchall() == []
    assert conn.execute("select from pgcoord.attempt").fetchall() == []


def test_prune_wants_a_unit(conn: Connection) -> None:
    add_feature(conn, {1: []}, status="completed")
    conn.execute("update phase_queue set finished_timestamp = now() - interval '1 hour'")
    no_interval = "it is not an interval"
    for age, words in {
        **dict.fromkeys(("30", " 0.5 ", "+7"), "it has no unit"),
        **dict.fromkeys(("soon", "", "90 dayz", "99999999999999 days"), no_interval),
    }.items():
        with pytest.raises(psycopg.Error, match=words) as caught:
            conn.execute(f"select pgcoord.prune('{age}')".encode())
        assert caught.value.sqlstate == "PC005"
    for age, removed in (("null::interval", None), ("'2 hours'", 0), ("interval '2 h'", 0)):
        if removed is None:
            with pytest.raises(psycopg.Error, match="null is not a valid age"):
                conn.execute(f"select pgcoord.prune({age})".encode())
        else:
            assert one(conn, f"select pgcoord.prune({age}) as n") == {"n": removed}
    assert one(conn, "select pgcoord.prune('0') as n") == {"n": 1}


def test_prune_goes_by_when_the_last_phase_ended(conn: Connection) -> None:
    add_feature(conn, {1: [], 2: []}, status="completed")
    conn.execute("update phase_queue set finished_timestamp = now() - interval '40 days'")
    conn.execute(
        "update phase_queue set finished_timestamp = now() - interval '20 days'"
        " where phase_number = 2"
    )
    assert prune(conn, "30 days") == 0
    assert prune(conn, "10 days") == 1


def test_prune_keeps_a_cancelled_feature_until_its_processes_have_ended(
    conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {1: []})
    claim(conn, epoch)
    cancel(conn, feature)
    assert prune(conn, "0") == 0
    conn.execute("select pgcoord_private.end_attempt(id, 143) from pgcoord.attempt")
    assert prune(conn, "0") == 1


def test_prune_removes_a_cancelled_feature_of_which_a_phase_had_failed(
    conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {1: [], 2: [1]})
    claim(conn, epoch)
    conn.execute("select pgcoord_private.end_attempt(id, 1) from pgcoord.attempt")
    assert prune(conn, "0") == 0
    cancel(conn, feature)
    assert statuses(conn) == {1: "failed", 2: "cancelled"}
    assert prune(conn, "0") == 1


@pytest.mark.parametrize(
    "statement", ["update pgcoord.event set reason = 'x'", "delete from pgcoord.event"]
)
def test_history_cannot_be_rewritten(conn: Connection, statement: str) -> None:
    add_feature(conn, {1: []})
    with refused("PC008", "is history"):
        conn.execute(statement.encode())


def test_numbers_may_be_bigint_and_prerequisites_an_array(conn: Connection) -> None:
    """As Java, ADBC and all drivers send them that know the types of their own language alone."""
    row = one(conn, "select * from pgcoord.add_feature('a', 'b', 10::bigint, array['c'])")
    assert (row["id"], row["priority"], row["tags"]) == (1, 10, ["c"])
    one(conn, "select * from pgcoord.add_phase(%s::bigint, 1::bigint)", row["id"])
    for array in ("array[1]::integer[]", "array[1]::bigint[]", "'{1}'"):
        with conn.transaction(force_rollback=True):
            found = one(
                conn, f'select * from pgcoord.add_phase(1, 2, {array}, \'{{"title": "d"}}\')'
            )
            assert (found["depends_on_phases"], found["unmet"]) == ([1], 1)
    with refused("PC005", "names phase 1 twice"):
        conn.execute("select pgcoord.add_phase(1, 2, array[1, 1])")
    for call in (
        "pause(1::bigint)",
        "resume(1::bigint)",
        "set_slots(2::bigint)",
        "set_priority('queue-1-1', 10::bigint)",
        "execute_feature(1::bigint)",
        "feature_object(1::bigint)",
        "forecast(array[1]::bigint[])",
        "cancel_feature(1::bigint, 'no')",
    ):
        if "execute" not in call:
            one(conn, f"select * from pgcoord.{call}")
    with refused("PC001", "no feature 3000000000"):
        conn.execute("select pgcoord.pause(3000000000)")
    with refused("PC005", "cannot be 3000000000"):
        conn.execute("select pgcoord.set_priority('queue-1-1', 3000000000)")


def test_every_function_takes_and_returns_types_of_each_client(conn: Connection) -> None:
    """No integer, which JDBC and ADBC never send, and no void, at which some readers fail."""
    found = conn.execute(
        "select p.proname as name from pg_proc as p where p.pronamespace = 'pgcoord'::regnamespace"
        " and (p.prorettype = 'void'::regtype or 'integer'::regtype = any (p.proargtypes))"
    ).fetchall()
    assert [row["name"] for row in found] == ["exit_attempt"]  # for jobs, which write their own SQL


def test_a_feature_of_this_very_transaction_gets_its_phases_under_any_isolation(
    conn: Connection,
) -> None:
    """postgres_fdw is always REPEATABLE READ."""
    add_feature(conn, {})
    with conn.transaction():
        conn.execute("set transaction isolation level repeatable read")
        with conn.transaction():
            feature = add_feature(conn, {1: [], 2: [1]})
        add_phase(conn, feature, 3, [1], status="failed")
        add_phase(conn, feature, 4, [3])
        conn.execute("update planned_features set title = 'mine, but older' where id = 1")
        with refused("PC009", "dblink"), conn.transaction():
            add_phase(conn, 1, 1)
    assert statuses(conn, feature) == {1: "queued", 2: "queued", 3: "failed", 4: "blocked"}


def test_a_wait_for_an_open_insert_names_its_session(conn: Connection, dsn: str) -> None:
    feature = add_feature(conn, {1: []})
    with psycopg.connect(dsn) as other:
        other.execute(
            "insert into phase_queue (feature_id, phase_number) values (%s, 2)", [feature]
        )
        conn.execute("set lock_timeout = '50ms'")
        words = f"feature {feature} is being changed by process {other.info.backend_pid}"
        for statement in (
            "insert into phase_queue (feature_id, phase_number) values (1, 3)",
            "select pgcoord.pause(1)",
            "select pgcoord.skip_phase('queue-1-1', 'no')",
            "select pgcoord.cancel_feature(1, 'no')",
        ):
            with refused("55P03", words, "pg_terminate_backend"):
                conn.execute(statement)
        assert one(conn, "show lock_timeout") == {"lock_timeout": "50ms"}
