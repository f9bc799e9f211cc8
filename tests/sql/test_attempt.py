"""Attempts: which phase is claimed next, and what becomes of it when its process ends."""

import re
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from support import PATIENCE
from support.database import (
    WORKFLOW,
    Connection,
    add_feature,
    add_phase,
    attempt_of,
    claim,
    one,
    phase,
    refused,
    start,
    statuses,
    take_lead,
)


def end(conn: Connection, queue_id: str, exit_code: int, log_tail: str = "") -> None:
    conn.execute(
        "select pgcoord_private.end_attempt(%s, %s, %s)",
        [attempt_of(conn, queue_id)["id"], exit_code, log_tail],
    )


def give_up(conn: Connection, queue_id: str, outcome: str, error: str) -> None:
    conn.execute(
        "select pgcoord.give_up_attempt(%s, %s, %s)",
        [attempt_of(conn, queue_id)["id"], outcome, error],
    )


def retry_wait(conn: Connection, queue_id: str) -> float:
    """Seconds from the end of the latest attempt to the retry time."""
    row = one(
        conn,
        "select extract(epoch from p.retry_at - a.ended_at)::float8 as seconds"
        " from phase_queue as p join pgcoord.attempt as a"
        " on a.queue_id = p.queue_id and a.number = p.attempt where p.queue_id = %s",
        queue_id,
    )
    return float(row["seconds"])


def come_due(conn: Connection) -> None:
    """Let the retry times pass."""
    conn.execute(
        "update phase_queue set retry_at = now() - interval '1 s' where retry_at is not null"
    )


def running(conn: Connection, epoch: int, **phase_data: Any) -> str:
    """A phase whose process was started."""
    queue_id = add_phase(conn, add_feature(conn, {}), 1, phase_data=Jsonb(phase_data))
    assert claim(conn, epoch) == [queue_id]
    start(conn, epoch, queue_id)
    return queue_id


# --- Claiming


def test_a_claim_gives_number_adw_id_slot_and_all_that_is_needed_to_run(
    conn: Connection, epoch: int
) -> None:
    data = {"title": "T", "prompt_content": "P"}
    queue_id = add_phase(conn, add_feature(conn, {}), 1, phase_data=Jsonb(data), issue_number=7)
    given = one(conn, "select * from pgcoord_private.claim_phases(%s)", epoch)
    row = phase(conn, queue_id)
    assert (row["status"], row["slot"], row["attempt"]) == ("ready", 1, 1)
    assert row["adw_id"] == given["adw_id"]
    assert row["ready_timestamp"]
    assert row["started_timestamp"] is None
    assert re.fullmatch("adw-[0-9a-f]{8}", given["adw_id"])
    assert re.fullmatch("whsec_[A-Za-z0-9+/]{43}=", given["secret"])
    installation, place = one(conn, "select installation, place from pgcoord.control").values()
    folder = f"/runs/{installation}/{given['attempt_id']}-[0-9a-f]{{8}}{place}"
    assert re.fullmatch(folder, given["folder"])
    assert {name: given[name] for name in ("host", "workflow", "title", "prompt")} == {
        "host": "here",
        "workflow": "work",
        "title": "T",
        "prompt": "P",
    }
    assert (given["issue_number"], given["started"], given["ended"]) == (7, False, False)


def test_a_claim_returns_rows_of_the_view_of_assignments(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {1: [], 2: [], 3: []})
    conn.execute("select pgcoord.set_slots(2)")
    claimed = conn.execute("select * from pgcoord_private.claim_phases(%s)", [epoch]).fetchall()
    shown = conn.execute("select * from pgcoord_private.assignment order by attempt_id").fetchall()
    assert claimed == shown
    assert [each["queue_id"] for each in claimed] == [f"queue-{feature}-{n}" for n in (1, 2)]


def test_a_claim_without_a_free_slot_writes_nothing_and_waits_for_nobody(
    dsn: str, conn: Connection, epoch: int
) -> None:
    add_feature(conn, {number: [] for number in range(1, 5)})
    assert len(claim(conn, epoch)) == 3
    with psycopg.connect(dsn) as other:
        other.execute("select from pgcoord.control for update")
        with conn.transaction():
            assert claim(conn, epoch) == []
            assert one(conn, "select pg_current_xact_id_if_assigned() as id")["id"] is None
        with refused("PC007", "lead"):
            claim(conn, epoch - 1)


