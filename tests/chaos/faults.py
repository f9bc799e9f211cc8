"""The faults of a storm: each is chosen, and throws its dice, by the seed and its number alone.

What it meets (which coordinator leads, what runs) depends on the moment; a fault that meets nothing
does nothing. What takes time is undone later, by `Faults.later`.
"""

import heapq
import http.client
import itertools
import os
import random
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from chaos.site import LONG, PEOPLE, SECRET, Seat, Site
from pgcoord.messages import signing

# Faults and how often each comes, of all of these together.
KINDS = {
    "kill_coordinator": 8,
    "freeze_coordinator": 6,
    "stop_coordinator": 6,
    "terminate_backend": 8,
    "cancel_backend": 8,
    "kill_server": 2,
    "kill_postmaster": 3,
    "stop_server": 2,
    "restart_server": 1,
    "kill_process": 6,
    "freeze_process": 3,
    "webhook": 20,
    "hand": 24,
    "write": 6,
    "hold_row": 10,
    "set_database": 2,
    "fill_disk": 2,
}

MOST_SLOTS = 4

# What people call, with {phase} and {feature} for what they call it on.
CALLS = (
    ["retry_phase('{phase}', 'again')"] * 4
    + ["skip_phase('{phase}', 'done')", "cancel_phase('{phase}', 'no')"]
    + ["set_priority('{phase}', {number})", "set_slots({slots})"] * 2
    + ["pause({feature}, 'wait')", "resume({feature})", "pause()", "resume()", "resume()"]
    + ["cancel_feature({feature}, 'no')", "cancel_branch('{phase}', 'no')"]
    + ["complete_phase('{phase}')", "fail_phase('{phase}', 'broken')"]
    + ["approve('{phase}')", "reject('{phase}', 'no')"]
    + ["act_on_phases('retry', array['{phase}'], 'all')", "set_budget({feature}, 5)"]
    + ["again({feature})", "again_from('{phase}')"]
    + [
        "set_result('{phase}', '{{\"summary\": \"s\"}}')",
        "add_feature('d')",
        "add_phase({feature}, 0)",
    ]
    + ["begin_attempt({number}, 'whsec_forged', 'copy')"]
    + ["exit_attempt({number}, 'whsec_forged', 'copy', 0)"]
    + ["execute_feature({feature})", "feature_object({feature})"]
    + ["add_schedule('s', '* * * * *', pgcoord.feature_plan({feature}))", "run_schedule('s')"]
    + ["pause_schedule('s')", "resume_schedule('s')", "delete_schedule('s')"]
    + ["change_schedule('s', '{{\"overlap\": \"start\"}}')"]
    + ['change_feature({feature}, \'{{"title": "b"}}\')', 'store_feature(\'{{"title": "c"}}\')']
    + ["preview_several('cancel', array['{phase}'])"]
    + ["preview('retry', {feature}, '{phase}')", "prune('1 minute')", "why('{phase}')", "checkup()"]
)

# What a session of somebody's may have set.
ODD_SETTINGS = (
    {"DateStyle": "German"},
    {"DateStyle": "SQL, DMY", "TimeZone": "Asia/Kolkata"},
    {"IntervalStyle": "iso_8601", "client_encoding": "LATIN1"},
    {"default_transaction_isolation": "serializable"},
    {"default_transaction_isolation": "repeatable read"},
    {"default_transaction_read_only": "on"},
    {"standard_conforming_strings": "off", "backslash_quote": "on"},
    {"search_path": "nowhere", "row_security": "off"},
    {"default_transaction_deferrable": "on", "bytea_output": "escape"},
    {"extra_float_digits": "-15", "lc_messages": "C"},
)

