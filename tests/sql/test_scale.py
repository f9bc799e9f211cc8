"""What it costs with a million finished phases, 100,000 that wait, and 50,000 held at the head."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from support.database import Connection, claim, take_lead

from pgcoord.bench.throughput import fill

pytestmark = [pytest.mark.scale, pytest.mark.timeout(1800)]

FINISHED = 1_000_000
LARGE = {"phase_queue", "planned_features", "dependency", "attempt", "event"}


@pytest.fixture(scope="module")
def full(server: str, template: str) -> Iterator[str]:
    """The DSN of the database, which takes a minute or two to make; three phases run, of four."""
    name = sql.Identifier(f"{template}_full")
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(
            sql.SQL("create database {} template {}").format(name, sql.Identifier(template))
        )
    dsn = make_conninfo(server, dbname=f"{template}_full")
    fill(dsn, FINISHED)
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as conn:
        conn.execute(
            "insert into planned_features (id, title)"
            " select n, 'queued' from generate_series(1001, 2000) as n"
        )
        conn.execute(
            "insert into phase_queue (feature_id, phase_number, depends_on_phases)"
            " select f, n, case when n % 2 = 0 then jsonb_build_array(n - 1) else '[]' end"
            " from generate_series(1001, 2000) as f, generate_series(1, 100) as n order by f, n"
        )
        conn.execute("vacuum analyze")
        assert claim(conn, take_lead(conn)) == ["queue-1001-1", "queue-1001-3", "queue-1001-5"]
        conn.execute("select pgcoord.set_slots(4)")
    yield dsn
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(sql.SQL("drop database {} with (force)").format(name))


@pytest.fixture
def conn(full: str) -> Iterator[Connection]:
    with psycopg.connect(full, autocommit=True, row_factory=dict_row) as conn:
        yield conn


def cost(conn: Connection, statement: str, most: int) -> tuple[int, set[str]]:
    """The blocks that a statement reads, functions and triggers too, and the tables it scans whole.

    Not the first time, which reads the catalog; nor one after which autovacuum has it read again.
    """
    row, blocks = None, 0
    for number in range(5):
        if number > 1 and blocks <= most:
            break
        with conn.transaction(force_rollback=True):
            scans = dict(_scans(conn))
            row = conn.execute(
                b"explain (analyze, buffers, format json) " + statement.encode()
            ).fetchone()
            scanned = {name for name, times in _scans(conn) if times > scans.get(name, 0)}
        assert row
        [plan] = row["QUERY PLAN"]
        blocks = plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
    return blocks, scanned


def _scans(conn: Connection) -> list[tuple[str, int]]:
    rows = conn.execute("select relname, seq_scan from pg_stat_xact_user_tables").fetchall()
    return [(row["relname"], row["seq_scan"]) for row in rows]


def test_the_large_database_has_its_stated_size(conn: Connection) -> None:
    row = conn.execute(
        "select count(*) filter (where status = 'completed') as finished,"
        " count(*) filter (where status = 'queued' and not held) as queued,"
        " count(*) filter (where held and eligible_at is not null) as held,"
        " min(priority) filter (where not held) > max(priority) filter (where held) as at_the_head"
        " from phase_queue"
    ).fetchone()
    assert row == {"finished": FINISHED, "queued": 100_000 - 3, "held": 50_000, "at_the_head": True}


# The tables are some 200,000 blocks; most of what is read here is of the catalog.
@pytest.mark.parametrize(
    ("statement", "most"),
    [
        ("select * from pgcoord_private.claim_phases((select epoch from pgcoord.control))", 1_000),
        ("select pgcoord.complete_phase('queue-1001-1')", 1_000),
        ("select pgcoord.fail_phase('queue-1001-1', 'broken')", 1_000),
        ("update phase_queue set status = 'completed' where queue_id = 'queue-1001-1'", 1_000),
        (
            "insert into phase_queue (feature_id, phase_number, depends_on_phases)"
            " values (1002, 101, '[100]')",
            1_000,
        ),
        ("select pgcoord.skip_phase('queue-1002-1', 'done')", 1_000),
        ("select pgcoord.pause(1002)", 5_000),  # a hundred phases are held
        ("select * from pgcoord_private.next_work()", 1_000),
        ("select * from pgcoord.why('queue-1000001-5')", 1_000),
        ("select * from pgcoord.why('queue-1002-2')", 1_000),
        ("select * from pgcoord.why('queue-1001-2')", 1_000),
        ("select * from pgcoord.board where feature_id = 1002", 5_000),
        (
            "select count(*) from pgcoord_private.phase_objects(array("
            "select queue_id from phase_queue where feature_id in (1002, 1003)))",
            10_000,  # of two hundred phases
        ),
        # The place in line is counted in its index.
        ("select * from pgcoord.why('queue-2000-99')", 5_000),
        ("select * from pgcoord.slots", 1_000),
        ("select * from pgcoord.line limit 5", 1_000),
        ("select * from pgcoord.feature where id = 1002", 1_000),
        ("select * from pgcoord.event where queue_id = 'q' and feature_id = 1002", 1_000),
    ],
)
def test_no_large_table_is_read_whole(conn: Connection, statement: str, most: int) -> None:
    blocks, scanned = cost(conn, statement, most)
    assert scanned & LARGE == set()
    assert blocks <= most, blocks


# Of an empty table statistics say that all of its indexes are alike.
@pytest.mark.parametrize("before", ["", "vacuum analyze", "analyze"])
def test_a_phase_among_ten_thousand_inserted_costs_no_more_than_one_among_few(
    dsn: str, before: str
) -> None:
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as conn:
        conn.execute("insert into planned_features (id, title) values (1, 'a')")
        if before:
            insert_chain(conn)
            conn.execute("delete from phase_queue")
            conn.execute(before.encode())
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as conn:
        read_before = index_blocks(conn)
        insert_chain(conn)
        assert index_blocks(conn) - read_before < 40 * 10_000


def insert_chain(conn: Connection) -> None:
    conn.execute(
        "insert into phase_queue (feature_id, phase_number, depends_on_phases)"
        " select 1, n, case when n > 1 then jsonb_build_array(n - 1) else '[]' end"
        " from generate_series(1, 10000) as n"
    )


def index_blocks(conn: Connection) -> int:
    """Blocks of indexes that were read since the database was made."""
    conn.execute("select pg_stat_force_next_flush()")
    row = conn.execute(
        "select sum(idx_blks_hit + idx_blks_read)::bigint as blocks from pg_statio_user_indexes"
    ).fetchone()
    assert row
    return int(row["blocks"])
