"""Another machine, as far as its network goes: a network namespace, reached by a cable.

The cable is a pair of virtual devices; pulled out, packets are dropped without an error.
"""

import ipaddress
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


@dataclass
class Cable:
    """What connects this network namespace with another one; the addresses of its two ends."""

    name: str
    here: str
    there: str

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
    # Of two cables with the same addresses, one would get the packets of the other. These four are
    # of a network that is for tests of networks, and of this process.
    network = ipaddress.ip_address("198.18.0.0") + 4 * (os.getpid() % 2**15)
    cable = Cable(name, str(network + 1), str(network + 2))
    try:
        ip("link", "add", name, "type", "veth", "peer", "name", "there", "netns", name)
        ip("addr", "add", f"{cable.here}/30", "dev", name)
        ip("link", "set", name, "up")
        ip("-n", name, "addr", "add", f"{cable.there}/30", "dev", "there")
        ip("-n", name, "link", "set", "there", "up")
        yield cable
    finally:
        ip("netns", "del", name)


@contextmanager
def server_for_both(folder: Path, cable: Cable) -> Iterator[EmbeddedPostgres]:
    """A server that the machine at the other end reaches, too."""
    server = EmbeddedPostgres(folder)
    server.start()
    try:
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            schema.upgrade(conn)
            conn.execute(f"alter system set listen_addresses = '{cable.here}'".encode())
        with (server.server.data / "pg_hba.conf").open("a") as file:
            file.write(f"host all all {cable.there}/32 trust\n")
        server.stop()
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def remote(cable: Cable, tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server that this machine, and the one at the other end of the cable, reach."""
    with server_for_both(tmp_path / "server", cable) as server:
        yield server
