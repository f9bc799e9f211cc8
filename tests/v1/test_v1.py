"""Version 1: what becomes of each kind of row, how it is taken over whole, and how it comes back.

The databases are made as the installations that were found (tests/v1/databases), not as they
should have been.
"""

import os
import re
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from support import PATIENCE
from support.database import add_feature, contents, upgrade
from support.desk import Desk, until
from support.sql_document import plain, steps
from support.terminal import Psql, surroundings

from pgcoord import assets, v1
from pgcoord.database import schema
from pgcoord.errors import DatabaseUnusable, InvalidInput, NotFound, Refused
from pgcoord.v1 import Report

FIXTURES = Path(__file__).parent / "databases"

# Postgres' dialects: what made them, and rows that they can hold.
DIALECTS = {
    "chain": ["chain", "work"],
    "schema": ["schema", "schema_work"],
    "shipped v2": ["shipped_v2", "shipped_v2_work"],
    "half migrated": ["chain", "work", "spec_6_2"],
}


def run(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement.encode())


def build(dsn: str, *names: str) -> None:
    """Make a database of version 1 from files of tests/v1/databases."""
    run(dsn, *((FIXTURES / f"{name}.sql").read_text() for name in names))


def migrate(dsn: str, **options: Any) -> Report:
    with psycopg.connect(dsn, autocommit=True) as conn:
        report = v1.migrate(conn, actor="ann", **options)
    assert report is not None
    return report


def undo(dsn: str, **options: Any) -> list[str] | None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        return v1.undo(conn, **options)


def rows(dsn: str, query: str) -> list[dict[str, Any]]:
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as conn:
        return conn.execute(query.encode()).fetchall()


def phases(dsn: str, where: str = "true") -> dict[str, dict[str, Any]]:
    """Phases by queue_id."""
    found = rows(dsn, f"select * from phase_queue where {where} order by feature_id, phase_number")
    return {row["queue_id"]: row for row in found}


def features(dsn: str) -> dict[int, dict[str, Any]]:
    found = rows(
        dsn,
        "select f.*, p.github_issue_number from pgcoord.feature as f"
        " join planned_features as p using (id)",
    )
    return {row["id"]: row for row in found}


