"""What people change in the panel: phases, features, plans, slots."""

import asyncio
import re
from typing import Any

from playwright.async_api import Page, Route, expect
from psycopg.types.json import Jsonb
from support.cases import case
from support.database import Connection, add_feature, claim, start, statuses
from support.panel_browser import confirm, is_live, look, tree_state
from support.panel_scene import add_diamond, events_of, fail


async def test_a_phase_is_retried_after_a_preview_of_all_that_runs_again(
    page: Page, panel: str, conn: Connection, epoch: int
) -> None:
    feature = add_diamond(conn)
    fail(conn, epoch, f"queue-{feature}-1")
    await look(page, f"{panel}/features/{feature}")
    await expect(page.locator("#needs")).to_contain_text(
        "Attempt 1, exit 1: it broke. Blocks phases 2 and 3."
    )
    await page.get_by_role("link", name="Retry…").click()
    changes = page.get_by_role("dialog").locator(".change li")
    await expect(changes).to_have_count(4)
    await expect(changes.nth(0)).to_contain_text("Failed to Queued")
    await expect(changes.nth(3)).to_contain_text("Blocked to Queued")
    assert statuses(conn, feature)[1] == "failed", "to look is not to do"
    await confirm(page, "Retry", "flaky test fixed")
    await expect(tree_state(page, 1)).to_have_text("Queued")
    await expect(page.locator("#needs")).to_be_hidden()
    assert statuses(conn, feature) == dict.fromkeys(range(1, 5), "queued")
    retried = next(each for each in events_of(conn, "phase_moved") if each["phase_number"] == 1)
    assert (retried["reason"], retried["actor"]) == ("flaky test fixed", "http (127.0.0.1)")


async def test_a_feature_runs_again_as_another_one_whole_or_from_a_phase_on(
    page: Page, panel: str, conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {1: [], 2: [1]})
    claim(conn, epoch)
    start(conn, epoch, f"queue-{feature}-1")
    conn.execute("select pgcoord_private.end_attempt(id, 0, '') from pgcoord.attempt")
    conn.execute("select pgcoord.cancel_feature(%s, null)", [feature])
    left = {1: "completed", 2: "cancelled"}
    for link, verb, first in (
        (f"features/{feature}", "Run again", "queued"),
        (f"phases/queue-{feature}-2", "Run again from here", "completed"),
    ):
        await look(page, f"{panel}/{link}")
        await page.get_by_role("link", name=f"{verb}…").click()
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_contain_text("stays as it is")
        await dialog.get_by_role("button", name=verb, exact=True).click()
        await expect(page.locator("#head")).to_contain_text(f"feature {feature} again")
        made = int(page.url.rpartition("/")[2])
        assert statuses(conn, made) == {1: first, 2: "queued"}
        assert statuses(conn, feature) == left


async def test_a_phase_is_cancelled_with_its_dependents(
    page: Page, panel: str, conn: Connection
) -> None:
    feature = add_diamond(conn)
    await look(page, f"{panel}/phases/queue-{feature}-2")
    await page.get_by_role("link", name="Cancel phase…").click()
    await expect(page.locator(".change")).to_contain_text("Queued to Blocked")
    await page.get_by_role("link", name="Cancel those, too").click()
    await expect(page.locator(".change")).not_to_contain_text("Blocked")
    await confirm(page, "Cancel them all", "not wanted")
    await expect(page.locator("#head .state")).to_have_text("Cancelled")
    assert statuses(conn, feature) == {1: "queued", 2: "cancelled", 3: "queued", 4: "cancelled"}
    assert "not wanted" in [each["reason"] for each in events_of(conn, "phase_moved")]


