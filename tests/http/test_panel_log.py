"""Logs in the panel: followed, searched, and shown as a terminal would."""

import re
from pathlib import Path

import anyio
import pytest
from playwright.async_api import Page, expect
from support.database import Connection, add_feature, claim, force, start
from support.panel_browser import is_live, look


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
            force(conn, "update pgcoord.attempt set folder = %s", str(tmp_path / attempt))
        start(conn, epoch, "queue-1-1")
        await expect(page.locator("#log-place")).to_contain_text("no output yet")
        (tmp_path / attempt / "log").write_text(f"this is the {attempt}\n")
        await expect(page.locator("#log-text")).to_have_text(f"this is the {attempt}\n")
        await expect(page.locator("#log-age")).to_contain_text(re.compile(r"last output \d+ s ago"))
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


async def test_a_log_is_shown_and_searched_as_on_a_terminal(
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


async def test_a_log_opens_at_its_error_and_steps_through_errors(
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
