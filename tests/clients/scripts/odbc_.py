import json
import os

import pyodbc

feature = int(os.environ["FEATURE"])
data = json.loads(os.environ["DATA"])
conn = pyodbc.connect(
    f"Driver={{PostgreSQL Unicode}};Server=127.0.0.1;Port={os.environ['PGPORT']};"
    f"Database={os.environ['PGDATABASE']};Uid=postgres",
    autocommit=True,
)
cur = conn.cursor()
cur.execute("insert into planned_features (id, title) values (?, 'psqlODBC')", feature)
cur.execute(
    "insert into phase_queue (feature_id, phase_number, status, adw_id)"
    " values (?, 1, 'running', 'by-hand')",
    feature,
)
cur.execute("select * from pgcoord.add_phase(?, ?, ?, ?)", feature, 2, "{1}", json.dumps(data))
row = cur.execute(
    "select depends_on_phases, phase_data from phase_queue"
    " where feature_id = ? and phase_number = 2",
    feature,
).fetchone()
print("read", f"[{row[0]}, {row[1]}]")
cur.execute("select * from pgcoord.complete_phase(?, 'by-hand')", f"queue-{feature}-1")
