"""A database of the first release, with work in every state, is upgraded in place and still works.

`release_1.sql.gz` is the output of pg_dump for such a database: a clone without history has no
other way to it. `schema_110.sql.gz` is a new database of a recent release: its functions have the
arguments and results that a later release may change.
"""

import gzip
import hashlib
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from support.database import Connection, claim, start, take_lead, tool, upgrade

from pgcoord import assets
from pgcoord.errors import WrongSchema

RELEASE_1 = Path(__file__).parent / "release_1.sql.gz"
RECENT = Path(__file__).parent / "schema_110.sql.gz"

# Never edit a migration, nor its line here: databases that have run it would differ from new ones.
# Add a migration with the next number, and a line for it.
MIGRATIONS = """
c92130b2bb4bdd710df32b815dd1bc2a54b8f1ff30d4ed85eb5057d96c235f06  0001_tables.sql
3f31df5635c50a79f5421ca2f582d9eecd008d2d0841bd8b9360939bb9c93e96  0002_issues.sql
1859c1412cb132b06bc175d2da5521bbfb126de49aacad1815c876393585ff54  0003_private.sql
6ef8592673b8b6930ab5e577da5bc5ce48c2a3aba5fe1db78f05230e364925f2  0004_unrecorded.sql
68832e3248986b7f6c0257cee578bc74e0a5779cc318004c35280ff0f3b7a5ad  0005_lead.sql
d2911787fe473dfaf13f88b8b9601f3569e4eafb1127532ca30bf451c322affe  0006_gate.sql
6548380687c0550993ef13304804db269d29570af03c65bf3b36110de433fbc6  0007_forecast.sql
794390ccd0df96e6837a28f532b974e0f717fa584a3627a8757e5cc99a07d7ee  0008_plain_types.sql
adebac256ffa83a5831a18bcafa28ada1529edf00df32304fc3fb79d8c3ea126  0009_pools.sql
e89abfd35f36ddf7c60ee0cc834722b99c5fc3da3e5916d452d43376bb595470  0010_resigned.sql
e1ec5a8da1bea8cdcaa7450afaa9e53442a824797dff3ce2a553a3bc76a22961  0011_first_tables.sql
e8f614f4797c5e3e74c5932beedd9f6d7be67ca136756161d8366916076eef58  0012_jobs.sql
9dba3a6db49d7eeaa3b446b157ef8921552dda2ed38b69545d2a370b4bf987ef  0013_result.sql
62db6022e0a5694bcfdc1e04fdd7bb19c2d598190fb3ddcff77e19d927e3ec5a  0014_unclaimable.sql
6be54019af32fd1ebbb617a296779b78b3334dc60245df26e10b627b0da53bc6  0015_unqueued.sql
96aa5fd0b9e896ff6edcca7569723d78518422ec6baf10d7bf8e11af7aeed39a  0016_bigint.sql
681632a13e3a9a3181f7e3575e29a5f07a37d8d3bae3da9ab71b6ef7268753b0  0017_quiet.sql
88f80683831db1a16fe76672c3eb9dccfede0f8e98defc868cc21bbeb54218dd  0018_budget.sql
49a15fdd9fa8fce4dc6f3d5687fa55a9de1eec8a99d3c1a1d09e96fbe9175d75  0019_free_slots.sql
4ad8146fc50e1e1704d459883c6b20097030873fa0f7beb3b17c2201f158af4d  0020_notice.sql
90b024ba07c370d73bed5e2531b2ff42e1d11d2b83f2338db889c1ab2e48d392  0021_ended_login.sql
ac979c1af5df3b42e1a31a539c5a61e13f68e4ac26eb2ad3a61b8d9a3b716e54  0022_line.sql
a53967f726dcbe9b934bd2078f9719237f4219e1149bf684f485a9880c3020c8  0023_queue_timeout.sql
593afc7a6f81ed4809ace950329076c1eb618c9edebde4edd1d5fd062fe68a7a  0024_several.sql
be1b0db26caccb4504537f2feca858b8b8e51ec85093faba435a1a5576cc851c  0025_run_when.sql
79ccd9c1e24f706df32931f5c084279749f94d363d620016dbf8c779457c4aeb  0026_lock.sql
2cc9d8a37daface49e8b00194f3434892aa9f46cd258dcf2c3699cd12aa06497  0027_again.sql
0e1840483a4cf797634d0daddf62f3b705b1c30e04a765b3d42927d97fb5c3d7  0028_leaner.sql
c40557a946aa9e6a3ffd36584f1434aab7d2898d9679f7faeee656231767eddc  0029_checks.sql
4dc89f8a3f3ac7f9082c2138c77761ee995d6390b5d6bfcb8a999a1188cea196  0030_unpark.sql
a82486317ab243ea1b5821be8987e2652bae1cf099eb6d762c9bac154588bb6b  0031_schedule.sql
29c591356ec27d6d2013e04bc779997e9b6dd7735fb6c16802ff2417ecd1fccb  0032_submitted_to.sql
fae50d4059366c9086673f3df21057248c9696e6d73484c1635e5ceb7549a3c7  0033_passed_over.sql
889f055168eb2a15a91c12b464a7395d6fb3f3184c896e4d61dadf8a6a450598  0034_later.sql
6353d064caf4f017105e5cc964dd303a1dde406701f88799501068922d84adc2  0035_declared_schedule.sql
8c0c1365d9f2318854eb807291226da93db6b6f4244f98466d47b18c21cff35c  0036_refused_schedule.sql
05234447884d4f8395e21635711a47d353a65e7906b320cfe0c5eaeda83a7c9d  0037_place.sql
72734875423c92935bf356e5a6ecf3682b416c12f589c0f4e2f7ddaa79121f66  0038_published.sql
fb809fb996bfbd85158b7c51dc2bbef00a02a53efc186b0bea38f256bd979175  0039_deleted_schedule.sql
82421ee2a28c3f1fc1e6949327ac2cd655768bdef21d684d6d38137aee812009  0040_plain_outcome.sql
bd2b7141ecdef13217641ac953d1dd7f14b416b753ced4bcb04e85061d6f7c3f  0041_phase_holds.sql
989dab6d220ed9f1f5a4f77c5a0651b329b6256770202566e1fbcc67eaccc5d3  0042_open_attempts.sql
4ce6ae9302f2afc4d204a560f691182abfe644398935ecfaea2c763744e8fd05  0043_attempt_agrees.sql
"""


