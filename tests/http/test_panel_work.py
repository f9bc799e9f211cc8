"""The panel for a person who steers many phases all day: find, act on several, compare."""

import re
import sys
from pathlib import Path

import psycopg
import pytest
from axe_playwright_python.base import AXE_FILE_PATH
from playwright.async_api import Browser, Page, expect
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb
from support.database import Connection, add_feature, claim, start, statuses
from support.panel_browser import look
from support.panel_scene import Scene
from support.serving import served

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


async def is_accessible(page: Page) -> None:
    """Nothing is found by axe."""
    await page.evaluate(AXE_FILE_PATH.read_text())
    run = "axe.run({resultTypes: ['violations']}).then(found => found.violations)"
    found = await page.evaluate(run)
    assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []


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


async def test_several_phases_are_changed_without_javascript_and_refusals_are_shown(
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
        actual = conn.execute("select distinct priority from phase_queue").fetchall()
        assert actual == [{"priority": 7}]
        # One is refused when the action runs: the others are changed, and the refusal is shown.
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
def test_the_preview_of_several_phases_equals_the_outcome(conn: Connection, action: Action) -> None:
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
    *shown, absent = conn.execute(
        "select * from pgcoord.preview_several(%s, %s, 3)", [verb, [*ids, "queue-0-1"]]
    )
    assert (absent["queue_id"], absent["words"]) == ("queue-0-1", "there is no phase queue-0-1")
    assert (absent["from_status"], absent["to_status"]) == (None, None)
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


# --- A large feature


@pytest.mark.scale
async def test_a_graph_of_two_hundred_phases_folds_finished_ones_and_is_walked_by_arrows(
    page: Page, panel: str, conn: Connection
) -> None:
    feature = many(conn, 200, "Move the module number {} to the new store")
    conn.execute(
        "select pgcoord.act_on_phases('skip', array(select queue_id from phase_queue"
        " where feature_id = %s and phase_number <= 104))",
        [feature],
    )
    address = f"{panel}/features/{feature}"
    await look(page, address)
    # Phases 1 to 103 are finished, and 104 is what 105 waits for: it is drawn, its edge cut.
    await expect(page.locator("#graph .head")).to_contain_text("103 finished phases folded")
    await expect(page.locator("a.node")).to_have_count(97)
    await expect(page.locator(".graph .edge.cut")).to_have_count(1)
    seen = await page.locator("a.node b").evaluate_all(
        "all => all.map(each => each.textContent.slice(0, 16))"
    )
    assert len(set(seen)) == 97
    # At first sight nobody would tell "Move the module number 105" from 106.
    assert "105 …105 to the " in seen
    await page.locator("a.node[data-phase='105']").focus()
    await page.keyboard.press("ArrowRight")
    await expect(page.locator("a.node[data-phase='106']")).to_be_focused()
    await page.keyboard.press("ArrowLeft")
    await page.keyboard.press("ArrowLeft")
    await expect(page.locator("a.node[data-phase='104']")).to_be_focused()
    # Fit, larger, full width: sizes are kept when the picture is redrawn.
    picture = page.locator("svg.graph")
    await page.get_by_role("button", name="Fit").click()
    fitting = await picture.evaluate("e => [e.clientWidth, e.parentElement.clientWidth]")
    assert fitting[0] <= fitting[1]
    wide = await page.locator("#graph").evaluate("e => e.clientWidth")
    await page.get_by_label("Full width").check()
    assert await page.locator("#graph").evaluate("e => e.clientWidth") > wide
    await page.get_by_role("link", name="Show all").click()
    await expect(page.locator("a.node")).to_have_count(200)
    await page.get_by_role("link", name="Fold finished phases").click()
    await expect(page.locator("a.node")).to_have_count(97)


@pytest.mark.scale
async def test_a_page_of_two_hundred_phases_has_less_than_sixty_stops_of_the_tab_key(
    page: Page, panel: str, conn: Connection
) -> None:
    feature = many(conn, 200)
    await look(page, f"{panel}/features/{feature}")
    stops = await page.evaluate(
        """() => [...document.querySelectorAll("a[href], button, input, select, [tabindex]")]
            .filter(each => each.tabIndex >= 0 && each.checkVisibility()).length"""
    )
    sys.stdout.write(f"tab stops of a page of 200 phases: {stops}\n")
    assert stops < 60
    await page.locator("#tree [tabindex='0']").focus()
    await page.keyboard.press("ArrowDown")
    await expect(page.locator("#phase-2 h3 a")).to_be_focused()
    # What changes meanwhile takes the stop from nobody.
    conn.execute("select pgcoord.cancel_phase(%s, 'no')", [f"queue-{feature}-2"])
    await expect(page.locator("#phase-2 .state")).to_have_text("Cancelled")
    await expect(page.locator("#phase-2 h3 a")).to_be_focused()
    await expect(page.locator("#tree [tabindex='0']")).to_have_count(1)


@pytest.mark.scale
async def test_the_list_takes_the_room_of_five_hundred_phases(
    page: Page, panel: str, conn: Connection
) -> None:
    feature = many(conn, 500)
    await look(page, f"{panel}/features/{feature}")
    await expect(page.locator("#graph")).to_contain_text("500 phases are too many for a picture")
    tree, main = [
        await page.locator(each).evaluate("e => e.clientWidth") for each in ("#tree", "main")
    ]
    assert tree > 0.9 * (main - 48)
    assert await page.locator("#phase-1").evaluate("e => e.clientHeight") < 40


@pytest.mark.scale
async def test_a_phone_shows_tree_graph_and_timeline_in_tabs_and_all_is_large_enough_to_hit(
    browser: Browser, panel: str, scene: object
) -> None:
    script = AXE_FILE_PATH.read_text()
    async with await browser.new_context(viewport={"width": 390, "height": 844}) as context:
        page = await context.new_page()
        await look(page, f"{panel}/features/104")
        shown = {name: page.locator(f"#{name}") for name in ("phases", "graph", "timeline")}
        for tab, name in (("Phases", "phases"), ("Graph", "graph"), ("Timeline", "timeline")):
            await page.locator(".tabs label", has_text=tab).click()
            for each, part in shown.items():
                await expect(part).to_be_visible(visible=each == name)
        top = "document.querySelector('main > *:nth-child(2)').id"
        assert await page.evaluate(top) == "needs"
        small = []
        for address in ("/", "/features/104", "/phases/queue-104-6", "/history", "/features/new"):
            await page.goto(panel + address)
            await page.evaluate(script)
            found = await page.evaluate(
                "axe.run({runOnly: {type: 'rule', values: ['target-size']}})"
            )
            small += [node["html"] for rule in found["violations"] for node in rule["nodes"]]
        assert small == []


@pytest.mark.scale
async def test_each_list_is_one_stop_of_the_tab_key_and_a_question_begins_with_its_reason(
    page: Page, panel: str, scene: Scene
) -> None:
    stops = "all => all.filter(each => each.tabIndex >= 0).length"
    for address, links in (
        ("/", ".features h3 a"),
        ("/?q=module", ".found a"),
        ("/workflows/adw_sdlc_complete_iso", ".durations a"),
    ):
        await page.goto(panel + address)
        found = page.locator(links)
        assert await found.count() > 1
        assert (address, await found.evaluate_all(stops)) == (address, 1)
        await found.first.focus()
        await page.keyboard.press("ArrowDown")
        await expect(found.nth(1)).to_be_focused()
    await page.goto(f"{panel}/several?show=failed")
    await page.get_by_role("button", name="Retry…").click()
    await expect(page.get_by_label("Reason")).to_be_focused()
    # Above the reason is a link to the question about all that depends on the phase.
    await look(page, f"{panel}/phases/queue-112-2")
    await page.get_by_role("link", name="Cancel phase…").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog.locator("a[href$=cancel-branch], a[href*=branch]")).to_have_count(1)
    await expect(dialog.get_by_label("Reason")).to_be_focused()


