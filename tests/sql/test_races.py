"""Real races: two connections, where the second is seen waiting before the first continues."""

import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from support import PATIENCE
from support.cases import case
from support.database import (
    Connection,
    add_feature,
    add_phase,
    attempt_of,
    claim,
    one,
    phase,
    refused,
    slots,
    statuses,
)
from support.mixed_load import LONG, MOST_LONGER, Load, faults, overlaps

Rows = list[dict[str, Any]]


class Session:
    """A connection whose statements run in a thread of its own, so that they may wait."""

    def __init__(self, dsn: str) -> None:
        self.conn = psycopg.connect(dsn, autocommit=True, row_factory=dict_row)
        self.observer = psycopg.connect(dsn, autocommit=True)
        self.thread = ThreadPoolExecutor(max_workers=1)

    def send(self, statement: str, *values: Any) -> Future[Rows]:
        """Begin a statement; its rows or its error come with the future."""
        return self.thread.submit(self._execute, statement, values)

    def _execute(self, statement: str, values: tuple[Any, ...]) -> Rows:
        cursor = self.conn.execute(statement, values)
        return cursor.fetchall() if cursor.description else []

    def do(self, statement: str, *values: Any) -> Rows:
        return self.send(statement, *values).result(PATIENCE)

    def send_and_wait(self, statement: str, *values: Any) -> Future[Rows]:
        """Begin a statement and return when the server shows that it waits for somebody."""
        future = self.send(statement, *values)
        until = time.monotonic() + PATIENCE
        while not self.waits():
            assert not future.done(), f"did not wait: {statement}: {future.exception() or 'done'}"
            assert time.monotonic() < until, f"neither waits nor ends: {statement}"
        return future

    def waits(self) -> bool:
        """Whether it waits for a lock, or in hold_feature for the holder of a feature."""
        row = self.observer.execute(
            "select wait_event = 'PgSleep' or cardinality(pg_blocking_pids(pid)) > 0"
            " from pg_stat_activity where pid = %s",
            [self.conn.info.backend_pid],
        ).fetchone()
        return bool(row and row[0])

    def close(self) -> None:
        self.conn.cancel_safe(timeout=PATIENCE)
        self.thread.shutdown()
        self.conn.close()
        self.observer.close()


@pytest.fixture
def session(dsn: str) -> Iterator[Callable[[], Session]]:
    """Make as many sessions as the test needs."""
    created: list[Session] = []

    def make() -> Session:
        created.append(Session(dsn))
        return created[-1]

    yield make
    for each in created:
        each.close()


@pytest.fixture
def first(session: Callable[[], Session]) -> Session:
    return session()


@pytest.fixture
def second(session: Callable[[], Session]) -> Session:
    return session()


@pytest.fixture(autouse=True)
def nothing_is_left_wrong(conn: Connection) -> Iterator[None]:
    """Whatever a test did: what follows in the tables follows from the rest of them."""
    yield
    assert faults(conn) == []


def sqlstate(future: Future[Rows]) -> str | None:
    error = future.exception(PATIENCE)
    assert error is None or isinstance(error, psycopg.Error), repr(error)
    return error.sqlstate if error else None


def insist(second: Session, future: Future[Rows], statement: str, *values: Any) -> Future[Rows]:
    """Try once more if it gave up on a feature that was held too long, as the hint says."""
    if sqlstate(future) != "55P03":
        return future
    future = second.send(statement, *values)
    assert sqlstate(future) != "55P03"
    return future


# A claim waits a second for a lock, which is not enough on a loaded machine: it is made again.
WAITED = "55P03"

COMPLETE = "select status from pgcoord.complete_phase(%s)"
DEPEND = "update phase_queue set depends_on_phases = %s where queue_id = %s"
INSERT = (
    "insert into phase_queue (feature_id, phase_number, depends_on_phases, status)"
    " values (%s, %s, %s, %s)"
)


# Claims.


