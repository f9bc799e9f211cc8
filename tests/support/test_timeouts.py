"""What a test that takes too long may cost: itself."""

import subprocess
import sys
from pathlib import Path

import pytest

from support import PATIENCE

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


SHARED = """
import asyncio
import pytest

@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"

@pytest.fixture(scope="session")
async def port(anyio_backend):
    async with await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]

@pytest.fixture
async def reader(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    yield reader
    writer.close()
    await writer.wait_closed()

@pytest.fixture
async def silent(reader):
    yield await reader.readline()

@pytest.fixture
async def endless(reader):
    yield
    await reader.readline()
"""

WAITING = """
import pytest

async def test_that_makes_what_is_shared(reader):
    pass

@pytest.mark.timeout(5)
async def test_that_waits(reader):
    await reader.readline()

@pytest.mark.timeout(5)
async def test_whose_fixture_waits(silent):
    pass

@pytest.mark.timeout(5)
async def test_whose_fixture_waits_in_the_end(endless):
    pass

@pytest.mark.parametrize("n", range(5))
async def test_other(reader, n):
    pass
"""


@pytest.mark.scale
def test_a_time_out_while_a_failure_is_reported_loses_no_other_test(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_some.py").write_text(TESTS)
    assert "1 failed, 5 passed in" in run_tests(tmp_path)


@pytest.mark.scale
def test_a_time_out_in_an_event_loop_that_tests_share_loses_no_other_test(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(SHARED)
    (tmp_path / "test_some.py").write_text(WAITING)
    assert "1 failed, 7 passed, 2 errors in" in run_tests(tmp_path)


def run_tests(folder: Path) -> str:
    """Run the tests in *folder*, of which some fail; return what pytest printed."""
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-n", "1", "-W", "error"),
            *("-o", f"timeout={PATIENCE}", "-o", "anyio_mode=auto", "-p", "support.timeouts"),
        ],
        cwd=folder,
        env={"PATH": "", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * PATIENCE,
    )
    assert result.returncode == 1, result.stdout + result.stderr
    return result.stdout
