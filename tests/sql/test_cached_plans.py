"""A session whose plans were made while the tables were small: it reads no more as they grow."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from support.database import WORKFLOW, Connection, one, rows_read, take_lead

ROUNDS = 14
SETTLED = 12  # the rounds before it make the plans, and more than a hundred attempts
MOST = 80  # rows of one statement: far fewer than there are attempts, phases or events by then

# Each way in which an attempt ends, as the coordinator records it.
ENDS: list[dict[str, Any]] = [
    {"kind": "exited", "exit_code": 0},
    {"kind": "exited", "exit_code": 1},
    {"kind": "exited", "exit_code": 0, "result": '{"summary": "done"}'},
    {"kind": "exited", "exit_code": 0, "result": '{"status": "later"}'},
    {"kind": "given_up", "outcome": "lost", "error": "gone"},
    {"kind": "returned", "wait_seconds": 3600, "error": "unused"},
    {"kind": "reported", "message_id": "m", "actor": "a"},
    {"kind": "job_exited", "copy": "c", "exit_code": 0},
]


@pytest.fixture
def conn(dsn: str) -> Iterator[Connection]:
    """A session that finds statistics of empty tables, and that autovacuum gives no better ones."""
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as conn:
        for table in ("public.phase_queue", "pgcoord.attempt", "pgcoord.event"):
            conn.execute(f"alter table {table} set (autovacuum_enabled = off)".encode())
        conn.execute("analyze")
        yield conn


class Reader:
    """Executes statements; keeps what each has read at most since the tables have grown."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self.grown = False
        self.most: dict[str, int] = {}

    def read(self, statement: str, *values: object) -> None:
        rows = rows_read(self._conn, statement, *values)
        if self.grown:
            self.most[statement] = max(rows, self.most.get(statement, 0))


@pytest.mark.own_database
def test_a_statement_reads_as_few_rows_of_large_tables_as_of_small_ones(conn: Connection) -> None:
    epoch = take_lead(conn, {**WORKFLOW, "max_attempts": 2, "retry_delay_seconds": 3600})
    reader = Reader(conn)
    for number in range(ROUNDS):
        reader.grown = number >= SETTLED
        for end in ENDS:
            feature = add_pair(conn)
            _walk(conn, reader, epoch, f"queue-{feature}-1", end)
            conn.execute("select pgcoord.cancel_feature(%s, '')", [feature])
            conn.execute(
                "select pgcoord.give_up_attempt(id, 'lost', '') from pgcoord.attempt"
                " where ended_at is null"
            )
        _act(reader, add_pair(conn))
    assert one(conn, "select count(*) from pgcoord.attempt")["count"] > MOST
    assert [(most, read) for read, most in reader.most.items() if most > MOST] == []


def add_pair(conn: Connection) -> int:
    """Insert a feature of two phases, of which the second waits for the first."""
    row = conn.execute("insert into planned_features (title) values ('a') returning id").fetchone()
    assert row
    conn.execute(
        "insert into phase_queue (feature_id, phase_number, depends_on_phases)"
        " values (%(id)s, 1, '[]'), (%(id)s, 2, '[1]')",
        row,
    )
    return int(row["id"])


def _walk(conn: Connection, reader: Reader, epoch: int, queue_id: str, end: dict[str, Any]) -> None:
    """Claim a phase, begin its attempt and end it, as the coordinator does."""
    read = reader.read
    read("select * from pgcoord_private.claim_phases(%s)", epoch)
    attempt = one(conn, "select id from pgcoord.attempt where queue_id = %s", queue_id)["id"]
    if end["kind"] == "job_exited":
        read("select pgcoord_private.submit_attempt(%s, %s)", epoch, attempt)
        read("select pgcoord_private.note_job(%s, 'j', 'w')", attempt)
        read("select * from pgcoord_private.begin_job(%s, 'c', 'j', 'n')", attempt)
    else:
        read("select pgcoord_private.start_phase(%s, %s, 1, 'then')", epoch, attempt)
    read("select * from pgcoord_private.look_round('here', %s, '{}')", [attempt])
    read("select * from pgcoord_private.gone_attempts(%s)", [attempt])
    read("select pgcoord_private.find_lock(%s, true)", attempt)
    report = {"status": "completed", "queue_id": queue_id}
    read("select * from pgcoord_private.report_secrets(%s)", Jsonb(report))
    ends = [{**end, "attempt_id": attempt, "report": report}]
    read("select * from pgcoord_private.record_and_claim(%s, %s)", epoch, Jsonb(ends))
    read("select pgcoord_private.record_end(%s)", Jsonb(ends[0]))
    event = one(conn, "select max(id) from pgcoord.event")["max"]
    read("select * from pgcoord_private.ended_attempts(%s)", [event - 1, event])


def _act(reader: Reader, feature: int) -> None:
    """Do what people do with a feature and its phases."""
    first, second = f"queue-{feature}-1", f"queue-{feature}-2"
    reader.read("select pgcoord.pause(%s)", feature)
    reader.read("select pgcoord.resume(%s)", feature)
    reader.read("select pgcoord.set_priority(%s, 60)", second)
    reader.read("select pgcoord.cancel_phase(%s, '')", first)
    reader.read("select pgcoord.retry_phase(%s, '')", first)
    reader.read("select pgcoord.skip_phase(%s, '')", first)
    reader.read("select pgcoord.cancel_feature(%s, '')", feature)
