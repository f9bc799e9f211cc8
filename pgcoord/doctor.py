"""Checks of an installation that SQL cannot do.

`pgcoord.checkup()` finds what tables and server settings show, also for psql and the panel. This
module adds what needs a second connection or this machine: whether notifications arrive, the clock,
the configuration, the URL for reports, the disk.
"""

import asyncio
import os
import re
import socket
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

import psycopg

from pgcoord import __version__
from pgcoord.configuration.model import LOCAL, Configuration, GitHub, Pool
from pgcoord.coordination.engines import LAUNCHERS
from pgcoord.coordination.probe import probe
from pgcoord.database import claims, reads, schema, session
from pgcoord.database._sql import Connection
from pgcoord.database.connect import connect, connect_blocking, differing_settings
from pgcoord.database.listener import BALANCED, UNBALANCED, round_trip
from pgcoord.database.rows import Finding
from pgcoord.errors import (
    CoordError,
    DatabaseUnusable,
    InvalidConfiguration,
    Locked,
    NotNow,
    WrongSchema,
    message_of,
)
from pgcoord.runs import worktree
from pgcoord.runs.slurm import Slurm
from pgcoord.runs.templates import Commands

# Seconds that a notification may take; a slower one delays every start of a phase noticeably.
_SLOW = 0.1

# The accepted difference of the clocks: times on a screen are off by as much, deadlines are not.
_APART = timedelta(seconds=2)

# Seconds that a statement waits for a lock; by then the session that holds it is known.
_LOCK_SECONDS = 2.0
_ENDING = "end that transaction: select pg_terminate_backend(PROCESS), or rollback prepared"

# Seconds that an answer to `public_url` may take.
_URL_TIMEOUT = 5

# Bytes that a disk should have free: some logs of a usual size, and what is left to stop in order.
_SCARCE = 2_000_000_000
_FULL = 200_000_000

# Files that such a disk should at least have room for.
_FEW_FILES = 1_000

# Addresses that mean another machine there.
_LOOPBACK = re.compile(r"https?://(localhost|127\.|\[::1\])")

_DIRECT = (
    "give the coordinator the address of the server itself, or of a pool in session mode;"
    " clients that only read and insert may keep this one"
)


@dataclass(frozen=True)
class Machine:
    """The parts of this machine to check: the configuration or its faults, and the folder of
    runs."""

    configuration: Configuration | None
    faults: InvalidConfiguration | None
    runs_folder: Path
    environment: Mapping[str, str]


async def examine(dsn: str, machine: Machine, *, probes: bool = False) -> list[Finding]:
    """Run all checks, and return a finding for each kind.

    Takes a second more where notifications do not arrive, five where the server does not answer;
    with *probes*, which submits a job to each pool of an engine, as long as those take.
    """
    findings = await _examine_database(dsn)
    findings.append(_configuration(machine))
    if machine.configuration and machine.configuration.github:
        findings += await _github(machine.configuration.github, machine.environment)
    findings.append(await asyncio.to_thread(_reports, machine.configuration))
    if machine.configuration:
        findings += await asyncio.to_thread(_worktrees, machine.configuration, machine.environment)
        for pool in machine.configuration.pools.values():
            if pool.launcher != LOCAL:
                findings += await _pool(pool, machine, probes=probes)
    pools = machine.configuration.pools.values() if machine.configuration else ()
    shared = [Path(str(each.settings["folder"])) for each in pools if "folder" in each.settings]
    for folder in dict.fromkeys([*shared, await _runs_folder(dsn, machine)]):
        findings.append(await asyncio.to_thread(_disk, folder))
    return findings


def _worktrees(configuration: Configuration, environment: Mapping[str, str]) -> list[Finding]:
    """Whether the workflows of this machine with worktrees have a repository to work in."""
    findings = []
    for name, workflow in configuration.workflows.items():
        pool = configuration.pools.get(workflow.pool)
        if workflow.worktree is None or (pool and pool.launcher != LOCAL):
            continue
        git = worktree.Git(workflow.directory, dict(environment))
        try:
            repository = worktree.Repository(git)
            repository.start_of(workflow.worktree.base)
        except (worktree.Unfit, OSError) as error:
            words, remedy = f"workflow {name}: {error}", f"'directory' is {workflow.directory}"
            findings.append(Finding("worktrees", "fail", words, remedy))
            continue
        if git.attempt("merge-tree", "--write-tree", "HEAD", "HEAD").returncode:
            words = f"workflow {name}: git is older than 2.38"
            remedy = (
                "without a newer one, the branch of a feature lacks the work of parallel phases"
            )
            findings.append(Finding("worktrees", "warn", words, remedy))
        else:
            words = f"workflow {name}: worktrees of {repository.top}"
            findings.append(Finding("worktrees", "ok", words, None))
    return findings


