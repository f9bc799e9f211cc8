"""Starts a command once, watches it, ends it; keeps the exit status, whichever process is killed.

A run is one attempt and one folder on a local disk. Its state is one file, `status`. The wrapper, a
few lines of shell, has it open as its standard input, and writes two lines to it: its pid and start
time, then the command's exit status. Two locks (flock, which the kernel releases when the last
holder is gone) make the state unambiguous, at whichever moment a process is killed:

- on `status`: the wrapper holds it until its end, and its command does not. Held means alive;
- on the folder: a starter holds it until its wrapper has written its pid, or both are dead. A
  reader waits for it, about a millisecond, and so never sees half a start.

The one rule: never signal a process that this run did not start. This module uses no database,
keeps no state in memory that is not in the folder, and no process ends because this program does.
"""

import asyncio
import errno
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from pgcoord.configuration import results
from pgcoord.coordination.launching import JobState
from pgcoord.errors import CannotStart, InvalidInput
from pgcoord.messages import plain_files
from pgcoord.runs.account import Account
from pgcoord.runs.logs import Log
from pgcoord.runs.process import Process

if sys.platform == "linux":
    from pgcoord.runs import linux as system
else:
    from pgcoord.runs import macos as system

# Bytes that `status` gets before the start. The exit status overwrites them in place, so it needs
# no space on a disk that is full by then (except on copy-on-write file systems such as btrfs).
_ROOM = 128

# The content of `status` when the run was given up, instead of the wrapper's lines.
_GIVEN_UP = b"given up\n"

# The modification time, in ns, of the status file of a run that was given up: a disk that is full
# can store it, and once there is room again nobody starts a run whose attempt has ended.
_GIVEN_UP_AT = 0

# Seconds to wait after SIGKILL, which only a process in an uninterruptible system call survives.
_DEATH = timedelta(seconds=5)

# Seconds that a start may take, which takes a millisecond: a process that holds the folder's lock
# for longer is frozen, or is the phase itself.
_START = 10.0

# While ending, in seconds: the longest time to detect a new process; and the time after which to
# repeat a signal to a command that was not running yet when the first was sent.
_ROUND = 1.0
_BEGINNING = 0.01

_MARKER = "PGCOORD_PROMPT_FILE"

_PROMPT = "prompt.md"
_INPUTS = "inputs.json"
_RESULT = "result.json"
_STATUS = "status"

_SHELL = "/bin/sh"