async def test_everything_is_paused_and_resumed(page: Page, panel: str, conn: Connection) -> None:
    await look(page, panel)
    await page.get_by_role("link", name="Pause all").click()
    await confirm(page, "Pause all", "database maintenance")
    notice = page.locator("#notice")
    await expect(notice).to_contain_text("Everything is paused by http (127.0.0.1)")
    await expect(notice).to_contain_text("“database maintenance”")
    await page.get_by_role("button", name="Resume").click()
    await expect(notice).not_to_contain_text("paused")
    assert events_of(conn, "resumed")[0]["actor"] == "http (127.0.0.1)"


async def test_slots_and_priorities_are_changed(page: Page, panel: str, conn: Connection) -> None:
    feature = add_feature(conn, {1: [], 2: []})
    await look(page, panel)
    await page.get_by_label("Limit").fill("5")
    await page.get_by_role("button", name="Set").click()
    await expect(page.locator("#slots .free")).to_have_count(5)
    await expect(page.locator("#line li").first).to_contain_text("Phase 1")
    await page.goto(f"{panel}/phases/queue-{feature}-2")
    await is_live(page)
    await page.get_by_label("Priority").fill("7")
    await page.get_by_role("button", name="Set").click()
    await expect(page.locator("#details")).to_contain_text("7, position")
    await page.goto(panel)
    await expect(page.locator("#line li").first).to_contain_text("Phase 2")
    assert events_of(conn, "phase_reprioritised")[0]["reason"] == "priority 50 → 7"
    assert events_of(conn, "slots_changed")[0]["actor"] == "http (127.0.0.1)"


async def test_many_slots_are_asked_for_first_and_shown_as_rows(
    page: Page, panel: str, conn: Connection, epoch: int
) -> None:
    add_feature(conn, {n: [] for n in range(1, 13)})
    await look(page, panel)
    await page.get_by_label("Limit").fill("500")
    await page.get_by_role("button", name="Set").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_contain_text("Let 500 phases run at once?")
    await expect(dialog).to_contain_text("3 may run now. 12 phases that wait in line would start")
    await dialog.get_by_role("link", name="Leave it").click()
    await page.get_by_role("button", name="Set").click()
    await dialog.get_by_role("button", name="Set").click()
    await expect(page.locator("#free")).to_contain_text("500 slots free")
    assert len(claim(conn, epoch)) == 12
    await expect(page.locator("#free")).to_contain_text("488 slots free")
    await expect(page.locator("#slots > .slot")).to_have_count(13)
    height = await page.evaluate("document.documentElement.scrollHeight")
    assert height < 1200
    conn.execute("select pgcoord.set_slots(3)")
    await expect(page.locator("#line")).to_contain_text("Nothing waits for a slot")
    await expect(page.locator("#slots-title + span")).to_contain_text("12 held, 3 allowed")


async def test_pages_name_the_next_step_of_a_person(
    page: Page, panel: str, conn: Connection, epoch: int
) -> None:
    unknown = add_feature(conn, {1: []}, phase_data=Jsonb({"workflow_type": "unheard-of"}))
    stopped = add_feature(conn, {1: [], 2: [1]})
    fail(conn, epoch, f"queue-{stopped}-1")
    queued = add_feature(conn, {1: [], 2: [1]})
    await look(page, panel)
    row = page.locator(f"#feature-{unknown}")
    await expect(row).to_contain_text("Phase 1 cannot start: no coordinator knows its workflow")
    await expect(row).not_to_contain_text("for a slot")
    await page.get_by_role("link", name="In progress").click()
    await expect(page.locator("#features > li")).to_have_count(1)
    await expect(page.locator(f"#feature-{queued}")).to_contain_text("1 waits for a slot")
    await look(page, f"{panel}/features/{stopped}")
    await expect(page.locator("#head")).to_contain_text(re.compile("Stopped, .*: phase 1 failed"))
    await look(page, f"{panel}/features/{queued}")
    await expect(page.locator("#head")).to_contain_text("nothing of it has started")
    icon = page.locator("link[rel=icon]")
    await look(page, panel)
    await expect(icon).to_have_attribute("href", re.compile("alert.svg$"))
    await page.evaluate("lose('as a test')")
    await expect(page).to_have_title(re.compile("^Not live · "))


