"""A newcomer: an environment with nothing in it, the wheel, README, and the first page."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.walk import Block, Newcomer, blocks_of, path_with

ROOT = Path(__file__).parents[2]
FIRST_PAGE = ROOT / "docs" / "first-feature.md"


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Newcomer]:
    """Somebody with this checkout's program, in a home with nothing in it."""
    with closing(Newcomer(tmp_path, path_with(Path(sys.executable).parent), tmp_path)) as newcomer:
        yield newcomer


@pytest.mark.scale
@pytest.mark.timeout(1800)
def test_the_first_page_is_true(newcomer: Newcomer) -> None:
    assert newcomer.follow(FIRST_PAGE) == 7


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Newcomer]:
    """Somebody in a fresh checkout, with an ordinary Python and no pgcoord."""
    checkout = tmp_path / "checkout"
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, checkout / name)
    ours = str(Path(sys.executable).parent)
    path = os.pathsep.join(each for each in os.environ["PATH"].split(os.pathsep) if each != ours)
    python = path_with(Path(sys.base_prefix) / "bin").split(os.pathsep)[0]
    with closing(Newcomer(tmp_path / "home", f"{python}{os.pathsep}{path}", checkout)) as stranger:
        yield stranger


@pytest.mark.scale
@pytest.mark.timeout(3600)
def test_a_stranger_comes_from_readme_to_a_feature_that_ran(stranger: Newcomer) -> None:
    _, *blocks = (each for each in blocks_of(ROOT / "README.md") if each.language in ("sh", "sql"))
    *blocks, over_http = blocks
    for each in blocks:
        stranger.compare(each)
    stranger.paste(Block("sh", "pgcoord serve", None, beside=True))
    assert stranger.paste(over_http).startswith("[")
    stranger.close()
    stranger.follow(FIRST_PAGE)
    for topic in ("toml", "plan", "environment", "http"):
        assert len(stranger.paste(Block("sh", f"pgcoord help {topic}", None, False))) > 500
