"""Sessions depend on no setting of a role, a database, the environment, a DSN or a service file."""

import asyncio
import time
from collections.abc import Callable

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support.database import Connection
from support.desk import Desk

from pgcoord.database.connect import make_ready, may_pass
from pgcoord.errors import DatabaseUnusable

# What somebody may have set for people at a prompt or for another program, each to our harm. They
# count between the log-in and our first statement, for which two seconds are enough anywhere.
HOSTILE = {
    "DateStyle": "German",
    "IntervalStyle": "sql_standard",
    "TimeZone": "<+03>-3",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "search_path": "hostile, pg_catalog",
    "standard_conforming_strings": "off",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "statement_timeout": "2s",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "1ms",
    "idle_session_timeout": "2s",
    "row_security": "off",
    "client_encoding": "LATIN1",
    "quote_all_identifiers": "on",
    "backslash_quote": "off",
    "xmloption": "document",
    "array_nulls": "off",
}

PROMPT = "printf 'h\\303\\251llo \\342\\234\\227\\n'"
OPTIONS = " ".join(f"-c {name}={value}".replace(", ", ",") for name, value in HOSTILE.items())


@pytest.fixture(autouse=True)
def hostile(dsn: str) -> None:
    """A schema that comes first in the search path, and imitates what a session begins with."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("create schema hostile")
        for signature, kind in (
            ("now()", "timestamptz"),
            ("current_setting(text, boolean)", "text"),
            ("current_setting(text)", "text"),
            ("set_config(text, text, boolean)", "text"),
            ("pg_backend_pid()", "integer"),
        ):
            body = "begin raise exception 'a function of the hostile schema ran'; end"
            conn.execute(
                f"create function hostile.{signature} returns {kind} language plpgsql"
                f" as $$ {body} $$".encode()
            )


def literal(value: str) -> str:
    """*value* for SET: a list stays one, which in quotes would be one name."""
    return value if "," in value else f"'{value}'"


def set_for_database(desk: Desk, dsn: str) -> list[str]:
    """Set all of it on the database."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        for name, value in HOSTILE.items():
            conn.execute(
                f"alter database {conn.info.dbname} set {name} = {literal(value)}".encode()
            )
    return ["--dsn", dsn]


def set_for_role(desk: Desk, dsn: str) -> list[str]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        role = f"role_of_{conn.info.dbname}"
        conn.execute(f"create role {role} superuser login".encode())
        for name, value in HOSTILE.items():
            conn.execute(f"alter role {role} set {name} = {literal(value)}".encode())
    return ["--dsn", make_conninfo(dsn, user=role)]


def set_in_environment(desk: Desk, dsn: str) -> list[str]:
    desk.environment |= {
        "PGOPTIONS": OPTIONS,
        "PGDATESTYLE": "SQL, DMY",
        "PGTZ": "Asia/Kathmandu",
        "PGCLIENTENCODING": "no such encoding",
    }
    return ["--dsn", dsn]


def set_in_dsn(desk: Desk, dsn: str) -> list[str]:
    return ["--dsn", make_conninfo(dsn, options=OPTIONS, client_encoding="SQL_ASCII")]


def set_in_service_file(desk: Desk, dsn: str) -> list[str]:
    given = conninfo_to_dict(dsn) | {"options": OPTIONS, "client_encoding": "LATIN1"}
    desk.write("services", "[ours]\n" + "".join(f"{key}={value}\n" for key, value in given.items()))
    desk.environment["PGSERVICEFILE"] = str(desk.folder / "services")
    return ["--dsn", "service=ours"]


