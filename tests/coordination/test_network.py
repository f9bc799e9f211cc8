"""A network that falls silent: packets vanish, and nobody is told.

The coordinator is on a machine of its own as far as its network goes: a network namespace, reached
by a cable (a pair of virtual devices) that is pulled out.
"""

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from support.coordination import coordinator_process, make_coordinator, running, watching

from pgcoord.database import schema
from pgcoord.database.embedded import EmbeddedPostgres

pytestmark = [pytest.mark.scale, pytest.mark.timeout(180)]

HERE, THERE = "10.213.77.1", "10.213.77.2"


@dataclass
class Cable:
    """What connects this network namespace with another one."""

    name: str

    def pull(self) -> None:
        ip("link", "set", self.name, "down")

    def plug(self) -> None:
        ip("link", "set", self.name, "up")

    @property
    def machine(self) -> tuple[str, ...]:
        """What runs a command on the other machine."""
        return ("ip", "netns", "exec", self.name)


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (arguments, done.stderr)


@pytest.fixture
def cable() -> Iterator[Cable]:
    name = f"pgc{os.getpid()}"
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("a silent network is not tried: it takes root and iproute2 to make one")
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"a silent network is not tried: no network namespaces: {made.stderr.strip()}")
    try:
        ip("link", "add", name, "type", "veth", "peer", "name", "there", "netns", name)
        ip("addr", "add", f"{HERE}/24", "dev", name)
        ip("link", "set", name, "up")
        ip("-n", name, "addr", "add", f"{THERE}/24", "dev", "there")
        ip("-n", name, "link", "set", "there", "up")
        yield Cable(name)
    finally:
        ip("netns", "del", name)


@pytest.fixture
def remote(cable: Cable, tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server that the other machine reaches, too."""
    server = EmbeddedPostgres(tmp_path / "server")
    server.start()
    try:
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            schema.upgrade(conn)
            conn.execute(f"alter system set listen_addresses = '{HERE}'".encode())
        with (server.server.data / "pg_hba.conf").open("a") as file:
            file.write(f"host all all {THERE}/32 trust\n")
        server.stop()
        server.start()
        yield server
    finally:
        server.stop()


async def test_a_silent_network_is_noticed_within_fifteen_seconds_on_either_side(
    cable: Cable, remote: EmbeddedPostgres, tmp_path: Path
) -> None:
    dsn = f"host={HERE} dbname=postgres user=postgres"
    async with coordinator_process(dsn, tmp_path, host="there", prefix=cable.machine) as first:
        await first.until("leading (lead 1)")
        second = make_coordinator(remote.dsn, tmp_path, host="here")
        async with running(second, until_it_leads=False), watching(remote.dsn) as watch:
            pulled = time.monotonic()
            cable.pull()
            noticed = asyncio.ensure_future(first.until("trying again in"))
            await noticed
            assert time.monotonic() - pulled < 15
            await second.leads.wait()
            # The server has given up the leader's session, and the stand-by has asked since.
            assert time.monotonic() - pulled < 15 + 5
            await watch.submit("true")
            await watch.until_statuses("completed")
            cable.plug()
            await first.until("standing by: process")
