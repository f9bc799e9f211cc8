"""Slurm: submit, list and cancel jobs by sbatch, squeue and scancel.

The answers of Slurm are only hints: it may run a job twice when a node is lost, report that it
could not accept a job that it then runs, and forget jobs that have ended.
"""

import asyncio
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

from pgcoord.coordination.launching import EngineState, ListedJob, Order
from pgcoord.database.rows import Finding
from pgcoord.errors import CannotStart, NotNow
from pgcoord.messages import plain_files
from pgcoord.runs.templates import CommandOutput, run_command

# The wait before a job that Slurm does not take now is submitted again.
_AGAIN = timedelta(seconds=30)

# Variables that Slurm's commands need of ours; SBATCH_… are a site's defaults of its options.
_NEEDED = re.compile("PATH|HOME|USER|LOGNAME|LANG|(SLURM|SBATCH|SQUEUE|SCANCEL|MUNGE)_.*")

_ENVIRONMENT = "environment"

# The name is the last: that of somebody else's job may hold a separator, or a line's end.
_COLUMNS = "JobID:|,State:|,Reason:|,NodeList:|,exit_code:|,Name:"

_WAITING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"})
_RUNNING = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"})

# Messages of sbatch when the controller has not answered in time: the job may have been taken. If
# nothing listens at its address, it was not.
_UNANSWERED = ("timed out", "Zero Bytes were transmitted", "Connection reset")
_UNREACHABLE = ("Unable to contact", "Connection refused", "slurm_persist_conn", "munge")
_FULL = (
    *("maximum number of jobs", "job submit limit", "QOSMaxSubmit", "AssocMaxSubmit"),
    *("error writing", "No space left"),  # the disk of the controller
    "not available (inactive or drain)",  # a partition that is closed for a while
)

# States of nodes that run jobs, or will.
_USABLE = frozenset({"idle", "mixed", "allocated", "completing", "planned", "idle~", "unknown"})

# States of ended jobs for which Slurm reports the exit status of the script.
_WITH_STATUS = frozenset({"COMPLETED", "FAILED"})


class Slurm:
    """One pool of a Slurm cluster; a `coordination.launching.Engine`."""

    def __init__(self, *, options: Sequence[str], environment: Mapping[str, str]) -> None:
        """Pass *options* on to sbatch; *environment* is that of the coordinator."""
        self._options = tuple(options)
        self._environment = {
            name: value for name, value in environment.items() if _NEEDED.fullmatch(name)
        }

    async def submit(self, order: Order) -> str:
        """Submit by sbatch; the environment goes by a file that only we can read."""
        text = "".join(f"{name}={value}\0" for name, value in order.environment.items())
        await asyncio.to_thread(
            plain_files.write_plain,
            order.folder,
            _ENVIRONMENT,
            text.encode(errors="surrogateescape"),
        )
        answer = await self._say(
            "sbatch",
            "--parsable",
            *self._options,
            # Our options come last, and so override the others.
            f"--job-name={order.name}",
            "--no-requeue",
            f"--export-file={order.folder / _ENVIRONMENT}",
            f"--chdir={order.folder}",
            f"--output={order.log}",
            f"--error={order.log}",
            "--open-mode=append",
            str(order.script),
            *order.arguments,
        )
        if answer.status == 0:
            return answer.output.strip().partition(";")[0]  # id;cluster
        words = _last_line(answer.error)
        if any(each in answer.error for each in _UNANSWERED):
            raise NotNow(f"sbatch: {words}", _AGAIN, certain=False)
        if any(each in answer.error for each in (*_UNREACHABLE, *_FULL)):
            raise NotNow(f"sbatch: {words}", _AGAIN)
        raise CannotStart(f"sbatch refuses the job: {words}{self._options_in_words}")

    async def find(self) -> Mapping[str, list[ListedJob]]:
        """Ask squeue for all jobs of this user, also those that ended a while ago."""
        answer = await self._say("squeue", "--me", "-t", "all", "-h", "-O", _COLUMNS)
        if answer.status:
            raise NotNow(f"squeue: {_last_line(answer.error)}", _AGAIN)
        jobs: dict[str, list[ListedJob]] = {}
        for name, job in _read(answer.output):
            jobs.setdefault(name, []).append(job)
        return jobs

    async def terminate(self, job: str) -> None:
        """Remove the job if it waits; send SIGTERM to its script and steps if it runs."""
        await self._cancel("--state=PENDING", job)
        await self._cancel("--full", "--signal=TERM", job)

    async def kill(self, job: str) -> None:
        """Send SIGKILL to the script and its steps, and cancel the job at once."""
        await self._cancel("--full", "--signal=KILL", job)
        await self._cancel(job)

    async def log(self, job: str) -> bytes | None:
        """Return None: the wrapper writes the output into the shared folder."""
        return None

    def changes(self) -> None:
        """Return None: Slurm streams changes to administrators only."""

    async def check(self) -> list[Finding]:
        """Return doctor's findings on this cluster, without the name of the pool."""
        findings = [await self._check_controller()]
        if findings[0].level != "fail":
            findings.append(await self._check_options())
            findings += _check_settings((await self._say("scontrol", "show", "config")).output)
        return findings

    async def _check_controller(self) -> Finding:
        try:
            answer = await self._say("scontrol", "ping")
            nodes = await self._say("sinfo", "-h", "-o", "%T %D")
        except NotNow as error:
            return Finding("", "fail", str(error), "install Slurm's commands on this machine")
        if answer.status or " UP" not in answer.output:
            down = re.search(r".* is DOWN", answer.output)  # before an appeal framed by asterisks
            reason = down.group() if down else _last_line(answer.error or answer.output)
            words = f"its controller does not answer: {reason}"
            return Finding("", "fail", words, "is slurm.conf found (SLURM_CONF), slurmctld up?")
        states = dict(line.split() for line in nodes.output.splitlines())
        usable = sum(int(n) for state, n in states.items() if state in _USABLE)
        if not usable:
            words = f"no node can be used: {', '.join(f'{n} {it}' for it, n in states.items())}"
            return Finding("", "fail", words, "sinfo -R says why")
        return Finding("", "ok", f"Slurm answers, {usable} nodes can be used", None)

    @property
    def _options_in_words(self) -> str:
        return f" (options = {json.dumps(self._options)})" if self._options else ""

    async def _check_options(self) -> Finding:
        """Check whether sbatch would accept a job with the options; submits none."""
        answer = await self._say("sbatch", *self._options, "--test-only", "--wrap", "true")
        if answer.status:
            words = (
                f"sbatch refuses its options: {_last_line(answer.error)}{self._options_in_words}"
            )
            return Finding("", "fail", words, "sinfo shows partitions, sbatch --help options")
        return Finding("", "ok", "sbatch accepts its options", None)

    async def _cancel(self, *arguments: str) -> None:
        answer = await self._say("scancel", "--quiet", *arguments)
        if answer.status and any(each in answer.error for each in (*_UNANSWERED, *_UNREACHABLE)):
            raise NotNow(f"scancel: {_last_line(answer.error)}", _AGAIN)

    async def _say(self, *command: str) -> CommandOutput:
        """Run one of Slurm's commands. Raises `NotNow` when it is not installed or hangs."""
        return await run_command(command, self._environment)


