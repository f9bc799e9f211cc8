"""Migrate a database of version 1, and undo the migration.

The one rule: it is one transaction, and SQL (sql/v1) converts the rows. The old tables are moved to
the schema pgcoord_v1 and not changed; upgrade() creates the new tables, and SQL copies the rows.
Undoing drops the new tables and moves the old ones back.
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from pgcoord import assets
from pgcoord.database import schema
from pgcoord.errors import DatabaseUnusable, InvalidInput, NotFound, Refused, message_of

Connection = psycopg.Connection[Any]

SCRIPTS = assets.SQL / "v1"

# Without both of the first two there is nothing to migrate.
TABLES = ("phase_queue", "planned_features", "queue_config", "webhook_events", "adw_locks")

# Most seconds that a server process needs to end after its client has disconnected.
DISCONNECT_TIMEOUT = 2.0

# For a lock: other connections, which could hold one for longer, are refused before.
LOCK_TIMEOUT = "10s"


@dataclass(frozen=True)
class Decision:
    """A value that was not copied unchanged; `name` is its row."""

    kind: str
    name: str | None
    words: str


@dataclass(frozen=True)
class Report:
    """The result: lines for people, and the decisions."""

    lines: list[str]
    decisions: list[Decision]


@contextmanager
def _transaction(conn: Connection, *, dry_run: bool) -> Iterator[None]:
    """Run the block in one transaction, without a concurrent upgrade."""
    with conn.transaction(force_rollback=dry_run):
        conn.execute("set transaction isolation level read committed")
        conn.execute("select set_config('lock_timeout', %s, true)", [LOCK_TIMEOUT])
        conn.execute("select pg_advisory_xact_lock(hashtext('pgcoord.upgrade'))")
        yield


@contextmanager
def _in_plain_words() -> Iterator[None]:
    """Convert refusals of the database, which change nothing, to one line each."""
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise DatabaseUnusable(
            f"nothing was changed: {error.diag.message_primary}",
            hint="Run it as the owner of the old tables, who may create schemas in the database"
            " (grant create on database … to …).",
        ) from error
    except psycopg.errors.LockNotAvailable as error:
        raise Refused(
            f"nothing was changed: another session holds a lock for more than {LOCK_TIMEOUT}",
            hint="select * from pg_locks where granted shows the session.",
        ) from error
    except psycopg.OperationalError as error:
        raise DatabaseUnusable(
            f"nothing was changed: {message_of(error)}",
            hint="Run it again when the database is available.",
        ) from error
    except psycopg.Error as error:
        raise Refused(
            f"nothing was changed: {error.diag.message_primary or error}"
            + "".join(f" ({note})" for note in getattr(error, "__notes__", ())),
            hint=error.diag.message_hint or error.diag.message_detail,
        ) from error


@_in_plain_words()
def migrate(
    conn: Connection,
    *,
    actor: str,
    source: Path | None = None,
    time_zone: str | None = None,
    adopt: bool = False,
    dry_run: bool = False,
) -> Report | None:
    """Take over version 1, from this database or the SQLite file *source*, in one transaction.

    With *dry_run* it is rolled back. Returns None when it was done before. Times without a zone are
    read in *time_zone*; without one in the server's, those of SQLite in UTC. With *adopt*, running
    phases keep a slot and wait for a report, else they are failed. Raises `Refused` while another
    session is connected or other objects are in the way, `NotFound` without tables of version 1,
    `InvalidInput` for a file that is not SQLite or an unknown zone, and `DatabaseUnusable` without
    the rights.
    """
    schema.check_server(conn)
    if schema.exists(conn, "pgcoord_v1.migration"):
        return None
    _refuse_others(conn)
    with _transaction(conn, dry_run=dry_run):
        was_ours = schema.exists(conn, "pgcoord.migration")
        _refuse_leftovers(conn, was_ours=was_ours)
        schemas = _find(conn) if source is None else _refuse_tables(conn, source)
        zone = _time_zone(conn, time_zone or ("UTC" if source else None))
        _run(conn, "begin")
        conn.execute(
            "insert into pgcoord_v1.migration (source, time_zone, adopts, was_ours)"
            " values (%s, %s, %s, %s)",
            [source and str(source), zone, adopt, was_ours],
        )
        if source is not None:
            schemas = _copy(conn, source)
        with conn.cursor() as cursor:
            cursor.executemany(
                "insert into pgcoord_v1.old_relation (name, kind, came_from)"
                " values (%s, 'table', %s)",
                list(schemas.items()),
            )
        _run(conn, "move")
        schema.upgrade(conn)
        conn.execute("select set_config('pgcoord.actor', %s, true)", [actor])
        conn.execute("select set_config('TimeZone', %s, true)", [zone])
        conn.execute("set local datestyle = 'ISO'")
        conn.execute("set local work_mem = '64MB'")  # for sorting a million rows
        for name in ("values", "read", "features", "write", "decide"):
            _run(conn, name)
        report = _report(conn)
        _run(conn, "end")
        return report


@_in_plain_words()
def undo(conn: Connection, *, dry_run: bool = False) -> list[str] | None:
    """Restore version 1 as it was, in one transaction; return lines on the data lost with it.

    Returns None when there is nothing to undo. *dry_run*: roll back. Raises `Refused` when phases
    have run since, and names them; also while another session is connected, or objects of others
    depend on ours.
    """
    schema.check_server(conn)
    if not schema.exists(conn, "pgcoord_v1.migration"):
        _refuse_undo(conn)
        return None
    _refuse_others(conn)
    with _transaction(conn, dry_run=dry_run):
        _refuse_ran(conn)
        holders = _words(conn, "hold")
        if holders:
            raise Refused(
                "objects of others depend on the new tables:\n" + _some(holders),
                hint="Move it elsewhere or drop it, then undo.",
            )
        changed_since = _words(conn, "since")
        was_ours, roles = conn.execute(
            "select was_ours, exists (select from pgcoord.migration where name = 'roles')"
            " from pgcoord_v1.migration"
        ).fetchone() or (False, False)
        _run(conn, "undo")
        if was_ours:
            schema.upgrade(conn, roles=roles)
        return changed_since


def _refuse_others(conn: Connection) -> None:
    """Refuse while another session is connected; one that has just ended is listed for a moment."""
    deadline = time.monotonic() + DISCONNECT_TIMEOUT
    while (others := _words(conn, "connections")) and time.monotonic() < deadline:
        time.sleep(0.05)
    if others:
        raise Refused(
            f"database {conn.info.dbname!r} is in use:\n" + "\n".join(others),
            hint="Stop the server of version 1 and any coordinator, and close what else is"
            " connected; 'select pg_terminate_backend(process)' ends one.",
        )


def _refuse_leftovers(conn: Connection, *, was_ours: bool) -> None:
    if was_ours:
        schema.check_schema(conn)
        row = conn.execute("select count(*) from public.planned_features").fetchone()
        if row and row[0]:
            raise Refused(
                f"database {conn.info.dbname!r} is pgcoord's already, with {row[0]} features in it",
                hint="Numbers of features would clash: migrate into a database of its own.",
            )
    ours = () if was_ours else ("pgcoord", "pgcoord_private")
    for name in ("pgcoord_v1", *ours):
        row = conn.execute("select to_regnamespace(%s) is not null", [name]).fetchone()
        if row and row[0]:
            raise Refused(
                f"there is a schema {name} that is not from a migration",
                hint=f"Rename it: alter schema {name} rename to …",
            )


def _find(conn: Connection) -> dict[str, str | None]:
    """The old tables, each with its schema. Those of one installation lie in one schema."""
    rows = conn.execute((SCRIPTS / "find.sql").read_bytes()).fetchall()
    homes = {its_schema for name, its_schema, _, known in rows if name in TABLES[:1] and known}
    homes = homes or {
        its_schema for name, its_schema, _, known in rows if name in TABLES[:2] and known
    }
    odd = [
        f"{its_schema}.{name}"
        for name, its_schema, _, known in rows
        if name in TABLES[:2] and its_schema == "public" and not known
    ]
    if odd:
        raise Refused(
            f"{' and '.join(odd)}: this is neither pgcoord's nor of version 1",
            hint="Rename it, or use another database: pgcoord's own table takes that name.",
        )
    if not homes:
        raise NotFound(
            f"there is nothing of version 1 in database {conn.info.dbname!r}",
            hint="It would have a table phase_queue with queue_id, phase_number and parent_issue."
            " '--from FILE' reads it from SQLite; 'pgcoord upgrade' makes pgcoord's own.",
        )
    if len(homes) > 1:
        raise Refused(
            f"version 1 is in several schemas: {', '.join(sorted(homes))}",
            hint="Rename phase_queue in all but the one that is to be migrated.",
        )
    [home] = homes
    schemas: dict[str, str | None] = {
        name: its_schema for name, its_schema, _, known in rows if known and its_schema == home
    }
    for name, its_schema, _, known in rows:
        takes_our_name = known and its_schema == "public" and name in TABLES[:2]
        if takes_our_name and schemas.setdefault(name, its_schema) != its_schema:
            raise Refused(
                f"there is a table {name} in {home} and one in public",
                hint="Rename that in public: pgcoord's own takes that name.",
            )
    _refuse_owned(conn, rows, schemas)
    return schemas


def _refuse_owned(
    conn: Connection, rows: list[tuple[Any, ...]], schemas: dict[str, str | None]
) -> None:
    for name, its_schema, owner, _ in rows:
        row = conn.execute("select pg_has_role(%s::name, 'usage')", [owner]).fetchone()
        if schemas.get(name) == its_schema and not (row and row[0]):
            raise DatabaseUnusable(
                f"{its_schema}.{name} belongs to {owner}, and you are {conn.info.user}",
                hint=f"Run it as {owner}, or as a superuser.",
            )


def _refuse_tables(conn: Connection, source: Path) -> dict[str, str | None]:
    rows = conn.execute((SCRIPTS / "find.sql").read_bytes()).fetchall()
    for name, its_schema, _, _ in rows:
        if name in TABLES[:2]:
            raise Refused(
                f"database {conn.info.dbname!r} has a table {its_schema}.{name} of its own,"
                f" beside that of {source}",
                hint="Migrate that one without --from, or use an empty database.",
            )
    return {}


def _refuse_undo(conn: Connection) -> None:
    if schema.exists(conn, "pgcoord.migration"):
        raise Refused(
            f"database {conn.info.dbname!r} was not migrated from version 1,"
            " or its schema pgcoord_v1 was dropped",
            hint="There is nothing left to go back to.",
        )
    _find(conn)  # says what else it is, where it is not of version 1


def _refuse_ran(conn: Connection) -> None:
    ran = [queue_id for (queue_id,) in conn.execute((SCRIPTS / "ran.sql").read_bytes())]
    if ran:
        raise Refused(
            f"phases have run since: {_some(ran, ', ')}",
            hint="Their effects cannot be undone. The old rows are still in pgcoord_v1.",
        )


def _some(names: list[str], between: str = "\n") -> str:
    rest = [f"and {len(names) - 20} more"] if len(names) > 20 else []
    return between.join(names[:20] + rest)


def _time_zone(conn: Connection, name: str | None) -> str:
    if name is None:
        row = conn.execute("select current_setting('TimeZone')").fetchone()
        return str(row[0]) if row else "UTC"
    row = conn.execute(
        "select name from pg_timezone_names where lower(name) = lower(%s)", [name]
    ).fetchone()
    if row is None:
        raise InvalidInput(
            f"there is no time zone {name!r}",
            hint="Such as Europe/Berlin or UTC: select name from pg_timezone_names",
        )
    return str(row[0])


# --- SQLite


def _copy(conn: Connection, source: Path) -> dict[str, str | None]:
    """Copy the tables of an SQLite file into pgcoord_v1, every value as text."""
    _refuse_open(source)
    try:
        with closing(sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True)) as file:
            file.text_factory = _text
            names = [name for name in TABLES if _columns(file, name)]
            if not set(names) & set(TABLES[:2]):
                raise NotFound(f"there is nothing of version 1 in {source}")
            for name in names:
                _copy_table(conn, file, name)
    except sqlite3.Error as error:
        raise InvalidInput(
            f"{source} cannot be read: {error}",
            hint="It has to be version 1's SQLite database, to which no process writes now.",
        ) from error
    return dict.fromkeys(names)


def _copy_table(conn: Connection, file: sqlite3.Connection, name: str) -> None:
    columns = _columns(file, name)
    needed = {"phase_queue": {"queue_id", "phase_number"}, "planned_features": {"id", "title"}}
    if not needed.get(name, set()) <= set(columns):
        raise InvalidInput(f"table {name} of the file is not of version 1")
    table = sql.Identifier("pgcoord_v1", name)
    conn.execute(
        sql.SQL("create table {} ({})").format(
            table, sql.SQL(", ").join(sql.SQL("{} text").format(sql.Identifier(c)) for c in columns)
        )
    )
    with (
        conn.cursor() as cursor,
        cursor.copy(sql.SQL("copy {} from stdin").format(table)) as copy,
    ):
        for row in file.execute(f'select * from "{name}"'):
            copy.write_row([_value(value) for value in row])


def _columns(file: sqlite3.Connection, table: str) -> list[str]:
    return [name for _, name, *_ in file.execute(f'pragma table_info("{table}")')]


def _text(value: bytes) -> str:
    return value.decode(errors="replace").replace("\0", "\ufffd")  # Postgres stores no NUL


def _value(value: Any) -> str | None:
    if isinstance(value, bytes):
        return _text(value)
    return None if value is None else str(value)


def _refuse_open(source: Path) -> None:
    """Refuse a file that another process has open (checked on Linux only)."""
    try:
        status = source.stat()
    except OSError as error:
        raise InvalidInput(f"{source} cannot be read: {error.strerror}") from error
    users = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            opened = [os.stat(each) for each in (process / "fd").iterdir()]
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # of another user, or gone
            continue
        if int(process.name) != os.getpid() and any(os.path.samestat(status, o) for o in opened):
            users.append(f"process {process.name}: {words.strip()[:60]}")
    if users:
        raise Refused(
            f"{source} is in use:\n" + "\n".join(users),
            hint="Stop the server of version 1, and whatever else has the file open.",
        )


# --- The scripts


def _report(conn: Connection) -> Report:
    decisions = conn.execute("select kind, name, words from pgcoord_v1.decision order by id")
    return Report(_words(conn, "report"), [Decision(*row) for row in decisions])


def _words(conn: Connection, name: str) -> list[str]:
    return [words for (words,) in conn.execute((SCRIPTS / f"{name}.sql").read_bytes())]


def _run(conn: Connection, name: str) -> None:
    schema.run_file(conn, SCRIPTS / f"{name}.sql")
