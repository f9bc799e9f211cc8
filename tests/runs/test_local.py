"""The launcher of this machine: logs are kept within their size while their processes write."""

import asyncio
import os
import threading
from functools import partial
from pathlib import Path

import pytest
from support.coordination import Gate, until_true

from pgcoord.runs.local import LocalJob, _LogLimiter
from pgcoord.runs.run import Run

SIZE = 10_000


def is_cut(log: Path, last: str) -> bool:
    """Whether a log that ends with this line has lost its middle."""
    text = log.read_text()
    return len(text) <= SIZE and "left out here" in text and text.endswith(f"\n{last}\n")


def limiting() -> bool:
    """Whether a thread limits logs."""
    return "logs" in [each.name for each in threading.enumerate()]


@pytest.mark.scale
async def test_a_log_that_cannot_be_cut_is_reported_once_and_the_others_are_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limiter = _LogLimiter(SIZE)
    runs = [Run(tmp_path / name) for name in ("linked", "cut")]
    # One each: of one for both, the faster script could take both lines.
    gates = [Gate(tmp_path / f"gate {run.folder.name}") for run in runs]
    for run, gate in zip(runs, gates, strict=True):
        wait = f"read _ < '{gate.path}'"
        script = f"seq 20000; {wait}; seq 20001 40000; {wait}"
        run.prepare("")
        environment = {"PATH": os.environ["PATH"]}
        run.start(["sh", "-c", script], directory=tmp_path, environment=environment)
    linked, cut = (run.log.path for run in runs)
    os.link(linked, tmp_path / "other")  # with a second name it may be a file of somebody else
    ends = asyncio.gather(*(LocalJob(run, limiter).wait() for run in runs))
    for last in ("20000", "40000"):
        await until_true(partial(is_cut, cut, last))
        assert limiting()
        for gate in gates:
            gate.open()
    assert await ends == [0, 0]
    assert linked.stat().st_size > 200_000
    told = [each.getMessage() for each in caplog.records]
    assert len(told) == 1
    assert told[0].startswith(f"the log {linked} cannot be cut: ")
    await until_true(lambda: not limiting())
