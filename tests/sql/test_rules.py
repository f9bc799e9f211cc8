"""Each rule of the database stands once, and a long function says why it is long."""

import re
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from support.database import Connection

from pgcoord import assets

FUNCTIONS = sorted((assets.SQL / "functions").glob("*.sql"))
PYTHON = sorted(Path(__file__).parents[2].joinpath("pgcoord").rglob("*.py"))


# What is called pgcoord.NAME and is no object of the schema: settings of a session, and files.
NO_OBJECTS = {"actor", "dump", "reason", "settles_", "takes_over", "toml"}


def statements_of(path: Path) -> str:
    """What a file says without comments and quotes of Python, each blank once, in lower case."""
    text = re.sub(r"--.*$|[\"\\]", " ", path.read_text(), flags=re.MULTILINE)
    return re.sub(r"\s+", " ", text).lower()


def test_only_the_view_claimable_holds_the_predicate_of_claims() -> None:
    # The two conditions that nothing else has together, in either order.
    retry, held = r"retry_at is null", r"not (?:\w+\.)?held"
    rule = re.compile(rf"{retry}.{{0,60}}\b{held}\b|\b{held}\b.{{0,60}}{retry}")
    actual = [path.name for path in (*FUNCTIONS, *PYTHON) if rule.search(statements_of(path))]
    assert actual == ["20_claimable.sql"]


def test_the_states_in_which_a_phase_has_ended_are_listed_once() -> None:
    ended = re.compile(r"in \((?:'(?:completed|failed|cancelled)'(?:, )?){3}\)")
    actual = [path.name for path in (*FUNCTIONS, *PYTHON) if ended.search(statements_of(path))]
    assert actual == ["11_states.sql"]


def test_python_and_the_panel_list_states_in_one_module() -> None:
    ended = r"(?:completed|failed|cancelled)"
    listed = re.compile(rf'[(\[]"(?:{ended}", "{ended}", "{ended}|ready", "running)"[)\]]')
    templates = sorted(assets.WEB.rglob("*.html"))
    actual = [path.name for path in (*PYTHON, *templates) if listed.search(path.read_text())]
    assert actual == ["states.py"]


def test_a_function_of_more_than_sixty_lines_states_the_reason() -> None:
    function = re.compile(
        r"(?P<head>(?:^--.*\n)*)(?P<body>^create or replace function (?P<name>[\w.]+)"
        r"(?s:.*?)^(?:end(?: \$\$)?;|\$\$;|return [^;]*;))",
        re.MULTILINE,
    )
    unexplained = [
        each["name"]
        for path in FUNCTIONS
        for each in function.finditer(path.read_text())
        if each["body"].count("\n") >= 60 and "Long" not in each["head"]
    ]
    assert unexplained == []


def test_the_functions_and_documents_name_existing_objects(conn: Connection) -> None:
    """A hint such as "see pgcoord.why" is text, which no upgrade and no checker looks into."""
    found = conn.execute(
        "select proname as name from pg_proc where pronamespace = 'pgcoord'::regnamespace"
        " union select typname from pg_type where typnamespace = 'pgcoord'::regnamespace"
        " union select relname from pg_class where relnamespace = 'pgcoord'::regnamespace"
    ).fetchall()
    known = {row["name"] for row in found} | NO_OBJECTS
    root = Path(__file__).parents[2]
    documents = (root / "README.md", *sorted(root.glob("docs/*.md")), *sorted(root.glob("sql/*.*")))
    unknown = [
        f"{path.name}: pgcoord.{name}"
        for path in (*FUNCTIONS, *documents)
        for name in re.findall(r"(?<![\w/.-])pgcoord\.([a-z_]+)\b(?!\.\w)", path.read_text())
        if name not in known
    ]
    assert unknown == []


def test_messages_and_hints_are_ascii() -> None:
    # Postgres refuses to send another character to a client of LATIN1, in place of the refusal.
    raised = re.compile(r"raise exception using.*?;\n", re.DOTALL)
    actual = [
        (path.name, block[0])
        for path in FUNCTIONS
        for block in raised.finditer(path.read_text())
        if not block[0].isascii()
    ]
    assert actual == []


@pytest.mark.parametrize(
    "statement",
    [
        "insert into phase_queue (feature_id, phase_number, depends_on_phases)"
        " values (1, 2, '[3]'), (1, 3, '[2]')",
        "insert into phase_queue (feature_id, phase_number, phase_data) values (1, 2, '\"{}\"')",
        "insert into phase_queue (feature_id, phase_number, depends_on_phases)"
        " values (1, 2, to_jsonb(repeat('x', 300)))",
        "insert into phase_queue (feature_id, phase_number, workflow_type) values (1, 2, 'x')",
        "select pgcoord.submit_feature('[]')",
    ],
)
def test_a_client_of_another_encoding_is_told_why_it_is_refused(
    conn: Connection, statement: LiteralString
) -> None:
    conn.execute("insert into planned_features (id, title) values (1, 'x')")
    conn.execute("set client_encoding = 'LATIN1'")
    with pytest.raises(psycopg.Error) as caught:
        conn.execute(statement)
    assert caught.value.sqlstate in ("PC005", "PC008"), caught.value
    conn.execute("reset client_encoding")
