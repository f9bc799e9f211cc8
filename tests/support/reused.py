"""A database and its session that tests with `conn` take in turn, each as if it were new.

A copy of the template and the first plans of a new session take three times as long as what such
a test does. So the rows of the test before are taken away, the session is reset, and whatever else
of it may be left has the database made anew: a changed catalog, tables that have grown, a failure.

What the session keeps is what no statement shows: parsed functions, and how often each of their
plans was made (Postgres has a generic plan from the sixth time on). A test that looks at plans, at
statistics, or at where rows lie on their pages has a database of its own:
`pytest.mark.own_database`.
"""

import time
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg.pq.abc import PGconn
from psycopg.rows import dict_row

from support import PATIENCE
from support.database import Connection, copy_database, drop_database

# Postgres takes a table that was never analyzed for one of ten pages as long as it has fewer.
_PAGES = 8

_FIRST = 16384  # the oid that the first object has which is not Postgres's own

# Where a change of the catalog shows: what is made and dropped has dependencies, the rest is
# changed in place. Without what Postgres itself has brought, where that is most.
_CATALOG = (
    "pg_class",
    "pg_constraint",
    "pg_default_acl",
    "pg_depend",
    "pg_event_trigger",
    "pg_index",
    "pg_language",
    "pg_largeobject_metadata",
    "pg_policy",
    "pg_proc",
    "pg_publication",
    "pg_rewrite",
    "pg_sequence",
    "pg_statistic",
    "pg_trigger",
    "pg_type",
    f"pg_attribute where attrelid >= {_FIRST}",
    f"pg_description where objoid >= {_FIRST}",
    # An empty schema stays behind a session's temporary tables.
    "pg_namespace where nspname !~ '^pg_(toast_)?temp_'",
)

# What upgrades write, which is too much to write again: a change of it is one of the catalog.
_WRITTEN_BY_UPGRADES = ("pgcoord.migration", "pgcoord.shipped")


class _Lent(psycopg.Connection[Any]):
    """A connection object over a session that outlives it."""

    def __del__(self, *_: object) -> None:
        """Nothing was forgotten: the next test has the session."""


class Reused:
    """The database that the tests of one worker take in turn."""

    def __init__(self, server: str, template: str) -> None:
        self._server = server
        self._template = template
        self._name: str | None = None
        self._session: PGconn | None = None
        self._failures = 0
        self._clean = b""
        self._state = b""
        self._before: list[Any] = []

    @property
    def dsn(self) -> str:
        return make_conninfo(self._server, dbname=self._name)

    def take(self, failures: int) -> None:
        """Have a database that is as the template.

        *failures*: how many tests have failed so far. What one more has left is not used again.
        """
        if self._name and (failures > self._failures or not self._cleaned()):
            self.close()
        self._failures = failures
        if not self._name:
            self._make()

    def connect(self) -> Connection:
        """Return a connection as `psycopg.connect` would; there is one at a time."""
        if self._session is None or self._session.status != ConnStatus.OK:
            conn = _Lent.connect(self.dsn, row_factory=dict_row)
            self._session = conn.pgconn
        else:
            conn = _Lent(self._session, row_factory=dict_row)
        conn.autocommit = True
        return conn

    def close(self) -> None:
        """Drop the database, if there is one."""
        if self._session:
            self._session.finish()
            self._session = None
        if self._name:
            with psycopg.connect(self._server, autocommit=True) as admin:
                drop_database(admin, self._name)
            self._name = None

    def _make(self) -> None:
        with psycopg.connect(self._server, autocommit=True) as admin:
            self._name = copy_database(admin, self._template)
        if not self._before:  # each copy begins with the same
            conn = self.connect()
            self._clean = _statement_that_cleans(conn)
            self._state = _statement_that_compares(conn)
            self._before = conn.execute(self._state).fetchall()

    def _cleaned(self) -> bool:
        """Take away what the last test left; return whether that was possible."""
        if self._session and self._session.transaction_status != TransactionStatus.IDLE:
            self._session.finish()
        try:
            conn = self.connect()
            conn.prepare_threshold = None  # the session outlives it: the next would find its names
            conn.execute("discard all")
            if conn.info.parameter_status("is_superuser") != "on":  # who alone can go past triggers
                return False
            _end_others(conn)
            if conn.execute(self._state).fetchall() != self._before:
                return False
            conn.execute(self._clean)
        except psycopg.Error:  # such as a database that only reads
            return False
        return True