# --- Times, and what happened while nobody looked


async def test_times_are_in_the_zone_of_the_browser_or_in_utc(
    browser: Browser, panel: str, scene: object
) -> None:
    async with await browser.new_context(timezone_id="Asia/Tokyo") as context:
        page = await context.new_page()
        await page.goto(f"{panel}/features/104")
        zone = page.locator(".zone")
        await expect(zone).to_contain_text("Times are in Asia/Tokyo (JST)")
        local = await page.evaluate(
            """() => [...document.querySelectorAll("time")].map(e => [e.dateTime, e.title])"""
        )
        assert len(local) > 10
        assert all(at.endswith("+09:00") and " JST" in said for at, said in local)
        await expect(page.locator("#timeline .head")).to_contain_text("times in JST")
        await expect(page.locator("#live")).to_contain_text("Live")
        await zone.get_by_role("button", name="In UTC").click()
        await expect(zone).to_contain_text("Times are in UTC.")
        await expect(page).to_have_url(f"{panel}/features/104")
        await expect(page.locator("#live time")).to_have_attribute("datetime", re.compile(r"00:00"))
        await zone.get_by_role("button", name="In the zone of the browser").click()
        await expect(zone).to_contain_text("Asia/Tokyo")
    async with await browser.new_context(java_script_enabled=False) as context:
        page = await context.new_page()
        await context.add_cookies(
            [{"name": "pgcoord_zone", "value": "../../etc/passwd", "url": panel}]
        )
        await page.goto(panel)
        await expect(page.locator(".zone")).to_contain_text("Times are in")


