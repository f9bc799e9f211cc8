"""Schedules: valid values, and the processing of a due time by competing coordinators."""

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from support import PATIENCE
from support.database import Connection, as_user, claim, one, refused, take_lead

FEATURE = {"title": "nightly", "phases": [{"phase_number": 1, "prompt_content": "x"}]}
DUE = datetime(2026, 3, 29, 1, 0, tzinfo=UTC)


def add(conn: Connection, name: str = "nightly", **columns: Any) -> None:
    values = {"cron": "0 3 * * *", "timezone": "UTC", "feature": Jsonb(FEATURE), **columns}
    names = ", ".join(values)
    conn.execute(
        f"insert into pgcoord.schedule (name, {names}) values (%s{', %s' * len(values)})".encode(),
        [name, *values.values()],
    )


def plan(conn: Connection, epoch: int, at: datetime, name: str = "nightly") -> None:
    conn.execute(
        "select pgcoord_private.plan_schedule(%s, name, cron, timezone, %s, null)"
        " from pgcoord.schedule where name = %s",
        [epoch, at, name],
    )


def take(
    conn: Connection, epoch: int, since: datetime, due: datetime, then: datetime
) -> dict[str, Any] | None:
    return conn.execute(
        "select outcome, feature_id, reason from"
        " pgcoord_private.take_due_time(%s, 'nightly', %s, %s, %s)",
        [epoch, since, due, then],
    ).fetchone()


def features(conn: Connection) -> list[int]:
    return [each["id"] for each in conn.execute("select id from planned_features order by id")]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"cron": None}, "schedule nightly cannot run at null"),
        ({"cron": "0 3 * *"}, "it has 4 fields, not five"),
        ({"cron": "60 3 * * *"}, "'60' is not a valid minute"),
        ({"cron": "0 3 * * 1-0"}, "'1-0' is not a valid day of the week"),
        ({"cron": "0 3 0 * *"}, "'0' is not a valid day of the month"),
        ({"cron": "*/0 3 * * *"}, "'*/0' is not a valid minute"),
        ({"cron": "@daily"}, "it has 1 field, not five"),
        ({"cron": "0 3 * FOO *"}, "'FOO' is not a valid month"),
        ({"timezone": "Mars/Olympus"}, "the time zone 'Mars/Olympus'"),
        ({"overlap": "kill"}, "overlap of schedule nightly cannot be 'kill'"),
        ({"missed": "all"}, "missed of schedule nightly cannot be 'all'"),
        ({"feature": Jsonb({"title": "a", "phases": []})}, "has no phases"),
        (
            {
                "feature": Jsonb(
                    {"title": "a", "phases": [{"phase_number": 1, "depends_on_phases": [1]}]}
                )
            },
            "could not queue its feature: depends_on_phases of phase queue-",
        ),
    ],
)
def test_a_phase_that_cannot_run_is_refused_at_its_insert(
    conn: Connection, columns: dict[str, Any], words: str
) -> None:
    with pytest.raises(psycopg.Error) as caught:
        add(conn, **columns)
    assert words in str(caught.value)
    assert caught.value.diag.message_hint
    assert caught.value.sqlstate
    assert caught.value.sqlstate.startswith("PC")


def test_every_form_of_a_crontab_line_is_accepted(conn: Connection) -> None:
    for cron in (
        "*/15 9-17 * * MON-FRI",
        "0 3 1,15 jan-mar 7",
        "5 4 L * *",
        "0 0 LW * 5L",
        "0 0 * * 1#2",
    ):
        fault = one(conn, "select pgcoord_private.cron_fault(%s) as words", cron)
        assert fault == {"words": None}, cron
    add(conn)
    assert one(conn, "select overlap, missed, next_at, error from pgcoord.schedule") == {
        "overlap": "skip",
        "missed": "run",
        "next_at": None,
        "error": None,
    }
    assert one(conn, "select count(*) as n from planned_features") == {"n": 0}


