"""The statements about jobs of engines: submit, begin, exit.

The one rule: one Python function for each SQL function; the SQL decides, and records what it
refuses.
"""

from collections.abc import Mapping

from pgcoord.database._sql import Connection, columns_of, fetch_row, fetch_value
from pgcoord.database.claims import End
from pgcoord.database.rows import Answer


async def submit_attempt(conn: Connection, epoch: int, attempt_id: int) -> None:
    """Record that the job of an attempt is about to be submitted: after its claim did, or again.

    Raises `AnotherLeads` when the lead *epoch* is over, `StaleAttempt` when the attempt was given
    up. SQL: pgcoord_private.submit_attempt.
    """
    await fetch_value(conn, "select pgcoord_private.submit_attempt(%s, %s)", epoch, attempt_id)


async def note_job(
    conn: Connection, attempt_id: int, job: str | None, waits_for: str | None
) -> None:
    """Record the engine's id of a job (None: as before), and why it waits, in the engine's words.

    Of a local process: what the machine lacks to start it. SQL: pgcoord_private.note_job.
    """
    await fetch_value(
        conn, "select pgcoord_private.note_job(%s, %s, %s)", attempt_id, job, waits_for
    )


async def secret_of(conn: Connection, attempt_id: int) -> str | None:
    """Return the secret that signs the requests of an attempt's job; None without such an attempt.

    SQL: pgcoord_private.secret_of.
    """
    secret: str | None = await fetch_value(conn, "select pgcoord_private.secret_of(%s)", attempt_id)
    return secret


async def begin_job(
    conn: Connection, attempt_id: int, copy: str, job: str | None, node: str | None
) -> Answer:
    """Answer a copy of a job that asks whether it may begin. SQL: pgcoord_private.begin_job."""
    answer = await fetch_row(
        conn,
        Answer,
        f"select {columns_of(Answer)} from pgcoord_private.begin_job(%s, %s, %s, %s)",
        attempt_id,
        copy,
        job,
        node,
    )
    assert answer is not None
    return answer


async def note_refused_begin(conn: Connection, attempt_id: int, reason: str) -> None:
    """Record a begin that was refused before the database was asked, for *reason*.

    SQL: pgcoord_private.note_refused_begin.
    """
    await fetch_value(conn, "select pgcoord_private.note_refused_begin(%s, %s)", attempt_id, reason)


def job_exited(attempt_id: int, message: Mapping[str, object]) -> End:
    """A copy of a job said how its command ended; SQL answers with the members of `Answer`.

    *message*: copy, exit_code, log_tail, left_behind, result, result_fault.
    SQL: pgcoord_private.exit_job.
    """
    return {**message, "kind": "job_exited", "attempt_id": attempt_id}
