"""Rights: what a login may do that has one of the roles, tried at every state."""

from collections.abc import Iterator
from pathlib import Path
from socket import gethostname
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row
from support.coordination import make_coordinator, running, watching
from support.database import (
    ROLES,
    Connection,
    add_feature,
    as_user,
    claim,
    refused,
    start,
    statuses,
    take_lead,
    upgrade,
)

from pgcoord.actions import BY_NAME
from pgcoord.database import actions, schema
from pgcoord.errors import DatabaseUnusable, WrongSchema

READER = ("reader", "client", "coordinator")
CLIENT = ("client", "coordinator")
COORDINATOR = ("coordinator",)
NOBODY: tuple[str, ...] = ()

# Every statement, and the roles that may execute it. Each is tried on the database of `house`,
# and rolled back.
STATEMENTS: list[tuple[str, tuple[str, ...]]] = [
    ("select * from planned_features", READER),
    ("select * from phase_queue", READER),
    ("select * from pgcoord.feature", READER),
    ("select * from pgcoord.board", READER),
    ("select * from pgcoord.queue", READER),
    ("select * from pgcoord.history", READER),
    ("select * from pgcoord.webhook_delivery", READER),
    ("select pgcoord.feature_object(1)", READER),
    ("select * from pgcoord_private.events_after(0, '{1}', '{2}', 10)", READER),
    ("select * from pgcoord_private.last_event(10), pgcoord_private.event_writers()", READER),
    ("select * from pgcoord_private.measures()", READER),
    ("select * from pgcoord_private.ended_attempts('{1}')", READER),
    ("select * from pgcoord.waiting", READER),
    ("select * from pgcoord_private.first_reason", READER),
    ("select pgcoord_private.phase_objects('{queue-1-1}')", READER),
    ("select * from pgcoord.slots", READER),
    ("select * from pgcoord.timeline", READER),
    ("select * from pgcoord.leader", READER),
    ("select * from pgcoord.event", READER),
    ("select * from pgcoord.dependency", READER),
    ("select id, queue_id, outcome, error, folder from pgcoord.attempt", READER),
    ("select * from pgcoord.why('queue-1-2')", READER),
    ("select * from pgcoord.why('queue-1-4')", READER),
    ("select * from pgcoord.checkup()", READER),
    ("select * from pgcoord.reasons", READER),
    ("select * from pgcoord.queue", READER),
    ("select * from pgcoord.history", READER),
    ("select * from pgcoord.usual", READER),
    ("select * from pgcoord.attention", READER),
    ("select * from pgcoord.line", READER),
    ("select * from pgcoord.backlog", READER),
    ("select * from pgcoord.elsewhere", READER),
    ("select * from pgcoord_private.list_features('all', null, 10)", READER),
    ("select * from pgcoord_private.feature_rows('{1, 2}')", READER),
    ("select * from pgcoord.forecast('{1}')", READER),
    ("select * from pgcoord.expected_finish('{1}')", READER),
    ("select pgcoord.feature_object(1)", READER),
    ("select * from pgcoord.checkup()", READER),
    ("listen pgcoord_event", ROLES),
    # secrets
    ("select secret from pgcoord.attempt", COORDINATOR),
    ("select * from pgcoord.attempt", COORDINATOR),
    ("select * from pgcoord_private.assignment", COORDINATOR),
    ("select pgcoord_private.new_secret()", COORDINATOR),
    ('select * from pgcoord_private.report_secrets(\'{"queue_id": "queue-1-1"}\')', COORDINATOR),
    (
        "select * from pgcoord_private.take_report("
        '\'{"queue_id": "queue-1-1", "status": "completed"}\', \'m\', \'a\')',
        COORDINATOR,
    ),
    ("delete from pgcoord.webhook_delivery", NOBODY),
    # bringing work in
    ("insert into planned_features (title) values ('a')", CLIENT),
    ("insert into planned_features (id, title, tags) values (99, 'a', '[]')", CLIENT),
    ("insert into planned_features (title, cancelled_at) values ('a', now())", CLIENT),
    ("insert into planned_features (title, created_by) values ('a', 'another')", NOBODY),
    ("insert into phase_queue (feature_id, phase_number) values (1, 9)", CLIENT),
    (
        "insert into phase_queue (feature_id, phase_number, depends_on_phases, phase_data)"
        " values (1, 9, '[2, 10]', '{}'), (1, 10, '[1]', '{}') returning *",
        CLIENT,
    ),
    (
        "insert into phase_queue (feature_id, phase_number, status) values (1, 9, 'running')",
        CLIENT,
    ),
    ("insert into phase_queue (feature_id, phase_number, status) values (1, 9, 'failed')", CLIENT),
    (
        "insert into phase_queue values ('mine', 1, 9, 200, 'completed', '[]', '{}', 'adw-1',"
        " null, null, 50, 1, now(), now(), now(), now())",
        CLIENT,
    ),
    ("insert into phase_queue (feature_id, phase_number, slot) values (1, 9, 3)", NOBODY),
    ("insert into phase_queue (feature_id, phase_number, attempt) values (1, 9, 3)", NOBODY),
    (
        "insert into phase_queue (feature_id, phase_number, depends_on_phases, eligible_at)"
        " values (1, 9, '[2]', now())",
        NOBODY,
    ),
    ("insert into phase_queue (feature_id, phase_number, unmet) values (1, 9, 1)", NOBODY),
    ("insert into phase_queue (feature_id, phase_number, unmet) values (1, 9, 0)", CLIENT),
    ('select pgcoord.submit_feature(\'{"title": "a", "phases": [{"phase_number": 1}]}\')', CLIENT),
    ('select pgcoord.store_feature(\'{"title": "a", "phases": [{"phase_number": 1}]}\')', CLIENT),
    ('select pgcoord.change_feature(1, \'{"title": "b"}\')', CLIENT),
    ("select pgcoord_private.feature_to_plan(2)", CLIENT),
    ("select pgcoord.execute_feature(2)", CLIENT),
    # steering
    ("select pgcoord.complete_phase('queue-1-1')", CLIENT),
    ("select pgcoord.fail_phase('queue-1-1', 'broken')", CLIENT),
    ("select pgcoord.retry_phase('queue-1-3')", CLIENT),
    ("select pgcoord.skip_phase('queue-1-4', 'done')", CLIENT),
    ("select pgcoord.cancel_phase('queue-1-1', 'no')", CLIENT),
    ("select pgcoord.cancel_phase('queue-1-2', 'no')", CLIENT),
    ("select pgcoord.cancel_feature(1, 'no')", CLIENT),
    ("select pgcoord.cancel_branch('queue-1-1', 'no')", CLIENT),
    ("select * from pgcoord.preview('cancel_branch', 1, 'queue-1-1')", CLIENT),
    ("select * from pgcoord.preview('retry', 1, 'queue-1-3')", CLIENT),
    ("select pgcoord.act_on_phases('cancel', '{queue-1-2,queue-1-3}', 'no')", CLIENT),
    ("select * from pgcoord.preview_several('cancel', '{queue-1-2,queue-1-3}')", CLIENT),
    ('select pgcoord.store_feature(\'{"title": "a"}\')', CLIENT),
    ('select pgcoord.change_feature(1, \'{"title": "b"}\')', CLIENT),
    ("select pgcoord.pause()", CLIENT),
    ("select pgcoord.pause(1, 'wait')", CLIENT),
    ("select pgcoord.resume()", CLIENT),
    ("select pgcoord.resume(1)", CLIENT),
    ("select pgcoord.set_slots(5)", CLIENT),
    ("select pgcoord.set_slots(1)", CLIENT),
    ("select pgcoord.set_priority('queue-1-2', 10)", CLIENT),
    ("select pgcoord.prune('0')", COORDINATOR),
    (
        "update phase_queue set priority = 10, queue_position = 1 where queue_id = 'queue-1-2'",
        CLIENT,
    ),
    ("update phase_queue set depends_on_phases = '[]' where queue_id = 'queue-1-2'", CLIENT),
    ("update phase_queue set depends_on_phases = '[5]' where queue_id = 'queue-1-4'", CLIENT),
    ("update phase_queue set depends_on_phases = '[3]' where queue_id = 'queue-1-5'", CLIENT),
    (
        'update phase_queue set phase_data = phase_data || \'{"title": "b"}\','
        " issue_number = 7, pr_number = 8",
        CLIENT,
    ),
    ("update phase_queue set retry_at = now() where queue_id = 'queue-1-2'", CLIENT),
    ("update planned_features set title = 'b', plan = '[]' where id = 1", CLIENT),
    ("select 1 from planned_features for update", CLIENT),
    # what only functions change for a client, and a coordinator by hand
    ("update phase_queue set status = 'completed' where queue_id = 'queue-1-4'", COORDINATOR),
    ("update phase_queue set status = 'queued' where queue_id = 'queue-1-3'", COORDINATOR),
    ("update phase_queue set status = 'cancelled' where queue_id = 'queue-1-1'", COORDINATOR),
    ("update phase_queue set status = 'running' where queue_id = 'queue-1-2'", NOBODY),
    ("update phase_queue set status = status, slot = slot, held = held, unmet = unmet", CLIENT),
    ("update phase_queue set error_message = 'a' where queue_id = 'queue-1-3'", COORDINATOR),
    ("update phase_queue set created_at = 'yesterday', updated_at = 'yesterday'", COORDINATOR),
    ("update phase_queue set held = true, slot = 2 where queue_id = 'queue-1-2'", NOBODY),
    ("update planned_features set created_at = created_at, paused_at = paused_at", CLIENT),
    ("update planned_features set created_by = 'another'", COORDINATOR),
    ("update planned_features set paused_at = now() where id = 1", COORDINATOR),
    ("update planned_features set cancelled_at = now() where id = 1", COORDINATOR),
    ("delete from phase_queue where queue_id = 'queue-1-5'", NOBODY),
    ("delete from planned_features where id = 2", NOBODY),
    ("truncate phase_queue cascade", NOBODY),
    # the coordinator's own
    ("select * from pgcoord_private.lead('here', 1, '0', '/runs', '[]')", COORDINATOR),
    (
        "select * from pgcoord_private.claim_phases((select epoch from pgcoord.control))",
        COORDINATOR,
    ),
    (
        "select pgcoord_private.start_phase(epoch, 1, 1, 'then') from pgcoord.control",
        COORDINATOR,
    ),
    ("select pgcoord_private.end_attempt(1, 0)", COORDINATOR),
    ("select pgcoord_private.end_attempt(1, 1, 'the log', 'sleep (pid 2)')", COORDINATOR),
    ("select pgcoord.give_up_attempt(1, 'lost', 'gone')", COORDINATOR),
    ("select pgcoord_private.return_attempt(1, '1 s', 'limit')", COORDINATOR),
    ("select pgcoord_private.expire_attempts()", COORDINATOR),
    ("select * from pgcoord_private.next_work()", COORDINATOR),
    ("select from phase_queue where queue_id = 'queue-1-4' for no key update", CLIENT),
    # tables and functions that only functions may use
    ("insert into pgcoord.event (kind, actor) values ('made up', 'another')", COORDINATOR),
    ("update pgcoord.event set actor = 'another'", NOBODY),
    ("delete from pgcoord.event", NOBODY),
    ("insert into pgcoord.slot values (9)", COORDINATOR),
    ("update pgcoord.control set place = 'here'", COORDINATOR),
    ("select 1 from pgcoord.control for update", COORDINATOR),
    ("update pgcoord.attempt set deadline = now()", COORDINATOR),
    ("delete from pgcoord.workflow", COORDINATOR),
    ("delete from pgcoord.migration", NOBODY),
    ("select pgcoord_private.record_definitions()", NOBODY),
    ("select pgcoord_private.report_phase('queue-1-1', 'completed', null, null)", COORDINATOR),
    ("select pgcoord_private.log_event('made up', 'reason')", COORDINATOR),
    ("select nextval('pgcoord.attempt_id')", COORDINATOR),
    ("create table pgcoord.mine ()", NOBODY),
    ("create or replace function pgcoord_private.ordinal(bigint) returns text return ''", NOBODY),
    ("drop trigger phase_queue_update_guards on phase_queue", NOBODY),
    ("alter table phase_queue disable trigger user", NOBODY),
]