def test_a_due_time_is_taken_once_by_concurrent_coordinators(
    conn: Connection, epoch: int, dsn: str
) -> None:
    add(conn)
    plan(conn, epoch, DUE)
    following = DUE + timedelta(days=1)
    answer = take(conn, epoch, DUE, DUE, following)
    assert answer
    assert (answer["outcome"], answer["reason"]) == ("started", None)
    assert one(conn, "select reason from pgcoord.event where kind = 'feature_inserted'") == {
        "reason": "schedule nightly, due at 2026-03-29 01:00 UTC"
    }
    assert take(conn, epoch, DUE, DUE, following) is None
    # A restore, or a clock that was set back: its row is there.
    conn.execute("update pgcoord.schedule set next_at = %s", [DUE])
    assert take(conn, epoch, DUE, DUE, following) is None
    assert one(conn, "select count(*) as n from planned_features") == {"n": 1}
    conn.execute("select pg_advisory_unlock_all()")
    with psycopg.connect(dsn, autocommit=True, row_factory=psycopg.rows.dict_row) as other:
        take_lead(other)
        with pytest.raises(psycopg.Error, match="lead 1 is over"):
            take(conn, epoch, following, following, following + timedelta(days=1))


def test_overlap_decides_about_a_due_time_during_a_run(conn: Connection, epoch: int) -> None:
    day = timedelta(days=1)
    add(conn)
    plan(conn, epoch, DUE)
    outcomes = []
    for number, overlap in enumerate(("skip", "skip", "start", "queue", "queue")):
        conn.execute("update pgcoord.schedule set overlap = %s", [overlap])
        at = DUE + number * day
        answer = take(conn, epoch, at, at, at + day)
        assert answer
        outcomes.append((answer["outcome"], answer["reason"]))
    first, second = features(conn)
    assert outcomes == [
        ("started", None),
        ("skipped", f"its last run has not ended: feature {first}"),
        ("started", None),
        ("waiting", f"its last run has not ended: feature {second}"),
        ("skipped", f"its last run has not ended: feature {second}"),
    ]
    waiting = "select outcome, feature_id from pgcoord_private.start_waiting_runs(%s)"
    claim(conn, epoch)
    conn.execute("select pgcoord.complete_phase(%s)", [f"queue-{first}-1"])
    assert conn.execute(waiting, [epoch]).fetchall() == []
    # A failed run counts as ended: it must not prevent the next ones.
    conn.execute(
        "select pgcoord.give_up_attempt(id, 'failed', 'no') from pgcoord.attempt"
        " where ended_at is null"
    )
    third = second + 1
    assert one(conn, waiting, epoch) == {"outcome": "started", "feature_id": third}
    assert one(conn, "select last_feature_id, last_status from pgcoord.schedules") == {
        "last_feature_id": third,
        "last_status": "planned",
    }


def test_the_end_of_a_run_by_hand_wakes_the_waiting_run(
    conn: Connection, epoch: int, dsn: str
) -> None:
    add(conn, overlap="queue")
    plan(conn, epoch, DUE)
    day = timedelta(days=1)
    for at in (DUE, DUE + day):
        take(conn, epoch, at, at, at + day)
    with psycopg.connect(dsn, autocommit=True) as listener:
        listener.execute("listen pgcoord_wake")
        conn.execute("select pgcoord.cancel_feature(%s, 'x')", features(conn))
        assert [each.channel for each in listener.notifies(timeout=PATIENCE, stop_after=1)]


def test_a_missed_due_time_runs_once_or_never(conn: Connection, epoch: int) -> None:
    add(conn)
    plan(conn, epoch, DUE)
    latest = DUE + timedelta(days=5)
    answer = take(conn, epoch, DUE, latest, latest + timedelta(days=1))
    assert answer
    assert answer["outcome"] == "started"
    assert answer["reason"].startswith("the one for all that were missed since 2026-03-2")
    conn.execute("update pgcoord.schedule set missed = 'skip', overlap = 'start'")
    again = latest + timedelta(days=1)
    answer = take(conn, epoch, again, again, again + timedelta(days=1))
    assert answer == {
        "outcome": "missed",
        "feature_id": None,
        "reason": "nothing could start it in time",
    }


def test_a_change_or_resumption_counts_from_now_on(conn: Connection, epoch: int) -> None:
    add(conn)
    plan(conn, epoch, DUE)
    conn.execute("select pgcoord.pause_schedule('nightly', 'holidays')")
    assert take(conn, epoch, DUE, DUE, DUE + timedelta(days=1)) is None
    assert one(conn, "select next_at, paused_reason from pgcoord.schedule") == {
        "next_at": None,
        "paused_reason": "holidays",
    }
    assert one(conn, "select pgcoord.resume_schedule('nightly') as was") == {"was": True}
    assert one(conn, "select pgcoord.resume_schedule('nightly') as was") == {"was": False}
    plan(conn, epoch, DUE)
    conn.execute("select pgcoord.change_schedule('nightly', '{\"cron\": \"0 4 * * *\"}')")
    assert one(conn, "select next_at from pgcoord.schedule") == {"next_at": None}
    reasons = conn.execute(
        "select reason from pgcoord.event where kind = 'schedule_changed' order by id"
    ).fetchall()
    assert [each["reason"] for each in reasons] == [
        "nightly: 0 3 * * * (UTC)",
        "nightly is paused: holidays",
        "nightly is resumed",
        "nightly is changed: 0 4 * * * (UTC)",
    ]


