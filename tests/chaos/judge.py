"""The judge of a storm: reads the tables, the marks, the logs and the system's list of processes.

It uses nothing of pgcoord, neither its Python nor its functions (but `why`, to say in words what is
stuck). The rules are those of docs/reliability.md.
"""

import re
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import psycopg
from support import mixed_load

from chaos.faults import MOST_SLOTS, Faults
from chaos.site import LONG, PEOPLE, Site, without_interrupts

Row = dict[str, Any]

# A phase, what it does, and for how many seconds it may.
Busy = tuple[str, str, int]

# Seconds that a phase may be eligible beside a free slot while no other is claimed; that it may run
# or have no process while it holds a slot; that it may wait for one while no other gets one (phases
# run for six); that a process may be left whose attempt is over.
PATIENCE_CLAIM = 120
PATIENCE_PROCESS = 240
PATIENCE_SLOT = 480
PATIENCE_LEFT = 120

# Seconds until all is at rest.
PATIENCE_REST = 1800

# Seconds until a coordinator leads after the calm (starting is slow beside other work).
PATIENCE_LEAD = 480

# SQLSTATEs of errors in the server's log that the faults themselves make: shutdown and crash,
# cancelled and terminated statements, locks that were not had in time, too many connections. F0001:
# a server does not start while backends of one whose postmaster was killed are busy.
_EXPECTED = re.compile(r"^(PC\d{3}|57\w{3}|55P03|08\w{3}|53300|00000|F0001)$")

# What those do that wait for a slot.
_IN_LINE = ("is eligible beside a free slot", "waits for a slot")

_LOGGED = re.compile(r"^\S+ \S+ \S+ \[\d+\] (\w{5}) (.*?): (ERROR|FATAL|PANIC): +(.*)$", re.M)


