"""The statements of a coordinator: lead, claim, start and end attempts, find the next work.

The one rule: one Python function for each SQL function or view; the SQL decides. All raise
`psycopg.OperationalError` when the connection is lost.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

from psycopg.rows import class_row, scalar_row, tuple_row
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
from pgcoord.database.work import (
    Assignment,
    Claimed,
    DeclaredPool,
    Lead,
    Move,
    NextWork,
    OpenAttempt,
    Recorded,
    ServerTimeline,
    Unclaimable,
)

# The result file of an attempt whose process is gone: `result`, its text, or `result_fault`, why it
# cannot be used; neither if there is none.
Result = Mapping[str, str]

# An end of an attempt, as pgcoord_private.record_end takes it: a member `kind`, and those of it.
End = Mapping[str, object]


async def lead(
    conn: Connection,
    *,
    host: str,
    pid: int,
    version: str,
    runs_folder: str,
    workflows: Sequence[Mapping[str, object]],
    after: int,
    pools: Sequence[Mapping[str, object]] = (),
) -> Lead:
    """Take the lead on *conn*, which holds it until it closes, or return its holder.

    Waits up to 2 s. A new lead has an epoch higher than *after*. SQL: pgcoord_private.lead.
    """
    row = await fetch_row(
        conn,
        Lead,
        f"select {columns_of(Lead)} from pgcoord_private.lead(%s, %s, %s, %s, %s, %s, %s)",
        host,
        pid,
        version,
        runs_folder,
        Jsonb(list(workflows)),
        after,
        Jsonb(list(pools)),
    )
    assert row is not None
    return row


async def resign(conn: Connection) -> None:
    """Give the lead back, and wake the coordinators that stand by. SQL: pgcoord_private.resign."""
    await fetch_value(conn, "select pgcoord_private.resign()")


async def check_epoch(conn: Connection, epoch: int) -> None:
    """Raise `AnotherLeads` when the lead *epoch* is over."""
    await fetch_value(conn, "select pgcoord_private.check_epoch(%s)", epoch)


async def renew_lease(conn: Connection, host: str) -> None:
    """Renew the lease of *host* for a minute: a leader elsewhere leaves its attempts alone.

    Raises `Locked` when another session has locked the row of the host.
    """
    await fetch_value(conn, "select pgcoord_private.renew_lease(%s)", host)


async def server_timeline(conn: Connection) -> ServerTimeline:
    """Return the system identifier and the WAL timeline of the server. SQL: lineage."""
    row = await fetch_row(
        conn, ServerTimeline, "select system, timeline from pgcoord_private.lineage()"
    )
    assert row is not None
    return row


async def runs_folder(conn: Connection, host: str) -> str | None:
    """Return the runs folder of the last coordinator on *host* that led; None if none did."""
    folder: str | None = await fetch_value(
        conn,
        "select runs_folder from pgcoord.coordinator where host = %s order by epoch desc limit 1",
        host,
    )
    return folder


async def claim_phases(conn: Connection, epoch: int) -> list[Assignment]:
    """Claim eligible phases, one for each free slot. SQL: pgcoord_private.claim_phases.

    Raises `AnotherLeads` when the lead *epoch* is over, `Locked` when another session has locked
    the control row.
    """
    return await fetch_rows(
        conn,
        Assignment,
        f"select {columns_of(Assignment)} from pgcoord_private.claim_phases(%s)",
        epoch,
    )


async def claim_singly(conn: Connection, epoch: int) -> list[Assignment]:
    """Claim eligible phases one by one, and set aside those that the database refuses.

    For use after `claim_phases` failed; raises the same errors. SQL: pgcoord_private.claim_singly.
    """
    return await fetch_rows(
        conn,
        Assignment,
        f"select {columns_of(Assignment)} from pgcoord_private.claim_singly(%s)",
        epoch,
    )


async def unclaimable(conn: Connection) -> list[Unclaimable]:
    """Return the phases whose claim failed and that are set aside for now."""
    return await fetch_rows(
        conn,
        Unclaimable,
        f"select {columns_of(Unclaimable)} from pgcoord.unclaimable where until > clock_timestamp()"
        " order by queue_id",
    )


async def pools(conn: Connection) -> list[DeclaredPool]:
    """Return all pools, also those taken out of the configuration that have attempts still."""
    return await fetch_rows(
        conn, DeclaredPool, "select name, launcher, settings from pgcoord.pool order by name"
    )


async def moved_attempts(conn: Connection) -> dict[int, str]:
    """Return the open attempts whose job is at another launcher than that of their pool now.

    The result is {id of the attempt: that launcher}.
    """
    value = await fetch_value(
        conn,
        "select jsonb_object_agg(a.id, a.submitted_to)"
        " from pgcoord.attempt as a join pgcoord.pool as o on o.name = a.pool"
        " where a.exited_at is null and a.submitted_to <> o.launcher",
    )
    return {int(attempt_id): launcher for attempt_id, launcher in (value or {}).items()}


async def open_attempts(conn: Connection, host: str, *, engines: bool) -> list[OpenAttempt]:
    """Return the attempts of *host*, with *engines* also those of engines, which may be alive.

    SQL: view assignment.
    """
    return await fetch_rows(
        conn,
        OpenAttempt,
        f"select {columns_of(OpenAttempt)} from pgcoord_private.assignment"
        " where host = %s or %s and host is null"
        " order by attempt_id",
        host,
        engines,
    )


async def assignment(conn: Connection, attempt_id: int) -> Assignment | None:
    """Return an attempt with the columns for its supervision; None if its process is gone."""
    return await fetch_row(
        conn,
        Assignment,
        f"select {columns_of(Assignment)} from pgcoord_private.assignment where attempt_id = %s",
        attempt_id,
    )


async def inputs(conn: Connection, attempt: Assignment) -> dict[str, dict[str, Any]]:
    """Return the results of the prerequisites of an attempt's phase, by phase number.

    SQL: pgcoord_private.inputs_of.
    """
    value: dict[str, dict[str, Any]] = await fetch_value(
        conn,
        "select pgcoord_private.inputs_of(%s, %s)",
        attempt.feature_id,
        attempt.phase_number,
    )
    return value


async def last_move(conn: Connection, attempt: Assignment) -> Move | None:
    """Return the move that took the phase out of ready or running; None if it has not moved."""
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
    """Return the installation's name, the folder of this database's runs on each machine."""
    return str(await fetch_value(conn, "select installation from pgcoord.control"))


async def job_names(conn: Connection) -> tuple[str, str]:
    """Return how the names of all jobs of this database begin and end (`engines.name_of`).

    A copy of the database has the same begin.
    """
    place = await fetch_value(conn, "select place from pgcoord.control")
    return f"pgcoord-{(await installation(conn))[:8]}-", place or ""


async def open_folders(conn: Connection) -> list[str]:
    """Return the folders of all runs, on any machine, whose process may be alive."""
    with refusals():
        cursor = await conn.cursor(row_factory=scalar_row).execute(
            b"select folder from pgcoord.attempt where exited_at is null and folder is not null"
        )
        return await cursor.fetchall()


async def start_phase(
    conn: Connection, epoch: int, attempt_id: int, pid: int, process_started: str
) -> None:
    """Record the process of an attempt, which makes its phase running.

    *process_started*: an opaque text that, with *pid*, identifies the process. Raises
    `AnotherLeads` when the lead *epoch* is over, `StaleAttempt` when the attempt was given up.
    SQL: pgcoord_private.start_phase.
    """
    await fetch_value(
        conn,
        "select pgcoord_private.start_phase(%s, %s, %s, %s)",
        epoch,
        attempt_id,
        pid,
        process_started,
    )


def exited(
    attempt: Assignment,
    exit_code: int,
    log_tail: str,
    left_behind: str,
    result: Result,
    exited_at: float | None = None,
) -> End:
    """The process of an attempt exited; *left_behind* names the processes that outlived it.

    *result*: its result file. *exited_at*: by `time.time`; None where that is not known.

    SQL: pgcoord_private.end_attempt.
    """
    return {
        "kind": "exited",
        "attempt_id": attempt.attempt_id,
        "exit_code": exit_code,
        "log_tail": log_tail,
        "left_behind": left_behind,
        "exited_at": exited_at,
        **result,
    }


def given_up(attempt: Assignment, outcome: str, error: str) -> End:
    """An attempt has no process; *outcome* is failed, lost or returned.

    SQL: pgcoord.give_up_attempt.
    """
    return {
        "kind": "given_up",
        "attempt_id": attempt.attempt_id,
        "outcome": outcome,
        "error": error,
    }


def returned(attempt: Assignment, wait: timedelta, reason: str) -> End:
    """A claimed attempt comes back unused; its phase waits for *wait*, its tries stay as they were.

    SQL: pgcoord_private.return_attempt.
    """
    return {
        "kind": "returned",
        "attempt_id": attempt.attempt_id,
        "wait_seconds": wait.total_seconds(),
        "error": reason,
    }


async def follow_budgets(conn: Connection) -> bool:
    """Pause or resume features as the budgets of the declared workflows say.

    Return whether a feature was passed over since somebody has it locked: call again later.
    """
    return bool(await fetch_value(conn, "select pgcoord_private.follow_budgets()"))


async def judgement(
    conn: Connection, attempt: Assignment, not_run: int | None
) -> tuple[str | None, str | None]:
    """Return (the check that the phase names, the error of its last failed attempt).

    Attempts whose command was not run do not count; *not_run*: the exit status of those, if any.
    """
    with refusals():
        cursor = await conn.cursor(row_factory=tuple_row).execute(
            b"select p.phase_data ->> 'check', (select a.error from pgcoord.attempt as a"
            b" where a.queue_id = p.queue_id and a.outcome in ('failed', 'timed_out')"
            b" and a.started_at is not null and a.exit_code is distinct from %s"
            b" order by a.number desc limit 1)"
            b" from public.phase_queue as p where p.queue_id = %s",
            [not_run, attempt.queue_id],
        )
        return await cursor.fetchone() or (None, None)


async def note_quiet(
    conn: Connection, attempt: Assignment, quiet_for: timedelta | None, *, ends: bool
) -> None:
    """Record that the process of an attempt writes nothing (None: writes again).

    With *ends*, that is the end of the attempt. SQL: pgcoord_private.note_quiet.
    """
    await fetch_value(
        conn,
        "select pgcoord_private.note_quiet(%s, %s, %s)",
        attempt.attempt_id,
        quiet_for,
        ends,
    )


def reported(
    report: Mapping[str, object],
    *,
    message_id: str | None,
    actor: str,
    adw_id: str | None,
    attempt_id: int | None = None,
    result: Result | None = None,
) -> End:
    """Return the end that records *report*; *adw_id*: the attempt whose secret signed it.

    *attempt_id* and *result*: if its process has ended, the attempt and its result file. SQL:
    take_report.
    """
    return {
        "attempt_id": attempt_id,
        **(result or {}),
        "kind": "reported",
        "report": report,
        "message_id": message_id,
        "actor": actor,
        "adw_id": adw_id,
    }


async def record_end(conn: Connection, end: End) -> Recorded:
    """Record an end by itself; the database decides the state of the phase.

    SQL: pgcoord_private.record_end.
    """
    return Recorded(
        await fetch_value(conn, "select pgcoord_private.record_end(%s)", Jsonb(_as_of_now(end)))
    )


def _as_of_now(end: End) -> End:
    """Return *end* as it is sent: the time of the exit becomes the seconds since then.

    The database has another clock, and the end may have waited for it.
    """
    exited_at = end.get("exited_at")
    if not isinstance(exited_at, float):
        return end
    return {**end, "exited_seconds_ago": max(0.0, time.time() - exited_at)}


async def record_and_claim(conn: Connection, epoch: int, ends: Sequence[End]) -> Claimed:
    """Record *ends* and claim eligible phases, one for each free slot, in one transaction.

    An end that fails or would wait for a lock is left out, and so is a claim: the caller executes
    each by itself, which raises its error, or waits. SQL: pgcoord_private.record_and_claim.
    """
    with refusals():
        cursor = await conn.cursor(row_factory=tuple_row).execute(
            _RECORD_AND_CLAIM, (epoch, Jsonb([_as_of_now(end) for end in ends]))
        )
        rows = await cursor.fetchall()
    answers = [Recorded(row[2]) if row[1] else None for row in rows if row[0]]
    was_made = any(row[0] == 0 and row[1] for row in rows)
    claimed = [Assignment(*row[3:]) for row in rows if row[0] is None]
    return Claimed(answers, claimed if was_made else None)


_RECORD_AND_CLAIM = (
    "select place, recorded, answer, "
    + ", ".join(f"(claimed).{field.name}" for field in fields(Assignment))
    + " from pgcoord_private.record_and_claim(%s, %s)"
).encode()


async def abandon_attempt(conn: Connection, epoch: int, attempt_id: int) -> None:
    """Give up an attempt of another host as lost, if the lease of that host has expired.

    Raises `AnotherLeads` when the lead *epoch* is over. SQL: pgcoord_private.abandon_attempt.
    """
    await fetch_value(conn, "select pgcoord_private.abandon_attempt(%s, %s)", epoch, attempt_id)


async def expire_attempts(conn: Connection) -> None:
    """Request the end of attempts past their deadline. SQL: pgcoord_private.expire_attempts."""
    await fetch_value(conn, "select pgcoord_private.expire_attempts()")


async def look_round(
    conn: Connection, host: str, attempts: Collection[int], awaited: Collection[str]
) -> NextWork:
    """Request the end of attempts past their deadline, and return what else there is to do.

    Call it after a claim. *attempts*: ids of attempts that may have changed. *awaited*: names of
    locks to leave out, since the coordinator waits for them already. SQL:
    pgcoord_private.look_round.
    """
    row = await fetch_row(
        conn,
        NextWork,
        f"select {columns_of(NextWork)} from pgcoord_private.look_round(%s, %s, %s)",
        host,
        list(attempts),
        list(awaited),
    )
    assert row is not None
    return replace(row, changed=[OpenAttempt(**each) for each in row.changed])  # type: ignore[arg-type]


async def gone_attempts(conn: Connection, attempt_ids: Collection[int]) -> frozenset[int]:
    """Return the ids of attempts that are gone from the primary, or whose process is.

    Raises an error on a stand-by. SQL: pgcoord_private.gone_attempts.
    """
    return frozenset(
        await fetch_values(conn, "select pgcoord_private.gone_attempts(%s)", list(attempt_ids))
    )


async def find_lock(conn: Connection, attempt_id: int | None, *, far: bool) -> str | None:
    """Return the name of a row that another session has locked and an attempt's end needs.

    Never waits. None when no such row is locked (any more). With *attempt_id* None, look only at
    the control row. *far*: look at the dependents of dependents of its phase as well, which change
    when it fails. SQL: pgcoord_private.find_lock.
    """
    name: str | None = await fetch_value(
        conn, "select pgcoord_private.find_lock(%s, %s)", attempt_id, far
    )
    return name


async def await_lock(conn: Connection, name: str) -> None:
    """Wait without limit until no other session has locked the row *name*.

    Sets the session's application_name to say so. SQL: pgcoord_private.await_lock.
    """
    await fetch_value(conn, "select pgcoord_private.await_lock(%s)", name)


async def held_by(conn: Connection, name: str) -> str | None:
    """Return the session that holds the lock *name*, in words; None if no holder is visible.

    Finds a holder only while some session waits for the lock. SQL: pgcoord_private.held_by.
    """
    words: str | None = await fetch_value(conn, "select pgcoord_private.held_by(%s)", name)
    return words


async def note_unrecorded(conn: Connection, attempt_id: int, words: str, lock: str) -> None:
    """Note for `why` and the panel that *lock* prevents the record of an event of an attempt.

    *words*: the event; *lock*: what another session has locked, or "error: …", a refusal.
    """
    await fetch_value(
        conn, "select pgcoord_private.note_unrecorded(%s, %s, %s)", attempt_id, words, lock
    )


async def forget_unrecorded(conn: Connection, attempt_id: int) -> None:
    """Remove the note of `note_unrecorded`."""
    await fetch_value(conn, "select pgcoord_private.forget_unrecorded(%s)", attempt_id)