@pytest.mark.own_database
def test_plans_made_before_there_were_attempts_read_no_more_of_them_later(
    conn: Connection, epoch: int
) -> None:
    add_feature(conn, {number: [] for number in range(1, 60)})
    held = claim(conn, epoch)
    with conn.transaction():
        for _ in range(50):
            conn.execute("select from pgcoord.complete_phase(%s)", [held.pop(0)])
            held += claim(conn, epoch)
        read = one(
            conn,
            "select seq_tup_read as one_by_one, idx_tup_fetch as by_index"
            " from pg_stat_xact_user_tables where relid = 'pgcoord.attempt'::regclass",
        )
    assert read["one_by_one"] == 0
    # each is looked up a few times: all of them would be 1,000
    assert read["by_index"] <= 4 * 50 + 10


def test_a_claim_takes_one_phase_for_each_free_slot(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {number: [] for number in range(1, 6)})
    assert claim(conn, epoch) == [f"queue-{feature}-{n}" for n in (1, 2, 3)]
    assert claim(conn, epoch) == []
    end(conn, f"queue-{feature}-2", 0)
    assert claim(conn, epoch) == [f"queue-{feature}-4"]
    assert phase(conn, f"queue-{feature}-4")["slot"] == 2


def test_claims_are_in_order_of_priority_place_feature_and_number(
    conn: Connection, epoch: int
) -> None:
    first, second = add_feature(conn, {}), add_feature(conn, {})
    # Each differs from the one before in the key whose turn it is, and the other way in the rest.
    expected = [
        (10, 9, second, 9),
        (50, 1, second, 8),
        (50, 2, first, 5),
        (50, 2, first, 6),
        (50, 2, second, 1),
        (90, 1, first, 1),
    ]
    for priority, position, feature, number in reversed(expected):
        add_phase(conn, feature, number, priority=priority, queue_position=position)
    conn.execute("select pgcoord.set_slots(6)")
    assert claim(conn, epoch) == [f"queue-{feature}-{number}" for *_, feature, number in expected]


def test_only_declared_workflows_are_claimed(conn: Connection) -> None:
    feature = add_feature(conn, {})
    for number, name in enumerate(["work", "other", None, "strange", "WORK"], 1):
        add_phase(conn, feature, number, phase_data=Jsonb({"workflow_type": name}))
    conn.execute("select pgcoord.set_slots(10)")
    epoch = take_lead(conn, WORKFLOW, WORKFLOW | {"name": "other", "default": False})
    claim(conn, epoch)
    rows = conn.execute(
        "select phase_number, workflow from pgcoord.attempt join phase_queue using (queue_id)"
        " order by phase_number"
    ).fetchall()
    assert [tuple(row.values()) for row in rows] == [(1, "work"), (2, "other"), (3, "work")]


def test_a_phase_without_workflow_waits_where_none_is_the_default(conn: Connection) -> None:
    feature = add_feature(conn, {1: []})
    epoch = take_lead(conn, WORKFLOW | {"default": False})
    assert claim(conn, epoch) == []
    conn.execute('update phase_queue set phase_data = \'{"workflow_type": "work"}\'')
    assert claim(conn, epoch) == [f"queue-{feature}-1"]


def test_max_attempts_and_timeout_of_a_phase_override_its_workflow(
    conn: Connection, epoch: int
) -> None:
    queue_id = running(conn, epoch, max_attempts=4, timeout_seconds=1.5)
    row = attempt_of(conn, queue_id)
    assert (row["max_attempts"], row["timeout"].total_seconds()) == (4, 1.5)
    assert (row["deadline"] - row["started_at"]).total_seconds() == pytest.approx(1.5, abs=1)


