"""The due times of a cron expression in a time zone. A change of the clocks is handled as by
Debian's cron: a fixed time is due once, even if it does not exist or occurs twice; hourly or
minutely times stay evenly spaced.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

# How far back to search for the latest due time, step by step: each step computes some hundred
# times at most, however frequent they are.
_BACK = (timedelta(hours=1), timedelta(days=2), timedelta(days=62), timedelta(days=732))


class NeverDue(Exception):
    """A cron expression, or a time zone, has no due times; the message says why."""


def due_times(cron: str, timezone: str, after: datetime) -> Iterator[datetime]:
    """Yield the due times after *after* in order, in UTC, without end. Raises `NeverDue`."""
    try:
        times = CronSim(cron, after.astimezone(ZoneInfo(timezone)))
    except (CronSimError, ValueError, AssertionError) as error:
        raise NeverDue(f"{cron!r:.200} is not a cron expression: {error}") from error
    except (ZoneInfoNotFoundError, OSError) as error:
        raise NeverDue(f"this machine does not know the time zone {timezone!r:.100}") from error
    last = after
    # The library gives a time that a change of the clocks has moved more than once.
    for each in times:
        at = each.astimezone(UTC)
        if at > last:
            yield at
            last = at
    raise NeverDue(f"{cron!r:.200} never comes: there is no such day within 50 years")


def latest_due(cron: str, timezone: str, first: datetime, now: datetime) -> datetime:
    """Return the last due time until *now*; *first* is the first one. Raises `NeverDue`."""
    for length in _BACK:
        latest = None
        for at in due_times(cron, timezone, max(first, now - length)):
            if at > now:
                break
            latest = at
        if latest is not None:
            return latest
        if now - length <= first:
            return first
    for at in due_times(cron, timezone, first):
        if at > now:
            return first
        first = at
    return first