# What somebody does in a transaction that he leaves open.
ROWS = (
    "select from phase_queue where queue_id = '{phase}' for update",
    'update phase_queue set phase_data = phase_data || \'{{"title": "t"}}\''
    " where queue_id = '{phase}'",
    "update planned_features set description = 'd' where id = {feature}",
    "select from planned_features where id = {feature} for update",
    "select from pgcoord.control for update",
    "select from pgcoord.slot where number = {slots} for update",
    "select from pgcoord.attempt where queue_id = '{phase}' for update",
    "select pgcoord.cancel_phase('{phase}', 'no')",
)


class Faults:
    """The faults of one storm; `wrong` is what went wrong beside the judge's sight."""

    def __init__(self, site: Site, seed: int) -> None:
        self.site = site
        self.seed = seed
        self.wrong: list[str] = []
        self.done: dict[str, int] = dict.fromkeys(KINDS, 0)
        self.acknowledged: list[tuple[str, str]] = []  # (adw_id, status) that was answered 200
        self.killed: set[str] = set()  # adw_ids whose processes were killed here
        self._later: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._messages: list[threading.Thread] = []

    def strike(self, number: int) -> str:
        """Do fault `number` of the plan, and say what it was."""
        dice = random.Random(f"{self.seed} {number}")
        kind = dice.choices(list(KINDS), list(KINDS.values()))[0]
        self.done[kind] += 1
        try:
            return f"{kind} {getattr(self, f'_{kind}')(dice) or ''}".strip()
        except psycopg.Error as error:
            return f"{kind}: {self._judged(error)}"

    def _judged(self, error: psycopg.Error) -> str:
        """Note an error that nobody may be shown; say it in a line."""
        state = error.sqlstate or "connection"
        # 22P05: Latin 1, which the session has set, lacks a character of the answer.
        expected = (
            *("PC", "57", "55P03", "08", "25006", "40001", "53300", "connection", "42P01"),
            "22P05",
        )
        line = f"{state} {' '.join(str(error).split())}"
        if not state.startswith(expected):
            self.wrong.append(f"a person was shown {line}")
        return line

    def later(self, seconds: float, undo: Callable[[], object]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), undo))

    def undo_due(self, *, all_of_them: bool = False) -> None:
        """Undo what has lasted its time."""
        while self._later and (all_of_them or self._later[0][0] <= time.monotonic()):
            _, _, undo = heapq.heappop(self._later)
            with suppress(psycopg.Error, OSError):
                undo()

    def calm(self) -> None:
        """Undo everything, wait for what was sent, and have all coordinators again."""
        self.undo_due(all_of_them=True)
        for thread in self._messages:
            thread.join()
        self._messages.clear()
        if not self.site.is_server_up():
            self.site.start_server()
        with self.site.session(LONG) as conn:
            conn.execute("alter database postgres reset all")
            # Their features would go on coming, also while the tables are judged.
            conn.execute("select pgcoord.delete_schedule(name) from pgcoord.schedules")
        dice = random.Random(0)
        for seat in self.site.seats:
            seat.send(signal.SIGCONT)
            if seat.is_up and seat.is_told:  # one that drains, say, would leave its place empty
                assert seat.process
                try:
                    seat.process.wait(LONG)
                except subprocess.TimeoutExpired:
                    self.wrong.append(f"coordinator {seat.number} was told to end, and goes on")
            self.site.start(seat, dice)

    # Coordinators.

    def _seat(self, dice: random.Random) -> Seat:
        return dice.choice(self.site.seats)

    def _start_later(self, seat: Seat, dice: random.Random) -> None:
        self.later(dice.choice([0.0, 0.5, 3.0]), lambda: self.site.start(seat, dice))

    def _kill_coordinator(self, dice: random.Random) -> str:
        seat = self._seat(dice)
        seat.send(signal.SIGKILL)
        if seat.process:
            seat.process.wait()
        self._start_later(seat, dice)
        return f"{seat.number}"

    def _freeze_coordinator(self, dice: random.Random) -> str:
        seat, seconds = self._seat(dice), dice.choice([0.1, 1.0, 3.0, 8.0, 35.0])
        seat.send(signal.SIGSTOP)
        process = seat.process

        def go_on() -> None:
            if seat.process is process:
                seat.send(signal.SIGCONT)

        self.later(seconds, go_on)
        return f"{seat.number} for {seconds} s"

    def _stop_coordinator(self, dice: random.Random) -> str:
        seat, number = self._seat(dice), dice.choice([signal.SIGTERM, signal.SIGINT])
        seat.send(number)
        for _ in range(dice.choice([1, 1, 2])):
            self._start_later(seat, dice)
        self.later(6, lambda: self.site.start(seat, dice))
        return f"{seat.number} {number.name}"

    # The server and its connections.

    def _backend(self, function: str, which: str, dice: random.Random) -> str:
        rows = self.site.rows(
            "select pid, application_name, left(query, 60) as query from pg_stat_activity"
            f" where datname = current_database() and application_name <> %s and {which}"
            " order by backend_start",
            PEOPLE,
        )
        if not rows:
            return "nothing"
        row = dice.choice(rows)
        self.site.rows(f"select {function}(%s)", row["pid"])
        return f"{row['application_name']}: {row['query']}"

    def _terminate_backend(self, dice: random.Random) -> str:
        return self._backend("pg_terminate_backend", "true", dice)

    def _cancel_backend(self, dice: random.Random) -> str:
        which = dice.choice(["state = 'active'", "wait_event_type = 'Lock'", "true"])
        return self._backend("pg_cancel_backend", which, dice)

    def _kill_server(self, dice: random.Random) -> str:
        return self._end_server(signal.SIGKILL, dice)

    def _kill_postmaster(self, dice: random.Random) -> str:
        """Kill it alone; its backends may live on. A coordinator, or else we, start it again."""
        try:
            pid = int((self.site.postgres.server.data / "postmaster.pid").read_text().split()[0])
        except (OSError, IndexError, ValueError):
            return "is down"
        if pid in self.site.server_pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.later(dice.choice([2.0, 9.0]), self.site.start_server)
        return f"{pid}"

    def _stop_server(self, dice: random.Random) -> str:
        return self._end_server(dice.choice([signal.SIGQUIT, signal.SIGINT]), dice)

    def _restart_server(self, dice: random.Random) -> str:
        return self._end_server(signal.SIGINT, dice, down=0)

    def _end_server(self, number: int, dice: random.Random, down: float | None = None) -> str:
        seconds = dice.choice([0.0, 0.5, 2.0, 9.0]) if down is None else down
        try:
            pid = int((self.site.postgres.server.data / "postmaster.pid").read_text().split()[0])
        except (OSError, IndexError, ValueError):
            return "is down"
        pids = self.site.server_pids()
        for each in pids if number == signal.SIGKILL else [pid] if pid in pids else []:
            with suppress(ProcessLookupError):
                os.kill(each, number)
        deadline = time.monotonic() + 120
        while {*pids} & {*self.site.server_pids()} and time.monotonic() < deadline:
            time.sleep(0.05)
        self.later(seconds, self.site.start_server)
        return f"{signal.Signals(number).name}, down for {seconds} s"

    def _set_database(self, dice: random.Random) -> str:
        """Set something for all sessions that begin from now on, for a while."""
        # Read-only is refused when a coordinator starts, as it should be.
        possible = [each for each in ODD_SETTINGS if "default_transaction_read_only" not in each]
        name, value = dice.choice(list(dice.choice(possible).items()))
        with self.site.session() as conn:
            conn.execute(f"alter database postgres set {name} = '{value}'".encode())

        def reset() -> None:
            with self.site.session() as conn:
                conn.execute(f"alter database postgres reset {name}".encode())

        self.later(dice.choice([1.0, 5.0]), reset)
        return f"{name} = {value}"

    # What phases run.

    def _process(self, dice: random.Random) -> tuple[str, int] | None:
        found = sorted((name, pid) for name, pids in self.site.processes().items() for pid in pids)
        return dice.choice(found) if found else None

    def _kill_process(self, dice: random.Random) -> str:
        found = self._process(dice)
        if found is None:
            return "nothing"
        name, pid = found
        number = dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
        self.killed.add(name)
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        return f"{name} {pid} {number.name}"

    def _freeze_process(self, dice: random.Random) -> str:
        found = self._process(dice)
        if found is None:
            return "nothing"

        def go_on() -> None:
            with suppress(ProcessLookupError):
                os.kill(found[1], signal.SIGCONT)

        with suppress(ProcessLookupError):
            os.kill(found[1], signal.SIGSTOP)
        self.later(dice.choice([0.2, 1.0, 4.0]), go_on)
        return f"{found[0]} {found[1]}"

    def _fill_disk(self, dice: random.Random) -> str:
        if self.site.disk is None:
            return "not possible here"
        filler = self.site.disk / "filler"
        with suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(1_000_000))
                file.flush()
        self.later(dice.choice([0.5, 3.0]), lambda: filler.unlink(missing_ok=True))
        return ""

    # Reports.

    def _webhook(self, dice: random.Random) -> str:
        when = dice.choice(["a.ended_at is null"] * 3 + ["a.ended_at is not null"])
        rows = self.site.rows(
            "select a.adw_id, a.secret, a.queue_id from pgcoord.attempt as a"
            f" where {when} order by a.id desc limit 20"
        )
        addresses = [seat.address for seat in self.site.seats if seat.address]
        if not (rows and addresses):
            return "nothing"
        row, status = dice.choice(rows), dice.choice(["completed", "completed", "failed"])
        other = "failed" if status == "completed" else "completed"
        way = dice.choice(["once", "twice", "at once", "opposite", "forged"])
        secret = dice.choice([SECRET, row["secret"]])
        if way == "forged":
            secret = "whsec_" + "Zm9yZ2Vk" * 5
        body = {"status": status, "adw_id": row["adw_id"], "error_message": "said so"}
        bodies = [body]
        if way in ("twice", "at once"):
            bodies = [body, body]
        elif way == "opposite":
            bodies = [body, {**body, "status": other}]
        address = dice.choice(addresses)
        for group in [[each] for each in bodies] if way == "at once" else [bodies]:
            thread = threading.Thread(target=self._send, args=(address, secret, group, way))
            thread.start()
            self._messages.append(thread)
        return f"{row['adw_id']} {status} {way}"

    def _send(self, address: str, secret: str, bodies: list[dict[str, Any]], way: str) -> None:
        for body in bodies:
            signed = signing.sign(secret, body)
            request = urllib.request.Request(
                f"http://{address}/workflow-complete",
                signed.body,
                {"content-type": "application/json", **signed.headers},
            )
            try:
                with urllib.request.urlopen(request, timeout=3) as answer:
                    code = answer.status
            except urllib.error.HTTPError as error:
                code = error.code
            except (OSError, http.client.HTTPException):  # its coordinator was killed, say
                continue
            if way == "forged" and code not in (401, 503):
                self.wrong.append(f"a forged report of {body['adw_id']} was answered {code}")
            elif code == 200:
                self.acknowledged.append((body["adw_id"], body["status"]))
            elif code not in (200, 401, 404, 409, 503):
                self.wrong.append(f"a report of {body['adw_id']} was answered {code}")

    # By hand.

    def _place(self, conn: psycopg.Connection[Any], dice: random.Random) -> dict[str, Any]:
        rows = conn.execute(
            "select queue_id, feature_id from phase_queue order by feature_id desc, phase_number"
            " limit 40"
        ).fetchall()
        row = dice.choice(rows) if rows else {"queue_id": "none", "feature_id": 0}
        return {
            "phase": row["queue_id"],
            "feature": row["feature_id"],
            "number": dice.randint(1, 99),
            "slots": dice.randint(1, MOST_SLOTS),
        }

    def _hand(self, dice: random.Random) -> str:
        settings = dice.choice(ODD_SETTINGS) if dice.random() < 0.3 else {}
        with self.site.session() as conn:
            call = dice.choice(CALLS).format(**self._place(conn, dice))
        with self.site.session(settings=settings) as conn:
            if call == "pause()":
                self.later(3, lambda: self._call("resume()"))
            conn.execute(f"select * from pgcoord.{call}".encode())
        return f"{call} {settings or ''}"

    def _call(self, call: str) -> None:
        with self.site.session() as conn:
            conn.execute(f"select * from pgcoord.{call}".encode())

    def _write(self, dice: random.Random) -> str:
        """Write the tables themselves, as the owner may."""
        with self.site.session() as conn:
            place = self._place(conn, dice)
            statement = dice.choice(
                [
                    "update phase_queue set status = 'completed' where queue_id = '{phase}'",
                    "update phase_queue set status = 'failed' where queue_id = '{phase}'",
                    "update phase_queue set status = 'queued' where queue_id = '{phase}'",
                    "update phase_queue set retry_at = now() where retry_at is not null",
                    "delete from phase_queue where queue_id = '{phase}'",
                    "delete from planned_features where id = {feature}",
                    "insert into phase_queue (feature_id, phase_number, status)"
                    " values ({feature}, {number}, 'running')",
                    "insert into phase_queue (feature_id, phase_number, depends_on_phases,"
                    " phase_data) values ({feature}, {number}, '[1]',"
                    ' \'{{"prompt_content": "0.2 0"}}\')',
                ]
            ).format(**place)
            try:
                conn.execute(statement.encode())
            except psycopg.errors.IntegrityError as error:  # a number that is taken, say
                return f"{statement}: {error.sqlstate}"
        return statement

    def _hold_row(self, dice: random.Random) -> str:
        """Leave a transaction open that has a row locked."""
        seconds, commits = dice.choice([0.2, 1.0, 3.0, 12.0]), dice.random() < 0.5
        conn = psycopg.connect(
            self.site.postgres.dsn,
            application_name=PEOPLE,
            connect_timeout=2,
            row_factory=psycopg.rows.dict_row,
            options="-c statement_timeout=2s -c lock_timeout=1s",
        )
        try:
            statement = dice.choice(ROWS).format(**self._place(conn, dice))
            conn.execute(statement.encode())
        except psycopg.Error:
            conn.close()
            raise

        def let_go() -> None:
            try:
                conn.commit() if commits else conn.rollback()
            finally:
                conn.close()

        self.later(seconds, let_go)
        return f"{statement} for {seconds} s"

    # Work.

    def bring_work(self, dice: random.Random) -> None:
        """Keep a few phases in line, of features of some shapes."""
        with suppress(psycopg.Error), self.site.session() as conn:
            row = conn.execute(
                "select count(*) as n from phase_queue where status in ('queued', 'blocked')"
            ).fetchone()
            if row and row["n"] < 15:
                conn.execute("select pgcoord.submit_feature(%s)", [Jsonb(self.feature(dice))])

    def feature(self, dice: random.Random) -> dict[str, Any]:
        shape: list[list[int]] = dice.choice(
            [[[]], [[], [1], [2]], [[], [], [1, 2]], [[], [1], [1]]]
        )
        what = ["plain"] * 8 + ["left", "escaped", "deaf", "loud", "broken", "report"]
        phases = [
            {
                "phase_number": number,
                "title": f"Step {number}",
                "depends_on_phases": prerequisites,
                "prompt_content": f"{dice.choice([0, 0.1, 0.5, 1.5, 3, 20])}"
                f" {dice.choice([0, 0, 0, 0, 0, 3])} {dice.choice(what)}",
            }
            for number, prerequisites in enumerate(shape, 1)
        ]
        return {"title": "a", "phases": phases}
