"""Find where a command works: its database, and the folder of the embedded one and of the runs.

The one rule: only functions named `make_…` create anything; all others use what exists.
"""

import os
import pwd
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from pgcoord.commands.options import HIGHEST_ID, Surroundings, surroundings_of
from pgcoord.commands.terminal import say, say_json
from pgcoord.configuration.ownership import remedy, trusted_owners, why_not_ours
from pgcoord.errors import (
    CannotStart,
    CoordError,
    DatabaseUnusable,
    InvalidInput,
    Locked,
    NotFound,
    WrongSchema,
)

if TYPE_CHECKING:
    import threading

    import psycopg

    from pgcoord.configuration.model import Configuration
    from pgcoord.database._sql import Connection
    from pgcoord.database.embedded import EmbeddedPostgres

STATE = ".pgcoord"

Result = TypeVar("Result")

# Seconds that a statement may wait for a lock without a word.
_LOCK_SECONDS = 2.0

# libpq's variables that choose a database; the others only say how to connect to it.
_NAMES_A_DATABASE = ("PGSERVICE", "PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER")


@dataclass(frozen=True)
class Context:
    """The database that a command works in, and the state folder, which may not exist yet."""

    dsn: str
    state: Path
    embedded: "EmbeddedPostgres | None" = None  # the server at dsn


def make_context(surroundings: Surroundings, dsn: str | None) -> Context:
    """Return the database that *dsn* or the environment names, without connecting to it.

    If neither names one, create, start and upgrade the embedded Postgres, as `make_server`.
    """
    state = _find_state(surroundings) or surroundings.folder / STATE
    named = named_dsn(surroundings, dsn)
    if named is not None:
        return Context(named, state)
    server = make_server(surroundings)
    return Context(server.dsn, state, server)


def make_server(surroundings: Surroundings) -> "EmbeddedPostgres":
    """Start and upgrade the embedded Postgres found here or above; return it.

    If there is none, create it in the current folder. Blocks until it accepts connections.
    """
    from pgcoord.database.embedded import EmbeddedPostgres

    state = _find_state(surroundings) or surroundings.folder / STATE
    server = EmbeddedPostgres(state)
    new = not server.server.data.exists()
    server.start()
    if new:
        say(f"pgcoord: made an embedded Postgres in {state}", err=True)
    ran = _upgrade(server)
    if ran and not new:
        say(f"pgcoord: upgraded the embedded Postgres in {state}: ran {', '.join(ran)}", err=True)
    return server


def _upgrade(server: "EmbeddedPostgres") -> list[str]:
    """Upgrade the database of *server*; ten times at most, if it is cut off each time."""
    from pgcoord.database import schema
    from pgcoord.database.connect import may_pass

    tries = 10
    while True:
        tries -= 1
        try:
            with connected_to(server.dsn) as conn:
                return list(schema.upgrade(conn))
        except DatabaseUnusable as error:
            if not (may_pass(error) and tries):
                raise
        server.start_again()


def existing_server(surroundings: Surroundings) -> "EmbeddedPostgres":
    """Find the embedded Postgres, running or not. Raises `DatabaseUnusable` when there is none."""
    from pgcoord.database.embedded import EmbeddedPostgres

    state = _find_state(surroundings)
    if state is None or not EmbeddedPostgres(state).server.data.exists():
        raise DatabaseUnusable(
            f"no database: no {STATE}/ with an embedded Postgres in {surroundings.folder} or above",
            hint="Give --dsn or DATABASE_URL; or 'pgcoord run PLAN' makes one here.",
        )
    return EmbeddedPostgres(state)


def running_server(surroundings: Surroundings) -> "EmbeddedPostgres":
    """Find the embedded Postgres.

    Raises `DatabaseUnusable` when there is none, it is stopped, or its folder was moved.
    """
    server = existing_server(surroundings)
    if moved := server.moved_from:
        raise DatabaseUnusable(
            f"{moved} was moved while its Postgres ran, and so cannot continue",
            hint="Nothing is lost: 'pgcoord db start' restarts it in its present folder.",
        )
    if not server.running():
        raise DatabaseUnusable(
            f"the embedded Postgres in {server.state} is stopped",
            hint="'pgcoord db start' starts it.",
        )
    return server


def existing_dsn(ctx: typer.Context, dsn: str | None) -> str:
    """Return the DSN that was named, else that of the embedded Postgres.

    Raises `DatabaseUnusable` when nothing was named and the embedded one does not run.
    """
    surroundings = surroundings_of(ctx)
    named = named_dsn(surroundings, dsn)
    return running_server(surroundings).dsn if named is None else named


def named_dsn(surroundings: Surroundings, dsn: str | None) -> str | None:
    """Return the DSN from *dsn* or DATABASE_URL; None if nothing names a database.

    It is "" where only libpq's own variables (PGHOST, …) name one.
    """
    environment = surroundings.environment
    named = dsn or environment.get("DATABASE_URL")
    if named:
        return named
    return "" if any(environment.get(name) for name in _NAMES_A_DATABASE) else None