@dataclass(frozen=True)
class LeftBehind:
    """A living process of a run, besides its wrapper."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid})"


class _Record(NamedTuple):
    """The lines that a wrapper has written so far."""

    pid: int | None = None
    started: str = ""
    exit_status: int | None = None
    given_up: bool = False


class Run:
    """One attempt at a phase: the processes of one command, and the folder with their state."""

    def __init__(self, folder: Path, pid: int | None = None, started: str | None = None) -> None:
        """Refer to the run in *folder*; *pid* and *started* of its wrapper, if known.

        Neither opens nor creates anything.
        """
        # Resolved, since the path also marks the processes and has to be the same each time; except
        # its last part, which the phase could replace by a link to another folder.
        self.folder = folder.parent.resolve() / folder.name
        self.log = Log(self.folder)
        self.prompt_file = self.folder / _PROMPT
        self._known = _Record(pid, started) if pid and started else _Record()
        self._stayed: set[tuple[int, str]] = set()

    def prepare(self, prompt: str, inputs: str = "{}", account: Account | None = None) -> None:
        """Create the folder, with the prompt and the input file in it; idempotent. Blocks.

        *inputs*: a JSON object. Processes of *account* can read both, and add files to the folder,
        but not replace ours. Raises `CannotStart` when the account has no access, and `OSError`.
        """
        plain_files.make_private(self.folder)
        plain_files.write_plain(self.folder, _PROMPT, prompt.encode())
        plain_files.write_plain(self.folder, _INPUTS, inputs.encode())
        if account:
            account.share(self.folder, (_PROMPT, _INPUTS))

    def result(self) -> str | None:
        """Return the text of the result file; None if the command wrote none. Blocks.

        Raises `InvalidInput` when it is not a plain file of UTF-8 text of at most 204 kB.
        """
        try:
            content = plain_files.read_plain(self.folder, _RESULT, results.FILE_LIMIT + 1)
            text = content.decode()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except UnicodeDecodeError as error:
            raise InvalidInput(f"it is not UTF-8 at byte {error.start}") from error
        except OSError as error:
            raise InvalidInput(error.strerror or str(error)) from error
        if len(content) > results.FILE_LIMIT:
            raise InvalidInput("it has more than 204 kB")
        if "\0" in text or not text.strip():
            raise InvalidInput("it is empty" if not text.strip() else "it is not JSON")
        return text

    def start(
        self,
        command: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        account: Account | None = None,
    ) -> None:
        """Start *command* in *directory*; at most once for a folder, however often it is called.

        Blocks for 1-2 ms, until the wrapper runs. The command gets its arguments unchanged, in a
        session of its own, with no input, its output in `log`, and *environment* with the paths
        of its files (PWD, OLDPWD, SHLVL and _ belong to shells and are not passed on). It
        runs as *account*, None: as this process.
        Raises `CannotStart` when the run was started before, or the command cannot be executed;
        nothing was started then.
        """
        words = _resolve(command, directory, environment)
        try:
            plain_files.make_private(self.folder)
            with (
                self._starting() as starting,
                plain_files.opened(self.folder, _STATUS, os.O_RDWR | os.O_CREAT) as status,
                self.log.open_for_command() as log,
            ):
                self._claim(status)
                if os.pwrite(status, b" " * _ROOM, 0) < _ROOM:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), _STATUS)
                wrapper = subprocess.Popen(
                    [_SHELL, "-c", _WRAPPER, "pgcoord", *words],
                    stdin=status,
                    stdout=log,
                    stderr=starting,
                    cwd=directory,
                    env={
                        **environment,
                        _MARKER: str(self.prompt_file),
                        "PGCOORD_INPUT_FILE": str(self.folder / _INPUTS),
                        "PGCOORD_RESULT_FILE": str(self.folder / _RESULT),
                    },
                    start_new_session=True,
                    **(account.identity if account else {}),
                )
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CannotStart(f"cannot start {command[0]} in {directory}: {reason}") from error
        # Mark it as reaped: otherwise Popen warns in __del__, and reaps a process that outlives us.
        wrapper.returncode = 0
        self._known = _Record(wrapper.pid, system.start_time(wrapper.pid) or "")

    def give_up(self) -> bool:
        """Prevent every later start; return False if it was started, or given up, before.

        Blocks like `start`.
        """
        try:
            plain_files.make_private(self.folder)
            with (
                self._starting(),
                plain_files.opened(self.folder, _STATUS, os.O_RDWR | os.O_CREAT) as status,
            ):
                self._claim(status)
                with suppress(OSError):  # for people
                    os.pwrite(status, _GIVEN_UP, 0)
                os.utime(status, ns=(_GIVEN_UP_AT, _GIVEN_UP_AT))
                fcntl.flock(status, fcntl.LOCK_UN)  # see _is_locked
                return True
        except CannotStart:
            return False
        except OSError:  # if we cannot write, no process can start the run either
            return self.state() is JobState.NEVER_STARTED

    def state(self) -> JobState:
        """Return the state of the run; blocks during a start, about a millisecond."""
        record, alive = self._look()
        if self._exit_status(record) is not None:
            return JobState.ENDED
        if alive:
            return JobState.ALIVE
        if record.given_up:
            return JobState.GIVEN_UP
        return JobState.NEVER_STARTED if record.pid is None else JobState.LOST

    @property
    def pid(self) -> int | None:
        """The wrapper's pid, also the id of its process group and session; None if not started."""
        return self._identity().pid

    @property
    def process_started(self) -> str | None:
        """The wrapper's start time, an opaque text: unique together with the pid."""
        return self._identity().started or None

    @property
    def exit_status(self) -> int | None:
        """The command's exit status, 128 + n after signal n; None before its end, or if lost."""
        status = self._known.exit_status
        return self._look()[0].exit_status if status is None else status

    def exited_at(self) -> float | None:
        """Return when the exit status was written, in seconds of `time.time`; None if it is not."""
        with suppress(OSError), plain_files.opened(self.folder, _STATUS) as status:
            if _read(status).exit_status is not None:
                return os.fstat(status).st_mtime
        return None

    async def wait(self) -> int | None:
        """Wait until the wrapper is gone, and return the exit status; None when it is lost.

        Uses no CPU while it waits; any number of callers, in any process, may wait. Cancelling does
        not affect the run. Returns None at once if the run was never started.
        """
        identity = self._identity()
        if identity.pid is not None:
            with suppress(ProcessLookupError), system.watched(identity.pid) as watch:
                if self._is_visible():
                    await _readable(watch)
        # Alive, but invisible here: in another container on the same folder. Its lock is the only
        # sign of it, and a lock can only be polled.
        while not self._reap() and await self._is_alive_elsewhere():  # noqa: ASYNC110
            await asyncio.sleep(1)
        if self._known.exit_status is not None:
            return self._known.exit_status
        return (await asyncio.to_thread(self._look))[0].exit_status

    async def end(self, grace: timedelta) -> list[LeftBehind]:
        """Send SIGTERM to the process group; after *grace*, SIGKILL to the rest of the session.

        The wrapper gets no SIGKILL, so that it writes the exit status. Returns once they are gone,
        at the latest 5 s after SIGKILL, with the processes left behind, which have moved to a
        session of their own. Never raises for a run that has ended or never started.
        """
        await asyncio.to_thread(self._look)  # a wrapper that has written its pid has set its traps
        await self._end(self._session, grace)
        self._reap()
        return await asyncio.to_thread(self.left_behind)

    async def end_left_behind(self, grace: timedelta) -> list[LeftBehind]:
        """Send SIGTERM, after *grace* SIGKILL, to the processes left behind; return them."""
        processes = await asyncio.to_thread(self.left_behind)
        if processes:
            await self._end(self._others, grace)
        return processes

    def left_behind(self) -> list[LeftBehind]:
        """Return the living processes of this run, except its wrapper; blocks some milliseconds.

        These are the processes of its session and, where the system shows environments, those in
        any session whose environment has its prompt file.
        """
        return [
            LeftBehind(process.pid, system.command_line(process.pid)) for process in self._others()
        ]

    @contextmanager
    def _starting(self) -> Iterator[int]:
        """Hold the folder's lock. Raises `CannotStart` when another process holds it too long."""
        folder = plain_files.open_folder(self.folder)
        try:
            deadline = time.monotonic() + _START
            while not _lock(folder):
                if time.monotonic() > deadline:
                    raise CannotStart(
                        f"the start of the run in {self.folder} is not over after {_START:.0f} s:"
                        " something holds a lock on that folder"
                    )
                time.sleep(0.0005)
            yield folder
        finally:
            os.close(folder)

    def _claim(self, status: int) -> None:
        """Take the lock that the wrapper will inherit.

        Raises `CannotStart` if the run was started, or given up, before.
        """
        with suppress(BlockingIOError):
            fcntl.flock(status, fcntl.LOCK_EX | fcntl.LOCK_NB)
            record = _read(status)
            if record.given_up:
                raise CannotStart(f"the run in {self.folder} was given up")
            if record.pid is None:
                return
        raise CannotStart(f"the run in {self.folder} was started before")

    def _look(self) -> tuple[_Record, bool]:
        """Return (the record, whether the wrapper is alive); empty if `status` is not a plain file.

        Waits until a start in progress is over. Raises `CannotStart` when that takes too long,
        unless the wrapper is known: then the phase itself holds the lock.
        """
        try:
            record, alive = self._read_status()
            if record.pid is None and not record.given_up:
                with self._starting():
                    record, alive = self._read_status(is_starting=True)
        except CannotStart:
            if self._known.pid is None:
                raise
            return _Record(), False
        except (FileNotFoundError, NotADirectoryError, PermissionError, plain_files.NotPlain):
            return _Record(), False
        if self._known.pid is None:
            self._known = record
        return record, alive

    def _read_status(self, *, is_starting: bool = False) -> tuple[_Record, bool]:
        try:
            with plain_files.opened(self.folder, _STATUS) as status:
                record = _read(status)
                # Testing the lock means holding it for a moment, in which a start would fail.
                alive = (is_starting or record.pid is not None) and _is_locked(status)
                return (_read(status) if record.pid else record), alive
        except FileNotFoundError:
            return _Record(), False

    def _identity(self) -> _Record:
        if self._known.pid is None:
            self._look()
        return self._known

    def _exit_status(self, record: _Record) -> int | None:
        """Return the status that waitpid returned, else the one in the folder."""
        status = self._known.exit_status
        return record.exit_status if status is None else status

    def _is_visible(self) -> bool:
        identity = self._identity()
        return identity.pid is not None and system.start_time(identity.pid) == identity.started

    async def _is_alive_elsewhere(self) -> bool:
        return await asyncio.to_thread(self.state) is JobState.ALIVE

    def _reap(self) -> bool:
        """Reap the wrapper if it is our child and has ended; return whether it was reaped."""
        identity = self._identity()
        if identity.pid is None or not self._is_visible():
            return False
        try:
            pid, status = os.waitpid(identity.pid, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid:
            code = os.waitstatus_to_exitcode(status)
            self._known = _Record(identity.pid, identity.started, code if code >= 0 else 128 - code)
            self._stayed = _members(identity.pid, identity.started)
        return bool(pid)

    def _living(self) -> list[Process]:
        """Return all living processes of this run, including its wrapper.

        The id of a session is not reused while it has a member. So the whole session is ours if one
        member is: one that is marked, the wrapper itself, even as a zombie, or one that was there
        when the wrapper was reaped. Without one it may be another program's.
        """
        identity = self._identity()
        if not identity.started:
            return []
        younger = system.started_since(identity.started, f"{_MARKER}={self.prompt_file}")
        sure = {(identity.pid, identity.started), *self._stayed}
        ours = any(
            one.session == identity.pid and (one.marked or (one.pid, one.started) in sure)
            for one in younger
        )
        return [
            one
            for one in younger
            if one.living and (one.marked or (ours and one.session == identity.pid))
        ]

    def _session(self) -> list[Process]:
        return [one for one in self._living() if one.session == self.pid]

    def _others(self) -> list[Process]:
        return [one for one in self._living() if one.pid != self.pid]

    async def _end(self, find: Callable[[], list[Process]], grace: timedelta) -> None:
        """Send SIGTERM, after *grace* SIGKILL, to the processes of *find*, until it returns none.

        Each signal is sent once to each process.
        """
        for signal_sent, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, _DEATH)):
            signalled: set[int] = set()
            with suppress(TimeoutError):
                async with asyncio.timeout(patience.total_seconds()):
                    while processes := await asyncio.to_thread(find):
                        targets = set(self._targets(processes, signal_sent))
                        begun = self._has_begun(
                            processes
                        )  # first: a command that begins now is signalled again
                        _signal(targets - signalled, signal_sent)
                        signalled |= targets if begun else set()
                        await _all_gone(processes, _ROUND if begun else _BEGINNING)
                    return

    def _has_begun(self, processes: Sequence[Process]) -> bool:
        """Return whether the command was executed: before that, its signals reach the wrapper only.

        Between fork and exec it has the wrapper's command line, and then none.
        """
        wrapper = system.command_line(self.pid or 0)
        return not wrapper or any(
            system.command_line(one.pid) not in ("", wrapper) for one in processes
        )

    def _targets(self, processes: Sequence[Process], signal_sent: signal.Signals) -> Iterator[int]:
        """Yield the arguments of kill(2) that reach all of *processes*.

        SIGTERM goes to the wrapper's whole group, so that a child forked meanwhile is not missed;
        the wrapper survives it. SIGKILL must not reach the wrapper, which has a status to write.
        """
        for one in processes:
            if signal_sent == signal.SIGTERM and one.group == self.pid:
                yield -one.group
            elif one.pid != self.pid:
                yield one.pid


