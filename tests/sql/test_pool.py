"""Pools: slots and a line of their own, and what becomes of one that is declared no more."""

import json
from typing import Any

import pytest
from psycopg.types.json import Jsonb
from support.database import (
    WORKFLOW,
    Connection,
    add_feature,
    attempt_of,
    claim,
    one,
    refused,
    start,
    take_lead,
)

TRAIN = {**WORKFLOW, "name": "train", "default": False, "pool": "gpu"}
GPU = {"name": "gpu", "launcher": "slurm", "slots": 2, "settings": {"folder": "/shared"}}


def lead(conn: Connection, **gpu: Any) -> int:
    """Lead with the workflow `train` in the pool `gpu`, and `work` in `local`."""
    return take_lead(conn, WORKFLOW, TRAIN, pools=[{**GPU, **gpu}])


def add(conn: Connection, count: int, workflow: str | None = None) -> int:
    """Add a feature of so many phases that wait for nothing."""
    data = Jsonb({"workflow_type": workflow} if workflow else {})
    return add_feature(conn, {number: [] for number in range(1, count + 1)}, phase_data=data)


def pools(conn: Connection) -> dict[str, tuple[int, int, int]]:
    found = conn.execute("select pool, slots, held, draining from pgcoord.pools").fetchall()
    return {row["pool"]: (row["slots"], row["held"], row["draining"]) for row in found}


def why(conn: Connection, queue_id: str) -> list[str]:
    found = conn.execute(
        "select words from pgcoord.why(%s) where kind <> 'empty'", [queue_id]
    ).fetchall()
    return [row["words"] for row in found]


def complete(conn: Connection, *queue_ids: str) -> None:
    for queue_id in queue_ids:
        conn.execute("select pgcoord.complete_phase(%s)", [queue_id])


def test_each_pool_is_claimed_up_to_its_own_slots_in_its_own_order(conn: Connection) -> None:
    epoch = lead(conn)
    add(conn, 4, "train")
    add(conn, 4)
    add_feature(conn, {1: []}, phase_data=Jsonb({"workflow_type": "train"}), priority=10)
    assert sorted(claim(conn, epoch)) == [
        *("queue-1-1", "queue-2-1", "queue-2-2", "queue-2-3"),
        "queue-3-1",
    ]
    assert pools(conn) == {"local": (3, 3, 0), "gpu": (2, 2, 0)}
    assert claim(conn, epoch) == []
    train = attempt_of(conn, "queue-3-1")
    assert train["pool"] == "gpu"
    assert train["folder"].startswith("/shared/")
    assert attempt_of(conn, "queue-2-1")["folder"].startswith("/runs/")
    assert why(conn, "queue-1-4") == ["waits for a slot in pool gpu, 3rd in line; 2 of 2 are held"]
    assert why(conn, "queue-2-4") == ["waits for a slot, 1st in line; 3 of 3 are held"]
    assert why(conn, "queue-3-1")[0].startswith("is being submitted to pool gpu since ")
    complete(conn, "queue-1-1")
    assert claim(conn, epoch) == ["queue-1-2"]


def test_why_names_the_way_to_give_slots_to_a_pool_without_slots(conn: Connection) -> None:
    lead(conn)
    add(conn, 1, "train")
    add(conn, 1)
    conn.execute("select pgcoord.set_slots(0, 'gpu'), pgcoord.set_slots(0, 'local')")
    none = "1st in line; there is none (pgcoord slots N"
    assert why(conn, "queue-1-1") == [f"waits for a slot in pool gpu, {none} --pool gpu)"]
    assert why(conn, "queue-2-1") == [f"waits for a slot, {none})"]


def test_two_workflows_of_a_pool_stand_in_one_line(conn: Connection) -> None:
    score = {**TRAIN, "name": "score"}
    epoch = take_lead(conn, WORKFLOW, TRAIN, score, pools=[{**GPU, "slots": 1}])
    for workflow in ("score", "train", "score"):
        add(conn, 1, workflow)
    claimed = []
    for _ in range(3):
        claimed += claim(conn, epoch)
        complete(conn, claimed[-1])
    assert claimed == ["queue-1-1", "queue-2-1", "queue-3-1"]


def blocks(conn: Connection, epoch: int) -> int:
    """The blocks that a claim reads, the second time: the first one reads the catalog."""
    read = 0
    for _ in range(2):
        with conn.transaction(force_rollback=True):
            statement = f"select * from pgcoord_private.claim_phases({epoch})"
            plan = one(conn, f"explain (analyze, buffers, format json) {statement}")["QUERY PLAN"]
            found = (plan if isinstance(plan, list) else json.loads(plan))[0]["Plan"]
            read = found["Shared Hit Blocks"] + found["Shared Read Blocks"]
    return int(read)


