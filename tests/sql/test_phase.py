"""Phases: how they come in, which moves are allowed, what a report does, how they go."""

from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb
from support.cases import case
from support.database import (
    MOVES,
    Connection,
    add_feature,
    add_phase,
    as_user,
    claim,
    one,
    phase,
    refused,
    start,
    statuses,
)

STATES = ("queued", "ready", "running", "completed", "failed", "blocked", "cancelled")

# What an UPDATE by hand does of that; all else is refused. "asked": the end is asked for, and comes
# when the process is gone.
BY_HAND = {
    ("queued", "completed"): "moved",
    ("queued", "cancelled"): "moved",
    ("ready", "completed"): "moved",
    ("ready", "failed"): "asked",
    ("ready", "cancelled"): "asked",
    ("running", "completed"): "moved",
    ("running", "failed"): "asked",
    ("running", "cancelled"): "asked",
    ("blocked", "completed"): "moved",
    ("blocked", "cancelled"): "moved",
    ("failed", "queued"): "moved",
    ("failed", "completed"): "moved",
    ("failed", "cancelled"): "moved",
    ("cancelled", "queued"): "moved",
    ("cancelled", "completed"): "moved",
}

COMPLETE = "select pgcoord.complete_phase(%s)"
FAIL = "select pgcoord.fail_phase(%s, 'no luck')"
RETRY = "select pgcoord.retry_phase(%s, 'again')"
SKIP = "select pgcoord.skip_phase(%s, 'done by hand')"
CANCEL = "select pgcoord.cancel_phase(%s, 'not wanted')"

# What each function does to a phase in each state: the state it has then, or how it is refused.
BY_FUNCTION = {
    COMPLETE: {
        "queued": "PC002",
        "ready": "completed",
        "running": "completed",
        "completed": "completed",
        "failed": "PC004",
        "blocked": "PC002",
        "cancelled": "PC004",
    },
    FAIL: {
        "queued": "PC002",
        "ready": "asked",
        "running": "asked",
        "completed": "PC004",
        "failed": "failed",
        "blocked": "PC002",
        "cancelled": "PC004",
    },
    RETRY: {
        "queued": "PC002",
        "ready": "PC002",
        "running": "PC002",
        "completed": "PC002",
        "failed": "queued",
        "blocked": "PC002",
        "cancelled": "queued",
    },
    SKIP: {
        "queued": "completed",
        "ready": "PC002",
        "running": "PC002",
        "completed": "completed",
        "failed": "completed",
        "blocked": "completed",
        "cancelled": "completed",
    },
    CANCEL: {
        "queued": "cancelled",
        "ready": "asked",
        "running": "asked",
        "completed": "PC002",
        "failed": "cancelled",
        "blocked": "cancelled",
        "cancelled": "cancelled",
    },
}


def phase_in(conn: Connection, epoch: int, status: str) -> str:
    """A phase that came to its status the way phases do."""
    feature = add_feature(conn, {1: [], 2: [1]} if status == "blocked" else {1: []})
    queue_id = f"queue-{feature}-1"
    if status == "blocked":
        conn.execute(CANCEL, [queue_id])
        return f"queue-{feature}-2"
    if status == "cancelled":
        conn.execute(CANCEL, [queue_id])
    elif status != "queued":
        claim(conn, epoch)
        if status != "ready":
            start(conn, epoch, queue_id)
        if status == "completed":
            conn.execute(COMPLETE, [queue_id])
        elif status == "failed":
            end(conn, queue_id, 1)
    return queue_id


def end(conn: Connection, queue_id: str, exit_code: int) -> None:
    """Say that the process of the current attempt is gone."""
    conn.execute(
        "select pgcoord_private.end_attempt(id, %s) from pgcoord.attempt"
        " where queue_id = %s order by id desc limit 1",
        [exit_code, queue_id],
    )


def attempts(conn: Connection, queue_id: str) -> list[dict[str, Any]]:
    return conn.execute(
        "select * from pgcoord.attempt where queue_id = %s order by number", [queue_id]
    ).fetchall()


def events(conn: Connection, queue_id: str) -> list[tuple[str, str | None, str | None]]:
    rows = conn.execute(
        "select kind, from_status, to_status from pgcoord.event where queue_id = %s order by id",
        [queue_id],
    ).fetchall()
    return [(row["kind"], row["from_status"], row["to_status"]) for row in rows]


def everything(conn: Connection, queue_id: str) -> object:
    return phase(conn, queue_id), attempts(conn, queue_id), events(conn, queue_id)


# --- Coming in


def test_four_columns_are_a_complete_phase(conn: Connection) -> None:
    feature = add_feature(conn, {})
    row = one(
        conn,
        "insert into phase_queue (feature_id, phase_number, depends_on_phases, phase_data)"
        " values (%s, 7, '[]', '{}') returning *",
        feature,
    )
    assert row["queue_id"] == f"queue-{feature}-7"
    assert row["status"] == "queued"
    assert row["priority"] == 50
    assert row["queue_position"] == 1
    assert (
        row["created_at"]
        == row["updated_at"]
        == one(conn, "select %s as at", row["created_at"])["at"]
    )
    assert row["eligible_at"]
    assert (row["slot"], row["attempt"], row["unmet"], row["held"]) == (None, 0, 0, False)


