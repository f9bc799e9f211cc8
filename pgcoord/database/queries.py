"""Every statement that pgcoord sends: one function for each function or view of the schema pgcoord.

The one rule: no SQL anywhere else, and no decision here. What the database refuses comes out as a
`CoordError`.
"""

from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from psycopg.rows import class_row, scalar_row
from psycopg.types.json import Jsonb

from pgcoord.errors import (
    AnotherLeads,
    ChangedMeanwhile,
    CoordError,
    DatabaseUnusable,
    InvalidInput,
    Locked,
    NotFound,
    Refused,
    StaleAttempt,
    WrongSchema,
)

Connection = psycopg.AsyncConnection[Any]
Row = TypeVar("Row")

WAKE = "pgcoord_wake"
EVENT = "pgcoord_event"
STAND_BY = "pgcoord_stand_by"
PROBE = "pgcoord_probe"

_LEAVES: Mapping[str, type[CoordError]] = {
    "PC001": NotFound,
    "PC002": Refused,
    "PC003": StaleAttempt,
    "PC004": Refused,
    "PC005": InvalidInput,
    "PC006": Refused,
    "PC007": AnotherLeads,
    "PC008": Refused,
    "PC009": Refused,
    "PC010": ChangedMeanwhile,
    "22P02": InvalidInput,  # a number or JSON that is none
    "22P05": InvalidInput,  # a NUL in JSON
    "23505": InvalidInput,  # a phase that exists already
    "23514": InvalidInput,  # a check of the tables
    "3F000": WrongSchema,
    "42501": DatabaseUnusable,
    "42P01": WrongSchema,
    "42883": WrongSchema,
    "25006": DatabaseUnusable,
    "55P03": Locked,
}