def _resolve(
    command: Sequence[str], directory: Path, environment: Mapping[str, str]
) -> tuple[str, ...]:
    """Return *command* with the full path of its program, resolved in *directory*.

    A path with a slash is never a builtin of the shell, such as `exit` or `eval`.
    """
    if not os.path.isdir(directory):
        raise CannotStart(f"cannot start in {directory}: no such directory")
    for name in environment:
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
            raise CannotStart(f"no shell passes on an environment variable named {name!r}")
    if not command:
        raise CannotStart("cannot start an empty command")
    name = os.path.join(directory.absolute(), command[0]) if "/" in command[0] else command[0]
    places = environment.get("PATH", os.defpath).split(os.pathsep)
    path = os.pathsep.join(os.path.join(directory.absolute(), place) for place in places)
    program = shutil.which(name, path=path)
    if program is None:
        there = shutil.which(name, mode=os.F_OK, path=path)
        raise CannotStart(
            f"cannot start {command[0]}: {there} is not executable"
            if there
            else f"cannot start {command[0]}: not found in {path if name == command[0] else name}"
        )
    return (program, *command[1:])


def _lock(descriptor: int) -> bool:
    """Take the lock on an open folder; return False if it is not free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    # Not left to close(): a child that another thread is forking now has the descriptor too.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _read(status: int) -> _Record:
    text = os.pread(status, _ROOM, 0)
    wrote = re.match(rb"(\d+) (.+)\n(?:(\d+)\n)?", text)
    if wrote is None:
        is_marked = os.fstat(status).st_mtime_ns == _GIVEN_UP_AT
        return _Record(given_up=is_marked or text.startswith(_GIVEN_UP))
    pid, started, exit_status = wrote.groups()
    return _Record(int(pid), started.decode(), None if exit_status is None else int(exit_status))


def _members(session: int, started: str) -> set[tuple[int, str]]:
    """Return the members of the session of a wrapper that was reaped just now."""
    try:
        os.killpg(session, 0)
    except OSError:  # almost always: nobody is
        return set()
    return {
        (one.pid, one.started)
        for one in system.started_since(started, "")
        if one.session == session
    }


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)


async def _all_gone(processes: Sequence[Process], seconds: float) -> None:
    """Wait until all *processes* are gone, at most *seconds*."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            for process in processes:
                with suppress(ProcessLookupError), system.watched(process.pid) as watch:
                    await _readable(watch)


def _signal(targets: set[int], signal_sent: signal.Signals) -> None:
    for target in targets:
        # Gone, or by now another user's: the next search decides.
        with suppress(ProcessLookupError, PermissionError):
            os.kill(target, signal_sent)
            os.kill(target, signal.SIGCONT)  # a stopped process does not handle signals


# The traps let the wrapper survive the signals to its group; as they are handlers, the command gets
# the default of each signal. `exec 2>&1` releases the folder's lock once the pid is written. If it
# could not be written, the wrapper exits without running the command.
_WRAPPER = f"""trap : HUP INT QUIT TERM USR1 USR2{system.RECORD}
exec 2>&1
unset PWD OLDPWD SHLVL _ pgcoord
"$@" </dev/null
set -- $?
echo $1 >&0
exit $1"""