def make_runs_folder(context: Context, configuration: "Configuration") -> Path:
    """Create the folder of the runs if necessary, and return it.

    Raises `CannotStart` when it cannot be created or written to.
    """
    folder = _runs_folder(context.state, configuration)
    try:
        if context.state in folder.parents and not context.state.is_dir():
            context.state.mkdir(mode=0o700)
            (context.state / ".gitignore").write_text("*\n", encoding="utf-8")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise CannotStart(
            f"the runs cannot be kept in {folder}: {(error.strerror or str(error)).lower()}",
            hint="Make it writable, or name another: 'folder' of [log] in pgcoord.toml.",
        ) from error


def would_be_runs_folder(surroundings: Surroundings, configuration: "Configuration | None") -> Path:
    """Return the runs folder that a coordinator started here would use; create nothing."""
    state = _find_state(surroundings) or surroundings.folder / STATE
    return _runs_folder(state, configuration)


def runs_folder_here(surroundings: Surroundings) -> Path:
    """Return the runs folder of this project; a pgcoord.toml with faults does not count."""
    from pgcoord.configuration.reading import find_configuration, read_configuration

    configuration = None
    with suppress(CoordError):
        path = find_configuration(surroundings.folder, surroundings.environment)
        configuration = read_configuration(path) if path else None
    return would_be_runs_folder(surroundings, configuration)


def check_schema(dsn: str, *, lock_seconds: float = 0) -> None:
    """Raise `WrongSchema`, whose hint names the remedy, unless the schema is this release's.

    Blocks for the connection, and for a lock; with *lock_seconds*, `Locked` is raised after that
    time. Raises `DatabaseUnusable` as `connected_to`.
    """
    import psycopg

    from pgcoord.database import schema

    try:
        with connected_to(dsn) as conn:
            conn.execute(f"set lock_timeout = {1000 * lock_seconds:.0f}".encode())
            schema.check_schema(conn)
    except psycopg.errors.LockNotAvailable as error:
        raise Locked("the schema cannot be read: a table is locked") from error


@contextmanager
def connected_to(dsn: str) -> Iterator["psycopg.Connection[Any]"]:
    """Open a blocking connection, as the functions of `schema` take it, closed with the block.

    While a statement waits for a lock, stderr names the session that holds it. Raises
    `DatabaseUnusable` when the server cannot be reached, the connection is lost, or a statement is
    cancelled or finds no memory.
    """
    import threading

    import psycopg

    from pgcoord.database.connect import connect_blocking, unusable

    done = threading.Event()
    with closing(connect_blocking(dsn)) as conn:
        threading.Thread(target=_show_holder_until, args=(done, dsn, conn), daemon=True).start()
        try:
            yield conn
        except psycopg.errors.LockNotAvailable:  # within the caller's own limit
            raise
        except psycopg.OperationalError as error:
            raise unusable(error) from error
        finally:
            done.set()


def _show_holder_until(done: "threading.Event", dsn: str, conn: "psycopg.Connection[Any]") -> None:
    """Print on stderr, until *done*, the session for which *conn* waits, whenever that changes."""
    import psycopg

    from pgcoord.database.connect import connect_blocking

    while not done.wait(_LOCK_SECONDS):
        if conn.pgconn.transaction_status != psycopg.pq.TransactionStatus.ACTIVE:
            continue
        # Without our schema, or with an older one, there is no such function.
        with suppress(psycopg.Error, CoordError), closing(connect_blocking(dsn)) as other:
            pid = conn.info.backend_pid
            row = other.execute("select pgcoord_private.blocked_by(%s)", [pid]).fetchone()
            if row and row[0]:
                _say_holder(row[0])


@cache
def _say_holder(holder: str) -> None:
    """Print the holder of a lock, once: a locked schema is checked again and again."""
    say(f"pgcoord: waits for a lock of {holder}", err=True)
    say("  It continues when that transaction ends; Ctrl-C cancels.", err=True)


@asynccontextmanager
async def session(dsn: str) -> AsyncIterator["Connection"]:
    """Open an autocommit connection, closed with the block. Raises `DatabaseUnusable`.

    While a statement waits for a lock, stderr names the session that holds it.
    """
    import asyncio

    from pgcoord.database.connect import connect

    async with await connect(dsn) as conn:
        looking = asyncio.create_task(_show_lock_holder(dsn, conn))
        try:
            yield conn
        finally:
            looking.cancel()


async def _show_lock_holder(dsn: str, conn: "Connection") -> None:
    """Print on stderr the session for which *conn* waits, whenever that changes."""
    import asyncio

    import psycopg

    while True:
        await asyncio.sleep(_LOCK_SECONDS)
        if conn.pgconn.transaction_status != psycopg.pq.TransactionStatus.ACTIVE:
            continue
        from pgcoord.database import reads
        from pgcoord.database.connect import connect

        with suppress(psycopg.Error, CoordError):
            async with await connect(dsn) as other:
                holder = await reads.blocked_by(other, conn.info.backend_pid)
            if holder:
                _say_holder(holder)