def test_the_declaration_at_the_time_of_the_claim_counts(conn: Connection) -> None:
    epoch = take_lead(conn, WORKFLOW | {"reports": True, "timeout_seconds": 60, "max_attempts": 2})
    queue_id = running(conn, epoch)
    epoch = take_lead(conn, WORKFLOW)
    end(conn, queue_id, 0)
    assert phase(conn, queue_id)["status"] == "queued"
    assert attempt_of(conn, queue_id)["error"] == "exited 0 without reporting"


def test_a_lead_that_is_over_can_neither_claim_nor_start(conn: Connection, epoch: int) -> None:
    queue_id = running(conn, epoch)
    assert take_lead(conn) == epoch + 1
    add_feature(conn, {1: []})
    was = statuses(conn), attempt_of(conn, queue_id)
    for stale in (epoch, epoch + 2, None):
        with refused("PC007", "is over"):
            conn.execute("select pgcoord_private.claim_phases(%s::bigint)", [stale])
        with refused("PC007", "is over"):
            conn.execute(
                "select pgcoord_private.start_phase(%s, %s, 2, 'now')",
                [stale, attempt_of(conn, queue_id)["id"]],
            )
    assert (statuses(conn), attempt_of(conn, queue_id)) == was


def test_a_claim_skips_a_phase_that_somebody_has_locked(
    conn: Connection, epoch: int, dsn: str
) -> None:
    feature = add_feature(conn, {1: [], 2: []})
    with psycopg.connect(dsn) as other:
        other.execute("select from phase_queue where phase_number = 1 for update")
        assert claim(conn, epoch) == [f"queue-{feature}-2"]
        locked = one(conn, "select * from pgcoord_private.next_work()")["locked"]
        assert locked == [f"phase queue-{feature}-1"]
    assert claim(conn, epoch) == [f"queue-{feature}-1"]
    assert one(conn, "select * from pgcoord_private.next_work()")["locked"] == []


def test_every_attempt_gets_an_adw_id_of_its_own(conn: Connection) -> None:
    row = one(
        conn,
        "select count(distinct pgcoord_private.adw_id(n, 77)) as different,"
        " bool_and(pgcoord_private.adw_id(n, 77) ~ '^adw-[0-9a-f]{8}$') as well_formed"
        " from generate_series(1, 20000) as n",
    )
    assert row == {"different": 20000, "well_formed": True}


def test_an_adw_id_that_a_client_used_is_not_given_again(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {1: []})
    # The id that the next attempt would get: the running phase's own attempt takes a number first.
    coming = one(
        conn,
        "select pgcoord_private.adw_id(nextval('pgcoord.attempt_id') + 2, adw_offset) as adw_id"
        " from pgcoord.control",
    )["adw_id"]
    add_phase(conn, feature, 2, status="running", adw_id=coming)
    [queue_id] = claim(conn, epoch)
    assert attempt_of(conn, queue_id)["adw_id"] != coming


def test_an_adw_id_is_of_one_attempt(conn: Connection) -> None:
    feature = add_feature(conn, {})
    add_phase(conn, feature, 1, status="running", adw_id="adw-ghi789")
    taken = "running with adw_id adw-ghi789: attempt 1 of phase queue-1-1 has it, which"
    with refused("PC005", f"phase queue-1-2 cannot be inserted as {taken} runs"):
        add_phase(conn, feature, 2, status="running", adw_id="adw-ghi789")
    conn.execute("select pgcoord.complete_phase('queue-1-1')")
    with refused("PC005", f"{taken} has ended"):
        add_phase(conn, feature, 2, status="running", adw_id="adw-ghi789")
    with refused("PC005", "phase queue-1-3 cannot be inserted as running with adw_id twice"):
        conn.execute(
            "insert into phase_queue (feature_id, phase_number, status, adw_id)"
            " values (1, 2, 'running', 'twice'), (1, 3, 'running', 'twice')"
        )
    assert statuses(conn) == {1: "completed"}


# --- Starting and ending


def test_a_started_phase_is_running(conn: Connection, epoch: int) -> None:
    queue_id = running(conn, epoch)
    row, tried = phase(conn, queue_id), attempt_of(conn, queue_id)
    assert row["status"] == "running"
    assert row["started_timestamp"] >= row["ready_timestamp"]
    assert (tried["pid"], tried["process_started"]) == (1, "then")
    assert tried["deadline"] is None