@pytest.mark.scale
def test_eight_claimers_never_hold_more_than_three_slots_and_take_nothing_twice(
    dsn: str, conn: Connection, epoch: int
) -> None:
    for _ in range(5):
        feature = add_feature(conn, {})
        conn.execute(
            "insert into phase_queue (feature_id, phase_number) select %s, generate_series(1, 200)",
            [feature],
        )
    load = Load(dsn, epoch, PATIENCE * 2, seed=0)

    def claimer(conn: Connection, _: random.Random) -> None:
        names = claim(conn, epoch)
        for name in names:
            conn.execute(COMPLETE, [name])
        if not names and not claimable(conn):
            load.until = 0

    load.claimer = claimer  # type: ignore[attr-defined]
    load.run({"claimer": 8, "sampler": 1})

    assert load.wrong == []
    assert set(load.refusals) <= {WAITED}
    attempts = conn.execute("select * from pgcoord.attempt").fetchall()
    assert len({each["queue_id"] for each in attempts}) == len(attempts) == 1000
    assert {each["outcome"] for each in attempts} == {"completed"}
    assert overlaps(attempts) == []
    assert most_at_once(attempts) == load.most_held == 3


def claimable(conn: Connection) -> bool:
    row = conn.execute("select from phase_queue where status <> 'completed' limit 1").fetchone()
    return row is not None


def most_at_once(attempts: Rows) -> int:
    """Sweep over the claims and ends in the order of their times."""
    steps = [(each["claimed_at"], 1) for each in attempts]
    steps += [(each["ended_at"], -1) for each in attempts]
    held = most = 0
    for _, step in sorted(steps):
        held += step
        most = max(most, held)
    return most


def test_a_claim_skips_a_phase_that_a_person_has_locked_until_the_commit(
    conn: Connection, epoch: int, first: Session
) -> None:
    add_feature(conn, {1: [], 2: []})
    first.do("begin")
    first.do("update phase_queue set priority = 1 where queue_id = 'queue-1-1'")
    assert claim(conn, epoch) == ["queue-1-2"]
    first.do("commit")
    assert claim(conn, epoch) == ["queue-1-1"]


def test_a_phase_held_by_a_transaction_that_is_rolled_back_is_named_by_next_work(
    conn: Connection, epoch: int, first: Session
) -> None:
    add_feature(conn, {1: []})
    first.do("begin")
    first.do("select from phase_queue where queue_id = 'queue-1-1' for update")
    assert claim(conn, epoch) == []
    row = conn.execute("select locked from pgcoord_private.next_work()").fetchone()
    assert row == {"locked": ["phase queue-1-1"]}
    first.do("rollback")
    assert claim(conn, epoch) == ["queue-1-1"]


def test_a_feature_that_is_changed_and_then_locked_delays_no_claim_of_another(
    conn: Connection, epoch: int, first: Session
) -> None:
    add_feature(conn, {1: []})
    add_feature(conn, {1: []})
    conn.execute("update phase_queue set retry_at = now() where queue_id = 'queue-1-1'")
    first.do("begin")
    first.do("update planned_features set title = 'b' where id = 1")
    first.do("select from planned_features where id = 1 for update")
    assert claim(conn, epoch) == ["queue-2-1"]
    assert claim(conn, epoch) == ["queue-1-1"]


def test_slots_that_are_lowered_do_not_delay_the_look_for_work(
    conn: Connection, epoch: int, first: Session
) -> None:
    add_feature(conn, {1: []})
    conn.execute("set lock_timeout = '1s'")
    first.do("begin")
    for change in ("update pgcoord.slot set draining = true", "delete from pgcoord.slot"):
        first.do(change)  # as set_slots does, before it deletes them from pgcoord.free_slot
    row = one(conn, "select locked from pgcoord_private.next_work()")
    assert sorted(row["locked"]) == ["slot 1", "slot 2", "slot 3"]


def test_a_claim_waits_for_an_insert_as_running_and_leaves_the_slot_to_the_insert(
    conn: Connection, epoch: int, first: Session, second: Session
) -> None:
    feature = add_feature(conn, {1: [], 2: [], 3: []})
    first.do("begin")
    first.do(INSERT, feature, 4, Jsonb([]), "running")
    claimed = second.send_and_wait("select queue_id from pgcoord_private.claim_phases(%s)", epoch)
    first.do("commit")
    assert len(claimed.result(PATIENCE)) == 2
    assert statuses(conn) == {1: "ready", 2: "ready", 3: "queued", 4: "running"}


def test_a_phase_inserted_as_running_is_refused_the_slots_of_a_claim_that_commits_meanwhile(
    conn: Connection, epoch: int, first: Session, second: Session
) -> None:
    feature = add_feature(conn, {1: [], 2: [], 3: []})
    first.do("begin")
    first.do("select pgcoord_private.claim_phases(%s)", epoch)
    inserted = second.send_and_wait(INSERT, feature, 4, Jsonb([]), "running")
    first.do("commit")
    assert sqlstate(inserted) == "PC006"


