"""A lock that somebody holds costs the requests that need it a refusal, and all others nothing."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import psycopg
import pytest
from support import PATIENCE
from support.database import Connection, add_feature, claim, start, statuses
from support.serving import SECRET, Site, signed

SLEEPING = (
    "select count(*) from pg_stat_activity where datname = current_database()"
    " and wait_event = 'PgSleep'"
)
WAITING = (
    "select count(*) from pg_stat_activity where datname = current_database()"
    " and cardinality(pg_blocking_pids(pid)) > 0"
)


@pytest.fixture
def running(conn: Connection, epoch: int) -> str:
    """A phase that runs."""
    add_feature(conn, {1: []})
    [queue_id] = claim(conn, epoch)
    start(conn, epoch, queue_id)
    return queue_id


@asynccontextmanager
async def holding(dsn: str, statement: str) -> AsyncIterator[int]:
    """Have a transaction open in which *statement* was executed; yields its process (pid)."""
    async with (
        await psycopg.AsyncConnection.connect(dsn, application_name="coffee") as other,
        other.transaction(force_rollback=True),
    ):
        await other.execute(statement.encode())
        yield other.info.backend_pid


async def until_counted(conn: Connection, statement: str, count: int) -> None:
    """Return when so many sessions wait as *statement* counts them."""
    async with asyncio.timeout(PATIENCE):
        while conn.execute(statement.encode()).fetchone() != {"count": count}:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def lock(queue_id: str) -> str:
    return f"select from phase_queue where queue_id = '{queue_id}' for update"


async def send_until(stopped: asyncio.Event, site: Site, body: dict[str, Any]) -> set[int | None]:
    """The statuses that twelve senders get, each of which gives up after 2 s and sends again."""
    statuses: set[int | None] = set()

    async def send() -> None:
        request = signed(body, SECRET, message_id="one")
        while not stopped.is_set():
            try:
                answer = await site.client.post("/workflow-complete", timeout=2, **request)
                statuses.add(answer.status_code)
            except httpx2.TimeoutException:
                statuses.add(None)

    await asyncio.gather(*(send() for _ in range(12)))
    return statuses


@pytest.mark.scale
async def test_a_locked_phase_holds_up_only_requests_that_need_the_phase(
    site: Site, dsn: str, conn: Connection, running: str
) -> None:
    body = {"queue_id": running, "status": "completed"}
    async with holding(dsn, lock(running)):
        stopped = asyncio.Event()
        sending = asyncio.create_task(send_until(stopped, site, body))
        await until_counted(conn, WAITING, 4)
        for path in ("/api/v1/queue", "/", f"/phases/{running}", "/metrics"):
            answer = await site.client.get(path, headers={"accept": "text/html"})
            assert answer.status_code == 200, (path, answer.text)
        stopped.set()
        assert await sending <= {503, None}
        assert statuses(conn) == {1: "running"}
    assert (await site.report(body)).status_code == 200
    assert statuses(conn) == {1: "completed"}


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("/workflow-complete", {"queue_id": "queue-1-1", "status": "completed"}),
    ("/api/v1/queue/queue-1-1/cancel", {"reason": "x"}),
]


@pytest.mark.scale
@pytest.mark.parametrize(("path", "body"), CHANGES)
async def test_a_request_that_needs_a_locked_row_is_refused_naming_the_holder(
    path: str, body: dict[str, Any], site: Site, dsn: str, conn: Connection, running: str
) -> None:
    async with holding(dsn, lock(running)) as pid:
        answer = await site.client.post(path, **signed(body, SECRET))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"] == "locked"
    assert f"process {pid} (user " in answer.json()["reason"]
    assert ", coffee), in its transaction since" in answer.json()["reason"]
    assert "for update" in answer.json()["reason"]
    assert statuses(conn) == {1: "running"}


@pytest.mark.scale
async def test_a_read_of_a_locked_table_is_refused_naming_the_holder(
    site: Site, dsn: str, running: str
) -> None:
    async with holding(dsn, "lock table phase_queue in access exclusive mode") as pid:
        answer = await site.client.get("/api/v1/queue")
        page = await site.client.get(f"/phases/{running}", headers={"accept": "text/html"})
    assert (answer.status_code, answer.json()["error"]) == (503, "locked")
    assert "has locked a table that this reads" in answer.json()["reason"]
    assert f"process {pid} (user " in answer.json()["reason"]
    assert page.status_code == 503
    assert f"process {pid}" in page.text


@pytest.mark.scale
async def test_a_page_says_that_something_is_locked(site: Site, dsn: str, running: str) -> None:
    async with holding(dsn, lock(running)) as pid:
        answer = await site.client.post(
            f"/phases/{running}/cancel", headers={"origin": site.url}, data={"reason": "x"}
        )
    assert answer.status_code == 503
    assert "Another session has locked it" in answer.text
    assert f"process {pid}" in answer.text


async def test_a_request_whose_client_goes_is_cancelled_in_the_database(
    site: Site, conn: Connection, running: str, caplog: pytest.LogCaptureFixture
) -> None:
    conn.execute(
        "create function public.dawdle() returns trigger language plpgsql as"
        " $$ begin perform pg_catalog.pg_sleep(600); return new; end $$"
    )
    conn.execute(
        "create trigger dawdle before update on phase_queue for each row execute function dawdle()"
    )
    body = {"queue_id": running, "status": "completed"}
    sending = asyncio.create_task(site.report(body))
    await until_counted(conn, SLEEPING, 1)
    sending.cancel()
    await until_counted(conn, SLEEPING, 0)
    conn.execute("drop trigger dawdle on phase_queue")
    assert statuses(conn) == {1: "running"}
    assert (await site.report(body)).status_code == 200
    assert [each.message for each in caplog.records if each.levelno >= logging.ERROR] == []


async def test_a_database_set_read_only_while_running_refuses_changes(
    site: Site, conn: Connection, running: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await site.client.get("/api/v1/queue")).status_code == 200
    name = conn.info.dbname
    conn.execute(f'alter database "{name}" set default_transaction_read_only = on'.encode())
    conn.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )
    for path, body in CHANGES:
        answer = await site.client.post(path, **signed(body, SECRET))
        assert (answer.status_code, answer.json()["error"]) == (503, "unavailable"), path
        assert "read-only" in answer.json()["reason"]
    assert (await site.client.get("/api/v1/queue")).status_code == 200
    assert [each.message for each in caplog.records if each.levelno >= logging.ERROR] == []
