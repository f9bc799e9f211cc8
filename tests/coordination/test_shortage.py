"""What the machine is short of fails nothing: the coordinator and the phases wait for it."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.coordination import coordinator_process, watching
from support.disk import small_disk

SOON = "coordinator._RETRY_AFTER = 0.2"
NONE = 3  # a limit below every descriptor that a coordinator has open


async def test_a_coordinator_without_descriptors_waits_until_there_are_some(
    dsn: str, tmp_path: Path
) -> None:
    async with (
        watching(dsn) as watch,
        coordinator_process(dsn, tmp_path, setting=SOON) as coordinator,
    ):
        await coordinator.until("leading")
        limits = resource.prlimit(coordinator.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(coordinator.pid, resource.RLIMIT_NOFILE, (NONE, limits[1]))
        await watch.submit("true")
        await coordinator.until("continues in")
        await watch.all(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name like 'pgcoord%%' and datname = current_database()"
        )
        await coordinator.until("too many open files")
        resource.prlimit(coordinator.pid, resource.RLIMIT_NOFILE, limits)
        await watch.until_statuses("completed")


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file that fills the disk of the runs."""
    with small_disk(tmp_path / "runs") as runs:
        with (runs / "full").open("wb", buffering=0) as file:
            file.write(b"x" * 100_000)
        yield runs / "full"


async def test_phases_wait_while_the_disk_of_their_runs_is_full(
    full: Path, dsn: str, tmp_path: Path
) -> None:
    async with watching(dsn) as watch, coordinator_process(dsn, tmp_path, setting=SOON) as it:
        await watch.submit("true", "true")
        await it.until("cannot be started now: no space left")
        await watch.until_found("select from pgcoord.slots where waits_for like 'no space left%%'")
        (row, *_) = await watch.all(  # the other of the two may not have been tried yet
            "select why.words from pgcoord.slots, pgcoord.why(slots.queue_id) as why"
            " where slots.waits_for like 'no space left%%'"
        )
        assert row["words"].endswith("its process cannot be started now: no space left on device")
        full.unlink()  # noqa: ASYNC240
        await watch.until_statuses("completed", "completed")
        assert await watch.all("select from pgcoord.attempt where waits_for is not null") == []
        (row,) = await watch.all("select count(*) as n from pgcoord.attempt")
        assert row["n"] == 2