def _check_settings(text: str) -> list[Finding]:
    """Look for settings of the cluster under which jobs are not seen, or not ended in order."""
    seconds = {
        name: int(value)
        for name, value in re.findall(r"^(MinJobAge|KillWait) *= (\d+)", text, re.MULTILINE)
    }
    findings = []
    if seconds.get("MinJobAge", 300) < 60:
        words = f"Slurm forgets jobs that ended after {seconds['MinJobAge']} s (MinJobAge)"
        findings.append(Finding("", "warn", words, "set it to 60 or more; 300 is the default"))
    if seconds.get("KillWait", 30) < 5:
        words = f"Slurm kills {seconds['KillWait']} s after SIGTERM (KillWait)"
        findings.append(
            Finding("", "warn", words, "jobs that Slurm itself ends have no time to end")
        )
    return findings


def _read(lines: str) -> Iterator[tuple[str, ListedJob]]:
    """Yield (name, state) of each job of pgcoord in *lines*, the output of squeue."""
    for line in lines.splitlines():
        parts = [part.strip() for part in line.split("|", 5)]
        if len(parts) < 6 or not parts[5].startswith("pgcoord-"):
            continue
        job, state, reason, nodes, status, name = parts
        if state in _WAITING:
            words = state if reason == "None" else reason  # Slurm has not considered the job yet
            yield name, ListedJob(job, EngineState.WAITING, words)
        elif state in _RUNNING:
            yield name, ListedJob(job, EngineState.RUNNING, state, nodes or None)
        else:
            code = _exit_status(status) if state in _WITH_STATUS else None
            yield name, ListedJob(job, EngineState.ENDED, f"{state}, {reason}", nodes or None, code)


def _exit_status(text: str) -> int | None:
    """Return the exit status, 128 + n after signal n, of what waitpid returned."""
    if not text.isdecimal():
        return None
    code = os.waitstatus_to_exitcode(int(text))
    return code if code >= 0 else 128 - code


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (
        lines[-1].removeprefix("sbatch: ").removeprefix("error: ") if lines else "no reason given"
    )
