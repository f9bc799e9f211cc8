"""The coordinator that is measured: `pgcoord serve`, a process of its own."""

import base64
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from pgcoord.bench.scratch import PATIENCE, Connection, statement
from pgcoord.errors import CannotStart


class Coordinator:
    """A running `pgcoord serve`."""

    def __init__(self, dsn: str, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.dsn = dsn
        self.folder = folder
        self.process = process

    def runs(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def last_words(self) -> str:
        """Return the last three lines of its log, joined to one, for an error message."""
        return " ".join(" ".join(self._said().splitlines()[-3:]).split()) or "it said nothing"

    def address(self) -> str:
        """Return "host:port" of its web server; block until its log names it.

        Raises `CannotStart` when it has ended, or after `PATIENCE`.
        """
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.runs():
            if match := re.search(r"serving on http://(\S+)\n", self._said()):
                return match[1]
            time.sleep(0.005)
        raise CannotStart(f"the coordinator serves nothing: {self.last_words()}")

    def _said(self) -> str:
        return (self.folder / "serve.log").read_text(encoding="utf-8", errors="replace")


@contextmanager
def serving(dsn: str, folder: Path, environment: Mapping[str, str]) -> Iterator[Coordinator]:
    """Start `pgcoord serve` on *dsn* in *folder*, and yield it without waiting until it serves.

    On exit it gets SIGTERM, and SIGKILL after 10 s.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pgcoord.toml").write_text(_configuration(folder), encoding="utf-8")
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pgcoord", "serve", "--config", "pgcoord.toml"],
            cwd=folder,
            env={**environment, "DATABASE_URL": dsn, "PGCOORD_BENCH_SECRET": secret()},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches us only: we stop it afterwards
        )
        try:
            yield Coordinator(dsn, folder, process)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()


def _configuration(folder: Path) -> str:
    """Return a pgcoord.toml with one workflow, whose processes do what `Chain` describes."""
    say_and_wait = 'echo "$PGCOORD_PHASE_NUMBER" >"$1"; read -r _ <"$2"'
    within = str(folder).replace("{", "{{").replace("}", "}}")
    command = [
        "sh",
        "-c",
        say_and_wait,
        "bench",
        f"{within}/started",
        f"{within}/gate-{{phase_number}}",
    ]
    return (
        '[server]\nport = 0\nwebhook_secrets = ["PGCOORD_BENCH_SECRET"]\n'
        f"[workflow.bench]\ndefault = true\ncommand = {json.dumps(command)}\n"
        f"[log]\nfolder = {json.dumps(str(folder / 'runs'))}\n"
    )


@cache
def secret() -> str:
    """Return the secret that signs our reports, the same throughout the process."""
    return f"whsec_{base64.b64encode(os.urandom(32)).decode()}"


def led_after(conn: Connection, coordinator: Coordinator, since: object) -> float:
    """Return the seconds from *since* until *coordinator* leads; block until then.

    Raises `CannotStart` when it has ended, or after `PATIENCE`.
    """
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if not coordinator.runs():
            raise CannotStart(f"the coordinator has ended: {coordinator.last_words()}")
        led = conn.execute(statement("led_after"), {"since": since}).fetchone()
        if led:
            return float(led[0])
        time.sleep(0.005)
    raise CannotStart(f"the coordinator does not lead: {coordinator.last_words()}")
