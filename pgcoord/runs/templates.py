"""Any engine with a command line: `[pool.NAME]` names what submits, lists, cancels and kills.

Commands are called without a shell. Their output is parsed by the pattern, or the path into JSON,
that the configuration gives; this module knows no engine.
"""

import asyncio
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from pgcoord.configuration.listing import field_of, is_path, values_at
from pgcoord.coordination.launching import EngineState, ListedJob, Order
from pgcoord.database.rows import Finding
from pgcoord.errors import CannotStart, NotNow
from pgcoord.messages import plain_files

# Seconds for one command, and the wait before a job that an engine does not take now is submitted
# again.
_COMMAND_TIMEOUT = 60.0
_AGAIN = timedelta(seconds=30)

# Variables of the coordinator that every command gets, besides those the pool names.
_NEEDED = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "TMPDIR")

# The keys of a pool that are commands.
_COMMANDS = ("submit", "list", "cancel", "kill")

_SCRIPT = "job.sh"
_WRAPPER = "job.py"


class CommandOutput(NamedTuple):
    """The output of a command, and its exit status."""

    status: int
    output: str
    error: str


async def run_command(
    command: Sequence[str], environment: Mapping[str, str], seconds: float = _COMMAND_TIMEOUT
) -> CommandOutput:
    """Run *command* to its end. Raises `NotNow` when it is not installed, or takes too long."""
    program = shutil.which(command[0], path=environment.get("PATH", os.defpath))
    if program is None:
        raise NotNow(f"{command[0]} is not installed on this machine", _AGAIN)
    process = await asyncio.create_subprocess_exec(
        program,
        *command[1:],
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(seconds):
            output, error = await process.communicate()
    except TimeoutError:
        words = f"{command[0]} has not answered in {seconds:.0f} s"
        raise NotNow(words, _AGAIN, certain=False) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return CommandOutput(
        process.returncode, output.decode(errors="replace"), error.decode(errors="replace")
    )


class Commands:
    """One pool of any engine; a `coordination.launching.Engine`."""

    def __init__(self, settings: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        """*settings*: the keys of the pool, without problems; *environment*: the coordinator's."""
        self._settings = settings
        names = (*_NEEDED, *settings.get("environment", ()))
        self._environment = {name: environment[name] for name in names if name in environment}
        self._waiting = frozenset(settings["waiting"])
        self._running = frozenset(settings["running"])

    async def check(self) -> list[Finding]:
        """Return doctor's findings on these commands, without the name of the pool."""
        path = self._environment.get("PATH", os.defpath)
        programs = {key: self._settings[key][0] for key in _COMMANDS if key in self._settings}
        missing = {key: each for key, each in programs.items() if not shutil.which(each, path=path)}
        if missing:
            words = f"not installed on this machine: {', '.join(sorted(set(missing.values())))}"
            remedy = f"install it, or correct the pool's {', '.join(missing)}"
            return [Finding("", "fail", words, remedy)]
        try:
            jobs = await self.find()
        except NotNow as error:
            return [Finding("", "fail", str(error), "try the pool's 'list' by hand")]
        return [Finding("", "ok", f"its engine answers, {len(jobs)} jobs", None)]

    async def submit(self, order: Order) -> str:
        """Submit a script that starts the wrapper: engines take one file, and copy it, or not."""
        values = await asyncio.to_thread(_write_script, order)
        command = self._command("submit", values)
        answer = await run_command(command, self._environment)
        words = f"{command[0]}: {_last_line(answer)}"
        if answer.status:
            refused = self._settings.get("refused")
            if refused and re.search(refused, answer.error + answer.output):
                raise CannotStart(words)
            raise NotNow(
                words, _AGAIN, certain=False
            )  # some engines report a failure although they took the job
        job_id = self._id_of(answer.output)
        if job_id is None:
            raise NotNow(f"there is no id in what {words}", _AGAIN, certain=False)
        return job_id

    async def find(self) -> Mapping[str, list[ListedJob]]:
        """List all jobs by one run of the command `list`; leave out those not named by pgcoord.

        Raises `NotNow` when the command fails.
        """
        command = self._command("list", {})
        answer = await run_command(command, self._environment)
        empty = self._settings.get("empty")
        if answer.status and empty and re.search(empty, answer.error + answer.output):
            return {}
        if answer.status:
            raise NotNow(f"{command[0]}: {_last_line(answer)}", _AGAIN)
        jobs: dict[str, list[ListedJob]] = {}
        for job in self._jobs_in(answer.output):
            name = str(job.get("name") or "")
            if name.startswith("pgcoord-"):
                jobs.setdefault(name, []).append(self._listed(job))
        return jobs

    async def terminate(self, job: str) -> None:
        """Run the pool's command `cancel` for *job*; its exit status is ignored."""
        await self._end("cancel", job)

    async def kill(self, job: str) -> None:
        """Run the pool's command `kill` for *job*, else `cancel`; its exit status is ignored."""
        await self._end("kill" if "kill" in self._settings else "cancel", job)

    async def log(self, job: str) -> bytes | None:
        """Return None: the wrapper writes the output into the shared folder."""
        return None

    def changes(self) -> None:
        """Return None: there is no command that streams changes."""

    async def _end(self, key: str, job: str) -> None:
        # It also fails for a job that has just ended: the list shows the remaining jobs.
        await run_command(self._command(key, {"id": job}), self._environment)

    def _command(self, key: str, values: Mapping[str, str]) -> list[str]:
        return [
            re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), word)
            for word in self._settings[key]
        ]

    def _id_of(self, output: str) -> str | None:
        where = self._settings["id"]
        if is_path(where):
            value = next((each for _, each in values_at(where, _parsed(output))), None)
            return None if value is None else str(value)
        match = re.search(where, output, re.MULTILINE)
        return match[(match.lastindex and 1) or 0] if match else None

    def _jobs_in(self, output: str) -> Iterator[Mapping[str, Any]]:
        """Yield the fields of each job that is listed."""
        where = self._settings["jobs"]
        if is_path(where):
            fields = self._settings["fields"]
            for key, job in values_at(where, _parsed(output)):
                yield {name: field_of(path, key, job) for name, path in fields.items()}
            return
        for match in re.finditer(where, output, re.MULTILINE):
            yield match.groupdict()

    def _listed(self, job: Mapping[str, Any]) -> ListedJob:
        state, reason = str(job.get("state")), str(job.get("reason") or "")
        listed = (
            EngineState.WAITING
            if state in self._waiting
            else EngineState.RUNNING
            if state in self._running
            else EngineState.ENDED
        )
        words = (
            reason
            if listed is EngineState.WAITING and reason
            else ", ".join(filter(None, (state, reason)))
        )
        node = str(job["node"]) if job.get("node") else None
        status = _exit_status(job.get("exit")) if listed is EngineState.ENDED else None
        return ListedJob(str(job["id"]), listed, words, node, status)


