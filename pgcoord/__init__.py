"""pgcoord runs the phases of long jobs in dependency order; Postgres is the coordinator."""

__version__ = "0.1.0"
