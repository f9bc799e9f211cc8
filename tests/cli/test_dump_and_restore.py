"""`pgcoord dump` and `restore`: an embedded database, with work in it, there and back."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.database import contents
from support.desk import Desk

from pgcoord.database.embedded import EmbeddedPostgres


@pytest.fixture
def other_desk(tmp_path: Path) -> Iterator[Desk]:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    with closing(Desk(folder, {})) as desk:
        yield desk
    EmbeddedPostgres(folder / ".pgcoord").stop()


@pytest.mark.scale
def test_a_database_with_work_is_dumped_and_restored(bare_desk: Desk, other_desk: Desk) -> None:
    bare_desk.call("run", bare_desk.plan("echo one", "exit 1", "echo three"))
    bare_desk.call("submit", bare_desk.plan("echo waits", name="other.md"))
    dump = str(bare_desk.folder / "work.dump")
    assert bare_desk.say("dump", dump).startswith(f"wrote {dump}, ")
    asks = bare_desk.call("dump", dump)
    assert (asks.returncode, "no terminal to ask on" in asks.stderr) == (2, True)
    was = contents(EmbeddedPostgres(bare_desk.folder / ".pgcoord").dsn)
    assert other_desk.call("restore", dump).returncode == 0
    assert contents(EmbeddedPostgres(other_desk.folder / ".pgcoord").dsn) == was
    bare_desk.call("db", "stop")
    other_desk.call("retry", "1.2")
    done = other_desk.call("run", "--feature", "1")
    assert "phase 2  failed" in done.stdout
    assert "feature 2 (A plan)" in done.stderr  # waiting phases run there, too
    refused = other_desk.call("restore", dump)
    assert (refused.returncode, "left as it is" in refused.stderr) == (3, True)


def test_a_file_that_is_no_dump_makes_no_database(bare_desk: Desk) -> None:
    bare_desk.write("plan.md", "# P")
    for name, words in (("plan.md", "is not what 'pgcoord dump' writes"), ("no", "no file")):
        result = bare_desk.call("restore", name)
        assert (result.returncode, words in result.stderr) == (5, True)
    assert not (bare_desk.folder / ".pgcoord").exists()
    assert bare_desk.call("dump", "x").returncode == 6
