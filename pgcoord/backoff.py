"""How long to wait before something that failed is tried again."""

import random


class Backoff:
    """Seconds before the next try: doubling up to `most`, jittered so that many spread."""

    def __init__(self, first: float = 0.05, most: float = 5.0) -> None:
        self._first, self._most = first, most
        self.reset()

    def reset(self) -> None:
        """Begin again: it worked."""
        self._seconds = self._first

    def next(self) -> float:
        """Seconds to wait now."""
        seconds, self._seconds = self._seconds, min(self._seconds * 2, self._most)
        return seconds * random.uniform(0.5, 1.0)