@pytest.fixture
def house(conn: Connection) -> Connection:
    """A feature with a phase that runs, a failed one and three that wait, and a stored plan."""
    epoch = take_lead(conn)
    add_feature(conn, {1: [], 3: []})
    assert claim(conn, epoch) == ["queue-1-1", "queue-1-3"]
    for queue_id in ("queue-1-1", "queue-1-3"):
        start(conn, epoch, queue_id)
    conn.execute("select pgcoord_private.end_attempt(2, 1)")
    conn.execute(
        "insert into phase_queue (feature_id, phase_number, depends_on_phases)"
        " values (1, 2, '[1]'), (1, 4, '[]'), (1, 5, '[]')"
    )
    conn.execute(
        "insert into planned_features (title, plan) values ('b', '[{\"phase_number\": 1}]')"
    )
    assert statuses(conn, 1) == {
        1: "running",
        2: "queued",
        3: "failed",
        4: "queued",
        5: "queued",
    }
    return conn


def what_happens(conn: Connection, login: str, statement: str) -> str:
    """Try a statement as `login`, and take it back; return how it went."""
    try:
        with conn.transaction(force_rollback=True):
            conn.execute(
                sql.SQL("set local session authorization {}").format(sql.Identifier(login))
            )
            conn.execute(statement.encode())
    except psycopg.errors.InsufficientPrivilege:
        return "refused"
    except psycopg.Error as error:
        # By a trigger: a derived column (PC008), a phase that was never claimed (PC002).
        return "refused" if error.sqlstate in ("PC008", "PC002") else f"{error.sqlstate} {error}"
    return "allowed"


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_execute_its_functions_and_no_other(
    house: Connection, logins: dict[str, str], role: str
) -> None:
    actual = {
        statement: what_happens(house, logins[role], statement) for statement, _ in STATEMENTS
    }
    wanted = {
        statement: "allowed" if role in allowed else "refused" for statement, allowed in STATEMENTS
    }
    assert {each for each in actual.items() if each not in wanted.items()} == set()


