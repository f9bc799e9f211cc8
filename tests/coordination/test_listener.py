"""No wake-up is lost, whenever it is sent and whatever happens to the connections."""

import asyncio
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support import PATIENCE
from support.coordination import Gate, Watch, make_coordinator, running, scripts, watching

from pgcoord.commands.context import check_schema
from pgcoord.commands.progress import read_through
from pgcoord.coordination.coordinator import Coordinator
from pgcoord.coordination.supervision import Supervision
from pgcoord.database import reads, schema, session
from pgcoord.database.connect import connect, may_pass
from pgcoord.database.embedded import EmbeddedPostgres
from pgcoord.database.listener import (
    _LOST_AFTER,
    PING_EVERY,
    Listener,
    check_wake_ups,
    listening,
    round_trip,
)
from pgcoord.database.work import NextWork
from pgcoord.errors import DatabaseUnusable

STEPS = ["before claim", "after claim", "after attend", "after next work"]


def before_waiting(listener: Listener, do: Callable[[], Awaitable[None]]) -> None:
    """Have `do` done each time when the loop is about to wait."""
    wait = listener.wait

    async def do_and_wait(seconds: float | None) -> bool:
        await do()
        return await wait(seconds)

    listener.wait = do_and_wait  # type: ignore[method-assign]


class Stepped(Coordinator):
    """A coordinator that lets a test do something between two steps of its first idle round."""

    at: str
    do: Callable[[], Awaitable[None]]

    async def _reach(self, step: str) -> None:
        if step == self.at:
            self.at = ""
            await self.do()

    async def _claim(self) -> bool:
        await self._reach("before claim")
        claimed = await super()._claim()
        await self._reach("after claim")
        return claimed

    async def _rest(self, work: NextWork) -> None:
        await self._reach("after attend")
        await super()._rest(work)

    async def _lead(self) -> None:
        assert self._leadership.listener
        before_waiting(self._leadership.listener, lambda: self._reach("after next work"))
        await super()._lead()


@pytest.mark.parametrize("step", STEPS)
async def test_a_notification_between_any_two_steps_of_the_loop_is_not_lost(
    step: str, dsn: str, watch: Watch, tmp_path: Path
) -> None:
    async with watching(dsn) as other:

        async def submit() -> None:
            await other.submit("true")

        coordinator = make_coordinator(dsn, tmp_path, kind=Stepped)
        assert isinstance(coordinator, Stepped)
        coordinator.at, coordinator.do = step, submit
        async with running(coordinator):
            await watch.until_statuses("completed")
    assert coordinator.at == ""


class SlowSupervision(Supervision):
    """An attempt whose start is recorded after the loop has come to rest."""

    rests: asyncio.Event

    async def _record_start(self) -> None:
        await self.rests.wait()
        await super()._record_start()


class SlowStart(Coordinator):
    """A coordinator whose loop has come to rest before the start of a process is recorded."""

    supervision = SlowSupervision

    async def _lead(self) -> None:
        assert self._leadership.listener
        before_waiting(self._leadership.listener, self._rest_reached)
        await super()._lead()

    async def _rest_reached(self) -> None:
        SlowSupervision.rests.set()


