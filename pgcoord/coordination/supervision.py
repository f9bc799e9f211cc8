"""Supervision of one attempt: start its job once, watch it, record its start and its end.

The coordinator decides (that the attempt has to end, that its lead is over). The one rule: another
coordinator can repeat each step, since the database and the launcher know how far this one came.
"""

import asyncio
import base64
import errno
import hashlib
import json
import logging
import shlex
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from pgcoord import judge
from pgcoord.configuration import results
from pgcoord.configuration.model import PASSED_ON, Check, Workflow
from pgcoord.coordination.interface import Coordination
from pgcoord.coordination.launching import Command, Job, JobState
from pgcoord.coordination.retrying import Fact
from pgcoord.database import _sql, claims, jobs
from pgcoord.database.rows import TakenReport
from pgcoord.database.work import Assignment, Move, OpenAttempt
from pgcoord.errors import CannotStart, CoordError, InvalidConfiguration, InvalidInput, NotNow
from pgcoord.messages.signing import NotSigned

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# The time that a job has between SIGTERM and SIGKILL.
GRACE = timedelta(seconds=5)

# The exit status of a job whose wrapper was killed with it: 128 + SIGKILL.
KILLED = 128 + 9

# Seconds for which a proof of our lead is good enough to start a job without a new one.
_TRUSTED_FOR = 1.0

# Seconds between two checks whether a quiet job writes again.
_RECHECK = 60.0

# Errors for what the machine lacks at the moment: they fail no phase.
_SHORTAGES = (
    errno.EAGAIN,  # of processes
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,  # a disk with errors is mounted anew, to be read only
)


class Shortage(Exception):
    """The machine lacks a resource for a start; the attempt keeps its slot, and is tried again."""


@dataclass(frozen=True)
class _End:
    """The end of a job; `exit_status` is None if it left none."""

    exit_status: int | None


