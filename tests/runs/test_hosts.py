"""Leaders that die in each step, nodes that die under their jobs: on more than one machine.

The other machine is a network namespace, as in tests/coordination/test_network.py; Slurm is real.
"""

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest
from support import PATIENCE
from support.cable import Cable
from support.coordination import (
    Gate,
    coordinator_process,
    make_coordinator,
    running,
    scripts,
    watching,
)
from support.slurm import Slurm as Cluster

from pgcoord.configuration.model import Pool
from pgcoord.coordination import engines
from pgcoord.database.embedded import EmbeddedPostgres

pytestmark = [pytest.mark.scale, pytest.mark.timeout(3600)]

JOBS_TIMEOUT = 2 * PATIENCE

# As in test_contract.py.
HURRIED = {"ASKS": (0.3, 1.0), "UNSURE": 4.0, "SILENT": 3.0, "SETTLED": 1.0, "FOLDER_INTERVAL": 0.2}

# The points where a leader dies: before and after each external effect.
STEPS = {
    "claimed": "EngineSupervision, '_prepare', True",
    "prepared": "EngineSupervision, '_launch', True",
    "recorded, not submitted": "Slurm, 'submit', True",
    "submitted, not known": "Slurm, 'submit', False",
    "known": "EngineSupervision, '_launch', False",
    "followed": "EngineSupervision, '_believe_the_engine', True",
}

_DIES = """
from pgcoord.coordination import engines
from pgcoord.coordination.engines import EngineSupervision
from pgcoord.runs.slurm import Slurm
for name, value in {hurried!r}.items():
    setattr(engines, name, value)
def dies(kind, name, before):
    method = getattr(kind, name)
    async def come_to(self, *given):
        if not before:
            await method(self, *given)
        os.kill(os.getpid(), {number})
    setattr(kind, name, come_to)
dies({step})
"""


async def test_a_leader_on_another_host_takes_over_the_work_of_a_killed_leader(
    own_slurm: Cluster, cable: Cable, remote: EmbeddedPostgres, tmp_path: Path, hurried: None
) -> None:
    pool = Pool("hpc", "slurm", 4, {"folder": str(tmp_path / "shared")})
    # Its commands reach the controller by the cable: it has a loopback of its own.
    there = tmp_path / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    text = (own_slurm.folder / "slurm.conf").read_text()
    there.write_text(text.replace(f"{host}(127.0.0.1)", f"{host}({cable.here})"))
    prefix = (*cable.machine, "env", f"SLURM_CONF={there}")
    here = {**os.environ, **own_slurm.environment}
    for number, step in enumerate(STEPS.values(), 1):
        ran, gate = tmp_path / f"ran{number}", Gate(tmp_path / f"gate{number}")
        async with (
            watching(remote.dsn) as watch,
            coordinator_process(
                f"host={cable.here} dbname=postgres user=postgres",
                tmp_path,
                host="there",
                prefix=prefix,
                setting=_DIES.format(hurried=HURRIED, step=step, number=int(signal.SIGKILL)),
                work="scripts(pool='hpc')",
                pool=f"__import__('pgcoord.configuration.model').configuration.model.{pool!r}",
            ) as leader,
        ):
            await leader.until("leading")
            await watch.submit(f"echo once >> {ran}; read _ < {gate.path}; exit 7")
            assert await leader.wait() == -signal.SIGKILL
            second = make_coordinator(
                remote.dsn, tmp_path, scripts(pool="hpc"), host="here", environment=here, pool=pool
            )
            async with running(second, patience=JOBS_TIMEOUT):
                gate.open()
                await watch.until_found(
                    f"select from phase_queue where feature_id = {number} and status = 'failed'"
                )
            attempt = await watch.one(
                "select a.* from pgcoord.attempt as a join phase_queue as p using (queue_id)"
                " where p.feature_id = %s",
                number,
            )
        assert (attempt["number"], attempt["exit_code"]) == (1, 7), step
        assert ran.read_text() == "once\n", step


async def test_a_job_of_a_node_whose_daemon_dies_runs_once_elsewhere(
    own_slurm: Cluster, dsn: str, tmp_path: Path, hurried: None
) -> None:
    own_slurm.lose_nodes_after(8)
    gate = Gate(tmp_path / "gate")
    pool = Pool("hpc", "slurm", 4, {"folder": str(tmp_path / "shared")})
    environment = {**os.environ, **own_slurm.environment}
    coordinator = make_coordinator(
        dsn, tmp_path, scripts(pool="hpc"), environment=environment, pool=pool
    )
    async with watching(dsn) as watch, running(coordinator, patience=JOBS_TIMEOUT):
        await watch.submit(f"echo once >> {tmp_path}/ran; read _ < {gate.path}; exit 5")
        await watch.until_statuses("running")
        job = (await watch.one("select job from pgcoord.attempt"))["job"]
        # --no-requeue is ours; an administrator may think otherwise, as is Slurm's default.
        own_slurm.ask("scontrol", "update", f"jobid={job}", "requeue=1")
        node = own_slurm.ask("squeue", "-h", "-j", job, "-o", "%N").strip()
        own_slurm.kill(node, signal.SIGKILL)
        await asyncio.to_thread(
            own_slurm.wait_for,
            lambda: "PENDING" in own_slurm.ask("squeue", "-h", "-j", job, "-o", "%T"),
            "requeued job",
            120,
        )
        own_slurm.ask("scontrol", "update", f"jobid={job}", "starttime=now")
        await watch.until_found("select from pgcoord.attempt where refused_begins > 0")
        assert [row["status"] for row in await watch.all("select status from phase_queue")] == [
            "running"
        ]
        gate.open()
        await watch.until_statuses("failed")
        attempt = await watch.one("select exit_code, number from pgcoord.attempt")
    assert attempt == {"exit_code": 5, "number": 1}
    assert (tmp_path / "ran").read_text() == "once\n"


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in HURRIED.items():
        monkeypatch.setattr(engines, name, value)
