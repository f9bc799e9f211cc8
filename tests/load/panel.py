"""How long after a commit its text has changed in the browser, on each page of the panel.

    PYTHONPATH=tests .venv/bin/python tests/load/panel.py

It makes a Postgres, a server and a headless Chromium of its own. The clock runs from just before
the commit is sent to the moment at which a MutationObserver sees the text: the clocks of the
browser and of this program are that of the machine.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

import psycopg
from playwright.async_api import Page
from support.panel_browser import browsing, served

from pgcoord.database import schema
from pgcoord.database.embedded import EmbeddedPostgres

_WATCH = """selector => new Promise(resolve => {
    const text = () => document.querySelector(selector)?.textContent;
    const before = text();
    new MutationObserver((_, observer) => {
        if (text() === before) return;
        observer.disconnect();
        resolve(performance.timeOrigin + performance.now());
    }).observe(document.body, {subtree: true, childList: true, characterData: true});
})"""


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--changes", type=int, default=100, help="of each page (100)")
    parser.add_argument("--phases", type=int, default=10, help="of the feature (10)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        postgres = EmbeddedPostgres(Path(scratch, "postgres"), None)
        postgres.start()
        try:
            asyncio.run(measure(postgres.dsn, Path(scratch), given.changes, given.phases))
        finally:
            postgres.stop()


async def measure(dsn: str, folder: Path, changes: int, phases: int) -> None:
    """Change a phase again and again while each of the pages is looked at."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        schema.upgrade(conn)
        conn.execute("insert into planned_features (id, title) values (1, 'Latency')")
        conn.execute(
            "insert into phase_queue (feature_id, phase_number) select 1, generate_series(1, %s)",
            [phases],
        )
    say(f"commit → changed text; {changes} changes a page, a feature of {phases} phases,")
    say(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    say(f"{'page':<10}{'p50':>10}{'p99':>10}{'worst':>10}")
    async with (
        browsing() as browser,
        served(dsn, folder) as url,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn,
    ):
        page = await browser.new_page()
        for name, address, selector in (
            ("overview", "/", "#tally"),
            ("feature", "/features/1", "#phase-1 .state"),
            ("phase", "/phases/queue-1-1", "#head .state"),
        ):
            await page.goto(url + address)
            await page.locator("#live strong", has_text="Live").wait_for()
            found = sorted([await change(page, conn, selector) for _ in range(changes)])
            middle, high = (
                found[len(found) // 2],
                found[min(len(found) - 1, len(found) * 99 // 100)],
            )
            say(f"{name:<10}{middle:>7.1f} ms{high:>7.1f} ms{found[-1]:>7.1f} ms")


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def change(page: Page, conn: psycopg.AsyncConnection[object], selector: str) -> float:
    """Commit one change; return the milliseconds until it is seen."""
    await page.evaluate(
        "script => { window.watched = eval(script[0])(script[1]); }", [_WATCH, selector]
    )
    await asyncio.sleep(0.15)  # what the last change has drawn is over
    began = time.time() * 1000
    await conn.execute(
        b"select case when status = 'cancelled' then pgcoord.retry_phase(queue_id)"
        b" else pgcoord.cancel_phase(queue_id, null) end from phase_queue"
        b" where queue_id = 'queue-1-1'"
    )
    seen: float = await page.evaluate("window.watched")
    return seen - began


if __name__ == "__main__":
    main()
