"""The real database against a model of it: hypothesis does anything in any order, and after every
step the tables must say what the model says.

The model is written from docs/design.md, section 4, not from the SQL. It keeps only what people
decide; what follows (blocked, eligible) is worked out from scratch whenever it is asked for.
"""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as Stage
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg.types.json import Jsonb
from support.database import (
    MOVES,
    WORKFLOW,
    Connection,
    add_feature,
    add_phase,
    claim,
    statuses,
    take_lead,
)

LIVE = ("ready", "running")
ENDED = ("completed", "failed", "cancelled")
WAITING = ("queued", "blocked")

# Three workflows are named, two of them declared: what names "strange" is never claimed.
STURDY = WORKFLOW | {
    "name": "sturdy",
    "default": False,
    "reports": True,
    "max_attempts": 2,
    "retry_lost": True,
}
DECLARED: dict[str | None, dict[str, Any]] = {None: WORKFLOW, "sturdy": STURDY}

Key = tuple[int, int]


@dataclass
class Attempt:
    """One try; how it shall end (`ending`) and did end (`outcome`) are apart."""

    number: int
    max_attempts: int = 1
    reports: bool = False
    retry_lost: bool = False
    external: bool = False
    ending: str | None = None
    outcome: str | None = None
    exited: bool = False


@dataclass
class Phase:
    feature: int
    number: int
    depends: list[int]
    status: str
    priority: int
    workflow: str | None
    max_attempts: int | None
    gate: bool = False
    position: int = 0
    used: int = 0
    # "later" until its retry time comes, then "due" until a claim has seen it
    retry: str | None = None
    slot: int | None = None
    attempts: list[Attempt] = field(default_factory=list)
    # its gate is not approved
    gated: bool = False
    # completed, failed or always: how its prerequisites must have ended
    when: str = "completed"

    @property
    def key(self) -> Key:
        return self.feature, self.number

    @property
    def queue_id(self) -> str:
        return f"queue-{self.feature}-{self.number}"


@dataclass
class Feature:
    paused: bool = False
    cancelled: bool = False


