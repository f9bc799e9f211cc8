"""What every launcher promises (docs/design.md, section 13), asked of each: one suite."""

import asyncio
import os
import re
import signal
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE, git
from support import slurm as cluster
from support.coordination import (
    Gate,
    is_alive,
    make_coordinator,
    running,
    scripts,
    until_it_ends,
    watching,
)

from pgcoord.configuration.model import Check, Pool, Worktree
from pgcoord.configuration.reading import read_configuration
from pgcoord.coordination import engines
from pgcoord.coordination.coordinator import Coordinator
from pgcoord.runs import job

# Seconds instead of minutes, so that a test of a silent job takes no minute.
HURRIED: dict[str, Any] = {
    "ASKS": (0.3, 1.0),
    "UNSURE": 4.0,
    "SILENT": 3.0,
    "SETTLED": 1.0,
    "FOLDER_INTERVAL": 0.2,
}

JOB_TIMEOUT = 2 * PATIENCE


class Engine:
    """A launcher under test: how a coordinator is made that uses it."""

    def __init__(self, dsn: str, folder: Path, pool: Pool | None, environment: dict[str, str]):
        self.dsn = dsn
        self.folder = folder
        self.pool = pool
        self.environment = environment

    def coordinator(self, *, host: str | None = None, **settings: Any) -> Coordinator:
        """A coordinator that leads; *host*: on another machine, as far as it knows."""
        name = self.pool.name if self.pool else "local"
        return make_coordinator(
            self.dsn,
            self.folder,
            scripts(pool=name, **settings),
            environment={**os.environ, **self.environment, "ONE": 'a,b=c\n"d"', "PATH": PATH},
            pool=self.pool,
            host=host,
        )


PATH = os.environ["PATH"]


EXAMPLES = Path(__file__).parents[2] / "examples" / "engines"


# The third differs from the second in how it lists jobs, which test_templates.py has, too.
@pytest.fixture(
    params=[
        "local",
        *(pytest.param(each, marks=pytest.mark.scale) for each in ("slurm", "command")),
    ]
)
def engine(hurried: None, request: pytest.FixtureRequest, dsn: str, tmp_path: Path) -> Engine:
    if request.param == "local":
        return Engine(dsn, tmp_path, None, {})
    slurm = request.getfixturevalue("slurm")
    if request.param == "command":  # the same Slurm, by its commands alone
        pool = read_configuration(EXAMPLES / "slurm-commands.toml").pools["batch"]
        settings = {**pool.settings, "folder": str(tmp_path / "shared")}
        return Engine(dsn, tmp_path, Pool("batch", "command", 40, settings), slurm.environment)
    return engine_of_slurm(slurm, dsn, tmp_path)


def engine_of_slurm(slurm: cluster.Slurm, dsn: str, folder: Path) -> Engine:
    settings = {"folder": str(folder / "shared")}
    return Engine(dsn, folder, Pool("hpc", "slurm", 40, settings), slurm.environment)


async def run(engine: Engine, script: str, status: str, **settings: Any) -> dict[str, object]:
    """Run a phase to its end; return its latest attempt."""
    async with (
        watching(engine.dsn) as watch,
        running(engine.coordinator(**settings), patience=JOB_TIMEOUT),
    ):
        await watch.submit(script)
        await watch.until_statuses(status)
        return await watch.one("select * from pgcoord.attempt")


async def test_exit_status_and_log(engine: Engine) -> None:
    attempt = await run(engine, "echo to the log; echo and this >&2; exit 42", "failed")
    assert attempt["exit_code"] == 42
    assert "exited with status 42\nto the log\nand this" in str(attempt["error"])
    assert (Path(str(attempt["folder"])) / "log").read_text() == "to the log\nand this\n"


async def test_a_signal_is_128_and_its_number(engine: Engine) -> None:
    assert (await run(engine, "kill -9 $$", "failed"))["exit_code"] == 137


async def test_the_environment_is_exactly_that_of_the_workflow(engine: Engine) -> None:
    attempt = await run(
        engine,
        'test "$ONE" = "$(printf \'a,b=c\\n"d"\')" && test -z "$TWO"',
        "completed",
        environment=("ONE",),
    )
    assert attempt["exit_code"] == 0