def test_nulls_fill_themselves(conn: Connection) -> None:
    feature = add_feature(conn, {})
    row = one(
        conn,
        "insert into phase_queue values (null, %s, 1, null, null, null, null, null, null, null,"
        " null, null, null, null, null, null) returning *",
        feature,
    )
    assert row["queue_id"] == f"queue-{feature}-1"
    assert (row["status"], row["depends_on_phases"], row["phase_data"]) == ("queued", [], {})
    assert row["priority"] == 50
    assert None not in (row["queue_position"], row["created_at"], row["updated_at"])


def test_the_place_in_line_is_one_sequence_over_all_features(conn: Connection) -> None:
    first, second = add_feature(conn, {1: []}), add_feature(conn, {1: []})
    add_phase(conn, first, 2)
    rows = conn.execute(
        "select feature_id, phase_number from phase_queue order by queue_position"
    ).fetchall()
    assert [tuple(row.values()) for row in rows] == [(first, 1), (second, 1), (first, 2)]


def test_an_insert_may_name_every_column_but_not_contradict_what_is_derived(
    conn: Connection,
) -> None:
    feature = add_feature(conn, {})
    empty = {"slot": None, "attempt": None, "attempts_used": 0, "unmet": 0, "held": False}
    row = phase(conn, add_phase(conn, feature, 2, [1], eligible_at=None, queue_id="", **empty))
    assert (row["queue_id"], row["unmet"], row["eligible_at"]) == (f"queue-{feature}-2", 1, None)
    data = {"title": "a", "workflow_type": "b"}
    add_phase(conn, feature, 4, [1], unmet=1, phase_data=Jsonb(data), workflow_type="b")
    for column, value in {
        "slot": 2,
        "attempt": 5,
        "attempts_used": 4,
        "unmet": 2,
        "held": True,
        "eligible_at": "now",
        "workflow_type": "another",
    }.items():
        with refused("PC008", f"phase queue-{feature}-3", column):
            add_phase(conn, feature, 3, [1], **{column: value})


def test_an_update_may_name_every_column_but_change_none_that_is_derived(
    conn: Connection, epoch: int
) -> None:
    queue_id = phase_in(conn, epoch, "running")
    row = phase(conn, queue_id)
    row |= {"phase_data": Jsonb({"workflow_type": "b"}), "depends_on_phases": Jsonb([])}
    save = sql.SQL("update phase_queue set {}").format(
        sql.SQL(", ").join(
            sql.SQL("{} = {}").format(sql.Identifier(each), sql.Placeholder(each)) for each in row
        )
    )
    conn.execute(save, row)
    assert phase(conn, queue_id)["workflow_type"] == "b"
    for column, value in {"workflow_type": "c", "slot": 2, "adw_id": "a", "held": True}.items():
        with refused("PC008", f"{column} of phase {queue_id}"):
            conn.execute(save, row | {"workflow_type": "b", column: value})


@pytest.mark.parametrize("status", STATES)
def test_a_phase_may_be_inserted_in_any_status(conn: Connection, status: str) -> None:
    feature = add_feature(conn, {})
    row = phase(conn, add_phase(conn, feature, 1, status=status))
    assert row["status"] == ("queued" if status in ("ready", "blocked") else status)
    assert (row["slot"] is not None) == (status == "running")
    assert (row["finished_timestamp"] is not None) == (
        status in ("completed", "failed", "cancelled")
    )


def test_a_phase_inserted_as_blocked_is_blocked_where_its_prerequisite_failed(
    conn: Connection,
) -> None:
    feature = add_feature(conn, {})
    add_phase(conn, feature, 1, status="failed")
    add_phase(conn, feature, 2, [1], status="blocked")
    add_phase(conn, feature, 3, [2])
    assert statuses(conn) == {1: "failed", 2: "blocked", 3: "blocked"}


def test_a_phase_inserted_as_running_gets_the_lowest_free_slot_and_an_external_attempt(
    conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {1: []})
    assert claim(conn, epoch) == [f"queue-{feature}-1"]
    queue_id = add_phase(conn, feature, 2, status="running", adw_id="adw-ghi789")
    assert phase(conn, queue_id)["slot"] == 2
    [attempt] = attempts(conn, queue_id)
    assert (attempt["number"], attempt["adw_id"], attempt["external"]) == (1, "adw-ghi789", True)
    assert attempt["started_at"]


def test_a_phase_inserted_as_running_without_adw_id_gets_one(conn: Connection) -> None:
    queue_id = add_phase(conn, add_feature(conn, {}), 1, status="running")
    [attempt] = attempts(conn, queue_id)
    assert attempt["adw_id"] == phase(conn, queue_id)["adw_id"]
    assert attempt["adw_id"].startswith("adw-")


