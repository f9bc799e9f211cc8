"""What the tests share."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

# Seconds until a test that waits gives up: ten seconds on two idle cores have been more than
# sixty on a loaded machine, and a test that passes waits no longer than it has to.
PATIENCE = 300.0


def wait_until(condition: Callable[[], object], words: str = "") -> None:
    """Look again and again until *condition*, of which nobody notifies; fail with *words*."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, words
        time.sleep(0.01)


def git(folder: Path, *words: str) -> str:
    """Run git in *folder*, as somebody who has no configuration; return its output, stripped."""
    names = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    command = ["git", "-C", str(folder), *names, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