async def _pool(pool: Pool, machine: Machine, *, probes: bool) -> list[Finding]:
    """Return findings on whether the engine of a pool answers, and its jobs can report."""
    engine = LAUNCHERS[pool.launcher](pool.settings, machine.environment)
    findings = []
    if isinstance(engine, Slurm | Commands):
        findings = await engine.check()
    else:
        try:
            jobs = await engine.find()
            findings.append(Finding("pools", "ok", f"its engine answers, {len(jobs)} jobs", None))
        except NotNow as error:
            findings.append(Finding("pools", "fail", message_of(error), "try its commands by hand"))
    folder = pool.settings.get("folder")
    if folder is not None and not await asyncio.to_thread(_is_writable, Path(str(folder))):
        words = f"nothing can be written to {folder}"
        findings.append(
            Finding("pools", "fail", words, "make it, on a file system that nodes share")
        )
    assert machine.configuration is not None
    url = pool.settings.get("report_url") or machine.configuration.server.public_url
    if url is None or _LOOPBACK.match(str(url)):
        words = "its nodes know no address of this server"
        if url is not None:
            words = f"its nodes reach themselves at {url}, not this server"
        if folder is None:  # engines whose nodes share none
            level, words = "fail", f"{words}: no job can begin"
            remedy = "give report_url in the pool, or public_url in [server]"
        else:
            level, words = "warn", f"{words}: jobs report by files in its folder"
            remedy = (
                "give public_url in [server], or report_url in the pool: that is seconds faster"
            )
        findings.append(Finding("pools", level, words, remedy))
    if probes:
        address = None if url is None else str(url)
        findings += await probe(engine, pool.settings, address, machine.environment)
    return [replace(each, kind="pools", words=f"{pool.name}: {each.words}") for each in findings]


def _is_writable(folder: Path) -> bool:
    """Whether a folder is there, or can be made, and written to."""
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


async def _examine_database(dsn: str) -> list[Finding]:
    try:
        async with await connect(dsn) as conn:
            wake_ups = await _wake_ups(dsn, conn)
            # Through a pool in transaction mode they would be set for its other clients.
            settings = [] if wake_ups.level == "fail" else [await _settings(dsn)]
            return [
                await _connection(conn),
                wake_ups,
                *settings,
                _clock(*await _clocks(conn)),
                await _schema(dsn),
                *await _checkup(dsn, conn),
            ]
    except DatabaseUnusable as error:
        return [Finding("connection", "fail", message_of(error), error.hint)]


async def _connection(conn: Connection) -> Finding:
    info = conn.info
    version = f"{info.server_version // 10000}.{info.server_version % 10000}"
    server = f"database {info.dbname} as {info.user}"
    return Finding("connection", "ok", f"PostgreSQL {version}, {server}", None)


async def _wake_ups(dsn: str, conn: Connection) -> Finding:
    seconds = await round_trip(dsn, conn)
    for _ in range(2):  # a machine that is busy for a moment is not far away
        if seconds is not None and seconds > _SLOW:
            seconds = min(seconds, await round_trip(dsn, conn) or seconds)
    pooled = await session.is_pooled(conn)
    if seconds is None:
        words = (
            "this DSN goes through a pooler in transaction mode, where notifications never arrive"
            if pooled
            else "a notification did not arrive within a second"
        )
        remedy = _DIRECT if pooled else "is there a pooler between here and the server?"
        return Finding("wake-ups", "fail", words, remedy)
    words = f"a notification takes {1000 * seconds:.1f} ms"
    words += " through a pooler in session mode" if pooled else ""
    if seconds > _SLOW:
        return Finding("wake-ups", "warn", words, "run the coordinator nearer to the database")
    return Finding("wake-ups", "ok", words, None)


