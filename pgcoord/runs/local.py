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
import enum
import errno
import fcntl
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from pgcoord.errors import CannotStart

# Bytes that `status` gets before anything is started: written over in place later, an exit status
# needs no room on a disk that is full by then (but for file systems that always copy, as btrfs).
_ROOM = 128

# What `status` holds instead of the wrapper's lines where there is never to be one.
_GIVEN_UP = b"given up\n"

# After KILL only a process inside an uninterruptible system call stays; none is waited for longer.
_DEATH = timedelta(seconds=5)

# While ending: how long after it was forked a process is noticed at the latest, in seconds; and
# after what time a command is told again that was not yet running when it was told.
_ROUND = 1.0
_BEGINNING = 0.01

# What a terminal would take as a command (colours, movements, titles), not as text.
ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")

# What stands in a log instead of its middle, and the bytes of its end that are kept at most.
_LEFT_OUT = b"\n-- pgcoord: %d bytes were left out here --\n"
_KEPT_END = 1_000_000

_MARKER = "PGCOORD_PROMPT_FILE"

_SHELL = "/bin/sh"


class RunState(enum.Enum):
    """What the folder of a run tells.

    GIVEN_UP was never started and never will be; LOST is a wrapper that died without writing a
    status.
    """

    NEVER_STARTED = "never started"
    GIVEN_UP = "given up"
    ALIVE = "alive"
    ENDED = "ended"
    LOST = "lost"


@dataclass(frozen=True)
class LeftBehind:
    """A living process of a run, besides its wrapper."""

    pid: int
    command: str


class _Record(NamedTuple):
    """What a wrapper wrote so far."""

    pid: int | None = None
    started: str = ""
    exit_status: int | None = None
    given_up: bool = False


class _Process(NamedTuple):
    """A process as the system shows it; `marked` when its environment names the run looked for."""

    pid: int
    started: str
    group: int
    session: int
    living: bool
    marked: bool