@pytest.fixture(autouse=True, scope="module")
def patient() -> Iterator[None]:
    """Sessions of the tests have ended, but a loaded server takes its time to list none of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(v1, "DISCONNECT_TIMEOUT", PATIENCE)
        yield


@dataclass(frozen=True)
class Migrated:
    """A database that was migrated, and the report of it."""

    dsn: str
    report: Report

    def words(self, kind: str, name: str) -> str:
        """What was decided about a row."""
        [words] = [d.words for d in self.report.decisions if (d.kind, d.name) == (kind, name)]
        return words


@pytest.fixture(scope="module")
def chain(server: str) -> Iterator[Migrated]:
    """The database of the chain of migrations, with all its work, migrated; not to be changed."""
    name = f"pgcoord_v1_{os.getpid()}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        dsn = make_conninfo(server, dbname=name)
        build(dsn, *DIALECTS["chain"])
        yield Migrated(dsn, migrate(dsn))
        admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


# --- What becomes of a row


def test_rows_with_a_parent_issue_are_phases_of_the_feature_that_has_the_issue(
    chain: Migrated,
) -> None:
    assert list(phases(chain.dsn, "feature_id = 3")) == ["q-42-1", "q-42-2", "q-42-3"]
    assert features(chain.dsn)[3]["github_issue_number"] == 42
    assert chain.words("request", "3") == (
        "3 rows with parent_issue 42, first queued 2025-11-03 10:00:"
        " phases of the feature of that issue"
    )


def test_a_parent_issue_that_no_feature_has_gets_one_that_keeps_the_number(
    chain: Migrated,
) -> None:
    [feature] = [f for f in features(chain.dsn).values() if f["github_issue_number"] == 50]
    assert feature["title"] == "Issue 50: First"
    assert feature["id"] > 9
    assert feature["total_phases"] == 2


def test_rows_without_a_parent_are_distinguished_by_their_order(chain: Migrated) -> None:
    found = phases(chain.dsn, "queue_id like 'q-0-%'")
    requests = {queue_id[:5]: row["feature_id"] for queue_id, row in found.items()}
    assert len(set(requests.values())) == 3
    assert [(name, row["phase_number"]) for name, row in found.items()] == [
        ("q-0-a1", 1), ("q-0-a2", 2), ("q-0-a3", 3), ("q-0-b1", 1), ("q-0-b2", 2), ("q-0-c1", 1)
    ]  # fmt: skip
    titles = [features(chain.dsn)[number]["title"] for number in requests.values()]
    assert titles == ["Parse", "Guess", "Alone"]


@pytest.mark.scale
def test_requests_that_were_queued_at_the_same_time_lose_no_phase(empty: str) -> None:
    build(empty, "chain")
    run(
        empty,
        "insert into phase_queue (queue_id, parent_issue, phase_number, depends_on_phase,"
        " queue_position, created_at) values ('a1', 0, 1, null, 1, 'epoch'),"
        " ('b1', 0, 1, null, 2, 'epoch'), ('a2', 0, 2, 1, 3, 'epoch'), ('b2', 0, 2, 1, 4, 'epoch')",
    )
    migrate(empty)
    actual = phases(empty)
    assert sorted(actual) == ["a1", "a2", "b1", "b2"]
    assert actual["b1"]["feature_id"] == actual["a2"]["feature_id"]
    # Whose it is cannot be known: it waits, and says for what, rather than run too early.
    assert actual["b2"]["unmet"] == 1
    assert "which feature" in migrated_words(empty, "dependency", "b2")


def migrated_words(dsn: str, kind: str, name: str) -> str:
    [row] = rows(
        dsn, f"select words from pgcoord_v1.decision where kind = '{kind}' and name = '{name}'"
    )
    return str(row["words"])


def test_a_migrated_phase_keeps_its_meaning_in_our_words(chain: Migrated) -> None:
    found = phases(chain.dsn)
    assert found["q-42-1"]["phase_data"] == {
        "title": "Tables",
        "prompt_content": "Add the tables",
        "files": ["db.md"],
        "workflow_type": "adw_sdlc_complete_iso",  # of its feature
    }
    assert found["q-42-3"]["workflow_type"] == "adw_patch_iso"
    assert found["q-42-3"]["priority"] == 20
    assert found["q-42-1"]["issue_number"] == 43
    assert found["q-42-1"]["adw_id"] == "adw-00000001"


def test_of_several_rows_for_a_phase_the_one_that_got_furthest_counts(chain: Migrated) -> None:
    actual = phases(chain.dsn, "queue_id like '%-50-%'")
    assert {name: row["status"] for name, row in actual.items()} == {
        "q-50-1": "completed",  # is not done again, though it was queued again
        "r-50-2": "queued",  # its first try failed
    }
    assert actual["r-50-2"]["issue_number"] == 52, "it would get a second issue"
    assert chain.words("duplicate", "q-50-2").endswith("r-50-2 counts, the row stays behind")


def test_the_row_of_an_adw_about_itself_stays_behind(chain: Migrated) -> None:
    assert "adw-00000002" not in phases(chain.dsn)
    assert "no phase" in chain.words("shadow row", "adw-00000002")


@pytest.mark.parametrize(
    ("queue_id", "status", "kind", "words"),
    [
        ("q-42-2", "failed", "lost", "lost in migration: failed, until"),
        ("q-42-3", "blocked", "blocked", "was queued, waits for a phase that is failed"),
        ("q-0-a2", "queued", "queued", "was ready, not started: queued"),
        ("q-60-1", "queued", "status", "had no status: queued"),
        ("q-60-3", "failed", "failed", "it waited for itself, by way of phase 4: failed"),
        ("q-60-5", "failed", "failed", "it waited for itself, by way of phase 5: failed"),
        ("q-99-1", "cancelled", "cancelled", "its feature was cancelled: cancelled"),
        ("q-60-2", "queued", "dependency", "depends on phase 9, which feature 12 does not have"),
    ],
)
def test_a_changed_phase_has_a_decision(
    chain: Migrated, queue_id: str, status: str, kind: str, words: str
) -> None:
    assert phases(chain.dsn)[queue_id]["status"] == status
    assert words in chain.words(kind, queue_id)


def test_an_unchanged_row_has_no_decision(chain: Migrated) -> None:
    about = {decision.name for decision in chain.report.decisions}
    assert not about & {"q-42-1", "q-0-a1", "q-0-a3", "q-0-b1", "q-0-b2", "q-0-c1", "q-50-1"}


def test_one_dependency_is_an_array_of_one(chain: Migrated) -> None:
    found = phases(chain.dsn)
    assert found["q-42-1"]["depends_on_phases"] == []
    assert found["q-42-3"]["depends_on_phases"] == [2]
    edges = rows(chain.dsn, "select * from pgcoord.dependency where feature_id = 3 order by 2")
    assert [(row["prerequisite"], row["dependent"]) for row in edges] == [(1, 2), (2, 3)]


def test_a_failed_phase_says_why_as_before(chain: Migrated) -> None:
    found = phases(chain.dsn)
    assert found["q-0-b1"]["error_message"] == "it was wrong"
    assert found["q-42-2"]["error_message"] == "lost in migration"
    assert found["q-42-1"]["error_message"] is None


def test_features_are_carried_over_and_their_status_follows(chain: Migrated) -> None:
    actual = features(chain.dsn)
    assert {number: actual[number]["status"] for number in (3, 4, 5, 7)} == {
        3: "in_progress",
        4: "planned",
        5: "completed",
        7: "cancelled",
    }
    assert (actual[3]["priority"], actual[4]["priority"], actual[5]["priority"]) == (10, 90, 50)
    assert (actual[3]["tags"], actual[4]["tags"]) == (["panel"], [])
    assert float(actual[3]["estimated_hours"]) == 4.5
    assert "stands for what was done" in chain.words("feature status", "5")


@pytest.mark.scale
def test_a_generated_plan_can_be_executed(empty: str) -> None:
    build(empty, *DIALECTS["chain"])
    migrate(empty)
    assert rows(empty, "select pgcoord.execute_feature(4) as n") == [{"n": 2}]
    [colours, switch] = phases(empty, "feature_id = 4").values()
    assert colours["phase_data"]["prompt_content"] == "Choose …"
    assert (switch["depends_on_phases"], switch["phase_data"]["prompt_content"]) == ([1], "Add …")


def test_the_history_names_the_source_row_of_each_phase(chain: Migrated) -> None:
    where = "select actor, reason from pgcoord.event where kind = '{}' and {}"
    of_phase = rows(chain.dsn, where.format("phase_migrated", "queue_id = 'q-42-2'"))
    assert of_phase == [
        {
            "actor": "ann",
            "reason": "row q-42-2 of phase_queue of version 1: parent_issue 42, phase 2, running",
        }
    ]
    [of_feature] = rows(chain.dsn, where.format("feature_migrated", "feature_id = 3"))
    assert of_feature["reason"] == "row 3 of planned_features of version 1, in_progress"
    [made] = rows(chain.dsn, where.format("feature_migrated", "feature_id = 11"))
    assert made["reason"] == "made for 4 rows of phase_queue of version 1 with parent_issue 50"


def test_new_features_and_phases_come_after_those_taken_over(empty: str) -> None:
    build(empty, *DIALECTS["chain"])
    migrate(empty)
    taken = features(empty)
    last = max(row["queue_position"] for row in phases(empty).values())
    run(
        empty,
        "insert into planned_features (title) values ('new')",
        "insert into phase_queue (feature_id, phase_number)"
        " select id, 1 from planned_features where title = 'new'",
    )
    assert max(features(empty)) == max(taken) + 1
    [new] = phases(empty, "queue_position > " + str(last)).values()
    assert new["queue_position"] == last + 1


def test_nothing_of_version_1_is_lost(empty: str) -> None:
    build(empty, *DIALECTS["chain"])
    tables = ("phase_queue", "planned_features", "queue_config", "webhook_events", "adw_locks")
    was = [rows(empty, f"select * from {each}") for each in tables]
    report = migrate(empty)
    assert [rows(empty, f"select * from pgcoord_v1.{each}") for each in tables] == was
    said = {decision.name: decision.words for decision in report.decisions}
    assert said["planned_features"].endswith(
        "actual_hours, session_number, parent_id, completion_notes, started_at"
    )
    assert said["adw_locks"] == "stays in pgcoord_v1 as it is"
    assert said["44"] == "was held by adw-00000002 (building); nothing locks issues here"
    assert "adw-00000002, received 2025-11-03 12:00" in said["w2"]


@pytest.mark.scale
def test_a_paused_queue_is_paused(empty: str) -> None:
    build(empty, "chain")
    run(
        empty,
        "update queue_config set config_value = 'true'",
        "insert into queue_config values ('max_age', '5')",
    )
    migrate(empty)
    [control] = rows(
        empty, "select paused_at is not null as paused, paused_reason as r from pgcoord.control"
    )
    assert control == {"paused": True, "r": "paused in version 1"}
    assert "until somebody resumes it" in migrated_words(empty, "paused", "queue_paused")
    assert migrated_words(empty, "setting", "max_age") == "5 of queue_config has no place here"


@pytest.mark.parametrize(("zone", "hour"), [("America/New_York", 15), (None, 10)])
@pytest.mark.scale
def test_times_without_a_zone_are_read_in_the_one_that_is_stated(
    empty: str, zone: str | None, hour: int
) -> None:
    build(empty, *DIALECTS["chain"])
    name = psycopg.conninfo.conninfo_to_dict(empty)["dbname"]
    run(empty, f"alter database \"{name}\" set timezone = 'UTC'")
    report = migrate(empty, time_zone=zone)
    [row] = rows(
        empty,
        "select extract(hour from created_at at time zone 'UTC')::int as hour,"
        " finished_timestamp - started_timestamp as took from phase_queue"
        " where queue_id = 'q-42-1'",
    )
    assert row["hour"] == hour
    assert row["took"].total_seconds() == 58 * 60
    assert re.match(f"times without a zone are read in {zone or 'UTC'}$", report.lines[0], re.I)


def test_an_invalid_time_zone_is_refused(empty: str) -> None:
    build(empty, "chain")
    with pytest.raises(InvalidInput, match="no time zone 'Mars/Olympus'"):
        migrate(empty, time_zone="Mars/Olympus")


# --- Running phases


def test_running_phases_can_be_adopted_and_wait_for_a_report(empty: str) -> None:
    build(empty, *DIALECTS["chain"])
    report = migrate(empty, adopt=True)
    assert [d.name for d in report.decisions if d.kind == "adopted"] == ["q-42-2"]
    found = phases(empty)["q-42-2"]
    assert (found["status"], found["slot"], found["adw_id"]) == ("running", 1, "adw-00000002")
    run(empty, "select pgcoord.complete_phase('q-42-2', 'adw-00000002')")
    assert phases(empty)["q-42-3"]["eligible_at"] is not None


@pytest.mark.scale
def test_no_more_phases_are_adopted_than_slots_and_only_running_ones(empty: str) -> None:
    build(empty, "chain")
    run(
        empty,
        "insert into phase_queue (queue_id, parent_issue, phase_number, status, adw_id,"
        " started_timestamp, phase_data, depends_on_phase)"
        " select format('q%s', n), n, 1, 'running', format('adw-%s', n),"
        " timestamp '2025-01-01' + n * interval '1 h', '{\"a\": 1}', null"
        " from generate_series(1, 5) as n",
        "insert into phase_queue (queue_id, parent_issue, phase_number, status, adw_id, phase_data,"
        " depends_on_phase, started_timestamp) values"
        " ('no-id', 6, 1, 'running', null, '{\"a\": 1}', null, '2026-01-01'),"
        " ('same-id', 7, 1, 'running', 'adw-5', '{\"a\": 1}', null, '2024-01-01'),"
        " ('too-early', 8, 2, 'running', 'adw-8', '{\"a\": 1}', 1, '2026-01-01')",
    )
    migrate(empty, adopt=True)
    found = {name: row["status"] for name, row in phases(empty).items()}
    running = {name for name, status in found.items() if status == "running"}
    assert len(running) == 3
    assert not running & {"no-id", "too-early", "q1"}
    assert set(found.values()) == {"running", "failed"}


# --- Dialects, and values that are none


def test_jsonb_and_pull_requests_of_the_other_schema_are_taken_over(empty: str) -> None:
    build(empty, *DIALECTS["schema"])
    migrate(empty)
    found = phases(empty)
    assert found["s1"]["phase_data"] == {"title": "Once", "prompt_content": "Do", "nr": 1}
    assert found["s1"]["pr_number"] == 77
    assert found["s2"]["phase_data"] == {"title": "Twice encoded", "prompt_content": "Do"}


@pytest.mark.scale
def test_the_shipped_second_version_is_taken_over(empty: str) -> None:
    build(empty, *DIALECTS["shipped v2"])
    report = migrate(empty)
    actual = phases(empty)
    assert {name: row["feature_id"] for name, row in actual.items()} == {
        "v1": 7,
        "v2": 7,
        "v3": 7,
        "v4": 7,
        "w1": 301,  # no such feature: one is made of that number
        "x1": 302,  # without a number at all
    }
    assert actual["v3"]["depends_on_phases"] == [1, 2]
    assert actual["v4"]["status"] == "failed"
    assert actual["v4"]["error_message"] == "its dependencies could not be read"
    assert actual["v2"]["error_message"] == "lost in migration, in its step build"
    [lost] = [d for d in report.decisions if d.kind == "lost"]
    assert lost.name == "v2"


@pytest.mark.scale
def test_a_database_to_which_the_spec_s_own_script_was_applied_is_taken_over(empty: str) -> None:
    build(empty, *DIALECTS["half migrated"])
    migrate(empty)
    actual = phases(empty)
    assert actual["q-42-3"]["depends_on_phases"] == [2]
    assert actual["q-42-3"]["feature_id"] == 3, "the number is still that of an issue"
    assert actual["q-0-a2"]["feature_id"] == actual["q-0-a1"]["feature_id"] != 0


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("{broken", {"title": "Phase 1", "v1_phase_data": "{broken"}),
        ("[1, 2]", {"title": "Phase 1", "v1_phase_data": "[1, 2]"}),
        ('{"title": "\\u0000"}', {"title": "Phase 1", "v1_phase_data": '{"title": "\\u0000"}'}),
    ],
)
@pytest.mark.scale
def test_phase_data_that_is_no_object_is_kept_as_text_and_does_not_run(
    empty: str, text: str, data: dict[str, Any]
) -> None:
    build(empty, "chain")
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(
            "insert into phase_queue (queue_id, parent_issue, phase_number, phase_data, status)"
            " values ('waits', 1, 1, %(text)s, 'queued'), ('done', 2, 1, %(text)s, 'completed')",
            {"text": text},
        )
    migrate(empty)
    actual = phases(empty)
    assert (actual["waits"]["status"], actual["done"]["status"]) == ("failed", "completed")
    assert actual["waits"]["phase_data"] == actual["done"]["phase_data"] == data
    assert "kept as text" in migrated_words(empty, "phase_data", "waits")


@pytest.mark.scale
def test_members_of_a_wrong_type_are_kept_otherwise(empty: str) -> None:
    build(empty, "chain")
    run(
        empty,
        "insert into phase_queue (queue_id, parent_issue, phase_number, phase_data) values"
        """ ('q', 1, 1, '{"title": 5, "prompt_content": {"a": 1}, "max_attempts": "x", "b": 2}')""",
    )
    migrate(empty)
    assert phases(empty)["q"]["phase_data"] == {
        "title": "5",
        "prompt_content": '{"a": 1}',
        "v1_max_attempts": "x",
        "b": 2,
    }


@pytest.mark.scale
def test_a_row_with_an_invalid_status_does_not_run(empty: str) -> None:
    build(empty, "shipped_v2")
    run(
        empty,
        "insert into phase_queue (queue_id, phase_number, status) values ('a', 1, 'building'),"
        " ('b', 1, ' Queued ')",
    )
    migrate(empty)
    found = phases(empty)
    assert found["a"]["error_message"] == "version 1 said building, which is not a status"
    assert (found["a"]["status"], found["b"]["status"]) == ("failed", "queued")


@pytest.mark.scale
def test_tables_without_any_key_are_taken_over(empty: str) -> None:
    """As somebody's import made them: all text, with what such columns hold in the end."""
    run(
        empty,
        "create table phase_queue (queue_id text, parent_issue text, phase_number text,"
        " status text, priority text, queue_position text, created_at text,"
        " depends_on_phases text)",
        "insert into phase_queue values"
        " ('a', '7', '1', 'queued', 'high', '1.0', 'yesterday?', '[]'),"
        " ('a', '7', '2', 'queued', '10', '99999999999', '2025-01-01T10:00:00.5+02:00',"
        ' \'"[\\"1\\"]"\'),'
        " (null, 'none', 'x', 'queued', null, null, null, null),"
        " (null, null, '1', 'queued', null, null, '', '{\"a\": 1}')",
        "create table planned_features (id text, title text, tags text, estimated_hours text)",
        "insert into planned_features values ('1', ' ', 'one', 'two'), ('1', 'again', null, null),"
        " ('x', 'no number', null, null)",
    )
    migrate(empty)
    found = list(phases(empty).values())
    assert [row["phase_number"] for row in found] == [1, 2, 1]
    assert found[0]["queue_id"] != found[1]["queue_id"]
    assert (found[0]["priority"], found[1]["priority"]) == (50, 10)
    assert found[1]["depends_on_phases"] == [1]
    assert found[1]["created_at"].astimezone().timestamp() == 1735718400.5
    assert found[2]["status"] == "failed"
    assert features(empty)[1]["title"] == "Feature 1 of version 1"
    assert features(empty)[1]["tags"] == ["one"]
    kinds = [row["kind"] for row in rows(empty, "select kind from pgcoord_v1.decision")]
    assert kinds.count("value") == 7
    assert kinds.count("feature") == 2
    assert kinds.count("phase number") == 1