@asynccontextmanager
async def changing(surroundings: Surroundings, dsn: str) -> AsyncIterator["Connection"]:
    """Open a connection with a transaction whose changes are logged under the caller's name.

    Actor and isolation are set for the transaction, not for the session: behind a pooler in
    transaction mode the next transaction on that session may be another client's.
    """
    from pgcoord.database import session as statements

    async with session(dsn) as conn, conn.transaction():
        await statements.act_as(conn, f"{surroundings.user} (command line)", for_transaction=True)
        yield conn


def complete(dsn: str, work: Coroutine[Any, Any, Result]) -> Result:
    """Run *work* in a new event loop, block until its end, and return its result.

    A lost connection becomes `DatabaseUnusable`, an outdated schema `WrongSchema` with its remedy,
    and text that UTF-8 cannot encode `InvalidInput`.
    """
    import asyncio

    import psycopg

    from pgcoord.database.connect import unusable

    try:
        return asyncio.run(work)
    except WrongSchema:
        check_schema(dsn)  # raises with the difference, and the command to run
        raise
    except psycopg.OperationalError as error:
        raise unusable(error) from error
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{error.object!r:.60} is not text in UTF-8") from error


@dataclass(frozen=True)
class Answer:
    """The output of a command: *words* for people, *value* (anything for JSON) for `--json`."""

    words: str
    value: object


def act(
    ctx: typer.Context,
    dsn: str | None,
    change: Callable[["Connection"], Awaitable[Answer]],
    *,
    as_json: bool = False,
) -> None:
    """Run *change* in one transaction of `changing`, commit, and print the answer it returns."""
    surroundings, existing = surroundings_of(ctx), existing_dsn(ctx, dsn)

    async def work() -> Answer:
        async with changing(surroundings, existing) as conn:
            return await change(conn)

    print_answer(complete(existing, work()), as_json=as_json)


def print_answer(answer: Answer, *, as_json: bool) -> None:
    """Print the words of *answer*, or its value as JSON."""
    if as_json:
        say_json(answer.value)
    else:
        say(answer.words)


async def unless_led(conn: "Connection", words: str) -> str:
    """Return *words*, to be printed behind an answer, while no coordinator leads; else ""."""
    from pgcoord.database import reads

    return "" if await reads.leader(conn) else words


async def find_phase(conn: "Connection", name: str) -> str:
    """Return the queue_id for *name*, which is a queue_id, or 104.2 or 104/2 for short.

    Raises `NotFound`, with the existing phases of that feature as its hint.
    """
    from pgcoord.database import reads

    short = re.fullmatch(r"([0-9]{1,10})[./]([0-9]{1,10})", name)
    if short and max(numbers := [int(part) for part in short.groups()]) <= HIGHEST_ID:
        queue_id = await reads.queue_id_of(conn, *numbers)
        if queue_id:
            return queue_id
    try:
        await reads.status_of(conn, name)
    except NotFound as error:
        raise NotFound(str(error), hint=await _nearest(conn, name) or error.hint) from None
    return name


async def _nearest(conn: "Connection", name: str) -> str | None:
    """Return a hint on the feature whose number *name* begins with: the phases that it has."""
    from pgcoord.database import reads

    numbers = re.match(r"(?:queue-)?([0-9]{1,10})(?![0-9])", name)
    if not numbers or int(numbers[1]) > HIGHEST_ID:
        return None
    feature_id = int(numbers[1])
    try:
        title = (await reads.feature(conn, feature_id)).title
    except NotFound:
        features = await reads.features(conn, unfinished=False)
        latest_ids = ", ".join(str(each.id) for each in features[-5:])
        return (
            f"There is no feature {feature_id} either; there is {latest_ids}."
            if latest_ids
            else None
        )
    phases = [f"{feature_id}.{each.phase_number}" for each in await reads.board(conn, feature_id)]
    if not phases:
        return f"Feature {feature_id} ({title}) has no phases yet: 'pgcoord execute {feature_id}'."
    named = ", ".join(phases) if len(phases) <= 9 else f"{phases[0]} to {phases[-1]}"
    return f"Feature {feature_id} ({title}) has {named}."


def _runs_folder(state: Path, configuration: "Configuration | None") -> Path:
    return (configuration and configuration.log_folder) or state / "runs"


def _find_state(surroundings: Surroundings) -> Path | None:
    """Return the state folder, here or above; None if there is none.

    Raises `DatabaseUnusable` when another user owns it.
    """
    start = surroundings.folder
    folders = (folder / STATE for folder in (start, *start.parents))
    state_folder = next((folder for folder in folders if folder.is_dir()), None)
    if state_folder and (reason := why_not_ours(state_folder, _owners_of_state(surroundings))):
        raise DatabaseUnusable(
            f"{reason}, so it is not used",
            hint=f"Give --dsn or DATABASE_URL, or work in another folder. To make it yours:"
            f" {remedy(state_folder)}",
        )
    return state_folder


def _owners_of_state(surroundings: Surroundings) -> set[int]:
    """Return the user ids that may own it: the trusted ones, and for root the user postgres."""
    owners = set(trusted_owners(surroundings.environment))
    if os.geteuid() == 0:
        with suppress(KeyError):
            owners.add(pwd.getpwnam("postgres").pw_uid)
    return owners
