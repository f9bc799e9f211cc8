"""The schema: how a database comes to it, which cannot, and what its tables hold by themselves."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
import uuid
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support import PATIENCE
from support.cases import case
from support.database import Connection, add_feature, add_phase, claim, upgrade

from pgcoord import __version__, assets
from pgcoord.database import schema
from pgcoord.errors import DatabaseUnusable, WrongSchema

ROOT = Path(__file__).parents[2]
FUNCTION_FILES = sorted((assets.SQL / "functions").glob("*.sql"))
EVERYTHING = [*sorted(path.stem for path in (assets.SQL / "migrations").iterdir()), "functions"]
OURS = "('pgcoord'::regnamespace, 'pgcoord_private'::regnamespace, 'public'::regnamespace)"


@pytest.fixture
def nobody(server: str) -> Iterator[str]:
    """A role that may create nothing."""
    name = f"pgcoord_test_nobody_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(sql.SQL("create role {}").format(sql.Identifier(name)))
        yield name
        admin.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


def check(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        schema.check_schema(conn)


def change(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement.encode())


def catalog(dsn: str) -> list[Any]:
    """Everything that upgrades make, with the transaction that wrote it."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        return conn.execute(
            f"""
            select 'class', oid::regclass::text, xmin::text from pg_class
            where relnamespace in {OURS}
            union all
            select 'type', oid::regtype::text, xmin::text from pg_type
            where typnamespace in {OURS}
            union all
            select 'proc', oid::regprocedure::text, xmin::text from pg_proc
            where pronamespace in {OURS}
            union all
            select 'trigger', tgrelid::regclass || ' ' || tgname, xmin::text from pg_trigger
            union all
            select 'constraint', conname, xmin::text from pg_constraint where connamespace
                in {OURS}
            union all
            select 'description', description, xmin::text from pg_description where classoid
                in ('pg_class'::regclass, 'pg_proc'::regclass) and objoid >= 16384
            union all
            select 'migration', name || digest || release, xmin::text from pgcoord.migration
            order by 1, 2, 3
            """.encode()
        ).fetchall()


# --- Upgrades


def test_an_upgrade_of_an_empty_database_runs_everything(empty: str) -> None:
    assert upgrade(empty) == EVERYTHING
    check(empty)


def test_a_second_upgrade_changes_nothing(empty: str) -> None:
    upgrade(empty)
    was = catalog(empty)
    assert len(was) > 200
    assert upgrade(empty) == []
    assert catalog(empty) == was


def test_upgrades_at_once_take_turns(empty: str) -> None:
    with ThreadPoolExecutor(12) as pool:
        ran = list(pool.map(upgrade, [empty] * 12))
    assert sorted(ran) == [[]] * 11 + [EVERYTHING]
    check(empty)


def test_an_upgrade_renews_functions_that_another_release_wrote(dsn: str) -> None:
    change(
        dsn,
        "create or replace function pgcoord_private.ordinal(p_number bigint) returns text"
        " language sql immutable return 'broken'",
        "update pgcoord.migration set digest = 'of another release' where name = 'functions'",
    )
    with pytest.raises(WrongSchema, match="of another release") as caught:
        check(dsn)
    assert caught.value.hint == "Run 'pgcoord upgrade'."
    assert upgrade(dsn) == ["functions"]
    check(dsn)
    with psycopg.connect(dsn) as conn:
        assert conn.execute("select pgcoord_private.ordinal(2)").fetchone() == ("2nd",)


@pytest.mark.scale
def test_an_upgrade_that_deadlocks_with_a_reader_is_tried_again(dsn: str) -> None:
    with (
        ThreadPoolExecutor() as thread,
        psycopg.connect(dsn, autocommit=True) as conn,
        psycopg.connect(dsn) as reader,
    ):
        conn.execute("drop function pgcoord.resume(bigint)")
        conn.execute("set deadlock_timeout = '3s'")  # and it is the one to give way
        reader.execute("set deadlock_timeout = '10min'")
        reader.execute("select from pgcoord.schedules")
        upgraded = thread.submit(schema.upgrade, conn)
        until = time.monotonic() + PATIENCE
        with psycopg.connect(dsn, autocommit=True) as observer:
            while not observer.execute(
                "select pid from pg_locks where pid = %s and not granted", [conn.info.backend_pid]
            ).fetchone():
                assert time.monotonic() < until
        reader.execute("select from pgcoord_private.claimable")  # renewed before the other
        reader.rollback()
        assert upgraded.result(PATIENCE) == ["functions"]