class Model:
    """What docs/design.md, section 4, says."""

    def __init__(self) -> None:
        self.features: dict[int, Feature] = {}
        self.phases: dict[Key, Phase] = {}
        self.paused = False
        self.slots = {1, 2, 3}
        self.draining: set[int] = set()
        self.inserted = 0

    # What follows from what was decided.

    def open_prerequisites(self, phase: Phase) -> list[int]:
        found = ((n, self.phases.get((phase.feature, n))) for n in phase.depends)
        return [n for n, up in found if up is None or not self.is_met(up, phase.when)]

    def is_met(self, up: Phase, when: str) -> bool:
        ends = ("completed",) if when == "completed" else (*ENDED, "blocked")
        return self.status(up) in ends

    def is_blocked(self, phase: Phase) -> bool:
        ups = [self.phases.get((phase.feature, n)) for n in phase.depends]
        return phase.when == "completed" and any(
            up.status in ("failed", "cancelled") or (up.status in WAITING and self.is_blocked(up))
            for up in ups
            if up is not None
        )

    def status(self, phase: Phase) -> str:
        if phase.status not in WAITING:
            return phase.status
        return "blocked" if self.is_blocked(phase) else "queued"

    def skip_unneeded(self) -> None:
        """What runs only when a prerequisite was not completed is skipped when all are."""
        unneeded = [
            phase
            for phase in self.phases.values()
            if phase.when == "failed"
            and phase.status in WAITING
            and phase.depends
            and all(
                up is not None and up.status == "completed"
                for up in (self.phases.get((phase.feature, n)) for n in phase.depends)
            )
        ]
        for phase in unneeded:
            phase.status = "completed"
            phase.retry = None
        if unneeded:
            self.skip_unneeded()

    def waits_again_under(self, after: "Model") -> bool:
        """Whether a phase had ended, or could not start, and waits after that, though another
        one runs because of it."""
        return any(
            self.status(phase) in ("failed", "cancelled", "blocked")
            and after.status(waits) == "queued"
            and any(
                down.when != "completed" and down.status in LIVE and waits.number in down.depends
                for down in after.of_feature(waits.feature)
            )
            for key, phase in self.phases.items()
            if (waits := after.phases.get(key))
        )

    def has_cycle(self, phases: Iterable[Phase]) -> bool:
        edges = {phase.key: {(phase.feature, n) for n in phase.depends} for phase in phases}
        while edges:
            free = {key for key, ups in edges.items() if not ups & edges.keys()}
            if not free:
                return True
            edges = {key: ups for key, ups in edges.items() if key not in free}
        return False

    def held_slots(self) -> set[int]:
        return {phase.slot for phase in self.phases.values() if phase.slot is not None}

    def free_slots(self) -> set[int]:
        return self.slots - self.draining - self.held_slots()

    def line(self) -> list[Phase]:
        """What a claim may take, in its order."""
        if self.paused:
            return []
        claimable = [
            phase
            for phase in self.phases.values()
            if self.status(phase) == "queued"
            and not self.open_prerequisites(phase)
            and phase.retry != "later"
            and not phase.gated
            and not self.features[phase.feature].paused
            and phase.workflow in DECLARED
        ]
        return sorted(claimable, key=lambda p: (p.priority, p.position, p.feature, p.number))

    def feature_status(self, number: int) -> str:
        phases = self.of_feature(number)
        if self.features[number].cancelled:
            return "cancelled"
        if phases and all(phase.status == "completed" for phase in phases):
            return "completed"
        begun = any(phase.attempts or phase.status in ("completed", "failed") for phase in phases)
        return "in_progress" if begun else "planned"

    def of_feature(self, number: int) -> list[Phase]:
        return [phase for phase in self.phases.values() if phase.feature == number]

    # What may be asked for: the SQLSTATEs with which it is refused, none when it is granted.

    def faults_of_insert(self, added: Sequence[Phase]) -> set[str]:
        faults = set()
        keys = [phase.key for phase in added]
        if len(set(keys)) < len(keys) or self.phases.keys() & set(keys):
            faults.add("23505")
        if any(not is_well_formed(phase.number, phase.depends) for phase in added):
            faults.add("PC005")
        if any(phase.when == "failed" and not phase.depends for phase in added):
            faults.add("PC005")
        after = self.phases | {phase.key: phase for phase in added}
        if self.has_cycle(after.values()):
            faults.add("PC005")
        if any(self.features[phase.feature].cancelled for phase in added):
            faults.add("PC002")
        running = [phase for phase in added if phase.status == "running"]
        if len(running) > len(self.free_slots()):
            faults.add("PC006")
        for phase in running:
            ups = [after.get((phase.feature, n)) for n in phase.depends]
            # Whether an inserted one is blocked is found out afterwards.
            if any(
                up is None
                or not self.is_met(up, phase.when)
                or (up.status in WAITING and up.key not in self.phases)
                for up in ups
            ):
                faults.add("PC002")
        return faults

    def faults_of_edges(self, changes: Sequence[tuple[Phase, list[int]]]) -> set[str]:
        faults = set()
        after = dict(self.phases)
        for phase, depends in changes:
            if depends != phase.depends and self.status(phase) not in WAITING:
                faults.add("PC002")
            if not is_well_formed(phase.number, depends) or (
                phase.when == "failed" and not depends
            ):
                faults.add("PC005")
            after[phase.key] = replace(phase, depends=depends)
        if self.has_cycle(after.values()):
            faults.add("PC005")
        return faults

    def faults_of_move(self, phase: Phase, to: str) -> set[str]:
        status = self.status(phase)
        if to == status:
            return set()
        if to not in MOVES[status] or to in LIVE or {status, to} <= set(WAITING):
            return {"PC002"}
        if status in LIVE and to == "queued":
            return {"PC002"}
        if status in LIVE and to != "cancelled" and phase.attempts[-1].ending not in (None, to):
            return {"PC004"}
        return set()

    def faults_of_report(self, phase: Phase, outcome: str) -> set[str]:
        status = self.status(phase)
        if phase.attempts:
            decided = phase.attempts[-1].outcome or phase.attempts[-1].ending
        else:
            decided = status if status in ("completed", "failed", "cancelled") else None
            if decided is None:
                return {"PC002"}
        return set() if decided in (None, outcome) else {"PC004"}

    def faults_of_answer(self, phase: Phase, answer: str) -> set[str]:
        if answer == "approve" and phase.gate and not phase.gated:
            return set()  # it was approved before
        if answer == "reject" and phase.gated and phase.status == "cancelled":
            return set()
        asked = phase.gated and self.status(phase) == "queued"
        return set() if asked and not self.open_prerequisites(phase) else {"PC002"}

    # What is done.

    def insert(self, added: Sequence[Phase]) -> None:
        for phase in added:
            self.inserted += 1
            phase.position = self.inserted
            self.phases[phase.key] = phase
            if phase.status in ("ready", "blocked"):
                phase.status = "queued"
            elif phase.status == "running":
                phase.attempts.append(Attempt(1, external=True))
            phase.gated = phase.gate and phase.status not in ("running", "completed")

    def move(self, phase: Phase, to: str) -> None:
        if to == self.status(phase):
            return
        if phase.status in LIVE:
            attempt = phase.attempts[-1]
            if to == "completed" or attempt.external:
                self.end(phase, to)
                attempt.exited = attempt.external
            elif attempt.ending is None or to == "cancelled":
                attempt.ending = to
            return
        phase.retry = None
        phase.status = to
        if to == "queued":
            phase.used = 0
            self.features[phase.feature].cancelled = False

    def end(self, phase: Phase, outcome: str) -> None:
        """The current attempt has ended; what becomes of its phase?"""
        attempt = phase.attempts[-1]
        attempt.outcome = outcome
        self.release(phase)
        if outcome in ("completed", "cancelled"):
            phase.status = outcome
            return
        phase.status = "queued"
        if outcome == "returned":
            phase.retry = "later"
            return
        losses = sum(each.outcome == "lost" for each in phase.attempts)
        if outcome == "lost" and attempt.retry_lost and losses < 3:
            phase.retry = "later"
            return
        phase.used += 1
        if phase.used < attempt.max_attempts:
            phase.retry = "later"
        else:
            phase.status = "failed"

    def release(self, phase: Phase) -> None:
        if phase.slot in self.draining:
            self.draining.remove(phase.slot)
            self.slots.remove(phase.slot)
        phase.slot = None

    def conclude(self, phase: Phase, attempt: Attempt, outcome: str) -> None:
        """The process of an attempt is gone, or never was."""
        attempt.exited = True
        if attempt.outcome is None:
            self.end(phase, attempt.ending or outcome)

    def claim(self) -> list[Phase]:
        for phase in self.phases.values():
            if phase.retry == "due":
                phase.retry = None
        claimed = self.line()[: len(self.free_slots())]
        for phase in claimed:
            declared = DECLARED[phase.workflow]
            phase.status = "ready"
            phase.attempts.append(
                Attempt(
                    number=phase.attempts[-1].number + 1 if phase.attempts else 1,
                    max_attempts=phase.max_attempts or declared["max_attempts"],
                    reports=declared["reports"],
                    retry_lost=declared["retry_lost"],
                )
            )
        return claimed


