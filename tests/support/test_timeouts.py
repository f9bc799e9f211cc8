"""What a test that takes too long may cost: itself."""

import subprocess
import sys
from pathlib import Path

CONFTEST = """
import signal
import pytest

@pytest.hookimpl
def pytest_runtest_makereport(item, call):
    # The time is up in the midst of this, if it runs.
    if call.excinfo and signal.getitimer(signal.ITIMER_REAL)[0]:
        signal.raise_signal(signal.SIGALRM)
"""

TESTS = """
import pytest

def test_that_fails_late():
    assert False

@pytest.mark.parametrize("n", range(5))
def test_other(n):
    pass
"""


def test_a_time_out_while_a_failure_is_reported_loses_no_other_test(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_some.py").write_text(TESTS)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-n", "1", "-W", "error"),
            *("-o", "timeout=60", "-p", "support.timeouts"),
        ],
        cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 failed, 5 passed" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1
