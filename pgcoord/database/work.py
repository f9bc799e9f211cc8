"""The rows that SQL functions return to a coordinator: its work, and what it has recorded.

The one rule is that of rows.py.
"""

from dataclasses import field
from datetime import datetime
from typing import Any
from uuid import UUID

from pgcoord.database._record import Record


class Lead(Record):
    """The coordinator that leads: this one (`led`) or another; all None if none does."""

    led: bool
    epoch: int | None
    host: str | None
    pid: int | None

    def __str__(self) -> str:
        return "nobody" if self.pid is None else f"process {self.pid} on {self.host}"


class ServerTimeline(Record):
    """The WAL timeline of a server; of two with the same `system`, the higher one is newer."""

    system: int | None
    timeline: int | None


class Assignment(Record):
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


class DeclaredPool(Record):
    """A pool as a coordinator declared it; `settings` are the keys of its launcher."""

    name: str
    launcher: str
    settings: dict[str, Any]


class Unclaimable(Record):
    """A phase whose claim failed with *error*, and which is set aside for a while."""

    queue_id: str
    error: str


class OpenAttempt(Record):
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


class Claimed(Record):
    """The result of recording ends and claiming what follows, in one transaction.

    `answers`: for each end, in order, what was recorded; None if it has to be recorded by itself.
    `claimed` is None if the claim has to be made by itself.
    """

    answers: list["Recorded | None"]
    claimed: list[Assignment] | None


class Recorded(Record):
    """An end that is recorded; `answer` as pgcoord_private.record_end returns it."""

    answer: dict[str, Any] | None


class Move(Record):
    """A transition of a phase, as the event log has it."""

    from_status: str
    to_status: str
    reason: str | None


class Intent(Record):
    """Whether to create the issue now (`posts`), search for it by `key`, or use `number`.

    `wait_seconds`: repeat the search after that.
    """

    number: int | None
    key: UUID
    intended_at: datetime
    posts: bool
    wait_seconds: float | None


class Hold(Record):
    """A suspension of requests to GitHub: its seconds, and whether phases start meanwhile."""

    wait_seconds: float
    optional: bool


class GitHubTask(Record):
    """The next GitHub task. If none is due, `id` is None and `due_in` holds the seconds until then.

    `due_in` is None if no task is queued.
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


class NextWork(Record):
    """The work of a coordinator before it waits, and its reasons not to wait for long.

    `changed`: those of the attempts it named that are open. `due_in`: seconds until the next
    deadline (None: there is none). `abandoned`: ids of attempts on hosts whose lease has expired.
    `locked`: names of locks that prevent a claim or an end.
    """

    changed: list[OpenAttempt]
    due_in: float | None
    abandoned: list[int]
    locked: list[str]
