"""Takes the pictures in docs/screenshots: each page of the panel, on a desk, a phone, in the dark.

Run by `make screenshots`.
"""

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
from panel_browser import browsing
from panel_scene import Scene, set_scene
from playwright.async_api import Browser

from pgcoord import schema
from pgcoord.configuration import Server
from pgcoord.embedded import EmbeddedPostgres
from pgcoord.http.door import Database, Door
from pgcoord.http.feed import Feed
from pgcoord.http.security import read_access
from pgcoord.http.server import bind, serving, url_of

PAGES = {
    "overview": "/",
    "feature": "/features/104",
    "phase": "/phases/queue-104-2",
    "retry": "/phases/queue-104-6/retry",
    "new": "/features/new",
    "history": "/history",
}
LOOKS = {
    "": {"viewport": {"width": 1280, "height": 900}},
    "-dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "-phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2},
}


@contextlib.asynccontextmanager
async def served(dsn: str) -> AsyncIterator[str]:
    """Serve the panel of a database without coordinating it; yields its address."""
    with bind("127.0.0.1", 0) as taken:
        door = Door(
            database=Database(dsn),
            feed=Feed(dsn),
            access=read_access(Server(), {}, address="127.0.0.1", name="127.0.0.1"),
            host="build-2",
            leads=lambda: True,
            obstacle=None,
        )
        async with serving(door, taken):
            yield url_of(taken)


async def take(browser: Browser, url: str, folder: Path, pages: list[str]) -> None:
    """Take all pictures."""
    for look, options in LOOKS.items():
        context = await browser.new_context(timezone_id="UTC", **options)
        page = await context.new_page()
        for name in pages:
            await page.goto(url + PAGES[name])
            if await page.locator("#live").count():
                await page.locator("#live strong", has_text="Live").wait_for()
            await page.screenshot(path=folder / f"{name}{look}.png", full_page=True)
        await context.close()


async def main(folder: Path, pages: list[str]) -> None:
    """Set the scene in a Postgres of its own, and take the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        postgres = EmbeddedPostgres(Path(scratch, "postgres"), None)
        postgres.start()
        try:
            with psycopg.connect(postgres.dsn, autocommit=True) as conn:
                schema.upgrade(conn)
            scene = Scene(postgres.dsn, "build-2", Path(scratch, "runs"))
            set_scene(scene)
            async with browsing() as browser, served(postgres.dsn) as url:
                await take(browser, url, folder, pages)
            scene.close()
        finally:
            postgres.stop()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2:] or list(PAGES)))
