import json
import os

import psycopg
from psycopg.types.json import Jsonb

feature = int(os.environ["FEATURE"])
data = json.loads(os.environ["DATA"])
with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as conn:
    conn.execute("listen pgcoord_event")
    conn.execute("insert into planned_features (id, title) values (%s, 'psycopg')", [feature])
    conn.execute(
        "insert into phase_queue (feature_id, phase_number, status, adw_id)"
        " values (%s, 1, 'running', 'by-hand')",
        [feature],
    )
    conn.execute("select * from pgcoord.add_phase(%s, %s, %s, %s)", [feature, 2, [1], Jsonb(data)])
    row = conn.execute(
        "select depends_on_phases, phase_data from phase_queue"
        " where feature_id = %s and phase_number = 2",
        [feature],
    ).fetchone()
    print("read", json.dumps(row))
    conn.execute("select * from pgcoord.complete_phase(%s, 'by-hand')", [f"queue-{feature}-1"])
    print("heard", next(conn.notifies(stop_after=1)).payload)