async def test_a_deadline_set_while_the_loop_rests_is_kept(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit("sleep 1000")
    work = scripts(timeout=timedelta(milliseconds=50))
    coordinator = make_coordinator(dsn, tmp_path, work, kind=SlowStart)
    SlowSupervision.rests = asyncio.Event()
    async with running(coordinator):
        await watch.until_statuses("failed")


async def test_a_notification_sent_before_the_wait_ends_the_wait(dsn: str, watch: Watch) -> None:
    async with asyncio.timeout(PATIENCE), listening(dsn, session.WAKE) as listener:
        await watch.conn.execute("notify pgcoord_wake")
        await session.ping(listener.conn)  # so that it has arrived, while nobody waits
        await listener.wait(None)


async def test_waiting_ends_with_a_notification_that_came_with_the_end_of_a_statement(
    dsn: str, watch: Watch
) -> None:
    async with asyncio.timeout(PATIENCE), listening(dsn, session.WAKE) as listener:
        for _ in range(200):
            # Sent while the statement runs, so that both often arrive in one packet.
            busy = asyncio.ensure_future(listener.conn.execute("select pg_sleep(0.002)"))
            await watch.conn.execute("notify pgcoord_wake")
            await busy
            await listener.wait(None)


async def test_wake_ends_the_wait(dsn: str) -> None:
    async with asyncio.timeout(PATIENCE), listening(dsn, session.WAKE) as listener:
        waiting = asyncio.ensure_future(listener.wait(None))
        await asyncio.sleep(0)
        listener.wake()
        await waiting


async def test_waiting_ends_at_its_deadline_and_not_before(dsn: str) -> None:
    async with asyncio.timeout(PATIENCE), listening(dsn, session.WAKE) as listener:
        before = time.monotonic()
        await listener.wait(0.05)
        assert time.monotonic() - before >= 0.05


async def test_an_idle_listener_asks_for_signs_of_life(
    dsn: str, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgcoord.database.listener.PING_EVERY", 0.02)
    async with listening(dsn, session.WAKE) as listener:
        waiting = asyncio.ensure_future(listener.wait(None))
        pid = listener.conn.info.backend_pid
        state = "select query, state_change from pg_stat_activity where pid = %s"
        first = await watch.one(state, pid)
        async with asyncio.timeout(PATIENCE):
            while (now := await watch.one(state, pid))["state_change"] == first["state_change"]:  # noqa: ASYNC110
                await asyncio.sleep(0)
        waiting.cancel()
    assert now["query"] == "select"


async def test_the_server_gives_a_leader_up_that_has_missed_three_pings(dsn: str) -> None:
    async with listening(dsn, session.STAND_BY) as listener:
        cursor = await listener.conn.execute(
            "select setting::float8 from pg_settings where name = 'idle_session_timeout'"
        )
        assert await cursor.fetchone() == (3 * PING_EVERY * 1000,)


@pytest.mark.parametrize("whose", ["pgcoord listener", "pgcoord", "pgcoord%"])
async def test_the_coordinator_goes_on_after_its_backends_were_terminated(
    whose: str, dsn: str, watch: Watch, tmp_path: Path
) -> None:
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.submit("true")
        await watch.until_statuses("completed")
        gone = await watch.all(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
            " where datname = current_database() and application_name like %s",
            whose,
        )
        assert gone
        await watch.submit("true", ("true", [1]))
        await watch.until_statuses("completed", "completed", "completed")


async def test_a_lost_connection_leaves_the_next_file_of_its_number_alone(dsn: str) -> None:
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    pipe, into = os.pipe()
    async with listening(dsn, session.WAKE) as listener:
        number = listener.conn.fileno()

        def reuse() -> None:
            """Take the number as soon as it is free, and wait for the pipe under it."""
            try:
                os.fstat(number)
            except OSError:
                os.dup2(pipe, number)
                loop.add_reader(number, readable.set)
            else:
                loop.call_soon(reuse)

        waiting = asyncio.create_task(listener.wait(None))
        await asyncio.sleep(0)
        loop.call_soon(reuse)
        async with await connect(dsn) as conn:
            await conn.execute(
                "select pg_terminate_backend(%s)", [listener.conn.pgconn.backend_pid]
            )
        with pytest.raises(psycopg.OperationalError):
            await waiting
    os.write(into, b"1")
    async with asyncio.timeout(PATIENCE):
        await readable.wait()
    loop.remove_reader(number)
    for each in (pipe, into, number):
        os.close(each)


async def test_a_wake_up_sent_while_the_listener_was_away_is_made_up_for(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    async with running(make_coordinator(dsn, tmp_path)):
        async with watch.conn.transaction():
            await watch.submit("true")
            # The notification goes out at the commit, when nobody listens any more.
            await watch.one(
                "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity"
                " where datname = current_database() and application_name = 'pgcoord listener'"
            )
        await watch.until_statuses("completed")


@pytest.mark.scale
async def test_a_read_only_server_is_tried_after_growing_waits(
    dsn: str, watch: Watch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = watch.conn.info.dbname
    async with running(make_coordinator(dsn, tmp_path)) as coordinator:
        await watch.conn.execute(
            f'alter database "{name}" set default_transaction_read_only = on'.encode()
        )
        await watch.one(
            "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity"
            " where datname = current_database() and application_name = 'pgcoord listener'"
        )
        while coordinator.interruptions < 6:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        warnings = [each for each in caplog.records if "read-only" in each.getMessage()]
        assert [each.levelname for each in warnings] == ["WARNING"], "it begins anew each time"
        await watch.conn.execute(
            f'alter database "{name}" reset default_transaction_read_only'.encode()
        )
        await watch.submit("true")
        await watch.until_statuses("completed")


async def test_a_coordinator_runs_under_any_default_isolation_level(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    name = watch.conn.info.dbname
    await watch.conn.execute(
        f"alter database \"{name}\" set default_transaction_isolation = 'serializable'".encode()
    )
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.submit("true")
        await watch.until_statuses("completed")


@pytest.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[EmbeddedPostgres]:
    """A server that the test may stop and start."""
    embedded = EmbeddedPostgres(tmp_path / "own")
    await asyncio.to_thread(embedded.start)
    with psycopg.connect(embedded.dsn, autocommit=True) as conn:
        schema.upgrade(conn)
    yield embedded
    await asyncio.to_thread(embedded.stop)


async def test_the_coordinator_goes_on_after_the_server_was_restarted(
    own_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    async with running(make_coordinator(own_server.dsn, tmp_path)):
        async with watching(own_server.dsn) as watch:
            await watch.submit(f"echo >> {tmp_path}/starts; exec sleep 1000", "true")
            await watch.until_statuses("running", "completed")
        await asyncio.to_thread(own_server.stop)
        await asyncio.to_thread(own_server.start)
        async with watching(own_server.dsn) as watch:
            await watch.submit("true")
            await watch.until_statuses("running", "completed", "completed")
            await watch.one("select pgcoord.cancel_phase('queue-1-1', 'enough')")
            await watch.until_statuses("cancelled", "completed", "completed")
    assert (tmp_path / "starts").read_text() == "\n"


async def test_an_end_during_an_outage_of_the_server_is_recorded_after_the_outage(
    own_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    async with running(make_coordinator(own_server.dsn, tmp_path)):
        async with watching(own_server.dsn) as watch:
            gate = Gate(tmp_path / "gate")
            await watch.submit(f"read _ < {gate.path}", ("true", [1]))
            await watch.until_statuses("running", "queued")
        await asyncio.to_thread(own_server.stop)
        gate.open()
        await asyncio.to_thread(own_server.start)
        async with watching(own_server.dsn) as watch:
            await watch.until_statuses("completed", "completed")


async def test_the_coordinator_waits_for_a_server_that_is_down_at_its_start(
    own_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    await asyncio.to_thread(own_server.stop)
    coordinator = make_coordinator(own_server.dsn, tmp_path)
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        tasks.create_task(coordinator.run())
        await asyncio.sleep(0.2)  # a few tries in vain; none of them must be the last
        await asyncio.to_thread(own_server.start)
        await coordinator.leads.wait()
        coordinator.stop()


async def test_a_server_that_refuses_for_good_ends_the_coordinator_at_once(
    server: str, tmp_path: Path
) -> None:
    coordinator = make_coordinator(f"{server} dbname=no_such_database", tmp_path)
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(DatabaseUnusable, match="no_such_database"):
            await coordinator.run()


@pytest.mark.scale
async def test_a_notification_of_a_server_that_is_slow_for_a_moment_is_not_taken_for_lost(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    notify = session.notify
    async with await connect(dsn) as receiver:
        pid = receiver.info.backend_pid

        async def freeze_and_notify(sender: psycopg.AsyncConnection[Any], channel: str) -> None:
            os.kill(pid, signal.SIGSTOP)
            await notify(sender, channel)
            later = 1.5 * _LOST_AFTER
            asyncio.get_running_loop().call_later(later, os.kill, pid, signal.SIGCONT)

        monkeypatch.setattr(session, "notify", freeze_and_notify)
        took = await round_trip(dsn, receiver)
    assert took is not None
    assert took >= 1.5 * _LOST_AFTER


@asynccontextmanager
async def cutting_when_idle(dsn: str, seconds: float) -> AsyncIterator[str]:
    """A way to the server on which a connection is cut once nothing has passed for *seconds*."""
    values = conninfo_to_dict(dsn)
    host, port = str(values["host"]), int(values.get("port") or 5432)

    async def pump(
        source: asyncio.StreamReader, sink: asyncio.StreamWriter, moved: list[float]
    ) -> None:
        while data := await source.read(65536):
            moved[0] = asyncio.get_running_loop().time()
            sink.write(data)
            await sink.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if host.startswith("/"):
            back = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            back = await asyncio.open_connection(host, port)
        moved = [asyncio.get_running_loop().time()]
        pumps = [
            asyncio.create_task(pump(reader, back[1], moved)),
            asyncio.create_task(pump(back[0], writer, moved)),
        ]
        while not any(each.done() for each in pumps):
            left = moved[0] + seconds - asyncio.get_running_loop().time()
            if left <= 0:
                break
            await asyncio.wait(pumps, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        for each in pumps:
            each.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for end in (writer, back[1]):
            end.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        address = server.sockets[0].getsockname()
        yield make_conninfo(dsn, host="127.0.0.1", port=address[1], sslmode="disable")


@pytest.mark.scale
async def test_a_setting_that_cuts_idle_connections_is_named_with_its_time(
    dsn: str, watch: Watch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with cutting_when_idle(dsn, 1.0) as way, running(make_coordinator(way, tmp_path)):
        async with asyncio.timeout(PATIENCE):
            while "cuts idle connections after 1." not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await watch.submit("true")
        await watch.until_statuses("completed")


@asynccontextmanager
async def cutting_at(dsn: str, number: int, which: str) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A way to the server on which *which* connection, or "every" one, is cut at this packet.

    Packets of clients are counted. The event says that this has happened; a later connection stays.
    """
    values = conninfo_to_dict(dsn)
    host, port = str(values["host"]), int(values.get("port") or 5432)
    cut = asyncio.Event()
    open_ends: list[asyncio.StreamWriter] = []
    packets = itertools.count(1)

    async def pump(
        source: asyncio.StreamReader, sink: asyncio.StreamWriter, answers: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                if sink is not answers and next(packets) == number:
                    cut.set()
                    for end in open_ends if which == "every" else (sink, answers):
                        end.close()
                sink.write(data)
                await sink.drain()
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if host.startswith("/"):
            back = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            back = await asyncio.open_connection(host, port)
        open_ends.extend((writer, back[1]))
        await asyncio.gather(pump(reader, back[1], writer), pump(back[0], writer, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        address = server.sockets[0].getsockname()
        yield make_conninfo(dsn, host="127.0.0.1", port=address[1], sslmode="disable"), cut


@pytest.mark.parametrize("which", ["one", "every"])
async def test_the_checks_of_the_start_are_tried_again_wherever_they_are_cut_off(
    dsn: str, which: str
) -> None:
    lost = []
    for number in itertools.count(1):
        async with cutting_at(dsn, number, which) as (way, cut):
            try:
                await asyncio.to_thread(check_schema, way, lock_seconds=PATIENCE)
                await check_wake_ups(way)
            except DatabaseUnusable as error:
                lost.append((number, error))
        if not cut.is_set():
            break
    assert len(lost) > 10
    assert [each for each in lost if not may_pass(each[1])] == []


@pytest.mark.scale  # a second for each packet
async def test_what_run_shows_is_read_again_wherever_it_is_cut_off(dsn: str) -> None:
    for number in itertools.count(1):
        async with cutting_at(dsn, number, "one") as (way, cut):
            row = await read_through(way, reads.leader)
        assert row is None
        if not cut.is_set():
            break
    assert number > 5


@pytest.mark.scale
async def test_a_server_that_dies_between_two_connections_may_come_back(dsn: str) -> None:
    nowhere = make_conninfo(dsn, port=1)
    async with await connect(dsn) as first:
        with pytest.raises(DatabaseUnusable, match="one connection at a time") as refused:
            await round_trip(nowhere, first)
        assert not may_pass(refused.value)
        async with await connect(dsn) as other:
            await other.execute("select pg_terminate_backend(%s)", [first.info.backend_pid])
        with pytest.raises(DatabaseUnusable, match="the database cannot be used") as lost:
            await round_trip(nowhere, first)
    assert may_pass(lost.value)
