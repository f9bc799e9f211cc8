"""Why a phase is where it is, in words, and the views in which people see the work."""

import re
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from support.database import (
    WORKFLOW,
    Connection,
    add_feature,
    add_phase,
    claim,
    start,
    statuses,
    take_lead,
)

TIME = r"\d\d:\d\d:\d\d UTC"
DAY = rf"\d{{4}}-\d\d-\d\d {TIME}"


def rows(conn: Connection, statement: str, *values: object) -> list[dict[str, Any]]:
    return conn.execute(statement.encode(), values).fetchall()


def why(conn: Connection, queue_id: str) -> list[tuple[str, str]]:
    """The reasons of a phase, but that it is empty, as most phases of these tests are."""
    found = rows(conn, "select * from pgcoord.why(%s) where kind <> 'empty'", queue_id)
    return [(row["kind"], row["words"]) for row in found]


def only(conn: Connection, queue_id: str, kind: str, words: str) -> None:
    """The one reason of a phase; `words` is a regular expression."""
    [reason] = why(conn, queue_id)
    assert reason[0] == kind
    assert re.fullmatch(words, reason[1], re.DOTALL), reason[1]


def end(conn: Connection, queue_id: str, exit_code: int) -> None:
    conn.execute(
        "select pgcoord_private.end_attempt(id, %s, 'last words') from pgcoord.attempt"
        " where queue_id = %s and ended_at is null",
        [exit_code, queue_id],
    )


def cancel(conn: Connection, queue_id: str) -> None:
    conn.execute("select pgcoord.cancel_phase(%s, 'not wanted')", [queue_id])


@pytest.fixture
def phase(conn: Connection, epoch: int) -> str:
    """A phase that waits for nothing."""
    return add_phase(conn, add_feature(conn, {}), 1, phase_data=Jsonb({"title": "Tables"}))


# --- Reasons


def test_a_claimed_phase(conn: Connection, epoch: int, phase: str) -> None:
    claim(conn, epoch)
    only(conn, phase, "ready", f"claimed at {TIME}, slot 1; its process is not started yet")


def test_a_running_phase(conn: Connection, epoch: int, phase: str) -> None:
    claim(conn, epoch)
    start(conn, epoch, phase)
    only(conn, phase, "running", f"runs since {TIME} in slot 1, attempt 1")


def test_a_running_phase_that_nobody_watches(conn: Connection, epoch: int, phase: str) -> None:
    claim(conn, epoch)
    start(conn, epoch, phase)
    conn.execute("select pg_advisory_unlock_all()")  # as when the coordinator is killed
    reasons = why(conn, phase)
    assert [kind for kind, _ in reasons] == ["unwatched", "running"]
    assert re.match(
        f"no coordinator runs since {TIME}, when it was last heard of: no coordinator",
        reasons[0][1],
    )
    conn.execute("select pgcoord_private.resign()")
    assert re.match(f"no coordinator runs since {TIME}: no coordinator", why(conn, phase)[0][1])


def test_a_phase_inserted_as_running(conn: Connection) -> None:
    queue_id = add_phase(conn, add_feature(conn, {}), 1, status="running")
    only(
        conn,
        queue_id,
        "running",
        f"runs since {TIME} in slot 1, attempt 1, unsupervised: it was inserted as running",
    )


def test_a_phase_that_is_being_ended(conn: Connection, epoch: int, phase: str) -> None:
    claim(conn, epoch)
    start(conn, epoch, phase)
    cancel(conn, phase)
    ending, running = why(conn, phase)
    assert ending[0] == "ending"
    assert re.fullmatch(f"is being ended \\(cancelled\\) since {TIME}: not wanted", ending[1])
    assert running[0] == "running"


def test_a_completed_phase(conn: Connection, epoch: int, phase: str) -> None:
    claim(conn, epoch)
    start(conn, epoch, phase)
    end(conn, phase, 0)
    only(conn, phase, "completed", f"completed at {DAY}")


def test_a_skipped_phase(conn: Connection, phase: str) -> None:
    conn.execute("select pgcoord.skip_phase(%s, 'x')", [phase])
    only(conn, phase, "completed", f"skipped at {DAY}")


