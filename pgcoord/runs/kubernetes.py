"""Kubernetes: an attempt is a Job of one pod, made from the template of the pool.

The name of the Job is what makes a repeated submission harmless: the API refuses a second one. The
order, with all that is secret, is in a Secret that the Job owns. Needs the extra
`pgcoord[kubernetes]`.
"""

import copy
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import yaml  # type: ignore[import-untyped]
from lightkube import ApiError, AsyncClient, KubeConfig
from lightkube.core.exceptions import ConfigError
from lightkube.generic_resource import create_namespaced_resource
from lightkube.types import CascadeType, PatchType

from pgcoord.coordination.launching import EngineState, ListedJob, Order
from pgcoord.errors import CannotStart, NotNow
from pgcoord.runs.apart import order_apart

# Plain objects: a template is sent unchanged, including fields that lightkube does not know.
_Job: Any = create_namespaced_resource("batch", "v1", "Job", "jobs")
_Pod: Any = create_namespaced_resource("", "v1", "Pod", "pods")
_Secret: Any = create_namespaced_resource("", "v1", "Secret", "secrets")

_AGAIN = timedelta(seconds=30)

# Seconds for one request.
_REQUEST_TIMEOUT = 30.0

# Seconds after which the API ends a watch, and another one is begun.
_WATCHED = 300

# The label of our Jobs and pods, and the label of a pod with the name of its Job.
_LABELS = {"app.kubernetes.io/managed-by": "pgcoord"}
_JOB_OF_POD = ("batch.kubernetes.io/job-name", "job-name")

# The path of the order in the container, and the seconds that the API keeps an ended Job.
_MOUNT = "/pgcoord"
_SECONDS_LISTED = 3600

# Seconds that the wrapper has beyond the grace of the command, to say how it ended.
_LAST_WORDS = 15


def read_template(path: Path) -> dict[str, Any]:
    """Read the Job that the user has written. Raises `CannotStart`."""
    try:
        template = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CannotStart(f"the template {path} cannot be read: {error}") from error
    if not isinstance(template, dict) or template.get("kind") != "Job":
        raise CannotStart(f"the template {path} is not a manifest of a Job")
    containers = _pod_of(template).get("containers")
    if not containers or not isinstance(containers, list):
        raise CannotStart(f"the template {path} has no spec.template.spec.containers")
    return template


def manifest_of(template: Mapping[str, Any], order: Order, grace: float) -> dict[str, Any]:
    """Return the Job of *order*: *template*, with the fields that pgcoord requires."""
    job: dict[str, Any] = copy.deepcopy(dict(template))
    job.setdefault("apiVersion", "batch/v1")
    metadata = job.setdefault("metadata", {})
    metadata.pop("generateName", None)
    metadata["name"] = order.name
    metadata["labels"] = {**(metadata.get("labels") or {}), **_LABELS}
    spec = job.setdefault("spec", {})
    spec.setdefault("ttlSecondsAfterFinished", _SECONDS_LISTED)
    spec |= {"backoffLimit": 0, "completions": 1, "parallelism": 1}
    pod_metadata = spec["template"].setdefault("metadata", {})
    pod_metadata["labels"] = {**(pod_metadata.get("labels") or {}), **_LABELS}
    pod = _pod_of(job)
    pod["restartPolicy"] = "Never"
    seconds = int(grace) + _LAST_WORDS
    pod["terminationGracePeriodSeconds"] = max(
        pod.get("terminationGracePeriodSeconds") or 0, seconds
    )
    pod["volumes"] = [
        *(pod.get("volumes") or []),
        {"name": "pgcoord", "secret": {"secretName": order.name}},
    ]
    container = pod["containers"][0]
    container.setdefault("name", "job")
    container["command"] = ["python3", f"{_MOUNT}/job.py", f"{_MOUNT}/order.json"]
    container.pop("args", None)
    container["volumeMounts"] = [
        *(container.get("volumeMounts") or []),
        {"name": "pgcoord", "mountPath": _MOUNT, "readOnly": True},
    ]
    return job