@pytest.mark.parametrize(
    ("role", "rights"),
    [
        ("reader", "may watch; may not bring work in, steer, coordinate"),
        ("client", "may watch, bring work in, steer; may not coordinate"),
        ("coordinator", "may watch, bring work in, steer, coordinate"),
    ],
)
def test_a_checkup_shows_the_rights_of_its_caller(
    dsn: str, house: Connection, logins: dict[str, str], role: str, rights: str
) -> None:
    login = logins[role]
    with psycopg.connect(as_user(dsn, login), row_factory=dict_row) as conn:
        rows = conn.execute("select * from pgcoord.checkup()").fetchall()
    found = {row["kind"]: (row["level"], row["words"], row["remedy"]) for row in rows}
    assert found["definitions"][0] == "ok"
    assert found["rights"] == ("ok", f"{login} {rights}", None)
    assert found["transactions"] == (
        "warn",
        f"{login} cannot see those of other users",
        f"grant pg_read_all_stats to {login}",
    )


async def test_a_plan_runs_to_its_end_with_roles_of_only_coordinator_and_client(
    dsn: str, logins: dict[str, str], tmp_path: Path
) -> None:
    as_coordinator = as_user(dsn, logins["coordinator"])
    with psycopg.connect(as_coordinator, autocommit=True) as conn:
        schema.check_schema(conn)
    async with (
        watching(as_user(dsn, logins["client"])) as watch,
        running(make_coordinator(as_coordinator, tmp_path)),
    ):
        await watch.submit("exit 0", ("exit 1", [1]), ("sleep 60", [1]), ("exit 0", [2, 3]))
        await watch.until_statuses("completed", "failed", "running", "blocked")
        await watch.all("select pgcoord.cancel_phase('queue-1-3', 'too slow')")
        await watch.until_statuses("completed", "failed", "cancelled", "blocked")
        await watch.all("select pgcoord.skip_phase('queue-1-2', 'by hand')")
        await watch.conn.execute(
            'update phase_queue set phase_data = phase_data || \'{"prompt_content": "exit 0"}\''
            " where queue_id = 'queue-1-3'"
        )
        await watch.all("select pgcoord.retry_phase('queue-1-3')")
        await watch.until_statuses("completed", "completed", "completed", "completed")
        actors = await watch.all(
            "select distinct actor, to_status in ('ready', 'running') as started"
            " from pgcoord.event order by started nulls first"
        )
    assert [(row["actor"], row["started"]) for row in actors if row["started"]] == [
        (f"coordinator {gethostname()}", True)
    ]
    assert {row["actor"] for row in actors} == {logins["client"], f"coordinator {gethostname()}"}


