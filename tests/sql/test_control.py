"""Control: the number of slots, pauses, the lead, and wake-ups of the coordinator."""

from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from support import PATIENCE
from support.database import (
    WORKFLOW,
    Connection,
    add_feature,
    add_phase,
    claim,
    one,
    refused,
    slots,
    start,
    statuses,
    take_lead,
)

from pgcoord.actions import ACTIONS, Action


def set_slots(conn: Connection, number: int) -> None:
    conn.execute("select pgcoord.set_slots(%s)", [number])


def complete(conn: Connection, number: int) -> None:
    conn.execute("update phase_queue set status = 'completed' where phase_number = %s", [number])


def live(conn: Connection) -> list[int]:
    return [number for number, status in statuses(conn).items() if status in ("ready", "running")]


def events(conn: Connection) -> list[tuple[str, str | None]]:
    """What happened to the installation and to features, with its reason."""
    rows = conn.execute(
        "select kind, reason from pgcoord.event where queue_id is null order by id"
    ).fetchall()
    return [(row["kind"], row["reason"]) for row in rows]


@pytest.fixture
def ten(conn: Connection, epoch: int) -> int:
    """A feature of ten phases that wait for nothing."""
    return add_feature(conn, {number: [] for number in range(1, 11)})


@pytest.mark.parametrize(
    "action", [each for each in ACTIONS if "reason" in each.arguments], ids=lambda each: each.name
)
def test_no_action_needs_a_reason(conn: Connection, action: Action) -> None:
    feature = add_feature(conn, {1: []})
    add_phase(conn, feature, 2, status="failed")
    add_phase(conn, feature, 3, phase_data=Jsonb({"gate": "Shall it run?"}))
    number = {"retry": 2, "approve": 3, "reject": 3}.get(action.verb, 1)
    conn.execute("select pgcoord.add_schedule('nightly', '0 3 * * *', pgcoord.feature_plan(1))")
    targets: dict[str, list[Any]] = {
        "phase": [f"queue-{feature}-{number}"],
        "feature": [feature],
        "all": [],
    }
    values = targets.get(action.scope, ["nightly"])
    conn.execute(f"select {action.statement(*('%s' for _ in values))}".encode(), values)


def test_a_preview_names_a_feature_or_a_phase(conn: Connection) -> None:
    feature = add_feature(conn, {1: [], 2: []})
    for arguments, changed in (("p_queue_id => 'queue-1-2'", 1), ("p_feature_id => 1", 2)):
        action = "cancel" if changed == 1 else "cancel_feature"
        rows = conn.execute(f"select from pgcoord.preview('{action}', {arguments})".encode())
        assert len(rows.fetchall()) == changed
    with refused("PC001", "there is no phase null"):
        conn.execute("select pgcoord.preview('cancel')")
    assert statuses(conn, feature) == {1: "queued", 2: "queued"}


# --- Slots


def test_three_slots_to_begin_with(conn: Connection) -> None:
    assert slots(conn) == {1: False, 2: False, 3: False}


def test_raised_slots_are_used_at_once(conn: Connection, epoch: int, ten: int) -> None:
    claim(conn, epoch)
    set_slots(conn, 5)
    claim(conn, epoch)
    assert live(conn) == [1, 2, 3, 4, 5]
    assert events(conn)[-1] == ("slots_changed", "3 → 5")


def test_lowered_slots_that_are_free_go_at_once(conn: Connection) -> None:
    set_slots(conn, 1)
    assert slots(conn) == {1: False}


def test_lowered_slots_that_are_held_drain(conn: Connection, epoch: int, ten: int) -> None:
    claim(conn, epoch)
    set_slots(conn, 1)
    assert slots(conn) == {1: False, 2: True, 3: True}
    assert live(conn) == [1, 2, 3]
    complete(conn, 3)
    assert claim(conn, epoch) == []
    assert slots(conn) == {1: False, 2: True}
    complete(conn, 1)
    assert len(claim(conn, epoch)) == 1, "slot 1 is not draining"
    complete(conn, 2)
    assert claim(conn, epoch) == []
    assert slots(conn) == {1: False}
    assert live(conn) == [4]


def test_free_slots_go_before_held_ones(conn: Connection, epoch: int, ten: int) -> None:
    claim(conn, epoch)
    conn.execute("select pgcoord.pause()")
    complete(conn, 1)
    set_slots(conn, 2)
    assert slots(conn) == {2: False, 3: False}


