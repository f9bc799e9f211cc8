"""The panel as somebody uses it who steers many phases all day: find, act on several, compare."""

import re

import psycopg
import pytest
from playwright.async_api import Browser, Page, expect
from support.database import Connection, add_feature, statuses
from support.panel_browser import look

from pgcoord.actions import SEVERAL, Action


def many(conn: Connection, phases: int, title: str = "Module {} of the Move") -> int:
    """A feature of so many phases; each tenth begins a chain of ten."""
    feature = add_feature(conn, {n: [] if n % 10 == 1 else [n - 1] for n in range(1, phases + 1)})
    conn.execute(
        "update phase_queue set phase_data = phase_data"
        " || jsonb_build_object('title', replace(%s, '{}', phase_number::text))"
        " where feature_id = %s",
        [title, feature],
    )
    return feature


# --- Several at once


async def test_phases_of_a_large_feature_are_found_and_several_are_changed_with_one_question(
    page: Page, panel: str, conn: Connection
) -> None:
    feature = many(conn, 60)
    for n in (11, 21, 31):
        conn.execute("select pgcoord.cancel_phase(%s, 'no')", [f"queue-{feature}-{n}"])
    await look(page, f"{panel}/features/{feature}")
    await page.get_by_role("link", name="3 cancelled").click()
    await expect(page.locator("#tree > li")).to_have_count(3)
    await page.get_by_role("searchbox", name="Find phases").fill("module 3")
    await page.get_by_role("button", name="Find").click()
    await expect(page.locator("#tree h3 a")).to_have_text(["31 Module 31 of the Move"])
    await page.get_by_role("link", name="Show all").click()
    await page.get_by_role("link", name="3 cancelled").click()
    # What is shown follows what happens.
    await expect(page.locator("#live strong")).to_have_text("Live")
    conn.execute("select pgcoord.cancel_phase(%s, 'no')", [f"queue-{feature}-41"])
    await expect(page.locator("#tree > li")).to_have_count(4)

    await page.get_by_role("link", name="Act on several…").click()
    await page.get_by_label("41 Module 41").uncheck()
    await page.get_by_role("button", name="Retry…").click()
    await expect(page.locator("form.dialog h2")).to_contain_text("30 phases change")
    await expect(page.locator("form.dialog .sql")).to_contain_text("act_on_phases('retry'")
    assert statuses(conn, feature)[11] == "cancelled"
    await page.get_by_label("Reason").fill("all of them")
    await page.get_by_role("button", name="Retry").click()
    await expect(page).to_have_url(re.compile(rf"/features/{feature}\?show=cancelled"))
    now = statuses(conn, feature)
    assert [now[n] for n in (11, 21, 31, 41)] == ["queued", "queued", "queued", "cancelled"]
    said = conn.execute(
        "select phase_number from pgcoord.event where reason = 'all of them' order by 1"
    ).fetchall()
    assert [each["phase_number"] for each in said] == [11, 21, 31]


async def test_several_are_changed_without_javascript_and_who_refuses_is_told(
    browser: Browser, panel: str, conn: Connection
) -> None:
    feature = add_feature(conn, {1: [], 2: [1], 3: [1]})
    other = add_feature(conn, {1: []})
    async with await browser.new_context(java_script_enabled=False) as context:
        page = await context.new_page()
        await page.goto(f"{panel}/?show=queued")
        await page.get_by_role("link", name="Act on these…").click()
        await page.get_by_label("Priority").fill("7")
        await page.get_by_role("button", name="Set…").click()
        await expect(page.locator(".change")).to_contain_text("priority 7, was 50")
        await page.get_by_role("button", name="Set").click()
        found = conn.execute("select distinct priority from phase_queue").fetchall()
        assert found == [{"priority": 7}]
        # One is refused by the time that it is done: the others are done, and it is told.
        await page.goto(f"{panel}/several?show=queued")
        await page.get_by_role("button", name="Skip…").click()
        await expect(page.locator(".change li")).to_have_count(4)
        conn.execute("delete from phase_queue where feature_id = %s", [other])
        await page.get_by_role("button", name="Skip").click()
        await expect(page.locator("h1")).to_have_text("1 phase refused it")
        await expect(page.locator("main")).to_contain_text("3 others were changed")
        assert set(statuses(conn, feature).values()) == {"completed"}
        # Nothing picked, and what cannot be done to any.
        await page.goto(f"{panel}/several")
        await expect(page.locator("main")).to_contain_text("Nothing that is open matches")


@pytest.mark.parametrize("action", SEVERAL, ids=lambda action: action.verb)
def test_the_preview_of_several_is_what_then_happens(conn: Connection, action: Action) -> None:
    """Over phases in different states, of two features."""
    verb = action.verb
    ids = []
    for _ in range(2):
        feature = add_feature(conn, {1: [], 2: [1], 3: [1], 4: [3], 5: []})
        conn.execute(
            'update phase_queue set phase_data = \'{"gate": "may it?"}\''
            " where feature_id = %s and phase_number = 5",
            [feature],
        )
        conn.execute("select pgcoord.skip_phase(%s, 'x')", [f"queue-{feature}-1"])
        conn.execute("select pgcoord.cancel_phase(%s, 'x')", [f"queue-{feature}-3"])
        ids += [f"queue-{feature}-{n}" for n in (5, 4, 3, 2)]
    look_at = "select queue_id, status || priority || gated as is from phase_queue order by 1"
    before = {each["queue_id"]: each["is"] for each in conn.execute(look_at)}
    shown = conn.execute("select * from pgcoord.preview_several(%s, %s, 3)", [verb, ids]).fetchall()
    assert {each["queue_id"]: each["is"] for each in conn.execute(look_at)} == before
    told = conn.execute(
        "select * from pgcoord.act_on_phases(%s, %s, 'why', 3)", [verb, [*ids, "queue-0-1"]]
    ).fetchall()
    after = {each["queue_id"]: each["is"] for each in conn.execute(look_at)}
    assert before != after
    refused = {each["queue_id"] for each in told if each["refused"]}
    assert refused == {"queue-0-1"} | {e["queue_id"] for e in shown if e["to_status"] is None}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {each["queue_id"] for each in shown if each["to_status"]}
    states = {e["queue_id"]: e["to_status"] for e in shown if e["to_status"]}
    assert states == {name: re.sub(r"\d.*", "", after[name]) for name in changed}


def test_a_wrong_priority_for_several_changes_none(conn: Connection) -> None:
    feature = add_feature(conn, {1: [], 2: []})
    with pytest.raises(psycopg.Error) as caught:
        conn.execute(
            "select pgcoord.act_on_phases('priority', array[%s, %s])",
            [f"queue-{feature}-1", f"queue-{feature}-2"],
        )
    assert caught.value.sqlstate == "PC005"