@pytest.mark.scale
async def test_agents_are_judged_in_worktrees_and_wait_for_their_model(engine: Engine) -> None:
    """Phases that report do so with their work; what is temporary uses up no attempt."""
    project = engine.folder / "project"
    git(engine.folder, "init", "-q", "-b", "main", "project")
    git(project, "commit", "-q", "--allow-empty", "-m", "first")
    overloaded = (
        '{"type": "result", "is_error": true, "result": "529 Overloaded", "total_cost_usd": 1}'
    )
    done = '{"type": "result", "is_error": false, "result": "done"}'
    report = f"{sys.executable} -m pgcoord report completed --patience 0"
    coordinator = engine.coordinator(
        agent="claude",
        check=Check(("test", "!", "-e", "bad")),
        directory=project,
        reports=True,
        worktree=Worktree(),
    )
    async with watching(engine.dsn) as watch, running(coordinator, patience=JOB_TIMEOUT):
        await watch.submit(
            f"echo 1 > one; {report}",
            (f"cat one; echo 2 > two; {report}", [1]),
            (f"touch bad; echo '{done}'", [1]),
            (f"echo '{overloaded}'; exit 1", [1]),
        )
        retried = "select from phase_queue where phase_number = 4 and retry_at is not null"
        await watch.until_statuses("completed", "completed", "failed", "queued")
        await watch.until_found(retried)
        waits = await watch.one(
            "select attempts_used, error_message, cost_usd::int from phase_queue"
            " join pgcoord.results using (queue_id) where phase_queue.phase_number = 4"
        )
        (check,) = await watch.all("select error_message from phase_queue where status = 'failed'")
    assert waits == {
        "attempts_used": 0,
        "error_message": "try again later: 529 Overloaded",
        "cost_usd": 1,
    }
    assert "pgcoord: the check failed with status 1" in check["error_message"]
    assert git(project, "ls-tree", "--name-only", "pgcoord/feature-1") == "one\ntwo"


async def test_a_prompt_of_five_megabytes(engine: Engine) -> None:
    filler = "# " + "x" * 5_000_000
    attempt = await run(engine, f"wc -c < $PGCOORD_PROMPT_FILE\nexit 3\n{filler}", "failed")
    assert int((Path(str(attempt["folder"])) / "log").read_text()) > 5_000_000


async def test_cancelling_gives_time_to_clean_up(engine: Engine) -> None:
    script = "trap 'echo cleans up; exit 3' TERM; echo up; while :; do sleep 0.1; done"
    async with watching(engine.dsn) as watch, running(engine.coordinator(), patience=JOB_TIMEOUT):
        await watch.submit(script)
        await watch.until_statuses("running")
        folder = Path((await watch.one("select folder from pgcoord.attempt"))["folder"])
        await until_it_ends(folder / "log", "up\n")
        await watch.one("select status from pgcoord.cancel_phase('queue-1-1', 'enough')")
        await watch.until_statuses("cancelled")
        assert (folder / "log").read_text().endswith("cleans up\n")
        attempt = await watch.one("select * from pgcoord.attempt")
        assert (attempt["outcome"], attempt["exit_code"]) == ("cancelled", 3)
        assert await watch.all("select from phase_queue where slot is not null") == []


@pytest.mark.scale
async def test_a_process_that_ignores_sigterm_is_killed(engine: Engine) -> None:
    script = "trap '' TERM; echo $$; while :; do sleep 0.1; done"
    async with watching(engine.dsn) as watch, running(engine.coordinator(), patience=JOB_TIMEOUT):
        await watch.submit(script)
        await watch.until_statuses("running")
        log = Path((await watch.one("select folder from pgcoord.attempt"))["folder"]) / "log"
        await until_it_ends(log, "\n")
        await watch.one("select status from pgcoord.cancel_phase('queue-1-1', 'enough')")
        await watch.until_statuses("cancelled")
        assert not is_alive(int(log.read_text().split()[0]))


async def test_a_workflow_that_is_too_slow_is_ended(engine: Engine) -> None:
    attempt = await run(engine, "sleep 60", "failed", timeout=timedelta(seconds=1))
    assert attempt["outcome"] == "timed_out"


