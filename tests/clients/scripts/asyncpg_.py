import asyncio
import json
import os

import asyncpg

feature = int(os.environ["FEATURE"])
data = json.loads(os.environ["DATA"])


async def main() -> None:
    conn = await asyncpg.connect(os.environ["DATABASE_URL"])
    heard: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    await conn.add_listener(
        "pgcoord_event", lambda *about: heard.done() or heard.set_result(about[-1])
    )
    await conn.execute("insert into planned_features (id, title) values ($1, 'asyncpg')", feature)
    await conn.execute(
        "insert into phase_queue (feature_id, phase_number, status, adw_id)"
        " values ($1, 1, 'running', 'by-hand')",
        feature,
    )
    await conn.fetchrow("select * from pgcoord.add_phase($1, $2, $3, $4)", feature, 2, [1], json.dumps(data))
    row = await conn.fetchrow(
        "select depends_on_phases, phase_data from phase_queue"
        " where feature_id = $1 and phase_number = 2",
        feature,
    )
    print("read", json.dumps([json.loads(each) for each in row]))
    await conn.fetchrow("select * from pgcoord.complete_phase($1, 'by-hand')", f"queue-{feature}-1")
    print("heard", await heard)
    await conn.close()


asyncio.run(main())
