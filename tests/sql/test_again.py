"""Features that are run again: a copy, from the start or from a phase on."""

from psycopg.types.json import Jsonb
from support.database import Connection, add_phase, claim, one, refused, statuses


def submit(conn: Connection, phases: list[dict[str, object]]) -> int:
    feature = {"title": "a", "priority": 20, "tags": ["x"], "phases": phases}
    return int(one(conn, "select pgcoord.submit_feature(%s) as id", Jsonb(feature))["id"])


def complete(conn: Connection, queue_id: str, result: dict[str, object]) -> None:
    conn.execute("select pgcoord.set_result(%s, %s)", [queue_id, Jsonb(result)])
    conn.execute("select pgcoord.complete_phase(%s)", [queue_id])


def of_copy(conn: Connection, feature: int) -> dict[int, str]:
    rows = conn.execute(
        "select phase_number, status from phase_queue where feature_id = %s", [feature]
    )
    return {row["phase_number"]: row["status"] for row in rows}


def test_a_copy_from_a_phase_on_takes_over_earlier_completed_phases(
    conn: Connection, epoch: int
) -> None:
    submit(
        conn,
        [
            {"phase_number": 1, "title": "one", "prompt_content": "x", "lock": "staging"},
            {"phase_number": 2, "title": "two", "prompt_content": "x"},
            {"phase_number": 3, "prompt_content": "x", "depends_on_phases": [1]},
            {
                "phase_number": 4,
                "prompt_content": "x",
                "depends_on_phases": [3],
                "run_when": "always",
            },
        ],
    )
    assert claim(conn, epoch) == ["queue-1-1", "queue-1-2"]
    complete(conn, "queue-1-1", {"summary": "one", "cost_usd": 2})
    conn.execute("select pgcoord.fail_phase('queue-1-2', 'no')")
    assert claim(conn, epoch) == ["queue-1-3"]
    complete(conn, "queue-1-3", {"summary": "three"})
    assert one(conn, "select pgcoord.again_from('queue-1-3') as id") == {"id": 2}
    assert of_copy(conn, 2) == {1: "completed", 2: "queued", 3: "queued", 4: "queued"}
    assert one(
        conn, "select priority, tags, origin_id, cost_usd from pgcoord.feature where id = 2"
    ) == {
        "priority": 20,
        "tags": ["x"],
        "origin_id": 1,
        "cost_usd": None,
    }
    assert one(conn, "select run_when, lock from phase_queue where queue_id = 'queue-2-4'") == {
        "run_when": "always",
        "lock": None,
    }
    inputs = one(conn, "select pgcoord_private.inputs_of(2, 3) as value")
    assert inputs == {"value": {"1": {"summary": "one"}}}
    assert one(conn, "select skipped from pgcoord.board where queue_id = 'queue-2-1'") == {
        "skipped": False
    }
    # A copy of a copy from there on keeps it; one from the start runs all.
    conn.execute("select pgcoord.again_from('queue-2-3')")
    assert one(conn, "select pgcoord_private.inputs_of(3, 3) as value") == inputs
    assert one(conn, "select pgcoord.again(2) as id") == {"id": 4}
    assert set(of_copy(conn, 4).values()) == {"queued"}
    assert one(
        conn, "select reason from pgcoord.event where feature_id = 2 and kind = 'feature_inserted'"
    ) == {"reason": "feature 1 again, from phase 3"}


def test_phases_that_came_in_as_completed_stay_so(conn: Connection) -> None:
    feature = submit(conn, [{"phase_number": 1, "status": "completed"}, {"phase_number": 2}])
    conn.execute("select pgcoord.skip_phase(%s, 'no')", [f"queue-{feature}-2"])
    conn.execute("select pgcoord.again(%s)", [feature])
    assert of_copy(conn, 2) == {1: "completed", 2: "queued"}


def test_a_feature_without_phases_cannot_be_run_again(conn: Connection) -> None:
    conn.execute("insert into planned_features (title) values ('a')")
    with refused("PC002", "feature 1 has no phases and no plan"):
        conn.execute("select pgcoord.again(1)")
    with refused("PC001", "there is no feature 9"):
        conn.execute("select pgcoord.again(9)")
    add_phase(conn, 1, 1)
    conn.execute("select pgcoord.again(1)")
    assert statuses(conn) == {1: "queued"}


def test_a_phase_stored_as_done_is_done_in_the_copy(conn: Connection) -> None:
    plan = [
        {"phase_number": 1, "prompt_content": "x", "status": "completed"},
        {"phase_number": 2, "prompt_content": "x"},
    ]
    feature = Jsonb({"title": "a", "phases": plan})
    one(conn, "select pgcoord.store_feature(%s) as id", feature)
    assert one(conn, "select pgcoord.again(1) as id") == {"id": 2}
    assert of_copy(conn, 2) == {1: "completed", 2: "queued"}


def test_a_phase_taken_over_runs_in_a_copy_from_the_start(conn: Connection, epoch: int) -> None:
    submit(conn, [{"phase_number": n, "prompt_content": "x"} for n in (1, 2)])
    assert len(claim(conn, epoch)) == 2
    conn.execute("select pgcoord.complete_phase('queue-1-1')")  # without a result
    assert one(conn, "select pgcoord.again_from('queue-1-2') as id") == {"id": 2}
    assert of_copy(conn, 2) == {1: "completed", 2: "queued"}
    assert one(conn, "select pgcoord.again(2) as id") == {"id": 3}
    assert of_copy(conn, 3) == {1: "queued", 2: "queued"}
