"""The work as people look at it: what is usual and expected, what needs somebody, previews."""

import itertools
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from support.cases import case
from support.database import Connection, add_feature, add_phase, claim, start, statuses


def rows(conn: Connection, statement: str, *values: object) -> list[dict[str, Any]]:
    return conn.execute(statement.encode(), values).fetchall()


def hours(conn: Connection, feature: int, **estimates: float) -> None:
    """Have phases estimate so many hours: `p1=0.5`."""
    for name, value in estimates.items():
        conn.execute(
            "update phase_queue set phase_data = %s where feature_id = %s and phase_number = %s",
            [Jsonb({"estimated_hours": value}), feature, int(name[1:])],
        )


def forecast(conn: Connection, feature: int) -> dict[int, dict[str, Any]]:
    found = rows(conn, "select * from pgcoord.forecast(array[%s])", feature)
    return {row["phase_number"]: row for row in found}


def finish(conn: Connection, feature: int) -> dict[str, Any]:
    [row] = rows(conn, "select * from pgcoord.expected_finish(array[%s])", feature)
    return row


def now(conn: Connection) -> datetime:
    at: datetime = rows(conn, "select now() as at")[0]["at"]
    return at


def in_hours(conn: Connection, at: datetime) -> float:
    return round((at - now(conn)) / timedelta(hours=1), 1)


def ran(conn: Connection, epoch: int, feature: int, minutes: float) -> None:
    """Have the phases of a feature have completed after so long."""
    while claimed := claim(conn, epoch):
        for queue_id in claimed:
            start(conn, epoch, queue_id)
            conn.execute("select pgcoord.complete_phase(%s)", [queue_id])
    conn.execute(
        "update pgcoord.attempt set started_at = ended_at - %s where queue_id like %s",
        [timedelta(minutes=minutes), f"queue-{feature}-%"],
    )


def preview(conn: Connection, action: str, queue_id: str) -> list[tuple[int, str, str]]:
    found = rows(conn, "select * from pgcoord.preview(%s, null, %s)", action, queue_id)
    return [(row["phase_number"], row["from_status"], row["to_status"]) for row in found]


# --- Expectations


def test_the_longest_path_is_critical_and_ends_the_feature(conn: Connection) -> None:
    feature = add_feature(conn, {1: [], 2: [1], 3: [1], 4: [2, 3]})
    hours(conn, feature, p1=1, p2=1, p3=2, p4=1)
    actual = forecast(conn, feature)
    assert [n for n, row in actual.items() if row["critical"]] == [1, 3, 4]
    assert [row["layer"] for row in actual.values()] == [0, 1, 1, 2]
    assert finish(conn, feature)["path"] == [1, 3, 4]
    assert in_hours(conn, finish(conn, feature)["ends_at"]) == 4


def test_completed_phases_take_no_time_and_are_on_no_path(conn: Connection) -> None:
    feature = add_feature(conn, {1: [], 2: [1]})
    hours(conn, feature, p1=1, p2=2)
    conn.execute("select pgcoord.skip_phase(%s, 'x')", [f"queue-{feature}-1"])
    assert finish(conn, feature)["path"] == [2]
    assert in_hours(conn, finish(conn, feature)["ends_at"]) == 2


def test_more_past_runs_outweigh_the_estimate(conn: Connection, epoch: int) -> None:
    def expected() -> list[float]:
        [row] = rows(conn, "select * from pgcoord.forecast(array[%s])", feature)
        return [in_hours(conn, row[each]) for each in ("earliest", "ends_at", "latest")]

    feature = add_feature(conn, {1: []}, retry_at=now(conn) + timedelta(minutes=1))
    hours(conn, feature, p1=8)
    assert expected() == [4, 8, 16]
    for runs, ends in ((3, 1.4), (30, 0.6)):
        ran(conn, epoch, add_feature(conn, {n + 1: [] for n in range(runs)}), minutes=30)
        earliest, middle, latest = expected()
        assert middle == ends, "the more runs, the more they tell"
        assert (earliest, latest) == (0.5, 8), "they disagree: as wide as both"
    conn.execute("update phase_queue set phase_data = '{}' where feature_id = %s", [feature])
    assert expected() == pytest.approx([0.4, 0.5, 0.6], abs=0.11)


def test_a_phase_of_unlike_runs_counts_with_their_average(conn: Connection, epoch: int) -> None:
    """Half of them take longer than the one in the middle, and by more than the others less."""
    for minutes in (15, 30, 60):
        ran(conn, epoch, add_feature(conn, {n: [] for n in range(1, 11)}), minutes=minutes)
    feature = add_feature(conn, {n: [n - 1] if n > 1 else [] for n in range(1, 11)})
    assert forecast(conn, feature)[1]["usual"] == timedelta(minutes=30)
    assert in_hours(conn, finish(conn, feature)["ends_at"]) == pytest.approx(5.8, abs=0.2)


