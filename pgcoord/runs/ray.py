"""Ray Jobs: a job is a submission over the REST API of the head.

If the head dies, all jobs end, and Ray shows a job's environment to everybody who can open its
dashboard: so that has only the secret of its attempt, which is useless after the end, and no
variable of the workflow. Ray's Python package is not imported.
"""

import asyncio
import http.client
import json
import shlex
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from pgcoord.coordination.launching import EngineState, ListedJob, Order
from pgcoord.errors import CannotStart, NotNow
from pgcoord.runs.apart import order_apart
from pgcoord.runs.job import pack

_AGAIN = timedelta(seconds=30)

# Seconds for one request: a head without a node that can take a job says so after eleven.
_REQUEST_TIMEOUT = 30.0

# Bytes of an answer that are read.
_MOST = 200_000_000

_WAITING = frozenset({"PENDING"})
_ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


class _Answer(NamedTuple):
    status: int
    body: bytes


class Ray:
    """One cluster; a `coordination.launching.Engine`."""

    def __init__(self, settings: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        """*settings*: address (of the dashboard), resources, directory."""
        self._address = str(settings.get("address", "http://127.0.0.1:8265")).rstrip("/")
        self._resources = dict(settings.get("resources", {}))
        self._directory = str(settings.get("directory", "."))
        self._environment = environment
        # Of its own: a head that does not answer holds up no file of another pool.
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="ray")

    async def submit(self, order: Order) -> str:
        """Submit under the order's name, which Ray takes once."""
        content = order_apart(order, self._directory, secrets=False)
        body = {
            "submission_id": order.name,
            # The wrapper comes with the job: its nodes have nothing of ours.
            "entrypoint": shlex.join(
                ["python3", "-c", "import os; exec(os.environ.pop('PGCOORD_WRAPPER'))"]
            ),
            "runtime_env": {
                "env_vars": {
                    "PGCOORD_WRAPPER": _text_of(order.script),
                    "PGCOORD_ORDER": pack(content),
                    "PGCOORD_JOB": order.name,
                }
            },
            "metadata": {"managed-by": "pgcoord"},
        }
        if self._resources:
            body["entrypoint_resources"] = self._resources
        answer = await self._ask("POST", "/api/jobs/", body)
        words = answer.body.decode(errors="replace").strip()
        if answer.status == 200 or "already exists" in words:
            return order.name
        last = words.splitlines()[-1] if words else ""
        message = f"Ray refuses the job: {answer.status} {last[:500]}"
        if 400 <= answer.status < 500:
            raise CannotStart(message)
        raise NotNow(message, _AGAIN, certain=False)

    async def find(self) -> Mapping[str, list[ListedJob]]:
        """List all jobs."""
        answer = await self._ask("GET", "/api/jobs/")
        if answer.status != 200:
            raise NotNow(f"Ray does not list its jobs: it answered {answer.status}", _AGAIN)
        jobs: dict[str, list[ListedJob]] = {}
        for job in _parsed(answer.body):
            name = str(job.get("submission_id") or "")
            if name.startswith("pgcoord-"):
                jobs.setdefault(name, []).append(_listed(name, job))
        return jobs

    async def terminate(self, job: str) -> None:
        """Stop the job: SIGTERM, and SIGKILL after the cluster's own RAY_JOB_STOP_WAIT_TIME_S."""
        await self._ask("POST", f"/api/jobs/{quote(job)}/stop")

    async def kill(self, job: str) -> None:
        """Stop the job again: Ray has no other way."""
        await self.terminate(job)

    async def log(self, job: str) -> bytes | None:
        """Return the output of the job; None when Ray has none."""
        answer = await self._ask("GET", f"/api/jobs/{quote(job)}/logs")
        if answer.status != 200:
            return None
        return str(_parsed(answer.body).get("logs") or "").encode()

    def changes(self) -> None:
        """Return None: Ray has no stream of changes."""

    async def _ask(self, method: str, path: str, body: object = None) -> _Answer:
        """Send one request. Raises `NotNow` when there is no answer."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._send, method, path, body)

    def _send(self, method: str, path: str, body: object) -> _Answer:
        parts = urlsplit(self._address)
        scheme = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        connection = scheme(parts.netloc, timeout=_REQUEST_TIMEOUT)
        try:
            connection.connect()
        except OSError as error:
            words = f"Ray cannot be reached at {self._address}: {error}"
            raise NotNow(words, _AGAIN) from error
        try:
            content = None if body is None else json.dumps(body).encode()
            headers = {"content-type": "application/json"} if body is not None else {}
            if token := self._environment.get("RAY_AUTH_TOKEN"):
                headers["authorization"] = f"Bearer {token}"
            connection.request(method, f"{parts.path}{path}", content, headers)
            answer = connection.getresponse()
            return _Answer(answer.status, answer.read(_MOST))
        except (OSError, http.client.HTTPException) as error:
            words = f"Ray has not answered at {self._address}: {error!r}"
            raise NotNow(words, _AGAIN, certain=False) from error
        finally:
            connection.close()


@cache  # of our release, also once another one is installed
def _text_of(script: Path) -> str:
    return script.read_text(encoding="utf-8")


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise NotNow(f"what answers is not Ray: {error}", _AGAIN) from error


def _listed(name: str, job: Mapping[str, Any]) -> ListedJob:
    status, words = str(job.get("status")), str(job.get("message") or "")
    node = job.get("driver_node_id")
    if status in _ENDED:
        code = job.get("driver_exit_code")
        code = 0 if status == "SUCCEEDED" and code is None else code
        if isinstance(code, int):
            code = code if 0 <= code <= 255 else 128 - code if -128 < code < 0 else None
        return ListedJob(name, EngineState.ENDED, f"{status}: {words}"[:500], node, code)
    state = EngineState.WAITING if status in _WAITING else EngineState.RUNNING
    return ListedJob(name, state, words or status, node)
