"""The tests on other versions of PostgreSQL, where no engine for containers answers."""

import os
import subprocess
import sys
from pathlib import Path


def test_without_a_docker_engine_it_is_said_that_nothing_was_tried() -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "matrix.py")],
        env=os.environ | {"DOCKER_HOST": "tcp://127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert done.stdout.startswith("skipped: no Docker engine answers, so no other PostgreSQL was")
    assert done.stdout.count("\n") == 1
