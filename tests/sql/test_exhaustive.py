"""The search of every state (tests/chaos/state_space.py) finds nothing, and finds broken rules."""

import psycopg
import pytest
from chaos.state_space import CONDITIONAL, CONDITIONS, Database, Explored, Search, Violation
from support.database import Connection


def explored(dsn: str, faults: int) -> Explored:
    with psycopg.connect(dsn) as conn:
        return Search(Database(conn)).run(faults)


def redefine(conn: Connection, function: str, before: str, after: str) -> None:
    """Replace a piece of a function, wherever that is."""
    row = conn.execute(
        "select pg_get_functiondef(oid) as text from pg_proc where proname = %s", [function]
    ).fetchone()
    assert row
    assert before in row["text"]
    conn.execute(row["text"].replace(before, after).encode())


@pytest.mark.scale
@pytest.mark.timeout(1800)
def test_every_state_that_two_faults_lead_to_keeps_the_rules(
    dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = explored(dsn, faults=2)
    with capsys.disabled():
        print(f"\n{seen}")  # noqa: T201
    assert seen.states > 1_000


def test_every_state_that_nothing_but_work_leads_to_keeps_the_rules(dsn: str) -> None:
    assert explored(dsn, faults=0).longest >= 15


@pytest.mark.scale
def test_every_state_of_conditional_phases_that_one_fault_leads_to_keeps_the_rules(
    dsn: str,
) -> None:
    with psycopg.connect(dsn) as conn:
        Search(Database(conn, CONDITIONAL, CONDITIONS)).run(1)


@pytest.mark.scale
def test_the_search_finds_a_lead_that_is_not_checked(dsn: str, conn: Connection) -> None:
    redefine(conn, "check_epoch", "begin", "begin return;")
    redefine(conn, "claim_phases", "where k.epoch = p_epoch", "where k.epoch >= p_epoch")
    redefine(conn, "claim_phases", "v_control.epoch <> p_epoch", "false")
    with pytest.raises(Violation, match=r"claim . under a lead that is over: was not refused"):
        explored(dsn, faults=1)


def test_the_search_finds_a_slot_that_two_phases_hold(dsn: str, conn: Connection) -> None:
    conn.execute("drop index phase_queue_slot_key")
    redefine(conn, "claim_phases", "v_slot, p_epoch", "1, p_epoch")
    with pytest.raises(Violation, match=r"slots \[1, 1\] are held"):
        explored(dsn, faults=0)


@pytest.mark.scale
def test_the_search_finds_dependents_that_nobody_releases(dsn: str, conn: Connection) -> None:
    redefine(conn, "release_dependents", "set unmet = unmet - 1,", "set unmet = unmet - 0,")
    with pytest.raises(Violation, match="queue-1-3: unmet is 2, not 1"):
        explored(dsn, faults=0)


@pytest.mark.scale
def test_the_search_finds_a_start_that_is_never_recorded(dsn: str, conn: Connection) -> None:
    redefine(conn, "start_phase", "where id = p_attempt_id and exited_at is null", "where false")
    with pytest.raises(Violation, match="nothing leads on"):
        explored(dsn, faults=0)