def test_changes_by_a_function_are_logged_under_its_caller(
    client: Connection, logins: dict[str, str]
) -> None:
    add_feature(client, {1: [], 2: [1]})
    client.execute("select pgcoord.pause()")
    client.execute("select pgcoord.pause(1)")
    client.execute("select pgcoord.set_slots(4)")
    client.execute("select pgcoord.cancel_phase('queue-1-1', 'no')")
    client.execute("select pgcoord.retry_phase('queue-1-1')")
    client.execute("select pgcoord.cancel_feature(1, 'no')")
    client.execute("set pgcoord.actor = 'somebody behind it'")
    add_feature(client, {})
    actors = client.execute("select kind, actor from pgcoord.event order by id").fetchall()
    assert len(actors) == 14
    assert {row["actor"] for row in actors[:-1]} == {logins["client"]}
    assert actors[-1] == {"kind": "feature_inserted", "actor": "somebody behind it"}
    makers = client.execute("select distinct created_by from planned_features").fetchall()
    assert [row["created_by"] for row in makers] == [logins["client"]]


def test_a_refused_update_of_a_status_names_the_function_to_use(client: Connection) -> None:
    add_feature(client, {1: []})
    with refused(
        "42501", "may not set phase queue-1-1 to completed", "complete_phase('queue-1-1')"
    ):
        client.execute("update phase_queue set status = 'completed'")
    with refused("42501", "may not pause", "pgcoord.pause(1, reason)"):
        client.execute("update planned_features set paused_at = now()")


