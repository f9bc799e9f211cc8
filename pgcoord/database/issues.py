"""What a coordinator calls about the issues on GitHub: intents, numbers, tasks, events."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from pgcoord.database._sql import Connection, columns_of, fetch_row, fetch_value, refusals
from pgcoord.database.rows import GitHubTask, Hold, Intent


async def issue_facts(conn: Connection, queue_id: str, repository: str) -> dict[str, Any]:
    """What the issue of a phase says besides its prompt. SQL: pgcoord_private.issue_facts."""
    found: dict[str, Any] = await fetch_value(
        conn, "select pgcoord_private.issue_facts(%s, %s)", queue_id, repository
    )
    return found


async def intend_issue(
    conn: Connection, epoch: int, attempt_id: int, repository: str, *, looked: bool
) -> Intent:
    """Say that the issue of an attempt is about to be posted, or looked for; learn which.

    Raises `AnotherLeads` when the lead is over, `StaleAttempt` when the attempt was given up.
    """
    found = await fetch_row(
        conn,
        Intent,
        f"select {columns_of(Intent)} from pgcoord_private.intend_issue(%s, %s, %s, %s)",
        epoch,
        attempt_id,
        repository,
        looked,
    )
    assert found is not None
    return found


async def store_issue(conn: Connection, key: UUID, number: int, author: str, *, made: bool) -> None:
    """Keep the number of the issue with this marker, which was made just now, or found."""
    await fetch_value(
        conn, "select pgcoord_private.store_issue(%s, %s, %s, %s)", key, number, author, made
    )


async def unpost_issue(conn: Connection, key: UUID) -> None:
    """Say that an issue that was about to be posted certainly was not made."""
    await fetch_value(conn, "select pgcoord_private.unpost_issue(%s)", key)


async def do_without_issue(conn: Connection, attempt_id: int, reason: str) -> None:
    """Log that an attempt starts without an issue, and why."""
    await fetch_value(conn, "select pgcoord_private.do_without_issue(%s, %s)", attempt_id, reason)


async def hold_issues(
    conn: Connection, wait: timedelta, grows: bool, reason: str, optional_after: timedelta | None
) -> Hold:
    """Have no phase claimed that has no issue yet, until GitHub is asked again."""
    found = await fetch_row(
        conn,
        Hold,
        f"select {columns_of(Hold)} from pgcoord_private.hold_issues(%s, %s, %s, %s)",
        wait,
        grows,
        reason,
        optional_after,
    )
    assert found is not None
    return found


async def release_issues(conn: Connection) -> None:
    """Have no phase wait for GitHub."""
    await fetch_value(conn, "select pgcoord.release_issues()")


async def begin_errand(conn: Connection, repository: str) -> GitHubTask:
    """Begin what is due on GitHub; without anything, its id is None."""
    found = await fetch_row(
        conn,
        GitHubTask,
        f"select {columns_of(GitHubTask)} from pgcoord_private.begin_errand(%s)",
        repository,
    )
    assert found is not None
    return found


async def finish_errand(
    conn: Connection, errand_id: int, done: str | None, error: str | None
) -> None:
    """Say that an errand is done (what was done), or is given up (why)."""
    await fetch_value(
        conn, "select pgcoord_private.finish_errand(%s, %s, %s)", errand_id, done, error
    )


async def postpone_errand(conn: Connection, errand_id: int, wait: timedelta, error: str) -> None:
    """Have an errand tried again after `wait`, doubled with each try."""
    await fetch_value(
        conn, "select pgcoord_private.postpone_errand(%s, %s, %s)", errand_id, wait, error
    )


async def take_github_event(
    conn: Connection, event: Mapping[str, object], action: str
) -> tuple[str, list[str]]:
    """Record what happened on GitHub; return what became of it, and the phases it concerns."""
    with refusals():
        cursor = await conn.execute(
            b"select result, queue_ids from pgcoord_private.take_github_event(%s, %s)",
            [Jsonb(event), action],
        )
        row = await cursor.fetchone()
    assert row is not None
    return row[0], row[1]
