"""A small Kubernetes: it keeps Jobs, Secrets and pods, and runs each pod as a process.

It refuses every object that the API's own description (kubernetes-openapi.json) does not allow,
also members that it does not know, and every path that is not described. It is one node with no
scheduler; what it does not have are images, quotas, and clusters that fail.
"""

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

_DESCRIBED = json.loads((Path(__file__).parent / "kubernetes-openapi.json").read_text())
_KINDS = {
    "jobs": ("io.k8s.api.batch.v1.Job", "batch/v1", "Job"),
    "pods": ("io.k8s.api.core.v1.Pod", "v1", "Pod"),
    "secrets": ("io.k8s.api.core.v1.Secret", "v1", "Secret"),
}


def faults(value: Any, schema: dict[str, Any], where: str = "") -> Iterator[str]:
    """Yield what a description does not allow, unknown members too."""
    if "$ref" in schema:
        schema = _DESCRIBED["definitions"][schema["$ref"].rpartition("/")[2]]
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}
    kind: Any = kinds.get(schema.get("type", ""), object)
    if schema.get("format") == "int-or-string":
        kind = (int, str)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        yield f"{where}: expected {schema.get('type')}, not {value!r:.60}"
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from faults(each, schema["items"], f"{where}[{index}]")
    elif isinstance(value, dict):
        members = schema.get("properties", {})
        yield from (
            f"{where}.{name}: missing" for name in schema.get("required", ()) if name not in value
        )
        for name, each in value.items():
            inner = members.get(name, schema.get("additionalProperties"))
            if inner is None and members:
                yield f"{where}.{name}: unknown"
            elif inner:
                yield from faults(each, inner, f"{where}.{name}")


