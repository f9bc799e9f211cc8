"""A small GitHub that remembers: issues, comments and labels of one repository, and how to fail.

It answers as GitHub's own description prescribes, which `prism proxy --errors` checks on the way:
tests/github-openapi.json is that description, cut down to what pgcoord calls. It is from the npm
package @octokit/openapi 23.0.2, under the MIT licence in tests/github-openapi.LICENSE.
"""

import asyncio
import contextlib
import copy
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from support import PATIENCE
from support.ports import free_port

REPOSITORY = "octo/work"
TOKEN = "ghs_of_a_test"
LOGIN = "coordinator-bot"

DESCRIPTION = Path(__file__).parent / "github-openapi.json"
PRISM = Path(__file__).parents[2] / ".prism/node_modules/.bin/prism"

_DESCRIBED = json.loads(DESCRIPTION.read_text())


@dataclass
class Fault:
    """How a call goes wrong: `times` calls of `method` on a path that `path` is found in.

    With `done` it is done all the same. Without a status the answer hangs until `let_go`; then it
    comes, or where it was `done`, a bad one.
    """

    method: str
    path: str
    status: int | None
    message: str = "no"
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1
    done: bool = False


class FakeGitHub:
    """The state, which a test may look at and change while the server runs in its thread."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin with an empty repository and all going well."""
        self.issues: list[dict[str, Any]] = []
        self.comments: dict[int, list[dict[str, Any]]] = {}
        self.labels: dict[str, dict[str, Any]] = {}
        self.pulls: list[dict[str, Any]] = []
        self.branches: list[str] = []
        self.calls: list[str] = []
        self.faults: list[Fault] = []
        self.lag = timedelta(0)
        self.may_label = True
        self.has_issues = True
        self.exists = True
        self.token = TOKEN
        self.hanging = threading.Event()
        self.let_go = threading.Event()
        self.at_once = self.most_at_once = 0
        self._ahead = timedelta(0)

    def now(self) -> datetime:
        """Its clock."""
        return datetime.now(UTC) + self._ahead

    def pass_time(self, length: timedelta) -> None:
        """Have time pass at GitHub."""
        self._ahead += length

    def fail(self, method: str, path: str, status: int | None, **how: Any) -> None:
        """Have calls go wrong."""
        self.faults.append(Fault(method, path, status, **how))

    def issue(self, number: int) -> Any:
        """An issue by its number."""
        return self.issues[number - 1]

    def made(self, method: str, path: str) -> int:
        """How many calls there were of `method` on a path with `path` in it."""
        return sum(call.startswith(method) and path in call for call in self.calls)

    def add_issue(self, title: str, body: str, labels: list[str], author: str) -> Any:
        """Make an issue."""
        number = len(self.issues) + 1
        issue = _example("issue") | {
            "number": number,
            "id": 1_000_000 + number,
            "title": title,
            "body": body,
            "state": "open",
            "state_reason": None,
            "closed_at": None,
            "created_at": self._stamp(),
            "updated_at": self._stamp(),
            "user": _user(author),
            "labels": [self._label(name) for name in labels if self.may_label],
        }
        self.issues.append(issue)
        self.comments[number] = []
        return issue

    def add_label(self, name: str, color: str = "ededed", description: str | None = None) -> Any:
        """Make a label."""
        label = {"name": name, "color": color, "description": description}
        self.labels[name] = _example("label") | label
        return self.labels[name]

    def _label(self, name: str) -> Any:
        return self.labels.get(name) or self.add_label(name)

    def _stamp(self) -> str:
        return self.now().strftime("%Y-%m-%dT%H:%M:%SZ")

    async def answer(self, request: Request) -> Response:
        """Answer a call, or go wrong as was asked for."""
        call = f"{request.method} {request.url.path}"
        self.calls.append(call)
        writes = request.method != "GET"
        self.at_once += writes
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            fault = next(
                (f for f in self.faults if f.method == request.method and f.path in call), None
            )
            if fault is None:
                return await self._do(request)
            fault.times -= 1
            if fault.times == 0:
                self.faults.remove(fault)
            if fault.done:
                await self._do(request)
            if fault.status is None:
                self.hanging.set()
                while not self.let_go.is_set():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                return Response(status_code=502) if fault.done else await self._do(request)
            return _refused(fault.status, fault.message, fault.headers)
        finally:
            self.at_once -= writes

    async def _do(self, request: Request) -> Response:
        path = request.url.path
        if path.startswith("/app/installations/"):
            ends = (self.now() + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
            token = _example("installation-token") | {"token": self.token, "expires_at": ends}
            return JSONResponse(token, 201)
        if request.headers.get("authorization") != f"token {self.token}":
            return _refused(401, "Bad credentials")
        if path == "/user":
            return JSONResponse(_example(_USER) | {"login": LOGIN})
        if not self.exists or not path.startswith(f"/repos/{REPOSITORY}"):
            return _refused(404, "Not Found")
        rest = path.removeprefix(f"/repos/{REPOSITORY}")
        body = json.loads(await request.body() or "null")
        if rest == "":
            return JSONResponse(self._repository())
        if rest == "/labels":
            return self._post_label(body)
        if rest == "/pulls":
            return self._pulls(request, body)
        if not self.has_issues:
            return _refused(410, "Issues are disabled for this repo")
        if rest == "/issues" and request.method == "POST":
            if not body.get("title"):
                return _refused(422, "Validation Failed")
            labels = body.get("labels", [])
            issue = self.add_issue(body["title"], body.get("body") or "", labels, LOGIN)
            return JSONResponse(issue, 201)
        if rest == "/issues":
            return self._list(request)
        match = re.fullmatch(r"/issues/(\d+)(/comments)?", rest)
        number = int(match[1]) if match else 0
        if match is None or not 0 < number <= len(self.issues):
            return _refused(404, "Not Found")
        if match[2]:
            return self._comments_of(number, request, body)
        if request.method == "PATCH":
            self._change(self.issue(number), body)
        return JSONResponse(self.issue(number))

    def _repository(self) -> Any:
        repository = _example("full-repository-default-response")
        repository.pop("source")  # the example lacks what the description asks for
        return repository | {
            "full_name": REPOSITORY,
            "language": None,
            "has_issues": self.has_issues,
            "archived": False,
            "permissions": {"admin": False, "push": self.may_label, "pull": True},
        }

    def _pulls(self, request: Request, body: Any) -> Response:
        """List or open pull requests, of `branches`; one that is open already is refused."""
        if request.method == "GET":
            asked = request.query_params
            head = asked.get("head", "").partition(":")[2]
            return JSONResponse([each for each in self.pulls if each["head"]["ref"] == head])
        if body["head"] not in self.branches or body["head"] in [
            each["head"]["ref"] for each in self.pulls
        ]:
            return _refused(422, "Validation Failed")
        number = len(self.issues) + len(self.pulls) + 1
        pull = _example("pull-request") | {
            "number": number,
            "title": body["title"],
            "body": body["body"],
            "html_url": f"https://github.com/{REPOSITORY}/pull/{number}",
        }
        pull["head"]["ref"], pull["base"]["ref"] = body["head"], body["base"]
        self.pulls.append(pull)
        return JSONResponse(pull, 201)

    def _post_label(self, body: dict[str, Any]) -> Response:
        if not self.may_label:
            return _refused(404, "Not Found")
        if body["name"] in self.labels:
            return _refused(422, "Validation Failed")
        label = self.add_label(body["name"], body["color"], body.get("description"))
        return JSONResponse(label, 201)

    def _list(self, request: Request) -> Response:
        """Newest first, without what was made too short a time ago to be listed."""
        state = request.query_params.get("state", "open")
        shown = [
            issue
            for issue in reversed(self.issues)
            if datetime.fromisoformat(issue["created_at"]) + self.lag <= self.now()
            and state in ("all", issue["state"])
        ]
        return _page(shown, request)

    def _comments_of(self, number: int, request: Request, body: Any) -> Response:
        comments = self.comments[number]
        if request.method == "GET":
            return _page(comments, request)
        comment = _example("issue-comment") | {"id": len(comments) + 1, "body": body["body"]}
        comments.append(comment)
        return JSONResponse(comment, 201)

    def _change(self, issue: dict[str, Any], change: dict[str, Any]) -> None:
        """Change an issue; why it is closed is taken only when that is new, as GitHub does it."""
        if change.get("state", issue["state"]) == issue["state"]:
            return
        closed = change["state"] == "closed"
        reason = change.get("state_reason", "completed") if closed else "reopened"
        issue |= {"state": change["state"], "state_reason": reason}
        issue["closed_at"] = self._stamp() if closed else None


_USER = "private-user-response-with-public-and-private-profile-information"


def _example(name: str) -> Any:
    """What GitHub's own description gives as an example."""
    return copy.deepcopy(_DESCRIBED["components"]["examples"][name]["value"])


def _user(login: str) -> Any:
    return _example("issue")["user"] | {"login": login}


def _refused(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    body: dict[str, Any] = {"message": message, "documentation_url": "https://docs.github.com"}
    if status == 422:
        body["errors"] = [{"code": "invalid", "field": "it"}]
    return JSONResponse(body, status, headers)


def _page(items: list[Any], request: Request) -> Response:
    size = int(request.query_params.get("per_page", 30))
    number = int(request.query_params.get("page", 1))
    answer = JSONResponse(items[(number - 1) * size : number * size])
    if number * size < len(items):
        following = request.url.include_query_params(page=number + 1)
        answer.headers["link"] = f'<{following}>; rel="next"'
    return answer


@contextlib.contextmanager
def serving_github(fake: FakeGitHub) -> Iterator[str]:
    """Serve it in a thread of its own until the block ends; yields its URL."""
    app = Starlette(routes=[Route("/{path:path}", fake.answer, methods=["GET", "POST", "PATCH"])])
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0), backlog=256) as taken:
        thread = threading.Thread(target=server.run, args=([taken],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{taken.getsockname()[1]}"
        finally:
            fake.let_go.set()
            server.should_exit = True
            thread.join()


def why_no_prism() -> str | None:
    """Why there is nothing to check the contract with."""
    if shutil.which("node") is None:
        return "there is no node: the contract with GitHub is not checked"
    return None if PRISM.exists() else f"there is no {PRISM}: 'make prism' installs it"


@contextlib.contextmanager
def prism(folder: Path, *command: str) -> Iterator[str]:
    """Run Prism on a port of its own until the block ends: mock, or proxy before a server."""
    port = free_port()
    mode, *upstream = command
    arguments = [mode, "-h", "127.0.0.1", "-p", str(port), "-v", "silent"]
    arguments += ["--errors"] if mode == "proxy" else []
    with open(folder / "prism.log", "wb") as log:
        process = subprocess.Popen(
            [PRISM, *arguments, _described(folder), *upstream],
            stdout=log,
            stderr=log,
            env=os.environ | {"NODE_OPTIONS": "--max-old-space-size=256"},
        )
    try:
        _await_port(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _described(folder: Path) -> Path:
    """The description, with the answers that GitHub gives to any call and does not describe."""
    described = copy.deepcopy(_DESCRIBED)
    for operations in described["paths"].values():
        for method, operation in operations.items():
            if method != "parameters":
                for status in ("401", "403", "404", "410", "429", "500", "502", "503"):
                    operation["responses"].setdefault(status, {"description": "refused"})
    path = folder / "github.json"
    path.write_text(json.dumps(described))
    return path


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError(f"prism did not come up: {process.args!r}")