def test_a_report_before_the_start_was_recorded_stands(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {1: []})
    [queue_id] = claim(conn, epoch)
    conn.execute("select pgcoord.complete_phase(%s)", [queue_id])
    conn.execute(
        "select pgcoord_private.start_phase(%s, %s, 5, 'now')",
        [epoch, attempt_of(conn, queue_id)["id"]],
    )
    assert statuses(conn, feature) == {1: "completed"}
    tried = attempt_of(conn, queue_id)
    assert (tried["pid"], tried["outcome"], tried["exited_at"]) == (5, "completed", None)
    left = one(conn, "select pid, ended from pgcoord_private.assignment")
    assert left == {"pid": 5, "ended": True}


@pytest.mark.parametrize(
    ("reports", "exit_code", "status", "error"),
    [
        (False, 0, "completed", None),
        (True, 0, "failed", "exited 0 without reporting\nlast words"),
        (False, 1, "failed", "exited with status 1\nlast words"),
        (True, 2, "failed", "exited with status 2\nlast words"),
        (False, 128, "failed", "exited with status 128\nlast words"),
        (False, 137, "failed", "exited with status 137 (signal 9)\nlast words"),
    ],
)
def test_an_exit_without_a_report_decides(
    conn: Connection, reports: bool, exit_code: int, status: str, error: str | None
) -> None:
    epoch = take_lead(conn, WORKFLOW | {"reports": reports})
    queue_id = running(conn, epoch)
    end(conn, queue_id, exit_code, "last words")
    row, tried = phase(conn, queue_id), attempt_of(conn, queue_id)
    assert (row["status"], row["error_message"], row["slot"]) == (status, error, None)
    assert (tried["outcome"], tried["error"], tried["exit_code"]) == (status, error, exit_code)
    assert tried["ended_at"]
    assert tried["exited_at"]
    assert conn.execute("select from pgcoord_private.assignment").fetchall() == []


def test_an_exit_counts_once(conn: Connection, epoch: int) -> None:
    queue_id = running(conn, epoch)
    end(conn, queue_id, 0)
    end(conn, queue_id, 1)
    give_up(conn, queue_id, "lost", "gone")
    assert phase(conn, queue_id)["status"] == "completed"
    assert attempt_of(conn, queue_id)["exit_code"] == 0


def test_an_attempt_that_was_deleted_can_be_ended(conn: Connection, epoch: int) -> None:
    queue_id = running(conn, epoch)
    number = attempt_of(conn, queue_id)["id"]
    conn.execute("select pgcoord.complete_phase(%s)", [queue_id])
    conn.execute("delete from planned_features")
    conn.execute("select pgcoord_private.end_attempt(%s, 0)", [number])
    conn.execute("select pgcoord.give_up_attempt(%s, 'lost', 'x')", [number])
    assert statuses(conn) == {}


def test_processes_left_behind_are_in_the_history(conn: Connection, epoch: int) -> None:
    queue_id = running(conn, epoch)
    conn.execute(
        "select pgcoord_private.end_attempt(%s, 0, '', 'sleep (4711)')",
        [attempt_of(conn, queue_id)["id"]],
    )
    event = one(conn, "select * from pgcoord.event where kind = 'attempt_left_behind'")
    assert (event["queue_id"], event["attempt"]) == (queue_id, 1)
    assert event["reason"] == "ended what its process left behind: sleep (4711)"


# --- Trying again


def test_a_failed_attempt_is_tried_again_each_time_later(conn: Connection) -> None:
    epoch = take_lead(conn, WORKFLOW | {"max_attempts": 5})
    queue_id = running(conn, epoch)
    for wait in (10, 20, 40, 80):
        end(conn, queue_id, 1)
        assert phase(conn, queue_id)["status"] == "queued"
        assert retry_wait(conn, queue_id) == pytest.approx(wait, abs=4)
        assert claim(conn, epoch) == []
        come_due(conn)
        assert claim(conn, epoch) == [queue_id]
    end(conn, queue_id, 1)
    row = phase(conn, queue_id)
    assert (row["status"], row["attempt"], row["attempts_used"]) == ("failed", 5, 5)
    assert row["retry_at"] is None


