"""WS /ws/queue and GET /events: all events, in order, for every client."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from support import PATIENCE
from support.cases import case
from support.coordination import until_true
from support.database import Connection, add_feature, add_phase, claim, start
from support.serving import Site, served
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from pgcoord.database import _sql, history
from pgcoord.http.feed import FROM_NOW_ON, Cursor, Event, Feed

Message = dict[str, Any]


@contextlib.asynccontextmanager
async def listening(site: Site, after: str | None = None) -> AsyncIterator[ClientConnection]:
    place = f"?after={after}" if after else ""
    async with connect(f"{site.socket_url}/ws/queue{place}") as client:
        yield client


async def hear(client: ClientConnection) -> Message:
    async with asyncio.timeout(PATIENCE):
        message: Message = json.loads(await client.recv())
    return message


async def hear_until(client: ClientConnection, event: int) -> list[Message]:
    """Everything up to the event with this id."""
    messages = [await hear(client)]
    while messages[-1]["data"].get("event") != event:
        messages.append(await hear(client))
    return messages


def told(messages: list[Message]) -> list[int]:
    return [message["data"]["event"] for message in messages if "event" in message["data"]]


def last_event(conn: Connection) -> int:
    row = conn.execute("select max(id) as id from pgcoord.event").fetchone()
    assert row
    return int(row["id"])


async def test_a_snapshot_comes_first_then_every_transition(
    site: Site, conn: Connection, epoch: int
) -> None:
    add_feature(conn, {1: [], 2: [1]})
    async with listening(site) as client:
        snapshot = await hear(client)
        assert snapshot["type"] == "snapshot"
        assert snapshot["id"] == str(last_event(conn))
        rows = snapshot["data"]["queue"]
        assert [(row["queue_id"], row["status"]) for row in rows] == [
            ("queue-1-1", "queued"),
            ("queue-1-2", "queued"),
        ]
        assert (snapshot["data"]["total"], len(snapshot["data"]["slots"])) == (2, 3)
        claim(conn, epoch)
        start(conn, epoch, "queue-1-1")
        conn.execute("select pgcoord.complete_phase('queue-1-1')")
        messages = await hear_until(client, last_event(conn))
    assert [(each["type"], each["data"]["status"]) for each in messages] == [
        ("phase_changed", "ready"),
        ("phase_changed", "running"),
        ("workflow_completed", "completed"),
    ]
    data = messages[-1]["data"]
    attempt = conn.execute("select adw_id from pgcoord.attempt").fetchone()
    assert attempt
    wanted = {
        "queue_id": "queue-1-1",
        "feature_id": 1,
        "phase_number": 1,
        "status": "completed",
        "adw_id": attempt["adw_id"],
    }
    assert data | wanted == data
    assert data["timestamp"].startswith("20")
    assert [int(each["id"]) for each in messages] == told(messages)


async def test_a_client_resumes_at_its_position_on_another_server(
    dsn: str, site: Site, conn: Connection, tmp_path: Path
) -> None:
    feature = add_feature(conn, {1: []})
    async with listening(site) as client:
        places = [(await hear(client))["id"]]
        for number in range(2, 6):
            add_phase(conn, feature, number)
        messages = await hear_until(client, last_event(conn))
    places += [message["id"] for message in messages]
    async with served(dsn, tmp_path / "other", leads=False) as other:
        for missed, place in enumerate(reversed(places)):
            async with listening(other, place) as client:
                add_phase(conn, feature, 100 + missed)
                heard = await hear_until(client, last_event(conn))
            expected = conn.execute(
                "select id from pgcoord.event where id > %s order by id", [int(place)]
            ).fetchall()
            assert told(heard) == [row["id"] for row in expected]


async def test_a_lower_id_that_commits_later_is_sent_later_and_once(
    dsn: str, site: Site, conn: Connection
) -> None:
    slow, fast = add_feature(conn, {}), add_feature(conn, {})
    async with listening(site) as client:
        await hear(client)
        with psycopg.connect(dsn) as other:  # a transaction that stays open
            other.execute("select pgcoord.pause(%s)", [slow])
            late = last_event(conn) + 1
            conn.execute("select pgcoord.pause(%s)", [fast])
            [early] = await hear_until(client, last_event(conn))
            assert early["data"]["event"] == late + 1
            assert early["id"] == f"{late + 1}.{late}"
        came = await hear(client)
        assert (came["data"]["event"], came["id"]) == (late, str(late + 1))
    async with listening(site, early["id"]) as client:
        add_phase(conn, fast, 1)
        assert told(await hear_until(client, last_event(conn))) == [late, last_event(conn)]
    async with listening(site, came["id"]) as client:
        add_phase(conn, fast, 2)
        assert told(await hear_until(client, last_event(conn))) == [late + 2, last_event(conn)]


async def test_a_client_that_connects_during_a_transaction_gets_its_events(
    dsn: str, site: Site, conn: Connection
) -> None:
    slow, fast = add_feature(conn, {}), add_feature(conn, {})
    with psycopg.connect(dsn) as other:
        other.execute("select pgcoord.pause(%s)", [slow])
        late = last_event(conn) + 1
        conn.execute("select pgcoord.pause(%s)", [fast])
        async with listening(site) as client:
            assert (await hear(client))["id"] == f"{late + 1}.{late}"
            other.commit()
            assert (await hear(client))["data"]["event"] == late


async def test_an_event_rolled_back_is_forgotten(dsn: str, site: Site, conn: Connection) -> None:
    feature = add_feature(conn, {})
    async with listening(site) as client:
        await hear(client)
        with psycopg.connect(dsn) as other:
            other.execute("select pgcoord.pause(%s)", [feature])
            lost = last_event(conn) + 1
            add_phase(conn, add_feature(conn, {}), 1)
            messages = await hear_until(client, last_event(conn))
            assert messages[-1]["id"] == f"{lost + 2}.{lost}"
            other.rollback()
        ids = []
        for number in range(2, 5):  # one reading finds out that nobody writes, the next one settles
            add_phase(conn, 2, number)
            ids += [(await hear_until(client, last_event(conn)))[-1]["id"]]
        assert ids[-1] == str(last_event(conn))


async def test_a_cursor_of_a_database_before_a_restore_gets_a_snapshot(
    site: Site, conn: Connection
) -> None:
    add_feature(conn, {1: []})
    async with listening(site, "4711.12") as client:
        assert (await hear(client))["type"] == "snapshot"


async def test_an_invalid_cursor_is_refused(site: Site) -> None:
    for place in ["x", "1.", "1-2", "-1", "9" * 40]:
        with case(place):
            with pytest.raises(InvalidStatus) as caught:
                async with listening(site, place):
                    pass
            assert caught.value.response.status_code == 422
            answer = await site.client.get("/events", headers={"last-event-id": place})
            assert answer.status_code == 422


async def test_more_than_waits_for_a_client_is_caught_up_in_parts(
    site: Site, conn: Connection
) -> None:
    conn.execute("insert into planned_features (title) select 'a' from generate_series(1, 3500)")
    async with listening(site, "0") as client:
        heard = await hear_until(client, 3500)
        add_feature(conn, {})
        heard += await hear_until(client, 3501)
    assert told(heard) == list(range(1, 3502))


@pytest.mark.scale
async def test_a_slow_client_is_dropped_and_slows_nobody(
    site: Site, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgcoord.http.feed._MOST_WAITING", 50)
    feature = add_feature(conn, {1: []})
    async with listening(site) as client:
        host, port = site.url.removeprefix("http://").split(":")
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            slow.connect((host, int(port)))
            slow.sendall(
                b"GET /ws/queue HTTP/1.1\r\nHost: %b\r\nUpgrade: websocket\r\n"
                b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" % host.encode()
            )
            loop = asyncio.get_running_loop()
            slow.setblocking(False)
            await loop.sock_recv(slow, 1)  # the server has taken it
            await hear(client)
            words = "x" * 200_000
            heard = []
            while site.state.feed.subscribers == 2:
                conn.execute("select pgcoord.pause(%s, %s)", [feature, words])
                heard += await hear_until(client, last_event(conn))
                conn.execute("select pgcoord.resume(%s)", [feature])
                heard += await hear_until(client, last_event(conn))
            assert told(heard) == list(range(told(heard)[0], last_event(conn) + 1))
            received, goodbye = b"", (1013).to_bytes(2) + b"too slow"
            while not received.endswith(goodbye):
                part = await loop.sock_recv(slow, 1 << 20)
                assert part, "closed without a word"
                received = (received + part)[-50:]


async def test_any_number_of_clients_cost_the_database_one_connection(
    dsn: str, site: Site, conn: Connection
) -> None:
    feature = add_feature(conn, {1: []})
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(listening(site)) for _ in range(20)]
        first = [await hear(client) for client in clients]
        assert {message["id"] for message in first} == {first[0]["id"]}
        add_phase(conn, feature, 2)
        heard = [await hear(client) for client in clients]
        assert {message["id"] for message in heard} == {str(last_event(conn))}
        row = conn.execute(
            "select count(*) as n from pg_stat_activity"
            " where datname = current_database() and application_name = 'pgcoord events'"
        ).fetchone()
        assert row == {"n": 1}


async def test_a_lost_connection_is_reported_and_no_event_is_lost(
    dsn: str, site: Site, conn: Connection
) -> None:
    feature = add_feature(conn, {1: []})
    async with listening(site) as client:
        await hear(client)
        with conn.transaction():
            add_phase(conn, feature, 2)
            conn.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and application_name = 'pgcoord events'"
            )
            lost = await hear(client)
            assert (lost["type"], lost["data"]["live"]) == ("connection", False)
            assert "server closed the connection" in lost["data"]["reason"]
            assert "id" not in lost
        messages = await hear_until(client, last_event(conn))
        assert (await hear(client))["data"]["live"] is True
        assert told(messages) == [last_event(conn)]


async def test_a_client_that_connects_during_a_failing_read_gets_all_events(
    dsn: str, site: Site, conn: Connection
) -> None:
    feature = add_feature(conn, {1: []})
    async with listening(site) as early:
        await hear(early)
        with psycopg.connect(dsn) as other:
            other.execute("lock table pgcoord.event")
            async with listening(site) as late:  # whose reading waits for the lock
                await waiting_for_a_lock(conn)
                conn.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where datname = current_database() and application_name = 'pgcoord events'"
                )
                assert (await hear(early))["data"]["live"] is False
                other.rollback()
                messages = [await hear(late)]
                while messages[-1]["type"] == "connection":
                    messages.append(await hear(late))
                assert messages[-1]["type"] == "snapshot"
                add_phase(conn, feature, 2)
                assert told(await hear_until(late, last_event(conn))) == [last_event(conn)]


async def waiting_for_a_lock(conn: Connection) -> None:
    """Wait until the feed waits for a lock."""
    async with asyncio.timeout(PATIENCE):
        while not conn.execute(  # noqa: ASYNC110
            "select from pg_stat_activity where datname = current_database()"
            " and application_name = 'pgcoord events' and wait_event_type = 'Lock'"
        ).fetchall():
            await asyncio.sleep(0.01)  # nobody notifies of it


async def test_an_event_committed_during_the_catching_up_is_sent_once(
    site: Site, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    feature = add_feature(conn, {1: []})
    read = history.events_after

    async def read_late(
        connection: _sql.Connection, last: int, gaps: Any, limit: int
    ) -> list[history.HistoryEvent]:
        if last == 1:  # what the client missed: read after what is new for all was
            add_phase(conn, feature, 2)
        return await read(connection, last, gaps, limit)

    monkeypatch.setattr(history, "events_after", read_late)
    async with listening(site, "1") as client:
        assert told([await hear(client), await hear(client)]) == [2, 3]
        add_phase(conn, feature, 3)
        assert told(await hear_until(client, 4)) == [4]


async def test_clients_get_a_last_message_when_the_server_stops(dsn: str, tmp_path: Path) -> None:
    async with (
        served(dsn, tmp_path, leads=False) as site,
        listening(site) as client,
        site.client.stream("GET", "/events") as stream,
    ):
        await hear(client)
        site.state.feed.close()
        with pytest.raises(ConnectionClosed) as caught:
            await hear(client)
        assert caught.value.rcvd
        assert caught.value.rcvd.code == 1012
        assert (await stream.aread()).startswith(b"retry: 1000")


async def events(site: Site, count: int, **headers: str) -> list[tuple[str | None, Message]]:
    """The first `count` server-sent events, each with its id."""
    found: list[tuple[str | None, Message]] = []
    async with site.client.stream("GET", "/events", headers=headers) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        place = None
        async for line in stream.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "id":
                place = value
            elif name == "data":
                found.append((place, json.loads(value)))
                if len(found) == count:
                    break
    return found


async def test_browsers_get_the_same_and_resume_by_themselves(site: Site, conn: Connection) -> None:
    feature = add_feature(conn, {1: []})
    [(place, snapshot)] = await events(site, 1)
    assert (snapshot["type"], place) == ("snapshot", str(last_event(conn)))
    add_phase(conn, feature, 2)
    assert place
    [(_, message)] = await events(site, 1, **{"last-event-id": place})
    assert message["data"]["queue_id"] == "queue-1-2"


def test_a_cursor_names_the_events_that_were_sent() -> None:
    cursor = Cursor(3)
    for number in (7, 5, 9):
        cursor = cursor.past(number)
    assert str(cursor) == "9.4.6.8"
    assert [number for number in range(1, 12) if cursor.has(number)] == [1, 2, 3, 5, 7, 9]
    assert Cursor.parse(str(cursor)) == cursor
    wide = Cursor(3).past(20)
    assert str(wide) == "20.4-19"
    assert str(wide.past(10)) == "20.4-9.11-19"
    assert wide.settled_by(Cursor(30)) == Cursor(20)
    assert wide.settled_by(Cursor(30, ((19, 25),))) == wide
    assert wide.settled_by(Cursor(10)) == wide


# --- Subscribing within the process


async def test_a_subscriber_from_now_on_gets_the_next_event_first(
    dsn: str, conn: Connection
) -> None:
    add_feature(conn, {1: []})
    feed = Feed(dsn)
    running = asyncio.create_task(feed.run())
    with feed.subscribe(FROM_NOW_ON) as messages:
        await until_true(lambda: feed.state is not None)
        conn.execute("select pgcoord.skip_phase('queue-1-1', 'x')")
        async with asyncio.timeout(PATIENCE):
            first = await anext(aiter(messages))
    running.cancel()
    assert isinstance(first, Event)
    assert first.row.to_status == "completed"


async def test_a_subscriber_that_is_just_taken_on_ends_with_the_feed(
    dsn: str, conn: Connection
) -> None:
    feed = Feed(dsn)
    running = asyncio.create_task(feed.run())
    waiting = "select from pg_stat_activity where wait_event_type = 'Lock'"
    with feed.subscribe(FROM_NOW_ON) as messages:
        with psycopg.connect(dsn) as other:
            other.execute("lock table pgcoord.event")
            await until_true(lambda: bool(conn.execute(waiting).fetchall()))
            feed.close()
        async with asyncio.timeout(PATIENCE):
            assert [each async for each in messages] == []
    running.cancel()