class Supervision:
    """One attempt that this coordinator supervises.

    `recorded`: the start is in the database, or will never be. `is_ending`: the job was sent
    SIGTERM. `process_gone`: the job has ended. `end_is_logged`: so was the move of its phase.
    """

    task: asyncio.Task[None]

    def __init__(
        self, assignment: Assignment, coordinator: Coordination, epoch: int, lead_checked_at: float
    ) -> None:
        """*lead_checked_at*: loop time of the last statement that proved that we lead."""
        self.assignment = assignment
        self.epoch = epoch
        self.lead_checked_at = lead_checked_at
        self.job: Job = coordinator.launcher.adopt(assignment)
        self.recorded = False
        self.is_ending = False
        self.process_gone = False
        self.end_is_logged = False
        self._coordinator = coordinator
        # As it is now: another configuration does not change what runs.
        self._settings = coordinator.configuration.workflows.get(assignment.workflow)
        self._check: Check | None = None
        self._results: dict[str, str] = {}
        # Identifies the work, independent of the prompt of a further attempt.
        digested = f"{assignment.workflow}\0{assignment.prompt or ''}"
        self._work = hashlib.sha256(digested.encode("utf-8", "surrogatepass")).hexdigest()
        self._end_in: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def log_end(self, move: Move | None, reason: str) -> None:
        """Log, once, the *move* that ended the attempt, with *reason* if the move has none."""
        if move and not self.end_is_logged:
            self.end_is_logged = True
            first_line = (move.reason or reason).partition("\n")[0]
            log_move(self.assignment, move.from_status, move.to_status, first_line)

    def update(self, attempt: OpenAttempt) -> None:
        """End the job if *attempt* requires it: at once on request, else after the linger."""
        if not self._end_in.done() and (attempt.ending or attempt.ended):
            lingers = max(0.0, self._linger.total_seconds() - (attempt.ended_seconds_ago or 0.0))
            self._end_in.set_result(0.0 if attempt.ending else lingers)

    async def launch_and_supervise(self) -> None:
        """Start the job of an attempt that was just claimed, and supervise it to its end."""
        try:
            await self._prepare()
            await self._launch()
        except NotNow as error:
            await self._return(error)
            return
        except (CannotStart, InvalidConfiguration, OSError) as error:
            lack = error if isinstance(error, OSError) else error.__cause__
            if isinstance(lack, OSError) and lack.errno in _SHORTAGES:
                words = (lack.strerror or str(lack)).lower()
                await self._coordinator.execute_with_retry(
                    lambda conn: jobs.note_job(conn, self.assignment.attempt_id, None, words)
                )
                raise Shortage(f"it cannot be started now: {words}") from error
            if await self.job.give_up():
                logger.warning("%s could not be started: %s", self.assignment, error)
                await self._give_up("failed", str(error))
                return
            # Another coordinator of this host has started it.
            await self.go_on()
            return
        await self._record_start()
        await self._supervise_to_end()

    async def go_on(self) -> None:
        """Continue an attempt at the point where its last coordinator left it."""
        state = await self.job.state()
        assignment = self.assignment
        if state in (JobState.ALIVE, JobState.ENDED):
            logger.info("%s taken over, %s, %s", assignment, self.job.identity, state.value)
            if not assignment.started:
                await self._record_start()
            ended = state is JobState.ENDED
            await self._take_spooled_report(await self._read_result() if ended else None)
            await self._supervise_to_end()
        elif assignment.started or state is JobState.LOST:
            await self._take_spooled_report()
            logger.warning("%s is lost: its process left no exit status", assignment)
            await self.job.end(GRACE)  # it may be alive, with its folder deleted
            await self._end_left_behind()
            await self._give_up("lost", "its process is gone and left no exit status")
        elif state is JobState.GIVEN_UP:
            await self._give_up("returned", "given up before it was started")
        elif self._coordinator.leads.is_set() and not (assignment.ended or assignment.ending):
            await self.launch_and_supervise()
        else:
            await self._give_back()

    async def _return(self, error: NotNow) -> None:
        """Return an attempt that cannot start now; its phase waits for `error.wait`."""
        if not await self.job.give_up():
            await self.go_on()  # another coordinator of this host has started it
            return
        logger.info("%s is given back: %s", self.assignment, error)
        await self._conclude(str(error), claims.returned(self.assignment, error.wait, str(error)))

    async def _give_back(self) -> None:
        """Return an attempt that never started, unless another coordinator starts it first."""
        await self._coordinator.execute_with_retry(
            lambda conn: claims.check_epoch(conn, self.epoch)
        )
        if await self.job.give_up():
            await self._give_up("returned", f"{self._coordinator.host} gave it back, not started")
        else:
            await self.go_on()

    async def disown(self) -> None:
        """End the job of an attempt that is not in the database any more.

        Its phase was deleted, or a failover lost its claim, or another host's leader gave it up.
        """
        self.process_gone = True
        if await self.job.state() is JobState.ALIVE:
            logger.warning(
                "%s is ended, %s: its attempt is not in the database any more",
                self.assignment,
                self.job.identity,
            )
            await self.job.end(GRACE)
        await self._end_left_behind()

    async def _prepare(self) -> None:
        """Create the files and the issue that the job needs before it starts."""
        workflow, inputs = self._workflow(), {}
        if self.assignment.has_inputs:
            inputs = await self._coordinator.execute_with_retry(
                lambda conn: claims.inputs(conn, self.assignment)
            )
        self._results = results.placeholders(inputs)
        prompt = results.fill_prompt(self.assignment.prompt or "", self._results)
        prompt = await self._prepare_judgement(workflow, prompt)
        self.assignment = replace(self.assignment, prompt=prompt)
        await self._write_files(prompt, json.dumps(inputs), workflow.user)
        issues = self._coordinator.issues
        if issues and self.assignment.issue_number is None:
            number = await issues.issue_for(self.assignment, self.epoch)
            self.assignment = replace(self.assignment, issue_number=number)

    async def _write_files(self, prompt: str, inputs: str, user: str | None) -> None:
        await self.job.prepare(prompt, inputs, user)

    async def _prepare_judgement(self, workflow: Workflow, prompt: str) -> str:
        """Find the check of the phase; return the prompt, after a failure the one for that."""
        checks = self._coordinator.configuration.checks
        self._check = workflow.check
        if not (checks or workflow.asks_again(self.assignment.attempt)):
            return prompt
        name, prompt = await self._coordinator.execute_with_retry(
            lambda conn: judgement_of(conn, self.assignment, workflow, prompt)
        )
        if name is not None:
            if name not in checks:
                raise InvalidConfiguration(f"check {name} is not declared")
            self._check = checks[name]
        return prompt

    async def _launch(self) -> None:
        if not self._is_lead_fresh:
            await self._coordinator.execute_with_retry(
                lambda conn: claims.check_epoch(conn, self.epoch)
            )
        await self.job.start(self._command())

    @property
    def _is_lead_fresh(self) -> bool:
        """Whether our lead was proved recently enough to start a job without a new proof."""
        return _now() - self.lead_checked_at <= _TRUSTED_FOR

    def _command(self) -> Command:
        workflow = self._workflow()
        return Command(
            self._arguments_of(workflow),
            directory=workflow.directory,
            environment=self._environment_of(workflow),
            user=workflow.user,
        )

    def _arguments_of(self, workflow: Workflow) -> list[str]:
        """Return the command of the job: what is configured, judged, in its worktree."""
        values = _values(self.assignment, self.job.prompt_file) | self._results
        # A job of an engine runs on a machine that need not have pgcoord, and another account may
        # have no access to ours.
        travels = self.assignment.host is None or workflow.user is not None
        arguments = _judged(workflow.arguments(values), workflow, self._check, travels=travels)
        if workflow.worktree is None:
            return arguments
        from pgcoord.runs import worktree

        resolver = self._resolver_of(workflow)
        resolve = None
        if resolver:
            resolve = shlex.join(
                _judged(resolver.arguments(values), resolver, resolver.check, travels=travels)
            )
        options = {
            "base": workflow.worktree.base,
            "root": workflow.worktree.folder and str(workflow.worktree.folder),
            "title": values["title"],
            "resolve": resolve,
            "work": self._work,
            "push": workflow.worktree.push,
        }
        options_given = [
            f"--{name}={value}" for name, value in options.items() if value is not None
        ]
        return [*program_of(worktree.__file__, travels=travels), *options_given, "--", *arguments]

    def _resolver_of(self, workflow: Workflow) -> Workflow | None:
        """Return the workflow that tries to resolve the conflicts of *workflow*."""
        name = workflow.worktree and workflow.worktree.on_conflict
        return self._coordinator.configuration.workflows[name] if name else None

    async def _record_start(self) -> None:
        identity = self.job.identity
        assert identity is not None
        await self._coordinator.execute_with_retry(
            lambda conn: claims.start_phase(conn, self.epoch, self.assignment.attempt_id, *identity)
        )
        log_move(self.assignment, "ready", "running", f"started, {identity}")

    async def _supervise_to_end(self) -> None:
        """Wait until the job is gone, ending it if necessary, and record its end."""
        self.recorded = True
        self._coordinator.note_recorded()
        end = await self._coordinator.unless_stopped(self._wait_until_gone())
        if end is None:
            logger.info("%s is left running, %s", self.assignment, self.job.identity)
            return
        self.process_gone = True
        left_behind = await self._end_left_behind()
        result = await self._read_result()
        if fault := await self._take_spooled_report(result):
            result = {**result, "result_fault": fault}
        if end.exit_status is None and not self.is_ending:
            await self._give_up("lost", "its process is gone and left no exit status")
            return
        status = KILLED if end.exit_status is None else end.exit_status
        tail = await self.job.log_tail() if status else ""
        exited_at = await self.job.exited_at()
        await self._conclude(
            f"exited with status {status}",
            claims.exited(self.assignment, status, tail, ", ".join(left_behind), result, exited_at),
        )

    async def _read_result(self) -> claims.Result:
        try:
            text = await self.job.result()
        except InvalidInput as error:
            return {"result_fault": str(error)}
        return {} if text is None else {"result": text}

    async def _take_spooled_report(self, result: claims.Result | None = None) -> str | None:
        """Submit the report that the workflow could not send, if there is one.

        *result*: its result file, once its process is gone. In a worktree, a reported success only
        supplies the result once the work is kept, since the process may be killed before that.
        Return why the report cannot be used (its sender got no answer); else None.
        """
        assignment = self.assignment
        refused: CoordError | None = None
        try:
            spooled = await self.job.spooled_report(assignment.secret)
            if spooled is None or (self._keeps_work and spooled.report["status"] == "completed"):
                return None
            answer = await self._coordinator.record(
                claims.reported(
                    spooled.report,
                    message_id=spooled.message_id,
                    actor=f"{assignment.adw_id} (spooled report)",
                    adw_id=assignment.adw_id,
                    attempt_id=assignment.attempt_id,
                    result=result,
                ),
                Fact(assignment, "left a report"),
            )
            assert answer is not None
            refused = TakenReport(**answer).refusal()
            if isinstance(
                refused, InvalidInput
            ):  # and it stays for the coordinator that records the end
                return f"the report that it left is refused: {refused}"
        except (NotSigned, InvalidInput) as error:
            refused = error
        if refused:
            logger.warning("%s: its spooled report is not taken: %s", assignment, refused)
        else:
            logger.info("%s: its spooled report is taken", assignment)
        await self.job.remove_spooled_report()
        return None

    async def _end_left_behind(self) -> Sequence[str]:
        processes = await self.job.end_left_behind(GRACE)
        for process in processes:
            logger.warning("%s left behind %s", self.assignment, process)
        return processes

    async def _give_up(self, outcome: str, error: str) -> None:
        await self._conclude(error, claims.given_up(self.assignment, outcome, error))

    async def _conclude(self, reason: str, end: claims.End) -> None:
        """Record *end*, that of the attempt, and log the move of its phase."""
        move = await self._coordinator.record(end, Fact(self.assignment, reason))
        self.log_end(Move(**move) if move else None, reason)

    async def _wait_until_gone(self) -> _End:
        """Wait until the job is gone, and end it when `update` says so."""
        async with asyncio.TaskGroup() as tasks:
            ender = tasks.create_task(self._end_in_time())
            watcher = tasks.create_task(self._watch_output())
            exit_status = await self.job.wait()
            watcher.cancel()
            if not self.is_ending:
                ender.cancel()
        return _End(exit_status)

    async def _watch_output(self) -> None:
        """Record when the job is quiet for longer than its workflow says, and when it is not."""
        workflow = self._settings
        if workflow is None or workflow.quiet is None:
            return
        limit = workflow.quiet.total_seconds()
        began = time.time()
        # Of an attempt that was taken over, another coordinator may have recorded that.
        noted_quiet = None if self.assignment.started else False
        while True:
            silence = max(0.0, time.time() - (await self._last_written() or began))
            is_quiet = silence >= limit
            if is_quiet is not noted_quiet:
                await self._coordinator.execute_with_retry(
                    partial(
                        claims.note_quiet,
                        attempt=self.assignment,
                        quiet_for=timedelta(seconds=silence) if is_quiet else None,
                        ends=workflow.quiet_ends,
                    )
                )
                noted_quiet = is_quiet
            await asyncio.sleep(min(limit, _RECHECK) if is_quiet else limit - silence)

    async def _last_written(self) -> float | None:
        """Return when the job last wrote to its log, in seconds since 1970; None if unknown."""
        return await self.job.last_written()

    async def _end_in_time(self) -> None:
        await asyncio.sleep(await self._end_in)
        self.is_ending = True
        logger.info("%s is being ended", self.assignment)
        await self.job.end(GRACE)

    def _workflow(self) -> Workflow:
        name, workflow = self.assignment.workflow, self._settings
        if workflow is None:
            raise InvalidConfiguration(f"workflow {name} is not declared any more")
        if workflow.needs_prompt and not (self.assignment.prompt or "").strip():
            raise InvalidConfiguration(f"it has no prompt, and workflow {name} needs_prompt")
        return workflow

    @property
    def _keeps_work(self) -> bool:
        """Whether success requires that the work is kept, after the command's own report."""
        return self._settings is not None and self._settings.worktree is not None

    @property
    def _linger(self) -> timedelta:
        return self._settings.linger if self._settings else Workflow.linger

    def _set_by_phase(self, workflow: Workflow) -> dict[str, str]:
        """Return the variables that the phase sets: a client that may insert it may not set
        arbitrary ones."""
        variables = self.assignment.environment or {}
        for name in variables:
            if not workflow.lets_phases_set(name):
                raise InvalidConfiguration(
                    f"the phase sets {name}, which workflow {workflow.name} does not let phases set"
                    f" (phase_environment)"
                )
        return variables

    def _environment_of(self, workflow: Workflow) -> dict[str, str]:
        assignment, environment = self.assignment, self._coordinator.environment
        resolver = self._resolver_of(workflow)
        passed_on = {
            name: environment[name]
            for name in (
                *PASSED_ON,
                *workflow.environment,
                *(resolver.environment if resolver else ()),
            )
            if name in environment
        }
        passed_on |= workflow.variables
        passed_on |= self._set_by_phase(workflow)
        if self._coordinator.report_url:
            passed_on["PGCOORD_REPORT_URL"] = self._coordinator.report_url
        return passed_on | {
            "PGCOORD_QUEUE_ID": assignment.queue_id,
            "PGCOORD_FEATURE_ID": str(assignment.feature_id),
            "PGCOORD_PHASE_NUMBER": str(assignment.phase_number),
            "PGCOORD_ADW_ID": assignment.adw_id,
            "PGCOORD_ATTEMPT": str(assignment.attempt),
            # The folders of one database's runs lie in a folder of its name (claim_phases).
            "PGCOORD_INSTALLATION": Path(assignment.folder).parent.name,
            "PGCOORD_ISSUE_NUMBER": str(assignment.issue_number or ""),
            "PGCOORD_WEBHOOK_SECRET": assignment.secret,
        }


