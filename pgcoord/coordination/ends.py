"""Ends of attempts, recorded by the leader's loop in one statement with its next claim.

Each end that is handed in gets an answer: what was recorded, or None, upon which the caller records
it in a statement of its own. While this coordinator does not lead, None is returned at once.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pgcoord.database.claims import End
from pgcoord.database.work import Recorded

# How many ends one transaction records: it holds the locks of all until its commit.
_MOST = 50


@dataclass(eq=False)
class Handed:
    """An end that waits for the loop; *answer* resolves to what was recorded, or to None."""

    end: End
    answer: "asyncio.Future[Recorded | None]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def settle(self, recorded: Recorded | None) -> None:
        """Resolve the answer, unless it is resolved, or its caller was cancelled."""
        if not self.answer.done():
            self.answer.set_result(recorded)


class Ends:
    """The queue of ends. Closed at first: no end is accepted."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """Call *wake* when an end is handed in."""
        self._wake = wake
        self._waiting: deque[Handed] = deque()
        self._is_open = False

    def open(self) -> None:
        """Accept ends from now on; a loop must take them."""
        self._is_open = True

    def close(self) -> None:
        """Accept no more ends, and answer None to each one that waits."""
        self._is_open = False
        while self._waiting:
            self._waiting.popleft().settle(None)

    async def record(self, end: End) -> Recorded | None:
        """Hand in *end*, wait until the loop recorded it, and return what was recorded.

        None: nothing was, so the caller has to record it by itself.
        """
        if not self._is_open:
            return None
        handed = Handed(end)
        self._waiting.append(handed)
        self._wake()
        return await handed.answer

    @contextmanager
    def take(self) -> Iterator[list[Handed]]:
        """Yield the waiting ends, a limited number; those that the block does not resolve are
        answered with None."""
        batch = [self._waiting.popleft() for _ in range(min(_MOST, len(self._waiting)))]
        try:
            yield batch
        finally:
            for handed in batch:
                handed.settle(None)
            if self._waiting:
                self._wake()
