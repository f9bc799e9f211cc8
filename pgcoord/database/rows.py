"""The rows that the SQL functions and views return to readers, actions and reports.

The one rule: one class for each type of row, its fields named and ordered as the columns. Those of
a coordinator are in work.py.
"""

from datetime import datetime
from typing import Any

from pgcoord.database._record import Record
from pgcoord.database._sql import ERRORS
from pgcoord.errors import CoordError


class Leader(Record):
    """The coordinator that leads."""

    epoch: int
    host: str
    pid: int
    version: str
    lead_at: datetime


class LeadBlocker(Record):
    """A session whose lock keeps every coordinator from the lead, and the SQL that ends it."""

    words: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.words} (end it: {self.remedy})"


class Feature(Record):
    """A feature, with its state and counts derived from its phases."""

    id: int
    title: str
    status: str
    total_phases: int
    phases_completed: int
    phases_running: int
    phases_failed: int
    phases_blocked: int
    paused_at: datetime | None
    cost_usd: float | None
    tokens_in: int | None
    tokens_out: int | None
    max_cost_usd: float | None


class Cost(Record):
    """What the attempts of a workflow have cost in a feature, in US dollars and tokens."""

    feature_id: int
    workflow: str
    attempts: int
    cost_usd: float | None
    tokens_in: int | None
    tokens_out: int | None


class BoardPhase(Record):
    """A phase as the board shows it.

    `since`: the time at which its state began. `waiting_for`: why it does not run, in words.
    `skipped`: it was marked as completed without being run to its end.
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
    result: dict[str, Any] | None
    skipped: bool


class Slot(Record):
    """A slot and the phase that holds it, if any; `job` and `node` are of an engine's job.

    `waits_for`: why that waits, or what this machine lacks to start a process.
    """

    slot: int
    draining: bool
    queue_id: str | None
    title: str | None
    status: str | None
    since: datetime | None
    pool: str
    launcher: str
    job: str | None
    node: str | None
    waits_for: str | None


class Pool(Record):
    """A pool, and how many of its slots are held.

    One that is not `declared` was taken out of the configuration: its phases run to their end.
    """

    pool: str
    launcher: str
    declared: bool
    slots: int
    held: int
    draining: int


class Reason(Record):
    """One reason for the state of a phase; `refers_to` names what it depends on, if anything."""

    kind: str
    words: str
    refers_to: str | None


class Attempt(Record):
    """One try at a phase, without its secret. SQL: tables pgcoord.attempt and pgcoord.result."""

    number: int
    adw_id: str
    slot: int
    pool: str
    launcher: str | None
    host: str | None
    pid: int | None
    node: str | None
    job: str | None
    workflow: str | None
    external: bool
    claimed_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    deadline: datetime | None
    ending: str | None
    outcome: str | None
    error: str | None
    exit_code: int | None
    exited_at: datetime | None
    folder: str | None
    result: dict[str, Any] | None


class Finding(Record):
    """One result of the checkup; `level` is ok, warn or fail, `remedy` the advice unless ok."""

    kind: str
    level: str
    words: str
    remedy: str | None


class Answer(Record):
    """The answer to a process: accepted, or refused for `reason` with the SQLSTATE `code`."""

    code: str | None
    reason: str | None
    hint: str | None

    def refusal(self) -> CoordError | None:
        """Return the refusal as an error; None if the request was accepted."""
        if self.code is None:
            return None
        return ERRORS[self.code](self.reason or self.code, hint=self.hint)


class TakenReport(Answer):
    """The answer to a report."""

    repeated: bool
    queue_id: str | None
    feature_id: int | None
    phase_number: int | None
    adw_id: str | None
    attempt: int | None
    outcome: str | None
    status: str | None
