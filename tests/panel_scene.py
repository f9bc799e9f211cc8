"""A scene for the panel: nine features in every state there is, with a past to expect things from."""

from datetime import timedelta
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

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
    """Plays what a coordinator does, at times of its own choosing."""

    def __init__(self, dsn: str, host: str, runs: str) -> None:
        self._conn = psycopg.connect(dsn, autocommit=True, row_factory=dict_row)
        self._runs = runs
        self._lead(host)

    def _lead(self, host: str) -> None:
        row = self._conn.execute(
            "select epoch from pgcoord.lead(%s, 4100, '0.1', %s, %s)",
            [host, self._runs, Jsonb(WORKFLOWS)],
        ).fetchone()
        assert row
        self._epoch = row["epoch"]

    def close(self) -> None:
        """Give the lead back."""
        self._conn.close()

    def run(self, statement: str, *values: object) -> list[dict[str, Any]]:
        cursor = self._conn.execute(statement.encode(), values)
        return cursor.fetchall() if cursor.description else []

    def feature(
        self, number: int, title: str, phases: dict[int, tuple[str, list[int]]], **columns: Any
    ) -> None:
        """Insert a feature with its phases: number → title and prerequisites."""
        self.run("insert into planned_features (id, title) values (%s, %s)", number, title)
        for phase, (name, needs) in phases.items():
            self.run(
                "insert into phase_queue (feature_id, phase_number, depends_on_phases, phase_data,"
                " priority) values (%s, %s, %s, %s, %s)",
                number,
                phase,
                Jsonb(needs),
                Jsonb({"title": name, "prompt_content": PROMPT, "estimated_hours": 0.5}),
                columns.get("priority", 50),
            )

    def claim(self) -> list[str]:
        """Claim what can be claimed."""
        return [
            row["queue_id"]
            for row in self.run("select queue_id from pgcoord.claim_phases(%s)", self._epoch)
        ]

    def start(self, queue_id: str) -> None:
        """Record the process of a claimed phase."""
        self.run(
            "select pgcoord.start_phase(%s, id, 48213, 'then') from pgcoord.attempt"
            " where queue_id = %s and ended_at is null",
            self._epoch,
            queue_id,
        )

    def end(self, queue_id: str, error: str | None = None) -> None:
        """Have a phase report, and its process end."""
        if error:
            self.run("select pgcoord.fail_phase(%s, %s)", queue_id, error)
        else:
            self.run("select pgcoord.complete_phase(%s)", queue_id)
        self.run(
            "select pgcoord.end_attempt(id, %s, '') from pgcoord.attempt"
            " where queue_id = %s and exited_at is null",
            1 if error else 0,
            queue_id,
        )

    def play(self, queue_id: str, error: str | None = None) -> None:
        """Claim, start and end one phase, ahead of all others."""
        self.run("update phase_queue set priority = 1 where queue_id = %s", queue_id)
        self.run("select pgcoord.set_slots(1000)")
        self.run("update phase_queue set priority = 50 where queue_id = %s", queue_id)


def back(scene: Scene, queue_id: str, number: int, start: float, minutes: float) -> None:
    """Have an attempt have run so many minutes, from so many minutes ago."""
    started = timedelta(minutes=start)
    scene.run(
        "update pgcoord.attempt set claimed_at = now() - %s - interval '8 s',"
        " started_at = now() - %s, ended_at = case when ended_at is not null"
        " then now() - %s + %s end where queue_id = %s and number = %s",
        started,
        started,
        started,
        timedelta(minutes=minutes),
        queue_id,
        number,
    )
