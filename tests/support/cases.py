"""Several cases in one test, where each leaves what the test made as it was."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def case(*values: object) -> Iterator[None]:
    """Name *values* in the error of a check that fails."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"in the case {', '.join(map(repr, values))[:300]}")
        raise
