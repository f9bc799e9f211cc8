"""Starts a command once, watches it, ends it; the exit status is kept, whatever is killed when.

A run is one attempt and one folder on a local disk. What is known of it is one file, `status`.
The wrapper, a few lines of shell, holds it open as its standard input, and writes two lines to it:
its pid and start time, then the command's exit status. Two locks (flock: the kernel drops one when
the last who holds it is gone) leave no moment at which a kill would raise a doubt:

- on `status`: held by the wrapper for its life, and not by its command. Held means alive;
- on the folder: held by a starter until its wrapper has written its pid, or both are dead. Who
  looks at a run waits for it, about a millisecond, and so never sees half a start.

The one rule: what this run did not start is never signalled. There is no database here, nothing
kept in memory that is not in the folder, and no process ends because this program does.
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

from pgcoord.coordination.launching import JobState
from pgcoord.errors import CannotStart
from pgcoord.runs import files
from pgcoord.runs.account import Account
from pgcoord.runs.logs import Log
from pgcoord.runs.process import Process

if sys.platform == "linux":
    from pgcoord.runs import linux as system
else:
    from pgcoord.runs import macos as system

# Bytes that `status` gets before anything is started: written over in place later, an exit status
# needs no room on a disk that is full by then (but for file systems that always copy, as btrfs).
_ROOM = 128

# What `status` holds instead of the wrapper's lines where there is never to be one.
_GIVEN_UP = b"given up\n"

# After KILL only a process inside an uninterruptible system call stays; none is waited for longer.
_DEATH = timedelta(seconds=5)

# Seconds that a start may take, which takes a millisecond: whoever holds the folder's lock for
# longer is frozen, or is the phase itself.
_START = 10.0

# While ending: how long after it was forked a process is noticed at the latest, in seconds; and
# after what time a command is signalled again that was not yet running when it was signalled.
_ROUND = 1.0
_BEGINNING = 0.01

_MARKER = "PGCOORD_PROMPT_FILE"

_PROMPT = "prompt.md"
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
    """What a wrapper wrote so far."""

    pid: int | None = None
    started: str = ""
    exit_status: int | None = None
    given_up: bool = False


class Run:
    """One attempt at a phase: the processes of one command, and the folder that tells of them."""

    def __init__(self, folder: Path, pid: int | None = None, started: str | None = None) -> None:
        """Name the run in *folder*, with its wrapper where that is known from elsewhere, too."""
        # Resolved, for the path is also what marks the processes: it has to be the same each time.
        # But for the last part, which the phase could make a link to another folder.
        self.folder = folder.parent.resolve() / folder.name
        self.log = Log(self.folder)
        self.prompt_file = self.folder / _PROMPT
        self._known = _Record(pid, started) if pid and started else _Record()
        self._stayed: set[tuple[int, str]] = set()

    def prepare(self, prompt: str, account: Account | None = None) -> None:
        """Make the folder and the prompt file in it; once more does no harm. Blocks.

        With an *account* its processes can read the prompt, and add files to the folder, but not
        replace ours. Raises `CannotStart` when it could not come there, `OSError`.
        """
        _make_private(self.folder)
        files.write_plain(self.folder, _PROMPT, prompt.encode())
        if account:
            account.share(self.folder, _PROMPT)

    def start(
        self,
        command: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        account: Account | None = None,
    ) -> None:
        """Start *command* in *directory*; once in the folder's life, whoever tries, however often.

        Blocks for 1-2 ms, until the wrapper runs. The command gets its arguments as they are, in a
        session of its own, with no input, its output in `log`, and *environment* with the path
        of the prompt file (PWD, OLDPWD, SHLVL and _ belong to shells and are not passed on). With
        an *account* it runs as that one, else as ourselves.
        Raises `CannotStart` when the run was started before, and for everything about the
        command that can be known before; nothing counts as started then.
        """
        words = _resolve(command, directory, environment)
        try:
            _make_private(self.folder)
            with (
                self._starting() as starting,
                files.opened(self.folder, _STATUS, os.O_RDWR | os.O_CREAT) as status,
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
                    env={**environment, _MARKER: str(self.prompt_file)},
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
        """Have it never started, whoever tries from now on; False where it was, or was given up.

        Blocks like `start`.
        """
        try:
            _make_private(self.folder)
            with (
                self._starting(),
                files.opened(self.folder, _STATUS, os.O_RDWR | os.O_CREAT) as status,
            ):
                self._claim(status)
                os.pwrite(status, _GIVEN_UP, 0)
                fcntl.flock(status, fcntl.LOCK_UN)  # see _is_locked
                return True
        except CannotStart:
            return False
        except OSError:  # where nothing can be written, nothing can be started either
            return self.state() is JobState.NEVER_STARTED

    def state(self) -> JobState:
        """Tell how the run stands; blocks while a start of it is under way, about a millisecond."""
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
        """The wrapper's pid, which is also its process group and session; None if never started."""
        return self._identity().pid

    @property
    def process_started(self) -> str | None:
        """The wrapper's start time, as a text to compare: no other process has it with this pid."""
        return self._identity().started or None

    @property
    def exit_status(self) -> int | None:
        """The command's exit status, 128 + n after signal n; None while there is none, or lost."""
        known = self._known.exit_status
        return self._look()[0].exit_status if known is None else known

    async def wait(self) -> int | None:
        """Wait until the wrapper is gone, and return the exit status; None when it is lost.

        Costs nothing while it waits; any number may wait, in any process. Cancelling it leaves the
        run alone. Returns None at once when there is nothing to wait for.
        """
        known = self._identity()
        if known.pid is not None:
            with suppress(ProcessLookupError), system.watched(known.pid) as watch:
                if self._is_visible():
                    await _readable(watch)
        # Alive, and not to be seen: it is in another container on the same folder. Only its lock
        # tells of it here, and a lock can only be asked.
        while not self._reap() and await self._is_alive_elsewhere():  # noqa: ASYNC110
            await asyncio.sleep(1)
        if self._known.exit_status is not None:
            return self._known.exit_status
        return (await asyncio.to_thread(self._look))[0].exit_status

    async def end(self, grace: timedelta) -> list[LeftBehind]:
        """TERM the run's process group, KILL what is left of its session after *grace*.

        The wrapper is spared, so that it still writes the status of the command that was killed.
        Returns once they are gone, at the latest 5 s after the KILL, with the processes left
        behind: those which put themselves into a session of their own. Never raises for a run that
        has ended or never started.
        """
        await asyncio.to_thread(self._look)  # a wrapper that has written its pid has set its traps
        await self._end(self._session, grace)
        self._reap()
        return await asyncio.to_thread(self.left_behind)

    async def end_left_behind(self, grace: timedelta) -> list[LeftBehind]:
        """TERM what the run left behind, KILL what stays after *grace*; return what there was."""
        found = await asyncio.to_thread(self.left_behind)
        if found:
            await self._end(self._others, grace)
        return found

    def left_behind(self) -> list[LeftBehind]:
        """Find the living processes of this run, besides its wrapper; blocks a few milliseconds.

        They are those of its session, and where the system shows environments, those with its
        prompt file in theirs, wherever they put themselves.
        """
        return [LeftBehind(found.pid, system.command_line(found.pid)) for found in self._others()]

    @contextmanager
    def _starting(self) -> Iterator[int]:
        """Hold the folder's lock, once nobody is in the middle of a start.

        Raises `CannotStart` when somebody is for too long.
        """
        folder = files.open_folder(self.folder)
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
        """Take the lock that the wrapper will hold; raise if the run was started, or given up."""
        with suppress(BlockingIOError):
            fcntl.flock(status, fcntl.LOCK_EX | fcntl.LOCK_NB)
            record = _read(status)
            if record.given_up:
                raise CannotStart(f"the run in {self.folder} was given up")
            if record.pid is None:
                return
        raise CannotStart(f"the run in {self.folder} was started before")

    def _look(self) -> tuple[_Record, bool]:
        """Read the record, and whether the wrapper lives; what is no plain file tells nothing.

        Waits until a start that is under way is over. Raises `CannotStart` when that takes too
        long, unless the wrapper is known: then it is the phase that holds the lock.
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
        except (FileNotFoundError, NotADirectoryError, PermissionError, files.NotPlain):
            return _Record(), False
        if self._known.pid is None:
            self._known = record
        return record, alive

    def _read_status(self, *, is_starting: bool = False) -> tuple[_Record, bool]:
        try:
            with files.opened(self.folder, _STATUS) as status:
                record = _read(status)
                # To look at the lock is to hold it for a moment, at which a starter would fail.
                alive = (is_starting or record.pid is not None) and _is_locked(status)
                return (_read(status) if record.pid else record), alive
        except FileNotFoundError:
            return _Record(), False

    def _identity(self) -> _Record:
        if self._known.pid is None:
            self._look()
        return self._known

    def _exit_status(self, record: _Record) -> int | None:
        """The status that the kernel has given us, else the one in the folder."""
        known = self._known.exit_status
        return record.exit_status if known is None else known

    def _is_visible(self) -> bool:
        known = self._identity()
        return known.pid is not None and system.start_time(known.pid) == known.started

    async def _is_alive_elsewhere(self) -> bool:
        return await asyncio.to_thread(self.state) is JobState.ALIVE

    def _reap(self) -> bool:
        """Take the wrapper off the process table if it ended as our child; tell whether it did."""
        known = self._identity()
        if known.pid is None or not self._is_visible():
            return False
        try:
            pid, status = os.waitpid(known.pid, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid:
            code = os.waitstatus_to_exitcode(status)
            self._known = _Record(known.pid, known.started, code if code >= 0 else 128 - code)
            self._stayed = _members(known.pid, known.started)
        return bool(pid)

    def _living(self) -> list[Process]:
        """Find all that lives of this run, its wrapper included.

        A session keeps its number while anyone is in it, so one process known to be ours makes all
        of it ours: one marked, the wrapper itself, even as a zombie, or one that was there when
        the wrapper was reaped. Without one it may be a stranger's.
        """
        known = self._identity()
        if not known.started:
            return []
        younger = system.started_since(known.started, f"{_MARKER}={self.prompt_file}")
        sure = {(known.pid, known.started), *self._stayed}
        ours = any(
            one.session == known.pid and (one.marked or (one.pid, one.started) in sure)
            for one in younger
        )
        return [
            one
            for one in younger
            if one.living and (one.marked or (ours and one.session == known.pid))
        ]

    def _session(self) -> list[Process]:
        return [one for one in self._living() if one.session == self.pid]

    def _others(self) -> list[Process]:
        return [one for one in self._living() if one.pid != self.pid]

    async def _end(self, find: Callable[[], list[Process]], grace: timedelta) -> None:
        """Send TERM, after *grace* KILL, to what *find* finds, until it finds nothing.

        Each signal is sent once to each process.
        """
        for sent, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, _DEATH)):
            signalled: set[int] = set()
            with suppress(TimeoutError):
                async with asyncio.timeout(patience.total_seconds()):
                    while found := await asyncio.to_thread(find):
                        targets = set(self._targets(found, sent))
                        begun = self._has_begun(
                            found
                        )  # first: a command that begins now is signalled again
                        _signal(targets - signalled, sent)
                        signalled |= targets if begun else set()
                        await _all_gone(found, _ROUND if begun else _BEGINNING)
                    return

    def _has_begun(self, found: Sequence[Process]) -> bool:
        """Tell whether the command runs; until it does, its wrapper has ended what it was sent.

        Forked and not yet executed, it shows the wrapper's own command line, and then none.
        """
        wrapper = system.command_line(self.pid or 0)
        return not wrapper or any(
            system.command_line(one.pid) not in ("", wrapper) for one in found
        )

    def _targets(self, found: Sequence[Process], sent: signal.Signals) -> Iterator[int]:
        """What kill(2) is to be given to reach all of *found*.

        TERM goes to the wrapper's group as one, so that no child forked meanwhile is missed, and
        the wrapper survives it. It would not survive KILL, and has a status to write.
        """
        for one in found:
            if sent == signal.SIGTERM and one.group == self.pid:
                yield -one.group
            elif one.pid != self.pid:
                yield one.pid


def _resolve(
    command: Sequence[str], directory: Path, environment: Mapping[str, str]
) -> tuple[str, ...]:
    """Return *command* with its program as a full path, found as it will be in *directory*.

    With a slash in it no shell takes it for a builtin: `exit` and `eval` are arguments here.
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
    found = shutil.which(name, path=path)
    if found is None:
        there = shutil.which(name, mode=os.F_OK, path=path)
        raise CannotStart(
            f"cannot start {command[0]}: {there} is not executable"
            if there
            else f"cannot start {command[0]}: not found in {path if name == command[0] else name}"
        )
    return (found, *command[1:])


