"""What a coordinator offers to the tasks that run beside its loop.

The coordinator imports those tasks; they know it by this interface alone.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Protocol, TypeVar

from pgcoord.configuration.model import Configuration
from pgcoord.coordination.launching import Launcher
from pgcoord.coordination.retrying import Fact
from pgcoord.database import _sql, claims
from pgcoord.database.work import Assignment

Result = TypeVar("Result")


class IssueMaker(Protocol):
    """Makes the issue of a phase before its job starts."""

    async def issue_for(self, assignment: Assignment, epoch: int) -> int | None:
        """Return the number of its issue; None if the phase starts without one.

        Raises `NotNow` when the phase has to wait for its issue, `CannotStart` when it fails.
        """
        ...


class Coordination(Protocol):
    """A coordinator, as supervision, issues, notices and schedules use it."""

    host: str
    leads: asyncio.Event
    configuration: Configuration
    launcher: Launcher
    environment: Mapping[str, str]
    report_url: str | None

    @property
    def supervised_folders(self) -> frozenset[str]:
        """The folders of the attempts that this coordinator supervises."""
        ...

    def create_task(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run *coroutine* beside the loop; it has to end when the coordinator is stopped."""
        ...

    @property
    def issues(self) -> IssueMaker | None:
        """The maker of issues; None if GitHub is not configured."""
        ...

    @property
    def epoch(self) -> int:
        """The number of our lead, by which the database refuses one that is over."""
        ...

    @property
    def is_stopping(self) -> bool:
        """Whether the coordinator is being stopped, so that nothing new may begin."""
        ...

    def page_of(self, queue_id: str) -> str | None:
        """The public address of a phase's page; None without a configured public_url."""
        ...

    async def execute_with_retry(
        self,
        statement: Callable[[_sql.Connection], Awaitable[Result]],
        fact: Fact | None = None,
    ) -> Result:
        """Run *statement*, retrying with back-off while the connection is lost.

        *statement* must be idempotent. While a lock prevents the record of *fact*, the panel shows
        that. Raises `Stopped` when the coordinator is stopped first.
        """
        ...

    async def record(self, end: claims.End, fact: Fact) -> dict[str, Any] | None:
        """Record *end*, and claim what follows in the same transaction if this coordinator leads.

        Return what pgcoord_private.record_end returns. Retries as `execute_with_retry` does.
        """
        ...

    async def unless_stopped(self, awaitable: Awaitable[Result]) -> Result | None:
        """Await *awaitable*; return None when the coordinator is stopped first."""
        ...

    def note_recorded(self) -> None:
        """Wake the coordinator, which on shutdown waits until each start is recorded."""
        ...