@pytest.mark.parametrize(("delay", "waits"), [(3000, [3000, 3600, 3600]), (7200, [7200, 7200])])
def test_the_wait_doubles_up_to_an_hour(conn: Connection, delay: int, waits: list[int]) -> None:
    epoch = take_lead(conn, WORKFLOW | {"max_attempts": 9, "retry_delay_seconds": delay})
    queue_id = running(conn, epoch)
    for wait in waits:
        end(conn, queue_id, 1)
        assert retry_wait(conn, queue_id) == pytest.approx(wait, abs=4)
        come_due(conn)
        claim(conn, epoch)


def test_a_retry_by_a_person_gives_the_full_number_again(conn: Connection) -> None:
    epoch = take_lead(conn, WORKFLOW | {"max_attempts": 2})
    queue_id = running(conn, epoch)
    for status in ("queued", "failed"):
        end(conn, queue_id, 1)
        assert phase(conn, queue_id)["status"] == status
        come_due(conn)
        claim(conn, epoch)
    conn.execute("select pgcoord.retry_phase(%s)", [queue_id])
    row = phase(conn, queue_id)
    assert (row["attempts_used"], row["error_message"], row["retry_at"]) == (0, None, None)
    for status in ("queued", "failed"):
        assert claim(conn, epoch) == [queue_id]
        end(conn, queue_id, 1)
        assert phase(conn, queue_id)["status"] == status
        come_due(conn)
    assert phase(conn, queue_id)["attempt"] == 4


def test_a_person_need_not_wait_for_the_retry_time(conn: Connection) -> None:
    epoch = take_lead(conn, WORKFLOW | {"max_attempts": 2})
    queue_id = running(conn, epoch)
    end(conn, queue_id, 1)
    assert claim(conn, epoch) == []
    conn.execute("select pgcoord.retry_phase(%s)", [queue_id])
    assert claim(conn, epoch) == [queue_id]


@pytest.mark.parametrize(
    "statement", ["select pgcoord.skip_phase(%s, 'x')", "select pgcoord.cancel_phase(%s, 'x')"]
)
def test_a_phase_that_waits_for_its_retry_time_can_be_skipped_or_cancelled(
    conn: Connection, statement: str
) -> None:
    epoch = take_lead(conn, WORKFLOW | {"max_attempts": 2})
    queue_id = running(conn, epoch)
    end(conn, queue_id, 1)
    conn.execute(statement.encode(), [queue_id])
    assert phase(conn, queue_id)["retry_at"] is None
    assert phase(conn, queue_id)["status"] in ("completed", "cancelled")


def test_an_attempt_that_could_not_be_started_failed(conn: Connection, epoch: int) -> None:
    queue_id = add_phase(conn, add_feature(conn, {}), 1)
    claim(conn, epoch)
    give_up(conn, queue_id, "failed", "no such command")
    assert phase(conn, queue_id)["status"] == "failed"
    assert attempt_of(conn, queue_id)["outcome"] == "failed"


def test_a_lost_attempt_fails_its_phase(conn: Connection, epoch: int) -> None:
    queue_id = running(conn, epoch)
    give_up(conn, queue_id, "lost", "the machine restarted")
    row = phase(conn, queue_id)
    assert (row["status"], row["error_message"]) == ("failed", "the machine restarted")
    assert attempt_of(conn, queue_id)["outcome"] == "lost"


def test_a_lost_attempt_counts_where_nothing_else_is_declared(conn: Connection) -> None:
    epoch = take_lead(conn, WORKFLOW | {"max_attempts": 2})
    queue_id = running(conn, epoch)
    give_up(conn, queue_id, "lost", "gone")
    row = phase(conn, queue_id)
    assert (row["status"], row["attempts_used"]) == ("queued", 1)


