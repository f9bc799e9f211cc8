"""The statements about schedules: those of people, and those of the leading coordinator.

The one rule: one Python function for each SQL function or view.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from psycopg.types.json import Jsonb

from pgcoord.database._record import Record
from pgcoord.database._sql import Connection, columns_of, fetch_rows, fetch_value
from pgcoord.errors import NotFound


class Schedule(Record):
    """A schedule, and what became of its latest due time: a row of pgcoord.schedules."""

    name: str
    cron: str
    timezone: str
    title: str
    phases: int
    overlap: str
    missed: str
    paused_at: datetime | None
    paused_reason: str | None
    next_at: datetime | None
    error: str | None
    last_due_at: datetime | None
    last_outcome: str | None
    last_reason: str | None
    last_feature_id: int | None
    last_status: str | None
    created_at: datetime
    created_by: str
    declared: bool

    @property
    def origin(self) -> str:
        """Where the schedule comes from: pgcoord.toml, or the person who made it."""
        if self.declared:
            return "declared in pgcoord.toml"
        return f"made by {self.created_by}, {self.clock(self.created_at)}"

    @property
    def words(self) -> str:
        """When the schedule is due next, or why it is not, in its own time zone."""
        if self.error:
            return f"cannot run: {self.error}"
        if self.paused_at:
            because = f": {self.paused_reason}" if self.paused_reason else ""
            return f"paused since {self.clock(self.paused_at)}{because}"
        if self.next_at:
            return f"next {self.clock(self.next_at)}"
        return "its next time is found once a coordinator runs"

    @property
    def last_words(self) -> str:
        """What became of the latest due time, and the state of the latest feature; "" for none."""
        if self.last_due_at is None:
            return ""
        words = f"{self.last_outcome} {self.clock(self.last_due_at)}"
        words += f" ({self.last_reason})" if self.last_reason else ""
        if self.last_feature_id is None:
            return words
        return f"{words}, feature {self.last_feature_id} {self.last_status}".replace("_", " ")

    def clock(self, at: datetime) -> str:
        """Return a time in the time zone of the schedule, to the minute."""
        try:
            at = at.astimezone(ZoneInfo(self.timezone))
        except (ZoneInfoNotFoundError, OSError):  # this machine does not know it
            at = at.astimezone(UTC)
        return f"{at:%Y-%m-%d %H:%M %Z}"


class Run(Record):
    """What became of one due time: a row of pgcoord.schedule_run."""

    schedule: str
    due_at: datetime
    outcome: str
    feature_id: int | None
    reason: str | None


class Refused(Record):
    """A schedule of pgcoord.toml that is not stored, why, and since when."""

    name: str
    error: str
    at: datetime


class Why(Record):
    """A reason why a schedule does not run, or when it does."""

    kind: str
    words: str


async def schedules(conn: Connection) -> list[Schedule]:
    """Return the schedules by name. SQL: view pgcoord.schedules."""
    return await fetch_rows(
        conn, Schedule, f"select {columns_of(Schedule)} from pgcoord.schedules order by name"
    )


async def schedule(conn: Connection, name: str) -> Schedule:
    """Return one schedule. Raises `NotFound`."""
    rows = await schedules(conn)
    for each in rows:
        if each.name == name:
            return each
    names = ", ".join(each.name for each in rows)
    raise NotFound(
        f"there is no schedule {name:.120}",
        hint=f"There is {names}." if names else "There is none: 'pgcoord schedule create'.",
    )


async def refused(conn: Connection) -> list[Refused]:
    """Return what pgcoord.toml declares and could not be stored, by name."""
    return await fetch_rows(
        conn,
        Refused,
        f"select {columns_of(Refused)} from pgcoord.refused_schedule order by name",
    )


async def why_schedule(conn: Connection, name: str) -> list[Why]:
    """Return why a schedule runs or does not, most decisive first. Raises `NotFound`.

    SQL: pgcoord.why_schedule.
    """
    return await fetch_rows(
        conn, Why, f"select {columns_of(Why)} from pgcoord.why_schedule(%s)", name
    )


async def runs(conn: Connection, name: str) -> list[Run]:
    """Return what became of the due times of a schedule, latest first: a hundred at most."""
    return await fetch_rows(
        conn,
        Run,
        f"select {columns_of(Run)} from pgcoord.schedule_run"
        " where schedule = %s order by due_at desc limit 100",
        name,
    )


async def feature_plan(conn: Connection, feature_id: int) -> object:
    """Return a feature as `add_schedule` takes it. Raises `NotFound`. SQL: pgcoord.feature_plan."""
    value: object = await fetch_value(conn, "select pgcoord.feature_plan(%s)", feature_id)
    return value


async def add_schedule(
    conn: Connection,
    name: str,
    cron: str,
    feature: object,
    *,
    timezone: str | None = None,
    overlap: str | None = None,
    missed: str | None = None,
) -> None:
    """Add a schedule (None: the default). Raises `InvalidInput`, `Refused` for a name in use."""
    await fetch_value(
        conn,
        "select name from pgcoord.add_schedule(%s, %s, %s, %s, %s, %s)",
        *(name, cron, Jsonb(feature), timezone, overlap, missed),
    )


async def change_schedule(conn: Connection, name: str, changes: Mapping[str, object]) -> None:
    """Change the members of a schedule that are in *changes*. SQL: pgcoord.change_schedule."""
    await fetch_value(
        conn, "select name from pgcoord.change_schedule(%s, %s)", name, Jsonb(dict(changes))
    )


async def pause_schedule(conn: Connection, name: str, reason: str | None) -> None:
    """Have a schedule start nothing. Raises `NotFound`. SQL: pgcoord.pause_schedule."""
    await fetch_value(conn, "select pgcoord.pause_schedule(%s, %s)", name, reason)


async def resume_schedule(conn: Connection, name: str) -> bool:
    """Undo a pause; return whether there was one. SQL: pgcoord.resume_schedule."""
    return bool(await fetch_value(conn, "select pgcoord.resume_schedule(%s)", name))


async def run_schedule(conn: Connection, name: str) -> int:
    """Queue the feature of a schedule now; return its id. SQL: pgcoord.run_schedule."""
    return int(await fetch_value(conn, "select pgcoord.run_schedule(%s)", name))


async def delete_schedule(conn: Connection, name: str) -> None:
    """Delete a schedule. Raises `NotFound`. SQL: pgcoord.delete_schedule."""
    await fetch_value(conn, "select pgcoord.delete_schedule(%s)", name)