def test_a_cancelled_phase(conn: Connection, phase: str) -> None:
    cancel(conn, phase)
    only(conn, phase, "cancelled", f"cancelled at {DAY}")


def test_a_failed_phase_gives_the_first_line_of_its_error(
    conn: Connection, epoch: int, phase: str
) -> None:
    claim(conn, epoch)
    end(conn, phase, 3)
    only(conn, phase, "failed", f"failed at {DAY}: exited with status 3")


def test_a_phase_inserted_as_failed(conn: Connection) -> None:
    queue_id = add_phase(conn, add_feature(conn, {}), 1, status="failed")
    only(conn, queue_id, "failed", f"failed at {DAY}: no reason was given")


@pytest.mark.parametrize("status", ["queued", "running"])
def test_an_open_prerequisite(conn: Connection, status: str) -> None:
    feature = add_feature(conn, {})
    add_phase(conn, feature, 1, status=status)
    queue_id = add_phase(conn, feature, 2, [1])
    only(conn, queue_id, "prerequisite", f"waits for phase 1, {status}")


def test_a_missing_prerequisite(conn: Connection) -> None:
    queue_id = add_phase(conn, add_feature(conn, {}), 2, [9])
    only(conn, queue_id, "missing", "waits for phase 9, which does not exist")


def test_a_failed_prerequisite_and_its_blocked_dependents(conn: Connection) -> None:
    feature = add_feature(conn, {1: [], 2: [1], 3: [2], 4: [3]})
    cancel(conn, f"queue-{feature}-1")
    only(conn, f"queue-{feature}-2", "blocked", "waits for phase 1, cancelled")
    words = "waits for phase 2, which waits for phase 1, cancelled"
    only(conn, f"queue-{feature}-3", "blocked", words)
    words = "waits for phase 3, which waits for phase 1, cancelled"
    only(conn, f"queue-{feature}-4", "blocked", words)


def test_completed_prerequisites_are_no_reason(conn: Connection) -> None:
    feature = add_feature(conn, {1: []}, status="completed")
    add_phase(conn, feature, 2)
    queue_id = add_phase(conn, feature, 3, [1, 2])
    only(conn, queue_id, "prerequisite", "waits for phase 2, queued")


def test_the_most_decisive_reason_comes_first(conn: Connection) -> None:
    feature = add_feature(conn, {1: [], 2: []})
    add_phase(conn, feature, 3, status="failed")
    queue_id = add_phase(conn, feature, 4, [1, 9, 2, 3])
    found = rows(conn, "select kind, refers_to from pgcoord.why(%s)", queue_id)
    assert found.pop()["kind"] == "empty"
    assert [(row["kind"], row["refers_to"]) for row in found] == [
        ("blocked", f"queue-{feature}-3"),
        ("missing", "9"),
        ("prerequisite", f"queue-{feature}-1"),
        ("prerequisite", f"queue-{feature}-2"),
    ]


def test_a_retry_time(conn: Connection) -> None:
    epoch = take_lead(conn, WORKFLOW | {"max_attempts": 2})
    queue_id = add_phase(conn, add_feature(conn, {}), 1)
    claim(conn, epoch)
    end(conn, queue_id, 1)
    words = ", after: exited with status 1"
    only(conn, queue_id, "retry", f"is tried again at ({TIME}|{DAY}){words}")  # it may be midnight
    conn.execute("update phase_queue set retry_at = now() + '3 days'")
    only(conn, queue_id, "retry", f"is tried again at {DAY}{words}")


def test_pauses(conn: Connection, phase: str) -> None:
    conn.execute("select pgcoord.pause(feature_id, 'lunch') from phase_queue")
    only(conn, phase, "paused", f"its feature is paused since {DAY}: lunch")
    conn.execute("select pgcoord.pause()")
    [feature, everything] = why(conn, phase)
    assert feature[1].startswith("its feature is paused")
    assert re.fullmatch(f"everything is paused since {DAY}", everything[1])


def test_no_coordinator(conn: Connection) -> None:
    queue_id = add_phase(conn, add_feature(conn, {}), 1)
    assert why(conn, queue_id) == [
        ("coordinator", "no coordinator runs"),
        ("slot", "is 1st in line; a slot is free"),
    ]