def test_a_claim_sees_the_slots_of_a_limit_lowered_meanwhile(
    conn: Connection, epoch: int, first: Session, second: Session
) -> None:
    add_feature(conn, {1: [], 2: [], 3: []})
    first.do("begin")
    first.do("select pgcoord.set_slots(1)")
    claimed = second.send_and_wait("select queue_id from pgcoord_private.claim_phases(%s)", epoch)
    first.do("commit")
    assert [row["queue_id"] for row in claimed.result(PATIENCE)] == ["queue-1-1"]


def test_a_slot_released_while_the_limit_is_lowered_does_not_stay(
    conn: Connection, epoch: int, first: Session, second: Session
) -> None:
    add_feature(conn, {1: [], 2: [], 3: [], 4: []})
    claim(conn, epoch)
    first.do("begin")
    first.do(COMPLETE, phase_in_slot(conn, 3))
    second.do("select pgcoord.set_slots(2)")
    first.do("commit")
    assert claim(conn, epoch) == []
    assert slots(conn) == {1: False, 2: False}


def test_a_draining_slot_released_while_the_limit_is_raised_is_there_once(
    conn: Connection, epoch: int, first: Session, second: Session
) -> None:
    add_feature(conn, {1: [], 2: [], 3: []})
    claim(conn, epoch)
    conn.execute("select pgcoord.set_slots(2)")
    first.do("begin")
    first.do(COMPLETE, phase_in_slot(conn, 3))
    raised = second.send_and_wait("select pgcoord.set_slots(3)")
    first.do("commit")
    raised.result(PATIENCE)
    assert slots(conn) == {1: False, 2: False, 3: False}


def test_limits_and_inserted_running_phases_change_during_claims(
    dsn: str, conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {})
    conn.execute(
        "insert into phase_queue (feature_id, phase_number) select %s, generate_series(1, 300)",
        [feature],
    )
    load = Load(dsn, epoch, PATIENCE * 2, seed=0)
    numbers = iter(range(1000, 10**6))

    def claimer(conn: Connection, _: random.Random) -> None:
        for name in claim(conn, epoch):
            conn.execute(COMPLETE, [name])
        if not claimable(conn):
            load.until = 0

    def limiter(conn: Connection, dice: random.Random) -> None:
        conn.execute("select pgcoord.set_slots(%s)", [dice.randint(1, 4)])

    def starter(conn: Connection, _: random.Random) -> None:
        name = add_phase(conn, feature, next(numbers), status="running")
        conn.execute(COMPLETE, [name])

    load.claimer, load.limiter, load.starter = claimer, limiter, starter  # type: ignore[attr-defined]
    load.run({"claimer": 4, "limiter": 1, "starter": 1, "sampler": 1})

    assert load.wrong == []
    assert set(load.refusals) <= {"PC006", WAITED}
    attempts = conn.execute("select * from pgcoord.attempt").fetchall()
    assert overlaps(attempts) == []
    assert most_at_once(attempts) <= 4
    claim(conn, epoch)


def phase_in_slot(conn: Connection, slot: int) -> str:
    row = conn.execute("select queue_id from phase_queue where slot = %s", [slot]).fetchone()
    assert row
    return str(row["queue_id"])


# Completions.


def test_two_prerequisites_completing_together_release_their_dependent(
    conn: Connection, epoch: int, first: Session, second: Session
) -> None:
    add_feature(conn, {1: [], 2: [], 3: [1, 2]})
    claim(conn, epoch)
    first.do("begin")
    first.do(COMPLETE, "queue-1-1")
    other = second.send_and_wait(COMPLETE, "queue-1-2")
    first.do("commit")
    other.result(PATIENCE)
    assert phase(conn, "queue-1-3")["eligible_at"] is not None
    assert claim(conn, epoch) == ["queue-1-3"]


def test_two_prerequisites_completed_together_by_hand_release_their_dependent(
    conn: Connection, epoch: int, first: Session, second: Session
) -> None:
    update = "update phase_queue set status = 'completed' where queue_id = %s"
    add_feature(conn, {1: [], 2: [], 3: [1, 2]})
    claim(conn, epoch)
    first.do("begin")
    first.do(update, "queue-1-1")
    other = second.send_and_wait(update, "queue-1-2")
    first.do("commit")
    insist(second, other, update, "queue-1-2").result(PATIENCE)
    assert claim(conn, epoch) == ["queue-1-3"]


