"""A real Chromium: Debian's, or any that `PGCOORD_TEST_CHROMIUM` names."""

import contextlib
import os
import shutil
from collections.abc import AsyncIterator

from playwright.async_api import Browser, async_playwright


def chromium() -> str | None:
    """Where it is; None where there is none."""
    given = os.environ.get("PGCOORD_TEST_CHROMIUM")
    return given or shutil.which("chromium") or shutil.which("chromium-browser")


@contextlib.asynccontextmanager
async def browsing() -> AsyncIterator[Browser]:
    """A browser, until the block ends."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            yield browser
        finally:
            await browser.close()