class Run:
    """One attempt at a phase: the processes of one command, and the folder that tells of them."""

    def __init__(self, folder: Path, pid: int | None = None, started: str | None = None) -> None:
        """Name the run in `folder`, with its wrapper where that is known from elsewhere, too."""
        # Resolved, for the path is also what marks the processes: it has to be the same each time.
        self.folder = folder.resolve()
        self.log = self.folder / "log"
        self.prompt_file = self.folder / "prompt.md"
        self._status = self.folder / "status"
        self._known = _Record(pid, started) if pid and started else _Record()
        self._stayed: set[tuple[int, str]] = set()

    def prepare(self, prompt: str) -> None:
        """Make the folder and the prompt file in it; once more does no harm. Blocks."""
        _make_private(self.folder)
        # Written beside it and renamed: who is killed in between leaves no half prompt.
        new = self.prompt_file.with_suffix(".new")
        new.write_text(prompt, encoding="utf-8", newline="")
        new.rename(self.prompt_file)

    def start(
        self, command: Sequence[str], *, directory: Path, environment: Mapping[str, str]
    ) -> None:
        """Start `command` in `directory`; once in the folder's life, whoever tries, however often.

        Blocks for 1-2 ms, until the wrapper runs. The command gets its arguments as they are, in a
        session of its own, with no input, its output in `log`, and `environment` with the path
        of the prompt file (PWD, OLDPWD, SHLVL and _ belong to shells and are not passed on).
        Raises `CannotStart` when the run was started before, and for everything about the
        command that can be known before; nothing counts as started then.
        """
        words = _resolve(command, directory, environment)
        try:
            _make_private(self.folder)
            with (
                self._starting() as starting,
                _opened(self._status, os.O_RDWR | os.O_CREAT) as status,
                _opened(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as log,
            ):
                self._claim(status)
                if os.pwrite(status, b" " * _ROOM, 0) < _ROOM:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._status))
                wrapper = subprocess.Popen(
                    [_SHELL, "-c", _WRAPPER, "pgcoord", *words],
                    stdin=status,
                    stdout=log,
                    stderr=starting,
                    cwd=directory,
                    env={**environment, _MARKER: str(self.prompt_file)},
                    start_new_session=True,
                )
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CannotStart(f"cannot start {command[0]} in {directory}: {reason}") from error
        # Not true: it keeps Popen from warning that the wrapper lives on, and from reaping it.
        wrapper.returncode = 0
        self._known = _Record(wrapper.pid, _started(wrapper.pid) or "")

    def give_up(self) -> bool:
        """Have it never started, whoever tries from now on; False where it was, or was given up.

        Blocks like `start`.
        """
        try:
            _make_private(self.folder)
            with self._starting(), _opened(self._status, os.O_RDWR | os.O_CREAT) as status:
                self._claim(status)
                os.pwrite(status, _GIVEN_UP, 0)
                fcntl.flock(status, fcntl.LOCK_UN)  # see _is_locked
                return True
        except CannotStart:
            return False
        except OSError:  # where nothing can be written, nothing can be started either
            return self.state() is RunState.NEVER_STARTED

    def state(self) -> RunState:
        """Tell how the run stands; blocks while a start of it is under way, about a millisecond."""
        record, alive = self._look()
        if self._exit_status(record) is not None:
            return RunState.ENDED
        if alive:
            return RunState.ALIVE
        if record.given_up:
            return RunState.GIVEN_UP
        return RunState.NEVER_STARTED if record.pid is None else RunState.LOST

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
        return self._exit_status(self._look()[0])

    async def wait(self) -> int | None:
        """Wait until the wrapper is gone, and return the exit status; None when it is lost.

        Costs nothing while it waits; any number may wait, in any process. Cancelling it leaves the
        run alone. Returns None at once when there is nothing to wait for.
        """
        known = self._identity()
        if known.pid is not None:
            with suppress(ProcessLookupError), _watched(known.pid) as watch:
                if self._is_visible():
                    await _readable(watch)
        # Alive, and not to be seen: it is in another container on the same folder. Only its lock
        # tells of it here, and a lock can only be asked.
        while not self._reap() and self.state() is RunState.ALIVE:  # noqa: ASYNC110
            await asyncio.sleep(1)
        return self.exit_status

    async def end(self, grace: timedelta) -> list[LeftBehind]:
        """TERM the run's process group, KILL what is left of its session after `grace`.

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
        """TERM what the run left behind, KILL what stays after `grace`; return what there was."""
        found = await asyncio.to_thread(self.left_behind)
        if found:
            await self._end(self._others, grace)
        return found

    def left_behind(self) -> list[LeftBehind]:
        """Find the living processes of this run, besides its wrapper; blocks a few milliseconds.

        They are those of its session, and where the system shows environments, those with its
        prompt file in theirs, wherever they put themselves.
        """
        return [LeftBehind(found.pid, _command(found.pid)) for found in self._others()]

    def log_tail(self, lines: int = 20, characters: int = 4000) -> str:
        """Return the last lines of the log, fit for a text column; empty when there are none.

        Reads the end of the file only. What is not UTF-8, and NUL, which Postgres refuses,
        become U+FFFD; colours and the like are left out.
        """
        try:
            with self.log.open("rb") as log:
                # Four bytes make the longest character, and one more may have been cut in two.
                log.seek(max(0, log.seek(0, os.SEEK_END) - 4 * (characters + 1)))
                end = log.read(4 * (characters + 1))
        except FileNotFoundError:
            return ""
        text = ESCAPE.sub("", end.decode(errors="replace")).replace("\0", "\ufffd").rstrip("\n")
        return "\n".join(text[-characters:].split("\n")[-lines:])

    def bound_log(self, most: int) -> None:
        """Cut a log of more than `most` bytes down to its first half and its end; blocks.

        A line in between says how much was left out. The command never notices: it appends. What
        it writes while the log is cut may be left out, too.
        """
        half = most // 2
        with suppress(FileNotFoundError), self.log.open("r+b") as log:
            size = log.seek(0, os.SEEK_END)
            if size <= most:
                return
            log.seek(half)
            before = re.match(_LEFT_OUT.replace(b"%d", b"([0-9]+)"), log.read(_ROOM))
            log.seek(size - min(most // 4, _KEPT_END))
            end = log.read()
            left_out = size - half - len(end)
            left_out += int(before[1]) - len(before[0]) if before else 0
            # In place, and then cut: nothing that is appended meanwhile gets in between.
            log.seek(half)
            log.write(_LEFT_OUT % left_out + end)
            log.truncate()

    @contextmanager
    def _starting(self) -> Iterator[int]:
        """Hold the folder's lock, once nobody is in the middle of a start."""
        with _opened(self.folder, os.O_RDONLY | os.O_DIRECTORY) as folder:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield folder

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
        """Read the record, and whether the wrapper lives."""
        try:
            with self._starting(), _opened(self._status, os.O_RDONLY) as status:
                alive = _is_locked(status)
                return _read(status), alive
        except FileNotFoundError:
            return _Record(), False

    def _identity(self) -> _Record:
        if self._known.pid is None:
            self._known = self._look()[0]
        return self._known

    def _exit_status(self, record: _Record) -> int | None:
        return self._known.exit_status if record.exit_status is None else record.exit_status

    def _is_visible(self) -> bool:
        known = self._identity()
        return known.pid is not None and _started(known.pid) == known.started

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

    def _living(self) -> list[_Process]:
        """Find all that lives of this run, its wrapper included.

        A session keeps its number while anyone is in it, so one process known to be ours makes all
        of it ours: one marked, the wrapper itself, even as a zombie, or one that was there when
        the wrapper was reaped. Without one it may be a stranger's.
        """
        known = self._identity()
        if not known.started:
            return []
        younger = _since(known.started, f"{_MARKER}={self.prompt_file}")
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

    def _session(self) -> list[_Process]:
        return [one for one in self._living() if one.session == self.pid]

    def _others(self) -> list[_Process]:
        return [one for one in self._living() if one.pid != self.pid]

    async def _end(self, find: Callable[[], list[_Process]], grace: timedelta) -> None:
        """TERM, then KILL what `find` finds, until it finds nothing; tell each but once."""
        for sent, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, _DEATH)):
            told: set[int] = set()
            with suppress(TimeoutError):
                async with asyncio.timeout(patience.total_seconds()):
                    while found := await asyncio.to_thread(find):
                        targets = set(self._targets(found, sent))
                        begun = self._has_begun(found)  # first: who begins now is told again
                        _tell(targets - told, sent)
                        told |= targets if begun else set()
                        await _all_gone(found, _ROUND if begun else _BEGINNING)
                    return

    def _has_begun(self, found: Sequence[_Process]) -> bool:
        """Tell whether the command runs; until it does, its wrapper has ended what it was sent.

        Forked and not yet executed, it shows the wrapper's own command line, and then none.
        """
        wrapper = _command(self.pid or 0)
        return not wrapper or any(_command(one.pid) not in ("", wrapper) for one in found)

    def _targets(self, found: Sequence[_Process], sent: signal.Signals) -> Iterator[int]:
        """What kill(2) is to be given to reach all of `found`.

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
    """Return `command` with its program as a full path, found as it will be in `directory`.

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
    """Make `folder` with its parents, those too for us only (Path.mkdir does so for the last)."""
    if not folder.is_dir():
        _make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


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
    return {(one.pid, one.started) for one in _since(started, "") if one.session == session}


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)


