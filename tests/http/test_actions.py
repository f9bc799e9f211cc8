"""Each row of `pgcoord.actions` is offered by SQL, REST, panel and command line, to one effect."""

import asyncio
import html
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.database import Connection, add_feature, one
from support.serving import Site

from pgcoord.actions import ACTIONS, Action
from pgcoord.http.openapi import document

# Functions that clients may call and that are no actions on what is there, or not for people.
NO_ACTIONS = {
    "submit_feature": "brings a plan: 'pgcoord run', POST /planned-features, /features/new",
    "add_feature": "brings work in, as an INSERT does",
    "add_phase": "brings work in, as an INSERT does",
    "store_feature": "brings a plan: POST /planned-features, /features/new",
    "change_feature": "brings a plan: PATCH of a feature, its page",
    "execute_feature": "may plan first, for minutes, outside of the database",
    "complete_phase": "a report, of workflows: 'pgcoord report', the webhook",
    "fail_phase": "a report, of workflows: 'pgcoord report', the webhook",
    "set_result": "a report, of workflows: the result file, 'pgcoord report', the webhook",
    "begin_attempt": "of jobs on an engine, signed by their attempt",
    "exit_attempt": "of jobs on an engine, signed by their attempt",
    "checkup": "changes nothing: 'pgcoord doctor'",
    "preview": "changes nothing: it rolls back",
    "preview_several": "changes nothing: it rolls back",
    "add_schedule": "brings a plan: 'pgcoord schedule create', POST /schedules",
    "change_schedule": "brings a plan: 'pgcoord schedule change'",
    "act_on_phases": "does an action to several: 'pgcoord retry A B', /queue/several, /several",
}

NUMBER = 2  # of a priority, of slots, of US dollars


def target_of(action: Action, feature: int) -> str | int | None:
    if action.scope == "phase":
        return f"queue-{feature}-2"
    if action.scope == "schedule":
        return "nightly"
    return feature if action.scope == "feature" else None


def reason_of(action: Action) -> str | None:
    return "why" if "reason" in action.arguments else None


async def by_sql(action: Action, feature: int, site: Site, conn: Connection) -> None:
    second = NUMBER if action.number else reason_of(action)
    values = [target_of(action, feature), second]
    if "slots" in action.arguments or len(action.arguments) == 1:
        values = [second or values[0]]
    call = action.statement(*("%s" for _ in values))
    conn.execute(f"select {call}".encode(), values)


async def by_rest(action: Action, feature: int, site: Site, conn: Connection) -> None:
    [(method, path)] = [
        (method, path)
        for path, methods in document()["paths"].items()
        for method, operation in methods.items()
        if operation["operationId"] == action.name
    ]
    address = path.format(queue_id=f"queue-{feature}-2", feature_id=feature, schedule="nightly")
    body = {action.number: NUMBER} if action.number else {"reason": reason_of(action)}
    answer = await site.client.request(
        method.upper(), address, json=body if len(action.arguments) > 1 or action.number else None
    )
    assert answer.status_code == 200, answer.text


async def by_panel(action: Action, feature: int, site: Site, conn: Connection) -> None:
    pages = {"phase": f"/phases/queue-{feature}-2", "feature": f"/features/{feature}", "all": ""}
    pages["schedule"] = "/schedules/nightly"
    address = f"{pages[action.scope]}/{action.slug}"
    if action.question:
        asked = await site.client.get(address)
        assert asked.status_code == 200, asked.text
        assert f"select pgcoord.{action.function}(" in html.unescape(asked.text)
    form = {"reason": reason_of(action) or "", action.number or "none": str(NUMBER)}
    answer = await site.client.post(address, data=form, headers={"x-panel": "1"})
    assert answer.status_code == 204, answer.text


async def by_command(action: Action, feature: int, site: Site, conn: Connection) -> None:
    targets = {"phase": [f"{feature}.2"], "feature": [str(feature)], "all": []}
    targets["schedule"] = ["nightly"]
    group = ["schedule"] if action.scope == "schedule" else []
    arguments = [*group, action.verb, *targets[action.scope]]
    arguments += ["--yes"] if action.verb == "delete" else []
    arguments += [f"--{action.option}"] if action.option else []
    arguments += [str(NUMBER)] if action.number else []
    arguments += ["--reason", "why"] if reason_of(action) else []
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pgcoord", *arguments, "--dsn", conn.info.dsn),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await program.communicate()
    assert program.returncode == 0, said.decode()
    assert said.strip()


INTERFACES: tuple[Callable[[Action, int, Site, Connection], Awaitable[None]], ...] = (
    by_sql,
    by_rest,
    by_panel,
    by_command,
)