def test_a_fourth_running_phase_is_refused(conn: Connection) -> None:
    feature = add_feature(conn, {1: [], 2: [], 3: []}, status="running")
    with refused("PC006", "no slot is free", f"queue-{feature}-4", "3 of 3"):
        add_phase(conn, feature, 4, status="running")
    with refused("PC006"):
        conn.execute(
            "insert into phase_queue (feature_id, phase_number, status)"
            " select %s, n, 'running' from generate_series(4, 5) as n",
            [feature],
        )
    assert statuses(conn) == {1: "running", 2: "running", 3: "running"}


def test_several_running_phases_of_one_insert_get_different_slots(conn: Connection) -> None:
    feature = add_feature(conn, {})
    conn.execute(
        "insert into phase_queue (feature_id, phase_number, status)"
        " select %s, n, 'running' from generate_series(1, 3) as n",
        [feature],
    )
    rows = conn.execute("select slot from phase_queue order by phase_number").fetchall()
    assert [row["slot"] for row in rows] == [1, 2, 3]


@pytest.mark.parametrize("prerequisite", ["queued", "failed", "cancelled", "running", None])
def test_a_running_phase_is_refused_before_its_prerequisites(
    conn: Connection, prerequisite: str | None
) -> None:
    feature = add_feature(conn, {})
    if prerequisite:
        add_phase(conn, feature, 1, status=prerequisite)
    with refused("PC002", "prerequisite 1 is not completed"):
        add_phase(conn, feature, 2, [1], status="running")


NO_PHASES: Any = [
    ({"phase_number": 0}, "PC005", "cannot have a phase 0"),
    ({"phase_number": None}, "PC005", "cannot have a phase null"),
    ({"feature_id": 999}, "23503", "phase_queue_feature_exists"),
    ({"feature_id": None}, "PC005", "feature null cannot have a phase 1"),
    ({"status": "QUEUED"}, "PC005", "cannot have the status 'QUEUED'"),
    ({"status": "done"}, "PC005", "cannot have the status 'done'"),
    ({"phase_data": Jsonb([1])}, "PC005", "-1 is [1], a JSON array"),
    ({"phase_data": Jsonb('{"title": "a"}')}, "PC005", "a JSON string", "encoded twice"),
    *(
        ({"phase_data": Jsonb({member: value})}, "PC005", f"-1: {member} is {value}, a JSON")
        for member, value in (
            ("title", 1),
            ("prompt_content", []),
            ("workflow_type", {}),
            *(("max_attempts", n) for n in (0, -1, 1.5, 1_000_001)),
            *(("timeout_seconds", n) for n in (0, -1, 1000000000)),
        )
    ),
    ({"phase_data": Jsonb({"max_attempts": "2"})}, "PC005", "whole number"),
    ({"phase_data": Jsonb({"timeout_seconds": 1e-300})}, "PC005", "number of seconds"),
    ({"depends_on_phases": Jsonb("[1]")}, "PC005", "a JSON string", "encoded twice"),
    ({"depends_on_phases": Jsonb({"1": 2})}, "PC005", "a JSON object", "such as [1, 3]"),
    *(
        ({column: "infinity"}, "PC005", "cannot have a time of infinity")
        for column in ("created_at", "updated_at", "retry_at")
    ),
    ({"status": "running", "started_timestamp": "infinity"}, "PC005", "a time of infinity"),
    ({"status": "running", "ready_timestamp": "-infinity"}, "PC005", "a time of -infinity"),
    ({"status": "completed", "finished_timestamp": "10000-01-02"}, "PC005", "of 10000-01-02"),
]


def test_an_invalid_phase_is_refused(conn: Connection) -> None:
    for columns, sqlstate, *words in NO_PHASES:
        with case(columns, sqlstate, words):
            values = {"feature_id": add_feature(conn, {}), "phase_number": 1, **columns}
            with refused(sqlstate, *words):
                conn.execute(
                    sql.SQL("insert into phase_queue ({}) values ({})").format(
                        sql.SQL(", ").join(map(sql.Identifier, values)),
                        sql.SQL(", ").join(sql.Placeholder() * len(values)),
                    ),
                    list(values.values()),
                )
            assert statuses(conn) == {}


@pytest.mark.parametrize("retry_at", ["infinity", "-infinity", "12000-01-01"])
def test_an_invalid_retry_time_is_refused(conn: Connection, retry_at: str) -> None:
    add_feature(conn, {1: []})
    with refused("PC005", f"phase queue-1-1 cannot have a time of {retry_at}"):
        conn.execute("update phase_queue set retry_at = %s", [retry_at])


def test_only_a_queued_phase_has_a_retry_time(conn: Connection) -> None:
    feature = add_feature(conn, {1: []})
    for status in ("completed", "running", "failed"):
        with refused("PC005", f"phase queue-1-2 is {status}: it cannot have a retry_at"):
            add_phase(conn, feature, 2, status=status, retry_at="2030-01-01")
    conn.execute("select pgcoord.skip_phase('queue-1-1', 'x')")
    with refused("PC005", "phase queue-1-1 is completed: it cannot have a retry_at"):
        conn.execute("update phase_queue set retry_at = now()")