def test_unlike_or_few_runs_give_no_estimate(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {1: []}, retry_at=now(conn) + timedelta(minutes=1))
    ran(conn, epoch, add_feature(conn, {1: [], 2: []}), minutes=30)
    assert finish(conn, feature)["ends_at"] is None
    ran(conn, epoch, add_feature(conn, {1: [], 2: []}), minutes=0.1)
    assert finish(conn, feature)["ends_at"] is None


def test_other_features_priorities_pauses_and_slots_count(conn: Connection, epoch: int) -> None:
    conn.execute("select pgcoord.set_slots(1)")
    first, second = (add_feature(conn, {1: [], 2: [1]}) for _ in range(2))
    for each in (first, second):
        hours(conn, each, p1=1, p2=1)

    def ends(feature: int) -> float | None:
        at = finish(conn, feature)["ends_at"]
        return None if at is None else in_hours(conn, at)

    def everything() -> float | None:
        [row] = rows(conn, "select * from pgcoord_private.finishes('{}') where feature_id is null")
        return None if row["ends_at"] is None else in_hours(conn, row["ends_at"])

    # In the order of claims: all of the first, then the second.
    assert (ends(first), ends(second), everything()) == (2, 4, 4)
    conn.execute("update phase_queue set priority = 10 where feature_id = %s", [second])
    assert (ends(first), ends(second)) == (4, 2)
    conn.execute("select pgcoord.set_slots(2)")
    assert (ends(first), ends(second), everything()) == (2, 2, 2)
    conn.execute("select pgcoord.set_slots(1)")
    conn.execute("select pgcoord.pause(%s)", [second])
    assert (ends(first), ends(second), everything()) == (2, 2, 2), "paused: if resumed now"
    conn.execute("select pgcoord.set_slots(0)")
    assert (ends(first), everything()) == (None, None)


def test_an_expected_end_stays_until_that_time_has_passed(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {1: [], 2: [1]})
    hours(conn, feature, p1=1, p2=1)
    [queue_id] = claim(conn, epoch)
    start(conn, epoch, queue_id)

    def ends_after(minutes: float) -> float:
        """Hours after the start, where it runs since so many minutes."""
        since = timedelta(minutes=minutes)
        conn.execute("update phase_queue set started_timestamp = now() - %s", [since])
        return round(in_hours(conn, finish(conn, feature)["ends_at"]) + minutes / 60, 1)

    assert [ends_after(minutes) for minutes in (30, 54, 66, 114, 126, 216)] == [2, 2, 3, 3, 5, 5]


def test_a_running_phase_needs_the_rest_of_its_usual_time(conn: Connection, epoch: int) -> None:
    ran(conn, epoch, add_feature(conn, {n + 1: [] for n in range(3)}), minutes=60)
    feature = add_feature(conn, {1: []})
    [queue_id] = claim(conn, epoch)
    start(conn, epoch, queue_id)
    conn.execute("update phase_queue set started_timestamp = now() - interval '30 min'")
    assert in_hours(conn, finish(conn, feature)["ends_at"]) == 0.5


def test_estimates_spread_and_independent_spreads_do_not_add_up(conn: Connection) -> None:
    feature = add_feature(conn, {1: [], 2: [1]})
    hours(conn, feature, p1=1, p2=1)
    found = finish(conn, feature)
    assert in_hours(conn, found["latest"]) == pytest.approx(2 + 2**0.5, abs=0.1)
    assert in_hours(conn, found["earliest"]) == pytest.approx(2 - 0.5**0.5, abs=0.1)


def test_no_end_is_expected_without_runs_and_estimates(conn: Connection) -> None:
    feature = add_feature(conn, {1: [], 2: [1], 3: []})
    assert finish(conn, feature)["ends_at"] is None
    assert finish(conn, feature)["path"] == [1, 2]


@pytest.mark.parametrize(
    ("hours", "ends"), [("1e300", 100_000.0), ("1e-400", 0.0), ("-1e300", 0.0)]
)
def test_an_estimate_may_be_any_number(conn: Connection, hours: str, ends: float) -> None:
    feature = add_feature(conn, {1: []})
    conn.execute("update phase_queue set phase_data = %s", ['{"estimated_hours": ' + hours + "}"])
    assert in_hours(conn, forecast(conn, feature)[1]["ends_at"]) == ends


