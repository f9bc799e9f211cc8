import json
import os

import django
from django.conf import settings
from django.db import connection, models

feature = int(os.environ["FEATURE"])
data = json.loads(os.environ["DATA"])
settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": "127.0.0.1",
            "PORT": os.environ["PGPORT"],
            "NAME": os.environ["PGDATABASE"],
            "USER": "postgres",
        }
    }
)
django.setup()


class Feature(models.Model):
    id = models.IntegerField(primary_key=True)
    title = models.TextField()

    class Meta:
        app_label, managed, db_table = "pgcoord", False, "planned_features"


class Phase(models.Model):
    queue_id = models.TextField(primary_key=True)
    feature = models.ForeignKey(Feature, models.DO_NOTHING)
    phase_number = models.IntegerField()
    status = models.TextField(default="queued")
    adw_id = models.TextField(null=True)
    depends_on_phases = models.JSONField(default=list)
    phase_data = models.JSONField(default=dict)

    class Meta:
        app_label, managed, db_table = "pgcoord", False, "phase_queue"


Feature.objects.create(id=feature, title="Django")
Phase.objects.create(feature_id=feature, phase_number=1, status="running", adw_id="by-hand")
Phase.objects.create(feature_id=feature, phase_number=2, depends_on_phases=[1], phase_data=data)
row = Phase.objects.get(feature_id=feature, phase_number=2)
print("read", json.dumps([row.depends_on_phases, row.phase_data]))
with connection.cursor() as cursor:
    cursor.execute(
        "select * from pgcoord.complete_phase(%s, 'by-hand')", [f"queue-{feature}-1"]
    )
