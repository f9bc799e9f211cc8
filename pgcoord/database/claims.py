"""What a coordinator calls: to lead, to claim, to start and end attempts, to find its next work.

One function for each function or view of the database; no decision is made here.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta

from psycopg.rows import class_row, scalar_row
from psycopg.types.json import Jsonb

from pgcoord.database._sql import (
    Connection,
    columns_of,
    fetch_row,
    fetch_rows,
    fetch_value,
    fetch_values,
    refusals,
)
from pgcoord.database.rows import Assignment, Lead, Move, NextWork, OpenAttempt, ServerTimeline


async def lead(
    conn: Connection,
    *,
    host: str,
    pid: int,
    version: str,
    runs_folder: str,
    workflows: Sequence[Mapping[str, object]],
    after: int,
) -> Lead:
    """Take the lead on `conn`, which keeps it as long as it lives, or learn who has it.

    Waits up to 2 s. The new lead's epoch is higher than `after`.
    """
    found = await fetch_row(
        conn,
        Lead,
        f"select {columns_of(Lead)} from pgcoord_private.lead(%s, %s, %s, %s, %s, %s)",
        host,
        pid,
        version,
        runs_folder,
        Jsonb(list(workflows)),
        after,
    )
    assert found is not None
    return found


async def resign(conn: Connection) -> None:
    """Give the lead back, and tell those who stand by."""
    await fetch_value(conn, "select pgcoord_private.resign()")


async def check_epoch(conn: Connection, epoch: int) -> None:
    """Raise `AnotherLeads` when that lead is over."""
    await fetch_value(conn, "select pgcoord_private.check_epoch(%s)", epoch)


async def renew_lease(conn: Connection, host: str) -> None:
    """Have a leader on another host leave the attempts of `host` alone for another minute."""
    await fetch_value(conn, "select pgcoord_private.renew_lease(%s)", host)


async def lineage(conn: Connection) -> ServerTimeline:
    """Which line of history the server writes."""
    found = await fetch_row(
        conn, ServerTimeline, "select system, timeline from pgcoord_private.lineage()"
    )
    assert found is not None
    return found


async def runs_folder(conn: Connection, host: str) -> str | None:
    """Where the last coordinator of `host` that led keeps its runs; None when there was none."""
    folder: str | None = await fetch_value(
        conn,
        "select runs_folder from pgcoord.coordinator where host = %s order by epoch desc limit 1",
        host,
    )
    return folder


async def claim_phases(conn: Connection, epoch: int) -> list[Assignment]:
    """Claim what is eligible, one phase for each free slot.

    Raises `AnotherLeads` when the lead is over, `Locked` when somebody holds the control row.
    """
    return await fetch_rows(
        conn,
        Assignment,
        f"select {columns_of(Assignment)} from pgcoord_private.claim_phases(%s)",
        epoch,
    )


async def open_attempts(conn: Connection, host: str) -> list[OpenAttempt]:
    """The attempts of `host` whose process is not known to be gone."""
    return await fetch_rows(
        conn,
        OpenAttempt,
        f"select {columns_of(OpenAttempt)} from pgcoord_private.assignment where host = %s"
        " order by attempt_id",
        host,
    )


async def assignment(conn: Connection, attempt_id: int) -> Assignment | None:
    """All that is needed to take over an attempt; None when its process is gone."""
    return await fetch_row(
        conn,
        Assignment,
        f"select {columns_of(Assignment)} from pgcoord_private.assignment where attempt_id = %s",
        attempt_id,
    )


async def last_move(conn: Connection, attempt: Assignment) -> Move | None:
    """How an attempt has ended its phase's turn; None while it has not."""
    with refusals():
        moves = conn.cursor(row_factory=class_row(Move))
        await moves.execute(_LAST_MOVE, _names(attempt))
        return await moves.fetchone()


_LAST_MOVE = b"""
    select from_status, to_status, reason from pgcoord.event
    where feature_id = %s and phase_number = %s and attempt = %s and kind = 'phase_moved'
        and from_status in ('ready', 'running') and to_status not in ('ready', 'running')
    order by id desc limit 1"""


def _names(attempt: Assignment) -> tuple[int, int, int]:
    return attempt.feature_id, attempt.phase_number, attempt.attempt


async def installation(conn: Connection) -> str:
    """The name of this database to the machines that run its processes."""
    return str(await fetch_value(conn, "select installation from pgcoord.control"))


async def open_folders(conn: Connection) -> list[str]:
    """The folders of all runs whose process is not known to be gone, on any machine."""
    with refusals():
        cursor = await conn.cursor(row_factory=scalar_row).execute(
            b"select folder from pgcoord.attempt where exited_at is null and folder is not null"
        )
        return await cursor.fetchall()


