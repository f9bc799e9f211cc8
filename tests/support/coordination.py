"""What tests of the coordinator share: phases that are shell scripts, and waiting by event."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from pgcoord.configuration.model import Configuration, GitHub, Notify, Pool, Workflow
from pgcoord.coordination.coordinator import Coordinator
from pgcoord.database import session
from support import PATIENCE
from support.forks import Fork, run_forked_source

Row = dict[str, Any]


async def until_true(condition: Callable[[], bool]) -> None:
    """Look again and again, beside other tasks, until *condition*, of which nobody notifies."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 -- of another thread or process
            await asyncio.sleep(0.01)


def scripts(**settings: Any) -> Workflow:
    """A default workflow that runs a phase's prompt as a shell script."""
    values: dict[str, Any] = {
        "command": ("sh", "{prompt_file}"),
        "directory": Path("/"),
        **settings,
    }
    return Workflow(name="work", default=True, **values)


def make_coordinator(
    dsn: str,
    folder: Path,
    work: Workflow | None = None,
    kind: type[Coordinator] = Coordinator,
    host: str | None = None,
    url: str | None = None,
    github: GitHub | None = None,
    environment: Mapping[str, str] = os.environ,
    pool: Pool | None = None,
    notify: tuple[Notify, ...] = (),
) -> Coordinator:
    """A coordinator with one workflow and its runs below `folder`, served at `url` if at all."""
    work = work or scripts(**({"pool": pool.name} if pool else {}))
    pools = {each.name: each for each in (Pool("local"), pool) if each}
    configuration = Configuration(
        path=None,
        workflows={work.name: work},
        log_folder=None,
        github=github,
        pools=pools,
        notify=notify,
    )
    return kind(
        dsn,
        configuration,
        runs_folder=folder / "runs",
        environment=environment,
        host=host,
        report_url=f"{url}/api/v1/workflow-complete" if url else None,
    )


@contextlib.asynccontextmanager
async def running(
    coordinator: Coordinator, *, until_it_leads: bool = True, patience: float = 2 * PATIENCE
) -> AsyncIterator[Coordinator]:
    """Run the coordinator until the block ends, then stop it as SIGTERM does."""
    async with asyncio.timeout(patience), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(coordinator.run())
        leads = asyncio.ensure_future(coordinator.leads.wait())
        if until_it_leads:
            await asyncio.wait({task, leads}, return_when=asyncio.FIRST_COMPLETED)
        leads.cancel()
        try:
            yield coordinator
        finally:
            coordinator.stop()


# A coordinator in a process of its own, which can be killed and frozen. It sends itself a signal
# when it comes to one of its steps (None: to none).
_PROCESS = """
import asyncio, logging, os, sys
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, {tests!r})
from support.coordination import make_coordinator, scripts
from pgcoord.coordination import coordinator, supervision
from pgcoord.database import connect, listener
from pgcoord.configuration.model import GitHub
from pgcoord.coordination.coordinator import Coordinator

class Signalled(supervision.Supervision):
    pass

class Signals(Coordinator):
    supervision = Signalled

def signalled(step):
    async def come_to(self):
        os.kill(os.getpid(), {number!r})
        await getattr(super(Signalled, self), step)()
    setattr(Signalled, step, come_to)

if {step!r}:
    signalled({step!r})
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
{setting}
asyncio.run(
    make_coordinator(
        {dsn!r}, Path({folder!r}), {work}, kind=Signals, host={host!r}, github={github}, pool={pool}
    ).run()
)
"""