async def _settings(dsn: str) -> Finding:
    """Whether the settings of a session that leads stay in force."""
    async with await connect(dsn, leads=True) as conn:
        differing = await differing_settings(conn, leads=True)
        balancer = await session.balancer(conn)
    if balancer == "sends":
        return Finding("settings", "fail", BALANCED, UNBALANCED)
    if differing:
        words = "; ".join(f"{name} is {value}, not {wanted}" for name, wanted, value in differing)
        remedy = (
            "a proxy between here and the server does not keep them: give the server's own address"
        )
        return Finding("settings", "fail", words, remedy)
    through = " through pgpool-II, which sends all to the primary" if balancer else ""
    words = f"those that the coordinator depends on are in force{through}"
    return Finding("settings", "ok", words, None)


async def _clocks(conn: Connection) -> tuple[timedelta, timedelta]:
    """Return by how much the database's clock is ahead of ours, and the error of that figure."""
    samples = []
    for _ in range(3):
        before, ours = time.monotonic(), time.time()
        theirs = (await session.now(conn)).timestamp()
        took = time.monotonic() - before
        samples.append((took / 2, theirs - ours - took / 2))
    exact, ahead = min(samples)
    return timedelta(seconds=ahead), timedelta(seconds=exact)


def _clock(ahead: timedelta, exact: timedelta) -> Finding:
    apart = abs(ahead)
    if apart <= _APART + exact:
        words = f"this machine and the database agree to {max(apart, exact).total_seconds():.3f} s"
        return Finding("clock", "ok", words, None)
    side = "behind" if ahead > timedelta() else "ahead of"
    return Finding(
        "clock",
        "warn",
        f"this machine is {apart.total_seconds():.1f} s {side} the database",
        "set both by NTP; times on screens and in logs are off, deadlines are not",
    )


async def _schema(dsn: str) -> Finding:
    try:
        with closing(await asyncio.to_thread(connect_blocking, dsn)) as conn:
            conn.execute(f"set lock_timeout = {1000 * _LOCK_SECONDS:.0f}".encode())
            holder = asyncio.create_task(_holder(dsn, conn.info.backend_pid))
            try:
                await asyncio.to_thread(schema.check_schema, conn)
            except psycopg.errors.LockNotAvailable:
                words = f"it cannot be read: a table is locked: {await holder}"
                return Finding("schema", "fail", words, _ENDING)
            finally:
                holder.cancel()
    except CoordError as error:
        return Finding("schema", "fail", message_of(error), error.hint)
    return Finding("schema", "ok", f"of this release, {__version__}", None)


async def _checkup(dsn: str, conn: Connection) -> list[Finding]:
    try:
        async with conn.transaction():
            await session.set_lock_timeout(conn, _LOCK_SECONDS, for_transaction=True)
            pid = await session.backend_pid(conn)
            holder = asyncio.create_task(_holder(dsn, pid))
            try:
                return await reads.checkup(conn)
            except Locked:
                words = f"a table is locked, so that nothing can be read or started: {await holder}"
                return [Finding("locks", "fail", words, _ENDING)]
            finally:
                holder.cancel()
    except WrongSchema:
        return []  # reported already: without our schema there is nothing to check
    except DatabaseUnusable as error:
        remedy = error.hint or "grant it pgcoord_reader, pgcoord_client or pgcoord_coordinator"
        return [Finding("rights", "fail", message_of(error), remedy)]
    except psycopg.ProgrammingError as error:  # a view was changed so that others fail
        return [
            Finding("definitions", "fail", message_of(error), "'pgcoord upgrade' writes them anew")
        ]


async def _holder(dsn: str, pid: int) -> str:
    """Wait until the session *pid* has waited for a lock; return the holder, in words."""
    await asyncio.sleep(_LOCK_SECONDS / 2)
    try:
        async with await connect(dsn) as conn:
            return await reads.blocked_by(conn, pid) or "its holder is not known"
    except (psycopg.Error, CoordError) as error:
        return f"its holder is not known: {message_of(error)}"


