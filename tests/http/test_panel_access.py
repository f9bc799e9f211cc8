"""Text of clients never becomes a script, and the panel is accessible."""

from pathlib import Path
from typing import Any

import anyio
import pytest
from axe_playwright_python.base import AXE_FILE_PATH
from playwright.async_api import Browser, Page, expect
from psycopg.types.json import Jsonb
from support.database import Connection, add_phase, claim, force, start, statuses
from support.panel_browser import confirm, is_live, look
from support.panel_scene import Scene, add_diamond, fail

SCRIPT = '<img src=x onerror="hacked=1"><script>hacked=1</script>"\'>{{7*7}}</textarea></title>'


async def test_no_text_becomes_a_script(
    page: Page, panel: str, conn: Connection, epoch: int, tmp_path: Path
) -> None:
    conn.execute("select set_config('pgcoord.actor', %s, false)", [SCRIPT])
    conn.execute(
        "insert into planned_features (id, title, description, item_type, tags)"
        " values (1, %s, %s, %s, %s)",
        [SCRIPT, SCRIPT, SCRIPT, Jsonb([SCRIPT])],
    )
    data = {"title": SCRIPT, "prompt_content": SCRIPT, "files": [SCRIPT]}
    add_phase(conn, 1, 1, phase_data=Jsonb(data))
    add_phase(conn, 1, 2, [1], phase_data=Jsonb({**data, "workflow_type": SCRIPT}))
    add_phase(conn, 1, 3, [], phase_data=Jsonb({**data, "workflow_type": SCRIPT}))
    fail(conn, epoch, "queue-1-1", SCRIPT)
    force(conn, "update pgcoord.attempt set folder = %s, adw_id = %s", str(tmp_path), SCRIPT)
    (tmp_path / "log").write_text(SCRIPT)
    add_phase(conn, 1, 4, phase_data=Jsonb({"title": SCRIPT}), priority=1)
    start(conn, epoch, *claim(conn, epoch))
    force(conn, "update pgcoord.attempt set folder = %s where exited_at is null", str(tmp_path))
    conn.execute("select pgcoord.pause(1, %s)", [SCRIPT])
    conn.execute("select pgcoord.pause(null, %s)", [SCRIPT])
    await look(page, panel)
    await expect(page.locator("#feature-1 h3")).to_have_text(SCRIPT)
    await expect(page.locator("#slots h3").first).to_have_text(SCRIPT)
    await expect(page.locator("#slots .last code").first).to_have_text(SCRIPT)
    await look(page, f"{panel}/?q={SCRIPT.replace('#', '')}&show=all")
    await look(page, f"{panel}/history")
    await look(page, f"{panel}/features/1")
    await expect(page.locator("h1")).to_have_text(SCRIPT)
    await expect(page.locator("#phase-1 .why")).to_contain_text(SCRIPT)
    await page.locator("#phase-1 a").click()
    await is_live(page)
    await expect(page.locator("#prompt pre")).to_have_text(SCRIPT)
    await expect(page.locator("#log-text")).to_have_text(SCRIPT)
    await page.get_by_role("link", name="Retry…").click()
    await confirm(page, "Retry", SCRIPT)
    await expect(page.locator("#events")).to_contain_text(SCRIPT)
    await page.goto(f"{panel}/features/new")
    await page.get_by_label("Plan, Markdown").fill(f"# x\n\n## Phase {SCRIPT}\n")
    await page.get_by_role("button", name="Store", exact=True).first.click()
    await expect(page.get_by_role("alert")).to_be_visible()
    assert await page.evaluate("typeof hacked") == "undefined"