# --- From SQLite


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "version1.db"
    with closing(sqlite3.connect(path)) as database:
        for name in ("sqlite", "sqlite_work"):
            database.executescript((FIXTURES / f"{name}.sql").read_text())
    return path


def test_sqlite_is_read_and_left_unchanged(empty: str, file: Path) -> None:
    was = file.read_bytes()
    report = migrate(empty, source=file)
    assert report.lines[0] == "times without a zone are read in UTC"
    actual = phases(empty)
    assert {name: row["status"] for name, row in actual.items()} == {
        "l1": "completed",
        "l2": "queued",
        "l3": "failed",
        "m1": "queued",
    }
    assert actual["l1"]["pr_number"] == 5
    assert actual["l1"]["phase_data"]["prompt_content"] == "héllo\ufffd"
    assert actual["l1"]["created_at"].timestamp() == 1762164000
    assert actual["l2"]["priority"] == 50
    assert migrated_words(empty, "value", "l2") == "priority soon is not a number: 50"
    assert actual["l3"]["error_message"] == "its phase_data is no JSON object"
    assert file.read_bytes() == was
    assert undo(empty) == []
    assert rows(
        empty, "select to_regnamespace('pgcoord_v1') as s, to_regclass('phase_queue') as t"
    ) == [{"s": None, "t": None}]