def test_an_upgrade_that_fails_leaves_nothing(empty: str) -> None:
    # Something of the name of a view of ours is in the way.
    change(empty, "create schema pgcoord", "create table pgcoord.feature (id integer)")
    with pytest.raises(psycopg.errors.WrongObjectType) as caught:
        upgrade(empty)
    assert any("24_board.sql" in note for note in caught.value.__notes__)
    with psycopg.connect(empty) as conn:
        assert conn.execute("select to_regclass('public.phase_queue')").fetchone() == (None,)


def test_an_upgrade_keeps_the_work_of_the_database(dsn: str, conn: Connection) -> None:
    add_feature(conn, {1: [], 2: [1]})
    change(dsn, "update pgcoord.migration set digest = 'x' where name = 'functions'")
    was = conn.execute("select * from phase_queue order by queue_id").fetchall()
    assert upgrade(dsn) == ["functions"]
    assert conn.execute("select * from phase_queue order by queue_id").fetchall() == was


def test_a_missing_schema_is_reported(empty: str) -> None:
    with pytest.raises(WrongSchema, match="has no pgcoord schema") as caught:
        check(empty)
    assert caught.value.hint == "Run 'pgcoord upgrade'."


def test_a_missing_migration_is_reported(dsn: str) -> None:
    change(dsn, "delete from pgcoord.migration where name = '0001_tables'")
    with pytest.raises(WrongSchema, match="of another release"):
        check(dsn)


@pytest.mark.parametrize("release", ["99.0.0", __version__ + ".1"])
def test_a_database_of_a_newer_release_is_left_alone(dsn: str, release: str) -> None:
    change(dsn, f"update pgcoord.migration set release = '{release}', digest = 'x'")
    was = catalog(dsn)
    for refused in (upgrade, check):
        with pytest.raises(WrongSchema, match=f"pgcoord {re.escape(release)} wrote") as caught:
            refused(dsn)
        assert caught.value.hint == f"Use pgcoord {release} or newer."
    assert catalog(dsn) == was


@pytest.mark.parametrize(
    "newer",
    [
        f"update pgcoord.migration set digest = '{schema.number() + 1}' where name = 'schema'",
        "insert into pgcoord.migration (name, digest, release)"
        f" values ('9999_later', 'x', '{__version__}')",
    ],
)
def test_a_database_of_a_newer_checkout_is_left_alone(dsn: str, newer: str) -> None:
    change(dsn, newer, "update pgcoord.migration set digest = 'x' where name = 'functions'")
    was = catalog(dsn)
    for refused in (upgrade, check):
        with pytest.raises(WrongSchema, match="is of a newer pgcoord: its schema has the number"):
            refused(dsn)
    assert catalog(dsn) == was


def test_the_number_of_the_schema_grows_with_each_change() -> None:
    found = schema.VERSION.read_text(encoding="utf-8").split()
    assert found[1:] == [schema.digest_of_all()], "run 'make schema-version'"


@pytest.mark.parametrize("table", ["phase_queue", "planned_features"])
def test_tables_of_another_make_are_left_alone(empty: str, table: str) -> None:
    change(empty, f"create table {table} (id integer)")
    for refused in (upgrade, check):
        with pytest.raises(WrongSchema, match=f"a table {table} that is not of") as caught:
            refused(empty)
        assert "pgcoord migrate-v1" in str(caught.value.hint)
    with psycopg.connect(empty) as conn:
        assert conn.execute("select to_regnamespace('pgcoord')").fetchone() == (None,)


# --- Databases that cannot be used


def test_a_user_without_create_is_refused_with_the_owner(empty: str, nobody: str) -> None:
    with pytest.raises(DatabaseUnusable, match="permission denied for database") as caught:
        upgrade(make_conninfo(empty, options=f"-c role={nobody}"))
    assert "as the owner of the database" in str(caught.value.hint)