def test_a_phase_that_exists_already_is_refused(conn: Connection) -> None:
    feature = add_feature(conn, {1: []})
    with refused("23505", f"feature {feature} has a phase 1 already, which is queued"):
        conn.execute("select pgcoord.add_phase(%s, 1)", [feature])
    with refused("PC001", "there is no feature 99"):
        conn.execute("select pgcoord.add_phase(99, 1)")
    with refused("23505", f"queue-{feature}-1"):
        add_phase(conn, feature, 1)
    with refused("23505", "phase_queue_phase_is_unique"):
        add_phase(conn, feature, 1, queue_id="another-name")


@pytest.mark.parametrize(
    "text",
    ['it\'s "quoted"', "{title} {{x}} %s %(a)s", "two\nlines\ttab", "ü→∀🙂", "", "x" * 5_000_000],
    ids=["quotes", "braces", "lines", "unicode", "empty", "5 MB"],
)
def test_texts_come_out_as_they_went_in(conn: Connection, epoch: int, text: str) -> None:
    title = text[:1000]
    data = {"title": title, "prompt_content": text}
    queue_id = add_phase(conn, add_feature(conn, {}), 1, phase_data=Jsonb(data))
    assert phase(conn, queue_id)["phase_data"] == data
    row = one(conn, "select title, prompt from pgcoord_private.claim_phases(%s)", epoch)
    assert row == {"title": title, "prompt": text}


def test_a_nul_in_a_text_is_refused(conn: Connection) -> None:
    feature = add_feature(conn, {})
    with refused("22P05"):
        add_phase(conn, feature, 1, phase_data=Jsonb({"title": "a\0b"}))


def test_20000_phases_go_in_with_one_statement(conn: Connection) -> None:
    feature = add_feature(conn, {})
    conn.execute(
        "insert into phase_queue (feature_id, phase_number, depends_on_phases)"
        " select %s, n, case when n = 1 then '[]' else jsonb_build_array(n - 1) end"
        " from generate_series(1, 20000) as n",
        [feature],
    )
    counts = one(
        conn,
        "select count(*) as phases, count(eligible_at) as eligible, sum(unmet) as unmet"
        " from phase_queue",
    )
    assert counts == {"phases": 20000, "eligible": 1, "unmet": 19999}


# --- Moves


def test_a_phase_may_move_as_the_design_says(conn: Connection) -> None:
    rows = conn.execute(
        "select before, after from unnest(%(states)s::text[]) as before,"
        " unnest(%(states)s::text[]) as after where pgcoord_private.may_move(before, after)",
        {"states": list(STATES)},
    ).fetchall()
    actual = {(row["before"], row["after"]) for row in rows}
    assert actual == {(before, after) for before in STATES for after in MOVES[before]}


@pytest.mark.parametrize("before", STATES)
def test_an_update_by_hand_moves_a_phase_asks_for_its_end_or_is_refused(
    conn: Connection, epoch: int, before: str
) -> None:
    conn.execute("select pgcoord.set_slots(20)")
    for after in STATES:
        with case(after):
            queue_id = phase_in(conn, epoch, before)
            row, tries, log = (
                phase(conn, queue_id),
                attempts(conn, queue_id),
                events(conn, queue_id),
            )
            assert row["status"] == before
            update = "update phase_queue set status = %s where queue_id = %s"
            outcome = "same" if before == after else BY_HAND.get((before, after), "refused")

            if outcome == "refused":
                with refused("PC002", queue_id, f"is {before}", "cannot"):
                    conn.execute(update, [after, queue_id])
            else:
                conn.execute(update, [after, queue_id])

            now = phase(conn, queue_id)
            if outcome in ("same", "refused"):
                assert now | {"updated_at": None} == row | {"updated_at": None}
                assert (attempts(conn, queue_id), events(conn, queue_id)) == (tries, log)
            elif outcome == "asked":
                assert now | {"updated_at": None} == row | {"updated_at": None}
                [attempt] = attempts(conn, queue_id)
                assert (attempt["ending"], attempt["outcome"]) == (after, None)
                assert events(conn, queue_id) == [*log, ("attempt_ending", None, None)]
            else:
                assert now["status"] == after
                assert now["slot"] is None
                assert (now["finished_timestamp"] is None) == (after == "queued")
                assert events(conn, queue_id) == [*log, ("phase_moved", before, after)]
                assert all(attempt["ended_at"] for attempt in attempts(conn, queue_id))
                if before in ("ready", "running"):
                    assert attempts(conn, queue_id)[0]["outcome"] == after


@pytest.mark.parametrize("function", BY_FUNCTION)
def test_a_function_moves_a_phase_asks_for_its_end_or_is_refused(
    conn: Connection, epoch: int, function: str
) -> None:
    conn.execute("select pgcoord.set_slots(20)")
    for before, after in BY_FUNCTION[function].items():
        with case(before, after):
            queue_id = phase_in(conn, epoch, before)
            log = events(conn, queue_id)
            if after.startswith("PC"):
                was = everything(conn, queue_id)
                with refused(after, queue_id):
                    conn.execute(function, [queue_id])
                assert everything(conn, queue_id) == was
            elif after == "asked":
                conn.execute(function, [queue_id])
                assert phase(conn, queue_id)["status"] == before
                assert attempts(conn, queue_id)[0]["ending"] == (
                    "failed" if function == FAIL else "cancelled"
                )
                assert events(conn, queue_id) == [*log, ("attempt_ending", None, None)]
            else:
                conn.execute(function, [queue_id])
                assert phase(conn, queue_id)["status"] == after
                moved = [] if before == after else [("phase_moved", before, after)]
                assert events(conn, queue_id) == [*log, *moved]


