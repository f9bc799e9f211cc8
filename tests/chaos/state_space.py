"""All reachable states of two coordinators, two slots and three phases, with the real functions. A
step is one committed statement, or one event outside of the database: a process starts, a
coordinator dies. A state is the rows of the database and what lies outside of it: who has the lead,
what each coordinator is about to start, what the folder of each run tells. `Search` takes each step
that is possible in each state, by breadth, so that what it finds is a short way there.

What happens between two statements of one transaction is not seen here: that is for
tests/sql/test_races.py. The advisory lock of the lead, and the folder of a run, in which one
process starts at most, are taken as kept: tests/coordination and tests/runs try them.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

Row = dict[str, Any]

SLOTS = 2

# Phase 3 needs 1 and 2, which two slots can run at once.
PHASES: dict[int, list[int]] = {1: [], 2: [], 3: [1, 2]}

# Other phases: 2 runs if 1 is not completed, 3 however that ends.
CONDITIONAL: dict[int, list[int]] = {1: [], 2: [1], 3: [1]}
CONDITIONS = {2: "failed", 3: "always"}

WORKFLOW = {
    "name": "work",
    "default": True,
    "reports": False,
    "max_attempts": 1,
    "retry_delay_seconds": 10,
    "retry_lost": False,
    "timeout_seconds": 3600,
}

# The folder of a run, as pgcoord/runs tells it; 0, 1 and 143 are exit statuses.
ALIVE, GIVEN_UP, LOST = "alive", "given up", "lost"

# What a coordinator remembers of an attempt and the database does not know.
LAUNCHING, LAUNCHED = "launching", "launched"

# What need not happen: a search counts how many of these lead to a state, and work that only they
# move on is stuck.
FAULTS = (
    *("crash", "lose", "vanish", "cannot", "exit 1", "time out"),
    *("report", "cancel", "retry", "set slots"),
)


@dataclass(frozen=True)
class Coordinator:
    """One of the two: the last lead it had (0: none), and what it is starting.

    One that does not run is one that takes no step.
    """

    epoch: int = 0
    starting: tuple[tuple[int, str], ...] = ()

    def renumbered(self, epoch: int, attempts: dict[int, int]) -> "Coordinator":
        """The same with the numbers of `normal`; `epoch` is the one in force."""
        return Coordinator(
            0 if not self.epoch else _IN_FORCE if self.epoch == epoch else _OVER,
            tuple(sorted((attempts[number], stage) for number, stage in self.starting)),
        )

    def stage(self, attempt: int) -> str | None:
        return dict(self.starting).get(attempt)

    def at(self, attempt: int, stage: str | None) -> "Coordinator":
        kept = {**dict(self.starting), attempt: stage}
        return replace(
            self, starting=tuple(sorted((a, s) for a, s in kept.items() if s is not None))
        )


@dataclass(frozen=True)
class Outside:
    """What is true beside the database."""

    coordinators: tuple[Coordinator, Coordinator] = (Coordinator(), Coordinator())
    leader: int | None = None
    runs: tuple[tuple[int, Any], ...] = ()

    def run(self, attempt: int) -> Any:
        return dict(self.runs).get(attempt)

    def with_run(self, attempt: int, state: Any) -> "Outside":
        return replace(self, runs=tuple(sorted({**dict(self.runs), attempt: state}.items())))

    def with_coordinator(self, which: int, coordinator: Coordinator) -> "Outside":
        both = list(self.coordinators)
        both[which] = coordinator
        return replace(self, coordinators=(both[0], both[1]))


@dataclass(frozen=True)
class State:
    """One state: the rows, and what is outside; made by `normal` only."""

    rows: Row
    outside: Outside
    text: str  # of the rows

    @property
    def epoch(self) -> int:
        return int(self.rows["epoch"])

    @property
    def slots(self) -> list[Row]:
        return list(self.rows["slots"])

    @property
    def phases(self) -> list[Row]:
        return list(self.rows["phases"])

    @property
    def attempts(self) -> list[Row]:
        return list(self.rows["attempts"])

    def key(self) -> str:
        """What tells this state from others; the two coordinators are alike."""
        outside = self.outside
        swapped = replace(
            outside,
            coordinators=(outside.coordinators[1], outside.coordinators[0]),
            leader=None if outside.leader is None else 1 - outside.leader,
        )
        return self.text + min(repr(outside), repr(swapped))

    @property
    def is_settled(self) -> bool:
        """Nothing runs, nothing could be claimed, and no process is left."""
        return not self.attempts and all(
            p["status"] in ("completed", "failed", "cancelled", "blocked") for p in self.phases
        )


def beside(state: State, outside: Outside) -> State:
    """The state with the same rows, and something else outside."""
    if any(_is_over(each, outside) for each in state.attempts):
        return normal(state.rows, outside)
    runs = tuple((a, _plain_run(a, run, state.rows)) for a, run in outside.runs)
    return replace(state, outside=replace(outside, runs=runs))


def normal(rows: Row, outside: Outside) -> State:
    """The canonical form of these rows: equal for states that differ only in numbers, names and
    times. Attempts whose end all processes know are left out: nothing depends on them.
    """
    held = {phase["slot"]: phase["phase_number"] for phase in rows["phases"] if phase["slot"]}
    slots = sorted(rows["slots"], key=lambda s: (held.get(s["number"], 99), s["draining"]))
    slot_numbers = {slot["number"]: number for number, slot in enumerate(slots, 1)}
    attempts: list[Row] = []
    numbers: dict[int, int] = {}
    phases = {
        row["queue_id"]: _plain(row) | {"attempt": 0, "adw_id": None} for row in rows["phases"]
    }
    for row in rows["attempts"]:
        if _is_over(row, outside):
            continue
        numbers[row["id"]] = number = len(attempts) + 1
        phase = phases[row["queue_id"]]
        phase["attempt"] += 1
        phase["adw_id"] = f"adw-{number}"
        attempts.append(
            _plain(row)
            | {"id": number, "number": phase["attempt"], "adw_id": f"adw-{number}"}
            | {"folder": "", "secret": "", "epoch": 0, "error": None, "exit_code": None}
            | {"slot": slot_numbers.get(row["slot"], 1) if row["ended_at"] is None else 1}
        )
    for phase in phases.values():
        phase["slot"] = slot_numbers.get(phase["slot"])
        phase["error_message"] = None
    plain = {
        "epoch": _IN_FORCE if rows["epoch"] else 0,
        "slots": [slot | {"number": slot_numbers[slot["number"]]} for slot in slots],
        "phases": list(phases.values()),
        "attempts": attempts,
    }
    first, second = (each.renumbered(rows["epoch"], numbers) for each in outside.coordinators)
    runs = tuple((numbers[a], _plain_run(a, run, rows)) for a, run in outside.runs if a in numbers)
    return State(plain, Outside((first, second), outside.leader, runs), json.dumps(plain))


# Epochs of a state: of the last lead, and of any before.
_IN_FORCE, _OVER = 2, 1

# Long ago, and never to come.
_PAST, _FUTURE = "2026-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"


def _plain(row: Row) -> Row:
    """A row without its times, but for whether they are set."""
    return {
        name: (_FUTURE if name == "deadline" else _PAST)
        if value is not None and name.endswith(("_at", "_timestamp", "deadline"))
        else value
        for name, value in row.items()
    }


def _plain_run(attempt: int, run: Any, rows: Row) -> Any:
    """An exit status that says no more than another is that other."""
    (row,) = (each for each in rows["attempts"] if each["id"] == attempt)
    decided = row["ended_at"] is not None or row["ending"] is not None
    return 1 if run == 143 or (run in (0, 1) and decided) else run


def _is_over(attempt: Row, outside: Outside) -> bool:
    """Whether an attempt has ended, its process too, and everybody knows."""
    return (
        attempt["ended_at"] is not None
        and attempt["exited_at"] is not None
        and outside.run(attempt["id"]) != ALIVE
        and not any(each.stage(attempt["id"]) for each in outside.coordinators)
    )


@dataclass(frozen=True)
class Step:
    """Something that can happen in a state: a statement, and what becomes of the outside."""

    name: str
    outside: Outside
    statement: str | None = None
    refused: dict[str, Outside] = field(default_factory=dict)  # what is outside, by SQLSTATE
    # From the rows that the statement returned.
    returns: Callable[[list[Any]], Outside] | None = None

    @property
    def is_fault(self) -> bool:
        return self.name.startswith(FAULTS)


def steps(state: State) -> Iterator[Step]:
    """Everything that can happen next."""
    for which in (0, 1):
        yield from _of_coordinator(state, which)
    for attempt in state.attempts:
        for which in (0, 1):
            yield from _of_attempt(state, attempt, which)
        yield from _of_process(state, attempt)
    for phase in state.phases:
        yield from _of_people(state, phase)
    many = sum(not slot["draining"] for slot in state.slots)
    yield Step("set slots", state.outside, f"select set_slots({1 if many == SLOTS else SLOTS})")


def _of_coordinator(state: State, which: int) -> Iterator[Step]:
    outside, me = state.outside, state.outside.coordinators[which]
    name = "AB"[which]
    leads = outside.leader == which
    nobody = replace(outside, leader=None)
    if me != Coordinator():
        yield Step(
            f"crash {name}",
            (nobody if leads else outside).with_coordinator(which, Coordinator()),
        )
    if leads:
        yield Step(f"lose the lead {name}", nobody)
    if outside.leader is None:
        yield Step(
            f"lead {name}",
            outside,
            f"select epoch from lead('here', 1, '0', '/runs', '{json.dumps([WORKFLOW])}')",
            returns=lambda rows: replace(outside, leader=which).with_coordinator(
                which, Coordinator(rows[0]["epoch"])
            ),
        )
    if me.epoch:

        def claimed(rows: list[Any]) -> Outside:
            mine = me
            for row in rows:
                mine = mine.at(row["attempt_id"], LAUNCHING)
            return outside.with_coordinator(which, mine)

        over = me.epoch != state.epoch
        yield Step(
            f"claim {name}" + (" under a lead that is over" if over else ""),
            outside,
            f"select attempt_id from claim_phases({me.epoch})",
            refused={"PC007": outside} if over else {},
            returns=claimed,
        )


def _of_attempt(state: State, attempt: Row, which: int) -> Iterator[Step]:
    """What a coordinator does about an attempt (pgcoord/coordination/supervision.py)."""
    outside, me = state.outside, state.outside.coordinators[which]
    number = attempt["id"]
    run, stage = outside.run(number), me.stage(number)
    leads = outside.leader == which
    name = f"{'AB'[which]} {attempt['queue_id']}"
    is_open = attempt["exited_at"] is None
    forgotten = outside.with_coordinator(which, me.at(number, None))
    wanted = attempt["ended_at"] is None and attempt["ending"] is None
    if stage == LAUNCHING:
        if run is None:
            yield Step(
                f"launch {name}",
                outside.with_coordinator(which, me.at(number, LAUNCHED)).with_run(number, ALIVE),
            )
            yield Step(f"cannot start {name}", forgotten.with_run(number, GIVEN_UP))
        else:  # another coordinator was faster
            yield Step(f"forget {name}", forgotten)
        return
    if stage == LAUNCHED or (
        leads and is_open and run in (ALIVE, 0, 1, 143) and attempt["started_at"] is None
    ):
        yield Step(
            f"record {name}",
            forgotten,
            f"select start_phase({me.epoch}, {number}, 1, 'then')",
            # Another coordinator leads, and finds the process; or it was given up, and is ended.
            refused={
                "PC007": forgotten,
                "PC003": forgotten.with_run(number, 143 if run == ALIVE else run),
            },
        )
    if not (leads and is_open):
        return
    if run is None and attempt["started_at"] is None:
        if wanted:
            yield Step(f"adopt {name}", outside.with_coordinator(which, me.at(number, LAUNCHING)))
        else:
            yield Step(f"give back {name}", outside.with_run(number, GIVEN_UP))
    elif run == ALIVE and not wanted:
        yield Step(f"end {name}", outside.with_run(number, 143))
    elif run in (0, 1, 143) and attempt["started_at"] is not None:
        yield Step(f"tell {name}", outside, f"select end_attempt({number}, {run})")
    elif run == GIVEN_UP:
        call = f"select give_up_attempt({number}, 'returned', 'given up')"
        yield Step(f"return {name}", outside, call)
    elif run == LOST:
        call = f"select give_up_attempt({number}, 'lost', 'gone')"
        yield Step(f"lost {name}", outside, call)


def _of_process(state: State, attempt: Row) -> Iterator[Step]:
    outside, number, name = state.outside, attempt["id"], attempt["queue_id"]
    run = outside.run(number)
    if run == ALIVE:
        yield Step(f"exit 0 {name}", outside.with_run(number, 0))
        yield Step(f"exit 1 {name}", outside.with_run(number, 1))
        yield Step(f"vanish {name}", outside.with_run(number, LOST))
    if run in (ALIVE, 0):
        refused = {"PC003": outside, "PC002": outside, "PC004": outside}
        call = f"select complete_phase('{name}', '{attempt['adw_id']}')"
        yield Step(f"report completed {name}", outside, call, refused)
        call = f"select fail_phase('{name}', 'broken', '{attempt['adw_id']}')"
        yield Step(f"report failed {name}", outside, call, refused)
    if attempt["deadline"] is not None and attempt["ended_at"] is None and not attempt["ending"]:
        yield Step(f"time out {name}", outside, f"select pg_temp.let_pass({number})")


def _of_people(state: State, phase: Row) -> Iterator[Step]:
    outside, name = state.outside, phase["queue_id"]
    if phase["status"] not in ("completed", "cancelled"):
        yield Step(f"cancel {name}", outside, f"select cancel_phase('{name}', 'no')")
    if phase["status"] in ("failed", "cancelled"):
        used = any(
            phase["phase_number"] in each["depends_on_phases"] and each["slot"] is not None
            for each in state.phases
        )
        yield Step(
            f"retry {name}",
            outside,
            f"select retry_phase('{name}')",
            refused={"PC002": outside} if used else {},
        )


class Violation(Exception):
    """A rule that does not hold, and the steps that lead there."""


# Puts rows in place, calls each statement upon them and returns what came of it; keeps nothing.
_EXPAND = """
create function pg_temp.rows() returns jsonb language sql volatile as $$
    select jsonb_build_object(
        'epoch', c.epoch,
        'slots', (select jsonb_agg(s order by number) from pgcoord.slot as s),
        'phases', (select jsonb_agg(p order by phase_number) from public.phase_queue as p),
        'attempts', (select coalesce(jsonb_agg(a order by id), '[]') from pgcoord.attempt as a)
    ) from pgcoord.control as c
