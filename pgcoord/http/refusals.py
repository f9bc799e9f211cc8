"""The log of refused reports, which anybody may send: each reason once a minute."""

import logging
import time

from starlette.requests import Request

from pgcoord.errors import CoordError, NotFound

logger = logging.getLogger(__name__)

# Seconds in which a reason is logged once.
_EVERY = 60.0

# Reasons that are remembered; the ones that were logged longest ago are forgotten first.
_MOST = 100


class Refusals:
    """Logs refusals, and counts those that it leaves out."""

    def __init__(self) -> None:
        self._logged: dict[
            str, tuple[float, int]
        ] = {}  # by act and reason: when, and left out since

    def warn(self, request: Request, act: str, words: str, error: Exception) -> None:
        """Log *words* and *error*, unless that was said of such an *act* within the minute."""
        now = time.monotonic()
        reason, hint = str(error), error.hint if isinstance(error, CoordError) else None
        # Without the sender's own number or time, which may differ each time.
        key = f"{act}: {'unknown' if isinstance(error, NotFound) else reason}"
        at, left_out = self._logged.get(key, (now - _EVERY, 0))
        if now - at < _EVERY:
            self._logged[key] = at, left_out + 1
            return
        self._logged.pop(key, None)
        self._logged[key] = now, 0
        if len(self._logged) > _MOST:
            del self._logged[next(iter(self._logged))]
        sender = request.client.host if request.client else "unknown"
        more = f" ({left_out} more were refused for that since)" if left_out else ""
        if hint:
            reason = f"{reason} ({hint})"
        logger.warning("%s (from %s): %s%s", words, sender, reason, more)