@pytest.mark.parametrize(
    ("function", "status"), [(COMPLETE, "completed"), (FAIL, "failed"), (CANCEL, "cancelled")]
)
@pytest.mark.parametrize("before", ["ready", "running"])
def test_an_end_by_hand_equals_the_function(
    conn: Connection, epoch: int, before: str, function: str, status: str
) -> None:
    by_hand, by_function = phase_in(conn, epoch, before), phase_in(conn, epoch, before)
    conn.execute("set pgcoord.reason = 'not wanted'")
    conn.execute(
        "update phase_queue set status = %s, error_message = %s where queue_id = %s",
        [status, "no luck" if status == "failed" else None, by_hand],
    )
    conn.execute("reset pgcoord.reason")
    conn.execute(function, [by_function])

    def outline(queue_id: str) -> object:
        row = phase(conn, queue_id)
        [attempt] = attempts(conn, queue_id)
        return (
            [row[name] for name in ("status", "attempt", "attempts_used", "error_message")],
            [row[name] is None for name in ("slot", "eligible_at", "finished_timestamp")],
            [attempt[name] for name in ("outcome", "ending", "error")],
            [attempt[name] is None for name in ("ended_at", "exited_at", "ending_at")],
            events(conn, queue_id),
        )

    assert outline(by_hand) == outline(by_function)
    end(conn, by_hand, 143)
    end(conn, by_function, 143)
    assert outline(by_hand) == outline(by_function)
    assert phase(conn, by_hand)["status"] == status


@pytest.mark.parametrize("status", ["ready", "running"])
def test_ready_and_running_by_hand_are_refused_with_a_hint(
    conn: Connection, epoch: int, status: str
) -> None:
    queue_id = phase_in(conn, epoch, "queued")
    with refused("PC002"):
        conn.execute("update phase_queue set status = %s", [status])
    with refused("PC002"):
        conn.execute("update phase_queue set status = %s, slot = 1, attempt = 1", [status])
    queue_id = phase_in(conn, epoch, "ready")
    with refused("PC002", "by hand", "A coordinator claims and starts it"):
        conn.execute("update phase_queue set status = 'running' where queue_id = %s", [queue_id])


def test_an_unknown_status_is_refused(conn: Connection, epoch: int) -> None:
    queue_id = phase_in(conn, epoch, "queued")
    for status, words in (("done", "the status 'done'"), (None, "the status null")):
        with refused("PC005", words):
            conn.execute("update phase_queue set status = %s", [status])
    assert phase(conn, queue_id)["status"] == "queued"


@pytest.mark.parametrize(
    "change",
    [
        "queue_id = 'another'",
        "feature_id = feature_id + 1",
        "phase_number = 9",
        "slot = 1",
        "attempt = 1",
        "attempts_used = 1",
        "unmet = 1",
        "eligible_at = null",
        "held = true",
        "adw_id = 'adw-mine'",
    ],
)
def test_identity_and_derived_columns_cannot_be_changed(
    conn: Connection, epoch: int, change: str
) -> None:
    queue_id = phase_in(conn, epoch, "queued")
    was = everything(conn, queue_id)
    with refused("PC008", queue_id):
        conn.execute(f"update phase_queue set {change}".encode())
    assert everything(conn, queue_id) == was


@pytest.mark.parametrize("change", ["slot = 3", "attempt = 9", "unmet = 1", "held = true"])
def test_derived_columns_given_with_a_move_are_not_taken(
    conn: Connection, epoch: int, change: str
) -> None:
    queue_id = phase_in(conn, epoch, "queued")
    name = change.split(" ")[0]
    was = phase(conn, queue_id)[name]
    conn.execute(f"update phase_queue set status = 'completed', {change}".encode())
    row = phase(conn, queue_id)
    assert (row["status"], row[name]) == ("completed", was)


def test_columns_that_are_not_derived_can_be_changed(conn: Connection, epoch: int) -> None:
    queue_id = phase_in(conn, epoch, "running")
    row = one(
        conn,
        "update phase_queue set priority = 10, queue_position = 7, issue_number = 1,"
        ' pr_number = 2, phase_data = \'{"title": "b"}\' returning *',
    )
    assert row["updated_at"] > row["created_at"]
    assert (row["priority"], row["queue_position"]) == (10, 7)
    assert phase(conn, queue_id) == row


def test_one_update_may_end_many_phases(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {1: [], 2: [], 3: [1, 2], 4: [3], 5: []})
    assert len(claim(conn, epoch)) == 3
    conn.execute("update phase_queue set status = 'completed' where phase_number <= 2")
    assert statuses(conn) == {1: "completed", 2: "completed", 3: "queued", 4: "queued", 5: "ready"}
    assert phase(conn, f"queue-{feature}-3")["unmet"] == 0
    assert phase(conn, f"queue-{feature}-3")["eligible_at"]
    assert phase(conn, f"queue-{feature}-4")["eligible_at"] is None