$$;
create function pg_temp.let_pass(p_attempt_id bigint) returns void language sql volatile as $$
    update pgcoord.attempt set deadline = now() - interval '1 second' where id = p_attempt_id;
    select expire_attempts();
$$;
create function pg_temp.expand(p_rows jsonb, p_calls text[]) returns jsonb
language plpgsql as $$
declare
    v_call text;
    v_done jsonb;
    v_all jsonb := '[]';
    v_state text;
    v_message text;
begin
    begin
        perform set_config('session_replication_role', 'replica', true);
        update pgcoord.control set epoch = (p_rows ->> 'epoch')::bigint;
        insert into pgcoord.coordinator (epoch, host, pid, version, runs_folder)
            select epoch, 'here', 1, '0', '/runs' from pgcoord.control where epoch > 0;
        delete from pgcoord.slot;
        insert into pgcoord.slot
            select * from jsonb_populate_recordset(null::pgcoord.slot, p_rows -> 'slots');
        insert into public.phase_queue
            select * from jsonb_populate_recordset(null::public.phase_queue, p_rows -> 'phases');
        insert into pgcoord.attempt
            select * from jsonb_populate_recordset(null::pgcoord.attempt, p_rows -> 'attempts');
        perform set_config('session_replication_role', 'origin', true);
        perform setval('pgcoord.attempt_id', 1000);
        foreach v_call in array p_calls loop
            begin
                execute format('select jsonb_agg(r) from (%s) as r', v_call) into v_done;
                v_done := jsonb_build_object('returned', v_done, 'rows', pg_temp.rows());
                raise sqlstate 'ZZ000';
            exception
                when sqlstate 'ZZ000' then
                    null;
                when others then
                    get stacked diagnostics v_state = returned_sqlstate, v_message = message_text;
                    v_done := jsonb_build_object('refused', v_state, 'message', v_message);
            end;
            v_all := v_all || v_done;
        end loop;
        raise sqlstate 'ZZ000';
    exception when sqlstate 'ZZ000' then
        null;
    end;
    return v_all;
