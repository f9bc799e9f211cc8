"""An engine in memory that implements the contract, with the faults of real engines. Its jobs wait
until the test releases them; a job sends its own requests (`begin`, `exit`) to the database, as the
HTTP server would.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

import psycopg
import pytest

from pgcoord.coordination import engines
from pgcoord.coordination.launching import EngineState, ListedJob, Order
from pgcoord.database import claims, jobs
from pgcoord.errors import NotNow


@dataclass
class FakeJob:
    """One job: its order, and what the engine says of it."""

    order: Order
    seen: ListedJob

    @property
    def attempt_id(self) -> int:
        return int(self.order.content["attempt"])

    @property
    def queue_id(self) -> str:
        return str(self.order.content["environment"]["PGCOORD_QUEUE_ID"])

    async def begin(self, conn: psycopg.AsyncConnection[object], copy: str = "a") -> str | None:
        """Ask to begin; return why not."""
        node = "node1"
        answer = await jobs.begin_job(conn, self.attempt_id, copy, self.seen.job, node)
        self.seen = replace(self.seen, state=EngineState.RUNNING, node=node)
        return answer.reason if answer.code else None

    async def exit(
        self, conn: psycopg.AsyncConnection[object], status: int = 0, copy: str = "a"
    ) -> None:
        """Say how it ended, and end."""
        end = jobs.job_exited(self.attempt_id, {"copy": copy, "exit_code": status})
        await claims.record_end(conn, end)
        self.end(status)

    def end(self, status: int | None = None, words: str = "FAILED") -> None:
        """End without a word of its own."""
        self.seen = replace(self.seen, state=EngineState.ENDED, words=words, exit_status=status)


class FakeEngine:
    """`down`: it does not answer. `output`: that of each job.

    `asked` counts its answers, by the kind of question.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, FakeJob] = {}
        self.down = False
        self.output: bytes | None = None
        self.asked = {"submit": 0, "find": 0, "end": 0, "log": 0}
        self._ids = itertools.count(1)

    def in_line(self) -> list[FakeJob]:
        """Its jobs in the order of their phases."""
        return sorted(self.jobs.values(), key=lambda job: job.queue_id)

    def _answer(self, kind: str) -> None:
        if self.down:
            raise NotNow("it is down", timedelta(seconds=0.1))
        self.asked[kind] += 1

    async def submit(self, order: Order) -> str:
        self._answer("submit")
        job = str(next(self._ids))
        self.jobs[job] = FakeJob(order, ListedJob(job, EngineState.WAITING, "Priority"))
        return job

    async def find(self) -> Mapping[str, list[ListedJob]]:
        self._answer("find")
        found: dict[str, list[ListedJob]] = {}
        for job in self.jobs.values():
            found.setdefault(job.order.name, []).append(job.seen)
        return found

    async def terminate(self, job: str) -> None:
        self._answer("end")
        if (found := self.jobs.get(job)) and found.seen.state is not EngineState.ENDED:
            found.end(words="CANCELLED")

    async def kill(self, job: str) -> None:
        await self.terminate(job)

    async def log(self, job: str) -> bytes | None:
        return self.output

    def changes(self) -> None:
        return None

    def is_launcher(self, monkeypatch: pytest.MonkeyPatch, name: str = "fake") -> None:
        """Make it the engine of every pool of the launcher *name*."""
        monkeypatch.setattr(
            engines, "LAUNCHERS", {**engines.LAUNCHERS, name: lambda settings, environment: self}
        )
