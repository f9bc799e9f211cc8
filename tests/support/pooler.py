"""Real poolers and proxies in front of a test's server: PgBouncer, pgpool-II, HAProxy."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from support import PATIENCE
from support.ports import free_port


class Pooler:
    """A PgBouncer before the test's server."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self.folder = folder
        self._server = conninfo_to_dict(dsn)
        self._port = free_port()
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
        output = ""
        while "process up" not in output:
            line = self._process.stderr.readline()
            assert line, f"pgbouncer ended: {output}"
            output += line

    def stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()


class Proxy:
    """pgpool-II or HAProxy before the test's server, until the end of a `with`."""

    def __init__(self, folder: Path, dsn: str, program: str) -> None:
        self._folder, self._program = folder, program
        self._server = conninfo_to_dict(dsn)
        self._port = free_port()
        self.dsn = make_conninfo(dsn, host="127.0.0.1", port=self._port)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, stand_by: bool = False, for_one: bool = False, **settings: str) -> None:
        """Start it, and return when it answers; for pgpool a *stand_by* is the same server again.

        *for_one* has HAProxy reject a second connection at a time. *settings* are pgpool's, or the
        time-outs of HAProxy.
        """
        self._rule = " tcp-request connection reject if { fe_conn gt 1 }\n" if for_one else ""
        write = self._haproxy if self._program == "haproxy" else self._pgpool
        command = write(stand_by, settings)
        with (self._folder / "proxy.log").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                with psycopg.connect(self.dsn, connect_timeout=30):
                    return
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self._folder / "proxy.log").read_text()
                time.sleep(0.05)
        raise AssertionError((self._folder / "proxy.log").read_text())

    def _pgpool(self, stand_by: bool, settings: dict[str, str]) -> list[str]:
        written = {
            "listen_addresses": "127.0.0.1",
            "port": str(self._port),
            "pcp_port": str(free_port()),
            "backend_clustering_mode": "streaming_replication",
            "num_init_children": "16",
            "sr_check_period": "0",
            "load_balance_mode": "on",
            **{
                name: str(self._folder)
                for name in ("socket_dir", "unix_socket_directories", "pcp_socket_dir", "logdir")
            },
            "work_dir": str(self._folder),
            "pid_file_name": str(self._folder / "pgpool.pid"),
            **settings,
        }
        for i in range(1 + stand_by):
            written[f"backend_hostname{i}"] = str(self._server["host"])
            written[f"backend_port{i}"] = str(self._server.get("port", 5432))
            written[f"backend_weight{i}"] = "1"
        file = self._folder / "pgpool.conf"
        file.write_text("".join(f"{key} = '{value}'\n" for key, value in written.items()))
        for name in ("pcp.conf", "pool_hba.conf"):
            (self._folder / name).touch()
        options = ["-F", str(self._folder / "pcp.conf"), "-a", str(self._folder / "pool_hba.conf")]
        return ["pgpool", "-n", "-f", str(file), *options]

    def _haproxy(self, stand_by: bool, settings: dict[str, str]) -> list[str]:
        host, port = self._server["host"], self._server.get("port", 5432)
        target = f"unix@{host}/.s.PGSQL.{port}" if str(host).startswith("/") else f"{host}:{port}"
        times = {"connect": "5s", "client": "50s", "server": "50s", **settings}
        file = self._folder / "haproxy.cfg"
        file.write_text(
            "defaults\n mode tcp\n"
            + "".join(f" timeout {name} {value}\n" for name, value in times.items())
            + f"listen pg\n bind 127.0.0.1:{self._port}\n{self._rule} server s {target}\n"
        )
        return ["haproxy", "-f", str(file), "-db"]

    def stop(self) -> None:
        if self._process and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait(PATIENCE)
