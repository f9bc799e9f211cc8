"""Named locks: of the phases that name one, one runs at a time, whatever the slots."""

import psycopg
from psycopg.types.json import Jsonb
from support.database import (
    WORKFLOW,
    Connection,
    add_feature,
    add_phase,
    claim,
    one,
    refused,
    take_lead,
    why,
)


def complete(conn: Connection, queue_id: str) -> None:
    conn.execute("select pgcoord.complete_phase(%s)", [queue_id])


def test_a_phase_holds_a_named_lock_and_other_phases_go_on(conn: Connection, epoch: int) -> None:
    first = add_feature(conn, {})
    for number in range(1, 6):
        add_phase(conn, first, number, lock="staging")
    second = add_feature(conn, {1: []})
    add_phase(conn, second, 2, lock="staging", priority=10)
    add_phase(conn, second, 3, lock="other")
    assert claim(conn, epoch) == ["queue-2-2", "queue-2-1", "queue-2-3"]
    assert why(conn, "queue-1-1") == ["waits for lock staging, held by 2.2"]
    assert claim(conn, epoch) == []
    parked = one(
        conn, "select array_agg(queue_id order by queue_id) as names from phase_queue where parked"
    )
    assert parked == {"names": [f"queue-1-{n}" for n in range(1, 6)]}
    complete(conn, "queue-2-1")
    assert claim(conn, epoch) == []
    complete(conn, "queue-2-2")
    assert claim(conn, epoch) == ["queue-1-1"]
    conn.execute("select pgcoord.cancel_phase('queue-1-2', 'no')")
    conn.execute("update phase_queue set priority = 10 where queue_id = 'queue-1-4'")
    complete(conn, "queue-1-1")
    assert claim(conn, epoch) == ["queue-1-4"]
    conn.execute("select pgcoord.retry_phase('queue-1-2')")
    complete(conn, "queue-1-4")
    assert claim(conn, epoch) == ["queue-1-2"]
    complete(conn, "queue-1-2")
    assert claim(conn, epoch) == ["queue-1-3"]


def test_a_phase_that_waits_for_its_retry_time_or_is_paused_holds_no_lock(
    conn: Connection, epoch: int
) -> None:
    first = add_feature(conn, {})
    add_phase(conn, first, 1, lock="staging")
    second = add_feature(conn, {})
    for number in (1, 2):
        add_phase(conn, second, number, lock="staging")
    assert claim(conn, epoch) == ["queue-1-1"]
    conn.execute("select pgcoord.pause(2)")
    complete(conn, "queue-1-1")
    assert claim(conn, epoch) == []
    conn.execute("select pgcoord.resume(2)")
    assert claim(conn, epoch) == ["queue-2-1"]


def test_the_database_itself_refuses_a_second_holder(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {})
    add_phase(conn, feature, 1, lock="staging")
    assert claim(conn, epoch) == ["queue-1-1"]
    with refused("PC006", "lock staging is held by 1.1"):
        add_phase(conn, feature, 2, lock="staging", status="running")
    with refused("PC006", "lock new is held by 1.3: phase queue-1-4 cannot be inserted"):
        conn.execute(
            "insert into phase_queue (feature_id, phase_number, status, lock)"
            " values (1, 3, 'running', 'new'), (1, 4, 'running', 'new')"
        )
    with refused("23505", "attempt_lock_key"):
        conn.execute(
            "insert into pgcoord.attempt"
            " (queue_id, number, adw_id, secret, slot, pool, external, lock)"
            " select queue_id, 2, 'other', 's', slot, pool, true, lock from pgcoord.attempt"
        )
    with refused("PC008", "run_when and lock"):
        conn.execute("update phase_queue set lock = 'mine'")


def test_phases_behind_a_lock_are_read_once(conn: Connection, epoch: int) -> None:
    """Not again with each claim, however many there are."""
    conn.execute("insert into planned_features (title) values ('a')")
    conn.execute(
        "insert into phase_queue (feature_id, phase_number, lock)"
        " select 1, n, 'staging' from generate_series(1, 300) as n"
    )
    add_feature(conn, {n: [] for n in range(1, 8)})
    assert claim(conn, epoch) == ["queue-1-1", "queue-2-1", "queue-2-2"]
    complete(conn, "queue-2-1")
    before = one(conn, "select count(*) from phase_queue where parked")
    assert before == {"count": 299}
    assert claim(conn, epoch) == ["queue-2-3"]
    assert one(conn, "select count(*) from pgcoord_private.claimable") == {"count": 4}


def test_a_free_lock_goes_to_a_phase_that_can_be_claimed_now(conn: Connection) -> None:
    train = {**WORKFLOW, "name": "train", "default": False, "pool": "gpu"}
    gpu = {"name": "gpu", "launcher": "slurm", "slots": 1, "settings": {"folder": "/shared"}}
    epoch = take_lead(conn, WORKFLOW, train, pools=[gpu])
    feature = add_feature(conn, {})
    on_gpu = Jsonb({"workflow_type": "train"})
    add_phase(conn, feature, 1, lock="staging")
    add_phase(conn, feature, 2, phase_data=on_gpu)
    add_phase(conn, feature, 3, lock="staging", phase_data=on_gpu, priority=10)
    add_phase(conn, feature, 4, lock="staging")
    conn.execute("select pgcoord.pause()")
    conn.execute("update phase_queue set priority = 1 where phase_number < 3")
    conn.execute("select pgcoord.resume()")
    assert sorted(claim(conn, epoch)) == ["queue-1-1", "queue-1-2"]
    complete(conn, "queue-1-1")
    assert claim(conn, epoch) == ["queue-1-4"]
    complete(conn, "queue-1-4")
    complete(conn, "queue-1-2")
    assert claim(conn, epoch) == ["queue-1-3"]


def test_a_locked_feature_holds_up_no_other_when_its_lock_is_free(
    dsn: str, conn: Connection, epoch: int
) -> None:
    add_phase(conn, add_feature(conn, {}), 1, lock="staging")
    add_phase(conn, add_feature(conn, {}), 1, lock="staging")
    assert claim(conn, epoch) == ["queue-1-1"]
    assert claim(conn, epoch) == []
    complete(conn, "queue-1-1")
    add_phase(conn, add_feature(conn, {}), 1)
    with psycopg.connect(dsn) as other:
        other.execute("select from planned_features where id = 2 for update")
        assert claim(conn, epoch) == ["queue-3-1"]
    assert claim(conn, epoch) == ["queue-2-1"]
