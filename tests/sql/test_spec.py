"""Examples of the description that pgcoord began with (docs/design.md, section 12)."""

import psycopg
import pytest
from support.database import WORKFLOW, Connection, add_feature, claim, start, statuses, take_lead

# Section 6.3, to the letter.
EXAMPLE_DATA = """
-- Feature #104: WebSocket Migration (5 phases)

INSERT INTO phase_queue VALUES
-- Phase 1: Database (blocking all)
('queue-104-1', 104, 1, 200, 'completed', '[]'::jsonb,
 '{"title":"Database Schema","prompt_content":"Add WebSocket tables...","workflow_type":"adw_sdlc_complete_iso","estimated_hours":2}'::jsonb,
 'adw-abc123', NULL, NULL, 50, 1, NOW(), NOW(), NOW(), NOW()),

-- Phase 2: Backend API (depends on Phase 1)
('queue-104-2', 104, 2, 201, 'running', '[1]'::jsonb,
 '{"title":"Backend API","prompt_content":"Implement WebSocket endpoints...","workflow_type":"adw_sdlc_complete_iso","estimated_hours":3}'::jsonb,
 'adw-def456', NULL, NULL, 50, 2, NOW(), NOW(), NOW(), NOW()),

-- Phase 3: Frontend UI (depends on Phase 1, parallel with Phase 2)
('queue-104-3', 104, 3, 202, 'running', '[1]'::jsonb,
 '{"title":"Frontend Components","prompt_content":"Build WebSocket UI...","workflow_type":"adw_sdlc_complete_iso","estimated_hours":2}'::jsonb,
 'adw-ghi789', NULL, NULL, 50, 3, NOW(), NOW(), NOW(), NOW()),

-- Phase 4: Integration Tests (depends on Phases 2 AND 3)
('queue-104-4', 104, 4, NULL, 'queued', '[2, 3]'::jsonb,
 '{"title":"Integration Tests","prompt_content":"Test WebSocket integration...","workflow_type":"adw_sdlc_complete_iso","estimated_hours":2}'::jsonb,
 NULL, NULL, NULL, 50, 4, NOW(), NOW(), NULL, NULL),

-- Phase 5: Documentation (depends on Phase 1, parallel with Tests)
('queue-104-5', 104, 5, 203, 'running', '[1]'::jsonb,
 '{"title":"Documentation","prompt_content":"Document WebSocket API...","workflow_type":"adw_sdlc_complete_iso","estimated_hours":1}'::jsonb,
 'adw-jkl012', NULL, NULL, 50, 5, NOW(), NOW(), NOW(), NOW());
"""  # noqa: E501

# Section 2.1: all need the database schema, the integration tests need both sides.
WEBSOCKET = {1: [], 2: [1], 3: [1], 4: [2, 3], 5: [1]}


def numbers(queue_ids: list[str]) -> list[int]:
    return [int(queue_id.rpartition("-")[2]) for queue_id in queue_ids]


def launch(conn: Connection, epoch: int) -> list[int]:
    """Claim what can be claimed and start it; return the phase numbers, in order."""
    claimed = claim(conn, epoch)
    for queue_id in claimed:
        start(conn, epoch, queue_id)
    return numbers(claimed)


def complete(conn: Connection, feature: int, *phases: int) -> None:
    """Complete phases the way the webhook does: an UPDATE of the status."""
    for phase in phases:
        conn.execute(
            "update phase_queue set status = 'completed'"
            " where feature_id = %s and phase_number = %s",
            [feature, phase],
        )


def with_status(conn: Connection, status: str) -> list[int]:
    return [number for number, each in statuses(conn).items() if each == status]


@pytest.fixture
def feature_104(conn: Connection) -> int:
    conn.execute("insert into planned_features (id, title) values (104, 'WebSocket Migration')")
    conn.execute(EXAMPLE_DATA)
    return 104


def test_the_example_data_of_6_3_is_accepted_unchanged(conn: Connection, feature_104: int) -> None:
    rows = conn.execute(
        "select phase_number, status, issue_number, adw_id, unmet, slot, queue_position, priority"
        " from phase_queue order by phase_number"
    ).fetchall()
    assert [tuple(row.values()) for row in rows] == [
        (1, "completed", 200, "adw-abc123", 0, None, 1, 50),
        (2, "running", 201, "adw-def456", 0, 1, 2, 50),
        (3, "running", 202, "adw-ghi789", 0, 2, 3, 50),
        (4, "queued", None, None, 2, None, 4, 50),
        (5, "running", 203, "adw-jkl012", 0, 3, 5, 50),
    ]


def test_the_example_data_of_6_3_can_be_run_to_its_end(conn: Connection, feature_104: int) -> None:
    epoch = take_lead(conn, {**WORKFLOW, "name": "adw_sdlc_complete_iso"})
    conn.execute("select pgcoord.complete_phase('queue-104-2', 'adw-def456')")
    assert launch(conn, epoch) == []
    conn.execute("select pgcoord.complete_phase('queue-104-3', 'adw-ghi789')")
    assert launch(conn, epoch) == [4]
    complete(conn, 104, 4, 5)
    assert set(statuses(conn).values()) == {"completed"}


