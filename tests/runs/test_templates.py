"""What the commands of engines print, read as examples/engines says; Slurm's run in test_contract.

The outputs of PBS, LSF, HTCondor and Nomad are as their manuals show them: none is installed here.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.cases import case

from pgcoord.configuration.reading import read_configuration
from pgcoord.coordination.launching import EngineState, ListedJob, Order
from pgcoord.errors import CannotStart, InvalidConfiguration, NotNow
from pgcoord.runs.templates import Commands

EXAMPLES = Path(__file__).parents[2] / "examples" / "engines"

NAME = "pgcoord-0123abcd-17-89abcdef"

# By the name of the example: what submit prints, and its id; what list prints, and what that means.
PRINTED: dict[str, tuple[str, str, str, list[ListedJob]]] = {
    "pbs": (
        "17.server\n",
        "17.server",
        json.dumps(
            {
                "Jobs": {
                    "17.server": {
                        "Job_Name": NAME,
                        "job_state": "Q",
                        "comment": "Not Running: Insufficient amount of resource: ncpus",
                    },
                    "18.server": {"Job_Name": NAME, "job_state": "F", "Exit_status": 265},
                    "19.server": {"Job_Name": "somebody's", "job_state": "R"},
                }
            }
        ),
        [
            ListedJob(
                "17.server",
                EngineState.WAITING,
                "Not Running: Insufficient amount of resource: ncpus",
            ),
            ListedJob("18.server", EngineState.ENDED, "F", None, 137),
        ],
    ),
    "lsf": (
        "Job <17> is submitted to queue <normal>.\n",
        "17",
        f"17|{NAME}|RUN|node1|-|-\n18|{NAME}|EXIT|node2|42|-\n19|other|RUN|node1|-|-\n",
        [
            ListedJob("17", EngineState.RUNNING, "RUN, -", "node1"),
            ListedJob("18", EngineState.ENDED, "EXIT, -", "node2", 42),
        ],
    ),
    "htcondor": (
        "17.0 - 17.0\n",
        "17",
        json.dumps([{"ClusterId": 17, "JobBatchName": NAME, "JobStatus": 5, "HoldReason": "why"}]),
        [ListedJob("17", EngineState.WAITING, "why")],
    ),
    "nomad": (
        "Dispatched Job ID = pgcoord/dispatch-1700000000-abcd\nEvaluation ID = e\n",
        "pgcoord/dispatch-1700000000-abcd",
        json.dumps([{"ID": "pgcoord/dispatch-1", "Status": "dead", "Meta": {"name": NAME}}]),
        [ListedJob("pgcoord/dispatch-1", EngineState.ENDED, "dead")],
    ),
}


def order(folder: Path) -> Order:
    script = folder / "wrapper.py"
    script.write_text("")
    return Order(NAME, script, ["order.json"], {}, folder, folder / "engine.log")


def commands(tmp_path: Path, example: str, **scripts: str) -> Commands:
    """The commands of an example, with scripts in place of the engine's programs."""
    settings: dict[str, Any] = dict(
        next(iter(_pools(EXAMPLES / f"{example}.toml").values())).settings
    )
    for key, script in scripts.items():
        program = settings[key][0]
        path = tmp_path / "bin" / key / program
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        settings[key] = [str(path), *settings[key][1:]]
    return Commands(settings, os.environ)


def _pools(path: Path) -> dict[str, Any]:
    pools = read_configuration(path).pools
    return {name: pool for name, pool in pools.items() if name != "local"}


@pytest.mark.parametrize("example", PRINTED)
async def test_an_example_parses_the_output_of_its_engine(tmp_path: Path, example: str) -> None:
    submitted, job, listed, seen = PRINTED[example]
    (tmp_path / "submitted").write_text(submitted)
    (tmp_path / "listed").write_text(listed)
    engine = commands(
        tmp_path,
        example,
        submit=f'printf "%s\\n" "$@" >{tmp_path}/words; cat {tmp_path}/submitted',
        list=f"cat {tmp_path}/listed",
        cancel=f'printf "%s\\n" "$@" >{tmp_path}/cancelled',
    )
    assert await engine.submit(order(tmp_path)) == job
    words = (tmp_path / "words").read_text()
    assert NAME in words
    assert f"{tmp_path}/job.sh" in words
    assert "{" not in words
    assert await engine.find() == {NAME: seen}
    await engine.terminate(job)
    assert job in (tmp_path / "cancelled").read_text().splitlines()


async def test_only_a_known_refusal_is_permanent(tmp_path: Path) -> None:
    engine = commands(tmp_path, "pbs", submit="echo 'qsub: Unknown queue' >&2; exit 3")
    with pytest.raises(CannotStart, match="Unknown queue"):
        await engine.submit(order(tmp_path))
    for script, words in (("echo timed out >&2; exit 1", "timed out"), ("exit 0", "no id")):
        with case(words):
            (tmp_path / words).mkdir()
            engine = commands(tmp_path / words, "pbs", submit=script)
            with pytest.raises(NotNow, match=words) as caught:
                await engine.submit(order(tmp_path))
            assert not caught.value.certain


async def test_a_failed_or_malformed_list_is_read_again_later(tmp_path: Path) -> None:
    for script, example, words in (
        ("echo broken; exit 1", "pbs", "broken"),
        ("echo '{'", "pbs", "not JSON"),
    ):
        with case(words):
            (tmp_path / words).mkdir()
            with pytest.raises(NotNow, match=words):
                await commands(tmp_path / words, example, list=script).find()
    none = commands(tmp_path, "lsf", list="echo 'No job found' >&2; exit 255")
    assert await none.find() == {}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id": None}, "pool.batch.id: missing; see examples/engines"),
        ({"cancel": ["qdel", "{job}"]}, "pool.batch.cancel: there is no placeholder {job} here"),
        ({"submit": ["qsub"]}, "pool.batch.submit: expected {script}"),
        ({"jobs": "("}, "pool.batch.jobs: expected a regular expression"),
        ({"jobs": "(?P<id>.)"}, "pool.batch.jobs: expected a pattern with (?P<name>…)"),
        ({"jobs": "$.a["}, "pool.batch.jobs: expected a path such as"),
        ({"fields": {"id": "@key"}}, "pool.batch.fields.name: missing"),
    ],
)
def test_a_template_that_cannot_work_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    lines = (EXAMPLES / "pbs.toml").read_text().splitlines()
    for key, value in changes.items():
        at = next(n for n, line in enumerate(lines) if line.startswith(f"{key} ="))
        text = json.dumps(value)
        if isinstance(value, dict):
            text = (
                "{"
                + ", ".join(f"{name} = {json.dumps(each)}" for name, each in value.items())
                + "}"
            )
        lines[at] = "" if value is None else f"{key} = {text}"
    path = tmp_path / "pgcoord.toml"
    path.write_text("\n".join(lines))
    with pytest.raises(InvalidConfiguration) as caught:
        read_configuration(path)
    assert words in f"{caught.value} {caught.value.hint}"
