"""Planner commands: whatever they do, they end, nothing of them stays, and the old plan is kept."""

import asyncio
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.serving import Site, served

from pgcoord.configuration.model import Planner
from pgcoord.errors import InvalidPlan, PlannerFailed
from pgcoord.planner.planning import FeaturePlanner
from pgcoord.planner.structure import Feature

API = "/api/v1/planned-features"

GOOD = "# X\n\n## Phase 1: Tables\n\nAdd them.\n\n## Phase 2: View\nDepends on: 1\n\nBuild it.\n"

FEATURE = Feature("Live updates", "Show changes.", 6)


def planner(folder: Path, program: str, **settings: Any) -> FeaturePlanner:
    """One whose command is a program in Python."""
    command = (sys.executable, "-c", program)
    return FeaturePlanner(Planner(folder, command=command, **settings), dict(os.environ), folder)


def say(text: str) -> str:
    return f"import sys; sys.stdout.write({text!r})"


async def failure(folder: Path, program: str, **settings: Any) -> str:
    """What is said of a command that fails."""
    with pytest.raises(PlannerFailed) as caught:
        await planner(folder, program, **settings).plan(FEATURE)
    return str(caught.value)


async def test_the_command_gets_the_feature_and_the_files(tmp_path: Path) -> None:
    program = f"import sys; open('told', 'w').write(sys.stdin.read()); {say(GOOD)}"
    planned = await planner(tmp_path, program).plan(FEATURE)
    assert planned.source == "command"
    assert [row["title"] for row in planned.phases] == ["Tables", "View"]
    assert planned.phases[1]["depends_on_phases"] == [1]
    told = (tmp_path / "told").read_text()
    assert "# The feature: Live updates\n\nEstimated: 6 hours\n\nShow changes." in told
    assert "## Phase 1: Title of the phase" in told


async def test_the_command_gets_only_variables_that_are_passed_on(tmp_path: Path) -> None:
    program = f"import os; open('env', 'w').write(' '.join(os.environ)); {say(GOOD)}"
    settings = Planner(tmp_path, command=(sys.executable, "-c", program), environment=("KEY",))
    values = {**os.environ, "KEY": "1", "DATABASE_URL": "secret"}
    await FeaturePlanner(settings, values, tmp_path).plan(FEATURE)
    names = (tmp_path / "env").read_text().split()
    assert "KEY" in names
    assert "DATABASE_URL" not in names


async def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    settings = Planner(tmp_path, command=("printf", "%s", "$(touch made); # T"))
    with pytest.raises(InvalidPlan):
        await FeaturePlanner(settings, dict(os.environ), tmp_path).plan(FEATURE)
    assert not (tmp_path / "made").exists()


@pytest.mark.scale
async def test_a_command_that_hangs_is_ended_with_its_descendants(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "alive")
    program = (
        "import signal, subprocess, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "subprocess.Popen(['sh', '-c', 'trap \"\" TERM; echo on; while :; do sleep 9; done'],"
        " stdout=open('alive', 'w')); time.sleep(99)"
    )
    for seconds in (1.5, 15.0, 150.0):  # until it is long enough on this machine
        # Open for writing, too, so that the opening waits for nobody: it may end before it writes.
        held = os.open(tmp_path / "alive", os.O_RDWR)
        with (tmp_path / "alive").open() as alive:
            said = await failure(tmp_path, program, timeout=timedelta(seconds=seconds))
            os.close(held)
            # The file's end comes when nobody holds it open any more: when all of them are dead.
            if await asyncio.to_thread(alive.read) == "on\n":
                break
    assert said == f"the planner command took more than {seconds:g} s: it was ended"


async def test_a_command_is_ended_when_its_caller_is_cancelled(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "alive")
    program = "import sys, time; f = open('alive', 'w'); f.write('on'); f.flush(); time.sleep(99)"
    asking = asyncio.create_task(planner(tmp_path, program).plan(FEATURE))
    with await asyncio.to_thread((tmp_path / "alive").open) as alive:
        assert await asyncio.to_thread(alive.read, 2) == "on"
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await asyncio.to_thread(alive.read) == ""


async def test_processes_left_by_a_command_do_not_hold_up_its_answer(tmp_path: Path) -> None:
    program = f"import subprocess; subprocess.Popen(['sleep', '99']); {say(GOOD)}"
    assert len((await planner(tmp_path, program).plan(FEATURE)).phases) == 2


async def test_a_hundred_megabytes_are_not_read(tmp_path: Path) -> None:
    program = "import sys\nfor _ in range(100): sys.stdout.write('x' * 1_000_000)"
    words = await failure(tmp_path, program)
    assert words == "the planner command answered more than 1,000,000 bytes: it was ended"


async def test_an_endless_complaint_is_not_kept(tmp_path: Path) -> None:
    program = (
        "import sys\nfor _ in range(100): sys.stderr.write('y' * 1_000_000)\n"
        "sys.exit('\\nno credit left')"
    )
    words = await failure(tmp_path, program)
    assert words.startswith("the planner command ended with status 1\n")
    assert words.endswith("\nno credit left")
    assert len(words) < 3_000


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import os; os.kill(os.getpid(), 9)", "the planner command ended by SIGKILL"),
        ("raise SystemExit(3)", "the planner command ended with status 3"),
        ("pass", "the planner command wrote no plan"),
        ("import sys; sys.stdout.buffer.write(b'# T\\xff')", "byte 3 is not UTF-8"),
    ],
)
async def test_a_command_that_fails_is_said_how(tmp_path: Path, program: str, words: str) -> None:
    assert words in await failure(tmp_path, program)


