"""What a page shows changes by itself, and catches up after a lost connection."""

import asyncio
import contextlib
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
from playwright.async_api import Browser, Page, expect
from psycopg.types.json import Jsonb
from support import PATIENCE
from support.coordination import Gate
from support.database import Connection, add_feature, claim, start
from support.forks import Fork, run_forked
from support.panel_browser import is_live, look, served, tree_state
from support.panel_scene import Scene, add_diamond
from support.ports import free_port

from pgcoord.database import schema
from pgcoord.database.embedded import EmbeddedPostgres


class Service:
    """`pgcoord serve` as a process of its own."""

    def __init__(self, folder: Path, dsn: str, port: int) -> None:
        self._folder, self._dsn, self.url = folder, dsn, f"http://127.0.0.1:{port}"
        self._port = port
        self.process: Fork | None = None

    async def start(self) -> None:
        self.process = run_forked(
            ["serve", "--dsn", self._dsn, "--port", str(self._port)],
            folder=self._folder,
            environment=os.environ,
        )

    async def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process:
            self.process.send_signal(number)
            await asyncio.to_thread(self.process.wait, PATIENCE)


@contextlib.asynccontextmanager
async def service(folder: Path, dsn: str) -> AsyncIterator[Service]:
    (folder / "pgcoord.toml").write_text(
        '[workflow.work]\ncommand = ["sh", "{prompt_file}"]\ndefault = true\n'
    )
    service = Service(folder, dsn, free_port())
    await service.start()
    try:
        yield service
    finally:
        await service.end()


