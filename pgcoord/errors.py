"""The exceptions of pgcoord, and words for them; the command line's exit status for each.

CoordError
├── InvalidInput            5  something a person wrote cannot be used as it stands
│   ├── InvalidPlan            a plan, with every fault in it by line
│   └── InvalidConfiguration   pgcoord.toml
├── NotFound                4  no such feature or phase
├── Refused                 3  the database does not allow it in the present state
│   ├── StaleAttempt           an attempt that was given up
│   ├── ChangedMeanwhile       somebody else has changed the row meanwhile
│   ├── AnotherLeads           this coordinator does not lead (any more)
│   └── Locked                 somebody else holds a lock for too long
├── NotNow                  1  GitHub or an engine cannot do it now: a limit, or an outage
├── DatabaseUnusable        6  no connection, no rights, wrong version, read-only
│   └── WrongSchema            the schema is missing, older or newer than this release
├── CannotStart             7  a process or a server could not be started
└── PlannerFailed           7  the planner did not answer, or its answer is not a plan
"""

import difflib
from collections.abc import Collection, Sequence
from datetime import timedelta


class CoordError(Exception):
    """An error with a message for people: one line, what to do about it in `hint`."""

    exit_status = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class InvalidInput(CoordError):
    """Something a person wrote cannot be used as it stands."""

    exit_status = 5


class InvalidPlan(InvalidInput):
    """A plan with faults; `problems` holds them all, each as `file:line: what is expected`."""

    def __init__(self, problems: Sequence[str], *, hint: str | None = None) -> None:
        super().__init__("\n".join(problems), hint=hint)
        self.problems = tuple(problems)


class InvalidConfiguration(InvalidInput):
    """A pgcoord.toml that cannot be used."""


class NotFound(CoordError):
    """There is no such feature or phase."""

    exit_status = 4


class Refused(CoordError):
    """The database does not allow it in the present state of a phase, a feature or the whole."""

    exit_status = 3


class StaleAttempt(Refused):
    """An attempt that was given up."""


class ChangedMeanwhile(Refused):
    """Somebody else has changed the row since the caller read it."""


class AnotherLeads(Refused):
    """This coordinator does not lead, or no longer does."""


class Locked(Refused):
    """Another session holds a lock for longer than we wait for one."""


class NotNow(CoordError):
    """GitHub, or an engine, cannot do now what was asked; the caller asks again after `wait`.

    `grows`: each further failure doubles the wait. `certain`: the request had no effect; otherwise
    it may have had one.
    """

    def __init__(
        self, message: str, wait: timedelta, *, grows: bool = False, certain: bool = True
    ) -> None:
        super().__init__(message)
        self.wait = wait
        self.grows = grows
        self.certain = certain


class DatabaseUnusable(CoordError):
    """No connection, no rights, a version too old, or a server that only reads.

    `sqlstate` is the server's own where it refused the connection.
    """

    exit_status = 6

    def __init__(
        self, message: str, *, hint: str | None = None, sqlstate: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.sqlstate = sqlstate


class WrongSchema(DatabaseUnusable):
    """The schema is missing, or of another release than this program."""


class CannotStart(CoordError):
    """A process or a server could not be started."""

    exit_status = 7


class PlannerFailed(CoordError):
    """The planner command, or git, did not answer as it should."""

    exit_status = 7


def message_of(error: BaseException) -> str:
    """Return the message of *error* without line breaks."""
    return " ".join(str(error).split())


def did_you_mean(word: str, words: Collection[str]) -> str:
    """Return the end of an error about an unknown *word*.

    It names the nearest of *words*, or else all of them; "" if there are none.
    """
    spellings = {each.lower(): each for each in words}
    near = difflib.get_close_matches(word.lower(), spellings, n=1)
    if near:
        return f"; did you mean {spellings[near[0]]}?"
    return f"; expected one of {', '.join(words)}" if words else ""
