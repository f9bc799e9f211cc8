"""The rows that the SQL functions and views return.

The one rule: one dataclass for each type of row, its fields named and ordered as the columns.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from pgcoord.database._sql import ERRORS
from pgcoord.errors import CoordError


@dataclass(frozen=True)
class Lead:
    """The coordinator that leads: this one (`led`) or another; all None if none does."""

    led: bool
    epoch: int | None
    host: str | None
    pid: int | None

    def __str__(self) -> str:
        return "nobody" if self.pid is None else f"process {self.pid} on {self.host}"


@dataclass(frozen=True)
class ServerTimeline:
    """The WAL timeline of a server; of two with the same `system`, the higher one is newer."""

    system: int | None
    timeline: int | None


@dataclass(frozen=True)
class Assignment:
    """An attempt whose process may be alive, with all columns that its supervision needs."""

    attempt_id: int
    queue_id: str
    feature_id: int
    phase_number: int
    attempt: int
    adw_id: str
    secret: str = field(repr=False)
    host: str | None
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
    pool: str
    has_inputs: bool
    environment: dict[str, str] | None = field(repr=False)

    def __str__(self) -> str:
        return f"{self.queue_id} (attempt {self.attempt}, {self.adw_id})"


@dataclass(frozen=True)
class DeclaredPool:
    """A pool as a coordinator declared it; `settings` are the keys of its launcher."""

    name: str
    launcher: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Unclaimable:
    """A phase whose claim failed with *error*, and which is set aside for a while."""

    queue_id: str
    error: str


@dataclass(frozen=True)
class OpenAttempt:
    """The changing part of an `Assignment`.

    `ended`: the workflow has reported the end. `ending`: why the process has to be ended (None: it
    need not). `ended_seconds_ago`: seconds since that report.
    """

    attempt_id: int
    folder: str
    started: bool
    ended: bool
    ending: str | None
    ended_seconds_ago: float | None


@dataclass(frozen=True)
class Claimed:
    """The result of recording ends and claiming what follows, in one transaction.

    `answers`: for each end, in order, what was recorded; None if it has to be recorded by itself.
    `claimed` is None if the claim has to be made by itself.
    """

    answers: list["Recorded | None"]
    claimed: list[Assignment] | None


@dataclass(frozen=True)
class Recorded:
    """An end that is recorded; `answer` as pgcoord_private.record_end returns it."""

    answer: dict[str, Any] | None


@dataclass(frozen=True)
class Move:
    """A transition of a phase, as the event log has it."""

    from_status: str
    to_status: str
    reason: str | None


@dataclass(frozen=True)
class Intent:
    """Whether to create the issue now (`posts`), search for it by `key`, or use `number`.

    `wait_seconds`: repeat the search after that.
    """

    number: int | None
    key: UUID
    intended_at: datetime
    posts: bool
    wait_seconds: float | None


@dataclass(frozen=True)
class Hold:
    """A suspension of requests to GitHub: its seconds, and whether phases start meanwhile."""

    wait_seconds: float
    optional: bool


@dataclass(frozen=True)
class GitHubTask:
    """The next GitHub task. If none is due, `id` is None and `due_in` holds the seconds until it.

    `due_in` is None if there is none at all.
    """

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
class NextWork:
    """What a coordinator has to do before it rests, and its reasons not to wait for long.

    `changed`: the open ones of the attempts that it asked for. `due_in`: seconds until the next
    deadline (None: there is none). `abandoned`: ids of attempts on hosts whose lease has expired.
    `locked`: names of locks that prevent a claim or an end.
    """

    changed: list[OpenAttempt]
    due_in: float | None
    abandoned: list[int]
    locked: list[str]


@dataclass(frozen=True)
class Leader:
    """The coordinator that leads."""

    epoch: int
    host: str
    pid: int
    version: str
    lead_at: datetime


@dataclass(frozen=True)
class LeadBlocker:
    """A session that holds the lock of the lead without leading, and the SQL that ends it."""

    words: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.words} (end it: {self.remedy})"


@dataclass(frozen=True)
class Feature:
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


@dataclass(frozen=True)
class Cost:
    """What the attempts of a workflow have cost in a feature, in US dollars and tokens."""

    feature_id: int
    workflow: str
    attempts: int
    cost_usd: float | None
    tokens_in: int | None
    tokens_out: int | None


@dataclass(frozen=True)
class BoardPhase:
    """A phase as the board shows it.

    `since`: the time at which its state began. `waiting_for`: why it does not run, in words.
    `skipped`: it was taken as completed without being run to its end.
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


@dataclass(frozen=True)
class Slot:
    """A slot and the phase that holds it, if any; `job` to `waits_for` are of an engine's job."""

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


@dataclass(frozen=True)
class Pool:
    """A pool, and how many of its slots are held.

    One that is not `declared` was taken out of the configuration: its phases run to their end.
    """

    pool: str
    launcher: str
    declared: bool
    slots: int
    held: int
    draining: int


@dataclass(frozen=True)
class Reason:
    """One reason for the state of a phase; `refers_to` names what it depends on, if anything."""

    kind: str
    words: str
    refers_to: str | None


@dataclass(frozen=True)
class Attempt:
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


@dataclass(frozen=True)
class Finding:
    """One result of the checkup; `level` is ok, warn or fail, `remedy` the advice unless ok."""

    kind: str
    level: str
    words: str
    remedy: str | None


@dataclass(frozen=True)
class HistoryEvent:
    """One event of the log."""

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
    """The gauges of /metrics.

    `phases` counts by state, `pools` are rows of the view; `notification_queue_usage` is 0 to 1.
    """

    phases: dict[str, int] | None
    pools: list[dict[str, Any]]
    paused: bool
    oldest_eligible_seconds: float | None
    notification_queue_usage: float


@dataclass(frozen=True)
class EndedAttempt:
    """The durations of an ended attempt; only a phase's first attempt has `waited_seconds`."""

    workflow: str | None
    outcome: str
    waited_seconds: float | None
    ran_seconds: float | None


@dataclass(frozen=True)
class TakenReport:
    """The result of a report: accepted, or refused for `reason` with the SQLSTATE `code`."""

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
        """Return the refusal as an error; None if the report was accepted."""
        if self.code is None:
            return None
        return ERRORS[self.code](self.reason or self.code, hint=self.hint)


@dataclass(frozen=True)
class FeatureToPlan:
    """The columns of a feature that its plan is made from."""

    title: str
    description: str | None
    item_type: str
    estimated_hours: float | None
    version: str