def test_losses_are_tried_again_without_counting_until_the_third(conn: Connection) -> None:
    epoch = take_lead(conn, WORKFLOW | {"retry_lost": True})
    queue_id = running(conn, epoch)
    for _ in range(2):
        give_up(conn, queue_id, "lost", "gone")
        row = phase(conn, queue_id)
        assert (row["status"], row["attempts_used"]) == ("queued", 0)
        come_due(conn)
        assert claim(conn, epoch) == [queue_id]
    give_up(conn, queue_id, "lost", "gone")
    assert phase(conn, queue_id)["status"] == "failed"


def test_losses_before_a_person_retried_do_not_count(conn: Connection) -> None:
    epoch = take_lead(conn, WORKFLOW | {"retry_lost": True})
    queue_id = running(conn, epoch)
    for wanted in ["queued", "queued", "failed", "queued", "queued", "failed"]:
        give_up(conn, queue_id, "lost", "gone")
        assert phase(conn, queue_id)["status"] == wanted
        if wanted == "failed":
            conn.execute("select pgcoord.retry_phase(%s)", [queue_id])
        come_due(conn)
        assert claim(conn, epoch) == [queue_id]


@pytest.fixture
def abroad(conn: Connection, epoch: int) -> str:
    """A running phase whose attempt is on the host `there`; the leader is on `here`."""
    queue_id = running(conn, epoch)
    conn.execute("update pgcoord.attempt set host = 'there'")
    return queue_id


def let_leases_run_out(conn: Connection) -> None:
    conn.execute(
        "update pgcoord.coordinator set lead_at = lead_at - pgcoord_private.lease_length()"
    )
    conn.execute("update pgcoord.host set lease_until = clock_timestamp()")


def abandon(conn: Connection, epoch: int, queue_id: str) -> None:
    conn.execute(
        "select pgcoord_private.abandon_attempt(%s, %s)", [epoch, attempt_of(conn, queue_id)["id"]]
    )


def test_an_attempt_of_another_host_is_left_alone_for_a_lease_after_the_lead_was_taken(
    conn: Connection, epoch: int, abroad: str
) -> None:
    work = one(conn, "select * from pgcoord_private.next_work()")
    assert work["abandoned"] == []
    assert work["due_in"] == pytest.approx(60, abs=30)
    abandon(conn, epoch, abroad)
    assert phase(conn, abroad)["status"] == "running"


def test_an_attempt_of_another_host_is_left_alone_while_its_lease_is_renewed(
    conn: Connection, epoch: int, abroad: str
) -> None:
    let_leases_run_out(conn)
    assert one(conn, "select * from pgcoord_private.next_work()")["abandoned"] == [
        attempt_of(conn, abroad)["id"]
    ]
    conn.execute("select pgcoord_private.renew_lease('there')")
    assert one(conn, "select * from pgcoord_private.next_work()")["abandoned"] == []
    abandon(conn, epoch, abroad)
    assert phase(conn, abroad)["status"] == "running"


def test_an_attempt_whose_hosts_lease_has_run_out_is_lost_and_its_process_not_known_to_be_gone(
    conn: Connection, epoch: int, abroad: str
) -> None:
    let_leases_run_out(conn)
    abandon(conn, epoch, abroad)
    row = phase(conn, abroad)
    assert (row["status"], row["slot"]) == ("failed", None)
    lost = attempt_of(conn, abroad)
    assert (lost["outcome"], lost["exited_at"]) == ("lost", None)
    assert lost["error"] == "nothing was heard of its host there for 60 s"
    # The next coordinator there must end its process at once, and record that.
    found = one(conn, "select * from pgcoord_private.assignment where host = 'there'")
    assert (found["ended"], found["ending"]) == (True, "lost")
    end(conn, abroad, 143)
    assert attempt_of(conn, abroad)["exit_code"] == 143
    assert conn.execute("select from pgcoord_private.assignment").fetchall() == []
    assert phase(conn, abroad)["status"] == "failed"


def test_an_end_asked_for_counts_before_the_loss_of_the_host(
    conn: Connection, epoch: int, abroad: str
) -> None:
    conn.execute("select pgcoord.cancel_phase(%s, 'enough')", [abroad])
    let_leases_run_out(conn)
    abandon(conn, epoch, abroad)
    assert phase(conn, abroad)["status"] == "cancelled"
    assert attempt_of(conn, abroad)["outcome"] == "cancelled"


