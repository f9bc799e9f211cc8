"""`doctor --probe`: a tiny real job says what a job finds on a node. Slurm is real."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.desk import Desk
from support.fake_kubernetes import serving_kubernetes
from support.serving import served
from support.slurm import Slurm as Cluster

from pgcoord.coordination import probe
from pgcoord.runs.kubernetes import Kubernetes
from pgcoord.runs.slurm import Slurm

EXAMPLES = Path(__file__).parents[2] / "examples" / "engines"


async def found(
    slurm: Cluster, folder: Path, url: str | None, path: str, *options: str
) -> list[tuple[str, str]]:
    """The level and the words of what a probe finds on the nodes of Slurm."""
    environment = {**os.environ, **slurm.environment, "PATH": path}
    engine = Slurm(options=options, environment={**environment, "PATH": os.environ["PATH"]})
    findings = await probe.probe(engine, {"folder": str(folder)}, url, environment)
    assert os.listdir(folder) == []
    return [(each.level, each.words) for each in findings]


def python_of(folder: Path, script: str) -> str:
    """A PATH whose python3 is a script."""
    folder.mkdir()
    (folder / "python3").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "python3").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


async def test_a_node_where_all_is_well_and_one_that_cannot_report(
    slurm: Cluster, dsn: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with served(dsn, tmp_path, leads=False) as site:
        began, folder, address = await found(slurm, tmp_path / "s", site.url, os.environ["PATH"])
        assert began[0] == folder[0] == address[0] == "ok"
        assert began[1].startswith("a job began on node ")
        assert address[1].endswith(f"reaches {site.url}")
    assert "a probe of doctor reached this server" in caplog.messages
    assert [each for each in caplog.records if each.levelname == "WARNING"] == []
    # A clock that is wrong, and a server that is away.
    ahead = "import time,runpy,sys;r=time.time;time.time=lambda:r()+600;sys.argv.pop(0)"
    run = f'exec {sys.executable} -c "{ahead};runpy.run_path(sys.argv[0],None,\'__main__\')" "$@"'
    path = python_of(tmp_path / "bin", run)
    *_, address, clock = await found(slurm, tmp_path / "s", "http://127.0.0.1:9", path)
    assert (address[0], clock[0]) == ("warn", "warn")
    assert "cannot report to http://127.0.0.1:9: [Errno 111] Connection refused" in address[1]
    # At least that much: how long its message was under way is not known.
    assert re.search(r"is 0:(10:00|09:[3-5]\d) ahead of ours", clock[1])


@pytest.mark.scale
async def test_faults_of_a_node_are_reported(slurm: Cluster, tmp_path: Path) -> None:
    old = sorted(Path.home().glob(".pyenv/versions/3.[67].*/bin/python3"))
    oldest = old[0] if old else None
    cases: list[tuple[str, str, tuple[str, ...]]] = [
        ("python3", python_of(tmp_path / "none", "echo no python3 >&2; exit 127"), ()),
        ("nvalid partition", os.environ["PATH"], ("--partition=gpu",)),
    ]
    if oldest:
        path = python_of(tmp_path / "old", f'exec {oldest} "$@"')
        cases.append(("the python3 of the node is older than 3.8", path, ()))
    for words, path, options in cases:
        [(level, said)] = await found(slurm, tmp_path / "s", None, path, *options)
        assert level == "fail"
        assert words in said


@pytest.mark.scale
def test_a_folder_that_is_not_shared_is_found_out(slurm: Cluster, desk: Desk) -> None:
    shared = desk.folder / "shared"
    shared.mkdir()
    pool = f'[pool.hpc]\nlauncher = "slurm"\nslots = 2\nfolder = "{shared}"\n'
    desk.write("pgcoord.toml", pool + '[workflow.w]\ncommand = ["true"]\npool = "hpc"\n')
    # A disk of this machine lies there, which the nodes do not see.
    command = (
        f"mount -t tmpfs none {shared} && exec {sys.executable} -m pgcoord doctor --probe --json"
    )
    result = subprocess.run(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", command],
        cwd=desk.folder,
        env={**desk.environment, **slurm.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 9, result.stderr
    pools = [each for each in json.loads(result.stdout)["findings"] if each["kind"] == "pools"]
    [said] = [each["words"] for each in pools if "said nothing" in each["words"]]
    assert said.startswith("hpc: job ")


@pytest.mark.scale
async def test_nodes_that_share_no_folder_answer_by_their_output(tmp_path: Path, dsn: str) -> None:
    with serving_kubernetes(tmp_path / "cluster") as (fake, kubeconfig):
        settings: Mapping[str, str] = {
            "kubeconfig": str(kubeconfig),
            "template": str(EXAMPLES / "kubernetes-job.yaml"),
            "directory": "/nowhere",
        }
        engine = Kubernetes(settings, {})
        async with served(dsn, tmp_path, leads=False) as site:
            findings = await probe.probe(engine, settings, f"{site.url}/", {})
            assert [each.level for each in findings] == ["ok", "fail", "ok"], findings
        assert "has not the pool's directory" in findings[1].words
        await engine.find()
        assert [kind for kind, _ in fake.objects if kind != "pods"] == []