_RIGHTS = (
    "The owner of the database can grant you pgcoord_client, or pgcoord_coordinator to serve;"
    " 'pgcoord upgrade --roles' makes them."
)


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what the database refuses into `CoordError`.

    A lost connection stays `psycopg.OperationalError`.
    """
    try:
        yield
    except psycopg.Error as error:
        leaf = _LEAVES.get(error.sqlstate or "")
        if leaf is None:
            raise
        raise leaf(
            error.diag.message_primary or str(error),
            hint=error.diag.message_hint
            or error.diag.message_detail
            or (_RIGHTS if error.sqlstate == "42501" else None),
        ) from error


@dataclass(frozen=True)
class Lead:
    """Who leads: we (`led`), or another; None where nobody does yet, or any more."""

    led: bool
    epoch: int | None
    host: str | None
    pid: int | None

    def __str__(self) -> str:
        return "nobody" if self.pid is None else f"process {self.pid} on {self.host}"


@dataclass(frozen=True)
class Lineage:
    """The history that a server writes; the later of a system is the one of the higher timeline."""

    system: int | None
    timeline: int | None


@dataclass(frozen=True)
class Assignment:
    """An attempt whose process is not known to be gone, with all it takes to run it."""

    attempt_id: int
    queue_id: str
    feature_id: int
    phase_number: int
    attempt: int
    adw_id: str
    secret: str = field(repr=False)
    folder: str
    workflow: str
    issue_number: int | None
    title: str | None
    prompt: str | None
    pid: int | None
    process_started: str | None
    started: bool
    ended: bool
    ending: str | None
    ended_seconds_ago: float | None
    slot: int

    def __str__(self) -> str:
        return f"{self.queue_id} (attempt {self.attempt}, {self.adw_id})"


@dataclass(frozen=True)
class OpenAttempt:
    """What has become of an attempt since it was taken: reported as ended, or to be ended."""

    attempt_id: int
    folder: str
    started: bool
    ended: bool
    ending: str | None
    ended_seconds_ago: float | None


@dataclass(frozen=True)
class Move:
    """A transition of a phase, as it was logged, and why."""

    from_status: str
    to_status: str
    reason: str | None


@dataclass(frozen=True)
class Intent:
    """An issue that is to be made: posted now, or looked for by its key, if it has no number."""

    number: int | None
    key: UUID
    intended_at: datetime
    posts: bool
    wait_seconds: float | None


@dataclass(frozen=True)
class Hold:
    """In how many seconds GitHub is asked again, and whether phases start without it meanwhile."""

    wait_seconds: float
    optional: bool


@dataclass(frozen=True)
class Errand:
    """What is to be done on GitHub about a phase; without an `id`, when there is something."""

    id: int | None
    queue_id: str
    kind: str
    key: UUID
    issue_key: UUID
    number: int | None
    intended_at: datetime
    tries: int
    status: str
    phase_status: str
    facts: dict[str, Any]
    due_in: float | None


@dataclass(frozen=True)
class Agenda:
    """What is left when there is nothing to claim.

    When to look next unwoken (seconds, None: never), attempts of hosts of which nothing is heard
    any more, and a claimable phase that is locked.
    """

    due_in: float | None
    abandoned: list[int]
    locked_phase: str | None


@dataclass(frozen=True)
class Leader:
    """The coordinator that leads."""

    epoch: int
    host: str
    pid: int
    version: str
    lead_at: datetime


@dataclass(frozen=True)
class Feature:
    """A feature with what follows from its phases."""

    id: int
    title: str
    status: str
    total_phases: int
    phases_completed: int
    phases_running: int
    phases_failed: int
    phases_blocked: int
    paused_at: datetime | None


@dataclass(frozen=True)
class BoardPhase:
    """A phase as people see it.

    `since` is when its state began, `waiting_for` says why it does not run.
    """

    queue_id: str
    feature_id: int
    phase_number: int
    title: str
    status: str
    slot: int | None
    attempt: int
    priority: int
    depends_on_phases: list[int]
    error_message: str | None
    since: datetime | None
    started_timestamp: datetime | None
    finished_timestamp: datetime | None
    waiting_for: str | None


@dataclass(frozen=True)
class Slot:
    """A slot and what holds it."""

    slot: int
    draining: bool
    queue_id: str | None
    title: str | None
    status: str | None
    since: datetime | None


@dataclass(frozen=True)
class Reason:
    """One reason for a phase to be where it is."""

    kind: str
    words: str
    refers_to: str | None


@dataclass(frozen=True)
class Attempt:
    """A try at a phase, for people who look for its log."""

    number: int
    adw_id: str
    host: str | None
    folder: str | None
    outcome: str | None
    exit_code: int | None
    claimed_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    exited_at: datetime | None


@dataclass(frozen=True)
class Finding:
    """What was found of one kind; `level` is ok, warn or fail, `remedy` what to do if not ok."""

    kind: str
    level: str
    words: str
    remedy: str | None


@dataclass(frozen=True)
class HistoryEvent:
    """Something that happened."""

    id: int
    at: datetime
    kind: str
    feature_id: int | None
    phase_number: int | None
    queue_id: str | None
    from_status: str | None
    to_status: str | None
    attempt: int | None
    adw_id: str | None
    actor: str
    reason: str | None


@dataclass(frozen=True)
class Measures:
    """What a monitor wants to know of the moment."""

    phases: dict[str, int] | None
    slots: int
    slots_held: int
    slots_draining: int
    paused: bool
    oldest_eligible_seconds: float | None
    notification_queue_usage: float


@dataclass(frozen=True)
class EndedAttempt:
    """An attempt that has ended; waited for is the first attempt of a phase alone."""

    workflow: str | None
    outcome: str
    waited_seconds: float | None
    ran_seconds: float | None


@dataclass(frozen=True)
class TakenReport:
    """What became of a report: taken, or refused for `reason` with the SQLSTATE `code`."""

    code: str | None
    reason: str | None
    hint: str | None
    repeated: bool
    queue_id: str | None
    feature_id: int | None
    phase_number: int | None
    adw_id: str | None
    attempt: int | None
    outcome: str | None
    status: str | None

    def refusal(self) -> CoordError | None:
        """The refusal as an error."""
        if self.code is None:
            return None
        return _LEAVES[self.code](self.reason or self.code, hint=self.hint)


async def _rows(conn: Connection, row: type[Row], statement: str, *values: object) -> list[Row]:
    with refusals():
        cursor = await conn.cursor(row_factory=class_row(row)).execute(statement.encode(), values)
        return await cursor.fetchall()


async def _row(conn: Connection, row: type[Row], statement: str, *values: object) -> Row | None:
    return next(iter(await _rows(conn, row, statement, *values)), None)


async def _value(conn: Connection, statement: str, *values: object) -> Any:
    with refusals():
        cursor = await conn.cursor(row_factory=scalar_row).execute(statement.encode(), values)
        return await cursor.fetchone()


def _columns(row: Any) -> str:
    return ", ".join(field.name for field in fields(row))


async def act_as(conn: Connection, actor: str) -> None:
    """Have what is done on `conn` logged as done by `actor`."""
    await _value(conn, "select set_config('pgcoord.actor', %s, false)", actor)


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
    found = await _row(
        conn,
        Lead,
        f"select {_columns(Lead)} from pgcoord.lead(%s, %s, %s, %s, %s, %s)",
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
    await _value(conn, "select pgcoord.resign()")


async def check_epoch(conn: Connection, epoch: int) -> None:
    """Raise `AnotherLeads` when that lead is over."""
    await _value(conn, "select pgcoord.check_epoch(%s)", epoch)


async def renew_lease(conn: Connection, host: str) -> None:
    """Have a leader on another host leave the attempts of `host` alone for another minute."""
    await _value(conn, "select pgcoord.renew_lease(%s)", host)


async def lineage(conn: Connection) -> Lineage:
    """Which line of history the server writes."""
    found = await _row(conn, Lineage, "select system, timeline from pgcoord.lineage()")
    assert found is not None
    return found


async def leader(conn: Connection) -> Leader | None:
    """The coordinator that leads, None when none does. SQL: view pgcoord.leader."""
    return await _row(conn, Leader, f"select {_columns(Leader)} from pgcoord.leader")


async def listen(conn: Connection, channel: str) -> None:
    """Have notifications of `channel` come in on `conn`. A server that only reads refuses."""
    with refusals():
        await conn.execute(f"listen {channel}".encode())


async def notify(conn: Connection, channel: str) -> None:
    """Notify whoever listens to `channel`."""
    await conn.execute(f"notify {channel}".encode())


async def is_pooled(conn: Connection) -> bool:
    """Whether something between us and the server gives out its connections in turn."""
    return bool(await _value(conn, "select pg_backend_pid() <> %s", conn.info.backend_pid))


async def now(conn: Connection) -> datetime:
    """The database's clock."""
    at: datetime = await _value(conn, "select clock_timestamp()")
    return at


