"""Telling people: in the transaction of what happened, at least once, nobody held up."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from standardwebhooks.webhooks import Webhook
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from support import PATIENCE
from support.coordination import make_coordinator, running, scripts, watching
from support.database import Connection, add_feature, claim, start
from support.serving import SECRET

from pgcoord.configuration.model import Notify
from pgcoord.http.sockets import bind, url_of


@dataclass
class Receiver:
    """What was received, with valid signatures; it refuses so many first."""

    url: str
    refuses: int = 0
    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, request: Request) -> Response:
        body = await request.body()
        Webhook(SECRET).verify(body.decode(), dict(request.headers))
        self.messages.append((request.headers["webhook-id"], json.loads(body)))
        self.came.set()
        return Response(status_code=503 if len(self.messages) <= self.refuses else 204)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while len(self.messages) < count:
                self.came.clear()
                await self.came.wait()


class Quiet(uvicorn.Server):
    """A server that leaves signals to the tests."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def receiving(refuses: int = 0) -> AsyncIterator[Receiver]:
    with bind("127.0.0.1", 0) as taken:
        receiver = Receiver(url_of(taken), refuses)
        app = Starlette(routes=[Route("/", receiver.take, methods=["POST"])])
        server = Quiet(uvicorn.Config(app, log_config=None, lifespan="off"))
        serving = asyncio.create_task(server.serve(sockets=[taken]))
        try:
            yield receiver
        finally:
            server.should_exit = True
            await serving


async def test_notices_are_delivered_at_least_once_and_a_dead_receiver_holds_up_nothing(
    dsn: str, conn: Connection, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    os.mkfifo(told)
    async with receiving(refuses=1) as receiver:
        coordinator = make_coordinator(
            dsn,
            tmp_path,
            scripts(),
            environment={**os.environ, "HOOK": SECRET, "TMPDIR": "/over/there"},
            notify=(
                Notify("dead", ("failed", "finished"), "http://127.0.0.1:9", "HOOK"),
                Notify("chat", ("failed", "finished"), receiver.url, "HOOK"),
                Notify("shell", ("finished",), command=("sh", "-c", f"(cat; echo; env) > {told}")),
            ),
        )
        async with watching(dsn) as watch, running(coordinator):
            await watch.submit("exit 0", ("echo 'Error: no port'; exit 3", [1]))
            await watch.until_statuses("completed", "failed")
            await receiver.until(1)
            conn.execute("update pgcoord.notice set due_at = now() where target = 'chat'")
            conn.execute("notify pgcoord_wake")
            await receiver.until(2)
            conn.execute("select pgcoord.skip_phase('queue-1-2', 'by hand')")
            await receiver.until(3)
            text = await asyncio.to_thread(told.read_text)
            # Until its delivery is recorded, it may be sent again.
            await watch.until_found(
                "select from pgcoord.notice where target = 'chat' and event = 'finished'",
                nothing=True,
            )
    (first, message), (again, _), (_, finished) = receiver.messages
    assert first == again, "the receiver can tell that it is the same"
    assert message["type"] == "pgcoord.failed"
    assert message["data"]["words"] == "exited with status 3: Error: no port"
    assert (finished["type"], finished["data"]["feature_id"]) == ("pgcoord.finished", 1)
    notice, *environment = text.splitlines()
    assert json.loads(notice)["data"]["event"] == "finished"
    assert "TMPDIR=/over/there" in environment
    assert f"HOOK={SECRET}" not in environment
    left = conn.execute(
        "select target, event, tries from pgcoord.notice where target <> 'shell' order by id"
    ).fetchall()
    assert [(each["target"], each["event"]) for each in left] == [
        ("dead", "failed"),
        ("dead", "finished"),
    ]
    assert left[0]["tries"]


def test_notices_are_rows_of_the_same_transaction_for_subscribed_targets_only(
    conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {1: [], 2: []})
    for queue_id in claim(conn, epoch):
        start(conn, epoch, queue_id)
    rows = "select target, event, feature_id, phase_number, words from pgcoord.notice order by id"
    targets = '{"a": ["failed", "finished"], "b": ["stuck"]}'
    conn.execute("select pgcoord_private.declare_targets(%s)", [targets])
    with conn.transaction(force_rollback=True):
        conn.execute("update phase_queue set status = 'completed'")
        assert [each["event"] for each in conn.execute(rows)] == ["finished"], "one for both phases"
    assert conn.execute(rows).fetchall() == []
    conn.execute(
        "select pgcoord_private.end_attempt(id, 1) from pgcoord.attempt where queue_id like '%-1'"
    )
    assert [tuple(each.values()) for each in conn.execute(rows)] == [
        ("a", "failed", feature, 1, "exited with status 1")
    ]
    add_feature(conn, {1: [7]})
    for _ in range(2):
        conn.execute("select pgcoord_private.note_stuck()")
    stuck = [each for each in conn.execute(rows) if each["event"] == "stuck"]
    assert [(each["target"], each["words"]) for each in stuck] == [
        ("b", "waits for phase 7, which does not exist")
    ]
    conn.execute("select pgcoord_private.declare_targets('{}')")
    assert conn.execute(rows).fetchall() == []