async def arrive(page: Page, address: str) -> None:
    """Open a page of a server that is just starting."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(Exception):
                await page.goto(address)
                return
            await asyncio.sleep(0.05)


async def test_the_flow_of_the_specification_is_watched_live(
    page: Page, dsn: str, tmp_path: Path
) -> None:
    gates = {n: Gate(tmp_path / f"gate{n}") for n in range(1, 6)}
    plan = ["# Live updates", ""]
    for number, title, needs in (
        (1, "Database Schema", "none"),
        (2, "Backend API", "1"),
        (3, "Frontend UI", "1"),
        (4, "Integration Tests", "2, 3"),
        (5, "Documentation", "1"),
    ):
        plan += [f"## Phase {number}: {title}", f"Depends on: {needs}", ""]
        plan += [f"read _ < {gates[number].path}", ""]
    async with service(tmp_path, dsn) as running:
        await arrive(page, f"{running.url}/features/new")
        await page.get_by_label("Plan, Markdown").fill("\n".join(plan))
        await page.get_by_role("button", name="Store & Execute").click()
        await is_live(page)

        async def stands(*states: str) -> None:
            for number, state in enumerate(states, 1):
                await expect(tree_state(page, number)).to_have_text(state)

        await stands("Running", "Queued", "Queued", "Queued", "Queued")
        await expect(page.locator("#phase-4 .why")).to_contain_text("waits for phase 2, queued")
        gates[1].open()
        await stands("Completed", "Running", "Running", "Queued", "Running")
        gates[2].open()
        await stands("Completed", "Completed", "Running", "Queued", "Running")
        await expect(page.locator("#phase-4 .why")).to_have_text("waits for phase 3, running")
        gates[3].open()
        await stands("Completed", "Completed", "Completed", "Running", "Running")
        gates[4].open()
        gates[5].open()
        await stands(*["Completed"] * 5)
        await expect(page).to_have_title("Live updates, 5/5 · pgcoord")
        await expect(page.locator("#facts")).to_contain_text("5/5 (100 %)")
        await expect(page.locator(".graph .edge.met")).to_have_count(5)
        await expect(page.locator(".graph .edge.broken")).to_have_count(0)


async def test_a_slot_shows_the_last_line_of_output_and_for_how_long_there_was_none(
    page: Page, panel: str, conn: Connection, written: Path
) -> None:
    with written.open("w") as log:
        log.write("one\n\x1b[32mtwo\x1b[0m\n\n")
    await look(page, panel)
    last = page.locator("#slot-1 .last")
    await expect(last).to_have_text("two")
    with written.open("a") as log:
        log.write("12 %\r80 %\r")
    await expect(last).to_have_text("80 %")
    long_ago = time.time() - 725  # 55 s before it would be the next minute
    os.utime(written, (long_ago, long_ago))
    await expect(last).to_have_text("silent for 12 min: 80 %")
    conn.execute("update pgcoord.attempt set host = 'elsewhere'")
    await look(page, panel)
    await expect(last).to_be_empty()


async def test_the_queue_gives_reasons_and_times_and_a_free_slot_its_reason(
    page: Page, panel: str, scene: Scene, conn: Connection
) -> None:
    await look(page, panel)
    line = page.locator("#line li")
    await expect(line.nth(0)).to_contain_text(re.compile(r"Export Worker.*about .*\d\d:\d\d", re.S))
    await expect(line.nth(0)).to_contain_text("112, phase 2: priority 50")
    await expect(line.nth(1)).to_contain_text("104, phase 5: priority 60 comes after 50")
    conn.execute("select pgcoord.pause(null, 'x')")
    await expect(page.locator("#line .when")).to_have_count(0)
    conn.execute("select pgcoord.set_slots(6)")
    await expect(page.locator(".slot.free").first).to_have_text(
        re.compile(r"Slot \d is free\s*everything is paused")
    )
    conn.execute("select pgcoord.resume()")
    conn.execute(
        "select pgcoord.cancel_feature(id, 'x') from pgcoord.feature"
        " where status in ('planned', 'in_progress')"
    )
    await expect(page.locator(".slot.free").first).to_contain_text("nothing waits for it")


@pytest.mark.scale
async def test_two_browsers_see_the_same(
    browser: Browser, page: Page, panel: str, conn: Connection, epoch: int
) -> None:
    feature = add_diamond(conn)
    async with await browser.new_context() as context:
        other = await context.new_page()
        await look(page, f"{panel}/features/{feature}")
        await look(other, f"{panel}/features/{feature}")
        claim(conn, epoch)
        for each in (page, other):
            await expect(tree_state(each, 1)).to_have_text("Ready")
        start(conn, epoch, f"queue-{feature}-1")
        for each in (page, other):
            await expect(tree_state(each, 1)).to_have_text("Running")


async def test_unchanged_elements_are_not_touched(
    page: Page, panel: str, conn: Connection, epoch: int
) -> None:
    feature = add_diamond(conn)
    conn.execute("update planned_features set description = 'words' where id = %s", [feature])
    await look(page, f"{panel}/features/{feature}")
    await page.get_by_text("What it is about").click()
    await page.locator("#phase-3 a").focus()
    await page.evaluate("document.querySelectorAll('#phase-1, #phase-4').forEach(e => e.mine = 1)")
    await page.evaluate("getSelection().selectAllChildren(document.querySelector('h1'))")
    claim(conn, epoch)
    await expect(tree_state(page, 1)).to_have_text("Ready")
    assert await page.evaluate("document.querySelector('#phase-4').mine") == 1
    assert await page.evaluate("document.querySelector('#phase-1').mine") == 1
    assert await page.evaluate("document.activeElement.closest('li').id") == "phase-3"
    assert await page.evaluate("String(getSelection())") == "a"
    await expect(page.locator(".description pre")).to_be_visible()


async def test_only_changed_pieces_are_sent(
    page: Page, panel: str, conn: Connection, epoch: int
) -> None:
    for _ in range(30):
        add_feature(conn, {1: []})
    await look(page, panel)
    await page.evaluate(
        "window.sent = []; const before = take;"
        "take = (message, glows) => { sent.push(message); before(message, glows); }; 0"
    )
    conn.execute("select pgcoord.skip_phase('queue-7-1', 'not needed')")
    await expect(page.locator("#feature-7 .count")).to_have_text("1/1 (100 %)")
    pieces = await page.evaluate("sent.flatMap(each => Object.keys(JSON.parse(each).pieces))")
    assert "feature-7" in pieces
    assert {each for each in pieces if each.startswith("feature-")} == {"feature-7"}


async def test_of_a_graph_and_a_timeline_only_changed_parts_are_sent(
    page: Page, panel: str, conn: Connection
) -> None:
    feature = add_feature(conn, {n: [n - 1] if n > 1 else [] for n in range(1, 13)})
    await look(page, f"{panel}/features/{feature}")
    await page.evaluate(
        "window.sent = []; const before = take;"
        "take = (message, glows) => { sent.push(message); before(message, glows); }; 0"
    )
    conn.execute("select pgcoord.cancel_phase(%s, 'no')", [f"queue-{feature}-12"])
    await expect(page.locator("#node-12 a.node.cancelled")).to_be_visible()
    await expect(page.locator("#lane-12")).to_have_attribute("aria-label", "cancelled")
    await expect(page.locator("#who-12 .icon.cancelled")).to_be_visible()
    sent = await page.evaluate("sent")
    assert sum(map(len, sent)) < 10_000
    pieces = [each for message in sent for each in json.loads(message)["pieces"]]
    assert [each for each in pieces if each.startswith("node-")] == ["node-12"]


@pytest.mark.scale
async def test_a_change_of_one_phase_of_five_hundred_is_sent_in_ten_kilobytes(
    page: Page, panel: str, conn: Connection, epoch: int
) -> None:
    with conn.transaction():
        phases = {n: [n - 10] if n > 300 else [] for n in range(1, 501)}
        feature = add_feature(conn, phases, phase_data=Jsonb({"title": "Step"}))
    queue_ids = claim(conn, epoch)
    await look(page, f"{panel}/features/{feature}")
    await expect(page.locator("#in-line")).to_have_text("next in line: 4, 5, 6, 7, 8")
    await expect(page.locator("#phase-9 .why")).to_have_text("waits for a slot")
    # Of a piece that is drawn more than once, as on a slow machine, the last is counted.
    await page.evaluate(
        "window.sent = {}; const before = take;"
        "take = (message, glows) => { Object.assign(sent, JSON.parse(message).pieces);"
        " before(message, glows); }; 0"
    )
    with conn.transaction():
        start(conn, epoch, queue_ids[0])
        conn.execute("select pgcoord.complete_phase(%s)", [queue_ids[0]])
    claim(conn, epoch)
    await expect(tree_state(page, 4)).to_have_text("Ready")
    await expect(page.locator("#in-line")).to_have_text("next in line: 5, 6, 7, 8, 9")
    sent = await page.evaluate("sent")
    assert sum(map(len, sent.values())) < 10_000, "of all pieces it would be half a million"
    # Its timeline is fetched only when a viewer opens it.
    await page.locator("#timeline").scroll_into_view_if_needed()
    await expect(page.locator("#timeline .who .completed")).to_have_count(1)


async def test_a_critical_path_that_moves_sends_no_phase_again(
    page: Page, panel: str, conn: Connection
) -> None:
    """Two chains of ten: without its end, the first takes less than the second."""
    phases = {n: [] if n % 10 == 1 else [n - 1] for n in range(1, 21)}
    feature = add_feature(conn, phases)
    conn.execute(
        "update phase_queue set phase_data = jsonb_build_object('estimated_hours',"
        " case when phase_number <= 10 then 1 else 0.95 end)"
    )
    await look(page, f"{panel}/features/{feature}")
    marks = page.locator("#tree .critical")
    await expect(marks).to_have_count(10)
    await expect(page.locator("#phase-10 .critical")).to_have_count(1)
    await page.evaluate(
        "window.sent = {}; const before = take;"
        "take = (message, glows) => { Object.assign(sent, JSON.parse(message).pieces);"
        " before(message, glows); }; 0"
    )
    conn.execute("select pgcoord.cancel_phase(%s, 'no')", [f"queue-{feature}-10"])
    await expect(page.locator("#phase-20 .critical")).to_have_count(1)
    await expect(marks).to_have_count(10)
    sent = await page.evaluate("sent")
    assert [each for each in sent if each.startswith("phase-")] == ["phase-10"]
    # Nor an edge of the graph, since none of them waits for phase 10: only what is drawn over them.
    assert [each for each in sent if each.startswith("edge-")] == []
    await expect(page.locator("#path-0 .on-path")).to_have_count(9)
    assert sum(len(html) for each, html in sent.items() if each.startswith("path-")) < 2_000


async def test_many_events_are_drawn_together_and_the_last_state_is_shown(
    page: Page, panel: str, conn: Connection
) -> None:
    feature = add_feature(conn, {1: []})
    await look(page, f"{panel}/phases/queue-{feature}-1")
    await page.evaluate(
        "window.frames = 0; window.sent = 0; const before = take;"
        "take = (message, glows) => { sent += 1; before(message, glows); };"
        "const count = () => { frames += 1; requestAnimationFrame(count); }; count()"
    )
    # As fast as the server can, whatever the machine: slowly enough, each would be drawn by itself.
    conn.execute(
        "do $$ begin for n in 1..300 loop"
        f" update phase_queue set priority = n where feature_id = {feature}; commit;"
        " end loop; end $$".encode()
    )
    await expect(page.locator("#details")).to_contain_text("300, position")
    seen, frames = await page.evaluate("[sent, frames]")
    assert 1 <= seen < 150
    assert frames > seen / 2


async def test_relative_times_are_worded_alike_on_both_sides(page: Page, panel: str) -> None:
    from pgcoord.http.panel.format import lasting

    await page.goto(panel)
    seconds = [0, 0.9, 1, 59, 60, 61, 3599, 3600, 3660, 7199, 86399, 86400, 90000, 1e6]
    assert await page.evaluate("all => all.map(lasting)", seconds) == list(map(lasting, seconds))


@pytest.mark.scale
async def test_hidden_tabs_leave_connections_for_visible_tabs(
    browser: Browser, panel: str, conn: Connection
) -> None:
    """A browser has six to a server."""
    async with await browser.new_context() as context:
        hidden = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
        tabs = []
        for _ in range(6):
            tabs.append(page := await context.new_page())
            await look(page, panel)
            await page.evaluate(
                f"REST.after = 0; {hidden % 'true'}"
                "document.dispatchEvent(new Event('visibilitychange'))"
            )
            await page.wait_for_function("connection.source.readyState === EventSource.CLOSED")
        conn.execute("insert into planned_features (title) values ('Meanwhile')")
        seventh = await context.new_page()
        await look(seventh, panel)
        await seventh.close()
        await expect(tabs[0].locator("#features")).not_to_contain_text("Meanwhile")
        await tabs[0].evaluate(
            f"{hidden % 'false'} document.dispatchEvent(new Event('visibilitychange'))"
        )
        await expect(tabs[0].locator("#features")).to_contain_text("Meanwhile")
        await is_live(tabs[0])
        # Now and then a hidden one asks for its title.
        await tabs[1].evaluate("REST.every = 0; rest(0)")
        await expect(tabs[1].locator("#features")).to_contain_text("Meanwhile")
        # Where all of eight are looked at, those that nobody was in for longest take turns.
        for page in tabs[1:]:
            await page.evaluate(
                f"{hidden % 'false'} document.dispatchEvent(new Event('visibilitychange'))"
            )
        for _ in range(2):
            tabs.append(page := await context.new_page())
            await look(page, panel)
        conn.execute("insert into planned_features (title) values ('For all')")
        for page in tabs:
            await expect(page.locator("#features")).to_contain_text("For all")
            await is_live(page)
        await tabs[0].get_by_role("link", name="Pause all").click()
        await expect(tabs[0].get_by_role("dialog")).to_be_visible()


async def test_a_killed_server_is_noticed_and_missed_events_are_caught_up(
    page: Page, dsn: str, conn: Connection, tmp_path: Path
) -> None:
    async with service(tmp_path, dsn) as running:
        await arrive(page, running.url)
        await is_live(page)
        await running.end(signal.SIGKILL)
        await expect(page.locator("#live strong")).to_have_text("Reconnecting")
        await expect(page.locator("#live")).to_contain_text(re.compile(r"as of \d\d:\d\d:\d\d"))
        await expect(page.locator("#lost")).to_contain_text("The server does not answer")
        await expect(page.locator("main")).to_have_class(re.compile("stale"))
        conn.execute("insert into planned_features (title) values ('Meanwhile')")
        await running.start()
        await expect(page.locator("#features")).to_contain_text("Meanwhile")
        await is_live(page)
        await expect(page.locator("#lost")).to_be_hidden()


@pytest.mark.scale
async def test_a_restarted_postgres_is_noticed_and_the_page_goes_on(
    page: Page, tmp_path: Path
) -> None:
    postgres = EmbeddedPostgres(tmp_path / "postgres", None)
    await asyncio.to_thread(postgres.start)
    try:
        with psycopg.connect(postgres.dsn, autocommit=True) as conn:
            schema.upgrade(conn)
        async with served(postgres.dsn, tmp_path) as url:
            await look(page, url)
            await asyncio.to_thread(postgres.stop)
            await expect(page.locator("#lost")).to_contain_text("The database does not answer")
            answer = await page.request.get(url)
            said = await answer.text()
            assert (answer.status, "The database does not answer" in said) == (503, True)
            assert "Refused" not in said
            # What is pressed meanwhile is refused by what is known, without a wait.
            await page.get_by_role("link", name="Pause").click()
            dialog = page.get_by_role("dialog")
            await expect(dialog).to_contain_text("Running phases continue meanwhile.")
            await expect(dialog).not_to_contain_text("couldn't get a connection")
            await dialog.get_by_role("link", name="Close").click()
            await page.get_by_label("Limit").fill("5")
            await page.get_by_role("button", name="Set").click()
            await expect(dialog).to_contain_text("Nothing was changed.")
            await page.keyboard.press("Escape")
            await asyncio.to_thread(postgres.start)
            with psycopg.connect(postgres.dsn, autocommit=True) as conn:
                conn.execute("insert into planned_features (title) values ('Afterwards')")
            await expect(page.locator("#features")).to_contain_text("Afterwards")
            await is_live(page)
    finally:
        await asyncio.to_thread(postgres.stop)


async def test_a_page_that_was_away_is_sent_missed_changes_and_no_more(
    page: Page, panel: str, conn: Connection
) -> None:
    feature = add_diamond(conn)
    await look(page, f"{panel}/features/{feature}")
    seen = await page.evaluate("document.body.dataset.seen")
    conn.execute("select pgcoord.skip_phase(%s, 'done')", [f"queue-{feature}-1"])
    await expect(tree_state(page, 1)).to_have_text("Skipped")
    message = await page.evaluate(
        """seen => new Promise(resolve => {
            const source = new EventSource(`${location.pathname}?live=${seen}`);
            source.addEventListener("news", event => { source.close(); resolve(event.data); });
        })""",
        seen,
    )
    assert '"phase-1":' in message
    assert '"phase-4":' not in message
