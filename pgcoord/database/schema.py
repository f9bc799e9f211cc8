"""Upgrades a database to this release's schema, and checks the schema of a database.

The one rule: sql/migrations run once, in order; sql/functions whenever one of them has changed, in
the files or in the database; and sql/roles.sql after them, in a database that was once given roles.
"""

import hashlib
from contextlib import suppress
from pathlib import Path

import psycopg

from pgcoord import __version__, assets
from pgcoord.errors import DatabaseUnusable, WrongSchema

# The rows of pgcoord.migration that are not migrations.
_SCHEMA = "schema"
_NO_MIGRATIONS = {_SCHEMA, "functions", "roles"}

OLDEST_POSTGRES = 14

ROLES = assets.SQL / "roles.sql"

# The number of this schema, which grows with each change of what an upgrade runs, and the digest
# of that, by which a test notices a change without a new number.
VERSION = assets.SQL / "version"
# Deadlocks with readers, after each of which an upgrade is tried again.
_MOST_DEADLOCKS = 9
GROUPS = ("pgcoord_reader", "pgcoord_client", "pgcoord_coordinator")


def upgrade(conn: psycopg.Connection, *, roles: bool = False) -> list[str]:
    """Upgrade the database to this release's schema, in one transaction; return the files run.

    Run nothing if the schema is this release's, unchanged. *roles*: create the missing roles, and
    set the rights of all; later upgrades maintain them. Waits for a concurrent upgrade. Raises
    `WrongSchema` when a newer release wrote the database, or it has a foreign phase_queue;
    `DatabaseUnusable` when the server is too old or read-only, or the user may not create.
    """
    check_server(conn)
    try:
        for _ in range(_MOST_DEADLOCKS):
            with suppress(psycopg.errors.DeadlockDetected):
                return _upgrade_in_turn(conn, roles=roles)
        return _upgrade_in_turn(conn, roles=roles)
    except psycopg.errors.DependentObjectsStillExist as error:
        raise WrongSchema(
            f"the schema cannot be upgraded: {error.diag.message_primary}",
            hint=error.diag.message_hint or "",
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise DatabaseUnusable(
            f"the schema cannot be created: {error.diag.message_primary}",
            hint="Run 'pgcoord upgrade' once as the owner of the database.",
        ) from error


def _upgrade_in_turn(conn: psycopg.Connection, *, roles: bool) -> list[str]:
    with conn.transaction():
        # Upgrades take turns: the second one sees the changes of the first.
        conn.execute("select pg_advisory_xact_lock(hashtext('pgcoord.upgrade'))")
        # A fixed search_path, so that the names in the files mean the same in each session.
        [path] = conn.execute("select current_setting('search_path')").fetchone() or [""]
        conn.execute("set local search_path = pg_catalog, pg_temp")
        ran = _upgrade(conn, roles=roles)
        conn.execute("select set_config('search_path', %s, true)", [path])
        return ran


def _upgrade(conn: psycopg.Connection, *, roles: bool) -> list[str]:
    if not exists(conn, "pgcoord.migration"):
        _refuse_foreign_tables(conn)
        run_file(conn, assets.SQL / "bookkeeping.sql")
    _refuse_newer(conn)
    applied = _applied(conn)
    ran = []
    for path in _files("migrations"):
        if path.stem not in applied:
            run_file(conn, path)
            _record(conn, path.stem, _digest([path]))
            ran.append(path.stem)
    _refuse_gutted(conn)
    functions = _files("functions")
    if applied.get("functions") != _digest(functions) or _was_changed(conn):
        _apply_functions(conn, functions)
        ran.append("functions")
    if applied.get(_SCHEMA) != str(number()):
        _record(conn, _SCHEMA, str(number()))
    if "roles" in applied and not roles:
        roles = bool(ran) or applied["roles"] != _digest([ROLES])
        if roles and not _have_roles(conn):
            # A dump restored on a server without the roles: create them only on request.
            conn.execute("delete from pgcoord.migration where name = 'roles'")
            roles = False
    if roles:
        _grant(conn)
        ran.append("roles")
    return ran


def _apply_functions(conn: psycopg.Connection, files: list[Path]) -> None:
    # In the lock order of sql/functions/30_locks.sql: an upgrade waits for transactions that change
    # something. One that has read some views, and reads others next, may deadlock with it: the new
    # views lock the old ones, one after the other.
    conn.execute(
        "lock table pgcoord.control, public.planned_features, public.phase_queue,"
        " pgcoord.attempt, pgcoord.slot, pgcoord.event in share row exclusive mode"
    )
    # The functions may call each other in any order.
    conn.execute("set local check_function_bodies = off")
    for path in files:
        run_file(conn, path)
    # Postgres grants EXECUTE on a new function to everybody.
    conn.execute("revoke execute on all functions in schema pgcoord, pgcoord_private from public")
    conn.execute("select pgcoord_private.record_definitions()")
    _record(conn, "functions", _digest(files))


def number() -> int:
    """Return the number of this release's schema."""
    return int(VERSION.read_text(encoding="utf-8").split()[0])


def digest_of_all() -> str:
    """Return the digest of all that an upgrade may run."""
    first = assets.SQL / "bookkeeping.sql"
    return _digest([first, *_files("migrations"), *_files("functions"), ROLES])


def _grant(conn: psycopg.Connection) -> None:
    try:
        with conn.transaction():
            run_file(conn, ROLES)
    except psycopg.errors.InsufficientPrivilege as error:
        raise DatabaseUnusable(
            f"the roles cannot be created: {error.diag.message_primary}",
            hint="Run it as the owner of the database with CREATEROLE; or have an administrator"
            f" run 'create role' for {', '.join(GROUPS)}, then run it again.",
        ) from error
    _record(conn, "roles", _digest([ROLES]))


def _have_roles(conn: psycopg.Connection) -> bool:
    row = conn.execute(
        "select count(*) from pg_roles where rolname = any (%s)", [list(GROUPS)]
    ).fetchone()
    return row == (len(GROUPS),)


def check_schema(conn: psycopg.Connection) -> None:
    """Raise `WrongSchema`, with the command to run, unless the schema is exactly this release's."""
    check_server(conn)
    try:
        _check_schema(conn)
    except psycopg.errors.InsufficientPrivilege as error:
        raise DatabaseUnusable(
            f"user {conn.info.user!r} has no rights: {error.diag.message_primary}",
            hint=f"Its owner can give it some: grant {' or '.join(GROUPS)} to {conn.info.user}"
            " ('pgcoord upgrade --roles' makes these roles).",
        ) from error


def _check_schema(conn: psycopg.Connection) -> None:
    if not exists(conn, "pgcoord.migration"):
        _refuse_foreign_tables(conn)
        raise WrongSchema(
            f"database {conn.info.dbname!r} has no pgcoord schema", hint="Run 'pgcoord upgrade'."
        )
    _refuse_newer(conn)
    applied = _applied(conn)
    expected = {path.stem for path in _files("migrations")} | {"functions"}
    if (
        expected - applied.keys()
        or applied["functions"] != _digest(_files("functions"))
        or applied.get("roles", rights := _digest([ROLES])) != rights
    ):
        raise WrongSchema(
            f"the schema of database {conn.info.dbname!r} is of another release of pgcoord"
            f" (number {applied.get(_SCHEMA, '0')}; this release has {number()})",
            hint="Run 'pgcoord upgrade'.",
        )
    _refuse_gutted(conn)


def _refuse_gutted(conn: psycopg.Connection) -> None:
    """Raise `WrongSchema` if a schema was dropped on whose functions rules of the tables depended.

    No upgrade brings the rules back: a migration made them.
    """
    if conn.execute("select to_regnamespace('pgcoord_private') is null").fetchone() == (True,):
        raise WrongSchema(
            f"schema pgcoord_private of database {conn.info.dbname!r} was dropped, and with it"
            " rules of the tables",
            hint="Restore a backup in another database; the tables here still have what was done"
            " since.",
        )


def check_server(conn: psycopg.Connection) -> None:
    """Raise `DatabaseUnusable` when the server is too old, only reads, or is not UTF8."""
    version = conn.info.server_version // 10000
    if version < OLDEST_POSTGRES:
        raise DatabaseUnusable(
            f"the server is PostgreSQL {version}",
            hint=f"pgcoord needs PostgreSQL {OLDEST_POSTGRES} or newer.",
        )
    encoding = conn.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise DatabaseUnusable(
            f"database {conn.info.dbname!r} has the encoding {encoding}: it cannot store all text",
            hint="Use another: create database … encoding 'UTF8' template template0.",
        )
    row = conn.execute(
        "select pg_is_in_recovery(), current_setting('default_transaction_read_only')::boolean,"
        " pg_backend_pid()"
    ).fetchone()
    assert row is not None
    is_stand_by, reads_only, pid = row
    if is_stand_by:
        raise DatabaseUnusable(
            "the server is a stand-by: nothing can be coordinated there",
            hint="Give the primary's address, or several with target_session_attrs=read-write.",
        )
    if reads_only:
        pooled = pid != conn.info.backend_pid
        raise DatabaseUnusable(
            "default_transaction_read_only is on: nothing can be written"
            + (", perhaps by another client of the pool that this DSN leads to" if pooled else ""),
            hint="Give the address of the server itself."
            if pooled
            else "It is set for the server, the database, the role, in PGOPTIONS or in the DSN:"
            f" alter role {conn.info.user} set default_transaction_read_only = off overrules it.",
        )


def exists(conn: psycopg.Connection, table: str) -> bool:
    """Return whether the table or view *table*, a qualified name, exists."""
    row = conn.execute("select to_regclass(%s) is not null", [table]).fetchone()
    return bool(row and row[0])


def disabled_triggers(conn: psycopg.Connection) -> list[str]:
    """Return our triggers that somebody has disabled, each as "name on table"; [] without ours."""
    rows = conn.execute(
        "select format('%s on %s', t.tgname, t.tgrelid::regclass) from pg_trigger as t"
        " join pg_proc as p on p.oid = t.tgfoid join pg_namespace as n on n.oid = p.pronamespace"
        " where n.nspname in ('pgcoord', 'pgcoord_private') and t.tgenabled in ('D', 'R')"
        " order by 1"
    )
    return [name for (name,) in rows]


def _was_changed(conn: psycopg.Connection) -> bool:
    """Return whether a definition differs from the one that the last upgrade created."""
    if not exists(conn, "pgcoord.changed_definition"):
        return True
    return conn.execute("select from pgcoord.changed_definition limit 1").fetchone() is not None


def _refuse_foreign_tables(conn: psycopg.Connection) -> None:
    for table in ("phase_queue", "planned_features"):
        if exists(conn, f"public.{table}"):
            raise WrongSchema(
                f"database {conn.info.dbname!r} has a table {table} that is not of this pgcoord",
                hint="If it is of version 1, 'pgcoord migrate-v1' takes it over;"
                " else use another database.",
            )


def _refuse_newer(conn: psycopg.Connection) -> None:
    rows = conn.execute("select distinct release from pgcoord.migration").fetchall()
    newest = max((release for (release,) in rows), key=_numbers, default=__version__)
    if _numbers(newest) > _numbers(__version__):
        raise WrongSchema(
            f"pgcoord {newest} wrote this database, and this is {__version__}",
            hint=f"Use pgcoord {newest} or newer.",
        )
    applied = _applied(conn)
    written = int(applied.get(_SCHEMA, "0"))
    unknown = applied.keys() - {path.stem for path in _files("migrations")} - _NO_MIGRATIONS
    if written > number() or unknown:
        raise WrongSchema(
            f"database {conn.info.dbname!r} is of a newer pgcoord: its schema has the number"
            f" {written}, and this release has {number()}",
            hint="Use the pgcoord that upgraded it, or a newer one: an older one would take its"
            " functions back.",
        )


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split(".") if part.isdigit())


def _applied(conn: psycopg.Connection) -> dict[str, str]:
    return dict(conn.execute("select name, digest from pgcoord.migration").fetchall())


def _record(conn: psycopg.Connection, name: str, digest: str) -> None:
    conn.execute(
        "insert into pgcoord.migration (name, digest, release) values (%s, %s, %s)"
        " on conflict (name) do update"
        " set digest = excluded.digest, release = excluded.release, at = now()",
        [name, digest, __version__],
    )


def run_file(conn: psycopg.Connection, path: Path) -> None:
    """Run all statements of a file; add its name as a note to an error."""
    try:
        conn.execute(path.read_bytes())
    except psycopg.Error as error:
        error.add_note(f"while running {path}")
        raise


def _files(folder: str) -> list[Path]:
    return sorted((assets.SQL / folder).glob("*.sql"))


def _digest(paths: list[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