async def test_a_feature_is_made_generated_and_executed_in_one_click(
    page: Page, panel: str, conn: Connection
) -> None:
    await page.goto(f"{panel}/features/new")
    await page.get_by_label("Title", exact=True).fill("Dark mode")
    await page.get_by_label("What it is about").fill("For the settings page.")
    await page.get_by_role("button", name="Generate & Execute").click()
    await is_live(page)
    await expect(page.locator("h1")).to_have_text("Dark mode")
    await expect(page.locator(".tree li")).to_have_count(1)
    [row] = conn.execute("select phase_data ->> 'prompt_content' as p from phase_queue").fetchall()
    assert "For the settings page." in row["p"]


async def test_a_stored_feature_is_generated_then_executed(
    page: Page, panel: str, conn: Connection
) -> None:
    await page.goto(f"{panel}/features/new")
    await page.get_by_label("Title", exact=True).fill("Dark mode")
    form = page.get_by_role("form", name="From a description")
    await form.get_by_role("button", name="Store").click()
    await is_live(page)
    await page.get_by_role("button", name="Generate phases").click()
    await expect(page.locator("#plan")).to_contain_text("1 Dark mode")
    assert statuses(conn) == {}
    await page.get_by_role("button", name="Execute", exact=True).click()
    await expect(page.locator("#tree li")).to_have_count(1)
    await expect(page.locator("#plan")).to_be_hidden()
    assert statuses(conn) == {1: "queued"}


async def test_a_plan_is_generated_edited_planned_again_and_executed(
    page: Page, panel: str, conn: Connection
) -> None:
    await page.goto(f"{panel}/features/new")
    await page.get_by_label("Title", exact=True).fill("Votes")
    await page.get_by_label("What it is about").fill(
        "- Add a table of votes\n- Add an endpoint to vote\n- Show the votes on the page\n"
    )
    await page.get_by_label("Estimated hours").fill("6")
    await page.get_by_role("button", name="Generate phases").click()
    await is_live(page)
    shown = page.locator("#plan")
    await expect(shown.locator("li")).to_have_count(3)
    await expect(shown).to_contain_text("Runs as 1, then 2 and 3.")
    await expect(shown).to_contain_text("6 h of work, 4 h 30 min with 3 slots")
    await shown.get_by_text("Prompt, about").first.click()
    await expect(shown.get_by_role("region").first).to_contain_text("Add a table of votes")
    # Edited: a fault is said by its line, and what was typed stays.
    await page.get_by_role("link", name="Edit plan").click()
    field = page.get_by_label("Plan, Markdown")
    text = await field.input_value()
    assert text.startswith("# Votes\n\n## Phase 1: Add a table of votes\nDepends on: none\n")
    faulty = f"{text}\n## Phase 4: Guide\nDepends on: 9\n\nWrite it.\n"
    await field.fill(faulty)
    await page.get_by_role("button", name="Store", exact=True).click()
    line = faulty.split("\n").index("Depends on: 9") + 1
    await expect(page.get_by_role("alert")).to_contain_text(f"line {line}")
    await expect(page.get_by_role("alert")).to_contain_text("there is no phase 9")
    await expect(field).to_have_value(faulty)
    await field.fill(faulty.replace("on: 9", "on: 1"))
    await page.get_by_role("button", name="Store", exact=True).click()
    await is_live(page)
    await expect(shown).to_contain_text("4 Guide")
    # Planned again: from the description, in place of it.
    await page.get_by_role("button", name="Plan again").click()
    await expect(shown.locator("li")).to_have_count(3)
    assert statuses(conn) == {}
    await page.get_by_role("button", name="Execute", exact=True).click()
    await expect(page.locator("#tree li")).to_have_count(3)
    await expect(shown).to_be_hidden()
    assert statuses(conn) == dict.fromkeys((1, 2, 3), "queued")
    late = await page.goto(f"{page.url}/plan")
    assert late
    assert late.status == 409


