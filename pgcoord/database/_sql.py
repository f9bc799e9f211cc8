"""Runs the statements of this package.

The one rule: rows come back as dataclasses, refusals of the database as a `CoordError`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar

import psycopg
from psycopg.rows import class_row, scalar_row

from pgcoord.errors import (
    AnotherLeads,
    ChangedMeanwhile,
    CoordError,
    DatabaseUnusable,
    InvalidInput,
    Locked,
    NotFound,
    Refused,
    StaleAttempt,
    WrongSchema,
)

Connection = psycopg.AsyncConnection[Any]


Row = TypeVar("Row")


ERRORS: Mapping[str, type[CoordError]] = {
    "PC001": NotFound,
    "PC002": Refused,
    "PC003": StaleAttempt,
    "PC004": Refused,
    "PC005": InvalidInput,
    "PC006": Refused,
    "PC007": AnotherLeads,
    "PC008": Refused,
    "PC009": Refused,
    "PC010": ChangedMeanwhile,
    "22P02": InvalidInput,  # a text that is not a number, or not JSON
    "22P05": InvalidInput,  # a NUL in JSON
    "23505": InvalidInput,  # a phase that exists already
    "23514": InvalidInput,  # a check constraint
    "3F000": WrongSchema,
    "42501": DatabaseUnusable,
    "42P01": WrongSchema,
    "42883": WrongSchema,
    "25006": DatabaseUnusable,
    "55P03": Locked,
}


_RIGHTS = (
    "The owner of the database can grant you pgcoord_client, or pgcoord_coordinator to serve;"
    " 'pgcoord upgrade --roles' makes them."
)


_OTHER_SCHEMA = "'pgcoord doctor' says what is wrong with the schema, and what to do."


@contextmanager
def refusals() -> Iterator[None]:
    """Raise the refusals of the database as `CoordError`, by their SQLSTATE.

    A lost connection stays a `psycopg.OperationalError`.
    """
    try:
        yield
    except psycopg.Error as error:
        leaf = ERRORS.get(error.sqlstate or "")
        if leaf is None:
            raise
        raise leaf(
            error.diag.message_primary or str(error),
            hint=error.diag.message_hint
            or error.diag.message_detail
            or (_RIGHTS if error.sqlstate == "42501" else None)
            or (_OTHER_SCHEMA if leaf is WrongSchema else None),
        ) from error


async def fetch_rows(
    conn: Connection, row: type[Row], statement: str, *values: object
) -> list[Row]:
    """Execute *statement* with *values*; return its rows as *row*. Raises as `refusals`."""
    with refusals():
        cursor = await conn.cursor(row_factory=class_row(row)).execute(statement.encode(), values)
        return await cursor.fetchall()


async def fetch_row(
    conn: Connection, row: type[Row], statement: str, *values: object
) -> Row | None:
    """Return the first row of `fetch_rows`; None if there is none."""
    return next(iter(await fetch_rows(conn, row, statement, *values)), None)


async def fetch_value(conn: Connection, statement: str, *values: object) -> Any:
    with refusals():
        cursor = await conn.cursor(row_factory=scalar_row).execute(statement.encode(), values)
        return await cursor.fetchone()


def columns_of(row: Any) -> str:
    return ", ".join(field.name for field in fields(row))


async def fetch_values(conn: Connection, statement: str, *values: object) -> list[Any]:
    with refusals():
        cursor = await conn.cursor(row_factory=scalar_row).execute(statement.encode(), values)
        return await cursor.fetchall()