def is_well_formed(number: int, depends: list[int]) -> bool:
    return (
        len(set(depends)) == len(depends) and number not in depends and min(depends, default=1) > 0
    )


CHECKED_PHASES = """
    select p.*, edge.all_of_phase as edges, try.all_of_phase as attempts
    from phase_queue as p
        cross join lateral (
            select coalesce(jsonb_agg(d.prerequisite order by d.prerequisite), '[]')
            from pgcoord.dependency as d
            where d.feature_id = p.feature_id and d.dependent = p.phase_number
        ) as edge (all_of_phase)
        cross join lateral (
            select coalesce(jsonb_agg(
                jsonb_build_array(a.number, a.ending, a.outcome, a.exited_at is not null)
                order by a.number), '[]')
            from pgcoord.attempt as a
            where a.queue_id = p.queue_id
        ) as try (all_of_phase)
"""
NUMBERS = st.integers(1, 7)
PICKS = st.integers(0, 11)
STATUSES = st.sampled_from(list(MOVES))
PHASES = st.builds(
    lambda number, depends, status, priority, workflow, max_attempts, gate, when: Phase(
        0, number, depends, status, priority, workflow, max_attempts, gate, when=when
    ),
    number=NUMBERS,
    depends=st.lists(NUMBERS, max_size=3, unique=True),
    status=st.sampled_from(
        ["queued"] * 7 + ["ready", "blocked", "running", "completed", "failed", "cancelled"]
    ),
    priority=st.sampled_from([10, 50, 50, 90]),
    workflow=st.sampled_from([None, None, None, "sturdy", "strange"]),
    max_attempts=st.sampled_from([None, None, 2, 3]),
    gate=st.sampled_from([False, False, False, True]),
    when=st.sampled_from(["completed", "completed", "completed", "failed", "always"]),
)


