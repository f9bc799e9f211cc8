"""Single pages of the panel: what they show."""

import re

import anyio
import pytest
from axe_playwright_python.base import AXE_FILE_PATH
from playwright.async_api import Page, expect
from psycopg.types.json import Jsonb
from support.database import Connection, add_feature, add_phase, claim, start, statuses
from support.panel_browser import is_live, look
from support.panel_scene import add_diamond


async def test_a_schedule_is_watched_live(page: Page, panel: str, conn: Connection) -> None:
    feature = add_diamond(conn)
    conn.execute(
        "select pgcoord.add_schedule('nightly', '0 3 * * *', pgcoord.feature_plan(%s))", [feature]
    )
    await look(page, f"{panel}/schedules/nightly")
    await expect(page.locator("#next li")).to_have_count(5)
    conn.execute("select pgcoord.pause_schedule('nightly', 'a release')")
    await expect(page.locator("#schedule")).to_contain_text("a release")
    await expect(page.get_by_role("button", name="Resume")).to_be_visible()
    await expect(page.locator("#next")).to_be_hidden()
    conn.execute("select pgcoord.run_schedule('nightly')")
    await expect(page.locator("#runs tbody tr")).to_contain_text("started")


async def test_the_history_is_filtered_and_exported(
    page: Page, panel: str, conn: Connection
) -> None:
    first, second = add_diamond(conn), add_diamond(conn)
    conn.execute("select set_config('pgcoord.actor', 'dana (panel)', false)")
    conn.execute("select pgcoord.skip_phase(%s, '=1+1')", [f"queue-{first}-1"])
    conn.execute("select pgcoord.skip_phase(%s, 'x')", [f"queue-{second}-1"])
    conn.execute("select pgcoord.pause()")
    await look(page, f"{panel}/history")
    await page.get_by_label("What").select_option("completed")
    await page.get_by_label("By").fill("DANA")
    await page.get_by_label("Feature").fill(str(first))
    await page.get_by_role("button", name="Show").click()
    await is_live(page)
    await expect(page.locator("#events tr")).to_have_count(1)
    async with page.expect_download() as saved:
        await page.get_by_role("link", name="CSV").click()
    text = await anyio.Path(await (await saved.value).path()).read_text()
    assert text.count("dana (panel)") == 1
    assert ",'=1+1" in text, "no spreadsheet takes it for a formula"
    answer = await page.request.get(f"{panel}/history.json?what=paused")
    assert [each["kind"] for each in await answer.json()] == ["paused"]
    # The kind is looked at before anything is read.
    answer = await page.request.get(f"{panel}/history.xml?until=never")
    assert (answer.status, "cannot be exported as &#39;xml&#39;" in await answer.text()) == (
        404,
        True,
    )
    await look(page, f"{panel}/history?until=2001-01-01")
    await expect(page.locator("#events tr")).to_have_count(0)


async def test_an_empty_installation_runs_its_example_plan(
    page: Page, panel: str, conn: Connection
) -> None:
    await look(page, panel)
    await page.evaluate(await anyio.Path(AXE_FILE_PATH).read_text())
    found = await page.evaluate("axe.run().then(found => found.violations)")
    assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []
    await page.locator("#none").get_by_role("button", name="Store & Execute").click()
    await expect(page.locator("h1")).to_have_text("WebSocket Migration")
    assert statuses(conn) == dict.fromkeys((1, 2, 3), "queued")


async def test_a_skipped_phase_is_shown_as_skipped_on_every_page(
    page: Page, panel: str, conn: Connection
) -> None:
    feature = add_feature(conn, {1: [], 2: [1]})
    conn.execute("select pgcoord.skip_phase(%s, 'done')", [f"queue-{feature}-1"])
    await look(page, f"{panel}/features/{feature}")
    await expect(page.locator("#node-1 a.node")).to_have_attribute("title", "1 Phase 1: skipped")
    await expect(page.locator("#node-1")).to_contain_text("1 · Skipped")
    await expect(page.locator("#lane-1")).to_have_attribute("aria-label", "skipped")
    await look(page, f"{panel}/phases/queue-{feature}-2")
    await expect(page.locator("#needs-of li")).to_contain_text("skipped")
    await look(page, f"{panel}/phases/queue-{feature}-1")
    await expect(page).to_have_title("1 Phase 1, skipped · pgcoord")
    name = f"queue-{feature}-1"
    await look(page, f"{panel}/?q={name}")
    await expect(page.locator(".found .state")).to_have_text("Skipped")
    await page.get_by_role("link", name="Act on these…").click()
    await expect(page.locator("li .state")).to_have_text("Skipped")


async def test_words_fit_how_many_phases_there_are_and_how_they_are_numbered(
    page: Page, panel: str, conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {6: [], 7: []})
    for queue_id in claim(conn, epoch):
        start(conn, epoch, queue_id)
    conn.execute("select pgcoord_private.end_attempt(id, 1, '') from pgcoord.attempt")
    await look(page, panel)
    await expect(page.locator("#features")).to_contain_text("Phases 6 and 7 failed")
    await look(page, f"{panel}/phases/queue-{feature}-7")
    await expect(page.locator(".crumbs")).to_have_text(re.compile("/ phase 7$"))


async def test_what_waits_for_approval_is_no_line_for_a_slot(
    page: Page, panel: str, conn: Connection
) -> None:
    feature = add_feature(conn, {1: []}, phase_data=Jsonb({"gate": "may it?"}))
    await look(page, panel)
    rest = page.locator(".line-up .rest")
    await expect(rest).to_have_text(["Nothing waits for a slot.", "1 waits for approval"])
    add_phase(conn, feature, 2, [1])
    await look(page, panel)
    await expect(rest.nth(1)).to_have_text("1 waits for phases, 1 for approval")
    await expect(page.locator("#needs .meta")).to_contain_text(f"phase 1 of {feature} a")
    await look(page, f"{panel}/features/{feature}")
    await expect(page.locator("#timeline .keys")).to_contain_text("waits for a slot or an approval")


@pytest.mark.scale
async def test_a_graph_of_two_hundred_phases_is_drawn_without_overlaps(
    page: Page, panel: str, conn: Connection
) -> None:
    phases = {n: [m for m in (n - 7, n - 11, n - 40) if m >= 1] for n in range(1, 201)}
    feature = add_feature(conn, phases)
    await look(page, f"{panel}/features/{feature}")
    boxes = await page.evaluate(
        "[...document.querySelectorAll('#graph foreignObject')].map(each =>"
        " ['x', 'y', 'width', 'height'].map(name => +each.getAttribute(name)))"
    )
    assert len(boxes) == 200
    for i, (x, y, width, height) in enumerate(boxes):
        for x2, y2, _, _ in boxes[i + 1 :]:
            assert abs(x - x2) >= width or abs(y - y2) >= height
