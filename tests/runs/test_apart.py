"""Engines whose nodes share no folder with the coordinator: Kubernetes and Ray.

Kubernetes is a small one of ours, which refuses what the API's own description does not allow; Ray
is a real cluster that PGCOORD_TEST_RAY names (`make test-ray`).
"""

import asyncio
import os
import re
import shutil
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.coordination import Watch, scripts, until_it_ends, watching
from support.fake_kubernetes import FakeKubernetes, serving_kubernetes
from support.serving import served

from pgcoord.configuration.model import Pool
from pgcoord.configuration.reading import read_configuration
from pgcoord.coordination import engines
from pgcoord.coordination.launching import EngineState, Order
from pgcoord.errors import CannotStart, NotNow
from pgcoord.runs import job
from pgcoord.runs.kubernetes import Kubernetes, manifest_of, read_template

# As in test_contract.py.
HURRIED = {"ASKS": (0.3, 1.0), "UNSURE": 4.0, "SILENT": 6.0, "SETTLED": 1.0, "FOLDER_INTERVAL": 0.2}

EXAMPLES = Path(__file__).parents[2] / "examples" / "engines"


@pytest.fixture
def kubernetes(tmp_path: Path) -> Iterator[tuple[FakeKubernetes, Path]]:
    with serving_kubernetes(tmp_path / "cluster") as served_one:
        yield served_one


