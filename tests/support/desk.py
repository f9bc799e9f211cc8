"""What tests of the command line share: the real program, started at a desk, and waiting for it.

What must wait waits for a line that a program prints, for a notification, or for an end of file.
"""

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import psycopg

from support import PATIENCE
from support.forks import run_forked

CONFIGURATION = """
[server]
port = 0

[workflow.sh]
command = ["sh", "-c", "{prompt}"]
default = true
"""


class _Executed(subprocess.Popen[bytes]):
    """A process that is ended as those of `run_forked` are."""

    def end(self) -> None:
        self.kill()
        self.wait(PATIENCE)


class Program:
    """A running pgcoord; `output` is what it has printed so far, stdout and stderr as one."""

    def __init__(
        self,
        folder: Path,
        environment: dict[str, str],
        *arguments: str,
        tty: bool,
        prefix: tuple[str, ...] | None = None,
    ) -> None:
        self.output = ""
        ours, theirs = pty.openpty() if tty else os.pipe()
        self._output = ours
        self._process = (
            run_forked(
                list(arguments),
                folder=folder,
                environment=environment,
                stdout=theirs,
                stderr=theirs,
            )
            if prefix is None
            else _Executed(
                [*prefix, sys.executable, "-m", "pgcoord", *arguments],
                cwd=folder,
                env=environment,
                stdin=theirs if tty else subprocess.DEVNULL,
                stdout=theirs,
                stderr=theirs,
            )
        )
        os.close(theirs)
        self.pid = self._process.pid

    def until(self, pattern: str) -> re.Match[str]:
        """Read on until what was printed, without a terminal's controls, matches `pattern`."""
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", self.output))):
            assert time.monotonic() < deadline, f"no {pattern!r}:\n{self.output}"
            assert self._read(), f"ended without {pattern!r}:\n{self.output}"
        return found

    def type(self, line: str) -> None:
        """Type a line at its terminal: for what was executed with one."""
        os.write(self._output, f"{line}\n".encode())

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """Read to the end, and return the exit status."""
        while self._read():
            pass
        return self._process.wait(PATIENCE)

    def close(self) -> None:
        self._process.end()
        os.close(self._output)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._output], [], [], PATIENCE)
        assert ready, f"silent for {PATIENCE} s:\n{self.output}"
        try:
            some = os.read(self._output, 65536)
        except OSError:  # how the end of a terminal shows
            return False
        self.output += some.decode(errors="replace")
        return bool(some)


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def address_of(program: Program) -> str:
    """Where a `pgcoord serve` is found: host and port."""
    return program.until(r"serving on http://(\S+)")[1]


class Desk:
    """A folder with a pgcoord.toml, from which programs are started."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "TERM": "xterm-256color",
            **environment,
        }
        self._programs: list[Program] = []
        self._gates: list[Path] = []
        self.write("pgcoord.toml", CONFIGURATION)

    def write(self, name: str, text: str) -> str:
        (self.folder / name).write_text(text)
        return name

    def plan(self, *prompts: str, name: str = "plan.md", depends_on: str | None = None) -> str:
        """Write a plan whose phases run these shell commands, each after the one before it."""
        keys = f"Depends on: {depends_on}\n\n" if depends_on else ""
        phases = [
            f"## Phase {number}: Step {number}\n{keys}{prompt}\n"
            for number, prompt in enumerate(prompts, 1)
        ]
        return self.write(name, "\n".join(["# A plan\n", *phases]))

    def gate(self, name: str = "gate") -> Path:
        """Make what `cat` waits for until it is opened."""
        path = self.folder / name
        os.mkfifo(path)
        self._gates.append(path)
        return path

    def start(self, *arguments: str, tty: bool = False, **environment: str) -> Program:
        program = Program(self.folder, self.environment | environment, *arguments, tty=tty)
        self._programs.append(program)
        return program

    def execute(
        self, *arguments: str, prefix: tuple[str, ...] = (), tty: bool = False, **environment: str
    ) -> Program:
        """Start it with an interpreter of its own, by the command `prefix` if there is one.

        For what a fork does not have: an environment in its memory, a locale from its start, a
        keyboard (*tty*).
        """
        given = self.environment | environment
        program = Program(self.folder, given, *arguments, tty=tty, prefix=prefix)
        self._programs.append(program)
        return program

    def call(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        done = self.call_for_bytes(*arguments, **environment)
        return subprocess.CompletedProcess(
            arguments, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    def call_for_bytes(
        self, *arguments: str, **environment: str
    ) -> subprocess.CompletedProcess[bytes]:
        with TemporaryFile() as stdout, TemporaryFile() as stderr:
            program = run_forked(
                list(arguments),
                folder=self.folder,
                environment=self.environment | environment,
                stdout=stdout.fileno(),
                stderr=stderr.fileno(),
            )
            try:
                status = program.wait(PATIENCE)
            finally:
                program.end()
            return subprocess.CompletedProcess(
                arguments, status, _content(stdout), _content(stderr)
            )

    def say(self, *arguments: str, **environment: str) -> str:
        """Call what is to succeed without a word on stderr; return what it printed."""
        done = self.call(*arguments, **environment)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout.strip()

    def close(self) -> None:
        for program in self._programs:
            program.close()
        for gate in self._gates:
            try:
                opened = os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # nobody waits there
                continue
            gate.unlink()  # before its end is seen: a script that waits there again would for ever
            os.close(opened)


def until(dsn: str, condition: str) -> None:
    """Wait until the database says so: look whenever it notifies, and five times a second."""
    deadline = time.monotonic() + PATIENCE
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("listen pgcoord_event")
        while conn.execute(f"select {condition}".encode()).fetchone() != (True,):
            left = deadline - time.monotonic()
            assert left > 0, condition
            # One that came with the end of the statement is not seen by `notifies`.
            if not conn.pgconn.notifies():
                list(conn.notifies(timeout=min(left, 0.2), stop_after=1))