def test_twelve_prerequisites_completing_at_once_release_their_dependent_once(
    conn: Connection, epoch: int, first: Session, session: Callable[[], Session]
) -> None:
    conn.execute("select pgcoord.set_slots(12)")
    add_feature(conn, {**{n: [] for n in range(1, 13)}, 13: list(range(1, 13))})
    claim(conn, epoch)
    first.do("begin")
    first.do("select from planned_features where id = 1 for update")
    reports = [session().send_and_wait(COMPLETE, f"queue-1-{n}") for n in range(1, 13)]
    first.do("commit")
    assert [report.result(PATIENCE) for report in reports] == [[{"status": "completed"}]] * 12
    assert claim(conn, epoch) == ["queue-1-13"]
    assert claim(conn, epoch) == []


def test_two_reports_of_the_same_end_are_one_end(
    conn: Connection, epoch: int, first: Session, second: Session
) -> None:
    add_feature(conn, {1: []})
    claim(conn, epoch)
    first.do("begin")
    first.do(COMPLETE, "queue-1-1")
    other = second.send_and_wait(COMPLETE, "queue-1-1")
    first.do("commit")
    assert other.result(PATIENCE) == [{"status": "completed"}]
    row = conn.execute(
        "select count(*) as many from pgcoord.event where to_status = 'completed'"
    ).fetchone()
    assert row == {"many": 1}


def test_of_two_reports_of_different_ends_the_second_is_refused(
    conn: Connection, epoch: int, first: Session, second: Session
) -> None:
    add_feature(conn, {1: []})
    claim(conn, epoch)
    first.do("begin")
    first.do(COMPLETE, "queue-1-1")
    other = second.send_and_wait("select pgcoord.fail_phase('queue-1-1', 'broken')")
    first.do("commit")
    assert sqlstate(other) == "PC004"


def test_a_report_that_was_rolled_back_leaves_the_end_to_the_next(
    conn: Connection, epoch: int, first: Session, second: Session
) -> None:
    add_feature(conn, {1: []})
    claim(conn, epoch)
    first.do("begin")
    first.do(COMPLETE, "queue-1-1")
    other = second.send_and_wait("select pgcoord.fail_phase('queue-1-1', 'broken')")
    first.do("rollback")
    other.result(PATIENCE)
    assert attempt_of(conn, "queue-1-1")["ending"] == "failed"


def test_a_start_recorded_while_the_phase_is_reported_does_not_deadlock(
    conn: Connection, epoch: int, first: Session, second: Session, session: Callable[[], Session]
) -> None:
    add_feature(conn, {1: []})
    claim(conn, epoch)
    attempt = attempt_of(conn, "queue-1-1")["id"]
    first.do("begin")
    first.do("select from phase_queue where queue_id = 'queue-1-1' for update")
    report = second.send_and_wait(COMPLETE, "queue-1-1")
    started = session().send_and_wait(
        "select pgcoord_private.start_phase(%s, %s, 1, 'then')", epoch, attempt
    )
    first.do("rollback")
    report.result(PATIENCE)
    started.result(PATIENCE)
    assert statuses(conn) == {1: "completed"}
    assert attempt_of(conn, "queue-1-1")["pid"] == 1


def test_a_deadline_that_passes_while_the_phase_is_reported_changes_nothing(
    conn: Connection, epoch: int, first: Session, second: Session
) -> None:
    add_feature(conn, {1: []})
    claim(conn, epoch)
    conn.execute("update pgcoord.attempt set deadline = now()")
    first.do("begin")
    first.do(COMPLETE, "queue-1-1")
    second.do("select pgcoord_private.expire_attempts()")  # waits for nobody
    first.do("commit")
    second.do("select pgcoord_private.expire_attempts()")
    assert attempt_of(conn, "queue-1-1")["ending"] is None
    assert statuses(conn) == {1: "completed"}