def test_only_the_leader_gives_up_attempts_of_other_hosts(
    conn: Connection, epoch: int, abroad: str
) -> None:
    let_leases_run_out(conn)
    take_lead(conn)
    with refused("PC007", f"lead {epoch} is over"):
        abandon(conn, epoch, abroad)


@pytest.mark.parametrize("gone", ["given up", "deleted"])
def test_the_start_of_an_attempt_that_was_given_up_is_refused(
    gone: str, conn: Connection, epoch: int
) -> None:
    queue_id = add_phase(conn, add_feature(conn, {}), 1)
    assert claim(conn, epoch) == [queue_id]
    number = attempt_of(conn, queue_id)["id"]
    give_up(conn, queue_id, "failed", "x")
    if gone == "deleted":
        conn.execute("delete from phase_queue")
    with refused("PC003", f"attempt {number} was given up"):
        conn.execute("select pgcoord_private.start_phase(%s, %s, 1, 'then')", [epoch, number])


def test_a_claim_waits_a_second_for_a_lock_of_the_control_row(
    conn: Connection, epoch: int, dsn: str
) -> None:
    with psycopg.connect(dsn) as holder:
        holder.execute("select pgcoord.pause()")
        with refused("55P03"):
            claim(conn, epoch)


@pytest.mark.parametrize("channel", ["pgcoord_wake", "pgcoord_stand_by"])
@pytest.mark.parametrize("how", ["ended", "deleted"])
def test_leader_and_stand_bys_learn_when_a_process_is_to_be_ended(
    how: str, channel: str, conn: Connection, epoch: int, dsn: str
) -> None:
    queue_id = running(conn, epoch)
    with psycopg.connect(dsn, autocommit=True) as ears:
        if how == "ended":
            ears.execute(f"listen {channel}".encode())
            conn.execute("select pgcoord.cancel_phase(%s, 'enough')", [queue_id])
        else:
            conn.execute("select pgcoord.complete_phase(%s)", [queue_id])
            ears.execute(f"listen {channel}".encode())
            conn.execute("delete from phase_queue")
        assert list(ears.notifies(timeout=PATIENCE, stop_after=1))


def test_an_attempt_given_back_costs_nothing(conn: Connection, epoch: int) -> None:
    queue_id = add_phase(conn, add_feature(conn, {}), 1)
    for number in (1, 2):
        assert claim(conn, epoch) == [queue_id]
        conn.execute(
            "select pgcoord_private.return_attempt(%s, interval '90 s', 'rate limit')",
            [attempt_of(conn, queue_id)["id"]],
        )
        row = phase(conn, queue_id)
        assert (row["status"], row["slot"], row["attempts_used"]) == ("queued", None, 0)
        assert (row["attempt"], row["error_message"]) == (number, "rate limit")
        assert attempt_of(conn, queue_id)["outcome"] == "returned"
        assert retry_wait(conn, queue_id) == pytest.approx(90, abs=4)
        assert claim(conn, epoch) == []
        come_due(conn)
    assert claim(conn, epoch) == [queue_id]


@pytest.mark.parametrize("how", ["returned", "lost", "failed"])
def test_an_end_that_was_asked_for_counts_before_how_the_attempt_is_given_up(
    conn: Connection, epoch: int, how: str
) -> None:
    queue_id = add_phase(conn, add_feature(conn, {}), 1)
    claim(conn, epoch)
    conn.execute("select pgcoord.cancel_phase(%s, 'not wanted')", [queue_id])
    if how == "returned":
        conn.execute(
            "select pgcoord_private.return_attempt(%s, '1 min', 'x')",
            [attempt_of(conn, queue_id)["id"]],
        )
    else:
        give_up(conn, queue_id, how, "x")
    assert phase(conn, queue_id)["status"] == "cancelled"
    assert attempt_of(conn, queue_id)["outcome"] == "cancelled"


# --- Deadlines