async def checkup(conn: Connection) -> list[Finding]:
    """What the database finds wrong with the installation, a finding a kind."""
    return await _rows(conn, Finding, f"select {_columns(Finding)} from pgcoord.checkup()")


async def runs_folder(conn: Connection, host: str) -> str | None:
    """Where the last coordinator of `host` that led keeps its runs; None when there was none."""
    folder: str | None = await _value(
        conn,
        "select runs_folder from pgcoord.coordinator where host = %s order by epoch desc limit 1",
        host,
    )
    return folder


async def ping(conn: Connection) -> None:
    """Ask the server for a sign of life.

    How long that may take is in the connection's own parameters.
    """
    await conn.execute(b"select")


async def claim_phases(conn: Connection, epoch: int) -> list[Assignment]:
    """Claim what is eligible, one phase for each free slot.

    Raises `AnotherLeads` when the lead is over, `Locked` when somebody holds the control row.
    """
    return await _rows(
        conn, Assignment, f"select {_columns(Assignment)} from pgcoord.claim_phases(%s)", epoch
    )


async def open_attempts(conn: Connection, host: str) -> list[OpenAttempt]:
    """The attempts of `host` whose process is not known to be gone."""
    return await _rows(
        conn,
        OpenAttempt,
        f"select {_columns(OpenAttempt)} from pgcoord.assignment where host = %s"
        " order by attempt_id",
        host,
    )


