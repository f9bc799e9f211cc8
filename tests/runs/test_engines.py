"""What becomes of attempts whose engine gets wrong what engines get wrong."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.coordination import (
    Watch,
    make_coordinator,
    running,
    scripts,
    until_it_ends,
    watching,
)
from support.database import make_database
from support.disk import small_disk
from support.fake_engine import FakeEngine, FakeJob
from support.serving import served

from pgcoord.configuration.model import Pool
from pgcoord.coordination import engines, housekeeping, supervision
from pgcoord.coordination.coordinator import Coordinator
from pgcoord.coordination.launching import EngineState, ListedJob
from pgcoord.runs import job

# As in test_contract.py, and shorter: this engine answers at once.
HURRIED = {
    "ASKS": (0.05, 0.2),
    "UNSURE": 0.5,
    "SILENT": 1.0,
    "SETTLED": 0.3,
    "FOLDER_INTERVAL": 0.05,
}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    for name, value in HURRIED.items():
        monkeypatch.setattr(engines, name, value)
    engine = FakeEngine()
    engine.is_launcher(monkeypatch)
    return engine


@pytest.fixture
async def watch(dsn: str) -> AsyncIterator[Watch]:
    async with watching(dsn) as watch:
        yield watch


def coordinator(dsn: str, folder: Path, **settings: Any) -> Coordinator:
    shared = settings.pop("shared", folder / "shared")
    pool = Pool("far", settings.pop("launcher", "fake"), 4, {"folder": str(shared)})
    kind = settings.pop("kind", Coordinator)
    return make_coordinator(dsn, folder, scripts(pool="far", **settings), pool=pool, kind=kind)


async def submitted(watch: Watch, engine: FakeEngine) -> FakeJob:
    """The one job that the engine has, once the database knows it."""
    while not engine.jobs:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await watch.until_found("select from pgcoord.attempt where job is not null")
    return list(engine.jobs.values())[-1]


async def test_an_end_asked_for_before_the_job_was_submitted_is_brought_about(
    dsn: str, tmp_path: Path, engine: FakeEngine, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def prepare(self: engines.EngineSupervision) -> None:  # as while an issue is being made
        await prepared(self)
        async with watching(dsn) as person:
            await person.conn.execute("select from pgcoord.cancel_phase('queue-1-1', 'enough')")
        await asyncio.shield(self._end_in)

    prepared = engines.EngineSupervision._prepare
    monkeypatch.setattr(engines.EngineSupervision, "_prepare", prepare)
    async with running(coordinator(dsn, tmp_path)):
        await watch.submit("true")
        await watch.until_found("select from pgcoord.attempt where exited_at is not null")
    assert engine.asked["submit"] == 0
    [row] = await watch.all("select status from phase_queue")
    assert row["status"] == "cancelled"


async def test_a_claim_permits_the_submission_that_follows_at_once(
    dsn: str, tmp_path: Path, engine: FakeEngine, watch: Watch
) -> None:
    await watch.conn.execute("drop function pgcoord_private.submit_attempt")
    async with running(coordinator(dsn, tmp_path)):
        await watch.submit("true")
        await submitted(watch, engine)


async def test_a_submission_some_time_after_its_claim_needs_permission(
    dsn: str, tmp_path: Path, engine: FakeEngine, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "_TRUSTED_FOR", 0.0)

    async def prepare(self: engines.EngineSupervision) -> None:
        await prepared(self)
        async with watching(dsn) as person:
            await person.conn.execute("select from pgcoord.cancel_phase('queue-1-1', 'enough')")

    prepared = engines.EngineSupervision._prepare
    monkeypatch.setattr(engines.EngineSupervision, "_prepare", prepare)
    monkeypatch.setattr(engines.EngineSupervision, "update", lambda self, attempt: None)
    async with running(coordinator(dsn, tmp_path)):
        await watch.submit("true")
        await watch.until_found("select from pgcoord.attempt where exited_at is not null")
    assert engine.asked["submit"] == 0


async def test_a_job_whose_submission_a_failover_lost_is_found_at_its_engine(
    dsn: str, tmp_path: Path, engine: FakeEngine, watch: Watch
) -> None:
    async with running(coordinator(dsn, tmp_path)):
        await watch.submit("true")
        job = await submitted(watch, engine)
    await watch.conn.execute(
        "update pgcoord.attempt set submitted_at = null, submitted_to = null, job = null"
    )
    async with running(coordinator(dsn, tmp_path)):
        await watch.until_found("select from pgcoord.attempt where job is not null")
        assert await job.begin(watch.conn) is None
        await watch.until_statuses("running")
        await job.exit(watch.conn)
        await watch.until_statuses("completed")
    assert engine.asked["submit"] == 1


async def test_a_job_that_runs_and_has_not_asked_to_begin_is_named(
    dsn: str, tmp_path: Path, engine: FakeEngine, watch: Watch
) -> None:
    async with running(coordinator(dsn, tmp_path)):
        await watch.submit("true")
        job = await submitted(watch, engine)
        job.seen = replace(job.seen, state=EngineState.RUNNING, node="node1")
        words = "it started on node1, and nothing is heard of it yet"
        await watch.until_found(
            f"select from pgcoord.why('queue-1-1') where words ~ ', job 1: {words}$'"
        )
        await job.begin(watch.conn)
        await watch.until_found(
            "select from pgcoord.why('queue-1-1') where words ~ '^runs since .* on node1, job 1$'"
        )


async def test_a_begin_by_the_folder_is_logged_once(
    dsn: str,
    tmp_path: Path,
    engine: FakeEngine,
    watch: Watch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    async with running(coordinator(dsn, tmp_path)):
        await watch.submit("true")
        given = (await submitted(watch, engine)).order.content
        message = {"act": "begin", "attempt": given["attempt"], "copy": "a"}
        assert job.Job(job.Order(dict(given)))._spool("begin-a.json", message)
        await watch.until_statuses("running")
        await until_it_ends(Path(given["folder"]) / "begun-a.json", "}")
        await watch.conn.execute("select from pgcoord.cancel_phase('queue-1-1', 'enough')")
        await watch.until_statuses("cancelled")
    assert len(re.findall("queue-1-1 ready → running: .* began", caplog.text)) == 1


@pytest.mark.scale
async def test_a_copy_of_the_database_ends_no_job_of_the_original(
    dsn: str, server: str, template: str, tmp_path: Path, engine: FakeEngine, watch: Watch
) -> None:
    copy = make_database(server, template)  # of which dsn is a copy, too
    async with running(coordinator(dsn, tmp_path)):
        await watch.submit("true")
        job = await submitted(watch, engine)
        async with running(coordinator(copy, tmp_path)):
            asked = engine.asked["find"]
            while engine.asked["find"] < asked + 10:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert job.seen.state is EngineState.WAITING
    await watch.conn.execute("select pgcoord.give_up_attempt(1, 'lost', 'unheard of')")
    async with running(coordinator(dsn, tmp_path)):
        while not engine.asked["end"]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_a_refused_copy_does_not_end_the_running_copy(
    dsn: str, tmp_path: Path, engine: FakeEngine, watch: Watch
) -> None:
    async with running(coordinator(dsn, tmp_path)):
        await watch.submit("true")
        job = await submitted(watch, engine)
        assert await job.begin(watch.conn) is None
        second = engine.jobs[await engine.submit(job.order)]
        assert "another copy of its job began on node1" in str(await second.begin(watch.conn, "b"))
        second.end(75)
        job.order.log.write_text("pgcoord: this copy of the job runs nothing: ...\n")
        del engine.jobs[job.seen.job]  # its node is lost, and the process lives
        await watch.until_statuses("failed")
        attempt = await watch.one("select outcome, error from pgcoord.attempt")
    assert attempt["outcome"] == "lost"
    assert "(job 1: FAILED: pgcoord: this copy of the job runs nothing: ...)" in attempt["error"]
    assert "its process may still run" in attempt["error"]


@pytest.mark.scale
async def test_a_pool_that_gets_another_engine_takes_no_job_of_the_former_for_lost(
    dsn: str, tmp_path: Path, engine: FakeEngine, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = FakeEngine()
    other.is_launcher(monkeypatch, "other")
    async with running(coordinator(dsn, tmp_path)):
        await watch.submit("true")
        job = await submitted(watch, engine)
        await job.begin(watch.conn)
        await watch.until_statuses("running")
    async with running(coordinator(dsn, tmp_path, launcher="other")):
        await watch.submit("true")
        while other.asked["find"] < 15:  # beyond SILENT  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        await watch.until_statuses("running", "ready")
        await job.exit(watch.conn, 3)
        await watch.until_statuses("failed", "ready")
    assert (await watch.one("select outcome from pgcoord.attempt where id = 1"))[
        "outcome"
    ] == "failed"


async def test_a_job_at_a_former_launcher_says_so_and_ends_once_that_is_declared_again(
    dsn: str,
    tmp_path: Path,
    engine: FakeEngine,
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    FakeEngine().is_launcher(monkeypatch, "other")
    before = coordinator(dsn, tmp_path)
    async with running(before):
        await watch.submit("true")
        await (await submitted(watch, engine)).begin(watch.conn)
        await watch.until_statuses("running")
    async with running(coordinator(dsn, tmp_path, launcher="other")) as leader:
        await watch.conn.execute("select from pgcoord.cancel_phase('queue-1-1', 'enough')")
        await watch.until_found(
            "select from pgcoord.why('queue-1-1') where words ~ ': enough; job 1: it cannot be"
            " ended now: its job is at fake, the former launcher of pool far: declare that'"
        )
        assert len([each for each in caplog.messages if "cannot be ended" in each]) == 1
        leader.reconfigure(replace(leader.configuration, pools=before.configuration.pools))
        await watch.until_statuses("cancelled")
    assert [each.seen.state for each in engine.in_line()] == [EngineState.ENDED]


async def test_the_log_of_a_job_that_ends_without_a_word_is_copied_to_its_end(
    dsn: str, tmp_path: Path, engine: FakeEngine, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_LOG_EVERY", 600)  # as with a thousand jobs: not its turn again
    engine.output = b"first\n"
    async with running(coordinator(dsn, tmp_path)):
        await watch.submit("true")
        job = await submitted(watch, engine)
        await job.begin(watch.conn)
        log = job.order.folder / "log"
        await until_it_ends(log, "first\n")
        engine.output = b"first\nits last words\n"
        job.end(3)
        await watch.until_statuses("failed")
        attempt = await watch.one("select error from pgcoord.attempt")
    assert "its last words" in attempt["error"]
    assert log.read_text() == "first\nits last words\n"


async def test_a_draining_coordinator_leaves_the_jobs_of_engines_to_the_next_leader(
    dsn: str, tmp_path: Path, engine: FakeEngine, watch: Watch
) -> None:
    second = coordinator(dsn, tmp_path)
    async with running(coordinator(dsn, tmp_path)) as first:
        await watch.submit("true")
        job = await submitted(watch, engine)
        async with running(second, until_it_leads=False):
            first.drain()
            await second.leads.wait()
            await job.begin(watch.conn)  # only the second coordinator is notified
            await watch.until_statuses("running")
            job.end(0)
            await watch.until_statuses("completed")


async def test_a_pool_that_becomes_another_launchers_lets_its_jobs_end(
    dsn: str, tmp_path: Path, engine: FakeEngine, watch: Watch
) -> None:
    async with running(coordinator(dsn, tmp_path)):
        await watch.submit("true")
        job = await submitted(watch, engine)
        await job.begin(watch.conn)
        await watch.until_statuses("running")
    async with running(coordinator(dsn, tmp_path, launcher="local")):
        await watch.submit("true")
        await watch.until_statuses("running", "completed")
        await job.exit(watch.conn, 3)
        await watch.until_statuses("failed", "completed")


async def test_jobs_stay_with_the_engine_that_has_them_when_their_pool_is_declared_anew(
    dsn: str, tmp_path: Path, engine: FakeEngine, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = FakeEngine()
    both = {"fake": lambda settings, _: other if settings.get("other") else engine}
    monkeypatch.setattr(engines, "LAUNCHERS", {**engines.LAUNCHERS, **both})
    async with running(coordinator(dsn, tmp_path)) as leader:
        await watch.submit("true", "true")
        await watch.until_found("select from pgcoord.attempt having count(job) = 2")
        runs, _ = engine.in_line()
        await runs.begin(watch.conn)
        await watch.until_statuses("running", "ready")
        pool = leader.configuration.pools["far"]
        pool = replace(pool, settings={**pool.settings, "other": "yes"})
        pools = {**leader.configuration.pools, "far": pool}
        leader.reconfigure(replace(leader.configuration, pools=pools))
        await watch.until_found("select from pgcoord.control where epoch = 2")
        await watch.submit("true")
        await submitted(watch, other)
        for number in (1, 2):
            await watch.conn.execute(f"select pgcoord.cancel_phase('queue-1-{number}', 'enough')")
        await watch.until_statuses("cancelled", "cancelled", "ready")
    assert {each.seen.state for each in engine.in_line()} == {EngineState.ENDED}
    assert len(other.jobs) == 1


@pytest.mark.scale
async def test_an_engine_that_is_down_for_ten_minutes_delays_and_no_more(
    dsn: str, tmp_path: Path, engine: FakeEngine, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    minute = 0.3
    monkeypatch.setattr(engines, "SILENT", minute)
    async with running(coordinator(dsn, tmp_path)):
        await watch.submit(*["true"] * 4)
        await watch.until_found("select from pgcoord.attempt having count(job) = 4")
        waits, runs, ends, is_cancelled = engine.in_line()
        for each in (runs, ends, is_cancelled):
            await each.begin(watch.conn)
        engine.down = True
        await ends.exit(watch.conn)
        await watch.conn.execute("select pgcoord.cancel_phase('queue-1-4', 'enough')")
        await watch.submit("true")  # and one that cannot be submitted
        await asyncio.sleep(10 * minute)
        statuses = "select status from phase_queue order by feature_id, phase_number"
        found = [row["status"] for row in await watch.all(statuses)]
        assert found[:4] == ["ready", "running", "completed", "running"]
        assert found[4] in ("queued", "ready")
        engine.down = False
        await watch.until_found("select from phase_queue where status = 'cancelled'")
        await watch.until_found("select from pgcoord.attempt having count(job) = 5")
        for each in (waits, engine.in_line()[4]):
            await each.begin(watch.conn)
            await each.exit(watch.conn)
        await runs.exit(watch.conn, 3)
        await watch.until_statuses("completed", "failed", "completed", "cancelled", "completed")
    assert engine.asked["submit"] == 5


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A shared folder of 64 kB."""
    with small_disk(tmp_path / "disk") as disk:
        yield disk


