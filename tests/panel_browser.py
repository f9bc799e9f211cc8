"""A real Chromium (Debian's, or any that `PGCOORD_TEST_CHROMIUM` names), and a panel for it."""

import contextlib
import os
import shutil
from collections.abc import AsyncIterator

from playwright.async_api import Browser, async_playwright

from pgcoord.configuration import Server
from pgcoord.http.door import Database, Door
from pgcoord.http.feed import Feed
from pgcoord.http.security import read_access
from pgcoord.http.server import bind, serving, url_of


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


@contextlib.asynccontextmanager
async def served(dsn: str, host: str = "here") -> AsyncIterator[str]:
    """Serve the panel of a database without coordinating it; yields its address.

    `host` is the machine whose logs it can read.
    """
    with bind("127.0.0.1", 0) as taken:
        door = Door(
            database=Database(dsn),
            feed=Feed(dsn),
            access=read_access(Server(), {}, address="127.0.0.1", name="127.0.0.1"),
            host=host,
            leads=lambda: True,
            obstacle=None,
        )
        async with serving(door, taken):
            yield url_of(taken)