async def test_a_command_that_is_not_there_is_named(tmp_path: Path) -> None:
    settings = Planner(tmp_path, command=("no-such-program",))
    with pytest.raises(PlannerFailed, match="cannot be started: no-such-program: no such file"):
        await FeaturePlanner(settings, dict(os.environ), tmp_path).plan(FEATURE)


@pytest.fixture(
    params=[
        (say("Sure! Here is a plan."), 422, ["no phase: expected a heading such as"]),
        (
            say("# T\n\n## Phase 1: A\nDepends on: 2\n\nx\n\n## Phase 2: B\n\ny\n"),
            422,
            ["planner's answer:4: Depends on: cycle 1 → 2 → 1"],
        ),
        (
            say("# T\n\n## Phase 1: A\nDepends on: 7\n\nx\n\n## Phase 3: B\nHours: x\n\ny\n"),
            422,
            ["planner's answer:4: Depends on: there is no phase 7", "answer:8:", "answer:9:"],
        ),
        ("raise SystemExit('out of order')", 502, ["out of order"]),
    ],
    ids=["garbage", "cycle", "faults", "crash"],
)
def bad(request: pytest.FixtureRequest) -> Any:
    return request.param


async def test_a_bad_answer_is_reported_by_line_and_the_old_plan_stays(
    dsn: str, tmp_path: Path, bad: tuple[str, int, list[str]]
) -> None:
    program, status, words = bad
    settings = Planner(tmp_path, command=(sys.executable, "-c", program))
    async with served(dsn, tmp_path, leads=False, planner=settings) as site:
        path = await make(site)
        before = (await site.client.get(path)).json()
        refused = await site.client.post(f"{path}/generate-implementation")
        assert refused.status_code == status
        said = "\n".join(refused.json().get("problems", [refused.json()["reason"]]))
        assert all(each in said for each in words), said
        after = (await site.client.get(path)).json()
    assert after["phases"] == before["phases"] == [{"phase_number": 1, "title": "Old"}]
    assert after["version"] == before["version"]


async def make(site: Site) -> str:
    feature = {"title": "T", "description": "d", "phases": [{"phase_number": 1, "title": "Old"}]}
    return str((await site.client.post(API, json=feature)).headers["location"])


async def test_others_are_served_while_a_command_thinks(dsn: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    program = f"open('gate').read(); {say(GOOD)}"
    settings = Planner(tmp_path, command=(sys.executable, "-c", program))
    async with served(dsn, tmp_path, leads=False, planner=settings) as site:
        path = await make(site)
        thinking = asyncio.create_task(site.client.post(f"{path}/generate-implementation"))
        others = [site.client.get(path) for _ in range(20)]
        assert {each.status_code for each in await asyncio.gather(*others)} == {200}
        changed = await site.client.patch(path, json={"title": "Changed meanwhile"})
        assert changed.status_code == 200
        await asyncio.to_thread((tmp_path / "gate").write_text, "go")
        late = await thinking
    assert (late.status_code, late.json()["error"]) == (412, "changed_meanwhile")