def test_sqlite_can_be_read_into_a_database_that_is_ours_and_empty(dsn: str, file: Path) -> None:
    migrate(dsn, source=file)
    assert len(phases(dsn)) == 4
    assert undo(dsn) == []
    assert (phases(dsn), upgrade(dsn)) == ({}, [])


def test_a_file_that_is_none_of_version_1_is_refused(empty: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("nothing " * 1000)
    with closing(sqlite3.connect(tmp_path / "other.db")) as database:
        database.execute("create table phase_queue (id integer)")
    sqlite3.connect(tmp_path / "void.db").close()
    for name, error, words in [
        ("missing", InvalidInput, "missing cannot be read: No such file"),
        ("text", InvalidInput, "file is not a database"),
        ("other.db", InvalidInput, "phase_queue of the file is not of version 1"),
        ("void.db", NotFound, "nothing of version 1 in"),
    ]:
        with pytest.raises(error, match=words):
            migrate(empty, source=tmp_path / name)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who has a file open")
def test_a_file_that_the_server_of_version_1_has_open_is_refused(empty: str, file: Path) -> None:
    script = (
        f"import sqlite3; c = sqlite3.connect({str(file)!r});"
        " c.execute('select * from phase_queue'); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        server.stdout.readline()
        with pytest.raises(Refused, match=f"is in use:\nprocess {server.pid}: "):
            migrate(empty, source=file)
        server.communicate(b"\n")
    migrate(empty, source=file)


def test_a_database_with_tables_of_its_own_takes_no_file(empty: str, file: Path) -> None:
    build(empty, "chain")
    with pytest.raises(Refused, match=r"has a table public.phase_queue of its own"):
        migrate(empty, source=file)


# --- All or nothing, and back


@pytest.mark.parametrize(
    "dialect",
    [
        "chain",
        *(pytest.param(each, marks=pytest.mark.scale) for each in DIALECTS if each != "chain"),
    ],
)
def test_an_undone_migration_restores_the_database_byte_for_byte(empty: str, dialect: str) -> None:
    build(empty, *DIALECTS[dialect])
    was = contents(empty)
    assert len(was) > 100
    migrate(empty)
    assert contents(empty) != was
    assert undo(empty) == []
    assert contents(empty) == was
    assert undo(empty) is None
    assert contents(empty) == was


@pytest.mark.scale
def test_roles_given_meanwhile_go_as_well(empty: str) -> None:
    build(empty, *DIALECTS["chain"])
    was = contents(empty)
    migrate(empty)
    upgrade(empty, roles=True)
    undo(empty)
    assert contents(empty) == was


@pytest.mark.scale
def test_a_second_migration_changes_nothing(empty: str) -> None:
    build(empty, *DIALECTS["chain"])
    migrate(empty)
    was = contents(empty)
    with psycopg.connect(empty, autocommit=True) as conn:
        assert v1.migrate(conn, actor="ann") is None
    assert contents(empty) == was


@pytest.mark.scale
def test_a_migration_can_be_done_undone_and_done_again(empty: str) -> None:
    build(empty, *DIALECTS["chain"])
    first = migrate(empty)
    undo(empty)
    assert migrate(empty) == first


@pytest.mark.scale
def test_a_dry_run_changes_nothing_and_prints_the_same(empty: str) -> None:
    build(empty, *DIALECTS["chain"])
    was = contents(empty)
    dry = migrate(empty, dry_run=True)
    assert contents(empty) == was
    assert migrate(empty) == dry
    now = contents(empty)
    assert undo(empty, dry_run=True) == []
    assert contents(empty) == now


def statements(script: str) -> list[str]:
    """The statements of a file, as the server tells them apart."""
    tokens = re.findall(
        r"--[^\n]*\n|'(?:[^']|'')*'|\$\$.*?\$\$|begin atomic\b.*?\nend(?=;)"
        r"|(?:(?!begin atomic\b)[^;'$-])+|.",
        script,
        re.DOTALL,
    )
    found, now = [], ""
    for token in tokens:
        if token == ";":
            found.append(now)
            now = ""
        else:
            now += token
    assert not re.sub(r"--[^\n]*\n", "", now).strip()
    return found


class Dying(psycopg.Connection[Any]):
    """A connection that runs one statement after another, and is killed at one of them.

    `writers` are the transactions that have written so far.
    """

    left = 10_000_000
    notes = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.writers: set[str] = set()

    def execute(self, query: Any, *args: Any, **options: Any) -> Any:
        done = None
        for each in statements(query.decode()) if isinstance(query, bytes) else [query]:
            if self.left == 0:
                super().execute("select pg_terminate_backend(pg_backend_pid())")
            self.left -= 1
            done = super().execute(each, *args, **options)
            if self.notes:
                found = super().execute("select pg_current_xact_id_if_assigned()::text")
                self.writers |= {name for (name,) in found if name}
        return done


def die_at(dsn: str, number: int) -> None:
    conn = Dying.connect(dsn, autocommit=True)
    conn.left = number
    with closing(conn), pytest.raises(DatabaseUnusable, match="nothing was changed: terminating"):
        v1.migrate(conn, actor="ann")
    assert conn.broken


@pytest.mark.scale
@pytest.mark.timeout(1800)
def test_a_server_that_dies_at_any_statement_leaves_the_old_database(empty: str) -> None:
    """One transaction writes, whose statements are all alike then: every seventh is died at."""
    build(empty, *DIALECTS["chain"])
    was = contents(empty)
    with Dying.connect(empty, autocommit=True) as conn:
        v1.migrate(conn, actor="ann", dry_run=True)
        number = Dying.left - conn.left
    assert number > 500
    for each in (*range(0, number, 7), number - 1):
        die_at(empty, each)
        [left] = rows(empty, "select to_regnamespace('pgcoord_v1') is null as gone")
        assert left == {"gone": True}, each
    assert contents(empty) == was
    with Dying.connect(empty, autocommit=True) as conn:
        conn.notes = True
        assert v1.migrate(conn, actor="ann") is not None
        assert len(conn.writers) == 1


@pytest.mark.scale
def test_an_undo_that_dies_at_any_statement_leaves_the_migrated_database(empty: str) -> None:
    build(empty, *DIALECTS["chain"])
    migrate(empty)
    was = contents(empty)
    for number in range(1000):
        conn = Dying.connect(empty, autocommit=True)
        conn.left = number
        with closing(conn):
            try:
                v1.undo(conn, dry_run=True)
                break
            except DatabaseUnusable:
                assert conn.broken
    assert number > 10
    assert contents(empty) == was
    assert undo(empty) == []


# --- What hangs on the old tables


def test_objects_that_depend_on_the_old_tables_go_on_and_are_named(empty: str) -> None:
    build(empty, *DIALECTS["chain"])
    shown = rows(empty, "select * from open_features order by id")
    report = migrate(empty)
    about = {d.name: d.words for d in report.decisions if d.kind == "hangs on it"}
    assert about["open_features"].startswith("a view of yours on planned_features")
    assert about["work_log_feature_id_fkey"].startswith("a foreign key of work_log")
    assert about["trigger_planned_features_updated_at"].startswith("a trigger on pgcoord_v1.plan")
    assert rows(empty, "select * from open_features order by id") == shown
    run(empty, "insert into work_log (feature_id, summary) values (4, 'still')")


@pytest.mark.scale
def test_tables_in_another_schema_are_found_and_go_back_there(empty: str) -> None:
    run(empty, "create schema tac")
    build(make_conninfo(empty, options="-c search_path=tac"), *DIALECTS["chain"])
    was = contents(empty)
    migrate(empty)
    assert len(phases(empty)) == 18
    undo(empty)
    assert contents(empty) == was


@pytest.mark.scale
def test_version_1_in_two_schemas_is_refused(empty: str) -> None:
    build(empty, "chain")
    run(empty, "create schema tac")
    build(make_conninfo(empty, options="-c search_path=tac"), "schema")
    with pytest.raises(Refused, match="in several schemas: public, tac"):
        migrate(empty)


@pytest.mark.scale
def test_a_sequence_that_belongs_to_no_column_is_moved_with_its_table(empty: str) -> None:
    build(empty, *DIALECTS["chain"])
    run(empty, "alter sequence planned_features_id_seq owned by none")
    was = contents(empty)
    migrate(empty)
    assert rows(empty, "select pg_get_serial_sequence('planned_features', 'id') as s") == [
        {"s": "public.planned_features_id_seq"}
    ]
    undo(empty)
    assert contents(empty) == was


def test_an_object_in_the_way_is_named_and_nothing_changed(empty: str) -> None:
    build(empty, "chain")
    run(empty, "create table phase_queue_claim_idx (n integer)")
    was = contents(empty)
    with pytest.raises(Refused, match='nothing was changed: relation "phase_queue_claim_idx" alr'):
        migrate(empty)
    assert contents(empty) == was


# --- Who may, and when


@pytest.mark.scale
def test_a_connection_of_version_1_is_named(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v1, "DISCONNECT_TIMEOUT", 2.0)
    build(empty, "chain")
    with psycopg.connect(make_conninfo(empty, application_name="uvicorn")) as other:
        pid = other.info.backend_pid
        for refused in (migrate, undo_migrated):
            with pytest.raises(Refused, match=f"in use:\nprocess {pid} of user .*, uvicorn, ") as e:
                refused(empty, dry_run=True)
            assert "Stop the server of version 1" in str(e.value.hint)


def undo_migrated(dsn: str, dry_run: bool) -> None:
    run(
        dsn,
        "create schema if not exists pgcoord_v1",
        "create table if not exists pgcoord_v1.migration ()",
    )
    undo(dsn, dry_run=dry_run)


def test_a_phase_that_ran_prevents_an_undo(empty: str, tmp_path: Path) -> None:
    build(empty, *DIALECTS["chain"])
    migrate(empty, adopt=True)
    run(empty, "select pgcoord.complete_phase('q-42-2')")
    was = contents(empty)
    with pytest.raises(Refused, match=r"phases have run since: q-42-2$"):
        undo(empty)
    assert contents(empty) == was


@pytest.mark.scale
def test_an_adopted_phase_that_goes_on_permits_an_undo(empty: str) -> None:
    build(empty, *DIALECTS["chain"])
    was = contents(empty)
    migrate(empty, adopt=True)
    assert undo(empty) == []
    assert contents(empty) == was


@pytest.mark.scale
def test_rows_made_after_the_migration_are_named_when_undo_drops_them(empty: str) -> None:
    build(empty, *DIALECTS["chain"])
    was = contents(empty)
    migrate(empty)
    run(
        empty,
        "insert into planned_features (title) values ('new')",
        "select pgcoord.skip_phase('q-0-c1', 'not wanted')",
    )
    lost = undo(empty, dry_run=True)
    assert lost is not None
    assert lost[0].startswith("feature inserted 13, by ")
    assert "phase moved q-0-c1 queued → completed, by " in lost[1]
    assert lost[1].endswith(": not wanted")
    assert undo(empty) == lost
    assert contents(empty) == was


@pytest.mark.parametrize(
    ("made", "named"),
    [
        ("create view mine as select * from phase_queue", "view mine, on phase_queue"),
        ("create view mine as select * from pgcoord.board", "view mine, on pgcoord.board"),
        (
            "create table mine (id integer references planned_features)",
            "foreign key mine_id_fkey of",
        ),
        ("create table pgcoord_v1.mine ()", "table pgcoord_v1.mine, in the schema pgcoord_v1"),
    ],
)
@pytest.mark.scale
def test_objects_that_people_made_on_our_tables_prevent_an_undo(
    empty: str, made: str, named: str
) -> None:
    build(empty, *DIALECTS["chain"])
    migrate(empty)
    run(empty, made)
    with pytest.raises(Refused, match=named):
        undo(empty)


@pytest.fixture
def nobody(server: str, empty: str) -> Iterator[str]:
    """The database as a user without any rights in it sees it."""
    name = f"pgcoord_test_nobody_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(empty, autocommit=True) as admin:
        admin.execute(sql.SQL("create role {} login password 'x'").format(sql.Identifier(name)))
    yield make_conninfo(empty, user=name, password="x")
    with psycopg.connect(empty, autocommit=True) as admin:
        admin.execute(sql.SQL("drop owned by {0} cascade").format(sql.Identifier(name)))
        admin.execute(sql.SQL("drop role {0}").format(sql.Identifier(name)))


def test_a_user_without_ownership_of_the_tables_is_refused_with_the_owner(
    empty: str, nobody: str
) -> None:
    build(empty, "chain")
    with pytest.raises(DatabaseUnusable, match=r"public.adw_locks belongs to \w+, and you are pg"):
        migrate(nobody)


def test_a_user_without_create_on_the_database_is_refused(empty: str, nobody: str) -> None:
    build(empty, "schema")
    user = psycopg.conninfo.conninfo_to_dict(nobody)["user"]
    run(
        empty,
        f"alter table phase_queue owner to {user}",
        f"alter table queue_config owner to {user}",
    )
    with pytest.raises(DatabaseUnusable, match="nothing was changed: permission denied") as caught:
        migrate(nobody)
    assert "create on database" in str(caught.value.hint)


def test_an_owner_without_superuser_can_migrate_and_undo(empty: str, nobody: str) -> None:
    user = psycopg.conninfo.conninfo_to_dict(nobody)["user"]
    name = psycopg.conninfo.conninfo_to_dict(nobody)["dbname"]
    run(
        empty,
        f'grant create on database "{name}" to {user}',
        f"grant create on schema public to {user}",
    )
    build(nobody, *DIALECTS["chain"])
    was = contents(empty)
    migrate(nobody)
    assert undo(nobody) == []
    assert contents(empty) == was


def test_a_database_without_version_1_is_refused(empty: str) -> None:
    with pytest.raises(NotFound, match="nothing of version 1 in database"):
        migrate(empty)
    with pytest.raises(NotFound, match="nothing of version 1 in database"):
        undo(empty)


def test_tables_of_another_make_are_left_alone(empty: str) -> None:
    run(empty, "create table phase_queue (id integer)")
    with pytest.raises(Refused, match=r"public.phase_queue: this is neither pgcoord's nor of v"):
        migrate(empty)


def test_a_database_that_is_ours_is_left_alone(dsn: str) -> None:
    with pytest.raises(NotFound, match="nothing of version 1"):
        migrate(dsn)
    with pytest.raises(Refused, match="was not migrated from version 1"):
        undo(dsn)


def test_a_database_of_ours_with_work_accepts_no_migration(dsn: str, file: Path) -> None:
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as conn:
        add_feature(conn, {1: []})
    with pytest.raises(Refused, match="is pgcoord's already, with 1 feature"):
        migrate(dsn, source=file)


@pytest.mark.parametrize("name", ["pgcoord", "pgcoord_private", "pgcoord_v1"])
def test_a_schema_of_somebody_else_s_is_left_alone(empty: str, name: str) -> None:
    build(empty, "chain")
    run(empty, f"create schema {name}")
    with pytest.raises(Refused, match=f"a schema {name} that is not from a migration"):
        migrate(empty)


# --- The command


@pytest.fixture
def desk(tmp_path: Path, empty: str) -> Iterator[Desk]:
    with closing(Desk(tmp_path, {"DATABASE_URL": empty, "USER": "ann"})) as desk:
        yield desk


def test_upgrade_names_the_command(desk: Desk, empty: str) -> None:
    build(empty, "chain")
    result = desk.call("upgrade")
    assert result.returncode == 6
    assert "'pgcoord migrate-v1' takes it over" in result.stderr


def test_the_output_of_the_command_fits_80_columns(desk: Desk, empty: str) -> None:
    build(empty, *DIALECTS["chain"])
    was = contents(empty)
    dry = desk.say("migrate-v1", "--dry-run")
    words = " ".join(dry.split())
    assert "would be migrated from version 1" in words
    assert re.search(r"times without a zone are read in \S+ \(--time-zone names another\)", words)
    assert "\n  phase_queue: 20 rows, 17 carried over\n    queued → queued: 4\n" in dry
    assert "lost, q-42-2: lost in migration: failed, until somebody" in words
    assert dry.endswith("Nothing was changed. Without --dry-run it is done.")
    assert contents(empty) == was
    done = desk.say("migrate-v1")
    assert "is migrated from version 1" in " ".join(done.split())
    assert "\n  lost: 1\n" in done
    assert max(len(line) for line in f"{dry}\n{done}".splitlines()) <= 80
    assert desk.say("migrate-v1").endswith("was migrated already: nothing to do")
    undone = " ".join(desk.say("migrate-v1", "--undo").split())
    assert undone.endswith("is as it was before the migration")
    assert desk.say("migrate-v1", "--undo").endswith("nothing to undo")
    assert contents(empty) == was


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--undo", "--from", "x.db"], 2, "--undo can be combined with --dry-run and --dsn only"),
        (["--undo"], 4, "there is nothing of version 1 in database"),
        (["--from", "x.db"], 5, "x.db cannot be read: No such file or directory"),
        (["--time-zone", "Nowhere", "--from", "here.db"], 5, "there is no time zone 'Nowhere'"),
    ],
)
def test_each_mistake_has_its_exit_status(
    desk: Desk, arguments: list[str], status: int, words: str
) -> None:
    result = desk.call("migrate-v1", *arguments)
    assert (result.returncode, result.stdout) == (status, "")
    assert words in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr


