import json
import os
import select

import psycopg2
from psycopg2.extras import Json

feature = int(os.environ["FEATURE"])
data = json.loads(os.environ["DATA"])
conn = psycopg2.connect(os.environ["DATABASE_URL"])
conn.autocommit = True
cur = conn.cursor()
cur.execute("listen pgcoord_event")
cur.execute("insert into planned_features (id, title) values (%s, 'psycopg2')", (feature,))
cur.execute(
    "insert into phase_queue (feature_id, phase_number, status, adw_id)"
    " values (%s, 1, 'running', 'by-hand')",
    (feature,),
)
cur.execute("select * from pgcoord.add_phase(%s, %s, %s, %s)", (feature, 2, [1], Json(data)))
cur.execute(
    "select depends_on_phases, phase_data from phase_queue"
    " where feature_id = %s and phase_number = 2",
    (feature,),
)
print("read", json.dumps(cur.fetchone()))
cur.execute("select * from pgcoord.complete_phase(%s, 'by-hand')", (f"queue-{feature}-1",))
while not conn.notifies:
    select.select([conn], [], [])
    conn.poll()
print("heard", conn.notifies[0].payload)
