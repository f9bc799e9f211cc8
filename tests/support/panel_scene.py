"""A scene for the panel: features in every state there is, with a past to expect things from."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from support.database import Connection, add_feature, claim, start

WORKFLOWS = [
    {
        "name": name,
        "default": name == "adw_sdlc_complete_iso",
        "reports": True,
        "max_attempts": 2,
        "retry_delay_seconds": 300,
        "retry_lost": False,
        "timeout_seconds": 21600,
    }
    for name in ("adw_sdlc_complete_iso", "adw_review_iso")
]

PROMPT = """Implement the WebSocket endpoints for real-time updates.

- /ws/events: authenticate, subscribe, broadcast
- replay what was missed from the last event id
- a slow client is dropped, never waited for

Before this: phase 1 left ws_session and ws_event. After this: phase 4 tests it together with
the Frontend Components of phase 3.

Done when the ws suite passes and mypy --strict finds nothing."""

LOG = """[test] running ws/ suite with 4 workers
ws/test_handshake.py ..............                            [ 11%]
ws/test_broadcast.py ....................                      [ 28%]
ws/test_backpressure.py .......F                               [ 34%]
FAILED ws/test_backpressure.py::test_slow_client_is_dropped
    assert queue.qsize() <= 256, got 257
[fix] ws/outbox.py: drop the oldest before put, not after
[test] running ws/test_backpressure.py
ws/test_backpressure.py ........                               [100%]
8 passed in 2.71s
[step] resume: replay from last_event_id
[edit] ws/resume.py (+64), ws/routes.py (+9 -3)
[test] running ws/test_resume.py
ws/test_resume.py .....                                        [ 62%]
ws/test_resume.py::test_gap_is_replayed_from_last_event_id PASSED
ws/test_resume.py ...                                          [100%]
8 passed in 8.90s
[check] ruff, mypy --strict ws
Success: no issues found in 14 source files
[git] commit 3f9c21a "Replay missed events on reconnect"
"""


class Scene:
    """Plays what a coordinator does, at times of its own choosing; it holds the lead."""

    def __init__(self, dsn: str, host: str, runs: Path) -> None:
        self._conn = psycopg.connect(dsn, autocommit=True, row_factory=dict_row)
        self._runs = runs
        [row] = self.sql(
            "select epoch from pgcoord_private.lead(%s, 4100, '0.1', %s, %s)",
            host,
            str(runs),
            Jsonb(WORKFLOWS),
        )
        self._epoch = row["epoch"]

    def close(self) -> None:
        """Give the lead back."""
        self._conn.close()

    def sql(self, statement: str, *values: object) -> list[dict[str, Any]]:
        """Run a statement; return its rows."""
        cursor = self._conn.execute(statement.encode(), values)
        return cursor.fetchall() if cursor.description else []

    def feature(self, number: int, title: str, *phases: tuple[str, list[int]]) -> None:
        """Insert a feature with its phases: title and prerequisites of each."""
        self.sql("insert into planned_features (id, title) values (%s, %s)", number, title)
        for phase, (name, needs) in enumerate(phases, 1):
            self.sql(
                "insert into phase_queue (feature_id, phase_number, depends_on_phases, phase_data)"
                " values (%s, %s, %s, %s)",
                number,
                phase,
                Jsonb(needs),
                Jsonb({"title": name, "prompt_content": PROMPT, "estimated_hours": 0.5}),
            )

    def claim(self, feature: int, phase: int) -> str:
        """Claim one phase ahead of all others, in a slot more."""
        queue_id = f"queue-{feature}-{phase}"
        held = self.sql("select count(*) as n from phase_queue where slot is not null")[0]["n"]
        self.sql(
            "update phase_queue set priority = 0, retry_at = null where queue_id = %s", queue_id
        )
        self.sql("select pgcoord.set_slots(%s)", held + 1)
        rows = self.sql("select queue_id from pgcoord_private.claim_phases(%s)", self._epoch)
        assert [row["queue_id"] for row in rows] == [queue_id]
        self.sql("update phase_queue set priority = 50 where queue_id = %s", queue_id)
        return queue_id

    def start(self, feature: int, phase: int, began: float) -> str:
        """Have a phase run since so many minutes ago."""
        queue_id = self.claim(feature, phase)
        self.sql(
            "select pgcoord_private.start_phase(%s, id, 48213, 'then') from pgcoord.attempt"
            " where queue_id = %s and ended_at is null",
            self._epoch,
            queue_id,
        )
        since = timedelta(minutes=began)
        self.sql(
            "update pgcoord.attempt set claimed_at = now() - %s - interval '8 s',"
            " started_at = now() - %s where queue_id = %s and ended_at is null",
            since,
            since,
            queue_id,
        )
        self.sql(
            "update phase_queue set ready_timestamp = now() - %s - interval '8 s',"
            " started_timestamp = now() - %s where queue_id = %s",
            since,
            since,
            queue_id,
        )
        return queue_id

    def run(
        self, feature: int, phase: int, began: float, minutes: float, error: str | None = None
    ) -> None:
        """Have a phase have run so many minutes, from so many minutes ago."""
        queue_id = self.start(feature, phase, began)
        if error:
            self.sql("select pgcoord.fail_phase(%s, %s)", queue_id, error)
        else:
            self.sql("select pgcoord.complete_phase(%s)", queue_id)
        self.sql(
            "select pgcoord_private.end_attempt(id, %s, '') from pgcoord.attempt"
            " where queue_id = %s and exited_at is null",
            1 if error else 0,
            queue_id,
        )
        ended = timedelta(minutes=began - minutes)
        self.sql(
            "update pgcoord.attempt set ended_at = now() - %s where queue_id = %s and number ="
            " (select attempt from phase_queue where queue_id = %s)",
            ended,
            queue_id,
            queue_id,
        )
        self.sql(
            "update phase_queue set finished_timestamp = now() - %s where queue_id = %s and"
            " finished_timestamp is not null",
            ended,
            queue_id,
        )

    def tidy(self) -> None:
        """Let the history tell the times at which things are said to have happened."""
        self.sql("alter table pgcoord.event disable trigger user")
        self.sql("alter table phase_queue disable trigger user")
        self.sql(
            "delete from pgcoord.event where kind in ('phase_reprioritised', 'slots_changed',"
            " 'attempt_ending', 'attempt_exited')"
        )
        self.sql(
            "update pgcoord.event as e set actor = 'coordinator build-2', at = case e.to_status"
            " when 'ready' then a.claimed_at when 'running' then a.started_at"
            " else coalesce(a.ended_at, e.at) end"
            " from pgcoord.attempt as a where a.queue_id = e.queue_id and a.number = e.attempt"
            " and e.kind = 'phase_moved'"
        )
        begun = "(select min(claimed_at) from pgcoord.attempt as a where a.queue_id like"
        self.sql(
            f"update planned_features as f set created_at = coalesce({begun}"
            " format('queue-%%s-%%%%', f.id)) - interval '4 min', now() - interval '3 h')"
        )
        self.sql(
            "update phase_queue as p set created_at = f.created_at, eligible_at ="
            " case when p.eligible_at is not null then coalesce((select max(u.finished_timestamp)"
            " from pgcoord.dependency as d join phase_queue as u on u.feature_id = d.feature_id"
            " and u.phase_number = d.prerequisite where d.feature_id = p.feature_id"
            " and d.dependent = p.phase_number), f.created_at) end"
            " from planned_features as f where f.id = p.feature_id"
        )
        self.sql(
            "update pgcoord.event as e set at = f.created_at, actor = 'dana (panel)'"
            " from planned_features as f where f.id = e.feature_id"
            " and e.kind in ('phase_inserted', 'feature_inserted')"
        )
        self.sql(
            "update planned_features set cancelled_at = cancelled_at - interval '19 h',"
            " paused_at = paused_at - interval '23 min'"
        )
        self.sql(
            "update phase_queue as p set finished_timestamp = cancelled_at"
            " from planned_features as f where f.id = feature_id and p.status = 'cancelled'"
        )
        self.sql(
            "update pgcoord.event set actor = 'coordinator build-2', at = now() - interval '38 min'"
            " where to_status = 'blocked'"
        )
        self.sql("create temporary table told as select * from pgcoord.event order by at, id")
        self.sql("delete from pgcoord.event")
        columns = "at, kind, feature_id, phase_number, queue_id, from_status, to_status, attempt"
        self.sql(
            f"insert into pgcoord.event ({columns}, actor, reason)"
            f" select {columns}, actor, reason from told order by at, id"
        )
        self.sql("alter table pgcoord.event enable trigger user")
        self.sql("alter table phase_queue enable trigger user")

    def write_log(self, queue_id: str, text: str) -> Path:
        """Have the current attempt of a phase have written this."""
        [row] = self.sql(
            "select folder from pgcoord.attempt where queue_id = %s order by number desc limit 1",
            queue_id,
        )
        folder = Path(row["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log").write_text(text)
        return folder / "log"


def set_scene(scene: Scene) -> None:
    """Have nine features stand as they do on an afternoon."""
    minutes = [31, 26, 44, 29, 35, 38, 27, 33, 41, 30, 28, 36, 32, 25, 47, 31, 29, 34]
    scene.feature(88, "Nightly Rebuild", *((f"Target {n}", []) for n in range(1, 19)))
    for phase, took in enumerate(minutes, 1):
        scene.run(88, phase, 2900 + 50 * phase, took)
    chain: list[tuple[str, list[int]]] = [
        ("Plan the Move", []),
        ("Second Index", [1]),
        ("Dual Writes", [2]),
        ("Backfill", [3]),
        ("Switch Reads", [4]),
    ]
    scene.feature(101, "Search Reindex", *chain)
    for phase, began in enumerate((275, 240, 150, 118, 66), 1):
        scene.run(101, phase, began, 33)
    scene.feature(91, "Legacy Cron Removal", *((f"Job {n}", []) for n in range(1, 5)))
    scene.run(91, 1, 1500, 30)
    scene.run(91, 2, 1460, 28)
    scene.sql("select set_config('pgcoord.actor', 'dana (panel)', false)")
    scene.sql("select pgcoord.cancel_feature(91, 'replaced by 109')")
    scene.feature(
        104,
        "WebSocket Migration",
        ("Database Schema", []),
        ("Backend API", [1]),
        ("Frontend Components", [1]),
        ("Integration Tests", [2, 3]),
        ("Documentation", [1]),
        ("Client SDK", [1]),
        ("Rollout", [4, 5, 6]),
    )
    scene.run(104, 1, 1100, 41)
    scene.run(104, 2, 80, 18, "2 failed, 118 passed")
    error = "3 of 214 tests failed: reconnect keeps the last event id"
    scene.run(104, 6, 74, 12, error)
    scene.run(104, 6, 52, 14, error)
    scene.sql(
        "update phase_queue set issue_number = 199 + phase_number"
        " where feature_id = 104 and attempt > 0"
    )
    scene.feature(
        115,
        "Type Coverage Sweep",
        *((f"Module {n}", [50] if n == 31 else [29] if n > 33 else []) for n in range(1, 49)),
    )
    for phase in range(1, 29):
        scene.run(115, phase, 2000 - 40 * phase, minutes[phase % 18])
    scene.feature(
        109,
        "Tenant Rate Limits",
        ("Quota Table", []),
        ("Token Buckets", [1]),
        ("Admin Page", [1]),
        ("Limits in the Gateway", [2]),
        ("Billing Events", [4]),
        ("Rollout", [5, 3]),
    )
    for phase, began in ((1, 220), (2, 170), (3, 120)):
        scene.run(109, phase, began, 32)
    scene.feature(
        112,
        "Audit Log Export",
        ("Tables", []),
        ("Export Worker", [1]),
        ("Download Page", [2]),
        ("Retention", [2]),
    )
    scene.run(112, 1, 140, 26)
    scene.feature(98, "Invoice PDF Rendering", *((f"Part {n}", []) for n in range(1, 6)))
    scene.run(98, 1, 330, 36)
    scene.run(98, 2, 260, 29)
    for number, title, phases in ((118, "Single Sign-On", 9), (120, "Mobile Push", 0)):
        scene.sql(
            "insert into planned_features (id, title, plan) values (%s, %s, %s)",
            number,
            title,
            Jsonb([{"phase_number": n + 1} for n in range(phases)]),
        )
    backend = scene.start(104, 2, 24.7)
    frontend = scene.start(104, 3, 36.5)
    scene.claim(109, 4)
    scene.write_log(backend, LOG)
    scene.write_log(frontend, "src/live/useEvents.ts: 41 of 58 tests passed\n")
    scene.sql("update phase_queue set priority = 60 where queue_id = 'queue-104-5'")
    scene.sql("update phase_queue set priority = 70 where feature_id = 115 and status = 'queued'")
    scene.sql("select pgcoord.pause(98, 'waits for the new fonts')")
    scene.sql("select pgcoord.set_slots(2)")
    scene.tidy()


def add_diamond(conn: Connection) -> int:
    """A feature of four phases: 2 and 3 wait for 1, and 4 for both."""
    return add_feature(conn, {1: [], 2: [1], 3: [1], 4: [2, 3]})


def fail(conn: Connection, epoch: int, queue_id: str, error: str = "it broke") -> None:
    """Have a phase that is next in line run and fail."""
    assert queue_id in claim(conn, epoch)
    start(conn, epoch, queue_id)
    conn.execute("select pgcoord.fail_phase(%s, %s)", [queue_id, error])
    conn.execute(
        "select pgcoord_private.end_attempt(id, 1, '') from pgcoord.attempt where queue_id = %s",
        [queue_id],
    )


def events_of(conn: Connection, kind: str) -> list[dict[str, Any]]:
    return conn.execute(
        "select * from pgcoord.event where kind = %s order by id desc", [kind]
    ).fetchall()