def test_work_queued_in_version_1_is_run(desk: Desk, empty: str) -> None:
    build(empty, *DIALECTS["chain"])
    desk.say("migrate-v1")
    desk.write(
        "pgcoord.toml",
        '[server]\nport = 0\n[workflow.adw_sdlc_complete_iso]\ncommand = ["true"]\ndefault = true\n'
        '[workflow.adw_patch_iso]\ncommand = ["true"]\n',
    )
    desk.say("retry", "q-42-2")
    coordinator = desk.start("serve")
    ran = "('q-42-2', 'q-42-3', 'q-0-a2', 'q-0-a3', 'q-0-c1', 'r-50-2', 'q-60-1')"
    until(
        empty,
        f"count(*) = 7 from phase_queue where status = 'completed' and queue_id in {ran}",
    )
    coordinator.send(15)
    assert coordinator.wait() == 0
    waits = {name: row["status"] for name, row in phases(empty, "status <> 'completed'").items()}
    assert waits == {
        "q-0-b1": "failed",
        "q-0-b2": "blocked",
        "q-60-2": "queued",
        "q-60-3": "failed",
        "q-60-4": "blocked",
        "q-60-5": "failed",
        "q-99-1": "cancelled",
    }
    assert desk.call("migrate-v1", "--undo").returncode == 3


