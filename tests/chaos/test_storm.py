"""A short storm (tests/chaos/storm.py) breaks no promise; its judge has its own tests."""

from pathlib import Path

import pytest

from chaos.storm import rage


@pytest.mark.scale
@pytest.mark.timeout(3600)
def test_a_short_storm_breaks_no_promise(tmp_path: Path) -> None:
    outcome = rage(tmp_path / "storm", seed=1, faults=60)
    assert outcome.wrong == []
    assert outcome.attempts > 0
