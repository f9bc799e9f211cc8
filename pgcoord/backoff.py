"""How long to wait before something that failed is tried again."""

import random


class Backoff:
    """Seconds before the next try: from 0.05 doubling to `most`, jittered so that many spread.

    Not above 0.8 by itself: a stand-by server that was promoted is to be found within a second.
    """

    def __init__(self, most: float = 0.8) -> None:
        self._most = most
        self.reset()

    def reset(self) -> None:
        """Begin again: it worked."""
        self._seconds = 0.05
        self._said: set[str] = set()

    def next(self) -> float:
        """Seconds to wait now."""
        seconds, self._seconds = self._seconds, min(self._seconds * 2, self._most)
        return seconds * random.uniform(0.5, 1.0)

    def repeats(self, reason: str) -> bool:
        """Whether that was the reason of an earlier try, too."""
        repeated = reason in self._said
        self._said.add(reason)
        return repeated