async def _all_gone(processes: Sequence[_Process], seconds: float) -> None:
    """Wait until all are gone, but no longer than `seconds`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            for process in processes:
                with suppress(ProcessLookupError), _watched(process.pid) as watch:
                    await _readable(watch)


def _tell(targets: set[int], sent: signal.Signals) -> None:
    for target in targets:
        # Gone since, or by now another user's: either way it is found again, or is not.
        with suppress(ProcessLookupError, PermissionError):
            os.kill(target, sent)
            os.kill(target, signal.SIGCONT)  # a stopped process would not hear of it


# What each system shows in its own way: a process's start time (the same text from the wrapper and
# here), its end, as a descriptor that becomes readable, the processes there are, a command line.

if sys.platform == "linux":
    _BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    # Field 22 of stat is in clock ticks since boot; field 2, the name, is "(sh)": no spaces in it.
    _RECORD = f"""
read -r {"_ " * 21}pgcoord _ </proc/$$/stat
echo $$ {_BOOT} $pgcoord >&0 || exit 125"""

    def _started(pid: int) -> str | None:
        try:
            return f"{_BOOT} {_stat(pid)[19].decode()}"
        except OSError:
            return None

    @contextmanager
    def _watched(pid: int) -> Iterator[int]:
        descriptor = os.pidfd_open(pid)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _since(started: str, marker: str) -> list[_Process]:
        first = int(started.split()[-1])
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):  # gone since
                stat = _stat(name)
                if int(stat[19]) >= first:
                    found.append(_process(int(name), stat, marker))
        return found

    def _process(pid: int, stat: list[bytes], marker: str) -> _Process:
        return _Process(
            pid,
            started=f"{_BOOT} {stat[19].decode()}",
            group=int(stat[2]),
            session=int(stat[3]),
            living=stat[0] not in (b"Z", b"X"),
            marked=_is_marked(pid, marker),
        )

    def _stat(pid: int | str) -> list[bytes]:
        """Return the fields of stat from the third on: the second, a name, may hold anything."""
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:
            return stat.read().rpartition(b")")[2].split()

    def _is_marked(pid: int, marker: str) -> bool:
        try:
            with open(f"/proc/{pid}/environ", "rb", buffering=0) as environment:
                return os.fsencode(marker) in environment.read().split(b"\0")
        except OSError:  # another user's, or a zombie
            return False

    def _command(pid: int) -> str:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return ""
        return words.decode(errors="replace").replace("\0", " ").strip()

else:
    # One text wherever it is made: lstart follows locale and time zone.
    _RECORD = """