# --- Reports


def test_a_report_of_a_workflow_completes_its_phase_and_frees_the_slot(
    conn: Connection, epoch: int
) -> None:
    queue_id = phase_in(conn, epoch, "running")
    adw_id = phase(conn, queue_id)["adw_id"]
    row = one(conn, "select * from pgcoord.complete_phase(%s, %s)", queue_id, adw_id)
    assert (row["status"], row["slot"]) == ("completed", None)
    [attempt] = attempts(conn, queue_id)
    assert (attempt["outcome"], attempt["exited_at"]) == ("completed", None)


def test_the_first_report_decides(conn: Connection, epoch: int) -> None:
    queue_id = phase_in(conn, epoch, "running")
    conn.execute(COMPLETE, [queue_id])
    was = everything(conn, queue_id)
    conn.execute(COMPLETE, [queue_id])
    with refused("PC004", "has ended completed"):
        conn.execute(FAIL, [queue_id])
    end(conn, queue_id, 1)
    assert phase(conn, queue_id)["status"] == "completed"
    assert attempts(conn, queue_id)[0]["exit_code"] == 1
    assert everything(conn, queue_id) != was


def test_a_reported_failure_decides_while_its_process_lives(conn: Connection, epoch: int) -> None:
    queue_id = phase_in(conn, epoch, "running")
    conn.execute(FAIL, [queue_id])
    was = everything(conn, queue_id)
    conn.execute(FAIL, [queue_id])
    with refused("PC004", "is being ended (failed)"):
        conn.execute(COMPLETE, [queue_id])
    with refused("PC004", "is being ended (failed)"):
        conn.execute("update phase_queue set status = 'completed' where queue_id = %s", [queue_id])
    assert everything(conn, queue_id) == was
    end(conn, queue_id, 0)
    row = phase(conn, queue_id)
    assert (row["status"], row["error_message"], row["slot"]) == ("failed", "no luck", None)
    [attempt] = attempts(conn, queue_id)
    assert (attempt["outcome"], attempt["error"]) == ("failed", "no luck")
    conn.execute(FAIL, [queue_id])


def test_a_failure_without_words_gets_some(conn: Connection, epoch: int) -> None:
    queue_id = phase_in(conn, epoch, "running")
    conn.execute("select pgcoord.fail_phase(%s, null)", [queue_id])
    end(conn, queue_id, 0)
    assert phase(conn, queue_id)["error_message"] == "reported as failed"


def test_a_phase_that_is_being_ended_keeps_its_slot(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {1: [], 2: [], 3: [], 4: []})
    claimed = claim(conn, epoch)
    conn.execute(CANCEL, [claimed[0]])
    conn.execute(FAIL, [claimed[1]])
    assert claim(conn, epoch) == []
    end(conn, claimed[0], 143)
    assert claim(conn, epoch) == [f"queue-{feature}-4"]
    assert statuses(conn) == {1: "cancelled", 2: "ready", 3: "ready", 4: "ready"}


def test_a_cancellation_counts_before_a_failure_that_was_asked_for(
    conn: Connection, epoch: int
) -> None:
    queue_id = phase_in(conn, epoch, "running")
    conn.execute(FAIL, [queue_id])
    conn.execute(CANCEL, [queue_id])
    conn.execute(CANCEL, [queue_id])
    end(conn, queue_id, 143)
    assert phase(conn, queue_id)["status"] == "cancelled"
    assert events(conn, queue_id).count(("attempt_ending", None, None)) == 2


def test_a_process_that_ends_well_during_its_cancellation_is_cancelled(
    conn: Connection, epoch: int
) -> None:
    queue_id = phase_in(conn, epoch, "running")
    conn.execute(CANCEL, [queue_id])
    end(conn, queue_id, 0)
    row = phase(conn, queue_id)
    assert (row["status"], row["error_message"]) == ("cancelled", "not wanted")


@pytest.fixture
def second_attempt(conn: Connection, epoch: int) -> str:
    """A running phase whose first attempt failed."""
    queue_id = phase_in(conn, epoch, "failed")
    conn.execute(RETRY, [queue_id])
    assert claim(conn, epoch) == [queue_id]
    start(conn, epoch, queue_id)
    return queue_id


def test_a_report_of_an_attempt_that_was_given_up_is_refused(
    conn: Connection, second_attempt: str
) -> None:
    first, _ = attempts(conn, second_attempt)
    was = everything(conn, second_attempt)
    with refused("PC003", "attempt 1", first["adw_id"], "was given up: attempt 2"):
        conn.execute("select pgcoord.complete_phase(%s, %s)", [second_attempt, first["adw_id"]])
    assert everything(conn, second_attempt) == was


def test_a_late_repeat_of_how_an_earlier_attempt_ended_changes_nothing(
    conn: Connection, second_attempt: str
) -> None:
    first, _ = attempts(conn, second_attempt)
    was = everything(conn, second_attempt)
    conn.execute("select pgcoord.fail_phase(%s, 'x', %s)", [second_attempt, first["adw_id"]])
    assert everything(conn, second_attempt) == was