def test_a_feature_that_cannot_be_queued_is_named_until_one_can(
    conn: Connection, epoch: int
) -> None:
    add(conn)
    plan(conn, epoch, DUE)
    conn.execute(
        "create function public.refuse() returns trigger language plpgsql as"
        " $$ begin raise exception 'not today'; end $$;"
        "create trigger refuses before insert on planned_features"
        " for each row execute function public.refuse()"
    )
    day = timedelta(days=1)
    answer = take(conn, epoch, DUE, DUE, DUE + day)
    assert answer == {"outcome": "failed", "feature_id": None, "reason": "not today"}
    finding = "select level, words from pgcoord.checkup() where kind = 'schedules'"
    assert one(conn, finding) == {"level": "warn", "words": "schedule nightly: not today"}
    with refused("PC002", "not today"):
        conn.execute("select pgcoord.run_schedule('nightly')")
    conn.execute("drop trigger refuses on planned_features")
    answer = take(conn, epoch, DUE + day, DUE + day, DUE + 2 * day)
    assert answer
    assert answer["outcome"] == "started"
    assert one(conn, finding)["level"] == "ok"
    conn.execute("select pgcoord.run_schedule('nightly')")
    assert one(conn, "select count(*) as n from planned_features") == {"n": 2}


def test_the_object_of_a_planned_feature_can_be_scheduled(conn: Connection, epoch: int) -> None:
    phases = [
        {"phase_number": 1, "prompt_content": "x", "status": "completed"},
        {"phase_number": 2, "prompt_content": "y", "depends_on_phases": [1], "lock": "staging"},
    ]
    conn.execute(
        "select pgcoord.submit_feature(%s)",
        [Jsonb({"title": "a", "tags": ["x"], "phases": phases})],
    )
    claim(conn, epoch)
    conn.execute("select pgcoord.complete_phase('queue-1-2')")
    conn.execute("select pgcoord.add_schedule('b', '0 3 * * *', pgcoord.feature_plan(1))")
    conn.execute("select pgcoord.run_schedule('b')")
    actual = conn.execute(
        "select p.phase_number, p.status, p.lock, f.tags from phase_queue as p"
        " join planned_features as f on f.id = p.feature_id"
        " where f.id = (select max(id) from planned_features) order by 1"
    ).fetchall()
    assert [tuple(each.values()) for each in actual] == [
        (1, "completed", None, ["x"]),
        (2, "queued", "staging", ["x"]),
    ]
    with refused("PC002", "there is a schedule b already"):
        conn.execute("select pgcoord.add_schedule('b', '0 3 * * *', pgcoord.feature_plan(1))")
    conn.execute("select pgcoord.delete_schedule('b')")
    with refused("PC001", "there is no schedule b"):
        conn.execute("select pgcoord.delete_schedule('b')")


def test_a_client_may_insert_and_change_and_gives_nothing_that_is_derived(
    dsn: str, conn: Connection, logins: dict[str, str]
) -> None:
    with psycopg.connect(as_user(dsn, logins["client"]), autocommit=True) as client:
        client.execute(
            "insert into pgcoord.schedule (name, cron, feature, next_at, created_by)"
            " values ('a', '0 3 * * *', %s, now(), 'somebody')",
            [Jsonb(FEATURE)],
        )
        client.execute("update pgcoord.schedule set cron = '0 4 * * *'")
        client.execute("select pgcoord.run_schedule('a')")
        with pytest.raises(psycopg.Error, match="are not given by hand"):
            client.execute("update pgcoord.schedule set next_at = now()")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            client.execute(
                "insert into pgcoord.schedule_run (schedule, due_at) values ('a', now())"
            )
    assert one(conn, "select next_at, created_by from pgcoord.schedule") == {
        "next_at": None,
        "created_by": logins["client"],
    }


def declare(conn: Connection, epoch: int, *wanted: dict[str, Any]) -> list[tuple[str, str]]:
    values = {"cron": "0 3 * * *", "overlap": "skip", "missed": "run", "feature": FEATURE}
    found = conn.execute(
        "select name, error from pgcoord_private.declare_schedules(%s, %s)",
        [epoch, Jsonb([{**values, **each} for each in wanted])],
    )
    return [(each["name"], each["error"]) for each in found]


