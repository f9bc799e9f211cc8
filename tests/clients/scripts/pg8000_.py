import json
import os

import pg8000.native

feature = int(os.environ["FEATURE"])
data = json.loads(os.environ["DATA"])
conn = pg8000.native.Connection(
    "postgres", host="127.0.0.1", port=int(os.environ["PGPORT"]), database=os.environ["PGDATABASE"]
)
conn.run("listen pgcoord_event")
conn.run("insert into planned_features (id, title) values (:id, 'pg8000')", id=feature)
conn.run(
    "insert into phase_queue (feature_id, phase_number, status, adw_id)"
    " values (:feature, 1, 'running', 'by-hand')",
    feature=feature,
)
conn.run("select * from pgcoord.add_phase(:feature, 2, :after, :data)", feature=feature, after=[1], data=data)
[row] = conn.run(
    "select depends_on_phases, phase_data from phase_queue"
    " where feature_id = :feature and phase_number = 2",
    feature=feature,
)
print("read", json.dumps(row))
conn.run("select * from pgcoord.complete_phase(:name, 'by-hand')", name=f"queue-{feature}-1")
conn.run("select 1")
print("heard", conn.notifications[0][2])
conn.close()