def test_raising_takes_draining_slots_back_first(conn: Connection, epoch: int, ten: int) -> None:
    claim(conn, epoch)
    set_slots(conn, 1)
    set_slots(conn, 2)
    assert slots(conn) == {1: False, 2: False, 3: True}
    set_slots(conn, 4)
    assert slots(conn) == {1: False, 2: False, 3: False, 4: False}
    claim(conn, epoch)
    assert live(conn) == [1, 2, 3, 4]


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled", "returned"])
def test_a_draining_slot_goes_however_its_phase_ends(
    conn: Connection, epoch: int, end: str
) -> None:
    feature = add_feature(conn, {1: []})
    claim(conn, epoch)
    set_slots(conn, 0)
    assert slots(conn) == {1: True}
    number = one(conn, "select id from pgcoord.attempt")["id"]
    if end == "completed":
        complete(conn, 1)
    elif end == "cancelled":
        conn.execute("select pgcoord.cancel_phase(%s, 'x')", [f"queue-{feature}-1"])
        assert slots(conn) == {1: True}
        conn.execute("select pgcoord_private.end_attempt(%s, 143)", [number])
    else:
        conn.execute("select pgcoord.give_up_attempt(%s, %s, 'x')", [number, end])
    assert slots(conn) == {}


def test_with_no_slots_nothing_is_claimed_or_inserted_as_running(
    conn: Connection, epoch: int, ten: int
) -> None:
    set_slots(conn, 0)
    assert slots(conn) == {}
    assert claim(conn, epoch) == []
    with refused("PC006", "0 of 0"):
        add_phase(conn, ten, 11, status="running")
    set_slots(conn, 1)
    assert len(claim(conn, epoch)) == 1


def test_a_draining_slot_is_not_given_to_a_phase_inserted_as_running(
    conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {1: [], 2: []})
    claim(conn, epoch)
    set_slots(conn, 1)
    with refused("PC006", "no slot is free"):
        add_phase(conn, feature, 3, status="running")


def test_a_changed_limit_of_slots_holds_from_the_next_claim(conn: Connection, epoch: int) -> None:
    waiting = 30
    add_feature(conn, {number: [] for number in range(1, waiting + 1)})
    for limit in (5, 2, 4, 1, 3):
        was = len(live(conn))
        set_slots(conn, limit)
        waiting -= len(claim(conn, epoch))
        assert len(live(conn)) == max(was, limit)
        while len(live(conn)) > limit:
            complete(conn, live(conn)[0])
            waiting -= len(claim(conn, epoch))
        assert len(live(conn)) == limit
        assert sum(status == "queued" for status in statuses(conn).values()) == waiting
        complete(conn, live(conn)[0])


@pytest.mark.parametrize("number", [-1, 1001, None])
def test_an_invalid_number_of_slots_is_refused(conn: Connection, number: int | None) -> None:
    with refused("PC005", "is not a number of slots"):
        conn.execute("select pgcoord.set_slots(%s::integer)", [number])
    assert len(slots(conn)) == 3


def test_the_same_number_of_slots_leaves_no_event(conn: Connection) -> None:
    set_slots(conn, 3)
    assert events(conn) == []


# --- Pauses


def test_nothing_is_claimed_while_everything_is_paused(
    conn: Connection, epoch: int, ten: int
) -> None:
    conn.execute("select pgcoord.pause(p_reason => 'lunch')")
    assert claim(conn, epoch) == []
    conn.execute("select pgcoord.pause()")
    assert one(conn, "select paused_reason from pgcoord.control")["paused_reason"] == "lunch"
    conn.execute("select pgcoord.resume()")
    conn.execute("select pgcoord.resume()")
    assert len(claim(conn, epoch)) == 3
    assert events(conn)[-2:] == [("paused", "lunch"), ("resumed", None)]


def test_running_phases_go_on_while_everything_is_paused(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {1: [], 2: [1]})
    [queue_id] = claim(conn, epoch)
    conn.execute("select pgcoord.pause()")
    start(conn, epoch, queue_id)
    complete(conn, 1)
    assert statuses(conn, feature) == {1: "completed", 2: "queued"}
    assert claim(conn, epoch) == []


@pytest.mark.parametrize(
    ("pause", "resume"),
    [
        ("select pgcoord.pause(%s)", "select pgcoord.resume(%s)"),
        (
            "update planned_features set paused_at = now() where id = %s",
            "update planned_features set paused_at = null where id = %s",
        ),
    ],
    ids=["function", "by hand"],
)
def test_a_paused_feature_is_held_back_and_no_other(
    conn: Connection, epoch: int, pause: str, resume: str
) -> None:
    paused, other = add_feature(conn, {1: [], 2: [1]}), add_feature(conn, {1: []})
    conn.execute(pause.encode(), [paused])
    add_phase(conn, paused, 3)
    assert claim(conn, epoch) == [f"queue-{other}-1"]
    conn.execute(resume.encode(), [paused])
    assert claim(conn, epoch) == [f"queue-{paused}-1", f"queue-{paused}-3"]
    kinds = [kind for kind, _ in events(conn)]
    assert kinds[-2:] == ["feature_paused", "feature_resumed"]