def test_a_trigger_of_a_client_changes_nothing_that_is_derived(client: Connection) -> None:
    add_feature(client, {1: [], 2: [1]})
    client.execute("create temporary table mine (statement text)")
    client.execute(
        """
        create function pg_temp.run() returns trigger language plpgsql as $$
        begin
            execute new.statement;
            return new;
        end $$;
        create trigger runs before insert on mine for each row execute function pg_temp.run();
        """
    )
    for change in (
        "unmet = 0, eligible_at = now() where phase_number = 2",
        "status = 'blocked'",
        "held = true",
        "workflow_type = 'a'",
        "started_timestamp = now()",
    ):
        with pytest.raises(psycopg.Error, match="by hand"):
            client.execute("insert into mine values (%s)", [f"update phase_queue set {change}"])


def test_no_function_of_a_client_is_called_with_the_rights_of_the_owner(
    conn: Connection, client: Connection, logins: dict[str, str]
) -> None:
    """A schema of the client's own comes first in its search path, with what ours call by name."""
    mine = sql.Identifier(logins["client"])
    conn.execute(sql.SQL("create schema trap authorization {}").format(mine))
    conn.execute("create table trap.caught (by name); grant all on trap.caught to public")
    for function in (
        "clock_timestamp()",
        "now()",
        "jsonb_array_length(jsonb)",
        "pg_trigger_depth()",
    ):
        kind = conn.execute(
            "select prorettype::regtype::text as kind from pg_proc"
            f" where oid = 'pg_catalog.{function}'::regprocedure".encode()
        ).fetchone()
        assert kind
        argument = "$1" if "jsonb" in function else ""
        client.execute(
            f"""
            create function trap.{function} returns {kind["kind"]} language plpgsql as $$
            begin
                insert into trap.caught values (current_user);
                return pg_catalog.{function.partition("(")[0]}({argument});
            end $$
            """.encode()
        )
    client.execute("set search_path = trap, pg_catalog, public")
    client.execute("select clock_timestamp()")
    by_hand = client.execute("select distinct by from trap.caught").fetchall()
    assert [row["by"] for row in by_hand] == [logins["client"]], "the trap does not work"
    client.execute("truncate trap.caught")
    feature = add_feature(client, {1: [], 2: [1], 3: [2]})
    add_phase_that_runs = (
        "insert into phase_queue (feature_id, phase_number, status) values (%s, 4, 'running')"
    )
    client.execute(add_phase_that_runs.encode(), [feature])
    client.execute("select pgcoord.complete_phase('queue-1-4')")
    client.execute("update phase_queue set depends_on_phases = '[1, 2]' where phase_number = 3")
    client.execute("select pgcoord.cancel_phase('queue-1-1', 'no')")
    client.execute("select pgcoord.retry_phase('queue-1-1')")
    client.execute("select pgcoord.skip_phase('queue-1-1', 'no')")
    client.execute("select pgcoord.pause(1), pgcoord.resume(1), pgcoord.set_slots(2)")
    client.execute("select pgcoord.cancel_feature(1, 'no')")
    assert client.execute("select distinct by from trap.caught").fetchall() == []