class Coordination(RuleBasedStateMachine):
    """Everything that people, workflows and a coordinator can do, one step at a time."""

    def __init__(self, conn: Connection, epoch: int) -> None:
        super().__init__()
        self.conn, self.epoch = conn, epoch
        self._model = Model()
        self.eligible_at: dict[str, Any] = {}
        self.replayed: dict[str, str] = {}
        self.replayed_features: dict[int, set[str]] = {}
        self.replayed_slots = 3
        self.last_event = 0
        conn.execute(
            "set session_replication_role = replica;"  # phases that hold a slot go, too
            "truncate planned_features, phase_queue, pgcoord.attempt, pgcoord.dependency,"
            " pgcoord.issue, pgcoord.errand cascade;"
            "truncate pgcoord.event;"
            "reset session_replication_role;"
            "delete from pgcoord.slot; insert into pgcoord.slot select generate_series(1, 3);"
            "delete from pgcoord.free_slot;"
            "insert into pgcoord.free_slot select pool, number from pgcoord.slot;"
            "update pgcoord.control set paused_at = null"
        )

    @property
    def model(self) -> Model:
        self._model.skip_unneeded()
        return self._model

    def faults_of(self, act: Callable[[Model], object]) -> set[str]:
        """Whether to do that is refused because something runs as another phase has ended."""
        after = deepcopy(self.model)
        act(after)
        after.skip_unneeded()
        return {"PC002"} if self.model.waits_again_under(after) else set()

    def send(self, faults: set[str], statement: str, *values: Any) -> list[dict[str, Any]] | None:
        """Execute; None when it was refused as expected. Anything else is a failure."""
        try:
            cursor = self.conn.execute(statement, values)
        except psycopg.Error as error:
            if error.sqlstate not in faults:
                raise
            return None
        assert not faults, f"went through, expected {faults}: {statement} {values}"
        return cursor.fetchall() if cursor.description else []

    def rows(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        return self.conn.execute(statement, values).fetchall()

    def pick(self, pick: int, *statuses: str) -> Phase:
        phases = [p for p in self.model.phases.values() if not statuses or p.status in statuses]
        return phases[pick % len(phases)]

    def pick_live(self, pick: int) -> Phase:
        return self.pick(pick, *LIVE)

    def pick_feature(self, pick: int) -> int:
        features = list(self.model.features)
        return features[pick % len(features)]

    def some_feature(self) -> bool:
        return bool(self.model.features)

    def some_phase(self) -> bool:
        return bool(self.model.phases)

    def some_live(self) -> bool:
        return any(phase.status in LIVE for phase in self.model.phases.values())

    # Bringing work in.

    @initialize(
        depends=st.lists(st.sets(st.integers(1, 5), max_size=2), min_size=3, max_size=6),
        phases=st.lists(PHASES, min_size=6, max_size=6),
    )
    def begin(self, depends: list[set[int]], phases: list[Phase]) -> None:
        """A feature to begin with: each phase depends on earlier ones."""
        self.insert_feature()
        for number, (ups, phase) in enumerate(zip(depends, phases, strict=False), start=1):
            phase.number, phase.depends = number, sorted(up for up in ups if up < number)
        self.insert_phases(0, phases[: len(depends)])
        self.claim()

    @precondition(lambda self: len(self.model.features) < 3)
    @rule()
    def insert_feature(self) -> None:
        (row,) = self.rows("insert into planned_features (title) values ('a') returning id")
        self.model.features[row["id"]] = Feature()

    @precondition(some_feature)
    @rule(pick=PICKS, phases=st.lists(PHASES, min_size=1, max_size=3))
    def insert_phases(self, pick: int, phases: list[Phase]) -> None:
        feature = self.pick_feature(pick)
        added = [replace(p, feature=feature, attempts=[]) for p in phases]
        data = [
            {"workflow_type": p.workflow}
            | ({"max_attempts": p.max_attempts} if p.max_attempts else {})
            | ({"gate": "may it go on?"} if p.gate else {})
            for p in added
        ]
        answer = self.send(
            self.model.faults_of_insert(added),
            "insert into phase_queue"
            " (feature_id, phase_number, depends_on_phases, status, priority, phase_data, run_when)"
            " select * from unnest(%s::integer[], %s::integer[], %s::jsonb[],"
            " %s::text[], %s::integer[], %s::jsonb[], %s::text[])",
            [p.feature for p in added],
            [p.number for p in added],
            [Jsonb(p.depends) for p in added],
            [p.status for p in added],
            [p.priority for p in added],
            [Jsonb(each) for each in data],
            [p.when for p in added],
        )
        if answer is not None:
            self.model.insert(added)
            self.take_slots([p for p in added if p.status == "running"])

    def take_slots(self, phases: list[Phase]) -> None:
        """See in the tables which slot each phase was given: any free one will do."""
        for phase in phases:
            free = self.model.free_slots()
            (row,) = self.rows("select slot from phase_queue where queue_id = %s", phase.queue_id)
            assert row["slot"] in free
            phase.slot = row["slot"]

    @precondition(some_phase)
    @rule(
        changes=st.lists(
            st.tuples(PICKS, st.lists(st.integers(0, 7), max_size=3)), min_size=1, max_size=3
        )
    )
    def change_dependencies(self, changes: list[tuple[int, list[int]]]) -> None:
        wanted = {self.pick(pick).key: depends for pick, depends in changes}
        phases = [(self.model.phases[key], depends) for key, depends in wanted.items()]

        def change(model: Model) -> None:
            for key, depends in wanted.items():
                model.phases[key].depends = depends

        answer = self.send(
            self.model.faults_of_edges(phases) or self.faults_of(change),
            "update phase_queue as p set depends_on_phases = wanted.depends"
            " from unnest(%s::text[], %s::jsonb[]) as wanted (queue_id, depends)"
            " where p.queue_id = wanted.queue_id",
            [phase.queue_id for phase, _ in phases],
            [Jsonb(depends) for _, depends in phases],
        )
        if answer is not None:
            change(self.model)

    # What a coordinator does.

    @rule()
    def claim(self) -> None:
        rows = self.rows("select queue_id from pgcoord_private.claim_phases(%s)", self.epoch)
        claimed = self.model.claim()
        assert [row["queue_id"] for row in rows] == [phase.queue_id for phase in claimed]
        self.take_slots(claimed)

    @precondition(lambda self: any(p.status == "ready" for p in self.model.phases.values()))
    @rule(pick=PICKS)
    def start(self, pick: int) -> None:
        phase = self.pick(pick, "ready")
        self.call_for_attempt(
            "pgcoord_private.start_phase(%s, {}, 1, 'then')", phase, -1, self.epoch
        )
        phase.status = "running"

    def call_for_attempt(self, call: str, phase: Phase, which: int, *values: Any) -> None:
        """Call a function for one attempt of a phase; {} stands for its id."""
        attempt = "(select id from pgcoord.attempt where queue_id = %s and number = %s)"
        place = call[: call.index("{")].count("%s")
        given = [*values]
        given[place:place] = [phase.queue_id, phase.attempts[which].number]
        self.send(set(), f"select {call.format(attempt)}", *given)

    def attempts_with_process(self) -> list[tuple[Phase, int]]:
        return [
            (phase, index)
            for phase in self.model.phases.values()
            for index, attempt in enumerate(phase.attempts)
            if not attempt.exited and not attempt.external
        ]

    @precondition(lambda self: self.attempts_with_process() != [])
    @rule(pick=PICKS, exit_code=st.sampled_from([0, 0, 1, 143]))
    def process_exits(self, pick: int, exit_code: int) -> None:
        found = self.attempts_with_process()
        phase, index = found[pick % len(found)]
        attempt = phase.attempts[index]
        self.call_for_attempt("pgcoord_private.end_attempt({}, %s)", phase, index, exit_code)
        succeeded = exit_code == 0 and not attempt.reports
        self.model.conclude(phase, attempt, "completed" if succeeded else "failed")

    @precondition(lambda self: self.attempts_with_process() != [])
    @rule(pick=PICKS, outcome=st.sampled_from(["lost", "failed", "returned"]))
    def process_is_missing(self, pick: int, outcome: str) -> None:
        found = self.attempts_with_process()
        phase, index = found[pick % len(found)]
        if outcome == "returned":
            self.call_for_attempt(
                "pgcoord_private.return_attempt({}, '1 hour', 'limit')", phase, index
            )
        else:
            self.call_for_attempt("pgcoord.give_up_attempt({}, %s, 'gone')", phase, index, outcome)
        self.model.conclude(phase, phase.attempts[index], outcome)

    def running_on(self) -> list[Phase]:
        live = [phase for phase in self.model.phases.values() if phase.status in LIVE]
        return [p for p in live if not p.attempts[-1].ending and not p.attempts[-1].external]

    @precondition(lambda self: self.running_on() != [])
    @rule(pick=PICKS)
    def deadline_passes(self, pick: int) -> None:
        found = self.running_on()
        phase = found[pick % len(found)]
        self.send(
            set(),
            "update pgcoord.attempt set deadline = now() - interval '1 s'"
            " where queue_id = %s and ended_at is null",
            phase.queue_id,
        )
        self.send(set(), "select pgcoord_private.expire_attempts()")
        phase.attempts[-1].ending = "timed_out"

    @precondition(lambda self: any(phase.retry for phase in self.model.phases.values()))
    @rule(claim=st.booleans())
    def retry_times_come(self, claim: bool) -> None:
        self.send(
            set(),
            "update phase_queue set retry_at = now() - interval '1 s' where retry_at is not null",
        )
        for phase in self.model.phases.values():
            phase.retry = phase.retry and "due"
        if claim:
            self.claim()

    # What workflows report and people ask for.

    @precondition(some_live)
    @rule(pick=PICKS, outcome=st.sampled_from(["completed", "completed", "failed"]))
    def report_live(self, pick: int, outcome: str) -> None:
        self.report(self.pick_live(pick), outcome)

    @precondition(some_phase)
    @rule(pick=PICKS, outcome=st.sampled_from(["completed", "failed"]))
    def report_any(self, pick: int, outcome: str) -> None:
        self.report(self.pick(pick), outcome)

    def report(self, phase: Phase, outcome: str) -> None:
        faults = self.model.faults_of_report(phase, outcome)
        if outcome == "completed":
            answer = self.send(faults, "select pgcoord.complete_phase(%s)", phase.queue_id)
        else:
            answer = self.send(faults, "select pgcoord.fail_phase(%s, 'broken')", phase.queue_id)
        decided = phase.attempts and (phase.attempts[-1].outcome or phase.attempts[-1].ending)
        if answer is not None and phase.attempts and not decided:
            self.model.move(phase, outcome)

    def tried_again(self) -> list[Phase]:
        return [phase for phase in self.model.phases.values() if len(phase.attempts) > 1]

    @precondition(lambda self: self.tried_again() != [])
    @rule(pick=PICKS, outcome=st.sampled_from(["completed", "failed"]))
    def report_stale_attempt(self, pick: int, outcome: str) -> None:
        tried = self.tried_again()
        phase = tried[pick % len(tried)]
        adw_id = "(select adw_id from pgcoord.attempt where queue_id = %s and number = %s)"
        first = phase.attempts[0]
        values = [phase.queue_id, phase.queue_id, first.number]
        faults = set() if first.outcome == outcome else {"PC003"}  # a repeat changes nothing
        if outcome == "completed":
            self.send(faults, f"select pgcoord.complete_phase(%s, {adw_id})", *values)
        else:
            self.send(faults, f"select pgcoord.fail_phase(%s, 'broken', {adw_id})", *values)

    @precondition(
        lambda self: any(p.status in ("failed", "cancelled") for p in self.model.phases.values())
    )
    @rule(pick=PICKS)
    def retry_ended(self, pick: int) -> None:
        self.retry(self.pick(pick, "failed", "cancelled"))

    @precondition(some_phase)
    @rule(pick=PICKS, action=st.sampled_from(["retry", "skip", "cancel", "set_priority"]))
    def person_acts(self, pick: int, action: str) -> None:
        getattr(self, action)(self.pick(pick))

    def retry(self, phase: Phase) -> None:
        faults = set[str]()
        if phase.status in ("failed", "cancelled"):
            faults = self.faults_of(lambda model: model.move(model.phases[phase.key], "queued"))
        elif not phase.retry:
            faults = {"PC002"}
        answer = self.send(faults, "select pgcoord.retry_phase(%s)", phase.queue_id)
        if answer is not None:
            if phase.status in ("failed", "cancelled"):
                self.model.move(phase, "queued")
            phase.retry = None

    def skip(self, phase: Phase) -> None:
        answer = self.send(
            {"PC002"}
            if phase.status in LIVE
            else self.faults_of(lambda model: model.move(model.phases[phase.key], "completed")),
            "select pgcoord.skip_phase(%s, 'done by hand')",
            phase.queue_id,
        )
        if answer is not None:
            self.model.move(phase, "completed")

    def cancel(self, phase: Phase) -> None:
        answer = self.send(
            {"PC002"} if phase.status == "completed" else set(),
            "select pgcoord.cancel_phase(%s, 'given up')",
            phase.queue_id,
        )
        if answer is not None:
            self.model.move(phase, "cancelled")

    def set_priority(self, phase: Phase) -> None:
        phase.priority = 60 - phase.priority // 2
        self.send(set(), "select pgcoord.set_priority(%s, %s)", phase.queue_id, phase.priority)

    def asked(self) -> list[Phase]:
        return [p for p in self.model.phases.values() if p.gated and p.status == "queued"]

    @precondition(lambda self: self.asked() != [])
    @rule(pick=PICKS, answer=st.sampled_from(["approve", "approve", "reject"]))
    def answer_asked(self, pick: int, answer: str) -> None:
        asked = self.asked()
        self.answer(asked[pick % len(asked)], answer)

    @precondition(some_phase)
    @rule(pick=PICKS, answer=st.sampled_from(["approve", "reject"]))
    def answer_any(self, pick: int, answer: str) -> None:
        self.answer(self.pick(pick), answer)

    def answer(self, phase: Phase, answer: str) -> None:
        faults = self.model.faults_of_answer(phase, answer)
        done = self.send(faults, f"select pgcoord.{answer}(%s, 'as I see it')", phase.queue_id)
        if done is None or not phase.gated:
            return
        if answer == "reject":
            self.model.move(phase, "cancelled")
            return
        phase.gated = False
        if phase.workflow is None:  # it has no prompt either: nothing runs
            self.model.move(phase, "completed")

    @precondition(some_phase)
    @rule(moves=st.lists(st.tuples(PICKS, STATUSES), min_size=1, max_size=3))
    def update_by_hand(self, moves: list[tuple[int, str]]) -> None:
        wanted = {self.pick(pick).key: to for pick, to in moves}
        phases = [(self.model.phases[key], to) for key, to in wanted.items()]
        # All at once: "blocked" stays what it was before the statement.
        moving = [(p.key, to) for p, to in phases if to != self.model.status(p)]

        def move(model: Model) -> None:
            for key, to in moving:
                model.move(model.phases[key], to)

        faults = set[str]().union(*(self.model.faults_of_move(phase, to) for phase, to in phases))
        answer = self.send(
            faults or self.faults_of(move),
            "update phase_queue as p set status = wanted.status"
            " from unnest(%s::text[], %s::text[]) as wanted (queue_id, status)"
            " where p.queue_id = wanted.queue_id",
            [phase.queue_id for phase, _ in phases],
            [to for _, to in phases],
        )
        if answer is not None:
            move(self.model)

    @rule(pick=PICKS, what=st.sampled_from(["pause", "resume", "pause all", "resume all"]))
    def pause_or_resume(self, pick: int, what: str) -> None:
        action, _, everything = what.partition(" ")
        feature = None if everything else self.pick_feature(pick)
        self.send(set(), f"select pgcoord.{action}(%s)", feature)
        if feature is None:
            self.model.paused = action == "pause"
        else:
            self.model.features[feature].paused = action == "pause"
        self.claim()  # which few histories would do before the next resumption

    @precondition(some_feature)
    @rule(pick=PICKS, cancel=st.booleans())
    def end_feature(self, pick: int, cancel: bool) -> None:
        if cancel:
            self.cancel_feature(self.pick_feature(pick))
        elif len(self.model.features) > 1:
            self.delete_feature(self.pick_feature(pick))

    def cancel_feature(self, feature: int) -> None:
        phases = self.model.of_feature(feature)
        done = bool(phases) and all(phase.status == "completed" for phase in phases)
        faults = {"PC002"} if done and not self.model.features[feature].cancelled else set[str]()
        self.send(faults, "select pgcoord.cancel_feature(%s, 'given up')", feature)
        if faults:
            return
        self.model.features[feature].cancelled = True
        for phase in self.model.of_feature(feature):
            if phase.status in (*LIVE, *WAITING):
                self.model.move(phase, "cancelled")

    @rule(wanted=st.integers(0, 5))
    def set_slots(self, wanted: int) -> None:
        model = self.model
        before, free = len(model.slots - model.draining), len(model.free_slots())
        held = model.held_slots()
        self.send(set(), "select pgcoord.set_slots(%s)", wanted)
        rows = self.rows("select number, draining from pgcoord.slot")
        draining = {row["number"] for row in rows if row["draining"]}
        if wanted >= before:
            assert draining <= model.draining
            assert len(draining) == max(len(model.draining) - (wanted - before), 0)
        else:
            assert draining >= model.draining
            assert len(draining) == len(model.draining) + max(before - wanted - free, 0)
        assert len(rows) - len(draining) == wanted
        model.slots, model.draining = {row["number"] for row in rows}, draining
        assert draining <= held <= model.slots

    # Taking work away.

    @precondition(some_phase)
    @rule(picks=st.lists(PICKS, min_size=1, max_size=2))
    def delete_phases(self, picks: list[int]) -> None:
        phases = {phase.key: phase for phase in map(self.pick, picks)}
        live = any(phase.status in LIVE for phase in phases.values())
        answer = self.send(
            {"PC002"} if live else self.faults_of(lambda m: [m.phases.pop(key) for key in phases]),
            "delete from phase_queue where queue_id = any (%s)",
            [phase.queue_id for phase in phases.values()],
        )
        if answer is not None:
            for key in phases:
                del self.model.phases[key]

    def delete_feature(self, feature: int) -> None:
        phases = self.model.of_feature(feature)
        answer = self.send(
            {"PC002"} if any(phase.status in LIVE for phase in phases) else set(),
            "delete from planned_features where id = %s",
            feature,
        )
        if answer is not None:
            del self.model.features[feature]
            for phase in phases:
                del self.model.phases[phase.key]

    # What must be true after every step.

    @invariant()
    def phases_are_as_the_model_says(self) -> None:
        rows = {row["queue_id"]: row for row in self.rows(CHECKED_PHASES)}
        assert rows.keys() == {phase.queue_id for phase in self.model.phases.values()}
        for phase in self.model.phases.values():
            self.check_phase(phase, rows[phase.queue_id])
        self.eligible_at = {name: row["eligible_at"] for name, row in rows.items()}

    def check_phase(self, phase: Phase, row: dict[str, Any]) -> None:
        status = self.model.status(phase)
        assert row["status"] == status, f"{phase.queue_id}: {row['status']}, model: {status}"
        assert row["slot"] == phase.slot
        if status == "blocked":
            # Who waits for something else need not wait for a time as well.
            phase.retry = None
        assert (row["retry_at"] is not None) == (phase.retry is not None)
        assert row["attempt"] == (phase.attempts[-1].number if phase.attempts else 0)
        assert row["attempts_used"] == phase.used
        assert row["gated"] == phase.gated
        assert row["depends_on_phases"] == phase.depends
        assert row["edges"] == sorted(phase.depends)
        assert row["attempts"] == [
            [each.number, each.ending, each.outcome, each.exited] for each in phase.attempts
        ]
        assert (row["finished_timestamp"] is not None) == (
            status in ("completed", "failed", "cancelled")
        )
        if status in WAITING:
            unmet = len(self.model.open_prerequisites(phase))
            assert row["unmet"] == unmet
            assert (row["eligible_at"] is None) == bool(unmet)
            assert row["held"] == self.model.features[phase.feature].paused
        before = self.eligible_at.get(phase.queue_id)
        if before and row["eligible_at"]:
            assert row["eligible_at"] == before, f"{phase.queue_id} was stamped eligible twice"

    @invariant()
    def slots_are_as_the_model_says(self) -> None:
        rows = self.rows("select number, draining from pgcoord.slot")
        assert {row["number"] for row in rows} == self.model.slots
        assert {row["number"] for row in rows if row["draining"]} == self.model.draining
        held = [phase.slot for phase in self.model.phases.values() if phase.status in LIVE]
        assert len(set(held)) == len(held)
        assert None not in held

    @invariant()
    def features_are_as_the_model_says(self) -> None:
        rows = {row["id"]: row for row in self.rows("select * from pgcoord.feature")}
        assert rows.keys() == self.model.features.keys()
        for number, row in rows.items():
            statuses = [self.model.status(phase) for phase in self.model.of_feature(number)]
            assert row["status"] == self.model.feature_status(number)
            assert row["total_phases"] == len(statuses)
            assert row["phases_completed"] == statuses.count("completed")
            assert row["phases_running"] == statuses.count("ready") + statuses.count("running")
            assert row["phases_failed"] == statuses.count("failed")
            assert row["phases_blocked"] == statuses.count("blocked")

    @invariant()
    def next_work_names_what_could_be_claimed(self) -> None:
        (row,) = self.rows("select locked from pgcoord_private.next_work()")
        line = [phase.queue_id for phase in self.model.line()] if self.model.free_slots() else []
        locked = {name.removeprefix("phase ") for name in row["locked"] if "attempt" not in name}
        assert locked <= set(line)
        assert bool(locked) == bool(line)

    @invariant()
    def events_replayed_are_the_tables(self) -> None:
        for event in self.rows(
            "select * from pgcoord.event where id > %s order by id", self.last_event
        ):
            self.replay(event)
            self.last_event = event["id"]
        rows = self.rows("select queue_id, status from phase_queue")
        assert self.replayed == {row["queue_id"]: row["status"] for row in rows}
        assert self.replayed_slots == len(self.model.slots - self.model.draining)
        assert self.replayed_features == {
            number: {word for word in ("paused", "cancelled") if getattr(feature, word)}
            for number, feature in self.model.features.items()
        }

    def replay(self, event: dict[str, Any]) -> None:
        name = event["queue_id"]
        match event["kind"]:
            case "phase_inserted":
                assert name not in self.replayed
                self.replayed[name] = event["to_status"]
            case "phase_moved":
                assert self.replayed[name] == event["from_status"] != event["to_status"]
                assert event["to_status"] in MOVES[event["from_status"]]
                self.replayed[name] = event["to_status"]
            case "phase_deleted":
                assert self.replayed.pop(name) == event["from_status"]
            case "feature_inserted":
                self.replayed_features[event["feature_id"]] = set()
            case "feature_deleted":
                del self.replayed_features[event["feature_id"]]
            case "feature_paused":
                self.replayed_features[event["feature_id"]].add("paused")
            case "feature_resumed":
                self.replayed_features[event["feature_id"]].remove("paused")
            case "feature_cancelled":
                self.replayed_features[event["feature_id"]].add("cancelled")
            case "feature_taken_up":
                self.replayed_features[event["feature_id"]].remove("cancelled")
            case "slots_changed":
                before, after = event["reason"].split(" → ")
                assert int(before) == self.replayed_slots
                self.replayed_slots = int(after)


def test_a_phase_retried_as_its_prerequisite_is_completed_waits_for_nothing(
    conn: Connection,
) -> None:
    # In one statement: counted without the prerequisite already, it must not be counted down again.
    add_feature(conn, {1: [], 2: [1]})
    conn.execute("select pgcoord.cancel_phase('queue-1-1', 'no')")
    conn.execute("select pgcoord.cancel_phase('queue-1-2', 'no')")
    conn.execute(
        "update phase_queue"
        " set status = case phase_number when 1 then 'completed' else 'queued' end"
    )
    assert statuses(conn) == {1: "completed", 2: "queued"}
    row = conn.execute("select from phase_queue where phase_number = 2 and unmet = 0").fetchone()
    assert row is not None


def test_a_phase_that_fails_behind_a_prerequisite_replaced_by_a_failed_one_is_blocked(
    conn: Connection, epoch: int
) -> None:
    add_feature(conn, {1: [], 2: [1]}, phase_data=Jsonb({"max_attempts": 2}))
    conn.execute("select pgcoord.skip_phase('queue-1-1', 'done')")
    assert claim(conn, epoch) == ["queue-1-2"]
    conn.execute("delete from phase_queue where queue_id = 'queue-1-1'")
    add_phase(conn, 1, 1, status="failed")
    conn.execute("select pgcoord_private.end_attempt(id, 1) from pgcoord.attempt")
    assert statuses(conn) == {1: "failed", 2: "blocked"}


def test_edges_turned_round_in_one_statement_are_no_cycle(conn: Connection) -> None:
    add_feature(conn, {1: [], 2: [1], 3: [2]})
    conn.execute(
        "update phase_queue set depends_on_phases ="
        " (array['[2]', '[3]', '[]'])[phase_number]::jsonb"
    )
    assert statuses(conn) == {1: "queued", 2: "queued", 3: "queued"}


def run(conn: Connection, chosen: settings) -> None:
    epoch = take_lead(conn, WORKFLOW, STURDY)

    class OnThisDatabase(Coordination):
        def __init__(self) -> None:
            super().__init__(conn, epoch)

    run_state_machine_as_test(OnThisDatabase, settings=chosen)


COMMON = settings(
    deadline=None,
    # Nothing is left in the checkout: a failure prints its steps, and the blob that repeats it.
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
    # Without the last stage: explaining takes longer than finding.
    phases=[Stage.generate, Stage.shrink],
)


@pytest.mark.timeout(1800)  # shrinking a failure takes minutes
def test_database_agrees_with_the_model_whatever_is_done(conn: Connection) -> None:
    run(conn, settings(COMMON, max_examples=15, stateful_step_count=50))


@pytest.mark.scale
@pytest.mark.timeout(3600)
def test_database_agrees_with_the_model_in_long_histories(conn: Connection) -> None:
    run(conn, settings(COMMON, max_examples=250, stateful_step_count=80))
