"""What a client can hold up over HTTP: connections, requests that never end, forms."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
from support import PATIENCE
from support.database import Connection, add_feature
from support.serving import Site, served
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from pgcoord.http.connections import Limits

# Long enough for what is sent at once, also by a process that is not run for a moment.
SHORT = Limits(connections=20, headers=1.0, body=1.0, refusal=1.0)
Socket = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def strict(dsn: str, tmp_path: Path) -> AsyncIterator[Site]:
    """A site that waits for nobody, and bears few connections."""
    async with served(dsn, tmp_path, leads=False, limits=SHORT) as site:
        yield site


@asynccontextmanager
async def raw(site: Site, sent: bytes = b"", *, source: str = "127.0.0.1") -> AsyncIterator[Socket]:
    """A connection from the address `source` on which something was sent."""
    host, port = site.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), local_addr=(source, 0))
    try:
        writer.write(sent)
        await writer.drain()
        yield reader, writer
    finally:
        writer.transport.abort()


async def rest_of(reader: asyncio.StreamReader) -> bytes:
    """What comes until the server ends the connection."""
    async with asyncio.timeout(PATIENCE):
        return await reader.read()


POST = b"POST /features/new HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n"
GET = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
UNFINISHED = {
    "nothing": b"",
    "a part of a header": b"GET / HTTP/1.1\r\nhost: loc",
    "a part of a body": POST + b"title=x",
    "no byte of a body": POST,
}


@pytest.mark.parametrize("sent", UNFINISHED.values(), ids=UNFINISHED.keys())
async def test_a_request_that_does_not_end_is_ended(
    strict: Site, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with raw(strict, sent) as (reader, _):
        head, _, body = (await rest_of(reader)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head
    assert json.loads(body)["error"] == "timeout"
    assert "Traceback" not in caplog.text


async def test_headers_that_come_byte_by_byte_are_ended(strict: Site) -> None:
    async with raw(strict, b"GET / HTTP/1.1\r\nx: ") as (reader, writer):

        async def drip() -> None:
            while True:
                writer.write(b"x")
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        assert (await rest_of(reader)).startswith(b"HTTP/1.1 408 ")
        dripping.cancel()


async def test_a_further_request_that_does_not_end_is_ended(strict: Site) -> None:
    async with raw(strict, GET) as (reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split()[0])
        assert head.startswith(b"HTTP/1.1 200 ")
        await reader.readexactly(length)
        writer.write(GET[:-2])
        assert (await rest_of(reader)).startswith(b"HTTP/1.1 408 ")


async def test_a_body_that_the_answer_did_not_wait_for_is_ended(strict: Site) -> None:
    unread = POST.replace(b"localhost", b"evil.example")
    async with raw(strict, unread + b"x") as (reader, writer):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 403 ")
        writer.write(b"x")
        assert b"HTTP/1.1 " not in await rest_of(reader)


async def test_streams_outlast_the_limits(strict: Site, conn: Connection) -> None:
    add_feature(conn, {1: []})
    async with (
        connect(f"{strict.socket_url}/ws/queue") as socket,
        strict.client.stream("GET", "/events", timeout=PATIENCE) as events,
        raw(strict) as (reader, _),
    ):
        lines = events.aiter_lines()
        await anext(lines)
        assert json.loads(await socket.recv())["type"] == "snapshot"
        await rest_of(reader)  # since then, all limits have passed
        add_feature(conn, {1: []})
        assert await asyncio.wait_for(socket.recv(), PATIENCE)
        async for line in lines:
            if "queue-2-1" in line:
                break
        else:
            pytest.fail("the stream has ended")


async def test_half_open_connections_leave_room_for_others(site: Site) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(200):
            await stack.enter_async_context(raw(site, b"GET / HTTP/1.1\r\n"))
        assert (await site.client.get("/healthz")).status_code == 200


async def test_more_connections_than_the_bound_are_refused(dsn: str, tmp_path: Path) -> None:
    limits = Limits(connections=5)
    async with served(dsn, tmp_path, leads=False, limits=limits) as site, AsyncExitStack() as stack:
        held = [await stack.enter_async_context(raw(site, b"GET /")) for _ in range(5)]
        async with raw(site, GET) as (reader, _):
            head, _, body = (await rest_of(reader)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in head
        assert "too many connections" in json.loads(body)["reason"]
        for reader, writer in held:
            writer.write(GET.removeprefix(b"GET /"))
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")


async def test_one_host_leaves_room_for_others(dsn: str, tmp_path: Path) -> None:
    limits = Limits(connections=20, per_host=10, refusal=PATIENCE)
    async with served(dsn, tmp_path, leads=False, limits=limits) as site, AsyncExitStack() as stack:
        held = [
            await stack.enter_async_context(raw(site, b"GET /", source="127.0.0.2"))
            for _ in range(50)
        ]
        answers = []
        for reader, _ in held[10:]:
            with suppress(ConnectionError):  # closed with something unread
                answers.append(await rest_of(reader))
        # Two get an answer; the others of a flood are closed without one.
        assert answers[0].startswith(b"HTTP/1.1 503 ")
        assert b"of this host" in answers[0]
        assert sum(map(bool, answers)) == 2
        async with raw(site, GET, source="127.0.0.3") as (reader, _):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")


async def test_one_host_behind_a_proxy_leaves_room_for_others(dsn: str, tmp_path: Path) -> None:
    limits = Limits(connections=20, per_host=5)
    async with (
        served(dsn, tmp_path, leads=False, limits=limits, trusted_proxies=("127.0.0.1",)) as site,
        AsyncExitStack() as stack,
    ):
        greedy, modest = ({"x-forwarded-for": f"2001:db8:0:{net}::1"} for net in (1, 2))
        for _ in range(3):
            url = f"{site.socket_url}/ws/queue"
            await stack.enter_async_context(connect(url, additional_headers=greedy))
        for _ in range(2):
            events = site.client.stream("GET", "/events", headers=greedy)
            await stack.enter_async_context(events)
        neighbour = {"x-forwarded-for": "2001:db8:0:1:ffff::1"}
        refused = await site.client.get("/healthz", headers=neighbour)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        with pytest.raises(InvalidStatus, match="503"):
            await stack.enter_async_context(connect(url, additional_headers=greedy))
        assert (await site.client.get("/healthz", headers=modest)).status_code == 200


def nested(depth: int) -> bytes:
    """A form of parts within parts."""
    parts = [
        b"--b%d\r\ncontent-type: multipart/mixed; boundary=b%d\r\n\r\n" % (i, i + 1)
        for i in range(depth)
    ]
    return b"".join(parts)


FORMS = {
    "parts within parts": ("multipart/form-data; boundary=b0", nested(3_000)),
    "very many parts": (
        "multipart/form-data; boundary=b",
        b'--b\r\ncontent-disposition: form-data; name="x"\r\n\r\n\r\n' * 3_000 + b"--b--\r\n",
    ),
    "no boundary": ("multipart/form-data", b"--b\r\n\r\n\r\n--b--"),
    "no part": ("multipart/form-data; boundary=b", b"x"),
    "a charset that is none": (
        "multipart/form-data; boundary=b; charset=undefined",
        b'--b\r\ncontent-disposition: form-data; name="title"\r\n\r\nx\r\n--b--\r\n',
    ),
    "very many fields": ("application/x-www-form-urlencoded", b"a=&" * 100_000),
}


@pytest.mark.parametrize(("kind", "body"), FORMS.values(), ids=FORMS.keys())
async def test_a_malformed_form_is_refused(site: Site, kind: str, body: bytes) -> None:
    answer = await site.client.post("/features/new", content=body, headers={"content-type": kind})
    assert 400 <= answer.status_code < 500, answer.text
