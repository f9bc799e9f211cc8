"""Another machine, as far as its network goes: a network namespace, reached by a cable.

The cable is a pair of virtual devices; pulled out, packets are dropped without an error.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from pgcoord.database import schema
from pgcoord.database.embedded import EmbeddedPostgres

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
    result = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, (arguments, result.stderr)


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


@contextmanager
def server_for_both(folder: Path) -> Iterator[EmbeddedPostgres]:
    """A server that the other machine reaches, too."""
    server = EmbeddedPostgres(folder)
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