@pytest.mark.parametrize("use", [upgrade, check])
def test_a_database_that_only_reads_is_refused(dsn: str, use: Any) -> None:
    name = conninfo_to_dict(dsn)["dbname"]
    change(dsn, f"alter database {name} set default_transaction_read_only = on")
    with pytest.raises(DatabaseUnusable, match="default_transaction_read_only is on") as caught:
        use(dsn)
    assert "set default_transaction_read_only = off overrules it" in str(caught.value.hint)


@pytest.mark.parametrize("use", [upgrade, check])
def test_a_database_of_another_encoding_is_refused(server: str, use: Any) -> None:
    name = "pgcoord_test_latin1"
    with psycopg.connect(server) as conn:
        provider = "locale_provider libc" if conn.info.server_version >= 150000 else ""
    change(
        server,
        f"drop database if exists {name}",
        f"create database {name} encoding 'LATIN1' {provider} locale 'C' template template0",
    )
    try:
        with pytest.raises(DatabaseUnusable, match="has the encoding LATIN1") as caught:
            use(make_conninfo(server, dbname=name))
        assert "encoding 'UTF8' template template0" in str(caught.value.hint)
    finally:
        change(server, f"drop database {name}")


@pytest.fixture
def postgres_13(empty: str) -> Iterator[str]:
    """A way to the server on which it calls itself PostgreSQL 13."""
    values = conninfo_to_dict(empty)
    host, port = str(values.get("host") or "127.0.0.1"), int(values.get("port") or 5432)
    back = socket.socket(socket.AF_UNIX if host.startswith("/") else socket.AF_INET)
    back.connect(f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port))
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        while data := source.recv(65536):
            sink.sendall(re.sub(rb"(?<=server_version\0)\d\d", b"13", data))
        sink.shutdown(socket.SHUT_WR)

    def serve() -> None:
        front, _ = listener.accept()
        with front:
            there = threading.Thread(target=pump, args=(front, back), daemon=True)
            there.start()
            pump(back, front)
            there.join()

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    yield make_conninfo(
        empty,
        host="127.0.0.1",
        port=listener.getsockname()[1],
        sslmode="disable",
        gssencmode="disable",
    )
    server.join()
    listener.close()
    back.close()


def test_a_server_that_is_too_old_is_refused(postgres_13: str) -> None:
    with pytest.raises(DatabaseUnusable, match="the server is PostgreSQL 13") as caught:
        upgrade(postgres_13)
    assert caught.value.hint == "pgcoord needs PostgreSQL 14 or newer."


# --- What is in it


def test_every_function_and_trigger_comes_from_a_file(conn: Connection) -> None:
    text = "\n".join(path.read_text() for path in FUNCTION_FILES)
    written = re.findall(
        r"^create or replace function pgcoord(?:_private)?\.(\w+)\(", text, re.MULTILINE
    )
    found = conn.execute(
        "select proname from pg_proc where pronamespace in"
        " ('pgcoord'::regnamespace, 'pgcoord_private'::regnamespace, 'public'::regnamespace)"
    )
    assert sorted(written) == sorted(row["proname"] for row in found)
    written = re.findall(r"^create or replace trigger (\w+) ", text, re.MULTILINE)
    for path in (assets.SQL / "migrations").glob("*.sql"):  # what cannot be replaced
        written += re.findall(r"^create constraint trigger (\w+) ", path.read_text(), re.MULTILINE)
    found = conn.execute("select tgname from pg_trigger where not tgisinternal")
    assert sorted(written) == sorted(row["tgname"] for row in found)
    written = re.findall(
        r"^create or replace view pgcoord(?:_private)?\.(\w+) ", text, re.MULTILINE
    )
    found = conn.execute(
        "select viewname from pg_views where schemaname in ('pgcoord', 'pgcoord_private')"
    )
    assert sorted(written) == sorted(row["viewname"] for row in found)


def test_the_bodies_of_functions_parse(conn: Connection) -> None:
    conn.execute("set check_function_bodies = on")
    for path in FUNCTION_FILES:
        with case(path.stem):
            conn.execute(path.read_bytes())


