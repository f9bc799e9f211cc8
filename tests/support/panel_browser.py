"""A real Chromium (Debian's, or any that `PGCOORD_TEST_CHROMIUM` names), and a panel for it."""

import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

from support import PATIENCE, serving

expect.set_options(timeout=PATIENCE * 1000)


def chromium() -> str | None:
    """Where it is; None where there is none."""
    given = os.environ.get("PGCOORD_TEST_CHROMIUM")
    # The first has no window, and takes half the processor time of the others.
    names = ("chromium-headless-shell", "chromium", "chromium-browser")
    return given or next(filter(None, map(shutil.which, names)), None)


@contextlib.asynccontextmanager
async def browsing() -> AsyncIterator[Browser]:
    """A browser, until the block ends."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium(),
            args=["--no-sandbox", "--disable-gpu", "--renderer-process-limit=1"],
        )
        make_context = browser.new_context

        async def new_context(**settings: Any) -> BrowserContext:
            """Make one that has the patience of the tests, for pages and clicks, too."""
            context = await make_context(**settings)
            context.set_default_timeout(PATIENCE * 1000)
            return context

        browser.new_context = new_context  # type: ignore[method-assign]
        try:
            yield browser
        finally:
            await browser.close()


@contextlib.asynccontextmanager
async def served(
    dsn: str, folder: Path, host: str = "here", *, patience: float = 2 * PATIENCE
) -> AsyncIterator[str]:
    """Serve the panel of a database that nobody coordinates; yields its address.

    `host` is the machine whose logs it can read.
    """
    async with serving.served(dsn, folder, leads=False, patience=patience) as site:
        site.state.coordinator.host = host
        yield site.url


async def look(page: Page, address: str) -> None:
    """Open a page, and wait until it is live."""
    await page.goto(address)
    await is_live(page)


async def is_live(page: Page) -> None:
    """Wait until a page is live."""
    await expect(page.locator("#live strong")).to_have_text("Live")


def tree_state(page: Page, number: int) -> Any:
    return page.locator(f"#phase-{number} .state")


async def confirm(page: Page, verb: str, reason: str) -> None:
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Reason").fill(reason)
    await dialog.get_by_role("button", name=verb, exact=True).click()
    await expect(dialog).to_be_hidden()