def _make_private(folder: Path) -> None:
    """Make *folder* with its parents, those too for us only (Path.mkdir does so for the last)."""
    if not folder.is_dir():
        _make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _lock(descriptor: int) -> bool:
    """Take the lock on an open folder, if it is free now."""
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
        return _Record(given_up=text.startswith(_GIVEN_UP))
    pid, started, exit_status = wrote.groups()
    return _Record(int(pid), started.decode(), None if exit_status is None else int(exit_status))


def _members(session: int, started: str) -> set[tuple[int, str]]:
    """Who is in the session of a wrapper reaped just now, before its number can be used again."""
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
    """Wait until all are gone, but no longer than *seconds*."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            for process in processes:
                with suppress(ProcessLookupError), system.watched(process.pid) as watch:
                    await _readable(watch)


def _signal(targets: set[int], sent: signal.Signals) -> None:
    for target in targets:
        # Gone since, or by now another user's: either way it is found again, or is not.
        with suppress(ProcessLookupError, PermissionError):
            os.kill(target, sent)
            os.kill(target, signal.SIGCONT)  # a stopped process would not hear of it


# The traps let the wrapper outlive what its group is sent; as they are handlers, the command gets
# the default of each signal. `exec 2>&1` lets go of the folder's lock: the pid is written. Where it
# could not be, nothing is run.
_WRAPPER = f"""trap : HUP INT QUIT TERM USR1 USR2{system.RECORD}
exec 2>&1
unset PWD OLDPWD SHLVL _ pgcoord
"$@" </dev/null
set -- $?
echo $1 >&0
exit $1"""
