"""A storm: coordinators, phases and a server under random faults, and a judge.

    make chaos [SEED=1] [FAULTS=250] [MINUTES=10] [COORDINATORS=3] [STORMS=1000]

Each storm has a folder and a server of its own, and FAULTS faults, whose plan follows from its
seed; then everything is calmed, and the judge says what does not hold. Storms follow one another,
each with the next seed, until the minutes are over. The folder of one with a violation is kept.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from chaos.faults import Faults
from chaos.judge import Judge
from chaos.site import LONG, PEOPLE, Site

# Seconds between two faults, at most.
_PACE = 0.35


@dataclass
class Outcome:
    """What became of one storm."""

    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    coordinators: int = 0
    wrong: list[str] = field(default_factory=list)


def rage(folder: Path, seed: int, faults: int, coordinators: int = 3) -> Outcome:
    """Run one storm in `folder`, which must not exist; return what it found."""
    site = Site(folder, coordinators)
    outcome = Outcome(seed)
    storm = Faults(site, seed)
    judge = Judge(site, storm)
    diary = folder / "diary"
    site.open()
    try:
        with diary.open("w") as lines:

            def note(what: str) -> None:
                lines.write(f"{time.strftime('%H:%M:%S')} {what}\n")
                lines.flush()

            _strike_all(storm, judge, faults, note)
            _come_to_rest(storm, judge, note)
            for each in judge.wrong:
                note(f"WRONG {each}")
        with site.session(LONG) as conn:
            row = conn.execute("select count(*) as n from pgcoord.attempt").fetchone()
            outcome.attempts = row["n"] if row else 0
    finally:
        site.close()
    outcome.faults = Counter(storm.done)
    outcome.coordinators = len(list(site.logs.iterdir()))
    outcome.wrong = judge.wrong
    return outcome


def _strike_all(storm: Faults, judge: Judge, faults: int, note: Callable[[str], None]) -> None:
    dice = random.Random(f"{storm.seed} work")
    for seat in storm.site.seats:
        storm.site.start(seat, dice)
    for number in range(faults):
        storm.bring_work(dice)
        storm.undo_due()
        note(f"{number} {storm.strike(number)}")
        if number % 5 == 0:
            judge.look()
        time.sleep(dice.random() * _PACE)


def _come_to_rest(storm: Faults, judge: Judge, note: Callable[[str], None]) -> None:
    """Calm the storm; meanwhile somebody locks a feature, which must hold up nobody else."""
    site = storm.site
    storm.calm()
    with site.session(LONG) as conn:
        conn.execute("select pgcoord.resume()")
        conn.execute("select pgcoord.set_slots(3)")
        conn.execute("select pgcoord.resume(id) from planned_features where paused_at is not null")
        conn.execute(
            "select pgcoord.complete_phase(queue_id) from pgcoord.attempt"
            " where external and ended_at is null"
        )
    with psycopg.connect(site.postgres.dsn, application_name=PEOPLE) as conn:
        row = conn.execute(
            "select f.id from planned_features as f where exists (select from phase_queue as p"
            " where p.feature_id = f.id and p.status in ('ready', 'running', 'queued'))"
            " order by f.id limit 1 for update"
        ).fetchone()
        note(f"calm; feature {row and row[0]} is locked")
        rests = judge.wait_for_rest(row[0] if row else None)
        conn.rollback()
    note("the lock is gone")
    if rests and judge.wait_for_rest(None):
        note("all is at rest")
    judge.judge_history()


def main() -> int:
    """Let storms follow one another; the exit status says whether all went right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first storm")
    parser.add_argument("--faults", type=int, default=250, help="of each storm")
    parser.add_argument("--minutes", type=float, default=10, help="until no other storm begins")
    parser.add_argument("--storms", type=int, default=1000, help="at most")
    parser.add_argument("--coordinators", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for what is kept; else a temporary one")
    wanted = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left running
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have it ignore
    folder = wanted.folder or Path(tempfile.mkdtemp(prefix="pgcoord-chaos-"))
    begin, total, violations = time.monotonic(), Outcome(wanted.seed), 0
    storms = 0
    for seed in range(wanted.seed, wanted.seed + wanted.storms):
        if storms and time.monotonic() - begin > wanted.minutes * 60:
            break
        place = folder / f"storm-{seed}"
        outcome = rage(place, seed, wanted.faults, wanted.coordinators)
        storms += 1
        total.faults += outcome.faults
        total.attempts += outcome.attempts
        total.coordinators += outcome.coordinators
        violations += bool(outcome.wrong)
        _print(
            f"{time.strftime('%H:%M:%S')} storm {seed}: {outcome.faults.total()} faults,"
            f" {outcome.attempts} attempts, {outcome.coordinators} coordinators:"
            f" {'VIOLATED' if outcome.wrong else 'all right'}"
        )
        for each in outcome.wrong:
            _print(f"    {each}")
        if outcome.wrong:
            _print(
                f"    kept in {place};"
                f" again: make chaos SEED={seed} FAULTS={wanted.faults} STORMS=1"
            )
        else:
            shutil.rmtree(place)
    _print(
        f"{storms} storms, {total.faults.total()} faults, {total.attempts} attempts,"
        f" {total.coordinators} coordinators in {(time.monotonic() - begin) / 60:.0f} minutes:"
        f" {violations} storms with a violation"
    )
    _print(", ".join(f"{kind} {many}" for kind, many in sorted(total.faults.items())))
    return 1 if violations else 0


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