def test_a_locked_attempt_past_its_deadline_holds_nobody_up_and_is_looked_at_again(
    conn: Connection, epoch: int, first: Session, second: Session
) -> None:
    add_feature(conn, {1: [], 2: []})
    claim(conn, epoch)
    conn.execute("update pgcoord.attempt set deadline = now()")
    first.do("begin")
    first.do("select from pgcoord.attempt where queue_id = 'queue-1-1' for update")
    second.do("select pgcoord_private.expire_attempts()")
    assert attempt_of(conn, "queue-1-1")["ending"] is None
    assert attempt_of(conn, "queue-1-2")["ending"] == "timed_out"
    work = conn.execute("select due_in, locked from pgcoord_private.next_work()").fetchone()
    late = attempt_of(conn, "queue-1-1")["id"]
    assert work == {"due_in": None, "locked": [f"attempt {late}"]}
    first.do("rollback")  # which notifies nobody
    second.do("select pgcoord_private.expire_attempts()")
    assert attempt_of(conn, "queue-1-1")["ending"] == "timed_out"


# Graphs that change.


def test_an_edge_to_a_prerequisite_that_is_just_completed_does_not_hold_back(
    conn: Connection, epoch: int, first: Session, second: Session
) -> None:
    add_feature(conn, {1: []})
    claim(conn, epoch)
    add_phase(conn, 1, 2)
    first.do("begin")
    first.do(COMPLETE, "queue-1-1")
    edge = second.send_and_wait(DEPEND, Jsonb([1]), "queue-1-2")
    first.do("commit")
    insist(second, edge, DEPEND, Jsonb([1]), "queue-1-2").result(PATIENCE)
    assert claim(conn, epoch) == ["queue-1-2"]


def test_a_prerequisite_completed_while_an_edge_is_added_releases_the_new_dependent(
    conn: Connection, epoch: int, first: Session, second: Session
) -> None:
    add_feature(conn, {1: []})
    claim(conn, epoch)
    add_phase(conn, 1, 2)
    first.do("begin")
    first.do(DEPEND, Jsonb([1]), "queue-1-2")
    report = second.send_and_wait(COMPLETE, "queue-1-1")
    first.do("commit")
    report.result(PATIENCE)
    assert claim(conn, epoch) == ["queue-1-2"]


def test_an_edge_added_to_a_phase_that_is_claimed_meanwhile_is_refused(
    conn: Connection, epoch: int, first: Session, second: Session
) -> None:
    add_feature(conn, {1: [], 2: []})
    first.do("begin")
    first.do("select pgcoord_private.claim_phases(%s)", epoch)
    edge = second.send_and_wait(DEPEND, Jsonb([1]), "queue-1-2")
    first.do("commit")
    assert sqlstate(edge) == "PC002"


def test_of_opposite_edges_added_at_once_the_second_is_refused(
    conn: Connection, first: Session, second: Session
) -> None:
    add_feature(conn, {1: [], 2: []})
    first.do("begin")
    first.do(DEPEND, Jsonb([2]), "queue-1-1")
    edge = second.send_and_wait(DEPEND, Jsonb([1]), "queue-1-2")
    first.do("commit")
    assert sqlstate(insist(second, edge, DEPEND, Jsonb([1]), "queue-1-2")) == "PC005"


def test_of_phases_inserted_at_once_that_wait_for_each_other_the_second_is_refused(
    conn: Connection, first: Session, second: Session
) -> None:
    feature = add_feature(conn, {})
    first.do("begin")
    first.do(INSERT, feature, 1, Jsonb([2]), "queued")
    inserted = second.send_and_wait(INSERT, feature, 2, Jsonb([1]), "queued")
    first.do("commit")
    assert sqlstate(inserted) == "PC005"


@pytest.mark.parametrize(("one", "other"), [(1, 2), (2, 1)])
def test_a_dependent_inserted_while_its_completed_prerequisite_is_inserted_is_eligible(
    conn: Connection, epoch: int, first: Session, second: Session, one: int, other: int
) -> None:
    feature = add_feature(conn, {})
    values = {1: (feature, 1, Jsonb([]), "completed"), 2: (feature, 2, Jsonb([1]), "queued")}
    first.do("begin")
    first.do(INSERT, *values[one])
    inserted = second.send_and_wait(INSERT, *values[other])
    first.do("commit")
    inserted.result(PATIENCE)
    assert claim(conn, epoch) == ["queue-1-2"]


def test_a_dependent_inserted_while_its_prerequisite_completes_is_eligible(
    conn: Connection, epoch: int, first: Session, second: Session
) -> None:
    feature = add_feature(conn, {1: []})
    claim(conn, epoch)
    first.do("begin")
    first.do(COMPLETE, "queue-1-1")
    inserted = second.send_and_wait(INSERT, feature, 2, Jsonb([1]), "queued")
    first.do("commit")
    inserted.result(PATIENCE)
    assert claim(conn, epoch) == ["queue-1-2"]