def _end_others(conn: Connection) -> None:
    """End what other sessions of this database still do."""
    deadline = time.monotonic() + PATIENCE
    while conn.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
        " and pid <> pg_backend_pid() and backend_type <> 'autovacuum worker'"
    ).fetchall():
        assert time.monotonic() < deadline, "a session does not end"
        time.sleep(0.002)


def _statement_that_cleans(conn: Connection) -> bytes:
    """Write the statement that makes the rows and sequences of all tables what they are now."""
    tables = conn.execute(
        "select c.oid::regclass::text as name, string_agg(quote_ident(a.attname), ', ') as columns,"
        " string_agg('(r).' || quote_ident(a.attname), ', ') as fields"
        " from pg_class as c join pg_attribute as a on a.attrelid = c.oid"
        " where c.relkind = 'r' and not c.relnamespace = any (%s::regnamespace[])"
        " and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''"
        " and not c.oid = any (%s::regclass[]) group by c.oid order by c.oid",
        [["pg_catalog", "information_schema"], list(_WRITTEN_BY_UPGRADES)],
    ).fetchall()
    # No trigger fires, and no foreign key says in which order rows have to go.
    statements = ["begin", "set local session_replication_role = replica"]
    statements += [f"delete from {table['name']}" for table in tables]
    for table in tables:
        name = table["name"]
        rows = conn.execute(
            f"select quote_literal(array_agg(t)::text) as rows from {name} as t".encode()
        ).fetchone()
        if rows and rows["rows"]:
            statements.append(
                f"insert into {name} ({table['columns']}) overriding system value"
                f" select {table['fields']} from unnest({rows['rows']}::{name}[]) as r"
            )
    sequences = conn.execute(
        "select format('select setval(%L, %s, %L)', s.name, coalesce(last_value, start_value),"
        " last_value is not null) as reset from pg_sequences,"
        " lateral (select format('%I.%I', schemaname, sequencename) as name) as s"
    ).fetchall()
    statements += [each["reset"] for each in sequences]
    return "; ".join([*statements, "commit"]).encode()


def _statement_that_compares(conn: Connection) -> bytes:
    """Write the query whose rows change with whatever cannot be cleaned.

    For each table of the catalog: how many rows it has, and how many that are younger than now.
    """
    young = conn.execute("select pg_snapshot_xmax(pg_current_snapshot())::text as id").fetchone()
    assert young
    counts = [
        f"select {table.split()[0]!r} as what, count(*) as rows,"
        f" count(*) filter (where age(xmin) <= age(xid '{young['id']}')) as young from {table}"
        for table in (*_CATALOG, *_WRITTEN_BY_UPGRADES)
    ]
    return " union all ".join(
        [
            *counts,
            "select 'statistics', sum(reltuples)::bigint, sum(relpages) from pg_class",
            "select 'grown', count(*), 0 from pg_class where relkind in ('r', 'i', 't')"
            f" and oid >= {_FIRST}"
            f" and pg_relation_size(oid) > {_PAGES} * current_setting('block_size')::integer",
            "select 'settings', hashtext(array_agg(s order by s.setrole)::text), 0"
            " from pg_db_role_setting as s, pg_database as d"
            " where d.oid = s.setdatabase and d.datname = current_database()",
            "select 'database', hashtext((datdba, datacl, datconnlimit, datallowconn)::text), 0"
            " from pg_database where datname = current_database()",
            "select 'prepared', count(*), 0 from pg_prepared_xacts"
            " where database = current_database()",
            "select 'slots', count(*), 0 from pg_replication_slots"
            " where database = current_database()",
        ]
    ).encode()
