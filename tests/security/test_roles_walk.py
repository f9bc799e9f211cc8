"""Every function, called by every role with arguments that nobody should give.

No call shows a secret, changes a right, takes longer than half a minute, or fails in other
words than ours, as far as it is a function that people call (schema pgcoord).
"""

from itertools import zip_longest
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import set_json_loads
from support.database import Connection, add_feature, claim, one, start, take_lead

from pgcoord.database.loaders import load_json

# By type, from the harmless to the worst; null is tried with each.
HOSTILE: dict[str, list[str]] = {
    "text": [
        "queue-1-1",
        "",
        "queue-1-1'; drop table public.phase_queue; --",
        "../../etc/passwd",
        '%s%n$1 \\ " \x1b[2J\n',
        "x" * 100_000,
        "\U0001f4a3" * 300,
        "cancel_branch",
        "infinity",
    ],
    "integer": ["1", "0", "-1", "2147483647", "-2147483648"],
    "bigint": ["1", "0", "-1", "9223372036854775807", "-9223372036854775808"],
    "boolean": ["true", "false"],
    "double precision": ["1", "NaN", "Infinity", "-Infinity", "1e308", "-1e308"],
    "interval": ["1 day", "-1 day", "178000000 years", "-178000000 years", "0"],
    "timestamp with time zone": [
        "2026-01-01",
        "infinity",
        "-infinity",
        "294276-12-31",
        "4714-11-24 BC",
    ],
    "jsonb": [
        '{"queue_id": "queue-1-1", "status": "completed", "title": "a",'
        ' "phases": [{"phase_number": 1}]}',
        "null",
        "[5]",
        '"boom"',
        '{"title": 5, "phases": "all", "queue_id": [], "status": {}, "phase_number": -1}',
        '{"title": "a", "phases": [{"phase_number": 1e300, "depends_on_phases": {"a": []}}]}',
        '{"title": "a", "phases": [null, [], {"phase_number": "x"}]}',
        "[" * 1_000 + "]" * 1_000,
        '{"title": "a", "estimated_hours": ' + "9" * 5_000 + "}",
        '[{"name": "w", "timeout_seconds": 1e300}, 5, null]',
    ],
    "integer[]": ["{1}", "{}", "{null}", "{-1,2147483647}", "{{1,2},{3,4}}"],
    "bigint[]": ["{1}", "{}", "{null}", "{-1,9223372036854775807}"],
    "smallint[]": ["{1}", "{}", "{null}"],
    "text[]": ["{queue-1-1}", "{}", "{null}", '{"\'; --","../.."}'],
    "regprocedure": ["pg_catalog.now()"],
}


def calls_of(conn: Connection) -> list[tuple[str, list[tuple[str | None, ...]]]]:
    """Each function with its calls: a placeholder for each argument, and rows of arguments."""
    found = conn.execute(
        "select p.oid::regprocedure::text as name, n.nspname as schema, p.proname as function,"
        " p.provariadic <> 0 as variadic,"
        " array(select t::regtype::text from unnest(p.proargtypes) as t) as types"
        " from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace"
        " where n.nspname in ('pgcoord', 'pgcoord_private') and p.prokind = 'f'"
        " and p.prorettype <> 'trigger'::regtype order by 1"
    ).fetchall()
    assert len(found) > 100
    calls = []
    for row in found:
        values = [HOSTILE.get(type_, []) for type_ in row["types"]]  # of a row type: null only
        rows = list(zip_longest(*values))
        # Once more with the first argument as it should be, so that the others are looked at.
        rows += [(values[0][0], *rest[1:]) for rest in rows[1:] if values[0]]
        given = [f"%s::text::{type_}" for type_ in row["types"]]
        if row["variadic"]:
            given[-1] = f"variadic {given[-1]}"
        marks = ", ".join(given)
        statement = f"select pgc.* from {row['schema']}.{row['function']}({marks}) as pgc"
        calls.append((statement, [*rows, (None,) * len(values)]))
    return calls