def _pod_of(job: Mapping[str, Any]) -> dict[str, Any]:
    spec: Any = job
    for name in ("spec", "template", "spec"):
        spec = spec.get(name) if isinstance(spec, dict) else None
    return spec if isinstance(spec, dict) else {}


class Kubernetes:
    """One namespace of one cluster; a `coordination.launching.Engine`."""

    def __init__(self, settings: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        """*settings*: template, namespace, kubeconfig, context, directory."""
        self._settings = settings
        self._kubeconfig = settings.get("kubeconfig") or environment.get("KUBECONFIG")
        self._namespace = settings.get("namespace")

    async def submit(self, order: Order) -> str:
        """Create the Secret, then the Job, and make the Job its owner; return the Job's name.

        One that exists already is kept. A Secret whose Job is refused is deleted again, as nothing
        owns it. Raises `CannotStart` and `NotNow`.
        """
        job = manifest_of(
            read_template(Path(self._settings["template"])), order, order.content["grace"]
        )
        content = order_apart(order, self._settings.get("directory", "."))
        secret = {
            "metadata": {"name": order.name, "labels": _LABELS},
            "type": "Opaque",
            "stringData": {
                "order.json": json.dumps(content),
                "job.py": order.script.read_text(encoding="utf-8"),
            },
        }
        async with self._asking("the API refuses the Job", for_good=True) as client:
            await _create(client, order.name, secret, job)
            existing = (await client.get(_Job, order.name)).to_dict()
            owner = {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "name": order.name,
                "uid": existing["metadata"]["uid"],
            }
            owned = {"metadata": {"ownerReferences": [owner]}}
            await client.patch(_Secret, order.name, owned, patch_type=PatchType.MERGE)
        return order.name

    async def find(self) -> Mapping[str, list[ListedJob]]:
        """List our Jobs and our pods; pods have more details."""
        async with self._asking("the API does not list Jobs") as client:
            jobs = [each.to_dict() async for each in client.list(_Job, labels=_LABELS)]
            pods = [each.to_dict() async for each in client.list(_Pod, labels=_LABELS)]
        pod_of: dict[str, dict[str, Any]] = {}
        for pod in pods:
            labels = pod["metadata"].get("labels") or {}
            name = next((labels[each] for each in _JOB_OF_POD if each in labels), "")
            pod_of[name] = pod
        return {
            job["metadata"]["name"]: [_listed(job, pod_of.get(job["metadata"]["name"]))]
            for job in jobs
        }

    async def terminate(self, job: str) -> None:
        """Delete the Job, which stays listed until its pod is gone: SIGTERM, grace, SIGKILL."""
        async with self._asking("the API does not delete the Job") as client:
            with _absence_is_fine():
                await client.delete(_Job, job, cascade=CascadeType.FOREGROUND)
            with _absence_is_fine():  # a Job that was never made owns none
                await client.delete(_Secret, job)

    async def kill(self, job: str) -> None:
        """Delete the Job, and its pod with a grace of a second."""
        await self.terminate(job)
        async with self._asking("the API does not delete the pod") as client:
            async for pod in client.list(_Pod, labels=_pods_of(job)):
                with _absence_is_fine():
                    await client.delete(_Pod, pod.to_dict()["metadata"]["name"], grace_period=1)

    async def log(self, job: str) -> bytes | None:
        """Return the output of the job's pod; None when there is no pod (any more)."""
        async with self._asking("the API does not give the log") as client:
            async for pod in client.list(_Pod, labels=_pods_of(job)):
                with suppress(ApiError):  # its container has not started
                    name = pod.to_dict()["metadata"]["name"]
                    return "".join([line async for line in client.log(name)]).encode()
        return None

    async def changes(self) -> AsyncGenerator[None, None]:
        """Yield with each change of one of our pods, also when they are scheduled or pulled."""
        async with self._asking("the API does not watch pods") as client:
            async for _ in client.watch(_Pod, labels=_LABELS, server_timeout=_WATCHED):
                yield

    @asynccontextmanager
    async def _asking(self, words: str, *, for_good: bool = False) -> AsyncIterator[Any]:
        """Yield the client. Raises `NotNow`; *for_good*: what is refused is `CannotStart`."""
        client = None
        try:
            client = self._connect()
            yield client
        except ApiError as error:
            code = error.status.code or 0
            message = f"{words}: {error.status.message or code}"
            if for_good and code in (400, 403, 404, 405, 413, 415, 422) and "quota" not in message:
                raise CannotStart(message) from error
            raise NotNow(message, _AGAIN, certain=400 <= code < 500) from error
        except (ConfigError, OSError) as error:
            raise NotNow(f"no cluster is known: {error}", _AGAIN) from error
        except httpx2.ConnectError as error:
            raise NotNow(f"the API cannot be reached: {error}", _AGAIN) from error
        except httpx2.HTTPError as error:
            raise NotNow(f"{words}: {error!r}", _AGAIN, certain=False) from error
        finally:
            if client is not None:
                await client.close()

    def _connect(self) -> Any:  # its types know no resource that is made from a name
        config = (
            KubeConfig.from_file(self._kubeconfig) if self._kubeconfig else KubeConfig.from_env()
        )
        return AsyncClient(
            config=config.get(context_name=self._settings.get("context")),
            namespace=self._namespace,
            timeout=httpx2.Timeout(_REQUEST_TIMEOUT),
        )


async def _create(
    client: AsyncClient, name: str, secret: Mapping[str, Any], job: Mapping[str, Any]
) -> None:
    """Create the Secret and the Job unless they exist; of a refused Job, delete the new Secret."""
    is_new = False
    with _conflict_is_fine():
        await client.create(_Secret.from_dict(secret))
        is_new = True
    try:
        with _conflict_is_fine():
            await client.create(_Job.from_dict(job))
    except ApiError as error:
        if is_new and 400 <= (error.status.code or 0) < 500:
            with _absence_is_fine():
                await client.delete(_Secret, name)
        raise


def _pods_of(job: str) -> dict[str, str]:
    """The labels of the pods of one Job, which every release of Kubernetes sets."""
    return {**_LABELS, _JOB_OF_POD[1]: job}


class _Fine:
    """Suppresses the API's answer with one status."""

    def __init__(self, code: int) -> None:
        self._code = code

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, where: object) -> bool:
        return isinstance(error, ApiError) and error.status.code == self._code