@pytest.fixture
def old(empty: str) -> str:
    """The DSN of a database of the first release."""
    with psycopg.connect(empty, autocommit=True) as conn:
        conn.execute(gzip.decompress(RELEASE_1.read_bytes()))
    return empty


def definitions(dsn: str) -> list[str]:
    """All that is defined in a database, as pg_dump writes it: comments and rights too."""
    lines = tool("pg_dump", "--schema-only", "-d", dsn).splitlines()
    # Before 15, a dump of 18 takes back rights in the schema public, which is not ours.
    left_out = ("\\restrict", "\\unrestrict")
    return sorted(
        line for line in lines if not line.startswith(left_out) and "ON SCHEMA public" not in line
    )


def rows(conn: Connection) -> list[list[dict[str, Any]]]:
    tables = (
        "public.planned_features",
        "public.phase_queue",
        "pgcoord.attempt",
        "pgcoord.control",
        "pgcoord.dependency",
        "pgcoord.event",
        "pgcoord.issue",
        "pgcoord.slot",
        "pgcoord.webhook_delivery",
        "pgcoord.workflow",
    )
    return [
        conn.execute(f"select * from {n} as t order by t::text".encode()).fetchall() for n in tables
    ]


def test_a_retry_time_that_an_earlier_0001_let_in_is_one_that_others_can_read(old: str) -> None:
    name = "phase_queue_retry_is_queued"
    with psycopg.connect(old, autocommit=True) as conn:
        conn.execute(
            f"alter table phase_queue drop constraint {name}, add constraint {name}"
            " check (retry_at is null or status = 'queued')".encode()
        )
        conn.execute("alter table phase_queue disable trigger user")
        conn.execute("update phase_queue set retry_at = 'infinity' where status = 'queued'")
        conn.execute("alter table phase_queue enable trigger user")
    upgrade(old)
    with psycopg.connect(old) as conn:
        latest = conn.execute("select max(retry_at)::date::text from phase_queue").fetchone()
    assert latest == ("9999-12-31",)


def test_no_migration_was_edited() -> None:
    files = sorted((assets.SQL / "migrations").glob("*.sql"))
    actual = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in files]
    assert actual == MIGRATIONS.split("\n")[1:-1]