def test_work_for_more_than_the_slots_takes_longer_than_the_path(conn: Connection) -> None:
    feature = add_feature(conn, {n: [] for n in range(1, 7)})
    hours(conn, feature, **{f"p{n}": 1 for n in range(1, 7)})
    assert in_hours(conn, finish(conn, feature)["ends_at"]) == 2
    conn.execute("select pgcoord.set_slots(1)")
    assert in_hours(conn, finish(conn, feature)["ends_at"]) == 6


def test_a_retry_time_is_waited_for(conn: Connection) -> None:
    feature = add_feature(conn, {1: []}, retry_at=now(conn) + timedelta(hours=3))
    hours(conn, feature, p1=1)
    assert in_hours(conn, finish(conn, feature)["ends_at"]) == 4


def test_a_retry_time_that_means_never_is_waited_for(conn: Connection) -> None:
    feature = add_feature(conn, {1: []}, retry_at="9999-12-31 23:59:59+00")
    hours(conn, feature, p1=1)
    assert finish(conn, feature)["ends_at"].year == 9999


def test_a_graph_with_more_paths_than_can_be_counted_is_foreseen(conn: Connection) -> None:
    layers = 25
    phases = {
        4 * layer + n: [4 * (layer - 1) + m for m in range(1, 5)] if layer else []
        for layer in range(layers)
        for n in range(1, 5)
    }
    found = forecast(conn, add_feature(conn, phases))
    assert max(row["layer"] for row in found.values()) == layers - 1
    assert sum(row["critical"] for row in found.values()) == layers


# --- What needs somebody


def test_failed_phases_need_somebody_until_they_are_retried(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {1: [], 2: [1]})
    [queue_id] = claim(conn, epoch)
    start(conn, epoch, queue_id)
    conn.execute("select pgcoord.fail_phase(%s, %s)", [queue_id, "it broke\nin two lines"])
    conn.execute("select pgcoord_private.end_attempt(id, 1, '') from pgcoord.attempt")
    [need] = rows(conn, "select * from pgcoord.attention")
    assert (need["kind"], need["words"], need["blocks"]) == ("failed", "it broke", [2])
    conn.execute("select pgcoord.cancel_feature(%s, 'x')", [feature])
    assert rows(conn, "select * from pgcoord.attention") == []


def test_a_phase_that_can_never_start_needs_somebody(conn: Connection) -> None:
    add_feature(conn, {1: [5], 2: [1]})
    [need] = rows(conn, "select * from pgcoord.attention")
    assert (need["kind"], need["phase_number"]) == ("missing", 1)
    assert need["words"] == "waits for phase 5, which does not exist"


def test_a_workflow_that_nobody_knows_needs_somebody(conn: Connection, epoch: int) -> None:
    add_feature(conn, {1: []}, phase_data=Jsonb({"workflow_type": "unheard-of"}))
    [need] = rows(conn, "select * from pgcoord.attention")
    assert (need["kind"], "unheard-of" in need["words"]) == ("workflow", True)


def test_a_run_much_longer_than_expected_needs_somebody(conn: Connection, epoch: int) -> None:
    ran(conn, epoch, add_feature(conn, {n + 1: [] for n in range(30)}), minutes=0.02)
    feature = add_feature(conn, {1: [], 2: []})
    hours(conn, feature, p1=0.5)
    for queue_id in claim(conn, epoch):
        start(conn, epoch, queue_id)

    def slow(minutes: int) -> list[int]:
        since = timedelta(minutes=minutes)
        conn.execute("update phase_queue set started_timestamp = now() - %s", [since])
        found = rows(conn, "select * from pgcoord.attention where kind = 'slow' order by 5")
        return [each["phase_number"] for each in found]

    assert slow(0) == []
    assert slow(2) == [2], "the one that is estimated at half an hour is not like the others"
    assert slow(62) == [1, 2]
    [words] = rows(conn, "select words from pgcoord.attention where phase_number = 1")
    assert "(30 min, from 30 past runs and its estimate)" in words["words"]


# --- Previews


def test_a_preview_changes_nothing_and_notifies_nobody(
    conn: Connection, epoch: int, dsn: str
) -> None:
    feature = add_feature(conn, {1: [], 2: [1], 3: [2]})
    before = rows(conn, "select * from phase_queue order by 1")
    with psycopg.connect(dsn, autocommit=True) as listener:
        listener.execute("listen pgcoord_event")
        listener.execute("listen pgcoord_wake")
        assert preview(conn, "cancel", f"queue-{feature}-1") == [
            (1, "queued", "cancelled"),
            (2, "queued", "blocked"),
            (3, "queued", "blocked"),
        ]
        assert list(listener.notifies(timeout=0.1)) == []
    assert rows(conn, "select * from phase_queue order by 1") == before
    assert rows(conn, "select * from pgcoord.event where kind = 'phase_moved'") == []


