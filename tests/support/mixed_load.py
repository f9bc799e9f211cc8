"""A mixed load of everything at once, and a check of every table from scratch.

`Load` runs many connections that do what people, workflows and coordinators do, in any order and at
any moment. `faults` recomputes what the tables must say; it uses none of the functions under test.
"""

import os
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from support.database import Connection

# Seconds of the loads that `make test-scale` runs: enough to see what is wrong at all, 600 to see
# what grows slowly.
LONG = int(os.environ.get("PGCOORD_TEST_LOAD_SECONDS", "30"))

# Seconds that a load may go on after its time until enough was done.
MOST_LONGER = 900.0

Row = dict[str, Any]

WAITING = ("queued", "blocked")
LIVE = ("ready", "running")


class Load:
    """Connections that do as they please until the time is over, and *is_enough* is true.

    What is enough on a slow machine takes longer, up to `MOST_LONGER`.
    """

    def __init__(
        self,
        dsn: str,
        epoch: int,
        seconds: float,
        seed: int,
        is_enough: Callable[["Load"], bool] = lambda _: True,
    ) -> None:
        self.dsn, self.epoch, self.seed = dsn, epoch, seed
        self.until = time.monotonic() + seconds
        self.is_enough = is_enough
        self.refusals: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.most_held = 0

    def run(self, actors: dict[str, int]) -> None:
        """Run as many threads of each method as `actors` says, and wait for their end."""
        threads = [
            threading.Thread(target=self._act, args=(getattr(self, name), f"{name} {n}"))
            for name, many in actors.items()
            for n in range(many)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _act(self, act: Callable[[Connection, random.Random], None], name: str) -> None:
        dice = random.Random(f"{self.seed} {name}")
        try:
            with psycopg.connect(self.dsn, autocommit=True, row_factory=dict_row) as conn:
                while self._goes_on() and not self.wrong:
                    self._attempt(act, conn, dice, name)
        except Exception as error:
            self.wrong.append(f"{name}: {error!r}")

    def _goes_on(self) -> bool:
        late = time.monotonic() - self.until
        return late < 0 or (late < MOST_LONGER and not self.is_enough(self))

    def _attempt(
        self,
        act: Callable[[Connection, random.Random], None],
        conn: Connection,
        dice: random.Random,
        name: str,
    ) -> None:
        try:
            act(conn, dice)
            self.done[name.split()[0]] += 1
        except psycopg.Error as error:
            state = error.sqlstate or ""
            # The feature of an inserted phase may be deleted meanwhile: the foreign key says so.
            gone = state == "23503" and error.diag.constraint_name == "phase_queue_feature_exists"
            if not state.startswith("PC") and state != "55P03" and not gone:
                self.wrong.append(f"{name}: {state} {error}")
            self.refusals[state] += 1

    # The actors: each call is one thing that somebody does.

    def coordinator(self, conn: Connection, dice: random.Random) -> None:
        """Claim, start and end what was claimed, as a coordinator and its processes would."""
        claimed = conn.execute(
            "select attempt_id from pgcoord_private.claim_phases(%s)", [self.epoch]
        ).fetchall()
        for row in claimed:
            if dice.random() < 0.9:
                self._run_attempt(conn, dice, row["attempt_id"])
        self._sweep(conn, dice)

    def _run_attempt(self, conn: Connection, dice: random.Random, attempt: int) -> None:
        end = dice.random()
        if end < 0.1:
            conn.execute("select pgcoord_private.return_attempt(%s, '0 s', 'limit')", [attempt])
            return
        conn.execute("select pgcoord_private.start_phase(%s, %s, 1, 'then')", [self.epoch, attempt])
        if end < 0.15:
            conn.execute("select pgcoord.give_up_attempt(%s, 'lost', 'gone')", [attempt])
        elif end < 0.8:
            conn.execute("select pgcoord_private.end_attempt(%s, %s)", [attempt, int(end > 0.6)])

    def _sweep(self, conn: Connection, dice: random.Random) -> None:
        """End a process whose end was asked for, or that is still there though it has reported."""
        conn.execute("select pgcoord_private.expire_attempts()")
        conn.execute(
            "select pgcoord_private.end_attempt(attempt_id, 143) from ("
            " select attempt_id from pgcoord_private.assignment"
            " where ending is not null or ended or %s order by random() limit 1) as found",
            [dice.random() < 0.1],
        )

    def reporter(self, conn: Connection, dice: random.Random) -> None:
        """Report on something that runs."""
        name = self._some(conn, "status in ('ready', 'running')")
        if name is None:
            conn.execute("select pg_sleep(0.002)")
        elif dice.random() < 0.7:
            conn.execute("select pgcoord.complete_phase(%s)", [name])
        else:
            conn.execute("select pgcoord.fail_phase(%s, 'broken')", [name])

    def person(self, conn: Connection, dice: random.Random) -> None:
        """Call one of the functions that people call."""
        feature = "(select id from planned_features order by random() limit 1)"
        call = dice.choice(
            ["retry_phase(%s)"] * 6
            + ["skip_phase(%s, 'done')"] * 2
            + ["cancel_phase(%s, 'no')"] * 2
            + [f"set_priority(%s, {dice.randint(1, 99)})"] * 2
            + [f"resume({feature})", "resume()"] * 2
            + [f"pause({feature})", "pause()"]
            + [f"cancel_feature({feature}, 'no')"]
            + [f"set_slots({dice.randint(1, 6)})"] * 2
        )
        where = "status in ('failed', 'cancelled')" if "retry" in call else "true"
        values = [self._some(conn, where)] if "%s" in call else []
        conn.execute(f"select pgcoord.{call}", values)

    def hand(self, conn: Connection, dice: random.Random) -> None:
        """Write an UPDATE by hand: one phase, or many of a feature.

        Never over several features: two of those that meet the rows in opposite orders deadlock in
        any database, before a trigger could see it.
        """
        change = dice.choice(
            [f"status = '{status}'" for status in ("queued", "completed", "failed", "cancelled")]
            + [f"priority = {dice.randint(1, 99)}", "retry_at = now()"]
            + ['phase_data = phase_data || \'{"title": "t"}\'']
        )
        where = dice.choice(["queue_id = %(name)s", "feature_id = (select feature_id from named)"])
        if "status" in change and "feature" in where:
            where += f" and status = '{dice.choice(['queued', 'failed', 'cancelled'])}'"
        elif "retry_at" in change:
            where += " and retry_at is not null"
        update = (
            "with named as (select feature_id from phase_queue where queue_id = %(name)s)"
            f" update phase_queue set {change} where {where}"
        )
        values = {"name": self._some(conn, "true")}
        with conn.transaction():
            if "feature" in where and " and " in where:
                # A row whose condition has become false meanwhile stays locked, and no trigger runs
                # for it that could take the feature: it would deadlock with who holds that.
                conn.execute(
                    "select from planned_features where id = (select feature_id from phase_queue"
                    " where queue_id = %(name)s) for no key update",
                    values,
                )
            for _ in range(dice.choice([1, 1, 2])):
                conn.execute(update, values)

    def planner(self, conn: Connection, dice: random.Random) -> None:
        """Bring work in: features, phases in any order, single or many, and edges."""
        feature = self._one(conn, "select id from planned_features order by random() limit 1")
        if feature is None or dice.random() < 0.1:
            feature = self._one(
                conn, "insert into planned_features (title) values ('a') returning id"
            )
        highest = self._one(
            conn, "select max(phase_number) from phase_queue where feature_id = %s", feature
        )
        known = range(1, (highest or 0) + 3)
        if dice.random() < 0.5:
            name = self._some(conn, "status in ('queued', 'blocked')")
            conn.execute(
                "update phase_queue set depends_on_phases = %s where queue_id = %s",
                [Jsonb(dice.sample(known, min(2, len(known)))), name],
            )
            return
        rows = [
            [feature, number, Jsonb(dice.sample(known, dice.randint(0, min(2, len(known)))))]
            for number in sorted(dice.sample(range(1, 12), dice.randint(1, 3)))
        ]
        # Keys in one order, and a running one, which takes the lock of the slots, alone: else two
        # planners that insert the same phases at once wait for each other.
        if dice.random() < 0.2:
            rows = rows[:1]
            rows[0].append("running")
        for row in rows:
            if len(row) == 3:
                row.append(dice.choices(["queued", "completed", "failed"], [9, 1, 1])[0])
        conn.execute(
            "insert into phase_queue"
            " (feature_id, phase_number, depends_on_phases, status, phase_data)"
            " select f, n, d, s, '{\"max_attempts\": 2}'"
            " from unnest(%s::integer[], %s::integer[], %s::jsonb[], %s::text[]) as g (f, n, d, s)"
            " where (f, n) not in (select feature_id, phase_number from phase_queue)"
            " on conflict do nothing",
            [list(column) for column in zip(*rows, strict=True)],
        )

    def remover(self, conn: Connection, dice: random.Random) -> None:
        """Delete a phase, now and then a feature."""
        if dice.random() < 0.15:
            conn.execute(
                "delete from planned_features where id ="
                " (select id from planned_features order by random() limit 1)"
            )
        else:
            conn.execute(
                "delete from phase_queue where queue_id = %s", [self._some(conn, "slot is null")]
            )
        conn.execute("select pg_sleep(0.02)")  # so that something is there to be deleted

    def sampler(self, conn: Connection, dice: random.Random) -> None:
        """Look how many slots are held, as anybody could."""
        row = conn.execute(
            "select count(slot) as held, count(distinct slot) as slots"
            " from phase_queue, pg_sleep(0.001)"
        ).fetchone()
        assert row
        self.most_held = max(self.most_held, row["held"])
        if row["held"] != row["slots"]:
            self.wrong.append(f"{row['held']} phases in {row['slots']} slots")

    def _some(self, conn: Connection, where: str) -> str | None:
        name = self._one(
            conn, f"select queue_id from phase_queue where {where} order by random() limit 1"
        )
        return name and str(name)

    def _one(self, conn: Connection, statement: str, *values: Any) -> Any:
        row = conn.execute(statement, values).fetchone()
        return next(iter(row.values())) if row else None


def faults(conn: Connection) -> list[str]:
    """What the tables say that does not follow from the rest of them; all else must be at rest."""
    phases = {
        (row["feature_id"], row["phase_number"]): row
        for row in conn.execute("select * from phase_queue").fetchall()
    }
    found: list[str] = []
    found += _waiting_faults(conn, phases)
    found += _edge_faults(conn, phases)
    found += _slot_faults(conn, phases)
    found += _attempt_faults(conn, phases)
    found += _event_faults(conn, phases)
    return found


def _waiting_faults(conn: Connection, phases: dict[tuple[int, int], Row]) -> list[str]:
    paused = {
        row["id"]: row["paused_at"] is not None
        for row in conn.execute("select id, paused_at from planned_features").fetchall()
    }
    blocked = _blocked(phases)
    found = []
    for key, phase in phases.items():
        if phase["status"] not in WAITING:
            continue
        ups = [phases.get((key[0], number)) for number in phase["depends_on_phases"]]
        unmet = sum(up is None or up["status"] != "completed" for up in ups)
        if phase["unmet"] != unmet:
            found.append(f"{phase['queue_id']}: unmet is {phase['unmet']}, not {unmet}")
        if (phase["eligible_at"] is None) != (unmet > 0):
            found.append(f"{phase['queue_id']}: eligible_at with {unmet} unmet")
        if (phase["status"] == "blocked") != (key in blocked):
            found.append(f"{phase['queue_id']}: is {phase['status']}")
        if phase["held"] != paused[key[0]]:
            found.append(f"{phase['queue_id']}: held is {phase['held']}")
    return found


def _blocked(phases: dict[tuple[int, int], Row]) -> set[tuple[int, int]]:
    """Waiting phases downstream of a failed or cancelled one: spread until nothing changes."""
    bad = {key for key, phase in phases.items() if phase["status"] in ("failed", "cancelled")}
    reached = set(bad)
    while True:
        more = {
            (feature, number)
            for (feature, number), phase in phases.items()
            if phase["status"] in WAITING
            and any((feature, up) in reached for up in phase["depends_on_phases"])
        }
        if more <= reached:
            return reached - bad
        reached |= more


def _edge_faults(conn: Connection, phases: dict[tuple[int, int], Row]) -> list[str]:
    stored = {
        (row["feature_id"], row["prerequisite"], row["dependent"])
        for row in conn.execute("select * from pgcoord.dependency").fetchall()
    }
    named = {(f, up, n) for (f, n), phase in phases.items() for up in phase["depends_on_phases"]}
    found = [f"edge {edge} is stored or named, not both" for edge in stored ^ named]
    left = {
        key: {(key[0], up) for up in phase["depends_on_phases"]} for key, phase in phases.items()
    }
    while free := {key for key, ups in left.items() if not ups & left.keys()}:
        left = {key: ups for key, ups in left.items() if key not in free}
    return found + [f"{key} waits for itself" for key in left]


def _slot_faults(conn: Connection, phases: dict[tuple[int, int], Row]) -> list[str]:
    slots = {
        row["number"]: row["draining"]
        for row in conn.execute("select number, draining from pgcoord.slot").fetchall()
    }
    held = [phase["slot"] for phase in phases.values() if phase["slot"] is not None]
    found = [
        f"slot {slot} drains and is free" for slot in slots if slots[slot] and slot not in held
    ]
    found += [f"slot {slot} is held and does not exist" for slot in held if slot not in slots]
    found += [f"slot {slot} is held twice" for slot, many in Counter(held).items() if many > 1]
    found += [
        f"{phase['queue_id']} is {phase['status']} with slot {phase['slot']}"
        for phase in phases.values()
        if (phase["status"] in LIVE) != (phase["slot"] is not None)
    ]
    row = conn.execute(
        "select reason from pgcoord.event where kind = 'slots_changed' order by id desc limit 1"
    ).fetchone()
    wanted = int(row["reason"].split(" → ")[1]) if row else 3
    open_slots = sum(not draining for draining in slots.values())
    if open_slots != wanted:
        found.append(f"{open_slots} slots are open, {wanted} were asked for")
    return found


def _attempt_faults(conn: Connection, phases: dict[tuple[int, int], Row]) -> list[str]:
    attempts: dict[str, list[Row]] = defaultdict(list)
    for row in conn.execute("select * from pgcoord.attempt order by number").fetchall():
        attempts[row["queue_id"]].append(row)
    found = overlaps([each for of_phase in attempts.values() for each in of_phase])
    for phase in phases.values():
        name = phase["queue_id"]
        tries = [each for each in attempts[name] if each["number"]]  # 0: another feature's
        if [each["number"] for each in tries] != list(range(1, phase["attempt"] + 1)):
            found.append(f"{name}: attempts {[each['number'] for each in tries]}")
        running = [(each["number"], each["slot"]) for each in tries if each["ended_at"] is None]
        expected = [(phase["attempt"], phase["slot"])] if phase["status"] in LIVE else []
        if running != expected:
            found.append(f"{name} is {phase['status']}, attempts that run: {running}")
        if tries and tries[-1]["adw_id"] != phase["adw_id"]:
            found.append(f"{name}: adw_id {phase['adw_id']} is not of its last attempt")
    return found


def overlaps(attempts: list[Row]) -> list[str]:
    """Attempts that held the same slot at the same time, by their times."""
    found = []
    last: dict[int, Row] = {}
    for attempt in sorted(attempts, key=lambda each: each["claimed_at"]):
        before = last.get(attempt["slot"])
        if before and (before["ended_at"] is None or before["ended_at"] > attempt["claimed_at"]):
            found.append(f"slot {attempt['slot']}: attempts {before['id']} and {attempt['id']}")
        last[attempt["slot"]] = attempt
    return found


def _event_faults(conn: Connection, phases: dict[tuple[int, int], Row]) -> list[str]:
    """Replay the log: each event starts where the last one ended, the end is the tables."""
    found = []
    states: dict[str, str] = {}
    for event in conn.execute("select * from pgcoord.event order by id").fetchall():
        name = event["queue_id"]
        if event["kind"] not in ("phase_inserted", "phase_moved", "phase_deleted"):
            continue
        if states.get(name) != event["from_status"]:
            found.append(
                f"event {event['id']} of {name}: {states.get(name)}, {event['from_status']}"
            )
        if event["kind"] == "phase_deleted":
            states.pop(name, None)
        else:
            states[name] = event["to_status"]
    stored = {phase["queue_id"]: phase["status"] for phase in phases.values()}
    if states != stored:
        found.append(f"events replayed and tables: {set(states.items()) ^ set(stored.items())}")
    return found