async def assignment(conn: Connection, attempt_id: int) -> Assignment | None:
    """All that is needed to take over an attempt; None when its process is gone."""
    return await _row(
        conn,
        Assignment,
        f"select {_columns(Assignment)} from pgcoord.assignment where attempt_id = %s",
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
    return str(await _value(conn, "select installation from pgcoord.control"))


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
    await _value(
        conn,
        "select pgcoord.start_phase(%s, %s, %s, %s)",
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
        "select pgcoord.end_attempt(%s, %s, %s, %s)",
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
    """End an attempt and read the move, in one round trip: what follows is logged after it."""
    with refusals():
        async with conn.pipeline():
            await conn.execute(statement.encode(), values)
            moves = conn.cursor(row_factory=class_row(Move))
            await moves.execute(_LAST_MOVE, _names(attempt))
        return await moves.fetchone()


async def return_attempt(
    conn: Connection, attempt: Assignment, wait: timedelta, reason: str
) -> Move | None:
    """Give a claimed attempt back unused; its phase waits for `wait`, and no attempt counts.

    Return the move that this makes its phase do.
    """
    return await _ended(
        conn,
        attempt,
        "select pgcoord.return_attempt(%s, %s, %s)",
        attempt.attempt_id,
        wait,
        reason,
    )


async def abandon_attempt(conn: Connection, epoch: int, attempt_id: int) -> None:
    """Give an attempt of another host up as lost, if that host's lease has run out.

    Raises `AnotherLeads` when the lead is over.
    """
    await _value(conn, "select pgcoord.abandon_attempt(%s, %s)", epoch, attempt_id)


async def expire_attempts(conn: Connection) -> None:
    """Ask for the end of attempts past their deadline."""
    await _value(conn, "select pgcoord.expire_attempts()")


async def agenda(conn: Connection, awaited: Collection[str]) -> Agenda:
    """When to look next, and what is locked besides `awaited`; for after a claim of nothing."""
    found = await _row(
        conn, Agenda, f"select {_columns(Agenda)} from pgcoord.agenda(%s)", list(awaited)
    )
    assert found is not None
    return found


async def issue_facts(conn: Connection, queue_id: str, repository: str) -> dict[str, Any]:
    """What the issue of a phase says besides its prompt. SQL: pgcoord.issue_facts."""
    found: dict[str, Any] = await _value(
        conn, "select pgcoord.issue_facts(%s, %s)", queue_id, repository
    )
    return found


async def intend_issue(
    conn: Connection, epoch: int, attempt_id: int, repository: str, *, looked: bool
) -> Intent:
    """Say that the issue of an attempt is about to be posted, or looked for; learn which.

    Raises `AnotherLeads` when the lead is over, `StaleAttempt` when the attempt was given up.
    """
    found = await _row(
        conn,
        Intent,
        f"select {_columns(Intent)} from pgcoord.intend_issue(%s, %s, %s, %s)",
        epoch,
        attempt_id,
        repository,
        looked,
    )
    assert found is not None
    return found


async def store_issue(conn: Connection, key: UUID, number: int, author: str, *, made: bool) -> None:
    """Keep the number of the issue with this marker, which was made just now, or found."""
    await _value(conn, "select pgcoord.store_issue(%s, %s, %s, %s)", key, number, author, made)


async def unpost_issue(conn: Connection, key: UUID) -> None:
    """Say that an issue that was about to be posted certainly was not made."""
    await _value(conn, "select pgcoord.unpost_issue(%s)", key)


async def do_without_issue(conn: Connection, attempt_id: int, reason: str) -> None:
    """Log that an attempt starts without an issue, and why."""
    await _value(conn, "select pgcoord.do_without_issue(%s, %s)", attempt_id, reason)


async def hold_issues(
    conn: Connection, wait: timedelta, grows: bool, reason: str, optional_after: timedelta | None
) -> Hold:
    """Have no phase claimed that has no issue yet, until GitHub is asked again."""
    found = await _row(
        conn,
        Hold,
        f"select {_columns(Hold)} from pgcoord.hold_issues(%s, %s, %s, %s)",
        wait,
        grows,
        reason,
        optional_after,
    )
    assert found is not None
    return found


async def release_issues(conn: Connection) -> None:
    """Have no phase wait for GitHub."""
    await _value(conn, "select pgcoord.release_issues()")


async def begin_errand(conn: Connection, repository: str) -> Errand:
    """Begin what is due on GitHub; without anything, its id is None."""
    found = await _row(
        conn, Errand, f"select {_columns(Errand)} from pgcoord.begin_errand(%s)", repository
    )
    assert found is not None
    return found


async def finish_errand(
    conn: Connection, errand_id: int, done: str | None, error: str | None
) -> None:
    """Say that an errand is done (what was done), or is given up (why)."""
    await _value(conn, "select pgcoord.finish_errand(%s, %s, %s)", errand_id, done, error)


async def postpone_errand(conn: Connection, errand_id: int, wait: timedelta, error: str) -> None:
    """Have an errand tried again after `wait`, doubled with each try."""
    await _value(conn, "select pgcoord.postpone_errand(%s, %s, %s)", errand_id, wait, error)


async def take_github_event(
    conn: Connection, event: Mapping[str, object], action: str
) -> tuple[str, list[str]]:
    """Record what happened on GitHub; return what became of it, and the phases it concerns."""
    with refusals():
        cursor = await conn.execute(
            b"select result, queue_ids from pgcoord.take_github_event(%s, %s)",
            [Jsonb(event), action],
        )
        row = await cursor.fetchone()
    assert row is not None
    return row[0], row[1]


async def await_phase(conn: Connection, queue_id: str) -> None:
    """Wait until nobody has the phase locked."""
    await conn.execute(
        b"select from public.phase_queue where queue_id = %s for no key update", [queue_id]
    )


async def await_control(conn: Connection) -> None:
    """Wait until nobody has the control row locked."""
    await conn.execute(b"select from pgcoord.control for no key update")


async def submit_feature(conn: Connection, feature: Mapping[str, object]) -> int:
    """Store a feature and queue its phases; return its id. Raises `InvalidInput`."""
    return int(await _value(conn, "select pgcoord.submit_feature(%s)", Jsonb(feature)))


async def features(conn: Connection, *, unfinished: bool) -> list[Feature]:
    """All features in order of their id, or those that are planned or in progress."""
    return await _rows(
        conn,
        Feature,
        f"select {_columns(Feature)} from pgcoord.feature"
        " where not %s or status in ('planned', 'in_progress') order by id",
        unfinished,
    )


async def feature(conn: Connection, feature_id: int) -> Feature:
    """One feature. Raises `NotFound`."""
    found = await _row(
        conn, Feature, f"select {_columns(Feature)} from pgcoord.feature where id = %s", feature_id
    )
    if found is None:
        raise NotFound(
            f"there is no feature {feature_id}",
            hint="'pgcoord status --all' shows those that exist.",
        )
    return found


async def board(conn: Connection, feature_id: int) -> list[BoardPhase]:
    """The phases of a feature in order of their number."""
    return await _rows(
        conn,
        BoardPhase,
        f"select {_columns(BoardPhase)} from pgcoord.board where feature_id = %s"
        " order by phase_number",
        feature_id,
    )


async def slots(conn: Connection) -> list[Slot]:
    """The slots, free ones too."""
    return await _rows(conn, Slot, f"select {_columns(Slot)} from pgcoord.slots order by slot")


async def slot_count(conn: Connection) -> int:
    """How many phases may run at once."""
    return int(await _value(conn, "select count(*) from pgcoord.slot where not draining"))


async def paused(conn: Connection) -> datetime | None:
    """Since when everything is paused; None when it is not."""
    since: datetime | None = await _value(conn, "select paused_at from pgcoord.control")
    return since


async def why(conn: Connection, queue_id: str) -> list[Reason]:
    """Why a phase is where it is, most decisive reason first. Raises `NotFound`."""
    return await _rows(conn, Reason, "select kind, words, refers_to from pgcoord.why(%s)", queue_id)


async def attempts(conn: Connection, queue_id: str) -> list[Attempt]:
    """The attempts of a phase, first to last. Raises `NotFound`."""
    await why(conn, queue_id)
    return await _rows(
        conn,
        Attempt,
        f"select {_columns(Attempt)} from pgcoord.attempt where queue_id = %s order by number",
        queue_id,
    )


async def status_of(conn: Connection, queue_id: str) -> str:
    """The status of a phase. Raises `NotFound`."""
    status = await _value(
        conn, "select status from public.phase_queue where queue_id = %s", queue_id
    )
    if status is None:
        raise NotFound(
            f"there is no phase {queue_id}", hint="'pgcoord status' shows those that exist."
        )
    return str(status)


async def retry_phase(conn: Connection, queue_id: str, reason: str | None) -> str:
    """Queue a failed or cancelled phase again; return its status."""
    return str(
        await _value(conn, "select status from pgcoord.retry_phase(%s, %s)", queue_id, reason)
    )


async def skip_phase(conn: Connection, queue_id: str, reason: str | None) -> str:
    """Take a phase that does not run as completed; return its status."""
    return str(
        await _value(conn, "select status from pgcoord.skip_phase(%s, %s)", queue_id, reason)
    )


async def cancel_phase(conn: Connection, queue_id: str, reason: str | None) -> str:
    """Give a phase up; return its status, ready or running while its process is being ended."""
    return str(
        await _value(conn, "select status from pgcoord.cancel_phase(%s, %s)", queue_id, reason)
    )


async def cancel_feature(conn: Connection, feature_id: int, reason: str | None) -> int:
    """Give a feature up; return how many phases that concerns."""
    return int(await _value(conn, "select pgcoord.cancel_feature(%s, %s)", feature_id, reason))


async def pause(conn: Connection, feature_id: int | None, reason: str | None) -> None:
    """Claim nothing new, of one feature or of all."""
    await _value(conn, "select pgcoord.pause(%s, %s)", feature_id, reason)


async def resume(conn: Connection, feature_id: int | None) -> None:
    """Claim again, of one feature or of all that were paused as a whole."""
    await _value(conn, "select pgcoord.resume(%s)", feature_id)


async def set_slots(conn: Connection, slots: int) -> None:
    """Let so many phases run at once."""
    await _value(conn, "select pgcoord.set_slots(%s)", slots)


async def set_priority(conn: Connection, queue_id: str, priority: int) -> None:
    """Change the place in line of a phase; lower runs earlier."""
    await _value(conn, "select pgcoord.set_priority(%s, %s)", queue_id, priority)


async def prune(conn: Connection, older_than: timedelta) -> int:
    """Remove features that were finished that long ago, with their history; return how many."""
    return int(await _value(conn, "select pgcoord.prune(%s)", older_than))


async def queue_id_of(conn: Connection, feature_id: int, phase_number: int) -> str | None:
    """The name of a phase by its number in its feature; None when there is none."""
    name: str | None = await _value(
        conn,
        "select queue_id from public.phase_queue where feature_id = %s and phase_number = %s",
        feature_id,
        phase_number,
    )
    return name


async def last_reasons(conn: Connection, feature_id: int) -> dict[int, str]:
    """The reason logged with the last move of each phase of a feature, where one was."""
    with refusals():
        cursor = await conn.execute(
            b"select distinct on (phase_number) phase_number, reason from pgcoord.event"
            b" where feature_id = %s and kind = 'phase_moved' order by phase_number, id desc",
            [feature_id],
        )
        return {number: reason for number, reason in await cursor.fetchall() if reason}


@asynccontextmanager
async def one_snapshot(conn: Connection) -> AsyncIterator[None]:
    """Have all statements of the block see the database as it is at the first of them."""
    async with conn.transaction():
        await conn.execute(b"set transaction isolation level repeatable read, read only")
        yield


async def events_after(
    conn: Connection, last: int, gaps: Sequence[tuple[int, int]], limit: int
) -> list[HistoryEvent]:
    """Events with an id above `last` or within one of `gaps`, lowest ids first."""
    return await _rows(
        conn,
        HistoryEvent,
        f"select {_columns(HistoryEvent)} from pgcoord.events_after(%s, %s, %s, %s)",
        last,
        [low for low, _ in gaps],
        [high for _, high in gaps],
        limit,
    )


async def last_event(conn: Connection, back: int) -> tuple[int, tuple[tuple[int, int], ...]]:
    """The highest id of an event, and the ranges missing among the last `back` events."""
    with refusals():
        cursor = await conn.execute(b"select last, lows, highs from pgcoord.last_event(%s)", [back])
        row = await cursor.fetchone()
    assert row is not None
    last, lows, highs = row
    return last, tuple(zip(lows, highs, strict=True))


async def event_writers(conn: Connection) -> frozenset[str]:
    """The transactions under way that may have written events."""
    with refusals():
        cursor = conn.cursor(row_factory=scalar_row)
        await cursor.execute(b"select pgcoord.event_writers()")
        return frozenset(await cursor.fetchall())


async def report_secrets(conn: Connection, report: object) -> list[tuple[str, str]]:
    """The attempts that a report may be of, by adw_id, latest first, each with its secret."""
    with refusals():
        cursor = await conn.execute(
            b"select adw_id, secret from pgcoord.report_secrets(%s)", [Jsonb(report)]
        )
        return await cursor.fetchall()


async def take_report(
    conn: Connection,
    report: Mapping[str, object],
    *,
    message_id: str | None,
    actor: str,
    adw_id: str | None,
) -> TakenReport:
    """Take a report, as of the attempt `adw_id` where its secret signed it; log the delivery."""
    taken = await _row(
        conn,
        TakenReport,
        f"select {_columns(TakenReport)} from pgcoord.take_report(%s, %s, %s, %s)",
        Jsonb(report),
        message_id,
        actor,
        adw_id,
    )
    assert taken is not None
    return taken


async def store_feature(conn: Connection, feature: Mapping[str, object]) -> int:
    """Store a feature with its plan, and run nothing; return its id. Raises `InvalidInput`."""
    return int(await _value(conn, "select pgcoord.store_feature(%s)", Jsonb(feature)))


async def change_feature(
    conn: Connection, feature_id: int, changes: Mapping[str, object], version: str | None
) -> None:
    """Change what is given; with `version` only if that is the one in force."""
    await _value(
        conn, "select pgcoord.change_feature(%s, %s, %s)", feature_id, Jsonb(changes), version
    )


@dataclass(frozen=True)
class FeatureToPlan:
    """What a feature is planned from."""

    title: str
    description: str | None
    item_type: str
    estimated_hours: float | None
    version: str


async def feature_to_plan(conn: Connection, feature_id: int) -> FeatureToPlan:
    """What a feature is planned from. Raises `NotFound`; `Refused` once its phases are queued."""
    found = await _row(
        conn,
        FeatureToPlan,
        f"select {_columns(FeatureToPlan)} from pgcoord.feature_to_plan(%s)",
        feature_id,
    )
    assert found is not None
    return found


async def execute_feature(conn: Connection, feature_id: int) -> int:
    """Queue the planned phases; return how many, 0 when they were queued before."""
    return int(await _value(conn, "select pgcoord.execute_feature(%s)", feature_id))


async def feature_object(conn: Connection, feature_id: int) -> dict[str, Any]:
    """A feature with its phases, as JSON. Raises `NotFound`."""
    found: dict[str, Any] = await _value(conn, "select pgcoord.feature_object(%s)", feature_id)
    return found


async def measures(conn: Connection) -> Measures:
    """What a monitor wants to know of the moment; counts all phases."""
    found = await _row(conn, Measures, f"select {_columns(Measures)} from pgcoord.measures()")
    assert found is not None
    return found


async def ended_attempts(conn: Connection, events: Collection[int]) -> list[EndedAttempt]:
    """The attempts that ended with these events."""
    columns = _columns(EndedAttempt)
    statement = f"select {columns} from pgcoord.ended_attempts(%s)"
    return await _rows(conn, EndedAttempt, statement, list(events))


@dataclass(frozen=True)
class Listing:
    """What is wanted of a list: columns and the values they may have, the order, and which part."""

    filters: Mapping[str, Collection[object]]
    order: str
    limit: int
    offset: int = 0

    def sql(self, orders: Mapping[str, str]) -> tuple[str, list[object]]:
        """The clauses, and their values; `order` is a key of `orders`."""
        tests = " and ".join(f"{column} = any(%s)" for column in self.filters) or "true"
        clauses = f"where {tests} order by {orders[self.order]} limit %s offset %s"
        return clauses, [*map(list, self.filters.values()), self.limit, self.offset]


QUEUE_ORDERS = {
    "feature": "feature_id, phase_number",
    "line": "slot nulls last, priority, queue_position, feature_id, phase_number",
    "updated": "updated_at desc, feature_id, phase_number",
}

FEATURE_ORDERS = {
    "id": "id",
    "newest": "id desc",
    "priority": "priority, id",
    "updated": "updated_at desc, id",
}


async def queue_objects(conn: Connection, listing: Listing) -> list[dict[str, Any]]:
    """Phases with what they wait for, as JSON."""
    clauses, values = listing.sql(QUEUE_ORDERS)
    names = f"select queue_id from public.phase_queue {clauses}"
    return await _values(conn, f"select pgcoord.phase_objects(array({names}))", *values)


async def feature_objects(conn: Connection, listing: Listing) -> list[dict[str, Any]]:
    """Features without their phases, as JSON. SQL: view pgcoord.feature."""
    clauses, values = listing.sql(FEATURE_ORDERS)
    return await _values(
        conn,
        f"select to_jsonb(f) - 'plan' from (select * from pgcoord.feature {clauses}) as f",
        *values,
    )


async def phase_object(conn: Connection, queue_id: str) -> dict[str, Any]:
    """A phase with what it waits for, as JSON. Raises `NotFound`. SQL: view pgcoord.queue."""
    found: dict[str, Any] | None = await _value(
        conn, "select to_jsonb(q) from pgcoord.queue as q where queue_id = %s", queue_id
    )
    if found is None:
        raise NotFound(
            f"there is no phase {queue_id}", hint="'pgcoord status' shows those that exist."
        )
    return found


async def slot_objects(conn: Connection) -> list[dict[str, Any]]:
    """The slots and what holds each, as JSON."""
    return await _values(conn, "select to_jsonb(s) from pgcoord.slots as s order by s.slot")


async def queue_snapshot(conn: Connection, limit: int) -> dict[str, Any]:
    """What a watcher of the queue sees first: phases that have not ended, those in slots first."""
    waiting = ["queued", "ready", "running", "blocked"]
    since = await paused(conn)
    return {
        "queue": await queue_objects(conn, Listing({"status": waiting}, "line", limit)),
        "total": await _value(
            conn, "select count(*) from public.phase_queue where status = any(%s)", waiting
        ),
        "slots": await slot_objects(conn),
        "paused_at": since and since.isoformat(),
    }


async def _values(conn: Connection, statement: str, *values: object) -> list[Any]:
    with refusals():
        cursor = await conn.cursor(row_factory=scalar_row).execute(statement.encode(), values)
        return await cursor.fetchall()