# A number, time or JSON that the type does not hold, the logarithm of one that has none, a null or
# a value that a column does not take, a case that there is not.
BAD_VALUES = {"22003", "22004", "22008", "22023", "2201E", "2201W", "23502", "23514", "20000"}

# Owners, rights and sources of what there is, and the roles.
RIGHTS = """
select md5(string_agg(word, '|' order by word)) as digest from (
    select concat('r', oid, relowner, relacl) from pg_class
        where relnamespace > 10000 or relnamespace = 'public'::regnamespace
    union all select concat('f', oid, proowner, proacl, prosecdef, prosrc) from pg_proc
        where pronamespace > 10000
    union all select concat('n', oid, nspowner, nspacl) from pg_namespace
    union all select concat('u', oid, rolsuper, rolcreaterole, rolcanlogin, rolname) from pg_roles
    union all select concat('m', roleid, member) from pg_auth_members
) as found (word)
"""

# What wrote nothing changed no right: to compare them takes longer than all the rest.
AFTERWARDS = """
select current_user as name, pg_current_xact_id_if_assigned() is not null as wrote
"""


@pytest.mark.scale
@pytest.mark.parametrize("role", ["nobody", "reader", "client", "coordinator"])
def test_no_function_gives_a_role_more_than_its_own(
    conn: Connection, logins: dict[str, str], role: str
) -> None:
    epoch = take_lead(conn)
    add_feature(conn, {1: [], 2: [1], 3: []})
    for queue_id in claim(conn, epoch):
        start(conn, epoch, queue_id)
    secrets = [row["secret"] for row in conn.execute("select secret from pgcoord.attempt")]
    assert len(secrets) == 2
    rights = one(conn, RIGHTS)
    conn.execute("set statement_timeout = '300s'")
    set_json_loads(load_json, conn)  # some return the deep JSON that they were given
    become = sql.SQL("set local session authorization {}").format(sql.Identifier(logins[role]))
    faults: set[str] = set()
    answered = 0
    for statement, rows in calls_of(conn):
        for values in rows:
            said: Any
            refused = False
            with conn.transaction(force_rollback=True):
                conn.execute(become)
                try:
                    with conn.transaction():
                        said = str(conn.execute(statement.encode(), values).fetchall())
                        answered += 1
                except psycopg.Error as error:
                    said = f"{error} {error.diag.message_detail} {error.diag.context}"
                    if not may_fail_so(error, statement):
                        words = f"{error.sqlstate} {error.diag.message_primary}"
                        faults.add(f"{words}: {statement} {str(values)[:150]}")
                    refused = may_not_call(error)
                after = one(conn, AFTERWARDS)
                assert after["name"] == logins[role], statement
                conn.execute("reset session authorization")
                if after["wrote"] and one(conn, RIGHTS) != rights:
                    faults.add(f"rights differ after {statement} {values}")
            if role != "coordinator" and any(secret in said for secret in secrets):
                faults.add(f"a secret is shown by {statement} {values}")
            if refused:  # whatever the arguments are
                break
    assert faults == set()
    assert (answered > 0) == (role != "nobody")


def may_not_call(error: psycopg.Error) -> bool:
    """Whether the function was not called at all: the role has no right to it, or to its schema."""
    words = error.diag.message_primary or ""
    called = "PL/pgSQL" in (error.diag.context or "")
    return not called and words.startswith(("permission denied for f", "permission denied for s"))


def may_fail_so(error: psycopg.Error, statement: str) -> bool:
    """Whether a refusal is in our words; of functions that only ours call, also of bad values."""
    sqlstate = error.sqlstate or ""
    if sqlstate[:2] == "PC":
        return bool(error.diag.message_hint)
    if "from pgcoord_private." in statement and sqlstate in BAD_VALUES:
        return True
    if "check_number_is_free(" in statement and sqlstate == "23505":
        return True  # that is what it is for
    if "from pgcoord.add_" in statement and sqlstate in ("22003", "23502", "23505"):
        return True  # as an INSERT says it: no title, a number too large, an id that is taken
    return sqlstate == "42501"