def test_a_dependent_inserted_while_its_prerequisite_is_cancelled_is_blocked(
    conn: Connection, first: Session, second: Session
) -> None:
    feature = add_feature(conn, {1: []})
    first.do("begin")
    first.do("select pgcoord.cancel_phase('queue-1-1', 'no')")
    inserted = second.send_and_wait(INSERT, feature, 2, Jsonb([1]), "queued")
    first.do("commit")
    inserted.result(PATIENCE)
    assert statuses(conn) == {1: "cancelled", 2: "blocked"}


def test_a_delete_during_the_completion_of_a_prerequisite_makes_its_dependent_wait(
    conn: Connection, epoch: int, first: Session, second: Session
) -> None:
    delete = "delete from phase_queue where queue_id = 'queue-1-1'"
    add_feature(conn, {1: [], 2: [1]})
    claim(conn, epoch)
    first.do("begin")
    first.do(COMPLETE, "queue-1-1")
    deleted = second.send_and_wait(delete)
    first.do("commit")
    insist(second, deleted, delete).result(PATIENCE)
    assert phase(conn, "queue-1-2")["unmet"] == 1
    assert claim(conn, epoch) == []


def test_a_skip_that_waits_for_a_delete_of_the_phase_is_refused(
    conn: Connection, first: Session, second: Session
) -> None:
    add_feature(conn, {1: [], 2: [1]})
    first.do("begin")
    first.do("delete from phase_queue where queue_id = 'queue-1-1'")
    skipped = second.send_and_wait("select pgcoord.skip_phase('queue-1-1', 'done')")
    first.do("commit")
    assert sqlstate(skipped) == "PC001"


def test_a_phase_claimed_while_its_prerequisite_is_deleted_stays_claimed(
    conn: Connection, epoch: int, first: Session, second: Session
) -> None:
    add_feature(conn, {1: [], 2: [1]})
    conn.execute("select pgcoord.skip_phase('queue-1-1', 'done')")
    first.do("begin")
    first.do("select pgcoord_private.claim_phases(%s)", epoch)
    deleted = second.send_and_wait("delete from phase_queue where queue_id = 'queue-1-1'")
    first.do("commit")
    deleted.result(PATIENCE)
    assert statuses(conn) == {2: "ready"}


def test_a_feature_deleted_while_its_phase_is_claimed_stays(
    conn: Connection, epoch: int, first: Session, second: Session
) -> None:
    add_feature(conn, {1: []})
    first.do("begin")
    first.do("select pgcoord_private.claim_phases(%s)", epoch)
    deleted = second.send_and_wait("delete from planned_features")
    first.do("commit")
    assert sqlstate(deleted) == "PC002"
    assert statuses(conn) == {1: "ready"}


def test_the_end_of_an_attempt_whose_phase_is_deleted_meanwhile_is_no_error(
    conn: Connection, epoch: int, first: Session, second: Session
) -> None:
    add_feature(conn, {1: []})
    claim(conn, epoch)
    attempt = attempt_of(conn, "queue-1-1")["id"]
    conn.execute(COMPLETE, ["queue-1-1"])
    first.do("begin")
    first.do("delete from phase_queue")
    ended = second.send_and_wait("select pgcoord_private.end_attempt(%s, 0)", attempt)
    first.do("commit")
    ended.result(PATIENCE)


# People.


def test_a_prerequisite_retried_while_another_fails_leaves_the_dependent_blocked(
    conn: Connection, epoch: int, first: Session, second: Session
) -> None:
    add_feature(conn, {1: [], 2: [], 3: [1, 2]})
    conn.execute("select pgcoord.cancel_phase('queue-1-1', 'no')")
    assert claim(conn, epoch) == ["queue-1-2"]
    first.do("begin")
    first.do("select pgcoord.retry_phase('queue-1-1')")
    ended = second.send_and_wait(
        "select pgcoord_private.end_attempt(%s, 1)", attempt_of(conn, "queue-1-2")["id"]
    )
    first.do("commit")
    ended.result(PATIENCE)
    assert statuses(conn) == {1: "queued", 2: "failed", 3: "blocked"}


