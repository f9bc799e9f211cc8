"""Leadership: the session that asks for the lead, holds it and gives it back.

The lead belongs to one connection, which listens for wake-ups, too. The one rule: all statements
go to the server of that connection, and never to a primary that a newer one has replaced.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psycopg

from pgcoord import __version__
from pgcoord.configuration.model import Pool, Workflow
from pgcoord.coordination.retrying import Retrying
from pgcoord.database import claims, reads, session
from pgcoord.database._sql import Connection
from pgcoord.database.connect import connect, in_any_order, same_server
from pgcoord.database.listener import BALANCED, Listener, listening
from pgcoord.database.rows import LeadBlocker
from pgcoord.database.work import Lead, ServerTimeline
from pgcoord.errors import CoordError, DatabaseUnusable, Locked
from pgcoord.text import printable

logger = logging.getLogger(__name__)

# Idle times that differ by less than this part count as the same time-out.
_SAME = 0.1

# Seconds after which we check whether a statement waits for a lock.
_WAITS_LONG = 1.0

# The state of the lead when no coordinator has it.
_NOBODY = Lead(led=False, epoch=None, host=None, pid=None)


class Leadership:
    """The session of one coordinator, and the state of the lead as it was last read.

    `leads` is set while this coordinator leads, `led` is true once it has led; `leader` is the
    last result of `ask` (None before the first) and `epoch` the highest epoch seen.
    """

    def __init__(
        self,
        dsn: str,
        *,
        host: str,
        runs_folder: Path,
        workflows: Iterable[Workflow],
        pools: Iterable[Pool],
        retrying: Retrying,
    ) -> None:
        self.leads = asyncio.Event()
        self.led = False
        self.leader: Lead | None = None
        self.epoch = 0
        self._blocker: LeadBlocker | None = None
        self._dsn = dsn
        self._host = host
        self._runs_folder = runs_folder
        self.declare(workflows, pools)
        self._retrying = retrying
        self.listener: Listener | None = None
        self._timeline = ServerTimeline(None, None)
        self._cuts: list[float] = []

    @property
    def conn(self) -> Connection:
        """The connection that holds the lead. Only the loop may use it, and not during `wait`.

        A claim on it cannot outlive the lead, and never waits for a pooled connection.
        """
        assert self.listener is not None
        return self.listener.conn

    @property
    def is_on_another_host(self) -> bool:
        """Whether a coordinator on another machine leads, as far as known."""
        return self.leader is not None and self.leader.host != self._host

    @asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        """Connect to one server: open the connection that listens and leads, and a pool.

        Raises `DatabaseUnusable`, also for a primary that a newer one has replaced.
        """
        async with listening(self._dsn, session.STAND_BY) as listener:
            self._refuse_replaced_primary(await claims.server_timeline(listener.conn))
            server = same_server(self._dsn, listener.conn)
            if await session.balancer(listener.conn) == "sends":
                logger.warning("%s", BALANCED)
            actor = f"coordinator {self._host}"
            await session.act_as(listener.conn, actor)
            async with self._retrying.connected(server, actor):
                naming = asyncio.create_task(self._name_holders(server, listener))
                try:
                    self.listener = listener
                    yield
                except psycopg.OperationalError:
                    self._note_cut(listener.idle_seconds)
                    raise
                finally:
                    naming.cancel()
                    self.listener = None
                    self.leads.clear()

    async def _name_holders(self, server: str, listener: Listener) -> None:
        """Warn, once for each, of sessions whose locks a statement on the lead's connection waits
        for: without a row of its own, such as that of a phase, a lock has no other notice.

        Checks nothing while another coordinator leads: a try for the lead then waits as a rule.
        """
        named, before = None, None
        while True:
            await asyncio.sleep(_WAITS_LONG)
            stands_by = self.leader is None or not (self.leader.led or self.leader.pid is None)
            status = listener.conn.pgconn.transaction_status
            if stands_by or status != psycopg.pq.TransactionStatus.ACTIVE:
                before = None
                continue
            since, before = before, listener.idle_since
            if since != before:
                continue
            with suppress(psycopg.Error, CoordError):
                async with await connect(server) as conn:
                    holder = await reads.blocked_by(conn, listener.conn.info.backend_pid)
                if holder and holder != named:
                    named = holder
                    logger.warning("nothing is claimed: the coordinator waits for %s", holder)

    def _note_cut(self, idle_seconds: float) -> None:
        """Warn once three connections in a row were lost after the same idle time."""
        self._cuts = [*self._cuts[-2:], idle_seconds]
        if len(self._cuts) == 3 and max(self._cuts) - min(self._cuts) < _SAME * max(self._cuts):
            logger.warning(
                "something between here and the server cuts idle connections after %.1f s:"
                " give it a time-out of more than 10 s, which is how often we send",
                idle_seconds,
            )
            self._cuts = []

    def _refuse_replaced_primary(self, server: ServerTimeline) -> None:
        """Raise `DatabaseUnusable` for an older timeline than before: its writes would be lost."""
        known = self._timeline
        if server.system == known.system and (server.timeline or 0) < (known.timeline or 0):
            self._dsn = in_any_order(self._dsn)  # the next attempt may reach the new primary
            raise DatabaseUnusable(
                f"the server writes timeline {server.timeline}, but {known.timeline} was seen"
                " before: this primary was replaced",
            )
        self._timeline = server

    def declare(self, workflows: Iterable[Workflow], pools: Iterable[Pool]) -> None:
        """Have the next `try_to_lead` that succeeds declare *workflows* and *pools*."""
        self._workflows = [_declared(workflow) for workflow in workflows]
        self._pools = [_declared_pool(pool) for pool in pools]

    async def try_to_lead(self) -> bool:
        """Take the lead, or read which coordinator has it; return whether `leader` changed.

        Waits up to 2 s. SQL: pgcoord_private.lead.
        """
        try:
            leader = await claims.lead(
                self.conn,
                host=self._host,
                pid=os.getpid(),
                version=__version__,
                runs_folder=str(self._runs_folder),
                workflows=self._workflows,
                after=self.epoch,
                pools=self._pools,
            )
        except Locked:  # the whole control table is locked: the leader cannot be read, either
            leader = _NOBODY
        changed = self._note(leader)
        await self._warn_of_blocker(leader)
        return changed

    async def _warn_of_blocker(self, leader: Lead) -> None:
        """Warn once of a session whose lock keeps every coordinator from the lead."""
        blocker = await reads.lead_blocker(self.conn) if leader.pid is None else None
        if blocker and blocker != self._blocker:
            logger.warning("cannot lead: %s; end it: %s", printable(blocker.words), blocker.remedy)
        self._blocker = blocker

    async def look(self) -> bool:
        """Read which coordinator leads, without taking the lead; return whether that changed."""
        lead = await reads.leader(self.conn)
        return self._note(Lead(False, lead.epoch, lead.host, lead.pid) if lead else _NOBODY)

    def _note(self, leader: Lead) -> bool:
        before, self.leader = self.leader, leader
        self.epoch = leader.epoch or self.epoch
        if leader == before:
            return False
        if leader.led:
            over = "" if before is None or before.led else f", taking over from {before}"
            logger.info("leading (lead %d)%s", leader.epoch, over)
        else:
            logger.info("standing by: %s leads", leader)
        return True

    async def begin(self) -> None:
        """Listen for wake-ups on the connection that has just taken the lead."""
        await session.listen(self.conn, session.WAKE)
        self.leads.set()
        self.led = True

    async def resign(self) -> None:
        """Give the lead back, and wake the coordinators that stand by.

        SQL: `pgcoord_private.resign`.
        """
        await claims.resign(self.conn)

    async def wait(self, seconds: float | None) -> bool:
        """Wait for a notification or `wake`, at most *seconds*; return whether one came."""
        assert self.listener is not None
        return await self.listener.wait(seconds)

    @property
    def has_changed(self) -> bool:
        """Whether `take_changed` has something to return."""
        assert self.listener is not None
        return self.listener.has_changed

    def take_changed(self) -> set[int]:
        """Return the ids of the attempts that changed since the last call, by notifications."""
        assert self.listener is not None
        return self.listener.take_changed()

    def take_changed_schedules(self) -> bool:
        """Return whether a schedule was changed since the last call, by notifications."""
        assert self.listener is not None
        return self.listener.take_changed_schedules()

    def wake(self) -> None:
        """End the current `wait`, or the next one, at once."""
        if self.listener:
            self.listener.wake()


def _declared(workflow: Workflow) -> dict[str, object]:
    """Return *workflow* as an element of the argument p_workflows of pgcoord_private.lead."""
    return {
        "name": workflow.name,
        "default": workflow.default,
        "reports": workflow.reports,
        "max_attempts": workflow.max_attempts,
        "retry_delay_seconds": workflow.retry_delay.total_seconds(),
        "retry_lost": workflow.retry_lost,
        "timeout_seconds": workflow.timeout.total_seconds() if workflow.timeout else None,
        "queue_timeout_seconds": (
            workflow.queue_timeout.total_seconds() if workflow.queue_timeout else None
        ),
        "pool": workflow.pool,
        "max_cost_usd": workflow.max_cost_usd,
        "later_delay_seconds": workflow.later_delay.total_seconds(),
        "max_later": workflow.max_later,
    }


def _declared_pool(pool: Pool) -> dict[str, object]:
    """Return *pool* as an element of the argument p_pools of pgcoord_private.lead."""
    return {
        "name": pool.name,
        "launcher": pool.launcher,
        "slots": pool.slots,
        "settings": dict(pool.settings),
    }