@pytest.fixture(params=["kubernetes", "ray"])
def pool(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pool:
    for name, value in HURRIED.items():
        monkeypatch.setattr(engines, name, value)
    if request.param == "ray":
        address = os.environ.get("PGCOORD_TEST_RAY")
        if not address:
            pytest.skip("PGCOORD_TEST_RAY names no cluster: make test-ray starts one")
        settings = {"address": address, "resources": {"pgcoord": 1}, "directory": str(tmp_path)}
        return Pool("ray", "ray", 4, settings)
    _, kubeconfig = request.getfixturevalue("kubernetes")
    return Pool("k8s", "kubernetes", 40, settings_of(kubeconfig) | {"directory": str(tmp_path)})


def settings_of(kubeconfig: Path) -> dict[str, Any]:
    return {"kubeconfig": str(kubeconfig), "template": str(EXAMPLES / "kubernetes-job.yaml")}


async def attempt_of(watch: Watch) -> dict[str, Any]:
    return await watch.one("select * from pgcoord.attempt")


@pytest.mark.scale
async def test_a_job_runs_with_its_prompt_and_inputs_and_its_log_and_result_come_back(
    dsn: str, tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "ASKS", (5.0, 5.0))  # the end of the log comes with the end
    script = f"""
        wc -c <"$PGCOORD_PROMPT_FILE"; echo odd >&2; test -s "$PGCOORD_INPUT_FILE" || exit 3
        echo '{{"summary": "s"}}' >"$PGCOORD_RESULT_FILE"; exit 42
        # {"x" * 5_000_000}"""
    work = scripts(pool=pool.name)
    async with served(dsn, tmp_path, work=work, pool=pool), watching(dsn) as watch:
        await watch.submit(script, "kill -9 $$")
        # Asked, as a notification that comes while 5 MB are being read is not seen.
        await watch.until_found("select 1 from phase_queue having bool_and(status = 'failed')")
        first, second = await watch.all("select * from pgcoord.attempt order by id")
        assert (first["exit_code"], second["exit_code"]) == (42, 137)
        assert first["error"].startswith("exited with status 42\n50001")
        assert first["node"]
        assert (await watch.one("select value from pgcoord.result"))["value"] == {"summary": "s"}
        log = Path(first["folder"]) / "log"
        await until_it_ends(log, "odd\n")
        # Neither its prompt nor the order with its secret: what it needs, it was sent.
        assert [each.name for each in log.parent.iterdir()] == ["log"]


async def test_a_further_attempt_is_asked_with_the_failure_of_the_last(
    dsn: str, tmp_path: Path, pool: Pool
) -> None:
    work = scripts(
        pool=pool.name,
        max_attempts=2,
        retry_delay=timedelta(0),
        retry_prompt="cat >/dev/null <<end\n{error}\nend\necho was: {prompt}",
    )
    async with served(dsn, tmp_path, work=work, pool=pool), watching(dsn) as watch:
        await watch.submit("exit 7")
        await watch.until_statuses("completed")
        attempts = await watch.all("select exit_code, folder from pgcoord.attempt order by id")
        assert [each["exit_code"] for each in attempts] == [7, 0]
        await until_it_ends(Path(attempts[1]["folder"]) / "log", "was: exit 7\n")


@pytest.mark.scale
async def test_a_job_whose_log_is_copied_late_is_not_taken_for_quiet(
    dsn: str, tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "ASKS", (600.0, 600.0))  # so no copy but of the first answer
    monkeypatch.setattr(Kubernetes, "changes", lambda _: None)  # which would have it asked sooner
    work = scripts(pool=pool.name, quiet=timedelta(seconds=5), quiet_ends=True)
    async with served(dsn, tmp_path, work=work, pool=pool), watching(dsn) as watch:
        await watch.submit(f"while [ ! -e {tmp_path}/stop ]; do echo x; sleep 0.1; done")
        await watch.until_statuses("running")
        log = Path((await attempt_of(watch))["folder"]) / "log"
        sizes = {0}
        while len(sizes) < 4 and not await watch.all(
            "select 1 from phase_queue where status = 'failed'"
        ):
            await asyncio.sleep(0.1)
            sizes.add(log.stat().st_size if log.exists() else 0)
        (tmp_path / "stop").touch()
        await watch.until_statuses("completed")


async def test_a_log_is_copied_where_another_host_made_the_folder(
    dsn: str, tmp_path: Path, pool: Pool
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    work = scripts(pool=pool.name)
    async with served(dsn, tmp_path, work=work, pool=pool), watching(dsn) as watch:
        await watch.submit(f"read line <{gate}; echo $line")
        await watch.until_statuses("running")
        folder = Path((await attempt_of(watch))["folder"])
        shutil.rmtree(folder, ignore_errors=True)  # where the first copy of the log made it
        await asyncio.to_thread(gate.write_text, "on\n")
        await watch.until_statuses("completed")
        await until_it_ends(folder / "log", "on\n")


@pytest.mark.scale
async def test_a_cancelled_job_gets_term_then_kill_and_then_its_slot_is_free(
    dsn: str, tmp_path: Path, pool: Pool
) -> None:
    script = (
        f"trap 'echo heard >>{tmp_path}/said' TERM; echo up >{tmp_path}/up"
        "; while :; do sleep 0.1; done"
    )
    work = scripts(pool=pool.name)
    async with served(dsn, tmp_path, work=work, pool=pool), watching(dsn) as watch:
        await watch.submit(script)
        await until_it_ends(tmp_path / "up", "up\n")
        await watch.until_statuses("running")
        await watch.conn.execute("select from pgcoord.cancel_phase('queue-1-1', 'enough')")
        await watch.until_statuses("cancelled")
        assert (tmp_path / "said").read_text().startswith("heard\n")
        assert (await attempt_of(watch))["exit_code"] == 137


def test_jobs_report_to_the_address_with_and_without_its_path() -> None:
    for path in ("", "/", "/workflow-complete"):
        made = engines.Pool(object(), f"http://head:8002/api/v1{path}")  # type: ignore[arg-type]
        assert made.origin == "http://head:8002/api/v1"
        assert made.report_url == "http://head:8002/api/v1/workflow-complete"


# --- Kubernetes alone


async def test_changes_pushed_by_the_api_are_seen_before_the_next_query(
    dsn: str,
    tmp_path: Path,
    kubernetes: tuple[FakeKubernetes, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engines, "ASKS", (600.0, 600.0))
    fake, kubeconfig = kubernetes
    fake.holds = "0/1 nodes are available"
    pool = Pool("k8s", "kubernetes", 40, settings_of(kubeconfig))
    async with served(dsn, tmp_path, work=scripts(pool="k8s"), pool=pool), watching(dsn) as watch:
        await watch.submit("true")
        for words in ("0/1 nodes are available", "1 Insufficient cpu"):
            fake.holds = words
            await watch.until_found(
                f"select from pgcoord.attempt where waits_for = 'Unschedulable: {words}'"
            )


async def test_a_pool_without_its_extra_is_reported_and_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pgcoord.runs.kubernetes", None)
    engine = engines.LAUNCHERS["kubernetes"]({}, {})
    for kind, asked in (
        (NotNow, engine.find),
        (CannotStart, lambda: engine.submit(order_of(tmp_path))),
    ):
        with pytest.raises(kind, match="is not installed here"):
            await asked()


def order_of(tmp_path: Path) -> Order:
    """An order whose job will not be answered."""
    content = {
        "attempt": 1,
        "secret": "whsec_" + "A" * 32,
        "url": "http://127.0.0.1:9",
        "command": ["cat", f"{tmp_path}/prompt.md"],
        "directory": "/",
        "environment": {"PATH": "/of/ours", "TOKEN": "secret"},
        "grace": 1.0,
        "folder": str(tmp_path),
    }
    name = "pgcoord-0123abcd-17-89abcdef"
    return Order(name, Path(job.__file__), [], {}, tmp_path, tmp_path / "engine.log", content)


async def test_a_submission_of_unknown_outcome_may_be_repeated(
    kubernetes: tuple[FakeKubernetes, Path], tmp_path: Path
) -> None:
    fake, kubeconfig = kubernetes
    fake.holds = "0/1 nodes are available: 1 Insufficient cpu."
    engine, order = Kubernetes(settings_of(kubeconfig), {}), order_of(tmp_path)
    assert await engine.submit(order) == await engine.submit(order) == order.name
    [seen] = (await engine.find())[order.name]
    words = "Unschedulable: 0/1 nodes are available: 1 Insufficient cpu."
    assert (seen.state, seen.words) == (EngineState.WAITING, words)
    secret = fake.objects["secrets", order.name]
    uid = fake.objects["jobs", order.name]["metadata"]["uid"]
    assert [each["uid"] for each in secret["metadata"]["ownerReferences"]] == [uid]
    made = repr([each for (kind, _), each in fake.objects.items() if kind != "secrets"])
    assert "whsec_" not in made
    await engine.terminate(order.name)
    assert await engine.find() == {}
    await engine.terminate(order.name)
    await engine.kill(order.name)
    assert not [kind for kind, _ in fake.objects if kind != "pods"]


async def test_a_down_cluster_gives_no_answer_and_a_refusing_cluster_its_reason(
    kubernetes: tuple[FakeKubernetes, Path], tmp_path: Path
) -> None:
    fake, kubeconfig = kubernetes
    engine, order = Kubernetes(settings_of(kubeconfig), {}), order_of(tmp_path)
    fake.down = True
    for asked in (engine.find, lambda: engine.submit(order)):
        with pytest.raises(NotNow, match="the cluster is down") as caught:
            await asked()
        assert not caught.value.certain
    fake.down = False
    template = tmp_path / "job.yaml"
    text = (EXAMPLES / "kubernetes-job.yaml").read_text()
    template.write_text(text.replace("activeDeadlineSeconds", "activeDedlineSeconds"))
    engine = Kubernetes(settings_of(kubeconfig) | {"template": str(template)}, {})
    with pytest.raises(CannotStart, match="activeDedlineSeconds: unknown"):
        await engine.submit(order)
    assert not fake.objects  # no Secret without an owner
    template.write_text("kind: Pod")
    with pytest.raises(CannotStart, match="is not a manifest of a Job"):
        await engine.submit(order)
    address = re.compile(r"127.0.0.1:\d+")
    (tmp_path / "kubeconfig").write_text(address.sub("127.0.0.1:9", kubeconfig.read_text()))
    with pytest.raises(NotNow, match="cannot be reached"):
        await Kubernetes(settings_of(tmp_path / "kubeconfig"), {}).find()


def test_required_fields_override_the_template(tmp_path: Path) -> None:
    template = read_template(EXAMPLES / "kubernetes-job.yaml")
    template["spec"] |= {"backoffLimit": 6, "completions": 3}
    template["spec"]["template"]["spec"]["restartPolicy"] = "OnFailure"
    made = manifest_of(template, order_of(tmp_path), 5)
    pod = made["spec"]["template"]["spec"]
    assert (made["spec"]["backoffLimit"], made["spec"]["completions"]) == (0, 1)
    assert (pod["restartPolicy"], pod["terminationGracePeriodSeconds"]) == ("Never", 20)
    assert template["spec"]["backoffLimit"] == 6  # a copy


@pytest.mark.parametrize("example", ["kubernetes", "ray"])
def test_the_example_is_valid(example: str) -> None:
    read_configuration(EXAMPLES / f"{example}.toml")


async def test_a_real_cluster(tmp_path: Path) -> None:
    kubeconfig = os.environ.get("PGCOORD_TEST_KUBECONFIG")
    if not kubeconfig:
        pytest.skip("PGCOORD_TEST_KUBECONFIG names no kubeconfig: Kubernetes is only emulated")
    engine, order = Kubernetes(settings_of(Path(kubeconfig)), {}), order_of(tmp_path)
    try:
        assert await engine.submit(order) == await engine.submit(order) == order.name
        assert order.name in await engine.find()
    finally:
        await engine.kill(order.name)
