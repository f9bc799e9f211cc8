"""Durations as people write them in a plan or in pgcoord.toml."""

import re
from datetime import timedelta

EXPECTED = 'such as "90s", "30m", "1h 30m" or "2d"'

# Ten years: a deadline that far away is still a date that Python and Postgres can hold.
LONGEST = timedelta(days=3650)

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_DURATION = re.compile(
    r"\s*".join(
        rf"(?:(?P<{name}>{_NUMBER})\s*{unit})?"
        for name, unit in [
            ("days", "d"),
            ("hours", "h"),
            ("minutes", "m"),
            ("seconds", "s"),
            ("milliseconds", "ms"),
        ]
    )
)


def parse_duration(value: object, *, zero: bool = False) -> timedelta:
    """Read *value*, a text such as "1h 30m".

    Raises ValueError, which says what is expected, for anything else, for more than `LONGEST`, and
    for nothing at all unless *zero*. A number without a unit is refused, since 30 may be meant as
    seconds or days; 0 needs none.
    """
    length = _length(value)
    if length is None:
        without = " without a unit" if _is_number(value) else ""
        raise ValueError(f"expected a duration {EXPECTED}, not {value!r:.60}{without}")
    if length > LONGEST:
        raise ValueError(f"expected a duration of at most ten years, not {value!r:.60}")
    if not length and not zero:
        raise ValueError(f"expected a duration above 0, not {value!r:.60}")
    return length


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        return re.fullmatch(_NUMBER, value.strip()) is not None
    return isinstance(value, int | float) and not isinstance(value, bool)


def _length(value: object) -> timedelta | None:
    text = str(value).strip()
    if _is_number(value):
        return None if float(text) else timedelta(0)
    match = _DURATION.fullmatch(text) if isinstance(value, str) else None
    if not text or not match:
        return None
    parts = {unit: float(n) for unit, n in match.groupdict().items() if n is not None}
    try:
        return timedelta(**parts)
    except OverflowError:
        return timedelta.max
