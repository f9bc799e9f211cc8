"""Slurm's own commands, on a real cluster of two nodes."""

import os
import re
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from support.slurm import Slurm as Cluster

from pgcoord.coordination.launching import EngineState, ListedJob, Order
from pgcoord.errors import CannotStart, NotNow
from pgcoord.runs.slurm import Slurm, _read

INSTALLATION = "0123456789abcdef"


@pytest.fixture
def engine(slurm: Cluster) -> Slurm:
    return engine_of(slurm)


def engine_of(slurm: Cluster, *options: str) -> Slurm:
    return Slurm(
        options=options,
        environment={**os.environ, **slurm.environment},
    )


def order(folder: Path, script: str, *arguments: str, **environment: str) -> Order:
    """An order of a shell script, with a name of its own."""
    path = folder / "job.sh"
    path.write_text(f"#!/bin/sh\n{script}\n")
    return Order(
        f"pgcoord-{INSTALLATION[:8]}-{folder.name.strip('0').replace('_', '-')[-40:]}",
        path,
        arguments,
        {"PATH": os.environ["PATH"], **environment},
        folder,
        folder / "log",
    )


async def seen(
    slurm: Cluster, engine: Slurm, name: str, holds: Callable[[ListedJob], bool], what: str
) -> ListedJob:
    """Wait until Slurm says of the job what is expected."""
    for _ in range(600):
        found = (await engine.find()).get(name, [])
        if found and holds(found[-1]):
            return found[-1]
        await slurm.a_moment()
    raise AssertionError(f"{name} is not {what}: {found}")


async def ended(slurm: Cluster, engine: Slurm, name: str) -> ListedJob:
    return await seen(slurm, engine, name, lambda it: it.state is EngineState.ENDED, "ended")


