"""Show features while they run: a live tree on a terminal, else a line for each transition.

The one rule: the database is read only when it has notified. The durations on the screen are
redrawn each second without a read.
"""

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import psycopg
from rich.console import Console, RenderableType
from rich.text import Text
from rich.tree import Tree

from pgcoord.database import reads, session
from pgcoord.database._sql import Connection
from pgcoord.database.connect import connect, may_pass
from pgcoord.database.listener import Listener
from pgcoord.database.rows import BoardPhase, Feature
from pgcoord.database.states import IN_SLOT, UNFINISHED
from pgcoord.errors import DatabaseUnusable, message_of
from pgcoord.text import counted

if TYPE_CHECKING:
    from rich.live import Live

logger = logging.getLogger(__name__)

Reading = TypeVar("Reading")

# Seconds between tries while the database does not answer.
_RETRY_INTERVAL = 1.0

# Seconds from a notification to the read, so that what follows at once, such as the claim after an
# end, is shown with it.
_SETTLING = 0.05

# Columns: the tree's lines before a phase, and the least width to which a title is cut.
_GUIDE = 4
_LEAST_TITLE = 24

# Seconds without a running phase after which a line says what the feature waits for.
_STANDSTILL = 1.0

# Characters that are shown of the last line of a log.
_QUOTED = 200

_LOOKS = {
    "completed": ("✓", "green"),
    "skipped": ("✓", "yellow"),
    "running": ("▶", "bold cyan"),
    "ready": ("▷", "cyan"),
    "queued": ("·", ""),
    "failed": ("✗", "bold red"),
    "blocked": ("⊘", "yellow"),
    "cancelled": ("-", "yellow"),
}


@dataclass(frozen=True)
class Snapshot:
    """A feature and its phases at one moment; *standstill*: why it cannot proceed, in words."""

    feature: Feature
    phases: Sequence[BoardPhase]
    standstill: str | None = None

    @property
    def ended(self) -> bool:
        """Whether no phase is queued, ready or running."""
        return not any(phase.status in UNFINISHED for phase in self.phases)

    @property
    def completed(self) -> bool:
        """Whether there are phases, and every one is completed."""
        return bool(self.phases) and all(phase.status == "completed" for phase in self.phases)

    def as_json(self) -> dict[str, Any]:
        """Return a feature as `status --json` prints it: its columns, and `phases`."""
        return {**asdict(self.feature), "phases": [asdict(phase) for phase in self.phases]}


async def read_snapshot(conn: Connection, feature_id: int) -> Snapshot:
    """Read a feature and its phases, by three statements. Raises `NotFound`."""
    phases = await reads.board(conn, feature_id)
    # After the phases, so that its counts include every end that they show.
    feature = await reads.feature(conn, feature_id)
    return Snapshot(feature, phases, await reads.standstill(conn, feature_id))


async def follow(
    dsn: str, read: Callable[[Connection], Awaitable[Reading]]
) -> AsyncGenerator[Reading, None]:
    """Yield the result of *read*, now and after each notification, without end.

    Opens a connection of its own, on which it listens and *read* runs. Raises
    `psycopg.OperationalError` when that is lost, `DatabaseUnusable` when it cannot be opened.
    """
    async with await connect(dsn) as conn:
        await session.listen(conn, session.EVENT)
        await session.listen(conn, session.STAND_BY)  # notified when a coordinator resigns the lead
        listener = Listener(conn)
        while True:
            yield await read(conn)
            await listener.wait(None)
            await asyncio.sleep(_SETTLING)


async def follow_through(
    dsn: str, read: Callable[[Connection], Awaitable[Reading]]
) -> AsyncGenerator[Reading, None]:
    """As `follow`, but reconnect each second while the connection is lost.

    Raises `DatabaseUnusable` for an error that a retry does not mend, such as a wrong password.
    """
    while True:
        try:
            async with aclosing(follow(dsn, read)) as readings:
                async for reading in readings:
                    yield reading
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            logger.warning("the database is lost: %s", message_of(error))
        except DatabaseUnusable as error:
            if not may_pass(error):
                raise
            logger.debug("the database is still lost: %s", error)
        await asyncio.sleep(_RETRY_INTERVAL)


