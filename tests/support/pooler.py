"""A real PgBouncer before the server of a test."""

import os
import socket
import subprocess
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Pooler:
    """A PgBouncer before the test's server."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self.folder = folder
        self._server = conninfo_to_dict(dsn)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.dsn = make_conninfo(
            host="127.0.0.1",
            port=self._port,
            user=self._server["user"],
            dbname=self._server["dbname"],
        )
        self._process: subprocess.Popen[str] | None = None

    def start(self, **settings: str) -> None:
        """Start it, and return when it takes connections."""
        server: dict[str, Any] = {
            key: value
            for key, value in self._server.items()
            if key in ("host", "port", "user", "password", "dbname")
        }
        written = {
            "listen_addr": "127.0.0.1",
            "listen_port": self._port,
            "unix_socket_dir": "",
            "auth_type": "any",
            **settings,
        }
        file = self.folder / "pgbouncer.ini"
        file.write_text(
            f"[databases]\n* = {make_conninfo(**server)}\n[pgbouncer]\n"
            + "".join(f"{key} = {value}\n" for key, value in written.items())
        )
        # It refuses to run as root; in a user namespace it may still enter the server's folder.
        prefix = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
        self._process = subprocess.Popen(
            [*(prefix if os.getuid() == 0 else []), "pgbouncer", str(file)],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr
        said = ""
        while "process up" not in said:
            line = self._process.stderr.readline()
            assert line, f"pgbouncer ended: {said}"
            said += line

    def stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()