def test_every_public_object_has_a_comment(conn: Connection) -> None:
    ours = f"in {OURS}"
    bare = conn.execute(
        f"""
        select 'schema' as kind, 'pgcoord' as name
        where obj_description('pgcoord'::regnamespace, 'pg_namespace') is null
        union all
        select 'relation', c.oid::regclass::text from pg_class as c
        where c.relnamespace {ours} and c.relkind in ('r', 'v', 'S')
            and obj_description(c.oid, 'pg_class') is null
        union all
        select 'column', c.oid::regclass || '.' || a.attname
        from pg_class as c join pg_attribute as a on a.attrelid = c.oid
        where c.relnamespace in ('pgcoord'::regnamespace, 'public'::regnamespace)
            and c.relkind in ('r', 'v') and a.attnum > 0
            and not a.attisdropped
            and col_description(c.oid, a.attnum) is null
        union all
        select 'function', p.oid::regprocedure::text from pg_proc as p
        where p.pronamespace = 'pgcoord'::regnamespace
            and obj_description(p.oid, 'pg_proc') is null
        """.encode()
    ).fetchall()
    assert bare == []


def test_no_column_and_no_function_has_a_type_of_its_own(conn: Connection) -> None:
    found = conn.execute(
        f"""
        select c.oid::regclass || '.' || a.attname as place, t.oid::regtype::text as type
        from pg_attribute as a
            join pg_class as c on c.oid = a.attrelid
            join pg_type as t on t.oid = a.atttypid
        where c.relnamespace in {OURS} and c.relkind in ('r', 'p', 'v', 'm')
            and t.typtype in ('d', 'e')
        union all
        select p.oid::regprocedure::text, t.oid::regtype::text
        from pg_proc as p
            join pg_type as t on t.oid = p.prorettype or t.oid = any (p.proargtypes)
                or t.oid = any (p.proallargtypes)
        where p.pronamespace in {OURS} and t.typtype in ('d', 'e')
        """.encode()
    ).fetchall()
    assert found == []


# --- What the tables hold by themselves

WITHOUT_TRIGGERS = [
    "alter table phase_queue disable trigger user",
    "set session_replication_role = replica",
]


@pytest.fixture(params=WITHOUT_TRIGGERS, ids=["disabled", "replica"])
def bare_feature(conn: Connection, request: pytest.FixtureRequest) -> int:
    """A feature whose phases no trigger of ours looks at."""
    feature = add_feature(conn, {})
    conn.execute(request.param)
    return feature


def add_bare(conn: Connection, feature: int, number: int, **columns: Any) -> None:
    """Insert a phase that no trigger fills."""
    filled = {"queue_id": f"q{number}", "eligible_at": "now", **columns}
    add_phase(conn, feature, number, **filled)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"status": "running"}, "phase_queue_live_holds_slot"),
    ({"status": "ready"}, "phase_queue_live_holds_slot"),
    ({"status": "queued", "slot": 2}, "phase_queue_live_holds_slot"),
    ({"status": "completed", "slot": 2}, "phase_queue_live_holds_slot"),
    ({"status": "running", "slot": 1}, "phase_queue_slot_key"),
    (
        {"status": "running", "slot": 2, "unmet": 1, "eligible_at": None},
        "phase_queue_starts_when_claimable",
    ),
    ({"unmet": 1}, "phase_queue_eligible_when_met"),
    ({"eligible_at": None}, "phase_queue_eligible_when_met"),
    ({"status": "failed", "retry_at": "now"}, "phase_queue_retry_is_queued"),
    ({"retry_at": "infinity"}, "phase_queue_retry_is_queued"),
    ({"number": 0}, "phase_queue_number_is_positive"),
    ({"queue_id": "q1"}, "phase_queue_pkey"),
    ({"number": 1, "queue_id": "q2"}, "phase_queue_phase_is_unique"),
]


def test_the_tables_refuse_a_wrong_phase_without_any_trigger(
    conn: Connection, bare_feature: int
) -> None:
    add_bare(conn, bare_feature, 1, status="running", slot=1)
    for columns, constraint in WRONG:
        with case(columns), pytest.raises(psycopg.errors.IntegrityError) as caught:
            add_bare(conn, bare_feature, **{"number": 2, **columns})
        assert caught.value.diag.constraint_name == constraint


def test_the_checks_of_a_phase_are_short(conn: Connection) -> None:
    """Postgres parses them again with every statement that updates a phase."""
    row = conn.execute(
        "select sum(length(conbin)) as letters from pg_constraint"
        " where conrelid = 'phase_queue'::regclass and contype = 'c'"
    ).fetchone()
    assert row
    assert row["letters"] < 2_000  # 27 instructions each; five checks had 4,452


