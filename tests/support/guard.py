"""What ends the server of a session of tests that was killed."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

# Reads until we are gone; by then a session that ends in order has stopped its server itself.
_GUARD = """
read -r _
kill -QUIT "$(head -n 1 "$1/postgres/data/postmaster.pid")" && sleep 1
rm -rf "$1"
"""


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Have the Postgres that is embedded in *folder* end, and *folder* go, if we are killed."""
    guard = subprocess.Popen(
        ["sh", "-c", _GUARD, "sh", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for us
    )
    try:
        yield
    finally:
        guard.communicate()