# How a phase gets into each state; it is claimed before, where that is needed.
STANDS: dict[str, str] = {
    "queued": "",
    "paused": "select pgcoord.pause({feature})",
    "retried later": "update phase_queue set retry_at = now() + interval '1 h'"
    " where queue_id = '{phase}'",
    "ready": "claim",
    "running": "claim | start",
    "timing out": "claim | start | update pgcoord.attempt set ending = 'timed_out',"
    " ending_at = now() where queue_id = '{phase}'",
    "failed": "claim | start | select pgcoord_private.end_attempt(id, 1) from pgcoord.attempt"
    " where queue_id = '{phase}'",
    "cancelled": "select pgcoord.cancel_phase('{phase}', 'x')",
    "completed": "select pgcoord.skip_phase('{phase}', 'x')",
    "blocked": "select pgcoord.cancel_phase('queue-{feature}-1', 'x')",
}
SHAPES: dict[str, dict[int, list[int]]] = {
    "alone": {1: [], 2: []},
    "in the middle": {1: [], 2: [1], 3: [2], 4: [2], 5: [3, 4], 6: []},
}
ACTIONS = {
    "retry": "select pgcoord.retry_phase('{phase}')",
    "skip": "select pgcoord.skip_phase('{phase}', 'x')",
    "cancel": "select pgcoord.cancel_phase('{phase}', 'x')",
    "cancel_branch": "select pgcoord.cancel_branch('{phase}', 'x')",
    "cancel_feature": "select pgcoord.cancel_feature({feature}, 'x')",
}


def stand(conn: Connection, epoch: int, shape: str, state: str) -> tuple[int, str]:
    """A feature whose phase 2 is in a state: its id, and the phase."""
    conn.execute("update planned_features set paused_at = now() where paused_at is null")
    feature = add_feature(conn, SHAPES[shape], priority=1)
    phase = f"queue-{feature}-2"
    if shape != "alone" and state != "blocked":
        conn.execute(f"select pgcoord.skip_phase('queue-{feature}-1', 'x')".encode())
    for step in STANDS[state].split(" | "):
        if step == "claim":
            conn.execute("select pgcoord.set_slots(1000)")
            assert phase in claim(conn, epoch)
        elif step == "start":
            start(conn, epoch, phase)
        elif step:
            conn.execute(step.format(feature=feature, phase=phase).encode())
    return feature, phase


def rows_or_error(conn: Connection, statement: str, *values: object) -> list[dict[str, Any]] | str:
    try:
        return rows(conn, statement, *values)
    except psycopg.Error as error:
        return error.sqlstate or ""


def end_processes(conn: Connection, feature: int) -> None:
    """What a coordinator does when the end of processes was asked for."""
    conn.execute(
        "select pgcoord_private.end_attempt(id, 143) from pgcoord.attempt"
        " where queue_id like %s and ending is not null and exited_at is null",
        [f"queue-{feature}-%"],
    )


@pytest.mark.scale
def test_a_preview_equals_the_outcome_of_its_action(conn: Connection, epoch: int) -> None:
    """Every action on a phase in every state, alone and with phases around it."""
    for action, shape, state in itertools.product(ACTIONS, SHAPES, STANDS):
        if (shape, state) == ("alone", "blocked"):
            continue
        with case(action, shape, state):
            feature, phase = stand(conn, epoch, shape, state)
            before = statuses(conn, feature)
            of = (action, feature if action == "cancel_feature" else None, phase)
            shown = rows_or_error(conn, "select * from pgcoord.preview(%s, %s, %s)", *of)
            assert statuses(conn, feature) == before
            act = ACTIONS[action].format(feature=feature, phase=phase)
            done = rows_or_error(conn, act)
            if isinstance(done, str):
                assert shown == done
                continue
            end_processes(conn, feature)
            after = statuses(conn, feature)
            assert not isinstance(shown, str)
            assert [
                (each["phase_number"], each["from_status"], each["to_status"]) for each in shown
            ] == [(n, before[n], after[n]) for n in before if before[n] != after[n]]