def test_a_declaration_takes_over_a_schedule_made_by_hand_and_is_not_changed_by_hand(
    conn: Connection,
) -> None:
    epoch = take_lead(conn)
    add(conn, "nightly", cron="0 9 * * *")
    add(conn, "own")
    conn.execute("select pgcoord.pause_schedule('nightly', 'holidays')")
    empty = {"title": "a", "phases": []}
    faults = declare(conn, epoch, {"name": "nightly"}, {"name": "empty", "feature": empty})
    assert [(name, "has no phases" in error) for name, error in faults] == [("empty", True)]
    taken = "select cron, declared, paused_reason from pgcoord.schedules where name = 'nightly'"
    expected = {"cron": "0 3 * * *", "declared": True, "paused_reason": "holidays"}
    assert one(conn, taken) == expected
    with refused("PC002", "schedule nightly is declared in pgcoord.toml"):
        conn.execute("update pgcoord.schedule set missed = 'skip' where declared")
    # What cannot be stored stays as it was, and declared; what is the same is not tried again.
    [fault] = declare(conn, epoch, {"name": "nightly", "feature": empty})
    assert fault[0] == "nightly"
    number = "select last_value as n from public.planned_features_id_seq"
    before = one(conn, number)
    assert declare(conn, epoch, {"name": "nightly"}) == []
    assert (one(conn, taken), one(conn, number)) == (expected, before)
    with refused("PC007", "is over"):
        declare(conn, epoch - 1)
    assert declare(conn, epoch) == []
    assert one(conn, "select name from pgcoord.schedule") == {"name": "own"}


def test_a_refused_declaration_is_shown_until_accepted_or_removed(conn: Connection) -> None:
    def why() -> str:
        return " / ".join(
            str(each["words"]) for each in conn.execute("select * from pgcoord.why_schedule('a')")
        )

    def seen() -> list[str]:
        found = one(conn, "select words from pgcoord.checkup() where kind = 'schedules'")["words"]
        rows = conn.execute("select name from pgcoord.refused_schedule")
        return [found, *(each["name"] for each in rows)]

    epoch = take_lead(conn)
    empty = {"title": "a", "phases": []}
    declare(conn, epoch, {"name": "a", "feature": empty})
    declare(conn, epoch, {"name": "a", "feature": empty})  # once in the history
    refused_words = (
        "schedule a could not queue its feature: the feature of schedule a has no phases"
    )
    assert seen() == [f"schedule a of pgcoord.toml is not stored: {refused_words}", "a"]
    assert why().endswith(f"the database refused that: {refused_words}")
    declare(conn, epoch, {"name": "a"})
    assert seen() == ["1 schedule has a time and a feature"]
    assert why() == "its next time is found once a coordinator runs"
    declare(conn, epoch, {"name": "a", "cron": "never"})
    assert seen()[1:] == ["a"]
    declare(conn, epoch)
    assert seen() == ["there are none"]
    with refused("PC001", "there is no schedule a"):
        why()
    logged = "select count(*) as n from pgcoord.event where starts_with(reason, 'a of pgcoord')"
    assert one(conn, logged) == {"n": 2}


def test_why_gives_the_due_time_of_a_schedule_and_the_reason_of_a_skipped_time(
    conn: Connection,
) -> None:
    def why() -> list[tuple[str, str]]:
        found = conn.execute("select * from pgcoord.why_schedule('a')")
        return [(each["kind"], each["words"]) for each in found]

    epoch = take_lead(conn)
    add(conn, "a")
    conn.execute(
        "select pgcoord_private.plan_schedule(%s, 'a', cron, timezone, '2100-01-01 03:00Z', null)"
        " from pgcoord.schedule",
        [epoch],
    )
    assert why() == [("next", "it is due next at 2100-01-01 03:00 UTC")]
    conn.execute(
        "insert into pgcoord.schedule_run (schedule, due_at, outcome, reason) values"
        " ('a', '2020-01-01 03:00Z', 'missed', 'nothing could start it in time'),"
        " ('a', '2020-01-02 03:00Z', 'started', null)"
    )
    assert why()[1:] == [
        ("started", "its last time, 2020-01-02 03:00 UTC: started"),
        ("missed", "before that, 2020-01-01 03:00 UTC: missed, nothing could start it in time"),
    ]
    conn.execute("select pgcoord.pause_schedule('a', 'holidays')")
    kind, words = why()[0]
    assert kind == "paused"
    assert words.endswith(": holidays")