async def test_a_job_gets_its_environment_and_arguments_and_nothing_else(
    slurm: Cluster, engine: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_OURS", "1")
    job = order(tmp_path, 'printf \'%s;\' "$1" "$2"; env; exit 42', "a b", "$x", A='x,y=2\nB="q"')
    number = await engine.submit(job)
    end = await ended(slurm, engine, job.name)
    assert (end.job, end.exit_status) == (number, 42)
    output = job.log.read_text()
    assert output.startswith("a b;$x;")
    assert 'A=x,y=2\nB="q"\n' in output
    assert "SECRET_OF_OURS" not in output
    assert (tmp_path / "environment").stat().st_mode & 0o777 == 0o600


async def test_the_names_of_other_peoples_jobs_may_be_anything(
    slurm: Cluster, engine: Slurm, tmp_path: Path
) -> None:
    for name in ("a|b", "a\nb", "|||||||"):
        assert slurm.ask("sbatch", f"--job-name={name}", "--output=/dev/null", "--wrap=true")
    job = order(tmp_path, "exit 3")
    await engine.submit(job)
    assert (await ended(slurm, engine, job.name)).exit_status == 3
    assert all(name.startswith("pgcoord-") for name in await engine.find())


async def test_a_signal_is_an_exit_status(slurm: Cluster, engine: Slurm, tmp_path: Path) -> None:
    job = order(tmp_path, "kill -9 $$")
    await engine.submit(job)
    assert (await ended(slurm, engine, job.name)).exit_status == 137


async def test_a_waiting_job_has_a_reason_and_is_removed(slurm: Cluster, tmp_path: Path) -> None:
    engine = engine_of(slurm, "--begin=now+1hour")
    job = order(tmp_path, "touch ran")
    number = await engine.submit(job)
    waits = await seen(slurm, engine, job.name, lambda it: "Begin" in it.words, "waiting")
    assert waits == ListedJob(number, EngineState.WAITING, "BeginTime")
    await engine.terminate(number)
    assert (await ended(slurm, engine, job.name)).exit_status is None
    assert not (tmp_path / "ran").exists()


async def test_ending_reaches_all_processes_and_lets_them_clean_up(
    slurm: Cluster, engine: Slurm, tmp_path: Path
) -> None:
    child = "sh -c 'trap \"echo child cleans up; exit\" TERM; echo up; sleep 60 & wait'"
    job = order(tmp_path, f"trap 'echo cleans up; wait; exit 3' TERM; {child} & wait; wait")
    number = await engine.submit(job)
    slurm.wait_for(lambda: job.log.exists() and "up" in job.log.read_text(), "output of the job")
    await engine.terminate(number)
    assert (await ended(slurm, engine, job.name)).exit_status == 3
    assert {"child cleans up", "cleans up"} <= set(job.log.read_text().splitlines())
    await engine.kill(number)  # of one that is gone already


@pytest.mark.scale
async def test_a_job_that_ignores_sigterm_is_killed(
    slurm: Cluster, engine: Slurm, tmp_path: Path
) -> None:
    job = order(tmp_path, "trap 'echo no' TERM; echo up; while :; do sleep 1; done")
    number = await engine.submit(job)
    slurm.wait_for(lambda: job.log.exists() and "up" in job.log.read_text(), "output of the job")
    await engine.terminate(number)
    await engine.kill(number)
    await ended(slurm, engine, job.name)


async def test_a_partition_that_does_not_exist_is_refused_for_good(
    slurm: Cluster, tmp_path: Path
) -> None:
    words = r'sbatch refuses the job: .*[Ii]nvalid partition.* \(options = \["--partition=gpu"\]\)'
    with pytest.raises(CannotStart, match=words):
        await engine_of(slurm, "--partition=gpu").submit(order(tmp_path, "true"))


@pytest.mark.scale
async def test_a_frozen_controller_may_have_taken_the_job(
    slurm: Cluster, engine: Slurm, tmp_path: Path
) -> None:
    job = order(tmp_path, "true")
    slurm.kill("controller", signal.SIGSTOP)
    try:
        with pytest.raises(NotNow) as caught:
            await engine.submit(job)
        assert not caught.value.certain
    finally:
        slurm.kill("controller", signal.SIGCONT)
    await ended(slurm, engine, job.name)
    await engine.submit(job)  # again, under the same name: both are found
    await seen(slurm, engine, job.name, lambda it: True, "there")
    assert len((await engine.find())[job.name]) == 2


@pytest.mark.scale
async def test_a_dead_controller_has_certainly_not_taken_the_job(
    slurm: Cluster, engine: Slurm, tmp_path: Path
) -> None:
    slurm.kill("controller", signal.SIGKILL)
    try:
        with pytest.raises(NotNow, match="sbatch") as caught:
            await engine.submit(order(tmp_path, "true"))
        assert caught.value.certain
        assert caught.value.wait > timedelta()
        with pytest.raises(NotNow, match="squeue"):
            await engine.find()
        [finding] = await engine.check()
        assert re.search(r"does not answer: Slurmctld.* is DOWN$", finding.words)
    finally:
        slurm.start_controller()
        slurm.wait_until_idle()


async def test_doctor_reports_faults_of_the_engine(slurm: Cluster, engine: Slurm) -> None:
    assert [each.level for each in await engine.check()] == ["ok", "ok", "warn"]  # KillWait 2 s
    *_, options, _ = await engine_of(slurm, "--partition=gpu").check()
    assert options.level == "fail"
    assert "nvalid partition" in options.words
    away = Slurm(options=(), environment={"PATH": "/nowhere"})
    assert [(each.level, each.words) for each in await away.check()] == [
        ("fail", "scontrol is not installed on this machine")
    ]


def test_a_job_that_slurm_has_not_looked_at_is_pending_for_no_reason() -> None:
    lines = "7|PENDING|None||0|pgcoord-a\n8|PENDING|Priority||0|pgcoord-b\n"
    assert [seen.words for _, seen in _read(lines)] == ["PENDING", "Priority"]
