import json
import os
import warnings

from sqlalchemy import MetaData, create_engine, func, insert, select

feature = int(os.environ["FEATURE"])
data = json.loads(os.environ["DATA"])
warnings.simplefilter("ignore")  # queue_id is a primary key that the database fills
engine = create_engine(os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:"))
meta = MetaData()
meta.reflect(engine, only=["planned_features", "phase_queue"])
features, phases = meta.tables["planned_features"], meta.tables["phase_queue"]
with engine.begin() as conn:
    conn.execute(insert(features).values(id=feature, title="SQLAlchemy"))
    conn.execute(
        insert(phases).values(
            feature_id=feature, phase_number=1, status="running", adw_id="by-hand"
        )
    )
    conn.execute(insert(phases).values(feature_id=feature, phase_number=2, depends_on_phases=[1], phase_data=data))
with engine.begin() as conn:
    row = conn.execute(
        select(phases.c.depends_on_phases, phases.c.phase_data).where(
            phases.c.feature_id == feature, phases.c.phase_number == 2
        )
    ).one()
    print("read", json.dumps([*row]))
    conn.execute(select(func.pgcoord.complete_phase(f"queue-{feature}-1", "by-hand")))
