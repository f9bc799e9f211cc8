"""Format times, durations and numbers for the panel.

A time is a `time` element: its text is relative, its title has date and zone. All times of a page
are in the time zone of its `now`. The script (web/static/panel.js) updates the relative ones, with
the same words.
"""

from datetime import datetime, timedelta

from markupsafe import Markup, escape

STATES = ("failed", "blocked", "running", "ready", "queued", "completed", "cancelled")

# The filters of features in the overview, besides the states of phases.
FEATURE_FILTERS = ("all", "attention", "in_progress", "planned", "finished")


def lasting(value: timedelta | float) -> str:
    """Return a duration (a float: in seconds) in one or two units: 24 s, 2 h 5 min, 3 d 4 h."""
    seconds = int(max(0, value.total_seconds() if isinstance(value, timedelta) else value))
    if seconds < 60:
        return f"{seconds} s"
    minutes = seconds // 60
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def since(at: datetime, now: datetime) -> Markup:
    """Return an element with the duration from *at* to *now*, such as "5 min"."""
    return _time(at, lasting(now - at), "since", now)


def ago(at: datetime, now: datetime) -> Markup:
    """Return an element such as "5 min ago", or "in 5 min" if *at* is after *now*."""
    if at > now:
        return _time(at, f"in {lasting(at - now)}", "ago", now)
    return _time(at, f"{lasting(now - at)} ago", "ago", now)


def clock_text(at: datetime, now: datetime) -> str:
    """Return the time of day to the minute, with the date if it is not the day of *now*."""
    return _clock(at, now, "%H:%M")


def clock(at: datetime, now: datetime) -> Markup:
    """Return `clock_text` as an element."""
    return _time(at, clock_text(at, now), None, now)


def clock_seconds(at: datetime, now: datetime) -> Markup:
    """Return an element with the time to the second, and the date if it is not that of *now*."""
    return _time(at, _clock(at, now, "%H:%M:%S"), None, now)


def moment(seconds: float, now: datetime) -> datetime:
    """Return the time that is *seconds* after 1970-01-01 UTC, in the time zone of *now*."""
    return datetime.fromtimestamp(seconds, now.tzinfo)


def in_full(at: datetime) -> str:
    """Return date, time and zone in words, for a title."""
    return f"{at.day} {at:%B %Y, %H:%M:%S} {at.tzname()}".rstrip()


def size(characters: int) -> str:
    """Return a number of bytes in B, kB or MB (powers of 1000)."""
    if characters < 1000:
        return f"{characters} B"
    if characters < 1_000_000:
        return f"{characters / 1000:.0f} kB"
    return f"{characters / 1_000_000:.1f} MB"


def percent(part: int, whole: int) -> str:
    """Return *part* of *whole* and its share, rounded down: 2/7 (28 %); 0/0 without a share."""
    return f"{part}/{whole} ({100 * part // whole} %)" if whole else "0/0"


def numbers(values: list[int] | None, most: int = 5) -> str:
    """Return numbers as an enumeration, "1, 2 and 5"; of more than *most*, count the rest."""
    values = values or []
    words = [str(each) for each in values[:most]]
    if len(values) > most:
        return f"{', '.join(words)} and {len(values) - most} more"
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def ranges(values: list[int], most: int = 6) -> str:
    """Return ascending numbers as an enumeration, "1\N{EN DASH}3, 5 and 7", of *most* items."""
    spans: list[list[int]] = []
    for value in values:
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    words = [
        str(first) if first == last else f"{first}\N{EN DASH}{last}" for first, last in spans[:most]
    ]
    if len(spans) > most:
        return f"{', '.join(words)} and more"
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def plural(count: int, noun: str) -> str:
    """Return the count with its noun: 1 phase, 2 phases."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun[-1] == 's' else 's'}"


def zoned(at: datetime, now: datetime) -> datetime:
    """Return the same time in the time zone of *now*."""
    return at.astimezone(now.tzinfo)


def _time(at: datetime, words: str, kind: str | None, now: datetime) -> Markup:
    lives = Markup(' data-{}=""').format(kind) if kind else ""
    at = zoned(at, now)
    return Markup('<time datetime="{}" title="{}"{}>{}</time>').format(
        at.isoformat(timespec="seconds"), in_full(at), lives, escape(words)
    )


def _clock(at: datetime, now: datetime, clock: str) -> str:
    at = zoned(at, now)
    same_day = at.date() == now.date()
    return at.strftime(clock) if same_day else f"{at.day} {at.strftime('%b ' + clock)}"


_OF_TIMES = (lasting, since, ago, clock, clock_text, clock_seconds, moment, zoned)

FILTERS = {each.__name__: each for each in (*_OF_TIMES, size, numbers)}
