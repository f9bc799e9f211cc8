"""A phase that damages the folder of its run: it ends, its slot is free, no page hangs, and no file
outside of the folder is served, searched or cut.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet
from support import PATIENCE
from support.coordination import Gate, Watch, make_coordinator, running, watching
from support.serving import Site, served

# What a phase does in the folder of its run, which is `.`; $OUTSIDE is a folder with a file `log`
# in it that is not ours.
DAMAGE = {
    "log is a FIFO": "rm log; mkfifo log",
    "log is a device": "rm log; ln -s /dev/zero log",
    "log is a folder": "rm log; mkdir log",
    "log is a link": "rm log; ln -s $OUTSIDE/log log",
    "log is another file": "rm log; ln $OUTSIDE/log log",
    "log is gone": "rm log",
    "log is huge": "truncate -s 1T log",
    "status is a FIFO": "rm status; mkfifo status",
    "status is a device": "rm status; ln -s /dev/zero status",
    "status is a folder": "rm status; mkdir status",
    "status is a link": "rm status; ln -s $OUTSIDE/log status",
    "status is gone": "rm status",
    "status is huge": "truncate -s 1T status",
    "status is rubbish": "head -c 1000 /dev/zero | tr '\\0' '9' > status",
    "report is a FIFO": "mkfifo report.json",
    "report is a device": "ln -s /dev/zero report.json",
    "report is a folder": "mkdir report.json",
    "report is a link": "ln -s $OUTSIDE/log report.json",
    "report is huge": "truncate -s 1T report.json",
    "report is rubbish": "head -c 100000 /dev/zero | tr '\\0' '[' > report.json",
    "folder is gone": 'rm -r "$FOLDER"',
    "folder is a FIFO": 'mv "$FOLDER" "$FOLDER.moved"; mkfifo "$FOLDER"',
    "folder is a link": 'mv "$FOLDER" "$FOLDER.moved"; ln -s $OUTSIDE "$FOLDER"',
    "folder is closed": 'chmod 000 "$FOLDER"',
    "folder is locked": 'flock "$FOLDER" sleep 1000 &',
    "status is locked": "(flock status sleep 1000) &",
}

# `make test` tries some damage of each kind, where it matters most; `make test-scale` tries all.
QUICK = ("log is a FIFO", "report is a link", "report is huge")
QUICK_TAKEN_OVER = ("status is a FIFO", "status is gone", "folder is a link")


def each_damage(quick: Sequence[str]) -> list[ParameterSet]:
    return [
        pytest.param(name, marks=[] if name in quick else [pytest.mark.scale]) for name in DAMAGE
    ]


SECRET = "not for anybody else\n" * 10_000


@pytest.fixture
async def watch(dsn: str) -> AsyncIterator[Watch]:
    async with watching(dsn) as watch:
        yield watch


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder outside of the runs, with a file in it that could be a log."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "log").write_text(SECRET)
    return folder


def script(damage: str, outside: Path, gate: Gate, done: Gate) -> str:
    return (
        f'FOLDER=$(dirname "$PGCOORD_PROMPT_FILE"); OUTSIDE={outside}; cd "$FOLDER"\n'
        f"{damage}\necho > {done.path}; read _ < {gate.path}; exit 3\n"
    )


async def look_everywhere(site: Site) -> None:
    """Request every page that reads the folder of the run; each answers, and contains no secret."""
    for path in (
        "/",
        "/phases/queue-1-1",
        "/phases/queue-1-1?find=business",
        "/phases/queue-1-1?at=5",
        "/phases/queue-1-1/log",
        "/api/v1/queue/queue-1-1/log",
    ):
        async with (
            asyncio.timeout(PATIENCE),
            site.client.stream("GET", path, headers={"range": "bytes=0-99999"}) as answer,
        ):
            seen = b"".join([chunk async for chunk in answer.aiter_bytes()])
            assert answer.status_code in (200, 206, 404, 409, 416, 503), (path, seen)
            assert b"no business of" not in seen.replace(b"<mark>", b""), path


@pytest.mark.parametrize("damage", each_damage(QUICK))
async def test_a_phase_can_harm_nothing_but_its_own_run(
    dsn: str, watch: Watch, tmp_path: Path, outside: Path, damage: str
) -> None:
    gate, done = Gate(tmp_path / "gate"), Gate(tmp_path / "done")
    await watch.one("select pgcoord.set_slots(1)")
    await watch.submit(script(DAMAGE[damage], outside, gate, done), "true")
    async with served(dsn, tmp_path) as site:
        await done.wait()
        await look_everywhere(site)
        gate.open()
        first, _ = await watch.until_statuses("failed", "completed")
        await look_everywhere(site)
    assert first["error_message"].startswith("exited with status 3")
    assert (outside / "log").read_text() == SECRET


@pytest.mark.parametrize("damage", each_damage(QUICK_TAKEN_OVER))
async def test_a_damaged_run_is_taken_over_by_the_next_coordinator(
    dsn: str, watch: Watch, tmp_path: Path, outside: Path, damage: str
) -> None:
    gate, done = Gate(tmp_path / "gate"), Gate(tmp_path / "done")
    await watch.one("select pgcoord.set_slots(1)")
    await watch.submit(script(DAMAGE[damage], outside, gate, done), "true")
    async with running(make_coordinator(dsn, tmp_path)):
        await done.wait()
    async with served(dsn, tmp_path) as site:
        gate.open()
        first, _ = await watch.until_statuses("failed", "completed")
        await look_everywhere(site)
    assert first["error_message"].startswith(("exited with status 3", "its process is gone"))
    assert (outside / "log").read_text() == SECRET
