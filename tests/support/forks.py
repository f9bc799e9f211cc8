"""Start pgcoord as a process that forks from one that has imported it already.

Importing takes half a second of processor time, a fork a few milliseconds, and the tests start some
hundred programs. What a program does from its first line on is the same; only a test of the start
itself (arguments in other encodings, imports, a closed stdout) starts a new interpreter.
"""

import atexit
import gc
import importlib
import json
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

# What the program loads only when a command needs it.
_LOADED = (
    "pgcoord.__main__",
    *(
        f"pgcoord.commands.{path.stem}"
        for path in (Path(__file__).parents[2] / "pgcoord/commands").glob("[a-z]*.py")
    ),
    "pgcoord.coordination.coordinator",
    "pgcoord.database.embedded",
    "pgcoord.doctor",
    "pgcoord.github.client",
    "pgcoord.http.server",
    "pgcoord.planner.planning",
    "pgcoord.v1",
    "encodings.idna",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
)

_TESTS = str(Path(__file__).parents[1])

_WIDTH = 8  # of a number that the server sends

_server: "ForkServer | None" = None


class Fork:
    """A process, as `subprocess.Popen` shows one: its parent is the fork server."""

    def __init__(self, pid: int, end: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._end = end

    def poll(self) -> int | None:
        """Its exit status (a signal's as a negative number), or None while it runs."""
        try:
            return self._status(0.0)
        except BlockingIOError:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait up to *timeout* seconds for its end; return the exit status.

        Raise `subprocess.TimeoutExpired` when it still runs.
        """
        try:
            return self._status(timeout)
        except TimeoutError:
            raise subprocess.TimeoutExpired(["pgcoord"], timeout or 0) from None

    def end(self) -> None:
        """Kill it, if it still runs, and wait for its end."""
        self.send_signal(signal.SIGKILL)
        self.wait()

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it is known to have ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _status(self, timeout: float | None) -> int:
        if self.returncode is None:
            self._end.settimeout(timeout)
            self.returncode = int(self._end.recv(_WIDTH))
            self._end.close()
        return self.returncode


def run_forked(
    arguments: list[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    stdout: int | None = None,
    stderr: int | None = None,
) -> Fork:
    """Start `pgcoord` with *arguments* in *folder*; it reads nothing from stdin.

    *stdout* and *stderr* are descriptors, which the caller closes; None discards what is printed.
    """
    return _fork({"arguments": arguments}, folder, environment, stdout, stderr)


def run_forked_source(
    source: str, *, environment: Mapping[str, str] = os.environ, stdout: int = 1, stderr: int = 2
) -> Fork:
    """Start a program whose Python *source* is given, in the folder of the tests' own process."""
    return _fork({"source": source}, Path.cwd(), environment, stdout, stderr)


def _fork(
    job: dict[str, object],
    folder: Path,
    environment: Mapping[str, str],
    stdout: int | None,
    stderr: int | None,
) -> Fork:
    global _server
    if _server is None:
        _server = ForkServer()
        atexit.register(_server.close)
    job |= {"folder": str(folder), "environment": dict(environment)}
    with open(os.devnull, "wb") as nowhere:
        outputs = [nowhere.fileno() if each is None else each for each in (stdout, stderr)]
        return _server.fork(job, *outputs)


class ForkServer:
    """The process that forks; it ends with the one that started it."""

    def __init__(self) -> None:
        self._jobs, theirs = socket.socketpair()
        with theirs:
            program = f"from support import forks; forks.serve({theirs.fileno()})()"
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                env={**os.environ, "PYTHONPATH": _TESTS},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def fork(self, job: dict[str, object], stdout: int, stderr: int) -> Fork:
        ours, theirs = socket.socketpair()
        with theirs:
            line = json.dumps(job).encode() + b"\n"
            sent = socket.send_fds(self._jobs, [line], [theirs.fileno(), stdout, stderr])
            self._jobs.sendall(line[sent:])
        return Fork(int(ours.recv(_WIDTH)), ours)

    def close(self) -> None:
        self._jobs.close()
        self._process.wait()


def serve(descriptor: int) -> Callable[[], None]:
    """Fork for each job that comes on the socket *descriptor*, until that is closed.

    Return what is to be done then: nothing, and in a fork its job.
    """
    for name in _LOADED:
        importlib.import_module(name)
    gc.freeze()
    ends: dict[int, socket.socket] = {}
    woken, waking = socket.socketpair()
    waking.setblocking(False)
    signal.set_wakeup_fd(waking.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with (
        socket.socket(fileno=descriptor) as jobs,
        woken,
        waking,
        selectors.DefaultSelector() as selector,
    ):
        selector.register(jobs, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is woken:
                    woken.recv(4096)
                    _report_ends(ends)
                    continue
                line, descriptors, _, _ = socket.recv_fds(jobs, 1 << 16, 3)
                if not line:
                    return lambda: None
                while not line.endswith(b"\n"):
                    line += jobs.recv(1 << 16)
                end = socket.socket(fileno=descriptors[0])
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    for other in (end, *ends.values()):
                        other.close()
                    return _prepare(json.loads(line), *descriptors[1:])
                for each in descriptors[1:]:
                    os.close(each)
                ends[pid] = end
                end.sendall(b"%*d" % (_WIDTH, pid))


def _report_ends(ends: dict[int, socket.socket]) -> None:
    while ends:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with ends.pop(pid) as end, suppress(BrokenPipeError):  # nobody waits for it any more
            end.sendall(b"%*d" % (_WIDTH, os.waitstatus_to_exitcode(status)))


def _prepare(job: dict[str, Any], stdout: int, stderr: int) -> Callable[[], None]:
    """Make this fork look like a new interpreter; return its program."""
    for given, number in ((stdout, 1), (stderr, 2)):
        os.dup2(given, number)
        os.close(given)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    random.seed()
    sys.path.remove(_TESTS)
    lines = os.isatty(1)
    sys.stdout = open(  # noqa: SIM115 -- until its end
        1, "w", buffering=1 if lines else -1, encoding="utf-8", closefd=False
    )
    sys.stderr = open(  # noqa: SIM115
        2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )
    if "source" in job:
        code = compile(job["source"], "<source>", "exec")
        return partial(_run, partial(exec, code, {"__name__": "__main__"}))
    sys.argv = ["pgcoord", *job["arguments"]]
    return partial(_run, importlib.import_module("pgcoord.__main__").main)


def _run(program: Callable[[], object]) -> None:
    """Run *program*, and end at once where it ended in order.

    To take an interpreter apart that holds all of pgcoord costs more than what most programs do.
    """
    status = 0
    try:
        program()
    except SystemExit as ended:
        if not isinstance(ended.code, int | None):
            raise
        status = ended.code or 0
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # what the interpreter makes of that is to be seen
        sys.exit(status)
    os._exit(status & 0xFF)
