"""The databases that `bench` works in, which are dropped afterwards, and its statements there."""

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgcoord import assets
from pgcoord.database import schema
from pgcoord.database.connect import connect_blocking
from pgcoord.errors import CannotStart, DatabaseUnusable

Connection = psycopg.Connection[Any]

# Seconds to wait for any single step; after that the coordinator is stuck, not slow.
PATIENCE = 60.0

NAME = "pgcoord bench"  # application_name of all our sessions, to tell them from autovacuum's


@contextmanager
def scratch_databases(admin: Connection, dsn: str) -> Iterator[Callable[..., str]]:
    """Yield a function that creates a database and returns its DSN; on exit, drop them all.

    The function takes *with_schema* (true: upgrade the new database to our schema), and raises
    `DatabaseUnusable` when the user may not create databases.
    """
    prefix = f"pgcoord_bench_{os.getpid()}_{secrets.token_hex(4)}"
    names: list[str] = []

    def make(*, with_schema: bool = True) -> str:
        names.append(f"{prefix}_{len(names) + 1}")
        try:
            admin.execute(composed("create_database", sql.Identifier(names[-1])))
        except psycopg.errors.InsufficientPrivilege as error:
            raise DatabaseUnusable(
                f"user {admin.info.user!r} may not create databases, and bench works in its own",
                hint=f'alter role "{admin.info.user}" createdb lets it; or --dsn another user.',
            ) from error
        scratch_dsn = make_conninfo(dsn, dbname=names[-1], application_name=NAME)
        if with_schema:
            with connected(scratch_dsn) as conn:
                schema.upgrade(conn)
        return scratch_dsn

    try:
        yield make
    finally:
        # On a new connection: *admin* may be lost.
        with connected(dsn) as dropper:
            for name in names:
                dropper.execute(composed("drop_database", sql.Identifier(name)))


@contextmanager
def connected(dsn: str) -> Iterator[Connection]:
    """Yield an autocommit connection to *dsn*, closed on exit."""
    conn = connect_blocking(dsn)
    try:
        # The statements of sql/bench name tables without their schema, as those of clients do.
        conn.execute("set search_path = public")
        yield conn
    finally:
        conn.close()


@cache
def statement(name: str) -> bytes:
    """Return the statement in sql/bench/*name*.sql."""
    return (assets.SQL / "bench" / f"{name}.sql").read_bytes()


def composed(name: str, *values: sql.Composable, **named: sql.Composable) -> sql.Composed:
    """Return the statement *name* with the values in its braces."""
    return sql.SQL(statement(name).decode()).format(*values, **named)


def row(conn: Connection, name: str, *values: object) -> tuple[Any, ...]:
    """Run the statement *name*; return its one row."""
    record: tuple[Any, ...] | None = conn.execute(statement(name), values or None).fetchone()
    assert record is not None
    return record


def await_another(listener: Connection, pid: int) -> None:
    """Block until a session other than *pid* notifies; raise `CannotStart` after `PATIENCE`."""
    deadline = time.monotonic() + PATIENCE
    while (remaining := deadline - time.monotonic()) > 0:
        if any(notice.pid != pid for notice in listener.notifies(timeout=remaining, stop_after=1)):
            return
    raise CannotStart(f"nothing was claimed for {PATIENCE:.0f} s")


def await_count(conn: Connection, name: str) -> None:
    """Run the statement *name* until it returns 0; raise `CannotStart` after `PATIENCE`."""
    deadline = time.monotonic() + PATIENCE
    while row(conn, name) != (0,):
        if time.monotonic() > deadline:
            raise CannotStart(f"the coordinator has not settled its attempts for {PATIENCE:.0f} s")
        time.sleep(0.002)
