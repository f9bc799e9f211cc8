"""The issues of phases on GitHub: created before the job starts, commented when the phase ends.

The database decides and stores the progress; requests to GitHub happen in between, with no
transaction open. The one rule: commit the intent before the POST, so that a crash, or a lost
response, leaves a row that says an issue may exist.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

from pgcoord.configuration.model import GitHub
from pgcoord.coordination.interface import Coordination
from pgcoord.coordination.retrying import Stopped, wait_at_most
from pgcoord.database import issues
from pgcoord.database.states import ENDED
from pgcoord.database.work import Assignment, GitHubTask, Hold, Intent
from pgcoord.errors import NotNow
from pgcoord.github.client import Issue, Refusal, Repository, read_credentials
from pgcoord.github.text import comment_body, issue_body, issue_title, marker, short

logger = logging.getLogger(__name__)

# Tries of a GitHub task; as the wait doubles, the last ones are hours apart.
_MOST_TRIES = 12

# The first wait after GitHub refused the credentials.
_CREDENTIALS_RETRY = timedelta(minutes=5)

# Seconds that `settle` may take.
_SETTLE_SECONDS = 30

# Seconds until the next GitHub task after an unexpected error.
_RETRY_AFTER = 5

_FEATURE_COLOR, _PHASE_COLOR = "1d76db", "c5def5"


class Issues:
    """Creates issues, and executes GitHub tasks, for one coordinator."""

    def __init__(
        self, settings: GitHub, environment: Mapping[str, str], coordinator: Coordination
    ) -> None:
        """Raise `InvalidConfiguration` when *environment* holds no credentials."""
        self._settings = settings
        self._coordinator = coordinator
        self._repository = Repository(settings, read_credentials(settings, environment))
        self._woken = asyncio.Event()
        self._busy = asyncio.Lock()

    async def issue_for(self, assignment: Assignment, epoch: int) -> int | None:
        """Return the number of the phase's issue, creating it if there is none.

        None if the phase starts without one. Raises `NotNow` when the phase has to wait for its
        issue, `Refusal` when GitHub refuses to create it.
        """
        try:
            return await self._issue_for(assignment, epoch)
        except _MayExist:
            raise
        except NotNow as error:
            hold = await self._hold(error)
            if not hold.optional:
                raise NotNow(str(error), timedelta(seconds=hold.wait_seconds)) from error
            await self._do_without(assignment, str(error))
        except Refusal as error:
            if self._settings.required:
                raise
            await self._do_without(assignment, str(error))
        return None

    async def _issue_for(self, assignment: Assignment, epoch: int) -> int:
        name, execute = self._repository.name, self._coordinator.execute_with_retry
        facts = await execute(lambda conn: issues.issue_facts(conn, assignment.queue_id, name))
        await self._make_labels(assignment, facts)

        async def intend(*, looked: bool) -> Intent:
            return await execute(
                lambda conn: issues.intend_issue(
                    conn, epoch, assignment.attempt_id, name, looked=looked
                )
            )

        intent = await intend(looked=False)
        if not intent.posts and intent.number is None:
            number = await self._find(intent)
            if number is not None:
                return number
            intent = await intend(looked=True)
        if intent.number is not None:
            return intent.number
        if not intent.posts:
            raise _MayExist(
                "its issue may exist already, and is searched for again",
                timedelta(seconds=intent.wait_seconds or 0),
            )
        return await self._post(assignment, intent, facts)

    async def _find(self, intent: Intent) -> int | None:
        """Return the number of the issue with the marker of *intent*; None if there is none."""
        matches = await self._repository.find_issues(marker(intent.key), intent.intended_at)
        if not matches:
            return None
        logger.info("issue #%d was made before", matches[0].number)
        await self._store(intent.key, matches[0], created=False)
        return matches[0].number

    async def _post(self, assignment: Assignment, intent: Intent, facts: Mapping[str, Any]) -> int:
        title = assignment.title or f"Phase {assignment.phase_number}"
        try:
            issue = await self._repository.post_issue(
                issue_title(assignment.feature_id, assignment.phase_number, title),
                issue_body(
                    title=title,
                    feature_id=assignment.feature_id,
                    phase_number=assignment.phase_number,
                    prompt=assignment.prompt or "",
                    facts=facts,
                    key=intent.key,
                    page=self._coordinator.page_of(assignment.queue_id),
                ),
                [f"feature-{assignment.feature_id}", f"phase-{assignment.phase_number}"],
            )
        except (NotNow, Refusal) as error:
            if not isinstance(error, NotNow) or error.certain:
                await self._coordinator.execute_with_retry(
                    lambda conn: issues.unpost_issue(conn, intent.key)
                )
            raise
        await self._store(intent.key, issue, created=True)
        logger.info("%s: issue #%d", assignment.queue_id, issue.number)
        return issue.number

    async def _store(self, key: UUID, issue: Issue, *, created: bool) -> None:
        await self._coordinator.execute_with_retry(
            lambda conn: issues.store_issue(conn, key, issue.number, issue.author, created=created)
        )

    async def _make_labels(self, assignment: Assignment, facts: Mapping[str, Any]) -> None:
        """Create the labels of the issue that no issue had before, if GitHub permits it."""
        labels = []
        if not facts["feature_is_labelled"]:
            text = f"Phases of planned feature {assignment.feature_id}: {short(facts['feature'])}"
            labels.append((f"feature-{assignment.feature_id}", _FEATURE_COLOR, text))
        if not facts["phase_is_labelled"]:
            text = f"Phase {assignment.phase_number} of its feature"
            labels.append((f"phase-{assignment.phase_number}", _PHASE_COLOR, text))
        try:
            for name, color, description in labels:
                await self._repository.make_label(name, color, description)
        except Refusal as error:
            logger.warning("the labels of %s are not made: %s", assignment.queue_id, error)

    async def _do_without(self, assignment: Assignment, reason: str) -> None:
        logger.warning("%s starts without an issue: %s", assignment, reason)
        await self._coordinator.execute_with_retry(
            lambda conn: issues.do_without_issue(conn, assignment.attempt_id, reason)
        )

    async def _hold(self, error: NotNow) -> Hold:
        """Suspend all requests to GitHub for a while; return for how long."""
        after = None if self._settings.required else self._settings.wait
        hold = await self._coordinator.execute_with_retry(
            lambda conn: issues.hold_issues(conn, error.wait, error.grows, str(error), after)
        )
        logger.warning("GitHub is asked again in %.0f s: %s", hold.wait_seconds, error)
        return hold

    def wake(self) -> None:
        """Make `run` look for GitHub tasks at once."""
        self._woken.set()

    async def run(self) -> None:
        """Execute GitHub tasks, one at a time, while the coordinator leads, until it is stopped."""
        while not self._coordinator.is_stopping:
            self._woken.clear()
            try:
                due_in = await self._do_due_tasks()
            except Stopped:
                return
            except Exception:
                logger.exception("the work on GitHub continues in %d s", _RETRY_AFTER)
                due_in = _RETRY_AFTER
            await self._coordinator.unless_stopped(wait_at_most(self._woken, due_in))

    async def close(self) -> None:
        """Close the connections to GitHub. Call it when no request is in progress."""
        await self._repository.disconnect()

    async def settle(self) -> None:
        """Execute the due tasks for half a minute at most; the next coordinator does the rest."""
        with contextlib.suppress(TimeoutError, Stopped):
            async with asyncio.timeout(_SETTLE_SECONDS):
                await self._do_due_tasks()

    async def _do_due_tasks(self) -> float | None:
        """Execute the due GitHub tasks; return the seconds until the next (None: there is none)."""
        async with self._busy:
            while self._coordinator.leads.is_set() and not self._coordinator.is_stopping:
                task = await self._coordinator.execute_with_retry(
                    lambda conn: issues.begin_github_task(conn, self._repository.name)
                )
                if task.id is None:
                    return task.due_in
                await self._do(task, task.id)
            return None

    async def _do(self, task: GitHubTask, task_id: int) -> None:
        """Execute *task*; record that it is done, postponed or given up."""
        execute = self._coordinator.execute_with_retry
        try:
            result = await (self._close_duplicates if task.kind == "check" else self._comment)(task)
            await execute(lambda conn: issues.finish_github_task(conn, task_id, result, None))
            return
        except NotNow as error:
            await self._hold(error)
            words, wait = str(error), error.wait or None
        except Refusal as error:
            words, wait = str(error), _CREDENTIALS_RETRY if error.status in (401, 403) else None
        logger.warning("%s: its issue was not updated: %s", task.queue_id, words)
        if wait and task.tries < _MOST_TRIES:
            await execute(lambda conn: issues.postpone_github_task(conn, task_id, wait, words))
        else:
            await execute(lambda conn: issues.finish_github_task(conn, task_id, None, words))

    async def _comment(self, task: GitHubTask) -> str:
        """Comment once on the end of a phase; close or reopen its issue according to its state.

        Return the steps done, in words.
        """
        number, mark = task.number, marker(task.key)
        assert number is not None
        comments = []
        if task.status in ENDED and not (
            task.tries > 1 and await self._repository.has_comment(number, mark)
        ):
            await self._repository.comment(number, comment_body(task.status, task.facts, task.key))
            comments.append("commented")
        issue = await self._repository.issue(number)
        if task.phase_status in ENDED and issue.is_open:
            reason = "completed" if task.phase_status == "completed" else "not_planned"
            await self._repository.close(number, reason)
            comments.append(f"closed as {reason.replace('_', ' ')}")
        elif task.phase_status not in ENDED and not issue.is_open:
            await self._repository.reopen(number)
            comments.append("reopened")
        return f"issue #{number}: {', '.join(comments) or 'it is as it should be'}"

    async def _close_duplicates(self, task: GitHubTask) -> str | None:
        """Close duplicates of the issue with the lowest number; return the steps done, in words.

        None if there was no duplicate.
        """
        matches = await self._repository.find_issues(marker(task.issue_key), task.intended_at)
        if not matches:
            return None
        first, *others = matches
        await self._store(task.issue_key, first, created=False)
        for issue in others:
            if issue.is_open:
                await self._repository.close_duplicate(issue.number, first)
        numbers = ", ".join(f"#{issue.number}" for issue in others)
        return f"issue #{first.number}: closed its duplicate {numbers}" if others else None


class _MayExist(NotNow):
    """The issue may exist already; search again before creating another."""