async def start_phase(
    conn: Connection, epoch: int, attempt_id: int, pid: int, process_started: str
) -> None:
    """Record the process of an attempt: its phase is running.

    Raises `AnotherLeads` when the lead is over, `StaleAttempt` when the attempt was given up.
    """
    await fetch_value(
        conn,
        "select pgcoord_private.start_phase(%s, %s, %s, %s)",
        epoch,
        attempt_id,
        pid,
        process_started,
    )


async def end_attempt(
    conn: Connection, attempt: Assignment, exit_code: int, log_tail: str, left_behind: str
) -> Move | None:
    """Say that the process of an attempt is gone with `exit_code`.

    The database decides what that makes of the phase; return its move, whoever made it.
    """
    return await _ended(
        conn,
        attempt,
        "select pgcoord_private.end_attempt(%s, %s, %s, %s)",
        attempt.attempt_id,
        exit_code,
        log_tail,
        left_behind,
    )


async def give_up_attempt(
    conn: Connection, attempt: Assignment, outcome: str, error: str
) -> Move | None:
    """Say that an attempt has no process: `outcome` is failed, lost or returned.

    Return the move that this makes its phase do.
    """
    return await _ended(
        conn,
        attempt,
        "select pgcoord.give_up_attempt(%s, %s, %s)",
        attempt.attempt_id,
        outcome,
        error,
    )


async def _ended(
    conn: Connection, attempt: Assignment, statement: str, *values: object
) -> Move | None:
    """End an attempt, and read the move.

    Not in a pipeline: it would commit the end after the reading only, and psycopg 3.3.9 takes a
    statement for prepared that the server skips since the one before it failed.
    """
    await fetch_value(conn, statement, *values)
    return await last_move(conn, attempt)


async def return_attempt(
    conn: Connection, attempt: Assignment, wait: timedelta, reason: str
) -> Move | None:
    """Give a claimed attempt back unused; its phase waits for `wait`, and no attempt counts.

    Return the move that this makes its phase do.
    """
    return await _ended(
        conn,
        attempt,
        "select pgcoord_private.return_attempt(%s, %s, %s)",
        attempt.attempt_id,
        wait,
        reason,
    )


async def abandon_attempt(conn: Connection, epoch: int, attempt_id: int) -> None:
    """Give an attempt of another host up as lost, if that host's lease has run out.

    Raises `AnotherLeads` when the lead is over.
    """
    await fetch_value(conn, "select pgcoord_private.abandon_attempt(%s, %s)", epoch, attempt_id)


async def expire_attempts(conn: Connection) -> None:
    """Ask for the end of attempts past their deadline."""
    await fetch_value(conn, "select pgcoord_private.expire_attempts()")


async def next_work(conn: Connection, awaited: Collection[str]) -> NextWork:
    """When to look next, and what is locked besides *awaited*; for after a claim of nothing."""
    found = await fetch_row(
        conn,
        NextWork,
        f"select {columns_of(NextWork)} from pgcoord_private.next_work(%s)",
        list(awaited),
    )
    assert found is not None
    return found


async def gone_attempts(conn: Connection, attempt_ids: Collection[int]) -> frozenset[int]:
    """Which of these attempts the primary does not know, or knows to have no process any more."""
    return frozenset(
        await fetch_values(conn, "select pgcoord_private.gone_attempts(%s)", list(attempt_ids))
    )


async def find_lock(conn: Connection, attempt_id: int | None, *, far: bool) -> str | None:
    """The name of a row that somebody has locked and that a statement about an attempt needs.

    Never waits. None when there is none any more; without an attempt, only the control row counts.
    *far*: look at the dependents of dependents of its phase, too, which change when it fails.
    """
    name: str | None = await fetch_value(
        conn, "select pgcoord_private.find_lock(%s, %s)", attempt_id, far
    )
    return name


async def await_lock(conn: Connection, name: str) -> None:
    """Wait until nobody else has the row called *name* locked. Names the session accordingly."""
    await fetch_value(conn, "select pgcoord_private.await_lock(%s)", name)


async def held_by(conn: Connection, name: str) -> str | None:
    """Who holds a lock that some session waits for, in words; None when no holder is seen."""
    words: str | None = await fetch_value(conn, "select pgcoord_private.held_by(%s)", name)
    return words


async def note_unrecorded(conn: Connection, attempt_id: int, words: str, lock: str) -> None:
    """Show that what happened to an attempt (*words*) cannot be recorded because of *lock*."""
    await fetch_value(
        conn, "select pgcoord_private.note_unrecorded(%s, %s, %s)", attempt_id, words, lock
    )


async def forget_unrecorded(conn: Connection, attempt_id: int) -> None:
    """Show no longer that something about an attempt is not recorded."""
    await fetch_value(conn, "select pgcoord_private.forget_unrecorded(%s)", attempt_id)