def test_an_attempt_past_its_deadline_is_to_be_ended(conn: Connection) -> None:
    epoch = take_lead(conn, WORKFLOW | {"timeout_seconds": 60})
    queue_id = running(conn, epoch)
    conn.execute("select pgcoord_private.expire_attempts()")
    assert attempt_of(conn, queue_id)["ending"] is None
    conn.execute("update pgcoord.attempt set deadline = now() - interval '1 s'")
    conn.execute("select pgcoord_private.expire_attempts()")
    asked = attempt_of(conn, queue_id)
    assert (asked["ending"], asked["outcome"]) == ("timed_out", None)
    conn.execute("select pgcoord_private.expire_attempts()")
    assert attempt_of(conn, queue_id) == asked
    assert phase(conn, queue_id)["status"] == "running"
    end(conn, queue_id, 143)
    row, tried = phase(conn, queue_id), attempt_of(conn, queue_id)
    assert (row["status"], tried["outcome"]) == ("failed", "timed_out")
    assert row["error_message"] == tried["error"] == "ran longer than its timeout of 60 s"


def test_an_attempt_that_timed_out_counts_and_is_tried_again(conn: Connection) -> None:
    epoch = take_lead(conn, WORKFLOW | {"timeout_seconds": 60, "max_attempts": 2})
    queue_id = running(conn, epoch)
    conn.execute("update pgcoord.attempt set deadline = now() - interval '1 s'")
    conn.execute("select pgcoord_private.expire_attempts()")
    end(conn, queue_id, 143)
    row = phase(conn, queue_id)
    assert (row["status"], row["attempts_used"]) == ("queued", 1)


@pytest.mark.parametrize("status", ["completed", "cancelled"])
def test_an_attempt_that_has_ended_or_is_being_ended_does_not_time_out(
    conn: Connection, status: str
) -> None:
    epoch = take_lead(conn, WORKFLOW | {"timeout_seconds": 60})
    queue_id = running(conn, epoch)
    conn.execute("update phase_queue set status = %s", [status])
    conn.execute("update pgcoord.attempt set deadline = now() - interval '1 s'")
    conn.execute("select pgcoord_private.expire_attempts()")
    assert attempt_of(conn, queue_id)["ending"] == (None if status == "completed" else "cancelled")


def test_the_next_work_names_the_nearest_deadline(conn: Connection) -> None:
    epoch = take_lead(conn, WORKFLOW | {"timeout_seconds": 500, "max_attempts": 2})

    def due_in() -> Any:
        return one(conn, "select due_in from pgcoord_private.next_work()")["due_in"]

    assert due_in() is None
    first = running(conn, epoch)
    assert due_in() == pytest.approx(500, abs=200)
    second = running(conn, epoch)
    end(conn, second, 1)
    assert due_in() == pytest.approx(10, abs=10)
    conn.execute("select pgcoord.skip_phase(%s, 'x')", [second])
    end(conn, first, 0)
    assert due_in() is None


@pytest.mark.parametrize("external", [True, False])
def test_external_attempts_are_no_business_of_a_coordinator(
    conn: Connection, epoch: int, external: bool
) -> None:
    if external:
        add_phase(conn, add_feature(conn, {}), 1, status="running")
    else:
        running(conn, epoch)
    actual = one(conn, "select count(*) as n from pgcoord_private.assignment")["n"]
    assert actual == (0 if external else 1)


def test_each_failure_is_logged_with_its_reason_though_the_reason_repeats(
    conn: Connection,
) -> None:
    epoch = take_lead(conn, WORKFLOW | {"max_attempts": 3, "retry_delay_seconds": 0})
    add_feature(conn, {1: []})
    for _ in range(2):
        (queue_id,) = claim(conn, epoch)
        start(conn, epoch, queue_id)
        end(conn, queue_id, 3)
    (queue_id,) = claim(conn, epoch)
    start(conn, epoch, queue_id)
    conn.execute("update phase_queue set status = 'completed'")
    moves = conn.execute(
        "select to_status, reason from pgcoord.event where from_status = 'running' order by id"
    ).fetchall()
    assert [tuple(move.values()) for move in moves] == [
        ("queued", "exited with status 3"),
        ("queued", "exited with status 3"),
        ("completed", None),
    ]
