"""What may be stored is bounded, by whatever statement and from whatever trigger it comes."""

import psycopg
import pytest
from psycopg.types.json import Jsonb
from support.database import Connection, add_feature, add_phase

LEVELS = 1_500
DIGITS = "9" * 5_000


def refusal(conn: Connection, statement: str, *values: object) -> str:
    """Run a statement that the database must refuse; return the message and the hint."""
    with pytest.raises(psycopg.Error) as caught:
        conn.execute(statement.encode(), values)
    assert caught.value.sqlstate == "PC005", caught.value
    assert caught.value.diag.message_hint
    return f"{caught.value.diag.message_primary} {caught.value.diag.message_hint}"


INSERT = (
    "insert into public.phase_queue (feature_id, phase_number, queue_id, phase_data)"
    " values (%s, %s, %s, %s)"
)


@pytest.mark.parametrize(
    "name",
    [
        *(" ", "a b", "a\nb", "../../x", "..", "a/b", "a?b", "x" * 201),
        *(
            "a\u200bb",
            "a\u202eb",
            "\ufeffa",
            "a\u2066b",
        ),  # without width, or reversing what follows
    ],
)
def test_a_name_that_no_page_and_no_log_can_carry_is_refused(conn: Connection, name: str) -> None:
    feature = add_feature(conn, {})
    assert "cannot be called" in refusal(conn, INSERT, feature, 3, name, "{}")


def test_a_phase_without_a_name_gets_its_own_and_never_the_name_of_another(
    conn: Connection,
) -> None:
    feature = add_feature(conn, {})
    conn.execute(INSERT, [feature, 1, "", "{}"])
    conn.execute(INSERT, [feature, 2, f"queue-{feature}-2", "{}"])
    conn.execute(INSERT, [feature, 3, "of-my-own:3", "{}"])
    found = conn.execute("select queue_id from phase_queue order by phase_number").fetchall()
    names = [row["queue_id"] for row in found]
    assert names == [f"queue-{feature}-1", f"queue-{feature}-2", "of-my-own:3"]
    for name, words in {
        "queue-630-9": "that is the name of another phase",
        "1.9": "that is the name of another phase",  # on the command line: `pgcoord cancel 1.9`
        "630": "that is the number of a feature",
        "-x": "that is an option of a command",
    }.items():
        said = refusal(conn, INSERT, feature, 4, name, "{}")
        assert words in said
        assert f"queue-{feature}-4" in said
    conn.execute(INSERT, [feature, 4, "v1.9", "{}"])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("pgcoord.add_feature('x', p_priority => %s)", "the priority of a feature cannot be"),
        ("pgcoord.add_feature('x', p_id => %s)", "a feature cannot have the id"),
        ("pgcoord.add_phase(1, %s)", "feature 1 cannot have a phase"),
        (
            "pgcoord.add_phase(1, 1, p_priority => %s)",
            "the priority of phase 1 of feature 1 cannot",
        ),
    ],
)
def test_a_number_that_no_column_holds_is_refused_by_its_name(
    conn: Connection, call: str, words: str
) -> None:
    conn.execute("insert into public.planned_features (id, title) values (1, 'x')")
    assert words in refusal(conn, f"select * from {call}", 99_999_999_999)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (f'{{"a": {DIGITS}}}', "holds a number beyond 1e308"),
        (f'{{"a": [{{"b": -{DIGITS}}}]}}', "holds a number beyond 1e308"),
        ('{"a": ' + "[" * LEVELS + "]" * LEVELS + "}", "is nested 100 levels deep"),
        ('{"title": "' + "x" * 1_001 + '"}', "has 1001 characters: 1000 at most"),
        ('{"workflow_type": "' + "x" * 201 + '"}', "has 201 characters: 200 at most"),
        ('{"prompt_content": "' + "x" * 21_000_000 + '"}', "of JSON: 20 MB at most"),
    ],
)
@pytest.mark.parametrize("how", ["insert", "update"])
def test_a_phase_that_no_reader_could_take_is_refused(
    conn: Connection, how: str, data: str, words: str
) -> None:
    feature = add_feature(conn, {1: []})
    if how == "insert":
        assert words in refusal(conn, INSERT, feature, 2, None, data)
    else:
        assert words in refusal(conn, "update public.phase_queue set phase_data = %s", data)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("title", "x" * 1_001, "has 1001 characters"),
        ("description", "x" * 1_000_001, "has 1000001 characters"),
        ("estimated_hours", "NaN", "cannot take NaN hours"),
        ("tags", f"[{DIGITS}]", "holds a number beyond 1e308"),
        ("plan", "[5]", "holds something that is not a phase"),
        ("plan", '[{"a": ' + "[" * LEVELS + "]" * LEVELS + "}]", "is nested 100 levels deep"),
    ],
)
@pytest.mark.parametrize("how", ["insert", "update"])
def test_a_feature_that_no_page_could_show_is_refused(
    conn: Connection, how: str, column: str, value: str, words: str
) -> None:
    add_feature(conn, {1: []})
    if how == "insert":
        columns = "title" if column == "title" else f"title, {column}"
        values = [value] if column == "title" else ["t", value]
        marks = ", ".join(["%s"] * len(values))
        statement = f"insert into public.planned_features ({columns}) values ({marks})"
        assert words in refusal(conn, statement, *values)
    else:
        assert words in refusal(conn, f"update public.planned_features set {column} = %s", value)


