"""How tables are stored: updates in place where they can be, and the dead cleared away."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from support import PATIENCE
from support.database import Connection, add_feature, claim, take_lead
from support.mixed_load import LONG, MOST_LONGER, Load

FEATURES = 300

pytestmark = pytest.mark.own_database  # a page is as full as no test before has left it


class Updates:
    """How many updates of a table there were, and how many of them in place."""

    def __init__(self) -> None:
        self.all = 0
        self.in_place = 0


@contextmanager
def counting(conn: Connection, table: str, updates: Updates) -> Iterator[None]:
    """Add what is done to a table in a transaction of its own."""

    def seen() -> tuple[int, int]:
        row = conn.execute(
            "select n_tup_upd, n_tup_hot_upd from pg_stat_xact_user_tables where relname = %s",
            [table],
        ).fetchone()
        assert row
        return row["n_tup_upd"], row["n_tup_hot_upd"]

    with conn.transaction():
        before = seen()
        yield
        after = seen()
    updates.all += after[0] - before[0]
    updates.in_place += after[1] - before[1]


def test_a_prerequisite_of_several_is_counted_off_in_place(conn: Connection) -> None:
    # By one statement, so that the pages are as full as they get.
    conn.execute(
        "insert into planned_features (title) select 'a' from generate_series(1, %s)",
        [FEATURES],
    )
    conn.execute(
        "insert into phase_queue (feature_id, phase_number, depends_on_phases)"
        " select id, n, case n when 3 then '[1, 2]' else '[]' end::jsonb"
        " from planned_features, generate_series(1, 3) as n order by id, n"
    )
    updates = Updates()
    for feature in range(1, FEATURES + 1):
        with counting(conn, "phase_queue", updates):
            conn.execute("select pgcoord.skip_phase(%s, '')", [f"queue-{feature}-1"])
    # Of each feature: its first phase moves, which the indexes have to know, and the third counts.
    assert (updates.all, updates.in_place) == (2 * FEATURES, FEATURES)


def test_a_start_is_recorded_in_place(conn: Connection) -> None:
    epoch = take_lead(conn)
    conn.execute("insert into planned_features (title) values ('a')")
    conn.execute("select pgcoord.set_slots(%s)", [FEATURES])
    conn.execute(
        "insert into phase_queue (feature_id, phase_number)"
        " select 1, n from generate_series(1, %s) as n",
        [FEATURES],
    )
    assert len(claim(conn, epoch)) == FEATURES
    updates = Updates()
    for attempt in range(1, FEATURES + 1):
        with counting(conn, "attempt", updates):
            conn.execute("select pgcoord_private.start_phase(%s, %s, 1, 'then')", [epoch, attempt])
    assert (updates.all, updates.in_place) == (FEATURES, FEATURES)


@pytest.fixture
def eager_autovacuum(server: str) -> Iterator[None]:
    """Autovacuum that looks every two seconds, not every minute."""
    with psycopg.connect(server, autocommit=True) as admin:
        if admin.info.parameter_status("is_superuser") != "on":
            pytest.skip("only a superuser may have autovacuum look more often")
        admin.execute("alter system set autovacuum_naptime = '2s'")
        admin.execute("select pg_reload_conf()")
        yield
        admin.execute("alter system reset autovacuum_naptime")
        admin.execute("select pg_reload_conf()")


@pytest.mark.scale
@pytest.mark.timeout(LONG + MOST_LONGER + PATIENCE)
@pytest.mark.usefixtures("eager_autovacuum")
def test_dead_rows_of_a_mixed_load_are_cleared_during_the_load(
    dsn: str, conn: Connection, epoch: int
) -> None:
    add_feature(conn, {1: [], 2: [1], 3: [1], 4: [2, 3]})
    most, updates, is_cleared = 0, 0, False
    load = Load(dsn, epoch, LONG, seed=1, is_enough=lambda _: updates > 100 * LONG and is_cleared)
    # No actor deletes: the live rows grow, and the dead ones must not grow with them.
    actors = {"coordinator": 2, "reporter": 2, "person": 2, "hand": 2, "planner": 1}
    thread = threading.Thread(target=load.run, args=[actors])
    thread.start()
    while thread.is_alive():
        thread.join(1)
        row = conn.execute(
            "select sum(n_dead_tup) as dead, sum(n_tup_upd) as updates from pg_stat_user_tables"
            " where relname in ('phase_queue', 'attempt', 'slot', 'control')"
        ).fetchone()
        assert row
        most, updates = max(most, row["dead"]), row["updates"]
        # How many there are until autovacuum has come is the machine's affair.
        is_cleared = is_cleared or row["dead"] < most / 2
    assert not load.wrong
    assert updates > 100 * LONG, "too little was done to say anything"
    assert is_cleared
