"""A test job in a pool, which describes the node that it runs on: `doctor --probe`.

It is submitted, and reads its order, like the job of a phase, but runs no command. It has no
attempt, and its name belongs to no installation, so no coordinator ends it.
"""

import asyncio
import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from pgcoord.coordination.engines import OF_WRAPPER, ORDER, WRAPPER, engine_messages
from pgcoord.coordination.launching import Engine, EngineState, ListedJob, Order
from pgcoord.database.rows import Finding
from pgcoord.errors import CannotStart, NotNow
from pgcoord.messages import plain_files

# Seconds that the engine may take to begin the job, and that the job's report may take to arrive.
_JOB_TIMEOUT = 120.0
_REPORT_TIMEOUT = 5.0

# Seconds between two queries to the engine, and between two reads of the folder.
_ASK = 1.0

# How far a node's clock may be off: the times that it writes into logs are.
_APART = 2.0


@dataclass(frozen=True)
class _Answer:
    """The job's message, which arrived between *asked_at* and *heard_at*."""

    message: Mapping[str, Any]
    asked_at: float
    heard_at: float


async def probe(
    engine: Engine, settings: Mapping[str, Any], url: str | None, environment: Mapping[str, str]
) -> list[Finding]:
    """Submit a test job to *engine*, and return its findings; removes the job and its files.

    *settings*: the keys of its pool; *url*: where its jobs report. Takes two minutes at most.
    """
    token = secrets.token_hex(6)
    shared = settings.get("folder")
    folder = Path(str(shared)) / f"probe-{token}" if shared else None
    try:
        if folder:
            folder.mkdir(parents=True, mode=0o700)
        else:
            folder = Path(await asyncio.to_thread(tempfile.mkdtemp))
        order = _order(token, folder, url, environment, is_shared=bool(shared))
        plain_files.write_plain(folder, ORDER, json.dumps(order.content).encode())
        return await _probe(engine, order, is_shared=bool(shared))
    except (CannotStart, NotNow) as error:
        return [_fail(str(error), "try the commands of the engine by hand")]
    except OSError as error:
        return [_fail(f"{error.filename}: {error.strerror}", "mend the folder of the pool")]
    finally:
        if folder:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _order(
    token: str, folder: Path, url: str | None, environment: Mapping[str, str], *, is_shared: bool
) -> Order:
    content: dict[str, Any] = {
        "probe": token,
        "url": url and url.rstrip("/").removesuffix("/workflow-complete"),
        "folder": str(folder) if is_shared else None,
        "command": [],
        "directory": "/",
        "environment": {},
        "grace": 1.0,
    }
    passed_on = {name: environment[name] for name in OF_WRAPPER if name in environment}
    name = f"pgcoord-probe-{token}"
    log = folder / "engine.log"
    return Order(name, WRAPPER, [str(folder / ORDER)], passed_on, folder, log, content)


async def _probe(engine: Engine, order: Order, *, is_shared: bool) -> list[Finding]:
    began_at = time.monotonic()
    job = await engine.submit(order)
    job_seen: ListedJob | None = None
    ended_at = None
    try:
        while True:
            asked_at = time.time()
            await asyncio.sleep(_ASK)
            jobs = await engine.find()
            job_seen = next(iter(jobs.get(order.name, ())), job_seen)
            message = await _message_of(engine, job, order, is_shared=is_shared)
            took = time.monotonic() - began_at
            if message:
                return _findings(_Answer(message, asked_at, time.time()), order, took)
            if (job_seen and job_seen.state is EngineState.ENDED) or (
                job_seen and order.name not in jobs
            ):
                ended_at = ended_at or took
            if ended_at and took - ended_at > _REPORT_TIMEOUT:
                return [await asyncio.to_thread(_no_report, order, job_seen, is_shared=is_shared)]
            if took > _JOB_TIMEOUT:
                state = job_seen.words if job_seen else "?"
                words = f"job {job} has not begun for {took:.0f} s: {state}"
                return [Finding("", "warn", words, "wait for the engine, or ask it why")]
    finally:
        await _remove(engine, job)


async def _remove(engine: Engine, job: str) -> None:
    try:
        await engine.terminate(job)
    except NotNow:  # reported already, and it ends by itself
        return


async def _message_of(
    engine: Engine, job: str, order: Order, *, is_shared: bool
) -> Mapping[str, Any] | None:
    """Return the job's message, from the shared folder, else from its output."""
    try:
        if is_shared:
            text = await asyncio.to_thread(
                plain_files.read_plain, order.folder, "answer.json", 65_536
            )
        else:
            lines = (await engine.log(job) or b"").splitlines()
            text = next((line for line in lines if order.content["probe"].encode() in line), b"{}")
        answer = json.loads(text)
    except (OSError, ValueError):
        return None
    return (
        answer
        if isinstance(answer, dict) and answer.get("probe") == order.content["probe"]
        else None
    )


def _findings(answer: _Answer, order: Order, took: float) -> list[Finding]:
    message = answer.message
    node = f"node {message['node']}"
    findings = [
        Finding(
            "", "ok", f"a job began on {node} in {took:.0f} s, Python {message['python']}", None
        )
    ]
    if not message["directory"]:
        words = f"{node} has not the pool's directory"
        findings.append(_fail(words, "commands start there: make it in the image, or name another"))
    if order.content["folder"]:
        findings.append(Finding("", "ok", f"{node} reads and writes its folder", None))
    if order.content["url"]:
        findings.append(_of_url(node, message["url"], order))
    ahead = max(0.0, message["time"] - answer.heard_at) or min(
        0.0, message["time"] - answer.asked_at
    )
    side = "ahead of" if ahead > 0 else "behind"
    if abs(ahead) > _APART:
        words = f"the clock of {node} is {timedelta(seconds=round(abs(ahead)))} {side} ours"
        remedy = "set both by NTP; jobs begin and end all the same, times in logs are off"
        findings.append(Finding("", "warn", words, remedy))
    return findings


def _of_url(node: str, trouble: str, order: Order) -> Finding:
    url = order.content["url"]
    if not trouble:
        return Finding("", "ok", f"{node} reaches {url}", None)
    words = f"{node} cannot report to {url}: {trouble}"
    remedy = "is 'pgcoord serve' up, and its address right (report_url) and open to nodes?"
    if not order.content["folder"]:
        return _fail(words, remedy)
    remedy += " Until then jobs report by files, which is seconds slower"
    return Finding("", "warn", words, remedy)


def _no_report(order: Order, job: ListedJob | None, *, is_shared: bool) -> Finding:
    """Return the finding on an ended job that has sent no message; blocks."""
    ended = f"job {job.job} on {job.node or 'no node'} ended ({job.words})" if job else "it ended"
    words = f"{ended} and said nothing{engine_messages(order.folder) if is_shared else ''}"
    return _fail(" ".join(words.split()), "nodes need python3 of 3.8 or newer, and its folder")


def _fail(words: str, remedy: str) -> Finding:
    return Finding("", "fail", words, remedy)