@pytest.mark.own_database
def test_a_claim_does_not_step_over_phases_that_wait_for_another_pool(conn: Connection) -> None:
    epoch = lead(conn)
    add(conn, 10, "train")
    assert len(claim(conn, epoch)) == 2
    add(conn, 1)
    few = blocks(conn, epoch)
    conn.execute(
        "insert into phase_queue (feature_id, phase_number, phase_data, priority)"
        """ select 1, n, '{"workflow_type": "train"}', 10 from generate_series(11, 5000) as n"""
    )
    assert blocks(conn, epoch) < few * 1.2
    assert claim(conn, epoch) == ["queue-2-1"]


def test_the_number_of_slots_is_set_by_pool(conn: Connection) -> None:
    lead(conn)
    conn.execute("select pgcoord.set_slots(5, 'gpu'), pgcoord.set_slots(4)")
    assert pools(conn) == {"local": (4, 0, 0), "gpu": (5, 0, 0)}
    with refused("PC001", "no pool cpu"):
        conn.execute("select pgcoord.set_slots(1, 'cpu')")
    with refused("PC005", "-1"):
        conn.execute("select pgcoord.set_slots(-1, 'gpu')")
    reason = one(conn, "select reason from pgcoord.event where kind = 'slots_changed' limit 1")
    assert reason["reason"] == "0 → 2 in pool gpu"


def test_slots_stay_as_set_until_the_configuration_changes(conn: Connection) -> None:
    lead(conn, slots=2)
    conn.execute("select pgcoord.set_slots(7, 'gpu')")
    lead(conn, slots=2)
    assert pools(conn)["gpu"] == (7, 0, 0)
    lead(conn, slots=3)
    assert pools(conn)["gpu"] == (3, 0, 0)
    assert pools(conn)["local"] == (3, 0, 0)


def test_a_pool_that_is_removed_lets_its_phases_end(conn: Connection) -> None:
    epoch = lead(conn)
    add(conn, 3, "train")
    for queue_id in claim(conn, epoch):
        start(conn, epoch, queue_id)
    epoch = take_lead(conn)
    assert pools(conn) == {"local": (3, 0, 0), "gpu": (0, 2, 2)}
    row = one(conn, "select launcher, settings, declared from pgcoord.pool where name = 'gpu'")
    assert row == {"launcher": "slurm", "settings": {"folder": "/shared"}, "declared": False}
    with refused("PC002", "taken out of the configuration"):
        conn.execute("select pgcoord.set_slots(1, 'gpu')")
    assert why(conn, "queue-1-3") == ["no coordinator knows workflow train"]
    complete(conn, "queue-1-1")
    conn.execute("select pgcoord.cancel_phase('queue-1-2', 'enough')")
    attempt = attempt_of(conn, "queue-1-2")
    conn.execute("select pgcoord_private.end_attempt(%s, 143, '', '')", [attempt["id"]])
    assert one(conn, "select status from phase_queue where queue_id = 'queue-1-2'") == {
        "status": "cancelled"
    }
    assert pools(conn)["gpu"] == (0, 0, 0)
    conn.execute("update pgcoord.attempt set exited_at = now() where exited_at is null")
    take_lead(conn)
    assert pools(conn) == {"local": (3, 0, 0)}


def test_a_removed_pool_comes_back_with_its_slots(conn: Connection) -> None:
    epoch = lead(conn)
    add(conn, 1, "train")
    claim(conn, epoch)
    take_lead(conn)
    lead(conn)
    assert pools(conn)["gpu"] == (2, 1, 0)


@pytest.mark.parametrize(("workflow", "slot"), [("train", 4), (None, 1)])
def test_an_inserted_running_phase_gets_a_slot_of_its_pool(
    conn: Connection, workflow: str | None, slot: int
) -> None:
    lead(conn, slots=1)
    data = Jsonb({"workflow_type": workflow})
    add_feature(conn, {1: []}, phase_data=data, status="running")
    assert one(conn, "select slot from phase_queue") == {"slot": slot}
    if workflow:
        with refused("PC006", "no slot in pool gpu is free", "1 of 1"):
            add_feature(conn, {1: []}, phase_data=data, status="running")


def test_checkup_knows_that_a_free_slot_of_another_pool_is_no_help(conn: Connection) -> None:
    epoch = lead(conn)
    add(conn, 3, "train")
    assert len(claim(conn, epoch)) == 2
    conn.execute("update pgcoord.coordinator set lead_at = now() - interval '1 min'")
    conn.execute("alter table phase_queue disable trigger user")
    conn.execute(
        "update phase_queue set eligible_at = now() - interval '1 min',"
        " updated_at = now() - interval '1 min'"
    )
    conn.execute("alter table phase_queue enable trigger user")
    row = one(conn, "select level, words from pgcoord.checkup() where kind = 'line'")
    assert row == {"level": "ok", "words": "1 phase waits for a slot"}