async def read_through(dsn: str, read: Callable[[Connection], Awaitable[Reading]]) -> Reading:
    """Return what *read* reads, reconnecting as `follow_through` does; raises as that."""
    async with aclosing(follow_through(dsn, read)) as readings:
        return await anext(readings)


class Progress(Protocol):
    """Shows the progress of one feature."""

    def show(self, snapshot: Snapshot) -> None:
        """Show *snapshot*, or what changed since the one before it."""


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Progress]:
    """Yield a `Progress` on stdout: a live tree on a terminal, else a line for each transition.

    At the end of the block the tree is printed once more, to stay. *quiet*: print nothing.
    """
    if quiet:
        yield _Nothing()
        return
    if not is_terminal():
        lines = _Lines()
        try:
            yield lines
        finally:
            lines.close()
        return
    tree = _LiveTree()
    with live(tree.render) as tree.drawn:
        yield tree
    if tree.snapshot:
        console().print(feature_tree(tree.snapshot))


def is_terminal() -> bool:
    """Whether stdout is a terminal that can redraw lines."""
    return sys.stdout.isatty() and not console().is_dumb_terminal


def console() -> Console:
    """Return a console on stdout, as wide as the terminal; piped output is never cut."""
    # No emoji: a title with :smile: stays as it is, and rich's table of them takes 4 ms to load.
    return Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 10_000)


@contextmanager
def live(render: Callable[[], RenderableType]) -> Iterator["Live"]:
    """Draw what *render* returns once a second, and on `refresh()`; clear it after the block."""
    from rich.live import Live

    with Live(
        console=console(),
        get_renderable=render,
        refresh_per_second=1,
        transient=True,
        redirect_stderr=sys.stderr.isatty(),
    ) as drawn:
        yield drawn


