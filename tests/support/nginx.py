"""A real nginx before the server of a test."""

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import PATIENCE
from support.ports import free_port


@contextlib.contextmanager
def proxied(folder: Path, locations: str) -> Iterator[str]:
    """Start an nginx with these locations; yield its address."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed (Debian: apt-get install nginx-light)")
    port = free_port()
    (folder / "nginx").mkdir()
    file = folder / "nginx" / "nginx.conf"
    paths = " ".join(
        f"{each}_temp_path {folder}/nginx/{each};"
        for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file.write_text(
        f"daemon off; pid {folder}/nginx/pid; error_log {folder}/nginx/log; events {{}}\n"
        f"http {{ access_log off; {paths} server {{ listen 127.0.0.1:{port};\n{locations}\n}} }}\n"
    )
    command = [
        "nginx",
        "-p",
        str(folder / "nginx"),
        "-c",
        str(file),
        "-e",
        str(folder / "nginx/log"),
    ]
    process = subprocess.Popen(command)
    try:
        _await_start(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _await_start(port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        assert time.monotonic() < deadline
        time.sleep(0.02)
