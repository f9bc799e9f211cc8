"""A coordinator that has nothing to do sends nothing: every rest lasts until something is due."""

import asyncio
from pathlib import Path

from psycopg.types.json import Jsonb
from support import PATIENCE
from support.coordination import Watch, make_coordinator, running, watching

from pgcoord.configuration.model import Notify

SESSIONS = (
    "select pid, state_change from pg_stat_activity"
    " where datname = current_database() and pid <> pg_backend_pid() order by pid"
)


async def until_idle(watch: Watch) -> None:
    """Wait until no session but ours does anything while ours does two hundred things."""
    async with asyncio.timeout(PATIENCE):
        while True:
            before = await watch.all(SESSIONS)
            for _ in range(200):
                await watch.all("select")
            if await watch.all(SESSIONS) == before:
                return


async def test_an_idle_coordinator_sends_nothing(dsn: str, tmp_path: Path) -> None:
    unreachable = Notify("dead", ("finished",), "http://127.0.0.1:9", "HOOK")
    coordinator = make_coordinator(
        dsn, tmp_path, notify=(unreachable,), environment={"HOOK": "whsec_" + "a" * 32}
    )
    async with watching(dsn) as watch, running(coordinator):
        await until_idle(watch)  # without a schedule, and without a notice

        feature = {"title": "yearly", "phases": [{"phase_number": 1, "prompt_content": "true"}]}
        await watch.one(
            "select pgcoord.add_schedule('yearly', '0 3 1 1 *', %s, 'UTC')", Jsonb(feature)
        )
        await watch.until_found("select from pgcoord.schedule where next_at > now()")
        await until_idle(watch)

        await watch.conn.execute("update pgcoord.schedule set paused_at = now()")
        await watch.submit("true")
        await watch.until_statuses("completed")
        await watch.until_found("select from pgcoord.notice where tries > 0")
        await until_idle(watch)  # with a notice that is sent again in ten seconds
