"""Delays before a failed operation is retried."""

import random


class Backoff:
    """Exponential delays in seconds: from 0.05, doubling up to *most*, with jitter of a half.

    The default of *most* is 0.8, so that a promoted stand-by server is found within a second.
    """

    def __init__(self, most: float = 0.8) -> None:
        self._most = most
        self.reset()

    def reset(self) -> None:
        """Start again at 0.05 s and forget all reasons; call it after a success."""
        self._seconds = 0.05
        self._said: set[str] = set()

    def next(self) -> float:
        """Return the seconds to wait before the next retry, and double the delay."""
        seconds, self._seconds = self._seconds, min(self._seconds * 2, self._most)
        return seconds * random.uniform(0.5, 1.0)

    def repeats(self, reason: str) -> bool:
        """Whether *reason* was given before since the last `reset`; remember it."""
        repeated = reason in self._said
        self._said.add(reason)
        return repeated