class CoordinatorProcess:
    """A coordinator in a process of its own; `output` are the lines that it has logged so far."""

    def __init__(self, process: Fork | subprocess.Popen[bytes], output: int) -> None:
        self._process = process
        self._output = os.fdopen(output, "rb")
        self._lines = asyncio.StreamReader()
        self.pid = process.pid
        self.output: list[str] = []

    async def connect(self) -> None:
        """Begin to read what it logs."""
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(self._lines), self._output
        )

    async def until(self, words: str) -> str:
        """Wait until it has logged a line with these words, and return that."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while line := (await self._lines.readline()).decode():
                    self.output.append(line)
                    if words in line:
                        return line
        raise AssertionError(f"no {words!r}:\n{''.join(self.output)}")

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    async def until_frozen(self) -> None:
        """Wait until SIGSTOP has stopped it."""
        stat = Path(f"/proc/{self.pid}/stat")
        async with asyncio.timeout(PATIENCE):
            while stat.read_text().rpartition(")")[2].split()[0] != "T":  # noqa: ASYNC110, ASYNC240
                await asyncio.sleep(0.01)

    async def wait(self) -> int:
        """Wait until it has ended, and return its exit status."""
        async with asyncio.timeout(PATIENCE):
            await self._lines.read()
        return await asyncio.to_thread(self._process.wait, PATIENCE)

    async def close(self) -> None:
        if self._process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        await self.wait()
        self._output.close()


def _start(source: str, prefix: tuple[str, ...]) -> CoordinatorProcess:
    ours, theirs = os.pipe()
    try:
        if prefix:
            command = [*prefix, sys.executable, "-c", source]
            return CoordinatorProcess(subprocess.Popen(command, stdout=theirs), ours)
        return CoordinatorProcess(run_forked_source(source, stdout=theirs), ours)
    finally:
        os.close(theirs)


@contextlib.asynccontextmanager
async def coordinator_process(
    dsn: str,
    folder: Path,
    *,
    host: str | None = None,
    step: str = "",
    number: int = signal.SIGSTOP,
    work: str = "None",
    setting: str = "",
    prefix: tuple[str, ...] = (),
    github: str = "None",
    pool: str = "None",
) -> AsyncIterator[CoordinatorProcess]:
    """Run a coordinator of its own process until the block ends, then kill it.

    It sends itself signal `number` when it comes to `step`, a method for one attempt; `setting` are
    statements, `work`, `github` and `pool` expressions for its workflow, its repository and its
    pool, `prefix` a command that runs another.
    """
    source = _PROCESS.format(
        tests=str(Path(__file__).parents[1]),
        dsn=dsn,
        folder=str(folder),
        host=host,
        step=step,
        number=int(number),
        work=work,
        setting=setting,
        github=github,
        pool=pool,
    )
    process = _start(source, prefix)
    await process.connect()
    try:
        yield process
    finally:
        await process.close()


class Gate:
    """Blocks scripts that execute `read _ < path`, until it releases some of them."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        # Open for both, so that neither side ever waits for the other to open it, nor sees its end.
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def open(self, scripts: int = 1) -> None:
        os.write(self._descriptor, b"\n" * scripts)

    async def wait(self) -> None:
        """Wait until a script has written a line there."""
        loop, written = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._descriptor, written.set)
        try:
            async with asyncio.timeout(PATIENCE):
                await written.wait()
        finally:
            loop.remove_reader(self._descriptor)


async def until_it_ends(file: Path, text: str) -> None:
    """Wait until a process has written a file that ends with `text`."""
    async with asyncio.timeout(PATIENCE):
        while not (file.exists() and file.read_text().endswith(text)):  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and not as a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


_NOTE_TRANSACTIONS = b"""
    create table public.moved (queue_id text, to_status text, xid xid8);
    create function public.note_transaction() returns trigger language plpgsql as $$
    begin
        insert into public.moved values (new.queue_id, new.to_status, pg_current_xact_id());
        return null;
    end $$;
    create trigger note after insert on pgcoord.event
        for each row execute function public.note_transaction()"""


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

    async def note_transactions(self) -> None:
        """Have the database note, from now on, which transaction moves which phase."""
        await self.conn.execute(_NOTE_TRANSACTIONS)

    async def transaction_of(self, queue_id: str, to_status: str) -> str:
        """The transaction that moved a phase, once, to a status."""
        found = "select xid::text from moved where queue_id = %s and to_status = %s"
        return str((await self.one(found, queue_id, to_status))["xid"])

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
        async with self._in_time(statement):
            while True:
                rows = await self.all(statement)
                if seen(rows):
                    return rows
                # One that came with the end of the statement is not seen by `notifies`.
                if not self.conn.pgconn.notifies():
                    async for _ in self.conn.notifies(stop_after=1):
                        pass

    async def until_found(self, statement: str, *, nothing: bool = False) -> None:
        """Ask again and again, for what leaves no event, until there are rows (or nothing)."""
        async with self._in_time(statement):
            while bool(await self.all(statement)) == nothing:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    @contextlib.asynccontextmanager
    async def _in_time(self, statement: str) -> AsyncIterator[None]:
        """Give up after `PATIENCE`, and show what the phases do instead."""
        try:
            async with asyncio.timeout(PATIENCE):
                yield
        except TimeoutError:
            there = await self.all(
                "select p.queue_id, p.status, a.* from phase_queue as p"
                " left join pgcoord.attempt as a using (queue_id) order by a.id desc limit 20"
            )
            lines = [
                ", ".join(f"{k}: {v}" for k, v in row.items() if v is not None and k != "secret")
                for row in there
            ]
            raise AssertionError("\n".join([f"not in time: {statement}", *lines])) from None

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
        await conn.execute(f"listen {session.EVENT}".encode())
        yield Watch(conn)


@contextlib.asynccontextmanager
async def holding(dsn: str, statement: str) -> AsyncIterator[Watch]:
    """Keep a transaction open in which *statement* was executed, until the block ends."""
    async with watching(dsn) as other:
        await other.conn.execute("begin")
        await other.conn.execute(statement.encode())
        yield other
        await other.conn.execute("rollback")