class _LiveTree:
    """Shows a feature as a tree on `drawn`, which must be set before `show`."""

    drawn: "Live"

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None

    def show(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.drawn.refresh()

    def render(self) -> RenderableType:
        if self.snapshot is None:
            return ""
        return feature_tree(self.snapshot, rows=console().height - 2)


class _Nothing:
    """Shows nothing: with --json only the end is printed."""

    def show(self, snapshot: Snapshot) -> None:
        pass


class _Lines:
    """Prints a line for each transition.

    A transition that was missed between two snapshots is inferred from them.
    """

    def __init__(self) -> None:
        self._before: Mapping[int, BoardPhase] | None = None
        self._soon: asyncio.TimerHandle | None = None
        self._last_obstacle = ""

    def show(self, snapshot: Snapshot) -> None:
        self.close()
        if self._before is None:
            phases = counted(len(snapshot.phases), "phase")
            _line(
                _now(), f"feature {snapshot.feature.id}  {clean(snapshot.feature.title)}, {phases}"
            )
        moves = [
            move
            for phase in snapshot.phases
            for move in _moves((self._before or {}).get(phase.phase_number), phase)
        ]
        # Consequences last; at the same moment, a start stays before its end.
        for move in sorted(moves, key=lambda move: (move.follows, move.at)):
            _line(move.at, move.words)
        self._before = {phase.phase_number: phase for phase in snapshot.phases}
        if not any(phase.slot for phase in snapshot.phases):
            loop = asyncio.get_running_loop()
            self._soon = loop.call_later(_STANDSTILL, self._print_obstacles, snapshot)

    def close(self) -> None:
        """Cancel the line that would say what the last snapshot waits for."""
        if self._soon:
            self._soon.cancel()

    def _print_obstacles(self, snapshot: Snapshot) -> None:
        waiting = next((phase for phase in snapshot.phases if phase.status == "queued"), None)
        if waiting is None or not waiting.waiting_for or waiting.waiting_for == self._last_obstacle:
            return
        self._last_obstacle = waiting.waiting_for
        words = f"{clean(waiting.title)}: {clean(waiting.waiting_for)}"
        _line(_now(), _words(waiting, waiting.status, words))


class _Move(NamedTuple):
    """A transition to print; *follows*: it is the consequence of another phase's transition."""

    at: datetime
    words: str
    follows: bool = False


def _moves(before: BoardPhase | None, after: BoardPhase) -> Iterator[_Move]:
    was = before.status if before else "queued"
    last_attempt = before.attempt if before else 0
    started = after.attempt > last_attempt or was == "ready"
    if started and after.started_timestamp and after.status != "ready":
        words = clean(after.title) + _slot(after)
        yield _Move(after.started_timestamp, _words(after, "running", words))
    if after.status in IN_SLOT or (after.status == was and after.attempt == last_attempt):
        return
    at = after.since if after.status != "queued" and after.since else _now()
    words = ": ".join(filter(None, (clean(after.title), "; ".join(_details(after)))))
    yield _Move(at, _words(after, shown_status(after), words), follows=after.status == "blocked")


def _words(phase: BoardPhase, status: str, words: str) -> str:
    return f"phase {phase.phase_number}  {status:<9}  {words}"


def _slot(phase: BoardPhase) -> str:
    attempt = f"attempt {phase.attempt}" if phase.attempt > 1 else None
    slot = f"slot {phase.slot}" if phase.slot else None
    words = ", ".join(filter(None, (slot, attempt)))
    return f" ({words})" if words else ""


def _line(at: datetime, words: str) -> None:
    sys.stdout.write(f"{at.astimezone():%H:%M:%S}  {words}\n")
    sys.stdout.flush()


def feature_tree(snapshot: Snapshot, *, rows: int | None = None) -> Tree:
    """Return a tree of a feature with a line for each phase, at most *rows* lines (None: all).

    If they do not fit, one line counts the completed phases, and one those that are left out.
    """
    tree = Tree(feature_line(snapshot.feature), guide_style="dim")
    if snapshot.standstill:
        tree.add(_one_line((f"cannot proceed: {clean(snapshot.standstill)}", "bold yellow")))
    phases = list(snapshot.phases)
    room = len(phases) if rows is None else max(rows, 4)
    completed = [phase for phase in phases if phase.status == "completed"]
    if len(phases) > room and completed:
        phases = [phase for phase in phases if phase.status != "completed"]
        tree.add(_one_line(_look("completed"), f"  {counted(len(completed), 'phase')}"))
        room -= 1
    if not phases and not completed:
        tree.add(_one_line("no phases queued yet"))
    width = console().width - _GUIDE
    for phase in phases if len(phases) <= room else phases[: room - 1]:
        tree.add(_phase_line(phase, width))
    if len(phases) > room:
        tree.add(_one_line(f"… and {len(phases) - room + 1} more"))
    return tree


def feature_line(feature: Feature) -> Text:
    """Return a feature in one line: title, counts, state, cost; cut to the terminal's width."""
    completed, total = feature.phases_completed, feature.total_phases
    percent = f" ({100 * completed // total} %)" if total else ""
    counts = f"  {completed}/{total}{percent} {feature.status.replace('_', ' ')}"
    if feature.cost_usd is not None:
        counts += f"  ${feature.cost_usd:.2f}"
    if feature.max_cost_usd is not None:
        counts += f" of ${feature.max_cost_usd:.2f}"
    end = _one_line(counts, ("  paused" if feature.paused_at else "", "yellow"))
    title = Text(f"Feature {feature.id}: {clean(feature.title)}", "bold")
    return _fitting(title, end, console().width)


def _phase_line(phase: BoardPhase, width: int) -> Text:
    look = _look(shown_status(phase))
    details = "".join(f" · {each}" for each in _details(phase))
    title = Text(f"{phase.phase_number:>3} {clean(phase.title)}")
    return _one_line(look, _fitting(title, Text(details, "dim"), width - look.cell_len))


def _fitting(title: Text, end: Text, width: int) -> Text:
    """Join both to one line of *width* columns, cutting a long title rather than *end*."""
    title.truncate(max(width - end.cell_len, _LEAST_TITLE), overflow="ellipsis")
    return _one_line(title, end)


def _look(status: str) -> Text:
    icon, style = _LOOKS[status]
    return Text(f"{icon} {status:<9}", style)


def shown_status(phase: BoardPhase) -> str:
    """Return the status to show: "skipped" for a completed phase that was skipped, not run."""
    return "skipped" if phase.skipped else phase.status


def _details(phase: BoardPhase) -> Iterator[str]:
    """Yield what a line says after status and title: slot, attempt, duration, error, wait."""
    if phase.slot:
        yield f"slot {phase.slot}"
    if phase.attempt > 1:
        yield f"attempt {phase.attempt}"
    if phase.slot and phase.since:
        yield words_for(max(_now() - phase.since, timedelta()), fine=False)
    if phase.started_timestamp and phase.finished_timestamp and not phase.skipped:
        yield words_for(phase.finished_timestamp - phase.started_timestamp)
    if phase.status in ("failed", "cancelled") and phase.error_message not in (None, phase.status):
        yield _fault(phase.error_message)
    if phase.waiting_for:
        yield clean(phase.waiting_for)


def summary(snapshot: Snapshot, reasons: Mapping[int, str]) -> str:
    """Return how a feature ended, in one line that names each phase not completed, and why.

    *reasons*: the last logged reason by phase number, used where the snapshot holds none.
    """
    feature, total = snapshot.feature, len(snapshot.phases)
    name = f"feature {feature.id} ({clean(feature.title)})"
    if snapshot.completed:
        skipped = sum(phase.skipped for phase in snapshot.phases)
        of_them = f" ({skipped} skipped)" if skipped else ""
        return f"{name} completed: {counted(total, 'phase')}{of_them}{_took(snapshot.phases)}"
    unfinished = [phase for phase in snapshot.phases if phase.status != "completed"]
    causes = "; ".join(_why_not(phase, reasons.get(phase.phase_number)) for phase in unfinished)
    return f"{name}: {total - len(unfinished)} of {counted(total, 'phase')} completed; {causes}"


def _why_not(phase: BoardPhase, reason: str | None) -> str:
    if phase.status == "failed" and phase.error_message:
        reason_text = _fault(phase.error_message)
    else:
        reason_text = clean(phase.waiting_for or reason or "")
    # Without a reason, the log holds the bare status, "cancelled".
    because = f": {reason_text}" if reason_text and reason_text != phase.status else ""
    return f"phase {phase.phase_number} {phase.status}{because}"


def _took(phases: Sequence[BoardPhase]) -> str:
    started = [phase.started_timestamp for phase in phases if phase.started_timestamp]
    finished = [phase.finished_timestamp for phase in phases if phase.finished_timestamp]
    return f" in {words_for(max(finished) - min(started))}" if started and finished else ""


def words_for(length: timedelta, *, fine: bool = True) -> str:
    """Return *length* in words, such as "2 h 05 min"; *fine*: tenths of seconds below ten."""
    seconds = length.total_seconds()
    if seconds < 10 and fine:
        return f"{seconds:.1f} s"
    minutes, whole = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {whole:02} s" if minutes else f"{whole} s"


def _fault(error: str) -> str:
    """Return an error message in one line: how the process ended, and the telling line of its log.

    That is the first if it is the cause (`excerpt` of runs/logs.py), else the last.
    """
    from pgcoord.runs.logs import BEFORE, mentions_error

    how, *log = error.strip().splitlines() or [""]
    log = [line for line in log if not line.startswith("exited with status ")]
    is_first = bool(log) and (BEFORE in log or mentions_error(log[0]))
    telling = (log[0] if is_first else log[-1]) if log else ""
    # What worktree.py says is both the reason and the end of the log.
    return f"{clean(how)}: {_quoted(telling)}" if telling and how not in telling else clean(how)


def _quoted(line: str) -> str:
    """Cut a line of a log, which may be of any length, to `_QUOTED` characters."""
    quoted = clean(line)
    return quoted if len(quoted) <= _QUOTED else f"{quoted[: _QUOTED - 1]}…"


def clean(text: str) -> str:
    """Return the first line of *text*, with unprintable characters replaced by spaces.

    So no text of a client can move the cursor or set colours.
    """
    line = next(iter(text.strip().splitlines()), "")
    return "".join(each if each.isprintable() else " " for each in line)


def _one_line(*parts: str | Text | tuple[str, str]) -> Text:
    """Join *parts* to a line that is cut at the terminal's width rather than wrapped."""
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _now() -> datetime:
    return datetime.now().astimezone()