@pytest.mark.scale
async def test_axe_finds_nothing_on_any_page_in_any_colours(
    page: Page, panel: str, scene: Scene, conn: Connection
) -> None:
    axe = await anyio.Path(AXE_FILE_PATH).read_text()

    async def check(*, dark: bool = True) -> None:
        await page.evaluate(axe)
        looks: list[tuple[Any, Any]] = [("light", {}), ("dark", {"runOnly": ["color-contrast"]})]
        for colours, options in looks[: 1 + dark]:
            await page.emulate_media(color_scheme=colours, reduced_motion="reduce")
            run = "options => axe.run(options).then(found => found.violations)"
            found = await page.evaluate(run, {"resultTypes": ["violations"], **options})
            assert [(page.url, each["id"], each["nodes"][0]["html"]) for each in found] == []

    conn.execute(
        "select pgcoord.add_schedule('nightly', '0 3 * * *', pgcoord.feature_plan(104), 'UTC')"
    )
    conn.execute("select pgcoord.run_schedule('nightly')")
    for address in (
        *(
            "/",
            "/?q=nothing",
            "/?show=failed",
            "/history?what=failed",
            "/history?before=12",
            "/features/new",
        ),
        *("/features/120", "/login", "/features/118", "/features/115", "/features/101/cancel"),
        *("/features/118/plan", "/several?show=failed", "/pause", "/features/999"),
        *("/phases/queue-104-2", "/phases/queue-104-6", "/phases/queue-104-2?find=passed"),
        *("/phases/queue-104-1/retry", "/phases/queue-104-6/compare"),
        *("/workflows/adw_sdlc_complete_iso", "/schedules/nightly"),
    ):
        await page.goto(panel + address)
        await check(dark=address in ("/", "/features/118/plan", "/phases/queue-104-2", "/login"))
    await look(page, f"{panel}/features/104")
    await check()
    conn.execute("select pgcoord.pause(null, 'maintenance')")
    await expect(page.locator("#notice")).to_contain_text("maintenance")
    await page.evaluate("lose('as a test')")
    await page.get_by_role("link", name="Retry…").click()
    await expect(page.get_by_role("dialog")).to_be_visible()
    await check()


async def test_the_keyboard_alone_can_do_everything(
    page: Page, panel: str, conn: Connection, epoch: int
) -> None:
    feature = add_diamond(conn)
    fail(conn, epoch, f"queue-{feature}-1")
    await look(page, panel)

    async def tab_to(name: str) -> None:
        for _ in range(60):
            await page.keyboard.press("Tab")
            focused = await page.evaluate(
                "(document.activeElement.labels?.[0] || document.activeElement).textContent.trim()"
            )
            if focused == name:
                return
        raise AssertionError(f"no way to {name!r} by Tab")

    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.textContent") == "Skip to content"
    await page.keyboard.press("Enter")
    await tab_to("Retry…")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_be_hidden()
    assert await page.evaluate("document.activeElement.textContent") == "Retry…"
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog")).to_be_visible()
    await page.keyboard.type("by keyboard")
    await page.keyboard.press("Enter")
    await expect(page.locator("#needs")).to_be_hidden()
    assert statuses(conn, feature)[1] == "queued"
    await tab_to("Limit")
    await page.keyboard.type("4")
    await page.keyboard.press("Enter")
    await expect(page.locator("#slots .free")).to_have_count(4)
    await page.goto(f"{panel}/features/{feature}")
    await is_live(page)
    await tab_to("1 Phase 1")
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/phases/*")  # the page before is live, too
    await is_live(page)
    await tab_to("Cancel phase…")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog")).to_be_visible()
    await tab_to("Cancel phase")
    await page.keyboard.press("Enter")
    await expect(page.locator("#head .state")).to_have_text("Cancelled")


async def test_keys_search_step_and_ask(
    page: Page, panel: str, conn: Connection, epoch: int
) -> None:
    feature = add_diamond(conn)
    fail(conn, epoch, f"queue-{feature}-1")
    await look(page, panel)
    focused = "document.activeElement.textContent.trim()"
    await page.keyboard.press("j")
    assert (await page.evaluate(focused)).startswith("Phase 1")
    await page.keyboard.press("j")
    assert await page.evaluate(focused) == "a"
    await page.keyboard.press("k")
    await page.keyboard.press("r")
    await expect(page.get_by_role("dialog")).to_contain_text("Retry phase 1")
    await page.keyboard.press("Escape")
    await page.keyboard.press("?")
    await expect(page.get_by_role("dialog")).to_contain_text("these keys")
    await page.keyboard.press("Escape")
    await page.keyboard.press("/")
    await page.keyboard.type("phase 3")
    await page.keyboard.press("Enter")
    await is_live(page)
    await expect(page.locator("#found li")).to_have_count(1)
    await expect(page.locator("#found")).to_contain_text("3 Phase 3")
    await look(page, f"{panel}/?show=blocked")
    await expect(page.locator("#found li")).to_have_count(3)
    await page.locator(".found a").first.click()
    await expect(page.locator("h1")).to_have_text("Phase 2")
    await page.keyboard.press("g")
    await page.keyboard.press("o")
    await expect(page.locator("#features")).to_be_visible()


@pytest.mark.scale
async def test_everything_fits_on_a_phone(browser: Browser, panel: str, scene: Scene) -> None:
    async with await browser.new_context(viewport={"width": 320, "height": 640}) as context:
        page = await context.new_page()
        pages = ("/", "/features/104", "/phases/queue-104-2", "/history", "/features/new", "/login")
        for address in pages:
            await page.goto(panel + address)
            wide = "document.documentElement.scrollWidth"
            assert (address, await page.evaluate(wide)) == (address, 320)
