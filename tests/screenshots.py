"""Takes the pictures in docs/screenshots: each page of the panel, on a desk, a phone, in the dark.

Run by `make screenshots`.
"""

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

import psycopg
from playwright.async_api import Browser
from support.panel_browser import browsing, served
from support.panel_scene import Scene, set_scene

from pgcoord.database import schema
from pgcoord.database.embedded import EmbeddedPostgres

PAGES = {
    "overview": "/",
    "feature": "/features/104",
    "phase": "/phases/queue-104-2",
    "retry": "/features/104",
    "new": "/features/new",
    "history": "/history",
}
LOOKS: dict[str, Any] = {
    "": {"viewport": {"width": 1280, "height": 900}},
    "-dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "-phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 1.25},
}


async def take(browser: Browser, url: str, folder: Path, pages: list[str]) -> None:
    """Take all pictures."""
    for look, options in LOOKS.items():
        context = await browser.new_context(timezone_id="UTC", **options)
        page = await context.new_page()
        for name in pages:
            await page.goto(url + PAGES[name])
            if await page.locator("#live").count():
                await page.locator("#live strong", has_text="Live").wait_for()
            if name == "retry":
                await page.get_by_role("link", name="Retry…").click()
                await page.get_by_role("dialog").wait_for()
            await page.screenshot(
                path=folder / f"{name}{look}.png", full_page=name not in ("retry", "history")
            )
        await context.close()


async def main(folder: Path, pages: list[str]) -> None:
    """Set the scene in a Postgres of its own, and take the pictures."""
    with tempfile.TemporaryDirectory() as scratch:
        postgres = EmbeddedPostgres(Path(scratch, "postgres"), None)
        postgres.start()
        try:
            with psycopg.connect(postgres.dsn, autocommit=True) as conn:
                schema.upgrade(conn)
            scene = Scene(postgres.dsn, "build-2", Path(scratch, "runs"))
            set_scene(scene)
            async with browsing() as browser, served(postgres.dsn, Path(scratch), "build-2") as url:
                await take(browser, url, folder, pages)
            scene.close()
        finally:
            postgres.stop()


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    asyncio.run(main(target, sys.argv[2:] or list(PAGES)))
