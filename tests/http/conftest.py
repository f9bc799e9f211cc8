"""A real browser, and a panel for it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, Page
from support.database import Connection, add_feature, claim, force, start
from support.panel_browser import browsing, chromium, served
from support.panel_scene import Scene, set_scene


@pytest.fixture(scope="session")
async def browser(anyio_backend: str) -> AsyncIterator[Browser]:
    if chromium() is None:
        pytest.skip("no browser: apt-get install chromium, or name one in PGCOORD_TEST_CHROMIUM")
    async with browsing() as browser:
        yield browser


@pytest.fixture(scope="session")
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    """One window for all tests, in which nothing is animated: that would cost most of the time."""
    async with await browser.new_context(reduced_motion="reduce") as context:
        # A page that stays open keeps the process that draws: starting one costs as much as a page.
        kept = await context.new_page()
        await kept.route("**", lambda route: route.fulfill(body="kept"))
        await kept.goto("http://127.0.0.1:1/")
        yield context


@pytest.fixture
async def page(context: BrowserContext) -> AsyncIterator[Page]:
    """A page; the test fails on any error of a script or breach of the security policy."""
    page = await context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if is_fault(message) else None)
    yield page
    await page.close()
    await context.clear_cookies()  # the context is kept, and cookies are of any port
    assert faults == []


def is_fault(message: Any) -> bool:
    """Whether the console says more than that a request was refused, as tests want it to be."""
    return message.type == "error" and "Failed to load resource" not in message.text


@pytest.fixture
async def panel(dsn: str, tmp_path: Path) -> AsyncIterator[str]:
    async with served(dsn, tmp_path) as url:
        yield url


@pytest.fixture
def scene(dsn: str, tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(dsn, "here", tmp_path)
    set_scene(scene)
    yield scene
    scene.close()


@pytest.fixture
def written(conn: Connection, epoch: int, tmp_path: Path) -> Path:
    """The log of a phase that runs, queue-1-1."""
    add_feature(conn, {1: []})
    claim(conn, epoch)
    start(conn, epoch, "queue-1-1")
    force(conn, "update pgcoord.attempt set folder = %s", str(tmp_path))
    path = tmp_path / "log"
    path.write_text("begun\n")
    return path