def test_the_example_data_of_6_3_is_refused_without_its_feature(conn: Connection) -> None:
    with pytest.raises(psycopg.errors.ForeignKeyViolation, match="phase_queue_feature_exists"):
        conn.execute(EXAMPLE_DATA)


@pytest.mark.parametrize(
    ("graph", "steps"),
    [
        pytest.param({1: [], 2: [1], 3: [2], 4: [3]}, [[1], [2], [3], [4]], id="sequential"),
        pytest.param(
            {1: [], 2: [1], 3: [1], 4: [1], 5: [2, 3, 4]}, [[1], [2, 3, 4], [5]], id="converge"
        ),
        pytest.param(
            {1: [], 2: [1], 3: [1], 4: [1], 5: [2, 3, 4], 6: [5]},
            [[1], [2, 3, 4], [5], [6]],
            id="diamond",
        ),
        pytest.param(
            {1: [], 2: [1], 3: [2], 4: [2], 5: [3, 4]}, [[1], [2], [3, 4], [5]], id="mixed"
        ),
    ],
)
def test_the_graphs_of_4_3_start_in_the_order_given_there(
    conn: Connection, epoch: int, graph: dict[int, list[int]], steps: list[list[int]]
) -> None:
    feature = add_feature(conn, graph)
    started = []
    while step := launch(conn, epoch):
        started.append(step)
        for phase in step[:-1]:
            complete(conn, feature, phase)
            assert launch(conn, epoch) == [], "the next step waits for all of this one"
        complete(conn, feature, step[-1])
    assert started == steps
    assert set(statuses(conn).values()) == {"completed"}


def test_the_trace_of_2_1_to_2_3(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, WEBSOCKET)
    assert launch(conn, epoch) == [1]
    assert statuses(conn) == {1: "running", 2: "queued", 3: "queued", 4: "queued", 5: "queued"}

    complete(conn, feature, 1)
    assert launch(conn, epoch) == [2, 3, 5]

    complete(conn, feature, 2)
    assert launch(conn, epoch) == []
    assert statuses(conn)[4] == "queued"

    complete(conn, feature, 3)
    assert launch(conn, epoch) == [4]
    assert with_status(conn, "running") == [4, 5]


def test_the_trace_of_3_3_with_phase_4_waiting_for_phase_3(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {2: [], 3: [], 4: [2, 3], 5: [], 6: [4]})
    assert launch(conn, epoch) == [2, 3, 5]

    complete(conn, feature, 2)
    assert launch(conn, epoch) == []
    assert with_status(conn, "queued") == [4, 6]

    complete(conn, feature, 3)
    assert launch(conn, epoch) == [4]
    assert with_status(conn, "running") == [4, 5]

    complete(conn, feature, 4)
    assert launch(conn, epoch) == [6]
    assert with_status(conn, "running") == [5, 6]


def test_9_1_completing_a_phase_triggers_its_dependents(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {1: [], 2: [1], 3: [1]})
    launch(conn, epoch)
    complete(conn, feature, 1)
    launch(conn, epoch)
    assert statuses(conn) == {1: "completed", 2: "running", 3: "running"}


def test_9_1_no_more_than_three_run_at_once(conn: Connection, epoch: int) -> None:
    add_feature(conn, {number: [] for number in range(1, 6)})
    launch(conn, epoch)
    launch(conn, epoch)
    assert with_status(conn, "running") == [1, 2, 3]
    assert with_status(conn, "queued") == [4, 5]


def test_9_1_a_diamond_joins_when_its_last_side_is_done(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {1: [], 2: [1], 3: [1], 4: [1], 5: [2, 3, 4]})
    launch(conn, epoch)
    complete(conn, feature, 1)
    launch(conn, epoch)
    assert with_status(conn, "running") == [2, 3, 4]
    complete(conn, feature, 2, 3)
    launch(conn, epoch)
    assert statuses(conn)[5] == "queued"
    complete(conn, feature, 4)
    launch(conn, epoch)
    assert statuses(conn)[5] == "running"


def test_9_3_phase_2_runs_after_the_report_of_phase_1(conn: Connection, epoch: int) -> None:
    add_feature(conn, {1: [], 2: [1]})
    launch(conn, epoch)
    conn.execute("select pgcoord.complete_phase(queue_id, adw_id) from phase_queue where slot = 1")
    launch(conn, epoch)
    assert statuses(conn) == {1: "completed", 2: "running"}


def test_9_3_ten_phases_end_without_ever_running_more_than_three(
    conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {number: [] for number in range(1, 11)})
    at_once = []
    while launch(conn, epoch) or with_status(conn, "running"):
        running = with_status(conn, "running")
        at_once.append(len(running))
        complete(conn, feature, running[0])
    assert statuses(conn) == dict.fromkeys(range(1, 11), "completed")
    assert at_once == [3, 3, 3, 3, 3, 3, 3, 3, 2, 1]


def test_9_3_a_phase_that_never_started_cannot_be_reported(conn: Connection) -> None:
    feature = add_feature(conn, {1: []})
    with pytest.raises(psycopg.Error, match="never started"):
        conn.execute("select pgcoord.complete_phase(%s)", [f"queue-{feature}-1"])
    assert statuses(conn) == {1: "queued"}