def test_functions_with_the_rights_of_the_owner_have_a_fixed_search_path(
    conn: Connection,
) -> None:
    found = conn.execute(
        "select proname, proconfig from pg_proc"
        " where pronamespace in ('pgcoord'::regnamespace, 'pgcoord_private'::regnamespace)"
        " and prosecdef"
    ).fetchall()
    assert len(found) > 10
    for row in found:
        assert "search_path=pg_catalog, pg_temp" in (row["proconfig"] or []), row["proname"]


def test_nobody_else_may_execute_anything(conn: Connection) -> None:
    actual = conn.execute(
        "select p.oid::regprocedure::text as name from pg_proc as p,"
        " aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as given"
        " where p.pronamespace in ('pgcoord'::regnamespace, 'pgcoord_private'::regnamespace)"
        " and given.grantee = 0"
    ).fetchall()
    assert actual == []


def test_a_reader_sees_all_but_secrets(conn: Connection, logins: dict[str, str]) -> None:
    found = conn.execute(
        """
        select c.oid::regclass || '.' || a.attname as name
        from pg_class as c join pg_attribute as a on a.attrelid = c.oid
        where c.relnamespace::regnamespace::text in ('pgcoord', 'pgcoord_private', 'public')
            and c.relkind in ('r', 'v') and a.attnum > 0 and not a.attisdropped
            and c.oid <> 'pgcoord_private.assignment'::regclass
            and not has_column_privilege(%s, c.oid, a.attnum, 'select')
        """,
        [logins["reader"]],
    ).fetchall()
    assert [row["name"] for row in found] == ["pgcoord.attempt.secret"]


# --- How the roles come to a database