async def test_a_leader_that_comes_back_finds_running_jobs(engine: Engine) -> None:
    gate = Gate(engine.folder / "gate")
    script = f"echo once; read _ < {gate.path}; exit 7"
    async with watching(engine.dsn) as watch:
        async with running(engine.coordinator(), patience=JOB_TIMEOUT):
            await watch.submit(script)
            await watch.until_statuses("running")
        async with running(engine.coordinator(), patience=JOB_TIMEOUT):
            gate.open()
            await watch.until_statuses("failed")
        attempt = await watch.one("select * from pgcoord.attempt")
    assert attempt["exit_code"] == 7
    assert (Path(attempt["folder"]) / "log").read_text() == "once\n"


async def test_a_job_that_ended_without_a_leader_is_recorded(engine: Engine) -> None:
    async with watching(engine.dsn) as watch:
        gate = Gate(engine.folder / "gate")
        async with running(engine.coordinator(), patience=JOB_TIMEOUT):
            await watch.submit(f"read _ < {gate.path}; exit 7")
            await watch.until_statuses("running")
        gate.open()
        async with running(engine.coordinator(), patience=JOB_TIMEOUT):
            await watch.until_statuses("failed")
        assert (await watch.one("select exit_code from pgcoord.attempt"))["exit_code"] == 7


# --- Of Slurm: what an engine gets wrong


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in HURRIED.items():
        monkeypatch.setattr(engines, name, value)


@pytest.fixture
def hpc(hurried: None, slurm: cluster.Slurm, dsn: str, tmp_path: Path) -> Engine:
    return engine_of_slurm(slurm, dsn, tmp_path)


@pytest.fixture
def own_hpc(hurried: None, own_slurm: cluster.Slurm, dsn: str, tmp_path: Path) -> Engine:
    return engine_of_slurm(own_slurm, dsn, tmp_path)


async def test_a_leader_on_another_host_takes_over_at_once(hpc: Engine) -> None:
    gate = Gate(hpc.folder / "gate")
    async with watching(hpc.dsn) as watch:
        async with running(hpc.coordinator(), patience=JOB_TIMEOUT):
            await watch.submit(f"echo once >> {hpc.folder}/ran; read _ < {gate.path}; exit 7")
            await watch.until_found("select from pgcoord.attempt where submitted_at is not null")
        async with running(hpc.coordinator(host="elsewhere"), patience=JOB_TIMEOUT):
            gate.open()
            await watch.until_statuses("failed")
        attempt = await watch.one("select * from pgcoord.attempt")
    assert (attempt["exit_code"], attempt["number"]) == (7, 1)
    assert (hpc.folder / "ran").read_text() == "once\n"