def test_a_feature_paused_while_its_phase_is_claimed_holds_the_others_and_that_one_later(
    conn: Connection, epoch: int, first: Session, second: Session
) -> None:
    conn.execute("select pgcoord.set_slots(1)")
    add_feature(conn, {1: [], 2: []})
    first.do("begin")
    first.do("select pgcoord_private.claim_phases(%s)", epoch)
    paused = second.send_and_wait("select pgcoord.pause(1)")
    first.do("commit")
    paused.result(PATIENCE)
    assert phase(conn, "queue-1-1")["status"] == "ready"
    conn.execute(
        "select pgcoord_private.return_attempt(%s, '0 s', 'limit')",
        [attempt_of(conn, "queue-1-1")["id"]],
    )
    assert claim(conn, epoch) == []
    conn.execute("select pgcoord.resume(1)")
    assert claim(conn, epoch) == ["queue-1-1"]


def test_a_claim_does_not_wait_for_an_uncommitted_pause_and_claims_nothing_of_its_feature(
    conn: Connection, epoch: int, first: Session
) -> None:
    add_feature(conn, {1: []})
    first.do("begin")
    first.do("select pgcoord.pause(1)")
    assert claim(conn, epoch) == []
    first.do("rollback")
    assert claim(conn, epoch) == ["queue-1-1"]


@pytest.mark.parametrize("pause_first", [True, False])
def test_a_phase_inserted_while_its_feature_is_paused_is_held(
    conn: Connection, epoch: int, first: Session, second: Session, pause_first: bool
) -> None:
    feature = add_feature(conn, {})
    pause = "select pgcoord.pause(%s)", (feature,)
    insert = INSERT, (feature, 1, Jsonb([]), "queued")
    one, other = (pause, insert) if pause_first else (insert, pause)
    first.do("begin")
    first.do(one[0], *one[1])
    waiting = second.send_and_wait(other[0], *other[1])
    first.do("commit")
    waiting.result(PATIENCE)
    assert claim(conn, epoch) == []


def test_a_feature_cancelled_while_its_phase_is_claimed_has_that_phase_ended(
    conn: Connection, epoch: int, first: Session, second: Session
) -> None:
    add_feature(conn, {1: [], 2: [1]})
    first.do("begin")
    first.do("select pgcoord_private.claim_phases(%s)", epoch)
    cancelled = second.send_and_wait("select pgcoord.cancel_feature(1, 'no')")
    first.do("commit")
    cancelled.result(PATIENCE)
    assert statuses(conn) == {1: "ready", 2: "cancelled"}
    assert attempt_of(conn, "queue-1-1")["ending"] == "cancelled"


def test_a_feature_cancelled_while_its_phase_is_completed_keeps_that_result(
    conn: Connection, epoch: int, first: Session, second: Session
) -> None:
    add_feature(conn, {1: [], 2: [1]})
    claim(conn, epoch)
    first.do("begin")
    first.do(COMPLETE, "queue-1-1")
    cancelled = second.send_and_wait("select pgcoord.cancel_feature(1, 'no')")
    first.do("commit")
    cancelled.result(PATIENCE)
    assert statuses(conn) == {1: "completed", 2: "cancelled"}


def test_a_phase_inserted_while_its_feature_is_cancelled_is_refused(
    conn: Connection, first: Session, second: Session
) -> None:
    feature = add_feature(conn, {1: []})
    first.do("begin")
    first.do("select pgcoord.cancel_feature(1, 'no')")
    inserted = second.send_and_wait(INSERT, feature, 2, Jsonb([]), "queued")
    first.do("commit")
    assert sqlstate(inserted) == "PC002"


def test_a_phase_retried_while_its_feature_is_pruned_is_kept(
    conn: Connection, first: Session, second: Session
) -> None:
    add_feature(conn, {1: []})
    conn.execute("select pgcoord.cancel_feature(1, 'no')")
    conn.execute("update phase_queue set finished_timestamp = now() - interval '2 days'")
    conn.execute("update planned_features set cancelled_at = now() - interval '2 days'")
    first.do("begin")
    first.do("select pgcoord.retry_phase('queue-1-1')")
    pruned = second.send_and_wait("select pgcoord.prune('1 day') as many")
    first.do("commit")
    assert pruned.result(PATIENCE) == [{"many": 0}]
    assert statuses(conn) == {1: "queued"}


