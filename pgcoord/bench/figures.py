"""Figures: measured values, judged by their limits and aims and beside the machine's floor."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

# From the worst to the best.
SLOW_MACHINE = "slow machine"  # scaled to the machine of the floors below, the limit is kept

VERDICTS = ("LIMIT MISSED", SLOW_MACHINE, "aim missed", "within the limit", "aim reached")


@dataclass(frozen=True)
class Goal:
    """Bounds for a value: it must keep `limit` (None: there is none), and should reach `aim`."""

    limit: float | None
    aim: float
    more_is_better: bool = False

    def verdict(self, value: float, slowness: float = 1.0) -> str:
        """Return the verdict on *value*, one of `VERDICTS`.

        *slowness*: how many times slower this machine is than the one that the limits are for. A
        value that would keep the limit there is "slow machine" rather than "LIMIT MISSED".
        """
        if self._meets(value, self.aim):
            return "aim reached"
        if self.limit is None:
            return "aim missed"
        if self._meets(value, self.limit):
            return "within the limit"
        scaled = value * slowness if self.more_is_better else value / slowness
        return SLOW_MACHINE if self._meets(scaled, self.limit) else "LIMIT MISSED"

    def _meets(self, value: float, bound: float) -> bool:
        return value >= bound if self.more_is_better else value <= bound


# The floors (in ms, and in jobs per second) of the machine that the limits are meant for
# (docs/performance.md, fast hour).
_FLOOR_MS = 1.04

_FLOOR_DRAIN = 2_594.0


@dataclass(frozen=True)
class Figure:
    """One measurement in *unit*: a single value, or the median of *samples* with their `p99`.

    A ratio is judged by its medians alone: the p99 of a ratio is too noisy.
    """

    key: str
    what: str
    unit: str
    value: float
    p99: float | None = None
    goal: Goal | None = None
    goal_p99: Goal | None = None
    samples: int = 1
    floor: float | None = None  # the floor's value in the same run, in the same unit
    slowness: float = 1.0  # how many times slower this machine is than the one the limits are for

    @property
    def ratio(self) -> float | None:
        """The value as a multiple of the floor; None if there is none."""
        return None if self.floor is None else self.value / self.floor

    @property
    def verdict(self) -> str | None:
        """The worse of the verdicts on the value and on its 99th percentile."""
        verdicts = [self.goal.verdict(self.value, self.slowness)] if self.goal else []
        if self.goal_p99 and self.p99 is not None:
            verdicts.append(self.goal_p99.verdict(self.p99, self.slowness))
        return min(verdicts, key=VERDICTS.index, default=None)

    @property
    def misses_limit(self) -> bool:
        """Whether the value or its p99 misses its limit, and would on the machine of the limits."""
        return self.verdict == "LIMIT MISSED"


def beside_floors(figures: Sequence[Figure]) -> Iterator[Figure]:
    """Yield *figures* with `floor`, where one belongs to the figure, and `slowness` filled in.

    *figures* must hold those with the keys "floor" and "floor_drain".
    """
    values = {each.key: each.value for each in figures}
    slow = max(1.0, values["floor"] / _FLOOR_MS)
    slow_drain = max(1.0, _FLOOR_DRAIN / values["floor_drain"])
    for each in figures:
        if each.key in ("hop", "hop_start", "webhook"):
            yield replace(each, floor=values["floor"], slowness=slow)
        elif each.key in ("drain", "drain_own"):
            yield replace(each, floor=values["floor_drain"], slowness=slow_drain)
        else:
            timed = each.key in ("start", "insert")
            yield replace(each, slowness=slow if timed else 1.0)


def timing(
    key: str,
    what: str,
    seconds: Sequence[float],
    limits: tuple[float, float] | None = None,
    aims: tuple[float, float] | None = None,
) -> Figure:
    """Return the figure of *seconds*, in ms; *limits*, *aims*: of its median and its p99."""
    goals = [Goal(*pair) for pair in zip(limits, aims, strict=True)] if limits and aims else None
    return Figure(
        key,
        what,
        "ms",
        rank(seconds, 0.5) * 1000,
        rank(seconds, 0.99) * 1000,
        goal=goals[0] if goals else None,
        goal_p99=goals[1] if goals else None,
        samples=len(seconds),
    )


def ratio(key: str, what: str, seconds: Sequence[float], to: Sequence[float], goal: Goal) -> Figure:
    """Return the figure of *seconds* as a multiple of *to*, by medians and by p99."""
    value, p99 = (rank(seconds, share) / rank(to, share) for share in (0.5, 0.99))
    return Figure(key, what, "x", value, p99, goal=goal, samples=len(seconds))


def rank(samples: Sequence[float], share: float) -> float:
    """Return the quantile *share* (0 to 1) of *samples*: the smallest one that reaches it."""
    return sorted(samples)[math.ceil(share * len(samples)) - 1]