def test_a_report_of_the_second_attempt_is_taken(conn: Connection, second_attempt: str) -> None:
    _, second = attempts(conn, second_attempt)
    conn.execute("select pgcoord.complete_phase(%s, %s)", [second_attempt, second["adw_id"]])
    assert [each["outcome"] for each in attempts(conn, second_attempt)] == ["failed", "completed"]


def test_a_report_with_an_id_of_nobody_is_refused(conn: Connection, epoch: int) -> None:
    queue_id = phase_in(conn, epoch, "running")
    other = phase_in(conn, epoch, "running")
    for adw_id in ("adw-test123", phase(conn, other)["adw_id"]):
        with refused("PC003", f"{adw_id} is not an attempt of phase {queue_id}"):
            conn.execute("select pgcoord.complete_phase(%s, %s)", [queue_id, adw_id])
    assert phase(conn, queue_id)["status"] == "running"


def test_a_late_report_cannot_complete_a_failed_attempt(conn: Connection, epoch: int) -> None:
    conn.execute("update pgcoord.workflow set max_attempts = 2")
    queue_id = phase_in(conn, epoch, "running")
    end(conn, queue_id, 1)
    assert phase(conn, queue_id)["status"] == "queued"
    with refused("PC004", "has ended failed"):
        conn.execute(COMPLETE, [queue_id])
    conn.execute(FAIL, [queue_id])
    assert phase(conn, queue_id)["status"] == "queued"


@pytest.mark.parametrize(
    ("function", "status", "error"),
    [(COMPLETE, "completed", None), (FAIL, "failed", "no luck"), (CANCEL, "cancelled", None)],
)
def test_an_external_attempt_ends_at_once(
    conn: Connection, function: str, status: str, error: str | None
) -> None:
    queue_id = add_phase(conn, add_feature(conn, {}), 1, status="running")
    conn.execute(function, [queue_id])
    row = phase(conn, queue_id)
    assert (row["status"], row["slot"], row["error_message"]) == (status, None, error)
    [attempt] = attempts(conn, queue_id)
    assert (attempt["outcome"], attempt["error"]) == (status, error)
    assert attempt["exited_at"]


def test_a_phase_that_does_not_exist_is_named(conn: Connection) -> None:
    for function in [COMPLETE, FAIL, RETRY, SKIP, CANCEL]:
        with case(function), refused("PC001", "there is no phase queue-9-9"):
            conn.execute(function, ["queue-9-9"])


def test_set_priority_changes_the_place_in_line(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {1: [], 2: [], 3: [], 4: []})
    conn.execute("select pgcoord.set_priority(%s, 10)", [f"queue-{feature}-4"])
    assert claim(conn, epoch)[0] == f"queue-{feature}-4"


# --- Going


@pytest.mark.parametrize("status", ["ready", "running"])
def test_a_phase_that_holds_a_slot_cannot_be_deleted(
    conn: Connection, epoch: int, status: str
) -> None:
    queue_id = phase_in(conn, epoch, status)
    with refused("PC002", f"{queue_id} is {status} and holds slot 1"):
        conn.execute("delete from phase_queue")
    with refused("PC002", f"{queue_id} is {status} and holds slot 1"):
        conn.execute("delete from planned_features")
    with refused("PC002", f"{queue_id} is {status} and holds a slot"):
        conn.execute("truncate planned_features cascade")
    with refused("PC002", f"{queue_id} is {status} and holds slot 1: its attempt 1 cannot"):
        conn.execute("delete from pgcoord.attempt")
    with refused("PC002", f"{queue_id} is {status} and holds a slot: pgcoord.attempt cannot"):
        conn.execute("truncate pgcoord.attempt cascade")
    assert phase(conn, queue_id)["slot"] == 1


def test_tables_of_which_no_phase_holds_a_slot_can_be_truncated(conn: Connection) -> None:
    add_feature(conn, {1: [], 2: [1]})
    conn.execute("truncate planned_features cascade")
    assert statuses(conn) == {}


def test_deleting_a_feature_deletes_all_of_its_phases(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {1: [], 2: [1], 3: [2]})
    other = add_feature(conn, {1: []})
    claim(conn, epoch)
    conn.execute(COMPLETE, [f"queue-{feature}-1"])
    conn.execute("delete from planned_features where id = %s", [feature])
    assert statuses(conn, feature) == {}
    assert statuses(conn, other) == {1: "ready"}
    assert one(conn, "select count(*) as n from pgcoord.dependency")["n"] == 0
    assert attempts(conn, f"queue-{feature}-1") == []
    assert events(conn, f"queue-{feature}-3")[-1] == ("phase_deleted", "queued", None)


@pytest.mark.parametrize("status", ["queued", "completed", "failed", "cancelled"])
def test_deleting_a_prerequisite_makes_its_dependents_wait(
    conn: Connection, epoch: int, status: str
) -> None:
    feature = add_feature(conn, {})
    add_phase(conn, feature, 1, status=status)
    for number in (2, 3):
        add_phase(conn, feature, number, [number - 1])
    conn.execute("delete from phase_queue where phase_number = 1")
    assert statuses(conn) == {2: "queued", 3: "queued"}
    row = phase(conn, f"queue-{feature}-2")
    assert (row["unmet"], row["eligible_at"]) == (1, None)
    assert claim(conn, epoch) == []
    add_phase(conn, feature, 1, status="completed")
    assert claim(conn, epoch) == [f"queue-{feature}-2"]


