"""The database of a test that sends SQL and starts no program: the one of the test before."""

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from psycopg.rows import dict_row
from support.database import Connection, make_database
from support.reused import Reused


@pytest.fixture(scope="session")
def reused(server: str, template: str) -> Iterator[Reused]:
    with closing(Reused(server, template)) as reused:
        yield reused


@pytest.fixture
def dsn(request: pytest.FixtureRequest, server: str, template: str, reused: Reused) -> str:
    """The DSN of a database with the schema in it, and nothing of another test."""
    if request.node.get_closest_marker("own_database"):
        return make_database(server, template)
    reused.take(request.session.testsfailed)
    return reused.dsn


@pytest.fixture
def conn(request: pytest.FixtureRequest, dsn: str, reused: Reused) -> Iterator[Connection]:
    """An autocommit connection to the test's database; rows are dicts."""
    if request.node.get_closest_marker("own_database"):
        with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as conn:
            yield conn
    else:
        yield reused.connect()