end $$;
"""


class Database:
    """A database in which states are put in place, one after another, and nothing is committed."""

    def __init__(
        self,
        conn: psycopg.Connection[Any],
        phases: dict[int, list[int]] = PHASES,
        conditions: dict[int, str] | None = None,
    ) -> None:
        """Take over `conn`, whose database holds the schema and nothing else."""
        self.conn = conn
        self.statements = 0  # that were called
        self._known: dict[str, dict[str, Row]] = {}
        conn.autocommit = True
        # Wherever the functions are.
        conn.execute("set search_path = pgcoord, pgcoord_private, public")
        conn.execute(_EXPAND)
        conn.execute("select set_slots(%s)", [SLOTS])
        conn.execute(
            "insert into workflow (name, is_default, reports, max_attempts, retry_delay,"
            " retry_lost, timeout) values ('work', true, false, 1, '10 s', false, '1 hour')"
        )
        rows = [
            {
                "phase_number": number,
                "title": f"{number}",
                "depends_on_phases": prerequisites,
                "run_when": (conditions or {}).get(number),
            }
            for number, prerequisites in phases.items()
        ]
        conn.execute("select submit_feature(%s)", [Jsonb({"title": "a", "phases": rows})])
        row = conn.execute("select pg_temp.rows()").fetchone()
        assert row
        self.first = normal(row[0], Outside())
        # The rows of a state come and go: what never changes stays, edges too.
        conn.execute("set session_replication_role = replica")
        conn.execute("delete from phase_queue")
        conn.execute("set session_replication_role = origin")

    def after(self, state: State) -> Iterator[tuple[Step, State]]:
        """Each step from a state, and the state it leads to. Raises `Violation`."""
        possible = list(steps(state))
        done = self._call(state, [each.statement for each in possible if each.statement])
        for step in possible:
            yield step, _after(state, step, done[step.statement] if step.statement else None)

    def _call(self, state: State, statements: list[str]) -> dict[str, Row]:
        """What each statement does to these rows; many states differ only in what is outside."""
        known = self._known.setdefault(state.text, {})
        new = [each for each in statements if each not in known]
        if new:
            found = self.conn.execute(
                "select pg_temp.expand(%s::jsonb, %s)", [state.text, new]
            ).fetchone()
            assert found
            self.conn.execute("select pg_advisory_unlock_all()")
            self.statements += len(new)
            known |= dict(zip(new, found[0], strict=True))
        return known


def _after(state: State, step: Step, done: Row | None) -> State:
    if done is None:
        return beside(state, step.outside)
    if "refused" in done:
        if done["refused"] not in step.refused:
            raise Violation(f"{step.name}: {done['refused']} {done['message']}")
        return beside(state, step.refused[done["refused"]])
    if "lead that is over" in step.name:
        raise Violation(f"{step.name}: was not refused")
    if wrong := list(faults_between(state.rows, done["rows"])):
        raise Violation(f"{step.name}: {'; '.join(wrong)}")
    outside = step.returns(done["returned"] or []) if step.returns else step.outside
    return normal(done["rows"], outside)


def faults_of(state: State) -> Iterator[str]:
    """The rules that do not hold in a state."""
    held = [phase["slot"] for phase in state.phases if phase["slot"] is not None]
    if len(held) > SLOTS or len(set(held)) < len(held):
        yield f"slots {held} are held"
    status = {phase["phase_number"]: phase["status"] for phase in state.phases}
    bad_ends = {"failed", "cancelled", "blocked"}
    bad = {number for number, each in status.items() if each in ("failed", "cancelled")}
    alive = []
    for phase in state.phases:
        name = phase["queue_id"]
        is_live = phase["status"] in ("ready", "running")
        ups = phase["depends_on_phases"]
        met = {"completed"} | (bad_ends if phase["run_when"] != "completed" else set())
        unmet = sum(status[up] not in met for up in ups)
        tries = [each for each in state.attempts if each["queue_id"] == name]
        under_way = [each for each in tries if each["ended_at"] is None]
        processes = [each for each in tries if state.outside.run(each["id"]) == ALIVE]
        alive += [each for each in processes if each["ended_at"] is None]
        if is_live != (phase["slot"] is not None):
            yield f"{name} is {phase['status']} with slot {phase['slot']}"
        if is_live and unmet:
            yield f"{name} is {phase['status']}, {unmet} of its prerequisites are not completed"
        if phase["status"] in ("queued", "blocked"):
            if phase["unmet"] != unmet or (phase["eligible_at"] is None) != bool(unmet):
                yield f"{name}: unmet is {phase['unmet']}, not {unmet}"
            doomed = phase["run_when"] == "completed" and bool(bad & set(ups))
            if (phase["status"] == "blocked") != doomed:
                yield f"{name} is {phase['status']}, of {status}"
            if phase["run_when"] == "failed" and all(status[up] == "completed" for up in ups):
                yield f"{name} waits, and is not needed"
        if is_live != (len(under_way) == 1) or len(under_way) > 1:
            yield f"{name} is {phase['status']} with {len(under_way)} attempts under way"
        if len(processes) > 1:
            yield f"{name} has {len(processes)} processes"
        for each in processes:
            known = any(c.stage(each["id"]) for c in state.outside.coordinators)
            if each["exited_at"] is not None and not known:
                yield f"{name}: a process lives of which nobody knows"
    if len(alive) > SLOTS:
        yield f"{len(alive)} processes in {SLOTS} slots"


def faults_between(before: Row, after: Row) -> Iterator[str]:
    """The rules that do not hold of a step, by the rows before and after it."""
    for old, new in zip(before["phases"], after["phases"], strict=True):
        if old["status"] == "completed" != new["status"]:
            yield f"{old['queue_id']} was completed and is {new['status']}"
        if old["status"] != "ready" == new["status"] and old["status"] != "queued":
            yield f"{old['queue_id']} was {old['status']} and is claimed"
    outcomes = {each["id"]: each["outcome"] for each in before["attempts"]}
    for attempt in after["attempts"]:
        was = outcomes.get(attempt["id"])
        if was not in (None, attempt["outcome"]):
            yield f"{attempt['queue_id']}: an attempt was {was} and is {attempt['outcome']}"


@dataclass
class Explored:
    """What a search has seen."""

    states: int = 0
    steps: int = 0
    longest: int = 0  # steps of the shortest way to the furthest state


@dataclass
class _Node:
    """A state that was come to: by which step from which other, and by how many faults at least."""

    came_from: int
    by: str
    distance: int
    faults: int
    is_settled: bool
    is_expanded: bool = False
    # From where a step leads here that can be relied upon.
    before: list[int] = field(default_factory=list)


class Search:
    """A search by breadth, of one fault after another."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._numbers: dict[Any, int] = {}
        self._nodes: list[_Node] = []
        self.seen = Explored()

    def run(self, faults: int) -> Explored:
        """Take every step from every state that at most so many faults lead to.

        Raises `Violation` with the way to a state, or a step, that breaks a rule.
        """
        first = self._database.first
        level = [(self._number(first, _Node(0, "", 0, 0, first.is_settled)), first)]
        for count in range(faults + 1):
            level = self._expand_level(level, count)
        self._check_that_something_can_move()
        return self.seen

    def _number(self, state: State, node: _Node) -> int:
        number = self._numbers.setdefault(state.key(), len(self._nodes))
        if number == len(self._nodes):
            self._nodes.append(node)
        return number

    def _expand_level(self, level: list[tuple[int, State]], faults: int) -> list[tuple[int, State]]:
        """Expand what so many faults lead to; return what one more leads to."""
        queue = deque(level)
        following: list[tuple[int, State]] = []
        while queue:
            number, state = queue.popleft()
            node = self._nodes[number]
            if node.is_expanded:
                continue
            node.is_expanded = True
            self.seen.states += 1
            self.seen.longest = max(self.seen.longest, node.distance)
            for step, after in self._steps_from(number, state):
                needs = faults + step.is_fault
                made = _Node(number, step.name, node.distance + 1, needs + 1, after.is_settled)
                found = self._number(after, made)
                target = self._nodes[found]
                if not step.is_fault:
                    target.before.append(number)
                if needs < target.faults and not target.is_expanded:
                    target.faults = needs
                    (following if step.is_fault else queue).append((found, after))
        return following

    def _steps_from(self, number: int, state: State) -> Iterator[tuple[Step, State]]:
        try:
            for step, after in self._database.after(state):
                self.seen.steps += 1
                if wrong := list(faults_of(after)):
                    raise Violation(f"{step.name}: {'; '.join(wrong)}")
                yield step, after
        except Violation as error:
            raise Violation(f"after {self._way_to(number)}: {error}") from error

    def _way_to(self, number: int) -> str:
        names = []
        while number:
            names.append(self._nodes[number].by)
            number = self._nodes[number].came_from
        return " → ".join(reversed(names)) or "nothing"

    def _check_that_something_can_move(self) -> None:
        """From each state all work comes to its end, with no further fault and nobody's help."""
        reached = {number for number, node in enumerate(self._nodes) if node.is_settled}
        queue = deque(reached)
        while queue:
            for number in self._nodes[queue.popleft()].before:
                if number not in reached:
                    reached.add(number)
                    queue.append(number)
        for number, node in enumerate(self._nodes):
            if node.is_expanded and number not in reached:
                raise Violation(f"after {self._way_to(number)}: nothing leads on")
