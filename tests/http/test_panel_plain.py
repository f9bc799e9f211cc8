"""The panel without JavaScript, behind a proxy, and against forms of other sites."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, Route, expect
from support.database import Connection
from support.nginx import proxied
from support.panel_browser import confirm, is_live, look
from support.panel_scene import add_diamond, events_of, fail
from support.serving import served as serving_of

from pgcoord import assets
from pgcoord.http.proxy import ADDRESS


@pytest.fixture
async def plain(browser: Browser) -> AsyncIterator[Page]:
    """A page in a browser that runs no scripts."""
    async with await browser.new_context(java_script_enabled=False) as context:
        yield await context.new_page()


@pytest.mark.scale
async def test_without_javascript_everything_can_be_done(
    plain: Page, panel: str, conn: Connection, epoch: int, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.md"
    plan.write_text("# Exports\n\n## Phase 1: Tables\nadd\n\n## Phase 2: Worker\nwork\n")
    await plain.goto(panel)
    await expect(plain.locator("#live")).to_contain_text("Seen as of")
    await plain.get_by_role("link", name="New feature").click()
    await plain.get_by_label("or a file").set_input_files(plan)
    await plain.get_by_role("button", name="Store & Execute").click()
    await expect(plain.locator("h1")).to_have_text("Exports")
    await expect(plain.locator("#phase-2 .why")).to_contain_text("waits for phase 1, queued")
    queue_id = f"queue-{conn.execute('select id from planned_features').fetchall()[0]['id']}-1"
    fail(conn, epoch, queue_id)

    async def answer(link: str, button: str) -> None:
        await plain.get_by_role("link", name=link).click()
        await plain.get_by_label("Reason").fill("because")
        await plain.get_by_role("button", name=button, exact=True).click()

    await plain.goto(f"{panel}/phases/{queue_id}")
    await plain.get_by_role("link", name="Retry…").click()
    await expect(plain.locator(".change li")).to_have_count(2)
    await plain.get_by_role("link", name="Leave it").click()
    await answer("Retry…", "Retry")
    await expect(plain.locator("#head .state")).to_have_text("Queued")
    await plain.get_by_label("Priority").fill("3")
    await plain.get_by_role("button", name="Set").click()
    await expect(plain.locator("#details")).to_contain_text("3, position")
    await answer("Skip…", "Skip")
    await expect(plain.locator("#head .state")).to_have_text("Completed")
    await plain.locator("#needed-by a").click()
    await answer("Cancel phase…", "Cancel phase")
    await expect(plain.locator("#head .state")).to_have_text("Cancelled")
    await answer("Pause all", "Pause all")
    await expect(plain.locator("#notice")).to_contain_text("Everything is paused")
    await plain.get_by_role("button", name="Resume").click()
    await expect(plain.locator("#notice")).not_to_contain_text("paused")
    await plain.locator(".features h3 a").click()
    await answer("Pause…", "Pause")
    await expect(plain.locator("#head")).to_contain_text("paused by")
    await plain.locator("#head").get_by_role("button", name="Resume").click()
    await expect(plain.locator("#head")).not_to_contain_text("paused by")
    await answer("Cancel feature…", "Cancel feature")
    await expect(plain.locator("#head")).to_contain_text("because")
    await plain.goto(panel)
    await plain.get_by_label("Limit").fill("1")
    await plain.get_by_role("button", name="Set").click()
    await expect(plain.locator("#slots .free")).to_have_count(1)
    await plain.get_by_label("Search features").fill("nothing like it")
    await plain.get_by_role("button", name="Search").click()
    await expect(plain.locator("#none")).to_contain_text("No feature matches")
    await plain.goto(f"{panel}/history")
    await expect(plain.locator("#events")).to_contain_text("because")
    answered = await plain.goto(f"{panel}/phases/{queue_id}/retry")
    assert answered
    assert answered.status == 409
    await expect(plain.get_by_role("alert")).to_contain_text("PC002")


def locations(url: str) -> str:
    """The lines of docs/operating.md, and the same with a path that is cut off."""
    document = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    match = re.search(r"^    location /pgcoord/ \{.*?^    \}$", document, re.S | re.M)
    assert match
    kept = match[0].replace("http://127.0.0.1:8002", url).replace("/pgcoord/", "/kept/")
    more = "proxy_set_header X-Forwarded-Prefix /cut; proxy_set_header X-Forwarded-User dana;"
    cut = kept.replace("/kept/", "/cut/").replace(f"{url};", f"{url}/; {more}")
    return f"{kept}\n{cut}"


# Whether the WebSocket and the stream of events are opened.
_OPENS = """path => Promise.all([
    new WebSocket(`ws://${location.host}${path}/ws/queue`), new EventSource(`${path}/events`),
].map(each => new Promise(told => {
    each.onopen = () => { each.close(); told("open"); };
    each.onerror = () => told("refused");
})))"""


@pytest.mark.parametrize("path", [pytest.param("/kept", marks=pytest.mark.scale), "/cut"])
async def test_under_another_path_all_works_behind_nginx(
    page: Page, dsn: str, conn: Connection, tmp_path: Path, path: str
) -> None:
    """A proxy that hands the path on as it is, and one that cuts it off and says so."""
    feature = add_diamond(conn)
    taken: dict[str, Any] = {
        "/kept": {"public_url": "https://127.0.0.1/kept"},
        "/cut": {"trusted_proxies": ("127.0.0.1",)},
    }
    serving = serving_of(
        dsn, tmp_path, leads=False, environment={"PGCOORD_TOKEN": "x" * 32}, **taken[path]
    )
    async with serving as site:
        with proxied(tmp_path, locations(site.url)) as outside:
            await page.goto(f"{outside}{path}/")
            await page.get_by_label("Token").fill("x" * 32)
            await page.get_by_label("Your name").fill("eve")
            await page.get_by_role("button", name="Log in").click()
            await is_live(page)
            assert page.url == f"{outside}{path}/"
            kept = {c["name"]: c for c in await page.context.cookies(f"{outside}{path}/")}
            assert kept["pgcoord_session"]["path"] == path
            assert kept["pgcoord_looked"]["path"] == f"{path}/"
            await page.locator(".features h3 a").click()
            await is_live(page)
            await page.locator("#phase-1 a").first.click()
            await is_live(page)
            await page.get_by_role("link", name="Skip…").click()
            await confirm(page, "Skip", "as a test")
            await expect(page.locator("#head .state")).to_have_text("Completed")
            name = "dana" if path == "/cut" else "eve"
            await expect(page.locator("#events")).to_contain_text(f"{name} (panel)")
            # What is sent later is put under the path, too.
            await page.locator("#needed-by a").first.click()
            await expect(page.locator("h1")).to_have_text("Phase 2")
            plain = await page.request.get(f"{outside}{path}/api/v1/planned-features/{feature}")
            assert plain.status == 200
            assert await page.evaluate(_OPENS, path) == ["open", "open"]
            await page.get_by_role("button", name="Log out").click()
            assert page.url == f"{outside}{path}/login"


def test_each_attribute_with_an_address_is_put_under_the_path() -> None:
    """Also those that only the script reads."""
    templates = (assets.WEB / "templates").rglob("*.html")
    text = "".join(each.read_text() for each in templates)
    attributes = set(re.findall(r'([\w-]+)="(?:/\w|\{\{ (?:url|here|back|again|address)\b)', text))
    attributes -= {"value"}  # of a field, which comes back
    assert {name for name in attributes if not ADDRESS.match(f'{name}="/'.encode())} == set()
    assert {"href", "action", "data-part"} <= attributes


async def test_the_actor_of_an_action_is_the_name_given_at_log_in(
    page: Page, dsn: str, conn: Connection, tmp_path: Path
) -> None:
    add_diamond(conn)
    async with serving_of(dsn, tmp_path, leads=False) as site:
        await look(page, site.url)
        await page.get_by_role("link", name="Enter your name").click()
        await page.get_by_label("Your name").fill("dana")
        await page.get_by_role("button", name="Log in").click()
        await is_live(page)
        await expect(page.locator("footer")).to_contain_text("you are dana (panel)")
        await page.get_by_role("link", name="Pause all").click()
        await confirm(page, "Pause all", "maintenance")
        await expect(page.locator("#notice")).to_contain_text(
            "Everything is paused by dana (panel)"
        )
    environment = {"PGCOORD_TOKEN": "x" * 32, "NIGHTLY": "y" * 32}
    async with serving_of(
        dsn, tmp_path, leads=False, environment=environment, tokens=("NIGHTLY",)
    ) as site:
        answer = await site.client.post(
            "/api/v1/queue/resume", headers={"authorization": f"Bearer {'y' * 32}"}
        )
        assert answer.status_code == 200
        forged = {"authorization": f"Bearer {'x' * 32}", "x-forwarded-user": "root"}
        assert (await site.client.post("/api/v1/queue/pause", headers=forged)).status_code == 200
    assert events_of(conn, "resumed")[0]["actor"] == "NIGHTLY (127.0.0.1)"
    assert events_of(conn, "paused")[0]["actor"] == "http (127.0.0.1)"


async def test_a_form_of_another_site_is_refused(page: Page, panel: str, conn: Connection) -> None:
    async def foreign(route: Route) -> None:
        form = f'<form method=post action="{panel}/pause"><button>Win</button></form>'
        await route.fulfill(body=form, content_type="text/html")

    await page.route("http://elsewhere.test/", foreign)
    await page.goto("http://elsewhere.test/")
    await page.get_by_role("button").click()
    await expect(page.locator("body")).to_contain_text("another site")
    assert events_of(conn, "paused") == []
