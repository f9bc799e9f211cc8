"""pgcoord runs the phases of long jobs in the order their dependencies allow; Postgres is the coordinator."""

__version__ = "0.1.0"
