"""The issues of phases: made just in time, and told how their phases ended.

The database says what is to be done and keeps how far it came; GitHub is asked in between, with no
transaction open. The one rule: an issue is posted only when the database has said so just now, so
that whoever is killed, or hears nothing, leaves behind that there may be one.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

from pgcoord.configuration import GitHub
from pgcoord.coordination.retrying import Stopped
from pgcoord.coordination.supervision import Coordination
from pgcoord.database import issues
from pgcoord.database.rows import Assignment, GitHubTask, Hold, Intent
from pgcoord.errors import NotNow
from pgcoord.github.client import Issue, Refusal, Repository, read_credentials
from pgcoord.github.text import comment_body, issue_body, issue_title, marker, short

logger = logging.getLogger(__name__)

_ENDS = ("completed", "failed", "cancelled")

# Tries of an errand; with a wait that doubles, the last ones are hours apart.
_MOST_TRIES = 12

# How long credentials that are refused are left alone, at first.
_MENDED = timedelta(minutes=5)

# Seconds that errands may take when everything else is done.
_SETTLING = 30

# Seconds until errands are looked at again after an error of ours.
_SECOND_LOOK = 5

_FEATURE_COLOR, _PHASE_COLOR = "1d76db", "c5def5"


class Issues:
    """What a coordinator does on GitHub."""

    def __init__(
        self, settings: GitHub, environment: Mapping[str, str], coordinator: Coordination
    ) -> None:
        """Raises `InvalidConfiguration` where there are no credentials."""
        self._settings = settings
        self._coordinator = coordinator
        self._repository = Repository(settings, read_credentials(settings, environment))
        self._woken = asyncio.Event()
        self._busy = asyncio.Lock()

    async def issue_for(self, assignment: Assignment, epoch: int) -> int | None:
        """The issue of a claimed phase, made now unless there is one; None: it does without.

        Raises `NotNow` when the phase has to wait for it, `Refusal` when it will never have one.
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
                "its issue may have been made, and is looked for again",
                timedelta(seconds=intent.wait_seconds or 0),
            )
        return await self._post(assignment, intent, facts)

    async def _find(self, intent: Intent) -> int | None:
        """The number of the issue, if it was made before."""
        found = await self._repository.find_issues(marker(intent.key), intent.intended_at)
        if not found:
            return None
        logger.info("issue #%d was made before", found[0].number)
        await self._store(intent.key, found[0], made=False)
        return found[0].number

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
        await self._store(intent.key, issue, made=True)
        logger.info("%s: issue #%d", assignment.queue_id, issue.number)
        return issue.number

    async def _store(self, key: UUID, issue: Issue, *, made: bool) -> None:
        await self._coordinator.execute_with_retry(
            lambda conn: issues.store_issue(conn, key, issue.number, issue.author, made=made)
        )

    async def _make_labels(self, assignment: Assignment, facts: Mapping[str, Any]) -> None:
        """Make the labels that no issue has had yet, where we may."""
        labels = []
        if not facts["feature_is_labelled"]:
            what = f"Phases of planned feature {assignment.feature_id}: {short(facts['feature'])}"
            labels.append((f"feature-{assignment.feature_id}", _FEATURE_COLOR, what))
        if not facts["phase_is_labelled"]:
            what = f"Phase {assignment.phase_number} of its feature"
            labels.append((f"phase-{assignment.phase_number}", _PHASE_COLOR, what))
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
        """Have nobody ask GitHub for a while."""
        after = None if self._settings.required else self._settings.wait
        hold = await self._coordinator.execute_with_retry(
            lambda conn: issues.hold_issues(conn, error.wait, error.grows, str(error), after)
        )
        logger.warning("GitHub is asked again in %.0f s: %s", hold.wait_seconds, error)
        return hold

    def wake(self) -> None:
        """Look for errands: there may be some."""
        self._woken.set()

    async def run(self) -> None:
        """Do what is to be done on GitHub, one thing at a time, while the coordinator leads."""
        while not self._coordinator.is_stopping:
            self._woken.clear()
            try:
                due_in = await self._do_what_is_due()
            except Stopped:
                return
            except Exception:
                logger.exception("errands are looked at again in %d s", _SECOND_LOOK)
                due_in = _SECOND_LOOK
            await self._coordinator.unless_stopped(self._sleep(due_in))

    async def close(self) -> None:
        """Close the connections, once nothing is being made any more."""
        await self._repository.disconnect()

    async def settle(self) -> None:
        """Do what is due now, for half a minute at most: whoever comes next does the rest."""
        with contextlib.suppress(TimeoutError, Stopped):
            async with asyncio.timeout(_SETTLING):
                await self._do_what_is_due()

    async def _sleep(self, seconds: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()

    async def _do_what_is_due(self) -> float | None:
        """Do errands until none is due; return in how many seconds one is."""
        async with self._busy:
            while self._coordinator.leads.is_set() and not self._coordinator.is_stopping:
                errand = await self._coordinator.execute_with_retry(
                    lambda conn: issues.begin_errand(conn, self._repository.name)
                )
                if errand.id is None:
                    return errand.due_in
                await self._do(errand, errand.id)
            return None

    async def _do(self, errand: GitHubTask, errand_id: int) -> None:
        """Do an errand, or have it tried again, or give it up; what became of it is recorded."""
        execute = self._coordinator.execute_with_retry
        try:
            done = await (self._check if errand.kind == "check" else self._say)(errand)
            await execute(lambda conn: issues.finish_errand(conn, errand_id, done, None))
            return
        except NotNow as error:
            await self._hold(error)
            words, wait = str(error), error.wait or None
        except Refusal as error:
            words, wait = str(error), _MENDED if error.status in (401, 403) else None
        logger.warning("%s: its issue is not told: %s", errand.queue_id, words)
        if wait and errand.tries < _MOST_TRIES:
            await execute(lambda conn: issues.postpone_errand(conn, errand_id, wait, words))
        else:
            await execute(lambda conn: issues.finish_errand(conn, errand_id, None, words))

    async def _say(self, errand: GitHubTask) -> str:
        """Comment on the end of a phase, once; close or reopen its issue as the phase is now."""
        number, words = errand.number, marker(errand.key)
        assert number is not None
        done = []
        if errand.status in _ENDS and not (
            errand.tries > 1 and await self._repository.has_comment(number, words)
        ):
            await self._repository.comment(
                number, comment_body(errand.status, errand.facts, errand.key)
            )
            done.append("commented")
        issue = await self._repository.issue(number)
        if errand.phase_status in _ENDS and issue.is_open:
            reason = "completed" if errand.phase_status == "completed" else "not_planned"
            await self._repository.close(number, reason)
            done.append(f"closed as {reason.replace('_', ' ')}")
        elif errand.phase_status not in _ENDS and not issue.is_open:
            await self._repository.reopen(number)
            done.append("reopened")
        return f"issue #{number}: {', '.join(done) or 'it is as it should be'}"

    async def _check(self, errand: GitHubTask) -> str | None:
        """Find an issue that may have been made; of several, keep the lowest number."""
        found = await self._repository.find_issues(marker(errand.issue_key), errand.intended_at)
        if not found:
            return None
        first, *others = found
        await self._store(errand.issue_key, first, made=False)
        for each in others:
            if each.is_open:
                await self._repository.close_duplicate(each.number, first)
        second = ", ".join(f"#{each.number}" for each in others)
        return f"issue #{first.number}: closed its duplicate {second}" if others else None


class _MayExist(NotNow):
    """An issue may have been made; it is looked for again before another is."""
