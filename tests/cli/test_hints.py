"""Hints of the database on the command line: they name commands."""

import re

import pytest
from support.database import Connection
from support.desk import Desk

from pgcoord.commands.hints import in_commands

# Calls without a command: of clients that send JSON, of a program on its own phase, of the owner.
WITHOUT_COMMAND = {"feature_plan", "set_result", "give_up_attempt"}


@pytest.mark.parametrize(
    ("hint", "shown"),
    [
        (
            "Cancel it first: pgcoord.cancel_phase('queue-1-2', reason).",
            "Cancel it first: 'pgcoord cancel queue-1-2'.",
        ),
        (
            "pgcoord.set_priority('q', n) brings it forward.",
            "'pgcoord priority q N' brings it forward.",
        ),
        (
            "select * from pgcoord.pause(7, reason), pgcoord.resume(7), or"
            " pgcoord.retry_phase(queue_id).",
            "'pgcoord pause 7', 'pgcoord resume 7', or 'pgcoord retry PHASE'.",
        ),
        (
            "pgcoord.change_schedule('nightly', changes) gives it another.",
            "'pgcoord schedule change nightly' gives it another.",
        ),
        (
            "select name from pgcoord.schedules shows those that exist.",
            "'pgcoord schedule list' shows those that exist.",
        ),
        (
            "select * from pgcoord.fail_phase('q', error).",
            "select * from pgcoord.fail_phase('q', error).",
        ),
    ],
)
def test_a_hint_names_a_command_instead_of_sql(hint: str, shown: str) -> None:
    assert in_commands(hint) == shown


def test_a_refused_retry_names_the_command_that_helps(desk: Desk) -> None:
    desk.say("submit", desk.plan("true"))
    refused = desk.call("retry", "1.1")
    assert (refused.returncode, refused.stderr.splitlines()[1]) == (
        3,
        "  'pgcoord why queue-1-1' says what it waits for.",
    )


def test_each_call_in_a_hint_of_the_database_has_its_command(conn: Connection) -> None:
    """Read from the sources of all functions: a hint may also be computed before it is raised."""
    calls = {
        call
        for function in conn.execute(
            "select prosrc from pg_proc where pronamespace in "
            "('pgcoord'::regnamespace, 'pgcoord_private'::regnamespace) and prosrc like '%hint = %'"
        )
        for hint in re.findall(r"\bhint = .*?;\n", function["prosrc"], re.DOTALL)
        for words in re.findall(r"'((?:[^']|'')*)'", hint)
        for call in re.findall(r"pgcoord\.\w+\([^()]*\)", words)
    }
    assert len(calls) > 10
    names = {re.sub(r"^pgcoord\.|\(.*", "", call) for call in calls if in_commands(call) == call}
    assert names == WITHOUT_COMMAND
