"""Start a Ray of a head and a node on loopback, run its tests there, and end it.

Ray has an environment of its own, `.ray`. `ray stop` is not used: it ends every Ray of the machine.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from contextlib import suppress
from pathlib import Path

RAY = "ray[default]==2.60.0"
ROOT = Path(__file__).parents[1]
PLACE = ROOT / ".ray"
ADDRESS = "http://127.0.0.1:8299"
START_TIMEOUT = 300  # seconds; a busy machine needs a minute

_MARK = "PGCOORD_TEST_RAY_FOLDER"
_COMMON = ("--disable-usage-stats", "--object-store-memory=80000000")
_HEAD = (
    *("--head", "--node-ip-address=127.0.0.1", "--port=6399", "--num-cpus=0"),
    *("--dashboard-host=127.0.0.1", "--dashboard-port=8299"),
    *("--dashboard-agent-listen-port=8298", "--min-worker-port=30000", "--max-worker-port=30100"),
)
_NODE = (
    *("--address=127.0.0.1:6399", "--num-cpus=2", '--resources={"pgcoord": 4}'),
    *("--dashboard-agent-listen-port=8398", "--min-worker-port=30200", "--max-worker-port=30300"),
)


def install() -> None:
    if not (PLACE / "installed").exists():
        sys.stdout.write(f"installing {RAY} into {PLACE}\n")
        venv.create(PLACE, with_pip=True)
        subprocess.run([PLACE / "bin/pip", "install", "--quiet", RAY], check=True)
        (PLACE / "installed").touch()


def start(folder: str) -> None:
    environment = {**os.environ, _MARK: folder, "RAY_raylet_start_wait_time_s": str(START_TIMEOUT)}
    for options in ((*_HEAD, f"--temp-dir={folder}"), _NODE):
        command = [PLACE / "bin/ray", "start", *options, *_COMMON]
        subprocess.run(command, env=environment, check=True)
    until = time.monotonic() + START_TIMEOUT
    while living_nodes() < 2:  # a head without nodes answers, and takes no job
        if time.monotonic() > until:
            sys.exit(f"Ray has not two nodes within {START_TIMEOUT} s")
        time.sleep(1)


def living_nodes() -> int:
    with suppress(OSError), urllib.request.urlopen(f"{ADDRESS}/nodes?view=summary") as answer:
        nodes = json.load(answer)["data"]["summary"]
        return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)
    return 0


def stop(folder: str) -> None:
    """End all that was started with the folder in its environment, and the children of that.

    Some of Ray's processes write their name over their environment.
    """
    mark, parents, ours = f"{_MARK}={folder}".encode(), {}, set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            pid = int(process.name)
            parents[pid] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if mark in (process / "environ").read_bytes():
                ours.add(pid)
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    for pid in ours:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def main() -> int:
    install()
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        try:
            start(folder)
            tests = [sys.executable, "-m", "pytest", "-q", "-k", "ray", "tests/runs/test_apart.py"]
            environment = {**os.environ, "PGCOORD_TEST_RAY": ADDRESS}
            return subprocess.run(tests, cwd=ROOT, env=environment, check=False).returncode
        finally:
            stop(folder)


if __name__ == "__main__":
    sys.exit(main())
