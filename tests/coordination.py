"""What tests of the coordinator share: phases that are shell scripts, and waiting by event."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from pgcoord import queries
from pgcoord.configuration import Configuration, Workflow
from pgcoord.coordinator import Coordinator

PATIENCE = 30.0  # seconds until a test that waits gives up

Row = dict[str, Any]


def scripts(**settings: Any) -> Workflow:
    """A default workflow that runs a phase's prompt as a shell script."""
    given: dict[str, Any] = {"command": ("sh", "{prompt_file}"), "directory": Path("/"), **settings}
    return Workflow(name="work", default=True, **given)


def make_coordinator(
    dsn: str,
    folder: Path,
    work: Workflow | None = None,
    kind: type[Coordinator] = Coordinator,
    url: str | None = None,
) -> Coordinator:
    """A coordinator with one workflow and its runs below `folder`, served at `url` if at all."""
    work = work or scripts()
    configuration = Configuration(path=None, workflows={work.name: work}, log_folder=None)
    return kind(
        dsn,
        configuration,
        runs_folder=folder / "runs",
        environment=os.environ,
        report_url=f"{url}/api/v1/workflow-complete" if url else None,
    )


@contextlib.asynccontextmanager
async def running(coordinator: Coordinator) -> AsyncIterator[Coordinator]:
    """Run the coordinator until the block ends, then stop it as SIGTERM does."""
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(coordinator.run())
        leads = asyncio.ensure_future(coordinator.leads.wait())
        await asyncio.wait({task, leads}, return_when=asyncio.FIRST_COMPLETED)
        leads.cancel()
        try:
            yield coordinator
        finally:
            coordinator.stop()


class Gate:
    """Holds scripts that say `read _ < path` until it lets so many of them go on."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        # Open for both, so that neither side ever waits for the other to open it, nor sees its end.
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def open(self, scripts: int = 1) -> None:
        os.write(self._descriptor, b"\n" * scripts)


class Watch:
    """A connection to the test's database that can wait for what it wants to see."""

    def __init__(self, conn: psycopg.AsyncConnection[Row]) -> None:
        self.conn = conn

    async def all(self, statement: str, *values: object) -> list[Row]:
        cursor = await self.conn.execute(statement.encode(), values)
        return await cursor.fetchall()

    async def one(self, statement: str, *values: object) -> Row:
        (row,) = await self.all(statement, *values)
        return row

    async def submit(self, *scripts: str | tuple[str, list[int]], **members: Any) -> int:
        """Queue a feature whose phases run these scripts; one with prerequisites is a pair."""
        phases = [
            {
                "phase_number": number,
                "title": f"Step {number}",
                "prompt_content": script if isinstance(script, str) else script[0],
                "depends_on_phases": [] if isinstance(script, str) else script[1],
                **members,
            }
            for number, script in enumerate(scripts, 1)
        ]
        row = await self.one(
            "select pgcoord.submit_feature(%s) as id", Jsonb({"title": "a", "phases": phases})
        )
        return int(row["id"])

    async def until(self, seen: Callable[[list[Row]], bool], statement: str) -> list[Row]:
        """Ask again after each event, until `seen` likes the rows."""
        async with asyncio.timeout(PATIENCE):
            while True:
                rows = await self.all(statement)
                if seen(rows):
                    return rows
                async for _ in self.conn.notifies(stop_after=1):
                    pass

    async def until_statuses(self, *wanted: str) -> list[Row]:
        """Wait until the phases have these statuses, in order of feature and number."""
        return await self.until(
            lambda rows: [row["status"] for row in rows] == list(wanted),
            "select * from phase_queue order by feature_id, phase_number",
        )


@contextlib.asynccontextmanager
async def watching(dsn: str) -> AsyncIterator[Watch]:
    """Watch the events of a database."""
    async with await psycopg.AsyncConnection.connect(
        dsn, autocommit=True, row_factory=dict_row
    ) as conn:
        await conn.execute(f"listen {queries.EVENT}".encode())
        yield Watch(conn)
