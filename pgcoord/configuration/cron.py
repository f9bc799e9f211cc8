"""The due times of a cron expression in a time zone.

Across a change of the clocks as Debian's cron does: what is due at a fixed time runs once, also
where that time does not exist or comes twice; what is due each hour or minute goes on evenly.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

# How far back the latest due time is looked for, step by step: each step costs some hundred times
# at most, however often something is due.
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