def test_a_phase_that_returns_to_a_paused_feature_is_held(conn: Connection, epoch: int) -> None:
    conn.execute("update pgcoord.workflow set max_attempts = 2, retry_delay = '0'")
    feature = add_feature(conn, {1: [], 2: [], 3: [], 4: [3]})
    claim(conn, epoch)
    conn.execute("select pgcoord.cancel_phase(%s, 'x')", [f"queue-{feature}-3"])
    conn.execute("select pgcoord_private.end_attempt(id, 1) from pgcoord.attempt where slot <> 2")
    conn.execute("select pgcoord.pause(%s)", [feature])
    conn.execute("select pgcoord_private.end_attempt(id, 1) from pgcoord.attempt where slot = 2")
    conn.execute("select pgcoord.retry_phase(%s)", [f"queue-{feature}-3"])
    assert statuses(conn) == {1: "queued", 2: "queued", 3: "queued", 4: "queued"}
    assert claim(conn, epoch) == []
    conn.execute("select pgcoord.resume(%s)", [feature])
    assert len(claim(conn, epoch)) == 3


def test_resuming_everything_leaves_a_paused_feature_paused(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {1: []})
    conn.execute("select pgcoord.pause(%s), pgcoord.pause()", [feature])
    conn.execute("select pgcoord.resume()")
    assert claim(conn, epoch) == []


@pytest.mark.parametrize("function", ["pause", "resume"])
def test_a_feature_that_does_not_exist_cannot_be_paused(conn: Connection, function: str) -> None:
    with refused("PC001", "there is no feature 99"):
        conn.execute(f"select pgcoord.{function}(99)".encode())


# --- The lead


def test_a_lead_replaces_the_workflows_and_grows(conn: Connection) -> None:
    first = take_lead(conn)
    second = take_lead(conn, WORKFLOW | {"name": "other", "timeout_seconds": 90})
    assert second == first + 1
    rows = conn.execute("select name, timeout from pgcoord.workflow").fetchall()
    assert [(row["name"], row["timeout"].total_seconds()) for row in rows] == [("other", 90)]
    leader = one(conn, "select epoch, host, pid from pgcoord.leader")
    assert leader == {"epoch": second, "host": "here", "pid": 1}


def ask_for_lead(conn: Connection, after: int = 0) -> dict[str, Any]:
    """Ask as a coordinator on `there` would."""
    asked = "select * from pgcoord_private.lead('there', 2, '0', '/runs', %s, %s)"
    answer = conn.execute(asked, [Jsonb([WORKFLOW]), after]).fetchone()
    assert answer
    return answer


@pytest.mark.scale
def test_a_second_coordinator_cannot_lead_and_learns_the_leader(
    conn: Connection, epoch: int, dsn: str
) -> None:
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as other:
        answer = ask_for_lead(other)
        assert answer == {"led": False, "epoch": epoch, "host": "here", "pid": 1}
        assert one(conn, "select epoch from pgcoord.control")["epoch"] == epoch
        assert one(conn, "select host from pgcoord.leader")["host"] == "here"


