"""Lengths of time as people write them in a plan or in pgcoord.toml."""

import re
from datetime import timedelta

EXPECTED = 'such as "90s", "30m", "1h 30m" or a number of seconds'

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
    """Read *value*, a text such as "1h 30m" or a number of seconds.

    A text of digits alone is a number of seconds too. Raises ValueError, which says what is
    expected, for anything else, for more than `LONGEST`, and for nothing at all unless *zero*.
    """
    length = _from_text(value) if isinstance(value, str) else _from_number(value)
    if length is None:
        raise ValueError(f"expected a duration {EXPECTED}, not {value!r:.60}")
    if length > LONGEST:
        raise ValueError(f"expected a duration of at most ten years, not {value!r:.60}")
    if not length and not zero:
        raise ValueError(f"expected a duration above 0, not {value!r:.60}")
    return length


def _from_text(text: str) -> timedelta | None:
    text = text.strip()
    if re.fullmatch(_NUMBER, text):
        return _from_number(float(text))
    match = _DURATION.fullmatch(text)
    if not text or not match:
        return None
    return _total({unit: float(n) for unit, n in match.groupdict().items() if n is not None})


def _from_number(value: object) -> timedelta | None:
    # bool is an int to Python; nan compares false.
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        return None
    return _total({"seconds": value})


def _total(parts: dict[str, float]) -> timedelta:
    try:
        return timedelta(**parts)
    except OverflowError:
        return timedelta.max