# What is the case before, of the feature %(f)s, where a waiting phase would not do.
_ASKS = (
    "update phase_queue set depends_on_phases = '[]',"
    ' phase_data = \'{"gate": "may it?", "prompt_content": "x"}\''
    " where feature_id = %(f)s and phase_number = 2"
)
BEFORE = {
    "approve": _ASKS,
    "reject": _ASKS,
    "retry_phase": "select pgcoord.cancel_phase(format('queue-%%s-2', %(f)s::int), 'x')",
    "resume_feature": "select pgcoord.pause(%(f)s, 'x')",
    "resume": "select pgcoord.pause()",
    "resume_schedule": "select pgcoord.pause_schedule('nightly')",
}


def look(conn: Connection, feature: int) -> dict[str, Any]:
    """What actions change, and the reasons that are kept."""
    return one(
        conn,
        """
        select
            (select jsonb_agg(array[p.phase_number::text, p.status, p.priority::text] order by 1)
                from phase_queue as p where p.feature_id = f.id) as phases,
            (select jsonb_agg(array[e.kind, e.reason] order by e.id)
                from pgcoord.event as e where e.feature_id = f.id) as events,
            f.paused_reason, f.paused_at is not null as paused, f.cancelled_at is not null as over,
            (select count(*) from planned_features as c where c.origin_id = f.id) as copies,
            (select jsonb_agg(array[s.name, s.paused_reason, (s.paused_at is null)::text,
                (select count(*) from pgcoord.schedule_run)::text]) from pgcoord.schedule as s
            ) as schedules,
            f.max_cost_usd, (select count(*) from pgcoord.slot) as slots,
            (select (paused_at is not null, paused_reason)::text from pgcoord.control) as control
        from planned_features as f where f.id = %s
        """,
        feature,
    )


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.name)
async def test_each_action_does_the_same_by_every_interface(
    action: Action, site: Site, conn: Connection
) -> None:
    effects = {}
    for interface in INTERFACES:
        conn.execute("select pgcoord.resume(), pgcoord.set_slots(3)")
        feature = add_feature(conn, {1: [], 2: [1], 3: [2]})
        if action.scope != "schedule":
            conn.execute(BEFORE.get(action.name, "select %(f)s::int").encode(), {"f": feature})
        if action.scope == "schedule":
            conn.execute("delete from pgcoord.schedule")
            conn.execute(
                "select pgcoord.add_schedule('nightly', '0 3 1 1 *', pgcoord.feature_plan(%s))",
                [feature],
            )
            conn.execute(BEFORE.get(action.name, "select 1").encode())
        before = look(conn, feature)
        await interface(action, feature, site, conn)
        effects[interface.__name__] = look(conn, feature)
        assert effects[interface.__name__] != before
    assert all(each == effects["by_sql"] for each in effects.values()), effects


async def test_several_phases_are_changed_by_every_interface(site: Site, conn: Connection) -> None:
    effects = []
    for interface in ("sql", "rest", "panel", "command"):
        feature = add_feature(conn, {1: [], 2: [1], 3: [2]})
        names = [f"queue-{feature}-{n}" for n in (1, 2)]
        conn.execute("select pgcoord.act_on_phases('cancel', %s, 'x')", [names])
        names.append(f"queue-{feature}-3")  # refuses
        if interface == "sql":
            conn.execute("select pgcoord.act_on_phases('retry', %s, 'why')", [names])
        elif interface == "rest":
            body = {"action": "retry", "queue_ids": names, "reason": "why"}
            answer = await site.client.post("/api/v1/queue/several", json=body)
            assert answer.status_code == 200, answer.text
            assert [bool(each["refused"]) for each in answer.json()] == [False] * 3
        elif interface == "panel":
            form = {"action": "retry", "phase": names, "reason": "why", "sure": "1"}
            answer = await site.client.post("/several", data=form)
            assert answer.status_code in (200, 303), answer.text
        else:
            program = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "pgcoord", "retry", *names, "--reason", "why"),
                *("--dsn", conn.info.dsn),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            said, _ = await program.communicate()
            assert program.returncode == 0, said.decode()
            assert said.decode().splitlines()[0] == f"{names[0]} is queued"
        effects.append(look(conn, feature))
    assert all(each == effects[0] for each in effects), effects


@pytest.mark.usefixtures("logins")
def test_each_function_that_clients_may_call_has_its_row(conn: Connection) -> None:
    found = conn.execute(
        """
        select p.proname as name from pg_proc as p
        where p.pronamespace = 'pgcoord'::regnamespace and p.provolatile = 'v'
            and has_function_privilege('pgcoord_client', p.oid, 'execute')
        """
    ).fetchall()
    functions = {each["name"] for each in found}
    assert functions - {each.function for each in ACTIONS} == set(NO_ACTIONS)
    assert {each.function for each in ACTIONS} <= functions


def test_no_two_actions_have_the_same_place() -> None:
    assert len({each.name for each in ACTIONS}) == len(ACTIONS)
    assert len({(each.scope, each.verb, each.option) for each in ACTIONS}) == len(ACTIONS)