# --- The document


def test_every_statement_of_the_document_gives_the_output_shown(
    chain: Migrated, tmp_path: Path
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "migrating-from-v1.md").read_text()
    actual = steps(page)
    assert len(actual) == page.count("\n```sql\n") == page.count("\n```text\n") > 5
    with Psql(surroundings(chain.dsn, tmp_path)) as psql:
        for step in actual:
            assert plain(psql.run(step.statements)) == plain(step.shows), step.statements


def test_every_kind_of_decision_is_explained() -> None:
    """Those that do not explain themselves by the status that they are called after."""
    page = (Path(__file__).parents[2] / "docs" / "migrating-from-v1.md").read_text()
    script = (assets.SQL / "v1" / "decide.sql").read_text() + (
        assets.SQL / "v1" / "read.sql"
    ).read_text()
    kinds = set(re.findall(r"^select '([a-z ]+)',", script, re.MULTILINE))
    kinds |= set(re.findall(r"^        \('([a-z_ ]+)', (?:case|f\.id|t\.id)", script, re.MULTILINE))
    kinds |= {"shadow row", "phase number", "adopted", "lost", "status"}
    told = re.findall(r"^\| (\*.+?\*) \|", page, re.MULTILINE)
    explained = {kind for row in told for kind in re.findall(r"\*(.+?)\*", row)}
    assert kinds <= explained, kinds - explained


