"""The tests on other versions of PostgreSQL, where there is no container and no package."""

import os
import subprocess
import sys
from pathlib import Path

from support import PATIENCE


def test_the_matrix_says_that_nothing_ran_without_an_engine_and_a_package(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "matrix.py"), "13"],
        env=os.environ | {"DOCKER_HOST": "tcp://127.0.0.1:1", "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert result.returncode == 0
    assert "skipped: PostgreSQL 13 (no Docker engine: " in result.stdout
    assert "all passed" not in result.stdout
