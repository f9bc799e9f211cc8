"""The panel's pages: their weight and time, and how long after a commit their text has changed.

    PYTHONPATH=tests .venv/bin/python tests/load/panel.py [--weights | --finished 1000000]

It makes a Postgres, a server and a headless Chromium of its own. The clock runs from just before
the commit is sent to the moment at which a MutationObserver sees the text: the clocks of the
browser and of this program are that of the machine.
"""

import argparse
import asyncio
import contextlib
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import httpx2
import psycopg
from playwright.async_api import Page
from support.panel_browser import browsing, served

from pgcoord.assets import SQL
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
    parser.add_argument("--weights", action="store_true", help="only the weights and times")
    parser.add_argument("--finished", type=int, help="only the overview, beside so many phases")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        postgres = EmbeddedPostgres(Path(scratch, "postgres"), None)
        postgres.start()
        try:
            if given.finished is not None:
                asyncio.run(compare(postgres.dsn, Path(scratch), given.finished))
                return
            asyncio.run(weigh(postgres.dsn, Path(scratch)))
            if not given.weights:
                asyncio.run(measure(postgres.dsn, Path(scratch), given.changes, given.phases))
        finally:
            postgres.stop()


# Sizes of features whose pages are weighed.
_SIZES = (10, 40, 200, 500)  # a graph of 40 is the largest that is pushed


async def weigh(dsn: str, folder: Path) -> None:
    """Print the bytes and the time of each page, and what is sent when one phase changes."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        schema.upgrade(conn)
        for size in _SIZES:
            title = f"Of {size} phases"
            conn.execute(
                "insert into planned_features (id, title) values (%s, %s)", [1000 + size, title]
            )
            conn.execute(
                "insert into phase_queue (feature_id, phase_number, depends_on_phases, phase_data)"
                " select %s, n, case when n %% 10 = 1 then '[]' else jsonb_build_array(n - 1) end,"
                " jsonb_build_object('title', 'Step ' || n)"
                " from generate_series(1, %s) as n",
                [1000 + size, size],
            )
        conn.execute("analyze")
    say("page, and what is pushed when one of its phases changes; median of five\n")
    say(f"{'page':<24}{'bytes':>10}{'time':>10}{'pushed':>10}")
    async with (
        served(dsn, folder, patience=1000) as url,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn,
        httpx2.AsyncClient(base_url=url, timeout=60) as client,
    ):
        pages = {"overview": "/", "history": "/history"}
        pages |= {f"feature of {size}": f"/features/{1000 + size}" for size in _SIZES}
        pages |= {f"phase of {size}": f"/phases/queue-{1000 + size}-10" for size in _SIZES}
        pages |= {f"several of {size}": f"/several?feature={1000 + size}" for size in _SIZES}
        for name, address in pages.items():
            took = []
            for _ in range(5):
                began = time.perf_counter()
                answer = await client.get(address)
                took.append(1000 * (time.perf_counter() - began))
            seen = re.search(r'data-seen="([^"]+)"', answer.text)
            pushed = await push(client, conn, address, seen[1]) if seen else None
            words = "" if pushed is None else f"{pushed:,}"
            say(f"{name:<24}{len(answer.content):>10,}{sorted(took)[2]:>7.0f} ms{words:>10}")
    say("")


async def compare(dsn: str, folder: Path, finished: int) -> None:
    """Print the time of the overview beside nothing, and beside finished phases; asked in turns."""
    async with contextlib.AsyncExitStack() as stack:
        clients = {}
        # As many features as the overview shows make its page as long as any number does.
        for size in (0, 20_000, finished):
            name = f"beside_{size}"
            with psycopg.connect(dsn, autocommit=True) as conn:
                conn.execute(f"create database {name}".encode())
            there = psycopg.conninfo.make_conninfo(dsn, dbname=name)
            with psycopg.connect(there, autocommit=True) as conn:
                schema.upgrade(conn)
                text = (SQL / "bench/finished.sql").read_text()
                conn.execute(text.replace("{features}", str(size // 100)).encode())
                conn.execute(
                    "insert into planned_features (id, title)"
                    " select n, 'Open ' || n from generate_series(1, 10) as n"
                )
                conn.execute(
                    "insert into phase_queue (feature_id, phase_number)"
                    " select f, n from generate_series(1, 10) as f, generate_series(1, 10) as n"
                )
                conn.execute("vacuum analyze")
            url = await stack.enter_async_context(served(there, folder / name, patience=5000))
            clients[size] = await stack.enter_async_context(
                httpx2.AsyncClient(base_url=url, timeout=60)
            )
        took: dict[int, list[float]] = {size: [] for size in clients}
        for _ in range(60):
            for size, client in clients.items():
                began = time.perf_counter()
                await client.get("/")
                took[size].append(1000 * (time.perf_counter() - began))
        middle = {size: sorted(each)[len(each) // 2] for size, each in took.items()}
        say(f"{'finished phases':>16}{'overview':>10}{'ratio':>8}")
        for size in clients:
            say(f"{size:>16,}{middle[size]:>7.1f} ms{middle[size] / middle[0]:>8.2f}")


async def push(
    client: httpx2.AsyncClient, conn: psycopg.AsyncConnection[object], address: str, seen: str
) -> int:
    """Return the bytes of the news after the change of a phase."""
    feature = re.search(r"10\d\d|11\d\d|12\d\d|15\d\d", address)
    queue_id = f"queue-{feature[0] if feature else 1010}-10"  # nothing depends on it
    async with client.stream("GET", address, params={"live": seen}) as stream:
        changed = False
        kind = ""
        async for line in stream.aiter_lines():
            kind = line.removeprefix("event: ") if line.startswith("event: ") else kind
            if kind == "live" and not changed:
                changed = True
                await conn.execute(
                    b"select case when status = 'cancelled' then pgcoord.retry_phase(queue_id)"
                    b" else pgcoord.cancel_phase(queue_id, null) end"
                    b" from phase_queue where queue_id = %s",
                    [queue_id],
                )
            if kind in ("news", "all") and changed and line.startswith("data: "):
                return len(line)
    return 0


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
        served(dsn, folder, patience=1000) as url,
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