def _write_script(order: Order) -> dict[str, str]:
    """Write the one file that is submitted, beside a copy of the wrapper; blocks."""
    wrapper = order.folder / _WRAPPER
    plain_files.write_plain(order.folder, _WRAPPER, order.script.read_bytes())
    words = shlex.join([str(wrapper), *order.arguments])
    plain_files.write_plain(order.folder, _SCRIPT, f"#!/bin/sh\nexec python3 {words}\n".encode())
    script = order.folder / _SCRIPT
    script.chmod(0o700)
    return {
        "name": order.name,
        "script": str(script),
        "log": str(order.log),
        "folder": str(order.folder),
    }


def _parsed(output: str) -> Any:
    try:
        return json.loads(output) if output.strip() else None
    except ValueError as error:
        raise NotNow(f"what was printed is not JSON: {error}", _AGAIN, certain=False) from error


def _exit_status(value: object) -> int | None:
    """Return the exit status, 128 + n for 256 + n, as PBS writes signals; None if there is none."""
    try:
        number = int(str(value))
    except ValueError:
        return None
    if number > 256:
        number -= 128
    return number if 0 <= number <= 255 else None


def _last_line(answer: CommandOutput) -> str:
    lines = [line.strip() for line in (answer.error or answer.output).splitlines() if line.strip()]
    return lines[-1][:500] if lines else f"exit status {answer.status}"