@pytest.mark.parametrize(
    "statement",
    [
        "insert into phase_queue (queue_id, feature_id, phase_number, status, slot, eligible_at)"
        " select 'q4', id, 4, 'running', 4, now() from planned_features",
        "update phase_queue set slot = 4 where slot = 3",
        "delete from pgcoord.slot where number = 3",
    ],
)
def test_a_slot_that_does_not_exist_cannot_be_held_without_our_triggers(
    conn: Connection, statement: str
) -> None:
    feature = add_feature(conn, {})
    conn.execute("alter table phase_queue disable trigger user")
    for number in (1, 2, 3):
        add_bare(conn, feature, number, status="running", slot=number)
    with pytest.raises(psycopg.errors.ForeignKeyViolation, match="phase_queue_slot_exists"):
        conn.execute(statement.encode())


WRONG_BY_HAND: Any = [
    "update phase_queue set slot = 1 where slot = 2",
    "update phase_queue set slot = 4 where slot = 2",
    "update phase_queue set slot = null where slot = 2",
    "update phase_queue set slot = 3, status = 'running' where slot is null",
    "update phase_queue set status = 'queued' where slot = 2",
    "insert into pgcoord.slot (number) values (0)",
    "insert into pgcoord.slot (number) values (3)",
    "delete from pgcoord.slot",
    "insert into pgcoord.control (only_row) values (false)",
    "insert into pgcoord.control (only_row) values (true)",
    "update pgcoord.attempt set outcome = 'completed'",
    "update pgcoord.attempt set outcome = 'splendid', ended_at = now()",
    "update pgcoord.attempt set ending = 'splendid'",
    "insert into pgcoord.attempt (queue_id, number, adw_id, secret, slot, outcome, ended_at)"
    " select queue_id, 2, 'deadbeef', secret, slot, 'splendid', now() from pgcoord.attempt limit 1",
    "update pgcoord.workflow set max_attempts = 0",
    "insert into pgcoord.dependency values (1, 1, 1)",
    "insert into pgcoord.dependency values (1, 1, 99)",
]


def test_wrong_rows_written_by_a_superuser_are_refused(conn: Connection, epoch: int) -> None:
    add_feature(conn, {1: [], 2: [], 3: [], 4: []})
    assert len(claim(conn, epoch)) == 3

    def stored() -> list[Any]:
        tables = ("phase_queue", "pgcoord.attempt", "pgcoord.slot", "pgcoord.dependency")
        return [conn.execute(f"select * from {each}".encode()).fetchall() for each in tables]

    was = stored()
    for statement in WRONG_BY_HAND:
        with case(statement):
            with pytest.raises(psycopg.Error) as caught:
                conn.execute(statement.encode())
            assert str(caught.value.sqlstate)[:2] in ("PC", "23"), caught.value
            assert stored() == was


# --- What is shipped


def test_the_wheel_holds_sql_and_web_and_finds_them(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if not name.endswith("/")}
        archive.extractall(tmp_path / "installed")
    for folder in ("sql", "web"):
        there = {
            f"pgcoord/{path.relative_to(ROOT)}"
            for path in (ROOT / folder).rglob("*")
            if path.is_file()
        }
        assert there == {name for name in packed if name.startswith(f"pgcoord/{folder}/")}
    assert "pgcoord/sql/migrations/0001_tables.sql" in packed
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "from pgcoord.database import schema; print(*schema._files('functions'))",
        ],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    functions = tmp_path / "installed" / "pgcoord" / "sql" / "functions"
    assert found.stdout.split() == [str(functions / path.name) for path in FUNCTION_FILES]


def test_a_dropped_schema_is_named_with_what_to_do(dsn: str) -> None:
    change(dsn, "drop schema pgcoord_private cascade")
    words = r"schema pgcoord_private of database '\w+' was dropped, and with it rules"
    with pytest.raises(WrongSchema, match=words) as caught:
        check(dsn)
    assert "Restore a backup" in str(caught.value.hint)
    with pytest.raises(WrongSchema, match=words):
        upgrade(dsn)