# --- Much of it

MILLION = """
insert into phase_queue (
    queue_id, parent_issue, phase_number, status, depends_on_phase, phase_data, queue_position,
    adw_id, created_at, updated_at
)
select md5(f || '-' || n), case when f % 10 = 0 then 0 else f end, n,
    case when f % 20 > 0 then 'completed' when n = 1 then 'queued' when n = 2 then 'failed'
        else 'blocked' end,
    nullif(n - 1, 0),
    format('{"title": "Phase %s", "content": "%s", "externalDocs": []}', n, repeat('do ', 60)),
    f * 10 + n, 'adw-' || md5(n || 'x' || f),
    timestamp '2025-01-01' + f * interval '1 min', timestamp '2025-02-01' + f * interval '1 min'
from generate_series(1, 200000) as f, generate_series(1, 5) as n
order by f, n
"""


@pytest.mark.scale
@pytest.mark.timeout(1800)
def test_a_million_rows_are_carried_over_and_the_duration_is_printed(
    empty: str, capsys: pytest.CaptureFixture[str]
) -> None:
    build(empty, "chain")
    run(empty, MILLION, "analyze")
    began = time.monotonic()
    report = migrate(empty)
    took = time.monotonic() - began
    with capsys.disabled():
        sys.stdout.write(f"\nmigrate-v1 of 1,000,000 rows: {took:.0f} s\n")
    assert "phase_queue: 1000000 rows, 1000000 carried over" in report.lines