def test_a_file_made_within_a_tick_of_the_folders_clock_is_seen(tmp_path: Path) -> None:
    os.utime(tmp_path, (5, 5))
    watcher = engines.Watcher(tmp_path)
    assert watcher.has_changed()
    (tmp_path / "begin-a.json").touch()
    os.utime(tmp_path, (5, 5))  # of a file system that keeps whole seconds
    assert watcher.has_changed()
    assert not watcher.has_changed()


async def test_a_job_that_comes_as_the_queries_for_no_job_end_is_asked_for(
    dsn: str, tmp_path: Path, engine: FakeEngine, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They end once nothing waits for them, and that takes a moment, as a stream is closed."""
    opened, closing, closed = asyncio.Event(), asyncio.Event(), asyncio.Event()
    find = engine.find

    async def changes() -> AsyncIterator[None]:
        opened.set()
        try:
            await asyncio.Event().wait()
            yield
        finally:
            closing.set()
            await closed.wait()

    async def find_when_opened() -> Mapping[str, list[ListedJob]]:
        await opened.wait()
        return await find()

    monkeypatch.setattr(engine, "changes", changes)
    monkeypatch.setattr(engine, "find", find_when_opened)
    async with running(coordinator(dsn, tmp_path)):
        await closing.wait()
        await watch.submit("true")
        job = await submitted(watch, engine)
        closed.set()
        job.end(3)  # without a word: only the engine knows
        await watch.until_statuses("failed")


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("loading modules\npython3: not found\n", "python3: not found\nloading modules"),
        (
            "pgcoord: it runs nothing: no answer\nslurmstepd: no such socket\n",
            "pgcoord: it runs nothing: no answer\nslurmstepd: no such socket",
        ),
        (
            'File "/shared/1-a/job.sh", line 2\nSyntaxError: invalid syntax\n',
            "job.sh was given to python3: it is a program to run as it is, or by sh\n"
            'File "/shared/1-a/job.sh", line 2\nSyntaxError: invalid syntax',
        ),
        (
            'File "/shared/1-a/job.py", line 9\nSyntaxError: invalid syntax\n',
            "the python3 of the node is older than 3.8, or none\n"
            'File "/shared/1-a/job.py", line 9\nSyntaxError: invalid syntax',
        ),
    ],
    ids=["none", "ours", "for sh", "old"],
)
async def test_why_a_job_never_began_is_said_in_the_first_line(
    log: str, said: str, dsn: str, tmp_path: Path, engine: FakeEngine, watch: Watch
) -> None:
    async with running(coordinator(dsn, tmp_path)):
        await watch.submit("true")
        job = await submitted(watch, engine)
        (job.order.folder / "engine.log").write_text(log)
        job.end(127)
        await watch.until_statuses("failed")
    error = (await watch.one("select error from pgcoord.attempt"))["error"]
    assert re.fullmatch(r"it ended before it began \(job 1: .*\): " + re.escape(said), error)


async def test_a_full_shared_disk_delays_a_phase_with_that_reason(
    dsn: str, tmp_path: Path, engine: FakeEngine, watch: Watch, disk: Path
) -> None:
    filler = disk / "filler"
    filler.write_bytes(b"x" * 50_000)
    async with running(coordinator(dsn, tmp_path, shared=disk)):
        await watch.submit("# " + "x" * 40_000)
        await watch.until_found("select from pgcoord.attempt where outcome = 'returned'")
        [words] = [
            row["words"] for row in await watch.all("select * from pgcoord.why('queue-1-1')")
        ]
        assert "No space left on device" in words
        filler.unlink()
        await watch.conn.execute("select from pgcoord.retry_phase('queue-1-1')")
        await (await submitted(watch, engine)).begin(watch.conn)
        await watch.until_statuses("running")


@pytest.mark.scale
async def test_a_job_that_waits_longer_than_its_queue_timeout_is_removed(
    dsn: str, tmp_path: Path, engine: FakeEngine, watch: Watch
) -> None:
    async with running(coordinator(dsn, tmp_path, queue_timeout=timedelta(hours=1))):
        await watch.submit("true", "true")
        await watch.until_found("select from pgcoord.attempt having count(job) = 2")
        first, second = engine.in_line()
        await first.begin(watch.conn)  # it has as long as it takes
        await watch.all(
            "update pgcoord.attempt set submitted_at = submitted_at - interval '1 h',"
            " deadline = deadline - interval '1 h' returning id"
        )
        await watch.conn.execute("notify pgcoord_wake")
        await watch.until_statuses("running", "failed")
        error = (
            await watch.one(
                "select error from pgcoord.attempt where number = 1 and outcome is not null"
            )
        )["error"]
        assert error == "waited in pool far longer than its queue_timeout of 60 min"
        await first.exit(watch.conn)
        await watch.until_statuses("completed", "failed")
    assert second.seen.state is EngineState.ENDED


async def test_a_quiet_job_is_noted(
    dsn: str, tmp_path: Path, engine: FakeEngine, watch: Watch
) -> None:
    async with running(coordinator(dsn, tmp_path, quiet=timedelta(seconds=0.2))):
        await watch.submit("true")
        await (await submitted(watch, engine)).begin(watch.conn)
        await watch.until_found("select from pgcoord.attempt where quiet_since is not null")


async def test_old_runs_are_removed_from_the_folder_of_a_pool(
    dsn: str, tmp_path: Path, engine: FakeEngine, watch: Watch
) -> None:
    async with running(coordinator(dsn, tmp_path)):
        await watch.submit("true", "true")
        await watch.until_found("select from pgcoord.attempt having count(job) = 2")
        ended, alive = engine.in_line()
        for each in (ended, alive):
            await each.begin(watch.conn)
        await ended.exit(watch.conn)
        await watch.until_statuses("completed", "running")
    for each in (ended, alive):
        for path in (each.order.folder, *each.order.folder.iterdir()):
            os.utime(path, (0, 0))
    await housekeeping._remove_old_runs(dsn, tmp_path / "runs", timedelta(days=1))
    assert [each.order.folder.exists() for each in (ended, alive)] == [False, True]


async def test_why_a_job_does_not_begin_is_said_of_each_state(
    dsn: str, tmp_path: Path, engine: FakeEngine, watch: Watch
) -> None:
    async def until_why(words: str) -> None:
        await watch.until_found(f"select from pgcoord.why('queue-1-1') where words ~ '{words}'")

    async with running(coordinator(dsn, tmp_path)):
        await watch.submit("true")
        job = await submitted(watch, engine)
        await until_why("waits in pool far since .* UTC, job 1: Priority$")
        engine.down = True
        await until_why("job 1: its engine does not answer: it is down$")
        engine.down = False
        await until_why("job 1: Priority$")
        job.seen = replace(job.seen, state=EngineState.RUNNING, node="node1")
        await until_why("job 1: it started on node1, and nothing is heard of it yet$")
        job.end()
        await until_why("job 1: it ended .FAILED. on node1, and nothing is heard of it yet$")
        await watch.until_statuses("failed")
    [row] = await watch.all("select error_message from phase_queue")
    assert row["error_message"].startswith("it ended before it began (job 1: FAILED)")


@pytest.mark.scale
async def test_people_see_pool_engine_job_node_and_reason(
    dsn: str, tmp_path: Path, engine: FakeEngine, watch: Watch
) -> None:
    async def said(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pgcoord", *arguments),
            cwd=tmp_path,
            env={**os.environ, "DATABASE_URL": dsn, "COLUMNS": "200"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return output.decode()

    pool = Pool("far", "fake", 4, {"folder": str(tmp_path / "shared")})
    async with served(dsn, tmp_path, work=scripts(pool="far"), pool=pool) as site:
        await watch.submit("true")
        job = await submitted(watch, engine)
        await watch.until_found("select from pgcoord.attempt where waits_for is not null")
        waits = "waits in pool far since [0-9:]+ UTC, job 1: Priority"
        assert re.search(waits, await said("status", "1"))
        no_log = "has not started, so it has no log"
        assert re.search(rf"{no_log}: {waits}", await said("logs", "1.1"))
        assert no_log in await said("logs", "1")
        following = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pgcoord", "logs", "-f", "1.1"),
            cwd=tmp_path,
            env={**os.environ, "DATABASE_URL": dsn, "COLUMNS": "200"},
            stderr=asyncio.subprocess.PIPE,
        )
        assert following.stderr
        heard = b""
        while not re.search(waits, heard.decode()):
            heard += await following.stderr.readline() or pytest.fail(heard.decode())
        following.terminate()
        await following.wait()
        assert re.search(waits, (await site.client.get("/phases/queue-1-1")).text)
        await job.begin(watch.conn)
        await watch.until_statuses("running")
        assert re.search(
            r"pool far \(fake\): \d queue-1-1 \(on node1, job 1\)", await said("status")
        )
        assert "phase 1 on node1, job 1 of" in (await site.client.get("/")).text
        page = (await site.client.get("/phases/queue-1-1")).text
        for words in ("far (fake)", "node1", "job 1"):
            assert words in page
        (job.order.folder / "log").write_text("first\n")
        followed = asyncio.create_task(said("logs", "-f", "1.1"))
        await asyncio.sleep(0)
        with open(job.order.folder / "log", "a") as log:  # noqa: ASYNC230
            log.write("and last\n")
        await job.exit(watch.conn)
        assert "first\nand last\n" in await followed
