"""Connections: which database, with which parameters, and what to say when it cannot be reached."""

import re
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgcoord.errors import CoordError, DatabaseUnusable

# A dead peer is noticed by the kernel, not by a timer of ours: after 5 + 3 x 2 s of silence, and 5
# s with data in flight.
_KEEPALIVE = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
}
# What a role or database may set for people at a prompt is not for us: we wait as long as it takes,
# and phases change under READ COMMITTED only.
_OURS = "-c lock_timeout=0 -c statement_timeout=0 -c default_transaction_isolation=read\\ committed"
# The lead goes with its connection: also when our machine has vanished, and, three pings later,
# when our process is frozen.
_LEAD = (
    "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3"
    " -c tcp_user_timeout=10s -c idle_session_timeout=30s"
)
# An @ or a / that libpq takes for the end of a password: what follows would be a host to it, which
# it names when it cannot find it.
_UNQUOTED = re.compile(r"postgres(?:ql)?://[^/?#]*(?:@[^/?#]*|/[^?#]*)@")
# PgBouncer; Postgres itself takes all that we set.
_POOLED = (
    "That is a pooler. Give the address of the server itself; for clients that only read and"
    " insert, a pool with ignore_startup_parameters = options will do."
)


def parameters_of(dsn: str) -> dict[str, Any]:
    """The parameters that a DSN sets, by libpq's names. Raises `DatabaseUnusable`."""
    if _UNQUOTED.match(dsn):
        raise _no_dsn("an @ or a / before the host is written as it is")
    try:
        return conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        # What libpq quotes of it may be the password, in whole or in part; an option never is.
        fault = re.sub(r'(after|:) ".*"', r"\1 …", str(error).strip(), flags=re.DOTALL)
        raise _no_dsn(fault) from None


def _no_dsn(fault: str) -> DatabaseUnusable:
    return DatabaseUnusable(
        f"this is no DSN: {fault}",
        hint="For example postgresql://user@host:5432/name, or host=… dbname=…; in the first"
        " form a % is written %25, a / %2F, an @ %40.",
    )


def with_defaults(dsn: str, *, leads: bool = False, name: str = "pgcoord") -> str:
    """The DSN with our timeouts and the name where it does not set them itself.

    A connection that `leads` is given up by the server when nothing is heard of us for long.
    Raises `DatabaseUnusable` when it is no DSN.
    """
    given = parameters_of(dsn)
    extra: dict[str, Any] = {"application_name": name, **_KEEPALIVE}
    options = [str(given.pop("options", "")), _OURS]
    if leads:
        extra["application_name"] = "pgcoord listener"
        options.append(_LEAD)
    extra["options"] = " ".join(options).strip()
    return make_conninfo(dsn, **{key: value for key, value in extra.items() if key not in given})


async def connect(
    dsn: str, *, leads: bool = False, name: str = "pgcoord"
) -> psycopg.AsyncConnection[Any]:
    """Connect in autocommit mode.

    Raises `DatabaseUnusable` with what to check; waits 5 s at most.
    """
    conninfo = with_defaults(dsn, leads=leads, name=name)
    try:
        return await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
    except psycopg.OperationalError as error:
        raise unusable(error) from error


def same_server(dsn: str, conn: psycopg.AsyncConnection[Any]) -> str:
    """The DSN narrowed to the server that `conn` is connected to, out of those it may name."""
    place: dict[str, Any] = {"host": conn.info.host, "port": conn.info.port}
    if conn.info.hostaddr:
        place["hostaddr"] = conn.info.hostaddr
    return make_conninfo(dsn, **place)


def in_any_order(dsn: str) -> str:
    """The DSN with the servers that it names tried in another order each time."""
    if psycopg.pq.version() < 160000:
        return dsn
    return make_conninfo(dsn, load_balance_hosts="random")


def connect_blocking(dsn: str) -> psycopg.Connection[Any]:
    """Connect in autocommit mode, for the schema's functions.

    Raises `DatabaseUnusable` with what to check; waits 5 s at most.
    """
    try:
        return psycopg.connect(with_defaults(dsn), autocommit=True)
    except psycopg.OperationalError as error:
        raise unusable(error) from error


def unusable(error: psycopg.OperationalError) -> DatabaseUnusable:
    """What a failed connection means, as one line."""
    message = " ".join(str(error).split())
    return DatabaseUnusable(
        f"the database cannot be used: {message}",
        hint=_POOLED
        if "unsupported startup parameter" in message
        else "Does it run? Check --dsn, DATABASE_URL, or PGHOST, PGPORT, PGUSER and PGDATABASE.",
    )


def may_pass(error: DatabaseUnusable) -> bool:
    """Whether the server could not be reached, rather than reached and found unusable."""
    unreached = isinstance(error.__cause__, psycopg.OperationalError)
    return unreached and not refused_for_good(error)


def refused_for_good(error: CoordError) -> bool:
    """Whether the server answered and refused, so that trying again is no use."""
    text = str(error)
    return "FATAL" in text and not any(
        passing in text
        for passing in ("starting up", "shutting down", "recovery", "too many", "terminating")
    )
