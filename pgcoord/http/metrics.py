"""GET /metrics: metrics in the format of Prometheus.

Each request reads the gauges and counts the events since the last request. Without requests they
cost nothing.
"""

import asyncio
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pgcoord.coordination.coordinator import Coordinator
from pgcoord.database import history
from pgcoord.database._sql import Connection
from pgcoord.database.history import Measures
from pgcoord.database.states import IN_SLOT, STATES
from pgcoord.http.feed import Event, Feed, Position

# Pages of a thousand events that one request counts; the next counts the rest.
_MOST_PAGES = 50

# Buckets of the histograms, in seconds.
_HOPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LENGTHS = (0.1, 1, 5, 15, 60, 300, 900, 1_800, 3_600, 7_200, 14_400, 28_800, 86_400)

# Kinds of events that may make a phase claimable.
_WAKING = ("phase_inserted", "phase_moved", "resumed", "feature_resumed", "slots_changed")


class Metrics:
    """The metrics of one process; counters start with its first request."""

    media_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._phases = self._gauge("pgcoord_phases", "Phases by state.", "status")
        self._slots = self._gauge("pgcoord_slots", "Phases that may run at once.", "pool")
        self._held = self._gauge("pgcoord_slots_held", "Slots in use.", "pool")
        self._draining = self._gauge("pgcoord_slots_draining", "Slots removed on release.", "pool")
        self._paused = self._gauge("pgcoord_paused", "1 while everything is paused.")
        self._oldest = self._gauge(
            "pgcoord_oldest_eligible_seconds", "How long the oldest eligible phase has waited."
        )
        self._queue = self._gauge(
            "pgcoord_notification_queue_usage", "How full Postgres' queue of notifications is."
        )
        self.webhooks = Counter(
            "pgcoord_webhooks",
            "Reports by result.",
            ["result"],
            registry=self.registry,
        )
        self._attempts = Counter(
            "pgcoord_attempts",
            "Ended attempts.",
            ["workflow", "outcome"],
            registry=self.registry,
        )
        self._hop = self._histogram(
            "pgcoord_hop_seconds", "From the event that made a phase claimable to its claim.", _HOPS
        )
        self._wait = self._histogram(
            "pgcoord_wait_seconds", "From eligible to claimed, first attempts.", _LENGTHS
        )
        self._run = self._histogram("pgcoord_run_seconds", "From started to ended.", _LENGTHS)
        self._position: Position | None = None
        self._woken: Event | None = None
        self._reading = asyncio.Lock()

    def watch(self, coordinator: Coordinator, feed: Feed) -> None:
        """Include the state of *coordinator* and *feed*."""
        self._gauge("pgcoord_leads", "1 while this process leads.").set_function(
            lambda: coordinator.leads.is_set()
        )
        self._gauge("pgcoord_stream_clients", "Clients of the streams.").set_function(
            lambda: feed.subscribers
        )
        interruptions = self._gauge("pgcoord_reconnects", "Reconnects.", "connection")
        interruptions.labels("coordinator").set_function(lambda: coordinator.interruptions)
        interruptions.labels("feed").set_function(lambda: feed.interruptions)

    async def read(self, conn: Connection) -> bytes:
        """Return all metrics, as of now, in the text format."""
        async with self._reading:
            self._show(await history.measures(conn))
            if self._position is None:
                self._position = await Position.now(conn)
            for _ in range(_MOST_PAGES):
                events = await self._position.read(conn)
                await self._position.settle(conn)
                if not events:
                    break
                await self._count(conn, events)
            return generate_latest(self.registry)

    def _show(self, measures: Measures) -> None:
        for status in STATES:
            self._phases.labels(status).set((measures.phases or {}).get(status, 0))
        for gauge, column in (
            (self._slots, "slots"),
            (self._held, "held"),
            (self._draining, "draining"),
        ):
            gauge.clear()  # of pools that are gone
            for pool in measures.pools:
                gauge.labels(pool["pool"]).set(pool[column])
        self._paused.set(measures.paused)
        self._oldest.set(measures.oldest_eligible_seconds or 0)
        self._queue.set(measures.notification_queue_usage)

    async def _count(self, conn: Connection, events: Sequence[Event]) -> None:
        ended = []
        for event in events:
            row = event.row
            if row.to_status == "ready" and self._woken and row.attempt == 1:
                self._hop.observe(max(0.0, (row.at - self._woken.row.at).total_seconds()))
            elif row.kind in _WAKING and row.to_status not in IN_SLOT:
                self._woken = event
            if row.from_status in IN_SLOT and row.to_status != "running":
                ended.append(row.id)
        for attempt in await history.ended_attempts(conn, ended) if ended else ():
            self._attempts.labels(attempt.workflow or "", attempt.outcome).inc()
            if attempt.waited_seconds is not None:
                self._wait.observe(attempt.waited_seconds)
            if attempt.ran_seconds is not None:
                self._run.observe(attempt.ran_seconds)

    def _gauge(self, name: str, words: str, *labels: str) -> Gauge:
        return Gauge(name, words, labels, registry=self.registry)

    def _histogram(self, name: str, words: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(name, words, buckets=buckets, registry=self.registry)
