"""Follow a document as a newcomer does: paste each block in order, and compare what it prints.

Blocks of `sh` go to a shell, of `sql` to `pgcoord psql`; a block of `text` below one is what it
prints. `<!-- in a second terminal -->` above a block has it run beside the ones that follow.
Values that differ between runs are normalized: times, lengths, addresses, the home.
"""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from support.ports import free_port

BLOCK_TIMEOUT = 900  # seconds for a block: one of them installs what pgcoord needs

BESIDE = "<!-- in a second terminal -->"

_FENCED = re.compile(
    rf"^(?P<beside>{re.escape(BESIDE)}\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$"
    r"(?:\n\n```text\n(?P<printed>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)

_ALIKE = (
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME"),
    (r"\b\d\d:\d\d:\d\d\b", "TIME"),
    (r"\b\d+ min \d\d s\b|\b\d+(\.\d)? (s|min)\b", "LENGTH"),
    (r"127\.0\.0\.1:\d+|localhost:\d+", "ADDRESS"),
    (r"process \d+ on \S+", "PROCESS"),
    (r" \((slot \d+|slot \d+, )\)", ""),
    (r"\bslot \d\b", "SLOT"),
    (r"[ \t]+", " "),
)


@dataclass(frozen=True)
class Block:
    """Code of a document, and its expected output, if the document has one."""

    language: str
    code: str
    printed: str | None
    beside: bool


def blocks_of(document: Path) -> Iterator[Block]:
    """The fenced blocks of a document, in order."""
    for match in _FENCED.finditer(document.read_text()):
        yield Block(match["language"], match["code"], match["printed"], bool(match["beside"]))


class Newcomer:
    """A shell in which `cd` and `export` last from one block to the next."""

    def __init__(self, home: Path, path: str, start: Path) -> None:
        home.mkdir(exist_ok=True)
        self.home = home
        self._state = home / ".state"
        self._state.write_text(f"cd {start}\n")
        self._environment = {"HOME": str(home), "PATH": path, "TERM": "dumb", "LANG": "C.UTF-8"}
        self._port = str(free_port())
        self._beside: list[subprocess.Popen[str]] = []

    def paste(self, block: Block) -> str:
        """Run a block; return what it printed. It has to succeed."""
        code = block.code.replace("8002", self._port)
        if block.language == "sql":
            code = f"pgcoord psql -v ON_ERROR_STOP=1 <<'END'\n{code}END\n"
        if block.beside:
            return self._start_beside(code)
        keep = f"{{ export -p; printf 'cd %q\\n' \"$PWD\"; }} > {self._state}"
        done = self._run(f"set -e; . {self._state}\n{code}\n{keep}\n")
        output = done.communicate(timeout=BLOCK_TIMEOUT)[0]
        assert done.returncode == 0, f"{block.code}\nended with {done.returncode}:\n{output}"
        return output

    def compare(self, block: Block) -> None:
        """Run a block, and assert that it prints what the document says."""
        said = self.paste(block)
        if block.printed is not None:
            assert self._alike(said) == self._alike(block.printed), f"{block.code}\nprints:\n{said}"

    def follow(self, document: Path) -> int:
        """Run every code block of a document; return their number."""
        found = [each for each in blocks_of(document) if each.language in ("sh", "sql")]
        for each in found:
            self.compare(each)
        return len(found)

    def close(self) -> None:
        """End what was started, the embedded Postgres, too."""
        for each in self._beside:
            each.send_signal(signal.SIGTERM)
            each.communicate(timeout=BLOCK_TIMEOUT)
        self._beside.clear()
        for state in self.home.glob("**/.pgcoord"):
            with suppress(AssertionError):
                self.paste(Block("sh", f"cd {state.parent} && pgcoord db stop", None, False))

    def _start_beside(self, code: str) -> str:
        code = code.replace("pgcoord serve", f"exec pgcoord serve --port {self._port}")
        started = self._run(f". {self._state}\n{code}")
        self._beside.append(started)
        said = ""
        assert started.stdout is not None
        while "serving on" not in said:
            line = started.stdout.readline()
            assert line, f"{code}\nended:\n{said}"
            said += line
        return said

    def _run(self, code: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "--noprofile", "--norc", "-c", code],
            env=self._environment,
            cwd=self.home,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def _alike(self, text: str) -> list[str]:
        """The lines of a text without what differs; phases that run at once end in any order."""
        text = text.replace(str(self.home), "/home/ada")
        for pattern, word in _ALIKE:
            text = re.sub(pattern, word, text)
        return sorted(line.strip() for line in text.splitlines() if line.strip())


def path_with(folder: Path | str) -> str:
    """The search path with a folder before the others."""
    return f"{folder}{os.pathsep}{os.environ['PATH']}"