class Judge:
    """Judges one storm; `wrong` holds what it found."""

    def __init__(self, site: Site, faults: Faults) -> None:
        self.site = site
        self.faults = faults
        self.wrong: list[str] = []
        self._since: dict[tuple[str, str], float] = {}
        self.newest = self._newest = 0  # the id of the latest attempt

    def look(self) -> None:
        """Judge the moment, if the server answers: slots, and that no phase runs twice at once."""
        before = self.site.processes()
        try:
            with self.site.session() as conn:
                slots = conn.execute("select number from pgcoord.slot").fetchall()
                held = conn.execute(
                    "select slot from phase_queue where slot is not null"
                ).fetchall()
                phases = conn.execute("select adw_id, queue_id from pgcoord.attempt").fetchall()
        except psycopg.Error:
            return
        counts = Counter(row["slot"] for row in held)
        if max(counts.values(), default=0) > 1:
            self.wrong.append(f"slots are held twice: {counts}")
        if len(counts) > max(len(slots), MOST_SLOTS):  # the two were not read at one moment
            self.wrong.append(f"{len(counts)} phases hold slots, of {len(slots)}")
        running: dict[str, list[str]] = defaultdict(list)
        for row in phases:
            if row["adw_id"] in before:
                running[row["queue_id"]].append(row["adw_id"])
        for name, attempts in running.items():
            if len(attempts) > 1:
                now = self.site.processes()
                if all(set(before[each]) & set(now.get(each, ())) for each in attempts):
                    self.wrong.append(f"{name} runs as {attempts} at once")

    def wait_for_rest(self, spared: int | None) -> bool:
        """Wait until every phase is at rest but those of feature `spared`, which somebody locks.

        A phase that is stuck for longer than it may be is a violation; False then. Its time is
        counted from when a coordinator leads, for which there is a limit too.
        """
        self._since.clear()
        deadline = time.monotonic() + PATIENCE_LEAD
        while not self._is_led():
            if time.monotonic() > deadline:
                self.wrong.append(f"no coordinator leads {PATIENCE_LEAD} s after the calm")
                return False
            time.sleep(0.5)
        deadline = time.monotonic() + PATIENCE_REST
        while True:
            try:
                busy = self._busy(spared)
            except psycopg.Error as error:
                busy = [("server", f"does not answer: {error}", PATIENCE_PROCESS)]
            if not busy:
                return True
            now = time.monotonic()
            stuck = self.overdue(busy, now)
            if now > deadline and not stuck:
                name, what, _ = busy[0]
                stuck = (name, what, PATIENCE_REST)
            if stuck:
                name, what, patience = stuck
                self.wrong.append(
                    f"{name} {what} for {patience} s"
                    f"{' beside a locked feature' if spared else ''}: {self._why(name)}"
                )
                return False
            time.sleep(0.5)

    def overdue(self, busy: Sequence[Busy], now: float) -> Busy | None:
        """Return the first of what is busy *now*, in seconds, that was so for too long already."""
        current = {(name, what) for name, what, _ in busy}
        if (
            self._newest != self.newest
        ):  # the line has moved: the wait of each phase in it begins anew
            self._newest = self.newest
            current = {(name, what) for name, what in current if what not in _IN_LINE}
        self._since = {key: since for key, since in self._since.items() if key in current}
        for name, what, patience in busy:
            if now - self._since.setdefault((name, what), now) > patience:
                return name, what, patience
        return None

    def _is_led(self) -> bool:
        try:
            return bool(self.site.rows("select from pgcoord.leader"))
        except psycopg.Error:
            return False

    def _busy(self, spared: int | None) -> list[Busy]:
        """What is not at rest."""
        processes = self.site.processes()
        with self.site.session() as conn:
            phases = conn.execute(
                "select p.queue_id, p.feature_id, p.status, p.adw_id, p.retry_at, p.held,"
                " p.eligible_at, a.external, a.id as attempt"
                " from phase_queue as p left join pgcoord.attempt as a"
                " on a.queue_id = p.queue_id and a.number = p.attempt"
                " where p.status in ('queued', 'ready', 'running')"
            ).fetchall()
            free = conn.execute(
                "select from pgcoord.slot as s where not draining and not exists"
                " (select from phase_queue as p where p.slot = s.number)"
            ).fetchall()
            over = conn.execute(
                "select adw_id, queue_id from pgcoord.attempt where exited_at is not null"
            ).fetchall()
            newest = conn.execute("select max(id) as id from pgcoord.attempt").fetchone()
        self.newest = (newest and newest["id"]) or 0
        names = {row["adw_id"]: row["queue_id"] for row in over}
        found: list[Busy] = []
        for phase in phases:
            name = phase["queue_id"]
            if phase["feature_id"] == spared or phase["external"]:
                continue
            if phase["status"] == "queued":
                # What waits for others moves with them, or never (they were deleted).
                if phase["eligible_at"] and free and not phase["held"]:
                    found.append((name, _IN_LINE[0], PATIENCE_CLAIM))
                elif phase["eligible_at"] and not spared:
                    found.append((name, _IN_LINE[1], PATIENCE_SLOT))
            elif phase["adw_id"] in processes:
                found.append((name, f"runs as {phase['adw_id']}", PATIENCE_PROCESS))
            else:
                found.append((name, f"is {phase['status']} without a process", PATIENCE_PROCESS))
        if not spared:
            found += [
                (names[adw_id], f"has processes {pids} although its attempt is over", PATIENCE_LEFT)
                for adw_id, pids in processes.items()
                if adw_id in names
            ]
        return found

    def _why(self, name: str) -> str:
        try:
            rows = self.site.rows("select words from pgcoord.why(%s)", name)
        except psycopg.Error as error:
            return " ".join(str(error).split())
        return "; ".join(row["words"] for row in rows)

    def judge_history(self) -> None:
        """Judge what the storm has left, when all is at rest."""
        with self.site.session(LONG) as conn, conn.transaction():
            # Of one moment, should something still move: then that is not at rest, but not wrong.
            conn.execute("set transaction isolation level repeatable read")
            self.wrong += mixed_load.faults(conn)
            attempts = {
                row["adw_id"]: row
                for row in conn.execute("select * from pgcoord.attempt").fetchall()
            }
            self._judge_order(conn)
        self._judge_marks(attempts)
        for adw_id, status in self.faults.acknowledged:
            outcome = attempts.get(adw_id, {"outcome": status})["outcome"]
            if status == "completed" != outcome:
                self.wrong.append(f"{adw_id} was acknowledged as completed, and is {outcome}")
        self._judge_logs()
        self.wrong += self.faults.wrong

    def _judge_order(self, conn: psycopg.Connection[Row]) -> None:
        """Nothing was claimed before its prerequisites were completed, or again after that."""
        early = conn.execute(
            "select p.queue_id, a.number, d.prerequisite"
            " from pgcoord.dependency as d"
            " join phase_queue as p on p.feature_id = d.feature_id and p.phase_number = d.dependent"
            " join phase_queue as up"
            "   on up.feature_id = d.feature_id and up.phase_number = d.prerequisite"
            " join pgcoord.attempt as a on a.queue_id = p.queue_id"
            " where not exists (select from pgcoord.event as e"
            "   where e.queue_id = up.queue_id and e.to_status = 'completed'"
            "     and e.at <= a.claimed_at)"
            " and a.number > 0"  # 0 is of the feature that this one is a copy of
        ).fetchall()
        for row in early:
            self.wrong.append(
                f"{row['queue_id']} (attempt {row['number']}) was claimed before"
                f" phase {row['prerequisite']} was completed"
            )
        again = conn.execute(
            "select a.queue_id from pgcoord.attempt as a join pgcoord.attempt as before"
            " on before.queue_id = a.queue_id and before.number < a.number"
            " where before.outcome = 'completed'"
        ).fetchall()
        self.wrong += [f"{row['queue_id']} was completed, and tried again" for row in again]

    def _judge_marks(self, attempts: dict[str, Row]) -> None:
        """Each attempt started at most once, and its exit status is what its process said."""
        starts: Counter[str] = Counter()
        ends: dict[str, int] = {}
        for line in self.site.marks.read_text().splitlines():
            kind, adw_id, value = line.split()
            if kind == "start":
                starts[adw_id] += 1
            else:
                ends[adw_id] = int(value)
        self.wrong += [f"{name} started {many} times" for name, many in starts.items() if many > 1]
        for name, attempt in attempts.items():
            status, said = attempt["exit_code"], ends.get(name)
            if status is None:
                continue
            if status > 128 or name in self.faults.killed:
                # Ended by a signal: what it had said by then is not asked.
                signalled = attempt["ending"] or name in self.faults.killed
                reported = attempt["ended_at"] and attempt["ended_at"] < attempt["exited_at"]
                if not (signalled or reported):
                    self.wrong.append(f"{name} exited with {status}, and nobody signalled it")
            elif said != status:
                self.wrong.append(f"{name} exited with {status}, it said {said}")
        for name in starts.keys() & attempts.keys():
            attempt = attempts[name]
            # Where its wrapper was killed before its start was recorded it is lost; and an end that
            # was asked for counts first.
            known = attempt["started_at"] or attempt["ending"]
            if not known and attempt["outcome"] not in ("lost", "completed"):
                self.wrong.append(f"{name} started, and is taken as not ({attempt['outcome']})")

    def _judge_logs(self) -> None:
        for seat in self.site.seats:
            self.site.note_end(seat)
        self.wrong += self.site.gave_up
        for log in sorted(self.site.logs.iterdir()):
            text = without_interrupts(log.read_text(errors="replace"))
            for found in re.finditer(r"^.*Traceback", text, re.M):
                lines = text[found.start() :].splitlines()
                raised = next((line for line in lines[1:] if line[:1] not in (" ", "")), "")
                self.wrong.append(f"{log.name}: a traceback: {raised}")
        unexpected: dict[str, list[str]] = defaultdict(list)
        server = self.site.postgres.server.log.read_text(errors="replace")
        for state, application, level, message in _LOGGED.findall(server):
            if application != PEOPLE and not _EXPECTED.match(state):
                unexpected[f"{level} {state} of {application!r}: {message}"].append(message)
        self.wrong += [f"server's log: {what} ({len(n)} times)" for what, n in unexpected.items()]