async def judgement_of(
    conn: _sql.Connection, attempt: Assignment, workflow: Workflow, prompt: str
) -> tuple[str | None, str]:
    """Return the check that the phase names, and the prompt of *attempt*.

    After a failed attempt that is what `retry_prompt` makes of *prompt*.
    """
    not_run = None
    if workflow.worktree:
        from pgcoord.runs import worktree

        not_run = worktree.NOT_RUN
    name, error = await claims.judgement(conn, attempt, not_run)
    if error and workflow.asks_again(attempt.attempt):
        prompt = workflow.prompt_after(error, prompt)
    return name, prompt


def log_move(assignment: Assignment, was: str, now: str, reason: str) -> None:
    """Log a transition of a phase; *reason* is one line that contains no output of a process."""
    logger.info(
        "%s %s → %s: attempt %d, slot %d, %s",
        assignment.queue_id,
        was,
        now,
        assignment.attempt,
        assignment.slot,
        reason,
        extra={
            "fields": {
                "phase": assignment.queue_id,
                "from": was,
                "to": now,
                "attempt": assignment.attempt,
                "adw_id": assignment.adw_id,
                "slot": assignment.slot,
                "reason": reason,
            }
        },
    )


@cache
def program_of(file: str, *, travels: bool) -> tuple[str, ...]:
    """Return the command that runs a program of ours, one file of standard-library Python.

    *travels*: the command contains the source of *file*, so that it runs on another machine with
    any Python 3.8 or newer; otherwise it names *file* and this Python.
    """
    if not travels:
        return (sys.executable, "-I", file)
    packed = base64.b85encode(zlib.compress(Path(file).read_bytes(), 9)).decode()
    source = f"import base64,zlib;exec(zlib.decompress(base64.b85decode({packed!r})))"
    return ("python3", "-I", "-c", source)


def _judged(
    arguments: list[str], workflow: Workflow, check: Check | None, *, travels: bool
) -> list[str]:
    """Return the command whose exit status is the judgement (judge.py) on *arguments*."""
    if not (check or workflow.fails_on or workflow.agent):
        return arguments
    spec = judge.Spec(
        check.command if check else (),
        check.timeout.total_seconds() if check else 0,
        workflow.fails_on,
        workflow.agent,
    )
    program = program_of(judge.__file__, travels=travels)
    return [*program, json.dumps(spec._asdict()), *arguments]


def _values(assignment: Assignment, prompt_file: str) -> dict[str, str | None]:
    """Return the values of the placeholders in a workflow's command."""
    issue = assignment.issue_number
    return {
        "queue_id": assignment.queue_id,
        "feature_id": str(assignment.feature_id),
        "phase_number": str(assignment.phase_number),
        "attempt": str(assignment.attempt),
        "adw_id": assignment.adw_id,
        "issue_number": None if issue is None else str(issue),
        "workflow_type": assignment.workflow,
        "title": assignment.title or f"Phase {assignment.phase_number}",
        "prompt_file": prompt_file,
        "prompt": assignment.prompt or "",
    }


def _now() -> float:
    return asyncio.get_running_loop().time()
