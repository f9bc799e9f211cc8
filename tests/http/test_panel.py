"""The panel in a real browser: all is seen live, all is steered, whatever fails meanwhile."""

import asyncio
import contextlib
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest
from axe_playwright_python.base import AXE_FILE_PATH
from playwright.async_api import Browser, Page, Route, expect
from psycopg.types.json import Jsonb
from support import PATIENCE
from support.cases import case
from support.coordination import Gate
from support.database import Connection, add_feature, add_phase, claim, start, statuses
from support.desk import free_port
from support.forks import Fork, run_forked
from support.nginx import proxied
from support.panel_browser import is_live, look, served
from support.panel_scene import Scene
from support.serving import served as serving_of

from pgcoord import assets
from pgcoord.database import schema
from pgcoord.database.embedded import EmbeddedPostgres
from pgcoord.http.proxy import ADDRESS

SCRIPT = '<img src=x onerror="hacked=1"><script>hacked=1</script>"\'>{{7*7}}</textarea></title>'


def branch(conn: Connection) -> int:
    """A feature of four phases: 2 and 3 wait for 1, and 4 for both."""
    return add_feature(conn, {1: [], 2: [1], 3: [1], 4: [2, 3]})


def fail(conn: Connection, epoch: int, queue_id: str, error: str = "it broke") -> None:
    """Have a phase that is next in line run and fail."""
    assert queue_id in claim(conn, epoch)
    start(conn, epoch, queue_id)
    conn.execute("select pgcoord.fail_phase(%s, %s)", [queue_id, error])
    conn.execute(
        "select pgcoord_private.end_attempt(id, 1, '') from pgcoord.attempt where queue_id = %s",
        [queue_id],
    )


def events(conn: Connection, kind: str) -> list[dict[str, Any]]:
    return conn.execute(
        "select * from pgcoord.event where kind = %s order by id desc", [kind]
    ).fetchall()


def tree_state(page: Page, number: int) -> Any:
    return page.locator(f"#phase-{number} .state")


# --- Watching


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
        assert await page.locator(".graph .edge.met").count() == 5
        assert await page.locator(".graph .edge.broken").count() == 0


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
    long_ago = time.time() - 750
    os.utime(written, (long_ago, long_ago))
    await expect(last).to_have_text("silent for 12 min: 80 %")
    conn.execute("update pgcoord.attempt set host = 'elsewhere'")
    await look(page, panel)
    await expect(last).to_be_empty()


async def test_the_line_says_why_and_when_and_a_free_slot_says_why_it_is_free(
    page: Page, panel: str, scene: Scene, conn: Connection
) -> None:
    await look(page, panel)
    line = page.locator("#line li")
    await expect(line.nth(0)).to_contain_text(re.compile(r"Export Worker.*about \d\d:\d\d", re.S))
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
    feature = branch(conn)
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


async def test_what_stays_the_same_is_not_touched(
    page: Page, panel: str, conn: Connection, epoch: int
) -> None:
    feature = branch(conn)
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