def test_nobody_leads_once_the_connection_is_gone(conn: Connection, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as other:
        assert ask_for_lead(other)["led"]
    # Waits for the lock of the connection that is just going away.
    assert take_lead(conn) == 2
    assert one(conn, "select host from pgcoord.leader")["host"] == "here"


@pytest.mark.scale
def test_a_coordinator_without_the_control_row_does_not_keep_others_from_leading(
    conn: Connection, dsn: str
) -> None:
    with (
        psycopg.connect(dsn) as holder,
        psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as other,
    ):
        holder.execute("select pgcoord.pause()")
        answer = ask_for_lead(other)
        assert answer == {"led": False, "epoch": None, "host": None, "pid": None}
        holder.rollback()
        assert take_lead(conn) == 1


def test_no_epoch_comes_twice_though_a_failover_lost_the_last_ones(conn: Connection) -> None:
    assert ask_for_lead(conn, after=7)["epoch"] == 8


def test_a_lead_given_back_wakes_stand_bys(conn: Connection, dsn: str) -> None:
    take_lead(conn)
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as other:
        other.execute("listen pgcoord_stand_by")
        conn.execute("select pgcoord_private.resign()")
        assert [note.channel for note in other.notifies(timeout=PATIENCE, stop_after=1)]
        assert other.execute("select from pgcoord.leader").fetchall() == []
        assert ask_for_lead(other)["led"]


def test_lineage_returns_the_system_identifier_and_the_timeline_of_the_server(
    conn: Connection,
) -> None:
    lineage = one(conn, "select * from pgcoord_private.lineage()")
    assert lineage["system"] == one(conn, "select * from pg_control_system()")["system_identifier"]
    assert lineage["timeline"] == one(conn, "select * from pg_control_checkpoint()")["timeline_id"]


@pytest.mark.parametrize(
    "workflow",
    [
        {"max_attempts": 0},
        {"name": None},
        {"default": None},
        {"max_attempts": "many"},
    ],
)
def test_a_refused_declaration_of_workflows_leaves_the_lead_unchanged(
    conn: Connection, epoch: int, workflow: dict[str, Any]
) -> None:
    with pytest.raises(psycopg.Error):
        take_lead(conn, WORKFLOW | workflow)
    assert one(conn, "select epoch from pgcoord.control")["epoch"] == epoch
    assert one(conn, "select name from pgcoord.workflow")["name"] == "work"


def test_two_default_workflows_are_refused(conn: Connection) -> None:
    with refused("23505", "workflow_default_key"):
        take_lead(conn, WORKFLOW, WORKFLOW | {"name": "other"})


# --- Waking


@pytest.mark.parametrize(
    ("statement", "wakes"),
    [
        ("insert into phase_queue (feature_id, phase_number) select id, 9 from one", True),
        (
            "insert into phase_queue (feature_id, phase_number, depends_on_phases)"
            " select id, 9, '[2]' from one",
            False,
        ),
        ("update phase_queue set status = 'completed' where phase_number = 1", True),
        ("select pgcoord.cancel_phase(queue_id, 'x') from phase_queue where slot = 1", True),
        ("select pgcoord.cancel_phase(queue_id, 'x') from phase_queue where slot is null", False),
        ("select pgcoord.skip_phase(queue_id, 'x') from phase_queue where slot is null", False),
        ("select pgcoord_private.end_attempt(id, 1) from pgcoord.attempt", True),
        ("update phase_queue set depends_on_phases = '[]' where phase_number = 2", True),
        ("update phase_queue set priority = 1 where slot = 1", False),
        ("select pgcoord.set_slots(4)", True),
        ("select pgcoord.pause()", False),
        ("select pgcoord.pause(id) from one", False),
    ],
)
def test_the_coordinator_is_woken_when_something_may_have_become_claimable(
    conn: Connection, epoch: int, statement: str, wakes: bool
) -> None:
    add_feature(conn, {1: [], 2: [1]})
    claim(conn, epoch)
    conn.execute("create temporary view one as select id from planned_features")
    messages: list[str] = []
    conn.add_notify_handler(lambda notify: messages.append(notify.payload))
    conn.execute("listen pgcoord_wake")
    conn.execute(statement.encode())
    assert bool(messages) == wakes


@pytest.mark.parametrize("what", ["pgcoord.resume()", "pgcoord.resume(id)"])
def test_resuming_wakes_the_coordinator(conn: Connection, what: str) -> None:
    feature = add_feature(conn, {1: []})
    conn.execute("select pgcoord.pause(), pgcoord.pause(%s)", [feature])
    messages: list[str] = []
    conn.add_notify_handler(lambda notify: messages.append(notify.channel))
    conn.execute("listen pgcoord_wake")
    conn.execute(f"select {what} from planned_features".encode())
    assert messages == ["pgcoord_wake"]


def test_listeners_learn_which_feature_changed(conn: Connection, epoch: int) -> None:
    first, second = add_feature(conn, {1: []}), add_feature(conn, {1: []})
    messages: list[str] = []
    conn.add_notify_handler(lambda notify: messages.append(notify.payload))
    conn.execute("listen pgcoord_event")
    conn.execute("update phase_queue set status = 'completed' where feature_id = %s", [first])
    assert messages == [str(first)]
    conn.execute("select pgcoord.pause(%s)", [second])
    assert messages == [str(first), str(second)]
    set_slots(conn, 4)
    assert messages == [str(first), str(second), ""]


NAMELESS: Any = [
    "pgcoord.complete_phase(null)",
    "pgcoord.cancel_phase(null, 'why')",
    "pgcoord.why(null)",
    "pgcoord.cancel_feature(null, 'why')",
    "pgcoord.delete_schedule(null)",
]


@pytest.mark.parametrize("call", NAMELESS)
def test_a_null_name_is_refused_with_a_hint(conn: Connection, call: str) -> None:
    with pytest.raises(psycopg.Error, match=r"there is no \w+ null") as caught:
        conn.execute(f"select * from {call}".encode())
    assert (caught.value.sqlstate, bool(caught.value.diag.message_hint)) == ("PC001", True)
