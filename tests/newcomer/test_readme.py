"""README works as pasted, in order, in a clean folder."""

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.walk import Block, Newcomer, blocks_of, path_with

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Newcomer]:
    """Somebody with this checkout's program, in a home with nothing in it."""
    path = path_with(Path(sys.executable).parent)
    with closing(Newcomer(tmp_path, path, tmp_path)) as newcomer:
        yield newcomer


@pytest.mark.scale
def test_readme_works_as_pasted(newcomer: Newcomer) -> None:
    blocks = [each for each in blocks_of(README) if each.language in ("sh", "sql")]
    make_run, install, *rest = blocks
    assert "make run" in make_run.code  # as test_newcomer.py does
    assert "pip install" in install.code
    *ours, over_http = rest
    assert [each.language for each in ours] == ["sh", "sql"]
    for each in ours:
        newcomer.compare(each)
    newcomer.paste(Block("sh", "pgcoord serve", None, beside=True))
    assert newcomer.paste(over_http).startswith("[")


def test_readme_shows_the_files_that_init_writes(newcomer: Newcomer) -> None:
    newcomer.paste(Block("sh", "pgcoord init app", None, beside=False))
    shown = {each.language: each.code for each in blocks_of(README)}
    assert (newcomer.home / "app" / "plan.md").read_text() == shown["markdown"]
    assert (newcomer.home / "app" / "pgcoord.toml").read_text() == shown["toml"]
    (newcomer.home / "app" / "plan.md").write_text("mine")
    said = newcomer.paste(Block("sh", "pgcoord init app", None, beside=False))
    assert "plan.md exists, and is not changed" in said
    assert (newcomer.home / "app" / "plan.md").read_text() == "mine"
