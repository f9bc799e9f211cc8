"""What the database's functions and views return: one dataclass for each type of row."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from pgcoord.database._sql import ERRORS
from pgcoord.errors import CoordError


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
class ServerTimeline:
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
class GitHubTask:
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
class NextWork:
    """What is left when there is nothing to claim.

    When to look next unwoken (seconds, None: never), attempts of hosts of which nothing is heard
    any more, and the locks that keep something from being claimed or ended.
    """

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
    """One try at a phase, without its secret. SQL: table pgcoord.attempt."""

    number: int
    adw_id: str
    slot: int
    host: str | None
    pid: int | None
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
        return ERRORS[self.code](self.reason or self.code, hint=self.hint)


@dataclass(frozen=True)
class FeatureToPlan:
    """What a feature is planned from."""

    title: str
    description: str | None
    item_type: str
    estimated_hours: float | None
    version: str