def test_an_upgraded_database_is_defined_like_a_new_one(old: str, dsn: str) -> None:
    upgrade(dsn, roles=True)
    assert upgrade(old)[-2:] == ["functions", "roles"]
    assert definitions(old) == definitions(dsn)
    assert upgrade(old) == []


def test_an_upgrade_leaves_no_function_of_a_recent_release(empty: str, dsn: str) -> None:
    """A function whose arguments have changed would stay beside the new one, unless dropped."""
    with psycopg.connect(empty, autocommit=True) as conn:
        if conn.info.server_version < 170000:
            pytest.skip("the dump of the recent release is of a newer server than this one")
        conn.execute(gzip.decompress(RECENT.read_bytes()))
    upgrade(dsn, roles=True)
    upgrade(empty)
    assert definitions(empty) == definitions(dsn)


def test_an_upgrade_changes_no_row(old: str) -> None:
    with psycopg.connect(old, autocommit=True, row_factory=dict_row) as conn:
        before = rows(conn)
        upgrade(old)
        # Of the columns that were there: later ones have their defaults.
        after = [
            [{name: row[name] for name in was} for row, was in zip(found, old_rows, strict=True)]
            for found, old_rows in zip(rows(conn), before, strict=True)
        ]
        assert after == before


def test_work_of_the_first_release_goes_on(old: str) -> None:
    upgrade(old)
    with psycopg.connect(old, autocommit=True, row_factory=dict_row) as conn:

        def states(feature: int) -> list[str]:
            found = conn.execute(
                "select status::text from phase_queue where feature_id = %s order by phase_number",
                [feature],
            )
            return [row["status"] for row in found]

        def finish(*names: str) -> None:
            for name in names:
                conn.execute("select pgcoord.complete_phase(%s)", [name])

        checks = conn.execute("select kind, level from pgcoord.checkup()").fetchall()
        assert {"kind": "definitions", "level": "ok"} in checks
        epoch = take_lead(conn)
        assert states(1) == ["completed", "running", "ready", "queued"]
        finish("queue-1-2", "queue-1-3", "queue-9-1", "queue-9-2", "queue-8-1")
        # The process of the cancelled one is gone; two of the slots were to go.
        conn.execute(
            "select pgcoord.give_up_attempt(id, 'lost', 'gone') from pgcoord.attempt"
            " where queue_id = 'queue-4-1'"
        )
        assert states(4) == ["cancelled", "cancelled"]
        assert conn.execute("select from pgcoord.slot").rowcount == 4
        conn.execute("select pgcoord.retry_phase('queue-2-1'), pgcoord.retry_phase('queue-3-1')")
        assert states(3) == ["queued", "queued", "queued"]
        conn.execute("select pgcoord.resume(5)")
        conn.execute("select pgcoord.execute_feature(7)")
        conn.execute("insert into phase_queue (feature_id, phase_number) values (8, 9)")
        while claimed := claim(conn, epoch):
            for name in claimed:
                start(conn, epoch, name)
            finish(*claimed)
        assert {feature: set(states(feature)) for feature in range(1, 11) if feature != 4} == {
            feature: {"completed"} for feature in range(1, 11) if feature != 4
        }


def test_0040_finds_its_way_beside_the_functions_of_the_release_before(dsn: str) -> None:
    text = (assets.SQL / "migrations" / "0040_plain_outcome.sql").read_text()
    with psycopg.connect(dsn) as conn:  # release 1 has none of those that were in its way
        conn.execute("create domain pgcoord.attempt_outcome as text")
        for name in ("ending_guards", "insert_guards", "end_agrees"):  # of this release
            conn.execute(f"drop trigger attempt_{name} on pgcoord.attempt".encode())
        conn.execute(text.encode())
        conn.rollback()


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (
            "select queue_id from pgcoord.board",
            r"view (public\.)?mine depends on view pgcoord\.board",
        ),
        (
            "select status from public.phase_queue",
            r'view (public\.)?mine depends on column "status"',
        ),
    ],
)
def test_a_view_of_somebody_else_s_is_not_dropped(old: str, view: str, words: str) -> None:
    with psycopg.connect(old, autocommit=True) as conn:
        conn.execute(f"create view public.mine as {view}".encode())
        with pytest.raises(WrongSchema, match=words) as caught:
            upgrade(old)
        assert caught.value.hint == "Drop it, upgrade, then create it again."
        assert conn.execute("select from public.mine").rowcount > 0
        conn.execute("drop view public.mine")
    upgrade(old)