def _configuration(machine: Machine) -> Finding:
    if machine.faults:
        words = "; ".join(str(machine.faults).splitlines())
        return Finding("configuration", "fail", words, "'pgcoord serve' will not start with it")
    if machine.configuration is None:
        return Finding("configuration", "ok", "no pgcoord.toml here or above: a client", None)
    number = len(machine.configuration.workflows)
    words = f"{number} workflow{'' if number == 1 else 's'} in {machine.configuration.path}"
    if number == 0:
        return Finding("configuration", "warn", words, "declare one: [workflow.NAME]")
    return Finding("configuration", "ok", words, None)


async def _github(settings: GitHub, environment: Mapping[str, str]) -> list[Finding]:
    """Whether issues can be made; by calls that make none."""
    from pgcoord.github.client import Refusal, Repository, read_credentials

    try:
        async with Repository(settings, read_credentials(settings, environment)) as repository:
            about = await repository.about()
            if not about.get("has_issues", True):
                return [
                    _unusable(settings, "its issues are disabled", "enable them in its settings")
                ]
            if about.get("archived"):
                return [_unusable(settings, "it is archived", "name another one in [github]")]
            await repository.check_may_post()
    except (Refusal, InvalidConfiguration) as error:
        remedy = "give the token, or the app, the right to write issues there; see docs/github.md"
        return [Finding("github", "fail", message_of(error), remedy)]
    except NotNow as error:
        return [Finding("github", "warn", message_of(error), "phases wait until it answers")]
    if not (about.get("permissions") or {}).get("push", True):
        words = f"issues can be made in {settings.repository}, but no labels"
        remedy = "issues come without labels; the right to push would allow them"
        return [Finding("github", "warn", words, remedy)]
    return [Finding("github", "ok", f"issues can be made in {settings.repository}", None)]


def _unusable(settings: GitHub, words: str, remedy: str) -> Finding:
    return Finding(
        "github", "fail", f"no issue can be made in {settings.repository}: {words}", remedy
    )


def _reports(configuration: Configuration | None) -> Finding:
    """Return whether pgcoord answers at the URL to which processes report, from this machine."""
    url = configuration and configuration.server.public_url
    if not url:
        return Finding("reports", "ok", "processes report to the server that starts them", None)
    try:
        with urlopen(f"{url}/healthz", timeout=_URL_TIMEOUT) as answer:
            trouble = None if answer.read(10) == b"ok\n" else "another program answers"
    except (OSError, HTTPException) as error:
        trouble = message_of(error).removeprefix("<urlopen error ").removesuffix(">")
    if trouble is None:
        return Finding("reports", "ok", f"processes report to {url}, which answers", None)
    return Finding(
        "reports",
        "warn",
        f"processes report to {url}: {trouble}",
        "mend public_url of [server], or the proxy; until then reports are kept with the runs",
    )


async def _runs_folder(dsn: str, machine: Machine) -> Path:
    """Where a coordinator of this machine has kept its runs last, or would keep them."""
    try:
        async with await connect(dsn) as conn, conn.transaction():
            await session.set_lock_timeout(conn, _LOCK_SECONDS, for_transaction=True)
            return Path(await claims.runs_folder(conn, socket.gethostname()) or machine.runs_folder)
    except CoordError:
        return machine.runs_folder


def _disk(folder: Path) -> Finding:
    # A folder that this user may not read counts as being on the disk of the folder above.
    there = next(each for each in (folder, *folder.parents) if os.path.exists(each))
    disk = os.statvfs(there)
    if disk.f_flag & os.ST_RDONLY:
        words = f"the disk of {folder} can only be read: no phase can start"
        return Finding(
            "disk", "fail", words, "mount it to be written to; errors may have caused it"
        )
    if disk.f_files and disk.f_favail < _FEW_FILES:
        words = f"the disk of {folder} has room for {disk.f_favail} files more; a run makes six"
        return Finding("disk", "fail", words, "remove some; 'retention' of [log] removes old runs")
    return _room(folder, disk.f_bavail * disk.f_frsize)


def _room(folder: Path, free: int) -> Finding:
    words = f"{_size(free)} free for logs in {folder}"
    if free >= _SCARCE:
        return Finding("disk", "ok", words, None)
    remedy = "free some; 'retention' and 'max_size' of [log] in pgcoord.toml bound what logs take"
    return Finding("disk", "warn" if free >= _FULL else "fail", words, remedy)


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