def test_rights_follow_later_upgrades(dsn: str, house: Connection, logins: dict[str, str]) -> None:
    house.execute("drop view pgcoord.waiting")
    house.execute("drop function pgcoord.set_slots(bigint, text)")
    house.execute("grant delete on phase_queue to pgcoord_client")
    house.execute("update pgcoord.migration set digest = 'x' where name = 'functions'")
    assert upgrade(dsn) == ["functions", "roles"]
    assert upgrade(dsn) == []
    waiting, set_slots = "select * from pgcoord.waiting", "select pgcoord.set_slots(4)"
    assert what_happens(house, logins["reader"], waiting) == "allowed"
    assert what_happens(house, logins["reader"], set_slots) == "refused"
    assert what_happens(house, logins["client"], set_slots) == "allowed"
    assert what_happens(house, logins["client"], "delete from phase_queue") == "refused"


def test_rights_of_another_release_are_brought_up_to_date(
    dsn: str, conn: Connection, logins: dict[str, str]
) -> None:
    conn.execute("update pgcoord.migration set digest = 'x' where name = 'roles'")
    with psycopg.connect(dsn) as ours, pytest.raises(WrongSchema, match="of another release"):
        schema.check_schema(ours)
    assert upgrade(dsn) == ["roles"]
    with psycopg.connect(dsn) as ours:
        schema.check_schema(ours)


def test_roles_that_another_database_has_get_no_rights_unasked(
    dsn: str, conn: Connection, logins: dict[str, str], empty: str
) -> None:
    upgrade(empty)
    conn.execute("update pgcoord.migration set digest = 'x' where name = 'functions'")
    with psycopg.connect(as_user(empty, logins["coordinator"])) as other:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            other.execute("select * from pgcoord.board")
        other.rollback()
        with pytest.raises(DatabaseUnusable, match="has no rights: permission denied") as caught:
            schema.check_schema(other)
    assert "grant pgcoord_reader or pgcoord_client or" in str(caught.value.hint)


@pytest.fixture
def without_roles(dsn: str, logins: dict[str, str]) -> Iterator[psycopg.Connection[Any]]:
    """A transaction in which the server has none of our roles, though the database knows them."""
    with psycopg.connect(dsn) as conn:
        for role in schema.GROUPS:
            conn.execute(f"alter role {role} rename to {role}_{conn.info.backend_pid}".encode())
        yield conn
        conn.rollback()


def test_a_restored_database_does_without_roles_that_its_server_has_not(
    without_roles: psycopg.Connection[Any],
) -> None:
    without_roles.execute("update pgcoord.migration set digest = 'x' where name <> 'schema'")
    assert schema.upgrade(without_roles) == ["functions"]
    schema.check_schema(without_roles)
    found = without_roles.execute("select from pg_roles where rolname = 'pgcoord_client'")
    assert found.fetchall() == []


def test_a_user_without_the_right_to_make_roles_gets_a_remedy(
    without_roles: psycopg.Connection[Any], logins: dict[str, str]
) -> None:
    without_roles.execute(
        sql.SQL("set local session authorization {}").format(sql.Identifier(logins["coordinator"]))
    )
    without_roles.execute("savepoint before")
    with pytest.raises(
        DatabaseUnusable, match="the roles cannot be created: permission denied"
    ) as e:
        schema.upgrade(without_roles, roles=True)
    assert "with CREATEROLE" in str(e.value.hint)
    assert "pgcoord_reader, pgcoord_client, pgcoord_coordinator" in str(e.value.hint)


async def test_a_missing_right_is_refused_with_the_role_that_has_the_right(
    dsn: str, logins: dict[str, str]
) -> None:
    async with await psycopg.AsyncConnection.connect(as_user(dsn, logins["reader"])) as conn:
        with pytest.raises(DatabaseUnusable, match="permission denied for function") as caught:
            await actions.perform(conn, BY_NAME["set_slots"], None, number=4)
    assert "can grant you pgcoord_client" in str(caught.value.hint)