async def test_only_what_has_changed_is_sent(
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


async def test_of_a_graph_and_a_timeline_only_what_has_changed_is_sent(
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
    await page.evaluate(
        "window.sent = 0; const before = take;"
        "take = (message, glows) => { sent += message.length; before(message, glows); }; 0"
    )
    with conn.transaction():
        start(conn, epoch, queue_ids[0])
        conn.execute("select pgcoord.complete_phase(%s)", [queue_ids[0]])
    claim(conn, epoch)
    await expect(tree_state(page, 4)).to_have_text("Ready")
    await expect(page.locator("#in-line")).to_have_text("next in line: 5, 6, 7, 8, 9")
    sent = await page.evaluate("sent")
    assert sent < 10_000, "of all pieces it would be half a million"
    # Its timeline is fetched by those who look at it.
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
    assert await page.locator("#path-0 .on-path").count() == 9
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
    for priority in range(1, 301):
        conn.execute(
            "update phase_queue set priority = %s where feature_id = %s", [priority, feature]
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
async def test_tabs_that_nobody_looks_at_leave_connections_for_the_others(
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


# --- Losing the connection


async def test_a_killed_server_is_noticed_and_what_happened_meanwhile_is_caught_up(
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
            await expect(dialog).to_contain_text("Phases that run go on meanwhile.")
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


async def test_a_skipped_phase_is_shown_as_skipped_wherever_it_is(
    page: Page, panel: str, conn: Connection
) -> None:
    feature = add_feature(conn, {1: [], 2: [1]})
    conn.execute("select pgcoord.skip_phase(%s, 'done')", [f"queue-{feature}-1"])
    await look(page, f"{panel}/features/{feature}")
    await expect(page.locator("#node-1 a.node")).to_have_attribute("title", "1 Phase 1: skipped")
    await expect(page.locator("#node-1")).to_contain_text("1 · Skipped")
    await expect(page.locator("#lane-1")).to_have_attribute("aria-label", "skipped")
    await look(page, f"{panel}/phases/queue-{feature}-2")
    await expect(page.locator("#needs-of li")).to_contain_text("skipped")
    await look(page, f"{panel}/phases/queue-{feature}-1")
    await expect(page).to_have_title("1 Phase 1, skipped · pgcoord")
    name = f"queue-{feature}-1"
    await look(page, f"{panel}/?q={name}")
    await expect(page.locator(".found .state")).to_have_text("Skipped")
    await page.get_by_role("link", name="Act on these…").click()
    await expect(page.locator("li .state")).to_have_text("Skipped")


async def test_a_page_that_was_away_is_sent_what_it_missed_and_no_more(
    page: Page, panel: str, conn: Connection
) -> None:
    feature = branch(conn)
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


async def test_words_fit_how_many_phases_there_are_and_how_they_are_numbered(
    page: Page, panel: str, conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {6: [], 7: []})
    for queue_id in claim(conn, epoch):
        start(conn, epoch, queue_id)
    conn.execute("select pgcoord_private.end_attempt(id, 1, '') from pgcoord.attempt")
    await look(page, panel)
    await expect(page.locator("#features")).to_contain_text("Phases 6 and 7 failed")
    await look(page, f"{panel}/phases/queue-{feature}-7")
    await expect(page.locator(".crumbs")).to_have_text(re.compile("/ phase 7$"))


# --- Actions


async def confirm(page: Page, verb: str, reason: str) -> None:
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Reason").fill(reason)
    await dialog.get_by_role("button", name=verb, exact=True).click()
    await expect(dialog).to_be_hidden()


async def test_a_phase_is_retried_after_seeing_what_will_run_again(
    page: Page, panel: str, conn: Connection, epoch: int
) -> None:
    feature = branch(conn)
    fail(conn, epoch, f"queue-{feature}-1")
    await look(page, f"{panel}/features/{feature}")
    await expect(page.locator("#needs")).to_contain_text(
        "Attempt 1, exit 1: it broke. Blocks phases 2 and 3."
    )
    await page.get_by_role("link", name="Retry…").click()
    changes = page.get_by_role("dialog").locator(".change li")
    await expect(changes).to_have_count(4)
    await expect(changes.nth(0)).to_contain_text("Failed to Queued")
    await expect(changes.nth(3)).to_contain_text("Blocked to Queued")
    assert statuses(conn, feature)[1] == "failed", "to look is not to do"
    await confirm(page, "Retry", "flaky test fixed")
    await expect(tree_state(page, 1)).to_have_text("Queued")
    await expect(page.locator("#needs")).to_be_hidden()
    assert statuses(conn, feature) == dict.fromkeys(range(1, 5), "queued")
    retried = next(each for each in events(conn, "phase_moved") if each["phase_number"] == 1)
    assert (retried["reason"], retried["actor"]) == ("flaky test fixed", "http (127.0.0.1)")


async def test_a_feature_runs_again_as_another_one_whole_or_from_a_phase_on(
    page: Page, panel: str, conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {1: [], 2: [1]})
    claim(conn, epoch)
    start(conn, epoch, f"queue-{feature}-1")
    conn.execute("select pgcoord_private.end_attempt(id, 0, '') from pgcoord.attempt")
    conn.execute("select pgcoord.cancel_feature(%s, null)", [feature])
    left = {1: "completed", 2: "cancelled"}
    for link, verb, first in (
        (f"features/{feature}", "Run again", "queued"),
        (f"phases/queue-{feature}-2", "Run again from here", "completed"),
    ):
        await look(page, f"{panel}/{link}")
        await page.get_by_role("link", name=f"{verb}…").click()
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_contain_text("stays as it is")
        await dialog.get_by_role("button", name=verb, exact=True).click()
        await expect(page.locator("#head")).to_contain_text(f"feature {feature} again")
        made = int(page.url.rpartition("/")[2])
        assert statuses(conn, made) == {1: first, 2: "queued"}
        assert statuses(conn, feature) == left


async def test_a_phase_is_cancelled_with_what_depends_on_it(
    page: Page, panel: str, conn: Connection
) -> None:
    feature = branch(conn)
    await look(page, f"{panel}/phases/queue-{feature}-2")
    await page.get_by_role("link", name="Cancel phase…").click()
    await expect(page.locator(".change")).to_contain_text("Queued to Blocked")
    await page.get_by_role("link", name="Cancel those, too").click()
    await expect(page.locator(".change")).not_to_contain_text("Blocked")
    await confirm(page, "Cancel them all", "not wanted")
    await expect(page.locator("#head .state")).to_have_text("Cancelled")
    assert statuses(conn, feature) == {1: "queued", 2: "cancelled", 3: "queued", 4: "cancelled"}
    assert "not wanted" in [each["reason"] for each in events(conn, "phase_moved")]


async def test_everything_is_paused_and_resumed(page: Page, panel: str, conn: Connection) -> None:
    await look(page, panel)
    await page.get_by_role("link", name="Pause all").click()
    await confirm(page, "Pause all", "database maintenance")
    notice = page.locator("#notice")
    await expect(notice).to_contain_text("Everything is paused by http (127.0.0.1)")
    await expect(notice).to_contain_text("“database maintenance”")
    await page.get_by_role("button", name="Resume").click()
    await expect(notice).not_to_contain_text("paused")
    assert events(conn, "resumed")[0]["actor"] == "http (127.0.0.1)"


async def test_slots_and_priorities_are_changed(page: Page, panel: str, conn: Connection) -> None:
    feature = add_feature(conn, {1: [], 2: []})
    await look(page, panel)
    await page.get_by_label("Limit").fill("5")
    await page.get_by_role("button", name="Set").click()
    await expect(page.locator("#slots .free")).to_have_count(5)
    await expect(page.locator("#line li").first).to_contain_text("Phase 1")
    await page.goto(f"{panel}/phases/queue-{feature}-2")
    await is_live(page)
    await page.get_by_label("Priority").fill("7")
    await page.get_by_role("button", name="Set").click()
    await expect(page.locator("#details")).to_contain_text("7, position")
    await page.goto(panel)
    await expect(page.locator("#line li").first).to_contain_text("Phase 2")
    assert events(conn, "phase_reprioritised")[0]["reason"] == "priority 50 → 7"
    assert events(conn, "slots_changed")[0]["actor"] == "http (127.0.0.1)"


async def test_many_slots_are_asked_for_first_and_shown_as_rows(
    page: Page, panel: str, conn: Connection, epoch: int
) -> None:
    add_feature(conn, {n: [] for n in range(1, 13)})
    await look(page, panel)
    await page.get_by_label("Limit").fill("500")
    await page.get_by_role("button", name="Set").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_contain_text("Let 500 phases run at once?")
    await expect(dialog).to_contain_text("3 may run now. 12 phases that wait in line would start")
    await dialog.get_by_role("link", name="Leave it").click()
    await page.get_by_role("button", name="Set").click()
    await dialog.get_by_role("button", name="Set").click()
    await expect(page.locator("#free")).to_contain_text("500 slots free")
    assert len(claim(conn, epoch)) == 12
    await expect(page.locator("#free")).to_contain_text("488 slots free")
    await expect(page.locator("#slots > .slot")).to_have_count(13)
    height = await page.evaluate("document.documentElement.scrollHeight")
    assert height < 1200
    conn.execute("select pgcoord.set_slots(3)")
    await expect(page.locator("#line")).to_contain_text("Nothing waits for a slot")
    await expect(page.locator("#slots-title + span")).to_contain_text("12 held, 3 allowed")


async def test_words_say_what_a_person_would_do_next(
    page: Page, panel: str, conn: Connection, epoch: int
) -> None:
    unknown = add_feature(conn, {1: []}, phase_data=Jsonb({"workflow_type": "unheard-of"}))
    stopped = add_feature(conn, {1: [], 2: [1]})
    fail(conn, epoch, f"queue-{stopped}-1")
    queued = add_feature(conn, {1: [], 2: [1]})
    await look(page, panel)
    row = page.locator(f"#feature-{unknown}")
    await expect(row).to_contain_text("Phase 1 cannot start: no coordinator knows its workflow")
    await expect(row).not_to_contain_text("for a slot")
    await page.get_by_role("link", name="In progress").click()
    await expect(page.locator("#features > li")).to_have_count(1)
    await expect(page.locator(f"#feature-{queued}")).to_contain_text("1 waits for a slot")
    await look(page, f"{panel}/features/{stopped}")
    await expect(page.locator("#head")).to_contain_text(re.compile("Stopped, .*: phase 1 failed"))
    await look(page, f"{panel}/features/{queued}")
    await expect(page.locator("#head")).to_contain_text("nothing of it has started")
    icon = page.locator("link[rel=icon]")
    await look(page, panel)
    await expect(icon).to_have_attribute("href", re.compile("alert.svg$"))
    await page.evaluate("lose('as a test')")
    await expect(page).to_have_title(re.compile("^Not live · "))


async def test_a_feature_is_made_generated_and_executed_in_one_click(
    page: Page, panel: str, conn: Connection
) -> None:
    await page.goto(f"{panel}/features/new")
    await page.get_by_label("Title", exact=True).fill("Dark mode")
    await page.get_by_label("What it is about").fill("For the settings page.")
    await page.get_by_role("button", name="Generate & Execute").click()
    await is_live(page)
    await expect(page.locator("h1")).to_have_text("Dark mode")
    await expect(page.locator(".tree li")).to_have_count(1)
    [row] = conn.execute("select phase_data ->> 'prompt_content' as p from phase_queue").fetchall()
    assert "For the settings page." in row["p"]


async def test_a_stored_feature_is_generated_then_executed(
    page: Page, panel: str, conn: Connection
) -> None:
    await page.goto(f"{panel}/features/new")
    await page.get_by_label("Title", exact=True).fill("Dark mode")
    form = page.get_by_role("form", name="From a description")
    await form.get_by_role("button", name="Store").click()
    await is_live(page)
    await page.get_by_role("button", name="Generate phases").click()
    await expect(page.locator("#plan")).to_contain_text("1 Dark mode")
    assert statuses(conn) == {}
    await page.get_by_role("button", name="Execute", exact=True).click()
    await expect(page.locator("#tree li")).to_have_count(1)
    await expect(page.locator("#plan")).to_be_hidden()
    assert statuses(conn) == {1: "queued"}


async def test_a_plan_is_generated_edited_planned_again_and_executed(
    page: Page, panel: str, conn: Connection
) -> None:
    await page.goto(f"{panel}/features/new")
    await page.get_by_label("Title", exact=True).fill("Votes")
    await page.get_by_label("What it is about").fill(
        "- Add a table of votes\n- Add an endpoint to vote\n- Show the votes on the page\n"
    )
    await page.get_by_label("Hours it may take").fill("6")
    await page.get_by_role("button", name="Generate phases").click()
    await is_live(page)
    shown = page.locator("#plan")
    await expect(shown.locator("li")).to_have_count(3)
    await expect(shown).to_contain_text("Runs as 1, then 2 and 3.")
    await expect(shown).to_contain_text("6 h of work, 4 h 30 min with 3 slots")
    await shown.get_by_text("Prompt, about").first.click()
    await expect(shown.get_by_role("region").first).to_contain_text("Add a table of votes")
    # Edited: a fault is said by its line, and what was typed stays.
    await page.get_by_role("link", name="Edit plan").click()
    field = page.get_by_label("Plan, Markdown")
    text = await field.input_value()
    assert text.startswith("# Votes\n\n## Phase 1: Add a table of votes\nDepends on: none\n")
    faulty = f"{text}\n## Phase 4: Guide\nDepends on: 9\n\nWrite it.\n"
    await field.fill(faulty)
    await page.get_by_role("button", name="Store", exact=True).click()
    line = faulty.split("\n").index("Depends on: 9") + 1
    await expect(page.get_by_role("alert")).to_contain_text(f"line {line}")
    await expect(page.get_by_role("alert")).to_contain_text("there is no phase 9")
    await expect(field).to_have_value(faulty)
    await field.fill(faulty.replace("on: 9", "on: 1"))
    await page.get_by_role("button", name="Store", exact=True).click()
    await is_live(page)
    await expect(shown).to_contain_text("4 Guide")
    # Planned again: from the description, in place of it.
    await page.get_by_role("button", name="Plan again").click()
    await expect(shown.locator("li")).to_have_count(3)
    assert statuses(conn) == {}
    await page.get_by_role("button", name="Execute", exact=True).click()
    await expect(page.locator("#tree li")).to_have_count(3)
    await expect(shown).to_be_hidden()
    assert statuses(conn) == dict.fromkeys((1, 2, 3), "queued")
    late = await page.goto(f"{page.url}/plan")
    assert late
    assert late.status == 409


async def test_a_faulty_plan_is_said_line_by_line_and_stays_in_the_form(
    page: Page, panel: str, conn: Connection
) -> None:
    plan = "# Audit Log\n\n## Phase 1: Tables\nDepend on: none\n\nadd\n\n## Phase 3: Worker\nwork\n"
    await page.goto(f"{panel}/features/new")
    await page.get_by_label("Plan, Markdown").fill(plan)
    await page.get_by_role("button", name="Store & Execute").click()
    problem = page.get_by_role("alert")
    await expect(problem).to_contain_text("errors, nothing was stored")
    await expect(problem.locator("li").first).to_contain_text("line 4")
    await expect(page.get_by_label("Plan, Markdown")).to_have_value(plan)
    assert conn.execute("select from planned_features").fetchall() == []


async def test_a_refusal_is_shown_as_the_database_words_it(
    page: Page, panel: str, conn: Connection, epoch: int
) -> None:
    feature = branch(conn)
    fail(conn, epoch, f"queue-{feature}-1")
    await look(page, f"{panel}/phases/queue-{feature}-1")
    await page.get_by_role("link", name="Retry…").click()
    await expect(page.get_by_role("dialog")).to_be_visible()
    conn.execute("select pgcoord.retry_phase(%s)", [f"queue-{feature}-1"])
    answered = asyncio.Event()

    async def hold(route: Route) -> None:
        await answered.wait()
        await route.continue_()

    await page.route("**/retry", hold)
    await page.get_by_role("dialog").get_by_label("Reason").fill("the server was down")
    button = page.get_by_role("dialog").get_by_role("button", name="Retry")
    await button.click()
    await expect(button).to_have_attribute("data-sending", "")
    answered.set()
    refusal = page.get_by_role("dialog").get_by_role("alert")
    await expect(refusal).to_contain_text("Refused: PC002")
    await expect(refusal).to_contain_text("only a failed or cancelled one can be retried")
    await expect(refusal).to_contain_text("HINT:")
    await expect(page.get_by_label("Reason")).to_have_value("the server was down")
    await button.click()
    await expect(button).not_to_have_attribute("aria-busy", "true")
    await expect(refusal).to_have_count(1)
    # What is lacking is mended meanwhile: it is done with the reason that was typed.
    conn.execute("select pgcoord.cancel_phase(%s, 'no')", [f"queue-{feature}-1"])
    await button.click()
    await expect(page.get_by_role("dialog")).to_be_hidden()
    assert "the server was down" in [each["reason"] for each in events(conn, "phase_moved")]
    await page.route(
        "**/cancel",
        lambda route: route.abort() if route.request.method == "POST" else route.continue_(),
    )
    await page.get_by_role("link", name="Cancel phase…").click()
    await page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    await expect(page.locator("#faults")).to_contain_text("is not known")
    await expect(page.get_by_role("dialog")).to_be_hidden()


NOT_FOUND: Any = [
    ("/features/999", 404, "there is no feature 999"),
    ("/features/x", 422, "'x' is not a number"),
    ("/features/99999999999", 422, "'99999999999' is not a number"),
    ("/phases/queue-1-1", 404, "there is no phase queue-1-1"),
    ("/phases/queue-1-1/retry", 404, "there is no phase queue-1-1"),
    ("/?show=nonsense", 404, "there is no filter 'nonsense'"),
    ("/history?before=x", 422, "'x' is not a number"),
]


async def test_what_does_not_exist_is_said_on_a_page(page: Page, panel: str) -> None:
    for address, status, words in NOT_FOUND:
        with case(address, status, words):
            answer = await page.goto(panel + address)
            assert answer
            assert answer.status == status
            await expect(page.get_by_role("alert")).to_contain_text(words)


# --- Without JavaScript


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
    found = re.search(r"^    location /pgcoord/ \{.*?^    \}$", document, re.S | re.M)
    assert found
    kept = found[0].replace("http://127.0.0.1:8002", url).replace("/pgcoord/", "/kept/")
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
    feature = branch(conn)
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


async def test_who_did_it_is_the_name_that_somebody_gave(
    page: Page, dsn: str, conn: Connection, tmp_path: Path
) -> None:
    branch(conn)
    async with serving_of(dsn, tmp_path, leads=False) as site:
        await look(page, site.url)
        await page.get_by_role("link", name="Say who you are").click()
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
    assert events(conn, "resumed")[0]["actor"] == "NIGHTLY (127.0.0.1)"
    assert events(conn, "paused")[0]["actor"] == "http (127.0.0.1)"


async def test_a_form_of_another_site_is_refused(page: Page, panel: str, conn: Connection) -> None:
    async def foreign(route: Route) -> None:
        form = f'<form method=post action="{panel}/pause"><button>Win</button></form>'
        await route.fulfill(body=form, content_type="text/html")

    await page.route("http://elsewhere.test/", foreign)
    await page.goto("http://elsewhere.test/")
    await page.get_by_role("button").click()
    await expect(page.locator("body")).to_contain_text("another site")
    assert events(conn, "paused") == []


# --- Logs


@pytest.fixture
def written(conn: Connection, epoch: int, tmp_path: Path) -> Path:
    """The log of a phase that runs, queue-1-1."""
    add_feature(conn, {1: []})
    claim(conn, epoch)
    start(conn, epoch, "queue-1-1")
    conn.execute("update pgcoord.attempt set folder = %s", [str(tmp_path)])
    path = tmp_path / "log"
    path.write_text("begun\n")
    return path


async def test_a_log_is_followed_paused_searched_and_downloaded(
    page: Page, panel: str, written: Path
) -> None:
    await look(page, f"{panel}/phases/queue-1-1")
    text = page.locator("#log-text")
    await expect(text).to_have_text("begun\n")
    with written.open("a") as log:
        log.write("\x1b[31mred\x1b[0m <b>not bold</b> żółw\n")
    await expect(text).to_have_text("begun\nred <b>not bold</b> żółw\n")
    await page.get_by_label("Follow").uncheck()
    await is_live(page)
    with written.open("a") as log:
        log.write("unseen\n")
    await page.get_by_label("Follow").check()
    await expect(text).to_contain_text("unseen")
    await page.get_by_label("Search the log").fill("NOT B")
    await page.locator("#log").get_by_role("button", name="Search").click()
    await expect(page.locator("#log mark")).to_have_text("not b")
    await expect(page.locator("#log")).to_contain_text("1 line found")
    async with page.expect_download() as saved:
        await page.get_by_role("link", name="Download").click()
    download = await saved.value
    assert download.suggested_filename == "queue-1-1-1.log"
    saved_bytes = await anyio.Path(await download.path()).read_bytes()
    assert saved_bytes == await anyio.Path(written).read_bytes()


async def test_the_log_of_an_attempt_that_begins_is_shown_and_followed(
    page: Page, panel: str, conn: Connection, epoch: int, tmp_path: Path
) -> None:
    add_feature(conn, {1: []})
    await look(page, f"{panel}/phases/queue-1-1")
    await expect(page.locator("#log")).to_contain_text("has not started")
    for attempt in ("first", "second"):
        (tmp_path / attempt).mkdir()
        with conn.transaction():
            claim(conn, epoch)
            conn.execute("update pgcoord.attempt set folder = %s", [str(tmp_path / attempt)])
        start(conn, epoch, "queue-1-1")
        await expect(page.locator("#log-place")).to_contain_text("nothing was written yet")
        (tmp_path / attempt / "log").write_text(f"this is the {attempt}\n")
        await expect(page.locator("#log-text")).to_have_text(f"this is the {attempt}\n")
        await expect(page.locator("#log-said")).to_contain_text(
            re.compile(r"last output \d+ s ago")
        )
        conn.execute("select pgcoord.fail_phase('queue-1-1', 'it broke')")
        conn.execute("select pgcoord_private.end_attempt(id, 1, '') from pgcoord.attempt")
        conn.execute("select pgcoord.retry_phase('queue-1-1')")
    await page.get_by_label("Follow").uncheck()
    await is_live(page)
    claim(conn, epoch)
    await expect(page.locator("#attempts")).to_have_attribute("data-latest", "3")
    await expect(page.locator("#log-text")).to_have_text("this is the second\n")


@pytest.mark.scale
async def test_a_log_of_a_hundred_megabytes_stays_usable(
    page: Page, panel: str, written: Path
) -> None:
    line = b"x" * 99 + b"\n"
    with written.open("wb") as log:
        log.write(b"needle in line one\n")
        for _ in range(100):
            log.write(line * 10_000)
        log.write(b"the end\n")
    sizes: list[int] = []
    page.on("response", lambda answer: sizes.append(int(answer.headers.get("content-length", 0))))
    await look(page, f"{panel}/phases/queue-1-1")
    await expect(page.locator("#log-text")).to_contain_text("the end")
    assert max(sizes) < 200_000
    await page.get_by_label("Search the log").fill("needle")
    await page.keyboard.press("Enter")
    await page.get_by_role("link", name="needle in line one").click()
    await expect(page.locator("#log-text")).to_contain_text("needle in line one")
    answer = await page.request.get(f"{panel}/phases/queue-1-1/log", headers={"range": "bytes=-8"})
    assert (answer.status, await answer.text()) == (206, "the end\n")


async def test_a_log_is_shown_and_searched_as_a_terminal_would_show_it(
    page: Page, panel: str, written: Path
) -> None:
    await anyio.Path(written).write_text(
        "build\n\x1b[1;31mtests \x1b[0mfailed: \x1b[38;5;46mgreen\x1b[39m plain\n"
        "10 %\r50 %\r\x1b[34m100 %\x1b[0m\r\nlast"
    )
    await look(page, f"{panel}/phases/queue-1-1")
    text = page.locator("#log-text")
    await expect(text).to_have_text("build\ntests failed: green plain\n100 %\nlast")
    await expect(text.locator(".c1.bold")).to_have_text("tests ")
    await expect(text.locator(".c2")).to_have_text("green")
    await expect(text.locator(".c4")).to_have_text("100 %")
    with written.open("a") as log:
        log.write("ing\n12 %\r")
    await expect(text).to_contain_text("lasting\n12 %")
    with written.open("a") as log:
        log.write("99 %\rdone\nnext\n")
    await expect(text).to_have_text(
        "build\ntests failed: green plain\n100 %\nlasting\ndone\nnext\n"
    )
    await expect(text.locator("#L5")).to_have_text("done\n")
    await page.get_by_label("Search the log").fill("tests FAILED")
    await page.keyboard.press("Enter")
    await expect(page.locator("#log mark")).to_have_text("tests failed")
    await page.get_by_label("Search the log").fill("50 %")
    await page.keyboard.press("Enter")
    await expect(page.locator("#log pre")).to_have_text("Nothing was found.")


async def test_a_log_opens_where_it_failed_and_goes_from_error_to_error(
    page: Page, panel: str, conn: Connection, written: Path
) -> None:
    lines = [f"line {n} {'of many ' * 12}" for n in range(1, 6_001)]
    lines[99] = "Error: first"
    lines[2_999] = "AssertionError: the cause"
    await anyio.Path(written).write_text("\n".join(lines) + "\n")
    conn.execute(
        "select pgcoord_private.end_attempt(id, 3, 'AssertionError: the cause')"
        " from pgcoord.attempt"
    )
    await look(page, panel)
    await expect(page.locator("#needs")).to_contain_text("the cause")
    await look(page, f"{panel}/phases/queue-1-1")
    await expect(page.locator("main")).to_contain_text("AssertionError: the cause")
    await expect(page.locator("#L3000")).to_be_in_viewport()
    await expect(page.locator("#L3000")).to_have_text("AssertionError: the cause\n")
    await expect(page.get_by_label("Follow")).to_have_count(0)
    await page.get_by_role("link", name="Previous error").click()
    await expect(page.locator("#L100.at")).to_have_text("Error: first\n")
    await page.get_by_role("link", name="Next error").click()
    await expect(page.locator("#L3000.at")).to_be_visible()
    await page.goto(f"{panel}/phases/queue-1-1?attempt=1&line=5000#L5000")
    await expect(page.locator("#L5000")).to_contain_text("line 5000 ")


async def test_a_log_on_another_machine_is_named(
    page: Page, panel: str, conn: Connection, written: Path
) -> None:
    conn.execute("update pgcoord.attempt set host = 'elsewhere'")
    await look(page, f"{panel}/phases/queue-1-1")
    await expect(page.locator("#log")).to_contain_text(
        f"the log of queue-1-1, attempt 1, is on elsewhere: {written}"
    )


# --- Safe and open to everybody


async def test_no_text_becomes_a_script(
    page: Page, panel: str, conn: Connection, epoch: int, tmp_path: Path
) -> None:
    conn.execute("select set_config('pgcoord.actor', %s, false)", [SCRIPT])
    conn.execute(
        "insert into planned_features (id, title, description, item_type, tags)"
        " values (1, %s, %s, %s, %s)",
        [SCRIPT, SCRIPT, SCRIPT, Jsonb([SCRIPT])],
    )
    data = {"title": SCRIPT, "prompt_content": SCRIPT, "files": [SCRIPT]}
    add_phase(conn, 1, 1, phase_data=Jsonb(data))
    add_phase(conn, 1, 2, [1], phase_data=Jsonb({**data, "workflow_type": SCRIPT}))
    add_phase(conn, 1, 3, [], phase_data=Jsonb({**data, "workflow_type": SCRIPT}))
    fail(conn, epoch, "queue-1-1", SCRIPT)
    conn.execute("update pgcoord.attempt set folder = %s, adw_id = %s", [str(tmp_path), SCRIPT])
    (tmp_path / "log").write_text(SCRIPT)
    add_phase(conn, 1, 4, phase_data=Jsonb({"title": SCRIPT}), priority=1)
    start(conn, epoch, *claim(conn, epoch))
    conn.execute("update pgcoord.attempt set folder = %s where exited_at is null", [str(tmp_path)])
    conn.execute("select pgcoord.pause(1, %s)", [SCRIPT])
    conn.execute("select pgcoord.pause(null, %s)", [SCRIPT])
    await look(page, panel)
    await expect(page.locator("#feature-1 h3")).to_have_text(SCRIPT)
    await expect(page.locator("#slots h3").first).to_have_text(SCRIPT)
    await expect(page.locator("#slots .last code").first).to_have_text(SCRIPT)
    await look(page, f"{panel}/?q={SCRIPT.replace('#', '')}&show=all")
    await look(page, f"{panel}/history")
    await look(page, f"{panel}/features/1")
    await expect(page.locator("h1")).to_have_text(SCRIPT)
    await expect(page.locator("#phase-1 .why")).to_contain_text(SCRIPT)
    await page.locator("#phase-1 a").click()
    await is_live(page)
    await expect(page.locator("#prompt pre")).to_have_text(SCRIPT)
    await expect(page.locator("#log-text")).to_have_text(SCRIPT)
    await page.get_by_role("link", name="Retry…").click()
    await confirm(page, "Retry", SCRIPT)
    await expect(page.locator("#events")).to_contain_text(SCRIPT)
    await page.goto(f"{panel}/features/new")
    await page.get_by_label("Plan, Markdown").fill(f"# x\n\n## Phase {SCRIPT}\n")
    await page.get_by_role("button", name="Store", exact=True).first.click()
    await expect(page.get_by_role("alert")).to_be_visible()
    assert await page.evaluate("typeof hacked") == "undefined"


@pytest.mark.scale
async def test_axe_finds_nothing_on_any_page_in_any_colours(
    page: Page, panel: str, scene: Scene, conn: Connection
) -> None:
    axe = await anyio.Path(AXE_FILE_PATH).read_text()

    async def check(*, dark: bool = True) -> None:
        await page.evaluate(axe)
        looks: list[tuple[Any, Any]] = [("light", {}), ("dark", {"runOnly": ["color-contrast"]})]
        for colours, options in looks[: 1 + dark]:
            await page.emulate_media(color_scheme=colours, reduced_motion="reduce")
            run = "options => axe.run(options).then(found => found.violations)"
            found = await page.evaluate(run, {"resultTypes": ["violations"], **options})
            assert [(page.url, each["id"], each["nodes"][0]["html"]) for each in found] == []

    conn.execute(
        "select pgcoord.add_schedule('nightly', '0 3 * * *', pgcoord.feature_plan(104), 'UTC')"
    )
    conn.execute("select pgcoord.run_schedule('nightly')")
    for address in (
        *(
            "/",
            "/?q=nothing",
            "/?show=failed",
            "/history?what=failed",
            "/history?before=12",
            "/features/new",
        ),
        *("/features/120", "/login", "/features/118", "/features/115", "/features/101/cancel"),
        *("/features/118/plan", "/several?show=failed", "/pause", "/features/999"),
        *("/phases/queue-104-2", "/phases/queue-104-6", "/phases/queue-104-2?find=passed"),
        *("/phases/queue-104-1/retry", "/phases/queue-104-6/compare"),
        *("/workflows/adw_sdlc_complete_iso", "/schedules/nightly"),
    ):
        await page.goto(panel + address)
        await check(dark=address in ("/", "/features/118/plan", "/phases/queue-104-2", "/login"))
    await look(page, f"{panel}/features/104")
    await check()
    conn.execute("select pgcoord.pause(null, 'maintenance')")
    await expect(page.locator("#notice")).to_contain_text("maintenance")
    await page.evaluate("lose('as a test')")
    await page.get_by_role("link", name="Retry…").click()
    await expect(page.get_by_role("dialog")).to_be_visible()
    await check()


async def test_the_keyboard_alone_can_do_everything(
    page: Page, panel: str, conn: Connection, epoch: int
) -> None:
    feature = branch(conn)
    fail(conn, epoch, f"queue-{feature}-1")
    await look(page, panel)

    async def tab_to(name: str) -> None:
        for _ in range(60):
            await page.keyboard.press("Tab")
            focused = await page.evaluate(
                "(document.activeElement.labels?.[0] || document.activeElement).textContent.trim()"
            )
            if focused == name:
                return
        raise AssertionError(f"no way to {name!r} by Tab")

    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.textContent") == "Skip to content"
    await page.keyboard.press("Enter")
    await tab_to("Retry…")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_be_hidden()
    assert await page.evaluate("document.activeElement.textContent") == "Retry…"
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog")).to_be_visible()
    await page.keyboard.type("by keyboard")
    await page.keyboard.press("Enter")
    await expect(page.locator("#needs")).to_be_hidden()
    assert statuses(conn, feature)[1] == "queued"
    await tab_to("Limit")
    await page.keyboard.type("4")
    await page.keyboard.press("Enter")
    await expect(page.locator("#slots .free")).to_have_count(4)
    await page.goto(f"{panel}/features/{feature}")
    await is_live(page)
    await tab_to("1 Phase 1")
    await page.keyboard.press("Enter")
    await is_live(page)
    await tab_to("Cancel phase…")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog")).to_be_visible()
    await tab_to("Cancel phase")
    await page.keyboard.press("Enter")
    await expect(page.locator("#head .state")).to_have_text("Cancelled")


async def test_keys_search_step_and_ask(
    page: Page, panel: str, conn: Connection, epoch: int
) -> None:
    feature = branch(conn)
    fail(conn, epoch, f"queue-{feature}-1")
    await look(page, panel)
    focused = "document.activeElement.textContent.trim()"
    await page.keyboard.press("j")
    assert (await page.evaluate(focused)).startswith("Phase 1")
    await page.keyboard.press("j")
    assert await page.evaluate(focused) == "a"
    await page.keyboard.press("k")
    await page.keyboard.press("r")
    await expect(page.get_by_role("dialog")).to_contain_text("Retry phase 1")
    await page.keyboard.press("Escape")
    await page.keyboard.press("?")
    await expect(page.get_by_role("dialog")).to_contain_text("these keys")
    await page.keyboard.press("Escape")
    await page.keyboard.press("/")
    await page.keyboard.type("phase 3")
    await page.keyboard.press("Enter")
    await is_live(page)
    await expect(page.locator("#found li")).to_have_count(1)
    await expect(page.locator("#found")).to_contain_text("3 Phase 3")
    await look(page, f"{panel}/?show=blocked")
    await expect(page.locator("#found li")).to_have_count(3)
    await page.locator(".found a").first.click()
    await expect(page.locator("h1")).to_have_text("Phase 2")
    await page.keyboard.press("g")
    await page.keyboard.press("o")
    await expect(page.locator("#features")).to_be_visible()


async def test_a_schedule_is_watched_live(page: Page, panel: str, conn: Connection) -> None:
    feature = branch(conn)
    conn.execute(
        "select pgcoord.add_schedule('nightly', '0 3 * * *', pgcoord.feature_plan(%s))", [feature]
    )
    await look(page, f"{panel}/schedules/nightly")
    await expect(page.locator("#next li")).to_have_count(5)
    conn.execute("select pgcoord.pause_schedule('nightly', 'a release')")
    await expect(page.locator("#schedule")).to_contain_text("a release")
    await expect(page.get_by_role("button", name="Resume")).to_be_visible()
    await expect(page.locator("#next")).to_be_hidden()
    conn.execute("select pgcoord.run_schedule('nightly')")
    await expect(page.locator("#runs tbody tr")).to_contain_text("started")


async def test_the_history_is_filtered_and_exported(
    page: Page, panel: str, conn: Connection
) -> None:
    first, second = branch(conn), branch(conn)
    conn.execute("select set_config('pgcoord.actor', 'dana (panel)', false)")
    conn.execute("select pgcoord.skip_phase(%s, '=1+1')", [f"queue-{first}-1"])
    conn.execute("select pgcoord.skip_phase(%s, 'x')", [f"queue-{second}-1"])
    conn.execute("select pgcoord.pause()")
    await look(page, f"{panel}/history")
    await page.get_by_label("What").select_option("completed")
    await page.get_by_label("By").fill("DANA")
    await page.get_by_label("Feature").fill(str(first))
    await page.get_by_role("button", name="Show").click()
    await is_live(page)
    await expect(page.locator("#events tr")).to_have_count(1)
    async with page.expect_download() as saved:
        await page.get_by_role("link", name="CSV").click()
    text = await anyio.Path(await (await saved.value).path()).read_text()
    assert text.count("dana (panel)") == 1
    assert ",'=1+1" in text, "no spreadsheet takes it for a formula"
    answer = await page.request.get(f"{panel}/history.json?what=paused")
    assert [each["kind"] for each in await answer.json()] == ["paused"]
    # The kind is looked at before anything is read.
    answer = await page.request.get(f"{panel}/history.xml?until=never")
    assert (answer.status, "not sent as &#39;xml&#39;" in await answer.text()) == (404, True)
    await look(page, f"{panel}/history?until=2001-01-01")
    await expect(page.locator("#events tr")).to_have_count(0)


async def test_an_empty_installation_runs_the_plan_that_it_shows(
    page: Page, panel: str, conn: Connection
) -> None:
    await look(page, panel)
    await page.evaluate(await anyio.Path(AXE_FILE_PATH).read_text())
    found = await page.evaluate("axe.run().then(found => found.violations)")
    assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []
    await page.locator("#none").get_by_role("button", name="Store & Execute").click()
    await expect(page.locator("h1")).to_have_text("WebSocket Migration")
    assert statuses(conn) == dict.fromkeys((1, 2, 3), "queued")


@pytest.mark.scale
async def test_everything_fits_on_a_phone(browser: Browser, panel: str, scene: Scene) -> None:
    async with await browser.new_context(viewport={"width": 320, "height": 640}) as context:
        page = await context.new_page()
        pages = ("/", "/features/104", "/phases/queue-104-2", "/history", "/features/new", "/login")
        for address in pages:
            await page.goto(panel + address)
            wide = "document.documentElement.scrollWidth"
            assert (address, await page.evaluate(wide)) == (address, 320)


@pytest.mark.scale
async def test_a_graph_of_two_hundred_phases_is_drawn_without_overlaps(
    page: Page, panel: str, conn: Connection
) -> None:
    phases = {n: [m for m in (n - 7, n - 11, n - 40) if m >= 1] for n in range(1, 201)}
    feature = add_feature(conn, phases)
    await look(page, f"{panel}/features/{feature}")
    boxes = await page.evaluate(
        "[...document.querySelectorAll('#graph foreignObject')].map(each =>"
        " ['x', 'y', 'width', 'height'].map(name => +each.getAttribute(name)))"
    )
    assert len(boxes) == 200
    for i, (x, y, width, height) in enumerate(boxes):
        for x2, y2, _, _ in boxes[i + 1 :]:
            assert abs(x - x2) >= width or abs(y - y2) >= height