def test_a_time_that_nobody_can_count_with_is_refused_from_a_clients_trigger(
    conn: Connection, client: Connection
) -> None:
    """Guards that looked at the depth of triggers were passed that way."""
    add_feature(conn, {1: []})
    conn.execute(f"create schema mine authorization {client.info.user}".encode())
    client.execute("create table mine.own (a integer)")
    client.execute(
        "create function mine.passes() returns trigger language plpgsql as $$ begin"
        " update public.phase_queue set retry_at = 'infinity'; return null; end $$"
    )
    client.execute(
        "create trigger passes after insert on mine.own for each row execute function mine.passes()"
    )
    words = refusal(client, "insert into mine.own values (1)")
    assert "cannot have a time of infinity" in words


def test_ids_far_ahead_are_the_owners_alone(conn: Connection, client: Connection) -> None:
    statement = "insert into public.planned_features (id, title) values (%s, 't')"
    assert "a feature cannot have the id -1" in refusal(conn, statement, -1)
    client.execute(statement.encode(), [50])
    words = refusal(client, statement, 2_000_000)
    assert "one of your own lies at most 10000 ahead" in words
    conn.execute(statement.encode(), [2_000_000])
    assert add_feature(conn, {}) == 2_000_001


def test_a_long_reason_loses_its_middle(conn: Connection) -> None:
    feature = add_feature(conn, {})
    add_phase(conn, feature, 1, status="failed", error_message="a" * 10_000 + "b" * 40_000 + "end")
    found = conn.execute("select error_message as text from phase_queue").fetchone()
    assert found
    assert found["text"].startswith("aaaa")
    assert found["text"].endswith("bend")
    assert "34003 characters left out" in found["text"]


def test_actor_and_reason_are_bounded(conn: Connection, client: Connection) -> None:
    client.execute("select set_config('pgcoord.actor', repeat('x', 100000), false)")
    client.execute("select set_config('pgcoord.reason', repeat('y', 100000), false)")
    client.execute("insert into planned_features (title) values ('a')")
    row = conn.execute("select length(actor) as actor, length(reason) as why from pgcoord.event")
    found = row.fetchone()
    assert found
    assert found["actor"] == 200
    assert found["why"] < 17_000


def test_long_but_readable_text_is_accepted(conn: Connection) -> None:
    feature = add_feature(conn, {})
    data = {"title": "t", "prompt_content": "p" * 5_000_000, "deep": [[[[1e300]]]]}
    conn.execute(INSERT, [feature, 1, None, Jsonb(data)])


# What Postgres itself says of a value that is of another type.
_OF_ANOTHER_TYPE = {"22P02", "22003", "22007", "22008"}


@pytest.mark.parametrize("role", ["client", pytest.param("owner", marks=pytest.mark.scale)])
def test_every_column_refuses_unreadable_text_with_a_message(
    conn: Connection, client: Connection, role: str
) -> None:
    """Every column of every table that a client writes, by INSERT and UPDATE."""
    add_feature(conn, {1: [], 2: [1]})
    add_phase(conn, 1, 4, status="running")
    plan = '\'{"title": "a", "phases": [{"phase_number": 1}]}\''
    conn.execute(
        "insert into pgcoord.schedule (name, cron, feature)"
        f" values ('nightly', '0 3 * * *', {plan})".encode()
    )
    tables = {
        "public.planned_features": ({"title": "'a'"}, ["id = 1"]),
        "public.phase_queue": (
            {"feature_id": "1", "phase_number": "9"},
            [f"phase_number = {number}" for number in (1, 4)],
        ),
        "pgcoord.schedule": (
            {"name": "'b'", "cron": "'0 3 * * *'", "feature": plan},
            ["name = 'nightly'"],
        ),
    }
    user = conn if role == "owner" else client
    wrong = []
    for table, (given, rows) in tables.items():
        columns = conn.execute(
            "select attname from pg_attribute"
            " where attrelid = %s::regclass and attnum > 0 and not attisdropped",
            [table],
        ).fetchall()
        for column in (each["attname"] for each in columns):
            for value in ("null", "'-infinity'", "'NaN'", "-1"):
                row = given | {column: value}
                statements = [
                    f"insert into {table} ({', '.join(row)}) values ({', '.join(row.values())})",
                    *(f"update {table} set {column} = {value} where {each}" for each in rows),
                ]
                for statement in statements:
                    try:
                        with user.transaction(force_rollback=True):
                            user.execute(statement.encode())
                            user.execute(f"select * from {table}".encode()).fetchall()
                    except psycopg.Error as error:
                        state = error.sqlstate or "unreadable"
                        words = state.startswith("PC") or state in ("42501", "23503", "428C9")
                        if state not in (*_OF_ANOTHER_TYPE, "42804") and not (
                            words and (error.diag.message_hint or state == "23503")
                        ):
                            wrong.append(f"{statement}: {error.sqlstate} {error}")
    assert wrong == []
