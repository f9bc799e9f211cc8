"""A silent network: packets are dropped without an error.

The coordinator is on a machine of its own as far as its network goes: a network namespace, reached
by a cable (a pair of virtual devices) that is pulled out.
"""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.cable import Cable
from support.coordination import coordinator_process, make_coordinator, running, watching

from pgcoord.database import connect
from pgcoord.database.embedded import EmbeddedPostgres

pytestmark = pytest.mark.scale

# Seconds until a silent network is noticed, on a machine that has nothing else to do.
NOTICED = 15

# What a loaded machine may add; without settings of ours the kernel takes fifteen minutes.
SLOWNESS = 60


@pytest.mark.parametrize("settings", [connect._KEEPALIVE, connect._OF_LEAD], ids=["we", "server"])
def test_the_kernel_is_told_to_notice_a_silent_network_within_fifteen_seconds(
    settings: Mapping[str, int | str],
) -> None:
    idle, interval, count, unanswered = (
        next(int(value) for name, value in settings.items() if name.endswith(kind))
        for kind in ("keepalives_idle", "keepalives_interval", "keepalives_count", "user_timeout")
    )
    assert idle + interval * count < NOTICED
    assert unanswered < NOTICED * 1000


async def test_a_silent_network_is_noticed_on_either_side(
    cable: Cable, remote: EmbeddedPostgres, tmp_path: Path
) -> None:
    dsn = f"host={cable.here} dbname=postgres user=postgres"
    async with coordinator_process(dsn, tmp_path, host="there", prefix=cable.machine) as first:
        await first.until("leading (lead 1)")
        second = make_coordinator(remote.dsn, tmp_path, host="here")
        async with running(second, until_it_leads=False), watching(remote.dsn) as watch:
            pulled = time.monotonic()
            cable.pull()
            noticed = asyncio.ensure_future(first.until("trying again in"))
            await noticed
            assert time.monotonic() - pulled < NOTICED + SLOWNESS
            await second.leads.wait()
            # The server has given up the leader's session, and the stand-by has asked since.
            assert time.monotonic() - pulled < NOTICED + 5 + SLOWNESS
            await watch.submit("true")
            await watch.until_statuses("completed")
            cable.plug()
            await first.until("standing by: process")
