"""How far off the expected finish is: histories are played again, and what was expected compared.

    PYTHONPATH=tests .venv/bin/python tests/load/forecast.py

A history is features of phases with dependencies and estimates, whose lengths were drawn once, from
a fixed seed: the estimate times a factor that is log-normal, wide for one workflow, narrow for the
other. It is played through the claims and ends of a real database, whose clock is moved by moving
the times of what was recorded. Whenever a phase has ended, the expected finish of each open feature
and of everything is asked for, and is compared with when it then was. The naive sum beside it is
what is left of the estimates, divided by the slots.
"""

import math
import random
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg.types.json import Jsonb
from support.panel_scene import Scene

from pgcoord.database import schema
from pgcoord.database.embedded import EmbeddedPostgres

SLOTS = 3
FEATURES = 12
WIDTHS = {"adw_sdlc_complete_iso": 0.6, "adw_review_iso": 0.25}


@dataclass
class Phase:
    """A phase: its estimate and its length, in seconds."""

    estimate: float
    length: float
    began: float | None = None


@dataclass
class Played:
    """A history as it is played: the time in seconds, phases by queue_id, and what was expected."""

    now: float = 0.0
    phases: dict[str, Phase] = field(default_factory=dict)
    done: dict[str, float] = field(default_factory=dict)
    expected: list[tuple[int | None, float, float, float]] = field(default_factory=list)


def make(scene: Scene, seed: int) -> Played:
    """Insert the features of a history."""
    chance = random.Random(seed)
    played = Played()
    for feature in range(1, FEATURES + 1):
        number = 100 * seed + feature
        scene.sql("insert into planned_features (id, title) values (%s, 'Played')", number)
        for phase in range(1, chance.randint(4, 12) + 1):
            workflow = chance.choice(list(WIDTHS))
            estimate = 3600 * chance.choice([0.25, 0.5, 1, 2])
            factor = math.exp(chance.gauss(0.15, WIDTHS[workflow]))
            needs = [n for n in range(1, phase) if chance.random() < 0.25]
            data = {"workflow_type": workflow, "estimated_hours": estimate / 3600}
            scene.sql(
                "insert into phase_queue (feature_id, phase_number, depends_on_phases, phase_data)"
                " values (%s, %s, %s, %s)",
                *(number, phase, Jsonb(needs), Jsonb(data)),
            )
            played.phases[f"queue-{number}-{phase}"] = Phase(estimate, estimate * factor)
    return played


def play(scene: Scene, epoch: int, played: Played) -> None:
    """Play a history to its end; whenever something has ended, ask what is expected."""
    while len(played.done) < len(played.phases):
        for row in scene.sql("select queue_id from pgcoord_private.claim_phases(%s)", epoch):
            scene.sql(
                "select pgcoord_private.start_phase(%s, id, 4000, 'then') from pgcoord.attempt"
                " where queue_id = %s and ended_at is null",
                *(epoch, row["queue_id"]),
            )
            played.phases[row["queue_id"]].began = played.now
        runs = {
            name: each
            for name, each in played.phases.items()
            if each.began is not None and name not in played.done
        }
        move(scene, played, runs)
        ask(scene, played)
        ends = {name: (each.began or 0) + each.length for name, each in runs.items()}
        name = min(ends, key=lambda each: ends[each])
        played.now = ends[name]
        scene.sql("select pgcoord.complete_phase(%s)", name)
        scene.sql(
            "select pgcoord_private.end_attempt(id, 0, '') from pgcoord.attempt"
            " where queue_id = %s and exited_at is null",
            name,
        )
        scene.sql(
            "update pgcoord.attempt set started_at = ended_at - make_interval(secs => %s)"
            " where queue_id = %s",
            *(played.phases[name].length, name),
        )
        played.done[name] = played.now


def move(scene: Scene, played: Played, runs: dict[str, Phase]) -> None:
    """Let what runs have begun as long ago as it has in the history."""
    for name, each in runs.items():
        since = played.now - (each.began or 0)
        for table, key in (("pgcoord.attempt", "started_at"), ("phase_queue", "started_timestamp")):
            scene.sql(
                f"update {table} set {key} = now() - make_interval(secs => %s)"
                f" where queue_id = %s{' and ended_at is null' if 'attempt' in table else ''}",
                *(since, name),
            )


def ask(scene: Scene, played: Played) -> None:
    """Keep what is expected now, and the naive sum, of each open feature and of all."""
    left: dict[int, float] = {}
    for name, each in played.phases.items():
        if name not in played.done:
            passed = 0.0 if each.began is None else played.now - each.began
            feature = int(name.split("-")[1])
            left[feature] = left.get(feature, 0) + max(0.0, each.estimate - passed)
    naive = {feature: seconds / SLOTS for feature, seconds in left.items()}
    rows = scene.sql(
        "select feature_id, extract(epoch from ends_at - now())::float8 as seconds"
        " from pgcoord_private.finishes(%s) where ends_at is not null",
        list(left),
    )
    for row in rows:
        feature = row["feature_id"]
        sum_of = sum(naive.values()) if feature is None else naive[feature]
        played.expected.append(
            (feature, played.now, played.now + row["seconds"], played.now + sum_of)
        )


def errors(played: Played) -> dict[str, list[tuple[float, float]]]:
    """By what was asked for: the error of each answer, and of the naive sum, as shares."""
    found: dict[str, list[tuple[float, float]]] = {"a feature": [], "everything": []}
    for feature, at, expected, naive in played.expected:
        of = "" if feature is None else f"queue-{feature}-"
        end = max(done for name, done in played.done.items() if name.startswith(of))
        if end - at > 600:  # minutes before the end any answer is far off, and nobody asks
            found["everything" if feature is None else "a feature"].append(
                (abs(expected - end) / (end - at), abs(naive - end) / (end - at))
            )
    return found


def main() -> None:
    """Play, and print the median errors."""
    with tempfile.TemporaryDirectory() as scratch:
        postgres = EmbeddedPostgres(Path(scratch, "postgres"), None)
        postgres.start()
        try:
            with psycopg.connect(postgres.dsn, autocommit=True) as conn:
                schema.upgrade(conn)
            scene = Scene(postgres.dsn, "here", Path(scratch))
            [row] = scene.sql("select epoch from pgcoord.leader")
            scene.sql("select pgcoord.set_slots(%s)", SLOTS)
            sys.stdout.write("history, asked for: median error, of the naive sum, answers\n")
            for seed in (1, 2, 3):
                played = make(scene, seed)
                play(scene, row["epoch"], played)
                for name, each in errors(played).items():
                    ours = statistics.median(error for error, _ in each)
                    theirs = statistics.median(error for _, error in each)
                    sys.stdout.write(f"{seed}, {name}: {ours:.0%}, {theirs:.0%}, {len(each)}\n")
                    sys.stdout.flush()
            scene.close()
        finally:
            postgres.stop()


if __name__ == "__main__":
    main()
