"""What tests of psql share: a psql with a terminal, and one without a keyboard."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Self

from support import PATIENCE

COLUMNS = 80
PROMPT = re.compile(r"\n[a-z_0-9]+=[#>] $")
END = "the end of it\n"


def surroundings(dsn: str, home: Path) -> dict[str, str]:
    """The environment of a person at a terminal without a pager, whose database is `dsn`."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TERM": "dumb",
        "LANG": "C.UTF-8",
        "PSQL_PAGER": "cat",
        "DATABASE_URL": dsn,
    }


class Psql:
    """A running `pgcoord psql`, which prints to a terminal and so at once."""

    keyboard = False

    def __init__(self, environment: dict[str, str]) -> None:
        self._output, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pgcoord", "psql"],
            env=environment,
            stdin=theirs if self.keyboard else subprocess.PIPE,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        if self.process.stdin:
            self.process.stdin.close()
        self.process.wait(PATIENCE)
        os.close(self._output)

    def run(self, block: str) -> str:
        """Run a block of lines; return what is printed, stdout and stderr as one."""
        assert self.process.stdin
        self.process.stdin.write(f"{block}\\echo {END}".encode())
        self.process.stdin.flush()
        return self.until(re.compile(END)).removesuffix(END)

    def until(self, pattern: re.Pattern[str]) -> str:
        """Read on until what is printed from now on holds `pattern`."""
        text, deadline = "", time.monotonic() + PATIENCE
        while not pattern.search(text):
            left = max(0, deadline - time.monotonic())
            ready, _, _ = select.select([self._output], [], [], left)
            assert ready, f"nothing more after:\n{text}"
            text += os.read(self._output, 65536).decode(errors="replace").replace("\r", "")
        return text


class Terminal(Psql):
    """A psql at whose keyboard somebody sits."""

    keyboard = True

    def __enter__(self) -> Self:
        self.greeting = self.until(PROMPT)
        return self

    def type(self, line: str) -> list[str]:
        """Type a line; return the lines that are printed until the next prompt."""
        self.start(line)
        return self.until(PROMPT).split("\n")[1:-1]

    def start(self, line: str) -> None:
        """Type a line, after which no prompt may come for a while."""
        os.write(self._output, f"{line}\n".encode())

    def interrupt(self) -> None:
        """Do what Ctrl-C does, and wait for the prompt."""
        self.process.send_signal(signal.SIGINT)
        self.until(PROMPT)