# --- What is shipped


@pytest.mark.parametrize("path", sorted((assets.SQL / "v1").glob("*.sql")), ids=lambda p: p.stem)
def test_every_script_begins_with_its_purpose(path: Path) -> None:
    assert path.read_text().startswith("-- ")
    assert path.stem in Path(v1.__file__).read_text()


def test_functions_for_reading_and_tables_in_between_are_gone(chain: Migrated) -> None:
    left = rows(
        chain.dsn,
        "select relname as n from pg_class where relnamespace = 'pgcoord_v1'::regnamespace"
        " and relkind in ('r', 'v') union all select proname from pg_proc"
        " where pronamespace = 'pgcoord_v1'::regnamespace order by 1",
    )
    assert [row["n"] for row in left] == [
        "adw_locks", "decision", "migration", "old_relation", "phase_queue", "planned_features",
        "queue_config", "webhook_events",
    ]  # fmt: skip


def test_remaining_objects_have_comments(chain: Migrated) -> None:
    bare = rows(
        chain.dsn,
        "select c.relname, a.attname"
        " from pg_class as c join pg_attribute as a on a.attrelid = c.oid"
        " where c.relnamespace = 'pgcoord_v1'::regnamespace and a.attnum > 0 and c.relname in"
        " ('decision', 'migration', 'old_relation') and col_description(c.oid, a.attnum) is null",
    )
    assert bare == []


def test_the_schema_is_this_release_s(chain: Migrated) -> None:
    with psycopg.connect(chain.dsn, autocommit=True) as conn:
        schema.check_schema(conn)
        actual = conn.execute("select kind from pgcoord.checkup() where level = 'fail'").fetchall()
    assert actual == [("coordinator",)]  # none leads
