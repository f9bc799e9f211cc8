"""A primary dies, its stand-by server is promoted: the coordinator continues, nothing runs
twice."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from support import PATIENCE, wait_until
from support.coordination import (
    Gate,
    Watch,
    is_alive,
    make_coordinator,
    running,
    until_it_ends,
    watching,
)
from support.database import kill_server

from pgcoord.coordination.coordinator import Coordinator
from pgcoord.coordination.supervision import Supervision
from pgcoord.database import schema
from pgcoord.database.embedded import EmbeddedPostgres


@dataclass
class Pair:
    """A primary, and a stand-by server that follows it."""

    primary: EmbeddedPostgres
    standby: EmbeddedPostgres

    @property
    def dsn(self) -> str:
        """Names both, the primary first."""
        hosts = ",".join(str(each.server.socket) for each in (self.primary, self.standby))
        return f"host={hosts} dbname=postgres user=postgres target_session_attrs=read-write"

    async def replicated(self) -> None:
        """Wait until the stand-by server has all that the primary has."""
        await until(
            self.primary,
            "select bool_and(replay_lsn = pg_current_wal_lsn()) from pg_stat_replication",
        )

    async def part(self) -> None:
        """What the primary commits from now on never reaches the stand-by server."""
        await self.replicated()
        with psycopg.connect(self.standby.dsn, autocommit=True) as conn:
            conn.execute("alter system set primary_conninfo = ''")
            conn.execute("select pg_reload_conf()")
        await until(self.primary, "select not exists (select from pg_stat_replication)")

    def kill_primary(self) -> None:
        kill_server(self.primary)

    def promote(self) -> None:
        with psycopg.connect(self.standby.dsn, autocommit=True) as conn:
            conn.execute("select pg_promote()")


async def until(server: EmbeddedPostgres, question: str) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        async with asyncio.timeout(PATIENCE):
            while True:
                row = conn.execute(question.encode()).fetchone()
                if row and row[0]:
                    return
                await asyncio.sleep(0.01)


@pytest.fixture
def pair(tmp_path: Path) -> Any:
    primary = EmbeddedPostgres(tmp_path / "a")
    standby = EmbeddedPostgres(tmp_path / "b")
    primary.start()
    try:
        with psycopg.connect(primary.dsn, autocommit=True) as conn:
            schema.upgrade(conn)
        copy_server(primary, standby)
        standby.start()
        yield Pair(primary, standby)
    finally:
        standby.stop()
        primary.stop()


def copy_server(primary: EmbeddedPostgres, standby: EmbeddedPostgres) -> None:
    """Make a stand-by server, as the user of the embedded Postgres."""
    identity = standby._identity()
    standby._make_folders(identity)
    options = ("-d", primary.dsn, "-D", "data", "-R", "-X", "stream", "-c", "fast")
    done = standby._run(identity, "pg_basebackup", *options)
    assert done.returncode == 0, done.stdout


@pytest.fixture
async def watch(pair: Pair) -> AsyncIterator[Watch]:
    """Watches the primary."""
    async with watching(pair.primary.dsn) as watch:
        yield watch


@pytest.mark.scale
async def test_the_coordinator_goes_on_within_a_second_of_the_promotion(
    pair: Pair, watch: Watch, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    await watch.submit(f"echo >> {tmp_path}/starts; read _ < {gate.path}; exit 3", ("true", []))
    coordinator = make_coordinator(pair.dsn, tmp_path)
    delay, delays = coordinator._backoff.next, list[float]()

    def noted() -> float:
        delays.append(delay())
        return delays[-1]

    coordinator._backoff.next = noted  # type: ignore[method-assign]
    async with running(coordinator):
        await watch.until_statuses("running", "completed")
        await pair.replicated()
        pair.kill_primary()
        await asyncio.to_thread(until_it_has_noticed, coordinator)
        await asyncio.to_thread(pair.promote)
        before = len(delays)
        await coordinator.leads.wait()
        # Of what began after the promotion, the first try succeeds; one may have been under way.
        assert len(delays) - before <= 1
        assert max(delays) <= 0.8
        async with watching(pair.standby.dsn) as watch:
            await watch.submit("true")
            await watch.until_statuses("running", "completed", "completed")
            gate.open()
            await watch.until_statuses("failed", "completed", "completed")
    assert (tmp_path / "starts").read_text() == "\n"


def until_it_has_noticed(coordinator: Coordinator) -> None:
    wait_until(lambda: not coordinator.leads.is_set())


async def test_a_process_of_a_claim_that_a_failover_lost_is_ended_before_the_next_claim(
    pair: Pair, watch: Watch, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    await watch.submit(
        f"trap 'sleep 0.3; echo end >> {log}; exit' TERM; echo start >> {log};"
        " while :; do sleep 0.05; done"
    )
    await pair.part()
    async with running(make_coordinator(pair.dsn, tmp_path)):
        await watch.until_statuses("running")
        await until_it_ends(log, "start\n")  # its trap is set
        first = (await watch.one("select pid from pgcoord.attempt"))["pid"]
        pair.kill_primary()
        await asyncio.to_thread(pair.promote)
        async with watching(pair.standby.dsn) as watch:
            await watch.until_statuses("running")
            assert not is_alive(first)
            await until_it_ends(log, "start\nend\nstart\n")
            await watch.one("select pgcoord.cancel_phase('queue-1-1', 'enough')")
            await watch.until_statuses("cancelled")
    assert log.read_text() == "start\nend\nstart\nend\n"


@pytest.mark.scale
async def test_an_end_that_a_failover_lost_is_recorded_again(
    pair: Pair, watch: Watch, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    await watch.submit(f"echo >> {tmp_path}/starts; read _ < {gate.path}; exit 3", ("true", [1]))
    async with running(make_coordinator(pair.dsn, tmp_path)):
        await watch.until_statuses("running", "queued")
        await pair.part()
        gate.open()
        await watch.until_statuses("failed", "blocked")
        pair.kill_primary()
        await asyncio.to_thread(pair.promote)
        async with watching(pair.standby.dsn) as watch:
            await watch.until_statuses("failed", "blocked")
    assert (tmp_path / "starts").read_text() == "\n"


class RecordedWhenTold(Supervision):
    """An attempt whose start is recorded when somebody says so."""

    told_to: asyncio.Event

    async def _record_start(self) -> None:
        await self.told_to.wait()
        await super()._record_start()


class StartsWhenTold(Coordinator):
    """A coordinator that records the start of a process only on request of the test."""

    supervision = RecordedWhenTold


@pytest.mark.scale
async def test_a_start_that_a_failover_lost_is_recorded_again(
    pair: Pair, watch: Watch, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    await watch.submit(f"read _ < {gate.path}")
    coordinator = make_coordinator(pair.dsn, tmp_path, kind=StartsWhenTold)
    RecordedWhenTold.told_to = asyncio.Event()
    async with running(coordinator):
        await watch.until_statuses("ready")
        await pair.part()
        RecordedWhenTold.told_to.set()
        await watch.until_statuses("running")
        first = await watch.one("select pid, adw_id from pgcoord.attempt")
        pair.kill_primary()
        await asyncio.to_thread(pair.promote)
        async with watching(pair.standby.dsn) as watch:
            await watch.until_statuses("running")
            assert (await watch.one("select pid, adw_id from pgcoord.attempt")) == first
            gate.open()
            await watch.until_statuses("completed")


async def test_a_primary_that_was_replaced_is_never_led_again(
    pair: Pair, watch: Watch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(make_coordinator(pair.dsn, tmp_path)) as coordinator:
        await pair.replicated()
        pair.kill_primary()
        await asyncio.to_thread(until_it_has_noticed, coordinator)
        await asyncio.to_thread(pair.promote)
        await coordinator.leads.wait()
        # The old one comes back, and the DSN names it first.
        await asyncio.to_thread(pair.primary.start)
        async with watching(pair.primary.dsn) as past:
            await past.submit("true")
            async with watching(pair.standby.dsn) as present:
                while "timeline 1, but 2 was seen" not in caplog.text:
                    coordinator.leads.clear()
                    await present.all(
                        "select pg_terminate_backend(pid) from pg_stat_activity"
                        " where application_name = 'pgcoord listener'"
                    )
                    await coordinator.leads.wait()
                await present.submit("true")
                await present.until_statuses("completed")
            rows = await past.all("select status from phase_queue")
            assert rows == [{"status": "queued"}]
            assert (await past.one("select max(epoch) as epoch from pgcoord.coordinator")) == {
                "epoch": 1
            }
