"""Where a command works: which database, and which folder keeps the embedded one and the runs.

The one rule: only what is called `make_…` makes anything; every other command takes what is there.
"""

import os
import pwd
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from pgcoord.commands.options import HIGHEST_ID, Surroundings, surroundings_of
from pgcoord.commands.terminal import say, say_json
from pgcoord.errors import CannotStart, DatabaseUnusable, InvalidInput, NotFound, WrongSchema
from pgcoord.ownership import remedy, trusted_owners, why_not_ours

if TYPE_CHECKING:
    from pgcoord.configuration import Configuration
    from pgcoord.database._sql import Connection
    from pgcoord.database.embedded import EmbeddedPostgres

STATE = ".pgcoord"

Result = TypeVar("Result")

# Those of libpq's variables that say which database; the others only say how.
_NAMES_A_DATABASE = ("PGSERVICE", "PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER")


@dataclass(frozen=True)
class Place:
    """A database that work is brought into, and the state folder, which may not be there yet."""

    dsn: str
    state: Path


def make_place(surroundings: Surroundings, dsn: str | None) -> Place:
    """Find the database; where nothing names one, make, start and upgrade the embedded one.

    A database that was named is neither connected to nor changed.
    """
    state = _find_state(surroundings) or surroundings.folder / STATE
    given = named_dsn(surroundings, dsn)
    if given is not None:
        return Place(given, state)
    return Place(make_server(surroundings).dsn, state)


def make_server(surroundings: Surroundings) -> "EmbeddedPostgres":
    """Start the embedded Postgres, made in the current folder where there is none, upgraded."""
    from pgcoord.database import schema
    from pgcoord.database.embedded import EmbeddedPostgres

    state = _find_state(surroundings) or surroundings.folder / STATE
    server = EmbeddedPostgres(state)
    new = not server.server.data.exists()
    server.start()
    if new:
        say(f"pgcoord: made an embedded Postgres in {state}", err=True)
    with connected_to(server.dsn) as conn:
        ran = schema.upgrade(conn)
    if ran and not new:
        say(f"pgcoord: upgraded the embedded Postgres in {state}: ran {', '.join(ran)}", err=True)
    return server


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
    """Find the embedded Postgres. Raises `DatabaseUnusable` when it is stopped, too."""
    server = existing_server(surroundings)
    if moved := server.moved_from:
        raise DatabaseUnusable(
            f"{moved} was moved while its Postgres ran, which cannot go on so",
            hint="Nothing is lost: 'pgcoord db start' starts it anew where it is now.",
        )
    if not server.running():
        raise DatabaseUnusable(
            f"the embedded Postgres in {server.state} is stopped",
            hint="'pgcoord db start' starts it.",
        )
    return server


def existing_dsn(ctx: typer.Context, dsn: str | None) -> str:
    """The database that was named, else the embedded one, which must run."""
    surroundings = surroundings_of(ctx)
    given = named_dsn(surroundings, dsn)
    return running_server(surroundings).dsn if given is None else given


def named_dsn(surroundings: Surroundings, dsn: str | None) -> str | None:
    """The DSN that was named; an empty one leaves the choice to libpq's own variables."""
    environment = surroundings.environment
    named = dsn or environment.get("DATABASE_URL")
    if named:
        return named
    return "" if any(environment.get(name) for name in _NAMES_A_DATABASE) else None


def make_runs_folder(place: Place, configuration: "Configuration") -> Path:
    """The folder of the runs, which can be written to; raises `CannotStart` when it cannot."""
    folder = _runs_folder(place.state, configuration)
    try:
        if place.state in folder.parents and not place.state.is_dir():
            place.state.mkdir(mode=0o700)
            (place.state / ".gitignore").write_text("*\n", encoding="utf-8")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise CannotStart(
            f"the runs cannot be kept in {folder}: {(error.strerror or str(error)).lower()}",
            hint="Make it writable, or name another: 'folder' of [log] in pgcoord.toml.",
        ) from error


def would_be_runs_folder(surroundings: Surroundings, configuration: "Configuration | None") -> Path:
    """The folder of the runs of a coordinator that would be started here."""
    state = _find_state(surroundings) or surroundings.folder / STATE
    return _runs_folder(state, configuration)


def check_schema(dsn: str) -> None:
    """Raise `WrongSchema`, with what to run, unless the database is of this release.

    Raises `DatabaseUnusable` where the server cannot be reached, or is lost meanwhile.
    """
    import psycopg

    from pgcoord.database import schema
    from pgcoord.database.connect import unusable

    try:
        with connected_to(dsn) as conn:
            schema.check_schema(conn)
    except psycopg.OperationalError as error:  # cut off in the middle of it
        raise unusable(error) from error