def test_a_workflow_that_no_coordinator_knows(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {})
    queue_id = add_phase(conn, feature, 1, phase_data=Jsonb({"workflow_type": "strange"}))
    assert why(conn, queue_id) == [("workflow", "no coordinator knows workflow strange")]
    assert rows(conn, "select * from pgcoord.line") == []
    take_lead(conn, WORKFLOW | {"default": False})
    queue_id = add_phase(conn, feature, 2)
    assert why(conn, queue_id) == [
        ("workflow", "it names no workflow and no coordinator has a default one")
    ]


def test_the_place_in_line(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {number: [] for number in range(1, 17)})
    assert len(claim(conn, epoch)) == 3
    for number, place in ((4, "1st"), (5, "2nd"), (6, "3rd"), (7, "4th"), (14, "11th")):
        words = f"waits for a slot, {place} in line; 3 of 3 are held"
        only(conn, f"queue-{feature}-{number}", "slot", words)
    conn.execute("select pgcoord.set_priority(%s, 10)", [f"queue-{feature}-16"])
    words = "waits for a slot, 1st in line; 3 of 3 are held"
    only(conn, f"queue-{feature}-16", "slot", words)


def test_ordinals(conn: Connection) -> None:
    expected = "1st 2nd 3rd 4th 10th 11th 12th 13th 21st 22nd 101st 111th 1013th"
    actual = rows(
        conn,
        "select string_agg(pgcoord_private.ordinal(n), ' ' order by n) as words"
        " from unnest(array[1, 2, 3, 4, 10, 11, 12, 13, 21, 22, 101, 111, 1013]) as n",
    )
    assert actual == [{"words": expected}]


@pytest.mark.parametrize("data", [None, {}, {"title": " ", "prompt_content": ""}])
def test_a_phase_without_title_and_prompt(conn: Connection, epoch: int, data: object) -> None:
    queue_id = add_phase(conn, add_feature(conn, {}), 1, phase_data=Jsonb(data))
    words = "says nothing of what is to be done: it has neither title nor prompt"
    asked = "select words from pgcoord.why(%s) where kind = 'empty'"
    assert rows(conn, asked, queue_id) == [{"words": words}]
    assert claim(conn, epoch) == [queue_id]
    assert rows(conn, asked, queue_id) == [{"words": words}]
    end(conn, queue_id, 1)
    assert rows(conn, asked, queue_id) == []


def test_a_phase_that_does_not_exist(conn: Connection) -> None:
    with pytest.raises(psycopg.Error, match="there is no phase queue-9-9") as caught:
        why(conn, "queue-9-9")
    assert caught.value.sqlstate == "PC001"


def test_every_phase_has_a_reason(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {1: [], 2: [1], 3: [2], 4: [], 5: [9], 6: [], 7: [], 8: []})
    cancel(conn, f"queue-{feature}-1")
    conn.execute("select pgcoord.skip_phase(%s, 'x')", [f"queue-{feature}-4"])
    claim(conn, epoch)
    end(conn, f"queue-{feature}-6", 1)
    assert set(statuses(conn).values()) == {
        "queued", "blocked", "ready", "completed", "failed", "cancelled",
    }  # fmt: skip
    assert all(why(conn, f"queue-{feature}-{number}") for number in range(1, 9))


# --- Views


@pytest.fixture
def work(conn: Connection, epoch: int) -> int:
    """A feature in the middle of its work: 1 completed, 2 tried twice, 4 and 5 wait."""
    conn.execute("update pgcoord.workflow set max_attempts = 3, retry_delay = '0'")
    feature = add_feature(conn, {1: [], 2: [], 3: [], 4: [1, 2], 5: []})
    conn.execute("select pgcoord.set_slots(2)")
    for queue_id in claim(conn, epoch):
        start(conn, epoch, queue_id)
    end(conn, f"queue-{feature}-1", 0)
    end(conn, f"queue-{feature}-2", 1)
    claim(conn, epoch)
    start(conn, epoch, f"queue-{feature}-2")
    conn.execute("select pgcoord.set_slots(1)")
    return feature


