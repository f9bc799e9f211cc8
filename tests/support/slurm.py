"""A Slurm of two nodes on this machine: a controller, two node daemons, and munge."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from support import PATIENCE
from support.ports import free_port

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")

NODES = ("n1", "n2")


def missing() -> str | None:
    """Why there can be no Slurm here; None when there can."""
    if os.geteuid():
        return "Slurm's daemons need root here"
    away = [name for name in _PROGRAMS if shutil.which(name) is None]
    if away:
        return f"{', '.join(away)} not installed (Debian: apt-get install slurm-wlm munge)"
    return None


class Slurm:
    """One cluster; its folder holds all of it, `environment` is what its commands need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._processes: list[int] = []

    def start(self) -> None:
        """Start all of it; return once both nodes are idle."""
        for name in ("munge", "state", *NODES):
            (self.folder / name).mkdir(parents=True)
        # munged refuses a folder above it that others could write.
        (self.folder / "munge").chmod(0o711)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self._write_configuration()
        at = self.folder / "munge"
        subprocess.run(
            [
                *("munged", "--force", f"--key-file={key}", f"--socket={at}/socket"),
                *(f"--pid-file={at}/munged.pid", f"--log-file={at}/log", f"--seed-file={at}/seed"),
            ],
            check=True,
        )
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        self.wait_until_idle()

    def wait_until_idle(self) -> None:
        """Wait until the controller knows both nodes, and nothing runs."""
        self.wait_for(lambda: sorted(self.nodes().values()) == ["idle", "idle"], "two idle nodes")

    def _write_configuration(self) -> None:
        host = socket.gethostname().partition(".")[0]
        controller, *ports = (free_port() for _ in range(1 + len(NODES)))
        folder = self.folder
        plugins = Path("/usr/lib") / (sysconfig.get_config_var("MULTIARCH") or "") / "slurm-wlm"
        lines = [
            "ClusterName=tests",
            f"SlurmctldHost={host}(127.0.0.1)",
            "SlurmUser=root",
            *([f"PluginDir={plugins}"] if plugins.is_dir() else []),
            f"AuthInfo=socket={folder}/munge/socket",
            f"SlurmctldPort={controller}",
            f"StateSaveLocation={folder}/state",
            f"SlurmdSpoolDir={folder}/%n",
            f"SlurmctldPidFile={folder}/controller.pid",
            f"SlurmdPidFile={folder}/%n.pid",
            f"SlurmctldLogFile={folder}/controller.log",
            f"SlurmdLogFile={folder}/%n.log",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core",
            "MpiDefault=none",
            "SlurmdParameters=config_overrides",  # more cores than there are
            # Not less than usual of MessageTimeout, SlurmdTimeout: on a machine that is slow for a
            # moment, the controller would cancel what a node is slow to start.
            "ReturnToService=2",
            "KillWait=2",
            "AccountingStorageType=accounting_storage/none",
            "SchedulerParameters=batch_sched_delay=0,sched_min_interval=1000",
            *(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=20"
                for node, port in zip(NODES, ports, strict=True)
            ),
            f"PartitionName=p Nodes={','.join(NODES)} Default=YES",
        ]
        (folder / "slurm.conf").write_text("\n".join(lines) + "\n")

    def lose_nodes_after(self, seconds: int) -> None:
        """Have the controller take a node for lost, with its jobs, that is silent for so long."""
        with (self.folder / "slurm.conf").open("a") as file:
            file.write(f"SlurmdTimeout={seconds}\n")
        subprocess.run(["scontrol", "reconfigure"], env=self._environment, check=True)

    def start_controller(self) -> None:
        subprocess.run(["slurmctld"], env=self._environment, check=True)

    def start_node(self, node: str) -> None:
        subprocess.run(["slurmd", "-N", node], env=self._environment, check=True)

    def stop(self) -> None:
        """End the daemons and what they started: all that has this cluster's configuration."""
        for name in ("controller", *NODES):
            self.kill(name, signal.SIGCONT)
            self.kill(name, signal.SIGKILL)
        mark = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if int(process.name) != os.getpid() and mark in (process / "environ").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
        self.kill("munge/munged", signal.SIGKILL)  # at SIGTERM it would write its seed once more

    def kill(self, daemon: str, sent: signal.Signals) -> None:
        """Send a signal to `controller` or to the daemon of a node, if it is there.

        After SIGKILL it is gone: until then a client's connection could be reset, not refused.
        """
        with suppress(OSError, ValueError):
            pid = int((self.folder / f"{daemon}.pid").read_text())
            os.kill(pid, sent)
            if sent is signal.SIGKILL:
                self.wait_for(lambda: not Path(f"/proc/{pid}").exists(), f"end of {daemon}")

    def ask(self, *command: str) -> str:
        """The output of a command of Slurm; empty when it fails."""
        result = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, check=False
        )
        return result.stdout if result.returncode == 0 else ""

    def nodes(self) -> dict[str, str]:
        lines = self.ask("sinfo", "-h", "-N", "-o", "%N %T").splitlines()
        return dict(line.split() for line in lines)

    def wait_for(self, holds: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
        """Wait until `holds()`; what Slurm does is seen by asking only."""
        until = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < until, f"no {what} within {seconds} s"
            time.sleep(0.1)

    async def a_moment(self) -> None:
        """The time between two questions: Slurm tells nothing by itself."""
        await asyncio.sleep(0.1)

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self.environment}


@contextmanager
def _cluster(name: str) -> Iterator[Slurm]:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    # Not below pytest's own folder, which only its user may enter: munge wants to be reached.
    folder = Path(tempfile.mkdtemp(prefix=f"pgcoord-slurm-{name}-", dir="/tmp"))
    folder.chmod(0o755)
    cluster = Slurm(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A Slurm cluster for the whole session."""
    with _cluster("all") as cluster:
        yield cluster


@pytest.fixture
def own_slurm() -> Iterator[Slurm]:
    """A Slurm cluster for one test.

    A controller that is killed gives its last job ids again; a node that has a job of that id
    drains itself, and the controller cancels the second.
    """
    with _cluster("own") as cluster:
        yield cluster