class FakeKubernetes:
    """One cluster. `holds`: why its pods wait; None: they start at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.holds: str | None = None
        self.down = False
        self._version = 0
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.RLock()

    async def answer(self, request: Request) -> Response:
        if request.query_params.get("watch") == "true":
            return StreamingResponse(self._changes(request.url.path.rpartition("/")[2]))
        body = await request.body()
        return await run_in_threadpool(self._answer, request, body)

    def _answer(self, request: Request, body: bytes) -> Response:
        if self.down:
            return _status(503, "the cluster is down")
        parts = request.url.path.strip("/").split("/")
        at = parts.index("namespaces") if "namespaces" in parts else 0
        named, kind, *rest = [*parts[at + 1 :], ""][:5] if at else ["", "", ""]
        name = rest[0] if rest else ""
        method = request.method.lower()
        described = request.url.path.replace(f"/namespaces/{named}/", "/namespaces/{namespace}/")
        if name:
            described = described.replace(f"/{kind}/{name}", f"/{kind}/{{name}}")
        if method not in _DESCRIBED["paths"].get(described, {}):
            return _status(404, f"the API has no {method} {described}")
        with self._lock:
            self._go_on()
            if rest[1:2] == ["log"]:
                return self._log(name)
            act: Callable[..., Response] = getattr(self, f"_{method}")
            return act(request, kind, name, json.loads(body or b"{}"))

    async def _changes(self, kind: str) -> AsyncIterator[str]:
        told: dict[str, str] = {}
        while not self.down:
            with self._lock:
                self._go_on()
                found = {
                    name: json.dumps(each)
                    for (other, name), each in self.objects.items()
                    if other == kind
                }
            for name in {name for name, text in found.items() if told.get(name) != text}:
                self._version += 1
                changed = json.loads(found[name])
                changed["metadata"]["resourceVersion"] = str(self._version)
                told_as = "MODIFIED" if name in told else "ADDED"
                yield json.dumps({"type": told_as, "object": changed}) + "\n"
            told = found
            await asyncio.sleep(0.05)

    def _post(self, request: Request, kind: str, name: str, given: dict[str, Any]) -> Response:
        schema, version, called = _KINDS[kind]
        given = {"apiVersion": version, "kind": called, **given}
        found = list(faults(given, {"$ref": f"#/definitions/{schema}"}, called))
        if found:
            return _status(422, "; ".join(found))
        name = given["metadata"]["name"]
        if (kind, name) in self.objects:
            return _status(409, f"{kind} {name!r} already exists")
        given["metadata"] |= {"uid": str(uuid.uuid4()), "namespace": "default"}
        for key, text in given.pop("stringData", {}).items():
            given.setdefault("data", {})[key] = base64.b64encode(text.encode()).decode()
        self.objects[kind, name] = given
        if kind == "jobs":
            given["status"] = {}
            self._make_pod(given)
        return JSONResponse(given, 201)

    def _get(self, request: Request, kind: str, name: str, given: Any) -> Response:
        if name:
            found = self.objects.get((kind, name))
            return JSONResponse(found) if found else _status(404, f"no {kind} {name}")
        wanted = request.query_params.get("labelSelector", "")
        wanted_labels = dict(each.split("=", 1) for each in wanted.split(",") if each)
        items = [
            each
            for (other, _), each in self.objects.items()
            if other == kind
            and wanted_labels.items() <= (each["metadata"].get("labels") or {}).items()
        ]
        return JSONResponse(
            {
                "apiVersion": _KINDS[kind][1],
                "kind": f"{_KINDS[kind][2]}List",
                "metadata": {},
                "items": items,
            }
        )

    def _patch(self, request: Request, kind: str, name: str, given: dict[str, Any]) -> Response:
        found = self.objects.get((kind, name))
        if found is None:
            return _status(404, f"no {kind} {name}")
        found["metadata"] |= given.get("metadata", {})
        return JSONResponse(found)

    def _delete(self, request: Request, kind: str, name: str, given: dict[str, Any]) -> Response:
        found = self.objects.get((kind, name))
        if found is None:
            return _status(404, f"no {kind} {name}")
        grace = given.get("gracePeriodSeconds") or request.query_params.get("gracePeriodSeconds")
        if kind == "secrets":
            del self.objects[kind, name]
            return JSONResponse(found)
        found["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        pod = self.objects.get(("pods", name if kind == "pods" else f"{name}-0"))
        if pod:
            pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            seconds = float(grace or pod["spec"].get("terminationGracePeriodSeconds") or 30)
            pod["kill_at"] = min(pod.get("kill_at", 1e18), time.monotonic() + seconds)
            process = self._processes.get(pod["metadata"]["name"])
            if process and process.poll() is None:
                process.send_signal(signal.SIGTERM)
        self._go_on()
        return JSONResponse(found)

    def _log(self, name: str) -> Response:
        path = self.folder / name / "log"
        return PlainTextResponse(path.read_bytes()) if path.exists() else _status(400, "no log yet")

    def _make_pod(self, job: dict[str, Any]) -> None:
        name = f"{job['metadata']['name']}-0"
        template = json.loads(json.dumps(job["spec"]["template"]))
        labels = {**template["metadata"].get("labels", {}), "job-name": job["metadata"]["name"]}
        self.objects["pods", name] = {
            "metadata": {"name": name, "labels": labels, "uid": str(uuid.uuid4())},
            "spec": template["spec"],
            "status": {"phase": "Pending"},
        }

    def _go_on(self) -> None:
        """Start and end what is due: called whenever somebody asks."""
        for (kind, name), pod in list(self.objects.items()):
            if kind != "pods":
                continue
            process = self._processes.get(name)
            deleted = "deletionTimestamp" in pod["metadata"]
            if process is None and not deleted:
                self._start(name, pod)
            elif process and process.poll() is None and time.monotonic() > pod.get("kill_at", 1e18):
                os.killpg(process.pid, signal.SIGKILL)
            if process is not None and process.poll() is not None:
                code = process.returncode if process.returncode >= 0 else 128 - process.returncode
                self._set(
                    pod, "Succeeded" if code == 0 else "Failed", terminated={"exitCode": code}
                )
            ended = process is None or process.poll() is not None
            job = self.objects.get(("jobs", pod["metadata"]["labels"]["job-name"]))
            if ended and process is not None and job:
                done = "Complete" if process.returncode == 0 else "Failed"
                job["status"]["conditions"] = [{"type": done, "status": "True"}]
            if deleted and ended:
                del self.objects[kind, name]
                if job and "deletionTimestamp" in job["metadata"]:
                    del self.objects["jobs", job["metadata"]["name"]]
                    self.objects.pop(("secrets", job["metadata"]["name"]), None)

    def _start(self, name: str, pod: dict[str, Any]) -> None:
        secret = next(v["secret"]["secretName"] for v in pod["spec"]["volumes"] if "secret" in v)
        found = self.objects.get(("secrets", secret))
        if self.holds or found is None:
            pod["status"]["conditions"] = [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": self.holds or "its secret is missing",
                }
            ]
            return
        folder = self.folder / name
        folder.mkdir(parents=True)
        for key, text in found["data"].items():
            (folder / key).write_bytes(base64.b64decode(text))
        container = pod["spec"]["containers"][0]
        command = [word.replace("/pgcoord/", f"{folder}/") for word in container["command"]]
        command[0] = sys.executable
        with open(folder / "log", "wb") as log:
            self._processes[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={"PATH": os.environ["PATH"], "HOSTNAME": name},
                start_new_session=True,
            )
        pod["spec"]["nodeName"] = "node1"
        self._set(pod, "Running", running={})

    def _set(self, pod: dict[str, Any], phase: str, **state: Any) -> None:
        names = [each["name"] for each in pod["spec"]["containers"]]
        pod["status"] = {
            "phase": phase,
            "containerStatuses": [{"name": names[0], "state": state}],
        }

    def stop(self) -> None:
        self.down = True
        for process in self._processes.values():
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _status(code: int, words: str) -> Response:
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": words,
        "code": code,
    }
    return JSONResponse(body, code)


@contextlib.contextmanager
def serving_kubernetes(folder: Path) -> Iterator[tuple[FakeKubernetes, Path]]:
    """Serve one until the block ends; yields it with a kubeconfig."""
    fake = FakeKubernetes(folder)
    methods = ["GET", "POST", "PATCH", "DELETE"]
    app = Starlette(routes=[Route("/{path:path}", fake.answer, methods=methods)])
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    folder.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0), backlog=256) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "fake",
                    "clusters": [{"name": "fake", "cluster": {"server": url}}],
                    "users": [{"name": "fake", "user": {"token": "t"}}],
                    "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
                }
            )
        )
        thread = threading.Thread(target=server.run, args=([taken],))
        thread.start()
        try:
            yield fake, kubeconfig
        finally:
            fake.stop()
            server.should_exit = True
            thread.join()