def test_the_board_shows_each_phase(conn: Connection, work: int) -> None:
    board = rows(conn, "select * from pgcoord.board")
    assert [
        (row["phase_number"], row["title"], row["status"], row["slot"], row["attempt"])
        for row in board
    ] == [
        (1, "Phase 1", "completed", None, 1),
        (2, "Phase 2", "running", 1, 2),
        (3, "Phase 3", "ready", 2, 1),
        (4, "Phase 4", "queued", None, 0),
        (5, "Phase 5", "queued", None, 0),
    ]
    assert all(row["since"] and row["feature"] == "a" for row in board)
    assert [row["waiting_for"] for row in board] == [
        None,
        None,
        None,
        "waits for phase 2, running",
        "waits for a slot, 1st in line; 2 are held, and the limit is 1 now",
    ]
    cancel(conn, f"queue-{work}-2")
    [row] = rows(conn, "select waiting_for from pgcoord.board where phase_number = 2")
    assert row["waiting_for"].startswith("is being ended (cancelled)")


def test_phases_as_objects_are_as_the_view_has_them_in_the_order_asked_for(
    conn: Connection, work: int
) -> None:
    other = add_feature(conn, {1: [9], 2: []})
    cancel(conn, f"queue-{work}-2")
    names = [f"queue-{other}-1", *(f"queue-{work}-{n}" for n in (5, 4, 1, 3, 2)), "queue-9-9"]
    objects = rows(conn, "select pgcoord_private.phase_objects(%s) as phase", names)
    phases = {
        row["queue_id"]: row["phase"]
        for row in rows(conn, "select queue_id, to_jsonb(q) as phase from pgcoord.queue as q")
    }
    assert [row["phase"] for row in objects] == [phases[name] for name in names[:-1]]
    assert [row["phase"]["waiting_for"] is None for row in objects] == [
        False, False, False, True, True, False,
    ]  # fmt: skip


def test_the_slots_show_the_phase_that_holds_each(conn: Connection, work: int) -> None:
    slots = rows(conn, "select * from pgcoord.slots")
    assert [
        (row["slot"], row["draining"], row["phase_number"], row["status"], row["pid"])
        for row in slots
    ] == [(1, False, 2, "running", 1), (2, True, 3, "ready", None)]
    assert all(row["since"] and row["adw_id"] and not row["external"] for row in slots)
    conn.execute("update phase_queue set status = 'completed'")
    [slot] = rows(conn, "select slot, queue_id, status, since, adw_id from pgcoord.slots")
    assert list(slot.values()) == [1, None, None, None, None]


def test_waiting_shows_every_reason_of_each_waiting_phase(conn: Connection, work: int) -> None:
    conn.execute("select pgcoord.pause()")
    add_phase(conn, work, 6, [2, 4])
    found = rows(conn, "select phase_number, kind from pgcoord.waiting where kind <> 'empty'")
    assert sorted((row["phase_number"], row["kind"]) for row in found) == [
        (4, "prerequisite"),
        (5, "paused"),
        (5, "slot"),
        (6, "prerequisite"),
        (6, "prerequisite"),
    ]


def test_the_timeline_shows_each_attempt(conn: Connection, work: int) -> None:
    timeline = rows(conn, "select * from pgcoord.timeline")
    assert [
        (row["phase_number"], row["attempt"], row["outcome"], row["exit_code"]) for row in timeline
    ] == [
        (1, 1, "completed", 0),
        (2, 1, "failed", 1),
        (2, 2, None, None),
        (3, 1, None, None),
        (4, None, None, None),
        (5, None, None, None),
    ]
    for row in timeline:
        times = [
            row[name]
            for name in ("queued_at", "eligible_at", "claimed_at", "started_at", "ended_at")
        ]
        known = [time for time in times if time]
        assert known == sorted(known)


def test_the_views_show_many_features_in_order(conn: Connection) -> None:
    second = add_feature(conn, {})
    first = add_feature(conn, {2: [], 1: []})
    add_phase(conn, second, 1)
    for view in ("board", "timeline"):
        actual = rows(conn, f"select feature_id, phase_number from pgcoord.{view}")
        assert [tuple(row.values()) for row in actual] == [(second, 1), (first, 1), (first, 2)]
