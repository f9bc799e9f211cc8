"""The statements about issues on GitHub: intents, numbers, tasks (SQL: pgcoord.errand), events.

The one rule: one Python function for each SQL function, which decides.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from pgcoord.database._sql import Connection, columns_of, fetch_row, fetch_value, refusals
from pgcoord.database.work import GitHubTask, Hold, Intent


async def issue_facts(conn: Connection, queue_id: str, repository: str) -> dict[str, Any]:
    """Return the facts for the text of a phase's issue. SQL: pgcoord_private.issue_facts."""
    value: dict[str, Any] = await fetch_value(
        conn, "select pgcoord_private.issue_facts(%s, %s)", queue_id, repository
    )
    return value


async def intend_issue(
    conn: Connection, epoch: int, attempt_id: int, repository: str, *, looked: bool
) -> Intent:
    """Record the intent to create the issue of an attempt; return whether to create or search.

    *looked*: a search for the issue found nothing. Raises `AnotherLeads` when the lead *epoch* is
    over, `StaleAttempt` when the attempt was given up. SQL: pgcoord_private.intend_issue.
    """
    row = await fetch_row(
        conn,
        Intent,
        f"select {columns_of(Intent)} from pgcoord_private.intend_issue(%s, %s, %s, %s)",
        epoch,
        attempt_id,
        repository,
        looked,
    )
    assert row is not None
    return row


async def store_issue(
    conn: Connection, key: UUID, number: int, author: str, *, created: bool
) -> None:
    """Store the number of the issue with the marker *key*, *created* just now or found."""
    await fetch_value(
        conn, "select pgcoord_private.store_issue(%s, %s, %s, %s)", key, number, author, created
    )


async def unpost_issue(conn: Connection, key: UUID) -> None:
    """Withdraw the intent *key*, since GitHub has certainly not created the issue."""
    await fetch_value(conn, "select pgcoord_private.unpost_issue(%s)", key)


async def do_without_issue(conn: Connection, attempt_id: int, reason: str) -> None:
    """Log that an attempt starts without an issue, and why."""
    await fetch_value(conn, "select pgcoord_private.do_without_issue(%s, %s)", attempt_id, reason)


async def hold_issues(
    conn: Connection, wait: timedelta, grows: bool, reason: str, optional_after: timedelta | None
) -> Hold:
    """Stop claiming phases that have no issue yet, for *wait*, doubled each time if it *grows*.

    After *optional_after*, phases start without an issue (None: never).
    SQL: pgcoord_private.hold_issues.
    """
    row = await fetch_row(
        conn,
        Hold,
        f"select {columns_of(Hold)} from pgcoord_private.hold_issues(%s, %s, %s, %s)",
        wait,
        grows,
        reason,
        optional_after,
    )
    assert row is not None
    return row


async def release_issues(conn: Connection) -> None:
    """Let all phases start without an issue that wait for GitHub. SQL: pgcoord.release_issues."""
    await fetch_value(conn, "select pgcoord.release_issues()")


async def begin_github_task(conn: Connection, repository: str) -> GitHubTask:
    """Begin the next due GitHub task; if there is none, its id is None. SQL: begin_errand."""
    row = await fetch_row(
        conn,
        GitHubTask,
        f"select {columns_of(GitHubTask)} from pgcoord_private.begin_errand(%s)",
        repository,
    )
    assert row is not None
    return row


async def finish_github_task(
    conn: Connection, task_id: int, result: str | None, error: str | None
) -> None:
    """Record that a GitHub task is done (*result*: the steps), or given up (*error*: the reason).

    SQL: pgcoord_private.finish_errand.
    """
    await fetch_value(
        conn, "select pgcoord_private.finish_errand(%s, %s, %s)", task_id, result, error
    )


async def postpone_github_task(conn: Connection, task_id: int, wait: timedelta, error: str) -> None:
    """Retry a GitHub task after *wait*, doubled with each try. SQL: postpone_errand."""
    await fetch_value(
        conn, "select pgcoord_private.postpone_errand(%s, %s, %s)", task_id, wait, error
    )


async def take_github_event(
    conn: Connection, event: Mapping[str, object], action: str
) -> tuple[str, list[str]]:
    """Record an event from GitHub; return its result and the queue ids of the phases concerned."""
    with refusals():
        cursor = await conn.execute(
            b"select result, queue_ids from pgcoord_private.take_github_event(%s, %s)",
            [Jsonb(event), action],
        )
        row = await cursor.fetchone()
    assert row is not None
    return row[0], row[1]