async def test_a_returning_visitor_sees_the_events_since_the_last_visit(
    browser: Browser, panel: str, conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {1: [], 2: [1]})
    async with await browser.new_context(java_script_enabled=False) as context:
        page = await context.new_page()
        await page.goto(panel)
        await expect(page.locator("#since form")).to_have_count(0)
        [queue_id] = claim(conn, epoch)
        start(conn, epoch, queue_id)
        conn.execute("select pgcoord.fail_phase(%s, 'it broke')", [queue_id])
        conn.execute(
            "select pgcoord_private.end_attempt(id, 1, '') from pgcoord.attempt"
            " where queue_id = %s",
            [queue_id],
        )
        await page.goto(panel)
        await expect(page.locator("#since")).to_contain_text("1 failed")
        await page.locator("#since").get_by_role("link", name="1 failed").click()
        await expect(page.locator("#events tr")).to_have_count(1)
        await expect(page.locator("#events")).to_contain_text("it broke")
        await page.goto(panel)
        await page.get_by_role("button", name="Seen").click()
        await expect(page.locator("#since form")).to_have_count(0)
    assert statuses(conn, feature) == {1: "failed", 2: "blocked"}


# --- History, attempts, logs


async def test_a_change_of_many_phases_is_one_row_of_the_history(
    page: Page, panel: str, conn: Connection
) -> None:
    feature = many(conn, 40)
    conn.execute("select pgcoord.cancel_phase(%s, 'no')", [f"queue-{feature}-31"])
    await look(page, f"{panel}/features/{feature}")
    rows = page.locator("#events tr")
    await expect(rows.nth(0)).to_contain_text("phases 32\u201340: Blocked")
    await expect(rows.nth(1)).to_contain_text("phase 31: Cancelled")
    await expect(rows.nth(2)).to_contain_text("phases 1\u201340: phase edited")
    await expect(rows.nth(3)).to_contain_text("phases 1\u201340: inserted")
    await rows.nth(0).locator("summary").click()
    await rows.nth(0).get_by_role("link", name="33").click()
    await expect(page.locator("h1")).to_have_text("Module 33 of the Move")