# --- Events


def test_each_move_leaves_one_event_with_its_actor_and_reason(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {1: [], 2: [1]})
    first, second = f"queue-{feature}-1", f"queue-{feature}-2"
    conn.execute("set pgcoord.actor = 'ann'")
    conn.execute(CANCEL, [first])
    conn.execute("reset pgcoord.actor")
    conn.execute(RETRY, [first])
    claim(conn, epoch)
    start(conn, epoch, first)
    end(conn, first, 3)
    conn.execute("set pgcoord.reason = 'I know'")
    conn.execute("update phase_queue set status = 'completed' where queue_id = %s", [first])
    rows = conn.execute(
        "select phase_number, from_status, to_status, attempt,"
        " case actor when session_user then 'user' else actor end, reason"
        " from pgcoord.event where kind = 'phase_moved' order by id"
    ).fetchall()
    assert [tuple(row.values()) for row in rows] == [
        (1, "queued", "cancelled", None, "ann", "not wanted"),
        (2, "queued", "blocked", None, "ann", "phase 1 is cancelled"),
        (1, "cancelled", "queued", None, "user", "again"),
        (2, "blocked", "queued", None, "user", "phase 1 is queued"),
        (1, "queued", "ready", 1, "user", None),
        (1, "ready", "running", 1, "user", None),
        (1, "running", "failed", 1, "user", "exited with status 3"),
        (2, "queued", "blocked", None, "user", "phase 1 is failed"),
        (1, "failed", "completed", 1, "user", "I know"),
        (2, "blocked", "queued", None, "user", "phase 1 is completed"),
    ]
    assert events(conn, second)[0] == ("phase_inserted", None, "queued")


def replayed(conn: Connection) -> dict[str, str]:
    """The statuses that the events of phases lead to."""
    found: dict[str, str] = {}
    for row in conn.execute("select * from pgcoord.event order by id"):
        if row["kind"] == "phase_deleted":
            assert found.pop(row["queue_id"]) == row["from_status"]
        elif row["kind"].startswith("phase_"):
            assert found.get(row["queue_id"]) == row["from_status"]
            found[row["queue_id"]] = row["to_status"]
    return found


def test_replaying_the_events_gives_the_statuses(conn: Connection, epoch: int) -> None:
    conn.execute("select pgcoord.set_slots(10)")
    for status in STATES:
        phase_in(conn, epoch, status)
    feature = add_feature(conn, {1: [], 2: [1], 3: [2], 4: [3], 5: [1]})
    conn.execute(CANCEL, [f"queue-{feature}-2"])
    conn.execute(SKIP, [f"queue-{feature}-3"])
    conn.execute("delete from phase_queue where queue_id = %s", [f"queue-{feature}-1"])
    stored = conn.execute("select queue_id, status from phase_queue").fetchall()
    assert replayed(conn) == {row["queue_id"]: row["status"] for row in stored}


def test_a_retry_of_a_completed_phase_is_refused_with_a_hint(conn: Connection) -> None:
    queue_id = add_phase(conn, add_feature(conn, {}), 1, status="completed")
    with pytest.raises(psycopg.Error) as caught:
        conn.execute(RETRY, [queue_id])
    assert caught.value.diag.message_hint == (
        "A completed one stays so: insert another for what is still to be done."
    )


# --- What is edited


def test_an_edit_leaves_an_event_with_the_actor_and_the_changed_columns(
    conn: Connection, dsn: str, logins: dict[str, str]
) -> None:
    add_feature(conn, {1: [], 2: [], 3: [1, 2]}, phase_data=Jsonb({"title": "A", "timeout": "1h"}))
    with psycopg.connect(as_user(dsn, logins["client"]), autocommit=True) as client:
        client.execute("set pgcoord.reason = 'as agreed'")
        client.execute(
            "update phase_queue set phase_data = phase_data - 'timeout'"
            ' || \'{"title": "B", "prompt_content": "Do it."}\', depends_on_phases = \'[2]\''
            " where phase_number = 3"
        )
    conn.execute("update phase_queue set depends_on_phases = '[]' where phase_number = 3")
    conn.execute("update phase_queue set queue_position = 7 where phase_number = 3")
    conn.execute("update phase_queue set phase_data = phase_data, depends_on_phases = '[]'")
    name = logins["client"]
    actual = conn.execute(
        "select queue_id, actor, reason from pgcoord.event where kind = 'phase_edited' order by id"
    ).fetchall()
    assert [tuple(row.values()) for row in actual] == [
        (
            "queue-1-3",
            name,
            "prompt_content, timeout, title, depends on 1, 2 → 2: as agreed",
        ),
        ("queue-1-3", conn.info.user, "depends on 2 → none"),
        ("queue-1-3", conn.info.user, "queue_position 3 → 7"),
    ]