async def test_a_faulty_plan_is_said_line_by_line_and_stays_in_the_form(
    page: Page, panel: str, conn: Connection
) -> None:
    plan = "# Audit Log\n\n## Phase 1: Tables\nDepend on: none\n\nadd\n\n## Phase 3: Worker\nwork\n"
    await page.goto(f"{panel}/features/new")
    await page.get_by_label("Plan, Markdown").fill(plan)
    await page.get_by_role("button", name="Store & Execute").click()
    problem = page.get_by_role("alert")
    await expect(problem).to_contain_text("errors, nothing was stored")
    await expect(problem.locator("li").first).to_contain_text("line 4")
    await expect(page.get_by_label("Plan, Markdown")).to_have_value(plan)
    assert conn.execute("select from planned_features").fetchall() == []


async def test_a_refusal_is_shown_in_the_words_of_the_database(
    page: Page, panel: str, conn: Connection, epoch: int
) -> None:
    feature = add_diamond(conn)
    fail(conn, epoch, f"queue-{feature}-1")
    await look(page, f"{panel}/phases/queue-{feature}-1")
    await page.get_by_role("link", name="Retry…").click()
    await expect(page.get_by_role("dialog")).to_be_visible()
    conn.execute("select pgcoord.retry_phase(%s)", [f"queue-{feature}-1"])
    answered = asyncio.Event()

    async def hold(route: Route) -> None:
        await answered.wait()
        await route.continue_()

    await page.route("**/retry", hold)
    await page.get_by_role("dialog").get_by_label("Reason").fill("the server was down")
    button = page.get_by_role("dialog").get_by_role("button", name="Retry")
    await button.click()
    await expect(button).to_have_attribute("data-sending", "")
    answered.set()
    refusal = page.get_by_role("dialog").get_by_role("alert")
    await expect(refusal).to_contain_text("Refused: PC002")
    await expect(refusal).to_contain_text("only a failed or cancelled one can be retried")
    await expect(refusal).to_contain_text("HINT:")
    await expect(page.get_by_label("Reason")).to_have_value("the server was down")
    await button.click()
    await expect(button).not_to_have_attribute("aria-busy", "true")
    await expect(refusal).to_have_count(1)
    # What is lacking is mended meanwhile: it is done with the reason that was typed.
    conn.execute("select pgcoord.cancel_phase(%s, 'no')", [f"queue-{feature}-1"])
    await button.click()
    await expect(page.get_by_role("dialog")).to_be_hidden()
    assert "the server was down" in [each["reason"] for each in events_of(conn, "phase_moved")]
    await page.route(
        "**/cancel",
        lambda route: route.abort() if route.request.method == "POST" else route.continue_(),
    )
    await page.get_by_role("link", name="Cancel phase…").click()
    await page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    await expect(page.locator("#faults")).to_contain_text("is not known")
    await expect(page.get_by_role("dialog")).to_be_hidden()


NOT_FOUND: Any = [
    ("/features/999", 404, "there is no feature 999"),
    ("/features/x", 422, "'x' is not a number"),
    ("/features/99999999999", 422, "'99999999999' is not a number"),
    ("/phases/queue-1-1", 404, "there is no phase queue-1-1"),
    ("/phases/queue-1-1/retry", 404, "there is no phase queue-1-1"),
    ("/?show=nonsense", 404, "there is no filter 'nonsense'"),
    ("/history?before=x", 422, "'x' is not a number"),
]


async def test_an_address_of_nothing_is_answered_with_a_page(page: Page, panel: str) -> None:
    for address, status, words in NOT_FOUND:
        with case(address, status, words):
            answer = await page.goto(panel + address)
            assert answer
            assert answer.status == status
            await expect(page.get_by_role("alert")).to_contain_text(words)