async def test_an_insert_of_many_phases_is_named_whole_in_the_history_of_their_feature(
    page: Page, panel: str, conn: Connection
) -> None:
    """More than are read at once; what happens afterwards does not change its row."""
    feature = many(conn, 450)
    await look(page, f"{panel}/features/{feature}")
    row = page.locator("#events tr", has_text="inserted").first
    await expect(row).to_contain_text("phases 1\u2013450: inserted")
    await row.locator("summary").click()
    await expect(row.get_by_role("link", name="and 430 more")).to_be_visible()
    await page.evaluate(
        "window.sent = []; const before = take;"
        "take = (message, glows) => { sent.push(...Object.keys(JSON.parse(message).pieces));"
        " before(message, glows); }; 0"
    )
    number = await row.get_attribute("id")
    conn.execute("select pgcoord.cancel_phase(%s, 'no')", [f"queue-{feature}-450"])
    await expect(page.locator("#events tr").first).to_contain_text("phase 450: Cancelled")
    assert number not in await page.evaluate("sent")


def write(folder: Path, text: str) -> None:
    """Have an attempt have written this."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log").write_text(text)


async def test_two_attempts_are_compared_and_durations_are_shown_over_time(
    page: Page, panel: str, scene: Scene
) -> None:
    log = "step {0}\nsame line\nat 12:0{0}:11 took {0} s\n{1}\n"
    for number, words in ((1, "3 of 214 tests failed\nnow b"), (2, "now b\ndisk full")):
        [row] = scene.sql(
            "select folder from pgcoord.attempt where queue_id = 'queue-104-6' and number = %s",
            number,
        )
        write(Path(row["folder"]), log.format(number, words))
    await look(page, f"{panel}/phases/queue-104-6")
    await page.get_by_role("link", name="Compare two").click()
    table = page.locator(".compared")
    await expect(table.locator("tr", has_text="Ran")).to_have_text(re.compile(r"12 min\s*14 min"))
    own = page.locator(".log .own")
    await expect(own).to_have_text(["only here: 3 of 214 tests failed\n", "only here: disk full\n"])
    await page.go_back()
    await page.get_by_role("link", name="how long it takes").click()
    await expect(page.locator("h1")).to_have_text("adw_sdlc_complete_iso")
    await expect(page.locator(".durations tbody tr").nth(40)).to_be_attached()
    await expect(page.locator(".durations tbody tr", has_text="104.6").first).to_contain_text(
        "14 min"
    )


@pytest.mark.scale
async def test_a_large_log_is_scrolled_and_a_search_hit_has_its_context(
    page: Page, panel: str, scene: Scene
) -> None:
    lines = 60_000
    scene.write_log(
        "queue-104-2", "".join(f"line {n} of the output\n" for n in range(1, lines + 1))
    )
    await look(page, f"{panel}/phases/queue-104-2")
    shown = page.locator("#log-text")
    numbers = """() => [...document.querySelectorAll("#log-text .l")].map(e => +e.id.slice(1))"""
    await page.locator("#follow").uncheck()  # by id: roles of so many lines take long
    first = (await page.evaluate(numbers))[0]
    for _ in range(4):
        await shown.evaluate("e => { e.scrollTop = 0; }")
        await page.wait_for_function(
            "first => +document.querySelector('#log-text .l').id.slice(1) < first", arg=first
        )
        seen = await page.evaluate(numbers)
        assert seen == list(range(seen[0], seen[0] + len(seen)))
        first = seen[0]
    assert len(seen) < 12_000
    # Anywhere at once, and on from there; parts that are far away are dropped.
    await page.locator("#log-at").evaluate(
        "e => { e.value = 0; e.dispatchEvent(new Event('change')); }"
    )
    await expect(page.locator("#L1")).to_contain_text("line 1 of")
    last = (await page.evaluate(numbers))[-1]
    await shown.evaluate("e => { e.scrollTop = e.scrollHeight; }")
    await page.wait_for_function(
        "last => +[...document.querySelectorAll('#log-text .l')].at(-1).id.slice(1) > last",
        arg=last,
    )
    seen = await page.evaluate(numbers)
    assert seen == list(range(1, len(seen) + 1))
    await page.locator("#find").fill("line 7777 ")
    await page.locator("[name=context]").check()
    await page.keyboard.press("Enter")
    found = page.get_by_role("region", name="Lines that were found")
    around = "".join(rf"line {n} of the output\s*" for n in range(7775, 7780))
    await expect(found).to_have_text(re.compile(around))


# --- Plans


async def test_a_plan_is_checked_during_typing_and_changed_by_its_rows(
    page: Page, panel: str, conn: Connection
) -> None:
    await page.goto(f"{panel}/features/new")
    text = page.locator("#plan")
    await page.get_by_role("button", name="Add a phase").click()
    await expect(text).to_have_value(re.compile("^# New feature\n\n## Phase 1: Phase 1"))
    front = "# Search\n\nBudget: $5\n\n## Phase 1: Index\n\nDo.\n\n## Notes\n\nNot  ours.\n\n"
    await text.fill(f"{front}## Phase 2: Page\nDepends on: 7\n\nShow.\n")
    await expect(page.locator("#plan-faults")).to_contain_text("line 14")
    await text.fill(f"{front}## Phase 2: Page\nDepends on: none\n\nShow.\n")
    await expect(page.locator(".plan .graph")).to_have_attribute("aria-label", "Runs as 1 and 2")
    await expect(page.locator("#plan-faults .problem")).to_have_count(0)
    # By picking: the text and the graph follow.
    await page.locator("#row-2 summary").click()
    await page.locator("#row-2").get_by_label("1 Index").check()
    await expect(text).to_have_value(re.compile(r"Phase 2: Page\nDepends on: 1\n"))
    await expect(page.locator(".plan .graph")).to_have_attribute("aria-label", "Runs as 1, then 2")
    await page.get_by_role("button", name="Add a phase").click()
    await page.get_by_label("Title of phase 3").fill("Rollout")
    await page.get_by_label("Title of phase 3").press("Tab")
    await expect(text).to_have_value(re.compile("Phase 3: Rollout"))
    await expect(page.locator(".plan .node b").last).to_have_text("Rollout")
    # A circle is said as it is picked, and can be taken back.
    await is_accessible(page)
    await page.locator("#row-1 summary").click()
    await page.locator("#row-1").get_by_label("2 Page").check()
    await expect(page.locator("#plan-faults")).to_contain_text("cycle 1 → 2 → 1")
    assert (await text.input_value()).startswith(front)
    # That nothing is checked is said, until it is.
    await page.route("**/features/new", lambda route: route.abort())
    await text.press("Enter")
    await expect(page.locator("#faults")).to_contain_text("The plan is not checked")
    await page.unroute("**/features/new")
    await text.press("Enter")
    await expect(page.locator("#faults")).to_be_hidden()
    assert conn.execute("select plan from planned_features").fetchall() == []
    await page.get_by_role("button", name="Store", exact=True).first.click()
    await expect(page.locator("h1")).to_have_text("Search")
    [stored] = conn.execute("select plan, max_cost_usd from planned_features").fetchall()
    assert [each["title"] for each in stored["plan"]] == ["Index", "Page", "Rollout"]
    assert stored["max_cost_usd"] == 5


async def test_a_plan_is_changed_by_its_rows_without_javascript(
    browser: Browser, panel: str, conn: Connection
) -> None:
    plan = [{"phase_number": n, "title": f"Part {n}", "prompt_content": "x"} for n in (1, 2, 3)]
    [row] = conn.execute(
        "select pgcoord.store_feature(%s) as id", [Jsonb({"title": "Parts", "phases": plan})]
    ).fetchall()
    async with await browser.new_context(java_script_enabled=False) as context:
        page = await context.new_page()
        await page.goto(f"{panel}/features/{row['id']}/plan")
        await page.locator("#row-3 summary").click()
        await page.locator("[name=needs-3-1]").check()
        await page.locator("#row-2 summary").click()
        await page.locator("[name=remove-2]").check()
        await page.get_by_role("button", name="Apply to the text").click()
        await expect(page.locator(".rows > li")).to_have_count(2)
        await page.get_by_role("button", name="Store & Execute").click()
        await expect(page.locator("#tree h3 a")).to_have_text(["1 Part 1", "2 Part 3"])
    [needs] = conn.execute(
        "select depends_on_phases from phase_queue where phase_number = 2"
    ).fetchall()
    assert needs == {"depends_on_phases": [1]}


# --- Edit and delete


async def test_waiting_phases_are_edited_and_deleted(
    page: Page, panel: str, conn: Connection
) -> None:
    feature = add_feature(conn, {1: [], 2: [1], 3: [2]})
    name = f"queue-{feature}-2"
    await look(page, f"{panel}/phases/{name}")
    await page.get_by_role("link", name="Edit", exact=True).click()
    await is_accessible(page)
    await page.get_by_label("Title").fill("Ours")
    await page.get_by_label("Prompt").fill("Do this.\nThen that.")
    await page.get_by_label("Workflow").select_option("the default one")
    await page.get_by_label("Depends on").fill("1 and 3")
    await page.get_by_role("button", name="Store").click()
    await expect(page.locator(".problem")).to_contain_text("are not numbers of phases")
    await page.get_by_label("Depends on").fill("none")
    # Somebody else was faster: that is said, and what was typed is not lost.
    conn.execute(
        'update phase_queue set phase_data = phase_data || \'{"title": "Theirs"}\''
        " where queue_id = %s",
        [name],
    )
    await page.get_by_role("button", name="Store").click()
    await expect(page.locator(".problem")).to_contain_text("was changed after it was read")
    await page.get_by_role("button", name="Store").click()
    await expect(page.locator("h1")).to_have_text("Ours")
    row = conn.execute(
        "select phase_data ->> 'title' as title, phase_data ->> 'prompt_content' as prompt,"
        " depends_on_phases as needs from phase_queue where queue_id = %s",
        [name],
    ).fetchone()
    assert row == {"title": "Ours", "prompt": "Do this.\nThen that.", "needs": []}

    await page.get_by_role("link", name="Delete…").click()
    await expect(page.locator("form.dialog")).to_contain_text("Phases that depend on it wait")
    await page.locator("form.dialog").get_by_role("button", name="Delete").click()
    await expect(page).to_have_url(f"{panel}/features/{feature}")
    assert set(statuses(conn, feature)) == {1, 3}
    await page.get_by_role("link", name="Delete…").click()
    await expect(page.locator("form.dialog")).to_contain_text("Its 2 phases")
    await page.locator("form.dialog").get_by_role("button", name="Delete").click()
    await expect(page).to_have_url(f"{panel}/")
    assert conn.execute("select id from planned_features").fetchall() == []


async def test_running_phases_and_rows_of_another_owner_are_neither_edited_nor_deleted(
    dsn: str, tmp_path: Path, conn: Connection, epoch: int, logins: dict[str, str]
) -> None:
    feature = add_feature(conn, {1: []})
    [name] = claim(conn, epoch)
    start(conn, epoch, name)
    async with served(dsn, tmp_path, leads=False) as site:
        shown = (await site.client.get(f"/phases/{name}")).text
        assert f'href="/phases/{name}/edit"' not in shown
        assert f'href="/phases/{name}/delete"' not in shown
        form = {"title": "x", "prompt": "y", "workflow": "", "after": "none"}
        edited = await site.client.post(f"/phases/{name}/edit", data=form)
        assert (edited.status_code, "runs or is completed" in edited.text) == (409, True)
        for address in (f"/phases/{name}", f"/features/{feature}"):
            deleted = await site.client.post(f"{address}/delete")
            assert deleted.status_code == 409, deleted.text
    theirs = make_conninfo(dsn, user=logins["coordinator"], password="secret")
    async with served(theirs, tmp_path, leads=False) as site:
        answer = await site.client.get(f"/features/{feature}/delete")
        assert (answer.status_code, "only the owner" in answer.text) == (409, True)
    assert statuses(conn, feature) == {1: "running"}