def test_a_preview_of_cancelling_a_running_phase_names_its_end_and_blocked_phases(
    conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {1: [], 2: [1]})
    [queue_id] = claim(conn, epoch)
    start(conn, epoch, queue_id)
    found = rows(conn, "select * from pgcoord.preview('cancel', null, %s)", queue_id)
    assert [(row["to_status"], row["words"]) for row in found] == [
        ("cancelled", "its process is ended first"),
        ("blocked", "waits for phase 1, cancelled"),
    ]
    assert statuses(conn, feature) == {1: "running", 2: "queued"}


def test_a_preview_is_refused_as_the_action_is(conn: Connection) -> None:
    feature = add_feature(conn, {1: []})
    with pytest.raises(psycopg.Error) as caught:
        preview(conn, "retry", f"queue-{feature}-1")
    assert caught.value.sqlstate == "PC002"


# --- Actions and lists


def test_a_branch_is_cancelled_down_to_its_ends(conn: Connection) -> None:
    feature = add_feature(conn, {1: [], 2: [1], 3: [2], 4: [1], 5: [3, 4]})
    conn.execute("select pgcoord.skip_phase(%s, 'x')", [f"queue-{feature}-1"])
    [row] = rows(conn, "select pgcoord.cancel_branch(%s, 'why') as n", f"queue-{feature}-2")
    assert row["n"] == 3
    ended = {2: "cancelled", 3: "cancelled", 5: "cancelled"}
    assert statuses(conn, feature) == {1: "completed", 4: "queued", **ended}


def listed(conn: Connection, show: str, search: str | None = None) -> list[int]:
    found = rows(conn, "select pgcoord_private.list_features(%s, %s, 50) as id", show, search)
    return [row["id"] for row in found]


def test_features_are_filtered_by_status_and_found_by_name(conn: Connection, epoch: int) -> None:
    done, planned, running, empty = (
        add_feature(conn, {1: []}),
        add_feature(conn, {1: [], 2: [1]}),
        add_feature(conn, {1: []}),
        add_feature(conn, {}),
    )
    conn.execute("select pgcoord.skip_phase(%s, 'x')", [f"queue-{done}-1"])
    conn.execute("update phase_queue set priority = 1 where feature_id = %s", [running])
    conn.execute("select pgcoord.set_slots(1)")
    assert claim(conn, epoch) == [f"queue-{running}-1"]
    conn.execute("update planned_features set title = '100 %% of it' where id = %s", [empty])
    assert listed(conn, "all") == [planned, running, empty, done]
    assert listed(conn, "planned") == [empty]
    assert listed(conn, "in_progress") == [planned, running]
    assert listed(conn, "finished") == [done]
    assert listed(conn, "ready") == [running]
    assert listed(conn, "all", "0 %") == [empty]
    assert listed(conn, "all", f"queue-{planned}-2") == [planned]
    assert listed(conn, "all", "PHASE 2") == [planned]
    assert listed(conn, "all", "_") == []
    conn.execute("update phase_queue set issue_number = 17 where feature_id = %s", [planned])
    assert listed(conn, "all", "#17") == [planned]
    [attempt] = rows(conn, "select adw_id from pgcoord.attempt")
    assert listed(conn, "all", attempt["adw_id"]) == [running]
    assert listed(conn, "completed") == [done]


def test_the_line_is_in_the_order_of_claims(conn: Connection) -> None:
    feature = add_feature(conn, {1: [], 2: [], 3: [1]})
    add_phase(conn, feature, 4, priority=10)
    line = rows(conn, "select phase_number from pgcoord.line")
    assert [row["phase_number"] for row in line] == [4, 1, 2]
    [backlog] = rows(conn, "select * from pgcoord.backlog")
    assert backlog == {
        "in_line": 3,
        "for_phases": 1,
        "paused": 0,
        "for_retry": 0,
        "for_approval": 0,
    }


def test_phases_that_no_coordinator_can_run_are_not_in_line(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {1: [], 2: []})
    conn.execute("""update phase_queue set phase_data = '{"workflow_type": "strange"}'
        where phase_number = 1""")
    assert rows(conn, "select queue_id from pgcoord.line") == [{"queue_id": f"queue-{feature}-2"}]
    [backlog] = rows(conn, "select * from pgcoord.backlog")
    assert backlog["in_line"] == 1


def test_another_priority_and_another_plan_leave_events(conn: Connection) -> None:
    feature = add_feature(conn, {1: []})
    conn.execute("update phase_queue set priority = 7")
    conn.execute("update planned_features set plan = '[]' where id = %s", [feature])
    kinds = rows(conn, "select kind, reason from pgcoord.event order by id desc limit 2")
    assert [tuple(row.values()) for row in kinds] == [
        ("feature_changed", "plan"),
        ("phase_reprioritised", "priority 50 → 7"),
    ]