@pytest.mark.parametrize(
    "settings",
    [
        set_for_database,
        set_in_environment,
        # The two ways in which a setting comes, from the server and from the client, are above.
        *(
            pytest.param(each, marks=pytest.mark.scale)
            for each in (set_for_role, set_in_dsn, set_in_service_file)
        ),
    ],
)
def test_a_plan_runs_to_its_end_under_any_isolation_level(
    settings: Callable[[Desk, str], list[str]], desk: Desk, dsn: str
) -> None:
    to = settings(desk, dsn)
    plan = desk.plan(PROMPT, "exit 3")
    result = desk.call("run", plan, *to)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert "1 of 2 phases" in result.stdout
    assert "exited with status 3" in desk.say("why", "1.2", *to)
    assert "failed" in desk.say("status", "--all", *to)
    assert desk.call("retry", "1.2", *to).returncode == 0
    found = desk.call("doctor", *to)
    assert "settings       those that the coordinator depends on are in force" in found.stdout


def test_triggers_that_are_switched_off_for_the_session_are_refused_or_switched_on(
    desk: Desk, dsn: str
) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            f"alter database {conn.info.dbname} set session_replication_role = 'replica'".encode()
        )
        conn.execute(f"create role user_of_{conn.info.dbname} login".encode())
        user = f"user_of_{conn.info.dbname}"
    assert desk.call("run", desk.plan("true"), "--dsn", dsn).returncode == 0
    result = desk.call("status", "--dsn", make_conninfo(dsn, user=user))
    assert result.returncode == 6
    assert "session_replication_role" in result.stderr
    assert "alter role … reset session_replication_role" in result.stderr


@pytest.fixture
def few_connections(dsn: str) -> str:
    """A DSN of a role that may have one connection, which is taken."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        role = f"one_of_{conn.info.dbname}"
        conn.execute(f"create role {role} login superuser connection limit 0".encode())
        conn.execute(f"alter role {role} nosuperuser".encode())
        conn.execute(f"grant pg_read_all_data, pg_write_all_data to {role}".encode())
        conn.execute(f"alter database {conn.info.dbname} owner to {role}".encode())
    return make_conninfo(dsn, user=role)


def test_a_server_without_a_free_connection_is_waited_for(
    desk: Desk, dsn: str, few_connections: str
) -> None:
    """It answers 53300, in words that differ by the kind of limit and by language."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        serving = desk.start("serve", "--dsn", few_connections)
        serving.until("trying again")
        role = conninfo_to_dict(few_connections)["user"]
        conn.execute(f"alter role {role} superuser connection limit -1".encode())
        serving.until("leading")


def test_a_session_that_only_reads_is_refused_with_the_settings_name(desk: Desk, dsn: str) -> None:
    desk.environment["PGOPTIONS"] = "-c default_transaction_read_only=on"
    for arguments in (["run", desk.plan("true")], ["serve"], ["upgrade"]):
        result = desk.call(*arguments, "--dsn", dsn)
        assert result.returncode == 6
        assert "default_transaction_read_only is on" in result.stderr
        assert "set default_transaction_read_only = off overrules it" in result.stderr


@pytest.mark.parametrize("late", [False, True], ids=["", "late"])
async def test_a_session_that_is_ended_as_idle_before_its_first_statement_names_the_setting(
    dsn: str, conn: Connection, *, late: bool
) -> None:
    hasty = make_conninfo(dsn, options="-c idle_session_timeout=1")
    gone = "select count(*) = 0 as gone from pg_stat_activity where application_name = 'hasty'"

    async def be_busy() -> None:
        while late:
            time.sleep(0.01)  # noqa: ASYNC251 (what the server says last is read with the log-in)
            await asyncio.sleep(0)

    busy = asyncio.create_task(be_busy())
    async with await psycopg.AsyncConnection.connect(
        hasty, autocommit=True, application_name="hasty"
    ) as ended:
        busy.cancel()
        while conn.execute(gone).fetchone() != {"gone": True}:
            pass
        with pytest.raises(DatabaseUnusable, match="the connection cannot be prepared") as refused:
            await make_ready(ended)
    assert refused.value.hint
    assert "idle_session_timeout = " in refused.value.hint
    assert may_pass(refused.value)