@pytest.mark.scale
async def test_a_frozen_controller_starts_a_job_once(
    slurm: cluster.Slurm, hpc: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    async with watching(hpc.dsn) as watch, running(hpc.coordinator(), patience=JOB_TIMEOUT):
        slurm.kill("controller", signal.SIGSTOP)
        try:
            await watch.submit(f"echo once >> {hpc.folder}/ran")
            # sbatch gives up after its MessageTimeout: then nobody knows whether it was taken.
            async with asyncio.timeout(JOB_TIMEOUT):
                while "was taken: sbatch: " not in caplog.text:
                    await slurm.a_moment()
        finally:
            slurm.kill("controller", signal.SIGCONT)
        await watch.until_statuses("completed")
    assert (hpc.folder / "ran").read_text() == "once\n"


@pytest.mark.scale
async def test_a_controller_that_is_away_delays_and_no_more(
    own_slurm: cluster.Slurm, own_hpc: Engine
) -> None:
    gate = Gate(own_hpc.folder / "gate")
    async with watching(own_hpc.dsn) as watch, running(own_hpc.coordinator(), patience=JOB_TIMEOUT):
        await watch.submit(f"echo once >> {own_hpc.folder}/ran; read _ < {gate.path}; exit 5")
        await watch.until_statuses("running")
        own_slurm.kill("controller", signal.SIGKILL)
        await asyncio.sleep(2 * HURRIED["SILENT"])  # of silence, which is no end
        assert [row["status"] for row in await watch.all("select status from phase_queue")] == [
            "running"
        ]
        gate.open()
        await watch.until_statuses("failed")
        own_slurm.start_controller()
        assert (await watch.one("select exit_code from pgcoord.attempt"))["exit_code"] == 5


async def test_a_job_whose_requeued_copy_starts_runs_once(
    slurm: cluster.Slurm, hpc: Engine
) -> None:
    gate = Gate(hpc.folder / "gate")
    async with watching(hpc.dsn) as watch, running(hpc.coordinator(), patience=JOB_TIMEOUT):
        await watch.submit(f"echo once >> {hpc.folder}/ran; read _ < {gate.path}; exit 5")
        await watch.until_statuses("running")
        attempt = await watch.one("select * from pgcoord.attempt")
        folder = Path(attempt["folder"])
        # As when a node is lost and its job is requeued: the same script, while the first lives.
        slurm.ask(
            *("sbatch", "--parsable", f"--job-name={engines.name_of(str(folder))}"),
            *(f"--output={folder}/copy.log", str(engines.WRAPPER), str(folder / engines.ORDER)),
        )
        await watch.until_found("select from pgcoord.attempt where refused_begins = 1")
        gate.open()
        await watch.until_statuses("failed")
        assert (await watch.one("select exit_code from pgcoord.attempt"))["exit_code"] == 5
    assert (hpc.folder / "ran").read_text() == "once\n"
    slurm.wait_for(lambda: "runs nothing" in (folder / "copy.log").read_text(), "copy refused")


def test_a_late_copy_leaves_the_end_of_the_first_alone(tmp_path: Path) -> None:
    (tmp_path / "exit.json").write_text("how it ended")
    order = {"attempt": 1, "secret": "whsec_YQ==", "url": None, "folder": str(tmp_path)}
    late = job.Job(job.Order({**order, "command": [], "directory": "/", "environment": {}}))
    assert late._spool("begin-late.json", {})
    assert (tmp_path / "exit.json").read_text() == "how it ended"


async def test_a_job_that_was_cancelled_behind_our_back_is_failed(
    slurm: cluster.Slurm, hpc: Engine
) -> None:
    assert hpc.pool
    hpc.pool = replace(hpc.pool, settings={**hpc.pool.settings, "options": ["--begin=now+1hour"]})
    async with watching(hpc.dsn) as watch, running(hpc.coordinator(), patience=JOB_TIMEOUT):
        await watch.submit("true")
        await watch.until_found("select from pgcoord.attempt where waits_for = 'BeginTime'")
        words = (await watch.one("select words from pgcoord.why('queue-1-1')"))["words"]
        assert re.fullmatch(r"waits in pool hpc since .*, job \d+: BeginTime", words)
        slurm.ask("scancel", (await watch.one("select job from pgcoord.attempt"))["job"])
        await watch.until_statuses("failed")
        error = (await watch.one("select error from pgcoord.attempt"))["error"]
        assert "it ended before it began" in error
        assert "CANCELLED" in error


async def test_a_pool_that_is_removed_has_its_jobs_ended_and_recorded(hpc: Engine) -> None:
    async with watching(hpc.dsn) as watch:
        async with running(hpc.coordinator(), patience=JOB_TIMEOUT):
            await watch.submit("echo up; sleep 600")
            await watch.until_statuses("running")
        other = make_coordinator(hpc.dsn, hpc.folder, environment={**os.environ, **hpc.environment})
        async with running(other, patience=JOB_TIMEOUT):
            await watch.one("select status from pgcoord.cancel_phase('queue-1-1', 'enough')")
            await watch.until_statuses("cancelled")
            assert await watch.all("select from pgcoord.slot where pool = 'hpc'") == []


@pytest.mark.scale
@pytest.mark.timeout(1800)
async def test_a_hundred_jobs_under_forty_slots(hpc: Engine) -> None:
    async with watching(hpc.dsn) as watch, running(hpc.coordinator(), patience=10 * JOB_TIMEOUT):
        await watch.submit(*[f"echo {number} >> {hpc.folder}/ran" for number in range(100)])
        most = 0
        async with asyncio.timeout(10 * JOB_TIMEOUT):
            while True:
                row = await watch.one(
                    "select count(*) filter (where status = 'completed') as done, count(slot) as n,"
                    " count(*) filter (where status = 'failed') as failed from phase_queue"
                )
                most = max(most, row["n"])
                assert row["failed"] == 0
                if row["done"] == 100:
                    break
                await asyncio.sleep(0.5)
    assert most == 40
    ran = (hpc.folder / "ran").read_text().split()
    assert sorted(map(int, ran)) == list(range(100))