def connected_to(dsn: str) -> "closing[Any]":
    """A connection for the functions of `schema`."""
    from pgcoord.database.connect import connect_blocking

    return closing(connect_blocking(dsn))


@asynccontextmanager
async def session(dsn: str) -> AsyncIterator["Connection"]:
    """A connection to read by."""
    from pgcoord.database.connect import connect

    async with await connect(dsn) as conn:
        yield conn


@asynccontextmanager
async def changing(surroundings: Surroundings, dsn: str) -> AsyncIterator["Connection"]:
    """A transaction whose changes are logged as done by who called the program.

    It says itself how it is isolated and for whom it acts: what a session keeps may be another
    client's, through a pool that changes the session with each transaction.
    """
    from pgcoord.database import session as statements

    async with session(dsn) as conn, conn.transaction():
        await statements.act_as(conn, f"{surroundings.user} (command line)", for_transaction=True)
        yield conn


def complete(dsn: str, work: Coroutine[Any, Any, Result]) -> Result:
    """Run *work* to its end; what goes wrong with the database comes out as a `CoordError`."""
    import asyncio

    import psycopg

    from pgcoord.database.connect import unusable

    try:
        return asyncio.run(work)
    except WrongSchema:
        check_schema(dsn)  # says what is wrong with it, and what to run
        raise
    except psycopg.OperationalError as error:
        raise unusable(error) from error
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{error.object!r:.60} is not text in UTF-8") from error


@dataclass(frozen=True)
class Answer:
    """What a command has done: a line for people, and an object for machines."""

    words: str
    value: object


def act(
    ctx: typer.Context,
    dsn: str | None,
    change: Callable[["Connection"], Awaitable[Answer]],
    *,
    as_json: bool = False,
) -> None:
    """Do *change* in the database, as who called the program, and print what it returns."""
    surroundings, found = surroundings_of(ctx), existing_dsn(ctx, dsn)

    async def work() -> Answer:
        async with changing(surroundings, found) as conn:
            return await change(conn)

    tell(complete(found, work()), as_json=as_json)


def tell(answer: Answer, *, as_json: bool) -> None:
    """Print an answer for people, or as JSON."""
    if as_json:
        say_json(answer.value)
    else:
        say(answer.words)


async def find_phase(conn: "Connection", name: str) -> str:
    """The queue_id that a person means: itself, or 104.2 or 104/2. Raises `NotFound`."""
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
    """Which phases there are of the feature that a name which is none of a phase begins with."""
    from pgcoord.database import reads

    numbers = re.match(r"(?:queue-)?([0-9]{1,10})(?![0-9])", name)
    if not numbers or int(numbers[1]) > HIGHEST_ID:
        return None
    feature_id = int(numbers[1])
    try:
        title = (await reads.feature(conn, feature_id)).title
    except NotFound:
        features = await reads.features(conn, unfinished=False)
        known = ", ".join(str(each.id) for each in features[-5:])
        return f"There is no feature {feature_id} either; there is {known}." if known else None
    phases = [f"{feature_id}.{each.phase_number}" for each in await reads.board(conn, feature_id)]
    if not phases:
        return f"Feature {feature_id} ({title}) has no phases yet: 'pgcoord execute {feature_id}'."
    named = ", ".join(phases) if len(phases) <= 9 else f"{phases[0]} to {phases[-1]}"
    return f"Feature {feature_id} ({title}) has {named}."


def _runs_folder(state: Path, configuration: "Configuration | None") -> Path:
    return (configuration and configuration.log_folder) or state / "runs"


def _find_state(surroundings: Surroundings) -> Path | None:
    """The state folder, here or above. Raises `DatabaseUnusable` when it is of somebody else."""
    start = surroundings.folder
    folders = (folder / STATE for folder in (start, *start.parents))
    found = next((folder for folder in folders if folder.is_dir()), None)
    if found and (reason := why_not_ours(found, _owners_of_state(surroundings))):
        raise DatabaseUnusable(
            f"{reason}, so it is not used",
            hint=f"Give --dsn or DATABASE_URL, or work in another folder. To make it yours:"
            f" {remedy(found)}",
        )
    return found


def _owners_of_state(surroundings: Surroundings) -> set[int]:
    """Those of files of ours, and whom root runs Postgres as."""
    owners = set(trusted_owners(surroundings.environment))
    if os.geteuid() == 0:
        with suppress(KeyError):
            owners.add(pwd.getpwnam("postgres").pw_uid)
    return owners
