"""Runs the configured planner command: it reads a feature and writes a plan in Markdown.

Its time and its output are limited, and all its processes are ended with it. There is no shell; the
output is parsed and checked like every plan.
"""

import asyncio
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO

from pgcoord.configuration.model import Planner
from pgcoord.errors import PlannerFailed
from pgcoord.planner.structure import Feature

# Last bytes of stderr that an error quotes.
_MOST_STDERR = 2_000

# Paths of the repository in the request.
_MOST_PATHS = 4_000

# Seconds to read the rest of the output once all processes have ended.
_LAST_WORDS = 2

_CHUNK = 65_536

_REQUEST = """\
Plan the feature below: split it into phases, each the work of one developer or agent for one to
four hours, {most} at most. Phases that need nothing of each other and change no common file shall
be able to run at the same time. Answer with the plan alone, in this form (Markdown, no code fence
around it):

# Title of the feature

What it is about, in a few lines.

## Phase 1: Title of the phase
Depends on: none
Hours: 2
Files: path/of/a/file, path/of/another

The prompt: what is to be done, what there is to build on, what the phases after it expect, when it
is done. Whoever does it reads nothing else.

## Phase 2: Title of the phase
Depends on: 1

…

The lines with keys stand directly below the heading; "Hours" and "Files" may be left out, "Depends
on" means the phase before where it is left out. "Files" are those that the phase changes.

# The feature: {title}
{hours}
{description}

# The files of its repository

{files}
"""


def request(feature: Feature, files: Sequence[str], most_phases: int) -> str:
    """Return the request, which the command reads on standard input."""
    listed = list(files[:_MOST_PATHS])
    if len(files) > len(listed):
        listed.append(f"… and {len(files) - len(listed)} more")
    return _REQUEST.format(
        most=most_phases,
        title=" ".join(feature.title.split()),
        hours=f"\nEstimated: {feature.hours:g} hours\n" if feature.hours else "",
        description=feature.description.strip() or "(It has no description.)",
        files="\n".join(listed) or "(none)",
    )


async def ask(settings: Planner, folder: Path, environment: Mapping[str, str], text: str) -> str:
    """Run the command with *text* on standard input; return its output.

    Raises `PlannerFailed` when it cannot be started, fails, or exceeds a limit of time or output.
    All its processes have ended when this returns, raises or is cancelled.
    """
    complaints = bytearray()
    async with _running(settings.command, folder, environment, text.encode()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        async with _reader(process.stdout) as out, _reader(process.stderr) as errors:
            reading = asyncio.ensure_future(_read(out, settings.max_answer))
            complaining = asyncio.ensure_future(_read_end(errors, complaints))
            ending = asyncio.ensure_future(asyncio.to_thread(_await_end, process.pid))
            try:
                async with asyncio.timeout(settings.timeout.total_seconds()):
                    await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
                    if not ending.done():
                        reading.result()  # raises when the output is too long
                    await ending
                _kill(process)  # processes left behind would keep the output open
                async with asyncio.timeout(_LAST_WORDS):
                    answer, _ = await asyncio.gather(reading, complaining)
            except TimeoutError as error:
                raise PlannerFailed(_too_long(settings, ended=ending.done())) from error
            finally:
                _kill(process)
                for task in (reading, complaining):
                    task.cancel()
                await asyncio.gather(reading, complaining, ending, return_exceptions=True)
    return _checked(answer, process.returncode, bytes(complaints))


def _too_long(settings: Planner, *, ended: bool) -> str:
    if ended:
        return "the planner command ended, but a process that it started keeps its output open"
    return (
        f"the planner command took more than {settings.timeout.total_seconds():g} s: it was ended"
    )


@asynccontextmanager
async def _running(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], text: bytes
) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Run the command in a session of its own; end its process group with the block."""
    with tempfile.TemporaryFile() as prompt_file:
        prompt_file.write(text)
        prompt_file.seek(0)
        try:
            # Not asyncio's, which reaps the process at once: its group id could be reused.
            process = subprocess.Popen(  # noqa: ASYNC220
                command,
                cwd=folder,
                env=environment,
                stdin=prompt_file,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise PlannerFailed(
                f"the planner command cannot be started: {error.filename}: "
                f"{(error.strerror or str(error)).lower()}",
                hint="See 'command' and 'directory' of [planner] in pgcoord.toml.",
            ) from error
    try:
        yield process
    finally:
        _kill(process)
        process.wait()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process group. The process is not reaped before, so its pid is not reused."""
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):  # macOS: only zombies are left
            os.killpg(process.pid, signal.SIGKILL)


def _await_end(pid: int) -> None:
    """Wait until a process has ended, without reaping it."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


@asynccontextmanager
async def _reader(pipe: IO[bytes]) -> AsyncIterator[asyncio.StreamReader]:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    try:
        yield reader
    finally:
        transport.close()


async def _read(reader: asyncio.StreamReader, most: int) -> bytes:
    answer = bytearray()
    while chunk := await reader.read(_CHUNK):
        answer += chunk
        if len(answer) > most:
            raise PlannerFailed(
                f"the planner command answered more than {most:,} bytes: it was ended",
                hint="A plan is much shorter; 'max_answer' of [planner] allows more.",
            )
    return bytes(answer)


async def _read_end(reader: asyncio.StreamReader, errors: bytearray) -> None:
    while chunk := await reader.read(_CHUNK):
        errors += chunk
        del errors[:-_MOST_STDERR]


def _checked(answer: bytes, status: int | None, stderr: bytes) -> str:
    """Return the output as text. Raises `PlannerFailed` unless the command succeeded."""
    if status:
        last = stderr.decode(errors="replace").strip().splitlines()[-3:]
        how = f"with status {status}" if status > 0 else f"by {signal.Signals(-status).name}"
        raise PlannerFailed(
            "\n".join([f"the planner command ended {how}", *last]),
            hint="The lines above are from its stderr." if last else "It wrote nothing to stderr.",
        )
    if not answer.strip():
        raise PlannerFailed("the planner command wrote no plan")
    try:
        return answer.decode()
    except UnicodeDecodeError as error:
        raise PlannerFailed(
            f"the planner command wrote no valid text: byte {error.start} is not UTF-8"
        ) from error