echo $$ $(LC_ALL=C TZ=UTC0 /bin/ps -o lstart= -p $$) >&0 || exit 125"""

    def _ps(*options: str) -> list[str]:
        shown = subprocess.run(
            ["/bin/ps", *options],
            env={"LC_ALL": "C", "TZ": "UTC0"},
            capture_output=True,
            text=True,
            errors="replace",
        )
        return shown.stdout.splitlines()

    def _started(pid: int) -> str | None:
        return next((" ".join(line.split()) for line in _ps("-o", "lstart=", "-p", str(pid))), None)

    @contextmanager
    def _watched(pid: int) -> Iterator[int]:
        ends = select.kevent(pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD, select.KQ_NOTE_EXIT)
        with closing(select.kqueue()) as queue:
            queue.control([ends], 0)
            yield queue.fileno()

    def _since(started: str, marker: str) -> list[_Process]:
        found = []
        # -E adds the environment to the command; there is no session here, so the group is taken.
        for line in _ps("-AEww", "-o", "pid=,pgid=,stat=,lstart=,command="):
            pid, group, state, *words = line.split()
            begun, marked = " ".join(words[:5]), marker in line
            living = not state.startswith("Z")
            found.append(_Process(int(pid), begun, int(group), int(group), living, marked))
        return found

    def _command(pid: int) -> str:
        return " ".join(_ps("-ww", "-o", "command=", "-p", str(pid)))


# The traps let the wrapper outlive what its group is sent; as they are handlers, the command gets
# the default of each signal. `exec 2>&1` lets go of the folder's lock: the pid is written. Where it
# could not be, nothing is run.
_WRAPPER = f"""trap : HUP INT QUIT TERM USR1 USR2{_RECORD}
exec 2>&1
unset PWD OLDPWD SHLVL _ pgcoord
"$@" </dev/null
set -- $?
echo $1 >&0
exit $1"""