def _conflict_is_fine() -> _Fine:
    return _Fine(409)


def _absence_is_fine() -> _Fine:
    return _Fine(404)


def _listed(job: Mapping[str, Any], pod: Mapping[str, Any] | None) -> ListedJob:
    """Return the place of a Job, from its conditions and its pod."""
    name = job["metadata"]["name"]
    status = (pod or {}).get("status") or {}
    node = ((pod or {}).get("spec") or {}).get("nodeName")
    states = [each.get("state") or {} for each in status.get("containerStatuses") or []]
    code = next(
        (each["terminated"].get("exitCode") for each in states if "terminated" in each), None
    )
    for condition in (job.get("status") or {}).get("conditions") or []:
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            words = ", ".join(filter(None, (condition["type"], condition.get("reason"))))
            return ListedJob(name, EngineState.ENDED, words, node, code)
    if any("running" in each or "terminated" in each for each in states):
        return ListedJob(name, EngineState.RUNNING, str(status.get("phase")), node)
    return ListedJob(
        name, EngineState.WAITING, "; ".join(_reasons(status, states)) or "no pod yet", node
    )


def _reasons(status: Mapping[str, Any], states: list[dict[str, Any]]) -> Iterator[str]:
    """Yield why a pod does not run: images that cannot be pulled, and no node that has room."""
    for state in states:
        if waiting := state.get("waiting"):
            yield ": ".join(filter(None, (waiting.get("reason"), waiting.get("message"))))
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            yield ": ".join(filter(None, (condition.get("reason"), condition.get("message"))))
