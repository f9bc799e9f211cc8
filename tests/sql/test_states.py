"""Python's lists of the states of a phase are those of the database."""

import re
from contextlib import suppress

import psycopg
from support.database import MOVES, Connection, add_feature, add_phase, one

from pgcoord.database.states import ENDED, IN_SLOT, STATES, UNFINISHED
from pgcoord.http.panel import format


def states_in(conn: Connection, definition: str) -> set[str]:
    """Return the states in parentheses in what the SQL expression *definition* returns."""
    found = str(one(conn, f"select {definition} as words")["words"])
    return set(re.findall(r"'(\w+)'", found.split("status in (")[1].split(")")[0]))


def test_python_knows_the_states_that_the_database_knows(conn: Connection) -> None:
    known = "pg_get_functiondef('pgcoord_private.check_status(text, text)'::regprocedure)"
    assert set(STATES) == states_in(conn, known) == set(MOVES)
    assert set(format.STATES) == set(STATES)  # in the order of the panel


def test_python_knows_which_states_have_ended(conn: Connection) -> None:
    actual = conn.execute(
        "select state from unnest(%s::text[]) as state where pgcoord_private.ended(state)",
        [list(STATES)],
    )
    assert {row["state"] for row in actual} == set(ENDED)


def test_python_knows_which_states_hold_a_slot(conn: Connection) -> None:
    add_phase(conn, add_feature(conn, {}), 1)
    held = set()
    for state in STATES:
        with suppress(psycopg.errors.CheckViolation), conn.transaction():
            conn.execute("set local session_replication_role = 'replica'")  # no triggers
            conn.execute("update phase_queue set status = %s, slot = 1", [state])
            held.add(state)
    assert held == set(IN_SLOT)


def test_the_lists_of_states_together_are_all() -> None:
    assert {*UNFINISHED, *ENDED, "blocked"} == set(STATES)