def test_an_update_of_many_rows_by_hand_does_not_deadlock_with_a_completion(
    conn: Connection, epoch: int, first: Session, second: Session
) -> None:
    update = "update phase_queue set priority = 10 where queue_id = %s"
    add_feature(conn, {1: [], 2: [1]})
    claim(conn, epoch)
    # One statement over both rows, dependent first, is these two in one transaction.
    first.do("begin")
    first.do(update, "queue-1-2")
    report = second.send_and_wait(COMPLETE, "queue-1-1")
    first.do(update, "queue-1-1")
    first.do("commit")
    report.result(PATIENCE)
    assert claim(conn, epoch) == ["queue-1-2"]


def test_an_update_by_hand_gives_up_on_a_feature_that_is_held_too_long(
    conn: Connection, first: Session, second: Session
) -> None:
    add_feature(conn, {1: [], 2: []})
    first.do("begin")
    first.do("select pgcoord.skip_phase('queue-1-1', 'done')")
    moved = second.send("update phase_queue set status = 'completed' where queue_id = 'queue-1-2'")
    assert sqlstate(moved) == "55P03"
    first.do("commit")


# Isolation.


CHANGES: Any = [
    "insert into phase_queue (feature_id, phase_number) values (1, 4)",
    "insert into phase_queue (feature_id, phase_number, depends_on_phases) values (1, 4, '[1]')",
    "update planned_features set paused_at = now()",
    "update phase_queue set status = 'completed' where queue_id = 'queue-1-1'",
    "update phase_queue set depends_on_phases = '[1]' where queue_id = 'queue-1-3'",
    "delete from phase_queue where queue_id = 'queue-1-2'",
    "delete from planned_features where id = 2",
    "select pgcoord.complete_phase('queue-1-1')",
    "select pgcoord.skip_phase('queue-1-2', 'done')",
    "select pgcoord.cancel_feature(1, 'no')",
    "select pgcoord.pause(1)",
    "select pgcoord.set_slots(2)",
    "select pgcoord_private.claim_phases(1)",
]


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_an_older_snapshot_changes_nothing(conn: Connection, epoch: int, level: str) -> None:
    conn.execute("select pgcoord.set_slots(1)")
    add_feature(conn, {1: [], 2: [1], 3: []})
    add_feature(conn, {1: []})
    claim(conn, epoch)
    conn.execute("select pgcoord.set_slots(3)")
    for statement in CHANGES:
        with case(statement):
            conn.execute(f"begin isolation level {level}")
            conn.execute("select from phase_queue")
            with refused("PC009", level.upper()):
                conn.execute(statement)
            conn.execute("rollback")


# Everything at once.

ACTORS = {
    "coordinator": 3,
    "reporter": 2,
    "person": 3,
    "hand": 3,
    "planner": 3,
    "remover": 1,
    "sampler": 1,
}


def everybody_has_acted(load: Load) -> bool:
    return load.most_held > 1 and all(load.done[actor] for actor in ACTORS)


def run_mixed_load(dsn: str, conn: Connection, epoch: int, seconds: float) -> None:
    # The same every time, as far as threads do the same: what turns it red is a change.
    seed = int(os.environ.get("PGCOORD_TEST_SEED", "0"))
    for _ in range(4):
        add_feature(conn, {1: [], 2: [1], 3: [1], 4: [2, 3]})
    load = Load(dsn, epoch, seconds, seed, everybody_has_acted)
    load.run(ACTORS)
    assert not load.wrong, "\n".join([f"PGCOORD_TEST_SEED={seed}", *load.wrong])
    assert everybody_has_acted(load)
    assert load.most_held <= 6  # the most slots that a person asks for
    conn.execute("select pgcoord.resume()")
    conn.execute("select pgcoord_private.claim_phases(%s)", [epoch])


@pytest.mark.scale
@pytest.mark.timeout(MOST_LONGER + PATIENCE)
def test_a_mixed_load_neither_deadlocks_nor_leaves_anything_wrong(
    dsn: str, conn: Connection, epoch: int
) -> None:
    run_mixed_load(dsn, conn, epoch, 2)


@pytest.mark.scale
@pytest.mark.timeout(LONG + MOST_LONGER + PATIENCE)
def test_a_long_mixed_load_neither_deadlocks_nor_leaves_anything_wrong(
    dsn: str, conn: Connection, epoch: int
) -> None:
    run_mixed_load(dsn, conn, epoch, LONG)
